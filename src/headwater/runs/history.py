"""A run as its stream tells it: what is open, what was shown, which tools have begun, what people were asked.

Knows the events of a run and how to read its stream. From it, whoever goes on with a run knows what to say first.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from ag_ui.core import ToolCallResultEvent

from headwater.agui import (
    APPROVAL_DECIDED,
    APPROVAL_REQUESTED,
    RESUMED,
    RETRACTED,
    TOOL_STARTED,
    WAITING,
    BaseEvent,
    CustomEvent,
    OpenParts,
    custom,
    decode,
)
from headwater.model import Head, Offset, Page
from headwater.sources import Answer
from headwater.streams import Streams

BEGUN: Final = 2
"""The position after RUN_STARTED and the input: where a run without a checkpoint begins anew."""

INTERRUPTED: Final = "interrupted"
"""Reason of a retraction."""

FOLD_BYTES: Final = 64 * 1024
"""Of a run read at a time: some 700 tokens, 3 ms."""

NOT_RUN: Final = "This call was not carried out: the server went away before it began."
UNKNOWN: Final = "The server went away during this call; it is not known how far it came."


async def so_far(streams: Streams, name: str, offset: Offset | None = None) -> AsyncIterator[Page]:
    """A stream from `offset` to where it ends now; between its pages the others have their turn."""
    while True:
        page = await streams.read(name, offset, max_bytes=FOLD_BYTES)
        await asyncio.sleep(0)
        yield page
        if page.up_to_date:
            return
        offset = page.next


@dataclass(slots=True)
class _Call:
    opened: int
    subagent: str | None = None
    """Of whom it is a call, where not of the run itself."""
    started: int = 0
    """The position after it was last said that the tool begins; 0: never."""
    answered: int = 0
    """… and after its result."""


class History:
    """All events of a run so far, and the head that its stream had then."""

    def __init__(self) -> None:
        self.head: Head
        self.run_id = ""
        self.parts = OpenParts()
        self.thread_id = ""
        self.input: Any = None
        self.whole = True
        """Nothing of it was trimmed."""
        self.calls: dict[str, _Call] = {}
        self.asked: dict[str, dict[str, Any]] = {}
        self.decided: dict[str, dict[str, Any]] = {}
        self._paused: dict[str, int] = {}  # tool call id -> where the run first waited for its approval
        # Message id -> position, and whose it is; those that were retracted are left out.
        self._shown: dict[str, tuple[int, str | None]] = {}
        self._resumed: list[int] = []

    @classmethod
    async def read(cls, streams: Streams, name: str) -> History:
        """The stream from its beginning to its end, as it is now. Raises StreamNotFound."""
        history, offset = cls(), None
        while True:
            async for page in so_far(streams, name, offset):
                history.whole = history.whole and (offset is not None or page.start.position == 0)
                for message in page.messages:
                    history._feed(message.offset.position, decode(message.data))
                offset = page.next
            history.head = await streams.head(name)
            if history.head.offset == offset:
                return history

    def _feed(self, position: int, event: Mapping[str, Any]) -> None:
        if self.whole:
            self.parts.feed(event)
        else:  # parts whose beginning was trimmed
            self.parts.started = True
            with suppress(ValueError):
                self.parts.feed(event)
        match event["type"]:
            case "RUN_STARTED":
                self.run_id, self.thread_id = event["runId"], event["threadId"]
            case "TEXT_MESSAGE_START" | "REASONING_MESSAGE_START":
                self._shown[event["messageId"]] = position, event.get("subagentRunId")
            case "TOOL_CALL_START":
                self.calls[event["toolCallId"]] = _Call(position, event.get("subagentRunId"))
            case "TOOL_CALL_RESULT" if (call := self.calls.get(event["toolCallId"])) is not None:
                call.answered = position
            case "CUSTOM":
                self._custom(position, event["name"], event.get("value"))

    def _custom(self, position: int, name: str, value: Any) -> None:
        if position == BEGUN:
            self.input = value
        elif name == TOOL_STARTED and (call := self.calls.get(value["toolCallId"])) is not None:
            call.started = position
        elif name == RETRACTED:
            self._shown.pop(value["messageId"], None)
        elif name == RESUMED:
            self._resumed.append(position)
        elif name == APPROVAL_REQUESTED:
            self.asked[value["toolCallId"]] = value
        elif name == APPROVAL_DECIDED:
            self.decided[value["toolCallId"]] = value
        elif name == WAITING:
            for asked in value["approvals"]:
                self._paused.setdefault(asked["toolCallId"], position)

    @property
    def open_questions(self) -> list[str]:
        """Tool call ids that nobody has decided on yet."""
        return [id_ for id_ in self.asked if id_ not in self.decided]

    @property
    def shown(self) -> list[str]:
        """Ids of the messages that readers have, and that were not taken back."""
        return list(self._shown)

    @property
    def answers(self) -> dict[str, Answer]:
        return {id_: Answer(value["approved"], value.get("message")) for id_, value in self.decided.items()}

    def decided_alike(self, tool_call_id: str, answer: Answer) -> bool:
        """Whether somebody has given this answer already."""
        made = self.decided.get(tool_call_id)
        return made is not None and made["approved"] == answer.approved

    def behind(self, tool_call_ids: Iterable[str]) -> Offset:
        """The place where the run waited for these: what follows is what came of it."""
        position = max((self._paused.get(id_, 0) for id_ in tool_call_ids), default=0)
        return Offset(self.head.generation, position)

    def resumptions_since(self, position: int) -> int:
        """How often the run was gone on with from there."""
        return sum(at > position for at in self._resumed)

    def in_doubt(self, since: int) -> list[str]:
        """Ids of the calls whose tools have begun, and whose results are not there at that position."""
        return [id_ for id_, call in self.calls.items() if call.started and not 0 < call.answered <= since]

    def resumed(self, since: int, attempt: int, *, anew: bool) -> list[BaseEvent]:
        """What whoever goes on says first: takes back what was said after position `since`, names what runs again."""
        in_doubt = self.in_doubt(since)
        unmade = [id_ for id_, call in self.calls.items() if call.opened > since and not call.answered]
        events = self.parts.closing_events()
        for id_, (position, subagent) in self._shown.items():
            if position > since:
                taken_back = custom(RETRACTED, messageId=id_, reason=INTERRUPTED)
                taken_back.subagent_run_id = subagent
                events.append(taken_back)
        for id_ in unmade:
            said = UNKNOWN if id_ in in_doubt else NOT_RUN
            result = ToolCallResultEvent(message_id=f"{id_}.{attempt}", tool_call_id=id_, content=said, role="tool")
            result.subagent_run_id = self.calls[id_].subagent
            events.append(result)
            self.calls[id_].answered = self.head.tail + len(events)
        value = {"attempt": attempt, "from": "input" if anew else "checkpoint"}
        events.append(custom(RESUMED, **value, inDoubt=in_doubt, notRun=[id_ for id_ in unmade if id_ not in in_doubt]))
        self.say(events)
        return events

    def say(self, events: Sequence[BaseEvent]) -> None:
        """Notes what is said next, before it is in the stream."""
        for event in events:
            self.parts.feed(event)
            if isinstance(event, CustomEvent):
                self._custom(0, event.name, event.value)
