"""PlainEvents: plain SSE (`format=sse`), in which each message's `id` is the offset after it. Pure.

The stream is over when the server says so: `event: end`, 204, or (a run, whose last message is its end) the end of the
body after RUN_FINISHED or RUN_ERROR. A connection that ends in any other way was lost, and is resumed with
`Last-Event-ID`. Only complete events count, so a cut in the middle of one is no cut at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import httpx

from headwater.client.answers import Unreachable, error_from
from headwater.client.pages import field, from_base64, is_events
from headwater.client.way import LARGEST_EVENT, Event, Wanted
from headwater.errors import HeadwaterError, NotAcceptable, TooLarge
from headwater.wire import sse


class PlainEvents:
    """A Way: a Headwater server's own."""

    def __init__(self, url: httpx.URL, offset: str | None, headers: dict[str, str]) -> None:
        self.offset, self.over = offset, False
        self.outcome: str | None = None
        self.interrupted: HeadwaterError | None = None
        self._headers = headers
        self._first = url if offset is None else url.copy_set_param("offset", offset)
        self._again = url.copy_remove_param("offset")
        self._last_id: str | None = None
        self._decoder = sse.Decoder()
        self._arrived: deque[sse.Event] = deque()
        self._base64 = self._is_run = self._terminal_seen = False

    @property
    def asked(self) -> float:
        return (self._decoder.retry or 0) / 1000

    def request(self) -> Wanted:
        if self._last_id is None:
            return Wanted(self._first, self._headers)
        return Wanted(self._again, {**self._headers, "last-event-id": self._last_id})

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        if status == 204:
            self.over, self.outcome = True, headers.get("stream-outcome", self.outcome)
            return
        if not is_events(headers):
            raise NotAcceptable("there is no stream of events at this address")
        self._decoder = sse.Decoder(max_event_bytes=LARGEST_EVENT)
        self._is_run = "x-run-id" in headers
        self._base64 = headers.get("stream-sse-data-encoding") == "base64"
        # Where the server began to read: a connection lost before the first message resumes there too, not at
        # another `now`, nor in another stream of this name.
        if self._last_id is None and "stream-next-offset" in headers:
            self.offset = self._last_id = headers["stream-next-offset"]

    def feed(self, chunk: bytes) -> None:
        try:
            self._arrived.extend(self._decoder.feed(chunk))
        except ValueError as error:
            raise TooLarge(str(error)) from error

    def take(self) -> Event | None:
        while self._arrived:
            event = self._taken(self._arrived.popleft())
            if event is not None:
                return event
        return None

    def ended(self, waited: float, lived: float, *, cut: bool) -> HeadwaterError | None:
        self.over = self._terminal_seen
        return None if self.over else Unreachable("the server ended the connection, but the stream goes on")

    def _taken(self, event: sse.Event) -> Event | None:
        """The message that an event is, or None for the server's own words, which are acted upon.

        A message moves the id on; the server's own events carry the id of the last message, or none. So a message
        that happens to be called `end` is still a message.
        """
        if event.event == "end" and event.id in ("", self.offset or event.id):
            self.outcome, self.over = field(event.data, "outcome"), True
            self._arrived.clear()
            return None
        if event.event == "interrupted" and event.id in ("", self.offset):
            self._interrupt(event.data)
            return None
        self.offset = self._last_id = event.id
        data = event.data.encode()
        if self._is_run:
            self._terminal_seen = self._ends_run(data)
        return Event(from_base64(event.data) if self._base64 else data, event.id, event.event)

    def _interrupt(self, data: str) -> None:
        error = error_from(field(data, "code"), field(data, "message"))
        if field(data, "retry") is not True:
            raise error
        self.interrupted = error

    def _ends_run(self, data: bytes) -> bool:
        """Whether a run's event is its last (AG-UI: RUN_FINISHED or RUN_ERROR), and what it says of the outcome."""
        if b'"RUN_FINISHED"' not in data and b'"RUN_ERROR"' not in data:
            return False
        kind = field(data, "type")
        if kind == "RUN_ERROR":
            self.outcome = "failed"
        elif kind == "RUN_FINISHED":
            said = field(data, "outcome")
            cancelled = isinstance(said, dict) and said.get("type") == "cancelled"
            self.outcome = "cancelled" if cancelled else "completed"
        return kind in ("RUN_ERROR", "RUN_FINISHED")
