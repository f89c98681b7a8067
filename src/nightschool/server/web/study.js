// Ordering a study: for how long, on which base, and what it would do.

import { call } from "./api.js";
import { attempt, byId, element, redraw } from "./dom.js";
import { count, duration, number } from "./figures.js";
import { onBeat } from "./pulse.js";

const PAUSE_MS = 300; // of typing, before the plan is asked for

let tell = () => {};
let sources = [];
let timer = 0;
let running = null; // the job under way, if any

/** `listener(job)` is called when a study is in the queue. */
export function onQueued(listener) {
  tell = listener;
}

export async function refresh() {
  await Promise.all([drawBases(), drawPlan()]);
}

async function drawBases() {
  const found = await attempt(byId("study-problem"), null, () => call("GET", "/bases"));
  if (!found) return;
  const bases = found.bases.filter((each) => each.can_train);
  const select = byId("study-base");
  const before = select.value;
  redraw(
    select,
    bases.map(({ name }) => element("option", { value: name }, name)),
  );
  const wanted =
    bases.find((each) => each.name === before) ?? bases.find((each) => each.is_default) ?? bases[0];
  if (wanted) select.value = wanted.name;
}

/** Let people choose among these sources; those that they took out stay out. */
export function offer(found) {
  const out = new Set(
    [...byId("study-sources").querySelectorAll("input:not(:checked)")].map((box) => Number(box.value)),
  );
  sources = found;
  const boxes = found.map(({ id, label }) =>
    element(
      "label",
      { class: "pick" },
      element("input", { type: "checkbox", checked: !out.has(id), value: id }),
      ` ${label}`,
    ),
  );
  byId("study-sources").replaceChildren(
    ...(boxes.length ? boxes : [element("p", { class: "hint" }, "None yet.")]),
  );
  if (out.size) planSoon();
}

/** What is asked for, as the plan and the queue take it. */
function wanted() {
  const asked = { name: byId("study-name").value, restart: byId("restart").checked };
  if (byId("study-base").value) asked.base = byId("study-base").value;
  if (byId("until-hour").checked) asked.until = byId("until").value;
  else asked.minutes = Number(byId("minutes").value);
  const boxes = [...byId("study-sources").querySelectorAll("input")];
  const ids = boxes.filter((box) => box.checked).map((box) => Number(box.value));
  if (ids.length < sources.length) asked.sources = ids;
  return asked;
}

// What it would do --------------------------------------------------------------------------------

function planSoon() {
  clearTimeout(timer);
  timer = setTimeout(drawPlan, PAUSE_MS);
}

async function drawPlan() {
  const asked = wanted();
  if (!(asked.until || asked.minutes > 0) || !byId("study-name").validity.valid) return;
  if (asked.sources?.length === 0) {
    byId("plan").textContent = "Choose at least one source.";
    byId("study").disabled = true;
    return;
  }
  const plan = await attempt(byId("study-problem"), null, () => call("POST", "/study/plan", asked));
  if (!plan) return;
  byId("plan").textContent = sentence(plan);
  byId("study").disabled = plan.sources === 0;
  byId("restart-label").hidden = !plan.unfinished || running?.name === byId("study-name").value;
}

function sentence(plan) {
  if (!plan.sources) return "There is nothing to study yet: give it a note or a file first.";
  const fresh =
    plan.new_chunks === plan.chunks
      ? "all new"
      : plan.new_chunks
        ? `${number(plan.new_chunks)} new`
        : "none new";
  const times = Math.max(0.1, plan.epochs);
  const said = [
    `It would read ${count(plan.chunks, "passage")} of ${count(plan.sources, "source")} (${fresh}),`,
    `make about ${number(plan.lesson_tokens)} tokens of lessons, and see them ${Number(times.toFixed(1))} times:`,
    `about ${duration(plan.expected_minutes * 60)} of the ${duration(plan.minutes * 60)}.`,
  ];
  if (!plan.measured) said.push("That is a guess: no study on this base was timed yet.");
  if (plan.waits) said.push(`${count(plan.waits, "passage")} would wait for the next study.`);
  if (running) said.push("It would begin when the study under way is done.");
  else if (plan.unfinished && !byId("restart").checked) said.push("It goes on with the study that was stopped.");
  return said.join(" ");
}

// Into the queue ----------------------------------------------------------------------------------

async function order(event) {
  event.preventDefault();
  const button = byId("study");
  if (button.getAttribute("aria-disabled")) return;
  const job = await attempt(byId("study-problem"), button, () => call("POST", "/study", wanted()));
  if (!job) return;
  byId("restart").checked = false;
  await tell(job);
  byId("jobs-title").tabIndex = -1;
  byId("jobs-title").focus();
  byId("jobs-title").scrollIntoView({ block: "start" });
}

onBeat((status) => {
  const isOther = status && status.job?.id !== running?.id;
  if (!isOther) return;
  running = status.job;
  if (!byId("view-teach").hidden) drawPlan();
});
for (const id of ["minutes", "until"]) {
  byId(id).addEventListener(
    "focus",
    () => (byId(id === "until" ? "until-hour" : "for-minutes").checked = true),
  );
}
byId("study-form").addEventListener("input", planSoon);
byId("study-form").addEventListener("submit", order);
