// Calls this page through the relay, once for each URL of the server, and measures the call.
'use strict';

const RESPONSE_LIMIT = 15_000;
const GATHER_LIMIT = 12_000;
const CONNECT_LIMIT = 12_000;
const PROBE_INTERVAL = 50;
const PROBE_TIME = 4_000;
const PROBE_WAIT = 1_000;
const PICTURE_LIMIT = 8_000;
const BREAK_LIMIT = 7_000;
const BULK_TIME = 3_000;
const BULK_BYTES = 12 * 1024 * 1024;
const BULK_MESSAGE = 16 * 1024;
const RATE_STEP = 200;
/** With fewer bytes left, a link has relayed as much as it may. */
const SPENT = 64 * 1024;
/** Beyond these, people notice it in a call. */
const POOR = { loss: 3, latency: 400, kbps: 1_000 };

const element = (id) => document.getElementById(id);
const pause = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

/** A failed step, with what it means for the person who reads it. */
class Failure extends Error {
  constructor(step, message) {
    super(message);
    this.step = step;
  }
}

/** Sends JSON and returns the response, or throws what the server says, with the status of the response. */
async function post(path, body) {
  let response;
  try {
    const signal = AbortSignal.timeout?.(RESPONSE_LIMIT);
    response = await fetch(path, { method: 'POST', body: JSON.stringify(body), signal });
  } catch {
    throw new Error('The server of this page does not respond. Is this browser still online?');
  }
  const content = await response.json().catch(() => ({}));
  if (!response.ok) {
    const message = content.error ?? `the server responds with ${response.status}`;
    throw Object.assign(new Error(`${message[0].toUpperCase()}${message.slice(1)}.`), { status: response.status });
  }
  return content;
}

/** Asks how many bytes the link may still relay. If it may relay none, `cause` says why; otherwise `trouble` may. */
async function remaining(key) {
  try {
    const { bytes } = await post('test/remaining', { key });
    return bytes < SPENT ? { bytes, cause: 'This link has relayed as much as it may. Ask the operator for a new one.' } : { bytes };
  } catch (error) {
    if (error.status === undefined) return { trouble: error.message };
    return { cause: error.status === 404 ? 'The server does not know this link: it was started again.' : error.message };
  }
}

const mebibytes = (bytes) => `${(bytes / 2 ** 20).toFixed(bytes < 10 * 2 ** 20 ? 1 : 0)} MiB`;

/** What a URL means: its transport, its host and its port. */
function parsed(url) {
  const [, scheme, host, port, transport] = /^(turns?):(\[[^\]]*\]|[^:?]*)(?::(\d+))?(?:\?transport=(\w+))?$/.exec(url) ?? [];
  if (scheme === undefined) return { name: url, via: '?', port: '' };
  const via = scheme === 'turns' ? 'TLS' : (transport ?? 'udp').toUpperCase();
  return { host, via, port: port ?? (scheme === 'turns' ? '5349' : '3478') };
}

/** The names that this network does not resolve. Browsers say so over UDP only. */
const unresolved = new Set();
/** The names of servers that have responded. */
const reached = new Set();

const isLookup = (text) => /host lookup|resolve|DNS/i.test(text);

