// What the server holds at this moment: loaded models, states by tier, sessions.

import { byId, element, keepRows, setText } from "./dom.js";
import { ago, bytes, short, until } from "./format.js";

const MAX_SESSIONS = 50;

/** Of these, one more than is shown is asked for: whether there are others. */
export const SESSIONS_PATH = `api/sessions?limit=${MAX_SESSIONS + 1}`;

/** @param models those of `/api/ps` */
export function showModels(models, metrics, nowMs) {
  keepRows(tableBody("models"), models, (each) => each.name, cells(4, "th"), (row, model) => {
    const [name, weights, replies, leaves] = row.children;
    const { parameter_size: size, quantization_level: quantization } = model.details;
    setLines(name, shortName(model.name), `${size} ${quantization}`);
    setText(weights, bytes(model.size));
    setText(replies, slotsText(metrics, { model: model.name }));
    setText(leaves, until(model.expires_at, nowMs));
  });
  showEmpty("models", !models.length);
}

/** Live slots, then memory, then disk: from where a chat goes on at once to where it is read from. */
export function showTiers(metrics) {
  const budget = (tier) => metrics.total("state_budget_bytes", { tier });
  const size = (tier) => metrics.total("state_bytes", { tier }) ?? 0;
  const states = (tier) => `${short(metrics.total("states", { tier }) ?? 0)} states`;
  const queued = size("disk_queue");
  const slots = metrics.total("slots") ?? 0;
  const inUse = metrics.total("slots_in_use") ?? 0;
  const tiers = [
    ["Live slots", bytes(size("slots")), `${inUse} of ${slots} in use`, inUse / slots],
    tierOf("Memory", size("memory"), budget("memory"), states("memory")),
    tierOf("Disk", size("disk"), budget("disk"), states("disk")),
  ];
  if (queued) tiers.push(["To be written", bytes(queued), "", NaN]);
  byId("tiers").replaceChildren(...tiers.flatMap(tierRow));
}

/**
 * @param sessions those of `/api/sessions`
 * @param {(session: object) => void} open when one is chosen
 */
export function showSessions(sessions, nowMs, open) {
  const shown = sessions.slice(0, MAX_SESSIONS);
  const make = (session) => {
    const row = cells(4, "th")();
    const name = element("button", { type: "button", className: "link" });
    name.addEventListener("click", () => open(row.session));
    name.textContent = session.session;
    row.firstChild.append(name, element("small"));
    return row;
  };
  keepRows(tableBody("sessions"), shown, (each) => each.session, make, (row, session) => {
    row.session = session;
    const [name, tokens, state, last] = row.children;
    setText(name.lastChild, shortName(session.model));
    setText(tokens, session.token_count ? short(session.token_count) : "–");
    setText(state, session.state_size ? bytes(session.state_size) : "–");
    setText(last, ago(session.updated_at, nowMs));
    last.title = new Date(session.updated_at).toLocaleString();
  });
  showEmpty("sessions", !sessions.length);
  const more = byId("more-sessions");
  more.hidden = sessions.length <= MAX_SESSIONS;
  setText(more, `The ${MAX_SESSIONS} that were used last.`);
}

/** A model's name without the tag that every model has. */
export function shortName(name) {
  return name.replace(/:latest$/, "");
}

function slotsText(metrics, labels) {
  const waiting = metrics.total("queue_length", labels) ?? 0;
  const inUse = metrics.total("slots_in_use", labels) ?? 0;
  const text = `${inUse} of ${metrics.total("slots", labels) ?? 0}`;
  return waiting ? `${text}, ${waiting} wait` : text;
}

/** A tier that nobody has used yet has no budget, or one of nothing. */
function tierOf(name, size, budget, states) {
  const text = budget ? `${bytes(size)} of ${bytes(budget)}` : bytes(size);
  return [name, text, states, size / budget];
}

/** A name, what it has, and how full it is: `part` of 1, NaN where there is no bound. */
function tierRow([name, size, detail, part]) {
  const bar = element("span", { className: "bar", ariaHidden: "true" }, element("span"));
  bar.firstChild.style.width = `${100 * Math.min(1, part || 0)}%`;
  const value = element("dd", {}, size, element("small", { textContent: detail }));
  if (!Number.isNaN(part)) value.append(bar);
  return [element("dt", { textContent: name }), value];
}

function tableBody(id) {
  return byId(id).querySelector("tbody");
}

/** Makes rows of so many cells, the first one their heading. */
function cells(count, first) {
  return () => {
    const heading = element(first, { scope: "row" });
    const rest = Array.from({ length: count - 1 }, () => element("td"));
    return element("tr", {}, heading, ...rest);
  };
}

function setLines(cell, text, detail) {
  if (!cell.firstChild) cell.append(element("span"), element("small"));
  setText(cell.firstChild, text);
  setText(cell.lastChild, detail);
}

function showEmpty(id, isEmpty) {
  byId(id).parentElement.querySelector(".empty").hidden = !isEmpty;
}
