// An exam question by question: what was expected, what was said before the study, and after.

import { element } from "./dom.js";

const SHOWN = 30; // at once

const KINDS = [
  ["all", "All", () => true],
  ["learned", "Learned", (each) => each.right_after && !each.right_before],
  ["wrong", "Still wrong", (each) => !each.right_after],
  ["lost", "Lost", (each) => each.right_before && !each.right_after],
];

export function questions({ exam }) {
  if (!exam.length) {
    return element(
      "p",
      { class: "hint" },
      "Its questions are not kept: it sat no exam, or one of its sources was forgotten since.",
    );
  }
  const place = element("div");
  const draw = (chosen, shown = SHOWN) =>
    place.replaceChildren(...listed(exam.filter(chosen), shown, () => draw(chosen, Infinity)));
  const picks = KINDS.map(([name, text, chosen]) => {
    const found = exam.filter(chosen).length;
    const radio = element("input", {
      type: "radio",
      name: "questions",
      value: name,
      checked: name === "all",
      onchange: () => draw(chosen),
    });
    return found || name === "all" ? element("label", { class: "pick" }, radio, ` ${text} (${found})`) : null;
  });
  draw(KINDS[0][2]);
  return element(
    "section",
    {},
    element("h3", {}, "The questions"),
    element(
      "fieldset",
      { class: "row picks" },
      element("legend", { class: "hidden" }, "Which questions"),
      picks,
    ),
    place,
  );
}

function listed(found, shown, all) {
  const rest = found.length - shown;
  const more = rest > 0 ? [element("button", { type: "button", onclick: all }, `Show ${rest} more`)] : [];
  return [element("ol", { class: "questions" }, found.slice(0, shown).map(one)), ...more];
}

function one({
  question,
  expected,
  topic,
  before,
  after,
  right_before: rightBefore,
  right_after: rightAfter,
}) {
  return element(
    "li",
    {},
    element("p", { class: "question" }, question),
    element(
      "p",
      { class: "hint" },
      "Expected: ",
      element("strong", {}, expected),
      topic ? ` · from ${topic}` : null,
    ),
    element(
      "dl",
      { class: "replies" },
      before === null ? null : [element("dt", {}, "before"), reply(before, rightBefore)],
      element("dt", {}, "after"),
      reply(after, rightAfter),
    ),
  );
}

function reply(text, isRight) {
  const mark = isRight ? ["✓", "Right: "] : ["✗", "Wrong: "];
  return element(
    "dd",
    { class: isRight ? "right" : "wrong" },
    element("span", { class: "mark", "aria-hidden": "true" }, mark[0]),
    element("span", { class: "hidden" }, mark[1]),
    text.trim() || "(nothing)",
  );
}
