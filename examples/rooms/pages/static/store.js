import { randomId } from "./random.js";

/** The longest file that is kept in memory, where there is no origin private file system. */
export const MEMORY_LIMIT = 512 << 20;

const PREFIX = "rooms-";
const directory = PREFIX + randomId();

// A tab holds a lock with the name of its directory as long as it lives; see `clean`.
navigator.locks?.request(directory, () => new Promise(() => {}));

/** A worker that executes calls in their order. */
class StoreWorker {
  #worker = new Worker(new URL("store-worker.js", import.meta.url), { type: "module" });
  #calls = new Map();
  #count = 0;
  #problem = null;

  constructor() {
    this.#worker.addEventListener("message", ({ data: { call, result, error } }) => {
      const { resolve, reject } = this.#calls.get(call) ?? {};
      this.#calls.delete(call);
      if (error) reject?.(new Error(error));
      else resolve?.(result);
    });
    // Without a message, the script was not loaded.
    const unloaded = "a part of this page cannot be loaded, because the server does not respond";
    this.#worker.addEventListener("error", ({ message }) => this.#fail(new Error(message || unloaded)));
    this.#worker.addEventListener("messageerror", () => this.#fail(new Error("a result cannot be read")));
  }

  call(task, argument, transfer = []) {
    if (this.#problem) return Promise.reject(this.#problem);
    const call = (this.#count += 1);
    return new Promise((resolve, reject) => {
      this.#calls.set(call, { resolve, reject });
      this.#worker.postMessage({ call, task, argument }, transfer);
    });
  }

  terminate() {
    this.#worker.terminate();
  }

  #fail(error) {
    this.#problem = error;
    for (const { reject } of this.#calls.values()) reject(error);
    this.#calls.clear();
  }
}

/** The SHA-256 of a file or blob of any size, in hexadecimal. An AbortSignal ends the computation without a result. */
export async function hashFile(file, signal) {
  const worker = new StoreWorker();
  signal.addEventListener("abort", () => worker.terminate());
  try {
    return await worker.call("hash", file);
  } finally {
    worker.terminate();
  }
}

/** A file that is written in parts. */
export class Store {
  #worker = new StoreWorker();
  #name = randomId();
  #isOpen = true;

  /** `bytes` is the expected size; throws if it is too large for this browser. */
  static async open(bytes) {
    const memory = !(await hasFileSystem());
    if (memory && bytes > MEMORY_LIMIT) {
      throw new Error(`this browser keeps files in memory, at most ${MEMORY_LIMIT >> 20} MiB`);
    }
    const { quota = Infinity, usage = 0 } = memory ? {} : await navigator.storage.estimate();
    if (bytes > quota - usage) {
      throw new Error(`the browser has only ${Math.floor((quota - usage) / (1 << 20))} MiB left for this page`);
    }
    const store = new Store();
    try {
      await store.#worker.call("open", { directory, name: store.#name, memoryLimit: memory ? MEMORY_LIMIT : null });
    } catch (error) {
      store.#end();
      throw error;
    }
    return store;
  }

  /** Appends a buffer, which is moved away; resolves with the length so far. */
  write(buffer) {
    return this.#worker.call("write", buffer, [buffer]);
  }

  /** Resolves with `{file, sha256}`. */
  async finish() {
    const result = await this.#worker.call("finish");
    this.#end();
    return result;
  }

  /** Removes the file, whether it is finished or not. */
  async discard() {
    if (this.#isOpen) await this.#worker.call("close").catch(() => {}); // the file is removed in any case
    this.#end();
    const root = await navigator.storage?.getDirectory().catch(() => null);
    const folder = await root?.getDirectoryHandle(directory).catch(() => null);
    await folder?.removeEntry(this.#name).catch(() => {}); // there is none if it was kept in memory
  }

  #end() {
    this.#isOpen = false;
    this.#worker.terminate();
  }
}

/** Removes what tabs have left that are closed. */
export async function clean() {
  if (!navigator.locks || !(await hasFileSystem())) return;
  const { held } = await navigator.locks.query();
  const alive = new Set([directory, ...held.map(({ name }) => name)]);
  const root = await navigator.storage.getDirectory();
  for await (const name of root.keys()) {
    if (name.startsWith(PREFIX) && !alive.has(name)) {
      await root.removeEntry(name, { recursive: true }).catch(() => {}); // another tab may have been faster
    }
  }
}

async function hasFileSystem() {
  try {
    await navigator.storage.getDirectory();
    return true;
  } catch {
    return false; // no secure origin, or a private window
  }
}
