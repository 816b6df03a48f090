"""One reader of one response: the loop that follows a stream, formats it and sends it.

On a wake it takes everything up to the tail, bounded, in one write: that is the whole chunking policy. It never has a
queue: while a write is not taken, the reader is simply behind (G9). At the tail it waits: in a task, or, where the
connection is its own (`headwater.outlet`), without one, in the fan of its tail.

How a response ends tells the truth (G8): the body ends cleanly only where the stream did, or where the format has said
in its own terms that it did not. Else the connection is cut, so that no client takes half an answer for a whole one.

Knows cursors, formats and outlets. Cancellation of its task leaves nothing behind.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Final, NamedTuple

from headwater.cursor import Cursor
from headwater.errors import Draining, HeadwaterError, StoreError
from headwater.fans import Fan, Fans, Frame, Frames, Seat
from headwater.formats.characters import whole
from headwater.formats.format import Format
from headwater.hub import Tail
from headwater.joining import Joining
from headwater.model import Head, Offset, Page
from headwater.outlet import Line, Outlet, framed, pieces
from headwater.policy import Policy
from headwater.slow import Keeping
from headwater.streams import Streams
from headwater.visits import Visit

_store_log = logging.getLogger("headwater.store")
"""For the server's operator: clients are told no more than that the store is away."""

UNFINISHED: Final = frozenset({"failed", "cancelled"})
"""Outcomes of a closed stream that must not look like the end of a whole one."""

ROTATION_JITTER: Final = 0.1
"""Of the time between rotations, more or less: those who came together do not all come back together."""

LAST_WRITE_SECONDS: Final = 1.0
"""A write that is not taken for so long while the server goes away: its reader is let go, the others have been told."""


class Stay(NamedTuple):
    """What is counted of a reader, how small messages share its writes, and how it keeps up."""

    visit: Visit
    joining: Joining | None
    keeping: Keeping


class Standing(NamedTuple):
    """Where a reader stands, for who looks after the server."""

    stream: str
    offset: Offset
    """It was given everything up to here."""
    format: Format
    silent_seconds: float
    """Since the last write."""
    is_full: bool
    """The last write has not been taken yet."""


class _Interrupted(Exception):
    """The format could not say that the stream goes on: the response must not end cleanly."""


