"""Streams over each store, held to a model in plain dicts: whatever is done in whatever order, both say the same.

Two Streams objects work on the same data, so that what one of them has cached is often out of date.
"""

import asyncio
import dataclasses
import tempfile
from collections.abc import Callable

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from headwater.decide import Append, Item, Stamp
from headwater.errors import (
    BadOffset,
    BadRequest,
    HeadwaterError,
    OffsetGone,
    ProducerFenced,
    ProducerGap,
    SequenceRegression,
    StreamClosed,
    StreamExists,
    StreamNotFound,
)
from headwater.model import Offset
from headwater.stores.memory import MemoryStore
from headwater.stores.sqlite import SqliteStore
from headwater.streams import Streams

NAMES = st.sampled_from(["a", "a/b", "c"])
DATA = st.lists(st.tuples(st.binary(max_size=3), st.sampled_from([None, "k", ""])), max_size=3)
WHO = st.sampled_from([0, 1])
STAMPS = st.builds(Stamp, st.sampled_from(["p", "q"]), st.integers(0, 2), st.integers(0, 3))


@dataclasses.dataclass
class Modelled:
    ttl: int | None
    expires_at: int | None
    touched: int
    messages: list[tuple[bytes, str | None, int]] = dataclasses.field(default_factory=list)
    closed: bool = False
    closed_by: Stamp | None = None
    outcome: str | None = None
    seq: str | None = None
    producers: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def over(self, now: int) -> bool:
        end = self.touched + self.ttl * 1000 if self.ttl is not None else self.expires_at
        return end is not None and now >= end


class Model:
    """What the streams should be."""

    def __init__(self) -> None:
        self.streams: dict[str, Modelled] = {}
        self.now = 1_000_000

    def alive(self, name: str) -> Modelled | None:
        stream = self.streams.get(name)
        return None if stream is None or stream.over(self.now) else stream

    def create(self, name, data, ttl, expires_at, closed):
        stream = self.alive(name)
        if stream is None:
            self.streams[name] = Modelled(ttl, expires_at, self.now, [(one, None, self.now) for one in data], closed)
            return True
        if (stream.ttl, stream.expires_at, stream.closed) != (ttl, expires_at, closed):
            return StreamExists
        return False

    def append(self, name, data, stamp, seq, close, outcome):
        stream = self.alive(name)
        if stream is None:
            return StreamNotFound
        if stream.closed:
            again = close and not data if stamp is None else stream.closed_by == stamp
            return "duplicate" if again else StreamClosed
        if not data and not close:
            return BadRequest
        refused = self.refused(stream.producers.get(stamp.producer), stamp) if stamp else None
        if refused:
            return refused
        if seq is not None and stream.seq is not None and seq <= stream.seq:
            return SequenceRegression
        stream.messages += [(one, key, self.now) for one, key in data]
        stream.touched = self.now
        stream.seq = stream.seq if seq is None else seq
        if stamp:
            stream.producers[stamp.producer] = (stamp.epoch, stamp.seq)
        if close:
            stream.closed, stream.closed_by, stream.outcome = True, stamp, outcome
        return "appended"

    def refused(self, known, stamp):
        """What becomes of an append that is not this producer's next."""
        if known is None:
            return ProducerGap if stamp.seq else None
        epoch, last = known
        if stamp.epoch < epoch:
            return ProducerFenced
        if stamp.epoch > epoch:
            return BadRequest if stamp.seq else None
        if stamp.seq > last + 1:
            return ProducerGap
        return "duplicate" if stamp.seq <= last else None

    def delete(self, name):
        if self.alive(name) is None:
            return StreamNotFound
        del self.streams[name]
        return None


