import { Emitter } from "./emitter.js";
import { synthesize, synthesizeScreen } from "./synthetic.js";

const CONSTRAINTS = {
  audio: { echoCancellation: true, noiseSuppression: true, autoGainControl: true },
  video: { width: { ideal: 1280 }, height: { ideal: 720 }, frameRate: { ideal: 30 } },
};
const NAMES = { video: "camera", audio: "microphone" };

/**
 * What this browser captures: microphone, camera and screen, or a test picture and a tone; and where it plays.
 *
 * `audio` and `video` are the tracks to send or null; `screen` is a MediaStream or null; `speaker` is the id of an
 * output device, empty for the default. Events: `change` when one of them changes; `devices` when devices were
 * connected or disconnected; `lost` with `{kind, label, replacement}` when a device in use has disappeared, with kind
 * audio, video or speaker, and the label of the device in its place or null; `found` with `{kind, label}` when a device
 * was connected in place of one that was lost.
 */
export class Media extends Emitter {
  audio = null;
  video = null;
  screen = null;
  speaker = "";
  muted = false;
  cameraOn = true;
  #name;
  #synthetic = null;
  #stopScreen = null;
  #sharing = null;
  #chosen = { audio: null, video: null };
  /** The kinds whose device has disappeared without a replacement. */
  #missing = new Set();
  #speakerLabel = "";
  #useSynthetic = false;
  #last = Promise.resolve();

