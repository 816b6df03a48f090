"""How late the event loop is: what a reader waits for although all is done, because something else holds the loop.

A timer says when it should have been called and notes how much later it was. Where the loop was held for longer than
from one sample to the next, those that it missed count, too: a second in which nothing happens is a second of late
samples, and not one of them.

Knows the loop's clock and histograms; nothing of what holds it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from headwater.histogram import Histogram

SAMPLE_SECONDS: Final = 0.1
"""Between two samples: ten wakes a second cost an idle process less than a thousandth of a core."""

BOUNDS: Final = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds. Up to 5 ms is what may be; a token stream is seen to stutter from 50 ms on."""

HELD_SECONDS: Final = 0.005
"""For longer than that nothing should hold the loop."""

MOST_MISSED: Final = 600
"""Samples counted for one pause: a minute of them says all there is to say."""


class LoopLag:
    """Of one event loop at a time."""

    def __init__(self) -> None:
        self.histogram = Histogram(BOUNDS)
        """Seconds by which samples were late, since the beginning."""
        self.longest = 0.0
        """Seconds."""
        self._watchers = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<LoopLag [{self.histogram.count} samples, at most {self.longest * 1000:.1f} ms late]>"

    @contextmanager
    def watched(self) -> Iterator[LoopLag]:
        """While inside, samples are taken; several that watch the same loop are one."""
        self._watchers += 1
        if self._watchers == 1:
            self._due = asyncio.get_running_loop().time()
            self._arm()
        try:
            yield self
        finally:
            self._watchers -= 1
            if not self._watchers and self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def statistics(self) -> dict[str, int]:
        """Samples taken, those that were more than 5 ms late, and how late the latest was, in microseconds."""
        over = self.histogram.bounds.index(HELD_SECONDS) + 1
        late = sum(self.histogram.counts[over:])
        return {"samples": self.histogram.count, "late": late, "longest_us": round(self.longest * 1e6)}

    def _arm(self) -> None:
        self._due += SAMPLE_SECONDS
        self._timer = asyncio.get_running_loop().call_at(self._due, self._sample)

    def _sample(self) -> None:
        now = asyncio.get_running_loop().time()
        self.longest = max(self.longest, now - self._due)
        self._due = max(self._due, now - MOST_MISSED * SAMPLE_SECONDS)
        self.histogram.observe(max(0.0, now - self._due))
        while self._due + SAMPLE_SECONDS <= now:
            self._due += SAMPLE_SECONDS
            self.histogram.observe(now - self._due)
        self._arm()
