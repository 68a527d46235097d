import { Emitter } from "./emitter.js";
import { Link } from "./link.js";
import { fingerprint } from "./sdp.js";
import { sync } from "./streams.js";

/** Three sizes of the same picture; the forwarding unit sends each viewer the one that the viewer can take. */
const LAYERS = [
  { rid: "low", scaleResolutionDownBy: 4, maxBitrate: 150_000 },
  { rid: "medium", scaleResolutionDownBy: 2, maxBitrate: 500_000 },
  { rid: "high", scaleResolutionDownBy: 1, maxBitrate: 1_500_000 },
];

/** After this time, the request for a new connection, or the offer that begins it, is lost or was rejected. */
const ANEW_MS = 6000;
const LAST_ANEW_MS = 60_000;

/**
 * The two connections to the forwarding unit: `publish`, on which only the browser offers, and `subscribe`, on which
 * only the unit offers.
 *
 * Events: `media` when the received tracks change; `layer` with what the unit sends; `state`, `trouble`,
 * `restarting` and `stuck` as in Link.
 */
export class Sfu extends Emitter {
  publish = null;
  subscribe = null;
  /** The forwarded tracks: `{track, mid, peer, kind, layers, layer}`. */
  tracks = [];
  #ice;
  #media;
  #signal;
  #streams = new Map();
  #sent = {};
  /** The fingerprints of the unit in connections that this side has replaced, by link. */
  #replaced = {};
  #anewTimer = 0;

