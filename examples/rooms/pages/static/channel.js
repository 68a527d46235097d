const HIGH_WATER = 1 << 20;
const LOW_WATER = 1 << 18;

/** Resolves when the channel can take more; rejects when it closes. Bounds the memory of a fast sender. */
export function writable(channel) {
  if (channel.readyState !== "open") return Promise.reject(new Error("the channel is closed"));
  if (channel.bufferedAmount < HIGH_WATER) return null;
  channel.bufferedAmountLowThreshold = LOW_WATER;
  return new Promise((resolve, reject) => {
    const end = (settle) => () => {
      channel.removeEventListener("bufferedamountlow", low);
      channel.removeEventListener("close", closed);
      settle(new Error("the channel is closed"));
    };
    const low = end(resolve);
    const closed = end(reject);
    channel.addEventListener("bufferedamountlow", low);
    channel.addEventListener("close", closed);
  });
}

/** Sends an object as JSON, if the channel is open. */
export function sendJson(channel, message) {
  if (channel?.readyState === "open") channel.send(JSON.stringify(message));
}

/** The object in a text message, or null. What is in the object was not checked. */
export function parseJson(data) {
  if (typeof data !== "string") return null;
  try {
    const message = JSON.parse(data);
    return typeof message === "object" && !Array.isArray(message) ? message : null;
  } catch {
    return null;
  }
}
