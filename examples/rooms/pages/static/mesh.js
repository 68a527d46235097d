import { Emitter } from "./emitter.js";
import { Peer } from "./peer.js";
import { fingerprint } from "./sdp.js";

/**
 * One connection to each other participant.
 *
 * Events, each with `{id, peer, detail}`: `state`, `media`, `channel`, `trouble`, `restarting`, `stuck`.
 */
export class Mesh extends Emitter {
  peers = new Map();
  #ice;
  #media;
  #signal;
  #sendsMedia = true;
  /** The fingerprints of the other side in connections that this side has replaced. */
  #replaced = new Map();

  /** `signal` takes the id of the addressee and the message. */
  constructor({ ice, media, signal }) {
    super();
    this.#ice = ice;
    this.#media = media;
    this.#signal = signal;
    media.on("change", () => this.peers.forEach((peer) => peer.update()));
  }

  /** Connects to a participant who was in the room before. */
  connect(id) {
    if (!this.peers.has(id)) this.#add(id, { polite: true, initiates: true }).initiate();
  }

  /** Replaces all connections by new ones. The other sides notice the new certificate. */
  replace() {
    for (const [id, peer] of [...this.peers]) {
      const { pc } = peer.link;
      if (pc.remoteDescription && pc.signalingState === "stable") this.#replace(id, peer);
      // Otherwise, an answer to the old connection could be taken for one to the new connection.
      else peer.link.addEventListener("described", () => this.#replace(id, peer), { once: true });
    }
  }

  /** Handles a message of a participant; the first one of a newcomer makes the connection. */
  receive(id, message) {
    const { description } = message;
    const given = fingerprint(description);
    if (given && given === this.#replaced.get(id)) return; // sent before the other side noticed
    let peer = this.peers.get(id);
    if (peer && description?.type === "offer" && isReplaced(peer, given)) {
      this.remove(id);
      peer = this.#add(id, { polite: peer.polite, initiates: false });
    }
    peer ??= this.#add(id, { polite: false, initiates: false });
    peer.link.receive(message);
  }

  /** In the modes with a forwarding unit, the mesh carries only data. */
  setSendsMedia(sends) {
    this.#sendsMedia = sends;
    this.peers.forEach((peer) => peer.setSendsMedia(sends));
  }

  restart(reason) {
    this.peers.forEach((peer) => peer.link.restart(reason));
  }

  /** Sends what may have been lost with the signalling of one side. */
  repeat(id) {
    this.peers.get(id)?.link.repeat();
  }

  remove(id) {
    this.peers.get(id)?.close();
    this.peers.delete(id);
    this.#share();
  }

  close() {
    for (const id of [...this.peers.keys()]) this.remove(id);
    this.#replaced.clear();
  }

  /** Divides what one computer can encode and send among the connections. */
  #share() {
    this.peers.forEach((peer) => peer.setShare(this.peers.size));
  }

  #replace(id, peer) {
    if (this.peers.get(id) !== peer) return; // the other side was faster
    this.#replaced.set(id, fingerprint(peer.link.pc.remoteDescription));
    this.remove(id);
    this.#add(id, { polite: peer.polite, initiates: true }).initiate();
  }

  #add(id, { polite, initiates }) {
    const peer = new Peer({
      ice: this.#ice,
      media: this.#media,
      polite,
      initiates,
      sendsMedia: this.#sendsMedia,
      send: (message) => this.#signal(id, message),
    });
    this.peers.set(id, peer);
    this.#share();
    for (const type of ["state", "media", "channel", "trouble", "restarting", "stuck"]) {
      peer.on(type, (detail) => this.emit(type, { id, peer, detail }));
    }
    return peer;
  }
}

/** Whether an offer with a fingerprint begins a new connection. If both sides begin one, the polite side gives way. */
function isReplaced({ polite, initiates, link }, given) {
  const known = fingerprint(link.pc.remoteDescription);
  return known ? given !== known : polite && initiates;
}
