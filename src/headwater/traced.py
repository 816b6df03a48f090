"""What is told to whoever traces: requests, runs, model calls, tools, appends and readers.

`Streams.tracing` is the one switch. Where it is None, as usual, each seam is one look at that and nothing more; what is
told then becomes spans elsewhere (`headwater.tracing`), from a library that nobody else knows. Must not know that one.
Invariants: what is told is names, words and numbers, never what a stream holds; whatever began is told to be over once.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Final, NamedTuple, Protocol

if TYPE_CHECKING:  # it needs an extra that streams do not
    from headwater.agui import BaseEvent

TRACEPARENT: Final = "traceparent"
"""Label of a run's stream, and key in the metadata of its RUN_STARTED: where its span belongs, as W3C Trace Context
writes it. By it readers find the run, and whoever goes on with the run stays in its trace."""


class Reading(NamedTuple):
    """A reader, as it comes."""

    stream: str
    traceparent: str | None
    """Of the run that the stream is of."""
    transport: str
    resume: str
    """`none`: it begins; `ok`, `nothing_new`: it goes on where it was; else why it cannot (`headwater.counts`)."""
    replayed: int = 0
    """Messages that were there before it."""


class TracedReader(Protocol):
    """One reader's stay."""

    def over(self, reason: str, events: int | None, size: int) -> None:
        """It has left. `events`: None where that cannot be told; `size` in bytes."""


class TracedModel(Protocol):
    """One call of a model."""

    def over(self, input_tokens: int, output_tokens: int) -> None:
        """It has answered in full. Zero: its provider did not say."""


class TracedRun(Protocol):
    """One run, as long as it is made here."""

    traceparent: str

    def enter(self) -> None:
        """What goes on in the current context from now on is the run's."""

    def saw(self, event: BaseEvent) -> None:
        """An event goes out."""

    def model(self, name: str | None, provider: str | None, within: str | None = None) -> TracedModel | None:
        """A model is asked. `within`: the subagent that asks. What is never told to be over ends with the run."""

    def enter_tool(self, tool_call_id: str, name: str, within: str | None = None) -> None:
        """A tool begins, and what goes on in the current context from now on is the tool's."""

    def tool_over(self, tool_call_id: str) -> None:
        """It has ended. Of one that is not told of here, its result will tell."""

    def over(self, outcome: str) -> None:
        """It is made here no more."""

    def not_begun(self, why: str) -> None:
        """It did not begin, after all. Nothing, where it did."""


class Tracing(Protocol):
    """Whoever traces. None instead of something that began: nobody wants to know of it."""

    def request(self, headers: Mapping[str, str]) -> AbstractContextManager[None]:
        """What begins meanwhile belongs to this request, unless somebody around it has said so already."""

    def run(
        self, run_id: str, agent: str, thread_id: str, *, attempt: int = 0, traceparent: str | None = None
    ) -> TracedRun | None:
        """A run begins here: anew, or, from `attempt` 1 on, where the one in `traceparent` was left."""

    def append(
        self, stream: str, messages: int, size: int
    ) -> AbstractContextManager[Callable[[str, str | None], None]]:
        """Something is appended meanwhile. What is given is told what came of it, and the stream's `traceparent`."""

    def reader(self, reading: Reading, headers: Mapping[str, str] | None) -> TracedReader | None:
        """A reader has come."""


async def beginning(trace: TracedRun, begun: Awaitable[bool]) -> bool:
    """What `begun` gives: whether the run began by it."""
    try:
        started = await begun
    except BaseException:
        trace.not_begun("refused")
        raise
    if not started:
        trace.not_begun("there_already")
    return started
