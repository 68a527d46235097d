import { parseJson, sendJson } from "./channel.js";
import { Emitter } from "./emitter.js";
import { cleanText } from "./text.js";

const LONGEST = 4000;
const KEPT = 500;
/** A participant may send this many messages in this time; further ones are dropped. */
const BURST = 30;
const BURST_MS = 10_000;

/** The chat with all participants to whom a channel is open. Event `message` with `{from, text, at, own}`. */
export class Chat extends Emitter {
  messages = [];
  #channels = new Map();
  /** When the last messages of each participant arrived. */
  #arrivals = new Map();

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
    if (open.length > 0) this.#add({ from: null, ...message, own: true });
    return open.length;
  }

  #receive(from, message) {
    if (typeof message?.text !== "string") return;
    const text = cleanText(message.text, LONGEST).trim();
    if (text && this.#mayArrive(from)) this.#add({ from, text, own: false });
  }

  #mayArrive(from) {
    const now = performance.now();
    const recent = (this.#arrivals.get(from) ?? []).filter((at) => now - at < BURST_MS);
    const may = recent.length < BURST;
    if (may) recent.push(now);
    this.#arrivals.set(from, recent);
    return may;
  }

  /** The time of a message is that of its arrival: the clocks of others may be wrong. */
  #add(message) {
    const dated = { ...message, at: Date.now() };
    this.messages.push(dated);
    if (this.messages.length > KEPT) this.messages.shift();
    this.emit("message", dated);
  }
}
