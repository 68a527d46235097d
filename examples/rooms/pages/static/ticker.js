/** Calls `tick` about every `ms` milliseconds, in a hidden tab too; returns the function that ends it. */
export function every(ms, tick) {
  const worker = new Worker(new URL("ticker-worker.js", import.meta.url), { type: "module" });
  worker.addEventListener("message", tick);
  worker.postMessage(ms);
  return () => worker.terminate();
}
