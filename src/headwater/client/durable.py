"""DurablePages: any Durable Streams server, followed page by page: catch-up first, then `live=sse` or long-poll. Pure.

Section numbers are the protocol's. A page counts once it is whole: a body that has all its bytes, or `data` events with
the `control` event that ends them. So a cut loses nothing, and nothing comes twice.

SSE is one connection for many pages, but text does not survive it byte for byte (line ends become LF, a character that
is split over two appends is broken), and a proxy may hold it back. So, where it is left to this way, text is followed
by long-poll, and so is everything else once three SSE connections in a row did not live.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final, Literal

import httpx

from headwater.client.answers import Unreachable
from headwater.client.pages import START, Page, check_end, control, from_base64, is_events, messages_of, page
from headwater.client.way import LARGEST_EVENT, Event, Wanted
from headwater.errors import HeadwaterError, TooLarge
from headwater.wire import sse

Live = Literal["sse", "long-poll"]

LARGEST_PAGE: Final = 256 * 1024 * 1024
"""Bytes: the reference server answers a catch-up with the whole stream, however long."""

SHORT_LIVED: Final = 1.0
"""Seconds. An SSE connection that ends sooner was no connection …"""
MOST_SHORT_LIVED: Final = 3
"""… and after so many in a row it is time for long-poll: something between here and the server holds SSE back."""

AT_ONCE: Final = 0.1
"""Seconds. A long-poll that says "nothing new" sooner did not wait; to ask again at once would be a storm."""

LONG_POLL_SILENCE: Final = 2.0
"""Says nothing until its time is up; how long that is, only the server knows."""


class DurablePages:
    """A Way: that of any Durable Streams server. `live`: how, once caught up; None: as the content type has it."""

    def __init__(self, url: httpx.URL, offset: str | None, headers: dict[str, str], live: Live | None) -> None:
        start = offset or START
        self.offset: str | None = start
        self.outcome: str | None = None
        self.over = False
        self.interrupted: HeadwaterError | None = None
        self._headers = {name: value for name, value in headers.items() if name != "accept"}
        own = ("offset", "live", "format", "cursor")
        self._params = [(key, value) for key, value in url.params.multi_items() if key not in own]
        self._url, self._given = url, live
        self._at = start
        """Where to ask next: after all that has arrived, taken or not."""
        self._live: Live | None = None
        """How it is being followed; None: still catching up."""
        self._cursor: str | None = None
        self._content_type = ""
        self._short_lived = 0
        self._head: Mapping[str, str] = {}
        self._body = bytearray()
        self._decoder: sse.Decoder | None = None
        self._held: list[bytes] = []  # messages of `data` events whose control has not come
        self._held_bytes = 0
        self._base64 = False
        self._arrived: deque[Event | Page] = deque()

    @property
    def asked(self) -> float:
        return ((self._decoder and self._decoder.retry) or 0) / 1000

    def request(self) -> Wanted:
        params = [*self._params, ("offset", self._at)]
        if self._live is not None:
            params += [("live", self._live)] + ([("cursor", self._cursor)] if self._cursor else [])
        # Sorted, so that clients of one cache ask in the same words (10).
        url = self._url.copy_with(params=sorted(params))
        accept = {"accept": "text/event-stream" if self._live == "sse" else "*/*"}
        return Wanted(url, self._headers | accept, LONG_POLL_SILENCE if self._live == "long-poll" else 1.0)

    # -- what comes ---------------------------------------------------------------------------------------------------

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self._head, self._decoder = headers, None
        self._body.clear()
        self._held, self._held_bytes = [], 0
        if self._live == "sse" and status == 200 and is_events(headers):
            self._decoder = sse.Decoder(max_event_bytes=LARGEST_EVENT)
            self._base64 = headers.get("stream-sse-data-encoding") == "base64"
        elif status == 200:
            check_end(headers)

    def feed(self, chunk: bytes) -> None:
        if self._decoder is None:
            self._body += chunk
            if len(self._body) > LARGEST_PAGE:
                raise TooLarge(f"the server sent a page of more than {LARGEST_PAGE:,} bytes")
            return
        try:
            events = self._decoder.feed(chunk)
        except ValueError as error:
            raise TooLarge(str(error)) from error
        for event in events:
            self._heard(event)

    def _heard(self, event: sse.Event) -> None:
        if event.event == "data":
            data = from_base64(event.data) if self._base64 else event.data.encode()
            self._held_bytes += len(data)
            if self._held_bytes > LARGEST_PAGE:
                raise TooLarge(f"the server sent more than {LARGEST_PAGE:,} bytes without an offset")
            self._held += messages_of(self._content_type, data)
        elif event.event == "control":
            said = control(event.data)
            self._cursor = said.stream_cursor or self._cursor
            held, self._held, self._held_bytes = self._held, [], 0
            self._arrive(Page(held, said.stream_next_offset, said.up_to_date, said.stream_closed))

    def _arrive(self, arrived: Page) -> None:
        before, self._at = self._at, arrived.offset
        messages = [data for data in arrived.messages if data]
        self._arrived.extend(Event(data, before) for data in messages[:-1])
        self._arrived.extend(Event(data, arrived.offset) for data in messages[-1:])
        self._arrived.append(arrived)

    def take(self) -> Event | None:
        while self._arrived:
            event = self._arrived.popleft()
            self.offset = event.offset
            if isinstance(event, Event):
                return event
            if event.closed:
                self.over, self.outcome = True, event.outcome
        return None

    # -- how an answer ends -------------------------------------------------------------------------------------------

    def ended(self, waited: float, lived: float, *, cut: bool) -> HeadwaterError | None:
        if self._live == "sse" and (self._decoder is not None or cut):
            return self._connection_ended(lived, cut=cut)
        if cut:
            return Unreachable("the connection was lost")
        return self._page_ended(waited)

    def _connection_ended(self, lived: float, *, cut: bool) -> HeadwaterError | None:
        """Of SSE: servers end it from time to time, so that caches can share it (5.8)."""
        self._short_lived = self._short_lived + 1 if lived < SHORT_LIVED else 0
        if self._short_lived >= MOST_SHORT_LIVED:
            self._live = "long-poll"
        if lived >= SHORT_LIVED and not cut:
            return None
        return Unreachable("the server ended the connection, but the stream goes on")

    def _page_ended(self, waited: float) -> HeadwaterError | None:
        arrived, was = page(self._head, bytes(self._body)), self._at
        self._body.clear()
        self._content_type = self._head.get("content-type") or self._content_type
        self._cursor = self._head.get("stream-cursor", self._cursor)
        self._arrive(arrived)
        news = bool(arrived.messages) or arrived.closed or arrived.offset != was
        if self._live is None and (arrived.up_to_date or not news):
            self._live = self._given or self._fitting()
        elif self._live == "sse":  # a server that knows no SSE answers as if it had not been asked for it
            self._live = "long-poll"
        elif not news and waited < AT_ONCE:
            return Unreachable("the server answered at once that there is nothing new, instead of waiting")
        return None

    def _fitting(self) -> Live:
        return "long-poll" if self._content_type.lower().startswith("text/") else "sse"
