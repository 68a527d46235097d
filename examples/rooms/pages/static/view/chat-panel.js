import { isolate } from "../text.js";
import { byId, clone, setText } from "./dom.js";
import { notice } from "./notices.js";

const KEPT = 500;

export class ChatPanel {
  #names;
  #count;

  /** `names` gives the name of a participant, `count` the number of the others. */
  constructor({ chat, panels, names, count }) {
    this.#names = names;
    this.#count = count;
    chat.on("message", (message) => {
      this.#add(message);
      if (message.own) return;
      panels.mark("chat", `${isolate(names(message.from))}: ${shorten(message.text)}`);
    });
    panels.whenOpened("chat", () => this.#toEnd());
    byId("chat-form").addEventListener("submit", (event) => {
      event.preventDefault();
      const input = byId("text");
      const text = input.value.trim();
      if (!text) return;
      if (chat.send(text) > 0) input.value = "";
      else notice("The message is not sent: no other participant is connected.");
    });
  }

  #add({ from, text, at, own, receivers }) {
    const list = byId("messages");
    const item = clone("message");
    const date = new Date(at);
    item.classList.toggle("own", own);
    item.querySelector("strong").textContent = own ? "You" : this.#names(from);
    const time = item.querySelector("time");
    time.dateTime = date.toISOString();
    time.textContent = date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
    item.querySelector(".text").textContent = text;
    const all = this.#count();
    if (receivers < all) setText(item.querySelector(".reach"), `Sent to ${receivers} of ${all} participants`);
    list.append(item);
    if (list.children.length > KEPT) list.firstElementChild.remove();
    this.#toEnd();
  }

  #toEnd() {
    byId("messages").lastElementChild?.scrollIntoView({ block: "end" });
  }
}

function shorten(text) {
  const characters = [...text.replace(/\s+/g, " ")];
  return isolate(characters.length > 80 ? `${characters.slice(0, 79).join("")}…` : characters.join(""));
}
