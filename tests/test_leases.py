"""leases.py: streams whose maker died are ended, and those of the living are left alone."""

import asyncio
import os
import signal
import subprocess
import sys

import msgspec
import pytest

from headwater import leases
from headwater.decide import Create, Item
from headwater.errors import StoreUnavailable, StreamClosed
from headwater.leases import PREFIX, TTL_SECONDS, Place
from headwater.model import Head
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


@pytest.fixture
def store():
    return MemoryStore()


@pytest.fixture
async def here(store, clock):
    async with Streams(store, clock=clock) as streams:
        yield streams


@pytest.fixture
async def there(store, clock):
    """Stands for another process; its keeper sleeps, unless a test runs it."""
    async with Streams(store, clock=clock) as streams:
        yield streams


MAKE = """
import asyncio, sys
from headwater.streams import Streams

async def main(path):
    async with Streams(f"sqlite:///{path}") as streams:
        writers = [streams.writer("plain"), streams.writer("labelled", labels={"kind": "run"})]
        for writer in writers:
            await writer.open("said before")
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main(sys.argv[1]))
"""


async def test_the_streams_of_a_killed_process_are_ended_by_another_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(leases.Leases, "_keep_finishing", lambda _: asyncio.sleep(3600))  # it is left to us
    path = str(tmp_path / "a.db")
    process = subprocess.Popen([sys.executable, "-c", MAKE, path], stdout=subprocess.PIPE, text=True)
    async with Streams(SqliteStore(path)) as streams:
        try:
            assert process.stdout.readline() == "ready\n"
            assert await streams.leases.finish_orphans() == 0, "its maker lives"
            assert not (await streams.head("plain")).closed
            process.send_signal(signal.SIGKILL)
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # dead, but not buried: a zombie
            assert await streams.leases.finish_orphans() == 1
            head = await streams.head("plain")
            assert (head.closed, head.outcome, head.owner, head.tail) == (True, "failed", None, 1)
            assert not (await streams.head("labelled")).closed, "nobody here knows how to end a run"
            process.wait()

            ended = []

            async def finish(name, head, why):
                ended.append((name, head.labels, why.code))
                await streams.append(name, {"type": "RUN_ERROR"}, close=True, outcome="failed")

            streams.leases.finisher("run", finish)
            assert await streams.leases.finish_orphans() == 1
            assert ended == [("labelled", {"kind": "run"}, "interrupted")]
            page = await streams.read("labelled")
            assert [message.data for message in page.messages] == [b'"said before"', b'{"type":"RUN_ERROR"}']
            assert page.closed
            assert await streams.leases.finish_orphans() == 0
        finally:
            process.kill()
            process.communicate()


async def test_a_process_looks_after_orphans_when_it_opens(store, clock):
    async with Streams(store, clock=clock) as streams:
        await streams.carry_out("a", Create(owner="i_gone"))
    async with Streams(store, clock=clock) as streams:
        async for page in streams.follow("a"):
            assert page.outcome in (None, "failed")
        assert page.closed


async def test_own_streams_and_those_of_a_living_owner_are_left_alone(here, there):
    async with here.writer("mine") as mine, there.writer("theirs") as theirs:
        await mine.send(1)
        await theirs.send(1)
        assert await here.leases.finish_orphans() == 0
        assert await there.leases.finish_orphans() == 0
    for name in ("mine", "theirs"):
        assert (await here.head(name)).outcome == "completed"


async def test_a_lease_lasts_while_it_is_renewed_and_no_longer(here, there, clock):
    await there.writer("a").open()
    for _ in range(5):
        clock.now += (TTL_SECONDS - 1) * 1000
        await there.leases._renew()
        assert await here.leases.finish_orphans() == 0
    clock.now += TTL_SECONDS * 1000
    assert await here.leases.finish_orphans() == 1
    assert (await here.head("a")).outcome == "failed"


async def test_whoever_slept_for_longer_than_its_lease_takes_a_new_one(here, there, clock):
    writer = there.writer("a")
    await writer.open()
    clock.now += TTL_SECONDS * 1000
    await there.leases._renew()
    assert await here.leases.finish_orphans() == 0, "it came back before anybody missed it"
    await writer.aclose()


