"""forks.py and lineage.py: what a fork reads, what it keeps alive, and what is left when anything fails half-way."""

import asyncio
import contextlib
import itertools
import random

import pytest

from headwater import hub as hub_module
from headwater.commits import Commits
from headwater.decide import Append, Create, ForkOf, Hold, Item, Stamp, Withdraw
from headwater.errors import (
    BadOffset,
    BadRequest,
    Conflict,
    ContentTypeMismatch,
    HeadwaterError,
    OffsetGone,
    StoreUnavailable,
    StreamDeleted,
    StreamExists,
    StreamNotFound,
)
from headwater.forks import CLAIMS, DEEPEST, RECHECK_MS, YOUNG_MS, _lineage
from headwater.model import BEGINNING, Config, Fork, Head, Offset, Retention, Segment
from headwater.stores.memory import MemoryStore
from headwater.stores.sqlite import SqliteStore
from headwater.streams import Streams


class Clock:
    def __init__(self):
        self.now = 1_700_000_000_000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request, tmp_path):
    """Gives objects on one and the same data."""
    kept = MemoryStore()
    if request.param == "memory":
        return lambda: kept
    return lambda: SqliteStore(str(tmp_path / "a.db"), synchronous="normal")


@pytest.fixture
async def streams(make_store, clock):
    async with Streams(make_store(), clock=clock) as streams:
        yield streams


async def everything(streams, name, offset=None, max_bytes=None):
    """All messages after `offset`, page after page, and what must hold of the pages."""
    found, page = [], await streams.read(name, offset, max_bytes=max_bytes)
    while True:
        found += page.messages
        if page.up_to_date:
            break
        assert page.messages
        offset, page = page.next, await streams.read(name, page.next, max_bytes=max_bytes)
        assert page.start == offset
    head = await streams.head(name)
    first = head.tail - len(found)
    assert [m.offset for m in found] == [Offset(head.generation, first + n) for n in range(1, len(found) + 1)]
    return [message.data for message in found]


async def names(streams, prefix=""):
    """Of all that the store holds, whatever its state, claims and all."""
    return [name for name, _ in await streams.store.list(prefix, after=None, limit=1000, newest=False)]


async def numbered(streams, name, count, **config):
    await streams.create(name, *(b"%d" % number for number in range(1, count + 1)), content_type="text/plain", **config)
    return await streams.head(name)


def numbers(first, last):
    return [b"%d" % number for number in range(first, last + 1)]


def at(head, position):
    return Offset(head.generation, position)


# -- what a fork reads -------------------------------------------------------------------------------------------------


async def test_a_fork_begins_with_its_source_and_goes_its_own_way(streams):
    head = await numbered(streams, "s", 4)
    assert await streams.fork("s", "f", at(head, 2)) is True
    assert await everything(streams, "f") == numbers(1, 2)
    await streams.append("s", b"5")
    await streams.append("f", b"mine")
    assert await everything(streams, "f") == [b"1", b"2", b"mine"]
    assert await everything(streams, "s") == numbers(1, 5)
    fork = await streams.head("f")
    assert (fork.tail, fork.size, fork.first, fork.start) == (3, 4, 2, 0)
    assert not fork.closed


async def test_nothing_is_copied(streams):
    await streams.create("s", b"x" * 100_000, content_type="text/plain")
    await streams.fork("s", "f")
    assert (await streams.head("f")).size == 0
    with pytest.raises(OffsetGone):  # what it inherits is read under the name it was appended to
        await streams.store.read("f", at(await streams.head("f"), 0), max_bytes=10)


@pytest.mark.parametrize("position", [None, BEGINNING, 0, 3, 6])
async def test_a_fork_may_begin_anywhere_and_be_read_from_anywhere(streams, position):
    head = await numbered(streams, "s", 6)
    offset = position if position in (None, BEGINNING) else at(head, position)
    await streams.fork("s", "f", offset)
    inherited = 6 if position is None else offset.position
    await streams.append("f", b"own")
    wanted = [*numbers(1, inherited), b"own"]
    for start in range(inherited + 2):
        for max_bytes in (1, 2, 3, 1000):
            assert await everything(streams, "f", at(await streams.head("f"), start), max_bytes) == wanted[start:]
    for start in range(inherited + 1):  # the source's offsets are good for the fork, too (4.2)
        assert await everything(streams, "f", at(head, start)) == wanted[start:]
    if inherited < 6:
        with pytest.raises((OffsetGone, BadOffset)):
            await streams.read("f", at(head, inherited + 1))


