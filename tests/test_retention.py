"""retention.py: what is kept of a stream, when that is looked at, and what readers and forks see of a trim."""

import asyncio
import itertools
import sqlite3
import time
from contextlib import asynccontextmanager, suppress

import pytest

from headwater import forks, retention
from headwater import hub as hub_module
from headwater.commits import Commits
from headwater.decide import Append, Create, ForkOf, Item, Trim
from headwater.errors import BadRequest, OffsetGone, StoreUnavailable, StreamNotFound
from headwater.forks import RECHECK_MS, YOUNG_MS
from headwater.model import BEGINNING, Config, Offset, Retention
from headwater.retention import PINNED_MS
from headwater.stores import sqlite_file, sqlite_writer
from headwater.stores.memory import MemoryStore
from headwater.stores.sqlite import SqliteStore
from headwater.streams import Streams
from headwater.sweeper import Sweeper


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


@asynccontextmanager
async def opened(store, clock, rules=()):
    """Streams that are swept when a test says so, and not before."""
    async with Streams(store, clock=clock, retention=rules) as streams:
        await streams._sweeper.aclose()
        yield streams


@pytest.fixture
async def streams(make_store, clock):
    async with opened(make_store(), clock) as streams:
        yield streams


async def kept(streams, name):
    """What can be read from the start."""
    found, page = [], await streams.read(name)
    found += page.messages
    while not page.up_to_date:
        page = await streams.read(name, page.next)
        found += page.messages
    return [message.data for message in found]


async def made(streams, name, *data, **keep):
    await streams.create(name, content_type="text/plain", retention=Retention(**keep))
    for one in data:
        await streams.append(name, one)


async def swept(streams, clock, ms=0):
    clock.now += ms
    await streams._sweeper.sweep()


def numbers(first, last):
    return [b"%d" % number for number in range(first, last + 1)]


# -- what is kept ------------------------------------------------------------------------------------------------------


async def test_at_most_an_eighth_more_messages_are_kept_than_asked_for(streams, clock):
    await made(streams, "a", *numbers(1, 36), messages=32)
    await swept(streams, clock)
    assert await kept(streams, "a") == numbers(1, 36)
    await streams.append("a", b"37")
    await swept(streams, clock)
    assert await kept(streams, "a") == numbers(6, 37)
    assert (await streams.head("a")).look is None


async def test_at_most_an_eighth_more_bytes_are_kept_than_asked_for(streams, clock):
    await made(streams, "a", *[b"x" * 10] * 11, bytes=100)
    await swept(streams, clock)
    assert len(await kept(streams, "a")) == 11
    await streams.append("a", b"y" * 3)
    await swept(streams, clock)
    assert [len(data) for data in await kept(streams, "a")] == [10] * 9 + [3]
    head = await streams.head("a")
    assert (head.size, head.trimmed, head.tail, head.start) == (113, 20, 12, 2)


async def test_the_newest_message_stays_however_large_it_is(streams, clock):
    await made(streams, "a", b"x", b"y" * 1000, bytes=10)
    await swept(streams, clock)
    assert await kept(streams, "a") == [b"y" * 1000]
    await swept(streams, clock, 1)
    assert await kept(streams, "a") == [b"y" * 1000]
    await streams.append("a", b"z")
    await swept(streams, clock)
    assert await kept(streams, "a") == [b"z"]


async def test_messages_are_kept_for_their_time(streams, clock):
    await made(streams, "a", seconds=60)
    for number in range(1, 5):
        await streams.append("a", b"%d" % number)
        clock.now += 10_000
    await swept(streams, clock, 19_999)
    assert await kept(streams, "a") == numbers(1, 4)
    await swept(streams, clock, 1)
    assert await kept(streams, "a") == numbers(2, 4)
    await swept(streams, clock, 20_000)
    assert await kept(streams, "a") == numbers(4, 4)
    await streams.close("a")
    await swept(streams, clock, 10_000)
    assert await kept(streams, "a") == []
    head = await streams.head("a")
    assert (head.look, head.start, head.tail, head.trimmed) == (None, 4, 4, 4)


async def test_a_stream_whose_messages_all_went_by_age_is_looked_at_again_after_the_next(streams, clock):
    await made(streams, "a", b"1", seconds=60)
    await swept(streams, clock, 60_000)
    await streams.append("a", b"2")
    assert (await streams.head("a")).look == clock.now + 60_000
    await swept(streams, clock, 60_000)
    assert await kept(streams, "a") == []