async def test_a_lease_goes_with_its_process_and_only_those_who_make_streams_have_one(store, clock, here):
    async with Streams(store, clock=clock) as streams:
        assert [name for name, _ in await here.list(PREFIX)] == []
        owners = await asyncio.gather(*(streams.leases.hold() for _ in range(5)))
        assert set(owners) == {streams.leases.owner}
        assert [name for name, _ in await here.list(PREFIX)] == [PREFIX + streams.leases.owner]
        assert streams.leases.owner in repr(streams.leases)
    await store.open()  # both are on one object here
    assert [name for name, _ in await here.list(PREFIX)] == []


async def test_several_that_end_an_orphan_end_it_once(here, there):
    await here.carry_out("a", Create(items=[Item(b"1")], owner="i_gone"))
    await asyncio.gather(here.leases.finish_orphans(), there.leases.finish_orphans())
    head = await here.head("a")
    assert (head.closed, head.outcome, head.tail) == (True, "failed", 1)


@pytest.mark.parametrize("error", [StoreUnavailable("busy"), ZeroDivisionError("a bug")])
async def test_an_orphan_that_cannot_be_ended_does_not_keep_the_others_open(here, error, caplog):
    async def fail(name, head, why):
        raise error

    here.leases.finisher("bad", fail)
    await here.carry_out("a", Create(owner="i_gone", labels={"kind": "bad"}))
    await here.carry_out("b", Create(owner="i_gone"))
    assert await here.leases.finish_orphans() == 1
    assert (await here.head("b")).closed
    assert not (await here.head("a")).closed
    assert "could not close a" in caplog.text


