"""What a translation remembers of a run's messages, thoughts and tool calls while they are open, and of calls beyond.

Knows only the shape of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from headwater.agui import BaseEvent

__all__ = ["Call", "MessagePart", "ReasoningPart"]


@dataclass(slots=True)
class MessagePart:
    """A text message that is open in the current response."""

    id: str
    refused: bool = False


@dataclass(slots=True)
class ReasoningPart:
    """A span of reasoning that is open; `message` is its open reasoning message, `section` what that one tells of."""

    id: str
    message: str = ""
    section: tuple[str, int] | None = None


@dataclass(slots=True)
class Call:
    """A tool call of the run. Facts that came before its end wait in `held`."""

    id: str
    opened: bool = False
    nameless: bool = False
    """Of a tool whose hooks do not say which call they are about, and not said to have begun."""
    has_arguments: bool = False
    ended: bool = False
    answered: bool = False
    held: list[Callable[[], Iterator[BaseEvent]]] = field(default_factory=list)
