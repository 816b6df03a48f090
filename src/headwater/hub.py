"""The live ends of hot streams in this process: a bounded ring of messages and a wake, shared by all readers.

*The log is the truth; a wake is only a hint; a reader pulls.* A tail never pushes to a reader and holds no queue for
one: it keeps the newest messages for everybody, and a future for each reader that found nothing and waits.

Knows the model. Does not know the store: whoever asks for what is not in the ring is sent there by the layer above.
Invariants: the ring is contiguous and holds only committed messages (G4); its size is bounded in bytes (G9); a wake
resolves a future of each waiter's own, so that cancelling one reader touches no other.
"""

from __future__ import annotations

import asyncio
import functools
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Hashable, Iterator, Sequence
from itertools import accumulate, islice
from typing import Any, Final, TypeVar

import msgspec

from headwater.model import Absent, Head, Message, Offset, Page

T = TypeVar("T")

RING_BYTES: Final = 256 * 1024
"""Kept of a hot stream: a reader this far behind still costs no read of the store. 5,000 tokens take about 400 KB."""

IDLE_RING_BYTES: Final = 32 * 1024
"""Kept of a stream that nobody reads here, for who comes back in a moment; with IDLE_TAILS of them 40 MB at most."""

MESSAGE_OVERHEAD: Final = 200
"""Counted per message beside its data: what the objects take, so that tiny messages are bounded too."""

IDLE_TAILS: Final = 1024
"""Tails without a reader that are kept for the next one; the oldest is dropped first."""

MOST_MESSAGES: Final = 4096
"""In one page, however small they are: bounds the time the loop spends on one reader."""

MEMO_PAGES: Final = 8
"""Rendered pages kept per tail: readers that keep up all ask for the newest one, in a few formats."""