async def test_a_fork_of_a_fork_reads_each_message_where_it_stands(streams):
    head = await numbered(streams, "s", 3)
    previous, wanted = "s", numbers(1, 3)
    for depth in range(1, 8):
        name = f"f{depth}"
        await streams.fork(previous, name)
        await streams.append(name, b"from %d" % depth)
        await streams.append(previous, b"not seen")
        wanted.append(b"from %d" % depth)
        assert await everything(streams, name, max_bytes=1) == wanted
        previous = name
    lineage = (await streams.head("f7")).fork.lineage
    assert [(one.stream, one.until) for one in lineage] == [("s", 3), *((f"f{n}", n + 3) for n in range(1, 7))]
    await streams.fork("f7", "early", at(head, 2))  # before what f7 has itself, by an offset of the oldest
    assert {one.until for one in (await streams.head("early")).fork.lineage} == {2}
    for ancestor in ("s", "f1", "f7"):
        for position in range(3):
            offset = at(await streams.head(ancestor), position)
            assert await everything(streams, "early", offset) == numbers(1, 2)[position:]


async def test_offsets_of_every_ancestor_are_good_as_far_as_they_are_shared(streams):
    first = await numbered(streams, "s", 4)
    await streams.fork("s", "f", at(first, 3))
    await streams.append("f", b"f4", b"f5")
    middle = await streams.head("f")
    await streams.fork("f", "g", at(middle, 4))
    await streams.append("g", b"g5")
    assert await everything(streams, "g", at(first, 3)) == [b"f4", b"g5"]
    assert await everything(streams, "g", at(middle, 4)) == [b"g5"]
    for beyond in (at(first, 4), at(middle, 5)):
        with pytest.raises((OffsetGone, BadOffset)):
            await streams.read("g", beyond)


async def test_a_fork_never_has_the_generation_of_what_it_inherits_from(make_store):
    """An offset tells by it which of the family it is of; also where the clock stands still or goes back."""
    clock = Clock()
    async with Streams(make_store(), clock=clock) as streams:
        previous = await numbered(streams, "s", 2)
        for count in range(50):
            clock.now -= 1
            await streams.fork("s" if count == 0 else f"f{count - 1}", f"f{count}")
            head = await streams.head(f"f{count}")
            assert head.generation > previous.generation
            previous = head


async def test_a_fork_of_a_trimmed_stream_begins_where_that_does(streams):
    head = await numbered(streams, "s", 10, retention=Retention(messages=4))
    await streams._sweeper.sweep()
    assert (await streams.head("s")).start == 6
    await streams.fork("s", "f", at(head, 8))
    await streams.append("f", b"own")
    assert await everything(streams, "f") == [b"7", b"8", b"own"]
    assert await everything(streams, "f", at(head, 6)) == [b"7", b"8", b"own"]
    with pytest.raises(OffsetGone):
        await streams.read("f", at(head, 5))
    with pytest.raises(OffsetGone):
        await streams.read("f", BEGINNING)
    await streams.fork("f", "g")
    assert await everything(streams, "g") == [b"7", b"8", b"own"]
    with pytest.raises(OffsetGone):
        await streams.fork("s", "h", at(head, 5))
    assert "h" not in await names(streams)


async def test_a_fork_inherits_no_producer_no_sequence_and_no_ending(streams):
    await numbered(streams, "s", 1)
    stamp = Stamp("p", 3, 0)
    await streams.carry_out("s", Append([Item(b"2")], stamp=stamp, seq="9", close=True, outcome="failed"))
    await streams.fork("s", "f")
    head = await streams.head("f")
    assert (head.producers, head.seq, head.closed, head.outcome, head.closed_by) == ({}, None, False, None, None)
    decision = await streams.carry_out("f", Append([Item(b"3")], stamp=Stamp("p", 0, 0), seq="1"))
    assert (decision.what, decision.head.tail) == ("appended", 3)


# -- what is asked for -------------------------------------------------------------------------------------------------


INHERITED = Config("")


def fork_of(source, offset=None, sub_offset=0, config=INHERITED, **more):
    return Create(config, fork_of=ForkOf(source, offset, sub_offset), **more)


