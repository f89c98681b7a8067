// What outlives a reload. A browser that keeps nothing (private windows, full disks) costs just that.

const PREFIX = "nightschool.";

export function keep(key, value) {
  try {
    localStorage.setItem(PREFIX + key, JSON.stringify(value));
  } catch {
    // the page works without
  }
}

/** What was kept, or `otherwise`. */
export function kept(key, otherwise) {
  try {
    return JSON.parse(localStorage.getItem(PREFIX + key)) ?? otherwise;
  } catch {
    return otherwise;
  }
}
