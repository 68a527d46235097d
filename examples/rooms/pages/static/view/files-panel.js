import { isolate } from "../text.js";
import { byId, clone, keepFocus, setOptions, setText } from "./dom.js";
import { bytes } from "./format.js";

export class FilesPanel {
  #files;
  #names;
  #panels;
  #items = new Map();
  /** The transfers whose end was announced, or that the user has ended. */
  #announced = new Set();

  /** `names` gives the name of a participant. */
  constructor({ files, panels, names }) {
    this.#files = files;
    this.#names = names;
    this.#panels = panels;
    files.on("change", (transfer) => this.#show(transfer)).on("removed", ({ id }) => this.#remove(id));
    byId("file").addEventListener("change", ({ target }) => {
      this.#send(target.files);
      target.value = "";
    });
    this.#listenToDrops();
  }

  /** Offers these participants as receivers: `[{value, text}]`. */
  setPeers(options) {
    const none = options.length === 0;
    setOptions(byId("file-peer"), none ? [{ value: "", text: "No other participant" }] : options);
    byId("file-peer").disabled = none;
    byId("file").disabled = none;
  }

  #send(list) {
    const peer = byId("file-peer").value;
    setText(byId("file-problem"), "");
    try {
      for (const file of list) this.#files.send(peer, file);
    } catch (error) {
      setText(byId("file-problem"), error.message);
    }
  }

  #listenToDrops() {
    const area = byId("drop");
    area.addEventListener("dragover", (event) => {
      event.preventDefault();
      area.classList.add("over");
    });
    area.addEventListener("dragleave", () => area.classList.remove("over"));
    area.addEventListener("drop", (event) => {
      event.preventDefault();
      area.classList.remove("over");
      if (event.dataTransfer.files.length > 0) this.#send(event.dataTransfer.files);
    });
  }

  #show(transfer) {
    const item = this.#items.get(transfer.id) ?? this.#create(transfer);
    keepFocus(item, item, () => this.#update(item, transfer));
    const end = this.#end(transfer);
    if (!end || this.#announced.has(transfer.id)) return;
    this.#announced.add(transfer.id);
    this.#panels.tell("files", end);
  }

  #update(item, transfer) {
    const { name, size, offset, state, outgoing, sha256, url } = transfer;
    const show = (selector, visible) => item.querySelector(selector).toggleAttribute("hidden", !visible);
    setText(item.querySelector(".name"), name);
    setText(item.querySelector(".state"), this.#sentence(transfer));
    setText(item.querySelector(".hash"), sha256 ? `SHA-256 ${sha256}` : "");
    const moves = state === "running" || state === "paused" || state === "checking" || state === "waiting";
    item.querySelector("progress").value = size > 0 ? offset / size : 0;
    item.querySelector("progress").setAttribute("aria-label", `${name}, ${bytes(offset)} of ${bytes(size)}`);
    show("progress", moves);
    show(".hash", state === "complete");
    show(".accept", state === "offered" && !outgoing);
    show(".decline", state === "offered" && !outgoing);
    show(".cancel", moves || (state === "offered" && outgoing));
    show(".save", Boolean(url));
    show(".remove", !moves && state !== "offered");
    if (url) Object.assign(item.querySelector(".save"), { href: url, download: name });
  }

  #create(transfer) {
    const item = clone("transfer");
    const { id, name, peer, outgoing } = transfer;
    item.querySelector(".name").id = `transfer-${id}`;
    for (const button of item.querySelectorAll("button, a")) button.setAttribute("aria-describedby", `transfer-${id}`);
    const on = (selector, action) => item.querySelector(selector).addEventListener("click", action);
    on(".accept", () => this.#files.accept(id));
    for (const action of ["decline", "cancel"]) {
      on(`.${action}`, () => {
        this.#announced.add(id);
        this.#files[action](id);
      });
    }
    on(".remove", () => {
      this.#files.remove(id);
      byId("title-files").focus(); // the button is gone
    });
    byId("transfers").prepend(item);
    this.#items.set(id, item);
    if (!outgoing) this.#panels.mark("files", `${isolate(this.#names(peer))} offers you the file ${isolate(name)}.`);
    return item;
  }

  #remove(id) {
    this.#items.get(id)?.remove();
    this.#items.delete(id);
    this.#announced.delete(id);
  }

  /** The sentence for the end of a transfer, or null while it goes on. */
  #end({ state, outgoing, name, peerName, problem }) {
    const [file, other] = [isolate(name), isolate(peerName)];
    switch (state) {
      case "complete":
        return outgoing ? `${other} has received ${file}.` : `${file} from ${other} is complete.`;
      case "declined":
        return `${other} has declined ${file}.`;
      case "cancelled":
        return `The transfer of ${file} is cancelled.`;
      case "failed":
        return `The transfer of ${file} has failed. ${problem ?? ""}`.trim();
      default:
        return null;
    }
  }

  #sentence(transfer) {
    const { size, offset, state, outgoing, peerName, seconds, started, problem } = transfer;
    const other = `${outgoing ? "to" : "from"} ${isolate(peerName)}`;
    const progress = `${bytes(offset)} of ${bytes(size)}`;
    switch (state) {
      case "offered":
        return outgoing ? `${bytes(size)} ${other}, not yet accepted` : `${bytes(size)} ${other}`;
      case "waiting":
        return `${progress} ${other}, waiting`;
      case "running":
        return `${progress} ${other}${speed(offset, (performance.now() - started) / 1000)}`;
      case "paused":
        return `${progress} ${other}, continues when the connection works again`;
      case "checking":
        return `${progress} ${other}, comparing the SHA-256`;
      case "complete":
        return `${bytes(size)} ${other}, complete, SHA-256 verified${speed(size, seconds)}`;
      case "declined":
        return `${bytes(size)} ${other}, declined`;
      case "cancelled":
        return `${bytes(size)} ${other}, cancelled`;
      default:
        return problem ?? "The transfer has failed.";
    }
  }
}

function speed(count, seconds) {
  return seconds > 0.5 ? `, ${bytes(count / seconds)}/s` : "";
}
