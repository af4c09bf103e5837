// The chat box: what it sends, and what becomes of it.

import { AnswerError, KeyError, UnreachableError, getJson, postStream } from "./api.js";
import { byId, element } from "./dom.js";
import { MessageView, clearMessages, replyFacts, showMessage } from "./messages.js";
import { shortName } from "./panels.js";

export class Chat {
  /**
   * @param {object} listener
   * @param {() => void} listener.onTurn when a turn is over
   * @param {() => void} listener.onKey when the server wants a key
   */
  constructor(listener) {
    this.listener = listener;
    /** What is sent with each message where the server keeps no session. */
    this.history = [];
    this.sessionName = "";
    /** @type {AbortController | null} ends the reply that is coming */
    this.stopper = null;
    /** @type {Map<string, object>} by name */
    this.models = new Map();
    this.noMessages = byId("no-messages");
    this.fields = Object.fromEntries(
      ["text", "model", "session", "think", "send", "stop"].map((id) => [id, byId(id)]),
    );
    this.newChatButton = byId("new-chat");
    this.listen();
  }

  listen() {
    const { text, model, session, stop } = this.fields;
    byId("composer").addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    text.addEventListener("keydown", (event) => {
      // While a character is composed, Enter ends it.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
    byId("chat").addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.stopper?.abort();
    });
    stop.addEventListener("click", () => this.stopper?.abort());
    model.addEventListener("change", () => this.showAbilities());
    session.addEventListener("change", () => this.openSession(session.value.trim()));
    session.addEventListener("keydown", (event) => {
      // It names the session; the message is not sent before the session is there.
      if (event.key !== "Enter") return;
      event.preventDefault();
      text.focus();
    });
    this.newChatButton.addEventListener("click", () => {
      this.openSession("");
      text.focus();
    });
  }

  /** @param models those of `/api/tags` */
  showModels(models) {
    const able = models.filter((each) => each.capabilities.includes("completion"));
    this.models = new Map(able.map((each) => [each.name, each]));
    const select = this.fields.model;
    const names = [...this.models.keys()];
    const shown = [...select.options].map((each) => each.value);
    if (names.join("\n") !== shown.join("\n")) {
      const chosen = select.value;
      const options = names.map((value) => element("option", { value, textContent: shortName(value) }));
      select.replaceChildren(...options);
      if (this.models.has(chosen)) select.value = chosen;
    }
    this.showAbilities();
  }

  /** Goes on with a session of the server, a new one if it has none of that name; "" is none. */
  async openSession(name) {
    if (this.stopper) return;
    const { session, model } = this.fields;
    session.value = name;
    this.sessionName = name;
    this.history = [];
    clearMessages();
    byId("messages").append(this.noMessages);
    if (!name) return;
    let found;
    try {
      found = await getJson(`api/sessions/${encodeURIComponent(name)}`);
    } catch (error) {
      // Without one of that name, the first turn makes it.
      if (!(error instanceof AnswerError && error.status === 404)) this.showError(error);
      return;
    }
    if (this.sessionName !== name || this.stopper) return;
    if (this.models.has(found.model)) model.value = found.model;
    this.showAbilities();
    if (found.messages.length) clearMessages();
    found.messages.forEach(showMessage);
  }

  async send() {
    const { text, model } = this.fields;
    const content = text.value;
    if (this.stopper || !content.trim() || !model.value) return;
    text.value = "";
    this.noMessages.remove();
    const user = { role: "user", content };
    const views = [showMessage(user), new MessageView("assistant")];
    const reply = views[1];
    this.stopper = new AbortController();
    this.showBusy(true);
    reply.begin();
    const isKept = await this.receive(user, reply).catch((error) => {
      reply.fail(this.words(error));
      if (!text.value) text.value = content;
      return false;
    });
    if (!isKept) views.forEach((each) => each.markDropped());
    this.stopper = null;
    this.showBusy(false);
    this.listener.onTurn();
  }

  /** Shows a reply as it comes. Whether it, and what it answers, belong to the chat from now on. */
  async receive(user, reply) {
    const { signal } = this.stopper;
    const sentMs = performance.now();
    let firstTextSeconds = null;
    try {
      for await (const answer of postStream("api/chat", this.requestBody(user), signal)) {
        const { thinking, content } = answer.message;
        if (firstTextSeconds === null && (thinking || content)) {
          firstTextSeconds = (performance.now() - sentMs) / 1000;
        }
        if (thinking) reply.addThinking(thinking);
        reply.addContent(content);
        if (answer.done) reply.finish(replyFacts(answer, firstTextSeconds));
      }
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      return this.endStopped(user, reply);
    }
    this.remember(user, reply);
    return true;
  }

  /** A session keeps whole turns only; this page keeps what there is of a reply. */
  endStopped(user, reply) {
    const isKept = !this.sessionName && reply.text !== "";
    reply.finish(["stopped", isKept ? "" : "no part of the chat"]);
    if (isKept) this.remember(user, reply);
    return isKept;
  }

  remember(user, reply) {
    if (!this.sessionName) this.history.push(user, { role: "assistant", content: reply.text });
  }

  requestBody(user) {
    const { model, think } = this.fields;
    return {
      model: model.value,
      messages: [...this.history, user],
      ...(think.disabled ? {} : { think: think.checked }),
      ...(this.sessionName ? { session: this.sessionName } : {}),
    };
  }

  showError(error) {
    this.noMessages.remove();
    const view = new MessageView("system");
    view.fail(this.words(error));
    view.markDropped();
  }

  words(error) {
    if (error instanceof KeyError) {
      this.listener.onKey();
      return "The server asks for a key. Send the message again with it.";
    }
    if (error instanceof UnreachableError) return "The server is not reachable. Try again.";
    if (!(error instanceof AnswerError)) console.error(error);
    return error.message;
  }

  showAbilities() {
    const { model, think } = this.fields;
    think.disabled = !this.models.get(model.value)?.capabilities.includes("thinking");
  }

  showBusy(isBusy) {
    const { model, session, send, stop, text } = this.fields;
    for (const field of [model, session, this.newChatButton]) field.disabled = isBusy;
    send.hidden = isBusy;
    stop.hidden = !isBusy;
    byId("messages").setAttribute("aria-busy", String(isBusy));
    // A button that is hidden has lost the focus. Where fingers point, it would bring the keyboard.
    const isLost = [document.body, send, stop].includes(document.activeElement);
    if (!isBusy && isLost && matchMedia("(pointer: fine)").matches) text.focus();
  }
}