/** What errors of the ICE gathering mean, and what to do. `lookup`: whether the name has no address. */
function explained(errors, way, lookup) {
  const at = `port ${way.port} of ${way.host}`;
  if (errors.length === 0 && !('onicecandidateerror' in RTCPeerConnection.prototype)) {
    return `No relayed address over ${way.via}, ${at}. This browser does not say why: a firewall may block it, the name `
      + 'may not resolve, the link may have expired, or the server may be full. Its log says what it has seen.';
  }
  const code = (wanted) => errors.find((error) => error.code === wanted);
  if (code(401)) return 'The server rejects the credential of this page: the link has expired or was revoked, the server was started '
    + 'again, or the name belongs to several servers.';
  if (code(403)) return 'The server forbids it (403). Its log says why.';
  if (code(437)) return 'The server sees an older allocation of this browser (437). Wait a minute and try again.';
  if (code(486)) return 'The server has reached its limit for this user (486). Wait a minute and try again.';
  if (code(508)) return 'The server has no free relay port, or no relay address (508). Its log says which limit it is.';
  if (code(300)) return 'The server sends clients to another server (300), which this browser could not use.';
  const other = errors.find((error) => error.code < 700);
  if (other) return `The server rejects the request: ${other.code} ${other.text}`;
  if (lookup && !reached.has(way.host) && way.host !== location.hostname) unresolved.add(way.host);
  if (unresolved.has(way.host)) return `The name ${way.host} cannot be resolved in this network.`;
  if (way.via === 'UDP') {
    return `No response from UDP ${at}. A firewall between this browser and the server drops UDP, or the port is closed there.`;
  }
  if (way.via === 'TLS') {
    return `No TLS connection to ${at}. A firewall or proxy blocks it, the port is closed, or this browser does not trust `
      + 'the certificate of the server.';
  }
  return `No TCP connection to ${at}. A firewall or proxy blocks it, or the port is closed.`;
}

/** The values at these parts of a list, from 0 to 1. */
function quantiles(values, parts) {
  const sorted = [...values].sort((a, b) => a - b);
  return parts.map((part) => sorted[Math.min(sorted.length - 1, Math.floor(part * sorted.length))]);
}

const rounded = (value, digits = 1) => value === undefined || value === null ? null : Number(value.toFixed(digits));

/** A drawing of values over time. */
class Chart {
  constructor(canvas) {
    this.canvas = canvas;
    this.points = [];
    this.lost = [];
    this.bars = false;
  }

  draw() {
    const { canvas } = this;
    const style = getComputedStyle(document.documentElement);
    const colour = (name) => style.getPropertyValue(name).trim();
    const scale = devicePixelRatio || 1;
    const { clientWidth: width, clientHeight: height } = canvas;
    if (width === 0) return;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const context = canvas.getContext('2d');
    context.scale(scale, scale);
    context.font = '11px system-ui, sans-serif';
    const [left, right, top, bottom] = [34, 6, 8, 16];
    const most = Math.max(...this.points.map(([, value]) => value), this.bars ? 1 : 5) * 1.15;
    const span = Math.max(...this.points.map(([time]) => time), ...this.lost, 1_000);
    const x = (time) => left + (width - left - right) * time / span;
    const y = (value) => top + (height - top - bottom) * (1 - value / most);
    context.strokeStyle = colour('--line');
    context.fillStyle = colour('--soft');
    context.lineWidth = 1;
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    for (const part of [0, 0.5, 1]) {
      const value = most * part / 1.15;
      context.beginPath();
      context.moveTo(left, y(value));
      context.lineTo(width - right, y(value));
      context.stroke();
      context.fillText(value >= 10 ? value.toFixed(0) : value.toFixed(1), left - 4, y(value));
    }
    context.textBaseline = 'alphabetic';
    context.fillText(`${(span / 1_000).toFixed(1)} s`, width - right, height - 4);
    context.fillStyle = context.strokeStyle = colour('--accent');
    context.lineWidth = 1.5;
    context.beginPath();
    this.points.forEach(([time, value], index) => {
      if (this.bars) {
        context.fillRect(x(time - RATE_STEP), y(value), Math.max(x(RATE_STEP) - left - 2, 1), y(0) - y(value));
      } else if (index === 0) {
        context.moveTo(x(time), y(value));
      } else {
        context.lineTo(x(time), y(value));
      }
    });
    context.stroke();
    context.fillStyle = colour('--bad');
    for (const time of this.lost) context.fillRect(x(time) - 1, top, 2, height - top - bottom);
  }
}

/** What the page shows about one way to the server. */
class Way {
  constructor(url) {
    this.url = url;
    this.parts = parsed(url);
    this.section = element('way').content.firstElementChild.cloneNode(true);
    this.section.querySelector('h2').textContent = url;
    this.badge = this.section.querySelector('.badge');
    const [latency, rate] = this.section.querySelectorAll('canvas');
    this.latency = new Chart(latency);
    this.rate = new Chart(rate);
    this.rate.bars = true;
    this.video = this.section.querySelector('video');
    element('ways').append(this.section);
  }

