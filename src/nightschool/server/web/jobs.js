// Studies under way and done: how far each is, what came of it; pause, go on, stop.

import { call } from "./api.js";
import { lossCurve } from "./chart.js";
import { attempt, byId, confirmed, element } from "./dom.js";
import { duration, number, share, when } from "./figures.js";
import { beat, onBeat } from "./pulse.js";

// What a job's stages are called for people, in their order.
export const STAGES = {
  write: "Writing lessons",
  divide: "Setting the exam aside",
  rehearse: "Rehearsing",
  distil: "Reading closely",
  train: "Training",
  examine: "Sitting the exam",
  promote: "Marking",
};
const SILENT = ["divide", "promote"]; // stages that do not say how far they are
const STATES = {
  validating_files: "checking files",
  queued: "waiting",
  running: "running",
  paused: "paused",
  succeeded: "done",
  failed: "failed",
  cancelled: "stopped",
};
const OPEN = ["validating_files", "queued", "running", "paused"];
const SHOWN = 6; // the others are a click away
const LOG_LINES = 1000;

const cards = new Map();
let finished = () => {};
let running = null; // what the last beat said: "id state"

/** `listener()` is called when a job came to its end. */
export function onFinished(listener) {
  finished = listener;
}

export async function refresh() {
  const found = await attempt(byId("jobs-problem"), null, () => call("GET", "/jobs"));
  if (!found) return;
  for (const job of found.jobs) cardOf(job).update(job);
  const nodes = found.jobs.map((job) => cards.get(job.id).node);
  const place = byId("jobs");
  if (!nodes.length) {
    place.replaceChildren(
      element(
        "p",
        { class: "empty" },
        "None yet. A study shows here how far it is, also after you closed this page.",
      ),
    );
    return;
  }
  const older = nodes.slice(SHOWN);
  const more = older.length
    ? element("details", {}, element("summary", {}, `${older.length} older`), older)
    : null;
  place.replaceChildren(...nodes.slice(0, SHOWN), ...(more ? [more] : []));
}

function cardOf(job) {
  if (!cards.has(job.id)) cards.set(job.id, new Card(job));
  return cards.get(job.id);
}

onBeat((status) => {
  if (!status) return;
  const now = status.job ? `${status.job.id} ${status.job.state}` : "";
  const changed = running !== null && now !== running;
  running = now;
  if (status.job && cards.has(status.job.id)) cards.get(status.job.id).update(status.job);
  if (changed && !byId("view-teach").hidden) refresh().then(finished);
});

// One of them -------------------------------------------------------------------------------------

class Card {
  constructor(job) {
    this.id = job.id;
    this.head = element("h3", {});
    this.tag = element("span", { class: "tag" });
    this.stages = element("ol", { class: "stages", "aria-label": "Stages" });
    this.bar = element("progress", { "aria-label": `How far ${job.name} is`, max: "1" });
    this.facts = element("p", { class: "facts" });
    this.outcome = element("div", { class: "outcome" });
    this.chart = element("div");
    this.buttons = element("div", { class: "row" });
    this.problem = element("p", { class: "problem", role: "alert" });
    this.lines = element("ol", { class: "log" });
    this.log = element("details", {}, element("summary", {}, "What happened"), this.lines);
    this.log.addEventListener("toggle", () => this.log.open && this.#readLog());
    this.node = element(
      "article",
      { class: "card job" },
      element("header", { class: "row" }, this.head, this.tag),
      this.stages,
      this.bar,
      this.facts,
      this.outcome,
      this.chart,
      this.buttons,
      this.problem,
      this.log,
    );
    this.last = 0;
    this.shown = "";
    this.steps = -1;
    this.wish = "";
  }

  update(job) {
    const isOpen = OPEN.includes(job.state);
    if (job.state !== this.job?.state) this.wish = "";
    this.#speak(job);
    this.job = job;
    this.head.textContent = `${job.name} on ${job.model}`;
    this.tag.textContent = job.held ? "waits while you chat" : STATES[job.state];
    this.tag.className = `tag ${{ succeeded: "good", failed: "bad" }[job.state] ?? ""}`;
    this.stages.hidden = !isOpen || !(job.stage in STAGES);
    this.bar.hidden = !isOpen || job.state === "queued";
    this.#drawFacts(job);
    if (isOpen) this.#drawStages(job);
    this.#drawButtons(job);
    this.#drawOutcome(job);
    if (job.loss.length !== this.steps) {
      this.steps = job.loss.length;
      this.chart.replaceChildren(...(job.loss.length > 1 ? [lossCurve(job.loss)] : []));
    }
    if (this.log.open) this.#readLog();
  }

  #speak(job) {
    const news = `${job.name}: ${job.state === "running" ? (STAGES[job.stage] ?? job.stage) : STATES[job.state]}`;
    if (this.job && news !== this.news) byId("job-spoken").textContent = news;
    this.news = news;
  }

