/** How often each participant may do something: at most `most` times within `ms` milliseconds. */
export class Limit {
  #most;
  #ms;
  /** The times of the last admissions, by participant. */
  #admissions = new Map();

  constructor({ most, ms }) {
    this.#most = most;
    this.#ms = ms;
  }

  /** Whether a participant may do it once more, which is counted. */
  admits(id) {
    const now = performance.now();
    const recent = (this.#admissions.get(id) ?? []).filter((at) => now - at < this.#ms);
    const admitted = recent.length < this.#most;
    if (admitted) recent.push(now);
    this.#admissions.set(id, recent);
    return admitted;
  }
}
