// The room page: makes the parts and connects them.
import { Call } from "./call.js";
import { Chat } from "./chat.js";
import { Files } from "./files.js";
import { Game } from "./game.js";
import { Media } from "./media.js";
import { Recorder } from "./recorder.js";
import { makeReport } from "./report.js";
import { captureSentence, shareSentence } from "./sentences.js";
import { describe } from "./state.js";
import { Statistics } from "./statistics.js";
import { clean } from "./store.js";
import { cleanName } from "./text.js";
import { announce } from "./view/announcements.js";
import { ChatPanel } from "./view/chat-panel.js";
import { Controls } from "./view/controls.js";
import { byId } from "./view/dom.js";
import { FilesPanel } from "./view/files-panel.js";
import { GamePanel } from "./view/game-panel.js";
import { notice } from "./view/notices.js";
import { Panels } from "./view/panels.js";
import { Prejoin } from "./view/prejoin.js";
import { RoomPanel } from "./view/room-panel.js";
import { SettingsPanel } from "./view/settings-panel.js";
import { Stage } from "./view/stage.js";
import { StatisticsPanel } from "./view/statistics-panel.js";
import { Tiles } from "./view/tiles.js";

const NAME_KEY = "rooms.name";
/** A download that has begun may read a recording for this long after its message is closed. */
const DISCARD_MS = 60_000;
const WIDE = matchMedia("(min-width: 56rem)");

// ?relay=only&capture=synthetic&transport=udp|tcp|tls&name=…&join=1
const parameters = new URLSearchParams(location.search);
const room = location.pathname.split("/").at(-1);
const address = `${location.origin}/room/${room}`;

let name = cleanName(parameters.get("name") ?? storedName() ?? "");
const media = new Media({ name: name || undefined, synthetic: parameters.get("capture") === "synthetic" });
const call = new Call({
  url: `${location.origin.replace(/^http/, "ws")}/ws`,
  room,
  media,
  transport: parameters.get("transport"),
});
const nameOf = (id) => call.participants.get(id)?.name ?? "A participant who has left";

const chat = new Chat();
const files = new Files(nameOf);
const game = new Game();
const statistics = new Statistics(connections);
const panels = new Panels();
const tiles = new Tiles({ onLayer: (track, layer) => call.setLayer(track, layer) });
const stage = new Stage({ call, media, statistics, tiles });
const recorder = new Recorder({
  sources: () => tiles.sources(),
  voice: () => (call.sends ? media.audio : null),
});

const prejoin = new Prejoin({ media, name, relayOnly: parameters.get("relay") === "only", onJoin: enter });
const roomPanel = new RoomPanel({ call, url: address });
const filesPanel = new FilesPanel({ files, panels, names: nameOf });
const gamePanel = new GamePanel({ game, panels, names: nameOf });
const controls = new Controls({
  mute: () => media.setMuted(!media.muted),
  "camera-toggle": () => toggleCamera(),
  share: () => share(!media.screen),
  record: () => isRecorderBusy() || record(recorder.state !== "recording"),
  restart: () => call.restart("user"),
  leave: () => leave(),
});
new ChatPanel({ chat, panels, names: nameOf, count: () => call.participants.size });
const settings = new SettingsPanel({ media, tiles, name: () => name, onRelayOnly: setRelayOnly });
announce({
  call,
  media,
  names: nameOf,
  isConnected: () => connections().every(({ pc }) => pc.connectionState === "connected"),
});
new StatisticsPanel({
  statistics,
  panels,
  isAlone: () => call.participants.size === 0,
  report: (addresses) => JSON.stringify(report({ addresses }), null, 2),
});

// Events of the call

const attach = {
  chat: (id, channel) => chat.attach(id, channel),
  files: (id, channel) => files.attach(id, channel),
  game: (id, channel) => game.attach(id, channel),
};

