/**
 * The frame of the console: which page is shown, colours, keys, and the question for a key.
 *
 * A page is `mount(root, place, say) -> { unmount, keys }`; `place` is what the hash says: its parts and its query.
 * Knows pages by name only.
 */
import { about, hasKey, link, setKey } from "./api.js";
import { h, say } from "./dom.js";
import * as overview from "./overview.js";
import * as run from "./run.js";
import * as runs from "./runs.js";
import * as stream from "./stream.js";
import * as streams from "./streams.js";

const PAGES = { "": overview, streams, stream, runs, run };
const UNDER = { "": "overview", stream: "streams", run: "runs", streams: "streams", runs: "runs" };
const LINK = { ok: "connected", lost: "reconnecting", key: "key wanted", wait: "connecting" };
const THEMES = ["auto", "light", "dark"];
const THEME = "headwater.theme";

const main = document.querySelector("#main");
let shown = null;
let known = null;

/** `#/stream/chat%2F42?at=3` -> { page: "stream", rest: "chat/42", query } */
function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [page, ...rest] = path.split("/");
  let name = rest.join("/");
  try {
    name = decodeURIComponent(name);
  } catch {
    // as it stands: somebody has typed a percent sign
  }
  return { page, rest: name, query: new URLSearchParams(query ?? "") };
}

async function show() {
  shown?.unmount?.();
  shown = null;
  main.replaceChildren();
  if (known === null) {
    try {
      known = await about();
    } catch (error) {
      if (error.status === 401) return askKey(hasKey() ? "The server does not know this key." : "");
      main.replaceChildren(notice(error.message ?? "The server cannot be reached."));
      setTimeout(show, 2000);
      return;
    }
  }
  const at = place();
  if (!at.rest && at.page in { stream: 1, run: 1 }) at.page = UNDER[at.page];
  const page = Object.hasOwn(PAGES, at.page) ? PAGES[at.page] : overview;
  for (const anchor of document.querySelectorAll("#bar nav a")) {
    if (anchor.dataset.page === (UNDER[at.page] ?? "overview")) anchor.setAttribute("aria-current", "page");
    else anchor.removeAttribute("aria-current");
  }
  document.title = `${at.rest || UNDER[at.page] || "overview"} · Headwater`;
  main.dataset.page = at.page || "overview";
  main.replaceChildren();
  shown = page.mount(main, at, known);
}

const notice = (text) => h("p", { class: "notice" }, text);

function askKey(wrong) {
  const field = h("input", { type: "password", name: "key", autocomplete: "off", required: true, "aria-label": "Key" });
  const form = h("form", { class: "ask" },
    h("h1", {}, "This server wants a key"),
    h("p", {}, "It is kept in this tab until you close it, and sent to this server only."),
    field, h("button", { class: "main" }, "Go on"), h("p", { class: "bad", role: "alert" }, wrong));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    setKey(field.value.trim());
    known = null;
    show();
  });
  main.dataset.page = "key";
  main.replaceChildren(form);
  field.focus();
}

// -- colours ----------------------------------------------------------------------------------------------------------

const themeButton = document.querySelector("#theme");

function paint(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  themeButton.dataset.now = theme;
  say(themeButton, { auto: "◐", light: "○", dark: "●" }[theme]);
  themeButton.setAttribute("aria-label", `Colours: ${theme === "auto" ? "as the system" : theme}`);
  window.dispatchEvent(new Event("repaint"));
}

themeButton.addEventListener("click", () => {
  const next = THEMES[(THEMES.indexOf(themeButton.dataset.now) + 1) % THEMES.length];
  localStorage.setItem(THEME, next);
  paint(next);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => window.dispatchEvent(new Event("repaint")));
paint(THEMES.includes(localStorage.getItem(THEME)) ? localStorage.getItem(THEME) : "auto");

// -- keys -------------------------------------------------------------------------------------------------------------

const dialog = document.querySelector("#keys");
const isField = (element) => element.matches?.("input:not([type=range]), textarea, select");
let before = "";

document.querySelector("#help").addEventListener("click", () => dialog.showModal());
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || dialog.open) return;
  if (isField(event.target)) {
    if (event.key === "Escape") event.target.blur();
    return;
  }
  const went = before === "g" ? { o: "#/", s: "#/streams", r: "#/runs" }[event.key] : undefined;
  before = event.key;
  if (went !== undefined) {
    before = "";
    location.hash = went;
  } else if (event.key === "?") {
    dialog.showModal();
  } else if (shown?.keys?.[event.key] && !(event.key === " " && event.target.matches?.("button, a, summary"))) {
    event.preventDefault();
    shown.keys[event.key](event);
  }
});

// -- what holds it together -------------------------------------------------------------------------------------------

link.listeners.add((state) => {
  const element = document.querySelector("#link");
  element.dataset.state = state;
  say(element.querySelector("span"), LINK[state]);
  if (state === "key" && known !== null) {
    known = null;
    show();
  }
});
window.addEventListener("hashchange", show);
show();
