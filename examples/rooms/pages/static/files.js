import { parseJson, sendJson, writable } from "./channel.js";
import { Emitter } from "./emitter.js";
import { randomId } from "./random.js";
import { Store, hashFile } from "./store.js";

const BLOCK = 1 << 20;
const CHUNK = 1 << 16;
/** Sent but not yet written by the receiver: bounds the receiver's memory. */
const WINDOW = 16 << 20;
const ACKNOWLEDGE = 1 << 20;

/**
 * File transfers over the channels `files`.
 *
 * Messages, each with the random `id` of the transfer: `offer` (name, size) → `accept` or `decline` → `data`
 * (offset), then the bytes as binary messages, with `ack` (offset) in the other direction → `done` (sha256) →
 * `verified` (ok). `resume` (offset) on a new channel continues a transfer; `cancel` ends it. One file at a time is in
 * transit per channel and direction, so binary messages need no header.
 *
 * Event `change` with a transfer: `{id, peer, name, size, offset, state, outgoing, sha256, seconds, problem, url}`;
 * its state is offered, waiting, running, paused, checking, complete, declined, cancelled or failed.
 */
export class Files extends Emitter {
  transfers = new Map();
  #channels = new Map();
  /** The id of the transfer whose bytes arrive on a channel. */
  #arriving = new WeakMap();
  #names;

  /** `names` gives the name of a participant. */
  constructor(names) {
    super();
    this.#names = names;
  }

