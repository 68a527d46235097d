import { parseJson, sendJson } from "./channel.js";
import { Emitter } from "./emitter.js";

const LONGEST = 4000;
const KEPT = 500;

/** The chat with all participants to whom a channel is open. Event `message` with `{from, text, at, own}`. */
export class Chat extends Emitter {
  messages = [];
  #channels = new Map();

  attach(id, channel) {
    this.#channels.set(id, channel);
    channel.addEventListener("message", ({ data }) => {
      const message = parseJson(data);
      if (typeof message?.text !== "string") return;
      this.#add({ from: id, text: message.text.slice(0, LONGEST), at: Number(message.at) || Date.now(), own: false });
    });
    channel.addEventListener("close", () => {
      if (this.#channels.get(id) === channel) this.#channels.delete(id);
    });
  }

  /** Sends a text; returns how many participants it goes to. */
  send(text) {
    const message = { text: text.slice(0, LONGEST), at: Date.now() };
    for (const channel of this.#channels.values()) sendJson(channel, message);
    if (this.#channels.size > 0) this.#add({ from: null, ...message, own: true });
    return this.#channels.size;
  }

  #add(message) {
    this.messages.push(message);
    if (this.messages.length > KEPT) this.messages.shift();
    this.emit("message", message);
  }
}
