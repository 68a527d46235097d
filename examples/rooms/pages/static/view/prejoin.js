import { captureSentence } from "../sentences.js";
import { byId, setOptions, setText } from "./dom.js";

/** The form before the call: name, devices with a preview, relay only, test picture. */
export class Prejoin {
  #media;
  #onJoin;

  /** `onJoin` takes `{name, relayOnly}` and rejects with an error whose message is a sentence. */
  constructor({ media, name, relayOnly, onJoin }) {
    this.#media = media;
    this.#onJoin = onJoin;
    byId("name").value = name;
    byId("relay-only").checked = relayOnly;
    byId("synthetic").checked = media.synthetic;

    byId("prejoin-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.submit();
    });
    byId("camera").addEventListener("change", ({ target }) => this.#capture(() => media.useCamera(target.value)));
    byId("microphone").addEventListener("change", ({ target }) => this.#capture(() => media.useMicrophone(target.value)));
    byId("synthetic").addEventListener("change", ({ target }) =>
      this.#capture(() => media.useSynthetic(target.checked, this.#name())));
    byId("name").addEventListener("change", () => {
      if (media.synthetic) this.#capture(() => media.useSynthetic(true, this.#name()));
    });
    media.on("change", () => this.#show());
    navigator.mediaDevices?.addEventListener("devicechange", () => this.#list());
  }

  /** Starts the preview. */
  async start() {
    await this.#capture(() => this.#media.start());
    if (!byId("name").value) byId("name").focus();
  }

  /** Joins with what the form says. */
  async submit() {
    const button = byId("join");
    if (button.disabled) return;
    button.disabled = true;
    setText(byId("join-problem"), "");
    try {
      if (this.#media.synthetic) await this.#media.useSynthetic(true, this.#name());
      await this.#onJoin({ name: this.#name(), relayOnly: byId("relay-only").checked });
    } catch (error) {
      setText(byId("join-problem"), error.message);
    } finally {
      button.disabled = false;
    }
  }

  #name() {
    return byId("name").value.trim() || "Guest";
  }

  async #capture(action) {
    setText(byId("preview-state"), "Starting the capture…");
    setText(byId("capture-problem"), "");
    try {
      await action();
    } catch (error) {
      setText(byId("capture-problem"), captureSentence(error));
    }
    this.#show();
    await this.#list();
  }

  #show() {
    const { video, synthetic } = this.#media;
    const preview = byId("preview");
    if (preview.srcObject?.getVideoTracks()[0] !== video) preview.srcObject = video ? new MediaStream([video]) : null;
    preview.hidden = !video;
    preview.classList.toggle("mirrored", !synthetic);
    setText(byId("preview-state"), video ? "" : "The camera is off.");
  }

  async #list() {
    const { cameras, microphones } = await this.#media.devices();
    this.#fill(byId("camera"), cameras, this.#media.video);
    this.#fill(byId("microphone"), microphones, this.#media.audio);
  }

  #fill(select, devices, track) {
    const options = devices.map(({ deviceId, label }, index) => ({
      value: deviceId,
      text: label || `Device ${index + 1}`,
    }));
    setOptions(select, options.length > 0 ? options : [{ value: "", text: "None" }]);
    select.disabled = options.length === 0 || this.#media.synthetic;
    const used = track?.getSettings().deviceId;
    if (options.some(({ value }) => value === used)) select.value = used;
  }
}
