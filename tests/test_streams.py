"""streams.py and cursor.py: writing, reading and following, in every order of events."""

import asyncio
import gc
import itertools
import tracemalloc
from contextlib import aclosing

import pytest

from headwater import hub as hub_module
from headwater.commits import MOST_IN_A_ROW
from headwater.decide import Append, Create, Item, Stamp, decide
from headwater.errors import (
    BadOffset,
    BadRequest,
    OffsetGone,
    StoreUnavailable,
    StreamClosed,
    StreamExists,
    StreamNotFound,
    TooLarge,
)
from headwater.model import Config, Offset
from headwater.stores.memory import MemoryStore
from headwater.stores.sqlite import SqliteStore
from headwater.streams import Limits, Streams


@pytest.fixture(params=["memory", "sqlite"])
def make_store(request, tmp_path):
    """Gives objects on one and the same data."""
    kept = MemoryStore()
    if request.param == "memory":
        return lambda: kept
    return lambda: SqliteStore(str(tmp_path / "a.db"), synchronous="normal")


class Clock:
    def __init__(self):
        self.now = 1_700_000_000_000

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
async def streams(make_store, clock):
    async with Streams(make_store(), clock=clock) as streams:
        yield streams


def data(page):
    return [message.data for message in page.messages]


async def collected(streams, name, offset=None):
    """What a follower gets, until the stream is closed."""
    found, page = [], None
    async for page in streams.follow(name, offset):
        found += page.messages
    assert page.closed
    assert [m.offset.position for m in found] == list(
        range(page.next.position - len(found) + 1, page.next.position + 1)
    )
    return [message.data for message in found]


async def everything(streams, name):
    """All messages that are there now."""
    found, page = [], await streams.read(name)
    found += data(page)
    while not page.up_to_date:
        page = await streams.read(name, page.next)
        found += data(page)
    return found


async def until(condition):
    """Let the others run until it holds."""
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


# -- the face ----------------------------------------------------------------------------------------------------------


async def test_a_stream_is_made_written_read_and_ended(streams):
    assert await streams.create("chat/42", {"n": 1}, "text", b"\x00", labels={"a": "b"}) is True
    assert await streams.create("chat/42") is False
    assert (await streams.append("chat/42", {"n": 2}, key="k")).position == 4
    page = await streams.read("chat/42")
    assert data(page) == [b'{"n":1}', b'"text"', b"\x00", b'{"n":2}']
    assert (page.up_to_date, page.closed, page.messages[3].key) == (True, False, "k")
    assert (await streams.close("chat/42", "failed")).position == 4
    assert (await streams.close("chat/42")).position == 4
    page = await streams.read("chat/42", "now")
    assert (data(page), page.closed, page.outcome) == ([], True, "failed")
    head = await streams.head("chat/42")
    assert (head.config.content_type, head.labels, head.outcome) == ("application/json", {"a": "b"}, "failed")
    assert [name for name, _ in await streams.list()] == ["chat/42"]
    await streams.create("words", content_type="text/plain")
    await streams.append("words", "as it is")
    await streams.create("json")
    await streams.append("json", "a string", b'"bytes"')
    assert data(await streams.read("words")) == [b"as it is"]
    assert data(await streams.read("json")) == [b'"a string"', b'"bytes"']
    await streams.delete("chat/42")
    with pytest.raises(StreamNotFound):
        await streams.head("chat/42")


@pytest.mark.parametrize("name", ["", "..", "a/./b", "a\nb", "\x00", "a" * 1025, "\ud800", "a\u200b"])
async def test_a_name_that_cannot_be_one_is_refused(streams, name):
    with pytest.raises(BadRequest):
        await streams.create(name)
    with pytest.raises(BadRequest):
        await streams.append(name, b"x")
    assert await streams.list() == []


async def test_a_name_may_be_long_and_of_any_script(streams):
    for name in ("a" * 1024, "ü/日本 %_'\"", "..a/.b./...", "\U0001f600" * 1024):
        await streams.create(name, b"x")
        assert data(await streams.read(name)) == [b"x"]


