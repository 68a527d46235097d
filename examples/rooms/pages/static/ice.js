import { Emitter } from "./emitter.js";

/** The server itself waits 5 s for credentials, and then responds with an error. */
const RESPONSE_MS = 8000;

/**
 * The iceServers with their expiry, and the policy with which connections use them.
 *
 * Event `change`: connections apply the new configuration with `setConfiguration`. Event `move`, after it: they gather
 * anew, because a relay that they may use drains. Existing relay allocations go on with
 * the credentials with which they were made, after whose expiry the relay ends them, at once or some time later. The next
 * gathering uses the new ones.
 */
export class Ice extends Emitter {
  expires = 0;
  /** When the credentials expire on the clock of `performance.now()`: the other clock of this computer may be wrong. */
  until = 0;
  relayOnly = false;
  #servers = [];
  #transport;
  #signalling;
  #pending = null;

  /** `transport` keeps only the URLs of "udp", "tcp" or "tls". */
  constructor(signalling, transport = null) {
    super();
    this.#signalling = signalling;
    this.#transport = transport;
    signalling.on("ice", (message) => this.update(message));
  }

  /** Takes over `{iceServers, expires, lifetime, atOnce}` from the server. */
  update({ iceServers, expires, lifetime, atOnce }) {
    this.#servers = iceServers;
    this.expires = expires;
    this.until = performance.now() + lifetime * 1000;
    this.emit("change");
    if (atOnce) this.emit("move");
  }

  configuration() {
    return {
      iceServers: this.#transport ? withTransport(this.#servers, this.#transport) : this.#servers,
      iceTransportPolicy: this.relayOnly ? "relay" : "all",
      bundlePolicy: "max-bundle",
    };
  }

  /**
   * Asks for fresh credentials, which an ICE restart needs if the old ones have expired. Connections that restart
   * together share one request. If the server has none, the restart goes on with the old ones. If no response comes, the
   * socket is dead, and is replaced.
   */
  refresh() {
    this.#pending ??= new Promise((resolve) => {
      const finished = new AbortController();
      const { signal } = finished;
      const done = () => {
        clearTimeout(timer);
        finished.abort();
        this.#pending = null;
        resolve();
      };
      const timer = setTimeout(() => {
        this.#signalling.reconnect();
        done();
      }, RESPONSE_MS);
      this.addEventListener("change", done, { signal });
      const refused = ({ detail }) => detail.code === "relay" && done();
      this.#signalling.addEventListener("error", refused, { signal });
      this.#signalling.send({ type: "ice" });
    });
    return this.#pending;
  }
}

/** The servers with only those URLs that use a transport: for tests and for diagnosis. */
export function withTransport(servers, transport) {
  return servers
    .map((server) => ({ ...server, urls: [server.urls].flat().filter((url) => transportOf(url) === transport) }))
    .filter((server) => server.urls.length > 0);
}

function transportOf(url) {
  if (url.startsWith("turns:")) return "tls";
  if (!url.startsWith("turn:")) return null;
  return /[?&]transport=tcp\b/.test(url) ? "tcp" : "udp";
}
