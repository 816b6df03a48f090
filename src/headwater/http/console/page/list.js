/**
 * A list of any length in a bounded number of elements: only the rows that are seen are there.
 *
 * Knows a count and how to fill a row; nothing of what is in it. Rows have one height (ROW in console.css), so that no
 * row moves when another becomes known. Browsers end at some 30 million pixels: of a longer list a stretch is scrolled.
 */
import { h, soon } from "./dom.js";

const ROW = 24;
const MOST = 500_000;
const BEYOND = 8;

export class List {
  /** `fill(element, position)` shows a row, or that it is on its way; `choose(position)`: somebody wants to see it. */
  constructor({ make, fill, choose, label }) {
    Object.assign(this, { make, fill, choose });
    this.first = this.count = this.base = 0;
    this.chosen = -1;
    this.stuck = true;
    this.rows = [];
    this.space = h("div", { class: "space" });
    this.element = h("div", { class: "list", role: "listbox", tabindex: "0", "aria-label": label }, this.space);
    this.element.addEventListener("scroll", () => {
      this.stuck = this.element.scrollTop + this.element.clientHeight >= this.element.scrollHeight - ROW / 2;
      this.draw();
    });
    this.element.addEventListener("click", (event) => {
      const row = event.target.closest(".row");
      if (row) this.pick(Number(row.dataset.position));
    });
    this.resized = new ResizeObserver(soon(() => this.draw()));
    this.resized.observe(this.element);
  }

  /** There are the positions `first` up to, and without, `end`. At the bottom it stays there. */
  show(first, end) {
    this.first = first;
    this.count = Math.max(0, end - first);
    if (this.stuck) this.base = Math.max(0, this.count - MOST);
    this.base = Math.min(this.base, Math.max(0, this.count - MOST));
    const height = `${Math.min(this.count, MOST) * ROW}px`;
    if (this.space.style.height !== height) this.space.style.height = height;
    if (this.stuck) this.element.scrollTop = this.element.scrollHeight;
    this.draw();
  }

  draw() {
    const view = this.element.clientHeight;
    const from = Math.max(0, Math.floor(this.element.scrollTop / ROW) - BEYOND);
    const size = Math.ceil(view / ROW) + 2 * BEYOND;
    while (this.rows.length < size) {
      const row = this.make();
      this.rows.push(row);
      this.space.append(row);
    }
    const shown = Math.min(this.count, MOST);
    for (const [index, row] of this.rows.entries()) {
      // Each element keeps the rows of its number (mod size): scrolling by one changes one.
      const size_ = this.rows.length;
      const line = from + ((((index - from) % size_) + size_) % size_);
      row.hidden = line >= shown || line >= from + size;
      if (row.hidden) continue;
      const position = this.first + this.base + line;
      row.style.transform = `translateY(${line * ROW}px)`;
      row.dataset.position = position;
      row.setAttribute("aria-selected", String(position === this.chosen));
      row.id = `row-${position}`;
      this.fill(row, position);
    }
  }

  pick(position, { quietly = false } = {}) {
    if (!this.count) return;
    this.chosen = Math.min(this.first + this.count - 1, Math.max(this.first, position));
    this.element.setAttribute("aria-activedescendant", `row-${this.chosen}`);
    if (!quietly) this.reveal(this.chosen);
    this.draw();
    this.choose(this.chosen);
  }

  move(by) {
    if (this.chosen < 0) this.pick(by > 0 ? this.visible()[0] : this.first + this.count - 1);
    else this.pick(this.chosen + by);
  }

  visible() {
    const top = this.first + this.base + Math.ceil(this.element.scrollTop / ROW);
    return [top, top + Math.floor(this.element.clientHeight / ROW)];
  }

  reveal(position) {
    const line = position - this.first;
    if (line < this.base || line >= this.base + MOST) {
      this.base = Math.max(0, Math.min(this.count - MOST, line - MOST / 2));
    }
    const top = (line - this.base) * ROW;
    const { scrollTop, clientHeight } = this.element;
    if (top < scrollTop) this.element.scrollTop = top;
    else if (top + ROW > scrollTop + clientHeight) this.element.scrollTop = top + ROW - clientHeight;
  }

  toEnd() {
    this.stuck = true;
    this.show(this.first, this.first + this.count);
  }

  destroy() {
    this.resized.disconnect();
  }
}