  state(text, kind) {
    this.badge.textContent = text;
    this.badge.className = `badge ${kind}`;
  }

  explain(text) {
    this.section.querySelector('.explanation').textContent = text;
  }

  show() {
    this.section.classList.add('shown');
  }

  figures(pairs) {
    const list = this.section.querySelector('dl');
    list.replaceChildren(...pairs.filter(([, value]) => value !== null && value !== undefined).map(([name, value]) => {
      const [group, term, description] = ['div', 'dt', 'dd'].map((tag) => document.createElement(tag));
      term.textContent = name;
      description.textContent = value;
      group.className = value.length > 14 ? 'long' : '';
      group.append(term, description);
      return group;
    }));
  }

  /** Hides the parts that a test has not reached. */
  hideEmpty() {
    const { latency, rate, video } = this;
    for (const { canvas, points, lost } of [latency, rate]) canvas.closest('figure').hidden = points.length + lost.length === 0;
    video.closest('figure').hidden = !video.videoWidth;
  }

  /** Keeps the last picture, which a video does not show after the end of its call. */
  freeze() {
    const { video } = this;
    if (!video.videoWidth) return;
    const still = document.createElement('canvas');
    [still.width, still.height] = [video.videoWidth, video.videoHeight];
    still.getContext('2d').drawImage(video, 0, 0);
    still.className = 'still';
    still.setAttribute('role', 'img');
    still.setAttribute('aria-label', 'The last picture after its way through the relay');
    video.replaceWith(still);
  }

  redraw() {
    this.latency.draw();
    this.rate.draw();
  }
}

/** A moving picture, so that a browser without a camera has something to send. */
class Picture {
  constructor() {
    this.canvas = document.createElement('canvas');
    [this.canvas.width, this.canvas.height] = [320, 180];
    this.context = this.canvas.getContext('2d');
    this.frame = 0;
    const isCalm = matchMedia('(prefers-reduced-motion: reduce)').matches;
    this.step = isCalm ? 0 : 1 / 20;
    this.timer = setInterval(() => this.paint(), 1_000 / 15);
    this.paint();
  }

  paint() {
    const { context, canvas: { width, height } } = this;
    this.frame += 1;
    context.fillStyle = '#102a33';
    context.fillRect(0, 0, width, height);
    ['#4fc3d9', '#5fd38a', '#f0b949', '#ff8a80'].forEach((colour, index) => {
      const turn = this.frame * this.step + index * Math.PI / 2;
      context.fillStyle = colour;
      context.beginPath();
      context.arc(width / 2 + Math.cos(turn) * 110, height / 2 + Math.sin(turn) * 55, 18, 0, 2 * Math.PI);
      context.fill();
    });
    context.fillStyle = '#ffffff';
    context.font = 'bold 32px system-ui, sans-serif';
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    context.fillText(String(this.frame), width / 2, height / 2);
  }

  stream() {
    return this.canvas.captureStream(15);
  }

  stop() {
    clearInterval(this.timer);
  }
}

/** A call of this page with itself through one URL. */
class Call {
  constructor(way, { username, credential }) {
    this.way = way;
    this.errors = [];
    const configuration = {
      iceServers: [{ urls: [way.url], username, credential }],
      iceTransportPolicy: 'relay',
    };
    this.caller = new RTCPeerConnection(configuration);
    this.callee = new RTCPeerConnection(configuration);
    this.picture = new Picture();
  }

