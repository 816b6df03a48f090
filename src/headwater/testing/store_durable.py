"""What a durable store must keep besides: restarts, and several objects (processes) on the same data.

Each check gets an open store that holds nothing, and `reopen`, which gives another object on the same data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import msgspec

from headwater.errors import OffsetGone, VersionConflict
from headwater.model import Offset
from headwater.store import Store
from headwater.testing.witness import NOW, Writing, must, raises, same

WAKE_SECONDS: Final = 1.0
"""A wake is promised within 20 ms; the rest is for a busy machine."""

Reopen = Callable[[], Store]


async def others_see_what_is_done(store: Store, reopen: Reopen) -> None:
    """G3, G4: once a commit is done every other object sees it, and conflicts with what it does not know"""
    other = reopen()
    await other.open()
    try:
        here = Writing(store, "a")
        await here.create(b"1")
        there = Writing(other, "a", await other.load("a"))
        same(await there.data(), [b"1"])
        await there.append(b"2")
        await raises(VersionConflict, here.append(b"?"))
        here.before = await here.held()
        await here.append(b"3", close=True)
        same(await there.data(), [b"1", b"2", b"3"])
        same(await there.held(), here.head)
    finally:
        await other.aclose()


async def everything_survives(store: Store, reopen: Reopen) -> None:
    """G1, G2, G8: heads, messages, closing, owners, touches and generations are the same after a restart"""
    kept, ended, gone = (Writing(store, name) for name in ("kept", "ended", "gone"))
    await kept.create(b"1", ttl=10, owner="i_1")
    await ended.create(b"1")
    await ended.append(b"2", close=True)
    await gone.create(b"1")
    await gone.delete()
    trimmed = Writing(store, "trimmed", await store.load("trimmed"))
    await trimmed.create(b"1", b"2", b"3")
    await trimmed.trim(2, size=2, look=NOW + 20_000)
    withdrawn = Writing(store, "withdrawn", await store.load("withdrawn"))
    await withdrawn.create(b"1", ttl=1)
    await withdrawn.withdraw(look=NOW + 30_000)
    absent = await store.load("gone")
    store.touch("kept", 0, NOW + 5_000)
    await store.aclose()
    other = reopen()
    await other.open()
    try:
        same(await other.load("kept"), msgspec.structs.replace(kept.head, touched=NOW + 5_000))
        same(await other.load("ended"), ended.head)
        same(await Writing(other, "ended").data(), [b"1", b"2"])
        same(await other.load("gone"), absent)
        same((list(await other.owners()), list(await other.owned("i_1"))), (["i_1"], ["kept"]))
        same([name for name, _ in await other.due(NOW + 14_999, limit=9)], [])
        same([name for name, _ in await other.due(NOW + 15_000, limit=9)], ["kept"])
        same(len(await other.due(NOW + 29_999, limit=9)), 2)
        same(len(await other.due(NOW + 30_000, limit=9)), 3)
        same(await other.load("trimmed"), trimmed.head)
        same(await Writing(other, "trimmed").data(), [b"3"])
        await raises(OffsetGone, other.read("trimmed", Offset(trimmed.head.generation, 1), max_bytes=9))
        same(await other.load("withdrawn"), withdrawn.head)
        same(await Writing(other, "withdrawn").data(), [b"1"])
    finally:
        await other.aclose()


async def closing_finishes_what_was_submitted(store: Store, reopen: Reopen) -> None:
    """G6: aclose carries out every commit submitted before it"""
    stream = Writing(store, "a")
    futures = [asyncio.ensure_future(stream.create(b"0"))]
    futures += [asyncio.ensure_future(stream.append(b"%d" % count)) for count in range(1, 50)]
    await store.aclose()
    await asyncio.gather(*futures)
    other = reopen()
    await other.open()
    try:
        same(await Writing(other, "a").data(), [b"%d" % count for count in range(50)])
    finally:
        await other.aclose()


async def what_was_seen_stays(store: Store, reopen: Reopen) -> None:
    """G4: what any reader has seen, another object on the same data sees from then on"""
    other = reopen()
    await other.open()
    try:
        stream, there = Writing(store, "a"), Writing(other, "a")
        await stream.create()
        futures = [asyncio.ensure_future(stream.append(b"x")) for _ in range(100)]
        while not futures[-1].done():
            for one, another in ((stream, there), (there, stream)):
                seen = (await one.held()).version
                must((await another.held()).version >= seen, "one object saw a commit that another did not")
            await asyncio.sleep(0)
        await asyncio.gather(*futures)
    finally:
        await other.aclose()


async def others_wake_whoever_watches(store: Store, reopen: Reopen) -> None:
    """G7: on_wake tells of every kind of change that another object makes to a watched stream, soon"""
    other = reopen()
    await other.open()
    woken: asyncio.Queue[str] = asyncio.Queue()
    store.on_wake = woken.put_nowait
    try:
        for name in ("a", "b"):
            store.watch(name, watched=True)
        a, b = Writing(other, "a"), Writing(other, "b")
        changes: list[tuple[str, Callable[[], Awaitable[None]]]] = [
            ("a", lambda: a.create(b"1")),
            ("a", lambda: a.append(b"2")),
            ("b", lambda: b.create()),
            ("a", lambda: a.append(close=True)),
            ("a", lambda: a.delete()),
        ]
        for name, change in changes:
            await drained(woken)
            await change()
            await woken_by(woken, name)
        for _ in range(3):  # a wake is a hint of the moment: it must come again and again, also when both write
            mine = Writing(store, "b", await store.load("b"))
            await mine.append(b"mine")
            b.before = mine.head
            await drained(woken)
            await b.append(b"theirs")
            await woken_by(woken, "b")
        store.watch("b", watched=False)
        store.watch("a", watched=False)
    finally:
        store.on_wake = None
        await other.aclose()


async def drained(woken: asyncio.Queue[str]) -> None:
    """Let wakes of the past pass: they may come late and twice."""
    with suppress(TimeoutError):
        while True:
            await asyncio.wait_for(woken.get(), 0.02)


async def woken_by(woken: asyncio.Queue[str], name: str) -> None:
    try:
        async with asyncio.timeout(WAKE_SECONDS):
            while await woken.get() != name:
                pass  # a late or needless wake of another stream
    except TimeoutError:
        raise AssertionError(f"no wake for {name!r} within {WAKE_SECONDS} s of another object's commit") from None


DURABLE_CHECKS: Final = (
    others_see_what_is_done,
    everything_survives,
    closing_finishes_what_was_submitted,
    what_was_seen_stays,
    others_wake_whoever_watches,
)
