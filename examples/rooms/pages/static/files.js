import { parseJson, sendJson, writable } from "./channel.js";
import { Emitter } from "./emitter.js";
import { Limit } from "./limit.js";
import { randomId } from "./random.js";
import { Store, hashFile } from "./store.js";
import { cleanFileName, isolate } from "./text.js";

const BLOCK = 1 << 20;
const CHUNK = 1 << 16;
/** Sent but not yet written by the receiver: bounds the receiver's memory. */
const WINDOW = 16 << 20;
const ACKNOWLEDGE = 1 << 20;
/** Transfers with one participant that are not over, in each direction. */
const MOST_PER_PEER = 20;
/** All transfers; when there are more, the oldest ones without a file disappear. */
const MOST = 200;
/** A participant may offer this many files in this time; further ones are declined. */
const OFFERS = { most: 40, ms: 60_000 };
const ID = /^[\w-]{1,64}$/;
const SHA256 = /^[0-9a-f]{64}$/;

/**
 * File transfers over the channels `files`.
 *
 * Messages, each with the random `id` of the transfer: `offer` (name, size) → `accept` or `decline` → `data`
 * (offset), then the bytes as binary messages, with `ack` (offset) in the other direction → `done` (sha256) →
 * `verified` (ok). On a new channel to the same participant, the sender repeats its offers, and `resume` (offset)
 * continues a transfer; `cancel` ends it. One file at a time is in transit per channel and direction, so binary
 * messages need no header.
 *
 * Event `change` with a transfer: `{id, peer, peerName, name, size, offset, state, outgoing, sha256, seconds, problem,
 * url}`; its state is offered, waiting, running, paused, checking, complete, declined, cancelled or failed. `offset`
 * counts the bytes that the receiver has written, `peerName` is for display only. Event `removed` with a transfer that
 * is no longer kept.
 */
export class Files extends Emitter {
  transfers = new Map();
  #channels = new Map();
  /** The transfer whose bytes arrive on a channel. */
  #arriving = new WeakMap();
  #names;
  #limit = new Limit(OFFERS);

  /** `names` gives the name of a participant. */
  constructor(names) {
    super();
    this.#names = names;
  }

