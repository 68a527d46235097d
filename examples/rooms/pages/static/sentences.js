// What went wrong, and what to do, for the person in front of the screen.

/** The sentence for an error of getUserMedia. */
export function captureSentence(error) {
  switch (error.name) {
    case "NotAllowedError":
      return (
        "The browser may not use the camera or the microphone. Allow it at the left of the address bar, or join " +
        "with the test picture."
      );
    case "NotFoundError":
      return "There is no camera or microphone. Connect one, or join with the test picture.";
    case "NotReadableError":
      return "Another program uses the camera or the microphone. Close it and choose the device again.";
    case "OverconstrainedError":
      return "The chosen device is gone. Choose another one.";
    case "SecurityError":
      return (
        "Browsers give cameras only to pages from https:// or localhost. Open this page there, or join with the " +
        "test picture."
      );
    default:
      return `The capture did not start: ${error.message}.`;
  }
}

/** The sentence for an error of getDisplayMedia, or null if the user has only closed the dialogue. */
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
      return `The relay ${server} denies a peer's address. Its configuration lists allowed peers (peers.allow).`;
    case 438:
      return `The relay ${server} asks for a new nonce again and again. Its clock may be wrong.`;
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

/** The sentence for a connection that does not come about; `name` is the participant's, or null. */
export function stuckSentence(name, relayOnly) {
  const other = name ?? "the forwarding unit";
  const advice = relayOnly
    ? "Check that the relay runs, and that no firewall blocks its ports."
    : "A firewall may block the path. Check that the relay runs and can be reached.";
  return `There is no connection to ${other}. ${advice}`;
}

export function restartSentence(reason) {
  if (reason === "user") return "Looking for a new path with fresh credentials.";
  const why = {
    network: "The network has changed",
    disconnected: "The connection is interrupted",
    failed: "The connection is lost",
  };
  return `${why[reason] ?? "The connection changes"}: looking for a new path.`;
}
