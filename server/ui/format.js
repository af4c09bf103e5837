// Numbers and times as people read them.

const UNITS = ["B", "kB", "MB", "GB", "TB"];
const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;
const YEAR_MS = 365 * DAY_MS;

/** Three digits or so: 0.123, 12.3, 1234. */
export function short(value) {
  const digits = value >= 100 || Number.isInteger(value) ? 0 : value >= 10 ? 1 : 2;
  return value.toLocaleString("en", { maximumFractionDigits: digits });
}

/** Bytes, a thousand to the kilobyte as everywhere in this server. */
export function bytes(count) {
  let unit = 0;
  while (count >= 1000 && unit < UNITS.length - 1) {
    count /= 1000;
    unit += 1;
  }
  return `${short(count)} ${UNITS[unit]}`;
}

export function seconds(value) {
  return value < 1 ? `${short(Math.round(value * 1e4) / 10)} ms` : `${short(value)} s`;
}

/** How long ago, or "" for a time that cannot be read. */
export function ago(time, nowMs) {
  const passed = nowMs - Date.parse(time);
  if (Number.isNaN(passed)) return "";
  return passed < SECOND_MS ? "now" : `${span(passed)} ago`;
}

/** How long until then; models that are to stay for ever have an end centuries away. */
export function until(time, nowMs) {
  const left = Date.parse(time) - nowMs;
  if (Number.isNaN(left) || left > YEAR_MS) return "never";
  return left < SECOND_MS ? "now" : `in ${span(left)}`;
}

function span(ms) {
  if (ms < MINUTE_MS) return `${Math.floor(ms / SECOND_MS)} s`;
  if (ms < HOUR_MS) return `${Math.floor(ms / MINUTE_MS)} min`;
  if (ms < DAY_MS) return `${Math.floor(ms / HOUR_MS)} h`;
  return `${Math.floor(ms / DAY_MS)} d`;
}
