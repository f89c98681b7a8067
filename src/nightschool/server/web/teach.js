// The view in which people give notes, have them studied, and watch.

import * as jobs from "./jobs.js";
import * as notes from "./notes.js";
import * as sources from "./sources.js";
import * as study from "./study.js";

export async function show() {
  await Promise.all([sources.refresh(), study.refresh(), jobs.refresh()]);
}

// What changes in one part is news for the others.
notes.onRemembered(async () => {
  await sources.refresh();
  await study.refresh();
});
sources.onForgotten(() => Promise.all([study.refresh(), jobs.refresh()]));
study.onQueued(jobs.refresh);
jobs.onFinished(() => Promise.all([sources.refresh(), study.refresh()]));
sources.onListed(study.offer);
