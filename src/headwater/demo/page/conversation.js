/**
 * One thread: its turns in order, each following its run's stream. Knows runs and how to start, stop and repeat them;
 * must not know the DOM.
 *
 * Invariant: what is shown comes from the server only (the list of runs, each run's input, each run's events). The one
 * thing kept in the browser is a send not yet confirmed, with its Idempotency-Key, so that it survives a reload.
 *
 * A turn is { run, input, question, repeated, state, sending, ours, live, ended } where `run` is null until the server
 * confirmed it, `ours` says that this page started it, `live` that it was seen before its end, and `ended` is a promise
 * of the moment when both input and terminal event are known.
 */
import { cancelRun, connection, freshKey, getRun, startRun } from "./api.js";
import { follow } from "./follow.js";
import { answerText, emptyRun, isEnded, reduce } from "./run-state.js";
import { byAge, threadOf } from "./sidebar-view.js";

/** Ended runs read at the same time. A browser opens six connections to a host at most, over all its tabs. */
const LANES = 2;
const OUTBOX = "headwater.outbox";

/** A browser that keeps nothing for sites throws here; then a send lives as long as its page. */
const storage = (() => {
  try {
    return sessionStorage;
  } catch {
    return null;
  }
})();

/** The send that this tab has not seen confirmed: { key, body }, or null. */
export const outbox = {
  get: () => JSON.parse(storage?.getItem(OUTBOX) ?? "null"),
  put: (send) => storage?.setItem(OUTBOX, JSON.stringify(send)),
  clear: ({ key }) => outbox.get()?.key === key && storage?.removeItem(OUTBOX),
};

const messagesOf = (input) => (typeof input === "string" ? [{ role: "user", content: input }] : (input ?? []));
const textOf = (content) =>
  typeof content === "string" ? content : (content ?? []).map((part) => part.text ?? "").join("");
const lastQuestion = (input) => textOf(input.findLast((message) => message.role === "user")?.content);

/** The messages that a new question goes behind: what the last run was given, and what it answered. */
function history(turn) {
  if (!turn) return [];
  const answer = answerText(turn.state);
  if (answer) return [...turn.input, { role: "assistant", content: answer }];
  return turn.input.slice(0, turn.input.findLastIndex((message) => message.role === "user"));
}

/** True where `turn` asks again what the turn before it asked in vain. */
function isRepeat(before, turn) {
  if (!before?.input || !turn.input || [before.run?.status, before.state.status].includes("completed")) return false;
  return JSON.stringify(before.input) === JSON.stringify(turn.input);
}

/** By age; turns that the server does not know come last. */
const inOrder = (a, b) => (a.run && b.run ? byAge(a.run, b.run) : Number(!a.run) - Number(!b.run));

export class Conversation {
  #waiting = [];
  #busy = 0;
  #closed = false;
  #sending = null;

  /** Calls onChange(turn) when a turn changed, onTurns() when some came or went, onReturn(text) to give a send back. */
  constructor(thread, { onChange, onTurns, onReturn }) {
    Object.assign(this, { thread, onChange, onTurns, onReturn, turns: [] });
    const send = outbox.get();
    if (send?.body.thread_id === thread) this.#post(this.#draft(send.body.input), send);
  }

  /** True while an answer is on its way. */
  get running() {
    return this.turns.some((turn) => turn.sending || !isEnded(turn.state));
  }

  /** True where "Try again" makes sense: the newest turn failed. */
  canRetry(turn) {
    return turn === this.turns.at(-1) && turn.state.status === "failed";
  }

  close() {
    this.#closed = true;
    for (const turn of this.turns) turn.follow?.close();
  }

  /** Follows all live runs again at once: for when the server is known to be back. */
  resume() {
    for (const turn of this.turns) turn.follow?.resume();
  }

