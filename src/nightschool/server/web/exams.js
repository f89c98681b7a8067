// The view that shows what studying brought: before and after, what was forgotten, what it cost.

import { call } from "./api.js";
import { beforeAfter } from "./chart.js";
import { attempt, byId, confirmed, element } from "./dom.js";
import { change, cost, count, duration, energy, number, share, size, when } from "./figures.js";
import { questions } from "./questions.js";

const WITH_NOTES = "with the notes at hand";

/** `part` is an adapter's name; without one the newest is shown. */
export async function show(part) {
  const found = await attempt(byId("exams-problem"), null, () => call("GET", "/adapters"));
  if (!found) return;
  const { adapters } = found;
  if (!adapters.length) {
    byId("exams-overview").replaceChildren(nothing());
    byId("exam").replaceChildren();
    return;
  }
  const newest = [...adapters].sort((a, b) => (b.made_at ?? 0) - (a.made_at ?? 0))[0];
  const chosen = adapters.find(({ name }) => name === part) ?? newest;
  byId("exams-overview").replaceChildren(...overview(adapters, chosen));
  const path = `/adapters/${encodeURIComponent(chosen.name)}`;
  const detail = await attempt(byId("exams-problem"), null, () => call("GET", path));
  byId("exam").replaceChildren(...(detail ? [report(detail)] : []));
}

function nothing() {
  return element(
    "div",
    { class: "empty" },
    element("h2", {}, "No exam was sat yet"),
    element(
      "p",
      {},
      "Before a study, some questions about your notes are set aside. Afterwards the model must answer them ",
      "without the notes, and you see here what it learned and what it forgot.",
    ),
    element("p", {}, element("a", { class: "button", href: "#teach" }, "Give it something to study")),
  );
}

function overview(adapters, chosen) {
  const examined = adapters.filter((each) => each.recall_after !== null);
  const others = adapters.filter((each) => each.recall_after === null);
  const link = ({ name }) => `#exams/${encodeURIComponent(name)}`;
  const rows = examined.map((each) => ({
    name: each.name,
    note: each.promoted ? "" : "a candidate, not in use",
    href: link(each),
    isCurrent: each.name === chosen.name,
    before: each.recall_before,
    after: each.recall_after,
    mark: each.recall_with_notes,
  }));
  const untested = others
    .map((each) => element("a", { href: link(each) }, each.name))
    .flatMap((each, index) => [index ? ", " : " ", each]);
  return [
    ...(rows.length
      ? [
          element("p", {}, "How many of the exam's questions each adapter answers right."),
          beforeAfter(rows, { mark: WITH_NOTES }),
        ]
      : []),
    ...(others.length ? [element("p", { class: "hint" }, "Without an exam:", untested)] : []),
  ];
}

// One adapter -------------------------------------------------------------------------------------

function report(adapter) {
  return element(
    "article",
    { class: "card exam", "aria-labelledby": "exam-title" },
    element("header", { class: "row" }, element("h2", { id: "exam-title" }, adapter.name), tag(adapter)),
    element("p", { class: "lead" }, verdict(adapter)),
    adapter.reasons.length
      ? element("p", { class: "warning" }, `Not put to use: ${adapter.reasons.join("; ")}.`)
      : null,
    buttons(adapter),
    adapter.topics.length > 1
      ? [element("h3", {}, "By source"), beforeAfter(adapter.topics.map(topic), { hasKeys: false })]
      : null,
    element("div", { class: "columns" }, adapter.recall_after === null ? null : marks(adapter), receipt(adapter)),
    questions(adapter),
  );
}

function topic({ name, questions: asked, recall_before: before, recall_after: after }) {
  return { name, note: count(asked, "question"), before, after };
}

function tag({ promoted }) {
  return promoted
    ? element("span", { class: "tag good" }, "in use")
    : element("span", { class: "tag warn" }, "a candidate");
}

function verdict({ base, recall_before: before, recall_after: after, made_at: at }) {
  const made = at ? `, made ${when(at)}` : "";
  if (after === null) return `On ${base}${made}. It sat no exam.`;
  return `On ${base}${made}. Without notes it answers ${share(after)} of the exam; before the study, ${share(before)}.`;
}