async def test_a_sub_offset_counts_messages_where_json_is_kept(streams):
    await streams.create("s", {"n": 1}, {"n": 2}, {"n": 3})
    head = await streams.head("s")
    await streams.carry_out("f", fork_of("s", at(head, 1), 1))
    assert await everything(streams, "f") == [b'{"n":1}', b'{"n":2}']
    assert (await streams.head("f")).fork.position == 2
    await streams.carry_out("all", fork_of("s", at(head, 1), 2))
    assert len(await everything(streams, "all")) == 3
    with pytest.raises(BadRequest):
        await streams.carry_out("beyond", fork_of("s", at(head, 1), 3))
    assert await names(streams, CLAIMS) != []
    assert "beyond" not in await names(streams)


@pytest.mark.parametrize(
    ("position", "bytes_", "wanted"),
    [
        (0, 1, [b"a"]),
        (0, 2, [b"ab"]),
        (0, 3, [b"abc"]),
        (1, 1, [b"abc", b"d"]),
        (1, 2, [b"abc", b"de"]),
        (0, 4, None),
        (2, 1, None),
    ],
)
async def test_a_sub_offset_counts_bytes_elsewhere_and_stays_within_the_next_message(streams, position, bytes_, wanted):
    await streams.create("s", b"abc", b"de", content_type="text/plain")
    head = await streams.head("s")
    request = fork_of("s", at(head, position), bytes_)
    if wanted is None:
        with pytest.raises(BadRequest):
            await streams.carry_out("f", request)
        assert await names(streams) == ["s"]
        return
    await streams.carry_out("f", request)
    assert await everything(streams, "f") == wanted
    await streams.append("f", b"!")
    assert await everything(streams, "f", max_bytes=1) == [*wanted, b"!"]
    assert (await streams.carry_out("f", request)).what == "exists"
    await streams.fork("f", "g")
    assert await everything(streams, "g", max_bytes=1) == [*wanted, b"!"]


async def test_a_fork_may_come_with_messages_of_its_own(streams):
    head = await numbered(streams, "s", 3)
    request = fork_of("s", at(head, 2), items=[Item(b"own"), Item(b"too", "k")])
    decision = await streams.carry_out("f", request)
    assert (decision.what, decision.head.tail) == ("created", 4)
    assert await everything(streams, "f") == [b"1", b"2", b"own", b"too"]


@pytest.mark.parametrize(
    ("source", "asked", "has"),
    [
        (Config("text/plain"), Config(""), Config("text/plain")),
        (Config("text/plain"), Config("TEXT/plain; x=y"), Config("TEXT/plain; x=y")),
        (Config("a/b", 60), Config(""), Config("a/b", 60)),
        (Config("a/b", 60), Config("", 5), Config("a/b", 5)),
        (Config("a/b", 60), Config("", None, 2_000_000_000_000), Config("a/b", None, 2_000_000_000_000)),
        (Config("a/b", None, 2_000_000_000_000), Config("", 5), Config("a/b", 5)),
        (Config("a/b", retention=Retention(messages=5)), Config(""), Config("a/b", retention=Retention(messages=5))),
        (
            Config("a/b", retention=Retention(messages=5)),
            Config("", retention=Retention(seconds=9)),
            Config("a/b", retention=Retention(seconds=9)),
        ),
    ],
)
async def test_what_is_not_said_is_as_the_source_has_it(streams, source, asked, has):
    await streams.carry_out("s", Create(source))
    assert (await streams.carry_out("f", fork_of("s", config=asked))).head.config == has
    assert (await streams.carry_out("f", fork_of("s", config=asked))).what == "exists"


async def test_what_cannot_be_forked_is_refused_and_leaves_nothing(streams):
    head = await numbered(streams, "s", 3)
    await streams.create("taken", content_type="text/plain")
    refused = [
        ("f", fork_of("none"), StreamNotFound),
        ("f", fork_of("s", config=Config("text/html")), ContentTypeMismatch),
        ("f", fork_of("s", at(head, 4)), BadOffset),
        ("f", fork_of("s", Offset(head.generation - 1, 1)), OffsetGone),
        ("f", fork_of("s", at(head, 3), 1), BadRequest),
        ("f", fork_of("s", None, 1), BadRequest),
        ("f", fork_of("s", at(head, 1), 2), BadRequest),
        ("f", fork_of("../s"), BadRequest),
        ("f", fork_of(""), BadRequest),
        ("", fork_of("s"), BadRequest),
        ("f", fork_of("f"), StreamNotFound),
        ("s", fork_of("s"), StreamExists),
        ("taken", fork_of("s"), StreamExists),
    ]
    for name, request, error in refused:
        with pytest.raises(error):
            await streams.carry_out(name, request)
    assert await names(streams) == ["s", "taken"]
    assert (await streams.head("s")).forked == 0