  constructor({ ice, media, signal }) {
    super();
    this.#ice = ice;
    this.#media = media;
    this.#signal = signal;
    media.on("change", () => this.#update());
  }

  /** Watches, and publishes if `publishes`. */
  start(publishes) {
    this.subscribe ??= this.#link("subscribe", false);
    if (publishes && !this.publish) this.#startPublishing();
    if (!publishes) this.#stopPublishing();
  }

  stop() {
    this.#stopPublishing();
    clearTimeout(this.#anewTimer);
    this.subscribe?.close();
    this.subscribe = null;
    this.#replaced = {};
    this.setTracks([]);
    this.#streams.clear();
  }

  /** Forgets a participant who has left. */
  forget(id) {
    this.tracks = this.tracks.filter(({ peer }) => peer !== id);
    this.#streams.delete(id);
  }

  receive({ link, ...message }) {
    const given = fingerprint(message.description);
    if (given && given === this.#replaced[link]) return; // sent before the unit noticed
    const target = link === "publish" ? this.publish : this.subscribe;
    if (target && isForeign(target.pc, message.description)) this.#beginAnew(link, message);
    else target?.receive(message);
  }

  /** Sends what may have been lost with the signalling. */
  repeat() {
    this.publish?.repeat();
  }

  /** Takes over which mid of the subscribe connection carries whose media. */
  setTracks(tracks) {
    const layers = new Map(this.tracks.map(({ track, layer, why }) => [track, { layer, why }]));
    this.tracks = tracks.map((entry) => ({ ...entry, ...layers.get(entry.track) }));
    this.#refresh();
  }

  /** Takes over which layer the unit sends. */
  setLayer({ track, layer, why }) {
    const entry = this.tracks.find((candidate) => candidate.track === track);
    if (!entry) return;
    Object.assign(entry, { layer, why });
    this.emit("layer", entry);
  }

  /** The streams of a participant: `{camera, screen}`. */
  streams(id) {
    let streams = this.#streams.get(id);
    if (!streams) this.#streams.set(id, (streams = { camera: new MediaStream(), screen: new MediaStream() }));
    return streams;
  }

  /** Restarts both connections; the unit makes the offer for the one to watch. */
  restart(reason) {
    this.publish?.restart(reason);
    this.subscribe?.restart(reason);
  }

  /** Replaces both connections, so that the new ones use only what the configuration permits. */
  replace(reason) {
    if (!this.subscribe) return;
    this.emit("restarting", reason);
    this.#replacePublish();
    this.#replaceSubscribe();
  }

  #replacePublish() {
    const old = this.publish;
    if (!old) return;
    const { pc } = old;
    if (pc.remoteDescription && pc.signalingState === "stable") {
      this.#replaced.publish = fingerprint(pc.remoteDescription);
      this.#stopPublishing();
      this.#startPublishing();
      return;
    }
    // The answer to the old offer could be taken for one to the new offer.
    old.addEventListener("described", () => this.publish === old && this.#replacePublish(), { once: true });
  }

  #replaceSubscribe() {
    const known = fingerprint(this.subscribe.pc.remoteDescription);
    if (!known) return; // it has no path yet
    this.#replaced.subscribe = known;
    this.subscribe.close();
    this.subscribe = this.#link("subscribe", false);
    this.#requestAnew(this.subscribe, ANEW_MS);
  }

  /** Requests the offer that begins a connection, until it comes. If there is nothing to watch, none does. */
  #requestAnew(link, ms) {
    clearTimeout(this.#anewTimer);
    if (this.subscribe !== link || link.pc.remoteDescription) return;
    this.#signal({ link: "subscribe", restart: { anew: true } });
    if (this.tracks.length === 0) return;
    this.#anewTimer = setTimeout(() => this.#requestAnew(link, Math.min(ms * 2, LAST_ANEW_MS)), ms);
  }

  #link(name, offers) {
    const send = (message) => this.#signal({ link: name, ...message });
    const link = new Link({ ice: this.#ice, send, polite: true, offers });
    link.on("described", () => this.#refresh());
    for (const type of ["state", "trouble", "restarting", "stuck"]) link.on(type, (detail) => this.emit(type, detail));
    return link;
  }

  /** Replaces a connection that the unit has lost: a description has another certificate. */
  #beginAnew(link, message) {
    if (link === "publish") {
      this.#stopPublishing();
      this.#startPublishing();
    } else {
      this.subscribe.close();
      this.subscribe = this.#link("subscribe", false);
      this.subscribe.receive(message);
    }
  }

  #startPublishing() {
    const link = (this.publish = this.#link("publish", true));
    const audio = link.pc.addTransceiver("audio", { direction: "sendonly" });
    const video = link.pc.addTransceiver("video", { direction: "sendonly", sendEncodings: LAYERS });
    prefer(video, "video/VP8");
    this.#sent = { audio, video };
    this.#update();
  }

  #stopPublishing() {
    this.publish?.close();
    this.publish = null;
    this.#sent = {};
  }

  /** Sends the tracks that the capture has at the moment. */
  #update() {
    if (!this.publish) return;
    this.#sent.audio.sender.replaceTrack(this.#media.audio);
    this.#sent.video.sender.replaceTrack(this.#media.video);
    for (const kind of ["audio", "video"]) this.#updateScreen(kind);
  }

  /** A screen has sections of its own, after those of microphone and camera: for its picture, and for its sound. */
  #updateScreen(kind) {
    const track = this.#media.screen?.getTracks().find((candidate) => candidate.kind === kind) ?? null;
    const key = `screen-${kind}`;
    const sent = this.#sent[key];
    if (sent) {
      sent.direction = track ? "sendonly" : "inactive";
      sent.sender.replaceTrack(track);
    } else if (track) {
      this.#sent[key] = this.publish.pc.addTransceiver(track, { direction: "sendonly" });
      if (kind === "video") prefer(this.#sent[key], "video/VP8");
    }
  }

  #refresh() {
    const received = new Map();
    for (const transceiver of this.subscribe?.pc.getTransceivers() ?? []) {
      if (/^(sendrecv|recvonly)$/.test(transceiver.currentDirection)) received.set(transceiver.mid, transceiver);
    }
    const byPeer = Map.groupBy(this.tracks.filter(({ mid }) => received.has(mid)), ({ peer }) => peer);
    for (const id of new Set([...this.#streams.keys(), ...byPeer.keys()])) {
      const camera = [];
      const screen = [];
      for (const { mid } of byPeer.get(id) ?? []) {
        const { track } = received.get(mid).receiver;
        // The first track of a kind is the camera or the microphone; a further one belongs to a screen.
        (camera.some(({ kind }) => kind === track.kind) ? screen : camera).push(track);
      }
      const streams = this.streams(id);
      sync(streams.camera, camera);
      sync(streams.screen, screen);
    }
    this.emit("media");
  }
}

/** Whether a description is of another connection than that which `pc` has. */
function isForeign(pc, description) {
  const [known, given] = [pc.remoteDescription, description].map(fingerprint);
  return Boolean(known && given && known !== given);
}

/** Puts one codec first; the forwarding unit transcodes nothing, so all must share it. */
function prefer(transceiver, mimeType) {
  const { codecs } = RTCRtpSender.getCapabilities("video");
  const isPreferred = (codec) => codec.mimeType.toLowerCase() === mimeType.toLowerCase();
  transceiver.setCodecPreferences([...codecs.filter(isPreferred), ...codecs.filter((codec) => !isPreferred(codec))]);
}