class Machine(RuleBasedStateMachine):
    """The same steps on the model and on the real thing."""

    reopened: Callable[[], "SqliteStore | MemoryStore"]

    def __init__(self) -> None:
        super().__init__()
        self.model = Model()
        self.generations: dict[str, list[int]] = {}
        self.loop = asyncio.new_event_loop()
        self.both: list[Streams] = []
        self.set_up()
        self.restart()

    def set_up(self) -> None:
        raise NotImplementedError

    def store(self):
        raise NotImplementedError

    def run(self, doing):
        try:
            return self.loop.run_until_complete(doing)
        except HeadwaterError as error:
            return type(error)

    @rule()
    def restart(self) -> None:
        async def again():
            for streams in self.both:
                await streams.aclose()
            self.both = [Streams(self.store(), clock=lambda: self.model.now) for _ in range(2)]
            for streams in self.both:
                await streams.open()

        self.run(again())

    def teardown(self) -> None:
        for streams in self.both:
            self.run(streams.aclose())
        self.loop.close()

    @rule(ms=st.sampled_from([1, 999, 1000, 1500, 5000]))
    def time_passes(self, ms) -> None:
        self.model.now += ms

    @rule(
        who=WHO,
        name=NAMES,
        data=st.lists(st.binary(max_size=2), max_size=2),
        end=st.sampled_from([None, None, "ttl", "at"]),
        closed=st.booleans(),
    )
    def create(self, who, name, data, end, closed) -> None:
        ttl = 2 if end == "ttl" else None
        at = 1_007_000 if end == "at" else None
        got = self.run(self.both[who].create(name, *data, ttl=ttl, expires_at=at, closed=closed))
        assert got == self.model.create(name, data, ttl, at, closed)
        if got is True and self.model.alive(name):
            generation = self.run(self.both[who].head(name)).generation
            assert all(generation > earlier for earlier in self.generations.get(name, []))
            self.generations.setdefault(name, []).append(generation)

    @rule(
        who=WHO,
        name=NAMES,
        data=DATA,
        stamp=st.none() | STAMPS,
        seq=st.none() | st.sampled_from("0123"),
        close=st.sampled_from([False, False, False, True]),
    )
    def append(self, who, name, data, stamp, seq, close) -> None:
        items = [Item(*one) for one in data]
        request = Append(items, None, stamp, seq, close, "completed" if close else None)
        got = self.run(self.both[who].carry_out(name, request))
        expected = self.model.append(name, data, stamp, seq, close, request.outcome)
        if isinstance(got, type):
            assert got is expected
        else:
            assert got.what == expected
            assert got.head.tail == len(self.model.alive(name).messages)

    @rule(who=WHO, name=NAMES, count=st.integers(2, 8), closing=st.booleans())
    def append_many_at_once(self, who, name, count, closing) -> None:
        """In the order of the calls, whatever is on its way; after the closing one, none."""
        calls = [(name, [(b"%d" % number, None)], closing and number == count - 2) for number in range(count)]

        async def all_at_once():
            return await asyncio.gather(
                *(
                    self.both[who].append(name, *(one for one, _ in data), close=close, outcome="failed")
                    for name, data, close in calls
                ),
                return_exceptions=True,
            )

        results = self.run(all_at_once())
        for (_, data, close), result in zip(calls, results, strict=True):
            expected = self.model.append(name, data, None, None, close, "failed")
            assert expected == ("appended" if isinstance(result, Offset) else type(result))

    @rule(who=WHO, name=NAMES)
    def delete(self, who, name) -> None:
        assert self.run(self.both[who].delete(name)) == self.model.delete(name)

    @rule(who=WHO, name=NAMES, max_bytes=st.sampled_from([1, 4, 1 << 20]))
    def read_from_everywhere(self, who, name, max_bytes) -> None:
        stream = self.model.alive(name)
        got = self.run(self.both[who].read(name))
        if stream is None:
            assert got is StreamNotFound
            return
        generation = self.generations[name][-1]
        for position in range(len(stream.messages) + 1):
            found, offset = [], Offset(generation, position)
            while True:
                page = self.run(self.both[who].read(name, offset, max_bytes=max_bytes))
                assert page.start == offset
                assert len(page.messages) <= 1 or sum(len(m.data) for m in page.messages) <= max_bytes
                found += page.messages
                offset = page.next
                if page.up_to_date:
                    break
                assert page.messages
            assert [(m.data, m.key, m.time) for m in found] == stream.messages[position:]
            assert [m.offset.position for m in found] == list(range(position + 1, len(stream.messages) + 1))
            assert (page.closed, page.outcome) == (stream.closed, stream.outcome)
        assert self.run(self.both[who].read(name, Offset(generation, len(stream.messages) + 1))) is BadOffset
        for earlier in self.generations[name][:-1]:
            assert self.run(self.both[who].read(name, Offset(earlier, 1))) is OffsetGone
        self.touched(who, name, stream)

    def touched(self, who, name, stream) -> None:
        """A read counts for a sliding end; the store may learn of it a moment later."""
        if stream.ttl is None:
            return
        stream.touched = self.model.now

        async def until_stored():
            while (await self.both[who].store.load(name)).touched != stream.touched:
                await asyncio.sleep(0)

        self.run(until_stored())

    @precondition(lambda self: self.model.streams)
    @rule(who=WHO)
    def sweep(self, who) -> None:
        assert self.run(self.both[who]._sweeper.sweep()) is None

    @invariant()
    def heads_and_lists_agree(self) -> None:
        alive = {name: stream for name in sorted(self.model.streams) if (stream := self.model.alive(name))}
        for streams in self.both:
            listed = self.run(streams.list(limit=2 if alive else 100))
            assert [name for name, _ in listed] == list(alive)[:2]
            for name, stream in alive.items():
                head = self.run(streams.head(name))
                assert (head.tail, head.closed, head.outcome) == (len(stream.messages), stream.closed, stream.outcome)
                assert head.size == sum(len(data) for data, _, _ in stream.messages)


class OnMemory(Machine):
    def set_up(self) -> None:
        self.kept = MemoryStore()

    def store(self):
        return self.kept


class OnSqlite(Machine):
    def set_up(self) -> None:
        self.folder = tempfile.TemporaryDirectory()

    def store(self):
        return SqliteStore(f"{self.folder.name}/a.db", synchronous="normal")

    def teardown(self) -> None:
        super().teardown()
        self.folder.cleanup()


TestOnMemory = OnMemory.TestCase
TestOnMemory.settings = hypothesis.settings(
    max_examples=80, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
TestOnSqlite = OnSqlite.TestCase
TestOnSqlite.settings = hypothesis.settings(
    max_examples=15, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
