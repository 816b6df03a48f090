"""A visit: one reader's stay with one stream, from its coming to its end, for metrics and the log.

Knows cursors and counts; nothing of connections. Invariant: whoever came has left exactly once, with a reason.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from headwater.cursor import Cursor
from headwater.hub import MESSAGE_OVERHEAD
from headwater.journal import note
from headwater.model import Head, Page
from headwater.outlet import Scope
from headwater.streams import Streams

_log = logging.getLogger("headwater.readers")

ROUTE = "headwater.route"
"""Key of the scope: the path of the request with its names left out, as the application knows it."""


class Visit:
    """One reader of one stream. `ended` is its reason: what it is when the visit is `over`."""

    __slots__ = (
        "_began", "_cursor", "_first", "_is_over", "_keeps_up", "_level", "_method", "_parked_at", "_route",
        "_status", "_streams", "_volume", "bytes", "ended", "transport",
    )  # fmt: skip

    def __init__(
        self,
        streams: Streams,
        cursor: Cursor,
        transport: str,
        scope: Scope | None = None,
        *,
        status: int | None = None,
        level: int = logging.INFO,
    ) -> None:
        """`level`: at which its end is logged. Nothing else of the request is kept."""
        self._streams, self._cursor = streams, cursor
        self._method, self._route = (None, None) if scope is None else (scope.get("method"), _route_of(scope))
        self._status, self._level = status, level
        self.transport = transport
        self._began = asyncio.get_running_loop().time()
        self._first = cursor.offset
        head = cursor.tail.head
        behind = max(0, head.tail - cursor.offset.position) if isinstance(head, Head) else 0
        self._keeps_up = not behind
        self._parked_at, self._volume = cursor.offset, 0
        self.bytes = 0
        """Of the messages it got."""
        self.ended = ""
        self._is_over = False
        streams.reads.came(cursor, transport, behind)

    def __repr__(self) -> str:
        return f"<Visit of {self._cursor!r} by {self.transport}{f' [{self.ended}]' if self.ended else ''}>"

    def wrote(self, page: Page, size: int) -> None:
        """A page was written, and took `size` bytes of the response."""
        self.bytes += sum([len(message.data) for message in page.messages])
        if page.messages:
            seconds = (self._streams.clock() - page.messages[0].time) / 1000 if self._keeps_up else None
            self._streams.reads.wrote(self.transport, len(page.messages), size, seconds)
        self._keeps_up = page.up_to_date

    def parked(self) -> None:
        """From now on it is written to without being asked: what it gets is the tail's, and counted there."""
        self._parked_at, self._volume = self._cursor.offset, self._cursor.tail.volume

    def unparked(self) -> None:
        """Until now. One that was behind at the end got its share of what came, taken as even."""
        tail, begun = self._cursor.tail, self._parked_at.position
        came = tail.head.tail - begun if isinstance(tail.head, Head) else self._cursor.offset.position - begun
        if came > 0:
            size = tail.volume - self._volume - came * MESSAGE_OVERHEAD
            self.bytes += max(0, size * (self._cursor.offset.position - begun) // came)

    def over(self, reason: str) -> None:
        """It is; the first time counts. `reason`, unless one was known before."""
        if self._is_over:
            return
        self._is_over, self.ended = True, self.ended or reason
        seconds = asyncio.get_running_loop().time() - self._began
        self._streams.reads.left(self._cursor, self.ended, seconds)
        note(_log, self._level, "reader ended", **self._facts(), reason=self.ended, seconds=seconds)

    def _facts(self) -> dict[str, Any]:
        cursor = self._cursor
        alike = cursor.offset.generation == self._first.generation
        return {
            "transport": self.transport,
            "stream": cursor.tail.name,
            "method": self._method,
            "route": self._route,
            "status": self._status,
            "events": cursor.offset.position - self._first.position if alike else None,
            "bytes": self.bytes,
            "resumed": cursor.resumes,
        }


def _route_of(scope: Scope) -> str | None:
    """As our application knows it, or the one that has us."""
    route: str | None = scope.get(ROUTE) or getattr(scope.get("route"), "path", None)
    return route