  /** Connects both ends. Returns the times of the two steps. */
  async connect() {
    const { caller, callee, way } = this;
    const begun = performance.now();
    const candidates = new Map([[caller, 0], [callee, 0]]);
    let ended = 0;
    let gathered;
    const bothGathered = new Promise((resolve) => { gathered = resolve; });
    let both;
    const bothHaveOne = new Promise((resolve) => { both = resolve; });
    for (const [one, other] of [[caller, callee], [callee, caller]]) {
      one.onicecandidate = ({ candidate }) => {
        if (candidate === null) {
          ended += 1;
          if (ended === 2) gathered();
          return;
        }
        if (candidate.candidate === '') return;
        candidates.set(one, candidates.get(one) + 1);
        if ([...candidates.values()].every((count) => count > 0)) both();
        // A candidate may come before the description that it belongs to.
        this.described.then(() => other.addIceCandidate(candidate)).catch(() => {});
      };
      one.onicecandidateerror = ({ errorCode: code, errorText: text, address }) => {
        // Browsers look for each family, and most names have no IPv6 address.
        this.lookup ||= isLookup(text) && !address?.includes(':');
        if (this.errors.length < 8 && !this.errors.some((error) => error.code === code && error.text === text)) {
          this.errors.push({ code, text: (text || '').slice(0, 200) });
        }
      };
    }
    // An ICE connection shows that messages pass in both directions.
    caller.oniceconnectionstatechange = () => { this.checked ||= /connected|completed/.test(caller.iceConnectionState); };
    this.probes = caller.createDataChannel('probes', { ordered: false, maxRetransmits: 0 });
    this.bulk = caller.createDataChannel('bulk');
    this.probes.binaryType = 'arraybuffer';
    this.received = 0;
    callee.ondatachannel = ({ channel }) => {
      channel.binaryType = 'arraybuffer';
      channel.onmessage = ({ data }) => {
        if (channel.label === 'bulk') this.received += data.byteLength;
        else if (channel.readyState === 'open') channel.send(data);
      };
    };
    callee.ontrack = ({ track }) => {
      way.video.srcObject = new MediaStream([track]);
      way.video.play().catch(() => {});
    };
    const [track] = this.picture.stream().getVideoTracks();
    caller.addTrack(track);
    let described;
    this.described = new Promise((resolve) => { described = resolve; });
    await caller.setLocalDescription();
    await callee.setRemoteDescription(caller.localDescription);
    await callee.setLocalDescription();
    await caller.setRemoteDescription(callee.localDescription);
    described();

    way.state('looking for the relay', 'busy');
    await Promise.race([bothHaveOne, bothGathered, pause(GATHER_LIMIT)]);
    if ([...candidates.values()].includes(0)) throw new Failure('gather', explained(this.errors, way.parts, this.lookup));
    reached.add(way.parts.host);
    const gatherTime = performance.now() - begun;

    way.state('connecting', 'busy');
    const open = new Promise((resolve) => { this.probes.onopen = resolve; });
    const isOpen = await Promise.race([open.then(() => true), pause(CONNECT_LIMIT).then(() => false)]);
    if (!isOpen && this.checked) {
      throw new Failure('connect', 'The first messages pass the relay, but the call does not begin: the network between may '
        + 'drop large packets (MTU), or those of DTLS, the encryption of calls.');
    }
    if (!isOpen) {
      throw new Failure('connect', 'The server gives relayed addresses, but no data passes from one to another. A firewall on '
        + 'the server may drop it, or the network between drops all but the first messages. '
        + '`turnserver doctor` at the server tells more.');
    }
    return { gather_ms: rounded(gatherTime, 0), connect_ms: rounded(performance.now() - begun - gatherTime, 0) };
  }

  /** Throws a failure after the connection was made. `meaning` is what it means if the connection is still there. */
  async fail(step, meaning) {
    const isBroken = () => [this.caller, this.callee].some((end) => /disconnected|failed|closed/.test(end.iceConnectionState));
    // Browsers need some seconds to notice it.
    const end = performance.now() + BREAK_LIMIT;
    while (!isBroken() && performance.now() < end) await pause(100);
    throw new Failure(step, isBroken() ? 'The connection through the relay was made and then broke off: the network between '
      + 'drops it after a while, or the server has ended it. Its log says what it has seen.' : meaning);
  }

