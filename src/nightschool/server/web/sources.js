// What is remembered: listed, read again, forgotten.

import { call } from "./api.js";
import { attempt, byId, confirmed, element, redraw } from "./dom.js";
import { count, list, size, when } from "./figures.js";

let told = () => {};
let listed = () => {};

/** `listener()` is called when something was forgotten. */
export function onForgotten(listener) {
  told = listener;
}

/** `listener(sources)` is called with the list whenever it was read. */
export function onListed(listener) {
  listed = listener;
}

export async function refresh() {
  const found = await attempt(byId("sources-problem"), null, () => call("GET", "/sources"));
  if (!found) return;
  listed(found.sources);
  if (!found.sources.length) {
    redraw(
      byId("sources"),
      element(
        "p",
        { class: "empty" },
        "Nothing yet. Drop a file above, or type a note: a few facts that only you know are a good start.",
      ),
    );
    return;
  }
  const rows = new Map(
    [...byId("sources").querySelectorAll(".source")].map((row) => [row.dataset.state, row]),
  );
  const items = found.sources.map((source) => rows.get(JSON.stringify(source)) ?? row(source));
  byId("sources").replaceChildren(element("ul", { class: "list" }, items));
}

function row(source) {
  const text = element("div", { class: "passages" });
  const read = element("details", { class: "read" }, element("summary", {}, source.label), text);
  read.addEventListener("toggle", () => read.open && !text.childNodes.length && fill(text, source));
  const facts = [
    source.kind === "note" ? "note" : size(source.bytes),
    count(source.chunks, "passage"),
    `remembered ${when(source.remembered_at)}`,
  ];
  return element(
    "li",
    { class: "source", "data-state": JSON.stringify(source) },
    element(
      "div",
      { class: "grow" },
      read,
      element("p", { class: "hint" }, facts.join(" · ")),
      state(source),
    ),
    element(
      "button",
      {
        type: "button",
        "aria-label": `Forget ${source.label}`,
        onclick: (event) => forget(source, event.target),
      },
      "Forget",
    ),
  );
}

function state({ studied_by: adapters, stale }) {
  const studied = adapters.length
    ? element("span", { class: "tag good" }, `studied: ${adapters.join(", ")}`)
    : element("span", { class: "tag" }, "not studied yet");
  return element(
    "p",
    { class: "tags" },
    studied,
    stale ? element("span", { class: "tag warn" }, stale) : null,
  );
}

async function fill(place, source) {
  const found = await attempt(byId("sources-problem"), null, () => call("GET", `/sources/${source.id}`));
  const passages = (found?.passages ?? []).map(({ heading, text }) => [
    heading ? element("h3", {}, heading) : null,
    element("blockquote", {}, text),
  ]);
  place.replaceChildren(...passages.flat().filter(Boolean));
}

async function forget(source, button) {
  const rebuild = element("input", { type: "checkbox", id: "rebuild", checked: true });
  const knows = source.studied_by.filter((name) => !name.endsWith(".previous"));
  const canRebuild = knows.some((name) => !name.endsWith(".next")); // a candidate goes for good
  const sure = await confirmed({
    title: `Forget ${source.label}?`,
    yes: "Forget",
    body: [
      element(
        "p",
        {},
        `${count(source.chunks, "passage")} and the lessons made of them are deleted at once. This cannot be undone.`,
      ),
      ...(knows.length
        ? [
            element("p", {}, `${list(knows)} learned from it and cannot unlearn it: it is retired at once.`),
            canRebuild
              ? element("label", { class: "pick" }, rebuild, " Study what else it knew again, without this")
              : "",
          ]
        : []),
    ],
  });
  if (!sure) return;
  const path = `/sources/${source.id}?rebuild=${canRebuild && rebuild.checked}`;
  const done = await attempt(byId("sources-problem"), button, () => call("DELETE", path));
  if (!done) return;
  byId("forgotten").textContent = sentence(done);
  await refresh();
  byId("sources-title").tabIndex = -1;
  byId("sources-title").focus(); // the button that had the focus is gone
  told();
}

function sentence({
  forgotten,
  adapters_retired: retired,
  adapters_rebuilding: rebuilding,
  traces_left: traces,
}) {
  const said = [`Forgot ${forgotten}.`];
  if (retired.length) said.push(`Retired: ${list(retired)}.`);
  if (rebuilding.length) said.push(`${list(rebuilding)} will be studied again without it.`);
  if (traces) said.push("Another program was reading: the last traces go with the next change.");
  return said.join(" ");
}
