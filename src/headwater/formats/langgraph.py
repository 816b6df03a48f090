"""A run as the parts that a LangGraph server streams, for the clients of npm and PyPI called langgraph-sdk. Pure.

    metadata                          first: {run_id, thread_id, attempt}
    values                            the whole state, {messages}, at the beginning and after each step
    updates                           what a step gave: {agent | tools: {messages}}
    messages                          [chunk, metadata], for the mode messages-tuple
    messages/metadata, /partial, /complete   for the mode messages: each partial is the message so far
    custom                            {name, value}: what LangGraph has no word for (tool.progress, handoff, …)
    end | error                       last; `error` is {error, message}, error being the run's code

A run that waits for people has `__interrupt__` in its values and updates, one per tool call, and `end` is said there:
LangGraph's clients answer by their next request. Text that is taken back leaves with its message; where that calls
tools, too, it stays, and only the mode messages-tuple, which has no word for less text, goes on showing it until the
next values. The events of the modes that a client did not ask for are counted all
the same, so that an id means one place to everybody.

Knows the fold into messages and the names of LangGraph's events.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any, Final

import msgspec

from headwater.agui import APPROVAL_DECIDED, APPROVAL_REQUESTED, RETRACTED, decode
from headwater.formats.agui_events import is_hidden
from headwater.formats.langchain import INPUT, NOTED, Change, LangChainMessages, Message
from headwater.formats.pauses import approval_id, pause_of
from headwater.formats.projection import Place, ProjectedEvents, Projection
from headwater.formats.rollup import adds_to_same
from headwater.model import Page
from headwater.wire import sse

__all__ = ["MODES", "LangGraphEvents", "LangGraphParts", "interrupts", "state_values"]

MODES: Final = ("values", "updates", "messages", "messages-tuple", "custom")

AGENT: Final = "agent"
TOOLS: Final = "tools"
"""The nodes that LangGraph's own agents have."""

_STATE: Final = ("STATE_SNAPSHOT", "STATE_DELTA", "ACTIVITY_SNAPSHOT", "ACTIVITY_DELTA")

MOST_BYTES: Final = 1024 * 1024
"""In one write of what is past; beyond, the mode messages tells a message that grows only as it is at the write's end:
else a page of its deltas would be hundreds of times the whole of it."""

_encode: Final = msgspec.json.Encoder().encode
_NOT_ASKED_FOR: Final = b""


