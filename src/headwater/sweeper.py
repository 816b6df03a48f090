"""The sweeper: removes streams whose life is over, trims those that grew too long, looks after withdrawn ones
and what keeps them.

Expiry is exact for whoever asks; this only frees the space. Every process sweeps: what two of them do at once is
decided by compare-and-append. Knows commits, forks and retention.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from contextlib import suppress
from typing import Final

from headwater.commits import Commits
from headwater.decide import Decision
from headwater.errors import HeadwaterError
from headwater.forks import CLAIMS, Forks
from headwater.model import Head
from headwater.retention import Keeping

_log = logging.getLogger("headwater.streams")

MARGIN_MS: Final = 1000
"""Swept only so long after the end: a read just before it may still be on its way to the store."""

SLICE: Final = 1000
"""Streams looked up at a time."""

MOST_LEFT: Final = 20 * SLICE
"""Streams that one sweep goes past because they cannot be seen to: a store that takes nothing at all is left alone."""

PAUSE_SECONDS: Final = 0.1
"""At least, between two sweeps: streams that overflow with each append must not keep the store busy with trims."""


class Sweeper:
    """One process's part in keeping a store tidy."""

    def __init__(self, commits: Commits, forks: Forks, keeping: Keeping) -> None:
        self._commits, self._forks, self._keeping = commits, forks, keeping
        self._hurry = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def __repr__(self) -> str:
        return f"<Sweeper of {self._commits.store!r} [{'running' if self._task else 'idle'}]>"

    def open(self) -> None:
        self._hurry = asyncio.Event()  # of this loop, which may be another than the last time
        self._task = asyncio.create_task(self._run(), name="headwater-sweeper")

    async def aclose(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    def committed(self, _: str, decision: Decision) -> None:
        """Told of each commit: one that made a stream too long is seen to soon; what grows old waits for its sweep."""
        head, now = decision.head, self._commits.clock()
        if head.look is not None and head.appended <= head.look <= now:
            self._hurry.set()

    async def _run(self) -> None:
        await _tried(self._keeping.survey())
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._commits.limits.sweep_seconds):
                    await self._hurry.wait()
            self._hurry.clear()
            await _tried(self.sweep())
            await asyncio.sleep(PAUSE_SECONDS)

    async def sweep(self) -> None:
        """See to everything that is due now; what cannot be seen to is gone past, and is tried again the next time."""
        left: set[str] = set()
        seen = SLICE
        while seen == SLICE and len(left) < MOST_LEFT:
            # A store begins at the front each time: ask for as many more as were left there.
            due = await self._commits.store.due(self._commits.clock(), limit=SLICE + len(left))
            fresh = [(name, head) for name, head in due if name not in left][:SLICE]
            seen = len(fresh)
            for name, head in fresh:
                if not await self._see_to(name, head):
                    left.add(name)
                await asyncio.sleep(0)  # a store in memory never waits: the others have their turn

    async def _see_to(self, name: str, head: Head) -> bool:
        """Whether anything was done: what is still due after that is left for the next sweep."""
        now = self._commits.clock()
        try:
            if name.startswith(CLAIMS):
                await self._forks.review(name, head)
                return True
            if head.deleted is not None:
                return await self._forks.recheck(name, head)
            if head.expired(now):
                return head.expired(now - MARGIN_MS) and await self._forks.remove(name, head)
            return await self._keeping.trim(name, head)
        except HeadwaterError as error:
            _log.warning("could not sweep %s: %s", name, error)  # done the next time
        except Exception:  # noqa: BLE001 -- nor must one keep the space of all others
            _log.exception("could not sweep %s", name)
        return False


async def _tried(work: Awaitable[None]) -> None:
    """One failure must not keep all space for ever."""
    try:
        await work
    except HeadwaterError as error:
        _log.warning("could not sweep: %s", error)
    except Exception:  # noqa: BLE001 -- see above
        _log.exception("could not sweep")
