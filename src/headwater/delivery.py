"""Delivery: one loop that follows a stream, formats it and sends it, over any ASGI server.

A reader is a cursor, one task and one future. On a wake it takes everything up to the tail, bounded, in one write: that
is the whole chunking policy. It never has a queue: while `send` waits, the reader is simply behind (G9).

How a response ends tells the truth (G8): the body ends cleanly only where the stream did, or where the format has said
in its own terms that it did not. Else the connection is cut, so that no client takes half an answer for a whole one.

Every offset that a client learns is between two characters of a text: what it got up to there, and what it gets from
there, may be decoded apart.

Knows streams and formats, and ASGI. Silence, stalled writes, expiry and rotation are looked after by one timer for all
readers (`Rounds`), not by a timer or task each. Cancellation of a response leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from headwater.cursor import Cursor
from headwater.errors import Draining, HeadwaterError, StoreError
from headwater.formats.characters import whole
from headwater.formats.format import Format
from headwater.model import Head, Page
from headwater.rounds import Rounds
from headwater.streams import Streams

_store_log = logging.getLogger("headwater.store")
"""For the server's operator: clients are told no more than that the store is away."""

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CONNECTION: Final = "headwater.connection"
"""ASGI extension offered by `headwater.server`: an object whose `cut(at_once=...)` ends the connection as it stands."""

UNFINISHED: Final = frozenset({"failed", "cancelled"})
"""Outcomes of a closed stream that must not look like the end of a whole one."""

HELD_BYTES: Final = 1024 * 1024
"""Held back of text, behind a first message, for the rest of a character; what is more is sent as it is."""

ROTATION_JITTER: Final = 0.1
"""Of the time between rotations, more or less: those who came together do not all come back together."""

LAST_WRITE_SECONDS: Final = 1.0
"""A write that is not taken for so long while the server goes away: its reader is let go, the others have been told."""

STREAMING_HEADERS: Final = (
    ("cache-control", "no-cache, no-transform"),  # no-transform: also no compression on the way, which would buffer
    ("x-accel-buffering", "no"),  # nginx and those who copied it
    ("x-content-type-options", "nosniff"),
)


class Cut(Exception):
    """Leaves the application so that the server closes the connection without the end of the body."""


@dataclass(frozen=True, slots=True)
class Policy:
    """How readers are served."""

    heartbeat_seconds: float = 15.0
    """Of silence. Under every idle limit met in the field: 30 s (load balancers) to 100 s (Cloudflare)."""
    write_seconds: float = 30.0
    """A write that has not been taken for so long: the reader is dropped and may resume. (On Linux, `headwater.server`
    has the kernel give up on one that takes nothing at all before that.)"""
    chunk_bytes: int = 64 * 1024
    """In one write: what a reader that is behind gets at a time, before the others have their turn."""
    rotate_seconds: float | None = None
    """After which a response ends, in formats whose clients come back by themselves, to be followed by the next. None:
    never; what it is good for are shared caches that collapse requests, which need them to end."""


