import { Emitter } from "./emitter.js";

/** Errors after which a new attempt cannot succeed without the user. */
const FINAL = new Set(["no-such-room", "room-full", "mesh-full", "bad-name", "bad-message", "bad-order"]);

const FIRST_RETRY_MS = 500;
const LAST_RETRY_MS = 10_000;

/**
 * The WebSocket to the server of the room. It joins, and after a loss it joins again: as the same participant, if the
 * server still keeps the place.
 *
 * Each message of the server is emitted under its `type`. Further events: `lost` when the socket ended and a new
 * attempt follows; `ended` with a sentence when none follows.
 */
export class Signalling extends Emitter {
  joined = false;
  #url;
  #join = null;
  /** The key with which the server recognizes this participant. */
  #resume = null;
  #socket = null;
  #wasJoined = false;
  #retryTimer = 0;
  #retryMs = FIRST_RETRY_MS;

  constructor(url) {
    super();
    this.#url = url;
  }

  /** Joins with `{room, name}`; resolves when this has happened, and rejects with a sentence if it cannot. */
  connect(join) {
    this.close();
    this.#join = { type: "join", kind: "browser", ...join };
    this.#resume = null;
    this.#wasJoined = false;
    return new Promise((resolve, reject) => {
      this.addEventListener("joined", resolve, { once: true });
      this.addEventListener("ended", (event) => reject(new Error(event.detail)), { once: true });
      this.#open();
    });
  }

  /** Sends a message. While there is no connection it is lost, and so may be the last ones before. */
  send(message) {
    if (this.joined) this.#socket.send(JSON.stringify(message));
  }

  /** Replaces a socket that may be dead without having been closed: after a change of the network. */
  reconnect() {
    if (!this.#join) return;
    clearTimeout(this.#retryTimer);
    this.#abandon();
    this.#open();
  }

  close() {
    this.send({ type: "leave" });
    this.#join = null;
    clearTimeout(this.#retryTimer);
    this.#abandon();
  }

  #open() {
    const socket = new WebSocket(this.#url);
    this.#socket = socket;
    socket.addEventListener("open", () => socket.send(JSON.stringify({ ...this.#join, resume: this.#resume })));
    socket.addEventListener("message", (event) => {
      if (socket === this.#socket) this.#receive(event.data);
    });
    socket.addEventListener("close", () => {
      if (socket === this.#socket) this.#closed();
    });
  }

  /** Forgets the socket, so that its last events change nothing. */
  #abandon() {
    this.#socket?.close();
    this.#socket = null;
    this.joined = false;
  }

  #closed() {
    this.joined = false;
    if (!this.#wasJoined) {
      this.#end("The server of the room does not respond. Check your connection and try again.");
      return;
    }
    this.emit("lost");
    // Not all at the same moment, if it is the server that was away.
    this.#retryTimer = setTimeout(() => this.#open(), this.#retryMs * (0.75 + Math.random() / 2));
    this.#retryMs = Math.min(this.#retryMs * 2, LAST_RETRY_MS);
  }

  #receive(text) {
    const message = JSON.parse(text);
    if (message.type === "joined") {
      this.joined = true;
      this.#resume = message.resume;
      this.#wasJoined = true;
      this.#retryMs = FIRST_RETRY_MS;
    }
    if (message.type === "error" && !this.joined && (FINAL.has(message.code) || !this.#wasJoined)) {
      this.#end(message.message);
      return;
    }
    this.emit(message.type, message);
  }

  #end(reason) {
    this.#join = null;
    this.#abandon();
    this.emit("ended", reason);
  }
}
