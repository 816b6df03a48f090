/**
 * What a run has done so far: a fold over its AG-UI events, in the order of its log. Pure.
 *
 * A lane is something that takes time: { kind, id, label, depth, start, end (null while it goes on), position, … } with
 *   step                                       a turn of the agent
 *   text, reasoning   { text, ticks, retracted }      ticks: when each piece came
 *   tool              { args, began, message, fraction, result }      began: when it ran; until then it was asked for
 *   approval          { approved, by, message }       approved: null until somebody has decided
 *   agent             a subagent
 * A mark is a moment: { at, label, position }. Times are ms since 1970.
 */
export class Fold {
  constructor() {
    this.lanes = [];
    this.marks = [];
    this.status = "waiting";
    this.start = this.end = this.last = null;
    this.usage = null;
    this.error = null;
    this.input = undefined;
    this.events = 0;
    this.open = new Map();
    this.asked = new Map();
  }

  /** One more entry; what is no event only counts. */
  feed(entry) {
    this.events += 1;
    const event = eventOf(entry);
    const at = Number.isFinite(event?.timestamp) ? event.timestamp : entry.time;
    this.start ??= at;
    this.last = Math.max(this.last ?? at, at);
    if (event && Object.hasOwn(CHANGES, event.type)) CHANGES[event.type](this, event, at, entry.position);
    else if (!event) this.mark(at, "not readable", entry.position);
  }

  /** The answer as it stands: the texts of the run itself, without what was taken back. */
  get text() {
    return this.lanes.filter((lane) => lane.kind === "text" && !lane.retracted && !lane.subagent)
      .map((lane) => lane.text).filter(Boolean).join("\n\n");
  }

  get tokens() {
    return this.lanes.reduce((sum, lane) => sum + (lane.kind === "text" ? lane.ticks.length : 0), 0);
  }

  get firstToken() {
    const ticks = this.lanes.filter((lane) => lane.kind === "text" && lane.ticks.length).map((lane) => lane.ticks[0]);
    return ticks.length ? Math.min(...ticks) - this.start : null;
  }

  /** What waits for people. */
  get questions() {
    return this.lanes.filter((lane) => lane.kind === "approval" && lane.approved === null && this.end === null);
  }

  begin(kind, id, label, at, position, event, more = {}) {
    const outer = event.subagentRunId ? this.open.get(`agent ${event.subagentRunId}`) : undefined;
    const lane = {
      kind, id, label: String(label ?? ""), start: at, end: null, position, depth: outer ? outer.depth + 1 : 0,
      subagent: event.subagentRunId, ...more,
    };
    this.lanes.push(lane);
    this.open.set(`${kind} ${id}`, lane);
    return lane;
  }

  finish(kind, id, at) {
    const lane = this.open.get(`${kind} ${id}`);
    if (lane && lane.end === null) lane.end = at;
    return lane;
  }

  piece(kind, { messageId, delta }, at) {
    const lane = this.open.get(`${kind} ${messageId}`);
    if (!lane) return;
    lane.text += delta;
    lane.ticks.push(at);
  }

  mark(at, label, position) {
    this.marks.push({ at, label, position });
  }

  over(status, event, at) {
    for (const lane of this.lanes) lane.end ??= at;
    Object.assign(this, { status, end: at, usage: event.usage ?? null });
  }
}

function eventOf(entry) {
  if (entry.event === undefined) {
    try {
      const event = JSON.parse(entry.text);
      entry.event = typeof event?.type === "string" ? event : null;
    } catch {
      entry.event = null;
    }
  }
  return entry.event;
}

