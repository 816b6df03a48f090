"""Nothing holds the loop: whatever one stream asks for is done in slices, and others have their turn between them.

Slices are counted, and what each of them did; how long they take is for `bench/fairness.py`, which asks a real server.
"""

from __future__ import annotations

import asyncio
import itertools
from contextlib import asynccontextmanager

import pytest

from headwater.decide import Create, Item
from headwater.model import Offset, Retention
from headwater.store import MOST_MESSAGES
from headwater.stores.memory import SLICE, MemoryStore
from headwater.stores.memory_log import SEGMENT, Log
from headwater.streams import Streams

MANY = 40_000
MOST = 2 * MOST_MESSAGES
"""Messages between two turns of the others: a few milliseconds."""


@pytest.fixture
async def streams():
    async with Streams(MemoryStore()) as opened:
        yield opened


async def filled(streams, name, **how):
    await streams.create(name, content_type="text/plain", **how)
    for _ in range(MANY // 1000):
        await streams.append(name, *[b"x" * 100] * 1000)


@asynccontextmanager
async def turns(done):
    """What `done()` was at each turn of the loop, meanwhile."""
    seen = [done()]

    def look():
        nonlocal handle
        seen.append(done())
        handle = loop.call_soon(look)

    loop = asyncio.get_running_loop()
    handle = loop.call_soon(look)
    try:
        yield seen
    finally:
        handle.cancel()
        seen.append(done())


def longest(seen):
    return max(abs(after - before) for before, after in itertools.pairwise(seen))


async def test_catching_up_takes_a_turn_for_each_page(streams):
    await filled(streams, "a")
    read = 0
    cursor = await streams.cursor("a", max_bytes=1 << 30)
    async with turns(lambda: read) as seen:
        while (page := await cursor.take()) is not None:
            read += len(page.messages)
    cursor.close()
    assert read == MANY
    assert longest(seen) <= MOST


async def test_trimming_is_done_in_slices(streams, monkeypatch):
    read = 0
    read_page = Log.read

    def counted(self, start, max_bytes):
        nonlocal read
        page = read_page(self, start, max_bytes)
        read += len(page)
        return page

    monkeypatch.setattr(Log, "read", counted)
    async with turns(lambda: read) as seen:
        await filled(streams, "a", retention=Retention(messages=1000))
        while (await streams.head("a")).tail > 1125 + (await streams.head("a")).start:
            await streams._sweeper.sweep()
    assert read >= MANY - 1125
    assert longest(seen) <= MOST


@pytest.mark.parametrize("how", ["deleted", "trimmed", "replaced"])
async def test_what_is_no_longer_kept_is_let_go_of_in_slices(how):
    """A million messages at once would be a tenth of a second."""
    store = MemoryStore()
    await store.open()
    clock = lambda: 1_700_000_000_000 + (10_000_000 if how == "replaced" and made else 0)  # noqa: E731
    made = False
    async with Streams(store, clock=clock) as streams:
        await filled(streams, "a", ttl=3600)
        made = True
        left = lambda: sum(len(segment) for dropped in store._garbage for segment in dropped)  # noqa: E731
        if how == "deleted":
            await streams.delete("a")
        elif how == "replaced":
            await streams.create("a", content_type="text/plain", ttl=3600)
        else:
            head = await store.load("a")
            log = store._streams["a"].log
            store._drop(store._streams["a"], MANY)
            assert (log.base, len(log), head.tail) == (MANY, 0, MANY)
        async with turns(left) as seen:
            while left():
                await asyncio.sleep(0)
        assert seen[0] > MANY // 2  # it has hardly begun
        assert longest(seen) <= SLICE * SEGMENT
        assert store.statistics()["messages"] == 0


async def test_orphans_are_ended_one_at_a_time(streams):
    for number in range(100):
        await streams.carry_out(f"s/{number}", Create(items=[Item(b"1")], owner="i_gone"))
    ended = 0

    def count(_, decision):
        nonlocal ended
        ended += decision.head.closed

    streams.on_commit.append(count)
    async with turns(lambda: ended) as seen:
        assert await streams.leases.finish_orphans() == 100
    assert longest(seen) <= 2


async def test_a_page_costs_what_it_holds_wherever_it_is(streams):
    """Its position is found, not counted to; no more is looked at than the page may hold."""
    await filled(streams, "a")
    generation = (await streams.head("a")).generation
    log = streams.store._streams["a"].log
    for position in (0, MANY // 2, MANY - 10):
        page = log.read(Offset(generation, position), 650)
        assert [message.offset.position for message in page] == list(range(position + 1, position + 7))
