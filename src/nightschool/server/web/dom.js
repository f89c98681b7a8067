// Elements in one expression. Text is always text: nothing that anybody wrote is ever read as HTML.

const SVG = "http://www.w3.org/2000/svg";

/** element("button", {class: "quiet", onclick: stop}, "Stop"): null and false are left out. */
export function element(tag, attributes = {}, ...children) {
  return filled(document.createElement(tag), attributes, children);
}

/** The same for a drawing. */
export function shape(tag, attributes = {}, ...children) {
  return filled(document.createElementNS(SVG, tag), attributes, children);
}

function filled(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(
    ...children.flat(2).filter((child) => child !== null && child !== undefined && child !== false),
  );
  return node;
}

/** What index.html calls `id`. */
export function byId(id) {
  return document.getElementById(id);
}

/** Replace what a node holds, but only where that changes it: who reads or selects in it is left in peace. */
export function redraw(node, ...children) {
  const fresh = element("div", {}, ...children);
  if (node.innerHTML !== fresh.innerHTML) node.replaceChildren(...fresh.childNodes);
}

/** Run an action of a button: not twice at once, and what goes wrong is said in one sentence in `place`. */
export async function attempt(place, button, action) {
  place.textContent = "";
  if (button) button.setAttribute("aria-disabled", "true");
  try {
    return await action();
  } catch (error) {
    place.textContent = error.message;
    return undefined;
  } finally {
    if (button) button.removeAttribute("aria-disabled");
  }
}

/** Ask before something that cannot be undone; true where the person says yes. */
export function confirmed({ title, body, yes }) {
  const dialog = byId("dialog");
  byId("dialog-title").textContent = title;
  byId("dialog-body").replaceChildren(...body);
  byId("dialog-yes").textContent = yes;
  dialog.returnValue = "";
  dialog.showModal();
  byId("dialog-cancel").focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}