async def test_what_is_asked_wrongly_is_refused(streams):
    await streams.create("a", ttl=5)
    generation = (await streams.head("a")).generation
    for refused, kind in [
        (streams.create("a"), StreamExists),
        (streams.create("b", ttl=1, expires_at=1), BadRequest),
        (streams.append("b", b"x"), StreamNotFound),
        (streams.append("a"), BadRequest),
        (streams.read("b"), StreamNotFound),
        (streams.read("a", "x"), BadOffset),
        (streams.read("a", Offset(generation, 1)), BadOffset),
        (streams.cursor("b"), StreamNotFound),
        (streams.cursor("a", "x"), BadOffset),
        (streams.delete("b"), StreamNotFound),
        (streams.close("b"), StreamNotFound),
    ]:
        with pytest.raises(kind):
            await refused
    assert streams.statistics()["readers"] == 0


async def test_a_message_has_a_largest_size(make_store):
    async with Streams(make_store(), limits=Limits(message_bytes=10)) as streams:
        await streams.create("a")
        await streams.append("a", b"x" * 10)
        for refused in (streams.append("a", b"ok", b"x" * 11), streams.create("b", b"x" * 11)):
            with pytest.raises(TooLarge):
                await refused
        assert (await streams.head("a")).tail == 1


async def test_a_stamped_append_counts_once(streams):
    await streams.create("a")
    first = await streams.append("a", b"1", stamp=Stamp("p", 0, 0))
    results = await asyncio.gather(*(streams.append("a", b"2", stamp=Stamp("p", 0, 1)) for _ in range(10)))
    assert set(results) == {Offset(first.generation, 2)}
    assert data(await streams.read("a")) == [b"1", b"2"]


async def test_it_says_what_it_holds(streams):
    await streams.create("a")
    async with aclosing(streams.follow("a")) as pages:
        waiting = asyncio.ensure_future(anext(pages))
        await until(lambda: streams.statistics()["readers"] == 1)
        assert "a" in repr(streams.hub.known("a"))
        await streams.close("a")
        assert (await waiting).closed
    assert streams.statistics()["readers"] == 0
    assert streams.is_open


# -- pages -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring_bytes", [0, 700, 1 << 20])
@pytest.mark.parametrize("max_bytes", [1, 100, 1 << 20])
async def test_pages_are_bounded_wherever_they_come_from(streams, monkeypatch, ring_bytes, max_bytes):
    monkeypatch.setattr(hub_module, "RING_BYTES", ring_bytes)
    await streams.create("a")
    written = [bytes([number]) * (number * 7 % 90) for number in range(40)]
    for one in written:
        await streams.append("a", one)
    offset, found = None, []
    while True:
        page = await streams.read("a", offset, max_bytes=max_bytes)
        assert len(page.messages) == 1 or sum(map(len, data(page))) <= max_bytes
        found += data(page)
        offset = str(page.next)
        if page.up_to_date:
            break
    assert found == written
    cursor = await streams.cursor("a", max_bytes=max_bytes)
    found = []
    while page := await cursor.take():
        assert len(page.messages) == 1 or sum(map(len, data(page))) <= max_bytes
        found += data(page)
    assert found == written
    cursor.close()
    cursor.close()