  /** Returns the relayed address in use, and how this browser reaches it. */
  async path() {
    const stats = [...(await this.caller.getStats()).values()];
    const find = (test) => stats.find(test);
    const transport = find((entry) => entry.type === 'transport' && entry.selectedCandidatePairId);
    const pair = find((entry) => entry.type === 'candidate-pair'
      && (transport ? entry.id === transport.selectedCandidatePairId : entry.nominated && entry.state === 'succeeded'));
    const [local, remote] = [pair?.localCandidateId, pair?.remoteCandidateId].map((id) => find((entry) => entry.id === id));
    if (local && (local.candidateType !== 'relay' || (remote && !['relay', 'prflx'].includes(remote.candidateType)))) {
      throw new Failure('connect', 'The browser did not use the relay, although it must use nothing else.');
    }
    if (!local) return {};
    const host = local.address?.includes(':') ? `[${local.address}]` : local.address;
    return { relayed: host ? `${host}:${local.port}` : null, protocol: local.relayProtocol ?? null };
  }

  /** Sends small messages to the other end and back. Returns latency, jitter and loss. */
  async probe() {
    const { way: { latency }, way, probes } = this;
    way.state('measuring latency', 'busy');
    const [begun, sent, times] = [performance.now(), new Map(), []];
    let [number, jitter, before] = [0, 0, undefined];
    probes.onmessage = ({ data }) => {
      const [at] = new Float64Array(data, 0, 1);
      const [index] = new Uint32Array(data, 8, 1);
      if (!sent.delete(index)) return;
      const time = performance.now() - at;
      times.push(time);
      // RFC 3550 §6.4.1.
      if (before !== undefined) jitter += (Math.abs(time - before) - jitter) / 16;
      before = time;
      latency.points.push([at - begun, time]);
    };
    while (performance.now() - begun < PROBE_TIME && probes.readyState === 'open') {
      const message = new ArrayBuffer(64);
      const now = performance.now();
      new Float64Array(message, 0, 1)[0] = now;
      new Uint32Array(message, 8, 1)[0] = number;
      sent.set(number, now);
      number += 1;
      probes.send(message);
      latency.draw();
      await pause(PROBE_INTERVAL);
    }
    const end = performance.now() + PROBE_WAIT;
    while (sent.size > 0 && performance.now() < end) await pause(20);
    probes.onmessage = null;
    latency.lost = [...sent.values()].map((at) => at - begun);
    latency.draw();
    if (times.length === 0) {
      await this.fail('data', 'The connection was made, but no message came back through the relay.');
    }
    const [median, p95] = quantiles(times, [0.5, 0.95]);
    const loss = 100 * sent.size / number;
    latency.canvas.setAttribute('aria-label',
      `Latency: median ${median.toFixed(1)} ms, 95 % below ${p95.toFixed(1)} ms, ${sent.size} of ${number} messages lost`);
    return {
      rtt_median_ms: rounded(median), rtt_p95_ms: rounded(p95), jitter_ms: rounded(jitter), loss_percent: rounded(loss),
    };
  }

  /** Waits until the picture has arrived. Returns how well. */
  async watch() {
    this.way.state('waiting for the picture', 'busy');
    const end = performance.now() + PICTURE_LIMIT;
    for (;;) {
      const stats = [...(await this.callee.getStats()).values()];
      const video = stats.find((entry) => entry.type === 'inbound-rtp' && entry.kind === 'video');
      if (video?.framesDecoded > 0) {
        const [lost, received] = [Math.max(video.packetsLost ?? 0, 0), video.packetsReceived ?? 0];
        return { video_frames: video.framesDecoded, video_loss_percent: rounded(100 * lost / Math.max(lost + received, 1)) };
      }
      if (performance.now() > end) await this.fail('video', 'Messages pass the relay, but the picture does not arrive.');
      await pause(100);
    }
  }

