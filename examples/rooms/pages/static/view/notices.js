import { byId, clone } from "./dom.js";

const SHOWN_MS = 6000;
const MOST = 3;

const list = byId("notices");

/**
 * Shows a sentence for some seconds; a problem, a download, and what `stays` are shown until they are closed. Screen
 * readers read it out. `about` names what it concerns, for `dismiss`: a panel, for example.
 */
export function notice(text, { problem = false, stays = problem, download = null, about = "" } = {}) {
  const same = [...list.children].find((element) => element.firstElementChild.textContent === text);
  same?.remove();
  const element = clone("notice");
  element.firstElementChild.textContent = text;
  element.dataset.level = problem ? "problem" : "note";
  element.dataset.about = about;
  if (download) {
    const link = element.querySelector("a");
    Object.assign(link, { href: download.url, download: download.name, hidden: false });
  }
  element.querySelector("button").addEventListener("click", () => element.remove());
  list.append(element);
  const others = [...list.children].filter((other) => other.querySelector("a").hidden);
  for (const other of others.slice(0, -MOST)) other.remove();
  if (!stays && !download) removeLater(element);
}

/** Removes a notice after some seconds, but not while it has the focus or the pointer. */
function removeLater(element) {
  setTimeout(() => {
    if (element.matches(":hover, :focus-within")) removeLater(element);
    else element.remove();
  }, SHOWN_MS);
}

/** Removes the notices about something that does not apply any more. */
export function dismiss(about) {
  for (const element of [...list.children]) if (element.dataset.about === about) element.remove();
}