class LangGraphParts(Projection):
    """The fold. An event's data is its name, a line's end, and its JSON; of one that was not asked for, nothing."""

    def __init__(self, modes: Collection[str]) -> None:
        """`modes`: some of MODES."""
        self._modes = frozenset(modes)
        self._fold = LangChainMessages()
        self._metadata: dict[str, Any] = {}
        self._begun = False
        """The state that the run began with was told."""
        self.terse = False
        """The message so far is not told: the client has it, or what the next event adds to grows again at once."""

    def __repr__(self) -> str:
        return f"<LangGraphParts of {', '.join(sorted(self._modes))} {self._fold!r}>"

    def feed(self, data: bytes) -> Sequence[bytes]:
        return list(self._parts(decode(data)))

    def pause(self) -> Sequence[bytes]:
        return [_named("end", None)]

    def _parts(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        kind: str = event["type"]
        if not self._begun and self._metadata and not self._is_asking(event):
            self._begun = True
            yield from self._told_first()
        if kind == "RUN_STARTED":
            self._metadata = {"run_id": event["runId"], "thread_id": event["threadId"]}
            yield _named("metadata", {**self._metadata, "attempt": 1})
        for change in self._fold.changes(event):
            yield from self._changed(change)
        if kind == "CUSTOM":
            yield from self._custom(event)
        elif kind in _STATE and not event.get("subagentRunId"):
            value = {name: said for name, said in event.items() if name not in ("type", "timestamp")}
            yield self._say("custom", "custom", {"name": kind.lower(), "value": value})
        elif kind == "RUN_FINISHED":
            yield _named("end", None)
        elif kind == "RUN_ERROR":
            yield _named("error", {"error": event.get("code") or "error", "message": event.get("message", "")})

    def _is_asking(self, event: Mapping[str, Any]) -> bool:
        return event["type"] == "CUSTOM" and event["name"] in (INPUT, NOTED)

    def _told_first(self) -> Iterator[bytes]:
        yield self._values()
        yield self._say("messages", "messages/complete", self._fold.messages)

    # -- messages -------------------------------------------------------------------------------------------------

    def _changed(self, change: Change) -> Iterator[bytes]:
        message, chunk = change.message, change.chunk
        told = {**self._metadata, "langgraph_node": TOOLS if message["type"] == "tool" else AGENT}
        if change.kind == "began":
            yield self._say("messages", "messages/metadata", {message["id"]: {"metadata": told}})
        elif change.kind == "grew":
            yield _NOT_ASKED_FOR if self.terse else self._say("messages", "messages/partial", [message])
            yield self._say("messages-tuple", "messages", [chunk, told])
        elif change.kind == "complete":
            yield self._say("messages", "messages/complete", [message])
            if message["type"] == "tool":
                yield self._say("messages-tuple", "messages", [message, told])
            yield self._say("updates", "updates", {told["langgraph_node"]: {"messages": [message]}})
            yield self._values()
        else:
            removed = {"type": "remove", "id": message["id"], "content": ""}
            yield self._say("messages-tuple", "messages", [removed, told])
            yield self._say("updates", "updates", {AGENT: {"messages": [removed]}})
            yield self._values()

    # -- everything else --------------------------------------------------------------------------------------------

    def _custom(self, event: Mapping[str, Any]) -> Iterator[bytes]:
        if is_hidden(event):
            return
        name, value = event["name"], event.get("value")
        if name == APPROVAL_REQUESTED:
            yield self._say("updates", "updates", {"__interrupt__": interrupts(self._fold)})
        if name in (APPROVAL_REQUESTED, APPROVAL_DECIDED):
            yield self._values()
        if name not in (APPROVAL_REQUESTED, RETRACTED):
            yield self._say("custom", "custom", {"name": name, "value": value})

    def _values(self) -> bytes:
        return self._say("values", "values", state_values(self._fold))

    def _say(self, mode: str, name: str, data: Any) -> bytes:
        return _named(name, data) if mode in self._modes else _NOT_ASKED_FOR


class LangGraphEvents(ProjectedEvents):
    """The parts as server-sent events with names. One instance is one connection's."""

    transport = "langgraph"

    def __init__(self, modes: Collection[str], run_id: str, place: Place | None = None) -> None:
        self._parts = LangGraphParts(modes)
        super().__init__(self._parts, run_id, place)

    def render(self, page: Page) -> bytes:
        said, size = list[bytes](), 0
        last = page.messages[-1] if pause_of(page) is not None else None
        for message, next_ in zip_longest(page.messages, page.messages[1:]):
            known = self._place is not None and message.offset <= self._place.offset
            much = size > MOST_BYTES and next_ is not None and adds_to_same(message, next_)
            self._parts.terse = known or much
            said.append(self._events(message, paused=message is last))
            size += len(said[-1])
        return b"".join(said)

    def _event(self, id_: str, data: bytes) -> bytes:
        name, _, body = data.partition(b"\n")
        return sse.encode(sse.one_line(body), id=id_, event=name.decode()) if data else b""


def state_values(fold: LangChainMessages) -> dict[str, Any]:
    """The state of a thread as `values` tell it."""
    asked = interrupts(fold)
    return {"messages": fold.messages} | ({"__interrupt__": asked} if asked else {})


def interrupts(fold: LangChainMessages) -> list[Message]:
    """What the run asks people, as LangChain's agents ask it (`HITLRequest`): one interrupt per tool call."""
    return [
        _interrupt(approval_id(fold.run_id, id_), asked["toolName"], asked["arguments"])
        for id_, asked in fold.asked.items()
    ]


def _interrupt(id_: str, name: str, arguments: str) -> Message:
    try:
        args = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        args = arguments
    request = {"name": name, "args": args}
    allowed = {"action_name": name, "allowed_decisions": ["approve", "reject"]}
    return {"id": id_, "value": {"action_requests": [request], "review_configs": [allowed]}}


def _named(name: str, data: Any) -> bytes:
    return name.encode() + b"\n" + _encode(data)
