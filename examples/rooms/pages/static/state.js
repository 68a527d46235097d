/** The state of the call as a plain object: for the panels, for the report and for tests. */
export function describe({ call, name, media, chat, files, game, recorder, statistics }) {
  return {
    joined: call.joined,
    id: call.id,
    name,
    mode: call.mode,
    sender: call.sender,
    relayOnly: call.ice.relayOnly,
    credentialsExpire: call.ice.expires,
    muted: media.muted,
    sharing: media.screen !== null,
    peers: [...call.participants.values()].map((participant) => describePeer(participant, call, statistics)),
    sfu: {
      publish: describeLink(call.sfu.publish, statistics.latest("publish")),
      subscribe: describeLink(call.sfu.subscribe, statistics.latest("subscribe")),
      tracks: call.sfu.tracks,
    },
    chat: chat.messages,
    files: [...files.transfers.values()].map(describeTransfer),
    game: {
      phase: game.phase,
      peer: game.peer,
      side: game.side,
      score: [...game.state.score],
      ball: { ...game.state.ball },
      paddles: [...game.state.paddles],
      latency: game.latency,
      loss: game.loss,
    },
    recording: { state: recorder.state, result: recorder.result },
  };
}

function describePeer({ id, name, kind }, call, statistics) {
  const peer = call.mesh.peers.get(id);
  const { camera, screen } = call.streams(id);
  const mesh = describeLink(peer?.link, statistics.latest(id));
  return {
    id,
    name,
    kind,
    ...mesh,
    framesDecoded: framesDecoded(camera, call, id, statistics),
    screenFramesDecoded: framesDecoded(screen, call, id, statistics),
    screen: (screen?.getVideoTracks().length ?? 0) > 0,
    /** Whether the sound of the screen arrives. */
    screenSound: screen?.getAudioTracks().some(({ muted }) => !muted) ?? false,
    dataChannels: Object.fromEntries([...(peer?.channels ?? [])].map(([label, channel]) => [label, channel.readyState])),
  };
}

function framesDecoded(stream, call, id, statistics) {
  const sample = statistics.latest(call.forwards ? "subscribe" : id);
  return stream?.getVideoTracks().reduce((sum, track) => sum + (sample?.decoded[track.id] ?? 0), 0) ?? 0;
}

function describeLink(link, sample) {
  if (!link) return null;
  return {
    connectionState: link.state,
    restarts: link.restarts,
    pair: sample?.pair ?? null,
    rtt: sample?.rtt ?? null,
    bytesReceived: sample?.bytesReceived ?? 0,
    bytesSent: sample?.bytesSent ?? 0,
  };
}

function describeTransfer({ id, peer, name, size, offset, state, outgoing, sha256, seconds, problem, url }) {
  return { id, peer, name, size, offset, state, outgoing, sha256, seconds, problem: problem ?? null, url: url ?? null };
}
