import { byId, setButton } from "./dom.js";

/** The bar with the buttons of the call. `actions` has a function for each button. */
export class Controls {
  constructor(actions) {
    for (const [id, action] of Object.entries(actions)) byId(id).addEventListener("click", action);
  }

  /** Shows what is on, and which buttons can be used. */
  show({ muted, cameraOn, hasAudio, sharing, recording, canShare, canRecord, isRecorderBusy }) {
    const mute = byId("mute");
    setButton(mute, muted ? "microphone-off" : "microphone", muted ? "Unmute" : "Mute");
    mute.classList.toggle("off", muted);
    mute.disabled = !hasAudio;
    const camera = byId("camera-toggle");
    setButton(camera, cameraOn ? "camera" : "camera-off", "Camera");
    camera.setAttribute("aria-pressed", String(cameraOn));
    camera.classList.toggle("off", !cameraOn);
    const share = byId("share");
    setButton(share, "screen", sharing ? "Unshare" : "Share");
    share.classList.toggle("on", sharing);
    share.disabled = !canShare;
    const record = byId("record");
    setButton(record, recording ? "stop" : "record", recording ? "Stop" : "Record");
    record.classList.toggle("off", recording);
    record.classList.toggle("recording", recording);
    record.disabled = !canRecord;
    record.setAttribute("aria-disabled", String(isRecorderBusy)); // for a moment, in which it keeps the focus
  }
}
