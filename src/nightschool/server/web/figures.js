// Numbers, sizes and times in words.

const whole = new Intl.NumberFormat("en");
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const date = new Intl.DateTimeFormat(undefined, {
  day: "numeric",
  month: "short",
  hour: "2-digit",
  minute: "2-digit",
});
const oldDate = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short", year: "numeric" });

export function number(value) {
  return whole.format(Math.round(value));
}

/** count(1, "passage") is "1 passage", count(3, "passage") "3 passages". */
export function count(value, noun) {
  return `${number(value)} ${noun}${value === 1 ? "" : "s"}`;
}

/** Bytes in powers of a thousand, as shops and `ls -h --si` have them. */
export function size(bytes) {
  return scaled(bytes, ["bytes", "kB", "MB", "GB", "TB"]);
}

/** Parameters of a model: 5.6M, 1.2B. */
export function parameters(value) {
  return scaled(value, ["", "K", "M", "B", "T"]).replace(" ", "");
}

function scaled(value, units) {
  let place = 0;
  while (value >= 999.5 && place < units.length - 1) {
    value /= 1000;
    place += 1;
  }
  return `${place === 0 || value >= 99.5 ? Math.round(value) : Number(value.toPrecision(2))} ${units[place]}`.trim();
}

/** Seconds: 0.12 s, 45 s, 12 min, 3 h 20 min. */
export function duration(seconds) {
  if (seconds < 0.01) return "0.01 s";
  if (seconds < 10) return `${Number(seconds.toPrecision(2))} s`;
  if (seconds < 90) return `${Math.round(seconds)} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  return minutes % 60 ? `${Math.floor(minutes / 60)} h ${minutes % 60} min` : `${minutes / 60} h`;
}

/** A share between 0 and 1: 83%. */
export function share(value) {
  return value === null || value === undefined ? "–" : `${Math.round(value * 100)}%`;
}

/** A change: +4.2%, −1%. */
export function change(value) {
  if (value === null || value === undefined) return "–";
  const percent = Number((Math.abs(value) * 100).toFixed(1));
  return `${percent === 0 ? "±" : value > 0 ? "+" : "−"}${percent}%`;
}

/** A time since 1970: the day in words where it is today's, the hour where it is this year's. */
export function when(seconds) {
  const then = new Date(seconds * 1000);
  const now = new Date();
  if (then.toDateString() === now.toDateString()) return `today ${clock.format(then)}`;
  return (then.getFullYear() === now.getFullYear() ? date : oldDate).format(then);
}

/** Joules as people read them on a bill. */
export function energy(joules) {
  const hours = joules / 3600;
  return hours < 1000 ? `${Number(hours.toPrecision(2))} Wh` : `${Number((hours / 1000).toPrecision(2))} kWh`;
}

/** Euros; what is less than a cent is said to be so. */
export function cost(euros) {
  return euros < 0.01 ? "less than €0.01" : `€${euros.toFixed(2)}`;
}

/** "a", "a and b", "a, b and c". */
export function list(names) {
  return names.length < 2 ? names.join("") : `${names.slice(0, -1).join(", ")} and ${names.at(-1)}`;
}
