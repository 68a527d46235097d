import { byId, setOptions } from "./dom.js";

const NAMES = { video: "Camera", audio: "Microphone", speaker: "Speaker" };

/** Whether the browser can play on another device than the default. */
export const HAS_SPEAKERS = "setSinkId" in HTMLMediaElement.prototype;

/**
 * Keeps selects of devices up to date. `selects` has the ids of the elements by kind: video, audio, speaker. `onChoose`
 * takes the kind, the id of the device and its label.
 */
export function listDevices({ media, selects, onChoose }) {
  const list = async () => {
    const devices = await media.devices();
    for (const [kind, id] of Object.entries(selects)) fill(byId(id), kind, devices[kind], media);
  };
  for (const [kind, id] of Object.entries(selects)) {
    byId(id).addEventListener("change", ({ target }) => {
      if (target.value || kind === "speaker") onChoose(kind, target.value, target.selectedOptions[0].text);
    });
  }
  media.on("devices", list).on("change", list);
  list();
}

function fill(select, kind, devices, media) {
  const options = devices
    .filter(({ deviceId }) => deviceId) // without permission, they have no ids
    .map(({ deviceId, label }, index) => ({ value: deviceId, text: label || `${NAMES[kind]} ${index + 1}` }));
  const isSpeaker = kind === "speaker";
  if (isSpeaker && !options.some(({ value }) => value === "default")) options.unshift({ value: "", text: "Default" });
  const none = options.length === 0;
  // Otherwise, the first device would be selected already, and could not be chosen.
  const isUnused = !isSpeaker && !none && !media.synthetic && !media[kind] && !media.isOff(kind);
  if (isUnused) options.unshift({ value: "", text: "Not used" });
  setOptions(select, none ? [{ value: "", text: devices.length > 0 ? "Not permitted" : "None" }] : options);
  select.disabled = none || (media.synthetic && !isSpeaker);
  const used = isSpeaker ? media.speaker || options[0].value : media[kind]?.getSettings().deviceId;
  if (isUnused) select.value = "";
  else if (options.some(({ value }) => value === used)) select.value = used;
}
