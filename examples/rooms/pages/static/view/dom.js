/** The element with an id, which must exist. */
export function byId(id) {
  const element = document.getElementById(id);
  if (!element) throw new Error(`the page has no element "${id}"`);
  return element;
}

/** A copy of the first element of a template. */
export function clone(template) {
  return byId(`template-${template}`).content.firstElementChild.cloneNode(true);
}

/** Sets a text only if it changes, so that screen readers do not repeat it and layout does not run. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** Sets icon and text of a button. */
export function setButton(button, icon, text) {
  button.querySelector("use").setAttribute("href", `#i-${icon}`);
  setText(button.querySelector("span"), text);
}

/** Makes the options of a select equal to `[{value, text}]`, and keeps the selection if it still exists. */
export function setOptions(select, options) {
  const key = JSON.stringify(options);
  if (select.dataset.options === key) return;
  select.dataset.options = key;
  const { value } = select;
  select.replaceChildren(...options.map((option) => new Option(option.text, option.value)));
  if (options.some((option) => option.value === value)) select.value = value;
}

/** Writes initials and a color, which depend on the name alone, into an avatar. */
export function setAvatar(element, name) {
  const words = name.trim().split(/\s+/);
  const initials = [words[0], words.length > 1 ? words.at(-1) : ""].map((word) => [...word][0] ?? "");
  setText(element, initials.join("").toUpperCase());
  element.dataset.hue = String([...name].reduce((sum, character) => sum + character.codePointAt(0), 0) % 6);
}

/** Copies a text; returns whether the browser permitted it. */
export async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    return false;
  }
}

/**
 * Makes a change after which the element with the focus may be hidden or disabled. If it is, and was within `area`, the
 * first button that can be used within `next` gets the focus, or else `next` itself.
 */
export function keepFocus(area, next, change) {
  const active = area.contains(document.activeElement) ? document.activeElement : null;
  change();
  if (!active || isUsable(active)) return;
  const [button = next] = [...next.querySelectorAll("button, a[href]")].filter(isUsable);
  button.focus();
}

function isUsable(element) {
  return element.isConnected && !element.disabled && !element.closest("[hidden]");
}
