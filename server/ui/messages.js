// The conversation as it is shown.

import { byId, element, setText } from "./dom.js";
import { seconds, short } from "./format.js";

const NAMES = { user: "You", assistant: "Model", system: "System", tool: "Tool" };
const NEAR_END_PX = 60;

export function clearMessages() {
  byId("messages").replaceChildren();
}

/** Shows a message that is whole, as a session holds it. */
export function showMessage(message) {
  const view = new MessageView(message.role);
  if (message.thinking) view.addThinking(message.thinking);
  view.addContent(message.content);
  for (const { function: call } of message.tool_calls ?? []) {
    view.addContent(`${call.name}(${JSON.stringify(call.arguments)})`);
  }
  view.endThinking();
  return view;
}

/** One message; a reply grows. */
export class MessageView {
  constructor(role) {
    this.content = element("div", { className: "content" });
    this.note = element("p", { className: "note" });
    this.newThought = this.newContent = ""; // what is not shown yet
    this.frame = null;
    const name = element("h3", { textContent: NAMES[role] ?? role });
    this.article = element("article", {}, name, this.content, this.note);
    this.article.dataset.role = role in NAMES ? role : "other";
    this.article.setAttribute("aria-label", NAMES[role] ?? role);
    keepingEnd(() => byId("messages").append(this.article));
  }

  /** From now on until `finish` or `fail`, it is being written. */
  begin() {
    this.article.setAttribute("aria-busy", "true");
    setText(this.note, "Waiting for the model");
  }

  addThinking(text) {
    this.newThought += text;
    this.showSoon();
  }

  addContent(text) {
    this.newContent += text;
    this.showSoon();
  }

  /** Once a frame: a fast model has more tokens than a browser can lay out pages. */
  showSoon() {
    this.frame ??= requestAnimationFrame(() => this.show());
  }

  show() {
    cancelAnimationFrame(this.frame);
    this.frame = null;
    if (!this.newThought && !this.newContent) return;
    keepingEnd(() => {
      setText(this.note, "");
      if (this.newThought) this.thoughtElement().append(this.newThought);
      if (this.newContent) {
        this.nameThought();
        this.content.append(this.newContent);
      }
    });
    this.newThought = this.newContent = "";
  }

  thoughtElement() {
    if (!this.thought) {
      this.thought = element("div", { className: "thought" });
      const summary = element("summary", { textContent: "Thinking" });
      this.details = element("details", {}, summary, this.thought);
      this.content.before(this.details);
    }
    return this.thought;
  }

  nameThought() {
    if (this.details) setText(this.details.firstChild, "Thought");
  }

  endThinking() {
    this.show();
    this.nameThought();
  }

  get text() {
    this.show();
    return this.content.textContent;
  }

  /** @param {string[]} facts what is said below the message */
  finish(facts) {
    this.article.removeAttribute("aria-busy");
    this.endThinking();
    // A model may say all of it in its thought.
    if (this.details && !this.text) this.details.open = true;
    this.content.normalize();
    keepingEnd(() => setText(this.note, facts.filter(Boolean).join(" · ")));
  }

  fail(message) {
    this.finish([message]);
    this.note.className = "note error";
    this.note.setAttribute("role", "alert");
  }

  /** The message is no part of the chat that goes on. */
  markDropped() {
    this.article.classList.add("dropped");
  }
}

/** What the last object of an answer says of a reply. */
export function replyFacts(final, firstTextSeconds) {
  const { eval_count: count = 0, eval_duration: durationNs = 0 } = final;
  const rate = durationNs ? `${short((count / durationNs) * 1e9)} tokens/s` : "";
  const reused = final.prompt_cached_count
    ? `${final.prompt_cached_count} of ${final.prompt_eval_count} prompt tokens reused`
    : "";
  const first = firstTextSeconds === null ? "" : `first after ${seconds(firstTextSeconds)}`;
  const cut = final.done_reason === "length" ? "cut off" : "";
  return [`${count} tokens`, rate, first, reused, cut];
}

/** Scrolls on with what is added, unless the reader has scrolled back. */
function keepingEnd(change) {
  const log = byId("messages");
  const isAtEnd = log.scrollHeight - log.scrollTop - log.clientHeight < NEAR_END_PX;
  change();
  if (isAtEnd) log.scrollTop = log.scrollHeight;
}