async def test_forking_again_agrees_or_conflicts(streams):
    head = await numbered(streams, "s", 3)
    await streams.fork("s", "f", at(head, 2))
    await streams.append("s", b"4")
    assert await streams.fork("s", "f", at(head, 2)) is False
    assert await streams.fork("s", "f") is False  # the tail was meant, and it has moved on since
    for request in (fork_of("s", at(head, 1)), fork_of("s", at(head, 2), 1), fork_of("g", at(head, 2))):
        with pytest.raises(StreamExists):
            await streams.carry_out("f", request)
    with pytest.raises(StreamExists):
        await streams.create("f", content_type="text/plain")
    with pytest.raises(StreamExists):
        await streams.carry_out("s", fork_of("f"))
    assert len(await names(streams, CLAIMS)) == 1


async def test_of_many_that_fork_alike_at_once_one_makes_it(streams):
    await numbered(streams, "s", 3)
    results = await asyncio.gather(*(streams.fork("s", "f") for _ in range(10)))
    assert sorted(results) == [False] * 9 + [True]
    assert len(await names(streams, CLAIMS)) == 1
    assert await everything(streams, "f") == numbers(1, 3)


def test_a_lineage_names_each_stretch_once_and_not_for_ever():
    def forked(name, source, head, position, tail):
        fork = Fork(source, position, 0, position, _lineage(source, head, position), "c")
        return Head(Config(), generation=head.generation + 1, tail=tail, fork=fork)

    first = Head(Config(), generation=1, tail=5)
    second = forked("b", "a", first, 3, 6)
    assert _lineage("b", second, 6) == (Segment("a", 1, 3), Segment("b", 2, 6))
    assert _lineage("b", second, 3) == (Segment("a", 1, 3), Segment("b", 2, 3))
    assert _lineage("b", second, 2) == (Segment("a", 1, 2), Segment("b", 2, 2))
    head = first
    for depth in range(DEEPEST - 1):
        head = forked("x", f"{depth}", head, head.tail, head.tail + 1)
    assert len(_lineage("last", head, head.tail)) == DEEPEST
    with pytest.raises(Conflict):
        _lineage("more", forked("x", "last", head, head.tail, head.tail + 1), head.tail + 1)


# -- deletion ----------------------------------------------------------------------------------------------------------


async def test_a_forked_stream_is_deleted_for_all_but_its_forks(streams):
    head = await numbered(streams, "s", 3)
    await streams.fork("s", "f", at(head, 2))
    await streams.delete("s")
    for doing in (
        streams.head("s"),
        streams.read("s"),
        streams.cursor("s"),
        streams.append("s", b"?"),
        streams.close("s"),
        streams.delete("s"),
    ):
        with pytest.raises(StreamDeleted):
            await doing
    with pytest.raises(StreamExists):
        await streams.create("s", content_type="text/plain")
    with pytest.raises(StreamExists):
        await streams.fork("f", "s")
    with pytest.raises(Conflict):
        await streams.fork("s", "g")
    assert [name for name, _ in await streams.list() if not name.startswith("headwater/")] == ["f"]
    assert await everything(streams, "f", max_bytes=1) == numbers(1, 2)
    assert await streams.fork("f", "g") is True
    assert await everything(streams, "g") == numbers(1, 2)


async def test_the_last_fork_takes_what_was_kept_for_it_along(streams):
    await numbered(streams, "s", 3)
    await streams.fork("s", "f")
    await streams.fork("f", "g")
    await streams.fork("f", "h")
    before = (await streams.head("s")).generation
    for name in ("s", "f", "g"):
        await streams.delete(name)
    assert await everything(streams, "h") == numbers(1, 3)
    await streams.delete("h")
    assert await names(streams) == []
    await streams.create("s", content_type="text/plain")
    assert (await streams.head("s")).generation > before


async def test_a_source_without_forks_left_is_simply_deleted(streams):
    await numbered(streams, "s", 3)
    await streams.fork("s", "f")
    await streams.delete("f")
    await streams.delete("s")
    assert await names(streams) == []


async def test_a_live_source_stays_when_its_forks_go(streams):
    await numbered(streams, "s", 3)
    await streams.fork("s", "f")
    await streams.delete("f")
    assert await names(streams) == ["s"]
    assert await everything(streams, "s") == numbers(1, 3)


