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

/** Where states are, from those in use to those on disk, and what the process has in all. */
export function showTiers(metrics) {
  const slots = metrics.total("slots") ?? 0;
  const inUse = metrics.total("slots_in_use") ?? 0;
  const queued = metrics.total("state_bytes", { tier: "disk_queue" });
  const slotBytes = metrics.total("state_bytes", { tier: "slots" }) ?? 0;
  const resident = metrics.sum("process_resident_memory_bytes");
  const rows = [
    ["Live slots", bytes(slotBytes), `${inUse} of ${slots} in use`, inUse / slots],
    tierRow(metrics, "Cache in memory", "memory"),
    tierRow(metrics, "Cache on disk", "disk"),
  ];
  if (queued) rows.push(["Not yet on disk", bytes(queued), "", NaN]);
  if (resident) rows.push(["Whole process", bytes(resident), "weights and all", NaN]);
  byId("tiers").replaceChildren(...rows.flatMap(meterRow));
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

/** The disk is looked at, and budgets are known, once a model has been loaded. */
function tierRow(metrics, name, tier) {
  const size = metrics.total("state_bytes", { tier });
  const budget = metrics.total("state_budget_bytes", { tier });
  if (!budget) return [name, "–", "", NaN];
  const states = `${short(metrics.total("states", { tier }))} states`;
  return [name, `${bytes(size)} of ${bytes(budget)}`, states, size / budget];
}

/** A name, what it has, and how full it is: `part` of 1, NaN where there is no bound. */
function meterRow([name, size, detail, part]) {
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