function buttons(adapter) {
  const { name } = adapter;
  const act = (text, action, kind = null) =>
    element(
      "button",
      {
        type: "button",
        class: kind,
        "aria-label": `${text} ${name}`,
        onclick: (event) => action(adapter, event.target),
      },
      text,
    );
  const talk = `#chat?${new URLSearchParams({ model: adapter.model, memory: "off" })}`;
  return element(
    "div",
    { class: "row" },
    element("a", { class: "button", href: talk }, "Chat with it"),
    adapter.can_promote ? act(adapter.promoted ? "Take the candidate" : "Put to use", promote) : null,
    adapter.can_roll_back ? act("Roll back", rollBack) : null,
    act("Forget", forget, "danger"),
  );
}

async function promote(adapter, button) {
  const body = [
    element(
      "p",
      {},
      `It did not pass: ${adapter.reasons.join("; ")}. What is in use now can be brought back with “Roll back”.`,
    ),
  ];
  if (
    adapter.reasons.length &&
    !(await confirmed({ title: `Put ${adapter.name} to use all the same?`, body, yes: "Put to use" }))
  )
    return;
  await settle(adapter, button, "POST", "/promote", (now) => `${now.name} is in use now.`);
}

async function rollBack(adapter, button) {
  await settle(
    adapter,
    button,
    "POST",
    "/rollback",
    (now) => `${now.name} is what it was before. Roll back once more to undo that.`,
  );
}

async function forget(adapter, button) {
  const { name } = adapter;
  const body = [
    element(
      "p",
      {},
      "The adapter is deleted with what it learned. The notes stay remembered, and a study can make it again.",
    ),
  ];
  if (!(await confirmed({ title: `Forget the adapter ${name}?`, body, yes: "Forget" }))) return;
  await settle(adapter, button, "DELETE", "", () => `${name} is gone.`);
}

async function settle({ name }, button, method, path, told) {
  const done = await attempt(byId("exams-problem"), button, () =>
    call(method, `/adapters/${encodeURIComponent(name)}${path}`),
  );
  if (!done) return;
  const next = done.name ? `#exams/${encodeURIComponent(done.name)}` : "#exams";
  history.replaceState(null, "", next);
  byId("exams-done").textContent = told(done);
  await show(done.name ?? "");
  byId("exams-title").tabIndex = -1;
  byId("exams-title").focus(); // the button that had the focus may be gone
}

// Figures -----------------------------------------------------------------------------------------

function marks(adapter) {
  const { exam = {} } = adapter.card;
  const rows = [
    ["Known before", share(adapter.recall_before)],
    ["Known now, without notes", share(adapter.recall_after)],
    ["With the notes at hand", share(adapter.recall_with_notes)],
    ["Forgetting", `${change(adapter.forgetting)} perplexity on general text`],
    ["Made-up answers", `${change(adapter.fabrication)} of questions that no note answers`],
    ["Other answers as before", exam.agreement == null ? "–" : share(exam.agreement)],
  ];
  return table("Marks", rows);
}

function receipt({ card, bytes, sources, rank }) {
  const { receipt: paid = {}, training = {} } = card;
  const rows = [
    ["Learned from", sources.length ? sources.join(", ") : "–"],
    ["Tokens trained", trained(training)],
    ["Time to train", paid.seconds == null ? "–" : duration(paid.seconds)],
    ["Time of the whole study", card.exam?.seconds == null ? "–" : duration(card.exam.seconds)],
    ["Memory", paid.peak_rss_bytes == null ? "–" : `${size(paid.peak_rss_bytes)} at most`],
    ["Energy", paid.energy_j == null ? "–" : `${energy(paid.energy_j)}, ${paid.energy_source}`],
    ["Cost", paid.cost_eur == null ? "–" : cost(paid.cost_eur)],
    ["Adapter", `${size(bytes)}${rank ? `, rank ${rank}` : ""}`],
  ];
  return table("Receipt", rows);
}

function trained({ tokens, tokens_per_s: speed }) {
  if (tokens === 0) return "None: the time was up before training began";
  return tokens == null ? "–" : `${number(tokens)} at ${number(speed)} a second`;
}

function table(title, rows) {
  return element(
    "section",
    {},
    element("h3", {}, title),
    element(
      "dl",
      {},
      rows
        .filter(([, value]) => !value.startsWith("–"))
        .map(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]),
    ),
  );
}
