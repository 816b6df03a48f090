"""Changing and knowing a stream's head: decide, commit, decide again where somebody else was quicker.

The one place that calls `decide` and `Store.commit`. Keeps the head of a hot stream on its tail, so that the usual
append is one round trip to the store, and appends to one stream need not wait for each other: each is decided on the
head that the one before it will leave, and if that one fails, this one fails to match and is decided again.

Knows the store contract, the hub and the decisions. Every reader of a head comes through here too, so that an expiry
moved by a read a moment ago is never missed.
"""

from __future__ import annotations

import asyncio
import functools
import os
import random
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from headwater.counts import Operations, Writes
from headwater.decide import Append, Create, Decision, Request, decide
from headwater.errors import (
    BadRequest,
    HeadwaterError,
    StoreUnavailable,
    StreamDeleted,
    StreamNotFound,
    VersionConflict,
)
from headwater.hub import Hub, Tail
from headwater.model import Absent, Head
from headwater.store import Store
from headwater.stores.timed import TimedStore

LONGEST_NAME: Final = 1024
"""Characters. Names are paths of URLs, and proxies cut those at 8 KB; a multi-byte character takes up to 12 there."""

MARK_BITS: Final = 31
"""Of a version, the lower ones: drawn for each head. The upper ones count, up to 4 billion changes of one stream."""

MOST_CONFLICTS: Final = 100
"""Decisions tried on one request before giving up: each failure means that somebody else succeeded."""

MOST_IN_A_ROW: Final = 64
"""Commits that need no waiting, by one turn of the loop, before others have theirs: about a millisecond."""

