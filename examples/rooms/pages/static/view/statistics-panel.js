import { Plot } from "../plot.js";
import { judge, judgeAll } from "../verdict.js";
import { byId, clone, copy, setButton, setOptions, setText } from "./dom.js";
import { bitrate, milliseconds, path, percent } from "./format.js";

const LEVELS = { good: "Good", fair: "Fair", poor: "Poor", none: "Not connected" };

const PLOTS = [
  { title: "Round trip", format: milliseconds, series: [{ key: "rtt", name: "" }] },
  { title: "Bitrate", format: bitrate, series: [{ key: "bitrateIn", name: "in" }, { key: "bitrateOut", name: "out" }] },
  { title: "Loss", format: percent, series: [{ key: "lossIn", name: "in" }, { key: "lossOut", name: "out" }] },
  { title: "Jitter", format: milliseconds, series: [{ key: "jitter", name: "" }] },
];

/** Verdict, facts and plots of a connection, and the verdict of the whole call in the header. */
export class StatisticsPanel {
  #statistics;
  #panels;
  #plots;
  #isAlone;

  /**
   * `isAlone` says whether there is no other participant; `report` returns the text to copy, and its argument says
   * whether it contains addresses.
   */
  constructor({ statistics, panels, isAlone, report }) {
    this.#isAlone = isAlone;
    this.#statistics = statistics;
    this.#panels = panels;
    this.#plots = PLOTS.map((description) => this.#createPlot(description));
    statistics.on("sample", () => this.show());
    panels.whenOpened("statistics", () => this.show());
    byId("connection").addEventListener("change", () => this.show());
    const button = byId("copy-report");
    button.addEventListener("click", async () => {
      const copied = await copy(report(byId("with-addresses").checked));
      setButton(button, copied ? "check" : "copy", copied ? "Copied" : "Copying is not permitted here");
      setTimeout(() => setButton(button, "copy", "Copy report"), 2500);
    });
  }

  show() {
    const { histories } = this.#statistics;
    this.#showQuality([...histories.values()]);
    if (this.#panels.current !== "statistics") return;
    const options = [...histories].map(([value, { name }]) => ({ value, text: name }));
    setOptions(byId("connection"), options.length > 0 ? options : [{ value: "", text: "None yet" }]);
    this.#showConnection(histories.get(byId("connection").value)?.samples ?? []);
  }

  #showQuality(histories) {
    const verdict = judgeAll(histories);
    const alone = this.#isAlone();
    byId("quality").dataset.level = verdict.level;
    setText(byId("quality-level"), alone ? "Alone." : `${LEVELS[verdict.level]}.`);
    setText(byId("quality-reason"), alone ? "There is no other participant yet." : verdict.reason);
  }

  #showConnection(samples) {
    const verdict = judge(samples);
    byId("verdict").dataset.level = verdict.level;
    setText(byId("verdict-level"), `${LEVELS[verdict.level]}.`);
    setText(byId("verdict-reason"), verdict.reason);
    this.#showFacts(samples.at(-1));
    for (const { plot, description, top, value } of this.#plots) {
      const series = description.series.map(({ key }) => samples.map((sample) => sample[key]));
      const texts = description.series.map(({ name }, index) =>
        `${name} ${description.format(series[index].at(-1) ?? null)}`.trim());
      const scale = plot.draw(series, `${description.title}: ${texts.join(", ")}`);
      setText(top, description.format(scale));
      texts.forEach((text, index) => setText(value.children[index], text));
    }
  }

  #showFacts(sample) {
    const facts = {
      Path: path(sample?.pair),
      "Protocol of the pair": sample?.pair?.protocol?.toUpperCase() ?? "–",
      "Picture received": sample?.height ? `${sample.height} lines, ${Math.round(sample.fps ?? 0)} per second` : "–",
      "Bandwidth for sending": bitrate(sample?.available ?? null),
    };
    const list = byId("facts");
    Object.entries(facts).forEach(([name, value], index) => {
      let row = list.children[index];
      if (!row) {
        row = document.createElement("div");
        row.append(document.createElement("dt"), document.createElement("dd"));
        list.append(row);
      }
      setText(row.children[0], name);
      setText(row.children[1], value);
    });
  }

  #createPlot(description) {
    const figure = clone("plot");
    figure.querySelector(".title").textContent = description.title;
    const value = figure.querySelector(".value");
    description.series.forEach((_, index) => {
      const element = document.createElement("span");
      element.className = `series-${index}`;
      value.append(element);
    });
    byId("plots").append(figure);
    const plot = new Plot(figure.querySelector("svg"), description.series.length);
    return { plot, description, value, top: figure.querySelector(".top") };
  }
}
