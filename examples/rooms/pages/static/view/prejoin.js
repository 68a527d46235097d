import { captureSentence } from "../sentences.js";
import { cleanName } from "../text.js";
import { listDevices } from "./devices.js";
import { byId, setText } from "./dom.js";

/** The form before the call: name, devices with a preview, relay only, test picture. */
export class Prejoin {
  #media;
  #onJoin;
  #isBusy = false;

  /** `onJoin` takes `{name, relayOnly}` and rejects with an error whose message is a sentence. */
  constructor({ media, name, relayOnly, onJoin }) {
    this.#media = media;
    this.#onJoin = onJoin;
    byId("name").value = name;
    byId("relay-only").checked = relayOnly;

    byId("prejoin-form").addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#checkName()) this.submit();
    });
    listDevices({
      media,
      selects: { video: "camera", audio: "microphone" },
      onChoose: (kind, id) => this.#capture(() => media.use(kind, id)),
    });
    byId("synthetic").addEventListener("change", ({ target }) =>
      this.#capture(() => media.useSynthetic(target.checked, this.#name())));
    byId("name").addEventListener("change", () => {
      if (media.synthetic) this.#capture(() => media.useSynthetic(true, this.#name()));
    });
    byId("name").addEventListener("input", () => this.#showNameProblem(""));
    media.on("change", () => this.#show());
  }

  /** Starts the preview. */
  async start() {
    await this.#capture(() => this.#media.start());
    if (!byId("name").value && !byId("prejoin").hidden) byId("name").focus();
  }

  /** Joins with what the form says; without a name, as a guest. */
  async submit() {
    if (this.#isBusy) return;
    this.#isBusy = true;
    byId("join").disabled = true;
    setText(byId("join-problem"), "");
    try {
      if (this.#media.synthetic) await this.#media.useSynthetic(true, this.#name());
      await this.#onJoin({ name: this.#name(), relayOnly: byId("relay-only").checked });
    } catch (error) {
      setText(byId("join-problem"), error.message);
    } finally {
      this.#isBusy = false;
      byId("join").disabled = false;
    }
    if (!byId("prejoin").hidden) byId("join").focus(); // it lost the focus when it was disabled
  }

  #name() {
    return cleanName(byId("name").value) || "Guest";
  }

  #checkName() {
    const ok = cleanName(byId("name").value) !== "";
    this.#showNameProblem(ok ? "" : "Enter a name, so that others know who you are.");
    if (!ok) byId("name").focus();
    return ok;
  }

  #showNameProblem(text) {
    setText(byId("name-problem"), text);
    byId("name").setAttribute("aria-invalid", String(text !== ""));
  }

  async #capture(action) {
    setText(byId("preview-state"), "Starting the camera…");
    setText(byId("capture-problem"), "");
    try {
      await action();
    } catch (error) {
      setText(byId("capture-problem"), captureSentence(error));
      this.#media.emit("change"); // selects what is used
    }
    this.#show();
  }

  #show() {
    if (byId("prejoin").hidden) return; // during the call, the tiles show the picture
    const { video, audio, synthetic } = this.#media;
    const preview = byId("preview");
    if (preview.srcObject?.getVideoTracks()[0] !== video) preview.srcObject = video ? new MediaStream([video]) : null;
    preview.hidden = !video;
    preview.classList.toggle("mirrored", !synthetic);
    byId("synthetic").checked = synthetic;
    const missing = audio ? "No picture. Others will hear you." : "No picture and no sound.";
    setText(byId("preview-state"), video ? "" : missing);
  }
}
