"""How the service was that one reader got, told once at its end: `POST /v1/quality`.

Knows a clock; nothing of what is read, and nothing of connections but that there is one or none.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Literal

import msgspec

Ended = Literal["ended", "left", "failed"]


class Report(msgspec.Struct):
    """Of one reader that is done. Times in seconds."""

    url: str
    """What was read, without its query."""
    ended: Ended = "left"
    """The stream did; the reader left before that; or gave up."""
    client: str = "python"
    events: int = 0
    reconnects: int = 0
    first_event: float | None = None
    """From the request to the first event; None: there was none."""
    longest_gap: float = 0.0
    """Between two events, or the request and the first."""
    lost: float = 0.0
    """Without a connection."""


class Service:
    """Takes down how it goes. `tell` gets the report, once."""

    def __init__(self, url: str, clock: Callable[[], float], tell: Callable[[Report], Awaitable[None]]) -> None:
        self._report = Report(url)
        self._clock, self._tell = clock, tell
        self._last: float | None = None
        self._lost_at: float | None = None
        self._told = False

    def __repr__(self) -> str:
        return f"<Service {self._report!r}>"

    def asked(self) -> None:
        """A request is made; the first one begins the time."""
        self._last = self._clock() if self._last is None else self._last

    def event(self) -> None:
        report, now = self._report, self._clock()
        gap = 0.0 if self._last is None else now - self._last
        if not report.events:
            report.first_event = gap
        report.events += 1
        report.longest_gap, self._last = max(report.longest_gap, gap), now

    def lost(self) -> None:
        """There is no connection any more."""
        self._lost_at = self._clock() if self._lost_at is None else self._lost_at

    def back(self) -> None:
        """There is one, a first or another."""
        if self._lost_at is not None:
            self._report.reconnects += 1
            self._report.lost += self._clock() - self._lost_at
            self._lost_at = None

    async def over(self, ended: Ended) -> None:
        """Tell it, if it was not told."""
        if self._told or self._last is None:
            return
        self._told = True
        if self._lost_at is not None:
            self._report.lost += self._clock() - self._lost_at
        self._report.ended = ended
        await self._tell(self._report)
