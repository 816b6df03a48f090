"""sweeper.py: what is over goes without being asked for, soon, and whatever goes wrong with one of them."""

import asyncio
import logging

import pytest

from headwater import sweeper
from headwater.commits import Limits
from headwater.decide import Create, Item
from headwater.errors import StoreUnavailable
from headwater.forks import CLAIMS, RECHECK_MS, YOUNG_MS, Forks
from headwater.model import Absent, Config, Retention
from headwater.retention import Keeping
from headwater.stores.memory import MemoryStore
from headwater.streams import Streams
from headwater.sweeper import MARGIN_MS, PAUSE_SECONDS
from headwater.testing import virtual_time


class Clock:
    """ms since 1970, going on with the loop's time and by hand."""

    def __init__(self):
        self.now = 1_700_000_000_000

    def __call__(self):
        return self.now + int(asyncio.get_running_loop().time() * 1000)


@pytest.fixture
def clock():
    return Clock()


async def names(streams):
    return [name for name, _ in await streams.store.list("", after=None, limit=1000, newest=False)]


# -- by itself ---------------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_stream_that_grows_too_long_is_trimmed_in_a_moment(clock):
    async with Streams(clock=clock, limits=Limits(sweep_seconds=3600)) as streams:
        await asyncio.sleep(1)
        await streams.create("a", content_type="text/plain", retention=Retention(messages=8))
        await streams.append("a", *[b"x"] * 20)
        await asyncio.sleep(2 * PAUSE_SECONDS)
        head = await streams.head("a")
        assert (head.tail - head.start, head.look) == (8, None)


@virtual_time
async def test_a_stream_that_overflows_with_each_append_is_not_trimmed_with_each(clock):
    async with Streams(clock=clock, limits=Limits(sweep_seconds=3600)) as streams:
        trims = []
        streams.on_commit.append(lambda _, decision: trims.append(decision) if decision.what == "trimmed" else None)
        await streams.create("a", content_type="text/plain", retention=Retention(messages=1))
        began = asyncio.get_running_loop().time()
        for _ in range(300):
            await streams.append("a", b"x", b"x")
            await asyncio.sleep(0.01)
        elapsed = asyncio.get_running_loop().time() - began
        assert 5 < len(trims) <= elapsed / PAUSE_SECONDS + 2
        await asyncio.sleep(2 * PAUSE_SECONDS)
        head = await streams.head("a")
        assert head.tail - head.start == 1


@virtual_time
async def test_what_grows_old_is_trimmed_with_the_sweeps_and_not_with_each_append(clock):
    async with Streams(clock=clock, limits=Limits(sweep_seconds=30)) as streams:
        trims = []
        streams.on_commit.append(lambda _, decision: trims.append(decision) if decision.what == "trimmed" else None)
        await streams.create("a", content_type="text/plain", retention=Retention(seconds=10))
        for number in range(300):
            await streams.append("a", b"x")
            await asyncio.sleep(0.9 + number % 7 / 100)
        head = await streams.head("a")
        assert head.tail - head.start < 50
        assert 5 < len(trims) <= 11


@virtual_time
async def test_what_has_expired_is_swept_within_its_time(clock):
    async with Streams(clock=clock, limits=Limits(sweep_seconds=30)) as streams:
        await streams.create("a", ttl=1)
        await streams.create("b", expires_at=clock() + 1000)
        await streams.create("c")
        await asyncio.sleep(31 + PAUSE_SECONDS + 30)
        assert await names(streams) == ["c"]
        assert isinstance(await streams.store.load("a"), Absent)


@virtual_time
async def test_a_fork_that_expires_takes_its_deleted_source_along(clock):
    async with Streams(clock=clock, limits=Limits(sweep_seconds=30)) as streams:
        await streams.create("a", b"1", content_type="text/plain")
        await streams.fork("a", "f", ttl=100)
        await streams.fork("f", "g", ttl=100)
        await streams.delete("a")
        await asyncio.sleep(99)
        assert {"a", "f", "g"} <= set(await names(streams))
        await asyncio.sleep(100)
        assert await names(streams) == []


@virtual_time
async def test_rules_are_applied_when_a_process_begins(clock):
    store = MemoryStore()
    async with Streams(store, clock=clock) as streams:
        await streams.create("a", content_type="text/plain")
        await streams.append("a", *[b"x"] * 20)
    async with Streams(store, clock=clock, retention=[("*", Retention(messages=5))]) as streams:
        await asyncio.sleep(0.1)
        head = await streams.head("a")
        assert head.tail - head.start == 5


@virtual_time
async def test_it_goes_on_after_a_bug_and_says_so_once(clock, monkeypatch, caplog):
    trim, calls = Keeping.trim, []

    async def faulty(keeping, name, head):
        calls.append(name)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        await trim(keeping, name, head)

    monkeypatch.setattr(Keeping, "trim", faulty)
    async with Streams(clock=clock, limits=Limits(sweep_seconds=30)) as streams:
        await streams.create("a", content_type="text/plain", retention=Retention(messages=8))
        await streams.append("a", *[b"x"] * 20)
        await asyncio.sleep(31)
        head = await streams.head("a")
        assert head.tail - head.start == 8
    assert [record.getMessage() for record in caplog.records] == ["could not sweep a"]


@virtual_time
async def test_opening_it_again_begins_again(clock):
    streams = Streams(clock=clock)
    for _ in range(2):
        async with streams:
            assert repr(streams._sweeper) == "<Sweeper of <MemoryStore [0 streams]> [running]>"
        assert repr(streams._sweeper) == "<Sweeper of <MemoryStore [0 streams]> [idle]>"
        await streams._sweeper.aclose()


