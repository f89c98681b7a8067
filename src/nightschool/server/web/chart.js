// Two drawings: how the loss fell, and what was known before and after. They take whatever room there is.

import { element, shape } from "./dom.js";
import { share } from "./figures.js";

const WIDTH = 1000; // of the curve's own units, stretched to fit
const HEIGHT = 200;
const SMOOTH = 0.6; // of the last smoothed value is kept: single batches jump

/** A curve of [step, loss, validation loss or null]. */
export function lossCurve(points) {
  const steps = points.map(([step]) => step);
  const losses = smoothed(points.map(([, loss]) => loss));
  const held = points.filter(([, , valid]) => valid !== null && valid !== undefined);
  const all = [...losses, ...held.map(([, , valid]) => valid)];
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const x = (step) => ((step - steps[0]) / Math.max(1, steps.at(-1) - steps[0])) * WIDTH;
  const y = (loss) => HEIGHT - ((loss - low) / Math.max(1e-9, high - low)) * HEIGHT;
  const line = steps.map((step, index) => `${x(step).toFixed(1)},${y(losses[index]).toFixed(1)}`).join(" ");
  const validLine = held.map(([step, , valid]) => `${x(step).toFixed(1)},${y(valid).toFixed(1)}`).join(" ");
  const said = `Loss from ${losses[0].toFixed(2)} to ${losses.at(-1).toFixed(2)} in ${steps.at(-1)} steps`;
  const drawing = shape(
    "svg",
    { viewBox: `0 -6 ${WIDTH} ${HEIGHT + 12}`, preserveAspectRatio: "none", role: "img", "aria-label": said },
    [0, 0.5, 1].map((at) =>
      shape("line", { class: "grid", x1: 0, x2: WIDTH, y1: at * HEIGHT, y2: at * HEIGHT }),
    ),
    shape("polyline", { class: "loss", points: line }),
    held.length > 1 ? shape("polyline", { class: "valid", points: validLine }) : null,
  );
  return element(
    "figure",
    { class: "curve" },
    element(
      "div",
      { class: "scale", "aria-hidden": "true" },
      [high, (low + high) / 2, low].map((at) => element("span", {}, at.toFixed(2))),
    ),
    drawing,
    element(
      "figcaption",
      {},
      element("span", { class: "key loss" }, `loss ${losses.at(-1).toFixed(2)}`),
      held.length
        ? element("span", { class: "key valid" }, `on questions set aside ${held.at(-1)[2].toFixed(2)}`)
        : null,
      element("span", { class: "end" }, `step ${steps.at(-1)}`),
    ),
  );
}

function smoothed(values) {
  let last = values[0];
  return values.map((value) => (last = SMOOTH * last + (1 - SMOOTH) * value));
}

/**
 * Pairs of bars: [{name, before, after, mark, href, note}], shares between 0 and 1. `mark` is a third figure, drawn
 * as a line across; null figures are left out. `hasKeys`: whether to say which bar is which.
 */
export function beforeAfter(rows, { mark = "", hasKeys = true } = {}) {
  const keys = [
    ["before", "before studying"],
    ["after", "after, without notes"],
  ];
  if (mark && rows.some((row) => row.mark !== null && row.mark !== undefined)) keys.push(["mark", mark]);
  return element(
    "figure",
    { class: "bars" },
    hasKeys
      ? element(
          "figcaption",
          {},
          keys.map(([name, text]) => element("span", { class: `key ${name}` }, text)),
        )
      : null,
    element(
      "ul",
      {},
      rows.map((row) => element("li", {}, label(row), bars(row, mark))),
    ),
  );
}

function label({ name, href, note, isCurrent }) {
  const attributes = { class: "name", href, "aria-current": isCurrent ? "true" : null };
  return element(href ? "a" : "span", attributes, name, note ? element("small", {}, note) : null);
}

function bars({ before, after, mark: at }, mark) {
  const said = [
    `before ${share(before)}`,
    `after ${share(after)}`,
    at == null || !mark ? null : `${mark} ${share(at)}`,
  ];
  return element(
    "div",
    { class: "pair" },
    shape(
      "svg",
      { role: "img", "aria-label": said.filter(Boolean).join(", "), height: 34, width: "100%" },
      shape("rect", { class: "room", width: "100%", height: 34, rx: 4 }),
      bar("before", before, { y: 4, height: 9 }),
      bar("after", after, { y: 16, height: 14 }),
      at == null || !mark
        ? null
        : shape("line", { class: "mark", x1: `${at * 100}%`, x2: `${at * 100}%`, y1: 0, y2: 34 }),
    ),
    element(
      "span",
      { class: "values", "aria-hidden": "true" },
      element("span", { class: "was" }, share(before)),
      " → ",
      element("strong", {}, share(after)),
    ),
  );
}

function bar(name, value, where) {
  if (value == null) return null;
  return shape("rect", { class: name, x: 0, width: `${Math.max(0.5, value * 100)}%`, rx: 3, ...where });
}