  /** Uses a channel to a participant, and continues what an earlier channel left unfinished. */
  attach(peer, channel) {
    const name = this.#names(peer);
    this.#channels.set(peer, channel);
    channel.addEventListener("message", ({ data }) => {
      if (typeof data === "string") this.#control(peer, channel, parseJson(data));
      else this.#bytes(channel, data);
    });
    channel.addEventListener("close", () => {
      if (this.#channels.get(peer) === channel) this.#channels.delete(peer);
      this.#interrupted(channel);
    });
    for (const transfer of this.transfers.values()) {
      if (transfer.channel.readyState === "open" || transfer.peerName !== name) continue;
      // The id of a participant may be new after a loss; that of a transfer cannot be guessed.
      Object.assign(transfer, { peer, channel });
      if (!transfer.outgoing) this.#goOn(transfer);
    }
  }

  /** Offers a file to a participant; returns the transfer. */
  send(peer, file) {
    const channel = this.#channels.get(peer);
    if (!channel) throw new Error("There is no connection to this participant.");
    const transfer = this.#add({
      id: randomId(),
      peer,
      peerName: this.#names(peer),
      channel,
      name: file.name ?? "file",
      size: file.size,
      outgoing: true,
      state: "offered",
      file,
    });
    sendJson(channel, { type: "offer", id: transfer.id, name: transfer.name, size: file.size });
    return transfer;
  }

  async accept(id) {
    const transfer = this.transfers.get(id);
    if (transfer?.state !== "offered" || transfer.outgoing) return;
    this.#set(transfer, { state: "waiting" });
    try {
      transfer.store = await Store.open(transfer.size);
      sendJson(transfer.channel, { type: "accept", id, offset: 0 });
    } catch (error) {
      this.#fail(transfer, `The file is not accepted: ${error.message}.`, true);
    }
  }

  decline(id) {
    const transfer = this.transfers.get(id);
    if (transfer?.state !== "offered") return;
    sendJson(transfer.channel, { type: transfer.outgoing ? "cancel" : "decline", id });
    this.#set(transfer, { state: transfer.outgoing ? "cancelled" : "declined" });
  }

  cancel(id) {
    const transfer = this.transfers.get(id);
    if (!transfer || isOver(transfer)) return;
    sendJson(transfer.channel, { type: "cancel", id });
    this.#end(transfer, "cancelled");
  }

  #control(peer, channel, message) {
    if (message?.type === "offer") {
      this.#offered(peer, channel, message);
      return;
    }
    const transfer = this.transfers.get(message?.id);
    if (!transfer || transfer.peer !== peer || isOver(transfer)) return;
    const { type } = message;
    if (type === "cancel") this.#end(transfer, "cancelled");
    else if (transfer.outgoing) this.#answered(transfer, channel, message);
    else if (type === "data" && message.offset === transfer.received) this.#begin(transfer, channel);
    else if (type === "done" && transfer.state === "running") this.#finish(transfer, message.sha256);
  }

  #offered(peer, channel, { id, name, size }) {
    // An echo of an own offer, or nonsense.
    if (typeof id !== "string" || this.transfers.has(id) || !Number.isSafeInteger(size) || size < 0) return;
    this.#add({
      id,
      peer,
      peerName: this.#names(peer),
      channel,
      name: String(name).slice(0, 255) || "file",
      size,
      outgoing: false,
      state: "offered",
      received: 0,
    });
  }

  // The sending side.

  #answered(transfer, channel, { type, offset, ok }) {
    if (type === "decline") this.#end(transfer, "declined");
    else if (type === "ack") this.#acknowledged(transfer, offset);
    else if (type === "verified") this.#verified(transfer, ok);
    else if ((type === "accept" || type === "resume") && offset <= transfer.size) {
      transfer.channel = channel;
      transfer.started ??= performance.now();
      transfer.hash ??= hashFile(transfer.file);
      this.#set(transfer, { state: "waiting", offset });
      this.#sendNext(channel);
    }
  }

  /** Starts the next transfer that waits for its turn on a channel. */
  #sendNext(channel) {
    const mine = [...this.transfers.values()].filter((t) => t.outgoing && t.channel === channel);
    if (mine.some(({ state }) => state === "running")) return;
    const next = mine.find(({ state }) => state === "waiting");
    if (!next) return;
    this.#set(next, { state: "running" });
    this.#pump(next, channel).catch((error) => {
      // A closed channel pauses the transfer; anything else is the file's fault.
      if (channel.readyState === "open") this.#fail(next, `The file cannot be read: ${error.message}.`, true);
    });
  }

  async #pump(transfer, channel) {
    const { file, id } = transfer;
    const read = (offset) => file.slice(offset, offset + BLOCK).arrayBuffer();
    const goesOn = () => transfer.state === "running" && transfer.channel === channel;
    let { offset } = transfer;
    sendJson(channel, { type: "data", id, offset });
    let block = read(offset);
    while (offset < file.size && goesOn()) {
      const bytes = await block;
      block = read(offset + bytes.byteLength); // read ahead
      await this.#window(transfer, channel, offset);
      for (let at = 0; at < bytes.byteLength && goesOn(); at += CHUNK) {
        await writable(channel);
        channel.send(new Uint8Array(bytes, at, Math.min(CHUNK, bytes.byteLength - at)));
      }
      offset += bytes.byteLength;
    }
    if (!goesOn()) return;
    this.#set(transfer, { state: "checking" });
    this.#sendNext(channel);
    sendJson(channel, { type: "done", id, sha256: (transfer.sha256 = await transfer.hash) });
  }

  /** Waits until the receiver has written enough of what was sent. */
  async #window(transfer, channel, offset) {
    while (offset - transfer.offset > WINDOW && transfer.state === "running" && channel.readyState === "open") {
      await new Promise((resolve) => (transfer.wake = resolve));
    }
  }

  #acknowledged(transfer, offset) {
    if (!(offset > transfer.offset && offset <= transfer.size)) return;
    this.#set(transfer, { offset });
    transfer.wake?.();
  }

  #verified(transfer, ok) {
    if (ok) this.#end(transfer, "complete", { offset: transfer.size });
    else this.#fail(transfer, "The receiver computed another SHA-256. Send the file again.");
  }

  // The receiving side.

  #begin(transfer, channel) {
    this.#arriving.set(channel, transfer);
    transfer.started ??= performance.now();
    transfer.channel = channel;
    this.#set(transfer, { state: "running" });
  }

  #bytes(channel, buffer) {
    const transfer = this.#arriving.get(channel);
    if (transfer?.state !== "running") return;
    transfer.received += buffer.byteLength;
    if (transfer.received > transfer.size) {
      this.#fail(transfer, "The sender sent more than it offered.", true);
      return;
    }
    transfer.store.write(buffer).then(
      (offset) => this.#written(transfer, offset),
      (error) => this.#fail(transfer, `The file cannot be stored: ${error.message}.`, true),
    );
  }

  #written(transfer, offset) {
    const before = Math.floor(transfer.offset / ACKNOWLEDGE);
    transfer.offset = offset;
    if (Math.floor(offset / ACKNOWLEDGE) === before && offset < transfer.size) return;
    sendJson(transfer.channel, { type: "ack", id: transfer.id, offset });
    this.#set(transfer, {});
  }

  async #finish(transfer, sha256) {
    this.#set(transfer, { state: "checking" });
    const result = await transfer.store.finish();
    transfer.sha256 = result.sha256;
    const ok = result.file.size === transfer.size && result.sha256 === sha256;
    sendJson(transfer.channel, { type: "verified", id: transfer.id, ok });
    if (!ok) {
      this.#fail(transfer, "The SHA-256 differs from the sender's. Ask for the file again.");
      return;
    }
    transfer.blob = result.file;
    this.#end(transfer, "complete", { url: URL.createObjectURL(result.file) });
  }

  /** Asks for the rest of a transfer on its new channel, or reports again that nothing is missing. */
  #goOn({ id, state, received, channel }) {
    if (state === "complete") sendJson(channel, { type: "verified", id, ok: true });
    if (state === "paused") sendJson(channel, { type: "resume", id, offset: received });
  }

  // Both sides.

  #interrupted(channel) {
    for (const transfer of this.transfers.values()) {
      if (transfer.channel !== channel || isOver(transfer)) continue;
      const hasAllBytes = !transfer.outgoing && transfer.state === "checking";
      if (transfer.state === "offered") this.#end(transfer, "cancelled");
      else if (!hasAllBytes) this.#set(transfer, { state: "paused" });
      transfer.wake?.();
    }
  }

  #fail(transfer, problem, tell = false) {
    if (isOver(transfer)) return;
    if (tell) sendJson(transfer.channel, { type: "cancel", id: transfer.id });
    this.#end(transfer, "failed", { problem });
  }

  #end(transfer, state, more = {}) {
    const seconds = transfer.started ? (performance.now() - transfer.started) / 1000 : 0;
    if (state !== "complete") transfer.store?.abort();
    transfer.file = null;
    this.#set(transfer, { ...more, state, seconds });
    transfer.wake?.();
    if (transfer.outgoing) this.#sendNext(transfer.channel);
  }

  #add(transfer) {
    this.transfers.set(transfer.id, { offset: 0, seconds: 0, sha256: null, ...transfer });
    const added = this.transfers.get(transfer.id);
    this.emit("change", added);
    return added;
  }

  #set(transfer, changes) {
    Object.assign(transfer, changes);
    this.emit("change", transfer);
  }
}

function isOver({ state }) {
  return state === "complete" || state === "declined" || state === "cancelled" || state === "failed";
}
