// How the program is doing, asked often while a job runs and now and then otherwise. All views listen here.

import { call } from "./api.js";

const BUSY_MS = 1000;
const IDLE_MS = 5000;

const listeners = [];
let timer = 0;
let asking = null;

/** `listener(status, error)`: one of them is null. */
export function onBeat(listener) {
  listeners.push(listener);
}

/** Ask now, and again from now on. */
export function beat() {
  clearTimeout(timer);
  asking ??= ask().finally(() => (asking = null));
  return asking;
}

async function ask() {
  let status = null;
  let problem = null;
  try {
    status = await call("GET", "/status");
  } catch (error) {
    problem = error;
  }
  for (const listener of listeners) listener(status, problem);
  clearTimeout(timer);
  timer = setTimeout(whenSeen, status?.job ? BUSY_MS : IDLE_MS);
}

function whenSeen() {
  if (document.hidden)
    timer = setTimeout(whenSeen, BUSY_MS); // nobody looks: nothing is asked
  else beat();
}
