// A small chart of the last minutes, drawn as SVG.

import { setText } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 64;
const HEADROOM = 4;
const WINDOW_MS = 5 * 60 * 1000;

/** How values become the shape of a chart: "line" over an area, or "bars" for single events. */
const SHAPES = { line: drawLine, bars: drawBars };

export class Chart {
  /**
   * @param {HTMLElement} figure with a `strong`, an `svg` and a place for the highest value
   * @param {"line" | "bars"} shape
   * @param {string} title for those who cannot see it
   * @param {(value: number) => string} format
   */
  constructor(figure, shape, title, format) {
    this.latest = figure.querySelector("strong");
    this.top = figure.querySelector(".top");
    this.svg = figure.querySelector("svg");
    this.svg.setAttribute("viewBox", `0 0 ${WIDTH} ${HEIGHT}`);
    this.svg.setAttribute("preserveAspectRatio", "none");
    this.draw = SHAPES[shape];
    this.title = title;
    this.format = format;
    /** @type {{atMs: number, value: number | null}[]} */
    this.points = [];
  }

  /** Adds a value, null for a time of which nothing is known, and draws the chart anew. */
  add(atMs, value) {
    this.points = this.points.filter((each) => each.atMs > atMs - WINDOW_MS);
    this.points.push({ atMs, value });
    const known = this.points.filter((each) => each.value !== null).map((each) => each.value);
    const highest = Math.max(0, ...known);
    const ceiling = roundUp(highest);
    const latest = known.length ? this.format(known[known.length - 1]) : "–";
    setText(this.latest, latest);
    setText(this.top, highest ? this.format(ceiling) : "");
    const words = known.length ? `${latest}, at most ${this.format(highest)}` : "nothing yet";
    this.svg.setAttribute("aria-label", `${this.title} in the last five minutes: ${words}`);
    const place = (point) => ({
      x: WIDTH * (1 - (atMs - point.atMs) / WINDOW_MS),
      y: point.value === null ? null : HEIGHT - ((HEIGHT - HEADROOM) * point.value) / ceiling,
    });
    this.svg.replaceChildren(grid(), ...this.draw(this.points.map(place)));
  }
}

function drawLine(points) {
  const shapes = [];
  for (const run of runs(points)) {
    const line = run.map(({ x, y }) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L");
    const [first, last] = [run[0].x.toFixed(1), run[run.length - 1].x.toFixed(1)];
    shapes.push(path("area", `M${first} ${HEIGHT}L${line}L${last} ${HEIGHT}Z`));
    shapes.push(path("line", `M${line}`));
  }
  return shapes;
}

function drawBars(points) {
  const known = points.filter((each) => each.y !== null);
  const bars = known.map(({ x, y }) => `M${x.toFixed(1)} ${HEIGHT}V${y.toFixed(1)}`);
  return [path("bars", bars.join(""))];
}

/** Points between the gaps. */
function runs(points) {
  const found = [[]];
  for (const point of points) {
    if (point.y === null) found.push([]);
    else found[found.length - 1].push(point);
  }
  return found.filter((run) => run.length);
}

function grid() {
  const half = (HEIGHT + HEADROOM) / 2;
  const rows = [HEADROOM, half].map((y) => `M0 ${y}H${WIDTH}`);
  return path("grid", rows.join(""));
}

function path(className, d) {
  const made = document.createElementNS(SVG, "path");
  made.setAttribute("class", className);
  made.setAttribute("d", d);
  return made;
}

/** The next of 1, 2, 5, 10, 20 …, of any size; 1 for 0. */
function roundUp(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return power * [1, 2, 5, 10].find((step) => step * power >= value * 0.999999);
}
