// The frame: which of the four views is shown, what the program is doing, and the key where one is asked for.
//
// An address is #view, #view/part or #view?name=value; a view is a module with show(part, values) and may have
// hide().

import { setKey } from "./api.js";
import * as chat from "./chat.js";
import { byId } from "./dom.js";
import * as exams from "./exams.js";
import { duration } from "./figures.js";
import * as models from "./models.js";
import { beat, onBeat } from "./pulse.js";
import { STAGES } from "./jobs.js";
import * as teach from "./teach.js";

const VIEWS = { chat, teach, exams, models };

let current = null;

function route() {
  const [path, values] = location.hash.slice(1).split("?");
  const [wanted, ...rest] = path.split("/").map(decodeURIComponent);
  const name = Object.hasOwn(VIEWS, wanted) ? wanted : "chat";
  const isNew = name !== current;
  if (isNew && current) VIEWS[current].hide?.();
  for (const each of Object.keys(VIEWS)) byId(`view-${each}`).hidden = each !== name;
  for (const link of document.querySelectorAll("nav a")) {
    if (link.hash === `#${name}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  const title = byId(`${name}-title`).textContent;
  document.title = `${title} · Nightschool`;
  if (isNew && current) {
    scrollTo(0, 0);
    byId("main").focus({ preventScroll: true }); // a screen reader goes on from here
  }
  current = name;
  VIEWS[name].show(rest.join("/"), new URLSearchParams(values ?? ""));
}

// What runs, on every view ------------------------------------------------------------------------

function drawNow(status, problem) {
  const lost = byId("lost");
  lost.hidden = !problem || problem.status === 401;
  if (!lost.hidden && lost.textContent !== problem.message) lost.textContent = problem.message;
  const job = status?.job;
  byId("now").hidden = !job;
  if (job) byId("now").textContent = sentence(job);
}

function sentence(job) {
  if (job.state !== "running") return "A study waits";
  if (job.held) return "Studying: waits while you chat";
  const left = job.seconds_left ? `, ${duration(job.seconds_left)} left` : "";
  return `${STAGES[job.stage] ?? "Studying"}${left}`;
}

// The key -----------------------------------------------------------------------------------------

function askForKey() {
  const form = byId("key-form");
  if (!form.hidden) return;
  form.hidden = false;
  byId("key").focus();
}

async function takeKey(event) {
  event.preventDefault();
  const form = byId("key-form");
  const problem = byId("key-problem");
  problem.textContent = "";
  setKey(byId("key").value.trim());
  let refused = null;
  const once = (error) => (refused = error);
  document.addEventListener("key-needed", once);
  await beat();
  document.removeEventListener("key-needed", once);
  if (refused) {
    problem.textContent = "That is not this server's API key.";
    return;
  }
  form.hidden = true;
  route();
  byId("main").focus();
}

onBeat(drawNow);
addEventListener("hashchange", route);
document.addEventListener("key-needed", askForKey);
byId("key-form").addEventListener("submit", takeKey);
byId("skip").addEventListener("click", (event) => {
  event.preventDefault(); // the address says which view is shown
  byId("main").focus();
});
route();
beat();