  /** Takes in runs as the server lists them: follows those that are new, whoever started them. */
  merge(runs) {
    if (this.#sending) return;
    const known = new Map(this.turns.map((turn) => [turn.run?.id, turn]));
    for (const run of runs) {
      if (threadOf(run) !== this.thread) continue;
      const turn = known.get(run.id);
      if (turn) this.#check(turn, run);
      else this.#enter(run);
    }
  }

  async send(text, agent) {
    const last = this.turns.at(-1);
    const turn = this.#draft([{ role: "user", content: text }]);
    await last?.ended;
    turn.input = [...history(last), { role: "user", content: text }];
    await this.#post(turn, { key: freshKey(), body: { agent, input: turn.input, thread_id: this.thread } });
  }

  async retry(turn, agent) {
    const { input } = turn;
    if (!turn.run) this.#drop(turn);
    await this.#post(this.#draft(input), { key: freshKey(), body: { agent, input, thread_id: this.thread } });
  }

  /** Stops every answer on its way; a send that the server has not confirmed is taken back. */
  async stop() {
    this.#sending?.abort();
    const open = this.turns.filter((turn) => turn.run && !isEnded(turn.state));
    await Promise.all(open.map((turn) => cancelRun(turn.run.id)));
  }

  /** Gives up the connections, keeps the places: for a tab that nobody looks at. `resume` goes on. */
  rest() {
    for (const turn of this.turns) turn.follow?.rest();
  }

  #turn(run, input, question) {
    const turn = { run, input, question, repeated: false, state: emptyRun, sending: !run, ours: !run };
    turn.live = !run || run.status === "running";
    turn.ended = new Promise((resolve) => (turn.end = resolve));
    return turn;
  }

  #draft(input) {
    const turn = this.#turn(null, input, lastQuestion(input));
    this.turns.push(turn);
    this.#sending = new AbortController();
    this.#markRepeated();
    this.onTurns();
    return turn;
  }

  #drop(turn) {
    this.turns = this.turns.filter((other) => other !== turn);
    this.onTurns();
  }

  async #post(turn, send) {
    outbox.put(send);
    try {
      turn.run = await startRun(send, this.#sending.signal);
      turn.input = messagesOf(send.body.input);
      this.#follow(turn);
    } catch (error) {
      if (error.name === "AbortError") {
        this.#drop(turn);
        this.onReturn(turn.question);
      } else this.#fail(turn, error);
    }
    outbox.clear(send);
    turn.sending = false;
    this.#sending = null;
    this.onChange(turn);
  }

  #fail(turn, error) {
    turn.state = reduce(turn.state, "", { type: "RUN_ERROR", code: error.code, message: error.message }, null);
    turn.end();
    this.onChange(turn);
  }

  #enter(run) {
    const turn = this.#turn(run, null, run.title ?? "");
    this.turns.push(turn);
    this.turns.sort(inOrder);
    this.onTurns();
    if (run.status === "running") this.#load(turn);
    else this.#waiting.push(turn);
    this.#next();
  }

  /** Reads ended runs a few at a time, the newest first. */
  #next() {
    this.#waiting.sort((a, b) => byAge(b.run, a.run));
    while (this.#busy < LANES && this.#waiting.length && !this.#closed) {
      const turn = this.#waiting.shift();
      this.#busy++;
      this.#load(turn);
      turn.ended.then(() => {
        this.#busy--;
        this.#next();
      });
    }
  }

  async #load(turn) {
    try {
      turn.input = messagesOf((await getRun(turn.run.id)).input);
    } catch (error) {
      turn.input = [];
      this.#fail(turn, error);
      return;
    }
    turn.question = lastQuestion(turn.input) || turn.question;
    this.#markRepeated();
    this.#follow(turn);
  }

  #follow(turn) {
    if (this.#closed) return;
    turn.follow = follow(turn.run.id, {
      onEvent: (offset, event) => {
        turn.state = reduce(turn.state, offset, event, turn.ours ? Date.now() : null);
        if (isEnded(turn.state)) turn.end();
        this.onChange(turn);
      },
      onRestart: () => (turn.state = emptyRun),
      onGone: (message) => this.#fail(turn, { code: "gone", message }),
    });
    this.onChange(turn);
  }

  /** The list says that a run ended, yet twice in a row its stream has not: the connection is dead, take a new one. */
  #check(turn, run) {
    const { offset } = turn.state;
    const silent = run.status !== "running" && turn.follow && !isEnded(turn.state);
    if (silent && turn.suspect === offset && connection.state !== "lost") turn.follow.resume({ force: true });
    turn.suspect = silent ? offset : null;
    if (run.status === turn.run.status) return;
    turn.run = run;
    this.onChange(turn);
  }

  #markRepeated() {
    this.turns.forEach((turn, index) => {
      const repeated = isRepeat(this.turns[index - 1], turn);
      if (repeated === turn.repeated) return;
      turn.repeated = repeated;
      this.onChange(turn);
    });
  }
}
