/**
 * How the server is doing: its own figures as charts, followed from a stream like any other.
 *
 * Knows the names of figures (`headwater.http.console.figures`). A chart is there when the server measures one of its
 * figures; which ones those are is known before the first is drawn, so nothing moves afterwards.
 */
import { figuresUrl, follow } from "./api.js";
import { Chart } from "./charts.js";
import { h, soon } from "./dom.js";
import { bytes, short, span } from "./fmt.js";

/** Short: three of them stand beside each other. */
const ms = (value) => (value >= 60_000 ? `${Math.round(value / 1000)} s` : span(value));
const rate = (value) => short(value);
const percent = (value) => (Number.isFinite(value) ? `${short(value)} %` : "–");

const CHARTS = [
  { title: "Readers", unit: short, lines: [{ figure: "readers", label: "following", fill: true }],
    note: "Responses that follow a stream now" },
  { title: "Events per second", unit: rate, lines: [
    { figure: "appended", label: "appended", fill: true }, { figure: "delivered", label: "delivered" }] },
  { title: "Bytes per second", unit: bytes, least: 100, lines: [{ figure: "bytes", label: "appended", fill: true }] },
  { title: "Runs", unit: short, lines: [
    { figure: "running", label: "made here now", fill: true }] },
  { title: "Runs that ended in the last minute", unit: short, lines: [
    { figure: "completed", label: "completed" }, { figure: "failed", label: "failed" },
    { figure: "cancelled", label: "cancelled" }] },
  { title: "Time to first token", unit: ms, least: 10, lines: [
    { figure: "first_token_p50", label: "p50" }, { figure: "first_token_p95", label: "p95" },
    { figure: "first_token_p99", label: "p99" }] },
  { title: "Gap between a run's events", unit: ms, least: 10, lines: [
    { figure: "gap_p50", label: "p50" }, { figure: "gap_p95", label: "p95" }, { figure: "gap_p99", label: "p99" }],
    note: "Between appends to the stream of one run, within the last minute" },
  { title: "Append to socket", unit: ms, least: 10, lines: [
    { figure: "delivery_p50", label: "p50" }, { figure: "delivery_p95", label: "p95" },
    { figure: "delivery_p99", label: "p99" }] },
  { title: "Readers behind", unit: short, lines: [
    { figure: "behind", label: "events, the slowest", fill: true }, { figure: "lagging", label: "readers" }] },
  { title: "Readers that left, per second", unit: rate, lines: [
    { figure: "left", label: "gone" }, { figure: "ended", label: "over" }, { figure: "slow", label: "slow" },
    { figure: "cut", label: "other" }],
    note: "Why responses to readers ended: they went away; the stream was over; they took nothing; another reason" },
  { title: "Came and refused, per second", unit: rate, lines: [
    { figure: "came", label: "readers came", fill: true }, { figure: "refused", label: "requests refused" }] },
  { title: "Event loop late by", unit: ms, least: 10, lines: [{ figure: "loop_lag", label: "at most", fill: true }],
    note: "The longest delay of the server's event loop: above 50 ms every reader notices" },
  { title: "CPU of the process", unit: percent, least: 10, lines: [{ figure: "cpu", label: "of one core", fill: true }] },
];
const RANGES = [["5 min", 1, 300], ["1 h", 10, 3600], ["24 h", 300, 86_400]];

export function mount(root, place, known) {
  let range = Number(place.query.get("range") ?? 0) in RANGES ? Number(place.query.get("range") ?? 0) : 0;
  let past = null;
  let charts = [];
  const grid = h("div", { class: "charts", "aria-busy": "true" });
  const buttons = RANGES.map(([label], index) =>
    h("button", { type: "button", "aria-pressed": String(index === range), onclick: () => choose(index) }, label));
  const about = [`version ${known.version}`, `${known.store} store`, known.durable ? "durable" : "gone with the process"].join(" · ");
  root.append(
    h("div", { class: "head" }, h("h1", {}, "Overview"), h("p", { class: "soft" }, about),
      h("div", { class: "choice", role: "group", "aria-label": "Time shown" }, buttons)),
    grid);

  function choose(index) {
    range = index;
    for (const [at, button] of buttons.entries()) button.setAttribute("aria-pressed", String(at === range));
    history.replaceState(null, "", range ? `#/?range=${range}` : "#/");
    draw();
  }

  const draw = soon(() => {
    if (past === null) return;
    const [, step, seconds] = RANGES[range];
    const rows = past.rings.get(step);
    const columns = { at: rows.map((row) => row[0]) };
    for (const [index, name] of past.figures.entries()) columns[name] = rows.map((row) => row[index + 1]);
    const to = columns.at.at(-1) ?? Date.now() / 1000;
    for (const chart of charts) chart.show(columns, to - seconds, to);
    grid.removeAttribute("aria-busy");
    grid.dataset.seconds = String(past.seconds);
  });

  const end = follow(figuresUrl, ({ name, data }) => {
    const told = JSON.parse(data);
    if (name === "history") {
      past = { figures: told.figures, rings: new Map(told.rings.map((ring) => [ring.step, ring.rows])), seconds: 0 };
      if (!charts.length) begin(told.figures);
    } else if (name === "message" && past !== null) {
      add(told);
    }
    draw();
  }, (error) => grid.replaceChildren(h("p", { class: "notice" },
    error.status === 403 ? "This key may not observe headwater/metrics, so it is not shown the figures of the server."
      : error.message)));

  function begin(figures) {
    charts = CHARTS.map(({ lines, ...chart }) => ({
      ...chart, lines: lines.filter(({ figure }) => figures.includes(figure)),
    })).filter(({ lines }) => lines.length).map((chart) => new Chart(chart));
    grid.replaceChildren(...charts.map(({ element }) => element));
  }

  /** A second more. The coarser rings get it as it is; what they are folded to is told with the next history. */
  function add(row) {
    past.seconds += 1;
    for (const [, step, seconds] of RANGES) {
      const rows = past.rings.get(step);
      const slot = Math.floor(row[0] / step);
      const last = rows.at(-1);
      if (last && row[0] <= last[0] && step === 1) continue;
      if (!last || Math.floor(last[0] / step) !== slot) rows.push(step === 1 ? row : [slot * step, ...row.slice(1)]);
      while (rows.length && rows[0][0] < row[0] - seconds) rows.shift();
    }
  }

  return {
    unmount() {
      end();
      for (const chart of charts) chart.destroy();
    },
    keys: { 1: () => choose(0), 2: () => choose(1), 3: () => choose(2) },
  };
}