  /** Sends as much as passes for a while. Returns the throughput. */
  async fill() {
    const { bulk, way: { rate }, way } = this;
    way.state('measuring throughput', 'busy');
    const message = new Uint8Array(BULK_MESSAGE);
    bulk.bufferedAmountLowThreshold = 8 * BULK_MESSAGE;
    const begun = performance.now();
    let [sent, step, counted, last] = [0, begun, 0, begun];
    const look = () => {
      const now = performance.now();
      if (this.received > counted) last = now;
      if (now - step < RATE_STEP) return;
      rate.points.push([now - begun, (this.received - counted) * 8 / (now - step) / 1_000]);
      [step, counted] = [now, this.received];
      rate.draw();
    };
    while (performance.now() - begun < BULK_TIME && sent < BULK_BYTES && bulk.readyState === 'open') {
      if (bulk.bufferedAmount > 16 * BULK_MESSAGE) {
        const low = new Promise((resolve) => { bulk.onbufferedamountlow = resolve; });
        await Promise.race([low, pause(RATE_STEP)]);
      } else {
        bulk.send(message);
        sent += BULK_MESSAGE;
      }
      look();
    }
    const end = performance.now() + 2_000;
    let seen = this.received;
    while (this.received < sent && performance.now() < end) {
      await pause(20);
      if (this.received > seen) [seen, last] = [this.received, performance.now()];
      look();
    }
    if (this.received === 0) {
      await this.fail('throughput', 'Small messages pass the relay, but large ones do not: the network between may drop '
        + 'large packets (MTU).');
    }
    const kbps = this.received * 8 / Math.max(last - begun, 1);
    rate.canvas.setAttribute('aria-label', `Throughput: ${(kbps / 1_000).toFixed(1)} Mbit/s`);
    return { throughput_kbps: rounded(kbps, 0) };
  }

  end() {
    this.way.freeze();
    this.picture.stop();
    this.caller.close();
    this.callee.close();
  }
}

/** What people notice in a call over a way that works. */
function weaknesses({ loss_percent: loss, rtt_median_ms: latency, throughput_kbps: kbps }) {
  return [
    loss > POOR.loss ? `${loss} % of the messages were lost` : null,
    latency > POOR.latency ? `a latency of ${latency} ms disturbs a conversation` : null,
    kbps < POOR.kbps ? `a throughput of ${kbps} kbit/s is too little for good video` : null,
  ].filter((text) => text !== null).join('; ');
}

/** Tests one way. Returns its part of the report, and what the link of this key may still relay. */
async function testWay(way, login, key) {
  const result = { url: way.url, ok: false, step: 'gather' };
  const show = () => way.figures([
    ['Relayed address', result.relayed],
    ['Found after', result.gather_ms != null ? `${result.gather_ms} ms` : null],
    ['Connected after', result.connect_ms != null ? `${result.connect_ms} ms` : null],
    ['Latency, median', result.rtt_median_ms != null ? `${result.rtt_median_ms} ms` : null],
    ['Latency, 95 %', result.rtt_p95_ms != null ? `${result.rtt_p95_ms} ms` : null],
    ['Jitter', result.jitter_ms != null ? `${result.jitter_ms} ms` : null],
    ['Loss', result.loss_percent != null ? `${result.loss_percent} %` : null],
    ['Picture', result.video_frames != null ? `${result.video_frames} frames` : null],
    ['Throughput', result.throughput_kbps != null ? `${(result.throughput_kbps / 1_000).toFixed(1)} Mbit/s` : null],
    ['Left of the link', left?.bytes != null ? mebibytes(left.bytes) : null],
  ]);
  let [call, left] = [];
  const step = async (name, action) => {
    result.step = name;
    Object.assign(result, await action());
    show();
  };
  try {
    call = new Call(way, login);
    await step('connect', () => call.connect());
    way.show();
    await step('connect', () => call.path());
    await step('data', () => call.probe());
    await step('video', () => call.watch());
    await step('throughput', () => call.fill());
    result.step = 'done';
    result.ok = true;
    left = await remaining(key);
    const weak = weaknesses(result);
    if (weak) {
      result.reason = `It works, but poorly: ${weak}.`;
      way.explain(result.reason);
    }
    way.state(weak ? 'works poorly' : 'works', weak ? 'busy' : 'good');
  } catch (error) {
    result.step = error.step ?? result.step;
    way.state('looking for the reason', 'busy');
    left = await remaining(key);
    result.reason = (left.cause ?? [error.message || error, left.trouble ?? ''].join(' ').trim()).slice(0, 500);
    way.state(...(left.cause ? ['not finished', 'busy'] : ['does not work', 'bad']));
    way.explain(result.reason);
    way.hideEmpty();
  } finally {
    if (!result.ok && call?.errors.length > 0) result.errors = call.errors;
    call?.end();
    show();
  }
  return { result, left };
}

