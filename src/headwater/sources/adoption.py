"""AG-UI events that somebody else made (a framework's own adapter, a generator), as events of a run of ours.

Pure. Knows AG-UI; must not know who made the events. Invariants:
- The lifecycle is ours: RUN_STARTED, RUN_FINISHED and RUN_ERROR are not passed on. What the last two say is kept here,
  but for the message of an error: adapters put the text of exceptions there, which may hold anything.
- Whole events only: no chunks (`headwater.sources.chunks`).
- An id that was used before in the run (some providers count their tool calls from 0 with each answer) becomes a new
  one, everywhere.
- Nothing raw: RAW events and `raw_event` fields, which hold what the model's provider or the framework sent, are left
  out.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from ag_ui.core import RunErrorEvent, RunFinishedEvent, TextMessageContentEvent

from headwater.agui import TOOL_PROGRESS, TOOL_STARTED, BaseEvent, CustomEvent, TokenUsage, valid_text
from headwater.sources import RunFailed
from headwater.sources.chunks import Chunks

__all__ = ["CANNOT_ASK", "Adoption"]

CANNOT_ASK: Final = (
    "A tool asks for an approval, or is to be run by the client: runs of this kind of agent cannot wait for that. "
    "Let its tools run without; agents of the OpenAI Agents SDK can ask."
)

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
        self._chunks = Chunks(self._new_id)

    def events(self, event: BaseEvent) -> Iterator[BaseEvent]:
        """What `event` becomes, in order. Raises RunFailed where it says that the run has failed or is interrupted."""
        for whole in self._chunks.events(event):
            yield from self._one(whole)

    def _one(self, event: BaseEvent) -> Iterator[BaseEvent]:
        if isinstance(event, RunErrorEvent):
            self.usage = event.usage or self.usage
            raise RunFailed("failed", "The run failed.")
        if isinstance(event, RunFinishedEvent):
            self._finished(event)
        elif event.type.value not in _LEFT_OUT:
            yield self._renaming(event)

    def tool_call_id(self, theirs: str) -> str:
        """The id by which readers know the newest call that its maker calls `theirs`."""
        return self._renamed.get(("tool_call", theirs), theirs)

    def end(self) -> Iterator[BaseEvent]:
        """What is left to say when no event follows."""
        yield from map(self._renaming, self._chunks.end())

    def _finished(self, event: RunFinishedEvent) -> None:
        self.result, self.usage = event.result, event.usage or self.usage
        if event.outcome is not None and event.outcome.type == "interrupt":
            raise RunFailed("approval_not_supported", CANNOT_ASK)

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
            changes["value"] = {**event.value, "toolCallId": self.tool_call_id(theirs)}
        for field in ("delta", "content"):
            text = getattr(event, field, None)
            if isinstance(text, str) and (valid := valid_text(text)) is not text:
                changes[field] = valid
        event = event.model_copy(update=changes) if changes else event
        return _plain(event) if isinstance(event, TextMessageContentEvent) else event

    def _new_id(self) -> str:
        self._made += 1
        return f"{self._run_id}.a{self._made}"


def _plain(event: TextMessageContentEvent) -> TextMessageContentEvent:
    """Without its time: one per token, the bulk of a run, and each message of the stream has its time anyway."""
    if event.model_fields_set <= {"type", "message_id", "delta", "timestamp", "raw_event"}:
        return TextMessageContentEvent(message_id=event.message_id, delta=event.delta)
    return event
