const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 240;
const HEIGHT = 60;
const POINTS = 60;

/** A plot of the last minute: one line per series, with a scale that grows in steps of 1, 2 and 5. */
export class Plot {
  #lines;
  #svg;

  constructor(svg, seriesCount) {
    this.#svg = svg;
    svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("role", "img");
    for (const y of [1, HEIGHT / 2, HEIGHT - 1]) this.#append("line", { class: "grid", x1: 0, x2: WIDTH, y1: y, y2: y });
    this.#lines = Array.from({ length: seriesCount }, (_, index) => this.#append("polyline", { class: `series-${index}` }));
  }

  /** Draws the series, each an array of numbers or null; returns the upper end of the scale. */
  draw(series, label) {
    const recent = series.map((values) => values.slice(-POINTS));
    const top = scale(Math.max(...recent.flat().filter(Number.isFinite), 0));
    recent.forEach((values, index) => {
      const points = values.flatMap((value, i) => {
        if (value === null) return [];
        const x = WIDTH - ((values.length - 1 - i) * WIDTH) / (POINTS - 1);
        const y = HEIGHT - 1 - (value / top) * (HEIGHT - 3);
        return [`${x.toFixed(1)},${y.toFixed(1)}`];
      });
      this.#lines[index].setAttribute("points", points.join(" "));
    });
    this.#svg.setAttribute("aria-label", label);
    return top;
  }

  #append(name, attributes) {
    const element = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
    this.#svg.append(element);
    return element;
  }
}

/** The smallest of 1, 2, 5, 10, 20, 50, … that is not below a value. */
export function scale(value) {
  if (value <= 1) return 1;
  const decade = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * decade).find((step) => step >= value);
}
