/**
 * A stream as far as this page knows it: entries by position, fetched where somebody looks, followed at its end.
 *
 * Knows the server's entries; must not know the DOM. Invariants: an entry's position never changes; what is kept is
 * bounded (PAGES pages), unless `whole` is asked for; an entry that is not here yet is `undefined` and on its way.
 */
import { entries, follow, liveUrl } from "./api.js";

const PAGE = 200;
const PAGES = 60;
const MOST_WHOLE = 50_000;

export class Log {
  /** `most`: bytes of each message that are asked for; `whole`: keep all of it (a run is read as a whole). */
  constructor(name, { most = 4096, whole = false, onChange }) {
    this.name = name;
    this.most = most;
    this.whole = whole;
    this.onChange = onChange;
    this.start = this.tail = 0;
    this.closed = false;
    this.outcome = null;
    this.type = "";
    this.generation = null;
    this.known = false;
    this.gone = null;
    this.pages = new Map();
    this.asked = new Set();
    this.end = () => {};
    this.over = false;
  }

  /** Reads the newest entries, then follows. */
  async open() {
    const told = await this.load(undefined);
    if (this.over || told === null) return;
    let offset = told.offset;
    if (this.whole) await this.loadAll();
    if (this.over || (this.closed && this.known)) return;
    this.end = follow(() => liveUrl(this.name, offset, this.most), ({ name, data, id }) => {
      if (name === "message") {
        offset = id;
        this.take(JSON.parse(data));
      } else if (name === "end") {
        this.closed = true;
        this.outcome = JSON.parse(data).outcome;
        this.end();
      }
      this.onChange();
    }, (error) => this.lost(error));
  }

  close() {
    this.over = true;
    this.end();
  }

  lost(error) {
    this.gone = error;
    this.onChange();
  }

  take(entry) {
    this.put(entry);
    this.tail = Math.max(this.tail, entry.position + 1);
  }

  put(entry) {
    const number = Math.floor(entry.position / PAGE);
    let page = this.pages.get(number);
    if (page) this.pages.delete(number); // the newest used stands last
    else page = [];
    this.pages.set(number, page);
    page[entry.position % PAGE] ??= entry;
    if (!this.whole && this.pages.size > PAGES) this.pages.delete(this.pages.keys().next().value);
  }

  /** The entry at a position, or undefined while it is fetched. */
  get(position) {
    if (position < this.start || position >= this.tail) return undefined;
    const found = this.pages.get(Math.floor(position / PAGE))?.[position % PAGE];
    if (found === undefined) this.want(position);
    return found;
  }

  want(position) {
    const from = Math.max(this.start, Math.floor(position / PAGE) * PAGE);
    const page = this.pages.get(Math.floor(from / PAGE));
    let first = from; // what is here of the page already is not asked for again
    while (page?.[first % PAGE] !== undefined && first < position) first++;
    if (this.asked.has(first)) return;
    this.asked.add(first);
    this.load(first, Math.floor(from / PAGE) * PAGE + PAGE - first).finally(() => this.asked.delete(first));
  }

  /** Fetches entries and learns what the stream is by now; null where it could not. */
  async load(from, limit = PAGE) {
    try {
      const told = await entries(this.name, { from, limit, most: this.most });
      if (this.generation !== null && told.generation !== this.generation) {
        this.pages.clear(); // another stream has this name now
        this.tail = 0;
      }
      this.generation = told.generation;
      this.start = told.start;
      this.type = told.content_type;
      this.closed = told.closed;
      this.outcome = told.outcome;
      this.tail = Math.max(this.tail, told.tail);
      for (const entry of told.entries) this.put(entry);
      this.known = true;
      this.onChange();
      return told;
    } catch (error) {
      if (error.status) this.lost(error);
      return null;
    }
  }

  async loadAll() {
    for (let at = this.start; at < Math.min(this.tail, this.start + MOST_WHOLE) && !this.over;) {
      const told = await this.load(at, 1000);
      if (!told?.entries.length) return;
      at = told.entries.at(-1).position + 1;
    }
  }

  /** The whole message, where only its beginning is here. */
  async full(position) {
    const told = await entries(this.name, { from: position, limit: 1, most: 1024 * 1024 });
    return told.entries[0];
  }
}