async def test_a_source_that_expires_is_kept_for_its_forks_and_no_longer(streams, clock):
    head = await numbered(streams, "s", 3, ttl=10)
    await streams.carry_out("f", fork_of("s", at(head, 2), config=Config("", None, clock.now + 100_000)))
    clock.now += 10_000
    for sweeping in (False, True):
        with pytest.raises(StreamNotFound):
            await streams.read("s")
        with pytest.raises(StreamExists):
            await streams.create("s", content_type="text/plain")
        with pytest.raises((StreamNotFound, Conflict)):
            await streams.fork("s", "g")
        assert await everything(streams, "f") == numbers(1, 2)
        if not sweeping:
            clock.now += 2_000
            await streams._sweeper.sweep()
            assert (await streams.store.load("s")).deleted is not None
    clock.now += 100_000
    with pytest.raises(StreamNotFound):
        await streams.read("f")
    await streams._sweeper.sweep()
    assert await names(streams) == []


async def test_the_name_of_a_stream_whose_forks_are_gone_is_free_the_moment_it_expires(streams, clock):
    await numbered(streams, "s", 3, ttl=10)
    await streams.fork("s", "f")
    await streams.delete("f")
    clock.now += 10_000
    assert await streams.create("s", content_type="text/plain") is True
    assert await everything(streams, "s") == []


async def test_what_takes_the_name_of_a_forked_stream_is_another_family(streams, clock):
    """G1, G10: a fork reads the stream it was forked off from, never another one of that name."""
    await numbered(streams, "s", 3)
    await streams.fork("s", "f")
    await streams.delete("f")
    await streams.delete("s")
    await streams.create("s", b"other", content_type="text/plain")
    await streams.fork("s", "f")
    assert await everything(streams, "f") == [b"other"]
    clock.now += RECHECK_MS
    await streams._sweeper.sweep()
    assert await everything(streams, "f") == [b"other"]


def told(name, *both):
    """Two on one memory do not tell each other."""
    if both[0].store is both[1].store:
        for streams in both:
            streams._woken(name)


# -- readers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring_bytes", [1, 1000, 1 << 20])
@pytest.mark.parametrize("max_bytes", [1, 5, 1 << 20])
async def test_followers_cross_from_the_source_into_the_fork(make_store, clock, monkeypatch, ring_bytes, max_bytes):
    """From every offset, from ring and store, heads cached or not, on the object that writes and on another one."""
    for name in ("RING_BYTES", "IDLE_RING_BYTES"):
        monkeypatch.setattr(hub_module, name, ring_bytes)
    async with Streams(make_store(), clock=clock) as one, Streams(make_store(), clock=clock) as other:
        head = await numbered(one, "s", 6)
        await one.fork("s", "f", at(head, 4))
        await one.append("f", b"5a", b"6a")
        middle = await one.head("f")
        await one.fork("f", "g", at(middle, 5))
        wanted = [*numbers(1, 4), b"5a", b"6b", b"7b", b"8b"]

        async def follow(streams, start):
            cursor = await streams.cursor("g", start, max_bytes=max_bytes)
            found = []
            try:
                async for page in cursor.pages():
                    found += page.messages
            finally:
                cursor.close()
            first = len(wanted) - len(found)
            assert [m.offset.position for m in found] == list(range(first + 1, len(wanted) + 1))
            return [m.data for m in found]

        last = await one.head("g")
        starts = [None, *(at(head, n) for n in range(5)), at(middle, 5), *(at(last, n) for n in range(6))]
        async with asyncio.TaskGroup() as group:
            tasks = [(start, group.create_task(follow(streams, start))) for start in starts for streams in (one, other)]
            await asyncio.sleep(0)
            await one.append("g", b"6b")
            await one.append("s", b"not seen")
            await other.append("g", b"7b")
            await other.append("g", b"8b", close=True)
            told("g", one, other)
        for start, task in tasks:
            assert task.result() == wanted[start.position if start else 0 :]


