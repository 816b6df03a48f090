"""AG-UI events that somebody else made (a framework's own adapter, a generator), as events of a run of ours.

Pure. Knows AG-UI; must not know who made the events. Invariants:
- The lifecycle is ours: RUN_STARTED, RUN_FINISHED and RUN_ERROR are not passed on. What the last two say is kept here,
  but for the message of an error: adapters put the text of exceptions there, which may hold anything.
- Whole events only: *_CHUNK events, which leave out starts and ends, become START, CONTENT or ARGS, and END.
- An id that was used before in the run (some providers count their tool calls from 0 with each answer) becomes a new
  one, everywhere.
- Nothing raw: RAW events and `raw_event` fields, which hold what the model's provider or the framework sent, are left
  out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final, TypeAlias

from ag_ui.core import (
    ReasoningMessageChunkEvent,
    ReasoningMessageContentEvent,
    ReasoningMessageEndEvent,
    ReasoningMessageStartEvent,
    RunErrorEvent,
    RunFinishedEvent,
    TextMessageChunkEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallChunkEvent,
    ToolCallEndEvent,
    ToolCallStartEvent,
)

from headwater.agui import TOOL_PROGRESS, TOOL_STARTED, BaseEvent, CustomEvent, TokenUsage, valid_text
from headwater.sources import RunFailed

__all__ = ["Adoption"]

_Chunk: TypeAlias = TextMessageChunkEvent | ToolCallChunkEvent | ReasoningMessageChunkEvent
_CHUNKS: Final = (TextMessageChunkEvent, ToolCallChunkEvent, ReasoningMessageChunkEvent)
_LEFT_OUT: Final = frozenset({"RUN_STARTED", "RAW"})

# Per kind of part whose ids must be unique in a run, the fields that name one.
_IDS: Final = {"message": ("message_id", "parent_message_id"), "tool_call": ("tool_call_id",)}
_NOT_UNIQUE: Final = frozenset({"REASONING_START", "REASONING_END"})
_OF_TOOL_CALLS: Final = frozenset({TOOL_STARTED, TOOL_PROGRESS})
_OPENING: Final = {
    "TEXT_MESSAGE_START": ("message", "message_id"),
    "REASONING_MESSAGE_START": ("message", "message_id"),
    "TOOL_CALL_START": ("tool_call", "tool_call_id"),
}


class Adoption:
    """The events of one run, on their way."""

    def __init__(self, run_id: str) -> None:
        self.result: Any = None
        """What RUN_FINISHED said."""
        self.usage: list[TokenUsage] = []
        self._run_id = run_id
        self._renamed: dict[tuple[str, str], str] = {}  # (kind, their id) -> ours
        self._made = 0
        self._open: _Chunk | None = None

    def events(self, event: BaseEvent) -> Iterator[BaseEvent]:
        """What `event` becomes, in order. Raises RunFailed where it says that the run has failed or is interrupted."""
        if isinstance(event, _CHUNKS):
            yield from map(self._renaming, self._whole(event))
            return
        if event.type.value not in ("CUSTOM", "STATE_DELTA", "STATE_SNAPSHOT"):
            yield from map(self._renaming, self._end_of_chunks())
        if isinstance(event, RunErrorEvent):
            self.usage = event.usage or self.usage
            raise RunFailed("failed", "The run failed.")
        if isinstance(event, RunFinishedEvent):
            self._finished(event)
        elif event.type.value not in _LEFT_OUT:
            yield self._renaming(event)

    def end(self) -> Iterator[BaseEvent]:
        """What is left to say when no event follows."""
        yield from map(self._renaming, self._end_of_chunks())

    def _finished(self, event: RunFinishedEvent) -> None:
        self.result, self.usage = event.result, event.usage or self.usage
        if event.outcome is not None and event.outcome.type == "interrupt":
            raise RunFailed("approval_not_supported", "The run asks for an answer, which nobody can give here.")

    def _renaming(self, event: BaseEvent) -> BaseEvent:
        changes: dict[str, Any] = {} if event.raw_event is None else {"raw_event": None}
        if (opens := _OPENING.get(event.type.value)) is not None:
            kind, field = opens
            key = kind, getattr(event, field)
            self._renamed[key] = self._new_id() if key in self._renamed else key[1]
        for kind, fields in _IDS.items() if event.type.value not in _NOT_UNIQUE else ():
            for field in fields:
                theirs = getattr(event, field, None)
                ours = self._renamed.get((kind, theirs), theirs) if theirs is not None else None
                if ours != theirs:
                    changes[field] = ours
        if isinstance(event, CustomEvent) and event.name in _OF_TOOL_CALLS:
            theirs = event.value["toolCallId"]
            changes["value"] = {**event.value, "toolCallId": self._renamed.get(("tool_call", theirs), theirs)}
        for field in ("delta", "content"):
            text = getattr(event, field, None)
            if isinstance(text, str) and (valid := valid_text(text)) is not text:
                changes[field] = valid
        event = event.model_copy(update=changes) if changes else event
        return _plain(event) if isinstance(event, TextMessageContentEvent) else event

    def _new_id(self) -> str:
        self._made += 1
        return f"{self._run_id}.a{self._made}"

    # Chunks

    def _whole(self, chunk: _Chunk) -> Iterator[BaseEvent]:
        if self._open is None or type(self._open) is not type(chunk) or _id(chunk) not in (None, _id(self._open)):
            yield from self._end_of_chunks()
            self._open = chunk if _id(chunk) is not None else chunk.model_copy(update={_field(chunk): self._new_id()})
            yield _start(self._open)
        if chunk.delta:
            yield _content(self._open, chunk.delta)

    def _end_of_chunks(self) -> Iterator[BaseEvent]:
        if self._open is not None:
            yield _end(self._open)
            self._open = None


def _plain(event: TextMessageContentEvent) -> TextMessageContentEvent:
    """Without its time: one per token, the bulk of a run, and each message of the stream has its time anyway."""
    if event.model_fields_set <= {"type", "message_id", "delta", "timestamp", "raw_event"}:
        return TextMessageContentEvent(message_id=event.message_id, delta=event.delta)
    return event


def _field(chunk: _Chunk) -> str:
    return "tool_call_id" if isinstance(chunk, ToolCallChunkEvent) else "message_id"


def _id(chunk: _Chunk) -> Any:
    return getattr(chunk, _field(chunk))


def _start(chunk: _Chunk) -> BaseEvent:
    match chunk:
        case TextMessageChunkEvent():
            return TextMessageStartEvent(message_id=_id(chunk), role=chunk.role or "assistant", name=chunk.name)
        case ToolCallChunkEvent():
            return ToolCallStartEvent(
                tool_call_id=_id(chunk),
                tool_call_name=chunk.tool_call_name or "",
                parent_message_id=chunk.parent_message_id,
            )
        case _:
            return ReasoningMessageStartEvent(message_id=_id(chunk), role="reasoning")


def _content(chunk: _Chunk, delta: str) -> BaseEvent:
    match chunk:
        case TextMessageChunkEvent():
            return TextMessageContentEvent(message_id=_id(chunk), delta=delta)
        case ToolCallChunkEvent():
            return ToolCallArgsEvent(tool_call_id=_id(chunk), delta=delta)
        case _:
            return ReasoningMessageContentEvent(message_id=_id(chunk), delta=delta)


def _end(chunk: _Chunk) -> BaseEvent:
    match chunk:
        case TextMessageChunkEvent():
            return TextMessageEndEvent(message_id=_id(chunk))
        case ToolCallChunkEvent():
            return ToolCallEndEvent(tool_call_id=_id(chunk))
        case _:
            return ReasoningMessageEndEvent(message_id=_id(chunk))
