// Writes one received file and hashes it, or hashes one file that is sent. Away from the page's thread, and the only
// place where all browsers give synchronous access to the origin private file system.
import { Sha256, selfTest } from "./sha256.js";

const BLOCK = 1 << 20;

let target = null;
const sha = new Sha256();
const tasks = { hash, open, write, finish, close };

// One after the other, in the order of arrival.
let last = Promise.resolve();
self.addEventListener("message", ({ data: { call, task, argument } }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ call, result: await tasks[task](argument) });
    } catch (error) {
      self.postMessage({ call, error: error.message });
    }
  });
});

/** The hash of a file, which is read in blocks. */
async function hash(file) {
  selfTest();
  for (let offset = 0; offset < file.size; offset += BLOCK) {
    sha.update(new Uint8Array(await file.slice(offset, offset + BLOCK).arrayBuffer()));
  }
  return sha.hex();
}

/** Opens a file in a directory of the origin private file system, or memory if it has a limit. */
async function open({ directory, name, memoryLimit }) {
  selfTest();
  target = memoryLimit ? new MemoryTarget(memoryLimit) : await FileTarget.open(directory, name);
}

/** Appends bytes; the result is the length so far. */
function write(buffer) {
  const bytes = new Uint8Array(buffer);
  sha.update(bytes);
  return target.append(bytes);
}

/** Closes the file; the result is its content and hash. */
async function finish() {
  return { file: await target.close(), sha256: sha.hex() };
}

/** Gives up a file that is not finished, so that it can be removed. */
async function close() {
  await target?.close();
}

class FileTarget {
  #handle;
  #access;
  #length = 0;

  static async open(directory, name) {
    const root = await navigator.storage.getDirectory();
    const folder = await root.getDirectoryHandle(directory, { create: true });
    const file = new FileTarget();
    file.#handle = await folder.getFileHandle(name, { create: true });
    file.#access = await file.#handle.createSyncAccessHandle();
    return file;
  }

  append(bytes) {
    const written = this.#access.write(bytes, { at: this.#length });
    if (written < bytes.length) throw new Error("the disk is full");
    this.#length += written;
    return this.#length;
  }

  close() {
    this.#access.flush();
    this.#access.close();
    return this.#handle.getFile();
  }
}

class MemoryTarget {
  #parts = [];
  #length = 0;
  #limit;

  constructor(limit) {
    this.#limit = limit;
  }

  append(bytes) {
    if (this.#length + bytes.length > this.#limit) throw new Error(`the memory is limited to ${this.#limit >> 20} MiB`);
    this.#parts.push(new Blob([bytes])); // the browser may move it to disk
    this.#length += bytes.length;
    return this.#length;
  }

  close() {
    return new Blob(this.#parts);
  }
}
