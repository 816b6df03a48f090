"""Delivery: one loop that follows a stream, formats it and sends it, over any ASGI server.

A reader is a cursor, one task and one future. On a wake it takes everything up to the tail, bounded, in one write: that
is the whole chunking policy. It never has a queue: while `send` waits, the reader is simply behind (G9).

How a response ends tells the truth (G8): the body ends cleanly only where the stream did, or where the format has said
in its own terms that it did not. Else the connection is cut, so that no client takes half an answer for a whole one.

Knows streams and formats, and ASGI. Silence, stalled writes and expiry are looked after by one timer for all readers
(`Rounds`), not by a timer or task each. Cancellation of a response leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

from headwater.cursor import Cursor
from headwater.errors import Draining, HeadwaterError
from headwater.formats.format import Format
from headwater.model import Page
from headwater.rounds import Rounds
from headwater.streams import Streams

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CONNECTION: Final = "headwater.connection"
"""ASGI extension offered by `headwater.server`: an object with `cut(at_once=...)`, which ends the connection as it stands."""

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
    """A write that has not been taken for so long: the reader is dropped and may resume. Needs no more memory."""
    chunk_bytes: int = 64 * 1024
    """In one write: what a reader that is behind gets at a time, before the others have their turn."""


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
    ) -> None:
        """Send the stream from `cursor` to the client until it is over, the client is gone, or the server drains.

        Takes the cursor over and closes it.
        """
        cursor.max_bytes = self.policy.chunk_bytes
        reader = _Reader(self, cursor, format_, send)
        listening = asyncio.create_task(_listen(receive, reader), name="headwater-reader-listens")
        self.readers += 1
        self.served += 1
        self.rounds.add(reader)
        try:
            fields = [("content-type", format_.content_type), *STREAMING_HEADERS, *headers]
            raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
            await send({"type": "http.response.start", "status": status, "headers": raw})
            await reader.run()
        except asyncio.CancelledError:
            if not reader.stalled:
                raise
            # Our own doing: the task is the server's, which knows nothing of it.
            task = asyncio.current_task()
            if task is not None:
                task.uncancel()
            self.dropped += 1
            self._cut(scope, at_once=True)
        except _Interrupted:
            self._cut(scope)
        except OSError:
            pass  # ASGI 2.4: the client has left while we were sending
        finally:
            self.rounds.discard(reader)
            self.readers -= 1
            cursor.close()
            listening.cancel()
            with suppress(asyncio.CancelledError):
                await listening

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

    def __init__(self, delivery: Delivery, cursor: Cursor, format_: Format, send: Send) -> None:
        self._streams, self._policy = delivery.streams, delivery.policy
        self._cursor, self._format, self._send = cursor, format_, send
        self._clock = asyncio.get_running_loop().time
        self._task = asyncio.current_task()
        self._waiter: asyncio.Future[None] | None = None
        self._last_write = self._clock()
        self._writing = False
        self.gone = False
        """The client has closed the connection."""
        self.stalled = False
        """A write was not taken in time, and the task is cancelled for it."""

    async def run(self) -> None:
        if self._format.opening:
            await self._write(self._format.opening)
        try:
            await self._pages()
        except HeadwaterError as error:
            await self._interrupt(error)

    async def _pages(self) -> None:
        cursor, tail = self._cursor, self._cursor.tail
        while not self.gone:
            if self._streams.draining:
                raise Draining("the server is going away; connect again")
            wakes = tail.wakes
            page = await cursor.take()
            if page is not None:
                await self._write(self._rendered(page))
                if page.closed and page.outcome == "failed" and not self._format.tells_failure:
                    raise _Interrupted
                if page.closed:
                    await self._finish(self._format.ending(page))
                    return
            elif tail.wakes == wakes:
                await self._wait()

    def _rendered(self, page: Page) -> bytes:
        if not page.up_to_date:
            return self._format.render(page)
        # Everybody who keeps up asks for the same page: it is rendered once.
        key = self._format.key, page.start, page.next, page.closed
        return self._cursor.tail.rendered(key, lambda: self._format.render(page))

    async def _write(self, data: bytes) -> None:
        if not data:
            return
        self._writing, self._last_write = True, self._clock()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})
        self._writing, self._last_write = False, self._clock()

    async def _finish(self, data: bytes) -> None:
        self._writing, self._last_write = True, self._clock()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _interrupt(self, error: HeadwaterError) -> None:
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
        seconds = self._policy.write_seconds if self._writing else self._policy.heartbeat_seconds
        return self._last_write + seconds

    def look_after(self) -> None:
        """Its time has come, unless it has moved on meanwhile: a heartbeat, or the end of a stalled write."""
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