class Delivery:
    """Serves readers of one Streams."""

    def __init__(self, streams: Streams, policy: Policy = Policy()) -> None:
        self.streams = streams
        self.policy = policy
        self.rounds = Rounds()
        self.readers = 0
        self.served = 0
        self.dropped = 0

    def __repr__(self) -> str:
        return f"<Delivery of {self.streams!r} [{self.readers} readers, {self.served} served, {self.dropped} dropped]>"

    async def respond(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        cursor: Cursor,
        format_: Format,
        headers: Iterable[tuple[str, str]] = (),
        status: int = 200,
        anchored: bool = True,
    ) -> None:
        """Send the stream from `cursor` to the client until it is over, the client is gone, or the server drains.

        `anchored`: the client that repeats its request gets all that it would have got now; not so where it asked for
        what comes from now on. Takes the cursor over and closes it.
        """
        cursor.max_bytes = self.policy.chunk_bytes
        reader = _Reader(self, cursor, format_, send, anchored)
        listening = asyncio.create_task(_listen(receive, reader), name="headwater-reader-listens")
        self.served += 1
        self._joined(reader)
        try:
            fields = [("content-type", format_.content_type), *STREAMING_HEADERS, *headers]
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
            await reader.run({"type": "http.response.start", "status": status, "headers": raw})
        except asyncio.CancelledError:
            # Our own doing, unless the server wants it too: the task is the server's, which knows nothing of it.
            task = asyncio.current_task()
            if not reader.stalled or (task is not None and task.uncancel()):
                raise
            self.dropped += 1
            self._cut(scope, at_once=True)
        except _Interrupted:
            self._cut(scope)
        except OSError:
            pass  # ASGI 2.4: the client has left while we were sending
        finally:
            self._left(reader)
            cursor.close()
            listening.cancel()
            await asyncio.wait([listening])

    def _joined(self, reader: _Reader) -> None:
        self.rounds.add(reader)
        self.readers += 1
        if self.readers == 1:
            self.streams.on_drain.append(self.rounds.again)

    def _left(self, reader: _Reader) -> None:
        self.rounds.discard(reader)
        self.readers -= 1
        if not self.readers:  # the streams may outlive this Delivery: `follow` makes one for a single response
            self.streams.on_drain.remove(self.rounds.again)

    def _cut(self, scope: Scope, *, at_once: bool = False) -> None:
        connection = (scope.get("extensions") or {}).get(CONNECTION)
        if connection is None:
            raise Cut
        connection.cut(at_once=at_once)

    def statistics(self) -> dict[str, int]:
        """Readers now, responses served so far, and those dropped for not reading."""
        return {"readers": self.readers, "served": self.served, "dropped": self.dropped}


class _Interrupted(Exception):
    """The format could not say that the stream goes on: the response must not end cleanly."""


