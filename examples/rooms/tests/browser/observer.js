// Runs before the scripts of a page. Keeps its connections, because the tests read getStats() themselves.
const connections = [];
const channels = [];
// The states that the connections have had.
const states = [];
window.RTCPeerConnection = class extends RTCPeerConnection {
  constructor(...options) {
    super(...options);
    connections.push(this);
    this.addEventListener("connectionstatechange", () => states.push(this.connectionState));
  }

  createDataChannel(...options) {
    const channel = super.createDataChannel(...options);
    channels.push(channel);
    return channel;
  }
};

// The types of the descriptions that will be lost on their way to the server, and how many were.
const losses = [];
let lost = 0;
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (text) {
  const index = losses.indexOf(JSON.parse(text).description?.type);
  if (index < 0) return send.call(this, text);
  losses.splice(index, 1);
  lost += 1;
};

window.observer = {
  // Loses the next description of a type.
  lose: (type) => losses.push(type),

  lost: () => lost,

  // Milliseconds from the navigation to the first decoded frame, or null.
  firstFrame: null,

  // Waits until a description has an answer.
  negotiated: () => new Promise((resolve) => {
    for (const connection of connections) {
      connection.addEventListener("signalingstatechange", () => connection.signalingState === "stable" && resolve());
    }
  }),

  // The number of connections that this page has made.
  made: () => connections.length,

  states: () => [...states],

  // Begins to look at each frame.
  follow: () => void follow(),

  // Milliseconds of the longest time without a further decoded frame since the last call.
  longestGap: () => {
    const longest = Math.max(gap, performance.now() - lastFrame);
    gap = 0;
    return longest;
  },

  // The data channels that this page has made.
  channels: () => channels.map(({ label, ordered, maxRetransmits }) => ({ label, ordered, maxRetransmits })),

  // The tracks that the connections send.
  senders: () => connections.flatMap((connection) => connection.getSenders().map(({ track }) => track)),

  // The energy of all sound that has come.
  async sound() {
    const reports = await Promise.all(connections.map((connection) => connection.getStats()));
    const inbound = reports.flatMap((report) => [...report.values()]).filter(({ type }) => type === "inbound-rtp");
    return inbound.reduce((sum, { totalAudioEnergy }) => sum + (totalAudioEnergy ?? 0), 0);
  },

  // The paths of all connections that are connected, and what came over them.
  async paths() {
    const connected = connections.filter(({ connectionState }) => connectionState === "connected");
    return Promise.all(connected.map(async (connection) => {
      const report = await connection.getStats();
      const all = [...report.values()];
      const transport = all.find(({ type, selectedCandidatePairId }) => type === "transport" && selectedCandidatePairId);
      // Firefox has no statistics of transports, and marks the pair.
      const pair = transport ? report.get(transport.selectedCandidatePairId) : all.find(({ selected }) => selected);
      const [local, remote] = [report.get(pair.localCandidateId), report.get(pair.remoteCandidateId)];
      const inbound = all.filter(({ type }) => type === "inbound-rtp");
      const sum = (key) => inbound.reduce((total, entry) => total + (entry[key] ?? 0), 0);
      return {
        local: local.candidateType,
        remote: remote.candidateType,
        relayProtocol: local.relayProtocol,
        url: local.url,
        port: local.port,
        remoteAddress: remote.address,
        remotePort: remote.port,
        framesDecoded: sum("framesDecoded"),
        packetsLost: sum("packetsLost"),
        packetsReceived: sum("packetsReceived"),
        roundTrip: pair.currentRoundTripTime,
      };
    }));
  },
};

const look = async () => {
  for (const connection of connections) {
    if (connection.connectionState !== "connected") continue;
    const decoded = [...(await connection.getStats()).values()].some(({ framesDecoded }) => framesDecoded > 0);
    if (decoded) {
      window.observer.firstFrame = performance.now();
      return;
    }
  }
  setTimeout(look, 20);
};
look();

// The frames that have been decoded, when the last one was, and the longest time between two.
let frames = 0;
let lastFrame = null;
let gap = 0;
const follow = async () => {
  const reports = await Promise.all(connections.map((connection) => connection.getStats()));
  lastFrame ??= performance.now();
  const decoded = reports.flatMap((report) => [...report.values()])
    .reduce((sum, { framesDecoded }) => sum + (framesDecoded ?? 0), 0);
  if (decoded !== frames) {
    const now = performance.now();
    gap = Math.max(gap, now - lastFrame);
    [frames, lastFrame] = [decoded, now];
  }
  setTimeout(follow, 20);
};
