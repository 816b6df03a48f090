"""The event vocabulary of a run: AG-UI 1.0, from the package `ag-ui-protocol`, and its order rules.

Knows the event types, their JSON and the order a reader may rely on. Must not know where events come from or go to: no
I/O, no asyncio, no clock. Invariants, held by `OpenParts`: a run's stream begins with RUN_STARTED and ends with exactly
one terminal event; a part (text message, tool call, reasoning, step, subagent) is opened before it is used, is closed
once, and is never open when RUN_FINISHED goes out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, Literal, TypeAlias

import msgspec

from headwater.errors import MissingExtra

try:
    from ag_ui.core import (
        PROTOCOL_VERSION,
        BaseEvent,
        CustomEvent,
        EventType,
        ReasoningEndEvent,
        ReasoningMessageContentEvent,
        ReasoningMessageEndEvent,
        RunErrorEvent,
        RunFinishedCancelledOutcome,
        RunFinishedEvent,
        RunFinishedSuccessOutcome,
        RunStartedEvent,
        StepFinishedEvent,
        SubagentErrorEvent,
        TextMessageContentEvent,
        TextMessageEndEvent,
        TokenUsage,
        ToolCallArgsEvent,
        ToolCallEndEvent,
    )
    from ag_ui.core.token_usage import aggregate_token_usage
except ImportError as error:
    raise MissingExtra("agents", "ag-ui-protocol") from error

__all__ = [
    "APPROVAL_DECIDED",
    "APPROVAL_REQUESTED",
    "HANDOFF",
    "PROTOCOL_VERSION",
    "REFUSED",
    "RESUMED",
    "RETRACTED",
    "TERMINAL",
    "TOOL_PROGRESS",
    "TOOL_STARTED",
    "WAITING",
    "BaseEvent",
    "CustomEvent",
    "OpenParts",
    "RunStartedEvent",
    "Status",
    "TokenUsage",
    "aggregate_token_usage",
    "custom",
    "decode",
    "encode",
    "run_cancelled",
    "run_error",
    "run_finished",
    "run_started",
    "stamped",
    "status_of",
    "valid_text",
    "waiting",
]

# The names of our CUSTOM events, and the shapes of their values.
TOOL_STARTED: Final = "tool.started"
"""{toolCallId}: the tool began to run now; TOOL_CALL_START only says that the model asks for it."""
TOOL_PROGRESS: Final = "tool.progress"
"""{toolCallId, message?, fraction? (0 to 1), data?}"""
HANDOFF: Final = "handoff"
"""{from, to}: names of agents."""
REFUSED: Final = "message.refused"
"""{messageId}: the text of this message is the model's refusal."""
RETRACTED: Final = "message.retracted"
"""{messageId, reason}: a reader should take back this message, which it may have shown."""
RESUMED: Final = "run.resumed"
"""{attempt, from, inDoubt, notRun}: the process that made the run is gone, and another goes on. `from` is "checkpoint"
or "input"; `inDoubt` are the ids of tool calls that had begun, and whose end was not kept: those run again, under the
same id; `notRun` are those of calls that had not begun, and which the model has to make again."""
APPROVAL_REQUESTED: Final = "approval.requested"
"""{toolCallId, toolName, arguments}: the run waits until somebody says whether this tool may run."""
APPROVAL_DECIDED: Final = "approval.decided"
"""{toolCallId, approved, message?, by?}: somebody did."""
WAITING: Final = "run.waiting"
"""{threadId, runId, approvals}: nothing goes on until people have decided on all of `approvals` (each as it was asked
for). As long as it is so, this is the run's last event."""

TERMINAL: Final = frozenset({"RUN_FINISHED", "RUN_ERROR"})
Status: TypeAlias = Literal["completed", "cancelled", "failed"]

_DELTAS: Final = (TextMessageContentEvent, ToolCallArgsEvent, ReasoningMessageContentEvent)
_PLAIN_CONTENT: Final = frozenset({"message_id", "delta"})
_encoder: Final = msgspec.json.Encoder()


def encode(event: BaseEvent) -> bytes:
    """The event as it goes into the log: compact UTF-8 JSON, camelCase names, fields without a value left out.

    Raises ValueError (pydantic's) for a value that is not JSON.
    """
    if type(event) is TextMessageContentEvent and event.model_fields_set == _PLAIN_CONTENT:
        # One per token: five times as fast as pydantic's way, with the same bytes.
        return _encoder.encode({"type": "TEXT_MESSAGE_CONTENT", "messageId": event.message_id, "delta": event.delta})
    return event.model_dump_json(by_alias=True).encode()


