import { iceSentence, lostSentence, restartSentence, stuckSentence } from "../sentences.js";
import { isolate } from "../text.js";
import { dismiss, notice } from "./notices.js";

/** Errors of the relay that its operator has to repair, even if another relay works. */
const TELLING = new Set([401, 403, 438, 486, 508]);
const TROUBLE_MS = 8000;

const MODES = { mesh: "mesh", sfu: "forwarding unit", broadcast: "broadcast" };

/** Says what happens in the call. `names` gives the name of a participant, `isConnected` whether all are connected. */
export function announce({ call, media, names, isConnected }) {
  let lost = false;
  call.signalling.on("joined", ({ resumed }) => {
    // Otherwise, a message about the restart follows.
    if (lost && !resumed) notice("You are in the room again. All connections are new.");
    lost = false;
    dismiss("signalling");
  });
  call
    .on("arrived", ({ name }) => notice(`${isolate(name)} has joined.`))
    .on("departed", ({ id, name }) => {
      const sent = call.mode === "broadcast" && call.sender === id;
      const advice = sent ? " The broadcast goes on when somebody selects a mode in the panel Room." : "";
      notice(`${isolate(name)} has left.${advice}`, { stays: sent });
    })
    .on("mode", ({ by }) => {
      const who = by === call.id ? "You have" : `${isolate(names(by))} has`;
      if (by) notice(`${who} changed the mode to ${MODES[call.mode]}.`);
    })
    .on("lost", () => {
      const text = "The connection to the server of the room is lost. Trying again.";
      if (!lost) notice(text, { stays: true, about: "signalling" });
      lost = true;
    })
    .on("ended", () => {
      lost = false;
      dismiss("signalling");
    })
    .on("restarting", (reason) => notice(restartSentence(reason)))
    .on("stuck", (id) => notice(stuckSentence(id && names(id), call.ice.relayOnly), { problem: true }))
    // A participant may leave while a message to them is in transit.
    .on("problem", ({ code, text }) => notice(text, { problem: code !== "no-such-peer" }))
    .on("trouble", (event) => {
      const report = () => notice(iceSentence(event), { problem: true });
      if (TELLING.has(event.errorCode)) report();
      // Browsers try all servers from all interfaces. A failure matters only if there is no connection.
      else setTimeout(() => isConnected() || report(), TROUBLE_MS);
    });
  media
    .on("lost", (event) => notice(lostSentence(event), { problem: event.replacement === null, about: event.kind }))
    .on("found", ({ kind, label }) => {
      dismiss(kind);
      notice(`“${label}” is used.`);
    });
}
