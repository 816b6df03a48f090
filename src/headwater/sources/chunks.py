"""AG-UI's *_CHUNK events, which leave out starts and ends, as the whole events that they stand for.

Pure. Knows AG-UI; must not know who makes the events or where they go. Invariant: what comes out is never a chunk, so
that nobody who reads a run has to know them. A chunk belongs to the part that is open if it is of its kind, names its
id or none, and is of the same subagent; anything else but state and custom events ends that part, as in AG-UI's client.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Final, TypeAlias

from ag_ui.core import (
    ReasoningMessageChunkEvent,
    ReasoningMessageContentEvent,
    ReasoningMessageEndEvent,
    ReasoningMessageStartEvent,
    TextMessageChunkEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallChunkEvent,
    ToolCallEndEvent,
    ToolCallStartEvent,
)

from headwater.agui import BaseEvent

__all__ = ["Chunks"]

_Chunk: TypeAlias = TextMessageChunkEvent | ToolCallChunkEvent | ReasoningMessageChunkEvent
_CHUNKS: Final = (TextMessageChunkEvent, ToolCallChunkEvent, ReasoningMessageChunkEvent)
_BESIDE: Final = frozenset({"CUSTOM", "RAW", "STATE_DELTA", "STATE_SNAPSHOT"})
"""Types of events that may stand between the chunks of one part."""


class Chunks:
    """The events of one run, on their way."""

    def __init__(self, new_id: Callable[[], str]) -> None:
        """`new_id` makes the id of a part that has none of its own."""
        self._new_id = new_id
        self._open: _Chunk | None = None

    def concern(self, event: BaseEvent) -> bool:
        """Whether `events(event)` is anything but `event`."""
        return self._open is not None or isinstance(event, _CHUNKS)

    def events(self, event: BaseEvent) -> Iterator[BaseEvent]:
        """What `event` becomes, in order."""
        if isinstance(event, _CHUNKS):
            yield from self._whole(event)
        else:
            if event.type.value not in _BESIDE:
                yield from self.end()
            yield event

    def end(self) -> Iterator[BaseEvent]:
        """Ends the part that is open, if one is."""
        if self._open is not None:
            yield _end(self._open)
            self._open = None

    def _whole(self, chunk: _Chunk) -> Iterator[BaseEvent]:
        if self._open is None or not _continues(chunk, self._open):
            yield from self.end()
            self._open = chunk if _id(chunk) is not None else chunk.model_copy(update={_field(chunk): self._new_id()})
            yield _start(self._open)
        if chunk.delta:
            yield _content(self._open, chunk.delta)


def _continues(chunk: _Chunk, begun: _Chunk) -> bool:
    if type(chunk) is not type(begun) or _id(chunk) not in (None, _id(begun)):
        return False
    return chunk.subagent_run_id in (None, begun.subagent_run_id)


def _field(chunk: _Chunk) -> str:
    return "tool_call_id" if isinstance(chunk, ToolCallChunkEvent) else "message_id"


def _id(chunk: _Chunk) -> Any:
    return getattr(chunk, _field(chunk))


def _start(chunk: _Chunk) -> BaseEvent:
    of = chunk.subagent_run_id
    match chunk:
        case TextMessageChunkEvent():
            role = chunk.role or "assistant"
            return TextMessageStartEvent(message_id=_id(chunk), role=role, name=chunk.name, subagent_run_id=of)
        case ToolCallChunkEvent():
            return ToolCallStartEvent(
                tool_call_id=_id(chunk),
                tool_call_name=chunk.tool_call_name or "",
                parent_message_id=chunk.parent_message_id,
                subagent_run_id=of,
            )
        case _:
            return ReasoningMessageStartEvent(message_id=_id(chunk), role="reasoning", subagent_run_id=of)


def _content(chunk: _Chunk, delta: str) -> BaseEvent:
    of: dict[str, Any] = {} if chunk.subagent_run_id is None else {"subagent_run_id": chunk.subagent_run_id}
    match chunk:
        case TextMessageChunkEvent():
            return TextMessageContentEvent(message_id=_id(chunk), delta=delta, **of)
        case ToolCallChunkEvent():
            return ToolCallArgsEvent(tool_call_id=_id(chunk), delta=delta, **of)
        case _:
            return ReasoningMessageContentEvent(message_id=_id(chunk), delta=delta, **of)


def _end(chunk: _Chunk) -> BaseEvent:
    of = chunk.subagent_run_id
    match chunk:
        case TextMessageChunkEvent():
            return TextMessageEndEvent(message_id=_id(chunk), subagent_run_id=of)
        case ToolCallChunkEvent():
            return ToolCallEndEvent(tool_call_id=_id(chunk), subagent_run_id=of)
        case _:
            return ReasoningMessageEndEvent(message_id=_id(chunk), subagent_run_id=of)
