"""What a source is, what it may do, and how a tool inside one tells its progress.

A source turns something live (an agent framework, an LLM API) into the events of a run. It knows nothing of streams,
stores or readers: it is given a `Sink`, and whoever runs it (the run supervisor) owns RUN_STARTED, the terminal event
and the closing of what is still open. Adapters live beside this file, one module each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

import msgspec

if TYPE_CHECKING:
    from headwater.agui import BaseEvent, TokenUsage

__all__ = ["JSON", "RunFailed", "Sink", "Source", "progress"]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


class Sink(Protocol):
    """Where a source puts what it makes."""

    run_id: str
    thread_id: str

    async def emit(self, event: BaseEvent) -> None:
        """Puts `event` into the run's stream, in order. May wait for the store (back-pressure), never for readers."""

    def usage(self, entries: Sequence[TokenUsage]) -> None:
        """What is known so far; replaces earlier entries. Goes onto the terminal event, also of a cancelled run."""


class Source(Protocol):
    """Something that can be run."""

    name: str

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """Emits everything between RUN_STARTED and the terminal event; returns the run's result, which is JSON.

        Raises RunFailed with what readers may know. A cancelled run gives up its usage, stops what it started and
        raises CancelledError. Parts may be left open at an exception; the caller closes them.
        """


class RunFailed(Exception):
    """The run failed. `code` is stable, for programs; `message` is for people and safe to show to any reader."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


ProgressValue: TypeAlias = dict[str, Any]
"""The value of a TOOL_PROGRESS event without its toolCallId."""

report_progress: Final[ContextVar[Callable[[ProgressValue], None] | None]] = ContextVar(
    "headwater_report_progress", default=None
)
"""Set by an adapter in the context of each tool call; the function in it may be called from any thread."""


def progress(message: str | None = None, *, fraction: float | None = None, data: JSON = None) -> None:
    """Tells the readers of the current run how far the current tool is; outside a run it does nothing.

    May be called from inside any tool, async or sync, in any thread that carries the tool's context. Never waits; a
    tool that tells more than its run's stream can take has some of it dropped. `fraction` runs from 0 to 1 (what lies
    outside is moved to the nearer end); `data` is copied now, and raises TypeError where it is not JSON.
    """
    report = report_progress.get()
    if report is None:
        return
    value: ProgressValue = {}
    if message is not None:
        value["message"] = message.encode(errors="replace").decode()  # lone surrogates are no JSON
    if fraction is not None:
        value["fraction"] = min(1.0, max(0.0, fraction))
    if data is not None:
        value["data"] = msgspec.json.decode(msgspec.json.encode(data))
    report(value)
