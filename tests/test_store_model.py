"""Streams over each store, held to a model in plain dicts: whatever is done in whatever order, both say the same.

The model copies what a fork inherits; the real thing reads it where it stands. Two Streams objects work on the same
data, so that what one of them has cached is often out of date.
"""

import asyncio
import dataclasses
import tempfile
from collections.abc import Callable

import hypothesis
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from headwater.decide import Append, Create, ForkOf, Item, Stamp
from headwater.errors import (
    BadOffset,
    BadRequest,
    Conflict,
    HeadwaterError,
    OffsetGone,
    OffsetMismatch,
    ProducerFenced,
    ProducerGap,
    SequenceRegression,
    StreamClosed,
    StreamDeleted,
    StreamExists,
    StreamNotFound,
)
from headwater.forks import CLAIMS
from headwater.model import Config, Offset, Retention
from headwater.stores.memory import MemoryStore
from headwater.stores.sqlite import SqliteStore
from headwater.streams import Streams

NAMES = st.sampled_from(["a", "ab", "a/b", "c", "d", "e"])
DATA = st.lists(st.tuples(st.binary(max_size=3), st.sampled_from([None, "k", ""])), max_size=3)
WHO = st.sampled_from([0, 1])
STAMPS = st.builds(Stamp, st.sampled_from(["p", "q"]), st.integers(0, 2), st.integers(0, 3))
KEPT = 2  # messages, where a stream has a retention; it is looked at as soon as it holds more

BEGAN = 1_000_000
LONGEST = 59_000  # ms: within it nothing that a fork has claimed grows old


def type_of(name):
    """Of what is made under this name: sub-offsets of the one count messages, of the other bytes."""
    return "text/plain" if name == "c" else "application/json"


@dataclasses.dataclass(eq=False)
class Modelled:
    name: str
    type: str
    ttl: int | None
    expires_at: int | None
    touched: int
    messages: list[tuple[bytes, str | None, int]] = dataclasses.field(default_factory=list)
    closed: bool = False
    closed_by: Stamp | None = None
    outcome: str | None = None
    seq: str | None = None
    producers: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    keeps: bool = False
    start: int = 0
    look: int | None = None
    deleted: bool = False
    source: "Modelled | None" = None
    asked: tuple[int, int] = (0, 0)
    inherited: int = 0

    def over(self, now: int) -> bool:
        end = self.touched + self.ttl * 1000 if self.ttl is not None else self.expires_at
        return not self.deleted and end is not None and now >= end

    def note(self, now: int) -> None:
        if self.keeps and len(self.messages) - self.start > KEPT:
            self.look = now


