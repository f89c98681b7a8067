// The view in which people talk with a model.

import { stream } from "./api.js";
import * as conversation from "./conversation.js";
import { byId, element, redraw } from "./dom.js";
import { AnswerView, isSend, question } from "./message.js";
import * as stack from "./stack.js";

const SENTENCE = /[^.!?\n]+[.!?\n]+[”"’')]*(\s*\[\d+\])*/y;
const TEMPERATURE = 0.3; // as `nightschool chat`: what was learned shall come out
const NEAR_PX = 120; // whoever is that close to the end wants to see it grow

let answering = null; // an AbortController while an answer comes

/** `values`: model and memory (on, off), as links from other views have them. */
export async function show(part, values) {
  drawAll();
  byId("who-problem").textContent = "";
  try {
    await stack.refresh();
    if (values.has("memory")) stack.setMemory(values.get("memory") === "on");
    if (values.has("model")) stack.choose(values.get("model"));
    if (values.size) history.replaceState(null, "", "#chat"); // a reload keeps what was chosen since
  } catch (error) {
    byId("who-problem").textContent = error.message;
  }
  drawEmpty();
}

// What was said -----------------------------------------------------------------------------------

function drawAll() {
  if (answering) return;
  const messages = conversation.all();
  const nodes = messages.map((message, index) => {
    if (message.role === "user") return question(message, (text) => askInstead(index, text));
    const view = new AnswerView(message);
    view.end(index === messages.length - 1 ? retry : null);
    return view.node;
  });
  byId("messages").replaceChildren(...nodes);
  if (messages.at(-1)?.role === "user") showProblem("There is no answer yet.");
  drawEmpty();
}

function drawEmpty() {
  const place = byId("chat-empty");
  place.hidden = conversation.all().length > 0;
  byId("new-chat").disabled = conversation.all().length === 0;
  if (place.hidden) return;
  const teach = element("a", { href: "#teach" }, "Teach");
  const first = stack.sourceCount()
    ? element(
        "p",
        {},
        "Ask about something that stands in your notes. The answer says which note it is from.",
      )
    : element(
        "p",
        {},
        "Begin with ",
        teach,
        ": give it a page of your notes, and a second later you can ask about it here.",
      );
  const isTiny = (stack.base()?.parameters ?? Infinity) < 50e6;
  const tiny = element(
    "p",
    { class: "hint" },
    `${stack.base()?.name} is a very small model to try everything out with: it quotes and learns, but does not reason. `,
    element("a", { href: "#models" }, "Get a bigger one"),
    ".",
  );
  redraw(place, element("h2", {}, "Nothing said yet"), first, isTiny ? tiny : null);
}

function showProblem(text) {
  const again = element("button", { type: "button", onclick: retry }, "Try again");
  const line = element(
    "li",
    { class: "problem-line" },
    element("p", { class: "problem", role: "alert" }, text),
    again,
  );
  byId("messages").append(line);
}

// Asking ------------------------------------------------------------------------------------------

function ask(text) {
  conversation.add({ role: "user", content: text });
  drawAll();
  return answer();
}

function askInstead(index, text) {
  stop();
  answering = null;
  conversation.cutAt(index);
  return ask(text);
}

function retry() {
  const messages = conversation.all();
  if (messages.at(-1)?.role === "assistant") conversation.cutAt(messages.length - 1);
  return answer();
}

async function answer() {
  const control = (answering = new AbortController());
  const sent = conversation.forModel();
  const message = { role: "assistant", content: "", model: "", memory: stack.usesMemory() };
  const view = new AnswerView(message);
  byId("messages").querySelector(".problem-line")?.remove();
  redrawLast(view);
  setBusy(true);
  const begun = performance.now();
  let problem = null;
  try {
    if (!stack.base()) await stack.refresh();
    message.model = stack.model();
    await receive(sent, message, view, control.signal);
  } catch (error) {
    if (error.name === "AbortError") message.stopped = true;
    else problem = error;
  }
  message.seconds = (performance.now() - begun) / 1000;
  if (answering !== control) return; // somebody asked something else meanwhile
  answering = null;
  setBusy(false);
  if (message.content) finish(message, view);
  else view.node.remove();
  if (problem) showProblem(problem.message);
  else if (!message.content)
    showProblem(message.stopped ? "Stopped before the first word." : "The answer is empty.");
}

/** The new answer stands at the end; one that it takes the place of goes. */
function redrawLast(view) {
  const list = byId("messages");
  while (list.children.length > conversation.all().length) list.lastChild.remove();
  for (const old of list.querySelectorAll(".answer .actions button")) old.remove();
  list.append(view.node);
  view.write();
  view.node.scrollIntoView({ block: "nearest" });
}

async function receive(messages, message, view, signal) {
  const { model, memory } = message;
  const body = { model, messages, stream: true, temperature: TEMPERATURE, nightschool: { memory } };
  const teller = new Teller();
  for await (const event of stream("/v1/chat/completions", body, signal)) {
    const delta = event.choices[0]?.delta ?? {};
    const follows = document.documentElement.scrollHeight - innerHeight - scrollY < NEAR_PX;
    if (delta.content) message.content += delta.content;
    if (delta.annotations) message.citations = delta.annotations;
    if (delta.content || delta.annotations) view.write();
    if (follows) requestAnimationFrame(() => scrollTo(0, document.documentElement.scrollHeight));
    teller.tell(message.content);
  }
  teller.finish(message.content);
}

function finish(message, view) {
  conversation.add(message);
  view.end(retry);
  drawEmpty();
}

/** Reads an answer out to screen readers sentence by sentence: word by word nobody could follow. */
class Teller {
  told = 0;

  tell(text) {
    SENTENCE.lastIndex = this.told;
    const found = SENTENCE.exec(text);
    if (!found || SENTENCE.lastIndex === text.length) return; // its last words may still come
    this.told = SENTENCE.lastIndex;
    this.#say(found[0]);
  }

  finish(text) {
    this.#say(text.slice(this.told));
  }

  #say(text) {
    const said = text.replace(/\[(\d+)\]/g, "(note $1)").trim();
    // What is added is read after what stood there before.
    if (said) byId("spoken").append(element("span", {}, `${said} `));
  }
}

function stop() {
  answering?.abort();
}

function setBusy(isBusy) {
  byId("stop").hidden = !isBusy;
  byId("send").hidden = isBusy;
  byId("messages").setAttribute("aria-busy", String(isBusy));
  if (isBusy) byId("spoken").replaceChildren("Answering. ");
  if (document.activeElement === document.body) byId("say").focus(); // the button with the focus went away
}

function newChat() {
  stop();
  answering = null;
  setBusy(false);
  conversation.clear();
  drawAll();
  byId("say").focus();
}

// The line to write in ----------------------------------------------------------------------------

function send(event) {
  event.preventDefault();
  const area = byId("say");
  const text = area.value.trim();
  if (!text || answering) return;
  area.value = "";
  grow();
  ask(text);
}

/** As many lines as were written, up to a few. */
function grow() {
  const area = byId("say");
  area.style.height = "auto";
  area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight / 3)}px`;
}

byId("composer").addEventListener("submit", send);
byId("say").addEventListener("input", grow);
byId("say").addEventListener("keydown", (event) => isSend(event) && byId("composer").requestSubmit());
byId("stop").addEventListener("click", stop);
byId("new-chat").addEventListener("click", newChat);
byId("view-chat").addEventListener("keydown", (event) => event.key === "Escape" && stop());