async def test_a_follower_of_a_source_learns_that_it_was_deleted(make_store, clock):
    async with Streams(make_store(), clock=clock) as one, Streams(make_store(), clock=clock) as other:
        await numbered(one, "s", 2)
        await one.fork("s", "f")

        async def follow(streams, name):
            async for page in streams.follow(name):
                got[streams, name] += page.messages
                arrived.set()

        got = {(streams, name): [] for streams in (one, other) for name in ("s", "f")}
        arrived = asyncio.Event()
        tasks = {key: asyncio.create_task(follow(*key)) for key in got}
        while not all(len(messages) == 2 for messages in got.values()):
            arrived.clear()
            await arrived.wait()
        await one.delete("s")
        told("s", one, other)
        for streams in (one, other):
            with pytest.raises(StreamDeleted):
                await asyncio.wait_for(tasks[streams, "s"], 5)
        await other.append("f", b"3", close=True)
        told("f", one, other)
        for streams in (one, other):
            await asyncio.wait_for(tasks[streams, "f"], 5)
            assert [message.data for message in got[streams, "f"]] == numbers(1, 3)


async def test_a_reader_of_a_fork_that_goes_with_its_family_is_told(make_store, clock):
    """G5: never a gap, never another stream's messages."""
    async with Streams(make_store(), clock=clock) as one, Streams(make_store(), clock=clock) as other:
        head = await numbered(one, "s", 4)
        await one.fork("s", "f", at(head, 3))
        cursor = await other.cursor("f", max_bytes=1)
        assert (await cursor.take()).messages[0].data == b"1"
        await one.delete("s")
        await one.delete("f")
        await numbered(one, "s", 9)
        pages = cursor.pages()
        with pytest.raises((OffsetGone, StreamNotFound)):
            await anext(pages)
        await pages.aclose()
        cursor.close()


# -- what fails half-way -----------------------------------------------------------------------------------------------


class Failing(MemoryStore):
    """From the change `fails_at` on, that one or all: without effect, with it, or with it a good deal later."""

    def __init__(self):
        super().__init__()
        self.changes, self.fails_at, self.way = 0, None, None

    def fail(self, fails_at, way):
        self.changes, self.fails_at, self.way = 0, fails_at, way

    def _submit(self, change):
        self.changes += 1
        if self.fails_at is None or self.changes < self.fails_at:
            return super()._submit(change)
        one, effect = self.way
        if one == "once" and self.changes > self.fails_at:
            return super()._submit(change)
        loop = asyncio.get_running_loop()
        if self.changes == self.fails_at and effect == "done":
            super()._submit(change).add_done_callback(lambda done: done.exception())
        elif self.changes == self.fails_at and effect == "late":
            later(loop, 40, lambda: MemoryStore._submit(self, change).add_done_callback(lambda done: done.exception()))
        future = loop.create_future()
        loop.call_soon(lambda: future.done() or future.set_exception(StoreUnavailable("the disk is full")))
        return future


def later(loop, turns, do):
    if turns:
        loop.call_soon(later, loop, turns - 1, do)
    else:
        do()


async def landed():
    for _ in range(100):
        await asyncio.sleep(0)


WAYS = list(itertools.product(("once", "from then on"), ("never", "done", "late")))


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("fails_at", range(1, 6))
@pytest.mark.parametrize("deleted_first", [True, False], ids=["source goes first", "fork goes first"])
async def test_wherever_the_making_of_a_fork_fails_it_is_whole_or_absent_and_nothing_stays(
    clock, fails_at, way, deleted_first
):
    store = Failing()
    async with Streams(store, clock=clock) as streams:
        head = await numbered(streams, "s", 3)
        store.fail(fails_at, way)
        request = fork_of("s", at(head, 2), items=[Item(b"own")])
        failed = None
        try:
            await streams.carry_out("f", request)
        except HeadwaterError as error:
            failed = error
        assert failed is None or isinstance(failed, StoreUnavailable)
        assert failed is not None or fails_at > 3
        await landed()
    store.fail(None, None)
    async with Streams(store, clock=clock) as streams:
        assert await everything(streams, "s") == numbers(1, 3)
        made = "f" in await names(streams)
        assert made or failed is not None
        if made and deleted_first:
            await streams.delete("s")
            for _ in range(3):  # however often and late the sweeper looks: a fork that is there keeps its messages
                clock.now += YOUNG_MS + RECHECK_MS
                await streams._sweeper.sweep()
            assert await everything(streams, "f") == [b"1", b"2", b"own"]
            await streams.delete("f")
        else:
            if made:
                assert await everything(streams, "f") == [b"1", b"2", b"own"]
                await streams.delete("f")
            await streams.delete("s")
        clock.now += YOUNG_MS + 1
        await streams._sweeper.sweep()
        assert await names(streams) == []


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.parametrize("fails_at", range(1, 7))
async def test_wherever_deleting_a_family_fails_nothing_readable_is_lost_and_nothing_stays(clock, fails_at, way):
    store = Failing()
    family = {"s": numbers(1, 3), "f": numbers(1, 3), "g": [*numbers(1, 2), b"own"]}
    async with Streams(store, clock=clock) as streams:
        await numbered(streams, "s", 3)
        await streams.fork("s", "f")
        await streams.carry_out("g", fork_of("f", at(await streams.head("f"), 2), items=[Item(b"own")]))
        store.fail(fails_at, way)
        asked = []
        for name in ("s", "f", "g"):
            asked.append(name)
            try:
                await streams.delete(name)
            except StoreUnavailable:
                break
        await landed()
    store.fail(None, None)
    async with Streams(store, clock=clock) as streams:
        for _ in range(2):
            for name in set(family) - set(asked):
                assert await everything(streams, name) == family[name]
            clock.now += RECHECK_MS + YOUNG_MS
            await streams._sweeper.sweep()
        for name in family:
            try:
                await streams.delete(name)
            except StreamNotFound:
                assert name in asked
        clock.now += RECHECK_MS + YOUNG_MS
        await streams._sweeper.sweep()
        assert await names(streams) == []


