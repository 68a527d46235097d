// What went wrong, and what to do, for the user of the page.
import { isolate } from "./text.js";

/** The sentence for an error of getUserMedia; `error.device` says for which device. */
export function captureSentence(error) {
  const device = error.device ?? "camera or microphone";
  switch (error.name) {
    case "NotAllowedError":
      return (
        `This page is not permitted to use the ${device}. Permit it at the left of the address bar, or use the test ` +
        "picture."
      );
    case "NotFoundError":
      return `There is no ${device}. Connect one, or use the test picture.`;
    case "NotReadableError":
      return `Another program uses the ${device}. Close it and choose the device again.`;
    case "OverconstrainedError":
      return "The chosen device is not connected. Choose another one.";
    case "SecurityError":
      return (
        "Browsers permit cameras only on pages from https:// or localhost. Open this page there, or use the test " +
        "picture."
      );
    default:
      return `The capture did not start: ${error.message}.`;
  }
}

/** The sentence for an error of setSinkId. */
export function speakerSentence(error) {
  if (error.name === "NotFoundError") return "The chosen speaker is not connected. Choose another one.";
  if (error.name === "NotAllowedError") return "The browser does not permit this speaker.";
  return `The speaker does not work: ${error.message}.`;
}

/** The sentence for a device that disappeared during use: `{kind, label, replacement}` as in Media. */
export function lostSentence({ kind, label, replacement }) {
  const device = label ? `“${label}”` : "The device";
  if (kind === "speaker") return `${device} is disconnected. The default speaker plays the sound.`;
  if (replacement) return `${device} has stopped. “${replacement}” is used.`;
  const effect = kind === "audio" ? "Others do not hear you." : "Others do not see you.";
  return `${device} has stopped. ${effect} Connect another device, or use the test picture.`;
}

/** The sentence for an error of getDisplayMedia, or null if the user has only closed the dialog. */
export function shareSentence(error) {
  if (error.name === "NotAllowedError") return null;
  if (error.name === "TypeError") return "This browser cannot share the screen.";
  return `The screen is not shared: ${error.message}.`;
}

/** The sentence for an icecandidateerror event; `url` names the server without the credential. */
export function iceSentence({ errorCode, errorText, url }) {
  const server = String(url).split("?")[0];
  switch (errorCode) {
    case 401:
      return (
        `The relay ${server} rejects the credentials. Compare the secret and the clock of this server with those ` +
        "of the relay."
      );
    case 403:
      return `The relay ${server} forbids the request. Its log says why.`;
    case 438:
      return `The relay ${server} asks for a new nonce repeatedly. Its clock may be wrong.`;
    case 486:
      return `The relay ${server} has no allocation left for this user. Close other tabs of this page.`;
    case 508:
      return `The relay ${server} has no free port. Try again later.`;
    case 701:
      return `The relay ${server} does not respond. A firewall may block it; the other transports are tried.`;
    default:
      return `The relay ${server} reports the error ${errorCode}: ${errorText || "no text"}.`;
  }
}

/** The sentence for a connection that is not established; `name` is the participant's, or null. */
export function stuckSentence(name, relayOnly) {
  const other = name ? isolate(name) : "the forwarding unit";
  const advice = relayOnly
    ? "Check that the relay runs, and that no firewall blocks its ports."
    : "A firewall may block the path. Check that the relay runs and can be reached.";
  return `There is no connection to ${other}. ${advice}`;
}

export function restartSentence(reason) {
  if (reason === "user") return "Looking for a new path with fresh credentials.";
  const why = {
    network: "The network has changed",
    signalling: "The connection to the server of the room was renewed",
    relay: "Only the relay may be used",
    direct: "Direct paths may be used",
    disconnected: "The connection is interrupted",
    failed: "The connection is lost",
  };
  return `${why[reason] ?? "The connection changes"}: looking for a new path.`;
}
