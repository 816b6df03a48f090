/** One run: what it is, its timeline, what it asks, its answer, its log; all as they were at the place that is shown. */
import { answer, cancelRun, oneRun } from "./api.js";
import { every, h, say, soon } from "./dom.js";
import { count, day, span } from "./fmt.js";
import { Fold } from "./fold.js";
import { Player } from "./player.js";
import { Waterfall } from "./waterfall.js";

const ENDED = new Set(["completed", "failed", "cancelled"]);

export function mount(root, place) {
  const id = place.rest;
  const given = place.query.get("at");
  const here = `#/run/${encodeURIComponent(id)}`;
  let record = null;
  let fold = new Fold();
  let fed = null;
  let shown = { at: 0, isLive: true };

  const title = h("h1", { title: id }, id);
  const state = h("span", { class: "chip" });
  const facts = h("p", { class: "soft facts-line" });
  const cancel = h("button", { type: "button", class: "danger", hidden: true, onclick: stop }, "Cancel");
  const questions = h("div", { class: "questions" });
  const problem = h("p", { class: "bad", role: "alert" });
  const text = h("div", { class: "text" });
  const said = h("section", { class: "said", "aria-label": "Answer", tabindex: "0" }, text);
  const player = new Player(`runs/${id}`, {
    most: 65_536, whole: true, at: given !== null && /^\d{1,15}$/.test(given) ? Number(given) : null,
    line: lineOf, onAt: (at, isLive) => {
      shown = { at, isLive };
      remember();
      draw();
    },
  });
  const waterfall = new Waterfall((position) => {
    if (position >= player.shown) player.to(position + 1);
    player.list.pick(position);
  });
  root.append(h("div", { class: "head" }, title, state, facts, cancel), problem, questions,
    h("div", { class: "run-top" }, waterfall.element, said), player.element);

  let timer = 0;
  function remember() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (location.hash.startsWith(here)) {
        history.replaceState(null, "", shown.isLive ? here : `${here}?at=${shown.at}`);
      }
    }, 300);
  }

  /** Brings the fold to the place that is shown: on, or from the start where it went back. */
  function folded() {
    const { log } = player;
    if (fed === null || shown.at < fed) {
      fold = new Fold();
      fed = log.start;
    }
    for (; fed < shown.at; fed++) {
      const entry = log.get(fed);
      if (entry === undefined) break;
      fold.feed(entry);
    }
  }

  const draw = soon(() => {
    folded();
    const follows = said.scrollTop + said.clientHeight >= said.scrollHeight - 8;
    say(text, fold.text);
    said.dataset.events = String(fold.events);
    if (follows) said.scrollTop = said.scrollHeight;
    const isOver = fold.end !== null || !shown.isLive;
    waterfall.show(fold, isOver ? fold.last ?? 0 : Math.max(Date.now(), fold.last ?? 0));
    drawQuestions();
    drawFacts();
  });

  function drawFacts() {
    const status = shown.isLive && record ? record.status : fold.status;
    say(state, status);
    state.dataset.state = status;
    cancel.hidden = !record || ENDED.has(record.status);
    const usage = fold.usage ?? [];
    const sum = (name) => usage.reduce((total, entry) => total + (entry[name] ?? 0), 0);
    const took = fold.start === null ? NaN : (fold.end ?? (shown.isLive ? Date.now() : fold.last)) - fold.start;
    say(facts, [
      record?.agent, record && `started ${day(record.created)}`, Number.isFinite(took) && `took ${span(took)}`,
      fold.firstToken !== null && `first token after ${span(fold.firstToken)}`,
      usage.length ? `${count(sum("inputTokens"))} tokens in, ${count(sum("outputTokens"))} out` : null,
      record && !record.thread_id.startsWith("th_") ? `thread ${record.thread_id}` : null,
      fold.error && `${fold.error.code}: ${fold.error.message}`,
    ].filter(Boolean).join(" · "));
  }

  const cards = new Map();

  /** The answer is given to what the run asks now, wherever in its past one looks. */
  function drawQuestions() {
    const asked = record?.status === "waiting" ? record.approvals ?? [] : [];
    for (const [call, card] of cards) {
      if (!asked.some(({ toolCallId }) => toolCallId === call)) {
        card.remove();
        cards.delete(call);
      }
    }
    for (const question of asked) {
      if (cards.has(question.toolCallId)) continue;
      const card = ask(question);
      cards.set(question.toolCallId, card);
      questions.append(card);
    }
  }

  function ask({ toolCallId, toolName, arguments: args }) {
    const why = h("input", { type: "text", placeholder: "Why not (for the model)", "aria-label": "Why not" });
    const decide = async (approve) => {
      for (const button of card.querySelectorAll("button")) button.disabled = true;
      try {
        await answer(id, { tool_call_id: toolCallId, approve, ...(!approve && why.value && { message: why.value }) });
        say(problem, "");
      } catch (error) {
        say(problem, error.message);
      }
      for (const button of card.querySelectorAll("button")) button.disabled = false;
      await look();
    };
    const card = h("div", { class: "question", dataset: { call: toolCallId } },
      h("p", {}, "May it call ", h("b", {}, toolName ?? "this tool"), "?"),
      h("code", {}, typeof args === "string" ? args : JSON.stringify(args ?? {})),
      h("div", { class: "row-of" }, h("button", { type: "button", class: "main", onclick: () => decide(true) }, "Approve"),
        h("button", { type: "button", onclick: () => decide(false) }, "Reject"), why));
    return card;
  }

  async function stop() {
    cancel.disabled = true;
    try {
      await cancelRun(id);
      say(problem, "");
    } catch (error) {
      say(problem, error.message);
    }
    cancel.disabled = false;
    await look();
  }

  async function look() {
    try {
      record = await oneRun(id);
      say(title, record.title || id);
      draw();
    } catch (error) {
      if (error.status === 404) location.replace(`#/stream/${encodeURIComponent(`runs/${id}`)}`); // somebody else's
      else if (error.status) say(problem, error.message);
    }
  }

  const end = every(1, async () => {
    if (record === null || !ENDED.has(record.status)) await look();
  });
  return {
    unmount() {
      clearTimeout(timer);
      end();
      player.destroy();
      waterfall.destroy();
    },
    keys: player.keys,
  };
}

/** What a row says of an event: its type, and what it brings. */
function lineOf(entry) {
  if (entry.event === undefined) {
    try {
      entry.event = JSON.parse(entry.text);
    } catch {
      entry.event = null;
    }
  }
  const event = entry.event;
  if (typeof event?.type !== "string") return entry.text ?? entry.base64;
  if (event.type === "CUSTOM") return `${event.name}  ${JSON.stringify(event.value ?? null)}`;
  const { type, timestamp, messageId, ...rest } = event;
  if (typeof rest.delta === "string") return `${type}  ${JSON.stringify(rest.delta)}`;
  return Object.keys(rest).length ? `${type}  ${JSON.stringify(rest)}` : type;
}