class Model:
    """What the streams should be."""

    def __init__(self) -> None:
        self.streams: dict[str, Modelled] = {}
        self.now = BEGAN

    def alive(self, name: str) -> Modelled | None:
        stream = self.streams.get(name)
        return None if stream is None or stream.deleted or stream.over(self.now) else stream

    def missing(self, name: str):
        stream = self.streams.get(name)
        return StreamDeleted if stream is not None and stream.deleted else StreamNotFound

    def forks(self, stream: Modelled) -> list[Modelled]:
        return [other for other in self.streams.values() if other.source is stream]

    def remove(self, stream: Modelled) -> None:
        """And what was kept for it alone."""
        del self.streams[stream.name]
        source = stream.source
        if source is not None and (source.deleted or source.over(self.now)) and not self.forks(source):
            self.remove(source)

    def place(self, stream: Modelled):
        """Where the name is free, or taken by what is over and needed by nobody."""
        before = self.streams.get(stream.name)
        if before is not None and self.forks(before):
            return StreamExists
        if before is not None:
            self.remove(before)
        self.streams[stream.name] = stream
        return True

    def create(self, name, data, ttl, expires_at, closed, keeps):
        stream = self.alive(name)
        if stream is None:
            messages = [(one, None, self.now) for one in data]
            made = Modelled(name, type_of(name), ttl, expires_at, self.now, messages, closed, keeps=keeps)
            made.note(self.now)
            return self.place(made)
        has = (stream.type, stream.ttl, stream.expires_at, stream.closed, stream.source)
        if has != (type_of(name), ttl, expires_at, closed, None) or (keeps and not stream.keeps):
            return StreamExists
        return False

    def fork(self, source_name, name, position, sub, data, ttl):
        stream, source = self.alive(name), self.alive(source_name)
        if stream is not None:
            return self.same_fork(stream, source_name, position, sub, ttl)
        if name in self.streams and self.streams[name].deleted:
            return StreamExists
        if source is None:
            return Conflict if self.missing(source_name) is StreamDeleted else StreamNotFound
        tail = len(source.messages)
        at = tail if position is None else position
        if at > tail:
            return BadOffset
        if at < source.start:
            return OffsetGone
        branch = self.branch(source, at, sub)
        if branch is None:
            return BadRequest
        until, part = branch
        life = (source.ttl, source.expires_at) if ttl is None else (ttl, None)
        messages = source.messages[:until] + [(one, key, self.now) for one, key in [*part, *data]]
        made = Modelled(name, source.type, *life, self.now, messages, keeps=source.keeps, start=source.start)
        made.source, made.asked, made.inherited = source, (at, sub), until
        made.look = self.now if made.keeps and made.start < len(messages) else None
        return self.place(made)

    def same_fork(self, stream, source_name, position, sub, ttl):
        at = stream.asked[0] if position is None else position
        alike = stream.source is not None and stream.source.name == source_name and stream.asked == (at, sub)
        lives = ttl is None or (stream.ttl, stream.expires_at) == (ttl, None)
        return False if alike and lives and not stream.closed else StreamExists

    def branch(self, source, at, sub):
        """Up to where messages are inherited whole, and the part of one that comes after those."""
        if sub == 0:
            return at, []
        if source.type == "application/json":
            return (at + sub, []) if at + sub <= len(source.messages) else None
        if at == len(source.messages) or sub > len(source.messages[at][0]):
            return None
        whole, key, _ = source.messages[at]
        return (at + 1, []) if sub == len(whole) else (at, [(whole[:sub], key)])

    def append(self, name, data, stamp, seq, close, outcome, expected=None):
        stream = self.alive(name)
        if stream is None:
            return self.missing(name)
        if stream.closed:
            again = close and not data if stamp is None else stream.closed_by == stamp
            return "duplicate" if again else StreamClosed
        if not data and not close:
            return BadRequest
        refused = self.refused(stream.producers.get(stamp.producer), stamp) if stamp else None
        if refused:
            return refused
        if expected is not None and expected != len(stream.messages):
            return OffsetMismatch
        if seq is not None and stream.seq is not None and seq <= stream.seq:
            return SequenceRegression
        stream.messages += [(one, key, self.now) for one, key in data]
        stream.touched = self.now
        stream.seq = stream.seq if seq is None else seq
        if stamp:
            stream.producers[stamp.producer] = (stamp.epoch, stamp.seq)
        if close:
            stream.closed, stream.closed_by, stream.outcome = True, stamp, outcome
        if data:
            stream.note(self.now)
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
        stream = self.alive(name)
        if stream is None:
            return self.missing(name)
        if self.forks(stream):
            stream.deleted = True
        else:
            self.remove(stream)
        return None

    def sweep(self) -> list[Modelled]:
        """Gives those that may have been trimmed or not: was their last fork swept before them?"""
        due = [stream for stream in self.streams.values() if stream.look is not None and stream.look <= self.now]
        pinned = {stream.name for stream in due if self.forks(stream)}
        for stream in list(self.streams.values()):
            if self.streams.get(stream.name) is stream and stream.over(self.now - 1000):
                if self.forks(stream):
                    stream.deleted = True
                else:
                    self.remove(stream)
        unsure = []
        for stream in due:
            if self.alive(stream.name) is not stream:
                continue
            stream.look = None
            if stream.name not in pinned:
                stream.start = max(stream.start, len(stream.messages) - KEPT)
            elif self.forks(stream):
                stream.look = self.now + 60_000
            else:
                unsure.append(stream)
        return unsure


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
                await streams._sweeper.aclose()  # swept by the rule for it, and not in between

        self.run(again())

    def teardown(self) -> None:
        for streams in self.both:
            self.run(streams.aclose())
        self.loop.close()

    @initialize(data=st.lists(st.binary(min_size=1, max_size=3), min_size=2, max_size=5), forked=st.booleans())
    def begin(self, data, forked) -> None:
        """With a family to work on, and one that is to be trimmed."""
        for name, keeps in (("a", False), ("c", True)):
            self.create(0, name, data, None, False, keeps)
        if forked:
            self.fork(0, 0, "ab", 1, 0, 0, [(b"own", None)], None)
        else:
            self.sweep(0)

    @rule(ms=st.sampled_from([1, 999, 1000, 1500, 5000]))
    def time_passes(self, ms) -> None:
        self.model.now = min(self.model.now + ms, BEGAN + LONGEST)

    @rule(
        who=WHO,
        name=NAMES,
        data=st.lists(st.binary(max_size=2), max_size=2),
        end=st.sampled_from([None, None, None, None, "ttl", "at"]),
        closed=st.sampled_from([False, False, False, True]),
        keeps=st.booleans(),
    )
    def create(self, who, name, data, end, closed, keeps) -> None:
        ttl = 2 if end == "ttl" else None
        at = 1_007_000 if end == "at" else None
        kept = Retention(messages=KEPT) if keeps else None
        create = self.both[who].create(
            name, *data, content_type=type_of(name), ttl=ttl, expires_at=at, closed=closed, retention=kept
        )
        got = self.run(create)
        assert got == self.model.create(name, data, ttl, at, closed, keeps)
        self.made(who, name, got is True)

    @precondition(lambda self: self.model.streams)
    @rule(
        who=WHO,
        source=st.integers(0, 5),
        name=NAMES,
        back=st.none() | st.integers(-1, 3),
        inherited=st.integers(0, 2),
        sub=st.sampled_from([0, 0, 1, 2, 3]),
        data=DATA,
        ttl=st.sampled_from([None, None, 2]),
    )
    def fork(self, who, source, name, back, inherited, sub, data, ttl) -> None:
        """At any position, named by an offset of the source or of one that it was forked off from itself."""
        stream = list(self.model.streams.values())[source % len(self.model.streams)]
        source, position, offset = stream.name, None, None
        if back is not None and source in self.generations:
            position = max(0, len(stream.messages) - back)
            while inherited and stream.source is not None and position <= stream.inherited:
                stream, inherited = stream.source, inherited - 1
            offset = Offset(self.generations[stream.name][-1], position)
        items = [Item(*one) for one in data]
        request = Create(Config("", ttl), items, fork_of=ForkOf(source, offset, sub))
        got = self.run(self.both[who].carry_out(name, request))
        got = got if isinstance(got, type) else got.what == "created"
        assert got == self.model.fork(source, name, position, sub, data, ttl)
        self.made(who, name, got is True)

    def made(self, who, name, now) -> None:
        if now and self.model.alive(name):
            head = self.run(self.both[who].head(name))
            assert all(head.generation > earlier for earlier in self.generations.get(name, []))
            self.generations.setdefault(name, []).append(head.generation)

    @rule(
        who=WHO,
        name=NAMES,
        data=DATA,
        stamp=st.none() | STAMPS,
        seq=st.none() | st.sampled_from("0123"),
        close=st.sampled_from([False, False, False, True]),
        behind=st.none() | st.sampled_from([0, 0, 1]),
    )
    def append(self, who, name, data, stamp, seq, close, behind) -> None:
        items = [Item(*one) for one in data]
        stream, ends, offset = self.model.alive(name), None, None
        if stream is not None and behind is not None:
            ends = max(0, len(stream.messages) - behind)
            offset = Offset(self.generations[name][-1], ends)
        request = Append(items, None, stamp, seq, close, "completed" if close else None, offset)
        got = self.run(self.both[who].carry_out(name, request))
        expected = self.model.append(name, data, stamp, seq, close, request.outcome, ends)
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
            assert got is self.model.missing(name)
            return
        generation = self.generations[name][-1]
        for position in range(stream.start):
            assert self.run(self.both[who].read(name, Offset(generation, position))) is OffsetGone
        for position in range(stream.start, len(stream.messages) + 1):
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
        family = self.offsets_of_ancestors(who, name, stream)
        for earlier in self.generations[name][:-1]:
            if earlier not in family:  # drawn from the clock, which stands still: two streams may have the same one
                assert self.run(self.both[who].read(name, Offset(earlier, 1))) is OffsetGone
        self.touched(who, name, stream)

    def offsets_of_ancestors(self, who, name, stream) -> set[int]:
        """They are good as far as their messages are shared."""
        family, shared, ancestor = {self.generations[name][-1]}, stream.inherited, stream.source
        while ancestor is not None:
            generation = self.generations[ancestor.name][-1]
            assert generation not in family
            family.add(generation)
            for position in range(stream.start, shared + 1):
                page = self.run(self.both[who].read(name, Offset(generation, position)))
                assert page.start == Offset(self.generations[name][-1], position)
            assert self.run(self.both[who].read(name, Offset(generation, shared + 1))) is OffsetGone
            ancestor, shared = ancestor.source, min(shared, ancestor.inherited)
        return family

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
        for stream in self.model.sweep():
            head = self.run(self.both[who].head(stream.name))
            assert head.start in (stream.start, max(stream.start, len(stream.messages) - KEPT))
            stream.start, stream.look = head.start, head.look

    @invariant()
    def heads_and_lists_agree(self) -> None:
        alive = {name: stream for name in sorted(self.model.streams) if (stream := self.model.alive(name))}
        for streams in self.both:
            listed = [name for name, _ in self.run(streams.list(limit=2 if alive else 100))]
            assert [name for name in listed if not name.startswith(CLAIMS)] == list(alive)[:2]
            for name, stream in alive.items():
                head = self.run(streams.head(name))
                assert (head.tail, head.closed, head.outcome) == (len(stream.messages), stream.closed, stream.outcome)
                assert head.size == sum(len(data) for data, _, _ in stream.messages[stream.inherited :])
                assert head.trimmed == sum(len(data) for data, _, _ in stream.messages[stream.inherited : stream.start])
                assert (head.start, head.look) == (stream.start, stream.look)

    @invariant()
    def all_read_alike(self) -> None:
        """From the start; where reads prolong a life, the rule for reading does it."""
        for name, stream in self.model.streams.items():
            if self.model.alive(name) and stream.ttl is None:
                found, offset, page = [], None, None
                while page is None or not page.up_to_date:
                    page = self.run(self.both[0].read(name, offset))
                    found, offset = [*found, *page.messages], page.next
                assert [(m.data, m.key, m.time) for m in found] == stream.messages[stream.start :]

    @invariant()
    def nothing_else_is_kept(self) -> None:
        """A claim for each fork, and of streams only those that are alive, needed by forks, or not swept yet."""
        held = [name for name, _ in self.run(self.both[0].store.list("", after=None, limit=1000, newest=False))]
        assert [name for name in held if not name.startswith(CLAIMS)] == sorted(self.model.streams)
        forks = sum(stream.source is not None for stream in self.model.streams.values())
        assert sum(name.startswith(CLAIMS) for name in held) == forks


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
    max_examples=120, stateful_step_count=40, deadline=None, derandomize=True, database=None
)
TestOnSqlite = OnSqlite.TestCase
TestOnSqlite.settings = hypothesis.settings(
    max_examples=15, stateful_step_count=30, deadline=None, derandomize=True, database=None
)