class Tail:
    """What this process knows of one stream. All methods are called on the loop."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.readers = 0
        self._calls = 0
        self._unfinished: dict[int, None] = {}  # calls, in the order in which they began
        self._behind: dict[int, asyncio.Future[None]] = {}  # those of them that wait until they are the first
        self.head: Head | Absent | None = None
        """As last committed, as far as is known here; None: not known, ask the store."""
        self.seen: Head | Absent | None = None
        """The newest one that was ever known here, which may be old."""
        self.latest: Head | Absent | None = None
        """What the next decision is made on: `head`, or the head of a commit still on its way."""
        self.turn = asyncio.Lock()
        """Held while a decision is made on `latest` that has to ask the store first."""
        self.in_turn = 0
        """How many hold it, or wait for it: a decision that need not wait must not overtake theirs."""
        self.outstanding: asyncio.Future[None] | None = None
        """The last commit submitted, until it has been seen to; when it is done, so are all before it."""
        self.wakes = 0
        self._touched = 0
        self._generation = -1
        self._base = 0
        self._messages: list[Message] = []
        self._sums: list[int] = [0]  # _sums[i]: cost of the messages before the i-th since the ring began
        self._waiters: set[asyncio.Future[None]] = set()
        self.on_wake: dict[Callable[[], None], None] = {}
        """Called at each wake: by who stands for many that wait, and who waits for more than a wake."""
        self._memo: OrderedDict[Hashable, bytes] = OrderedDict()
        self._flights: dict[Hashable, asyncio.Future[Any]] = {}

    def __repr__(self) -> str:
        return f"<Tail {self.name!r} [{self.readers} readers, {len(self._messages)} messages from {self._base}]>"

    # -- what is there --------------------------------------------------------------------------------------------

    def messages(self, start: Offset, max_bytes: int) -> list[Message]:
        """Messages after `start` out of the ring: at least one, up to `max_bytes`; none where it lacks the next one."""
        index = start.position - self._base
        if start.generation != self._generation or not 0 <= index < len(self._messages):
            return []
        end = bisect_right(self._sums, self._sums[index] + max_bytes) - 1
        return self._messages[index : min(max(end, index + 1), index + MOST_MESSAGES)]

    def time_after(self, offset: Offset, otherwise: int) -> int:
        """When the message after `offset` was appended, ms, or the oldest in the ring, where that one is older;
        `otherwise` where there is none."""
        found = self.messages(offset, 1) or self._messages[:1]
        return found[0].time if found else otherwise

    @property
    def newest(self) -> Message | None:
        """The last message of the ring."""
        return self._messages[-1] if self._messages else None

    @property
    def volume(self) -> int:
        """Bytes of all messages that have come into the ring since it began, each with its overhead."""
        return self._sums[-1]

    def reaches(self, offset: Offset) -> bool:
        """Whether the ring goes up to `offset` or beyond it."""
        return offset.generation == self._generation and offset.position <= self._base + len(self._messages)

    def rendered(self, key: Hashable, make: Callable[[], bytes]) -> bytes:
        """`make()`, or what it gave when somebody asked for the same `key` a moment ago."""
        made = self._memo.get(key)
        if made is None:
            made = self._memo[key] = make()
            if len(self._memo) > MEMO_PAGES:
                self._memo.popitem(last=False)
        return made

    async def once(self, key: Hashable, fetch: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """`await fetch()`, shared by all who ask for `key` before the next wake: a thousand readers ask the store once.

        Cancelling one of them leaves the others and the fetch alone.
        """
        flight = self._flights.get((self.wakes, key))
        if flight is None:
            flight = asyncio.ensure_future(fetch())
            self._flights[self.wakes, key] = flight
            flight.add_done_callback(functools.partial(self._landed, (self.wakes, key)))
        return await asyncio.shield(flight)

    def _landed(self, key: Hashable, flight: asyncio.Future[Any]) -> None:
        del self._flights[key]
        if not flight.cancelled():
            flight.exception()  # whoever waited has it; if nobody does any more, it is nobody's

    # -- growing --------------------------------------------------------------------------------------------------

    def grow(self, head: Head, messages: Sequence[Message]) -> None:
        """A commit is done: keep its messages, wake everybody."""
        # Where the head is not known, somebody else may have gone further meanwhile: the next to look asks the store.
        if self.head is not None:
            self.learn(head)
        self.seen = _newer(self.seen, head)
        self.extend(messages)
        self.wake()

    def extend(self, messages: Sequence[Message]) -> None:
        """Keep committed messages. Those that do not follow on what is here start the ring anew."""
        if not messages:
            return
        generation, after_first = messages[0].offset
        if generation != self._generation or after_first - 1 != self._base + len(self._messages):
            if generation == self._generation and after_first - 1 < self._base + len(self._messages):
                return  # known already, or older: the ring keeps the newest
            self._generation, self._base = generation, after_first - 1
            self._messages, self._sums = [], [0]
            self._memo.clear()
        costs = [len(message.data) + MESSAGE_OVERHEAD for message in messages]
        self._sums.extend(islice(accumulate(costs, initial=self._sums[-1]), 1, None))
        self._messages.extend(messages)
        self._trim()

    def rest(self) -> None:
        """The last reader has gone: keep less."""
        self._memo.clear()
        self._trim()

    def _trim(self) -> None:
        most = RING_BYTES if self.readers else min(RING_BYTES, IDLE_RING_BYTES)
        # A quarter at a time: dropping the front of a list costs as much as is left of it.
        if self._sums[-1] - self._sums[0] <= most * 5 // 4:
            return
        drop = min(bisect_right(self._sums, self._sums[-1] - most), len(self._messages) - 1)
        self._base += drop
        del self._messages[:drop]
        del self._sums[:drop]

    def learn(self, head: Head | Absent, wakes: int | None = None) -> None:
        """Take `head` for the committed one, unless a newer one is known.

        `wakes`, for a head out of the store: how many there had been before it was asked. After one more, what it said
        may be old already, and would keep a reader waiting for what is there.
        """
        if wakes is not None and wakes != self.wakes:
            return
        self.head = _newer(self.head, head)
        self.seen = _newer(self.seen, head)

    def touch(self, now: int) -> None:
        """A read at `now` (ms), which moves a sliding expiry."""
        self._touched = max(self._touched, now)
        if isinstance(self.head, Head):
            self.head = self.touched_head(self.head)
        if isinstance(self.latest, Head):
            self.latest = self.touched_head(self.latest)

    def touched_head(self, head: Head | Absent) -> Head | Absent:
        """`head` as later reads left it: the store may learn of those a moment after us."""
        if isinstance(head, Head) and head.config.ttl is not None and head.touched < self._touched:
            return msgspec.structs.replace(head, touched=self._touched)
        return head

    def forget(self) -> None:
        """Something changed that we do not know: the next one to look asks the store. Wakes everybody."""
        self.head = self.latest = None
        self.wake()

    # -- being written to -----------------------------------------------------------------------------------------

    def begun(self) -> int:
        """A request is being decided on this tail, which must not be dropped for another of the same name until then.

        Gives the number of the call.
        """
        self._calls += 1
        self._unfinished[self._calls] = None
        return self._calls

    def ended(self, call: int) -> None:
        """It has been carried out or refused, or its caller has given up."""
        del self._unfinished[call]
        if self._behind:
            first = self._behind.get(next(iter(self._unfinished), 0))
            if first is not None and not first.done():
                first.set_result(None)

    async def is_first(self, call: int) -> None:
        """Until every call that began before it has ended."""
        while next(iter(self._unfinished)) != call:
            self._behind[call] = asyncio.get_running_loop().create_future()
            try:
                await self._behind[call]
            finally:
                del self._behind[call]

    # -- waiting --------------------------------------------------------------------------------------------------

    def waiter(self) -> asyncio.Future[None]:
        """A future of the caller's own, done at the next wake. Whoever stops waiting gives it to `discard`.

        To lose no wake: note `wakes`, look, and wait only if it is still the same.
        """
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiters.add(future)
        return future

    def discard(self, future: asyncio.Future[None]) -> None:
        self._waiters.discard(future)

    def wake(self) -> None:
        self.wakes += 1
        if self._waiters:
            waiters, self._waiters = self._waiters, set()
            for future in waiters:
                if not future.done():
                    future.set_result(None)
        for call in tuple(self.on_wake):
            call()

    @property
    def settled(self) -> bool:
        """No commit is being made or on its way."""
        return not self._unfinished and (self.outstanding is None or self.outstanding.done())


def _newer(known: Head | Absent | None, head: Head | Absent) -> Head | Absent:
    """`head`, unless the one that is known is newer."""
    if known is None or (known.generation, known.version) <= (head.generation, head.version):
        return head
    return known


class Hub:
    """The tails of this process, by stream name: those with readers, and the last used of the others."""

    def __init__(self, watch: Callable[[str, bool], None]) -> None:
        self._tails: dict[str, Tail] = {}
        self._idle: OrderedDict[str, None] = OrderedDict()
        self._watch = watch
        self.readers = 0
        """Of all tails."""

    def __repr__(self) -> str:
        return f"<Hub [{len(self._tails)} tails, {len(self._idle)} of them idle]>"

    def __iter__(self) -> Iterator[Tail]:
        return iter(list(self._tails.values()))

    def __len__(self) -> int:
        return len(self._tails)

    def known(self, name: str) -> Tail | None:
        return self._tails.get(name)

    def tail(self, name: str) -> Tail:
        """The tail of a stream, made if need be."""
        tail = self._tails.get(name)
        if tail is None:
            tail = self._tails[name] = Tail(name)
            self._rest(tail)
        elif name in self._idle:
            self._idle.move_to_end(name)
        return tail

    def join(self, name: str) -> Tail:
        """A reader comes: its tail, which hears of other processes' commits from now on."""
        tail = self.tail(name)
        self._idle.pop(name, None)
        tail.readers += 1
        self.readers += 1
        if tail.readers == 1:
            self._watch(name, True)
            tail.head = None  # nobody listened for other processes until now, so what is known may be old
        return tail

    def leave(self, tail: Tail) -> None:
        """A reader goes."""
        tail.readers -= 1
        self.readers -= 1
        if not tail.readers:
            self._watch(tail.name, False)
            tail.rest()
            self._rest(tail)

    def drop_idle(self) -> None:
        """Keep no tail without a reader: its lock belongs to this event loop, and the next may be another."""
        for name in self._idle:
            del self._tails[name]
        self._idle.clear()

    def _rest(self, tail: Tail) -> None:
        self._idle[tail.name] = None
        for _ in range(2):  # two for one that comes: the number falls again after many were busy at once
            if len(self._idle) > IDLE_TAILS:
                oldest = self._idle.popitem(last=False)[0]
                if self._tails[oldest].settled:
                    del self._tails[oldest]
                else:
                    self._idle[oldest] = None


def page_of(head: Head, start: Offset, messages: Sequence[Message]) -> Page:
    """The page that `messages` after `start` make, of a stream whose head is `head`."""
    after = messages[-1].offset if messages else start
    at_tail = after >= (head.generation, head.tail)
    return Page(messages, start, after, at_tail, at_tail and head.closed, head.outcome)
