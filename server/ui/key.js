// Asks for the server's key.

import { hasKey, keepKey } from "./api.js";
import { byId, setText } from "./dom.js";

export class KeyDialog {
  /** @param {() => void} onKey when there is another key to try */
  constructor(onKey) {
    this.dialog = byId("key-dialog");
    this.field = byId("key");
    this.error = byId("key-error");
    byId("key-form").addEventListener("submit", (event) => {
      event.preventDefault();
      keepKey(this.field.value.trim());
      this.field.value = "";
      this.dialog.close();
      onKey();
    });
    byId("key-cancel").addEventListener("click", () => this.dialog.close());
    byId("enter-key").addEventListener("click", () => this.ask());
  }

  ask() {
    if (this.dialog.open) return;
    setText(this.error, hasKey() ? "The server does not accept the key it was sent." : "");
    this.dialog.showModal();
  }
}
