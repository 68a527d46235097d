import { byId, clone } from "./dom.js";

const SHOWN_MS = 6000;
const MOST = 3;

const list = byId("notices");

/**
 * Shows a sentence for some seconds; a problem stays until it is closed. Screen readers read it out. A notice about
 * something in a panel disappears when the panel opens.
 */
export function notice(text, { problem = false, download = null, panel = "" } = {}) {
  const same = [...list.children].find((element) => element.firstElementChild.textContent === text);
  same?.remove();
  const element = clone("notice");
  element.firstElementChild.textContent = text;
  element.dataset.level = problem ? "problem" : "note";
  element.dataset.about = panel;
  if (download) {
    const link = element.querySelector("a");
    Object.assign(link, { href: download.url, download: download.name, hidden: false });
  }
  element.querySelector("button").addEventListener("click", () => element.remove());
  list.append(element);
  while (list.children.length > MOST) list.firstElementChild.remove();
  if (!problem && !download) setTimeout(() => element.remove(), SHOWN_MS);
}

/** Removes the notices about a panel. */
export function dismiss(panel) {
  for (const element of [...list.children]) if (element.dataset.about === panel) element.remove();
}
