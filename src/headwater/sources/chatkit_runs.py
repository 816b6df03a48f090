"""The agent runs inside a ChatKitServer's answer, so that a stop ends them, too.

ChatKit's `stream_agent_response` lets go of a run without cancelling it: the model goes on and tools are called after
the Stop, and two of its tasks are left waiting. So the runs that an answer starts are noted, and that helper's merging
of two iterators ends what it began. Both are seams of other packages (the Agents SDK's runner, see `openai_runner`, and
`chatkit.agents._merge_generators`); neither changes anything outside of an answer of ours.

Knows the SDK and ChatKit; nothing of streams.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any, Final, TypeVar

from headwater.errors import MissingExtra

try:
    from agents import RunResultStreaming
    from chatkit import agents as chatkit_agents

    from headwater.sources.openai_runner import Before, stand_before
except ImportError as error:
    raise MissingExtra("chatkit", "openai-chatkit") from error

T = TypeVar("T")
Merge = Callable[[AsyncIterator[Any], AsyncIterator[Any]], AsyncIterator[Any]]

_STARTED: Final[ContextVar[list[RunResultStreaming] | None]] = ContextVar("headwater-chatkit-runs", default=None)
"""Runs of the answer that this code belongs to; None: it is none of ours."""


def note_runs() -> list[RunResultStreaming]:
    """From now on, streamed runs that this task and its children start are in the list that is returned."""
    _install()
    started: list[RunResultStreaming] = []
    _STARTED.set(started)
    return started


def cancel_runs(started: list[RunResultStreaming]) -> None:
    """Cancel those that have not ended."""
    for result in started:
        if not result.is_complete:
            result.cancel()


class _NotingRunner(Before):
    """Takes a note of each streamed run."""

    def run_streamed(self, *given: Any, **options: Any) -> RunResultStreaming:
        result = super().run_streamed(*given, **options)
        if (started := _STARTED.get()) is not None:
            started.append(result)
        return result


class _Waiting(AsyncIterator[T]):
    """An iterator that knows which task waits for its next item."""

    def __init__(self, items: AsyncIterator[T]) -> None:
        self._items = items
        self.task: asyncio.Task[Any] | None = None

    async def __anext__(self) -> T:
        self.task = asyncio.current_task()
        return await anext(self._items)


def _tidy(merge: Merge) -> Merge:
    async def merged(one: AsyncIterator[Any], other: AsyncIterator[Any]) -> AsyncIterator[Any]:
        if _STARTED.get() is None:
            async for item in merge(one, other):
                yield item
            return
        both = _Waiting(one), _Waiting(other)
        try:
            async for item in merge(*both):
                yield item
        finally:
            for each in both:
                if each.task is not None:
                    each.task.cancel()  # one that is done does not mind

    merged.headwater = True  # type: ignore[attr-defined]
    return merged


def _install() -> None:
    stand_before(_NotingRunner)
    merge: Any = getattr(chatkit_agents, "_merge_generators", None)
    if merge is not None and not hasattr(merge, "headwater"):
        vars(chatkit_agents)["_merge_generators"] = _tidy(merge)
