/**
 * A table whose rows stay where they are while their figures change: rows are kept by key and changed in place.
 *
 * Knows nothing of what it shows. `columns`: [{ name, title, class, cell(item) -> text or { text, …props } }].
 */
import { h, say } from "./dom.js";

export class Table {
  constructor(columns, { key, href, label, empty }) {
    this.columns = columns;
    this.key = key;
    this.href = href;
    this.body = h("tbody");
    this.rows = new Map();
    this.chosen = -1;
    this.empty = h("p", { class: "empty", hidden: true }, empty);
    const heads = columns.map((column) => h("th", { scope: "col", class: column.class }, column.title));
    this.element = h("div", { class: "table" },
      h("table", { "aria-label": label }, h("thead", {}, h("tr", {}, heads)), this.body), this.empty);
  }

  show(items) {
    const wanted = new Map(items.map((item) => [this.key(item), item]));
    for (const [key, row] of this.rows) {
      if (!wanted.has(key)) {
        row.element.remove();
        this.rows.delete(key);
      }
    }
    let before = null;
    for (const [key, item] of wanted) {
      const row = this.rows.get(key) ?? this.make(key, item);
      this.fill(row, item);
      const next = before === null ? this.body.firstChild : before.nextSibling;
      if (next !== row.element) this.body.insertBefore(row.element, next);
      before = row.element;
    }
    this.empty.hidden = wanted.size > 0;
    this.items = items;
  }

  make(key, item) {
    const cells = this.columns.map((column, index) => {
      const inner = index === 0 && this.href ? h("a", { href: this.href(item) }) : h("span");
      return { cell: h("td", { class: column.class, dataset: { title: column.title } }, inner), inner };
    });
    const row = { cells, element: h("tr", { dataset: { key } }, cells.map(({ cell }) => cell)) };
    if (this.href) {
      row.element.addEventListener("click", (event) => {
        if (!event.target.closest("a") && !String(getSelection())) location.hash = this.href(item);
      });
    }
    this.rows.set(key, row);
    return row;
  }

  fill(row, item) {
    for (const [index, column] of this.columns.entries()) {
      const said = column.cell(item);
      const { text, ...more } = typeof said === "object" && said !== null ? said : { text: said };
      const { inner } = row.cells[index];
      say(inner, text);
      for (const [name, value] of Object.entries(more)) {
        if (inner.dataset[name] !== value) inner.dataset[name] = value;
      }
      if (index === 0 && inner.title !== String(text)) inner.title = text;
    }
  }

  /** Moves the choice by rows, with the focus on it. */
  move(by) {
    const links = [...this.body.querySelectorAll("tr a")];
    if (!links.length) return;
    const now = links.indexOf(document.activeElement);
    links[Math.min(links.length - 1, Math.max(0, now < 0 ? (by > 0 ? 0 : links.length - 1) : now + by))].focus();
  }
}
