import { Emitter } from "./emitter.js";

const DISCONNECTED_MS = 3000;
const PATIENCE_MS = 15_000;
const LAST_RESTART_MS = 30_000;

/** After this time, an offer or its answer is lost, or the other side has rejected the offer. */
const ANSWER_MS = 6000;
const LAST_ANSWER_MS = 60_000;

/** When the candidates are renewed, as parts of the life of the credentials with which they were gathered: at random between
 * both, so that not all connections restart at once. The server sends new credentials after two thirds. */
const RENEWAL = { earliest: 0.75, latest: 0.9 };
const RENEWAL_RETRY_MS = 20_000;

/**
 * One RTCPeerConnection with perfect negotiation, trickle ICE and ICE restarts.
 *
 * Events: `state` when the connection state changes; `remote-offer` between an offer and its answer, so that the
 * owner can set the directions of transceivers; `described` after each description of the other side;
 * `trouble` with an RTCPeerConnectionIceErrorEvent; `restarting` with the reason; `stuck` if there is no connection long
 * after the first description.
 */
export class Link extends Emitter {
  restarts = 0;
  #polite;
  #offers;
  #ice;
  #send;
  #makingOffer = false;
  #ignoringOffer = false;
  #received = Promise.resolve();
  #restartTimer = 0;
  #patienceTimer = 0;
  #restartMs = DISCONNECTED_MS;
  #answerTimer = 0;
  #renewalTimer = 0;
  #until = 0;
  #applyConfiguration = () => this.pc.setConfiguration(this.#ice.configuration());
  #move = () => {
    this.#renewIn(RENEWAL_RETRY_MS); // if the connection has not begun yet
    this.restart("renewal");
  };

  /**
   * `send` takes `{description}`, `{candidate}` or `{restart}` for the other side. The polite side gives way when both
   * offer at once. With `offers: false`, only the other side makes offers, and a restart is a request to it.
   */
  constructor({ ice, send, polite, offers = true }) {
    super();
    this.#ice = ice;
    this.#send = send;
    this.#polite = polite;
    this.#offers = offers;
    this.pc = new RTCPeerConnection(ice.configuration());
    ice.addEventListener("change", this.#applyConfiguration);
    ice.addEventListener("move", this.#move);

    this.pc.addEventListener("negotiationneeded", () => this.#offer());
    this.pc.addEventListener("icecandidate", ({ candidate }) => send({ candidate: candidate?.toJSON() ?? null }));
    this.pc.addEventListener("icecandidateerror", (event) => this.emit("trouble", event));
    this.pc.addEventListener("icegatheringstatechange", () => this.#gathering());
    this.pc.addEventListener("connectionstatechange", () => this.#stateChanged());
    this.pc.addEventListener("signalingstatechange", () => this.#wait(), { once: true });
    this.pc.addEventListener("signalingstatechange", () => this.#awaitAnswer(ANSWER_MS));
  }

  get state() {
    return this.pc.connectionState;
  }

  /** Handles `{description}`, `{candidate}` or `{restart}` of the other side, in the order of arrival. */
  receive(message) {
    this.#received = this.#received.then(() => this.#handle(message)).catch((error) => {
      // A candidate or description of a connection that was replaced or closed meanwhile.
      if (this.state !== "closed") console.warn("signalling message not applied:", error.message);
    });
    return this.#received;
  }

  /**
   * Sends an offer again that has no answer yet, because one of the two may be lost. An answer too many does no harm.
   */
  repeat() {
    if (this.pc.signalingState === "have-local-offer") this.#send({ description: this.pc.localDescription.toJSON() });
  }

  /** Gathers new candidates with fresh credentials; media go on over the old path until the new one works. */
  async restart(reason) {
    if (this.state === "closed" || !this.pc.remoteDescription) return;
    this.restarts += 1;
    // The connection works, so these need no message.
    const isQuiet = reason === "renewal" || reason === "requested";
    if (!isQuiet) this.emit("restarting", reason);
    if (reason !== "renewal") await this.#ice.refresh();
    if (this.state === "closed") return;
    if (this.#offers) this.pc.restartIce();
    else this.#send({ restart: {} });
  }

  close() {
    clearTimeout(this.#restartTimer);
    clearTimeout(this.#patienceTimer);
    clearTimeout(this.#renewalTimer);
    clearTimeout(this.#answerTimer);
    this.#ice.removeEventListener("change", this.#applyConfiguration);
    this.#ice.removeEventListener("move", this.#move);
    this.pc.close();
  }

  async #offer() {
    if (!this.#offers) return;
    try {
      this.#makingOffer = true;
      await this.pc.setLocalDescription();
      this.#send({ description: this.pc.localDescription.toJSON() });
    } catch (error) {
      if (this.state !== "closed") console.warn("no offer made:", error.message);
    } finally {
      this.#makingOffer = false;
    }
  }

  /** Repeats an offer until it is answered: without an answer, the connection can negotiate nothing else. */
  #awaitAnswer(ms) {
    clearTimeout(this.#answerTimer);
    if (this.pc.signalingState !== "have-local-offer") return;
    this.#answerTimer = setTimeout(() => {
      this.repeat();
      this.#awaitAnswer(Math.min(ms * 2, LAST_ANSWER_MS));
    }, ms);
  }

  async #handle({ description, candidate, restart }) {
    if (description) await this.#describe(description);
    else if (restart) this.restart("requested"); // later messages do not wait for the credentials
    else if (candidate !== undefined) await this.#addCandidate(candidate);
  }

  async #describe(description) {
    const collision =
      description.type === "offer" && (this.#makingOffer || this.pc.signalingState !== "stable");
    this.#ignoringOffer = collision && !this.#polite;
    if (this.#ignoringOffer) return;

    await this.pc.setRemoteDescription(description); // rolls back an own offer that collides
    if (description.type === "offer") {
      this.emit("remote-offer");
      await this.pc.setLocalDescription();
      this.#send({ description: this.pc.localDescription.toJSON() });
    }
    this.emit("described");
  }

  async #addCandidate(candidate) {
    try {
      await this.pc.addIceCandidate(candidate ?? undefined);
    } catch (error) {
      // The candidates of an ignored offer belong to no description.
      if (!this.#ignoringOffer) throw error;
    }
  }

  #gathering() {
    if (this.pc.iceGatheringState !== "gathering") return;
    this.#until = this.#ice.until;
    const { earliest, latest } = RENEWAL;
    const part = earliest + (latest - earliest) * Math.random();
    this.#renewIn((this.#until - performance.now()) * part);
  }

  /**
   * An allocation cannot take over new credentials, and ends some time after the expiry of its own, so a new one replaces
   * it before. How long it goes on depends on the relay.
   */
  #renewIn(ms) {
    clearTimeout(this.#renewalTimer);
    this.#renewalTimer = setTimeout(() => this.#renew(), Math.max(ms, 0));
  }

  async #renew() {
    if (this.#ice.until <= this.#until) await this.#ice.refresh();
    if (this.state === "closed") return;
    // A restart gathers anew, and so sets the timer again.
    this.#renewIn(RENEWAL_RETRY_MS);
    if (this.#ice.until > this.#until) await this.restart("renewal");
  }

  #wait() {
    this.#patienceTimer = setTimeout(() => {
      if (this.state !== "connected") this.emit("stuck");
    }, PATIENCE_MS);
  }

  #stateChanged() {
    clearTimeout(this.#restartTimer);
    if (this.state === "connected") this.#restartMs = DISCONNECTED_MS;
    if (this.state === "disconnected") this.#restartIn(DISCONNECTED_MS);
    if (this.state === "failed") this.#failed();
    this.emit("state", this.state);
  }

  #failed() {
    this.restart("failed");
    this.#restartMs = Math.min(this.#restartMs * 2, LAST_RESTART_MS);
    this.#restartIn(this.#restartMs);
  }

  #restartIn(ms) {
    this.#restartTimer = setTimeout(() => {
      if (this.state === "failed") this.#failed();
      else if (this.state === "disconnected") this.restart("disconnected");
    }, ms);
  }
}
