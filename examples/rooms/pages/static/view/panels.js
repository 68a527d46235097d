import { byId } from "./dom.js";
import { dismiss, notice } from "./notices.js";

/** Opens and closes the side panels; marks those in which something has happened. */
export class Panels {
  current = null;
  #panel = byId("panel");
  #buttons = [...document.querySelectorAll("[data-panel]")];
  #onOpen = new Map();

  constructor() {
    for (const button of this.#buttons) {
      button.addEventListener("click", () => {
        const { panel } = button.dataset;
        if (this.current === panel) this.close();
        else this.open(panel);
      });
    }
    byId("close-panel").addEventListener("click", () => this.close());
    this.#panel.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.close();
    });
  }

  /** Calls `listener` when a panel opens, before it has the focus. */
  whenOpened(name, listener) {
    this.#onOpen.set(name, listener);
  }

  open(name, { focus = true } = {}) {
    this.current = name;
    this.#show();
    this.#button(name).classList.remove("news");
    dismiss(name);
    this.#onOpen.get(name)?.();
    if (focus) byId(`title-${name}`).focus();
  }

  close() {
    const name = this.current;
    this.current = null;
    this.#show();
    if (name) this.#button(name).focus();
  }

  /** Marks a panel that is not open, and says what has happened there. */
  mark(name, text) {
    if (this.current === name) return;
    this.#button(name).classList.add("news");
    notice(text, { about: name });
  }

  /** Says what has happened in a panel, whether it is open or not. */
  tell(name, text) {
    if (this.current === name) notice(text);
    else this.mark(name, text);
  }

  #button(name) {
    return this.#buttons.find(({ dataset }) => dataset.panel === name);
  }

  #show() {
    this.#panel.hidden = this.current === null;
    for (const button of this.#buttons) {
      const { panel } = button.dataset;
      button.setAttribute("aria-expanded", String(panel === this.current));
      byId(`panel-${panel}`).hidden = panel !== this.current;
    }
  }
}
