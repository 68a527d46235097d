import { Emitter } from "./emitter.js";

const SAMPLE_MS = 1000;
const KEPT = 120;

/**
 * Samples the statistics of all connections once per second.
 *
 * `connections` returns `[{key, name, pc}]`. `histories` maps each key to `{name, samples}` with at most two minutes
 * of samples as `summarize` describes them. Event `sample` after each round.
 */
export class Statistics extends Emitter {
  histories = new Map();
  #connections;
  #counters = new Map();

  constructor(connections) {
    super();
    this.#connections = connections;
  }

  start() {
    const round = async () => {
      try {
        await this.sample();
      } finally {
        setTimeout(round, SAMPLE_MS);
      }
    };
    round();
  }

  /** The newest sample of a connection, or undefined. */
  latest(key) {
    return this.histories.get(key)?.samples.at(-1);
  }

  /** Whether no frame of a track has been decoded for two seconds. */
  isStill(key, trackId) {
    const decoded = this.histories.get(key)?.samples.slice(-3).map((sample) => sample.decoded[trackId]) ?? [];
    const last = decoded.at(-1);
    return last === 0 || (last !== undefined && decoded.length === 3 && decoded.every((value) => value === last));
  }

  async sample() {
    const connections = this.#connections();
    const keys = new Set(connections.map(({ key }) => key));
    for (const key of this.histories.keys()) {
      if (!keys.has(key)) {
        this.histories.delete(key);
        this.#counters.delete(key);
      }
    }
    // A connection whose statistics cannot be read has no sample of this round.
    await Promise.allSettled(connections.map((connection) => this.#sampleOne(connection)));
    this.emit("sample");
  }

  async #sampleOne({ key, name, pc }) {
    if (pc.connectionState === "closed") return;
    const report = [...(await pc.getStats()).values()];
    const counters = countersOf(report);
    const before = this.#counters.get(key);
    this.#counters.set(key, counters);
    const history = this.histories.get(key) ?? { name, samples: [] };
    history.name = name;
    this.histories.set(key, history);
    history.samples.push(summarize(report, counters, before, pc));
    if (history.samples.length > KEPT) history.samples.shift();
  }
}

/** The counters whose growth matters, summed over the media of a connection. */
function countersOf(report) {
  const inbound = report.filter(({ type }) => type === "inbound-rtp");
  const outbound = report.filter(({ type }) => type === "outbound-rtp");
  const pair = selectedPair(report);
  return {
    at: performance.now(),
    pair: pair?.id,
    bytesIn: pair?.bytesReceived ?? 0,
    bytesOut: pair?.bytesSent ?? 0,
    packetsIn: sum(inbound, "packetsReceived"),
    lostIn: sum(inbound, "packetsLost"),
    packetsOut: sum(outbound, "packetsSent"),
    framesDecoded: sum(inbound, "framesDecoded"),
    freezes: sum(inbound, "freezeCount"),
    packets: packetsByStream([...inbound, ...outbound]),
  };
}

/**
 * One sample: `state`, `pair` (types, protocols and addresses of the candidates), `rtt` and `jitter` in
 * milliseconds, `lossIn` and `lossOut` in percent, `bitrateIn` and `bitrateOut` in kbit/s, `fps`, and the totals
 * `framesDecoded`, `bytesReceived` and `bytesSent`. What is not known is null.
 */
function summarize(report, counters, before, pc) {
  const pair = selectedPair(report);
  const samePair = before && before.pair === counters.pair;
  const seconds = before ? (counters.at - before.at) / 1000 : 0;
  const rate = (key) => (samePair && seconds > 0 ? Math.max(0, counters[key] - before[key]) / seconds : null);
  const kilobits = (key) => (rate(key) === null ? null : (rate(key) * 8) / 1000);
  const growth = (key) => (before ? Math.max(0, counters[key] - before[key]) : 0);
  // A stream without packets, of a camera that is off for example, keeps its last measurements.
  const flows = (id) => counters.packets.get(id) > (before?.packets.get(id) ?? 0);
  const inbound = report.filter(({ type, id }) => type === "inbound-rtp" && flows(id));
  const remote = report.filter(({ type, localId }) => type === "remote-inbound-rtp" && flows(localId));
  const limitation = report
    .filter(({ type, kind, id }) => type === "outbound-rtp" && kind === "video" && flows(id))
    .map(({ qualityLimitationReason }) => qualityLimitationReason)
    .find((reason) => reason && reason !== "none");
  const roundTrip = pair?.currentRoundTripTime ?? max(remote, "roundTripTime");
  const expected = growth("packetsIn") + growth("lostIn");
  return {
    at: Date.now(),
    state: pc.connectionState,
    pair: describePair(report, pair),
    rtt: milliseconds(roundTrip),
    jitter: milliseconds(max(inbound, "jitter")),
    lossIn: expected > 0 ? (100 * growth("lostIn")) / expected : null,
    lossOut: remote.length > 0 ? 100 * Math.max(0, max(remote, "fractionLost") ?? 0) : null,
    bitrateIn: kilobits("bytesIn"),
    bitrateOut: kilobits("bytesOut"),
    available: pair?.availableOutgoingBitrate ? pair.availableOutgoingBitrate / 1000 : null,
    fps: max(inbound, "framesPerSecond"),
    height: max(inbound, "frameHeight"),
    freezes: growth("freezes"),
    limitation: limitation ?? null,
    framesDecoded: counters.framesDecoded,
    decoded: decodedByTrack(report),
    bytesReceived: counters.bytesIn,
    bytesSent: counters.bytesOut,
  };
}

function packetsByStream(streams) {
  return new Map(streams.map(({ id, packetsReceived, packetsSent }) => [id, packetsReceived ?? packetsSent ?? 0]));
}

/** The decoded frames of each track: shows which picture is frozen. */
function decodedByTrack(report) {
  const video = report.filter(({ type, kind }) => type === "inbound-rtp" && kind === "video");
  return Object.fromEntries(video.map((entry) => [entry.trackIdentifier, entry.framesDecoded ?? 0]));
}

function selectedPair(report) {
  const transport = report.find(({ type, selectedCandidatePairId }) => type === "transport" && selectedCandidatePairId);
  const pairs = report.filter(({ type }) => type === "candidate-pair");
  if (transport) return pairs.find(({ id }) => id === transport.selectedCandidatePairId);
  const isNominated = ({ nominated, state }) => nominated && state === "succeeded";
  return pairs.find(({ selected }) => selected) ?? pairs.find(isNominated);
}

function describePair(report, pair) {
  if (!pair) return null;
  const local = report.find(({ id }) => id === pair.localCandidateId);
  const remote = report.find(({ id }) => id === pair.remoteCandidateId);
  if (!local || !remote) return null;
  return {
    local: local.candidateType,
    remote: remote.candidateType,
    protocol: local.protocol,
    /** How this browser speaks to the relay: udp, tcp or tls. */
    relayProtocol: local.relayProtocol ?? null,
    relayUrl: local.url ?? null,
    localAddress: formatAddress(local),
    remoteAddress: formatAddress(remote),
  };
}

function formatAddress({ address, ip, port }) {
  const host = address ?? ip ?? "";
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}

function sum(entries, key) {
  return entries.reduce((total, entry) => total + (entry[key] ?? 0), 0);
}

function max(entries, key) {
  const values = entries.map((entry) => entry[key]).filter(Number.isFinite);
  return values.length > 0 ? Math.max(...values) : null;
}

function milliseconds(seconds) {
  return seconds === null || seconds === undefined ? null : seconds * 1000;
}
