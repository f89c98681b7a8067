// The view of what is on the disk: bases and whether they fit this machine, adapters and their exports.

import { call, download } from "./api.js";
import { attempt, byId, element } from "./dom.js";
import { count, number, parameters, share, size, when } from "./figures.js";

const FORMATS = [
  ["gguf", "GGUF adapter", "for llama.cpp and programs built on it"],
  ["peft", "PEFT", "for Hugging Face's tools, zipped"],
  ["merged", "Merged GGUF", "base and adapter in one, for LM Studio and others"],
  ["modelfile", "Ollama", "a merged model with its Modelfile, zipped"],
];

export async function show() {
  const found = await attempt(byId("models-problem"), null, () =>
    Promise.all([call("GET", "/status"), call("GET", "/bases"), call("GET", "/adapters")]),
  );
  if (!found) return;
  const [status, { bases }, { adapters }] = found;
  byId("machine").replaceChildren(machine(status, bases, adapters));
  byId("bases").replaceChildren(
    element(
      "ul",
      { class: "list" },
      bases.map((each) => base(each, status.machine)),
    ),
    pulling(),
  );
  byId("shelf").replaceChildren(
    adapters.length
      ? element("ul", { class: "list" }, adapters.map(adapter))
      : element(
          "p",
          { class: "empty" },
          "None yet. A study makes one: begin under ",
          element("a", { href: "#teach" }, "Teach"),
          ".",
        ),
  );
}

function machine({ machine: here, version }, bases, adapters) {
  const used = [...bases, ...adapters].reduce((sum, each) => sum + each.bytes, 0);
  const said = [
    `This machine has ${size(here.memory_bytes)} of memory, ${size(here.free_memory_bytes)} of it free, and ${count(here.cores, "core")}.`,
    `Bases and adapters take ${size(used)} of the disk.`,
  ];
  return element("p", {}, said.join(" "), element("span", { class: "hint" }, ` Nightschool ${version}`));
}

function base(found, here) {
  const facts = [
    size(found.bytes),
    `${parameters(found.parameters)} parameters`,
    found.quantisation,
    found.context ? `${number(found.context)} tokens of context` : null,
    found.architecture,
  ];
  return item(
    element("strong", {}, found.name),
    found.is_default ? element("span", { class: "tag" }, "default") : null,
    facts,
    fits(found, here),
  );
}

/** A line of a list: a name with its tag, its facts as far as there are any, and what stands below them. */
function item(name, tag, facts, ...below) {
  return element(
    "li",
    { class: "grow" },
    element("p", { class: "name" }, name, tag),
    element("p", { class: "hint" }, facts.filter(Boolean).join(" · ")),
    below,
  );
}

/** What training it takes, beside what there is. */
function fits(
  { name, is_embedder: isEmbedder, problem, can_train: canTrain, memory_needed_bytes: needed },
  here,
) {
  if (isEmbedder) return element("p", { class: "fits" }, "Finds notes by meaning; it does not talk.");
  if (problem) return element("p", { class: "problem" }, problem);
  if (needed === null) return element("p", { class: "fits" }, "It can answer; it cannot be trained.");
  const said = !canTrain
    ? `Too large to train here: it needs ${size(needed)} of ${size(here.memory_bytes)} memory. It can still answer.`
    : needed > here.free_memory_bytes
      ? `Fits this machine, but needs ${size(needed)}: close other programs before a study.`
      : `Fits this machine: training needs ${size(needed)} of memory.`;
  const part = Math.min(1, needed / here.memory_bytes);
  return element(
    "div",
    { class: "fits" },
    element("meter", {
      "aria-label": `Memory to train ${name}`,
      value: part,
      max: 1,
      high: 0.9,
      low: 0.6,
      optimum: 0,
    }),
    element("span", {}, said),
  );
}

function pulling() {
  return element(
    "details",
    { class: "help" },
    element("summary", {}, "Get another base"),
    element(
      "p",
      {},
      "Only the command line fetches anything from elsewhere. Any GGUF of a common architecture will do:",
    ),
    element(
      "pre",
      { tabindex: "0" },
      element(
        "code",
        {},
        "nightschool pull bartowski/SmolLM2-135M-Instruct-GGUF --name smol\nnightschool pull ./my-model.gguf --name mine",
      ),
    ),
    element("p", {}, "Then load this page again."),
  );
}

function adapter(found) {
  const facts = [
    `on ${found.base}`,
    size(found.bytes),
    found.rank ? `rank ${found.rank}` : null,
    found.made_at ? `made ${when(found.made_at)}` : null,
    found.recall_after === null ? null : `knows ${share(found.recall_after)} of its exam`,
  ];
  const problem = element("p", { class: "problem", role: "alert" }, found.problem);
  const state = element("p", { class: "hint", role: "status" });
  const exports = FORMATS.map(([format, name, use]) =>
    element(
      "button",
      {
        type: "button",
        title: use,
        "aria-label": `Download ${found.name} as ${name}, ${use}`,
        onclick: (event) => send(found.name, format, { state, problem, button: event.target }),
      },
      name,
    ),
  );
  return item(
    element("a", { href: `#exams/${encodeURIComponent(found.name)}` }, element("strong", {}, found.name)),
    element(
      "span",
      { class: found.promoted ? "tag good" : "tag warn" },
      found.promoted ? "in use" : "a candidate",
    ),
    facts,
    element(
      "div",
      { class: "row exports", role: "group", "aria-label": `Download ${found.name}` },
      element("span", {}, "Download as"),
      exports,
    ),
    state,
    problem,
  );
}

async function send(name, format, { state, problem, button }) {
  if (button.getAttribute("aria-disabled")) return;
  state.textContent = "Making the file…";
  const path = `/adapters/${encodeURIComponent(name)}/export?format=${format}`;
  await attempt(problem, button, async () => {
    await download(path, `${name}.${format === "gguf" || format === "merged" ? "gguf" : "zip"}`);
    state.textContent = "It is among your downloads.";
  });
  if (problem.textContent) state.textContent = "";
}
