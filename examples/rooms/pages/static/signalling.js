import { Emitter } from "./emitter.js";

/** Errors after which a new attempt cannot succeed without the user. */
const FINAL = new Set(["no-such-room", "room-full", "mesh-full", "bad-name", "bad-message"]);

// The server accepts 50 messages at once and then 20 per second. These stay below it, so that the candidates of
// several connections that start together do not end the session.
const BURST = 40;
const PER_SECOND = 15;
const QUEUE = 500;

const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 10_000;

/**
 * The WebSocket to the server of the room. It joins, paces what it sends, and joins again after a loss.
 *
 * Each message of the server is emitted under its `type`. Further events: `lost` when the socket ended and a new
 * attempt follows; `ended` with a sentence when none follows.
 */
export class Signalling extends Emitter {
  #url;
  #join = null;
  #resume = null;
  #socket = null;
  #id = null;
  #queue = [];
  #tokens = BURST;
  #refilled = performance.now();
  #drainTimer = 0;
  #retryTimer = 0;
  #retryMs = FIRST_RETRY_MS;

  constructor(url) {
    super();
    this.#url = url;
  }

  /** Joins; resolves with the message `joined`, and rejects with the first error. */
  connect(join) {
    this.#join = join;
    return new Promise((resolve, reject) => {
      this.addEventListener("joined", (event) => resolve(event.detail), { once: true });
      this.addEventListener("ended", (event) => reject(new Error(event.detail)), { once: true });
      this.#open();
    });
  }

  get joined() {
    return this.#id !== null;
  }

  /** Sends a message as soon as the pace allows it. */
  send(message) {
    if (!this.#join || this.#queue.length >= QUEUE) return;
    this.#queue.push(JSON.stringify(message));
    this.#drain();
  }

  /** Replaces a socket that may be dead without having been closed: after a change of the network. */
  reconnect() {
    if (!this.#join) return;
    clearTimeout(this.#retryTimer);
    this.#abandon();
    this.#open();
  }

  close() {
    if (this.#socket?.readyState === WebSocket.OPEN) this.#socket.send('{"type":"leave"}');
    this.#join = null;
    this.#resume = null;
    clearTimeout(this.#retryTimer);
    this.#abandon();
    this.#queue = [];
  }

  #open() {
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.addEventListener("open", () => {
      // A server that gave a token lets its owner take over the same participant.
      const resume = this.#resume ? { resume: this.#resume } : {};
      socket.send(JSON.stringify({ type: "join", kind: "browser", ...this.#join, ...resume }));
    });
    socket.addEventListener("message", (event) => this.#receive(event.data));
    socket.addEventListener("close", () => {
      if (socket !== this.#socket || !this.#join) return;
      this.#id = null;
      this.emit("lost");
      const wait = this.#retryMs * (0.75 + Math.random() / 2);
      this.#retryTimer = setTimeout(() => this.#open(), wait);
      this.#retryMs = Math.min(this.#retryMs * 2, LAST_RETRY_MS);
    });
  }

  /** Forgets the socket, so that its last events change nothing. */
  #abandon() {
    const socket = this.#socket;
    this.#socket = null;
    this.#id = null;
    socket?.close();
  }

  #receive(text) {
    if (!this.#join) return;
    let message;
    try {
      message = JSON.parse(text);
    } catch {
      return;
    }
    if (typeof message?.type !== "string") return;
    if (message.type === "joined") this.#joined(message);
    if (message.type === "error" && !this.joined && FINAL.has(message.code)) {
      this.#end(message.message);
      return;
    }
    if (message.type === "closing") {
      this.emit("notice", message.reason);
      return;
    }
    this.emit(message.type, message);
  }

  #joined(message) {
    // What was meant for others under an earlier identity cannot reach them any more.
    if (message.id !== this.#resume?.id) this.#queue = [];
    this.#id = message.id;
    this.#resume = message.resume ?? null;
    this.#retryMs = FIRST_RETRY_MS;
    this.#tokens = BURST;
    queueMicrotask(() => this.#drain());
  }

  #end(reason) {
    this.#join = null;
    this.#abandon();
    this.emit("ended", reason);
  }

  #drain() {
    clearTimeout(this.#drainTimer);
    if (!this.joined || this.#socket?.readyState !== WebSocket.OPEN) return;
    const now = performance.now();
    this.#tokens = Math.min(BURST, this.#tokens + ((now - this.#refilled) / 1000) * PER_SECOND);
    this.#refilled = now;
    while (this.#queue.length > 0 && this.#tokens >= 1) {
      this.#socket.send(this.#queue.shift());
      this.#tokens -= 1;
    }
    if (this.#queue.length > 0) this.#drainTimer = setTimeout(() => this.#drain(), 1000 / PER_SECOND);
  }
}
