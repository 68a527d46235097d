import { iceSentence, restartSentence, stuckSentence } from "../sentences.js";
import { notice } from "./notices.js";

/** Errors of the relay that someone has to repair, even if another server helps at the moment. */
const TELLING = new Set([401, 403, 438, 486, 508]);
const TROUBLE_MS = 8000;

const MODES = { mesh: "mesh", sfu: "forwarding unit", broadcast: "broadcast" };

/** Says what happens in the call. `names` gives the name of a participant, `isConnected` whether all is well. */
export function announce({ call, names, isConnected }) {
  call
    .on("arrived", ({ name }) => notice(`${name} has joined.`))
    .on("departed", ({ name }) => notice(`${name} has left.`))
    .on("mode", ({ by }) => {
      if (by) notice(`${by === call.id ? "You have" : `${names(by)} has`} changed the mode to ${MODES[call.mode]}.`);
    })
    .on("lost", () => notice("The connection to the server of the room is lost. Connecting again."))
    .on("restarting", (reason) => notice(restartSentence(reason)))
    .on("stuck", (id) => notice(stuckSentence(id && names(id), call.ice.relayOnly), { problem: true }))
    // Someone may leave while a message to them is on its way.
    .on("problem", ({ code, text }) => notice(text, { problem: code !== "no-such-peer" }))
    .on("trouble", (event) => {
      const report = () => notice(iceSentence(event), { problem: true });
      if (TELLING.has(event.errorCode)) report();
      // Browsers try all servers from all interfaces. That one fails matters only if there is no connection.
      else setTimeout(() => isConnected() || report(), TROUBLE_MS);
    });
}
