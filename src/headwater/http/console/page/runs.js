/** Runs of agents, newest first. */
import { listRuns } from "./api.js";
import { every, h, say } from "./dom.js";
import { ago, count, span } from "./fmt.js";
import { Table } from "./table.js";

const PAGE = 50;
const STATES = ["", "running", "waiting", "completed", "failed", "cancelled"];

export function mount(root, place, known) {
  if (!known.runs) {
    root.append(h("p", { class: "notice" }, "This server runs no agents."));
    return {};
  }
  const asked = { status: place.query.get("status") ?? "", agent: place.query.get("agent") ?? "" };
  let pages = [undefined];
  let next = null;
  let asking = 0;

  const agent = h("select", { "aria-label": "Agent" }, h("option", { value: "" }, "every agent"),
    known.agents.map((name) => h("option", { value: name }, name)));
  agent.value = asked.agent;
  const states = STATES.map((status) =>
    h("button", { type: "button", "aria-pressed": String(status === asked.status), onclick: () => choose(status) },
      status || "all"));
  const where = h("span", { class: "soft count" });
  const back = h("button", { type: "button", disabled: true, "aria-label": "Previous page", onclick: () => turn(-1) }, "‹");
  const on = h("button", { type: "button", disabled: true, "aria-label": "Next page", onclick: () => turn(1) }, "›");
  const problem = h("p", { class: "bad", role: "alert" });
  const table = new Table([
    { title: "Run", class: "name", cell: ({ title, id }) => title || id },
    { title: "Status", class: "state", cell: ({ status }) => ({ text: status, state: status }) },
    { title: "Agent", class: "agent", cell: (one) => one.agent },
    { title: "Took", class: "number", cell: (one) =>
      span(one.ended || one.status === "running" ? (one.ended ?? Date.now()) - one.created : NaN) },
    { title: "Thread", class: "type wide", cell: ({ thread_id: thread }) => (thread.startsWith("th_") ? "" : thread) },
    { title: "Started", class: "number age", cell: ({ created }) => ago(created, Date.now()) },
  ], { key: ({ id }) => id, href: ({ id }) => `#/run/${encodeURIComponent(id)}`, label: "Runs",
    empty: "No run is like that." });

  root.append(
    h("div", { class: "head" }, h("h1", {}, "Runs"), agent,
      h("div", { class: "choice", role: "group", "aria-label": "Status" }, states),
      h("div", { class: "turn" }, where, back, on)),
    problem, table.element);

  function again() {
    pages = [undefined];
    const query = new URLSearchParams(Object.entries(asked).filter(([, value]) => value));
    history.replaceState(null, "", `#/runs${String(query) && `?${query}`}`);
    refresh();
  }

  function choose(status) {
    asked.status = status;
    for (const [index, button] of states.entries()) button.setAttribute("aria-pressed", String(STATES[index] === status));
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

  agent.addEventListener("change", () => {
    asked.agent = agent.value;
    again();
  });

  async function refresh() {
    const mine = ++asking;
    try {
      const part = await listRuns({ ...asked, before: pages.at(-1), limit: PAGE });
      if (mine !== asking) return;
      next = part.next;
      table.show(part.runs);
      say(problem, "");
      say(where, `${pages.length > 1 || next ? `page ${pages.length} · ` : ""}${count(part.runs.length)}${next ? "+" : ""}`);
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
      "/": () => agent.focus(), j: () => table.move(1), k: () => table.move(-1), "]": () => turn(1), "[": () => turn(-1),
    },
  };
}
