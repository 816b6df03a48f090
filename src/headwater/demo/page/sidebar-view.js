/**
 * Draws the list of conversations: runs grouped by thread, newest first. Knows the DOM; must not know the network.
 */
import { make } from "./turn-view.js";

/** A run that names no thread is a conversation of its own. */
export const threadOf = (run) => run.thread_id || run.id;
export const byAge = (a, b) => a.created - b.created || (a.id < b.id ? -1 : 1);

/** Runs -> threads [{ id, title, status, time }], newest first; the title is that of the first run we know. */
export function threadsOf(runs) {
  const threads = new Map();
  for (const run of [...runs].sort(byAge)) {
    const id = threadOf(run);
    threads.set(id, { id, title: threads.get(id)?.title ?? run.title, status: run.status, time: run.created });
  }
  return [...threads.values()].sort((a, b) => b.time - a.time);
}

const WORDS = { running: "running", completed: "finished", failed: "failed", cancelled: "stopped" };
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const weekday = new Intl.DateTimeFormat(undefined, { weekday: "short" });
const date = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });

function ago(time, now) {
  const minutes = Math.floor((now - time) / 60000);
  if (minutes < 1) return "now";
  if (minutes < 60) return `${minutes} min`;
  if (new Date(time).toDateString() === new Date(now).toDateString()) return clock.format(time);
  return minutes < 6 * 24 * 60 ? weekday.format(time) : date.format(time);
}

function row() {
  const dot = make("span", "dot");
  const title = make("span", "title", { dir: "auto" });
  const time = make("time");
  const word = make("span", "unseen");
  const link = make("a", "", {}, dot, title, time, word);
  const element = make("li", "", {}, link);
  return {
    element,
    draw(thread, current, now) {
      const label = thread.title || "Untitled";
      link.href = `#${encodeURIComponent(thread.id)}`;
      link.dataset.thread = thread.id;
      link.dataset.status = thread.status;
      link.title = label;
      if (thread.id === current) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
      title.textContent = label;
      word.textContent = `, ${WORDS[thread.status] ?? thread.status}`;
      time.dateTime = new Date(thread.time).toISOString();
      time.textContent = ago(thread.time, now);
    },
  };
}

/** The list in `element`; rows are kept, so focus and scroll position stay. Returns draw(threads, current, now). */
export function sidebarView(element) {
  const rows = new Map();
  return (threads, current, now) => {
    threads.forEach((thread, index) => {
      if (!rows.has(thread.id)) rows.set(thread.id, row());
      const { element: item, draw } = rows.get(thread.id);
      draw(thread, current, now);
      if (element.children[index] !== item) element.insertBefore(item, element.children[index] ?? null);
    });
    const known = new Set(threads.map(({ id }) => id));
    for (const [id, { element: item }] of rows) if (!known.has(id)) item.remove(), rows.delete(id);
  };
}