async def test_a_fork_whose_maker_was_cancelled_is_whole_or_leaves_a_claim_that_goes(make_store, clock):
    async with Streams(make_store(), clock=clock) as streams:
        await numbered(streams, "s", 3)
        for turns in range(0, 40, 2):
            making = asyncio.create_task(streams.fork("s", f"f{turns}"))
            for _ in range(turns):
                await asyncio.sleep(0)
            making.cancel()
            await asyncio.wait([making])
        made = [name for name in await names(streams) if name.startswith("f")]
        await streams.delete("s")
        for _ in range(2):
            clock.now += YOUNG_MS + RECHECK_MS
            await streams._sweeper.sweep()
        for name in [name for name in await names(streams) if name.startswith("f")]:
            assert await everything(streams, name) == numbers(1, 3)
            await streams.delete(name)
        clock.now += YOUNG_MS + RECHECK_MS
        await streams._sweeper.sweep()
        assert await names(streams) == []
        assert set(made) <= {f"f{turns}" for turns in range(0, 40, 2)}


async def test_a_claim_that_a_crash_left_does_not_outlive_its_time(streams, clock):
    """Young: it may be of a fork that is being made. Old: it is dropped, and what it kept goes."""
    head = await numbered(streams, "s", 3)
    await streams.fork("s", "f")
    ((claim, _),) = await streams._forks._claims("s", head, 9)
    leftover = claim[:-1] + "?"
    await streams._commits.carry_out(leftover, Create(Config("application/json"), [Item(b'"never"')]))
    await streams.delete("s")
    await streams.delete("f")
    assert await names(streams) == [leftover, "s"]
    clock.now += YOUNG_MS - 1
    await streams._sweeper.sweep()
    assert await names(streams) == [leftover, "s"]
    clock.now += 1
    await streams._sweeper.sweep()
    assert await names(streams) == []


# -- who is quicker ----------------------------------------------------------------------------------------------------


async def interfering(monkeypatch, request_kind, do):
    """Run `do` just before the first request of this kind is carried out."""
    carry_out, done = Commits.carry_out, []

    async def carried(commits, name, request):
        if isinstance(request, request_kind) and not done:
            done.append(True)
            await do()
        return await carry_out(commits, name, request)

    monkeypatch.setattr(Commits, "carry_out", carried)
    return done


async def test_a_source_that_goes_while_it_is_forked_has_no_fork(streams, monkeypatch):
    await numbered(streams, "s", 3)
    done = await interfering(monkeypatch, Hold, lambda: streams.delete("s"))
    with pytest.raises((StreamNotFound, Conflict)):
        await streams.fork("s", "f")
    assert done
    await streams._sweeper.sweep()
    assert "f" not in await names(streams)


async def test_a_source_that_another_stream_replaces_while_it_is_forked_is_looked_at_again(streams, monkeypatch):
    async def replace():
        await streams.delete("s")
        await streams.create("s", b"other", content_type="text/plain")

    # Its claim does not hold the one that came instead.
    async def drop():
        for name in await names(streams, CLAIMS):
            await streams._commits.delete(name)
        await replace()

    await numbered(streams, "s", 3)
    done = await interfering(monkeypatch, Hold, drop)
    await streams.fork("s", "f")
    assert done
    assert await everything(streams, "f") == [b"other"]
    assert len(await names(streams, CLAIMS)) == 1


