import { Emitter } from "./emitter.js";

const RESPONSE_MS = 5000;

/**
 * The iceServers with their expiry, and the policy with which connections use them.
 *
 * Event `change`: connections apply the new configuration with `setConfiguration`. Existing relay allocations go on;
 * the next gathering uses the new credentials.
 */
export class Ice extends Emitter {
  expires = 0;
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

  /** Takes over `{iceServers, expires}` from the server. */
  update({ iceServers, expires }) {
    this.#servers = iceServers;
    this.expires = expires;
    this.emit("change");
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
   * together share one request. If no response comes, the socket is dead, and a new one brings new credentials.
   */
  refresh() {
    this.#pending ??= new Promise((resolve) => {
      const done = () => {
        clearTimeout(timer);
        this.#pending = null;
        resolve();
      };
      const timer = setTimeout(() => {
        this.#signalling.reconnect();
        done();
      }, RESPONSE_MS);
      this.addEventListener("change", done, { once: true });
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