call
  .on("channel", ({ id, detail: channel }) => {
    attach[channel.label](id, channel);
    showParticipants();
  })
  .on("participants", () => {
    retain(new Set(call.participants.keys()));
    showParticipants();
  })
  .on("media", showTiles)
  .on("state", showParticipants)
  .on("mode", () => {
    roomPanel.showMode();
    showParticipants();
  })
  .on("ended", (reason) => {
    if (!byId("call").hidden) leave(reason);
  });

media
  .on("change", () => {
    showControls();
    showTiles();
  })
  .on("lost", ({ kind }) => {
    if (kind === "speaker") tiles.setSpeaker("").catch(() => {}); // the default is used in any case
  });
recorder.on("change", () => {
  showControls();
  if (recorder.state === "ready") {
    const { result } = recorder;
    notice(`The recording ${result.name} is ready. Save it before you close this message.`, {
      download: result,
      onClose: () => setTimeout(() => recorder.discard(result), DISCARD_MS),
    });
  }
  if (recorder.problem) notice(recorder.problem, { problem: true });
});
statistics.on("sample", showParticipants);

addEventListener("online", networkChanged);
// The estimates of the connection change all the time; its type changes with the network. Not in all browsers.
let networkType = navigator.connection?.type;
navigator.connection?.addEventListener("change", () => {
  if (navigator.connection.type !== networkType) networkChanged();
  networkType = navigator.connection.type;
});
addEventListener("beforeunload", (event) => {
  // The browser asks the user.
  if (recorder.state === "recording" || recorder.state === "saving" || files.isBusy) event.preventDefault();
});
addEventListener("pagehide", () => call.leave());

// Actions

async function enter(options) {
  name = options.name;
  storeName(name);
  call.ice.relayOnly = options.relayOnly;
  settings.showRelayOnly(options.relayOnly);
  await call.join(name);
  byId("prejoin").hidden = true;
  for (const id of ["call", "controls", "quality"]) byId(id).hidden = false;
  byId("preview").srcObject = null;
  document.title = "In the room · rooms";
  showControls();
  showTiles();
  if (WIDE.matches) panels.open("room", { focus: false });
  byId("mute").focus({ preventScroll: true });
}

async function join(options = {}) {
  if (options.name) byId("name").value = options.name;
  await prejoin.submit();
}

function leave(reason = null) {
  call.leave();
  files.leave();
  game.leave();
  media.unshare();
  recorder.stop();
  panels.close();
  byId("prejoin").hidden = false;
  for (const id of ["call", "controls", "quality"]) byId(id).hidden = true;
  document.title = "Room · rooms";
  media.emit("change"); // shows the preview again
  if (reason) byId("join-problem").textContent = reason;
  byId("join").focus();
}

/** Ends what concerns participants who are not in this set of ids. */
function retain(ids) {
  files.retain(ids);
  game.retain(ids);
}

/** The name at the last visit; null if there is none, or if the user has blocked storage for this site. */
function storedName() {
  try {
    return localStorage.getItem(NAME_KEY);
  } catch {
    return null;
  }
}

function storeName(text) {
  try {
    localStorage.setItem(NAME_KEY, text);
  } catch {
    // The next visit asks for it.
  }
}

async function toggleCamera() {
  try {
    await media.setCamera(media.video === null);
  } catch (error) {
    notice(captureSentence(error), { problem: true });
  }
}

async function share(on) {
  try {
    if (on) await media.share();
    else media.unshare();
  } catch (error) {
    const sentence = shareSentence(error);
    if (sentence) notice(sentence, { problem: true });
  }
}

async function record(on) {
  try {
    return await (on ? recorder.start() : recorder.stop());
  } catch (error) {
    notice(`The recording does not start: ${error.message}.`, { problem: true });
    return null;
  }
}

function report({ addresses = false } = {}) {
  return makeReport({ call, statistics, addresses });
}

/**
 * Lets all connections use the relay only, or also direct paths. They are replaced, because Chromium keeps the path of a
 * connection that has one, even if the new policy forbids it.
 */
