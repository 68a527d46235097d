import { Emitter } from "./emitter.js";
import { synthesize, synthesizeScreen } from "./synthetic.js";

const CAMERA = { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } };
const MICROPHONE = { echoCancellation: true, noiseSuppression: true, autoGainControl: true };

/**
 * What this browser captures: microphone, camera and screen, or a test picture and a tone.
 *
 * `audio` and `video` are the tracks to send or null; `screen` is a MediaStream or null. Event `change` when one of
 * them changes.
 */
export class Media extends Emitter {
  audio = null;
  video = null;
  screen = null;
  muted = false;
  cameraOn = true;
  #name;
  #synthetic = null;
  #stopScreen = null;
  #chosen = { camera: null, microphone: null };
  #useSynthetic = false;

  constructor({ name = "Test picture", synthetic = false } = {}) {
    super();
    this.#name = name;
    this.#useSynthetic = synthetic;
  }

  get synthetic() {
    return this.#useSynthetic;
  }

  /** Captures from the devices, or the test picture; what is missing stays null, and its error is thrown. */
  async start() {
    this.stop();
    if (this.#useSynthetic) {
      this.#synthetic = synthesize(this.#name);
      this.#take(this.#synthetic.audio, this.#synthetic.video);
      return;
    }
    const stream = await this.#capture();
    this.#take(stream.getAudioTracks()[0] ?? null, stream.getVideoTracks()[0] ?? null);
  }

  /** The test picture bears the participant's name. */
  async useSynthetic(on, name = this.#name) {
    const same = on === this.#useSynthetic && name === this.#name;
    this.#useSynthetic = on;
    this.#name = name;
    if (!same) await this.start();
  }

  async useCamera(id) {
    this.#chosen.camera = id;
    await this.start();
  }

  async useMicrophone(id) {
    this.#chosen.microphone = id;
    await this.start();
  }

  /** The cameras and microphones; their labels are empty before the user has given permission. */
  async devices() {
    const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    return {
      cameras: devices.filter(({ kind }) => kind === "videoinput"),
      microphones: devices.filter(({ kind }) => kind === "audioinput"),
    };
  }

  setMuted(muted) {
    this.muted = muted;
    if (this.audio) this.audio.enabled = !muted;
    this.emit("change");
  }

  /** Turns the camera off, with its light; the other side keeps the connection. */
  async setCamera(on) {
    this.cameraOn = on;
    if (this.#useSynthetic) {
      this.video = on ? (this.#synthetic?.video ?? null) : null;
      this.emit("change");
    } else if (!on) {
      this.video?.stop();
      this.video = null;
      this.emit("change");
    } else {
      await this.start();
    }
  }

  async share() {
    if (this.screen) return;
    if (this.#useSynthetic) {
      const { stream, stop } = synthesizeScreen(this.#name);
      this.screen = stream;
      this.#stopScreen = stop;
    } else {
      const stream = await navigator.mediaDevices.getDisplayMedia({ video: { frameRate: 15 }, audio: true });
      // The browser's own button ends the track.
      stream.getVideoTracks()[0].addEventListener("ended", () => this.unshare());
      stream.getVideoTracks()[0].contentHint = "detail";
      this.screen = stream;
      this.#stopScreen = () => stream.getTracks().forEach((track) => track.stop());
    }
    this.emit("change");
  }

  unshare() {
    if (!this.screen) return;
    this.#stopScreen();
    this.screen = null;
    this.emit("change");
  }

  /** Ends the capture of camera and microphone. */
  stop() {
    this.#synthetic?.stop();
    this.#synthetic = null;
    this.audio?.stop();
    this.video?.stop();
    this.audio = null;
    this.video = null;
  }

  #take(audio, video) {
    this.audio = audio;
    this.video = this.cameraOn ? video : null;
    if (!this.cameraOn && !this.#useSynthetic) video?.stop();
    if (audio) audio.enabled = !this.muted;
    this.emit("change");
  }

  async #capture() {
    if (!navigator.mediaDevices) throw new DOMException("no secure origin", "SecurityError");
    const audio = constraints(MICROPHONE, this.#chosen.microphone);
    const video = this.cameraOn && constraints(CAMERA, this.#chosen.camera);
    try {
      return await navigator.mediaDevices.getUserMedia({ audio, video });
    } catch (error) {
      if (error.name !== "NotFoundError" || !video) throw error;
      // A machine with only one of the two.
      return navigator.mediaDevices
        .getUserMedia({ audio })
        .catch(() => navigator.mediaDevices.getUserMedia({ video }));
    }
  }
}

function constraints(base, deviceId) {
  return deviceId ? { ...base, deviceId: { exact: deviceId } } : base;
}
