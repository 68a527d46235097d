import { parseJson, sendJson } from "./channel.js";
import { Emitter } from "./emitter.js";
import { Limit } from "./limit.js";
import { cleanText } from "./text.js";

const LONGEST = 4000;
const KEPT = 500;
/** A participant may send this many messages in this time; further ones are dropped. */
const BURST = { most: 30, ms: 10_000 };

/**
 * The chat with all participants to whom a channel is open. Event `message` with `{from, text, at, own, receivers}`;
 * `receivers` is the number of those to whom an own message goes.
 */
export class Chat extends Emitter {
  messages = [];
  #channels = new Map();
  #limit = new Limit(BURST);

  attach(id, channel) {
    this.#channels.set(id, channel);
    channel.addEventListener("message", ({ data }) => this.#receive(id, parseJson(data)));
    channel.addEventListener("close", () => {
      if (this.#channels.get(id) === channel) this.#channels.delete(id);
    });
  }

  /** Sends a text; returns how many participants it goes to. */
  send(text) {
    const message = { text: cleanText(text, LONGEST) };
    const open = [...this.#channels.values()].filter(({ readyState }) => readyState === "open");
    for (const channel of open) sendJson(channel, message);
    if (open.length > 0) this.#add({ from: null, ...message, own: true, receivers: open.length });
    return open.length;
  }

  #receive(from, message) {
    if (typeof message?.text !== "string") return;
    const text = cleanText(message.text, LONGEST).trim();
    if (text && this.#limit.admits(from)) this.#add({ from, text, own: false });
  }

  /** The time of a message is that of its arrival: the clocks of others may be wrong. */
  #add(message) {
    const dated = { ...message, at: Date.now() };
    this.messages.push(dated);
    if (this.messages.length > KEPT) this.messages.shift();
    this.emit("message", dated);
  }
}
