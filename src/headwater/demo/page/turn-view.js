/**
 * Draws one turn: what the person said, and the run that answers it.
 *
 * Knows the DOM and the shape of a run's state; must not know the network. Text from outside becomes text nodes, never
 * markup.
 * `draw` is called at most once per animation frame; it skips parts that are still the same object, and text that only
 * grew is appended to the one text node of its part, so tokens cost one DOM write and the layout of their line.
 * Rows that come and go (progress, result, the line under the answer) have their space reserved from the start.
 */
import { isEnded } from "./run-state.js";

/** An element with a class, properties, and children (strings become text nodes). */
export function make(tag, className = "", properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  if (className) element.className = className;
  element.append(...children);
  return element;
}

const setText = (element, text) => element.textContent !== text && (element.textContent = text);
const oneLine = (text) => text.replace(/\s+/g, " ").slice(0, 200);
const seconds = (ms) => `${(Math.max(0, ms) / 1000).toFixed(1)} s`;

function parsed(json) {
  try {
    return JSON.parse(json);
  } catch {
    return undefined;
  }
}

/** `{"city":"Paris"}` as `city: Paris`; what is not (yet) a JSON object as it stands. */
function fieldLine(json) {
  const value = parsed(json);
  if (value === null || typeof value !== "object") return json;
  return Object.entries(value)
    .map(([name, item]) => `${name}: ${typeof item === "string" ? item : JSON.stringify(item)}`)
    .join(", ");
}

function pretty(text) {
  const value = parsed(text);
  return value !== null && typeof value === "object" ? JSON.stringify(value, null, 2) : text;
}

/** A node that shows a growing text: appends what is new, starts again where the text is another. */
function growingText(className) {
  const node = document.createTextNode("");
  const element = make("div", className, { dir: "auto" }, node);
  const show = (text) => {
    if (text.startsWith(node.data)) node.appendData(text.slice(node.data.length));
    else node.data = text;
  };
  return { element, show };
}

function textPart(part) {
  const { element, show } = growingText("text");
  element.dataset.message = part.id;
  return {
    element,
    draw(part) {
      element.toggleAttribute("data-open", part.open);
      element.toggleAttribute("data-retracted", part.retracted !== null);
      show(part.retracted === null ? part.text : why(part.retracted));
    },
  };
}

function why(reason) {
  return reason === "interrupted"
    ? "The server went away here. What it had said is made again below."
    : `This message was withdrawn: ${reason}`;
}

function reasoningPart() {
  const { element: body, show } = growingText("thought");
  const label = make("span");
  const element = make("details", "reasoning", {}, make("summary", "", {}, label), body);
  return {
    element,
    draw(part) {
      element.toggleAttribute("data-open", part.open);
      const timed = part.startedAt && part.endedAt;
      setText(label, timed ? `Thought for ${seconds(part.endedAt - part.startedAt)}` : "Thoughts");
      show(part.text);
    },
  };
}

function handoffPart(part) {
  return { element: make("p", "handoff", {}, `${part.from} handed over to ${part.to}`), draw() {} };
}

function toolPart(part) {
  const args = make("span", "args");
  const time = make("span", "elapsed");
  const bar = make("progress", "", { max: 1 });
  bar.setAttribute("aria-label", `Progress of ${part.name}`);
  const message = make("span", "message");
  const preview = make("span", "preview");
  const [fullArgs, fullResult] = [make("pre"), make("pre")];
  const details = make("details", "", {},
    make("summary", "", {}, make("span", "word", {}, "Result"), preview),
    make("div", "full", {}, make("h4", "", {}, "Arguments"), fullArgs, make("h4", "", {}, "Result"), fullResult));
  const element = make("div", "tool", {},
    make("div", "head", {}, make("span", "mark"), make("span", "name", {}, part.name), args, time),
    make("div", "progress", {}, bar, message),
    details);
  element.dataset.tool = part.id;
  let shown = part;

  const tick = (now) => {
    const end = shown.phase === "done" ? shown.endedAt : now;
    setText(time, shown.startedAt && end ? seconds(end - shown.startedAt) : "");
  };
  return {
    element,
    draw(part, now) {
      shown = part;
      element.dataset.phase = part.phase === "done" && part.result === null ? "cut" : part.phase;
      setText(args, fieldLine(part.args));
      setText(fullArgs, pretty(part.args) || "none");
      if (part.fraction !== null) bar.value = part.fraction;
      setText(message, part.message ?? (part.phase === "calling" ? "Preparing" : "Running"));
      setText(preview, part.result === null ? "Ended before it answered" : oneLine(fieldLine(part.result)));
      setText(fullResult, part.result === null ? "none" : pretty(part.result));
      tick(now);
    },
    tick,
  };
}