def stamped(event: BaseEvent, now: int) -> BaseEvent:
    """`event` with the time it happened (ms), so that durations read the same in every client, also much later.

    Not the deltas: they are the bulk of a run, and each message of its stream has its time anyway.
    """
    if event.timestamp is None and not isinstance(event, _DELTAS):
        event.timestamp = now
    return event


def decode(data: bytes) -> dict[str, Any]:
    """The event in `data` as JSON says it; raises ValueError where it is no JSON object with a type."""
    event = msgspec.json.decode(data)
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise ValueError("not an AG-UI event")
    return event


def run_started(
    thread_id: str, run_id: str, *, parent_run_id: str | None = None, traceparent: str | None = None
) -> RunStartedEvent:
    """`traceparent`: of the run's span, where somebody traces, in its metadata."""
    return RunStartedEvent(
        thread_id=thread_id,
        run_id=run_id,
        parent_run_id=parent_run_id,
        protocol_version=PROTOCOL_VERSION,
        metadata=None if traceparent is None else {"traceparent": traceparent},
    )


def run_finished(
    thread_id: str, run_id: str, *, result: object = None, usage: Iterable[TokenUsage] = ()
) -> RunFinishedEvent:
    """The run came to its end. `result` must be JSON; `usage` is summed per provider and model."""
    return RunFinishedEvent(
        thread_id=thread_id, run_id=run_id, result=result, outcome=RunFinishedSuccessOutcome(), usage=_summed(usage)
    )


def run_cancelled(thread_id: str, run_id: str, *, usage: Iterable[TokenUsage] = ()) -> RunFinishedEvent:
    """The run was stopped by whoever runs it, and did not fail."""
    return RunFinishedEvent(
        thread_id=thread_id, run_id=run_id, outcome=RunFinishedCancelledOutcome(), usage=_summed(usage)
    )


def run_error(code: str, message: str, *, usage: Iterable[TokenUsage] = ()) -> RunErrorEvent:
    """The run failed. `message` is shown to people: nothing internal may be in it."""
    return RunErrorEvent(message=message, code=code, usage=_summed(usage))


def custom(name: str, **value: Any) -> CustomEvent:
    return CustomEvent(name=name, value=value)


def waiting(thread_id: str, run_id: str, approvals: Iterable[Mapping[str, Any]]) -> CustomEvent:
    """The run waits for people; `approvals` are the values of what asked them, and not empty."""
    return custom(WAITING, threadId=thread_id, runId=run_id, approvals=[dict(asked) for asked in approvals])