async def test_of_several_bounds_each_holds(streams, clock):
    await made(streams, "a", *[b"%03d" % number for number in range(100)], messages=50, bytes=60, seconds=10)
    await swept(streams, clock)
    assert await kept(streams, "a") == [b"%03d" % number for number in range(80, 100)]
    await swept(streams, clock, 10_000)
    assert await kept(streams, "a") == []


async def test_a_stream_larger_than_what_is_trimmed_at_a_time_is_trimmed_in_steps(streams, clock, monkeypatch):
    monkeypatch.setattr(retention, "PAGE_BYTES", 100)
    monkeypatch.setattr(retention, "PAGES", 3)
    await made(streams, "a", messages=10)
    await streams.append("a", *[b"x" * 10] * 200)
    starts = [0]
    while (head := await streams.head("a")).tail - head.start > 10:
        await swept(streams, clock)
        starts.append((await streams.head("a")).start)
    assert starts[-1] == 190
    assert max(after - before for before, after in itertools.pairwise(starts)) <= 21
    assert head.look is None


# -- rules -------------------------------------------------------------------------------------------------------------

RULES = [
    ("chat/keep*", Retention()),
    ("chat/*", Retention(messages=4)),
    ("*.log", Retention(messages=2)),
    ("*", Retention(messages=8)),
]


@pytest.mark.parametrize(
    ("name", "left"), [("chat/keep-me", 20), ("chat/1", 4), ("chat/x.log", 4), ("x.log", 2), ("x", 8)]
)
async def test_the_first_rule_that_matches_counts(make_store, clock, name, left):
    async with opened(make_store(), clock, RULES) as streams:
        await streams.create(name, content_type="text/plain")
        await streams.append(name, *numbers(1, 20))
        await swept(streams, clock)
        assert await kept(streams, name) == numbers(21 - left, 20)


async def test_what_a_stream_was_created_with_goes_before_the_rules(make_store, clock):
    async with opened(make_store(), clock, RULES) as streams:
        await made(streams, "chat/1", *numbers(1, 20), messages=15)
        await made(streams, "chat/2", *numbers(1, 20))
        await swept(streams, clock)
        assert len(await kept(streams, "chat/1")) == 15
        assert len(await kept(streams, "chat/2")) == 20


async def test_the_server_s_own_streams_are_not_trimmed_by_rules(make_store, clock):
    async with opened(make_store(), clock, [("*", Retention(messages=1))]) as streams:
        await streams.create("headwater/x")
        await streams.append("headwater/x", 1, 2, 3)
        await swept(streams, clock)
        await streams._keeping.survey()
        assert len(await kept(streams, "headwater/x")) == 3


@pytest.mark.parametrize("before", [[], [("a*", Retention(seconds=10**6))]], ids=["no rule", "a looser rule"])
async def test_a_rule_is_for_streams_that_were_there_before_it(make_store, clock, before):
    async with opened(make_store(), clock, before) as streams:
        for name in ("a1", "a2", "b"):
            await streams.create(name, content_type="text/plain")
            await streams.append(name, b"1")
            clock.now += 5_000
            await streams.append(name, b"2")
        versions = {name: (await streams.head(name)).version for name in ("a1", "a2", "b")}
    rules = [("a[12]", Retention(seconds=14))]
    async with opened(make_store(), clock, rules) as streams:
        await streams._keeping.survey()
        assert [await kept(streams, name) for name in ("a1", "a2", "b")] == [[b"2"], numbers(1, 2), numbers(1, 2)]
        versions["a2"] = (await streams.head("a2")).version
        assert versions["b"] == (await streams.head("b")).version
        await streams._keeping.survey()
        assert versions["a2"] == (await streams.head("a2")).version, "nothing has changed, so nothing is to be written"
        await swept(streams, clock, 4_000)
        assert await kept(streams, "a2") == [b"2"]


async def test_without_its_rule_a_stream_is_left_alone(make_store, clock):
    async with opened(make_store(), clock, [("a", Retention(seconds=1))]) as streams:
        await streams.create("a", content_type="text/plain")
        await streams.append("a", b"1")
    async with opened(make_store(), clock) as streams:
        await swept(streams, clock, 1_000)
        assert await kept(streams, "a") == [b"1"]
        assert (await streams.head("a")).look is None


