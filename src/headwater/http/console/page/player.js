/**
 * A stream's log with what one does to it: watch it live, scrub, replay, look at a message, its readers, its formats.
 *
 * Used by the page of a stream and by that of a run. Knows the log, the list and the replay; what else is to follow the
 * place that is shown (a waterfall) is told by `onAt`.
 *
 * A player is `live` (shows the tail), or stands `at` a position: then it shows what was there at that moment, no more.
 */
import * as api from "./api.js";
import { every, h, say, sign, SIGNS, soon } from "./dom.js";
import { bytes, clock, count, day, short, span } from "./fmt.js";
import { List } from "./list.js";
import { Log } from "./log.js";
import { laidOut } from "./pretty.js";
import { Replay } from "./replay.js";
import { Table } from "./table.js";

const SPEEDS = [1, 2, 5, 10, 20];
const LARGEST_COLOURED = 200_000;

export class Player {
  /** `onAt(at, isLive)`: entries up to, and without, `at` are shown; `line(entry)`: what a row says of one. */
  constructor(name, { most, whole = false, at = null, line = (entry) => entry.text ?? entry.base64, onAt = () => {} }) {
    this.name = name;
    this.line = line;
    this.onAt = onAt;
    this.live = at === null;
    this.changed = soon(() => this.draw());
    this.log = new Log(name, { most, whole, onChange: this.changed });
    this.replay = new Replay(this.log, { onAt: (where) => this.to(where), onState: () => this.drawControls() });
    this.at = at;
    this.ends = [];
    this.list = new List({
      label: "Messages", make: makeRow, fill: (row, position) => this.fill(row, position),
      choose: (position) => this.look(position),
    });
    this.makeControls();
    this.makeSide();
    this.problem = h("p", { class: "notice", role: "alert", hidden: true });
    this.element = h("div", { class: "player" }, h("div", { class: "logside" }, this.problem, this.list.element),
      this.side, this.controls);
    this.log.open();
  }

  destroy() {
    this.replay.pause();
    this.log.close();
    this.list.destroy();
    for (const end of this.ends) end();
    this.endReaders?.();
  }

  // -- where it stands ------------------------------------------------------------------------------------------------

  /** The position that is shown up to. */
  get shown() {
    return this.live ? this.log.tail : Math.min(this.at, this.log.tail);
  }

  to(at) {
    this.live = false;
    this.at = Math.min(Math.max(at, this.log.start), this.log.tail);
    this.list.stuck = true;
    this.changed();
  }

  toLive() {
    this.replay.pause();
    this.live = true;
    this.list.stuck = true;
    this.changed();
  }

  toggle() {
    if (this.replay.playing) this.replay.pause();
    else this.replay.play(this.live ? this.log.start : this.at);
  }

  // -- drawing --------------------------------------------------------------------------------------------------------

  draw() {
    const { log } = this;
    this.problem.hidden = log.gone === null;
    if (log.gone) say(this.problem, log.gone.message);
    this.list.show(log.start, this.shown);
    this.drawControls();
    this.onAt(this.shown, this.live);
  }

  fill(row, position) {
    const entry = this.log.get(position);
    const [number, time, key, text, size] = row.children;
    say(number, position);
    say(time, entry ? clock(entry.time) : "");
    say(key, entry?.key ?? "");
    say(text, entry ? this.line(entry) : "…");
    say(size, entry ? bytes(entry.size) : "");
    row.dataset.kind = entry?.base64 !== undefined ? "bytes" : "";
  }

  makeControls() {
    this.playButton = h("button", { type: "button", class: "icon", onclick: () => this.toggle() }, sign(SIGNS.play));
    this.liveButton = h("button", { type: "button", class: "live", onclick: () => this.toLive() }, h("i", { "aria-hidden": "true" }), this.liveLabel = h("span", {}, "Live"));
    this.speed = h("select", { "aria-label": "Speed of the replay" }, SPEEDS.map((by) => h("option", { value: by }, `${by}×`)));
    this.speed.addEventListener("change", () => { this.replay.speed = Number(this.speed.value); });
    const skip = h("input", { type: "checkbox" });
    skip.checked = true;
    skip.addEventListener("change", () => { this.replay.skips = skip.checked; });
    this.scrubber = h("input", { type: "range", min: 0, max: 0, step: 1, "aria-label": "Position in the stream" });
    this.scrubber.addEventListener("input", () => {
      this.replay.pause();
      if (Number(this.scrubber.value) >= this.log.tail && !this.log.closed) this.toLive();
      else this.to(Number(this.scrubber.value));
    });
    this.where = h("output", { class: "where" });
    this.times = h("span", { class: "soft times" }, "by the time at which the log took each message");
    this.controls = h("div", { class: "controls" }, this.playButton, this.scrubber, this.liveButton, this.where,
      h("label", { class: "speed" }, this.speed), h("label", { class: "skip" }, skip, "skip long pauses"), this.times);
  }