const LIMITS = 'The test does not leave the server on the other side: whether others reach the relay is not a part of it.';

/** The verdict for people: its kind, a title, what it means, and its colour. `ended` says why the link ended the test. */
function verdict(ways, ended) {
  const good = ways.filter((way) => way.ok);
  const poor = good.filter((way) => way.reason);
  const some = poor.length > 0 ? 'Some work poorly, see below. ' : '';
  const names = (list) => [...new Set(list.map((way) => parsed(way.url).via))].join(', ');
  if (ways.length === 0) return ['failed', 'Nothing to test', 'The server has no address for clients.', 'bad'];
  if (ended) {
    const before = good.length > 0 ? ` Before that, these ways worked: ${names(good)}.` : '';
    return [before ? 'partial' : 'failed', 'The test did not come to its end', `${ended}${before}`, 'busy'];
  }
  if (good.length === 0) {
    return ['failed', 'The relay does not work from here', 'No call through it works from this browser. The reasons are below.',
      'bad'];
  }
  if (good.length < ways.length) {
    return ['partial', 'The relay works, but not every way',
      `Calls can connect: ${good.length} of ${ways.length} ways work (${names(good)}). ${some}The reasons for the others are below.`,
      'busy'];
  }
  const all = ways.length === 1 ? 'The way to it works' : `All ${ways.length} ways to it work`;
  return poor.length === ways.length
    ? ['ok', 'The relay works, but poorly', `${all} from this browser, but poorly: see below. ${LIMITS}`, 'busy']
    : ['ok', 'The relay works', `${all} from this browser. ${some}${LIMITS}`, 'good'];
}

/** What was measured of a way, for the report. */
function measured(way) {
  const parts = [
    [way.rtt_median_ms, (value) => `latency ${value} ms (95 %: ${way.rtt_p95_ms} ms)`],
    [way.jitter_ms, (value) => `jitter ${value} ms`],
    [way.loss_percent, (value) => `loss ${value} %`],
    [way.throughput_kbps, (value) => `${(value / 1_000).toFixed(1)} Mbit/s`],
    [way.video_frames, (value) => `${value} frames`],
    [way.relayed, (value) => `relayed address ${value}`],
  ];
  return parts.filter(([value]) => value != null).map(([value, text]) => text(value)).join(', ');
}

function asText(report, title, rest) {
  const lines = report.ways.flatMap((way) => {
    const reason = way.ok ? way.reason : `at step ${way.step}: ${way.reason}`;
    const details = [reason, measured(way), ...(way.errors ?? []).map((error) => `ICE error ${error.code}: ${error.text}`)];
    return [`${way.ok ? 'works' : 'FAILS'}: ${way.url}`, ...details.filter(Boolean).map((line) => `  ${line}`)];
  });
  const left = rest ? ['', `Left of the link: ${rest}`] : [];
  return [`Relay test at ${new Date().toISOString()}: ${title}`, report.browser, '', ...lines, ...left].join('\n');
}

function headline(title, text, kind) {
  element('verdict').textContent = title;
  element('verdict').className = kind;
  element('status').textContent = text;
}

/** What this tab remembers, also after a reload if the browser permits that. */
const memory = {
  key: 'turnserver-test-page',
  read() {
    try {
      return JSON.parse(sessionStorage.getItem(this.key)) ?? this.kept;
    } catch {
      return this.kept;
    }
  },
  write(value) {
    this.kept = value;
    try {
      sessionStorage.setItem(this.key, JSON.stringify(value));
    } catch {
      // Without storage, a reload needs a new link.
    }
  },
};

