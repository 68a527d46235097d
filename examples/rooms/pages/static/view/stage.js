import { sync } from "../streams.js";
import { byId } from "./dom.js";

const STATES = { new: "connecting", disconnected: "interrupted", failed: "no path" };

/** Decides which tiles there are and what they say; Tiles shows them. */
export class Stage {
  #call;
  #media;
  #statistics;
  #tiles;
  #own = new MediaStream();

  constructor({ call, media, statistics, tiles }) {
    this.#call = call;
    this.#media = media;
    this.#statistics = statistics;
    this.#tiles = tiles;
  }

  /** Shows everyone; `name` is the own name. */
  show(name) {
    if (byId("call").hidden) return;
    const others = [...this.#call.participants.values()].flatMap((participant) => this.#tilesOf(participant));
    this.#tiles.show([...this.#ownTiles(name), ...others]);
  }

  #ownTiles(name) {
    if (!this.#call.sends) return [];
    const { video, screen, muted, synthetic } = this.#media;
    sync(this.#own, video ? [video] : []);
    const tiles = [{ key: "own", name, stream: this.#own, own: true, mirrored: !synthetic, muted, still: !video }];
    if (screen) tiles.push({ key: "own/screen", name, stream: screen, own: true, screen: true });
    return tiles;
  }

  #tilesOf({ id, name }) {
    const call = this.#call;
    if (call.mode === "broadcast" && call.sender !== id) return [];
    const { camera, screen } = call.streams(id);
    const state = call.connection(id)?.state ?? "new";
    const [picture] = camera?.getVideoTracks() ?? [];
    const forwarded = this.#forwarded(id, 0);
    const tiles = [
      {
        key: `${id}/camera`,
        name,
        stream: camera,
        detail: state === "connected" ? forwarded?.layer : (STATES[state] ?? state),
        still: !picture || this.#statistics.isStill(call.forwards ? "subscribe" : id, picture.id),
        forwarded,
      },
    ];
    if (screen?.getVideoTracks().length > 0) {
      tiles.push({ key: `${id}/screen`, name, stream: screen, screen: true, forwarded: this.#forwarded(id, 1) });
    }
    return tiles;
  }

  /** The track of the forwarding unit for a participant's camera (0) or screen (1). */
  #forwarded(id, index) {
    const { forwards, sfu } = this.#call;
    if (!forwards) return null;
    return sfu.tracks.filter(({ peer, kind }) => peer === id && kind === "video")[index] ?? null;
  }
}