@pytest.mark.parametrize(
    ("pattern", "prefix"), [("a/b", "a/b"), ("a*", "a"), ("*", ""), ("a?b*", "a"), ("x[ab]", "x"), ("a]b", "a]b")]
)
def test_only_names_that_begin_as_the_rule_does_are_surveyed(pattern, prefix):
    assert retention._literal(pattern) == prefix


# -- what readers see --------------------------------------------------------------------------------------------------


async def test_readers_behind_a_trim_are_told_and_never_skip(streams, clock):
    """G5"""
    await made(streams, "a", *numbers(1, 20), messages=8)
    head = await streams.head("a")
    cursors = [await streams.cursor("a", Offset(head.generation, position), max_bytes=1) for position in range(21)]
    for tail in streams.hub:
        tail.extend([])
    await swept(streams, clock)
    for position in range(12):
        with pytest.raises(OffsetGone):
            await streams.read("a", Offset(head.generation, position))
    with pytest.raises(OffsetGone):
        await streams.read("a", BEGINNING)
    assert await kept(streams, "a") == numbers(13, 20)
    await streams.close("a")
    for position, cursor in enumerate(cursors):
        found = []
        try:
            async for page in cursor.pages():
                found += [message.data for message in page.messages]
        except OffsetGone:
            assert found == []  # not in the ring either
            assert position < 12
        else:
            assert found == numbers(position + 1, 20)
        cursor.close()


async def test_a_follower_that_falls_behind_a_trim_is_told(make_store, clock, monkeypatch):
    for name in ("RING_BYTES", "IDLE_RING_BYTES"):
        monkeypatch.setattr(hub_module, name, 1)
    both = make_store(), make_store()
    async with opened(both[0], clock) as one, opened(both[1], clock) as other:
        await made(one, "a", *numbers(1, 20), messages=8)
        cursors = [await streams.cursor("a", max_bytes=1) for streams in (one, other)]
        for cursor in cursors:
            assert [message.data for message in (await cursor.take()).messages] == [b"1"]
        await swept(one, clock)
        for cursor in cursors:
            with pytest.raises(OffsetGone):
                await cursor.take()
            cursor.close()


async def test_a_follower_at_the_tail_notices_nothing(streams, clock):
    await made(streams, "a", messages=2)
    found, pages = [], streams.follow("a")
    for number in range(1, 30):
        await streams.append("a", b"%d" % number)
        found += [message.data for message in (await anext(pages)).messages]
        await swept(streams, clock)
    assert found == numbers(1, 29)
    assert await kept(streams, "a") == numbers(28, 29)
    await pages.aclose()


# -- forks -------------------------------------------------------------------------------------------------------------


async def test_what_forks_need_is_kept_until_they_are_gone(streams, clock):
    await made(streams, "a", *numbers(1, 20), messages=8)
    await streams.carry_out("f", Create(Config("", retention=Retention()), fork_of=ForkOf("a")))
    await swept(streams, clock)
    assert await kept(streams, "f") == await kept(streams, "a") == numbers(1, 20)
    await swept(streams, clock, PINNED_MS)
    assert await kept(streams, "f") == await kept(streams, "a") == numbers(1, 20)
    await streams.delete("f")
    await swept(streams, clock, PINNED_MS)
    assert await kept(streams, "a") == numbers(13, 20)


async def test_a_claim_that_a_crash_left_does_not_keep_a_stream_from_being_trimmed(streams, clock):
    await made(streams, "a", *numbers(1, 20), messages=8)
    await streams.fork("a", "f")
    ((claim, _),) = await streams._forks._claims("a", await streams.head("a"), 9)
    await streams._commits.carry_out(claim[:-1] + "?", Create(Config("application/json"), [Item(b'"never"')]))
    await streams.delete("f")
    clock.now += YOUNG_MS
    await swept(streams, clock)
    await swept(streams, clock, PINNED_MS)
    assert await kept(streams, "a") == numbers(13, 20)


