// One message of a chat as an element: what was said, the notes it cites, and what can be done with it.

import { element } from "./dom.js";
import { duration } from "./figures.js";
import { prose } from "./prose.js";

/** What the person said; `edit(text)` is called with what they make of it. */
export function question(message, edit) {
  const said = element("div", { class: "said" }, message.content);
  const node = element("li", { class: "mine" }, element("span", { class: "hidden" }, "You: "), said);
  const begin = () =>
    node.replaceChildren(editor(message.content, edit, () => node.replaceChildren(...shown)));
  const button = element("button", { class: "quiet", type: "button", onclick: begin }, "Edit");
  node.append(element("div", { class: "actions" }, button));
  const shown = [...node.childNodes];
  return node;
}

function editor(text, done, cancel) {
  const area = element("textarea", { rows: "3", "aria-label": "Your message" });
  area.value = text;
  const form = element(
    "form",
    { class: "editor" },
    area,
    element(
      "div",
      { class: "row end" },
      element("button", { type: "button", onclick: cancel }, "Cancel"),
      element("button", { class: "primary" }, "Send again"),
    ),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (area.value.trim()) done(area.value.trim());
  });
  area.addEventListener("keydown", (event) => {
    if (event.key === "Escape") cancel();
    if (isSend(event)) form.requestSubmit();
  });
  requestAnimationFrame(() => area.focus());
  return form;
}

/** Enter alone; not while an input method is still composing a character. */
export function isSend(event) {
  const isEnter = event.key === "Enter" && !event.shiftKey && !event.isComposing;
  if (isEnter) event.preventDefault();
  return isEnter;
}

/** An answer. `write()` shows what there is of it by now; `end(retry)` when there comes no more. */
export class AnswerView {
  constructor(message) {
    this.message = message;
    this.text = element("div", { class: "prose" });
    this.below = element("div");
    const who = element("span", { class: "hidden" }, "Answer: ");
    this.node = element("li", { class: "answer" }, who, this.text, this.below);
    this.frame = 0;
  }

  write() {
    this.frame ||= requestAnimationFrame(() => this.#draw());
  }

  #draw() {
    this.frame = 0;
    const { content, citations = [] } = this.message;
    const notes = new Map(citations.map((each) => [each.number, this.#note(each)]));
    const cite = (number) => (notes.has(number) ? reference(number, notes.get(number)) : null);
    this.text.replaceChildren(...(content ? prose(content, cite) : [waiting()]));
    this.notes = [...notes.values()];
  }

  #note({ number, filename, heading, quote }) {
    const where = [filename, heading].filter(Boolean).join(" › ");
    return element(
      "details",
      { class: "note" },
      element("summary", {}, element("span", { class: "number" }, String(number)), " ", where),
      element("blockquote", {}, quote),
    );
  }

  end(retry) {
    cancelAnimationFrame(this.frame);
    this.#draw();
    const { message } = this;
    const how = [
      message.model,
      message.memory ? "with your notes" : null,
      message.seconds === undefined ? null : duration(message.seconds),
      message.stopped ? "stopped" : null,
    ];
    const again = retry && element("button", { class: "quiet", type: "button", onclick: retry }, "Try again");
    const line = element(
      "div",
      { class: "actions" },
      element("span", {}, how.filter(Boolean).join(" · ")),
      again,
    );
    this.below.replaceChildren(...this.notes, line);
  }
}

function waiting() {
  return element(
    "p",
    { class: "waiting" },
    element("span", { class: "hidden" }, "Waiting for the first word"),
  );
}

function reference(number, note) {
  const open = () => {
    note.open = true;
    note.querySelector("summary").focus({ preventScroll: true });
    note.scrollIntoView({ block: "nearest" });
  };
  const label = `Note ${number}`;
  return element(
    "button",
    { class: "cite", type: "button", "aria-label": label, onclick: open },
    String(number),
  );
}
