// The page: looks at the server again and again while somebody can see it.

import { AnswerError, KeyError, UnreachableError, getJson, getText } from "./api.js";
import { Chart } from "./chart.js";
import { Chat } from "./chat.js";
import { byId, setText } from "./dom.js";
import { seconds, short } from "./format.js";
import { KeyDialog } from "./key.js";
import { Metrics, between } from "./metrics.js";
import { SESSIONS_PATH, showModels, showSessions, showTiers } from "./panels.js";

const INTERVAL_MS = 2000;
/** Sessions and models change with what people do: they are looked at less often. */
const LISTS_EVERY = 5;
/** After a longer pause the mean of it says nothing of the moment. */
const MAX_GAP_MS = 3 * INTERVAL_MS;

const STATES = {
  reachable: "Connected",
  unreachable: "Not reachable, trying again",
  "needs-key": "Needs a key",
};

class Page {
  constructor() {
    this.tokenRate = new Chart(byId("token-rate"), "line", "Tokens per second", short);
    this.firstToken = new Chart(byId("first-token"), "bars", "Time to first token", seconds);
    this.chat = new Chat({ onTurn: () => this.lookNow(), onKey: () => this.needKey() });
    this.keyDialog = new KeyDialog(() => this.lookNow());
    /** @type {Metrics | null} the last look, if nothing is missing since then */
    this.before = null;
    this.timer = 0;
    this.isLooking = false;
    this.untilLists = 0;
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) clearTimeout(this.timer);
      else this.lookNow();
    });
    this.lookNow();
  }

  /** Looks at once, at the lists too. */
  lookNow() {
    this.untilLists = 0;
    if (!this.isLooking) this.look();
  }

  async look() {
    clearTimeout(this.timer);
    this.isLooking = true;
    try {
      await this.showAll();
      this.showState("reachable");
    } catch (error) {
      this.before = null;
      this.untilLists = 0;
      this.showProblem(error);
    }
    this.isLooking = false;
    // Without its key, the server would only write down that it refused.
    if (!document.hidden && this.state !== "needs-key") {
      this.timer = setTimeout(() => this.look(), INTERVAL_MS);
    }
  }

  async showAll() {
    const hasLists = this.untilLists === 0;
    this.untilLists = (hasLists ? LISTS_EVERY : this.untilLists) - 1;
    const [page, running, sessions, tags] = await Promise.all([
      getText("metrics"),
      getJson("api/ps"),
      hasLists ? getJson(SESSIONS_PATH) : null,
      hasLists ? getJson("api/tags") : null,
    ]);
    const nowMs = Date.now();
    const metrics = new Metrics(page, nowMs);
    this.showSpeed(metrics);
    showModels(running.models, metrics, nowMs);
    showTiers(metrics);
    if (tags) this.chat.showModels(tags.models);
    if (sessions) this.sessions = sessions.sessions;
    showSessions(this.sessions, nowMs, (each) => this.chat.openSession(each.session));
  }

  showSpeed(metrics) {
    const isNear = this.before && metrics.atMs - this.before.atMs <= MAX_GAP_MS;
    const change = isNear ? between(this.before, metrics) : null;
    this.tokenRate.add(metrics.atMs, change && change.tokenRate);
    this.firstToken.add(metrics.atMs, change && change.firstTokenSeconds);
    this.before = metrics;
  }

  showProblem(error) {
    if (error instanceof KeyError) this.needKey();
    else if (error instanceof UnreachableError) this.showState("unreachable");
    else {
      if (!(error instanceof AnswerError)) console.error(error);
      this.showState("refused", error.message);
    }
  }

  needKey() {
    this.showState("needs-key");
    this.keyDialog.ask();
  }

  showState(state, words = STATES[state]) {
    this.state = state;
    const status = byId("status");
    status.dataset.state = state;
    setText(status, words);
    byId("enter-key").hidden = state !== "needs-key";
  }
}

new Page();
