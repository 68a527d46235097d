import { Emitter } from "./emitter.js";
import { Link } from "./link.js";
import { sync } from "./streams.js";

/** The data channels of each connection in the mesh, and their options. */
const CHANNELS = {
  chat: { ordered: true },
  files: { ordered: true },
  game: { ordered: false, maxRetransmits: 0 },
};

/** The other side may create this many channels; a browser with this page creates three. */
const MOST_CHANNELS = 12;

/** Channels that the other side created have arrived this long after the connection. */
const CHANNELS_MS = 5000;

/** What the cameras of all connections may send together, in bit/s. */
const UPLINK = 3_000_000;

/**
 * The connection to one other participant of the mesh: camera, screen and data channels.
 *
 * The first transceiver of each kind carries microphone and camera, in both directions; the side that initiates the
 * connection creates them. A screen has transceivers of its own, which only the side that shares it creates. Events:
 * those of Link; `media` when the received tracks change; `channel` with an open RTCDataChannel.
 */
export class Peer extends Emitter {
  camera = new MediaStream();
  screen = new MediaStream();
  channels = new Map();
  #media;
  #sendsMedia;
  #own = { audio: null, video: null };
  #shared = { audio: null, video: null };
  #count = 1;
  #channelCount = 0;
  #channelTimer = 0;

  constructor({ ice, send, polite, initiates, media, sendsMedia }) {
    super();
    this.polite = polite;
    this.initiates = initiates;
    this.#media = media;
    this.#sendsMedia = sendsMedia;
    this.link = new Link({ ice, send, polite });
    this.link.pc.addEventListener("datachannel", ({ channel }) => this.#addChannel(channel));
    this.link.pc.addEventListener("track", () => this.#refresh());
    this.link
      .on("remote-offer", () => {
        this.#adopt();
        this.#applyMedia();
      })
      .on("described", () => {
        this.#applyScreen(); // a share that began before this connection
        this.#applyShare(); // senders have encodings only now
        this.#refresh();
      })
      .on("state", (state) => {
        clearTimeout(this.#channelTimer);
        if (state === "connected") this.#channelTimer = setTimeout(() => this.#complete(), CHANNELS_MS);
      });
    for (const type of ["state", "trouble", "restarting", "stuck"]) {
      this.link.on(type, (detail) => this.emit(type, detail));
    }
  }

  /** Creates channels and transceivers, and so the first offer: done by the newcomer, or to replace a connection. */
  initiate() {
    for (const [label, options] of Object.entries(CHANNELS)) {
      this.#addChannel(this.link.pc.createDataChannel(label, options));
    }
    this.update();
  }

  /** Starts or ends the sending and receiving of media; the data channels stay. */
  setSendsMedia(sends) {
    this.#sendsMedia = sends;
    this.update();
  }

  /** Says how many connections share the uplink; the picture becomes smaller with their number. */
  setShare(count) {
    this.#count = count;
    this.#applyShare();
  }

  /** Sends the tracks that the capture has at the moment. */
  update() {
    if (this.#sendsMedia && this.initiates && !this.#own.audio) {
      this.#own.audio = this.link.pc.addTransceiver("audio", { direction: "sendrecv" });
      this.#own.video = this.link.pc.addTransceiver("video", { direction: "sendrecv" });
    }
    this.#applyMedia();
    this.#applyScreen();
  }

  close() {
    clearTimeout(this.#channelTimer);
    this.link.close();
    sync(this.camera, []);
    sync(this.screen, []);
  }

  /** Takes over the transceivers that the other side created for camera and microphone. */
  #adopt() {
    if (this.initiates) return; // this side has created them
    for (const kind of ["audio", "video"]) {
      const isFirst = (t) => t.receiver.track.kind === kind && t !== this.#shared[kind];
      this.#own[kind] ??= this.link.pc.getTransceivers().find(isFirst) ?? null;
    }
  }

  #applyMedia() {
    for (const kind of ["audio", "video"]) {
      const transceiver = this.#own[kind];
      if (!transceiver || transceiver.stopped) continue;
      setDirection(transceiver, this.#sendsMedia ? "sendrecv" : "inactive");
      setTrack(transceiver.sender, this.#sendsMedia ? this.#media[kind] : null);
    }
  }

  #applyShare() {
    const sender = this.#own.video?.sender;
    const parameters = sender?.getParameters();
    const encoding = parameters?.encodings?.[0];
    const maxBitrate = Math.round(UPLINK / this.#count);
    if (!encoding || encoding.maxBitrate === maxBitrate) return;
    Object.assign(encoding, { maxBitrate, scaleResolutionDownBy: this.#count > 2 ? 2 : 1 });
    sender.setParameters(parameters).catch(() => {}); // negotiated anew meanwhile: the next description applies it
  }

  #applyScreen() {
    const stream = this.#sendsMedia ? this.#media.screen : null;
    for (const kind of ["audio", "video"]) {
      const track = stream?.getTracks().find((t) => t.kind === kind) ?? null;
      if (track && !this.#shared[kind]) {
        this.#shared[kind] = this.link.pc.addTransceiver(track, { direction: "sendonly" });
      } else if (this.#shared[kind]) {
        setDirection(this.#shared[kind], track ? "sendonly" : "inactive");
        setTrack(this.#shared[kind].sender, track);
      }
    }
  }

  #refresh() {
    this.#adopt();
    const received = this.link.pc.getTransceivers().filter((t) => /^(sendrecv|recvonly)$/.test(t.currentDirection));
    const isOwn = (t) => t === this.#own.audio || t === this.#own.video;
    sync(this.camera, received.filter(isOwn).map((t) => t.receiver.track));
    sync(this.screen, received.filter((t) => !isOwn(t)).map((t) => t.receiver.track));
    this.emit("media");
  }

  /**
   * Creates the channels that are missing: if the side that created them has begun this connection anew after a loss of
   * messages, it takes itself for the one that did not. Only the polite side does so, because one is enough.
   */
  #complete() {
    if (!this.polite) return;
    for (const [label, options] of Object.entries(CHANNELS)) {
      const state = this.channels.get(label)?.readyState;
      if (state !== "open" && state !== "connecting") this.#addChannel(this.link.pc.createDataChannel(label, options));
    }
  }

  #addChannel(channel) {
    this.#channelCount += 1;
    if (!Object.hasOwn(CHANNELS, channel.label) || this.#channelCount > MOST_CHANNELS) {
      channel.close();
      return;
    }
    channel.binaryType = "arraybuffer";
    this.channels.set(channel.label, channel);
    const opened = () => this.emit("channel", channel);
    if (channel.readyState === "open") opened();
    else channel.addEventListener("open", opened, { once: true });
  }
}

/** Sets a direction only if it changes, because each change negotiates. */
function setDirection(transceiver, direction) {
  if (transceiver.direction !== direction) transceiver.direction = direction;
}

function setTrack(sender, track) {
  if (sender.track !== track) sender.replaceTrack(track).catch(() => {}); // fails only on a closed connection
}
