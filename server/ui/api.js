// Requests to the server that this page is from.

// Relative to this file, so that a proxy may serve everything below a path of its own.
const ROOT = new URL("..", import.meta.url);
const KEY_ITEM = "anser.key";
const LOOK_TIMEOUT_MS = 10_000;

/** The server does not answer, or a proxy answers in its place. */
export class UnreachableError extends Error {}

/** The server wants a key, or another one. */
export class KeyError extends Error {}

/** The server says no, in its own words. */
export class AnswerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function hasKey() {
  return sessionStorage.getItem(KEY_ITEM) !== null;
}

export function keepKey(key) {
  sessionStorage.setItem(KEY_ITEM, key);
}

/** What a GET of `path` answers, a short one. */
export async function getText(path) {
  const response = await request(path, { signal: AbortSignal.timeout(LOOK_TIMEOUT_MS) });
  try {
    return await response.text();
  } catch {
    throw new UnreachableError();
  }
}

export async function getJson(path) {
  return JSON.parse(await getText(path));
}

/**
 * The objects of a streamed answer to a POST, each as it comes. Aborting `signal` ends the request
 * with an AbortError; the last object of a whole answer is `done`.
 */
export async function* postStream(path, body, signal) {
  const headers = { "Content-Type": "application/json" };
  const response = await request(path, {
    method: "POST",
    headers,
    body: JSON.stringify(body),
    signal,
  });
  for await (const line of lines(response, signal)) {
    const value = JSON.parse(line);
    if (value.error) throw new AnswerError(response.status, value.error);
    yield value;
    if (value.done) return;
  }
  throw new UnreachableError();
}

async function* lines(response, signal) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (rest + value).split("\n");
      rest = parts.pop();
      yield* parts.filter(Boolean);
    }
  } catch (error) {
    signal.throwIfAborted();
    throw new UnreachableError(error.message);
  } finally {
    reader.cancel().catch(() => {}); // it may have failed already
  }
}

async function request(path, options) {
  const headers = { ...options.headers };
  if (hasKey()) headers.Authorization = `Bearer ${headerText(sessionStorage.getItem(KEY_ITEM))}`;
  let response;
  try {
    response = await fetch(new URL(path, ROOT), { ...options, headers, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new UnreachableError(error.message);
  }
  if (response.status === 401) throw new KeyError();
  if (!response.ok) throw await refusal(response);
  return response;
}

async function refusal(response) {
  const { error } = await response.json().catch(() => ({}));
  if (typeof error === "string") return new AnswerError(response.status, error);
  // A proxy's own page: the server behind it is away.
  if (response.status >= 502) return new UnreachableError();
  return new AnswerError(response.status, `The server answers with status ${response.status}.`);
}

/** A header has characters of one byte each: these are the bytes of the text in UTF-8. */
function headerText(text) {
  return String.fromCharCode(...new TextEncoder().encode(text));
}
