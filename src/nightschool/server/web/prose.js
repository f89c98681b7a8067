// What a model writes, as elements: paragraphs, lists, headings, code, bold and italics; and [1] where it cites.
// A small part of Markdown, the one that models use. Whatever else stands there stays as it is.

import { element } from "./dom.js";

const FENCE = /^```(\S*)\s*$/;
const HEADING = /^#{1,6}\s+(.*)$/;
const BULLET = /^\s*[-*•]\s+(.*)$/;
const ORDERED = /^\s*\d{1,3}[.)]\s+(.*)$/;
const INLINE = /(`[^`\n]+`)|(\*\*[^*\n]+\*\*)|(\*[^*\s][^*\n]*\*)|\[(\d{1,3})\]/g;

/** Elements for a text; `cite(number)` gives the element for a reference, or null to leave it as text. */
export function prose(text, cite = () => null) {
  const lines = text.split("\n");
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const [node, next] = block(lines, at, cite);
    if (node) found.push(node);
    at = next;
  }
  return found;
}

function block(lines, at, cite) {
  const line = lines[at];
  if (!line.trim()) return [null, at + 1];
  if (FENCE.test(line)) return code(lines, at + 1);
  const heading = HEADING.exec(line);
  if (heading) return [element("p", { class: "heading" }, inline(heading[1], cite)), at + 1];
  if (BULLET.test(line)) return items("ul", BULLET, lines, at, cite);
  if (ORDERED.test(line)) return items("ol", ORDERED, lines, at, cite);
  return paragraph(lines, at, cite);
}

function code(lines, from) {
  let to = from;
  while (to < lines.length && !FENCE.test(lines[to])) to += 1; // a fence may still be open in a stream
  const text = lines.slice(from, to).join("\n");
  return [element("pre", { tabindex: "0" }, element("code", {}, text)), to + 1];
}

function items(tag, mark, lines, at, cite) {
  const list = element(tag);
  for (; at < lines.length && mark.test(lines[at]); at += 1) {
    list.append(element("li", {}, inline(mark.exec(lines[at])[1], cite)));
  }
  return [list, at];
}

function paragraph(lines, at, cite) {
  const from = at;
  const isPlain = (line) => line.trim() && ![FENCE, HEADING, BULLET, ORDERED].some((kind) => kind.test(line));
  while (at < lines.length && isPlain(lines[at])) at += 1;
  const parts = lines
    .slice(from, at)
    .flatMap((line, index) => [index ? element("br") : null, ...inline(line, cite)]);
  return [element("p", {}, parts), at];
}

function inline(text, cite) {
  const parts = [];
  let end = 0;
  for (const match of text.matchAll(INLINE)) {
    parts.push(text.slice(end, match.index), marked(match, cite));
    end = match.index + match[0].length;
  }
  parts.push(text.slice(end));
  return parts;
}

function marked([whole, typed, bold, , number], cite) {
  if (typed) return element("code", {}, whole.slice(1, -1));
  if (bold) return element("strong", {}, whole.slice(2, -2));
  if (number) return cite(Number(number)) ?? whole;
  return element("em", {}, whole.slice(1, -1));
}
