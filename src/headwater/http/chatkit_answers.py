"""Answers of a ChatKitServer that are made by the process and not by a request, each into a stream of its own.

Knows streams, threads and how an answer is processed; nothing of requests. Invariants: each stream is closed, as
completed, failed or cancelled, also when its process dies (G8), and one that failed says so in a ChatKit `error` event;
a stop reaches the answer at whichever process makes it; when a stopped stream is closed, the server has saved all that
it saves of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from headwater.decide import Append, Item
from headwater.errors import Draining, HeadwaterError, Interrupted, KeyReused, StreamClosed, StreamExists
from headwater.model import Head
from headwater.runs import asking
from headwater.runs.threads import Entry, Threads
from headwater.runs.unread import left_alone
from headwater.sources.chatkit import Processing, Said, error_event
from headwater.streams import Streams
from headwater.writer import Writer

_log = logging.getLogger("headwater.http")

KIND: Final = "chatkit"
"""The label that tells leases how such a stream is to be ended."""

EVENTS: Final = "text/event-stream"

STOP_SECONDS: Final = 5.0
"""How long answers get to wind up when the process ends."""

ASKED: Final = "headwater/chatkit/"
"""Prefix of the streams in which processes ask each other to stop an answer."""

UNFINISHED: Final = "The answer could not be finished."

Reason = Literal["cancelled", "interrupted", "lost"]
"""`lost`: its stream cannot be written any more."""


@dataclass(frozen=True, slots=True)
class Place:
    """Whose answer it is, and where it goes."""

    prefix: str
    """Of the stream's name: the rest is the id."""
    id: str
    owner: str
    thread: str | None
    """As the client calls it; None: there will be a new one."""

    @property
    def stream(self) -> str:
        return self.prefix + self.id


class Answers:
    """Those that this process makes."""

    def __init__(self, streams: Streams, *, ttl: int, cancel_when_unread: float | None) -> None:
        self._streams, self._ttl, self._unread = streams, ttl, cancel_when_unread
        self._threads = Threads(streams)
        self._making: dict[str, _Answer] = {}  # by stream
        self._tasks: set[asyncio.Task[Any]] = set()
        self._hearing: asyncio.Task[None] | None = None
        streams.leases.finisher(KIND, self._finish_orphan)
        streams.on_drain.append(self._begin_interrupt)

    def __len__(self) -> int:
        return len(self._making)

    async def start(self, place: Place, processing: Processing, digest: str) -> None:
        """Begin an answer, unless its stream is there already. Raises KeyReused, Draining.

        Cancelled or not: with the stream there is a task that ends it.
        """
        await asyncio.shield(self._task(self._start(place, processing, digest), "headwater-chatkit-start"))

    async def _start(self, place: Place, processing: Processing, digest: str) -> None:
        if self._streams.draining:
            raise Draining("the server is going away; ask again")
        labels = {"kind": KIND, "body": digest}
        writer = self._streams.writer(place.stream, content_type=EVENTS, ttl=self._ttl, labels=labels)
        try:
            fresh = await writer.open()
        except StreamExists:
            fresh = False  # it has ended already, or another process makes it
        if not fresh:
            if (await self._streams.head(place.stream)).labels.get("body") != digest:
                raise KeyReused("this Idempotency-Key was used for another request")
            return
        answer = _Answer(place, processing, writer, self._threads)
        self._making[place.stream] = answer
        self._task(self._make(answer), f"headwater-chatkit {place.stream}")
        if self._hearing is None:
            self._hearing = asyncio.create_task(self._hear(), name="headwater-chatkit-control")
        if place.thread is not None:
            await answer.note(place.thread)

    async def _make(self, answer: _Answer) -> None:
        alone = None if self._unread is None else self._task(self._stop_alone(answer), "headwater-chatkit-unread")
        try:
            await answer.run()
        finally:
            del self._making[answer.place.stream]
            if alone is not None:
                alone.cancel()

    async def _stop_alone(self, answer: _Answer) -> None:
        assert self._unread is not None
        await left_alone(self._streams.hub, answer.place.stream, self._unread)
        answer.stop("cancelled")

    def _task(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def newest(self, prefix: str, owner: str, thread: str) -> str | None:
        """The stream's id of the answer that is being made for a thread, by any process; None: there is none."""
        entry = await self._threads.newest(owner, prefix, thread)
        if entry is not None:
            with suppress(HeadwaterError):  # forgotten by now
                if not (await self._streams.head(prefix + entry.run)).closed:
                    return entry.run
        return None

    async def stop(self, stream: str) -> bool:
        """The user wants no more of it; False: it has ended. Raises StreamNotFound."""
        answer = self._making.get(stream)
        if answer is not None:
            answer.stop("cancelled")
            return True
        head = await self._streams.head(stream)
        if head.closed or head.owner is None:
            return False
        await asking.ask(self._streams, head.owner, stream, prefix=ASKED)
        return True

    async def _hear(self) -> None:
        """Stop what other processes were asked to."""
        while not self._streams.draining:
            try:
                async for asked in asking.heard(self._streams, prefix=ASKED):
                    answer = self._making.get(asked.run_id)
                    if answer is not None:
                        answer.stop("cancelled")
            except HeadwaterError:
                await asyncio.sleep(1)  # expired in silence, or the store is away: begin anew

    async def interrupt(self) -> None:
        """End what is on its way, because the process ends; its streams say so when this returns."""
        self._begin_interrupt()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)

    async def aclose(self) -> None:
        """Interrupt, and hear no more."""
        await self.interrupt()
        if self._hearing is not None:
            self._hearing.cancel()
            await asyncio.wait([self._hearing])
            self._hearing = None

    def _begin_interrupt(self) -> None:
        for answer in list(self._making.values()):
            answer.stop("interrupted")

    async def _finish_orphan(self, name: str, _: Head, why: HeadwaterError) -> None:
        last = Item(_stored(error_event(why.said)))
        await self._streams.carry_out(name, Append([last], close=True, outcome="failed"))


