import { parseJson, sendJson } from "./channel.js";
import { Emitter } from "./emitter.js";
import { Limit } from "./limit.js";
import { clampPaddle, isPossible, moveBall, newGame, step, winner } from "./pong.js";
import { randomId } from "./random.js";
import { every } from "./ticker.js";

const FRAME_MS = 1000 / 60;
const SEND_MS = 1000 / 30;
const INVITE_MS = 500;
const SILENCE_MS = 6000;
const LONGEST_STEP_S = 0.1;
const LONGEST_ID = 64;
/** How far the number of a message may be ahead of the last one. */
const LARGEST_GAP = 1000;
const LONGEST_ROUND_TRIP_MS = 60_000;
/** After a declined invitation, further ones of the same participant are declined for this time. */
const QUIET_MS = 15_000;
/** A participant may invite this often in this time; further invitations are ignored. */
const INVITATIONS = { most: 5, ms: 30_000 };

/**
 * A game of pong over the unordered and unreliable channel `game`.
 *
 * The player who invites is the host. Only the host moves the ball, and it sends the state 30 times per second; the
 * guest sends its paddle as often. Each message replaces the earlier ones, so none is repeated, and an old one is
 * dropped by its number. Each contains a time and echoes the last one received, from which both compute the round trip.
 * `end` may be lost, too, so it is sent again in response to a message of a game that has ended.
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
  /** Until when the invitations of a participant are ignored. */
  #quiet = new Map();
  #limit = new Limit(INVITATIONS);

  attach(peer, channel) {
    this.#channels.set(peer, channel);
    channel.addEventListener("message", ({ data }) => this.#receive(peer, parseJson(data)));
    channel.addEventListener("close", () => {
      // A new connection may follow; otherwise, the silence ends the game.
      if (this.#channels.get(peer) === channel) this.#channels.delete(peer);
    });
  }

  /** Ends a game with a participant who is not in this set of ids. */
  retain(ids) {
    if (this.peer && !ids.has(this.peer)) this.#end("The other player has left the room.");
  }

  /** Ends the game, because this participant leaves the room. */
  leave() {
    if (this.peer) this.#end("You have left the room.");
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
    if (this.phase === "invited") this.#quiet.set(this.peer, performance.now() + QUIET_MS);
    this.#sendEnd(this.peer, this.#id);
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
    if ((this.phase === "playing" || this.phase === "invited") && now - this.#lastHeard > SILENCE_MS) {
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

  #sendEnd(peer, game) {
    sendJson(this.#channels.get(peer), { type: "end", game });
  }

  #receive(peer, message) {
    if (typeof message?.game !== "string" || message.game.length > LONGEST_ID) return;
    if (peer !== this.peer || message.game !== this.#id) {
      if (message.type === "invite") this.#invited(peer, message.game);
      else if (message.type !== "end") this.#sendEnd(peer, message.game);
      return;
    }
    if (message.type === "end") {
      this.#end(this.phase === "inviting" ? "The invitation was declined." : "The other player has left the game.");
      return;
    }
    const isNewest = this.#measure(message);
    if (!isNewest) return;
    if (this.side === 0 && message.type === "paddle") this.#takePaddle(message);
    if (this.side === 1 && message.type === "state") this.#takeState(message);
  }

  #invited(peer, id) {
    // A new invitation may follow a game; during a game, it waits until the game has ended.
    if (this.phase !== "idle" && this.phase !== "over") return;
    if (performance.now() < (this.#quiet.get(peer) ?? 0)) this.#sendEnd(peer, id);
    else if (this.#limit.admits(peer)) this.#start(peer, id, 1, "invited");
  }

  #takePaddle({ paddle }) {
    if (this.phase === "inviting") this.#set("playing");
    if (Number.isFinite(paddle)) this.state.paddles[1] = clampPaddle(paddle);
  }

  #takeState({ ball, paddle, score, pause }) {
    if (this.phase !== "playing" || !Number.isFinite(paddle) || !isPossible({ ball, score, pause })) return;
    const before = String(this.state.score);
    const { x, y, vx, vy } = ball;
    this.state = { ball: { x, y, vx, vy }, pause, score, paddles: [clampPaddle(paddle), this.#paddle] };
    // The message is half a round trip old.
    if (pause <= 0 && this.latency !== null) moveBall(this.state.ball, Math.min(this.latency / 2000, LONGEST_STEP_S));
    if (winner(this.state) >= 0) this.#set("over");
    else if (String(score) !== before) this.emit("change");
  }

  /** Takes time and number of a message; returns whether it is the newest. An old one counts as received only. */
  #measure({ n, at, echo }) {
    const isNumber = Number.isSafeInteger(n) && n > 0 && n <= this.#received + LARGEST_GAP;
    if (!isNumber || !Number.isFinite(at)) return false;
    const now = performance.now();
    this.#lastHeard = now;
    this.#arrived += 1;
    this.#measureRoundTrip(now - echo?.at - echo?.held);
    const isNewest = n > this.#received;
    if (isNewest) {
      this.#received = n;
      this.#echo = { at, received: now };
    }
    this.loss = Math.min(Math.max(0, 1 - this.#arrived / this.#received), 1);
    return isNewest;
  }

  #measureRoundTrip(time) {
    if (!(time >= 0 && time <= LONGEST_ROUND_TRIP_MS)) return; // also if it is no number
    this.latency = this.latency === null ? time : this.latency * 0.9 + time * 0.1;
  }
}
