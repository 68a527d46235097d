import { BALL, GOAL, HEIGHT, PADDLE, PADDLE_X, winner } from "../pong.js";
import { isolate } from "../text.js";
import { byId, keepFocus, setOptions, setText } from "./dom.js";
import { milliseconds, percent } from "./format.js";

const KEY_SPEED = 0.9; // widths of the table per second
const KEYS = { arrowup: -1, w: -1, arrowdown: 1, s: 1 };
/** How far a paddle moves when its button is pressed with the keyboard. */
const BUTTON_STEP = 0.05;

export class GamePanel {
  #game;
  #names;
  #panels;
  #canvas = byId("table");
  #direction = 0;
  #drawn = 0;
  #frame = 0;
  #shown = "";

  constructor({ game, panels, names }) {
    this.#game = game;
    this.#names = names;
    this.#panels = panels;
    game.on("change", () => this.#show());
    byId("game-form").addEventListener("submit", (event) => {
      event.preventDefault();
      game.invite(byId("game-peer").value);
    });
    byId("game-accept").addEventListener("click", () => game.accept());
    byId("game-decline").addEventListener("click", () => game.quit());
    byId("game-quit").addEventListener("click", () => game.quit());
    this.#listenToKeys();
    this.#listenToPointer();
    this.#show();
  }

  /** Offers these participants as opponents: `[{value, text}]`. */
  setPeers(options) {
    const none = options.length === 0;
    setOptions(byId("game-peer"), none ? [{ value: "", text: "No other participant" }] : options);
    byId("game-peer").disabled = none;
    byId("game-form").querySelector("button").disabled = none;
  }

  #listenToKeys() {
    const steer = (direction) => (this.#direction = direction);
    byId("panel-game").addEventListener("keydown", (event) => {
      const direction = event.ctrlKey || event.altKey || event.metaKey ? undefined : KEYS[event.key.toLowerCase()];
      if (!direction || this.#game.phase !== "playing") return;
      event.preventDefault();
      steer(direction);
    });
    addEventListener("keyup", (event) => {
      if (KEYS[event.key.toLowerCase()] === this.#direction) steer(0);
    });
    addEventListener("blur", () => steer(0)); // another window gets the release of the key
    for (const [id, direction] of [["paddle-up", -1], ["paddle-down", 1]]) {
      byId(id).addEventListener("pointerdown", () => steer(direction));
      byId(id).addEventListener("click", ({ detail }) => {
        if (detail === 0) this.#game.setPaddle(this.#game.paddle + direction * BUTTON_STEP); // the keyboard
      });
      for (const end of ["pointerup", "pointercancel", "pointerleave"]) byId(id).addEventListener(end, () => steer(0));
    }
  }

  #listenToPointer() {
    const follow = (event) => {
      const { top, height } = this.#canvas.getBoundingClientRect();
      this.#game.setPaddle(((event.clientY - top) / height) * HEIGHT);
    };
    this.#canvas.addEventListener("pointerdown", (event) => {
      this.#canvas.setPointerCapture(event.pointerId);
      follow(event);
    });
    this.#canvas.addEventListener("pointermove", (event) => {
      if (event.buttons > 0 || event.pointerType === "mouse") follow(event);
    });
  }

  #show() {
    keepFocus(byId("panel-game"), byId("title-game"), () => this.#showParts());
    const { phase } = this.#game;
    if (phase === this.#shown) return;
    this.#shown = phase;
    const other = isolate(this.#names(this.#game.peer));
    if (phase === "invited") this.#panels.mark("game", `${other} invites you to a game of Pong.`);
    if (phase === "playing" && this.#panels.current === "game") this.#canvas.focus();
    if (phase === "playing" || phase === "over" || phase === "inviting") this.#animate();
  }

  #showParts() {
    const { phase, reason } = this.#game;
    const plays = phase === "playing" || phase === "over";
    byId("game-form").hidden = phase !== "idle";
    byId("game-invitation").hidden = phase !== "invited";
    byId("game-board").hidden = !plays && phase !== "inviting";
    setText(byId("game-status"), this.#sentence(phase, reason));
    // During the game, the score is shown above the table; this repeats it for screen readers.
    byId("game-status").classList.toggle("visually-hidden", phase === "playing");
    const quit = byId("game-quit").querySelector("span");
    setText(quit, phase === "inviting" ? "Withdraw the invitation" : phase === "over" ? "Close" : "End the game");
    this.#showScore();
  }

  #showScore() {
    const { side, state, peer } = this.#game;
    const [left, right] = [byId("score-own"), byId("score-other")];
    const other = isolate(this.#names(peer));
    setText(left, `${side === 0 ? "You" : other}: ${state.score[0]}`);
    setText(right, `${side === 1 ? "You" : other}: ${state.score[1]}`);
  }

  #sentence(phase, reason) {
    const { side, state, peer } = this.#game;
    const other = isolate(this.#names(peer));
    if (phase === "inviting") return `${other} has not accepted yet.`;
    if (phase === "invited") return `${other} invites you to a game.`;
    const goal = `The first player with ${GOAL} points wins.`;
    if (phase === "playing") return `${goal} You ${state.score[side]}, ${other} ${state.score[1 - side]}.`;
    if (phase === "over") return winner(state) === side ? "You have won." : `${other} has won.`;
    return reason ?? `${goal} The player who invites has the left side.`;
  }

  #animate() {
    cancelAnimationFrame(this.#frame);
    this.#drawn = performance.now();
    const frame = (now) => {
      if (this.#game.phase !== this.#shown) return;
      const seconds = Math.min((now - this.#drawn) / 1000, 0.1);
      this.#drawn = now;
      if (this.#direction !== 0) this.#game.setPaddle(this.#game.paddle + this.#direction * KEY_SPEED * seconds);
      if (this.#panels.current === "game") {
        this.#draw();
        this.#measure();
      }
      if (this.#shown !== "idle" && this.#shown !== "invited") this.#frame = requestAnimationFrame(frame);
    };
    this.#frame = requestAnimationFrame(frame);
  }

  #measure() {
    const { latency, loss } = this.#game;
    setText(byId("game-latency"), milliseconds(latency));
    setText(byId("game-loss"), percent(loss * 100));
  }

  #draw() {
    const { width } = this.#canvas.getBoundingClientRect();
    const scale = width * devicePixelRatio;
    if (this.#canvas.width !== Math.round(scale)) {
      this.#canvas.width = Math.round(scale);
      this.#canvas.height = Math.round(scale * HEIGHT);
    }
    const style = getComputedStyle(document.documentElement);
    const color = (name) => style.getPropertyValue(name);
    const context = this.#canvas.getContext("2d");
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.clearRect(0, 0, 1, HEIGHT);

    context.strokeStyle = color("--line");
    context.lineWidth = 0.004;
    context.setLineDash([0.02, 0.02]);
    context.beginPath();
    context.moveTo(0.5, 0);
    context.lineTo(0.5, HEIGHT);
    context.stroke();

    const { ball, paddles } = this.#game.state;
    paddles.forEach((y, side) => {
      context.fillStyle = color(side === this.#game.side ? "--accent" : "--series-1");
      const x = side === 0 ? PADDLE_X - 0.018 : 1 - PADDLE_X;
      context.beginPath();
      context.roundRect(x, y - PADDLE / 2, 0.018, PADDLE, 0.009);
      context.fill();
    });
    context.fillStyle = color("--text");
    context.beginPath();
    context.arc(ball.x, ball.y, BALL, 0, Math.PI * 2);
    context.fill();
  }
}