# Nobody is to foretell or repeat what another process draws; that it costs no system call is felt in each append.
_random: Final = random.Random()  # noqa: S311 -- no secret: it only has to be another one
_random_bits: Final = _random.getrandbits
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_random.seed)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a Streams allows and holds."""

    message_bytes: int = 16 * 1024 * 1024
    """Of one message. Larger things belong in an object store with a link to them in the stream."""
    page_bytes: int = 1024 * 1024
    """Of one page of catching up: one reader's turn must not starve the others'."""
    sweep_seconds: float = 30.0
    """Between two sweeps for expired streams. Expiry itself is exact: this only frees their space."""


def now_ms() -> int:
    """ms since 1970 (UTC)."""
    return time.time_ns() // 1_000_000


Commit = tuple[asyncio.Future[None], Decision]
"""One on its way, or done."""


class Commits:
    """All heads of one store, and every change to them."""

    def __init__(self, store: Store, hub: Hub, limits: Limits, clock: Callable[[], int]) -> None:
        self.writes, self.operations = Writes(), Operations()
        self.store, self.hub, self.limits, self.clock = TimedStore(store, self.operations), hub, limits, clock
        self.on_decision: Callable[[str, Decision], Head] = lambda _, decision: decision.head
        """Has the last word on a head before it is committed: when the sweeper is to look at the stream."""
        self.on_commit: list[Callable[[str, Decision], None]] = []
        """Told of each commit that was made here, once it is durable, in order. Must not raise."""
        self._in_a_row = 0

    def __repr__(self) -> str:
        return f"<Commits to {self.store!r}>"

    async def carry_out(self, name: str, request: Request) -> Decision:
        """Decide `request` on the stream's head and commit what was decided, again if the head has moved."""
        tail, began = self.hub.tail(name), time.perf_counter()
        commit = self._at_once(tail, request)
        if commit is not None and _succeeded(commit[0]):
            await self._let_others_run()
            self.writes.answered(request, commit[1], time.perf_counter() - began)
            return commit[1]
        call = tail.begun()
        try:
            decision = await self._carried_out(tail, request, call, commit)
        finally:
            tail.ended(call)
        self.writes.answered(request, decision, time.perf_counter() - began)
        return decision

    def at_once(self, name: str, request: Request) -> asyncio.Future[Decision] | Decision | None:
        """The same without a task, where nothing has to be asked for first: committed, or a commit on its way, whose
        future nobody may cancel. None: it is for `carry_out`; nothing has happened."""
        tail, began = self.hub.tail(name), time.perf_counter()
        commit = self._at_once(tail, request)
        if commit is None:
            return None
        future, decision = commit
        if _succeeded(future):
            self.writes.answered(request, decision, time.perf_counter() - began)
            return decision
        call, done = tail.begun(), asyncio.get_running_loop().create_future()
        future.add_done_callback(functools.partial(self._done, tail, call, request, decision, done))
        done.add_done_callback(functools.partial(self._answered, request, began))
        return done

    def _answered(self, request: Request, began: float, done: asyncio.Future[Decision]) -> None:
        if not done.cancelled() and done.exception() is None:
            self.writes.answered(request, done.result(), time.perf_counter() - began)

    def _done(
        self,
        tail: Tail,
        call: int,
        request: Request,
        decision: Decision,
        done: asyncio.Future[Decision],
        future: asyncio.Future[None],
    ) -> None:
        """A commit of `at_once` is done."""
        error = _ending() if future.cancelled() else future.exception()
        if isinstance(error, VersionConflict):
            again = asyncio.create_task(self._carried_out(tail, request, call, None), name="headwater-decides-again")
            again.add_done_callback(functools.partial(_copied, done))
            again.add_done_callback(lambda _: tail.ended(call))
            return
        tail.ended(call)
        if error is None:
            done.set_result(decision)
        else:
            done.set_exception(error)

    async def _let_others_run(self) -> None:
        """Who never has to wait must not keep the loop from everybody else."""
        self._in_a_row += 1
        if self._in_a_row == 1:
            asyncio.get_running_loop().call_soon(self._next_turn)
        elif self._in_a_row >= MOST_IN_A_ROW:
            await asyncio.sleep(0)

    def _next_turn(self) -> None:
        self._in_a_row = 0

    def _at_once(self, tail: Tail, request: Request) -> Commit | None:
        """The commit of `request`, if it can be decided on what is known here, and nobody waits to be the next.

        Not for what has an answer where the stream has expired, for that only the store knows (`_latest`).
        """
        latest = tail.latest
        if tail.in_turn or not isinstance(latest, Head) or not isinstance(request, Append):
            return None
        return self._submitted(tail, latest, request)

    async def _carried_out(self, tail: Tail, request: Request, call: int, commit: Commit | None) -> Decision:
        for _ in range(MOST_CONFLICTS):
            if commit is None:
                async with _turn(tail):
                    commit = self._submitted(tail, await self._latest(tail), request)
            if commit is None:
                # An answer without a commit must not rest on what is cached: another process may have changed it, and
                # an earlier commit that is still on its way may fail. What the store holds after that decides.
                await tail.is_first(call)
                async with _turn(tail):
                    await _settle(tail.outstanding)
                    tail.latest = await self._load(tail)
                    answer = decide(tail.latest, request, self.clock())
                    if not answer.changes:
                        return answer
                    commit = self._submitted(tail, tail.latest, request)
            if commit is None:
                continue  # the stream has expired between two looks at the clock
            future, decision = commit
            try:
                await asyncio.shield(future)
            except VersionConflict:
                commit = None
                continue
            return decision
        raise StoreUnavailable("this stream is written by too many at a time; try again")

    async def _latest(self, tail: Tail) -> Head | Absent:
        """What the next decision is made on. Asked for in turn, so that appends keep the order of their calls."""
        if isinstance(tail.latest, Head) and tail.latest.expired(self.clock()):
            tail.latest = None  # a read elsewhere may have moved its end: only the store knows
        if tail.latest is None:
            await _settle(tail.outstanding)
            tail.latest = await self._load(tail)
        return tail.latest

    def _submitted(self, tail: Tail, before: Head | Absent, request: Request) -> Commit | None:
        """The commit of what `request` makes of `before`, on its way; None where it makes nothing of it."""
        try:
            decision = decide(before, request, self.clock(), self._drawn() if isinstance(request, Create) else 0)
        except HeadwaterError:
            return None
        if not decision.changes:
            return None
        head = _marked(before, self.on_decision(tail.name, decision))
        if head is not decision.head:
            decision = decision._replace(head=head)
        began = time.perf_counter()
        commit = self.store.commit(tail.name, before, head, decision.messages)
        future = commit if isinstance(commit, asyncio.Future) else asyncio.ensure_future(commit)
        tail.latest = head
        if tail.outstanding is None and future.done():  # by a store that need not wait; else in order
            self._committed(tail, before, decision, began, future)
        else:
            tail.outstanding = future
            future.add_done_callback(functools.partial(self._committed, tail, before, decision, began))
        return future, decision

    def _drawn(self) -> int:
        """A generation that hardly any other stream has: by it, an offset tells which stream of a family it is of.

        Nothing depends on that it is new to the name; that is for the store to see to (G1).
        """
        return self.clock() * 1000 + _random.randrange(1000)

    async def _load(self, tail: Tail) -> Head | Absent:
        wakes = tail.wakes
        head = tail.touched_head(await self.store.load(tail.name))
        tail.learn(head, wakes)
        return head

    async def look(self, name: str) -> Head | Absent:
        """What the store holds under a name now, whatever its state. Does not count as a read."""
        tail = self.hub.known(name)
        return await self.store.load(name) if tail is None else await self._load(tail)

    async def head(self, name: str) -> Head:
        """The stream's head. Does not count as a read. Raises StreamNotFound, StreamDeleted."""
        head = await self.look(name)
        if isinstance(head, Absent) or head.expired(self.clock()):
            raise StreamNotFound("no such stream")
        if head.deleted is not None:
            raise StreamDeleted("this stream was deleted")
        return head

    async def delete(self, name: str) -> None:
        """Remove a stream. Its offsets never come back (G1). Raises StreamNotFound where there is none."""
        for _ in range(MOST_CONFLICTS):
            try:
                return await self.remove(name, await self.head(name))
            except VersionConflict:
                continue
        raise StoreUnavailable("this stream changes too often to be deleted now; try again")

    async def remove(self, name: str, head: Head) -> None:
        """Remove the stream that has this head. Raises VersionConflict where it has another by now."""
        deletion = asyncio.ensure_future(self.store.delete(name, head))
        deletion.add_done_callback(lambda _: self.forget(name))
        await asyncio.shield(deletion)

    def forget(self, name: str) -> None:
        """This stream may have changed, in a way that is not known here."""
        tail = self.hub.known(name)
        if tail is not None:
            tail.forget()

    def _committed(
        self, tail: Tail, before: Head | Absent, decision: Decision, began: float, done: asyncio.Future[None]
    ) -> None:
        """A commit is done, in the order of submission, whether or not its caller still waits."""
        if tail.outstanding is done:
            tail.outstanding = None
        self.operations.done("commit", time.perf_counter() - began)
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            self.operations.failed("commit", error)
            tail.forget()
            return
        tail.grow(decision.head, decision.messages)
        self.writes.committed(tail.name, before, decision, first=decision.head.version >> MARK_BITS == 2)
        for tell in self.on_commit:
            tell(tail.name, decision)

    def touch(self, name: str, head: Head) -> None:
        """Note a read, where a sliding TTL counts them."""
        if head.config.ttl is not None:
            now = self.clock()
            self.store.touch(name, head.generation, now)
            self.hub.tail(name).touch(now)


