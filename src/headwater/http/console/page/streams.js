/** All streams: searched, page by page, each row changing in place. */
import { listStreams } from "./api.js";
import { every, h, say } from "./dom.js";
import { ago, bytes, count } from "./fmt.js";
import { Table } from "./table.js";

const PAGE = 50;
/** Requests for one page of a search: the server looks at 5,000 streams for each. */
const MOST_SEARCHES = 20;
const STATES = [["", "all"], ["open", "open"], ["closed", "closed"], ["failed", "failed"]];

export const streamHref = (name) =>
  name.startsWith("runs/") ? `#/run/${encodeURIComponent(name.slice(5))}` : `#/stream/${encodeURIComponent(name)}`;

export const stateOf = (stream) => (stream.closed ? stream.outcome ?? "closed" : "open");

export function mount(root, place) {
  const asked = {
    text: place.query.get("q") ?? "", way: place.query.get("way") === "prefix" ? "prefix" : "contains",
    state: place.query.get("state") ?? "",
  };
  let pages = [undefined];
  let next = null;
  let asking = 0;

  const field = h("input", {
    type: "search", value: asked.text, placeholder: "Search streams  /", "aria-label": "Search streams",
    spellcheck: "false", autocomplete: "off",
  });
  const way = h("select", { "aria-label": "How to search" },
    h("option", { value: "contains" }, "contains"), h("option", { value: "prefix" }, "begins with"));
  way.value = asked.way;
  const states = STATES.map(([value, label]) =>
    h("button", { type: "button", "aria-pressed": String(value === asked.state), onclick: () => choose(value) }, label));
  const where = h("span", { class: "soft count" });
  const back = h("button", { type: "button", disabled: true, "aria-label": "Previous page", onclick: () => turn(-1) }, "‹");
  const on = h("button", { type: "button", disabled: true, "aria-label": "Next page", onclick: () => turn(1) }, "›");
  const problem = h("p", { class: "bad", role: "alert" });
  const table = new Table([
    { title: "Stream", class: "name", cell: ({ name }) => name },
    { title: "State", class: "state", cell: (one) => ({ text: stateOf(one), state: stateOf(one) }) },
    { title: "Messages", class: "number", cell: ({ messages }) => count(messages) },
    { title: "Size", class: "number", cell: (one) => bytes(one.bytes) },
    { title: "Readers", class: "number", cell: ({ readers }) => ({ text: count(readers), some: readers ? "yes" : "" }) },
    { title: "Type", class: "type wide", cell: (one) => one.content_type },
    { title: "Last append", class: "number age", cell: ({ appended }) => ago(appended, Date.now()) },
  ], { key: ({ name }) => name, href: ({ name }) => streamHref(name), label: "Streams",
    empty: "No stream is like that." });

  root.append(
    h("div", { class: "head" }, h("h1", {}, "Streams"), h("div", { class: "search" }, way, field),
      h("div", { class: "choice", role: "group", "aria-label": "State" }, states),
      h("div", { class: "turn" }, where, back, on)),
    problem, table.element);

  function remember() {
    const query = new URLSearchParams(Object.entries({
      q: asked.text, way: asked.way === "prefix" ? "prefix" : "", state: asked.state,
    }).filter(([, value]) => value));
    history.replaceState(null, "", `#/streams${String(query) && `?${query}`}`);
  }

  function again() {
    pages = [undefined];
    remember();
    refresh();
  }

  function choose(state) {
    asked.state = state;
    for (const [index, button] of states.entries()) {
      button.setAttribute("aria-pressed", String(STATES[index][0] === state));
    }
    again();
  }

  function turn(by) {
    if (by > 0 && next !== null) pages.push(next);
    else if (by < 0 && pages.length > 1) pages.pop();
    else return;
    next = null; // of the page that is on its way nobody knows yet
    table.element.scrollTop = 0;
    refresh();
  }

  let typing = 0;
  field.addEventListener("input", () => {
    clearTimeout(typing);
    typing = setTimeout(() => {
      asked.text = field.value;
      again();
    }, 150);
  });
  way.addEventListener("change", () => {
    asked.way = way.value;
    again();
  });

  async function refresh() {
    const mine = ++asking;
    try {
      const found = [];
      let after = pages.at(-1);
      for (let tries = 0; tries < MOST_SEARCHES; tries++) {
        const part = await listStreams({
          [asked.way]: asked.text, state: asked.state, after, limit: PAGE - found.length,
        });
        if (mine !== asking) return;
        found.push(...part.streams);
        after = part.next;
        if (after === null || found.length >= PAGE) break;
        if (tries) say(where, "searching …");
      }
      next = after;
      table.show(found);
      say(problem, "");
      say(where, `${pages.length > 1 || next ? `page ${pages.length} · ` : ""}${count(found.length)}${next ? "+" : ""}`);
      back.disabled = pages.length < 2;
      on.disabled = next === null;
    } catch (error) {
      if (mine === asking && error.status) say(problem, error.message);
    }
  }

  const end = every(2, refresh);
  return {
    unmount() {
      end();
      asking = -1;
    },
    keys: {
      "/": () => field.select(), j: () => table.move(1), k: () => table.move(-1), "]": () => turn(1), "[": () => turn(-1),
    },
  };
}