def valid_text(text: str) -> str:
    """`text` with lone surrogates, which no UTF-8 can hold, as U+FFFD (a file name from the system may have some)."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def _summed(usage: Iterable[TokenUsage]) -> list[TokenUsage] | None:
    return aggregate_token_usage(list(usage)) or None


def status_of(terminal: Mapping[str, Any]) -> Status:
    """How the run ended whose last event is `terminal`, a decoded event; raises ValueError for any other event."""
    if terminal.get("type") == "RUN_ERROR":
        return "failed"
    if terminal.get("type") != "RUN_FINISHED":
        raise ValueError(f"{terminal.get('type')} does not end a run")
    outcome = terminal.get("outcome") or {}
    return "cancelled" if outcome.get("type") == "cancelled" else "completed"


_Part: TypeAlias = tuple[str, str]
"""What is open: its kind (the prefix of its event types) and its id."""

# Per kind, the field that holds its id: the name in Python and the one in JSON.
_ID_FIELDS: Final[dict[str, tuple[str, str]]] = {
    "TEXT_MESSAGE": ("message_id", "messageId"),
    "TOOL_CALL": ("tool_call_id", "toolCallId"),
    "REASONING": ("message_id", "messageId"),
    "REASONING_MESSAGE": ("message_id", "messageId"),
    "STEP": ("step_name", "stepName"),
    "SUBAGENT": ("subagent_run_id", "subagentRunId"),
}
_VERBS: Final = {
    "START": "open", "STARTED": "open", "CONTENT": "use", "ARGS": "use",
    "END": "close", "FINISHED": "close", "ERROR": "close", "RESULT": "answer",
}  # fmt: skip
_ORDERED: Final[dict[str, tuple[str, str]]] = {
    f"{kind}_{suffix}": (verb, kind)
    for kind in _ID_FIELDS
    for suffix, verb in _VERBS.items()
    if f"{kind}_{suffix}" in EventType.__members__
}
"""event type -> what it does to a part of which kind. Types that are missing here have no order of their own."""

_UNIQUE: Final = frozenset({"TEXT_MESSAGE", "TOOL_CALL", "REASONING_MESSAGE"})
"""Kinds whose ids name something that a reader keeps, so that they may not be opened twice in a run."""


class OpenParts:
    """What is open in one run's stream; fed with every event that goes into it, in order.

    Takes events and, for streams read back from a log, decoded ones. Memory grows with the ids of the run's messages
    and tool calls, not with its tokens.
    """

    def __init__(self) -> None:
        self.started = False
        self.terminal: str | None = None
        """The type of the terminal event, once it was seen."""
        self._open: dict[_Part, str | None] = {}  # in the order of opening; the value is the subagent that it is of
        self._used: set[_Part] = set()
        self._answered: set[str] = set()

    def __repr__(self) -> str:
        state = self.terminal or ("running" if self.started else "not started")
        return f"<OpenParts {state}, open: {sorted(self._open)}>"

    def feed(self, event: BaseEvent | Mapping[str, Any]) -> None:
        """Notes one event. Raises ValueError where it breaks AG-UI's order; nothing is noted then."""
        if self.terminal is None and type(event) is TextMessageContentEvent and _text_part(event) in self._open:
            return  # one per token: the short way
        name = _type_of(event)
        if self.terminal is not None:
            raise ValueError(f"{name} after {self.terminal}")
        if name == "RUN_STARTED" and self.started:
            raise ValueError("RUN_STARTED twice")
        if not self.started and name not in ("RUN_STARTED", "RUN_ERROR"):
            raise ValueError(f"{name} before RUN_STARTED")
        if name == "RUN_FINISHED" and self._open:
            raise ValueError(f"RUN_FINISHED while open: {sorted(self._open)}")
        if (rule := _ORDERED.get(name)) is not None:
            self._part(name, *rule, event)
        elif name in TERMINAL:
            self.terminal = name
        self.started = True

    def _part(self, name: str, verb: str, kind: str, event: BaseEvent | Mapping[str, Any]) -> None:
        part = (kind, _id_of(event, kind))
        is_open = part in self._open
        if verb == "open":
            if is_open or part in self._used:
                raise ValueError(f"{name} for {part[1]!r}, which was opened before")
            self._open[part] = _subagent_of(event, kind)
            if kind in _UNIQUE:
                self._used.add(part)
        elif verb == "answer":
            self._answer(name, part)
        elif not is_open:
            raise ValueError(f"{name} for {part[1]!r}, which is not open")
        elif verb == "close":
            del self._open[part]

    def _answer(self, name: str, part: _Part) -> None:
        if part not in self._used or part in self._open or part[1] in self._answered:
            raise ValueError(f"{name} for {part[1]!r}: before its call, before the call's end, or twice")
        self._answered.add(part[1])

    def closing_events(self) -> list[BaseEvent]:
        """What must go out before a terminal event, so that nothing stays open: inner parts first."""
        return [_closing(kind, id_, subagent) for (kind, id_), subagent in reversed(self._open.items())]


def _type_of(event: BaseEvent | Mapping[str, Any]) -> str:
    return str(event["type"]) if isinstance(event, Mapping) else event.type.value


def _id_of(event: BaseEvent | Mapping[str, Any], kind: str) -> str:
    attribute, key = _ID_FIELDS[kind]
    found = event.get(key) if isinstance(event, Mapping) else getattr(event, attribute)
    if not isinstance(found, str):
        raise ValueError(f"{_type_of(event)} without {key}")
    return found


def _subagent_of(event: BaseEvent | Mapping[str, Any], kind: str) -> str | None:
    if kind == "SUBAGENT":
        return None
    found = event.get("subagentRunId") if isinstance(event, Mapping) else getattr(event, "subagent_run_id", None)
    return found if isinstance(found, str) else None


def _text_part(event: TextMessageContentEvent) -> _Part:
    return ("TEXT_MESSAGE", event.message_id)


def _closing(kind: str, id_: str, subagent: str | None) -> BaseEvent:
    match kind:
        case "TEXT_MESSAGE":
            return TextMessageEndEvent(message_id=id_, subagent_run_id=subagent)
        case "TOOL_CALL":
            return ToolCallEndEvent(tool_call_id=id_, subagent_run_id=subagent)
        case "REASONING_MESSAGE":
            return ReasoningMessageEndEvent(message_id=id_, subagent_run_id=subagent)
        case "REASONING":
            return ReasoningEndEvent(message_id=id_, subagent_run_id=subagent)
        case "STEP":
            return StepFinishedEvent(step_name=id_, subagent_run_id=subagent)
        case _:
            return SubagentErrorEvent(subagent_run_id=id_, message="ended with its run")