/** Opens the link, or continues with what this tab has opened. Returns what the server said. */
async function openLink() {
  const token = location.hash.slice(1);
  let kept = memory.read();
  if (token === '' && kept === undefined) {
    throw new Error('This address is not complete: open the whole link that you were given.');
  }
  if (kept === undefined || (token !== '' && token !== kept.token)) {
    // The page makes its key, so that it can ask again if the response is lost.
    const key = [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, '0')).join('');
    kept = { token, key };
    memory.write(kept);
  }
  if (kept.session === undefined) {
    const session = await post('test/start', { token: kept.token, key: kept.key });
    kept = { ...kept, session, ends: Date.now() + session.lifetime * 1_000, tests: 0 };
    memory.write(kept);
    // The link works once, so the history does not need it.
    history.replaceState(null, '', location.pathname);
  }
  if (Date.now() > kept.ends) throw new Error('This test link has expired. Ask the operator for a new one.');
  if (kept.tests >= kept.session.tests) {
    throw new Error(`This test link is for ${kept.session.tests} tests. Ask the operator for a new one.`);
  }
  kept.tests += 1;
  memory.write(kept);
  return kept;
}

let shown = [];
const redraw = () => shown.forEach((way) => way.redraw());
addEventListener('resize', redraw);
matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);

async function run() {
  const [start, progress] = [element('start'), element('progress')];
  // A disabled button would lose the focus.
  start.setAttribute('aria-disabled', 'true');
  element('ways').replaceChildren();
  unresolved.clear();
  reached.clear();
  element('report-panel').hidden = true;
  element('sent').textContent = element('copied').textContent = '';
  headline('Opening the link …', '', 'busy');
  // A phone that sleeps would interrupt the test. Not every browser has this, or permits it.
  const awake = navigator.wakeLock?.request('screen').catch(() => undefined);
  try {
    if (typeof RTCPeerConnection === 'undefined') {
      throw new Error('This browser has no WebRTC, or it is switched off.');
    }
    const { session, key, tests } = await openLink();
    const ways = session.urls.map((url) => new Way(url));
    shown = ways;
    progress.hidden = false;
    progress.max = ways.length;
    const results = [];
    let [before, hidden, bytes, ended] = ['', document.hidden];
    const notice = () => { hidden ||= document.hidden; };
    document.addEventListener('visibilitychange', notice);
    for (const [index, way] of ways.entries()) {
      progress.value = index;
      if (ended) {
        way.state('not tested', '');
        continue;
      }
      const now = `Way ${index + 1} of ${ways.length}: ${way.parts.via} to port ${way.parts.port}`;
      headline('Testing …', `${before}${now}`, 'busy');
      const { result, left } = await testWay(way, session, key);
      results.push(result);
      bytes = left.bytes ?? bytes;
      // The last way has come to its end, although the link has, too.
      if (!result.ok || index + 1 < ways.length) ended = left.cause;
      before = `${way.parts.via} ${result.ok ? 'works' : 'does not work'}. `;
    }
    document.removeEventListener('visibilitychange', notice);
    progress.hidden = true;
    const [kind, title, text, colour] = verdict(results, ended);
    const warning = hidden ? '\nThis page was in the background for a while, so its figures may be wrong.' : '';
    headline(title, text + warning, colour);
    const report = { browser: navigator.userAgent.slice(0, 300), verdict: kind, ways: results };
    const rest = bytes === undefined ? '' : `${mebibytes(bytes)} and ${session.tests - tests} more tests`;
    element('report').value = asText(report, title, rest) + warning;
    element('report-panel').hidden = false;
    try {
      await post('test/report', { key, report });
      element('sent').textContent = 'The operator of the server has received it, too.';
    } catch (error) {
      element('sent').textContent = `The operator did not receive it: ${error.message}`;
    }
    start.textContent = 'Test again';
    document.documentElement.dataset.done = kind;
  } catch (error) {
    progress.hidden = true;
    headline('The test cannot run', error.message, 'bad');
    document.documentElement.dataset.done = 'error';
  }
  awake?.then((lock) => lock?.release());
  start.setAttribute('aria-disabled', 'false');
  element('verdict').focus();
}

element('start').addEventListener('click', () => {
  if (element('start').getAttribute('aria-disabled') === 'true') return;
  delete document.documentElement.dataset.done;
  run();
});
element('copy').addEventListener('click', async () => {
  const text = element('report');
  let copied = false;
  try {
    await navigator.clipboard.writeText(text.value);
    copied = true;
  } catch {
    // Without TLS there is no such interface.
    text.select();
    copied = document.execCommand('copy');
  }
  element('copied').textContent = copied ? 'Copied.' : 'Select the text and copy it.';
});
