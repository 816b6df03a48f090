"""When each of many names is due next, so that what is due is found without a look at what is not. In memory.

Knows nobody; times are whole numbers of any unit. A time that moves on costs nothing until the old one has come: then
the name is put back for its new time. So a stream whose expiry moves with each append is here once, and not once for
each. Invariants: whatever is due is found; memory is bounded by the names that are held.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from typing import Final

SLACK: Final = 1000
"""Entries out of date that are not worth a clearing."""


class Agenda:
    """Names in the order of their times."""

    def __init__(self, when: Callable[[str], int | None]) -> None:
        """`when` says the time at which a name is due, as it is now; None: never, or there is no such name."""
        self._when = when
        self._queue: list[tuple[int, str]] = []
        self._queued: dict[str, int] = {}  # the entry of each name that counts; the others are out of date
        self._come: dict[str, None] = {}  # those whose entry has come: due, unless their time has moved on

    def __repr__(self) -> str:
        return f"<Agenda [{len(self._queued)} to come, {len(self._come)} have come]>"

    def note(self, name: str) -> None:
        """The time of this name may have changed."""
        at = self._when(name)
        if at is None:
            self._queued.pop(name, None)
            self._come.pop(name, None)
        elif name not in self._come and at < self._queued.get(name, at + 1):
            self._queued[name] = at
            heapq.heappush(self._queue, (at, name))
            if len(self._queue) > 2 * len(self._queued) + SLACK:
                self._clear()

    def due(self, now: int) -> Iterator[str]:
        """The names whose time has come, in no order; each time anew, until `note` hears of another time."""
        while self._queue and self._queue[0][0] <= now:
            at, name = heapq.heappop(self._queue)
            if self._queued.get(name) == at:
                del self._queued[name]
                self._come[name] = None
        for name in list(self._come):
            come = self._when(name)
            if come is not None and come <= now:
                yield name
            else:
                del self._come[name]
                self.note(name)

    def _clear(self) -> None:
        self._queue = [(at, name) for name, at in self._queued.items()]
        heapq.heapify(self._queue)