async def test_a_stream_that_took_the_name_meanwhile_is_not_withdrawn_for_the_one_before(streams, monkeypatch, clock):
    """Whoever looks at a withdrawn stream may be slow: by then the name may be another stream's."""

    async def replace():
        await streams.delete("f")
        await streams.create("s", b"other", content_type="text/plain")

    await numbered(streams, "s", 3)
    await streams.fork("s", "f")
    await streams.delete("s")
    clock.now += RECHECK_MS
    done = await interfering(monkeypatch, Withdraw, replace)
    await streams._sweeper.sweep()
    assert done
    assert await everything(streams, "s") == [b"other"]


class Families:
    """What many do to streams and forks of one file, and what the forks that are there must hold."""

    def __init__(self, pool):
        self.pool, self.wanted, self.made, self.chance = pool, {}, 0, random.Random(7)

    async def work(self, streams, mark):
        for count in range(12):
            do = self.chance.choices((self.fork, self.delete_fork, self.create, self.delete), (11, 4, 4, 2))[0]
            with contextlib.suppress(StreamNotFound, StreamExists, Conflict):
                await do(streams, f"{mark}.{count}")

    async def fork(self, streams, name):
        source = self.chance.choice([*self.pool, *self.wanted])
        decision = await streams.carry_out(name, fork_of(source, items=[Item(name.encode())]))
        found = await everything(streams, name)
        assert len(found) == decision.head.tail
        assert found[-1] == name.encode()
        self.wanted[name] = found
        self.made += 1

    async def delete_fork(self, streams, _):
        name = self.chance.choice([*self.wanted, "n0"])
        self.wanted.pop(name, None)
        await streams.delete(name)

    async def create(self, streams, _):
        await streams.create(self.chance.choice(self.pool), b"first", content_type="text/plain")

    async def delete(self, streams, _):
        await streams.delete(self.chance.choice(self.pool))


async def test_a_fork_that_goes_while_its_source_is_deleted_leaves_nothing(streams, monkeypatch):
    await numbered(streams, "s", 3)
    await streams.fork("s", "f")
    done = await interfering(monkeypatch, Withdraw, lambda: streams.delete("f"))
    await streams.delete("s")
    assert done
    assert await names(streams) == []


async def test_a_fork_that_took_so_long_that_its_claim_may_be_gone_is_not_there(streams, monkeypatch, clock):
    async def sleep():
        clock.now += YOUNG_MS
        await streams._sweeper.sweep()

    await numbered(streams, "s", 3)
    done = await interfering(monkeypatch, Hold, sleep)
    with pytest.raises(StoreUnavailable, match="took so long"):
        await streams.fork("s", "f")
    assert done
    assert await names(streams) == ["s"]
    assert await streams.fork("s", "f") is True


async def test_a_fork_whose_making_only_seemed_to_conflict_keeps_its_claim(clock):
    """As where a store's answer is lost, and the same commit is tried once more by a driver."""

    class Twice(MemoryStore):
        def commit(self, name, expected, head, messages):
            if name == "f":
                super().commit(name, expected, head, messages)
            return super().commit(name, expected, head, messages)

    async with Streams(Twice(), clock=clock) as streams:
        await numbered(streams, "s", 3)
        await streams.fork("s", "f")
        await streams.delete("s")
        clock.now += RECHECK_MS
        await streams._sweeper.sweep()
        assert await everything(streams, "f") == numbers(1, 3)


async def test_families_are_whole_after_whatever_many_do_at_once(tmp_path, clock):
    """Twenty tasks on two objects over one file: forks alive read exactly their messages, the rest goes."""
    families = Families([f"n{number}" for number in range(8)])
    stores = [SqliteStore(str(tmp_path / "a.db"), synchronous="normal") for _ in range(2)]
    async with Streams(stores[0], clock=clock) as one, Streams(stores[1], clock=clock) as other:
        for name in families.pool:
            await numbered(one, name, 5)
        await asyncio.gather(*(families.work((one, other)[number % 2], f"t{number}") for number in range(20)))
        assert families.made > 20
        for _ in range(2):
            for streams in (one, other):
                for name, data in families.wanted.items():
                    assert await everything(streams, name) == data
            clock.now += RECHECK_MS + YOUNG_MS
            await other._sweeper.sweep()
        for name in (*families.wanted, *families.pool):
            with contextlib.suppress(StreamNotFound):
                await one.delete(name)
        await one._sweeper.sweep()
        assert await names(one) == []
