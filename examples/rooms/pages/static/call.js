import { Emitter } from "./emitter.js";
import { Ice } from "./ice.js";
import { Mesh } from "./mesh.js";
import { Sfu } from "./sfu.js";
import { Signalling } from "./signalling.js";

/**
 * One participant's view of a room: who is there, which mode applies, and the connections.
 *
 * Events: `participants`, `state` and `media` (ask for the properties); `mode` with `{by}`, who is undefined at the
 * start; `arrived` and `departed` with a participant; `channel` with `{id, peer, detail: channel}`; `trouble` with an
 * icecandidateerror; `restarting` with a reason; `stuck` with the id of a participant, or null for the forwarding
 * unit; `problem` with `{code, text}`; `lost`; `ended` with a sentence.
 */
export class Call extends Emitter {
  id = null;
  mode = "mesh";
  /** In a broadcast, the id of the only sender. */
  sender = null;
  limits = { mesh: 6, room: 50 };
  /** The others: id → `{id, name, kind, before}`; `before` says who was in the room first. */
  participants = new Map();
  #room;

  constructor({ url, room, media, transport }) {
    super();
    this.#room = room;
    this.signalling = new Signalling(url);
    this.ice = new Ice(this.signalling, transport);
    const links = { ice: this.ice, media };
    const signal = (to, message) => this.signalling.send({ type: "signal", to, ...message });
    this.mesh = new Mesh({ ...links, signal });
    this.sfu = new Sfu({ ...links, signal: (message) => signal("sfu", message) });
    this.#listen();
  }

  get joined() {
    return this.signalling.joined;
  }

  get forwards() {
    return this.mode !== "mesh";
  }

  /** Whether this participant sends its media in the mode that applies. */
  get sends() {
    return this.mode !== "broadcast" || this.sender === this.id;
  }

  async join(name) {
    await this.signalling.connect({ room: this.#room, name });
  }

  leave() {
    this.signalling.close();
    this.mesh.close();
    this.sfu.stop();
    this.participants.clear();
    this.id = null;
  }

  setMode(mode) {
    this.signalling.send({ type: "mode", mode });
  }

  /** Asks the forwarding unit for a layer of a track: "auto", "high", "medium" or "low". */
  setLayer(track, layer) {
    this.signalling.send({ type: "layer", track, layer });
  }

  restart(reason) {
    this.mesh.restart(reason);
    this.sfu.restart(reason);
  }

  /** The streams of a participant: `{camera, screen}`. */
  streams(id) {
    return this.forwards ? this.sfu.streams(id) : (this.mesh.peers.get(id) ?? { camera: null, screen: null });
  }

  /** The connection that carries a participant's media. */
  connection(id) {
    return this.forwards ? this.sfu.subscribe : this.mesh.peers.get(id)?.link;
  }

  #listen() {
    this.signalling
      .on("joined", (message) => this.#joined(message))
      .on("peer-joined", ({ peer }) => this.#arrived(peer))
      .on("peer-left", ({ id }) => this.#departed(id))
      .on("peer-resumed", ({ id }) => this.mesh.repeat(id))
      .on("signal", ({ from, ...message }) => this.#signalled(from, message))
      .on("mode", ({ mode, sender, by }) => this.#applyMode(mode, sender, by))
      .on("tracks", ({ tracks }) => this.sfu.setTracks(tracks))
      .on("layer", (message) => this.sfu.setLayer(message))
      .on("error", ({ code, message }) => this.emit("problem", { code, text: message }))
      .on("closing", ({ reason }) => this.emit("problem", { code: "closing", text: reason }))
      .on("lost", () => this.emit("lost"))
      .on("ended", (reason) => this.emit("ended", reason));
    for (const source of [this.mesh, this.sfu]) {
      source.on("media", () => this.emit("media")).on("state", () => this.emit("state"));
    }
    this.mesh
      .on("channel", (event) => this.emit("channel", event))
      .on("trouble", ({ detail }) => this.emit("trouble", detail))
      .on("restarting", ({ detail }) => this.emit("restarting", detail))
      .on("stuck", ({ id }) => this.emit("stuck", id));
    this.sfu
      .on("trouble", (event) => this.emit("trouble", event))
      .on("restarting", (reason) => this.emit("restarting", reason))
      .on("stuck", () => this.emit("stuck", null))
      .on("layer", () => this.emit("media"));
  }

  #joined({ id, resumed, mode, sender, peers, ice, limits }) {
    if (ice) this.ice.update(ice);
    this.limits = limits;
    if (resumed) {
      this.#resumed({ mode, sender, peers });
      return;
    }
    // The others have forgotten the connections of an earlier identity.
    this.mesh.close();
    this.sfu.stop();
    this.participants = new Map(peers.map((peer) => [peer.id, { ...peer, before: true }]));
    this.id = id;
    this.#applyMode(mode, sender);
    this.emit("participants");
  }

  /** Goes on with the connections after a loss of the signalling, which lost messages in both directions. */
  #resumed({ mode, sender, peers }) {
    const present = new Set(peers.map(({ id }) => id));
    for (const id of this.participants.keys()) if (!present.has(id)) this.#departed(id);
    for (const peer of peers) this.#arrived(peer);
    if (mode !== this.mode || (sender ?? null) !== this.sender) this.#applyMode(mode, sender);
    for (const id of this.mesh.peers.keys()) this.mesh.repeat(id);
    this.sfu.repeat();
    // The network may be another one.
    this.restart("signalling");
  }

  #arrived(peer) {
    if (this.participants.has(peer.id)) return;
    this.participants.set(peer.id, { ...peer, before: false });
    this.emit("participants");
    this.emit("arrived", peer);
  }

  #departed(id) {
    const participant = this.participants.get(id);
    if (!participant) return;
    this.participants.delete(id);
    this.mesh.remove(id);
    this.sfu.forget(id);
    this.#connect();
    this.emit("participants");
    this.emit("departed", participant);
  }

  #signalled(from, message) {
    if (from === "sfu") this.sfu.receive(message);
    else if (this.participants.has(from)) this.mesh.receive(from, message);
  }

  #applyMode(mode, sender, by) {
    this.mode = mode;
    this.sender = sender ?? null;
    this.mesh.setSendsMedia(!this.forwards);
    if (this.forwards) this.sfu.start(this.sends);
    else this.sfu.stop();
    this.#connect();
    this.emit("mode", { by });
    this.emit("media");
  }

  /**
   * Connects the newcomer to the others. In a room that is too large for a mesh, those who come later have no data
   * channels until others leave.
   */
  #connect() {
    if (this.forwards && this.participants.size >= this.limits.mesh) return;
    for (const { id, before } of this.participants.values()) if (before) this.mesh.connect(id);
  }
}
