/** An event target whose events carry their data in `detail`. */
export class Emitter extends EventTarget {
  emit(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  /** Calls `listener` with the data of each event; returns this, so that calls chain. */
  on(type, listener) {
    this.addEventListener(type, (event) => listener(event.detail));
    return this;
  }
}
