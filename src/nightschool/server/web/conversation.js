// What was said so far: the messages of one chat, kept over a reload. It knows nothing of how they look.
//
// A message: {role, content}; an answer also {model, memory, seconds, citations, stopped}.

import { keep, kept } from "./storage.js";

const KEY = "conversation";

let messages = kept(KEY, []);

export function all() {
  return messages;
}

export function add(message) {
  messages.push(message);
  save();
}

export function save() {
  keep(KEY, messages);
}

/** Leave only what was said before message `index`. */
export function cutAt(index) {
  messages.length = index;
  save();
}

export function clear() {
  messages = [];
  save();
}

/** The messages as the API takes them. Turns must alternate: questions without an answer become one. */
export function forModel() {
  const turns = [];
  for (const { role, content } of messages) {
    if (turns.at(-1)?.role === role) turns.at(-1).content += `\n\n${content}`;
    else turns.push({ role, content });
  }
  return turns;
}