function setRelayOnly(on) {
  call.ice.relayOnly = on;
  byId("relay-only").checked = on;
  call.ice.emit("change");
  call.mesh.replace();
  call.sfu.replace(on ? "relay" : "direct");
}

/** The old paths may have failed without an error, also that of the signalling. A new one restarts all connections. */
function networkChanged() {
  if (!byId("call").hidden) call.signalling.reconnect();
}

// Views

function connections() {
  const links = [...call.mesh.peers].map(([id, { link }]) => ({ key: id, name: nameOf(id), pc: link.pc }));
  for (const [key, text] of [["publish", "To the forwarding unit"], ["subscribe", "From the forwarding unit"]]) {
    if (call.sfu[key]) links.push({ key, name: text, pc: call.sfu[key].pc });
  }
  // The sender of a broadcast has nothing to watch, and gets no offer for it.
  return links.filter(({ pc }) => pc.localDescription || pc.remoteDescription);
}

function showControls() {
  controls.show({
    muted: media.muted,
    cameraOn: media.video !== null,
    hasAudio: media.audio !== null,
    sharing: media.screen !== null,
    recording: recorder.state === "recording",
    canShare: media.synthetic || Boolean(navigator.mediaDevices?.getDisplayMedia),
    canRecord: Recorder.supported,
    isRecorderBusy: isRecorderBusy(),
  });
}

function isRecorderBusy() {
  return recorder.state === "starting" || recorder.state === "saving";
}

function showParticipants() {
  roomPanel.show(name, (id) => statistics.latest(id));
  const reachable = [...call.participants.values()]
    .filter(({ id, kind }) => kind === "browser" && call.mesh.peers.get(id)?.channels.get("files")?.readyState === "open")
    .map(({ id, name: text }) => ({ value: id, text }));
  filesPanel.setPeers(reachable);
  gamePanel.setPeers(reachable);
  showTiles();
}

function showTiles() {
  stage.show(name);
}

/**
 * What the buttons do, and what the page knows, for tests and for the console.
 *
 * `state` is a fresh plain object: joined, id, mode, sender, peers (connectionState, pair, framesDecoded,
 * dataChannels, …), sfu, chat, files, game and recording; see state.js. The functions:
 *
 * - `join({name})`, `leave()`, `mute(on)`, `share(on)`, `restartIce()`
 * - `setMode("mesh" | "sfu" | "broadcast")`, `setLayer(track, "auto" | "high" | "medium" | "low")`
 * - `send(text)`: the number of receivers
 * - `sendFile(file, peer)`: the id of the transfer; `acceptFile(id)`; `file(id)`: what was received, as a Blob
 * - `record(on)`: at the end, resolves with `{blob, url, name, size, type, seconds}`
 * - `report({addresses})`: an object
 * - `invite(peer)`, `acceptGame()`, `setPaddle(y)`, `quitGame()`
 */
window.rooms = Object.freeze({
  get state() {
    return describe({ call, name, media, chat, files, game, recorder, statistics });
  },
  join,
  leave,
  share,
  mute: (on) => media.setMuted(on),
  setMode: (mode) => call.setMode(mode),
  setLayer: (track, layer) => call.setLayer(track, layer),
  send: (text) => chat.send(text),
  sendFile: (file, peer = byId("file-peer").value) => files.send(peer, file).id,
  acceptFile: (id) => files.accept(id),
  file: (id) => files.transfers.get(id)?.blob,
  restartIce: () => call.restart("user"),
  record,
  report,
  invite: (peer = byId("game-peer").value) => game.invite(peer),
  acceptGame: () => game.accept(),
  setPaddle: (y) => game.setPaddle(y),
  quitGame: () => game.quit(),
});

// Start

clean();
statistics.start();
const started = prejoin.start();
// The video of a participant who sends nothing would keep a page loading for ever.
const loaded = new Promise((resolve) => {
  if (document.readyState === "complete") resolve();
  else addEventListener("load", resolve, { once: true });
});
if (parameters.get("join") === "1") Promise.all([started, loaded]).then(() => prejoin.submit());
