import { judge } from "./verdict.js";

const SUMMARIZED = ["rtt", "jitter", "lossIn", "lossOut", "bitrateIn", "bitrateOut"];

/** What a person copies into a bug report. It contains addresses only if asked. */
export function makeReport({ call, statistics, addresses }) {
  return {
    at: new Date().toISOString(),
    browser: navigator.userAgent,
    mode: call.mode,
    relayOnly: call.ice.relayOnly,
    participants: call.participants.size + 1,
    connections: [...statistics.histories.values()].map(({ samples }, index) => ({
      connection: index + 1,
      verdict: judge(samples),
      state: samples.at(-1)?.state ?? null,
      path: describePath(samples.at(-1)?.pair, addresses),
      lastMinute: Object.fromEntries(SUMMARIZED.map((key) => [key, summarize(samples.slice(-60), key)])),
      framesDecoded: samples.at(-1)?.framesDecoded ?? 0,
    })),
  };
}

function describePath(pair, addresses) {
  if (!pair) return null;
  const { local, remote, protocol, relayProtocol } = pair;
  return addresses ? pair : { local, remote, protocol, relayProtocol };
}

function summarize(samples, key) {
  const values = samples.map((sample) => sample[key]).filter((value) => value !== null).sort((a, b) => a - b);
  if (values.length === 0) return null;
  const round = (value) => Math.round(value * 10) / 10;
  return { min: round(values[0]), median: round(values[Math.floor(values.length / 2)]), max: round(values.at(-1)) };
}