const PARTS = { text: textPart, reasoning: reasoningPart, tool: toolPart, handoff: handoffPart };

/** What the line under the answer says while the run goes on. */
function activity(state) {
  const part = state.parts.at(-1);
  if (part?.kind === "tool" && part.phase !== "done") return `Using ${part.name}`;
  if (part?.kind === "text" && part.open && part.text) return "Answering";
  return state.step ? `Thinking (${state.step})` : "Thinking";
}

/** What the line says in the end. How long it took is the server's word, so it does not change with who looks when. */
function summary(state, run) {
  const stopped = state.status === "cancelled" && "Stopped";
  const tokens = state.tokens && `${state.tokens} tokens`;
  return [stopped, tokens, run?.ended && seconds(run.ended - run.created)].filter(Boolean).join(" · ");
}

function reasonOf({ code, message }) {
  return code === "interrupted" ? "The server went away during this answer." : message || "The run failed.";
}

/** One turn's elements; "Try again" calls `onRetry`. Returns { element, draw, tick, setQuestion, setRun }. */
export function turnView({ onRetry }) {
  const question = make("div", "bubble", { dir: "auto" });
  const user = make("div", "", {}, question);
  user.dataset.role = "user";
  const parts = make("div", "parts");
  const failure = make("div", "failure", { hidden: true });
  const reason = make("p");
  const retry = make("button", "quiet", { type: "button", onclick: onRetry }, "Try again");
  retry.dataset.action = "retry";
  failure.append(reason, retry);
  const foot = make("p", "foot");
  const assistant = make("div", "", {}, parts, failure, foot);
  assistant.dataset.role = "assistant";
  const element = make("article", "turn", {}, user, assistant);
  element.dataset.run = "";
  const views = new Map();

  function drawParts(state, now) {
    for (const part of state.parts) {
      const key = `${part.kind} ${part.id}`;
      let view = views.get(key);
      if (!view) {
        view = PARTS[part.kind](part);
        views.set(key, view);
        parts.append(view.element);
      }
      if (view.part === part) continue;
      view.draw(part, now);
      view.part = part;
    }
  }

  return {
    element,
    setRun: (id) => (element.dataset.run = id),
    /** The person's words; a repetition of a failed turn says so instead of showing them again. */
    setQuestion(text, repeated) {
      setText(question, repeated ? "Tried again" : text);
      user.toggleAttribute("data-repeated", repeated);
    },
    draw({ state, run, sending }, { now, canRetry }) {
      if (state.parts.length === 0) {
        views.clear();
        parts.replaceChildren();
      }
      drawParts(state, now);
      element.dataset.status = sending ? "sending" : state.status;
      failure.hidden = state.status !== "failed";
      retry.hidden = !canRetry;
      if (state.error) setText(reason, reasonOf(state.error));
      setText(foot, isEnded(state) ? summary(state, run) : sending ? "Sending" : activity(state));
    },
    /** Moves on the clocks of running tools. */
    tick(now) {
      for (const view of views.values()) if (view.part.kind === "tool" && view.part.phase !== "done") view.tick(now);
    },
  };
}