  #drawStages(job) {
    const names = Object.keys(STAGES);
    const at = names.indexOf(job.stage);
    const items = names.map((name, index) =>
      element(
        "li",
        { class: index < at ? "past" : null, "aria-current": index === at ? "step" : null },
        STAGES[name],
      ),
    );
    if (this.stages.dataset.at !== String(at)) this.stages.replaceChildren(...items);
    this.stages.dataset.at = at;
  }

  #drawFacts(job) {
    const { progress } = job;
    const told = [];
    if (progress?.total && !SILENT.includes(job.stage)) this.bar.value = progress.done / progress.total;
    else this.bar.removeAttribute("value"); // moves without saying how far
    if (progress && job.state === "running" && !SILENT.includes(job.stage)) {
      const total = progress.total ? ` of ${number(progress.total)}` : "";
      told.push(`${progress.task} ${number(progress.done)}${total}`);
    }
    if (job.tokens_per_s && job.state === "running") told.push(`${number(job.tokens_per_s)} tokens/s`);
    if (job.seconds_left) told.push(`${duration(job.seconds_left)} left of this part`);
    if (job.started_at) told.push(`began ${when(job.started_at)}`);
    if (job.finished_at && job.started_at)
      told.push(`took ${duration(Math.max(1, job.finished_at - job.started_at))}`);
    this.facts.textContent = told.join(" · ");
  }

  #drawButtons(job) {
    const key = `${job.state} ${this.wish}`;
    if (key === this.shown) return;
    this.shown = key;
    const button = (text, wish) =>
      element(
        "button",
        {
          type: "button",
          "aria-label": `${text} ${job.name}`,
          onclick: (event) => this.#ask(wish, event.target),
        },
        text,
      );
    const isOpen = OPEN.includes(job.state);
    const had = this.buttons.contains(document.activeElement);
    this.buttons.replaceChildren(
      ...(this.wish
        ? [element("p", { class: "hint" }, this.wish === "pause" ? "Pausing: it saves first…" : "Stopping…")]
        : []),
      ...(job.state === "paused" ? [button("Resume", "resume")] : []),
      ...(["running", "queued"].includes(job.state) && !this.wish ? [button("Pause", "pause")] : []),
      ...(isOpen && this.wish !== "cancel" ? [button("Stop", "cancel")] : []),
    );
    if (had) (this.buttons.querySelector("button") ?? byId("jobs-title")).focus();
  }

  async #ask(wish, button) {
    if (wish === "cancel") {
      const { name } = this.job;
      const body = [
        element(
          "p",
          {},
          "What it has trained so far is dropped. Lessons that were written stay for the next study.",
        ),
      ];
      if (!(await confirmed({ title: `Stop ${name}?`, body, yes: "Stop it" }))) return;
    }
    const job = await attempt(this.problem, button, () => call("POST", `/jobs/${this.id}/${wish}`));
    if (!job) return;
    if (job.state === this.job.state && wish !== "resume") this.wish = wish; // the worker has yet to obey
    this.update(job);
    await beat();
  }

  #drawOutcome(job) {
    const text = JSON.stringify([job.state, job.error, job.result]);
    if (this.told === text) return;
    this.told = text;
    this.outcome.replaceChildren(...outcome(job));
  }

  async #readLog() {
    const path = `/jobs/${this.id}/events?after=${this.last}&limit=${LOG_LINES}`;
    const found = await attempt(this.problem, null, () => call("GET", path));
    if (!found) return;
    const fresh = found.events.filter(({ number }) => number > this.last);
    this.last = Math.max(this.last, found.last);
    this.lines.append(
      ...fresh.map(({ at, level, message }) => element("li", { class: level }, `${when(at)}: ${message}`)),
    );
  }
}

function outcome({ state, name, model, error, result }) {
  if (state === "failed") return [element("p", { class: "problem" }, error ?? "It failed without a word.")];
  if (state !== "succeeded" || !result) return [];
  const { adapter, promoted, reasons, recall_before: before, recall_after: after } = result;
  if (!adapter) return [element("p", {}, "It ended without an adapter.")];
  const knows =
    after === null ? "" : ` It answers ${share(after)} of its exam without notes; before, ${share(before)}.`;
  const verdict =
    promoted === false ? `${name} was not put to use: ${reasons.join("; ")}.` : `${adapter} is in use.`;
  const seen = after === null ? "See its receipt" : "See the exam";
  const talk = `#chat?${new URLSearchParams({ model: `${model}+${adapter}`, memory: "off" })}`;
  return [
    element("p", {}, verdict + knows),
    element(
      "p",
      { class: "row" },
      element("a", { class: "button", href: talk }, "Ask it without the notes"),
      element("a", { class: "button", href: `#exams/${encodeURIComponent(adapter)}` }, seen),
    ),
  ];
}
