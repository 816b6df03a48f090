"""Writing a stream from one place in a program, for as long as a block lasts.

    async with streams.writer("jobs/7") as writer:
        await writer.send({"done": 3, "of": 10})

Sends are joined: what arrives in the same turn of the loop as a commit, while one is on its way, or within `join_ms` of
one goes into the next, so a producer of many small things is as fast as the store, and a lone one waits for nothing.
The stream closes as completed, failed or cancelled by how the block ends; if the process dies, others close it as
failed (`headwater.leases`), or one of them takes it over and goes on: from then on, whoever made it before can append
nothing, though it was only asleep.

Knows commits and leases. Invariants: messages keep the order of their sends; a commit that is repeated because its
answer was lost counts once (the writer is an idempotent producer); what waits is bounded (G9).
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from headwater.commits import Commits, checked_name
from headwater.decide import Append, Create, Decision, Item, Stamp
from headwater.errors import (
    BadRequest,
    HeadwaterError,
    Interrupted,
    OffsetMismatch,
    ProducerFenced,
    StreamClosed,
    StreamExists,
    StreamNotFound,
    TooLarge,
)
from headwater.leases import Leases
from headwater.model import Config, Head, Offset
from headwater.wire.values import to_bytes, to_json

MOST_WAITING: Final = 1024 * 1024
"""Bytes sent and not yet committed; beyond, `send` waits for the store."""

MOST_JOINED: Final = 64 * 1024
"""Bytes that are held back for `join_ms`: what readers get in one write."""

MOST_JOIN_MS: Final = 1000

_TURN: Final = 0.001
"""Seconds: what comes so close behind a commit waits until others have had their turn, lest a loop of sends is a loop
of commits. Tokens never come so close."""

PATIENCE_SECONDS: Final = 30.0
"""How long a store that says "try again" is tried again."""

MOST_TRIES: Final = 100
"""To write a stream as it was read, before giving up: each failure means that somebody else succeeded."""

T = TypeVar("T")


class Writer:
    """Sends messages to one stream; made by `Streams.writer`."""

    def __init__(
        self,
        commits: Commits,
        leases: Leases,
        name: str,
        *,
        content_type: str = "application/json",
        ttl: int | None = None,
        labels: dict[str, str] | None = None,
        producer: str | None = None,
        join_ms: int = 0,
    ) -> None:
        """`producer`: the same one for all who may take this stream over; left out, it is one that nobody else has.
        `join_ms`: what is sent within so long of a commit goes into the next one, for all readers."""
        if not 0 <= join_ms <= MOST_JOIN_MS:
            raise BadRequest(f"join_ms is a whole number of milliseconds from 0 to {MOST_JOIN_MS}")
        self.name = checked_name(name)
        self.content_type = content_type
        self._commits, self._leases = commits, leases
        self._config, self._labels = Config(content_type, ttl), labels or {}
        self._producer = producer or f"w_{secrets.token_hex(8)}"
        self._epoch = self._seq = 0
        self._waiting: list[Item] = []
        self._size = 0
        self._room = asyncio.Event()
        self._room.set()
        self._join = join_ms / 1000
        self._turn: asyncio.Handle | None = None  # until it comes, what is sent waits
        self._committed_at = -math.inf
        self._flushing: asyncio.Task[None] | None = None
        self._error: HeadwaterError | None = None
        self._ending: asyncio.Task[None] | None = None
        self.offset: Offset | None = None
        """Where the stream ends, as far as it is committed."""
        self.position = 0
        """Where it will end when all that was sent is committed."""

    def __repr__(self) -> str:
        return f"<Writer of {self.name!r} [{len(self._waiting)} waiting, {self._seq} commits]>"

    async def open(self, *first: Any) -> bool:
        """Make the stream, with first messages if any. False: it was there, as described, and nothing was added."""
        owner = await self._leases.hold()
        items = [self._item(value, None) for value in first]
        create = Create(self._config, items, owner=owner, labels=self._labels)
        decision = await self._commits.carry_out(self.name, create)
        if decision.what == "exists" and decision.head.owner not in (None, owner):
            raise StreamExists("another process is writing this stream, or died doing so; choose another name")
        self._at(decision.head.offset)
        return decision.what == "created"

    async def take_over(self, head: Head, *first: Any) -> bool:
        """Go on with a stream that somebody else made, or nobody does, from where `head` says that it ends.

        `first` is appended in the same step, one message at least. Of several that try, one succeeds; whoever made the
        stream before can append nothing from then on. False: somebody was quicker, or the stream has gone on since.
        Raises StreamClosed.
        """
        owner = await self._leases.hold()
        self._epoch, self._seq = self.next_epoch(head), 1
        stamp = Stamp(self._producer, self._epoch, 0)
        items = [self._item(value, None) for value in first]
        request = Append(items, stamp=stamp, expected=head.offset, owner=owner)
        try:
            decision = await self._commits.carry_out(self.name, request)
        except (OffsetMismatch, ProducerFenced):
            return False
        self._at(decision.head.offset)
        return decision.what == "appended"

    def next_epoch(self, head: Head) -> int:
        """Under which whoever takes the stream over appends."""
        known = head.producers.get(self._producer)
        return known.epoch + 1 if known else 1

    async def leave(self, *last: Any) -> None:
        """Commit what waits, and write no more; the stream stays open.

        With `last` it is nobody's from then on; without, it stays this process's, and is an orphan when that is gone.
        """
        items = [self._item(value, None) for value in last]
        await self.flush()
        self._error = StreamClosed("this writer has left its stream")
        if items:
            await self._append(items, owner="")

    def _at(self, offset: Offset) -> None:
        self.offset, self.position = offset, offset.position

    async def send(self, value: Any, *, key: str | None = None) -> None:
        """Take one message on. Returns when it is accepted, in order; `flush` says when it is durable.

        In a JSON stream every value becomes JSON (a str too); elsewhere bytes and str stay as they are. Raises what a
        commit before it raised: StreamClosed, when somebody else ended the stream, is the usual one.
        """
        self._check_open()
        item = self._item(value, key)
        while not self._room.is_set():
            await self._room.wait()
            self._check_open()
        self._waiting.append(item)
        self.position += 1
        self._size += len(item.data)
        if self._size > MOST_WAITING:
            self._room.clear()
        if self._turn is None and self._flushing is None:
            self._begin()
        elif self._join and self._size > MOST_JOINED >= self._size - len(item.data):
            self._wait(0)

    async def flush(self) -> Offset | None:
        """Wait until all that was sent is durable and readable; where the stream ends now."""
        self._start()
        while self._flushing is not None:
            await asyncio.shield(self._flushing)
            self._start()
        if self._error is not None:
            raise self._error
        return self.offset

    async def aclose(self, outcome: str = "completed", *last: Any) -> None:
        """Commit what waits and `last`, and end the stream, all or nothing with the last commit.

        Ending twice is fine: the first time counts. Cancelling the wait leaves the ending to go on. Where it cannot be
        done, the stream is ended as failed as soon as the store takes it, and what went wrong is raised.
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(outcome, last), name=f"headwater-ending {self.name}")
        await asyncio.shield(self._ending)

    async def _end(self, outcome: str, last: Sequence[Any]) -> None:
        try:
            items = [self._item(value, None) for value in last]
            await self.flush()
            await self._append(items, close=True, outcome=outcome)
        except (StreamClosed, StreamNotFound, ProducerFenced):
            raise  # by somebody else, or somebody else goes on with it
        except BaseException as error:
            self._leases.abandon(self.name, _told(error))
            raise

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        outcome = "completed"
        if kind is not None:
            outcome = "cancelled" if issubclass(kind, asyncio.CancelledError) else "failed"
        try:
            await self.aclose(outcome)
        except HeadwaterError:
            if error is None:
                raise

    def _check_open(self) -> None:
        if self._ending is not None:
            raise StreamClosed("this writer has ended its stream")
        if self._error is not None:
            raise self._error

    def _item(self, value: Any, key: str | None) -> Item:
        data = to_json(value) if self.content_type == "application/json" and not isinstance(value, bytes) else None
        data = to_bytes(value) if data is None else data
        if len(data) > self._commits.limits.message_bytes:
            raise TooLarge(f"a message may have {self._commits.limits.message_bytes:,} bytes")
        return Item(data, key)

    def _begin(self) -> None:
        """Commit what waits, if the last commit was long enough ago; else when it will be."""
        wait = self._committed_at + (self._join or _TURN) - asyncio.get_running_loop().time()
        if wait <= 0:
            self._start()
        else:
            self._wait(wait if self._join else 0)

    def _wait(self, seconds: float) -> None:
        """What is sent meanwhile goes out together; others have their turn, too."""
        if self._turn is not None:
            self._turn.cancel()
        loop = asyncio.get_running_loop()
        self._turn = loop.call_later(seconds, self._end_turn) if seconds else loop.call_soon(self._end_turn)

    def _end_turn(self) -> None:
        self._turn = None
        self._start()

    def _start(self) -> None:
        """Commit what waits, unless that is being done."""
        if self._flushing is not None or not self._waiting:
            return
        items, self._waiting, self._size = self._waiting, [], 0
        self._room.set()
        self._committed_at = asyncio.get_running_loop().time()
        request = self._request(items)
        committed = self._commits.at_once(self.name, request)
        if isinstance(committed, Decision):  # in memory
            self._appended(committed)
        else:
            flush = self._flush(request, committed)
            self._flushing = asyncio.create_task(flush, name=f"headwater-writer {self.name}")

    async def _flush(self, request: Append, committed: asyncio.Future[Decision] | None) -> None:
        """Carry out the first request, which may be on its way, and what is sent meanwhile."""
        try:
            await self._carry_out(request, committed)
            while self._waiting and (not self._join or self._size > MOST_JOINED):
                items, self._waiting, self._size = self._waiting, [], 0
                self._room.set()
                await self._append(items)
        except BaseException as error:
            # What was on its way may be lost, by a cancelled task too: nothing more must land behind the hole.
            self._error = _told(error)
            self._waiting = []
            self._room.set()
            if not isinstance(error, HeadwaterError):
                raise
        finally:
            self._flushing = None
        if self._waiting:
            self._begin()

    async def _append(
        self, items: list[Item], *, close: bool = False, outcome: str | None = None, owner: str | None = None
    ) -> None:
        await self._carry_out(self._request(items, close=close, outcome=outcome, owner=owner), None)

    def _request(
        self, items: list[Item], *, close: bool = False, outcome: str | None = None, owner: str | None = None
    ) -> Append:
        stamp = Stamp(self._producer, self._epoch, self._seq)
        return Append(items, None, stamp, None, close, outcome, owner=owner)

    async def _carry_out(self, request: Append, committed: asyncio.Future[Decision] | None) -> None:
        """`committed`: a first try that is on its way. Tried again, it counts once."""

        async def attempt() -> Decision:
            nonlocal committed
            first, committed = committed, None
            return await (self._commits.carry_out(self.name, request) if first is None else asyncio.shield(first))

        self._appended(await patiently(attempt))

    def _appended(self, decision: Decision) -> None:
        self.offset = decision.head.offset
        self._seq += 1


async def patiently(attempt: Callable[[], Awaitable[T]]) -> T:
    """What `attempt` gives, tried again for as long as the store says "try again" and there is patience."""
    loop = asyncio.get_running_loop()
    give_up, pause = loop.time() + PATIENCE_SECONDS, 0.05
    while True:
        try:
            return await attempt()
        except HeadwaterError as error:
            if not error.retry or loop.time() > give_up:
                raise
        await asyncio.sleep(pause)
        pause = min(pause * 2, 2.0)


def _told(error: BaseException) -> HeadwaterError:
    """What readers may be told of `error`."""
    return error if isinstance(error, HeadwaterError) else Interrupted()
