import { byId, clone, copy, setAvatar, setText } from "./dom.js";
import { milliseconds, path } from "./format.js";
import { notice } from "./notices.js";

const STATES = {
  new: "connecting",
  connecting: "connecting",
  disconnected: "interrupted",
  failed: "no path",
  closed: "not connected",
};

/** Link, mode and participants. */
export class RoomPanel {
  #call;
  #list = byId("participants");

  constructor({ call, url }) {
    this.#call = call;
    byId("link").value = url;
    for (const id of ["copy-link", "invite"]) byId(id).addEventListener("click", () => this.#copy(url));
    byId("modes").addEventListener("change", ({ target }) => {
      call.setMode(target.value);
      this.showMode(); // shows the new one when the server has confirmed it
    });
  }

  showMode() {
    for (const radio of byId("modes").querySelectorAll("input")) radio.checked = radio.value === this.#call.mode;
  }

  /** Lists the participants; `own` is the own name, `samples` gives the newest sample of a participant. */
  show(own, samples) {
    const entries = [{ name: `${own} (you)`, hint: this.#role(this.#call.id) }];
    for (const { id, name, kind } of this.#call.participants.values()) {
      const role = kind === "bot" ? "bot" : this.#role(id);
      entries.push({ name, hint: [role, this.#connection(id, samples(id))].filter(Boolean).join(" · ") });
    }
    setText(byId("count"), String(entries.length));
    while (this.#list.children.length > entries.length) this.#list.lastElementChild.remove();
    while (this.#list.children.length < entries.length) this.#list.append(clone("person"));
    entries.forEach(({ name, hint }, index) => {
      const [avatar, label, detail] = this.#list.children[index].children;
      setAvatar(avatar, name.replace(/ \(you\)$/, ""));
      setText(label, name);
      setText(detail, hint);
    });
  }

  #role(id) {
    if (this.#call.mode !== "broadcast") return "";
    return this.#call.sender === id ? "sends" : "watches";
  }

  #connection(id, sample) {
    const state = this.#call.mesh.peers.get(id)?.link.state;
    if (!state) return this.#call.forwards ? "through the forwarding unit" : "connecting";
    if (state !== "connected" || !sample?.pair) return STATES[state] ?? state;
    return `${path(sample.pair)}, ${milliseconds(sample.rtt)}`;
  }

  async #copy(url) {
    if (await copy(url)) {
      notice("The link is copied.");
      return;
    }
    byId("link").select();
    notice("The browser does not permit copying here. The link is in the panel Room.");
  }
}
