// One worker for all, made when the page is loaded: later, the server may be away.
const worker = new Worker(new URL("ticker-worker.js", import.meta.url), { type: "module" });
const ticks = new Map();
let count = 0;
worker.addEventListener("message", ({ data: id }) => ticks.get(id)?.());

/** Calls `tick` about every `ms` milliseconds, in a hidden tab too; returns the function that ends it. */
export function every(ms, tick) {
  const id = (count += 1);
  ticks.set(id, tick);
  worker.postMessage({ id, ms });
  return () => {
    ticks.delete(id);
    worker.postMessage({ id, ms: null });
  };
}
