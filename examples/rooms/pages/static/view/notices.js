import { byId, clone, keepFocus } from "./dom.js";

const SHOWN_MS = 6000;
const MOST = 3;

const list = byId("notices");

/** What had the focus before a notice got it. */
let before = null;
list.addEventListener("focusin", ({ relatedTarget }) => {
  if (relatedTarget && !list.contains(relatedTarget)) before = relatedTarget;
});

/**
 * Shows a sentence for some seconds; a problem, a download, and what `stays` are shown until they are closed, or until
 * there are too many of them. Screen readers read it out. `about` names what it concerns, for `dismiss`: a panel, for
 * example. `onClose` is called when the user closes it.
 */
export function notice(text, options = {}) {
  const { problem = false, stays = problem, download = null, about = "", onClose = () => {} } = options;
  const same = [...list.children].find((element) => element.firstElementChild.textContent === text);
  same?.remove();
  const element = clone("notice");
  element.firstElementChild.textContent = text;
  element.dataset.level = problem ? "problem" : "note";
  element.dataset.about = about;
  if (stays) element.dataset.stays = "";
  if (download) {
    const link = element.querySelector("a");
    Object.assign(link, { href: download.url, download: download.name, hidden: false });
  }
  element.querySelector("button").addEventListener("click", () => {
    const next = before?.isConnected && !before.closest("[hidden]") ? before : byId("controls");
    keepFocus(element, list.children.length > 1 ? list : next, () => element.remove());
    onClose();
  });
  list.append(element);
  evict(element);
  if (!stays && !download) removeLater(element);
}

/** Removes the oldest notices if there are too many, first those that pass, but no download and not this one. */
function evict(newest) {
  const others = [...list.children].filter((other) => other !== newest && other.querySelector("a").hidden);
  const order = [...others.filter(({ dataset }) => !("stays" in dataset)), ...others.filter(({ dataset }) => "stays" in dataset)];
  for (const other of order.slice(0, Math.max(0, order.length + 1 - MOST))) other.remove();
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
