import { Emitter } from "./emitter.js";
import { Store } from "./store.js";
import { every } from "./ticker.js";

const WIDTH = 1280;
const HEIGHT = 720;
const FRAME_MS = 1000 / 25;
const PART_MS = 1000;
const TYPES = ["video/webm;codecs=vp8,opus", "video/webm", "video/mp4"];

/**
 * Records the call as one picture with all tiles and one mixed sound.
 *
 * `sources` returns `[{video, stream, name, still}]` for what is seen and heard at the moment; of what is still, only the
 * name is shown. `voice` returns the track of the own microphone, or null: no tile plays it. Event `change` when `state`
 * (idle, starting, recording, saving, ready) or `result` (`{blob, url, name, size, type, seconds}`) changes.
 */
export class Recorder extends Emitter {
  state = "idle";
  result = null;
  problem = null;
  #sources;
  #voice;
  #running = null;
  /** The files of the results. */
  #stores = new Map();
  #started = Promise.resolve();
  #stopped = Promise.resolve();

  constructor({ sources, voice }) {
    super();
    this.#sources = sources;
    this.#voice = voice;
  }

  static get supported() {
    return typeof MediaRecorder === "function" && TYPES.some((type) => MediaRecorder.isTypeSupported(type));
  }

  /** Starts a recording, unless one runs; throws if that is impossible. Earlier results stay until `discard`. */
  async start() {
    if (this.state === "idle" || this.state === "ready") this.#started = this.#start();
    await this.#started;
  }

  async #start() {
    this.result = null;
    this.problem = null;
    this.#set("starting");
    let store = null;
    try {
      store = await Store.open(0);
      this.#running = this.#capture(store);
      this.#set("recording");
    } catch (error) {
      store?.discard();
      this.#set("idle");
      throw error;
    }
  }

  /** Starts picture, sound and recorder, and returns them. */
  #capture(store) {
    const picture = new Picture(this.#sources);
    const sound = new Sound(this.#sources, this.#voice);
    const type = TYPES.find((candidate) => MediaRecorder.isTypeSupported(candidate));
    const stream = new MediaStream([picture.track, sound.track]);
    try {
      const recorder = new MediaRecorder(stream, { mimeType: type, videoBitsPerSecond: 2_500_000 });
      const tape = new Tape(recorder, store);
      // What is written is kept.
      tape.onEnd = (error) => {
        this.problem = `The recording has ended: ${error.message}.`;
        this.stop();
      };
      return { store, picture, sound, recorder, tape, started: performance.now() };
    } catch (error) {
      picture.stop();
      sound.stop();
      throw error;
    }
  }

  /** Ends the recording, also one that is starting; resolves with the result. */
  async stop() {
    if (this.state === "starting") await this.#started.catch(() => {}); // reported by start()
    if (this.state === "recording") this.#stopped = this.#stop();
    await this.#stopped;
    return this.result;
  }

  async #stop() {
    const { store, picture, sound, recorder, tape, started } = this.#running;
    this.#set("saving");
    try {
      await tape.end();
      const { file } = await store.finish();
      const type = recorder.mimeType.split(";")[0];
      const blob = file.slice(0, file.size, type);
      const at = new Date().toISOString().slice(0, 19).replaceAll(":", "-");
      this.result = {
        blob,
        url: URL.createObjectURL(blob),
        name: `call-${at}.${type === "video/mp4" ? "mp4" : "webm"}`,
        size: blob.size,
        type,
        seconds: (performance.now() - started) / 1000,
      };
      this.#stores.set(this.result, store);
      this.#set("ready");
    } catch (error) {
      this.problem = `The recording is lost: ${error.message}.`;
      store.discard();
      this.#set("idle");
    } finally {
      picture.stop();
      sound.stop();
    }
  }

  /** Removes the file of a result. */
  discard(result) {
    URL.revokeObjectURL(result.url);
    this.#stores.get(result)?.discard();
    this.#stores.delete(result);
    if (this.result !== result) return;
    this.result = null;
    this.problem = null;
    if (this.state === "ready") this.#set("idle");
  }

  #set(state) {
    this.state = state;
    this.emit("change");
  }
}

/**
 * Moves what a MediaRecorder has recorded to a store, part by part.
 *
 * It asks for each part itself: with a time slice, Firefox may deliver parts after its event `stop`.
 */
class Tape {
  /** Called with an error when no more can be recorded or written. */
  onEnd = () => {};
  #recorder;
  #timer;
  #requested = 0;
  #written = Promise.resolve();
  #delivered = () => {};
  #isEnding = false;
  #problem = "the browser has stopped it";