def checked_name(name: str) -> str:
    """`name`, if it can be a stream's. Raises BadRequest."""
    if not name or len(name) > LONGEST_NAME or not name.isprintable():
        raise BadRequest(f"a stream's name is 1 to {LONGEST_NAME} printable characters")
    if "." in name and not {".", ".."}.isdisjoint(name.split("/")):
        raise BadRequest("no part of a stream's name is . or .., which clients take out of addresses")
    if name == "__ds" or name.startswith("__ds/"):
        raise BadRequest("names under __ds/ are the protocol's own (Durable Streams 6)")
    return name


def _marked(before: Head | Absent, head: Head) -> Head:
    """`head`, which nobody else has seen yet, with a version that no other head has.

    A commit may be on its way that was decided on a head which then failed. It must not match the head that took its
    place, another process's or our own: that, too, is the next one after `before`. Nor may a head whose commit seemed
    to fail, and lands late, be taken for the one that was made instead.
    """
    count = (before.version >> MARK_BITS) + 1
    msgspec.structs.force_setattr(head, "version", count << MARK_BITS | _random_bits(MARK_BITS))
    return head


def _succeeded(future: asyncio.Future[None]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _ending() -> StoreUnavailable:
    return StoreUnavailable("the process is ending; try again")


def _copied(to: asyncio.Future[Decision], of: asyncio.Future[Decision]) -> None:
    if of.cancelled():
        to.set_exception(_ending())
    elif (error := of.exception()) is not None:
        to.set_exception(error)
    else:
        to.set_result(of.result())


@asynccontextmanager
async def _turn(tail: Tail) -> AsyncIterator[None]:
    tail.in_turn += 1
    try:
        async with tail.turn:
            yield
    finally:
        tail.in_turn -= 1


async def _settle(future: asyncio.Future[None] | None) -> None:
    """Wait until a commit is done, however it ends; being cancelled leaves it alone."""
    if future is not None and not future.done():
        await asyncio.wait([future])