const CUSTOM = {
  "run.input": (fold, value) => { fold.input = value; },
  "tool.started": (fold, { toolCallId }, at) => {
    const lane = fold.open.get(`tool ${toolCallId}`);
    if (lane) lane.began = at;
  },
  "tool.progress": (fold, { toolCallId, message, fraction }, at) => {
    const lane = fold.open.get(`tool ${toolCallId}`);
    if (!lane) return;
    lane.began ??= at;
    lane.message = message ?? lane.message;
    lane.fraction = fraction ?? lane.fraction;
  },
  "approval.requested": (fold, { toolCallId, toolName, arguments: args }, at, position) => {
    fold.status = "waiting";
    fold.begin("approval", toolCallId, toolName, at, position, {}, { args, approved: null, by: "", message: "" });
  },
  "approval.decided": (fold, { toolCallId, approved, by, message }, at) => {
    const lane = fold.finish("approval", toolCallId, at);
    if (lane) Object.assign(lane, { approved: Boolean(approved), by: by ?? "", message: message ?? "" });
    if (!fold.questions.length) fold.status = "running";
  },
  "run.waiting": (fold) => { fold.status = "waiting"; },
  "run.resumed": (fold, { attempt }, at, position) => {
    fold.status = "running";
    fold.mark(at, `another process goes on (${attempt ?? "?"})`, position);
  },
  handoff: (fold, { from, to }, at, position) => fold.mark(at, `${from} hands over to ${to}`, position),
  "message.retracted": (fold, { messageId, reason }, at, position) => {
    const lane = fold.open.get(`text ${messageId}`);
    if (lane) lane.retracted = reason || "withdrawn";
    fold.mark(at, `taken back: ${reason || "withdrawn"}`, position);
  },
};

const CHANGES = {
  RUN_STARTED: (fold) => { fold.status = "running"; },
  RUN_FINISHED: (fold, event, at) =>
    fold.over(event.outcome?.type === "cancelled" ? "cancelled" : "completed", event, at),
  RUN_ERROR: (fold, event, at) => {
    fold.over("failed", event, at);
    fold.error = { code: event.code ?? "error", message: event.message ?? "" };
  },
  STEP_STARTED: (fold, event, at, position) =>
    fold.begin("step", event.stepName, event.stepName, at, position, event),
  STEP_FINISHED: (fold, event, at) => fold.finish("step", event.stepName, at),
  TEXT_MESSAGE_START: (fold, event, at, position) =>
    fold.begin("text", event.messageId, "answer", at, position, event, { text: "", ticks: [], retracted: null }),
  TEXT_MESSAGE_CONTENT: (fold, event, at) => fold.piece("text", event, at),
  TEXT_MESSAGE_END: (fold, event, at) => fold.finish("text", event.messageId, at),
  REASONING_MESSAGE_START: (fold, event, at, position) =>
    fold.begin("reasoning", event.messageId, "thinking", at, position, event, { text: "", ticks: [] }),
  REASONING_MESSAGE_CONTENT: (fold, event, at) => fold.piece("reasoning", event, at),
  REASONING_MESSAGE_END: (fold, event, at) => fold.finish("reasoning", event.messageId, at),
  TOOL_CALL_START: (fold, event, at, position) =>
    fold.begin("tool", event.toolCallId, event.toolCallName, at, position, event, {
      args: "", began: null, message: null, fraction: null, result: null,
    }),
  TOOL_CALL_ARGS: (fold, { toolCallId, delta }) => {
    const lane = fold.open.get(`tool ${toolCallId}`);
    if (lane) lane.args += delta;
  },
  TOOL_CALL_RESULT: (fold, { toolCallId, content }, at) => {
    const lane = fold.finish("tool", toolCallId, at);
    if (lane) lane.result = content ?? "";
  },
  SUBAGENT_STARTED: (fold, event, at, position) =>
    fold.begin("agent", event.subagentRunId, event.name, at, position, { subagentRunId: event.parentSubagentRunId }),
  SUBAGENT_FINISHED: (fold, event, at) => fold.finish("agent", event.subagentRunId, at),
  SUBAGENT_ERROR: (fold, event, at) => fold.finish("agent", event.subagentRunId, at),
  CUSTOM: (fold, event, at, position) => {
    if (Object.hasOwn(CUSTOM, event.name)) CUSTOM[event.name](fold, event.value ?? {}, at, position);
  },
};
