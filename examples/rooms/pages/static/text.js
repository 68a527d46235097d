// Texts that others wrote, made safe for display.

/** Control and formatting characters, with which one text can look like another. */
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
/** As above without line breaks, tabs, and the joiners that some scripts and emoji need. */
const INVISIBLE_IN_TEXT = /(?![\n\t\u200c\u200d])[\p{Cc}\p{Cf}\p{Zl}\p{Zp}]/gu;
/** What separates the parts of a path or is special in file names on some system. */
const SPECIAL_IN_FILES = /[/\\:*?"<>|]/g;

const LONGEST_NAME = 40;
/** In characters of up to three bytes: file systems allow 255 bytes. */
const LONGEST_FILE_NAME = 80;
const LONGEST_EXTENSION = 16;

/** The name of a participant as the server accepts it; empty if nothing is left. */
export function cleanName(text) {
  return cut(text.toWellFormed().replace(INVISIBLE, "").trim(), LONGEST_NAME).trim();
}

/** The text of a message, with at most `longest` characters. */
export function cleanText(text, longest) {
  return cut(text.slice(0, 2 * longest).toWellFormed().replace(INVISIBLE_IN_TEXT, ""), longest);
}

/** A file name without a path and without characters that hide its extension. A long one loses its middle. */
export function cleanFileName(text) {
  const name = text
    .slice(0, 1000)
    .toWellFormed()
    .replace(INVISIBLE, "")
    .replace(SPECIAL_IN_FILES, "_")
    .replace(/^[\s.]+|[\s.]+$/g, "");
  if (!name) return "file";
  const dot = name.lastIndexOf(".");
  const extension = dot > 0 && name.length - dot <= LONGEST_EXTENSION ? name.slice(dot) : "";
  const stem = extension ? name.slice(0, dot) : name;
  const longest = LONGEST_FILE_NAME - extension.length;
  return [...stem].length > longest ? `${cut(stem, longest - 1)}…${extension}` : name;
}

/** A name within a sentence: one that is written from right to left does not reorder the words around it. */
export function isolate(name) {
  return `\u2068${name}\u2069`;
}

/** At most `length` characters, without half of one at the end. */
function cut(text, length) {
  return [...text].slice(0, length).join("");
}
