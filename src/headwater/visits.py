"""A visit: one reader's stay with one stream, from its coming to its end, for metrics and the log.

Knows cursors and counts; nothing of connections. Invariant: whoever came has left exactly once, with a reason.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from headwater.cursor import Cursor
from headwater.journal import note
from headwater.model import Head, Page
from headwater.outlet import Scope
from headwater.streams import Streams

_log = logging.getLogger("headwater.readers")

ROUTE = "headwater.route"
"""Key of the scope: the path of the request with its names left out, as the application knows it."""


class Visit:
    """One reader of one stream. `ended` is its reason: what it is when the visit is `over`."""

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
        """`level`: at which its end is logged."""
        self._streams, self._cursor, self._scope = streams, cursor, scope
        self._status, self._level = status, level
        self.transport = transport
        self._began = asyncio.get_running_loop().time()
        self._first = cursor.offset
        head = cursor.tail.head
        behind = max(0, head.tail - cursor.offset.position) if isinstance(head, Head) else 0
        self._keeps_up = not behind
        self.bytes = 0
        self.ended = ""
        self._is_over = False
        streams.reads.came(cursor, transport, behind)

    def __repr__(self) -> str:
        return f"<Visit of {self._cursor!r} by {self.transport}{f' [{self.ended}]' if self.ended else ''}>"

    def wrote(self, page: Page, size: int) -> None:
        """A page was written, `size` bytes of it."""
        self.bytes += size
        if page.messages:
            seconds = (self._streams.clock() - page.messages[0].time) / 1000 if self._keeps_up else None
            self._streams.reads.wrote(self.transport, len(page.messages), size, seconds)
        self._keeps_up = page.up_to_date

    def over(self, reason: str) -> None:
        """It is; the first time counts. `reason`, unless one was known before."""
        if self._is_over:
            return
        self._is_over, self.ended = True, self.ended or reason
        seconds = asyncio.get_running_loop().time() - self._began
        self._streams.reads.left(self._cursor, self.ended, seconds)
        note(_log, self._level, "reader ended", **self._facts(), reason=self.ended, seconds=seconds)

    def _facts(self) -> dict[str, Any]:
        cursor, scope = self._cursor, self._scope or {}
        alike = cursor.offset.generation == self._first.generation
        return {
            "transport": self.transport,
            "stream": cursor.tail.name,
            "method": scope.get("method"),
            "route": scope.get(ROUTE) or getattr(scope.get("route"), "path", None),
            "status": self._status,
            "events": cursor.offset.position - self._first.position if alike else None,
            "bytes": self.bytes,
            "resumed": cursor.resumes,
        }