  constructor(recorder, store) {
    this.#recorder = recorder;
    recorder.addEventListener("error", ({ error }) => (this.#problem = error?.message || this.#problem));
    // After its last part, also if the browser ends it.
    recorder.addEventListener("stop", () => this.#isEnding || this.onEnd(new Error(this.#problem)));
    recorder.addEventListener("dataavailable", ({ data }) => {
      this.#requested = Math.max(0, this.#requested - 1);
      this.#write(store, data);
      this.#delivered();
    });
    recorder.start();
    this.#timer = setInterval(() => {
      if (this.#requested === 0 && recorder.state === "recording") this.#request(() => recorder.requestData());
    }, PART_MS);
  }

  /** Stops; resolves when all parts are written. */
  async end() {
    this.#isEnding = true;
    clearInterval(this.#timer);
    if (this.#recorder.state !== "inactive") this.#request(() => this.#recorder.stop());
    while (this.#requested > 0) await new Promise((resolve) => (this.#delivered = resolve));
    await this.#written;
  }

  #request(action) {
    this.#requested += 1;
    action();
  }

  #write(store, data) {
    const append = async () => {
      if (data.size > 0) await store.write(await data.arrayBuffer());
    };
    this.#written = this.#written.then(append).catch((error) => this.onEnd(error));
  }
}

/** All tiles on one canvas. */
class Picture {
  #canvas = document.createElement("canvas");
  #context;
  #sources;
  #end;

  constructor(sources) {
    this.#sources = sources;
    this.#canvas.width = WIDTH;
    this.#canvas.height = HEIGHT;
    this.#context = this.#canvas.getContext("2d", { alpha: false });
    this.#draw();
    this.#end = every(FRAME_MS, () => this.#draw());
    [this.track] = this.#canvas.captureStream(1000 / FRAME_MS).getVideoTracks();
  }

  stop() {
    this.#end();
    this.track.stop();
  }

  #draw() {
    const context = this.#context;
    context.fillStyle = "#0e1218";
    context.fillRect(0, 0, WIDTH, HEIGHT);
    const sources = this.#sources();
    const columns = Math.max(1, Math.ceil(Math.sqrt(sources.length)));
    const rows = Math.max(1, Math.ceil(sources.length / columns));
    const [width, height] = [WIDTH / columns, HEIGHT / rows];
    sources.forEach(({ video, name, still }, index) => {
      const x = (index % columns) * width;
      const y = Math.floor(index / columns) * height;
      const scale = Math.min(width / video.videoWidth, height / video.videoHeight);
      // A video whose track has stopped keeps its last frame.
      if (!still && Number.isFinite(scale)) {
        const [w, h] = [video.videoWidth * scale, video.videoHeight * scale];
        context.drawImage(video, x + (width - w) / 2, y + (height - h) / 2, w, h);
      }
      context.font = "600 22px system-ui, sans-serif";
      context.fillStyle = "#000a";
      context.fillRect(x + 12, y + height - 46, Math.min(context.measureText(name).width + 24, width - 24), 34);
      context.fillStyle = "#fff";
      context.fillText(name, x + 24, y + height - 22, width - 48);
    });
  }
}

/** All voices in one track; those of participants who arrive later are added. */
class Sound {
  #audio = new AudioContext();
  #output = new MediaStreamAudioDestinationNode(this.#audio);
  #inputs = new Map();
  #sources;
  #voice;
  #timer;

  constructor(sources, voice) {
    this.#sources = sources;
    this.#voice = voice;
    this.#audio.resume();
    this.#update();
    this.#timer = setInterval(() => this.#update(), 1000);
    [this.track] = this.#output.stream.getAudioTracks();
  }

  stop() {
    clearInterval(this.#timer);
    this.track.stop();
    this.#audio.close();
  }

  #update() {
    const voice = this.#voice();
    const tracks = new Set(this.#sources().flatMap(({ stream }) => stream.getAudioTracks()));
    if (voice) tracks.add(voice);
    for (const [track, node] of this.#inputs) {
      if (tracks.has(track)) continue;
      node.disconnect();
      this.#inputs.delete(track);
    }
    for (const track of tracks) {
      if (this.#inputs.has(track)) continue;
      const node = new MediaStreamAudioSourceNode(this.#audio, { mediaStream: new MediaStream([track]) });
      node.connect(this.#output);
      this.#inputs.set(track, node);
    }
  }
}