async def test_a_lease_is_renewed_while_streams_are_being_ended(store, clock, monkeypatch):
    """A process that has thousands to end, or waits for one, must not be taken for dead meanwhile."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.001)
    stuck = asyncio.Event()

    async def finish(name, head, why):
        stuck.set()
        await asyncio.Event().wait()

    async with Streams(store, clock=clock) as streams:
        streams.leases.finisher("slow", finish)
        await streams.leases.hold()
        await streams.carry_out("a", Create(owner="i_gone", labels={"kind": "slow"}))
        async with asyncio.timeout(5):
            await stuck.wait()
            clock.now += (TTL_SECONDS - 1) * 1000
            while (await store.load(PREFIX + streams.leases.owner)).touched != clock.now:
                await asyncio.sleep(0)


async def test_looking_after_leases_goes_on_after_a_bug(store, clock, monkeypatch, caplog):
    monkeypatch.setattr(leases, "RENEW_SECONDS", 0.001)
    async with Streams(store, clock=clock) as streams:
        owners, failing = store.owners, True

        async def fail():
            if failing:
                raise ZeroDivisionError
            return await owners()

        store.owners = fail
        await streams.carry_out("a", Create(owner="i_gone"))
        async with asyncio.timeout(5):
            while "ZeroDivisionError" not in caplog.text:
                await asyncio.sleep(0)
            failing = False
            while not (await streams.head("a")).closed:
                await asyncio.sleep(0)


async def test_what_is_abandoned_while_orphans_are_looked_for_is_not_forgotten(here, store):
    owners = store.owners

    async def late():
        found = await owners()
        await here.carry_out("a", Create(owner=here.leases.owner))
        here.leases.abandon("a", StoreUnavailable("the disk is full"))
        return found

    store.owners = late
    await here.leases.finish_orphans()
    store.owners = owners
    assert await here.leases.finish_orphans() == 1
    assert (await here.head("a")).outcome == "failed"


async def test_what_was_abandoned_is_tried_again_until_it_has_ended(here, store):
    await here.carry_out("a", Create(owner=here.leases.owner))
    load, failing = store.load, True

    async def away(name):
        if failing and name == "a":
            raise StoreUnavailable("away")
        return await load(name)

    store.load = away
    here.leases.abandon("a", StoreUnavailable("the disk is full"))
    assert await here.leases.finish_orphans() == 0
    failing = False
    assert await here.leases.finish_orphans() == 1
    assert await here.leases.finish_orphans() == 0
    assert here.leases._abandoned == {}


class Counting(MemoryStore):
    """Counts the streams that are looked at."""

    def __init__(self):
        super().__init__()
        self.looked_at = []

    async def load(self, name):
        self.looked_at.append(name)
        return await super().load(name)

    async def owned(self, owner):
        self.looked_at += (found := await super().owned(owner))
        return found


async def test_while_no_lease_lapses_no_stream_is_looked_at(clock, monkeypatch):
    monkeypatch.setattr(leases.Leases, "_keep_finishing", lambda _: asyncio.sleep(3600))  # it is left to us
    """A look costs what there are processes, however many streams they make."""
    store = Counting()
    async with Streams(store, clock=clock) as here, Streams(store, clock=clock) as there:
        for streams in (here, there):
            owner = await streams.leases.hold()
            for number in range(100):
                await streams.carry_out(f"{owner}/{number}", Create(owner=owner))
        store.looked_at = []
        assert await here.leases.finish_orphans() == 0
        assert store.looked_at == [PREFIX + there.leases.owner]
        clock.now += TTL_SECONDS * 1000
        assert await here.leases.finish_orphans() == 100
        store.looked_at = []
        assert await here.leases.finish_orphans() == 0
        assert store.looked_at == []


async def test_orphans_that_nobody_here_can_end_are_looked_at_once(clock, monkeypatch):
    monkeypatch.setattr(leases.Leases, "_keep_finishing", lambda _: asyncio.sleep(3600))  # it is left to us
    store = Counting()
    async with Streams(store, clock=clock) as here:
        for number in range(10):
            await here.carry_out(f"s/{number}", Create(owner="i_gone", labels={"kind": "elsewhere"}))
        store.looked_at = []
        loaded = [f"s/{number}" for number in range(10)]
        for looked_at in (loaded, []):
            assert await here.leases.finish_orphans() == 0
            assert [name for name in store.looked_at if name.startswith("s/")] == [*loaded, *looked_at]
            store.looked_at = []

        async def finish(name, head, why):
            await here.append(name, close=True, outcome="failed")

        here.leases.finisher("elsewhere", finish)
        assert await here.leases.finish_orphans() == 10


async def test_a_lease_is_taken_anew_when_streams_open_again(store, clock):
    streams = Streams(store, clock=clock)
    for _ in range(2):
        async with streams:
            await streams.leases.hold()
            assert isinstance(await store.load(PREFIX + streams.leases.owner), Head)


async def test_a_lease_that_somebody_else_wrote_harms_nobody(here, clock):
    """Names are open to whoever may write: what stands there need not be a lease."""
    for number, content in enumerate([[], [b"nonsense"], [b'{"host":1}']]):
        await here.create(f"{PREFIX}i_{number}", *content, ttl=TTL_SECONDS)
        await here.carry_out(f"s/{number}", Create(owner=f"i_{number}"))
    assert await here.leases.finish_orphans() == 0
    clock.now += TTL_SECONDS * 1000
    assert await here.leases.finish_orphans() == 3


def test_only_what_can_be_seen_to_be_dead_is_dead():
    here = Place.here()
    assert here.pid == os.getpid()
    assert not here.surely_dead()
    assert not Place("elsewhere", 1, "1").surely_dead()
    assert not Place(here.host, here.pid, "").surely_dead(), "a system that does not say"
    assert Place(here.host, here.pid, "1").surely_dead(), "the pid was used again"
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    assert Place(here.host, gone.pid, here.started).surely_dead()
    assert msgspec.json.decode(msgspec.json.encode(here), type=Place) == here


async def test_a_maker_that_was_taken_for_dead_finds_its_stream_closed(here, there, clock):
    """G8: fenced off; nothing of it lands behind the end."""
    writer = there.writer("a")
    await writer.open()
    clock.now += TTL_SECONDS * 1000
    await here.leases.finish_orphans()
    await writer.send(1)
    with pytest.raises(StreamClosed):
        await writer.flush()
    head = await here.head("a")
    assert (head.tail, head.outcome) == (0, "failed")


async def test_a_process_whose_lease_lapsed_is_told(here, clock):
    told = []
    here.leases.on_lapse.append(lambda: told.append(clock.now))
    await here.writer("a").open()
    await here.leases._renew()
    assert told == []
    clock.now += TTL_SECONDS * 1000
    await here.leases._renew()
    assert told == [clock.now]


async def test_what_was_abandoned_and_is_another_s_by_now_is_left_to_it(here, there):
    writer = here.writer("a", producer="maker")
    await writer.open("begun")
    assert await there.writer("a", producer="maker").take_over(await there.head("a"), "gone on")
    here.leases._abandoned["a"] = StoreUnavailable("was away")
    assert await here.leases.finish_orphans() == 0
    assert not (await here.head("a")).closed


async def test_a_finisher_may_leave_a_stream_open(here, clock):
    seen = []

    async def leave(name, head, why):
        seen.append(name)
        return False

    here.leases.finisher("run", leave)
    await here.carry_out("a", Create(owner="i_gone", labels={"kind": "run"}))
    assert await here.leases.finish_orphans() == 0
    assert seen == ["a"]
    assert not (await here.head("a")).closed