class _Reader:
    """One response: the loop. `Rounds` calls `due` when its time has come."""

    def __init__(self, delivery: Delivery, cursor: Cursor, format_: Format, send: Send, anchored: bool) -> None:
        self._streams, self._policy = delivery.streams, delivery.policy
        self._cursor, self._format, self._send = cursor, format_, send
        self._clock = asyncio.get_running_loop().time
        self._task = asyncio.current_task()
        self._waiter: asyncio.Future[None] | None = None
        self._last_write = self._clock()
        self._writing = False
        self._anchored = anchored
        rotate = delivery.policy.rotate_seconds if format_.ends_openly else None
        jitter = random.uniform(1 - ROTATION_JITTER, 1 + ROTATION_JITTER)  # noqa: S311 -- no secret
        self._rotate_at = math.inf if rotate is None else self._clock() + rotate * jitter
        self.gone = False
        """The client has closed the connection."""
        self.stalled = False
        """A write was not taken in time, and the task is cancelled for it."""

    async def run(self, start: MutableMapping[str, Any]) -> None:
        await self._sent(start)
        await self._write(self._format.opening)
        try:
            await self._pages()
        except HeadwaterError as error:
            await self._interrupt(error)

    async def _pages(self) -> None:
        tail, begun = self._cursor.tail, False
        while not self.gone:
            wakes = tail.wakes
            page = await self._take()
            if page is None and not begun:  # who begins at the tail is told so, in formats that have a word for it
                page = self._standing(up_to_date=True)
            begun = True
            if page is not None:
                data = self._rendered(page)
                await self._write(data)
                if not (data or page.up_to_date):
                    await asyncio.sleep(0)  # a format may say nothing for many pages: the others have their turn
                self._anchored = self._anchored or bool(page.messages)
                if page.closed and page.outcome in UNFINISHED and not self._format.tells_failure:
                    raise _Interrupted
                if page.closed:
                    await self._finish(self._format.ending(page))
                    return
                if self._format.pauses(page):
                    await self._finish(b"")
                    return
            # Only now: a stream that was closed because the server goes away has told its own end.
            if self._streams.draining:
                raise Draining("the server is going away; connect again")
            if self._clock() >= self._rotate_at and self._anchored and not self.gone:
                standing = self._standing(up_to_date=page is None or page.up_to_date)
                await self._finish(self._format.rotation(standing, self._streams.clock(), random.random()))  # noqa: S311
                return
            if page is None and tail.wakes == wakes and not self.gone:
                await self._wait()

    def _standing(self, *, up_to_date: bool) -> Page:
        return Page([], self._cursor.offset, self._cursor.offset, up_to_date, closed=False)

    async def _take(self) -> Page | None:
        """The next page. Where the format needs it, messages at its end wait for the rest of a character; what never
        gets one is sent when the stream is closed, or when it is too much to wait for."""
        cursor, start = self._cursor, self._cursor.offset
        page = await cursor.take()
        while page is not None and self._format.in_characters and not page.closed:
            shown = whole(page.messages)
            if shown == len(page.messages) > 0:
                return page
            if shown:
                cursor.offset = page.messages[shown - 1].offset
                return page._replace(messages=page.messages[:shown], next=cursor.offset)
            if sum(len(message.data) for message in page.messages[1:]) > HELD_BYTES:
                return page
            more = None if page.up_to_date else await cursor.take()
            if more is None:  # looked at again at the next wake
                cursor.offset = start
                return None
            page = more._replace(messages=[*page.messages, *more.messages], start=start)
        return page

    def _rendered(self, page: Page) -> bytes:
        if not page.up_to_date or self._format.key is None:
            return self._format.render(page)
        # Everybody who keeps up asks for the same page: it is rendered once.
        key = self._format.key, page.start, page.next, page.closed
        return self._cursor.tail.rendered(key, lambda: self._format.render(page))

    async def _write(self, data: bytes) -> None:
        if data:
            await self._sent({"type": "http.response.body", "body": data, "more_body": True})

    async def _finish(self, data: bytes) -> None:
        await self._sent({"type": "http.response.body", "body": data, "more_body": False})

    async def _sent(self, event: MutableMapping[str, Any]) -> None:
        self._writing, self._last_write = True, self._clock()
        await self._send(event)
        self._writing, self._last_write = False, self._clock()

    async def _interrupt(self, error: HeadwaterError) -> None:
        if isinstance(error, StoreError) and self._streams.is_open:
            _store_log.error("a request failed: %s", error)
        for tell in self._streams.on_interruption:
            tell(error)
        said = self._format.interruption(error)
        if self._format.ends_openly:
            await self._finish(said)
            return
        await self._write(said)
        raise _Interrupted

    async def _wait(self) -> None:
        """Until the tail, the client, the drain or the round says something."""
        tail = self._cursor.tail
        self._waiter = tail.waiter()
        try:
            await self._waiter
        finally:
            tail.discard(self._waiter)
            self._waiter = None
        silent = self._clock() - self._last_write
        if silent >= self._policy.heartbeat_seconds and self._format.heartbeat and not self.gone:
            await self._write(self._format.heartbeat)

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # -- rounds -----------------------------------------------------------------------------------------------------

    def due(self) -> float:
        """When somebody should look after this reader next, on the loop's clock."""
        if self._writing:
            patience = self._policy.write_seconds
            given_up = self._last_write + (min(patience, LAST_WRITE_SECONDS) if self._streams.draining else patience)
            # Looked at before that, too: when the write is taken, a silence begins.
            return min(given_up, self._clock() + self._policy.heartbeat_seconds)
        head = self._cursor.tail.head
        end = head.expiry() if isinstance(head, Head) else None
        left = math.inf if end is None else (end - self._streams.clock()) / 1000
        rotate_at = self._rotate_at if self._anchored else math.inf
        return min(self._last_write + self._policy.heartbeat_seconds, self._clock() + left, rotate_at)

    def look_after(self) -> None:
        """Its time has come: for a heartbeat, for the stream to expire, or for a stalled write to be given up."""
        if not self._writing:
            self.wake()
        elif self._task is not None and not self.stalled:
            self.stalled = True
            self._task.cancel()


async def _listen(receive: Receive, reader: _Reader) -> None:
    """ASGI tells of a client that left only to those who ask."""
    while (await receive())["type"] != "http.disconnect":
        pass
    reader.gone = True
    reader.wake()
