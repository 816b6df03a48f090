/**
 * The page: wires the conversation, the list of conversations and the person's hands together.
 *
 * The thread is in the URL's hash, so a reload, a second tab or a shared link shows the same. See conversation.js for
 * what is true, run-state.js for how events become a state, turn-view.js for how a state becomes elements.
 *
 * Hooks for tests, kept stable: #composer #send #stop #new #newest #menu #threads #empty #notice #status,
 * body[data-connection], body[data-running], [data-run] with [data-status], [data-role=user|assistant],
 * [data-role=assistant] .text, [data-message], [data-tool] with [data-phase], [data-action=retry],
 * #threads a[data-thread] with [data-status].
 */
import { about, connection, freshKey, listRuns } from "./api.js";
import { Conversation, outbox } from "./conversation.js";
import { isEnded } from "./run-state.js";
import { stickToEnd } from "./scroll.js";
import { sidebarView, threadsOf } from "./sidebar-view.js";
import { make, turnView } from "./turn-view.js";

const POLL = 3000;
const POLL_LOST = 1000;
/** How much of the past is read at once, and how often at most to find all runs of one thread. */
const OLDER = 200;
/** A tab hidden for so long gives its connections back: a browser has six for all tabs of a host. */
const REST = 15000;
/** A cut shorter than this is not worth a person's attention. */
const CALM = 500;

const $ = (id) => document.getElementById(id);
const composer = $("composer");
const drawThreads = sidebarView($("threads"));
const scroll = stickToEnd($("scroller"), $("transcript"), (away) => ($("newest").hidden = !away));

let agent = "assistant";
let thread = null;
let conversation = null;
let complete = false;
let older = undefined;
const runs = new Map();
const views = new Map();
const announced = new WeakMap();
const dirty = new Set();
let frame = 0;

const SPOKEN = {
  waiting: "",
  running: "Answering",
  completed: "Answer finished",
  cancelled: "Answer stopped",
  failed: "The answer failed",
};
const announce = (text) => ($("status").textContent = text);

// --- drawing ---------------------------------------------------------------------------------------------------------

function change(turn) {
  dirty.add(turn);
  frame ||= requestAnimationFrame(draw);
}

function draw() {
  frame = 0;
  const now = Date.now();
  for (const turn of dirty) if (views.has(turn)) drawTurn(turn, now);
  dirty.clear();
  drawControls();
  scroll.settle();
}

function drawTurn(turn, now) {
  const view = views.get(turn);
  if (turn.run) view.setRun(turn.run.id);
  view.setQuestion(turn.question, turn.repeated);
  view.draw(turn, { now, canRetry: conversation.canRetry(turn) });
  speak(turn);
}

/** Tells a screen reader the turns of events, never single tokens, and nothing about answers from before. */
function speak(turn) {
  const last = turn.state.parts.at(-1);
  const using = last?.kind === "tool" && last.phase === "running" && `Using ${last.name}`;
  const news = turn.sending ? "" : using || turn.state.status;
  if (announced.get(turn) === news) return;
  const live = announced.has(turn);
  announced.set(turn, news);
  if (!live || !turn.live || turn !== conversation.turns.at(-1)) return;
  announce(SPOKEN[news] ?? news);
}

function drawControls() {
  const running = Boolean(conversation?.running);
  const fresh = !conversation || (complete && conversation.turns.length === 0);
  $("empty").hidden = !fresh;
  document.body.toggleAttribute("data-running", running);
  if (!running && document.activeElement === $("stop")) composer.focus();
  $("stop").hidden = !running;
  if (!running) $("stop").disabled = false;
  $("send").hidden = running;
  $("send").disabled = !composer.value.trim();
}

function arrange() {
  const transcript = $("transcript");
  for (const [turn, view] of views) {
    if (!conversation.turns.includes(turn)) view.element.remove(), views.delete(turn);
  }
  conversation.turns.forEach((turn, index) => {
    if (!views.has(turn)) {
      views.set(turn, turnView({ onRetry: () => conversation.retry(turn, agent) }));
      if (turn.live) turn.ended.then(poll);
    }
    const { element } = views.get(turn);
    if (transcript.children[index] !== element) transcript.insertBefore(element, transcript.children[index] ?? null);
    change(turn);
  });
}

function drawSidebar() {
  const threads = threadsOf(runs.values());
  drawThreads(threads, thread, Date.now());
  $("older").hidden = !older;
  const known = threads.find(({ id }) => id === thread)?.title || conversation?.turns[0]?.question.slice(0, 80);
  const title = known || "New conversation";
  $("title").textContent = title;
  document.title = thread ? `${title} · Headwater` : "Headwater";
}

// --- the list of runs ------------------------------------------------------------------------------------------------

let pollTimer = 0;
let polling = false;

/** Looks for runs that others started or that ended; only while somebody is looking at the page. */
async function poll() {
  clearTimeout(pollTimer);
  if (polling || document.hidden) return;
  polling = true;
  try {
    const page = await listRuns();
    if (older === undefined) older = page.next;
    for (const run of page.runs) runs.set(run.id, run);
    const asked = conversation;
    if (asked && !complete) await readThread(asked);
    conversation?.merge(page.runs);
    drawSidebar();
    drawControls();
  } catch {
    // api.js has told `connection` already; the next poll asks again.
  } finally {
    polling = false;
    pollTimer = setTimeout(poll, connection.state === "lost" ? POLL_LOST * (0.5 + Math.random()) : POLL);
  }
}

