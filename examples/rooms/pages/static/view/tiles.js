import { byId, clone, keepFocus, setAvatar, setText } from "./dom.js";
import { arrange } from "./layout.js";

const GAP = 8;

/** The pictures of all participants. */
export class Tiles {
  #grid = byId("tiles");
  #tiles = new Map();
  #onLayer;
  #speaker = "";

  /** `onLayer` takes a track of the forwarding unit and the layer that the viewer chooses. */
  constructor({ onLayer }) {
    this.#onLayer = onLayer;
    byId("sound").addEventListener("click", () => this.#unmute());
    new ResizeObserver(() => this.#arrange()).observe(this.#grid);
  }

  /**
   * Shows these tiles, each `{key, name, stream, own, screen, mirrored, muted, detail, still, forwarded}`; `forwarded`
   * is the track of the forwarding unit with its layers.
   */
  show(entries) {
    const keys = new Set(entries.map(({ key }) => key));
    for (const [key, tile] of this.#tiles) {
      if (keys.has(key)) continue;
      tile.querySelector("video").srcObject = null;
      tile.remove();
      this.#tiles.delete(key);
    }
    for (const entry of entries) this.#update(entry);
    this.#grid.classList.toggle("presenting", entries.some(({ screen }) => screen));
    this.#grid.style.setProperty("--cameras", entries.filter(({ screen }) => !screen).length);
    this.#arrange();
  }

  /** Plays all sound on an output device; an empty id is the default. Throws if the device cannot be used. */
  async setSpeaker(id) {
    if (this.#speaker === id) return;
    const before = this.#speaker;
    this.#speaker = id;
    const videos = [...this.#grid.querySelectorAll(".tile:not(.own) video")];
    try {
      await Promise.all(videos.map((video) => video.setSinkId(id)));
    } catch (error) {
      this.#speaker = before;
      for (const video of videos) video.setSinkId(before).catch(() => {}); // it is the first error that is reported
      throw error;
    }
  }

  /** What is seen and heard, for a recording. */
  sources() {
    return [...this.#tiles.values()].map((tile) => {
      const video = tile.querySelector("video");
      const name = tile.querySelector(".name").textContent;
      return { video, stream: video.srcObject ?? new MediaStream(), name, still: tile.classList.contains("still") };
    });
  }

  #arrange() {
    const { clientWidth, clientHeight, style } = this.#grid;
    const { columns, width, height } = arrange(this.#tiles.size, clientWidth, clientHeight, GAP);
    style.setProperty("--columns", columns);
    style.setProperty("--tile-width", `${Math.floor(width)}px`);
    style.setProperty("--tile-height", `${Math.floor(height)}px`);
  }

  #update({ key, name, stream, own, screen, mirrored, muted, detail, still, forwarded }) {
    const tile = this.#tiles.get(key) ?? this.#create(key, own);
    const video = tile.querySelector("video");
    if (video.srcObject !== stream) {
      video.srcObject = stream;
      if (stream) this.#play(video);
    }
    tile.setAttribute("aria-label", screen ? `Screen of ${name}` : name);
    tile.classList.toggle("screen", Boolean(screen));
    tile.classList.toggle("still", Boolean(still));
    video.classList.toggle("mirrored", Boolean(mirrored));
    setAvatar(tile.querySelector(".avatar"), name);
    setText(tile.querySelector(".name"), screen ? `${own ? "Your" : `${name}’s`} screen` : own ? `${name} (you)` : name);
    setText(tile.querySelector(".detail"), detail ?? "");
    tile.querySelector(".caption .icon").toggleAttribute("hidden", !muted);
    this.#showLayer(tile.querySelector(".layer"), forwarded);
  }

  #create(key, own) {
    const tile = clone("tile");
    const video = tile.querySelector("video");
    video.muted = own;
    tile.classList.toggle("own", Boolean(own));
    if (this.#speaker && !own) video.setSinkId(this.#speaker).catch(() => {}); // the device is gone: the default plays
    tile.querySelector(".layer").addEventListener("change", ({ target }) => {
      this.#onLayer(target.dataset.track, target.value);
    });
    this.#tiles.set(key, tile);
    this.#grid.append(tile);
    return tile;
  }

  #showLayer(select, forwarded) {
    const choosable = forwarded?.layers?.length > 1;
    select.hidden = !choosable;
    if (!choosable) return;
    // The unit keeps the choice for a track only.
    if (select.dataset.track !== forwarded.track) select.value = "auto";
    select.dataset.track = forwarded.track;
    for (const option of select.options) {
      option.hidden = option.value !== "auto" && !forwarded.layers.includes(option.value);
    }
  }

  async #play(video) {
    try {
      await video.play();
    } catch (error) {
      // Without a gesture, browsers play only silent media.
      if (error.name !== "NotAllowedError" || video.muted) return;
      video.muted = true;
      video.dataset.silenced = "";
      byId("sound").hidden = false;
      video.play().catch(() => {}); // a stream without tracks plays later
    }
  }

  #unmute() {
    keepFocus(byId("sound"), byId("controls"), () => (byId("sound").hidden = true));
    for (const video of this.#grid.querySelectorAll("video[data-silenced]")) {
      delete video.dataset.silenced;
      video.muted = false;
    }
  }
}
