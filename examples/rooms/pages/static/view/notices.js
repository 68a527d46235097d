import { byId, clone } from "./dom.js";

const SHOWN_MS = 6000;
const MOST = 3;

const list = byId("notices");

/** Shows a sentence for some seconds; a problem stays until it is closed. Screen readers read it out. */
export function notice(text, { problem = false, download = null } = {}) {
  const same = [...list.children].find((element) => element.firstElementChild.textContent === text);
  same?.remove();
  const element = clone("notice");
  element.firstElementChild.textContent = text;
  element.dataset.level = problem ? "problem" : "note";
  if (download) {
    const link = element.querySelector("a");
    Object.assign(link, { href: download.url, download: download.name, hidden: false });
  }
  element.querySelector("button").addEventListener("click", () => element.remove());
  list.append(element);
  while (list.children.length > MOST) list.firstElementChild.remove();
  if (!problem && !download) setTimeout(() => element.remove(), SHOWN_MS);
}
