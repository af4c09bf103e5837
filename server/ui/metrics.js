// What `GET /metrics` says, and how fast it changes.

const SAMPLE = /^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;
const ESCAPED = { "\\n": "\n" };

/** One look at the numbers. */
export class Metrics {
  /** @param {string} page in Prometheus's text format @param {number} atMs when it was read */
  constructor(page, atMs) {
    this.atMs = atMs;
    this.samples = page.split("\n").flatMap(readSample);
  }

  /** The sum of the samples of Anser's that have these labels; undefined if there are none. */
  total(name, labels = {}) {
    return this.sum(`anser_${name}`, labels);
  }

  /** The same for a metric by its whole name. */
  sum(name, labels = {}) {
    const wanted = Object.entries(labels);
    const values = this.samples
      .filter((each) => each.name === name)
      .filter((each) => wanted.every(([key, value]) => each.labels[key] === value))
      .map((each) => each.value);
    return values.length ? values.reduce((sum, value) => sum + value) : undefined;
  }
}

/**
 * What happened between two looks: `tokenRate` in tokens a second, of all replies together, and
 * `firstTokenSeconds`, the mean of the replies that began, null if none did.
 *
 * Null for looks that cannot be compared: the server has begun anew, and its counters with it.
 */
export function between(before, after) {
  const { tokens, begun, waitedSeconds } = counts(after);
  const earlier = counts(before);
  if (tokens < earlier.tokens || begun < earlier.begun || after.atMs <= before.atMs) return null;
  const numBegun = begun - earlier.begun;
  return {
    tokenRate: (tokens - earlier.tokens) / ((after.atMs - before.atMs) / 1000),
    firstTokenSeconds: numBegun ? (waitedSeconds - earlier.waitedSeconds) / numBegun : null,
  };
}

/** Of all models since the server began. Tokens are counted as they come, not at a reply's end. */
function counts(metrics) {
  const begun = metrics.total("time_to_first_token_seconds_count") ?? 0;
  return {
    begun,
    tokens: begun + (metrics.total("inter_token_seconds_count") ?? 0),
    waitedSeconds: metrics.total("time_to_first_token_seconds_sum") ?? 0,
  };
}

function readSample(line) {
  const match = SAMPLE.exec(line);
  if (!match) return [];
  const labels = {};
  for (const [, key, value] of (match[2] ?? "").matchAll(LABEL)) {
    labels[key] = value.replace(/\\./g, (pair) => ESCAPED[pair] ?? pair[1]);
  }
  return [{ name: match[1], labels, value: Number(match[3]) }];
}
