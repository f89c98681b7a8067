// Giving something to remember: files and folders that are dropped or chosen, or a note that is typed.

import { call } from "./api.js";
import { attempt, byId, element } from "./dom.js";
import { count, duration, list } from "./figures.js";

const FILES_AT_ONCE = 50;

let tell = () => {};

/** `listener()` is called when there is more to remember. */
export function onRemembered(listener) {
  tell = listener;
}

async function give(files) {
  if (!files.length) return;
  await remember(byId("drop"), async () => {
    const whole = { remembered: [], failed: [], seconds: 0 };
    for (let from = 0; from < files.length; from += FILES_AT_ONCE) {
      const form = new FormData();
      for (const { file, path } of files.slice(from, from + FILES_AT_ONCE)) form.append("files", file, path);
      const part = await call("POST", "/sources", form);
      whole.remembered.push(...part.remembered);
      whole.failed.push(...part.failed);
      whole.seconds += part.seconds;
    }
    return whole;
  });
  byId("files").value = "";
}

async function giveNote(event) {
  event.preventDefault();
  const text = byId("note").value.trim();
  if (!text) {
    byId("remember-problem").textContent = "Type something first.";
    byId("note").focus();
    return;
  }
  const name = byId("note-name").value.trim();
  const done = await remember(byId("remember"), () =>
    call("POST", "/sources", name ? { text, name } : { text }),
  );
  if (done) byId("note-form").reset();
}

async function remember(button, action) {
  if (button.getAttribute("aria-disabled")) return undefined;
  byId("remembered").replaceChildren("Reading…");
  const found = await attempt(byId("remember-problem"), button, action);
  byId("remembered").replaceChildren(...(found ? outcome(found) : []));
  if (found) tell();
  return found;
}

function outcome({ remembered, failed, seconds }) {
  const lines = failed.map(({ name, reason }) =>
    element("p", { class: "problem" }, `${name} was left out: ${reason}`),
  );
  if (!remembered.length) return lines;
  const labels = remembered.map((each) => each.label);
  const what = labels.length > 3 ? count(labels.length, "source") : list(labels);
  const ask = element("a", { href: "#chat?memory=on" }, "Ask about it");
  return [
    element("p", { class: "good" }, `Remembered ${what} in ${duration(seconds)}. `, ask, "."),
    ...lines,
  ];
}

// Dropping ----------------------------------------------------------------------------------------

/** The files of a drop with their paths, those in folders too. */
async function dropped(transfer) {
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.length) return chosen(transfer.files);
  return (await Promise.all(entries.map(walk))).flat();
}

async function walk(entry) {
  if (entry.name.startsWith(".")) return []; // a folder's own business: .git, .DS_Store
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    return [{ file, path: entry.fullPath.replace(/^\//, "") }];
  }
  const reader = entry.createReader();
  const found = [];
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject));
    if (!some.length) break; // it gives a hundred at a time
    found.push(...some);
  }
  return (await Promise.all(found.map(walk))).flat();
}

function chosen(files) {
  return [...files].map((file) => ({ file, path: file.webkitRelativePath || file.name }));
}

const view = byId("view-teach");
view.addEventListener("dragover", (event) => {
  event.preventDefault();
  byId("drop").classList.add("over");
});
view.addEventListener("dragleave", () => byId("drop").classList.remove("over"));
view.addEventListener("drop", async (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  give(await dropped(event.dataTransfer));
});
byId("files").addEventListener("change", (event) => give(chosen(event.target.files)));
byId("note-form").addEventListener("submit", giveNote);