/** All runs of a thread, however old. */
async function readThread(asked) {
  asked.merge([...runs.values()]);
  let before;
  do {
    const page = await listRuns({ limit: OLDER, before, thread });
    if (asked !== conversation) return;
    for (const run of page.runs) runs.set(run.id, run);
    asked.merge(page.runs);
    before = page.next;
  } while (before);
  complete = true;
}

async function showOlder() {
  const page = await listRuns({ limit: OLDER, before: older });
  for (const run of page.runs) runs.set(run.id, run);
  older = page.next;
  drawSidebar();
}

// --- opening and sending ---------------------------------------------------------------------------------------------

/** The thread that the URL names, or null. */
function hashThread() {
  try {
    return decodeURIComponent(location.hash.slice(1)) || null;
  } catch {
    return null;
  }
}

/** Shows a thread; `started` says that it begins here, so there is nothing to read. */
function open(id, { started = false } = {}) {
  if (id === thread && (conversation || !id)) return;
  conversation?.close();
  views.clear();
  dirty.clear();
  $("transcript").replaceChildren();
  thread = id;
  complete = started;
  conversation = null;
  if (id) conversation = new Conversation(id, { onChange: change, onTurns: turnsChanged, onReturn: giveBack });
  if (conversation?.turns.length) arrange();
  scroll.toEnd();
  drawSidebar();
  drawControls();
  if (id && !started) poll();
}

function turnsChanged() {
  if (!conversation) return;
  arrange();
  drawSidebar();
}

function giveBack(text) {
  if (!composer.value) setDraft(text);
}

function send(text) {
  text = text.trim();
  if (!text || conversation?.running) return;
  if (!thread) {
    const id = `th_${freshKey().replaceAll("-", "")}`;
    history.replaceState(null, "", `#${id}`);
    open(id, { started: true });
  }
  setDraft("");
  scroll.toEnd();
  conversation.send(text, agent).then(poll);
  scroll.toEnd();
}

async function stop() {
  if (!conversation?.running || $("stop").disabled) return;
  if (document.activeElement === $("stop")) composer.focus(); // a disabled button keeps no focus
  $("stop").disabled = true;
  announce("Stopping");
  await conversation.stop().catch(() => ($("stop").disabled = false));
  drawControls();
}

function setDraft(text) {
  composer.value = text;
  composer.dispatchEvent(new Event("input"));
}

function grow() {
  composer.style.height = "auto";
  composer.style.height = `${composer.scrollHeight}px`;
  $("send").disabled = !composer.value.trim();
}

// --- the narrow screen's drawer --------------------------------------------------------------------------------------

function drawer(wanted) {
  if (document.body.hasAttribute("data-drawer") === wanted) return;
  document.body.toggleAttribute("data-drawer", wanted);
  $("menu").setAttribute("aria-expanded", String(wanted));
  $("shade").hidden = !wanted;
  $("main").inert = wanted;
  (wanted ? $("new") : $("menu")).focus();
}

// --- wiring ----------------------------------------------------------------------------------------------------------

let noticeTimer = 0;
let restTimer = 0;

connection.listeners.add((state) => {
  clearTimeout(noticeTimer);
  const shown = document.body.dataset.connection;
  const show = () => {
    document.body.dataset.connection = state;
    const words = { lost: "Connection lost. Reconnecting…", restored: "Reconnected" }[state];
    if (!words) return;
    $("notice").firstElementChild.textContent = words;
    announce(words);
  };
  if (state === "lost" && shown === "ok") noticeTimer = setTimeout(show, CALM);
  else if (state !== "restored" || shown === "lost") show();
  if (state === "lost") poll();
  if (state === "restored") conversation?.resume();
});

composer.addEventListener("input", grow);
composer.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.keyCode === 229) return;
  event.preventDefault();
  send(composer.value);
});
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send(composer.value);
});
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || event.isComposing) return;
  if (document.body.hasAttribute("data-drawer")) drawer(false);
  else stop();
});
$("stop").addEventListener("click", stop);
$("older").addEventListener("click", () => showOlder().catch(() => {}));
$("newest").addEventListener("click", () => {
  scroll.toEnd();
  composer.focus();
});
$("new").addEventListener("click", () => {
  history.pushState(null, "", location.pathname + location.search);
  open(null);
  drawer(false);
  composer.focus();
});
$("threads").addEventListener("click", () => drawer(false));
$("menu").addEventListener("click", () => drawer(true));
$("shade").addEventListener("click", () => drawer(false));
for (const name of ["hashchange", "popstate"]) addEventListener(name, () => open(hashThread()));
addEventListener("online", () => conversation?.resume());
document.addEventListener("visibilitychange", () => {
  clearTimeout(restTimer);
  if (document.hidden) restTimer = setTimeout(() => conversation?.rest(), REST);
  else {
    conversation?.resume();
    poll();
  }
});
setInterval(() => {
  for (const [turn, view] of views) if (!isEnded(turn.state)) view.tick(Date.now());
}, 100);

const unsent = outbox.get()?.body.thread_id;
if (unsent && unsent !== hashThread()) history.replaceState(null, "", `#${unsent}`);
open(hashThread());
poll();
drawControls();
if (matchMedia("(min-width: 761px)").matches) composer.focus();

const info = await about().catch(() => ({}));
agent = info.agent ?? agent;
$("about").textContent = [info.model, info.version && `Headwater ${info.version}`].filter(Boolean).join(" · ");
$("chips").replaceChildren(
  ...(info.try ?? []).map((text) => make("button", "chip", { type: "button", onclick: () => send(text) }, text)),
);