  drawControls() {
    const { log, shown } = this;
    const range = this.scrubber;
    if (Number(range.min) !== log.start) range.min = log.start;
    if (Number(range.max) !== log.tail) range.max = log.tail;
    if (Number(range.value) !== shown) range.value = shown;
    const part = log.tail > log.start ? (shown - log.start) / (log.tail - log.start) : 1;
    range.style.setProperty("--part", `${part * 100}%`);
    this.liveButton.setAttribute("aria-pressed", String(this.live));
    this.liveButton.disabled = log.closed && this.live;
    say(this.liveLabel, log.closed ? "End" : "Live");
    const playing = String(this.replay.playing);
    if (this.playButton.dataset.playing !== playing) {
      this.playButton.dataset.playing = playing;
      this.playButton.replaceChildren(sign(this.replay.playing ? SIGNS.pause : SIGNS.play));
      this.playButton.setAttribute("aria-label", this.replay.playing ? "Pause the replay" : "Replay");
    }
    const last = log.get(shown - 1);
    const first = log.get(log.start);
    const passed = last && first ? ` · +${span(last.time - first.time)}` : "";
    say(this.where, log.known ? `${count(shown)} of ${count(log.tail)}${last ? ` · ${clock(last.time)}` : ""}${passed}` : "");
    range.setAttribute("aria-valuetext", this.where.textContent);
    this.element.dataset.shown = String(shown);
    this.element.dataset.mode = this.replay.playing ? "replay" : this.live ? "live" : "at";
  }

  // -- beside the list ------------------------------------------------------------------------------------------------

  makeSide() {
    this.panels = { message: h("div", { class: "panel" }), readers: h("div", { class: "panel" }), formats: h("div", { class: "panel" }) };
    this.tabs = Object.keys(this.panels).map((which) => h("button", {
      type: "button", role: "tab", "aria-selected": "false", dataset: { which }, onclick: () => this.open(which),
    }, { message: "Message", readers: "Readers", formats: "Formats" }[which]));
    this.side = h("aside", { class: "side" },
      h("div", { class: "tabs", role: "tablist", "aria-label": "About the stream" }, this.tabs, this.makeDownload()),
      Object.values(this.panels));
    this.pretty = true;
    this.open("message");
    this.panels.message.append(h("p", { class: "empty" }, "Choose a message: click it, or j and k."));
  }

  makeDownload() {
    const choice = h("select", { "aria-label": "Download", class: "download" },
      h("option", { value: "" }, "Download"), h("option", { value: "text" }, "raw bytes"),
      h("option", { value: "ndjson" }, "NDJSON"));
    choice.addEventListener("change", () => {
      if (choice.value) this.download(choice.value);
      choice.value = "";
    });
    return choice;
  }

  async download(format) {
    const anchor = h("a", { download: `${this.name.replaceAll(/[^\w.-]+/g, "_")}.${format === "text" ? "bin" : "ndjson"}` });
    let url = api.downloadUrl(this.name, format);
    if (api.hasKey()) url = URL.createObjectURL(await api.downloaded(this.name, format));
    anchor.href = url;
    anchor.click();
    if (url.startsWith("blob:")) setTimeout(() => URL.revokeObjectURL(url), 60_000);
  }

  open(which) {
    for (const tab of this.tabs) tab.setAttribute("aria-selected", String(tab.dataset.which === which));
    for (const [name, panel] of Object.entries(this.panels)) panel.hidden = name !== which;
    this.endReaders?.();
    this.endReaders = undefined;
    if (which === "readers") this.showReaders();
    if (which === "formats") this.showFormats();
  }

  async look(position) {
    this.open("message");
    const entry = this.log.get(position);
    this.looking = position;
    if (entry) this.showMessage(entry);
    else this.panels.message.replaceChildren(h("p", { class: "empty" }, "…"));
  }

