const CANDIDATES = { host: "direct", srflx: "NAT", prflx: "reflexive" };

/** A number of bytes with a unit: "1.5 MiB". */
export function bytes(count) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  const power = Math.min(Math.floor(Math.log2(Math.max(count, 1)) / 10), units.length - 1);
  const value = count / 1024 ** power;
  const digits = power === 0 || value >= 100 ? 0 : 1;
  return `${value.toFixed(digits)} ${units[power]}`;
}

/** A bitrate from kbit/s: "830 kbit/s", "2.1 Mbit/s". */
export function bitrate(kilobits) {
  if (kilobits === null) return "–";
  if (kilobits < 1000) return `${Math.round(kilobits)} kbit/s`;
  return `${(kilobits / 1000).toFixed(kilobits < 10_000 ? 1 : 0)} Mbit/s`;
}

export function milliseconds(value) {
  if (value === null) return "–";
  return `${value < 10 && !Number.isInteger(value) ? value.toFixed(1) : Math.round(value)} ms`;
}

export function percent(value) {
  return value === null ? "–" : `${value.toFixed(value < 10 && !Number.isInteger(value) ? 1 : 0)} %`;
}

export function duration(seconds) {
  return `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
}

/** A candidate pair in words: "relay ⇄ relay, over UDP". */
export function path(pair) {
  if (!pair) return "–";
  const relay = pair.relayProtocol ? `, to the relay over ${pair.relayProtocol.toUpperCase()}` : "";
  const [local, remote] = [pair.local, pair.remote].map((type) => CANDIDATES[type] ?? type);
  return `${local} ⇄ ${remote}${relay}`;
}
