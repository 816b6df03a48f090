/**
 * A run as a waterfall: a row for each turn, text, tool and question, over time; tokens are ticks.
 *
 * Knows a Fold; must not know where its events come from. Rows are kept by lane, so that a run that grows does not
 * flicker; a run with more than MOST lanes shows the newest.
 */
import { h, say } from "./dom.js";
import { span } from "./fmt.js";
import { scale, ticks } from "./scale.js";

const MOST = 400;
const NAMES = { step: "turn", text: "text", reasoning: "thinks", tool: "tool", approval: "asks", agent: "agent" };

export class Waterfall {
  /** `choose(position)`: somebody wants to see the event that began it. */
  constructor(choose) {
    this.choose = choose;
    this.rows = new Map();
    this.body = h("div", { class: "lanes" });
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.more = h("p", { class: "soft", hidden: true });
    this.element = h("section", { class: "waterfall", "aria-label": "Timeline" }, this.axis, this.body, this.more);
    this.repaint = () => this.fold && this.show(this.fold, this.now);
    window.addEventListener("repaint", this.repaint);
    this.resized = new ResizeObserver(this.repaint);
    this.resized.observe(this.element);
  }

  destroy() {
    window.removeEventListener("repaint", this.repaint);
    this.resized.disconnect();
  }

  /** `now`: until when what is open is drawn, ms since 1970. */
  show(fold, now) {
    this.fold = fold;
    this.now = now;
    const lanes = fold.lanes.slice(-MOST);
    this.more.hidden = lanes.length === fold.lanes.length;
    say(this.more, `The newest ${MOST} of ${fold.lanes.length}.`);
    const over = scale(moments(fold, now));
    this.drawAxis(over, fold);
    for (const [lane, row] of this.rows) {
      if (!lanes.includes(lane)) {
        row.element.remove();
        this.rows.delete(lane);
      }
    }
    for (const lane of lanes) this.draw(lane, over, now);
  }

  drawAxis(over, fold) {
    const wanted = Math.max(2, Math.floor(this.axis.clientWidth / 90));
    const parts = ticks(over, wanted).map(({ x, ms }) => placed(h("span", { class: "tick" }, span(ms)), x));
    const cuts = over.cuts.map(({ from, to, ms }) => {
      const cut = placed(h("span", { class: "cut", title: `${span(ms)} in which nothing happened` }, "⋯"), from);
      cut.style.width = `${(to - from) * 100}%`;
      return cut;
    });
    const marks = fold.marks.map(({ at, label, position }) =>
      placed(h("button", { type: "button", class: "mark", title: label, "aria-label": label,
        onclick: () => this.choose(position) }), over.place(at)));
    this.axis.replaceChildren(h("div", { class: "scale" }, parts, cuts, marks));
  }

  draw(lane, over, now) {
    const row = this.rows.get(lane) ?? this.make(lane);
    const end = lane.end ?? now;
    const [from, to] = [over.place(lane.start), over.place(Math.max(end, lane.start))];
    row.bar.style.left = `${from * 100}%`;
    row.bar.style.width = `max(2px, ${(to - from) * 100}%)`;
    row.element.dataset.open = String(lane.end === null);
    row.element.dataset.state = stateOf(lane);
    say(row.took, span(end - lane.start));
    say(row.label, labelOf(lane));
    if (lane.began !== undefined) {
      row.run.hidden = lane.began === null;
      if (lane.began !== null) row.run.style.left = `${part(over.place(lane.began), from, to) * 100}%`;
    }
    if (lane.ticks) this.drawTicks(row, lane, over);
  }

  make(lane) {
    const bar = h("i", { class: "span" });
    const run = h("i", { class: "run", hidden: true });
    if (lane.kind === "tool") bar.append(run);
    const canvas = lane.ticks ? h("canvas", { "aria-hidden": "true" }) : null;
    const label = h("span", { class: "label" });
    const took = h("span", { class: "took" });
    const element = h("button", {
      type: "button", class: "lane", dataset: { kind: lane.kind }, onclick: () => this.choose(lane.position),
    }, h("span", { class: "what" }, h("span", { class: "kind" }, NAMES[lane.kind]), label),
    h("span", { class: "track" }, bar, canvas), took);
    element.style.setProperty("--depth", lane.depth);
    const row = { element, bar, run, canvas, label, took };
    this.rows.set(lane, row);
    this.body.append(element);
    return row;
  }

  /** Each token a line as wide as a pixel; the denser they come, the darker. */
  drawTicks({ canvas }, lane, over) {
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    const sharp = window.devicePixelRatio || 1;
    canvas.width = width * sharp;
    canvas.height = height * sharp;
    const draw = canvas.getContext("2d");
    draw.scale(sharp, sharp);
    draw.fillStyle = getComputedStyle(canvas).color;
    draw.globalAlpha = lane.retracted ? 0.3 : 0.75;
    for (const at of lane.ticks) draw.fillRect(Math.min(width - 1, Math.floor(over.place(at) * width)), 0, 1, height);
  }
}

const part = (x, from, to) => (to > from ? Math.min(1, Math.max(0, (x - from) / (to - from))) : 0);

function placed(element, x) {
  element.style.left = `${x * 100}%`;
  return element;
}

function stateOf(lane) {
  if (lane.kind === "approval") return lane.approved === null ? "asks" : lane.approved ? "yes" : "no";
  return lane.retracted ? "retracted" : "";
}

function labelOf(lane) {
  if (lane.kind === "text") return lane.retracted ? "taken back" : `${lane.ticks.length} pieces`;
  if (lane.kind === "reasoning") return `${lane.ticks.length} pieces`;
  if (lane.kind === "approval" && lane.approved !== null) {
    return `${lane.label}: ${lane.approved ? "approved" : "rejected"}${lane.by ? ` by ${lane.by}` : ""}`;
  }
  if (lane.kind === "tool" && lane.end === null && lane.message) return `${lane.label}: ${lane.message}`;
  return lane.label;
}

function moments(fold, now) {
  const found = [fold.start ?? now];
  for (const lane of fold.lanes) {
    found.push(lane.start, lane.end ?? now, ...(lane.ticks ?? []));
    if (lane.began) found.push(lane.began);
  }
  for (const { at } of fold.marks) found.push(at);
  found.push(fold.end ?? now);
  return found.sort((one, other) => one - other);
}
