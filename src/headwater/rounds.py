"""One timer for all readers: who has been silent or stuck for too long is looked after at the next round.

A round a second, and only while there are readers. A reader waits in the bucket of the second it is due in; most have
moved on by then and are put into a later one, so a reader that is busy costs nothing between its rounds.

Knows the loop's clock and two methods of a reader; nothing of streams or sockets.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Final, Protocol

ROUND_SECONDS: Final = 1.0


class Looked(Protocol):
    """Somebody who is looked after."""

    def due(self) -> float:
        """When to look next, on the loop's clock."""

    def look_after(self) -> None:
        """The time has come. Must not raise."""


class Rounds:
    """Belongs to one event loop for as long as there is anybody to look after."""

    def __init__(self) -> None:
        self._buckets: dict[int, set[Looked]] = {}
        self._bucket_of: dict[Looked, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Rounds [{len(self._bucket_of)} looked after]>"

    def __iter__(self) -> Iterator[Looked]:
        return iter(list(self._bucket_of))

    def add(self, one: Looked) -> None:
        self._put(one, one.due())
        if self._timer is None:
            self._arm()

    def discard(self, one: Looked) -> None:
        second = self._bucket_of.pop(one, None)
        if second is not None and second in self._buckets:  # its bucket may be the one that is looked at now
            self._buckets[second].discard(one)
        if not self._bucket_of and self._timer is not None:
            self._timer.cancel()  # not only idle: the next one may come on another loop
            self._timer = None

    def again(self) -> None:
        """When everybody is due may have changed."""
        for one in list(self._bucket_of):
            self.discard(one)
            self.add(one)

    def _put(self, one: Looked, due: float) -> None:
        second = math.ceil(due / ROUND_SECONDS)
        self._buckets.setdefault(second, set()).add(one)
        self._bucket_of[one] = second

    def _arm(self) -> None:
        loop = asyncio.get_running_loop()
        # On the second: a bucket is looked at as soon as it is due.
        self._timer = loop.call_at((math.floor(loop.time() / ROUND_SECONDS) + 1) * ROUND_SECONDS, self._round)

    def _round(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for second in [second for second in self._buckets if second * ROUND_SECONDS <= now]:
            for one in self._buckets.pop(second):
                due = one.due()
                if due <= now:
                    one.look_after()
                    if one not in self._bucket_of:
                        continue  # that was the end of it
                    due = (math.floor(now / ROUND_SECONDS) + 1) * ROUND_SECONDS  # the next round, and no later
                self._put(one, due)
        self._timer = None
        if self._bucket_of:
            self._arm()
