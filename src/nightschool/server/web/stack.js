// Who answers: a base, adapters on it with their scales, and whether the notes are looked up. Kept over a reload.

import { call } from "./api.js";
import { byId, element, redraw } from "./dom.js";
import { count, share } from "./figures.js";
import { keep, kept } from "./storage.js";

const KEY = "stack";
const MAX_SCALE = 1.5;
const WIDE = matchMedia("(min-width: 60rem)");

// scales: base → adapter → {on, scale}
const chosen = { base: null, scales: {}, memory: true, ...kept(KEY, {}) };
let bases = [];
let adapters = [];
let status = null;

/** The name of the stack, as the API takes it: ember+home@0.5+style. */
export function model() {
  const parts = active().map(({ name, scale }) => (scale === 1 ? name : `${name}@${scale}`));
  return [chosen.base, ...parts].join("+");
}

export function usesMemory() {
  return chosen.memory;
}

export function sourceCount() {
  return status?.sources ?? 0;
}

/** The base's row of /bases. */
export function base() {
  return bases.find((each) => each.name === chosen.base);
}

/** Read anew what there is; what is chosen and no longer there is dropped. */
export async function refresh() {
  const [foundBases, foundAdapters, foundStatus] = await Promise.all([
    call("GET", "/bases"),
    call("GET", "/adapters"),
    call("GET", "/status"),
  ]);
  bases = foundBases.bases.filter((each) => !each.is_embedder);
  adapters = foundAdapters.adapters;
  status = foundStatus;
  if (!bases.some((each) => each.name === chosen.base)) choose(status.default_model);
  draw();
}

/** Take over a stack by its name, as in a link from another view. */
export function choose(name) {
  const longestFirst = bases.map((each) => each.name).sort((a, b) => b.length - a.length);
  const found = longestFirst.find((each) => name === each || name.startsWith(`${each}+`));
  chosen.base = found ?? bases.find((each) => each.is_default)?.name ?? bases[0]?.name ?? name;
  const parts = found
    ? name
        .slice(found.length + 1)
        .split("+")
        .filter(Boolean)
    : [];
  for (const one of Object.values(scalesHere())) one.on = false;
  for (const part of parts) {
    const [adapter, scale] = part.split("@");
    scalesHere()[adapter] = { on: true, scale: scale === undefined ? 1 : Number(scale) };
  }
  changed();
}

export function setMemory(isOn) {
  chosen.memory = isOn;
  changed();
}

function scalesHere() {
  return (chosen.scales[chosen.base] ??= {});
}

function active() {
  const here = adapters.filter((each) => each.base === chosen.base).map((each) => each.name);
  const scales = Object.entries(scalesHere()).filter(([name]) => here.includes(name));
  return scales.filter(([, one]) => one.on && one.scale > 0).map(([name, { scale }]) => ({ name, scale }));
}

function changed() {
  keep(KEY, chosen);
  draw();
}

// How it looks ------------------------------------------------------------------------------------

function draw() {
  redraw(
    byId("base"),
    bases.map((each) => element("option", { value: each.name }, each.name)),
  );
  byId("base").value = chosen.base;
  byId("memory").checked = chosen.memory;
  byId("memory-hint").textContent = status
    ? status.sources
      ? `${count(status.sources, "source")} remembered. Answers say which note they are from.`
      : "Nothing is remembered yet: give it something under Teach."
    : "";
  drawAdapters();
  summarise();
}

function summarise() {
  byId("who-summary").textContent = `${model()} · memory ${chosen.memory ? "on" : "off"}`;
}

function drawAdapters() {
  const here = adapters.filter((each) => each.base === chosen.base && !each.problem);
  const place = byId("adapter-choices");
  if (!here.length) {
    redraw(place, element("p", { class: "hint" }, "None on this base yet: a study makes one."));
    return;
  }
  redraw(place, here.map(adapterChoice));
  for (const { name } of here) showScale(name);
}

function adapterChoice(adapter) {
  const { name } = adapter;
  const facts = [
    adapter.promoted ? null : "a candidate, not in use",
    adapter.recall_after === null ? null : `knows ${share(adapter.recall_after)} of its exam`,
  ];
  return element(
    "div",
    { class: "adapter-choice" },
    element(
      "label",
      { class: "pick" },
      element("input", {
        type: "checkbox",
        id: `on-${name}`,
        onchange: (event) => set(name, { on: event.target.checked }),
      }),
      element("span", {}, name, " ", element("small", {}, facts.filter(Boolean).join(" · "))),
    ),
    element("label", { class: "hidden", for: `scale-${name}` }, `Scale of ${name}`),
    element("input", {
      type: "range",
      id: `scale-${name}`,
      min: "0",
      max: MAX_SCALE,
      step: "0.05",
      oninput: (event) => set(name, { on: true, scale: Number(event.target.value) }),
    }),
    element("output", { for: `scale-${name}`, id: `shown-${name}` }),
  );
}

function set(name, change) {
  scalesHere()[name] = { on: false, scale: 1, ...scalesHere()[name], ...change };
  keep(KEY, chosen);
  showScale(name);
  summarise();
}

function showScale(name) {
  const { on, scale } = scalesHere()[name] ?? { on: false, scale: 1 };
  byId(`on-${name}`).checked = on;
  byId(`scale-${name}`).value = scale;
  byId(`shown-${name}`).textContent = scale.toFixed(2);
}

byId("who").open = WIDE.matches;
byId("base").addEventListener("change", (event) => {
  chosen.base = event.target.value;
  changed();
});
byId("memory").addEventListener("change", (event) => setMemory(event.target.checked));