  showMessage(entry) {
    const facts = [["position", count(entry.position)], ["appended", `${day(entry.time).slice(0, 10)} ${clock(entry.time)}`],
      ["size", bytes(entry.size)], ...(entry.key === undefined ? [] : [["key", entry.key]]), ["offset", entry.offset]];
    const body = h("pre", { class: "body", tabindex: "0" });
    const pieces = entry.text !== undefined && entry.size < LARGEST_COLOURED ? laidOut(entry.text) : null;
    const put = () => {
      if (entry.base64 !== undefined) say(body, hex(entry.base64));
      else if (this.pretty && pieces) body.replaceChildren(...pieces.map(([kind, text]) => h("span", { class: kind }, text)));
      else say(body, entry.text);
    };
    const ways = [["pretty", true], ["raw", false]].map(([label, pretty]) => h("button", {
      type: "button", "aria-pressed": String(pretty === this.pretty), onclick: (event) => {
        this.pretty = pretty;
        for (const one of event.target.parentElement.children) one.setAttribute("aria-pressed", String(one === event.target));
        put();
      },
    }, label));
    put();
    const cut = entry.cut ? h("p", { class: "cut" }, `The first ${bytes(this.log.most)}. `, h("button", {
      type: "button", onclick: async () => this.showMessage(await this.log.full(entry.position)),
    }, "All of it")) : null;
    this.panels.message.replaceChildren(
      h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value)))),
      entry.base64 !== undefined ? h("p", { class: "soft" }, "Bytes that are no text, in hexadecimal.")
        : pieces ? h("div", { class: "choice", role: "group", "aria-label": "How JSON is shown" }, ways) : null,
      ...(cut ? [cut] : []), body);
  }

  showReaders() {
    const table = new Table([
      { title: "Transport", cell: ({ transport }) => transport },
      { title: "Behind", class: "number", cell: ({ behind }) => ({ text: count(behind), some: behind ? "yes" : "" }) },
      { title: "Last write", class: "number", cell: ({ silent }) => `${short(silent)} s` },
      { title: "Takes", class: "state", cell: ({ stalled }) => ({ text: stalled ? "stalled" : "yes", state: stalled ? "failed" : "" }) },
    ], { key: ({ id }) => id, label: "Readers of this stream", empty: "Nobody follows it through this process." });
    const sum = h("p", { class: "soft" });
    this.panels.readers.replaceChildren(sum, table.element);
    this.endReaders = every(1, async () => {
      try {
        const told = await api.readers(this.name);
        table.show(told.readers.map((one, id) => ({ ...one, id })));
        say(sum, `${count(told.count)} in this process${told.count > told.readers.length ? `, the ${told.readers.length} furthest behind` : ""}; one “console” is this page`);
      } catch (error) {
        say(sum, error.message);
      }
    });
  }

  async showFormats() {
    const choice = h("select", { "aria-label": "Format" });
    const body = h("pre", { class: "body bytes", tabindex: "0" });
    const facts = h("p", { class: "soft" });
    this.panels.formats.replaceChildren(h("div", { class: "row-of" }, choice, facts), body);
    const show = async () => {
      try {
        const told = await api.preview(this.name, choice.value);
        const text = new TextDecoder().decode(told.bytes);
        say(body, text.includes("\uFFFD") ? hexOf(told.bytes) : text);
        say(facts, `${told.type} · ${bytes(told.bytes.length)}${told.whole ? ", the whole stream" : ", its beginning"}`);
      } catch (error) {
        say(facts, error.message);
        say(body, "");
      }
    };
    choice.addEventListener("change", show);
    try {
      const { formats } = await api.formats(this.name);
      choice.append(...formats.map((name) => h("option", { value: name }, name)));
      await show();
    } catch (error) {
      say(facts, error.message);
    }
  }

  get keys() {
    return {
      j: () => this.list.move(1), k: () => this.list.move(-1), " ": () => this.toggle(), l: () => this.toLive(),
      "[": () => this.to(this.shown - 100), "]": () => this.to(this.shown + 100),
      ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1),
      Home: () => this.to(this.log.start), End: () => this.toLive(), "/": () => this.scrubber.focus(),
    };
  }

  step(by) {
    this.replay.pause();
    this.to(this.shown + by);
  }
}

function makeRow() {
  return h("div", { class: "row", role: "option" }, h("span", { class: "position" }), h("time"),
    h("span", { class: "key" }), h("span", { class: "line" }), h("span", { class: "size" }));
}

const hex = (base64) => hexOf(Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0)));

function hexOf(data) {
  const lines = [];
  for (let at = 0; at < Math.min(data.length, 65_536); at += 16) {
    const part = [...data.subarray(at, at + 16)];
    const digits = part.map((byte) => byte.toString(16).padStart(2, "0")).join(" ").padEnd(47);
    const letters = part.map((byte) => (byte > 31 && byte < 127 ? String.fromCharCode(byte) : "·")).join("");
    lines.push(`${at.toString(16).padStart(6, "0")}  ${digits}  ${letters}`);
  }
  return lines.join("\n");
}
