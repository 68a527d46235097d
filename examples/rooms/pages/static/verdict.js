// Judges a connection from its last samples.
import { isolate } from "./text.js";

const RECENT = 5;
const NARROW = 400; // kbit/s
/** The states of a connection that does not work, and does not begin to. */
const LOST = new Set(["disconnected", "failed"]);

// What participants notice: ITU-T G.114 recommends at most 150 ms one way, 300 ms both ways, for a conversation.
const LIMITS = {
  rtt: { fair: 250, poor: 500 },
  loss: { fair: 2, poor: 8 },
  jitter: { fair: 30, poor: 80 },
};

/** The quality of a connection: `{level, reason}`; level is none, poor, fair or good. */
export function judge(samples) {
  const last = samples.at(-1);
  if (!last) return { level: "none", reason: "There are no measurements yet." };
  if (last.state !== "connected") return { level: "none", reason: stateReason(last.state) };
  const recent = samples.slice(-RECENT);
  const [finding] = findings(recent).sort((a, b) => rank(a) - rank(b));
  return finding ?? { level: "good", reason: goodReason(recent) };
}

/**
 * The quality of a call from its connections `{name, samples}`: the worst of those that work, which is what a
 * participant feels, and a sentence about the others.
 */
export function judgeAll(connections) {
  const verdicts = connections.map(({ name, samples }) => ({ name, ...judge(samples) }));
  const broken = verdicts.filter(({ level }) => level === "none");
  const [worst] = verdicts.filter(({ level }) => level !== "none").sort((a, b) => rank(a) - rank(b));
  if (!worst) return broken[0] ?? judge([]);
  if (broken.length === 0) return worst;
  const [{ name, reason }] = broken;
  const rest = broken.length === 1 ? `${isolate(name)}: ${reason}` : `${broken.length} connections do not work.`;
  const isLost = connections.some(({ samples }) => LOST.has(samples.at(-1)?.state));
  return { level: isLost && worst.level === "good" ? "fair" : worst.level, reason: `${worst.reason} ${rest}` };
}

function rank({ level }) {
  return ["none", "poor", "fair", "good"].indexOf(level);
}

function findings(samples) {
  const rtt = average(samples, "rtt");
  const lossIn = average(samples, "lossIn");
  const lossOut = average(samples, "lossOut");
  const jitter = average(samples, "jitter");
  const limited = (by) => samples.length === RECENT && samples.every(({ limitation }) => limitation === by);
  // At the start, every browser sends little; only a bandwidth below this limit is a problem.
  const isNarrow = limited("bandwidth") && (samples.at(-1).available ?? 0) < NARROW;
  return [
    grade(LIMITS.loss, lossIn, `${percent(lossIn)} of the packets to you are lost.`),
    grade(LIMITS.loss, lossOut, `${percent(lossOut)} of the packets from you are lost.`),
    grade(LIMITS.rtt, rtt, `The round trip takes ${Math.round(rtt)} ms, which disturbs a conversation.`),
    grade(LIMITS.jitter, jitter, `Packets arrive unevenly: ${Math.round(jitter)} ms of jitter.`),
    samples.some(({ freezes }) => freezes > 0) && { level: "fair", reason: "The picture freezes at times." },
    isNarrow && { level: "fair", reason: "The bandwidth limits the picture that you send." },
    limited("cpu") && { level: "fair", reason: "This computer is too busy for the full picture." },
  ].filter(Boolean);
}

function grade({ fair, poor }, value, reason) {
  if (value === null || value < fair) return null;
  return { level: value < poor ? "fair" : "poor", reason };
}

function goodReason(samples) {
  const rtt = average(samples, "rtt");
  const loss = average(samples, "lossIn");
  const parts = [];
  if (rtt !== null) parts.push(`${Math.round(rtt)} ms round trip`);
  if (loss !== null) parts.push(loss < 0.05 ? "no loss" : `${percent(loss)} loss`);
  return parts.length > 0 ? `${parts.join(", ")}.` : "Connected.";
}

function stateReason(state) {
  if (state === "failed") return "No path works. A firewall may block the relay.";
  if (state === "disconnected") return "The connection is interrupted.";
  return "Connecting.";
}

function average(samples, key) {
  const values = samples.map((sample) => sample[key]).filter((value) => value !== null);
  return values.length > 0 ? values.reduce((total, value) => total + value, 0) / values.length : null;
}

function percent(value) {
  return value === null ? "" : `${value.toFixed(value < 10 ? 1 : 0)} %`;
}