# -- one sweep ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def streams(clock):
    async with Streams(clock=clock) as streams:
        await streams._sweeper.aclose()  # swept when a test says so, and not before
        yield streams


async def test_a_read_just_before_the_end_may_still_be_on_its_way(streams, clock):
    await streams.create("a", ttl=10)
    head = await streams.head("a")
    clock.now = head.touched + 10_000 - int(asyncio.get_running_loop().time() * 1000)
    await streams._sweeper.sweep()
    assert await names(streams) == ["a"]
    clock.now += MARGIN_MS
    await streams._sweeper.sweep()
    assert await names(streams) == []


async def test_one_that_fails_does_not_hold_up_the_others(streams, clock, monkeypatch, caplog):
    remove = Forks.remove

    async def failing(forks, name, head):
        if name == "b":
            raise StoreUnavailable("the disk is full")
        return await remove(forks, name, head)

    for name in ("a", "b", "c"):
        await streams.create(name, ttl=1)
    clock.now += 5_000
    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(Forks, "remove", failing)
        await streams._sweeper.sweep()
    assert await names(streams) == ["b"]
    assert [record.getMessage() for record in caplog.records] == ["could not sweep b: the disk is full"]
    await streams._sweeper.sweep()
    assert await names(streams) == []


async def test_more_than_are_looked_up_at_a_time_are_all_seen_to_and_what_stays_due_ends_it(
    streams, clock, monkeypatch
):
    monkeypatch.setattr(sweeper, "SLICE", 3)
    for number in range(10):
        await streams.create(f"s/{number}", ttl=1)
    clock.now += 5_000
    async with asyncio.timeout(5):
        await streams._sweeper.sweep()
    assert await names(streams) == []
    for number in range(10):
        await streams.create(f"s/{number}", ttl=1)
    clock.now += 1_000 + MARGIN_MS // 2
    async with asyncio.timeout(5):
        await streams._sweeper.sweep()
    assert len(await names(streams)) == 10


@pytest.mark.parametrize("error", [StoreUnavailable("this one cannot be removed"), RuntimeError("a bug")])
async def test_many_that_always_fail_do_not_keep_the_others_from_their_turn(streams, clock, monkeypatch, error):
    remove, tried = Forks.remove, []

    async def failing(forks, name, head):
        tried.append(name)
        if name.startswith("bad/"):
            raise error
        return await remove(forks, name, head)

    monkeypatch.setattr(Forks, "remove", failing)
    monkeypatch.setattr(sweeper, "SLICE", 3)
    for number in range(10):
        await streams.create(f"bad/{number}", ttl=1)
    for number in range(10):
        await streams.create(f"good/{number}", ttl=1)
    clock.now += 5_000
    async with asyncio.timeout(5):
        await streams._sweeper.sweep()
    assert await names(streams) == [f"bad/{number}" for number in range(10)]
    assert len(tried) == len(set(tried)) == 20
    monkeypatch.setattr(sweeper, "MOST_LEFT", 6)
    tried.clear()
    await streams._sweeper.sweep()
    assert len(tried) == 6, "a store that takes nothing is left alone"


async def test_a_claim_is_looked_at_once(streams, clock):
    """While it is young it may be of a fork that is being made; later it stands for one, or goes."""
    await streams.create("a", b"1", content_type="text/plain")
    await streams.fork("a", "f")
    (claim,) = [name for name in await names(streams) if name.startswith(CLAIMS)]
    leftover = claim[:-1] + "?"
    look = (await streams.store.load(claim)).look
    assert look is not None
    assert look - clock() <= YOUNG_MS
    await streams._commits.carry_out(leftover, Create(Config("application/json"), [Item(b'"never"')], look=look))
    await streams._sweeper.sweep()
    assert {claim, leftover} <= set(await names(streams))
    clock.now += YOUNG_MS
    await streams._sweeper.sweep()
    assert leftover not in await names(streams)
    version = (await streams.store.load(claim)).version
    assert (await streams.store.load(claim)).look is None
    clock.now += RECHECK_MS
    await streams._sweeper.sweep()
    assert (await streams.store.load(claim)).version == version


async def test_a_claim_of_a_source_that_is_gone_goes(streams, clock):
    """As a crash may leave it right before its fork is refused."""
    await streams.create("a", b"1", content_type="text/plain")
    leftover = f"{CLAIMS}x/y"
    await streams._commits.carry_out(leftover, Create(Config("application/json"), [Item(b'"f"')], look=clock()))
    await streams.delete("a")
    clock.now += YOUNG_MS
    await streams._sweeper.sweep()
    assert await names(streams) == []


async def test_a_withdrawn_stream_is_looked_at_every_hour(streams, clock):
    await streams.create("a", b"1", content_type="text/plain")
    await streams.fork("a", "f")
    await streams.delete("a")
    assert (await streams.store.load("a")).look - clock() <= YOUNG_MS
    clock.now += YOUNG_MS
    await streams._sweeper.sweep()
    assert YOUNG_MS < (await streams.store.load("a")).look - clock() <= RECHECK_MS
    ((name, head),) = [(n, h) for n, h in await streams.store.list("f", after=None, limit=1, newest=False)]
    await streams._commits.remove(name, head)  # and the process dies before it can tell the source
    clock.now += RECHECK_MS
    await streams._sweeper.sweep()
    assert await names(streams) == []
