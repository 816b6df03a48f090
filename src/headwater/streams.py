"""Streams: create, append, read, follow, close, delete. The deep module that users hold.

    async with Streams("sqlite:///app.db") as streams:
        await streams.create("chat/42")
        await streams.append("chat/42", {"text": "hello"})
        async for page in streams.follow("chat/42"):
            ...

Changes are decided and committed by `headwater.commits` and shown to readers once they are durable (G4). A reader is a
`Cursor`: it pulls pages, from the ring where it keeps up, from the store where it does not; resuming after a cut is the
same code path as reading on.

Knows everything below it; nothing of HTTP, formats or runs.

Cancellation: a cancelled append, close, create or delete is wholly in or wholly out (G6); which of the two, the caller
does not know, and with a `stamp` it may simply repeat it. Reading and following leave nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Any, Self

from headwater.commits import Commits, Limits, checked_name, now_ms
from headwater.counts import Reads, Resumed
from headwater.cursor import Cursor
from headwater.decide import Append, Create, Decision, ForkOf, Item, Request, Stamp
from headwater.errors import BadOffset, BadRequest, HeadwaterError, OffsetGone, StreamExists, TooLarge
from headwater.forks import Forks
from headwater.formats.format import is_json
from headwater.hub import Hub, page_of
from headwater.lag import LoopLag
from headwater.leases import Leases
from headwater.lineage import read_messages
from headwater.model import Config, Head, Message, Offset, Page, Retention
from headwater.positions import NOW, START, resolve
from headwater.retention import Keeping, Rules, checked
from headwater.store import Store
from headwater.stores import store_from_url
from headwater.sweeper import Sweeper
from headwater.wire.values import to_bytes, to_json
from headwater.writer import Writer


class Streams:
    """All streams of one store. Belongs to the event loop it was opened on; no global state."""

    def __init__(
        self,
        store: str | Store = "memory:",
        *,
        limits: Limits = Limits(),
        retention: Rules = (),
        clock: Callable[[], int] = now_ms,
    ) -> None:
        """`store` is a URL (`memory:`, `sqlite:///app.db`) or a Store; `clock` gives ms since 1970.

        `retention`: how much is kept of streams that do not say so themselves, as pairs of a shell pattern of names and
        a Retention; the first that matches counts.
        """
        self.store = store_from_url(store) if isinstance(store, str) else store
        self.limits, self.clock = limits, clock
        self.hub = Hub(lambda name, watched: self.store.watch(name, watched=watched))
        self._commits = Commits(self.store, self.hub, limits, clock)
        self.writes, self.operations, self.reads = self._commits.writes, self._commits.operations, Reads()
        """What this process wrote, how it used the store, and what its readers got (`headwater.counts`)."""
        self.leases = Leases(self._commits)
        self._forks = Forks(self._commits)
        self._keeping = Keeping(self._commits, self._forks, retention)
        self._sweeper = Sweeper(self._commits, self._forks, self._keeping)
        self._commits.on_decision = self._keeping.noted
        self.on_commit = self._commits.on_commit
        """Functions told of each commit of this process, `(stream, decision)`, once it is durable. Must not raise."""
        self.on_commit.append(self._sweeper.committed)
        self.lag = LoopLag()
        """Of the loop that these streams belong to, while they are served (`headwater.http.lifespan`)."""
        self._open = False
        self.draining = False
        """The process is going away: readers are to be told and let go."""
        self.on_drain: list[Callable[[], None]] = []
        """Called when draining begins, by those who serve readers that do not wait for the tail."""
        self.on_interruption: list[Callable[[HeadwaterError], None]] = []
        """Told by those who serve readers what ended a response in its middle. Must not raise."""

    def __repr__(self) -> str:
        return f"<Streams on {self.store!r} {self.hub!r}>"

    @property
    def is_open(self) -> bool:
        return self._open

    async def open(self) -> None:
        """Open the store, maybe once more. Raises StoreFileUnusable or StoreUnavailable, saying what to do."""
        await self.store.open()
        self.draining = False
        self.store.on_wake = self._woken
        self._open = True
        self._sweeper.open()
        await self.leases.open()

    async def aclose(self) -> None:
        """Finish what was submitted, then close the store. Readers get StoreUnavailable."""
        if not self._open:
            return
        self._open = False
        try:
            await self._sweeper.aclose()
            await self.leases.aclose()
        finally:  # also where the wait is cancelled: there is no second time
            await self.store.aclose()
        for tail in self.hub:
            tail.forget()
        self.hub.drop_idle()

    def drain(self) -> None:
        """Have every reader told that the server goes away; nothing is lost, they resume elsewhere or later."""
        if not self.draining:
            self.draining = True
            for tail in self.hub:
                tail.wake()
            for begin in self.on_drain:
                begin()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        await self.aclose()

    # -- writing --------------------------------------------------------------------------------------------------

    async def create(
        self,
        name: str,
        *values: Any,
        content_type: str = "application/json",
        ttl: int | None = None,
        expires_at: int | None = None,
        retention: Retention | None = None,
        closed: bool = False,
        labels: dict[str, str] | None = None,
    ) -> bool:
        """Make a stream, with first messages if any. True: made now; False: it was there, as described.

        `ttl`: seconds without a read or write after which it is gone; `expires_at`: ms since 1970; one of them at
        most. `retention`: how much of it is kept. Raises StreamExists where the name holds a stream of another
        description.
        """
        if ttl is not None and expires_at is not None:
            raise BadRequest("give a TTL or an absolute expiry, not both")
        items = [self._item(value, None, as_json=is_json(content_type)) for value in values]
        config = Config(content_type, ttl, expires_at, retention and checked(retention))
        request = Create(config, items, closed, labels=labels or {})
        return (await self.carry_out(name, request)).what == "created"

    async def fork(
        self,
        source: str,
        name: str,
        offset: Offset | None = None,
        *,
        ttl: int | None = None,
        expires_at: int | None = None,
    ) -> bool:
        """Make a stream that begins with the messages of `source` up to `offset` (None: all) and goes its own way.

        Nothing is copied, and offsets up to there are good for both. Whatever is not given is as the source has it.
        True: made now; False: it was there. Raises StreamNotFound, StreamExists, Conflict (the source was deleted).
        """
        request = Create(Config("", ttl, expires_at), fork_of=ForkOf(source, offset))
        return (await self.carry_out(name, request)).what == "created"

    async def append(
        self,
        name: str,
        *values: Any,
        key: str | None = None,
        stamp: Stamp | None = None,
        expected: Offset | None = None,
        close: bool = False,
        outcome: str | None = None,
    ) -> Offset:
        """Add messages (all or none, G2) and say where the stream now ends; they are durable then, and readable (G3).

        bytes are taken as they are, and so is str unless the stream holds JSON; anything else becomes JSON. With a
        `stamp` a repeated append counts once (G6). With `expected` it is carried out only where the stream ends there,
        else OffsetMismatch. `close` ends the stream for ever in the same step. Raises StreamNotFound, StreamClosed,
        TooLarge, ….
        """
        # A text is a JSON string where JSON is kept; only for that the stream has to be asked what it keeps.
        texts = any(isinstance(value, str) for value in values)
        as_json = texts and is_json((await self.head(name)).config.content_type)
        items = [self._item(value, key, as_json=as_json) for value in values]
        decision = await self.carry_out(name, Append(items, None, stamp, None, close, outcome, expected))
        return decision.head.offset

    async def close(self, name: str, outcome: str = "completed") -> Offset:
        """End a stream for ever (G8); closing a closed one changes nothing. Says where it ends."""
        decision = await self.carry_out(name, Append(close=True, outcome=outcome))
        return decision.head.offset

    async def delete(self, name: str) -> None:
        """Remove a stream. Its offsets never come back (G1). Raises StreamNotFound where there is none.

        Where forks of it remain, they keep its messages and its name; StreamDeleted is raised for it until they go.
        """
        await self._forks.delete(name)

    async def carry_out(self, name: str, request: Request) -> Decision:
        """The whole of what create, append, fork and close can say, for protocols that say more than those."""
        checked_name(name)
        if not isinstance(request, Create):
            return await self._commits.carry_out(name, request)
        try:
            return await self._forks.create(name, request)
        except StreamExists:
            if not await self._forks.cleared(name):
                raise
        return await self._forks.create(name, request)

    def at_once(self, name: str, request: Append) -> asyncio.Future[Decision] | Decision | None:
        """`carry_out` without a task, where nothing has to be asked for first: committed, or a commit on its way, whose
        future nobody may cancel. None: nothing has happened, and it is for `carry_out` to say why."""
        return self._commits.at_once(checked_name(name), request)

    def writer(
        self,
        name: str,
        *,
        content_type: str = "application/json",
        ttl: int | None = None,
        labels: dict[str, str] | None = None,
        producer: str | None = None,
        join_ms: int = 0,
    ) -> Writer:
        """`async with` it: makes the stream, takes `send`s, ends the stream by how the block ends. See `Writer`.

        `producer`: as whom it appends, for streams that another process may take over (`Writer.take_over`).
        `join_ms`: what is sent within so long of a commit shares the next one, and every reader's write with it. 0: a
        token waits for nothing; 50 halves the work of a stream of tokens, and nobody sees it.
        """
        return Writer(
            self._commits,
            self.leases,
            name,
            content_type=content_type,
            ttl=ttl,
            labels=labels,
            producer=producer,
            join_ms=join_ms,
        )

    def _item(self, value: Any, key: str | None, *, as_json: bool) -> Item:
        item = Item(to_json(value) if as_json and isinstance(value, str) else to_bytes(value), key)
        if len(item.data) > self.limits.message_bytes:
            raise TooLarge(f"a message may have {self.limits.message_bytes:,} bytes")
        return item

    # -- reading --------------------------------------------------------------------------------------------------

    async def head(self, name: str) -> Head:
        """The stream's head. Does not count as a read. Raises StreamNotFound."""
        return await self._commits.head(name)

    async def read(self, name: str, offset: Offset | str | None = None, *, max_bytes: int | None = None) -> Page:
        """One page after `offset` (None or "-1": from the start; "now": the tail). Raises BadOffset, OffsetGone."""
        return (await self.page(name, offset, max_bytes=max_bytes))[1]

    async def page(
        self, name: str, offset: Offset | str | None = None, *, max_bytes: int | None = None
    ) -> tuple[Head, Page]:
        """The same, and the head by which the page was made."""
        try:
            return await self._page(name, offset, max_bytes)
        except OffsetGone:
            if offset is not None and offset != START:
                raise
        return await self._page(name, offset, max_bytes)  # trimmed just now: the start is further on

    async def _page(self, name: str, offset: Offset | str | None, max_bytes: int | None) -> tuple[Head, Page]:
        head = await self.head(name)
        start = resolve(head, offset)
        self._commits.touch(name, head)
        if start.position >= head.tail:
            return head, page_of(head, start, [])
        tail = self.hub.known(name)
        page_bytes = max_bytes or self.limits.page_bytes
        messages: Sequence[Message] = []
        if tail is not None and tail.reaches(head.offset):  # else another process has gone beyond the ring
            messages = tail.messages(start, page_bytes)
        if not messages:
            messages = await read_messages(self._commits.store, name, head, start, max_bytes=page_bytes)
        return head, page_of(head, start, messages)

    async def cursor(self, name: str, offset: Offset | str | None = None, *, max_bytes: int | None = None) -> Cursor:
        """A reader that stays: see `Cursor`. Close it. Raises like `read`."""
        tail = self.hub.join(name)
        resumes = offset not in (None, START, NOW)
        try:
            head = await self.head(name)
            start = resolve(head, offset)
        except BaseException as error:
            self.hub.leave(tail)
            if resumes and isinstance(error, OffsetGone | BadOffset):
                self.reads.resumed[_refused(error, offset, head)] += 1
            raise
        if resumes:
            self.reads.resumed["ok" if start.position < head.tail else "nothing_new"] += 1
        self._commits.touch(name, head)
        size = max_bytes or self.limits.page_bytes
        return Cursor(self._commits.store, self.hub, self.clock, tail, start, size, resumes=resumes)

    async def follow(self, name: str, offset: Offset | str | None = None) -> AsyncGenerator[Page]:
        """Page after page from `offset`, waiting for more at the tail; ends after the page that says `closed`.

        A slow consumer is simply behind: nothing is queued for it (G9). Raises StreamNotFound when the stream is
        deleted or expires meanwhile, OffsetGone when what it would read next was trimmed (G5).
        """
        cursor = await self.cursor(name, offset)
        try:
            async with aclosing(cursor.pages()) as pages:
                async for page in pages:
                    yield page
        finally:
            cursor.close()

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 100, newest: bool = False
    ) -> list[tuple[str, Head]]:
        """Streams whose name starts with `prefix`, by name, beyond `after`; at most `limit`, expired ones left out."""
        alive: list[tuple[str, Head]] = []
        while True:
            found = await self._commits.store.list(prefix, after=after, limit=limit, newest=newest)
            now = self.clock()
            alive += [(name, head) for name, head in found if not head.expired(now) and head.deleted is None]
            if len(found) < limit or len(alive) >= limit:
                return alive[:limit]
            after = found[-1][0]

    def statistics(self) -> dict[str, int]:
        """Figures for a console or metrics: tails held, readers on them, and the store's own."""
        own = {f"written_{name}": value for name, value in self.writes.statistics().items()}
        return {"tails": len(self.hub), "readers": self.hub.readers, **own, **self.store.statistics()}

    # -- what changes without being asked ---------------------------------------------------------------------------

    def _woken(self, name: str) -> None:
        """Another process may have changed this stream."""
        self._commits.forget(name)


def _refused(error: OffsetGone | BadOffset, offset: Offset | str | None, head: Head) -> Resumed:
    """What became of a reader that wanted to go on behind `offset`."""
    if isinstance(error, BadOffset):
        return "bad_offset"
    asked = Offset.parse(offset) if isinstance(offset, str) else offset
    return "gap" if asked is not None and asked.generation == head.generation else "other_stream"
