/**
 * Live charts with uPlot, in this page's colours. Knows how to draw; must not know what the figures mean.
 *
 * A chart keeps its size while figures come and go; its newest value stands above it as text, so that it can be read
 * without the picture.
 */
import { h, say, soon } from "./dom.js";

const uPlot = window.uPlot;
const HEIGHT = 132;
const charts = new Set();

window.addEventListener("repaint", () => {
  for (const chart of charts) chart.repaint();
});

/** What a custom property of the page is now, as a colour that a canvas takes. */
function colour(name) {
  const probe = document.body.appendChild(h("i", { class: "probe" }));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

/** The first line is the one that counts; the others are told apart by their dashes as well as by their tone. */
const TONES = ["--accent", "--tone-2", "--tone-3", "--tone-4"];
const DASHES = [[], [5, 3], [2, 2], []];

/** { title, unit(value), lines: [{ figure, label, fill? }], least? }; `least`: to which the scale goes at any rate. */
export class Chart {
  constructor({ title, unit, lines, note, least = 1 }) {
    this.lines = lines;
    this.least = least;
    this.unit = unit;
    this.values = lines.map(() => h("b", {}, "–"));
    this.plot = h("div", { class: "plot" });
    const legend = lines.map(({ label }, index) =>
      h("span", { class: "value", dataset: { tone: index + 1 } },
        lines.length > 1 ? h("i", { "aria-hidden": "true" }) : null, label, " ", this.values[index]));
    this.element = h("section", { class: "card chart", title: note },
      h("h2", {}, title), h("p", { class: "now" }, legend), this.plot);
    this.data = [[], ...lines.map(() => [])];
    this.resized = new ResizeObserver(soon(() => this.resize()));
    this.resized.observe(this.plot);
    charts.add(this);
  }

  /** `rows`: column by figure name, and `at`; the newest is said above. */
  show(columns, from, to) {
    this.data = [columns.at, ...this.lines.map(({ figure }) => columns[figure] ?? columns.at.map(() => null))];
    this.range = [from, to];
    for (const [index, element] of this.values.entries()) {
      const value = this.hovered ?? this.data[0].length - 1;
      say(element, this.unit(this.data[index + 1][value] ?? NaN));
    }
    if (this.drawn) {
      this.drawn.setData(this.data, false);
      this.drawn.setScale("x", { min: from, max: to });
    } else {
      this.resize();
    }
  }

  resize() {
    const width = this.plot.clientWidth;
    if (!width || !this.range) return;
    if (this.drawn) this.drawn.setSize({ width, height: HEIGHT });
    else this.draw(width);
  }

  draw(width) {
    const [line, soft] = [colour("--line"), colour("--soft")];
    const font = `11px ${getComputedStyle(document.body).fontFamily}`;
    const axis = { stroke: soft, font, ticks: { show: false } };
    const series = this.lines.map(({ fill }, index) => {
      const stroke = colour(TONES[index]);
      return {
        stroke, width: index ? 1.25 : 1.75, dash: DASHES[index], spanGaps: false, points: { show: false },
        fill: fill ? colour("--accent-tint") : undefined,
      };
    });
    this.drawn = new uPlot({
      width, height: HEIGHT, padding: [6, 14, 0, 0],
      legend: { show: false },
      cursor: { y: false, drag: { x: false, y: false }, points: { size: 5 }, sync: { key: "overview" } },
      scales: { x: { time: true }, y: { range: (_, __, most) => [0, Math.max(most * 1.15, this.least)] } },
      axes: [
        { ...axis, size: 22, space: 46, grid: { show: false }, values: (_, times) => times.map(hours) },
        { ...axis, size: 52, space: 34, gap: 3, grid: { stroke: line, width: 1 },
          values: (_, values) => values.map((value) => this.unit(value)) },
      ],
      series: [{}, ...series],
      hooks: { setCursor: [(plot) => this.hover(plot.cursor.idx)] },
    }, this.data, this.plot);
    this.drawn.setScale("x", { min: this.range[0], max: this.range[1] });
  }

  /** While the pointer is on a chart, the values are those beneath it. */
  hover(index) {
    this.hovered = index ?? undefined;
    const at = index ?? this.data[0].length - 1;
    for (const [line, element] of this.values.entries()) say(element, this.unit(this.data[line + 1][at] ?? NaN));
  }

  repaint() {
    this.drawn?.destroy();
    this.drawn = undefined;
    this.resize();
  }

  destroy() {
    charts.delete(this);
    this.resized.disconnect();
    this.drawn?.destroy();
  }
}

function hours(seconds) {
  const date = new Date(seconds * 1000);
  const two = (number) => String(number).padStart(2, "0");
  const time = `${two(date.getHours())}:${two(date.getMinutes())}`;
  return date.getSeconds() ? `${time}:${two(date.getSeconds())}` : time;
}