class Reader:
    """One response. `Rounds` calls `due` and `look_after`, a fan calls `pull`, a line `resume` and `lost`."""

    def __init__(
        self,
        streams: Streams,
        policy: Policy,
        fans: Fans,
        cursor: Cursor,
        format_: Format,
        outlet: Outlet,
        *,
        anchored: bool,
        stay: Stay,
        on_over: Callable[[Reader], None],
    ) -> None:
        """`on_over` is called once, when the response is over, whichever way."""
        self._streams, self._policy, self._fans = streams, policy, fans
        self._cursor, self._format, self._outlet = cursor, format_, outlet
        self.visit, self._joining, self._keeping = stay
        self._on_over = on_over
        self._clock = asyncio.get_running_loop().time
        self._task: asyncio.Task[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._line: Line | None = None
        self._fan: Fan | None = None
        self._seat = Seat(cursor, self._clock())
        self._key: Hashable = None
        self._writing = False
        self._anchored, self._begun = anchored, False
        rotate = policy.rotate_seconds if format_.ends_openly else None
        jitter = random.uniform(1 - ROTATION_JITTER, 1 + ROTATION_JITTER)  # noqa: S311 -- no secret
        self._rotate_at = math.inf if rotate is None else self._clock() + rotate * jitter
        self.gone = False
        """The client has closed the connection."""
        self.stalled = False
        """A write was not taken in time, and the reader is dropped for it."""

    def __repr__(self) -> str:
        return f"<Reader of {self._cursor!r} in {self._format!r}{' [waits in a fan]' if self.is_parked else ''}>"

    @property
    def standing(self) -> Standing:
        """Where it stands now."""
        silent = self._clock() - self._seat.written_at
        return Standing(self._cursor.tail.name, self._cursor.offset, self._format, silent, self._waits_for_client)

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        """Send the head of the response, and go on until it is over, or waits in a fan. Raises Cut."""
        self._task = asyncio.current_task()
        await self._run(lambda: self._opened(status, headers))

    async def _opened(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._taken(self._outlet.start(status, headers))
        await self._write(self._format.opening)
        await self._pages()

    async def _run(self, go_on: Callable[[], Coroutine[Any, Any, None]]) -> None:
        try:
            try:
                await go_on()
            except HeadwaterError as error:
                await self._interrupt(error)
        except asyncio.CancelledError:
            # Our own doing, unless the server wants it too: the task is the server's, which knows nothing of it.
            task = asyncio.current_task()
            if not self.stalled or (task is not None and task.uncancel()):
                raise
            self._outlet.cut(at_once=True)
        except _Interrupted:
            self._outlet.cut()
        except OSError:
            pass  # ASGI 2.4: the client has left while we were sending
        except Exception as error:
            if not self._outlet.direct:
                raise
            self._outlet.cut()  # no server minds this task
            asyncio.get_running_loop().call_exception_handler({"message": "a reader failed", "exception": error})
        finally:
            if not self.is_parked:
                self._over()

    def _over(self) -> None:
        self._cursor.close()
        self._on_over(self)
        if self._line is not None:
            self._line.over()

    def drop(self) -> None:
        """Be done with it: its server does not wait any more."""
        self._outlet.cut(at_once=True)
        self.lost()

    async def _pages(self) -> None:
        tail = self._cursor.tail
        while not self.gone:
            if self._line is not None and self._line.is_full and self._park():
                return  # without a task, and without what it has just sent
            if self._holds():
                await self._hold()
                continue
            wakes = tail.wakes
            page = await self._next()
            if page is None or page.up_to_date:
                self._keeping.up(tail)
            elif (skip := self._keeping.judge(tail, page, self._format, self._streams.clock())) is not None:
                self._cursor.offset = skip.to
                await self._write(skip.said)
                continue
            if page is not None and await self._send(page):
                return
            # Only now: a stream that was closed because the server goes away has told its own end.
            if self._streams.draining:
                raise Draining("the server is going away; connect again")
            if await self._rotated(up_to_date=page is None or page.up_to_date):
                return
            if page is None and self._is_silent() and not self.gone:
                self._streams.reads.heartbeats += 1
                await self._write(self._format.heartbeat)
            if (page is None or page.up_to_date) and tail.wakes == wakes and not self.gone:
                if self._park():
                    return
                await self._wait()

    async def _next(self) -> Page | None:
        page = await self._cursor.take(whole_characters=self._format.in_characters)
        begun, self._begun = self._begun, True
        # Who begins at the tail is told so, where a format has a word for it.
        return _nothing_at(self._cursor.offset, up_to_date=True) if page is None and not begun else page

    async def _send(self, page: Page) -> bool:
        """True: the response is over with it."""
        if not page.up_to_date and self._line is None:
            self._line = self._outlet.take(self)
        data = _rendered(self._format, self._cursor.tail, page)
        await self._write(data)
        self.visit.wrote(page, len(data))
        if self._joining is not None and page.messages and page.up_to_date:
            self._joining.wrote(self._cursor.tail, self._seat.written_at)
        if not page.up_to_date:
            await asyncio.sleep(0)  # the others have their turn; who has left is found out
        self._anchored = self._anchored or bool(page.messages)
        self.visit.ended = "ended" if page.closed else "paused" if self._format.pauses(page) else ""
        if page.closed and page.outcome in UNFINISHED and not self._format.tells_failure:
            raise _Interrupted
        if self.visit.ended:
            await self._finish(self._format.ending(page) if page.closed else b"")
        return bool(self.visit.ended)

    async def _rotated(self, *, up_to_date: bool) -> bool:
        """It is time for another response."""
        if self._clock() < self._rotate_at or not self._anchored or self.gone:
            return False
        self.visit.ended = "rotated"
        standing = _nothing_at(self._cursor.offset, up_to_date=up_to_date)
        await self._finish(self._format.rotation(standing, self._streams.clock(), random.random()))  # noqa: S311
        return True

    async def _write(self, data: bytes) -> None:
        if not data or self.gone:
            return
        if self._line is None:
            await self._taken(self._outlet.write(data))
        else:  # what is not taken is waited for in the fan
            self._seat.written_at = self._clock()
            for piece in pieces(framed(data)):
                self._line.write(piece)

    async def _finish(self, data: bytes) -> None:
        if not self.gone:
            await self._taken(self._outlet.finish(data))

    async def _taken(self, write: Coroutine[Any, Any, None]) -> None:
        self._writing, self._seat.written_at = True, self._clock()
        await write
        self._writing, self._seat.written_at = False, self._clock()

    async def _interrupt(self, error: HeadwaterError) -> None:
        if isinstance(error, StoreError) and self._streams.is_open:
            _store_log.error("a request failed: %s", error)
        self.visit.ended = error.code
        for tell in self._streams.on_interruption:
            tell(error)
        said = self._format.interruption(error)
        if self._format.ends_openly:
            await self._finish(said)
            return
        await self._write(said)
        raise _Interrupted

    def _holds(self) -> bool:
        """There may be something to send, and it should wait for more."""
        joining, tail = self._joining, self._cursor.tail
        return joining is not None and joining.holds(tail, self._clock()) and not self._cursor.at_tail

    async def _hold(self) -> None:
        """For as long as it should, and nothing else happens."""
        assert self._joining is not None
        tail, self._waiter = self._cursor.tail, asyncio.get_running_loop().create_future()
        timer = asyncio.get_running_loop().call_at(self._joining.until, self.wake)
        tail.on_wake[self._look] = None
        try:
            await self._waiter
        finally:
            timer.cancel()
            del tail.on_wake[self._look]
            self._waiter = None

    def _look(self) -> None:
        """Something has come while it holds back."""
        if not self._holds():
            self.wake()

    async def _wait(self) -> None:
        """Until the tail, the client, the drain or the round says something."""
        tail, self._waiter = self._cursor.tail, self._cursor.tail.waiter()
        try:
            await self._waiter
        finally:
            tail.discard(self._waiter)
            self._waiter = None

    def _is_silent(self) -> bool:
        return self._clock() - self._seat.written_at >= self._policy.heartbeat_seconds

    def wake(self) -> None:
        """Something has happened: go on."""
        if self._fan is not None:
            self._unpark(self._pages)
        elif self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def lost(self) -> None:
        """The client has left."""
        self.gone = True
        if self._fan is None:
            self.wake()
        else:
            self._leave_fan()
            self._over()

    # -- without a task -----------------------------------------------------------------------------------------------

    @property
    def is_parked(self) -> bool:
        """It waits in a fan, and its task is over."""
        return self._fan is not None

    def _park(self) -> bool:
        """Wait in the fan, if the connection can be had for that."""
        self._line = self._outlet.take(self)
        if self._line is None:
            return False
        self._task = None
        self._seat.sit(self, self._line)
        self._fan = self._fans.join(self._cursor.tail, self._seat, self._joining)
        # Formats that render for their reader alone have no key: an object that is nobody else's keeps theirs apart.
        key = self._format.key
        self._key = self if key is None else self._fan.same(key)
        self._seat.key = self._key if self._anchored else None
        self.visit.parked()
        return True

    def _leave_fan(self) -> None:
        assert self._fan is not None
        self._fans.leave(self._fan, self._seat)
        self._fan = None
        self.visit.unparked()

    def _unpark(self, go_on: Callable[[], Coroutine[Any, Any, None]]) -> None:
        self._leave_fan()
        self._keeping.not_up(self._cursor.tail, self._cursor.offset)
        self._task = asyncio.create_task(self._run(go_on), name="headwater-reader")

    def pull(self, frames: Frames, now: float) -> None:
        """Write what is new, if that is all there is to do; else go on in a task."""
        cursor, line = self._cursor, self._line
        assert line is not None
        if line.is_full:
            self._keeping.not_up(cursor.tail, cursor.offset)
            return  # it is looked at again when there is room
        if not self._framed(frames):
            return
        self._anchored, self._seat.key = True, self._key  # from now on without being asked
        if frames.data:
            self._seat.written_at = now
            frames.count += 1
            line.write(frames.data)

    def pull_alone(self, now: float) -> None:
        """The same, where nobody else will want what is made."""
        cursor, line = self._cursor, self._line
        assert line is not None
        if line.is_full:
            self._keeping.not_up(cursor.tail, cursor.offset)
            return
        made = self._made()
        if made is None:
            return
        events, cursor.offset = made.end.position - cursor.offset.position, made.end
        self._anchored, self._seat.key = True, self._key  # from now on without being asked
        if made.data:
            self._seat.written_at = now
            line.write(made.data)
            seconds = (self._streams.clock() - made.since) / 1000
            self._streams.reads.wrote(made.transport, events, len(made.data), seconds)

    def _framed(self, frames: Frames) -> bool:
        """Have the bytes of all that is new in `frames`, and move behind it. False: there is nothing, or more to it."""
        cursor, key = self._cursor, self._key
        start = cursor.offset
        made = frames.find(key, start)
        if made is None:
            made = self._made()
            if made is None:
                return False
        frames.keep(key, start, made)
        cursor.offset = made.end
        return True

    def _made(self) -> Frame | None:
        """The bytes of all that is new, and where they end. None: there is nothing, or more to it."""
        page = None if self._streams.draining else _all_new(self._cursor, self._format)
        if page is None:
            if self._streams.draining or not self._cursor.at_tail:
                self._unpark(self._pages)
            return None
        try:
            data, pauses = self._format.render(page), self._format.pauses(page)  # the latter is known only now
        except Exception as error:  # noqa: BLE001 -- it must not hold up the others here
            self._unpark(_failed(error))
            return None
        if pauses:
            self._cursor.offset = page.next
            self.visit.ended = "paused"
            self._streams.reads.wrote(self.visit.transport, len(page.messages), len(data), None)
            self._unpark(lambda: self._finish(data))
            return None
        return Frame(framed(data), page.next, page.messages[0].time, self.visit.transport)

    def resume(self) -> None:
        """There is room again."""
        if self._fan is not None:
            self._seat.written_at = self._clock()
            self._fan.look(self._seat)

    # -- rounds -------------------------------------------------------------------------------------------------------

    @property
    def _waits_for_client(self) -> bool:
        return self._writing or (self._fan is not None and self._line is not None and self._line.is_full)

    def due(self) -> float:
        """When somebody should look after this reader next, on the loop's clock."""
        if self._waits_for_client:
            patience = self._policy.write_seconds
            given_up = self._seat.written_at + (
                min(patience, LAST_WRITE_SECONDS) if self._streams.draining else patience
            )
            # Looked at before that, too: when the write is taken, a silence begins.
            return min(given_up, self._clock() + self._policy.heartbeat_seconds)
        head = self._cursor.tail.head
        end = head.expiry() if isinstance(head, Head) else None
        left = math.inf if end is None else (end - self._streams.clock()) / 1000
        rotate_at = self._rotate_at if self._anchored else math.inf
        return min(self._seat.written_at + self._policy.heartbeat_seconds, self._clock() + left, rotate_at)

    def look_after(self) -> None:
        """Its time has come: for a heartbeat, for the stream to expire, or for a stalled write to be given up."""
        if self._waits_for_client:
            self._give_up()
            return
        if self._fan is not None and self._line is not None and self._is_silent():
            self._seat.written_at = self._clock()
            self._streams.reads.heartbeats += 1
            self._line.write(framed(self._format.heartbeat))
        if self._fan is None or self._clock() >= self._rotate_at or not self._cursor.at_tail:
            self.wake()

    def _give_up(self) -> None:
        if self.stalled:
            return
        self.stalled = True
        if self._task is not None:
            self._task.cancel()
        else:
            self._outlet.cut(at_once=True)
            self.lost()


def _failed(error: Exception) -> Callable[[], Coroutine[Any, Any, None]]:
    async def fail() -> None:
        raise error

    return fail


def _all_new(cursor: Cursor, format_: Format) -> Page | None:
    """All that is new; None where there is nothing, or more to it."""
    page = cursor.ready()
    if page is None or page.closed or not page.up_to_date:
        return None
    return None if format_.in_characters and whole(page.messages) != len(page.messages) else page


def _nothing_at(offset: Offset, *, up_to_date: bool) -> Page:
    return Page([], offset, offset, up_to_date, closed=False)


def _rendered(format_: Format, tail: Tail, page: Page) -> bytes:
    if not page.up_to_date or format_.key is None:
        return format_.render(page)
    # Everybody who keeps up asks for the same page: it is rendered once.
    return tail.rendered((format_.key, page.start, page.next, page.closed), lambda: format_.render(page))