  /** Uses a channel to a participant, and continues what an earlier channel left unfinished. */
  attach(peer, channel) {
    this.#channels.set(peer, channel);
    channel.addEventListener("message", ({ data }) => {
      if (typeof data === "string") this.#control(peer, channel, parseJson(data));
      else this.#bytes(channel, data);
    });
    channel.addEventListener("close", () => {
      if (this.#channels.get(peer) === channel) this.#channels.delete(peer);
      this.#interrupted(channel);
    });
    for (const transfer of this.#with(peer)) {
      if (transfer.channel === channel) continue;
      this.#interrupt(transfer); // a connection that this side closed may report it late
      transfer.channel = channel;
      this.#goOn(transfer);
    }
  }

  /** Whether a transfer has begun and is not over. */
  get isBusy() {
    return [...this.transfers.values()].some((transfer) => transfer.state !== "offered" && !isOver(transfer));
  }

  /** Ends the transfers with participants who are not in this set of ids: they have left the room. */
  retain(ids) {
    this.#endAll((transfer) => !ids.has(transfer.peer), ({ peerName }) => isolate(peerName));
  }

  /** Ends all transfers, because this participant leaves the room. */
  leave() {
    this.#endAll(() => true, () => "You");
  }

  /** Offers a file to a participant; returns the transfer. */
  send(peer, file) {
    const channel = this.#channels.get(peer);
    if (!channel) throw new Error("There is no connection to this participant.");
    if (!this.#hasRoom(peer, true)) {
      throw new Error(
        `There can be ${MOST_PER_PEER} open transfers to a participant, and ${MOST} in all. Cancel or remove some.`,
      );
    }
    const transfer = this.#add({
      id: randomId(),
      peer,
      channel,
      name: cleanFileName(file.name ?? "file"),
      size: file.size,
      outgoing: true,
      state: "offered",
      sent: 0,
      file,
    });
    this.#offer(transfer);
    return transfer;
  }

  async accept(id) {
    const transfer = this.transfers.get(id);
    if (transfer?.state !== "offered" || transfer.outgoing) return;
    this.#set(transfer, { state: "waiting" });
    try {
      const store = await Store.open(transfer.size);
      if (isOver(transfer)) store.discard();
      else transfer.store = store;
    } catch (error) {
      this.#fail(transfer, `The file is not accepted: ${error.message}.`, true);
    }
    // If the connection was lost meanwhile, the next one brings the acceptance.
    if (transfer.store && !isOver(transfer)) sendJson(transfer.channel, { type: "accept", id, offset: 0 });
  }

  decline(id) {
    const transfer = this.transfers.get(id);
    if (transfer?.state !== "offered") return;
    sendJson(transfer.channel, { type: transfer.outgoing ? "cancel" : "decline", id });
    this.#end(transfer, transfer.outgoing ? "cancelled" : "declined");
  }

  cancel(id) {
    const transfer = this.transfers.get(id);
    if (!transfer || isOver(transfer)) return;
    sendJson(transfer.channel, { type: "cancel", id });
    this.#end(transfer, "cancelled");
  }

  /** Removes a transfer that is over, and the received file. */
  remove(id) {
    const transfer = this.transfers.get(id);
    if (!transfer || !isOver(transfer)) return;
    this.transfers.delete(id);
    if (transfer.url) URL.revokeObjectURL(transfer.url);
    transfer.blob = null;
    transfer.store?.discard();
    this.emit("removed", transfer);
  }

  #control(peer, channel, message) {
    if (!ID.test(message?.id)) return;
    if (message.type === "offer") {
      this.#offered(peer, channel, message);
      return;
    }
    const transfer = this.transfers.get(message.id);
    const { type } = message;
    if (!transfer || transfer.peer !== peer || isOver(transfer)) {
      // The other side may have missed the end.
      if (type === "resume") sendJson(channel, { type: "cancel", id: message.id });
      return;
    }
    if (type === "cancel") this.#end(transfer, "cancelled");
    else if (transfer.outgoing) this.#responded(transfer, channel, message);
    else if (type === "data") this.#begin(transfer, channel, message.offset);
    else if (type === "done" && transfer.state === "running") this.#finish(transfer, message.sha256);
  }

  #offered(peer, channel, { id, name, size }) {
    // A repeated offer, an echo of an own one, or nonsense.
    if (this.transfers.has(id) || typeof name !== "string" || !Number.isSafeInteger(size) || size < 0) return;
    if (!this.#hasRoom(peer, false) || !this.#limit.admits(peer)) {
      sendJson(channel, { type: "decline", id });
      return;
    }
    this.#add({
      id,
      peer,
      channel,
      name: cleanFileName(name),
      size,
      outgoing: false,
      state: "offered",
      received: 0,
    });
  }

  // The sending side.

  #offer({ channel, id, name, size }) {
    sendJson(channel, { type: "offer", id, name, size });
  }

  #responded(transfer, channel, { type, offset, ok }) {
    const { state, size, sent } = transfer;
    if (type === "ack") this.#acknowledged(transfer, offset);
    else if (type === "decline" && state === "offered") this.#end(transfer, "declined");
    else if (type === "verified" && sent === size && (state === "checking" || state === "paused")) {
      this.#verified(transfer, ok === true);
    } else if (type === "accept" && state === "offered") this.#queue(transfer, channel, 0);
    else if (type === "resume" && (state === "paused" || state === "offered")) this.#queue(transfer, channel, offset);
  }

  /** Lets a transfer wait for its turn, from an offset that the receiver names. */
  #queue(transfer, channel, offset) {
    if (!Number.isSafeInteger(offset) || offset < transfer.offset || offset > transfer.sent) {
      this.#fail(transfer, "The receiver asks for a part of the file that does not fit what was sent.", true);
      return;
    }
    transfer.channel = channel;
    transfer.started ??= performance.now();
    transfer.hash ??= hashFile(transfer.file, transfer.ended.signal);
    transfer.hash.catch((error) => this.#fail(transfer, `The SHA-256 is not computed: ${error.message}.`, true));
    this.#set(transfer, { state: "waiting", offset });
    this.#sendNext(channel);
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
        if (!goesOn()) return;
        const chunk = new Uint8Array(bytes, at, Math.min(CHUNK, bytes.byteLength - at));
        channel.send(chunk);
        transfer.sent = Math.max(transfer.sent, offset + at + chunk.byteLength);
      }
      offset += bytes.byteLength;
    }
    if (!goesOn()) return;
    this.#set(transfer, { state: "checking" });
    this.#sendNext(channel);
    transfer.sha256 = await transfer.hash;
    sendJson(channel, { type: "done", id, sha256: transfer.sha256 });
  }

  /** Waits until the receiver has written enough of what was sent. */
  async #window(transfer, channel, offset) {
    while (offset - transfer.offset > WINDOW && transfer.state === "running" && channel.readyState === "open") {
      await new Promise((resolve) => (transfer.wake = resolve));
    }
  }

  #acknowledged(transfer, offset) {
    if (!Number.isSafeInteger(offset) || offset <= transfer.offset || offset > transfer.sent) return;
    this.#set(transfer, { offset });
    transfer.wake?.();
  }

  #verified(transfer, ok) {
    if (ok) this.#end(transfer, "complete", { offset: transfer.size });
    else this.#fail(transfer, "The receiver computed another SHA-256. Send the file again.");
  }

  // The receiving side.

  #begin(transfer, channel, offset) {
    const { state, store, received } = transfer;
    if (!store || offset !== received || (state !== "waiting" && state !== "paused")) return;
    this.#arriving.set(channel, transfer);
    transfer.started ??= performance.now();
    transfer.channel = channel;
    this.#set(transfer, { state: "running" });
  }

  #bytes(channel, buffer) {
    const transfer = this.#arriving.get(channel);
    if (transfer?.state !== "running" || transfer.channel !== channel) return;
    transfer.received += buffer.byteLength;
    if (transfer.received > transfer.size) {
      this.#fail(transfer, "The sender sent more than it offered.", true);
      return;
    }
    // After a resumption, what was received before may not be written yet either.
    if (transfer.received - transfer.offset > 3 * WINDOW) {
      this.#fail(transfer, "The sender does not wait until its data is written.", true);
      return;
    }
    transfer.store.write(buffer).then(
      (offset) => this.#written(transfer, offset),
      (error) => this.#fail(transfer, `The file cannot be stored: ${error.message}.`, true),
    );
  }

  #written(transfer, offset) {
    if (isOver(transfer)) return;
    const before = Math.floor(transfer.offset / ACKNOWLEDGE);
    transfer.offset = offset;
    if (Math.floor(offset / ACKNOWLEDGE) === before && offset < transfer.size) return;
    sendJson(transfer.channel, { type: "ack", id: transfer.id, offset });
    this.#set(transfer, {});
  }

  async #finish(transfer, sha256) {
    if (transfer.received !== transfer.size || !SHA256.test(sha256)) {
      this.#fail(transfer, "The sender ended the transfer before the file was complete.", true);
      return;
    }
    this.#set(transfer, { state: "checking" });
    let result;
    try {
      result = await transfer.store.finish();
    } catch (error) {
      this.#fail(transfer, `The file cannot be stored: ${error.message}.`, true);
      return;
    }
    if (isOver(transfer)) return;
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

  // Both sides.

  /** Continues a transfer on its new channel, or repeats what the other side may have missed. */
  #goOn(transfer) {
    const { id, state, outgoing, received, store, channel } = transfer;
    if (outgoing && state === "offered") this.#offer(transfer);
    else if (outgoing) return; // the receiver says from where
    else if (state === "complete") sendJson(channel, { type: "verified", id, ok: true });
    else if (state === "paused" && store) sendJson(channel, { type: "resume", id, offset: received });
    else if (state === "declined") sendJson(channel, { type: "decline", id });
    else if (isOver(transfer)) sendJson(channel, { type: "cancel", id });
  }

  /** Ends some transfers; `who` names the participant who has left. */
  #endAll(isMeant, who) {
    for (const transfer of this.transfers.values()) {
      if (isOver(transfer) || !isMeant(transfer)) continue;
      if (transfer.state === "offered") this.#end(transfer, "cancelled");
      else this.#fail(transfer, `${who(transfer)} left the room before the transfer was complete.`);
    }
  }

  #interrupted(channel) {
    for (const transfer of this.transfers.values()) if (transfer.channel === channel) this.#interrupt(transfer);
  }

  #interrupt(transfer) {
    const { state, outgoing, store } = transfer;
    if (isOver(transfer) || state === "offered" || state === "paused") return;
    const hasAllBytes = !outgoing && state === "checking";
    const isOpening = !outgoing && state === "waiting" && !store;
    if (!hasAllBytes && !isOpening) this.#set(transfer, { state: "paused" });
    transfer.wake?.();
  }

  #fail(transfer, problem, tell = false) {
    if (isOver(transfer)) return;
    if (tell) sendJson(transfer.channel, { type: "cancel", id: transfer.id });
    this.#end(transfer, "failed", { problem });
  }

  #end(transfer, state, more = {}) {
    if (isOver(transfer)) return;
    const seconds = transfer.started ? (performance.now() - transfer.started) / 1000 : 0;
    if (state !== "complete") {
      transfer.store?.discard();
      transfer.store = null;
    }
    transfer.file = null;
    this.#set(transfer, { ...more, state, seconds });
    transfer.ended.abort();
    transfer.wake?.();
    if (transfer.outgoing) this.#sendNext(transfer.channel);
  }

  #with(peer) {
    return [...this.transfers.values()].filter((transfer) => transfer.peer === peer);
  }

  /** Whether one more transfer with a participant is within the bounds. */
  #hasRoom(peer, outgoing) {
    const open = this.#with(peer).filter((transfer) => transfer.outgoing === outgoing && !isOver(transfer));
    if (open.length >= MOST_PER_PEER) return false;
    if (this.transfers.size < MOST) return true;
    const oldest = [...this.transfers.values()].find((transfer) => isOver(transfer) && !transfer.url);
    if (oldest) this.remove(oldest.id);
    return oldest !== undefined;
  }

  #add(transfer) {
    const ended = new AbortController();
    const added = { offset: 0, seconds: 0, sha256: null, peerName: this.#names(transfer.peer), ended, ...transfer };
    this.transfers.set(added.id, added);
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