  constructor({ name = "Test picture", synthetic = false } = {}) {
    super();
    this.#name = name;
    this.#useSynthetic = synthetic;
    navigator.mediaDevices?.addEventListener("devicechange", () => this.#devicesChanged());
  }

  get synthetic() {
    return this.#useSynthetic;
  }

  /** Captures from the devices, or the test picture; what is missing stays null, and its error is thrown. */
  start() {
    return this.#inTurn(() => this.#start());
  }

  /** The test picture bears the participant's name. */
  useSynthetic(on, name = this.#name) {
    return this.#inTurn(async () => {
      const same = on === this.#useSynthetic && name === this.#name;
      this.#useSynthetic = on;
      this.#name = name;
      if (!same) await this.#start();
    });
  }

  /** Changes the camera ("video") or the microphone ("audio"). If that fails, the one in use stays. */
  use(kind, id) {
    return this.#inTurn(async () => {
      const before = this.#chosen[kind];
      this.#chosen[kind] = id;
      if (this.#useSynthetic || (kind === "video" && !this.cameraOn)) return;
      try {
        await this.#replace(kind);
      } catch (error) {
        this.#chosen[kind] = before;
        if (!this[kind]) await this.#replace(kind).catch(() => {}); // the first error is reported
        throw error;
      }
    });
  }

  useSpeaker(id, label) {
    this.speaker = id;
    this.#speakerLabel = label;
    this.emit("change");
  }

  /** The devices of each kind; their labels are empty before the user has given permission. */
  async devices() {
    const devices = (await navigator.mediaDevices?.enumerateDevices()) ?? [];
    const of = (wanted) => devices.filter(({ kind }) => kind === wanted);
    return { video: of("videoinput"), audio: of("audioinput"), speaker: of("audiooutput") };
  }

  /** Whether the user has turned a device off, which is not captured until it is turned on again. */
  isOff(kind) {
    return kind === "video" && !this.cameraOn;
  }

  setMuted(muted) {
    this.muted = muted;
    if (this.audio) this.audio.enabled = !muted;
    this.emit("change");
  }

  /** Turns the camera off, with its light; the other side keeps the connection. */
  setCamera(on) {
    return this.#inTurn(async () => {
      this.cameraOn = on;
      if (this.#useSynthetic) {
        this.video = on ? (this.#synthetic?.video ?? null) : null;
        this.emit("change");
      } else if (!on) {
        this.#missing.delete("video");
        this.#set("video", null);
      } else if (!this.video) {
        await this.#replace("video");
      }
    });
  }

  /** Shares the screen; a call during the browser's dialog waits for the same one. */
  share() {
    this.#sharing ??= this.#share().finally(() => (this.#sharing = null));
    return this.#sharing;
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

  async #start() {
    this.stop();
    this.#missing.clear();
    if (this.#useSynthetic) {
      this.#synthetic = synthesize(this.#name);
      this.video = this.cameraOn ? this.#synthetic.video : null;
      this.#set("audio", this.#synthetic.audio);
      return;
    }
    const { tracks, error } = await this.#capture(this.cameraOn ? ["video", "audio"] : ["audio"]);
    for (const kind of ["audio", "video"]) this.#set(kind, tracks.find((track) => track.kind === kind) ?? null);
    if (error) throw error;
  }

  async #share() {
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

  /** Runs actions one after the other, so that two clicks do not capture twice. */
  #inTurn(action) {
    const result = this.#last.then(action);
    this.#last = result.catch(() => {}); // reported to the caller
    return result;
  }

  /**
   * Captures tracks of these kinds. If that fails for all together, tries each alone: a computer may have only one of
   * the devices, or another program may use one. `error` is what the user should know.
   */
  async #capture(kinds) {
    let problem;
    try {
      return { tracks: await this.#getTracks(kinds), error: null };
    } catch (error) {
      if (kinds.length === 1 || !(await mayTryAlone(error))) return { tracks: [], error };
      problem = error;
    }
    const results = [];
    for (const kind of kinds) results.push(await this.#capture([kind]));
    const tracks = results.flatMap((result) => result.tracks);
    if (tracks.length === 0) return { tracks, error: problem };
    const unexpected = results.find(({ error }) => error && error.name !== "NotFoundError");
    return { tracks, error: unexpected?.error ?? null };
  }

  async #getTracks(kinds) {
    if (!navigator.mediaDevices) throw new DOMException("no secure origin", "SecurityError");
    const wanted = Object.fromEntries(kinds.map((kind) => [kind, constraints(kind, this.#chosen[kind])]));
    try {
      return (await navigator.mediaDevices.getUserMedia(wanted)).getTracks();
    } catch (error) {
      error.device = kinds.map((kind) => NAMES[kind]).join(" or "); // for the message
      throw error;
    }
  }

  /** Captures one kind anew. The old track ends only when the new one is there. */
  async #replace(kind) {
    try {
      this.#set(kind, ...(await this.#getTracks([kind])));
    } catch (error) {
      if (error.name !== "NotReadableError" || !this[kind]) throw error;
      // Some systems open only one camera at a time.
      this.#set(kind, null);
      this.#set(kind, ...(await this.#getTracks([kind])));
    }
  }

  #set(kind, track) {
    if (this[kind] !== track) this[kind]?.stop();
    this[kind] = track;
    if (track) {
      this.#missing.delete(kind);
      if (kind === "audio") track.enabled = !this.muted;
      // Not after stop(): the device has disappeared, or the user has withdrawn the permission.
      track.addEventListener("ended", () => this.#inTurn(() => this.#ended(kind, track)));
    }
    this.emit("change");
  }

  async #ended(kind, track) {
    if (this[kind] !== track) return;
    this.#chosen[kind] = null;
    this.#set(kind, null);
    try {
      await this.#replace(kind);
    } catch {
      this.#missing.add(kind);
    }
    this.emit("lost", { kind, label: track.label, replacement: this[kind]?.label ?? null });
  }

  async #devicesChanged() {
    this.emit("devices");
    const { speaker } = await this.devices();
    // Elements whose device is gone are silent.
    if (this.speaker && !speaker.some(({ deviceId }) => deviceId === this.speaker)) {
      const label = this.#speakerLabel;
      this.useSpeaker("", "");
      this.emit("lost", { kind: "speaker", label, replacement: "default" });
    }
    for (const kind of [...this.#missing]) await this.#inTurn(() => this.#find(kind));
  }

  /** Uses a new device in place of one that has disappeared. */
  async #find(kind) {
    if (this.#useSynthetic || !this.#missing.has(kind)) return;
    await this.#replace(kind).catch(() => {}); // it is no device of this kind
    if (this[kind]) this.emit("found", { kind, label: this[kind].label });
  }
}

function constraints(kind, deviceId) {
  return deviceId ? { ...CONSTRAINTS[kind], deviceId: { exact: deviceId } } : CONSTRAINTS[kind];
}

/** Whether one device may work after an error for both. The user is not asked twice. */
async function mayTryAlone(error) {
  if (error.name !== "NotAllowedError") return error.name !== "SecurityError" && error.name !== "TypeError";
  const query = (name) => navigator.permissions.query({ name }).then(({ state }) => state, () => null);
  const states = await Promise.all(Object.values(NAMES).map(query));
  return states.filter((state) => state === "denied").length === 1;
}