# -- following ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ring_bytes", [0, 500, 1 << 20])
async def test_followers_from_every_offset_get_everything_once_while_it_is_written(streams, monkeypatch, ring_bytes):
    """The hand-over between ring and store, at every position, with readers that stop for a while now and then."""
    monkeypatch.setattr(hub_module, "RING_BYTES", ring_bytes)
    written = [b"%d" % number for number in range(60)]
    await streams.create("a")
    generation = (await streams.head("a")).generation

    async def follow(position, pause):
        found = []
        async for page in streams.follow("a", Offset(generation, position)):
            found += data(page)
            for _ in range(pause):
                await asyncio.sleep(0)
        return found

    followers = [asyncio.create_task(follow(0, pause)) for pause in range(6)]
    for number, one in enumerate(written, start=1):
        await streams.append("a", one)
        followers += [asyncio.create_task(follow(position, number % 4)) for position in {number, number // 2}]
        for _ in range(number % 5):
            await asyncio.sleep(0)
    await streams.close("a")
    async with asyncio.timeout(20):
        results = await asyncio.gather(*followers)
    assert results[:6] == [written] * 6
    expected = [position for number in range(1, 61) for position in {number, number // 2}]
    assert results[6:] == [written[position:] for position in expected]


async def test_no_wake_is_lost_whenever_a_follower_comes(streams):
    """A follower that takes `turns` steps of the loop before an append comes must see it, for every number of steps."""
    for turns in range(25):
        name = f"s/{turns}"
        await streams.create(name)
        follower = asyncio.create_task(collected(streams, name))
        for _ in range(turns):
            await asyncio.sleep(0)
        await streams.append(name, b"1")
        for _ in range(turns % 7):
            await asyncio.sleep(0)
        await streams.append(name, b"2", close=True)
        async with asyncio.timeout(5):
            assert await follower == [b"1", b"2"]


async def test_a_follower_at_the_end_of_a_closed_stream_is_told_at_once(streams):
    await streams.create("a", b"1")
    end = await streams.close("a")
    for offset, expected in [(None, [b"1"]), ("now", []), (end, [])]:
        async with asyncio.timeout(5):
            assert await collected(streams, "a", offset) == expected


async def test_cancelling_one_of_many_followers_leaves_the_others(streams):
    await streams.create("a")
    followers = [asyncio.create_task(collected(streams, "a")) for _ in range(20)]
    await until(lambda: streams.hub.tail("a").readers == 20 and len(streams.hub.tail("a")._waiters) == 20)
    for follower in followers[::2]:
        follower.cancel()
    await asyncio.wait(followers[::2])
    tail = streams.hub.tail("a")
    await until(lambda: (tail.readers, len(tail._waiters)) == (10, 10))  # a wake that says nothing may have come
    await streams.append("a", b"1", close=True)
    async with asyncio.timeout(5):
        assert await asyncio.gather(*followers[1::2]) == [[b"1"]] * 10
    assert tail.readers == 0


async def test_a_take_that_is_cancelled_has_not_moved(streams, monkeypatch):
    monkeypatch.setattr(hub_module, "RING_BYTES", 0)
    await streams.create("a", *[b"%d" % number for number in range(10)])
    cursor = await streams.cursor("a", max_bytes=2)
    found = []
    while len(found) < 10:
        for turns in range(3):
            take = asyncio.create_task(cursor.take())
            for _ in range(turns):
                await asyncio.sleep(0)
            take.cancel()
            try:
                page = await take
                found += data(page) if page is not None else []
            except asyncio.CancelledError:
                continue
        page = await cursor.take()
        found += data(page) if page is not None else []
    assert found == [b"%d" % number for number in range(10)]
    cursor.close()


async def test_a_deletion_reaches_those_who_wait(streams):
    await streams.create("a", b"1")
    followers = [asyncio.create_task(collected(streams, "a", offset)) for offset in (None, "now") for _ in range(5)]
    await until(lambda: len(streams.hub.tail("a")._waiters) == 10)
    await streams.delete("a")
    async with asyncio.timeout(5):
        results = await asyncio.gather(*followers, return_exceptions=True)
    assert [type(result) for result in results] == [StreamNotFound] * 10


async def test_a_deletion_right_after_an_append_reaches_those_who_wait(streams):
    for _ in range(5):
        await streams.create("a", b"1")
        follower = asyncio.create_task(collected(streams, "a"))
        await until(lambda: len(streams.hub.tail("a")._waiters) == 1)
        append = asyncio.create_task(streams.append("a", b"2"))
        await asyncio.sleep(0)
        await streams.delete("a")
        await asyncio.wait([append])
        async with asyncio.timeout(5):
            with pytest.raises(StreamNotFound):
                await follower
        append.exception()


async def test_a_deletion_whose_caller_went_away_reaches_those_who_wait(streams):
    await streams.create("a")
    follower = asyncio.create_task(collected(streams, "a"))
    await until(lambda: len(streams.hub.tail("a")._waiters) == 1)
    deletion = asyncio.create_task(streams._commits.delete("a"))
    submitted = asyncio.Event()
    delete, streams.store.delete = streams.store.delete, lambda *given: submitted.set() or delete(*given)
    await submitted.wait()
    deletion.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(StreamNotFound):
            await follower


async def test_another_stream_under_the_same_name_is_not_taken_for_the_old_one(streams):
    await streams.create("a", b"old")
    old = (await streams.head("a")).offset
    waiting = asyncio.create_task(collected(streams, "a"))
    await until(lambda: len(streams.hub.tail("a")._waiters) == 1)
    cursor = await streams.cursor("a")
    await streams.delete("a")
    await streams.create("a", b"new", b"newer")
    for reading in (cursor.take(), streams.read("a", old), streams.cursor("a", str(old)), waiting):
        with pytest.raises((OffsetGone, StreamNotFound)) as raised:
            await reading
        assert raised.type is OffsetGone or reading is waiting
    cursor.close()
    assert data(await streams.read("a")) == [b"new", b"newer"]


async def test_followers_that_never_take_hold_nothing(make_store):
    """G9: a slow reader is an old offset."""
    async with Streams(make_store()) as streams:
        await streams.create("a")
        cursors = [await streams.cursor("a") for _ in range(500)]
        await streams.append("a", *[b"x" * 100] * 2000)
        gc.collect()
        tracemalloc.start()
        for _ in range(3):  # a reference for each reader and message would be 24 MB
            await streams.append("a", *[b"y" * 100] * 2000)
        gc.collect()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        if isinstance(streams.store, MemoryStore):
            held -= 3 * 2000 * (100 + 50)  # what it keeps
        assert held < 1024 * 1024, f"{held:,} bytes"
        assert {cursor.offset.position for cursor in cursors} == {0}
        assert len(streams.hub.tail("a")._waiters) == 0
        for cursor in cursors:
            cursor.close()


async def test_closing_tells_those_who_wait(make_store):
    streams = Streams(make_store())
    await streams.open()
    await streams.create("a")
    follower = asyncio.create_task(collected(streams, "a"))
    await until(lambda: streams.hub.tail("a")._waiters)
    await streams.aclose()
    async with asyncio.timeout(5):
        with pytest.raises(StoreUnavailable):
            await follower
    await streams.aclose()
    assert not streams.is_open


# -- writing by many ---------------------------------------------------------------------------------------------------


async def test_appends_that_overlap_keep_the_order_of_their_calls(streams):
    await streams.create("a")
    streams.hub.tail("a").forget()
    offsets = await asyncio.gather(*(streams.append("a", b"%d" % number) for number in range(200)))
    assert [offset.position for offset in offsets] == list(range(1, 201))
    assert data(await streams.read("a")) == [b"%d" % number for number in range(200)]
    if isinstance(streams.store, SqliteStore):
        assert streams.store.statistics()["transactions"] < 50


async def test_two_that_write_one_stream_lose_and_double_nothing(make_store):
    async with Streams(make_store()) as one, Streams(make_store()) as other:
        await one.create("a")
        follower = asyncio.create_task(collected(other, "a"))

        async def write(streams, mark):
            for number in range(0, 40, 4):
                await asyncio.gather(*(streams.append("a", b"%s%02d" % (mark, number + i)) for i in range(4)))

        await asyncio.gather(write(one, b"x"), write(other, b"y"))
        await one.close("a")
        if isinstance(other.store, MemoryStore):
            other.hub.tail("a").forget()  # what a store with other processes says by a wake
        found = await everything(other, "a")
        assert sorted(found) == [b"%s%02d" % (mark, number) for mark in (b"x", b"y") for number in range(40)]
        async with asyncio.timeout(5):
            assert await follower == found


async def test_calls_keep_their_order_where_another_process_has_changed_the_stream(make_store):
    """What this process knows of it is out of date, or will be: the first call closes, so none after it may succeed."""
    async with Streams(make_store()) as one, Streams(make_store()) as other:
        for changed in ("made anew", "appended to"):
            for _ in range(20):
                await one.create("a", b"x")
                if changed == "made anew":
                    await one.close("a")
                    await other.delete("a")
                    await other.create("a")
                else:
                    await other.append("a", b"y")
                calls = [one.append("a", b"0", close=True), *(one.append("a", b"%d" % n) for n in range(1, 5))]
                first, *others = await asyncio.gather(*calls, return_exceptions=True)
                assert isinstance(first, Offset)
                assert [type(other) for other in others] == [StreamClosed] * 4
                await other.delete("a")
                if isinstance(one.store, MemoryStore):
                    one.hub.tail("a").forget()


async def test_what_was_decided_on_a_head_that_failed_never_matches_another_writer_s(make_store):
    """Both heads are "the next one": only one of them is in the store."""
    async with Streams(make_store()) as one, Streams(make_store()) as other:
        await one.create("a", b"0")
        await other.append("a", b"last", close=True)
        results = await asyncio.gather(
            *(one.append("a", b"%d" % number) for number in range(5)), return_exceptions=True
        )
        assert [type(result) for result in results] == [StreamClosed] * 5
        async with asyncio.timeout(5):
            assert await collected(one, "a") == [b"0", b"last"]


async def test_a_commit_that_seemed_to_fail_and_lands_late_is_not_taken_for_the_one_made_instead():
    """Both were decided on the same head, by the same process."""

    class Late(MemoryStore):
        late = None
        losing = False

        def _submit(self, change):
            loop = asyncio.get_running_loop()
            if self.losing:
                self.losing, self.late = False, change
                lost = loop.create_future()
                lost.set_exception(StoreUnavailable("no answer in time"))
                return lost
            if self.late is not None:
                land, self.late = self.late, None
                land()
            return super()._submit(change)

    store = Late()
    async with Streams(store) as streams:
        await streams.create("a")
        store.losing = True
        with pytest.raises(StoreUnavailable):
            await streams.append("a", b"late")
        await asyncio.gather(streams.append("a", b"1", b"2"), streams.append("a", b"3"))
        assert await everything(streams, "a") == [b"late", b"1", b"2", b"3"]


async def test_two_processes_follow_each_other(tmp_path):
    """Two objects on one file: each hears of the other's appends by a wake."""
    path = str(tmp_path / "a.db")
    async with Streams(SqliteStore(path)) as one, Streams(SqliteStore(path)) as other:
        await one.create("a")
        followers = [asyncio.create_task(collected(streams, "a")) for streams in (one, other) for _ in range(3)]
        for number in range(20):
            await (one, other)[number % 2].append("a", b"%d" % number)
        await other.close("a")
        async with asyncio.timeout(10):
            assert await asyncio.gather(*followers) == [[b"%d" % number for number in range(20)]] * 6


async def test_a_cancelled_append_is_wholly_in_or_wholly_out(streams):
    await streams.create("a")
    outcomes = set()
    for turns in range(12):
        before = (await streams.head("a")).tail
        append = asyncio.create_task(streams.append("a", b"1", b"2", b"3", stamp=Stamp("p", 0, turns)))
        for _ in range(turns):
            await asyncio.sleep(0)
        append.cancel()
        await asyncio.wait([append])
        after = await streams.append("a", b"1", b"2", b"3", stamp=Stamp("p", 0, turns))  # said again, counts once
        assert after.position == before + 3
        outcomes.add(append.cancelled())
    assert data(await streams.read("a")) == [b"1", b"2", b"3"] * 12
    assert True in outcomes


async def test_a_request_that_answers_without_a_commit_asks_the_store(make_store):
    """What is cached says "closed"; another process has made a new stream since."""
    async with Streams(make_store()) as one, Streams(make_store()) as other:
        await one.create("a", b"1", closed=True)
        await other.delete("a")
        await other.create("a", b"2")
        await one.append("a", b"3")
        assert await everything(one, "a") == [b"2", b"3"]
        decision = await one.carry_out("a", Create(Config("application/json")))
        assert decision.what == "exists"


# -- lifetimes ---------------------------------------------------------------------------------------------------------


async def test_a_stream_lives_to_the_millisecond_and_reads_prolong_it(streams, clock):
    await streams.create("a", b"1", ttl=10)
    generation = (await streams.head("a")).generation
    await streams.create("b", b"1", expires_at=clock.now + 10_000)
    clock.now += 9_999
    assert data(await streams.read("a")) == [b"1"]
    assert data(await streams.read("b")) == [b"1"]
    clock.now += 1
    with pytest.raises(StreamNotFound):
        await streams.read("b")
    clock.now += 9_998
    assert (await streams.head("a")).tail == 1
    clock.now += 1
    for gone in (streams.read("a"), streams.append("a", b"x"), streams.close("a"), streams.delete("a")):
        with pytest.raises(StreamNotFound):
            await gone
    assert await streams.list() == []
    assert await streams.create("a", b"2") is True
    assert (await streams.head("a")).generation > generation
    assert data(await streams.read("a")) == [b"2"]


async def test_a_read_elsewhere_keeps_a_stream_alive_for_all(make_store, clock):
    """What one process has cached of a sliding end may be out of date: it must ask before it replaces the stream."""
    async with Streams(make_store(), clock=clock) as one, Streams(make_store(), clock=clock) as other:
        await one.create("a", b"1", ttl=10)
        clock.now += 9_000
        await other.read("a")
        while (await one.store.load("a")).touched != clock.now:  # it may become visible a moment later
            await asyncio.sleep(0)
        clock.now += 5_000
        assert await one.create("a", ttl=10) is False
        await one.append("a", b"2")
        assert await everything(one, "a") == [b"1", b"2"]


async def test_a_follower_is_told_when_its_stream_ends_by_time(make_store):
    """On the real clock, because nothing else wakes it."""
    async with Streams(make_store()) as streams:
        await streams.create("a", b"1", expires_at=streams.clock() + 40)
        with pytest.raises(StreamNotFound):
            async with asyncio.timeout(5):
                await collected(streams, "a")


async def test_what_is_over_is_swept_however_much_it_is(make_store, clock, monkeypatch):
    monkeypatch.setattr("headwater.sweeper.SLICE", 7)
    async with Streams(make_store(), clock=clock, limits=Limits(sweep_seconds=0.001)) as streams:
        for number in range(20):
            await streams.create(f"s/{number}", b"1", expires_at=clock.now + 1000)
        await streams.create("kept", b"1")
        clock.now += 3000
        async with asyncio.timeout(5):
            while len(await streams.store.list("", after=None, limit=100, newest=False)) > 1:
                await asyncio.sleep(0.001)
        assert [name for name, _ in await streams.list()] == ["kept"]


async def test_sweeping_goes_on_after_a_bug_and_closing_closes_the_store(make_store, clock, caplog):
    streams = Streams(make_store(), clock=clock, limits=Limits(sweep_seconds=0.001))
    await streams.open()
    due, failing = streams.store.due, True

    async def fail(now, *, limit):
        if failing:
            raise ZeroDivisionError
        return await due(now, limit=limit)

    streams.store.due = fail
    await streams.create("a", expires_at=clock.now + 1000)
    clock.now += 3000
    async with asyncio.timeout(5):
        while "ZeroDivisionError" not in caplog.text:
            await asyncio.sleep(0.001)
        failing = False
        while await streams.store.list("", after=None, limit=1, newest=False):
            await asyncio.sleep(0.001)
    await streams.aclose()
    with pytest.raises(StoreUnavailable):
        await streams.store.load("a")


async def test_a_list_is_full_although_many_are_over(streams, clock):
    for number in range(30):
        await streams.create(f"s/{number:02}", ttl=1 if number % 10 else None)
    clock.now += 1000
    assert [name for name, _ in await streams.list(limit=2)] == ["s/00", "s/10"]
    assert [name for name, _ in await streams.list(limit=9)] == ["s/00", "s/10", "s/20"]
    assert [name for name, _ in await streams.list(limit=2, newest=True)] == ["s/20", "s/10"]
    assert [name for name, _ in await streams.list(after="s/00", limit=1)] == ["s/10"]


async def test_a_store_that_cannot_answer_for_a_moment_loses_nothing(clock):
    class Faulty(MemoryStore):
        failing = 0

        def _submit(self, change):
            if self.failing:
                self.failing -= 1
                future = asyncio.get_running_loop().create_future()
                future.set_exception(StoreUnavailable("the disk is full"))
                return future
            return super()._submit(change)

    store = Faulty()
    async with Streams(store, clock=clock) as streams:
        await streams.create("a")
        store.failing = 1
        results = await asyncio.gather(*(streams.append("a", b"%d" % i) for i in range(5)), return_exceptions=True)
        assert [type(result) for result in results] == [StoreUnavailable, *[Offset] * 4]
        assert (await streams.append("a", b"5", close=True)).position == 5
        assert data(await streams.read("a")) == [b"1", b"2", b"3", b"4", b"5"]
        with pytest.raises(StreamClosed):
            await streams.carry_out("a", Append([Item(b"6")]))


class Counting(MemoryStore):
    """Counts how often it is asked."""

    asked = 0

    async def load(self, name):
        self.asked += 1
        await asyncio.sleep(0)  # as a store does that has to go somewhere
        return await super().load(name)

    async def read(self, name, start, *, max_bytes):
        self.asked += 1
        await asyncio.sleep(0)
        return await super().read(name, start, max_bytes=max_bytes)


async def test_readers_that_are_woken_together_ask_the_store_once():
    store = Counting()
    async with Streams(store) as streams:
        await streams.create("a")
        cursors = [await streams.cursor("a") for _ in range(100)]
        tail = streams.hub.known("a")
        assert tail is not None
        store.commit("a", await store.load("a"), *_appended(await store.load("a"), b"1"))
        store.asked = 0
        tail.forget()  # what a wake from another process does
        pages = await asyncio.gather(*[cursor.take() for cursor in cursors])
        assert [data(page) for page in pages] == [[b"1"]] * 100
        assert store.asked <= 2
        for cursor in cursors:
            cursor.close()


def _appended(head, value):
    decision = decide(head, Append([Item(value)]), 0)
    return decision.head, decision.messages


async def test_a_writer_that_never_has_to_wait_lets_others_run(streams):
    await streams.create("a")
    turns = []

    async def other():
        while True:
            turns.append((await streams.head("a")).tail)
            await asyncio.sleep(0)

    task = asyncio.create_task(other())
    for _ in range(10 * MOST_IN_A_ROW):
        await streams.append("a", b"x")
    task.cancel()
    assert len(turns) >= 9
    assert max(after - before for before, after in itertools.pairwise(turns)) <= MOST_IN_A_ROW


async def test_a_commit_that_is_cancelled_with_its_loop_is_answered_and_leaves_its_tail():
    class Slow(MemoryStore):
        going: asyncio.Task | None = None

        def commit(self, *commit):
            self.going = asyncio.ensure_future(self._later(*commit))
            return self.going

        async def _later(self, *commit):
            await super().commit(*commit)
            await asyncio.sleep(0)

    store = Slow()
    async with Streams(store) as streams:
        await streams.create("a")
        on_its_way = streams.at_once("a", Append([Item(b"1")]))
        assert isinstance(on_its_way, asyncio.Future)
        store.going.cancel()
        async with asyncio.timeout(1):
            with pytest.raises(StoreUnavailable):
                await on_its_way
        assert streams.hub.tail("a").settled