async def test_what_a_fork_inherited_is_trimmed_for_it_like_its_own(streams, clock):
    await streams.create("a", *numbers(1, 10), content_type="text/plain")
    head = await streams.head("a")
    request = Create(Config("", retention=Retention(messages=8)), fork_of=ForkOf("a", Offset(head.generation, 6)))
    await streams.carry_out("f", request)
    await streams.append("f", *(b"own %d" % number for number in range(7, 13)))
    await swept(streams, clock)
    assert await kept(streams, "f") == [b"5", b"6", *(b"own %d" % number for number in range(7, 13))]
    assert await kept(streams, "a") == numbers(1, 10)
    fork = await streams.head("f")
    assert (fork.start, fork.first, fork.trimmed) == (4, 6, 0)
    with pytest.raises(OffsetGone):
        await streams.read("f", Offset(head.generation, 3))
    await streams.append("f", *[b"more"] * 5)
    await swept(streams, clock)
    fork = await streams.head("f")
    assert (fork.start, fork.first, fork.trimmed) == (9, 9, 3 * len(b"own 7"))
    assert await kept(streams, "f") == [b"own 10", b"own 11", b"own 12", *[b"more"] * 5]


async def test_what_a_fork_inherited_is_too_old_for_it_in_time_although_it_has_nothing_of_its_own(streams, clock):
    await made(streams, "a", b"1", seconds=60)
    clock.now += 30_000
    await streams.append("a", b"2")
    await streams.fork("a", "f")
    await swept(streams, clock)
    assert await kept(streams, "f") == numbers(1, 2)
    await swept(streams, clock, 30_000)
    assert await kept(streams, "f") == [b"2"]


async def test_a_fork_that_was_trimmed_past_all_it_inherited_needs_its_source_no_longer(streams, clock):
    await made(streams, "a", *numbers(1, 10), messages=4)
    await streams.fork("a", "f")
    await streams.append("f", *numbers(11, 20))
    await swept(streams, clock)
    assert await kept(streams, "f") == numbers(17, 20)
    clock.now += YOUNG_MS
    await swept(streams, clock, PINNED_MS)
    assert await kept(streams, "a") == numbers(7, 10)
    await streams.fork("f", "g")
    await streams.delete("a")
    assert await streams.create("a", b"another", content_type="text/plain") is True
    await swept(streams, clock, RECHECK_MS)
    assert await kept(streams, "f") == await kept(streams, "g") == numbers(17, 20)
    await streams.delete("f")
    await streams.delete("g")
    assert await kept(streams, "a") == [b"another"]


# -- who is quicker ----------------------------------------------------------------------------------------------------


def before_a_trim(monkeypatch, do):
    """Run `do` after it was found what is over, just before that is trimmed."""
    carry_out, done = Commits.carry_out, []

    async def carried(commits, name, request):
        if isinstance(request, Trim) and not done:
            done.append(True)
            await do()
        return await carry_out(commits, name, request)

    monkeypatch.setattr(Commits, "carry_out", carried)
    return done


async def test_among_many_forks_that_need_nothing_the_one_that_does_is_found(streams, clock, monkeypatch):
    """However many claims are looked at at a time, and in whatever order they come."""
    monkeypatch.setattr(forks, "CLAIMS_LOOKED_AT", 2)
    await made(streams, "a", *numbers(1, 8), messages=8)
    for name in "bcdef":
        await streams.carry_out(name, Create(Config("", retention=Retention(seconds=10**6)), fork_of=ForkOf("a")))
    claims = {(await streams.head(name)).fork.claim: name for name in "bcdef"}
    *others, last = [claims[claim] for claim in sorted(claims)]
    for name in others:
        await streams.append(name, b"own")
        found = await streams.head(name)
        await streams._commits.carry_out(name, Trim(found, found.tail, 0, None))
    await streams.append("a", *numbers(9, 30))
    for _ in range(4):
        await swept(streams, clock, YOUNG_MS)
        assert await kept(streams, last) == numbers(1, 8)
    await streams.delete(last)
    await swept(streams, clock, RECHECK_MS)
    assert await kept(streams, "a") == numbers(23, 30)


async def test_a_stream_that_took_the_name_meanwhile_is_not_trimmed_for_the_one_before(streams, clock, monkeypatch):
    async def replace():
        await streams.delete("a")
        await streams.create("a", *numbers(1, 20), content_type="text/plain")

    await made(streams, "a", *numbers(1, 20), messages=8)
    done = before_a_trim(monkeypatch, replace)
    await swept(streams, clock)
    assert done
    assert await kept(streams, "a") == numbers(1, 20)


