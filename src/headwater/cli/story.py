"""What a run did: its turns, its tools and how long each took, from the events of its log in their order. Pure.

The events are what an agent said: every part of them may be of any type, and what is not understood is passed over.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec


class Span(msgspec.Struct):
    """Something that took time. Times are ms since 1970."""

    name: str
    started: int | None = None
    ended: int | None = None

    @property
    def seconds(self) -> float | None:
        return None if self.started is None or self.ended is None else max(0, self.ended - self.started) / 1000


class Story(msgspec.Struct):
    """What is known so far."""

    events: int = 0
    turns: list[Span] = []
    tools: list[Span] = []
    first_said: int | None = None
    """When the model's first text, thought or tool call came."""
    attempts: int = 1
    """How many processes made it: it was gone on with by the others."""
    whole: bool = True
    """The log was read to its end."""


class Telling:
    """A fold: `feed` it the events of one run."""

    def __init__(self) -> None:
        self.story = Story()
        self._tools: dict[str, Span] = {}
        self._turns: dict[str, Span] = {}

    def __repr__(self) -> str:
        return f"<Telling [{self.story.events} events]>"

    def feed(self, message: bytes) -> None:
        """One more message of its log."""
        self.story.events += 1
        try:
            event = msgspec.json.decode(message)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        at = _when(event.get("timestamp"))
        kind = event.get("type")
        if kind in _SAYS and self.story.first_said is None:
            self.story.first_said = at
        change = _CHANGES.get(kind) if isinstance(kind, str) else None
        if change is not None:
            change(self, event, at)

    def _turn_began(self, event: dict[str, Any], at: int | None) -> None:
        name = _text(event.get("stepName"))
        self._turns[name] = turn = Span(name, at)
        self.story.turns.append(turn)

    def _turn_ended(self, event: dict[str, Any], at: int | None) -> None:
        if turn := self._turns.pop(_text(event.get("stepName")), None):
            turn.ended = at

    def _tool_asked(self, event: dict[str, Any], at: int | None) -> None:
        self._tools[_text(event.get("toolCallId"))] = tool = Span(_text(event.get("toolCallName")), at)
        self.story.tools.append(tool)

    def _tool_done(self, event: dict[str, Any], at: int | None) -> None:
        if tool := self._tools.pop(_text(event.get("toolCallId")), None):
            tool.ended = at

    def _custom(self, event: dict[str, Any], at: int | None) -> None:
        value = event.get("value")
        if event.get("name") == "run.resumed":
            self.story.attempts += 1
        elif event.get("name") == "tool.started" and isinstance(value, dict):
            tool = self._tools.get(_text(value.get("toolCallId")))
            if tool is not None and at is not None:  # until then it was only asked for
                tool.started = at


_SAYS: Final = ("TEXT_MESSAGE_START", "REASONING_MESSAGE_START", "TOOL_CALL_START")

_CHANGES: Final[dict[str, Callable[[Telling, dict[str, Any], int | None], None]]] = {
    "STEP_STARTED": Telling._turn_began,
    "STEP_FINISHED": Telling._turn_ended,
    "TOOL_CALL_START": Telling._tool_asked,
    "TOOL_CALL_RESULT": Telling._tool_done,
    "CUSTOM": Telling._custom,
}


def _when(given: Any) -> int | None:
    return given if isinstance(given, int) and not isinstance(given, bool) else None


def _text(given: Any) -> str:
    return given if isinstance(given, str) else ""
