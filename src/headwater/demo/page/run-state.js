/**
 * What a reader of one run knows: a pure fold over the AG-UI events of the run's stream.
 *
 * Knows the event vocabulary. Must not know the DOM, the network or the clock (time is an argument).
 * Invariants: `reduce` never changes its argument; a part that did not change keeps its identity (so the view can
 * compare with `===`); an offset at or before `state.offset` changes nothing, so seeing an event twice does no harm;
 * nothing follows the terminal event; an event type we do not know only moves the offset.
 *
 * A state is { offset, status, step, parts, error, tokens } with
 *   status  waiting | running | completed | failed | cancelled
 *   parts   in order of first appearance, each { kind, id, … }:
 *           text      { text, open, retracted }            retracted: null or the reason
 *           reasoning { text, open, startedAt, endedAt }
 *           tool      { name, args, phase, message, fraction, result, startedAt, endedAt }
 *                     phase: calling | running | done
 *           handoff   { from, to }
 *   error   null or { code, message }
 *   times   ms since the epoch, or null where nobody knows: they come from the events, or else from their arrival
 */
export const emptyRun = Object.freeze({
  offset: "", status: "waiting", step: null, parts: Object.freeze([]), error: null, tokens: null,
});

const ENDED = new Set(["completed", "failed", "cancelled"]);

/** True once the terminal event of the run (or, for a listed run, its end) was seen. */
export const isEnded = ({ status }) => ENDED.has(status);

/** The state after `event`, which the stream holds at `offset`; `now` (ms) is when it was made, null for a replay. */
export function reduce(state, offset, event, now) {
  if (offset && offset <= state.offset) return state;
  const change = isEnded(state) ? null : CHANGES[event.type]?.(state, event, event.timestamp ?? now);
  return { ...state, ...change, offset: offset || state.offset };
}

/** All text that the run gave as its answer. */
export const answerText = (state) =>
  state.parts.filter((part) => part.kind === "text").map((part) => part.text).filter(Boolean).join("\n\n");

const add = (state, part) => ({ parts: [...state.parts, part] });

/** Replaces the part that `matches` by itself and `change(part)`; no such part, no change. */
function alter(state, matches, change) {
  const at = state.parts.findLastIndex(matches);
  if (at < 0) return null;
  const parts = state.parts.slice();
  parts[at] = { ...parts[at], ...change(parts[at]) };
  return { parts };
}

const is = (kind, id) => (part) => part.kind === kind && part.id === id;
const alterText = (state, event, change) => alter(state, is("text", event.messageId), change);
const alterReasoning = (state, event, change) => alter(state, is("reasoning", event.messageId), change);
const alterTool = (state, id, change) => alter(state, is("tool", id), change);

/** The end of the run: what was open is closed, tools that never answered are cut short. */
function end(state, status, usage, at, error = null) {
  const parts = state.parts.map((part) => {
    if (part.kind === "tool" && part.phase !== "done") return { ...part, phase: "done", endedAt: at };
    if (part.open) return { ...part, open: false, endedAt: at };
    return part;
  });
  return { status, parts, step: null, error, tokens: outputTokens(usage) };
}

function outputTokens(usage) {
  const counts = (usage ?? []).map((entry) => entry.outputTokens).filter(Number.isFinite);
  return counts.length ? counts.reduce((sum, count) => sum + count, 0) : null;
}

const CUSTOM = {
  "tool.started": (state, { toolCallId }, at) =>
    alterTool(state, toolCallId, () => ({ phase: "running", startedAt: at })),
  "tool.progress": (state, { toolCallId, message, fraction }, at) =>
    alterTool(state, toolCallId, (tool) => ({
      phase: "running",
      startedAt: tool.startedAt ?? at,
      message: message ?? tool.message,
      fraction: Number.isFinite(fraction) ? Math.min(1, Math.max(0, fraction)) : tool.fraction,
    })),
  handoff: (state, { from, to }) => add(state, { kind: "handoff", id: `handoff-${state.parts.length}`, from, to }),
  "message.retracted": (state, { messageId, reason }) =>
    alterText(state, { messageId }, () => ({ text: "", open: false, retracted: reason || "withdrawn" })),
};

const CHANGES = {
  RUN_STARTED: () => ({ status: "running" }),
  STEP_STARTED: (state, { stepName }) => ({ step: stepName }),
  STEP_FINISHED: () => ({ step: null }),

  TEXT_MESSAGE_START: (state, { messageId }) =>
    add(state, { kind: "text", id: messageId, text: "", open: true, retracted: null }),
  TEXT_MESSAGE_CONTENT: (state, event) => alterText(state, event, (part) => ({ text: part.text + event.delta })),
  TEXT_MESSAGE_END: (state, event) => alterText(state, event, () => ({ open: false })),

  REASONING_MESSAGE_START: (state, { messageId }, at) =>
    add(state, { kind: "reasoning", id: messageId, text: "", open: true, startedAt: at, endedAt: null }),
  REASONING_MESSAGE_CONTENT: (state, event) =>
    alterReasoning(state, event, (part) => ({ text: part.text + event.delta })),
  REASONING_MESSAGE_END: (state, event, at) => alterReasoning(state, event, () => ({ open: false, endedAt: at })),

  TOOL_CALL_START: (state, { toolCallId, toolCallName }) =>
    add(state, {
      kind: "tool", id: toolCallId, name: toolCallName, args: "", phase: "calling",
      message: null, fraction: null, result: null, startedAt: null, endedAt: null,
    }),
  TOOL_CALL_ARGS: (state, { toolCallId, delta }) =>
    alterTool(state, toolCallId, (tool) => ({ args: tool.args + delta })),
  TOOL_CALL_RESULT: (state, { toolCallId, content }, at) =>
    alterTool(state, toolCallId, () => ({ phase: "done", result: content, endedAt: at })),

  CUSTOM: (state, { name, value }, at) => CUSTOM[name]?.(state, value ?? {}, at),

  RUN_FINISHED: (state, { outcome, usage }, at) =>
    end(state, outcome?.type === "cancelled" ? "cancelled" : "completed", usage, at),
  RUN_ERROR: (state, { code, message, usage }, at) =>
    end(state, "failed", usage, at, { code: code ?? "error", message: message ?? "" }),
};