async def test_a_fork_that_is_made_meanwhile_has_all_that_it_inherits(streams, clock, monkeypatch):
    async def fork():
        await streams.fork("a", "f", Offset((await streams.head("a")).generation, 5))

    await made(streams, "a", *numbers(1, 20), messages=8)
    done = before_a_trim(monkeypatch, fork)
    await swept(streams, clock)
    assert done
    assert await kept(streams, "f") == numbers(1, 5)


async def test_a_stream_that_is_gone_meanwhile_is_no_trouble(streams, clock, monkeypatch, caplog):
    await made(streams, "a", *numbers(1, 20), messages=8)
    before_a_trim(monkeypatch, lambda: streams.delete("a"))
    await swept(streams, clock)
    with pytest.raises(StreamNotFound):
        await streams.head("a")
    assert not caplog.records


@pytest.mark.parametrize("keep", [{"messages": 8}, {"bytes": 8}, {"seconds": 10}])
async def test_what_grows_too_long_while_it_is_trimmed_is_looked_at_again(streams, clock, monkeypatch, keep):
    """Otherwise a stream that nobody appends to after that would keep too much for ever."""

    async def grow():
        clock.now += 1
        await streams.append("a", *[b"x"] * 30)

    await made(streams, "a", *[b"x"] * 20, **keep)
    clock.now += 10_000
    done = before_a_trim(monkeypatch, grow)
    await swept(streams, clock)
    assert done
    assert (await streams.head("a")).look is not None
    await swept(streams, clock, 10_000)
    assert len(await kept(streams, "a")) <= 9


async def test_a_stream_that_another_process_trims_meanwhile_is_no_trouble(make_store, clock, monkeypatch, caplog):
    async with opened(make_store(), clock) as one, opened(make_store(), clock) as other:
        await made(one, "a", *numbers(1, 20), messages=8)
        ask, asked = other.store.read, []

        async def late(name, start, *, max_bytes):
            if not asked:
                asked.append(name)
                await one._sweeper.sweep()
            return await ask(name, start, max_bytes=max_bytes)

        monkeypatch.setattr(other.store, "read", late)
        await other._sweeper.sweep()
        assert asked == ["a"]
        assert await kept(one, "a") == numbers(13, 20)
        assert not caplog.records


async def test_a_survey_goes_on_when_a_stream_goes_meanwhile(make_store, clock, monkeypatch):
    async with opened(make_store(), clock) as streams:
        for name in ("a1", "a2"):
            await streams.create(name, *numbers(1, 20), content_type="text/plain")
    async with opened(make_store(), clock) as streams:
        streams._keeping.rules = (("a*", Retention(messages=8)),)
        ask = streams.store.read

        async def late(name, start, *, max_bytes):
            with suppress(StreamNotFound):
                await streams.delete("a1")
            return await ask(name, start, max_bytes=max_bytes)

        monkeypatch.setattr(streams.store, "read", late)
        await streams._keeping.survey()
        assert await kept(streams, "a2") == numbers(13, 20)


async def test_two_that_sweep_at_once_trim_once(make_store, clock):
    both = make_store(), make_store()
    async with (
        opened(both[0], clock) as one,
        opened(both[1], clock) as other,
    ):
        await made(one, "a", *numbers(1, 20), messages=8)
        await asyncio.gather(one._sweeper.sweep(), other._sweeper.sweep())
        for streams in (one, other):
            assert await kept(streams, "a") == numbers(13, 20)
            head = await streams.head("a")
            assert head.size - head.trimmed == sum(map(len, numbers(13, 20)))


# -- appends do not wait -----------------------------------------------------------------------------------------------