class _Answer:
    """One request's events on their way into its stream."""

    def __init__(self, place: Place, processing: Processing, writer: Writer, threads: Threads) -> None:
        self.place = place
        self._processing, self._writer, self._threads = processing, writer, threads
        self._why: Reason | None = None
        self._lost: HeadwaterError | None = None

    def stop(self, why: Reason) -> None:
        """The first reason counts."""
        self._why = self._why or why
        self._processing.stop()

    async def note(self, thread: str) -> None:
        """Let those who ask for the thread find this answer."""
        place = self.place
        await self._threads.note(place.owner, place.prefix, thread, Entry(place.id))

    async def run(self) -> None:
        """Until it has ended, and its stream says how."""
        outcome, last = await self._outcome()
        try:
            # Shielded: whoever cancels us at the end of the process must not leave the stream open.
            await asyncio.shield(asyncio.ensure_future(self._writer.aclose(outcome, *last)))
        except StreamClosed:
            _log.warning("answer %s was ended by another process", self.place.stream)
        except HeadwaterError as error:
            _log.error("answer %s could not be written to its stream: %s", self.place.stream, error)

    async def _outcome(self) -> tuple[str, list[bytes]]:
        try:
            await self._processing.run(self._take)
        except asyncio.CancelledError:
            if not self._processing.stopped:
                return _failed(Interrupted().said)  # the loop ends, and cancels whatever there is
        except Exception:  # noqa: BLE001 -- a server may raise anything, and its readers must be told
            _log.exception("answer %s failed", self.place.stream)
            return _failed(UNFINISHED)
        if self._lost is not None:
            return _failed(self._lost.said)
        if self._processing.stopped:
            return ("cancelled", []) if self._why == "cancelled" else _failed(Interrupted().said)
        return ("failed" if self._processing.last == "error" else "completed"), []

    async def _take(self, data: bytes, said: Said) -> None:
        if self._lost is not None:
            return  # what it still says on its way out
        try:
            if said.type == "thread.created" and said.thread is not None:
                await self.note(said.thread.id)
            await self._writer.send(_stored(data))
        except HeadwaterError as error:
            self._lost = error
            self.stop("lost")


def _failed(why: str) -> tuple[str, list[bytes]]:
    return "failed", [_stored(error_event(why))]


def _stored(data: bytes) -> bytes:
    """As ChatKit writes it, with a space behind the colon: its client is closed, and may count on that."""
    return b"data: %s\n" % data
