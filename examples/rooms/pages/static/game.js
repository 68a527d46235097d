import { parseJson, sendJson } from "./channel.js";
import { Emitter } from "./emitter.js";
import { clampPaddle, moveBall, newGame, step, winner } from "./pong.js";
import { randomId } from "./random.js";
import { every } from "./ticker.js";

const FRAME_MS = 1000 / 60;
const SEND_MS = 1000 / 30;
const INVITE_MS = 500;
const SILENCE_MS = 6000;
const LONGEST_STEP_S = 0.1;

/**
 * A game of pong over the unordered and unreliable channel `game`.
 *
 * The one who invites is the host: it alone moves the ball, and sends the state 30 times per second; the guest sends
 * its paddle as often. Each message replaces the earlier ones, so none needs to be repeated, and an old one is
 * dropped by its number. Each bears a time and echoes the last one received, from which both compute the round trip.
 *
 * Event `change` when `phase` or the score changes. Phases: idle, inviting, invited, playing, over.
 */
export class Game extends Emitter {
  phase = "idle";
  /** The id of the other player. */
  peer = null;
  /** 0: left, the host. 1: right, the guest. */
  side = 0;
  state = newGame();
  /** Why the last game ended, or null. */
  reason = null;
  /** Round trip in milliseconds, smoothed; null before the first echo. */
  latency = null;
  /** Share of the other side's messages that did not arrive. */
  loss = 0;
  #channels = new Map();
  #id = null;
  #stop = null;
  #paddle = clampPaddle(0);
  #sent = 0;
  #received = 0;
  #arrived = 0;
  #echo = null;
  #lastSent = 0;
  #lastHeard = 0;
  #lastFrame = 0;

  attach(peer, channel) {
    this.#channels.set(peer, channel);
    channel.addEventListener("message", ({ data }) => this.#receive(peer, parseJson(data)));
    channel.addEventListener("close", () => {
      if (this.#channels.get(peer) !== channel) return;
      this.#channels.delete(peer);
      if (this.peer === peer) this.#end("The connection to the other player has ended.");
    });
  }

  invite(peer) {
    if (this.phase === "inviting" || this.phase === "playing" || !this.#channels.has(peer)) return;
    this.#start(peer, randomId(), 0, "inviting");
  }

  accept() {
    if (this.phase !== "invited") return;
    this.#set("playing");
  }

  /** Ends the game, the invitation or the display of the result. */
  quit() {
    if (this.phase === "idle") return;
    for (let i = 0; i < 3; i += 1) this.#send("end"); // the channel may lose one
    this.#end(null);
  }

  /** Moves the own paddle; `y` is in units of the table. */
  setPaddle(y) {
    this.#paddle = clampPaddle(y);
    this.state.paddles[this.side] = this.#paddle;
  }

  get paddle() {
    return this.#paddle;
  }

  #start(peer, id, side, phase) {
    this.#stop?.();
    Object.assign(this, { peer, side, state: newGame(), reason: null, latency: null, loss: 0 });
    this.#id = id;
    this.#sent = this.#received = this.#arrived = 0;
    this.#echo = null;
    this.#lastHeard = this.#lastFrame = performance.now();
    this.setPaddle(this.state.paddles[side]);
    this.#stop = every(FRAME_MS, () => this.#frame());
    this.#set(phase);
  }

  #end(reason) {
    this.#stop?.();
    this.#stop = null;
    this.#id = null;
    this.peer = null;
    this.reason = reason;
    this.#set("idle");
  }

  #set(phase) {
    this.phase = phase;
    this.emit("change");
  }

  #frame() {
    const now = performance.now();
    const seconds = Math.min((now - this.#lastFrame) / 1000, LONGEST_STEP_S);
    this.#lastFrame = now;
    if (this.phase === "playing") this.#move(seconds);
    if (this.phase === "playing" && now - this.#lastHeard > SILENCE_MS) {
      this.#end("The other player does not respond.");
      return;
    }
    const pace = this.phase === "inviting" ? INVITE_MS : SEND_MS;
    if (this.phase === "invited" || now - this.#lastSent < pace - FRAME_MS / 2) return;
    this.#lastSent = now;
    if (this.phase === "inviting") this.#send("invite");
    else if (this.side === 0) this.#send("state", this.#shared());
    else this.#send("paddle", { paddle: this.#paddle });
  }

  #move(seconds) {
    if (this.side === 1) {
      if (this.state.pause <= 0) moveBall(this.state.ball, seconds);
      return;
    }
    const before = String(this.state.score);
    step(this.state, seconds);
    if (winner(this.state) >= 0) this.#set("over");
    else if (String(this.state.score) !== before) this.emit("change");
  }

  #shared() {
    const { ball, paddles, score, pause } = this.state;
    return { ball, paddle: paddles[0], score, pause };
  }

  #send(type, more = {}) {
    const now = performance.now();
    const echo = this.#echo && { at: this.#echo.at, held: now - this.#echo.received };
    this.#sent += 1;
    sendJson(this.#channels.get(this.peer), { type, game: this.#id, n: this.#sent, at: now, echo, ...more });
  }

  #receive(peer, message) {
    if (!message || typeof message.game !== "string") return;
    if (message.type === "invite" && message.game !== this.#id) {
      // Also a new invitation after a game; during a game, further ones wait until it has ended.
      if (this.phase === "idle" || this.phase === "over") this.#start(peer, message.game, 1, "invited");
      return;
    }
    if (peer !== this.peer || message.game !== this.#id || !Number.isSafeInteger(message.n)) return;
    if (message.type === "end") {
      this.#end(this.phase === "inviting" ? "The invitation was declined." : "The other player has left the game.");
      return;
    }
    this.#measure(message);
    if (this.side === 0 && message.type === "paddle") this.#takePaddle(message);
    if (this.side === 1 && message.type === "state") this.#takeState(message);
  }

  #takePaddle({ paddle }) {
    if (this.phase === "inviting") this.#set("playing");
    if (Number.isFinite(paddle)) this.state.paddles[1] = clampPaddle(paddle);
  }

  #takeState({ ball, paddle, score, pause }) {
    const numbers = [ball?.x, ball?.y, ball?.vx, ball?.vy, paddle, pause, score?.[0], score?.[1]];
    if (this.phase !== "playing" || !numbers.every(Number.isFinite)) return;
    const before = String(this.state.score);
    this.state = { ball, pause, score, paddles: [clampPaddle(paddle), this.#paddle] };
    // The message is half a round trip old.
    if (pause <= 0 && this.latency !== null) moveBall(this.state.ball, Math.min(this.latency / 2000, LONGEST_STEP_S));
    if (winner(this.state) >= 0) this.#set("over");
    else if (String(score) !== before) this.emit("change");
  }

  /** Takes time and number of a message; an old one measures, too, but does not count as the newest. */
  #measure({ n, at, echo }) {
    const now = performance.now();
    this.#lastHeard = now;
    this.#arrived += 1;
    if (n > this.#received) {
      this.#received = n;
      this.#echo = { at, received: now };
    }
    this.loss = Math.max(0, 1 - this.#arrived / this.#received);
    const roundTrip = now - echo?.at - echo?.held;
    if (roundTrip >= 0) this.latency = this.latency === null ? roundTrip : this.latency * 0.9 + roundTrip * 0.1;
  }
}