async def test_appends_go_in_between_the_slices_of_a_trim(tmp_path, clock, monkeypatch):
    """An append that was handed in waits for one slice of what was trimmed, the one at work, and no more."""
    steps = []
    writer_kind = sqlite_writer.Writer
    remove_slice, apply, submit = writer_kind._remove_slice, writer_kind._apply, writer_kind.submit

    def noted_slice(writer):
        before = writer._connection.total_changes
        result = remove_slice(writer)
        steps.append(writer._connection.total_changes - before)
        return result

    def noted_submit(writer, job):
        steps.append("asked")
        return submit(writer, job)

    def noted_apply(writer, job):
        steps.append("append")
        return apply(writer, job)

    monkeypatch.setattr(sqlite_writer.Writer, "_remove_slice", noted_slice)
    monkeypatch.setattr(Sweeper, "committed", lambda *_: None)  # two that trim at once leave some to the next sweep
    path = tmp_path / "a.db"
    async with opened(SqliteStore(str(path), synchronous="normal"), clock) as streams:
        await made(streams, "a", messages=10)
        await streams.create("b", content_type="text/plain")
        for _ in range(10):
            await streams.append("a", *[b"x" * 200] * 4_000)
        monkeypatch.setattr(sqlite_writer.Writer, "submit", noted_submit)
        monkeypatch.setattr(sqlite_writer.Writer, "_apply", noted_apply)
        size, appends = path.stat().st_size, 0
        while len(await kept(streams, "a")) > 10:  # so much is trimmed at a time
            await swept(streams, clock)
        while streams.store._writer._garbage:
            await streams.append("b", b"x")
            appends += 1
        assert appends > 10
        assert max(step for step in steps if isinstance(step, int)) <= sqlite_writer.GARBAGE_SLICE + 1
        waiting = slices = longest = 0
        for step in steps:
            if isinstance(step, int):
                slices += 1
                longest = max(longest, slices if waiting else 0)
            else:
                slices = 0 if not waiting or step == "append" else slices
                waiting += 1 if step == "asked" else -1
        assert longest <= 1, "an append waited for several slices"
        assert len(await kept(streams, "a")) == 10
    assert path.stat().st_size < size / 5, "the file has not shrunk"
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM message WHERE length(data) = 200").fetchone() == (10,)
        assert connection.execute("SELECT count(*) FROM garbage").fetchone() == (0,)
    connection.close()


def test_of_large_messages_a_slice_reads_sizes_and_no_contents(tmp_path):
    """A thousand of them would be read for seconds, and every append would wait for that."""
    connection = sqlite_file.connect(str(tmp_path / "a.db"))
    connection.executemany("INSERT INTO message VALUES (?, 1, NULL, zeroblob(1000000))", [(id_,) for id_ in range(40)])

    def seconds(statement, *given):
        began = time.perf_counter()
        assert len(connection.execute(statement, given).fetchall()) == 40
        return time.perf_counter() - began

    contents = min(seconds("SELECT data FROM message") for _ in range(3))
    assert min(seconds(sqlite_writer._SLICE, 0, 99, 1000) for _ in range(3)) < contents / 4
    connection.close()


async def test_a_trim_that_cannot_be_written_is_done_the_next_time(clock):
    class Full(MemoryStore):
        full = False

        def _submit(self, change):
            if not self.full:
                return super()._submit(change)
            future = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailable("the disk is full"))
            return future

    async with opened(Full(), clock) as streams:
        await made(streams, "a", messages=8)
        await streams.carry_out("a", Append([Item(data) for data in numbers(1, 20)]))
        streams.store.full = True
        await swept(streams, clock)
        assert await kept(streams, "a") == numbers(1, 20)
        streams.store.full = False
        await swept(streams, clock)
        assert await kept(streams, "a") == numbers(13, 20)


@pytest.mark.parametrize("kept", [Retention(seconds=0), Retention(bytes=-1), Retention(messages=0)])
async def test_a_retention_that_keeps_nothing_is_refused(kept):
    with pytest.raises(BadRequest, match="at least 1 second, 1 byte or 1 message"):
        Streams(retention=[("*", kept)])
    async with Streams() as streams:
        with pytest.raises(BadRequest, match="at least 1 second, 1 byte or 1 message"):
            await streams.create("a", retention=kept)


async def test_a_read_from_the_start_is_not_disturbed_by_a_trim_in_its_middle():
    """Between the head it looks at and the page it takes, the start moves on."""

    class Trimming(MemoryStore):
        trim = None

        async def read(self, name, start, *, max_bytes):
            if self.trim is not None:
                trim, self.trim = self.trim, None
                await trim()
            return await super().read(name, start, max_bytes=max_bytes)

    store = Trimming()
    async with Streams(store) as streams:
        await streams.create("a", *range(5))
        head = await streams.head("a")
        streams.hub.tail("a").forget()
        streams.hub.drop_idle()
        store.trim = lambda: streams.carry_out("a", Trim(head, 3, 3, None))
        assert [message.data for message in (await streams.read("a")).messages] == [b"3", b"4"]
        store.trim = lambda: streams.carry_out("a", Trim(trimmed, 4, 1, None))
        trimmed = await streams.head("a")
        streams.hub.drop_idle()
        with pytest.raises(OffsetGone):
            await streams.read("a", Offset(head.generation, 3))
