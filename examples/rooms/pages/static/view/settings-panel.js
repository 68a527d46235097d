import { captureSentence, speakerSentence } from "../sentences.js";
import { HAS_SPEAKERS, listDevices } from "./devices.js";
import { byId, setText } from "./dom.js";

/** Devices and path, during the call. */
export class SettingsPanel {
  #media;
  #tiles;

  /** `name` gives the own name; `onRelayOnly` takes whether only the relay may be used. */
  constructor({ media, tiles, name, onRelayOnly }) {
    this.#media = media;
    this.#tiles = tiles;
    byId("speaker-choice").hidden = !HAS_SPEAKERS;
    listDevices({
      media,
      selects: { video: "call-camera", audio: "call-microphone", speaker: "call-speaker" },
      onChoose: (kind, id, label) => this.#choose(kind, id, label),
    });
    byId("call-synthetic").addEventListener("change", ({ target }) =>
      this.#try(() => media.useSynthetic(target.checked, name())));
    byId("call-relay-only").addEventListener("change", ({ target }) => onRelayOnly(target.checked));
    media.on("change", () => this.#show());
    this.#show();
  }

  showRelayOnly(on) {
    byId("call-relay-only").checked = on;
  }

  #show() {
    byId("call-synthetic").checked = this.#media.synthetic;
  }

  async #choose(kind, id, label) {
    if (kind !== "speaker") {
      await this.#try(() => this.#media.use(kind, id));
      return;
    }
    setText(byId("settings-problem"), "");
    try {
      await this.#tiles.setSpeaker(id);
      this.#media.useSpeaker(id, label);
    } catch (error) {
      setText(byId("settings-problem"), speakerSentence(error));
      this.#media.emit("change"); // selects what is used
    }
  }

  async #try(action) {
    setText(byId("settings-problem"), "");
    try {
      await action();
    } catch (error) {
      setText(byId("settings-problem"), captureSentence(error));
      this.#media.emit("change"); // selects what is used
    }
  }
}
