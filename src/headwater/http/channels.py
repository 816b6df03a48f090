"""The streams that one socket follows, and whose turn it is.

A channel is a cursor with credit. It is looked at when its stream wakes, or when it is given credit, and then takes its
turn behind the others: one page at a time, so that a long backlog keeps nobody waiting for longer than a page.

Knows cursors; nothing of frames or sockets. Invariants: a channel is in the row at most once; without credit no message
is read for it, and what it takes exceeds its credit by less than one message; its tail is left when it goes (G9).
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack

from headwater.cursor import Cursor
from headwater.errors import Conflict, TooManyRequests
from headwater.model import Head, Page
from headwater.streams import Streams
from headwater.visits import Visit
from headwater.wire.multiplex import LARGEST_INTEGER, size


class ChannelInUse(Conflict):
    code = "channel_in_use"


class TooManyChannels(TooManyRequests):
    """Detail: `most`."""

    code = "too_many_channels"


class Channel:
    """One followed stream."""

    def __init__(self, streams: Streams, number: int, stream: str, credit: int) -> None:
        self._streams = streams
        self.id, self.stream, self.credit = number, stream, credit
        """`credit`: bytes that the client still takes; below zero after a message that was larger."""
        self.content_type = ""
        self.cursor: Cursor | None = None
        self.visit: Visit | None = None
        self.place = ExitStack()
        """What is given back when the channel goes, beside its cursor."""
        self.begun = False
        self.gone = False
        self.in_row = False
        self.waiter: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        return f"<Channel {self.id} of {self.stream!r} [credit {self.credit}]>"

    @property
    def offset(self) -> str:
        return "" if self.cursor is None else str(self.cursor.offset)

    @property
    def wakes(self) -> int:
        """How often its stream has been heard of."""
        return 0 if self.cursor is None else self.cursor.tail.wakes

    async def take(self, most: int) -> Page | None:
        """The next page of at most `most` bytes; None where there is nothing to come yet, or no credit for it.

        The end, and that the stream is gone, need no credit: they are seen in the head alone. Raises like a cursor.
        """
        assert self.cursor is not None
        if self.credit <= 0 and not await self._over(self.cursor):
            return None
        self.cursor.max_bytes = max(1, min(most, self.credit))
        page = await self.cursor.take()
        if page is not None:
            self.credit -= size(page)
        return page

    async def _over(self, cursor: Cursor) -> bool:
        head = cursor.tail.head
        if not isinstance(head, Head) or head.expired(self._streams.clock()):
            head = await self._streams.head(self.stream)
        # Of another generation: the cursor will say so, and read nothing.
        return head.generation != cursor.offset.generation or (head.closed and head.offset == cursor.offset)

    def expiry(self) -> int | None:
        """When the stream ceases to be, in ms, as far as is known here."""
        head = None if self.cursor is None else self.cursor.tail.head
        return head.expiry() if isinstance(head, Head) else None


class Channels:
    """All channels of one socket."""

    def __init__(self, streams: Streams, most: int, wake: Callable[[], None]) -> None:
        """`wake` is called when somebody stands in the row."""
        self._streams, self._most, self._wake = streams, most, wake
        self._by_id: dict[int, Channel] = {}
        self._row: deque[Channel] = deque()

    def __repr__(self) -> str:
        return f"<Channels [{len(self._by_id)}, {len(self._row)} of them in the row]>"

    def __len__(self) -> int:
        return len(self._by_id)

    def get(self, number: int) -> Channel | None:
        return self._by_id.get(number)

    def add(self, number: int, stream: str, credit: int) -> Channel:
        """A channel that is to begin. Raises ChannelInUse, TooManyChannels."""
        if number in self._by_id:
            raise ChannelInUse("this channel follows a stream; choose another id, or unfollow first")
        if len(self._by_id) >= self._most:
            raise TooManyChannels(f"a socket follows {self._most} streams at most; open another", most=self._most)
        channel = self._by_id[number] = Channel(self._streams, number, stream, credit)
        return channel

    def begin(self, channel: Channel, content_type: str) -> None:
        """Its cursor is there: from now on it takes its turns."""
        channel.begun, channel.content_type = True, content_type
        if channel.cursor is not None and not channel.gone:
            channel.visit = Visit(self._streams, channel.cursor, "websocket", level=logging.DEBUG)
        self.line_up(channel)

    def drop(self, channel: Channel, why: str = "left") -> bool:
        """Leave its stream; the id is free again. False: it was so already."""
        if channel.gone:
            return False
        channel.gone = True
        if channel.visit is not None:
            channel.visit.over(why)
        channel.place.close()
        del self._by_id[channel.id]
        if channel.cursor is not None:
            self._stop_waiting(channel)
            channel.cursor.close()
        return True

    def drop_all(self) -> None:
        for channel in list(self._by_id.values()):
            self.drop(channel)

    def grant(self, number: int, credit: int) -> None:
        """More credit. For an id that is not in use it is nothing: it may have crossed the channel's end."""
        channel = self._by_id.get(number)
        if channel is not None:
            channel.credit = min(channel.credit + credit, LARGEST_INTEGER)
            self.line_up(channel)

    def line_up(self, channel: Channel) -> None:
        """To be looked at, behind those that are in the row already."""
        self._stop_waiting(channel)
        if channel.begun and not channel.in_row and not channel.gone:
            channel.in_row = True
            self._row.append(channel)
            self._wake()

    def next(self) -> Channel | None:
        """Whose turn it is."""
        while self._row:
            channel = self._row.popleft()
            channel.in_row = False
            if not channel.gone:
                return channel
        return None

    def wait(self, channel: Channel, wakes: int) -> None:
        """It found nothing: in the row again after the next wake, at once where there was one since `wakes`."""
        assert channel.cursor is not None
        tail = channel.cursor.tail
        if channel.gone or channel.in_row:
            return
        if tail.wakes != wakes:
            self.line_up(channel)
        else:
            channel.waiter = tail.waiter()
            channel.waiter.add_done_callback(lambda _: self.line_up(channel))

    def _stop_waiting(self, channel: Channel) -> None:
        if channel.waiter is not None and channel.cursor is not None:
            channel.cursor.tail.discard(channel.waiter)
            channel.waiter = None

    # -- streams that end by the clock --------------------------------------------------------------------------------

    def expiry(self) -> int | None:
        """When the first of the streams ceases to be, in ms."""
        ends = [end for channel in self._by_id.values() if (end := channel.expiry()) is not None]
        return min(ends, default=None)

    def look_at_expired(self) -> None:
        now = self._streams.clock()
        for channel in self._by_id.values():
            end = channel.expiry()
            if end is not None and end <= now:
                self.line_up(channel)
