"""What every store must keep of the contract. Each check gets an open store that holds nothing."""

from __future__ import annotations

import asyncio
import functools
from typing import Final

import msgspec

from headwater.decide import Append, Create, ForkOf, Item, Stamp, decide
from headwater.errors import OffsetGone, StoreUnavailable, StreamNotFound, VersionConflict
from headwater.model import Absent, Config, Fork, Head, Message, Offset, Segment
from headwater.store import Store
from headwater.testing.witness import NOW, Writing, eventually, items, must, raises, same


async def deletion_starts_a_new_generation(store: Store) -> None:
    """G1: offsets of a deleted stream are never used again, also not by other streams' names coming and going"""
    seen: list[Offset] = []
    for name in ("a", "b", "a", "a", "b"):
        absent = await store.load(name)
        must(isinstance(absent, Absent), f"a free name was given as {absent!r}")
        stream = Writing(store, name, absent)
        await stream.create(b"1")
        await stream.append(b"2")
        head = await stream.held()
        must(all(head.offset > offset for offset in seen if name == "a"), f"{head.offset} comes after {seen}")
        if name == "a":
            seen.append(head.offset)
        await store.delete(name, head)


async def replacement_starts_a_new_generation(store: Store) -> None:
    """G1, G5: a head of the next generation replaces the stream, old messages and all"""
    stream = Writing(store, "a")
    await stream.create(b"old 1", b"old 2", ttl=1)
    await stream.append(b"old 3")
    old = stream.head
    await stream.create(b"new", now=NOW + 5_000)
    same(await stream.data(), [b"new"])
    must((await stream.held()).generation > old.generation, "the generation has not grown")
    await raises(OffsetGone, store.read("a", Offset(old.generation, 0), max_bytes=1000))
    await raises(OffsetGone, store.read("a", Offset(old.generation, 3), max_bytes=1000))
    await stream.delete()
    absent = await store.load("a")
    must(absent.generation > stream.head.generation, "a deleted generation would come back")


async def the_lowest_generation_counts_and_not_what_was_known(store: Store) -> None:
    """G1: a stream is made in any generation that is above those deleted, on whatever a free name was known by"""
    other, stream = Writing(store, "b"), Writing(store, "a")
    await other.commit(Create(), generation=500)
    await other.delete()
    floor = (await store.load("a")).generation
    must(floor > 500, f"{floor} is not above the deleted generation 500")
    await raises(VersionConflict, Writing(store, "a", Absent(0)).commit(Create(), generation=floor - 1))
    await raises(VersionConflict, Writing(store, "b", Absent(0)).commit(Create(), generation=500))
    must(isinstance(await store.load("a"), Absent), "a refused creation made a stream")
    await stream.commit(Create(items=items([b"1"])), generation=floor)  # decided on an Absent that is out of date
    same((await stream.held()).generation, floor)
    other = Writing(store, "b", Absent(7))
    await other.commit(Create(items=items([b"1"])), generation=floor + 1_000_000)
    same(await other.data(), [b"1"])
    await stream.delete()
    must((await store.load("a")).generation > floor, "a deleted generation would come back")
    same(await other.held(), other.head)  # a higher one that lives is not touched by that


async def heads_come_back_as_written(store: Store) -> None:
    """G2: everything in a head is kept"""
    stream = Writing(store, "a")
    labels = {"kind": "run", "owner": "zoë", "": ""}
    await stream.commit(Create(Config("text/plain; charset=utf-8", 3600), labels=labels, owner="i_1"))
    same(await stream.held(), stream.head)
    await stream.commit(Append(items([b"x"]), None, Stamp("p", 0, 0), seq="é1"))
    await stream.commit(Append(items([b"y"]), None, Stamp("q", 2**53 - 1, 0), seq="é2"))
    same(await stream.held(), stream.head)
    await stream.commit(Append(items([b"z"]), None, Stamp("p", 0, 1), close=True, outcome="failed"))
    same(await stream.held(), stream.head)
    same(stream.head.closed_by, ("p", 0, 1))
    fork = Writing(store, "f")
    lineage = (Segment("a", 0, 2), Segment("b/ä", 2**53, 3))
    await fork.commit(Create(fork_of=ForkOf("b/ä"), fork=Fork("b/ä", 2, 1, 3, lineage, "claim"), start=1, look=NOW))
    same(await fork.held(), fork.head)
    await fork.withdraw(look=NOW + 1)
    same(await fork.held(), fork.head)


async def messages_come_back_as_written(store: Store) -> None:
    """G2, G3: data, keys, times and offsets are kept, whatever they hold"""
    stream = Writing(store, "ä/%_'\"")
    every_byte, mebibyte = bytes(range(256)), b"\x00\xff" * (512 * 1024)
    first = [Item(b""), Item(every_byte, "key"), Item(b"x", ""), Item("ü\u2028\U0001f600".encode(), "ü\U0001f600")]
    await stream.commit(Create(items=first), NOW)
    await stream.commit(Append([Item(mebibyte), Item(b"last", "key")]), NOW + 7)
    wanted = [
        Message(item.data, Offset(0, position), NOW if position <= 4 else NOW + 7, item.key)
        for position, item in enumerate([*first, Item(mebibyte), Item(b"last", "key")], start=1)
    ]
    must(await store.read(stream.name, Offset(0, 0), max_bytes=1 << 30) == wanted, "the messages differ")


async def small_messages_come_back_as_written(store: Store) -> None:
    """G2, G3: the same for many that a store may keep or read together: nothing in one tells where it ends"""
    stream = Writing(store, "a")
    await stream.create()
    data = [b"", b"\x00", b"a\x00b", b"\xff\xfe", b",", b"", "ü\U0001f600".encode(), b"'\"\\", bytes(range(256)), b""]
    keys = [None, "", "k", None, "k,", None, "ü", "\n", "5", None]
    wanted: list[Message] = []
    for round_ in range(3):
        now = NOW + 1000 * round_
        appended = [Item(one, key if round_ else None) for one, key in zip(data, keys, strict=True)]
        await stream.commit(Append(appended), now)
        wanted += [Message(one.data, Offset(0, n), now, one.key) for n, one in enumerate(appended, len(wanted) + 1)]
    for start in range(len(wanted) + 1):
        for max_bytes in (1, 100, 1 << 20):
            got = await store.read("a", Offset(0, start), max_bytes=max_bytes)
            must(got == wanted[start : start + len(got)], f"the messages differ that were read from {start}")
            must(bool(got) or start == len(wanted), f"nothing was read from {start}")


async def batches_are_whole(store: Store) -> None:
    """G2, G8: messages, producer state and closing of one commit are there together"""
    stream = Writing(store, "a")
    await stream.create()
    await stream.append(b"1", b"2", b"3", close=True)
    head = await stream.held()
    same((head.tail, head.size, head.closed, head.outcome), (3, 3, True, "completed"))
    same(await stream.data(), [b"1", b"2", b"3"])


async def conflicts_write_nothing(store: Store) -> None:
    """G2: a commit or deletion on a head that is not the stored one changes nothing"""
    stream = Writing(store, "a")
    await stream.create(b"1")
    stale = stream.head
    await stream.append(b"2")
    before = await stream.held()
    other = decide(Absent(before.generation + 5), Create(items=items([b"?"])), NOW).head
    await raises(VersionConflict, Writing(store, "a", stale).append(b"?", close=True))
    await raises(VersionConflict, Writing(store, "a").create(b"?"))
    await raises(VersionConflict, Writing(store, "a", other).append(b"?"))
    await raises(VersionConflict, store.delete("a", stale))
    await raises(VersionConflict, store.delete("b", before))
    await raises(VersionConflict, Writing(store, "b", before).append(b"?"))
    await raises(VersionConflict, Writing(store, "a", Absent(before.generation + 5)).create(b"?"))
    same(await stream.held(), before)
    same(await stream.data(), [b"1", b"2"])
    must(isinstance(await store.load("b"), Absent), "a conflicting commit made a stream")


async def a_conflict_spares_its_neighbours(store: Store) -> None:
    """G2: of commits submitted together, those that match are carried out and the others are not"""
    stream, other = Writing(store, "a"), Writing(store, "b")
    await stream.create()
    stale = Writing(store, "a", Absent(0))
    submitted = [
        stream.append(b"1"),
        stale.create(b"?"),
        other.create(b"x"),
        stream.append(b"2"),
        stale.append(b"?"),
        stream.append(b"3"),
    ]
    results = await asyncio.gather(*submitted, return_exceptions=True)
    same([type(result).__name__ for result in results if result is not None], ["VersionConflict"] * 2)
    same(await stream.data(), [b"1", b"2", b"3"])
    same(await other.data(), [b"x"])


async def submissions_keep_their_order(store: Store) -> None:
    """G2: of two commits of one stream, the first called is the first tried and the first told"""
    streams = [Writing(store, f"s/{number}") for number in range(5)]
    told: list[tuple[str, int]] = []
    futures = []
    for count in range(40):
        for stream in streams:
            future = asyncio.ensure_future(stream.append(b"%d" % count) if count else stream.create(b"0"))
            future.add_done_callback(functools.partial(_note, told, (stream.name, count)))
            futures.append(future)
    await asyncio.gather(*futures, asyncio.sleep(0))  # those that were done at once tell so in the next turn
    for stream in streams:
        same([count for name, count in told if name == stream.name], list(range(40)))
        same(await stream.data(), [b"%d" % count for count in range(40)])


def _note(told: list[tuple[str, int]], entry: tuple[str, int], _: object) -> None:
    told.append(entry)


async def heads_and_messages_agree_at_all_times(store: Store) -> None:
    """G3, G4: whoever looks while commits go on sees whole ones, and never what was there before"""
    stream = Writing(store, "a")
    await stream.create()
    futures = [asyncio.ensure_future(stream.append(b"x" * count, b"y")) for count in range(100)]
    seen = 0
    while not futures[-1].done():
        head = await stream.held()
        done = sum(future.done() for future in futures)
        read = len(await store.read("a", Offset(0, 0), max_bytes=1 << 30))
        must(head.tail % 2 == 0 and read % 2 == 0, "half a commit was seen")
        must(seen <= head.tail <= read, f"{seen} messages were seen, then a head of {head.tail}, then {read} messages")
        must(2 * done <= read, f"{done} commits were done and {read} messages could be read")
        seen = head.tail
        await asyncio.sleep(0)
    await asyncio.gather(*futures)
    same((await stream.held()).tail, 200)


async def reads_never_skip(store: Store) -> None:
    """G5: what cannot be served raises; at the tail there is nothing"""
    stream = Writing(store, "a", await store.load("a"))
    await raises(StreamNotFound, store.read("a", Offset(0, 0), max_bytes=1000))
    await stream.create(b"gone")
    await stream.delete()
    stream = Writing(store, "a", await store.load("a"))
    await stream.create(b"1", b"2", b"3", b"4")
    generation = stream.head.generation
    await raises(OffsetGone, store.read("a", Offset(generation - 1, 0), max_bytes=1000))
    await raises(OffsetGone, store.read("a", Offset(generation + 1, 0), max_bytes=1000))
    same(await store.read("a", Offset(generation, 4), max_bytes=1000), [])
    decision = decide(stream.head, Append(items([b"5"])), NOW)
    trimmed = msgspec.structs.replace(decision.head, start=2)
    await store.commit("a", stream.head, trimmed, decision.messages)
    await raises(OffsetGone, store.read("a", Offset(generation, 1), max_bytes=1000))
    kept = await store.read("a", Offset(generation, 2), max_bytes=1000)
    same([(message.offset.position, message.data) for message in kept], [(3, b"3"), (4, b"4"), (5, b"5")])


async def trims_are_commits_like_any_other(store: Store) -> None:
    """G2, G5: of appends and trims submitted together each has its effect, in order; what is kept is read whole"""
    stream, other = Writing(store, "a"), Writing(store, "b")
    futures = [asyncio.ensure_future(stream.create(b"1")), asyncio.ensure_future(other.create(b"x", b"y"))]
    for count in range(2, 41):
        futures.append(asyncio.ensure_future(stream.append(b"%d" % count)))
        if count % 10 == 0:
            futures.append(asyncio.ensure_future(stream.trim(count - 3)))
    stale = Writing(store, "a", stream.head)
    futures.append(asyncio.ensure_future(stream.append(b"41", close=True)))
    futures.append(asyncio.ensure_future(stream.trim(39)))
    await asyncio.gather(*futures)
    await raises(VersionConflict, stale.trim(41))
    same(await stream.held(), stream.head)
    same((stream.head.start, stream.head.tail, stream.head.closed), (39, 41, True))
    same(await stream.data(), [b"40", b"41"])
    for position in (0, 7, 17, 38):
        await raises(OffsetGone, store.read("a", Offset(stream.head.generation, position), max_bytes=1000))
    await stream.trim(41)
    same(await stream.data(), [])
    same(await other.data(), [b"x", b"y"])
    await stream.delete()
    again = Writing(store, "a", await store.load("a"))
    await again.create(b"1", b"2")
    same(await again.data(), [b"1", b"2"])


async def a_fork_is_read_from_where_it_begins_itself(store: Store) -> None:
    """G5: what a fork inherits is not under its name; what is its own is, and is trimmed like any other's"""
    stream = Writing(store, "f")
    fork = Fork("s", 3, 0, 3, (Segment("s", 0, 3),), "claim")
    request = Create(items=items([b"4", b"5", b"6"]), fork_of=ForkOf("s"), fork=fork, start=1)
    await stream.commit(request)
    generation = stream.head.generation
    same((stream.head.start, stream.head.first, stream.head.tail), (1, 3, 6))
    for trimmed in (1, 2, 3):
        if trimmed > 1:
            await stream.trim(trimmed)
        same(await stream.data(), [b"4", b"5", b"6"])
        for position in (0, 2):
            await raises(OffsetGone, store.read("f", Offset(generation, position), max_bytes=1000))
    await stream.append(b"7")
    await stream.trim(5)
    same(await stream.data(), [b"6", b"7"])
    await raises(OffsetGone, store.read("f", Offset(generation, 4), max_bytes=1000))
    same([m.offset.position for m in await store.read("f", Offset(generation, 5), max_bytes=1000)], [6, 7])


async def a_withdrawn_stream_is_still_there(store: Store) -> None:
    """What was deleted although forks need it is loaded, read and listed by those who look after it, until it goes"""
    stream = Writing(store, "a")
    await stream.create(b"1", b"2", ttl=1)
    await stream.withdraw(look=NOW + 9_000)
    store.touch("a", stream.head.generation, NOW + 1)
    same(await stream.data(), [b"1", b"2"])
    same([name for name, _ in await store.list("", after=None, limit=9, newest=False)], ["a"])
    same((await stream.held()).deleted, NOW)
    same(list(await store.due(NOW + 8_999, limit=9)), [])
    same([name for name, _ in await store.due(NOW + 9_000, limit=9)], ["a"])
    await stream.delete()
    same(list(await store.due(NOW + 9_000, limit=9)), [])
    await raises(StreamNotFound, store.read("a", Offset(stream.head.generation, 0), max_bytes=10))


async def pages_are_bounded_and_contiguous(store: Store) -> None:
    """G5: a page holds what fits and at least one message, and the next goes on where it ended"""
    stream = Writing(store, "a")
    sizes = [0, 10, 500, 3, 0, 0, 90, 90, 90, 1000, 1]
    await stream.create(*(bytes([number]) * size for number, size in enumerate(sizes)))
    for max_bytes in (1, 10, 100, 180, 1 << 20):
        offset, got = Offset(0, 0), []
        while page := await store.read("a", offset, max_bytes=max_bytes):
            size = sum(len(message.data) for message in page)
            must(size <= max_bytes or len(page) == 1, f"{size} bytes in a page of {max_bytes}")
            got += page
            offset = page[-1].offset
        same([message.offset.position for message in got], list(range(1, len(sizes) + 1)))
        same([len(message.data) for message in got], sizes)
    await stream.append(*([b"s"] * 10_000))
    offset, count = Offset(0, len(sizes)), 0
    while page := await store.read("a", offset, max_bytes=1 << 30):
        offset, count = page[-1].offset, count + len(page)
    same((count, offset), (10_000, stream.head.offset))


async def cancelled_waits_change_nothing(store: Store) -> None:
    """G6: a commit that was submitted is carried out, whether or not anybody waits"""
    stream = Writing(store, "a")
    futures = [asyncio.ensure_future(stream.create(b"0"))]
    futures += [asyncio.ensure_future(stream.append(b"%d" % count)) for count in range(1, 10)]
    for future in futures[:-1:2]:
        future.cancel()
    await futures[-1]
    same(await stream.data(), [b"%d" % count for count in range(10)])
    deletion = asyncio.ensure_future(stream.delete())
    deletion.cancel()
    await asyncio.wait([deletion])

    async def absent() -> bool:
        return isinstance(await store.load("a"), Absent)

    await eventually(absent, "a deletion whose wait was cancelled")


async def closed_stays_closed(store: Store) -> None:
    """G8: nothing that comes later opens a closed stream"""
    stream = Writing(store, "a")
    await stream.create(b"1")
    open_head = stream.head
    await stream.append(close=True)
    await raises(VersionConflict, Writing(store, "a", open_head).append(b"?"))
    store.touch("a", stream.head.generation, NOW + 1)
    head = await stream.held()
    same((head.closed, head.outcome, head.tail), (True, "completed", 1))


async def deleted_is_gone(store: Store) -> None:
    """G1: a deleted stream is in no answer of any kind"""
    stream = Writing(store, "a")
    await stream.create(b"1", ttl=1, owner="i_1")
    await stream.delete()
    must(isinstance(await store.load("a"), Absent), "load")
    same(list(await store.list("", after=None, limit=10, newest=False)), [])
    same(list(await store.due(NOW + 10_000, limit=10)), [])
    same(list(await store.owners()), [])
    same(list(await store.owned("i_1")), [])
    await raises(StreamNotFound, store.read("a", Offset(0, 0), max_bytes=10))
    await raises(VersionConflict, stream.delete())


async def names_are_listed_in_order(store: Store) -> None:
    """list: by code points, by prefix taken literally, beyond `after`, either way"""
    names = ["a", "A", "ab", "a/1", "a/10", "a/2", "a%", "a%b", "a_", "a_b", "a*", "a[b]", "b", "ab/ab"]
    names += ["aé", "aÉ", "a\U0001f9ff", "a\U000e01ef", "a\uffee", "ä"]
    for name in names:
        await Writing(store, name).create()
    for prefix in ["", "a", "a/", "a/1", "a%", "a_", "a*", "a[", "aé", "a\U0001f9ff", "a\U000e01ef", "z", "a" * 50]:
        for after in [None, "", "a", "a/10", "a_", "zz"]:
            for newest in (False, True):
                wanted = sorted((name for name in names if name.startswith(prefix)), reverse=newest)
                if after is not None:
                    wanted = [name for name in wanted if (name < after if newest else name > after)]
                for limit in (1, 3, 100):
                    found = await store.list(prefix, after=after, limit=limit, newest=newest)
                    same([name for name, _ in found], wanted[:limit])
    ((name, head),) = await store.list("ab/", after=None, limit=2, newest=False)
    same((name, head), ("ab/ab", await store.load("ab/ab")))


async def touches_only_move_forward(store: Store) -> None:
    """touch: a sliding end moves with reads and writes and never back"""
    stream = Writing(store, "a")
    await stream.create(ttl=10)
    generation = stream.head.generation
    store.touch("a", generation, NOW + 1_000)
    store.touch("a", generation, NOW + 8_000)
    store.touch("a", generation, NOW + 3_000)
    store.touch("a", generation + 1, NOW + 90_000)
    store.touch("b", 0, NOW + 90_000)

    async def touched() -> bool:
        return (await stream.held()).touched == NOW + 8_000

    await eventually(touched, "a touch")
    await stream.append(b"1", now=NOW + 2_000)  # decided before the read, committed after it
    same((await stream.held()).touched, NOW + 8_000)
    same(list(await store.due(NOW + 17_999, limit=10)), [])
    ((name, head),) = await store.due(NOW + 18_000, limit=10)
    same((name, head.touched), ("a", NOW + 8_000))
    ((name, head),) = await store.list("", after=None, limit=2, newest=False)
    same((name, head.touched, head.tail), ("a", NOW + 8_000, 1))
    same((await stream.held()).version, stream.head.version)


async def the_expired_are_found(store: Store) -> None:
    """expired: streams whose life is over, to the millisecond, a bounded number of them"""
    await Writing(store, "ttl").create(b"1", ttl=5)
    await Writing(store, "at").create(b"1", at=NOW + 5_000)
    await Writing(store, "later").create(b"1", ttl=9)
    await Writing(store, "never").create(b"1")
    same(list(await store.due(NOW + 4_999, limit=10)), [])
    found = dict(await store.due(NOW + 5_000, limit=10))
    same(sorted(found), ["at", "ttl"])
    must(all(head.expired(NOW + 5_000) for head in found.values()), "a head among them is not over")
    same(len(await store.due(NOW + 5_000, limit=1)), 1)
    must(isinstance(await store.load("at"), Head), "an expired stream is still given, until it is deleted")


async def what_is_to_be_looked_at_is_found(store: Store) -> None:
    """due: streams whose `look` has come, as the last commit left it, and each once though it is over, too"""
    once, never, both = (Writing(store, name) for name in ("once", "never", "both"))
    await once.commit(Create(look=NOW + 3_000))
    await never.create(b"1")
    await both.commit(Create(Config(ttl=3), look=NOW + 3_000))
    same(list(await store.due(NOW + 2_999, limit=9)), [])
    same(sorted(name for name, _ in await store.due(NOW + 3_000, limit=9)), ["both", "once"])
    same(len(await store.due(NOW + 3_000, limit=1)), 1)
    await once.trim(0, look=NOW + 4_000)
    same([name for name, _ in await store.due(NOW + 3_000, limit=9)], ["both"])
    found = dict(await store.due(NOW + 4_000, limit=9))
    same(found["once"], once.head)
    await once.trim(0, look=None)
    await both.delete()
    same(list(await store.due(NOW + 9_000, limit=9)), [])


async def the_owned_are_found(store: Store) -> None:
    """G8: the open streams that somebody makes are found by their maker, so that they can be ended when he is gone"""
    names = ("made", "more", "free", "ended", "other's")
    made, more, free, ended, others = streams = [Writing(store, name) for name in names]
    for stream, owner in zip(streams, ("i_1", "i_1", None, "i_2", "i_3"), strict=True):
        await stream.create(b"1", owner=owner)
    same(sorted(await store.owners()), ["i_1", "i_2", "i_3"])
    for owner, its in {"i_1": ["made", "more"], "i_2": ["ended"], "i_3": ["other's"], "i_4": []}.items():
        same(sorted(await store.owned(owner)), its)
    await ended.append(close=True)
    await made.append(b"2")
    await free.append(b"2")
    same(sorted(await store.owners()), ["i_1", "i_3"])
    same(list(await store.owned("i_2")), [])
    await others.commit(Append(items([b"2"]), owner="i_1"))
    same(list(await store.owners()), ["i_1"])
    same(sorted(await store.owned("i_1")), ["made", "more", "other's"])
    await more.delete()
    same(sorted(await store.owned("i_1")), ["made", "other's"])


async def a_closed_store_says_so(store: Store) -> None:
    """A store that is not open raises StoreUnavailable, and opens again"""
    stream = Writing(store, "a")
    await stream.create(b"1")
    await store.aclose()
    await raises(StoreUnavailable, store.load("a"))
    await raises(StoreUnavailable, store.read("a", Offset(0, 0), max_bytes=10))
    await raises(StoreUnavailable, store.list("", after=None, limit=1, newest=False))
    await raises(StoreUnavailable, store.commit("a", stream.head, stream.head, []))
    await raises(StoreUnavailable, store.delete("a", stream.head))
    store.touch("a", 0, NOW)
    await store.aclose()
    await store.open()
    await Writing(store, "b", await store.load("b")).create(b"2")


CHECKS: Final = (
    deletion_starts_a_new_generation,
    replacement_starts_a_new_generation,
    the_lowest_generation_counts_and_not_what_was_known,
    heads_come_back_as_written,
    messages_come_back_as_written,
    small_messages_come_back_as_written,
    batches_are_whole,
    conflicts_write_nothing,
    a_conflict_spares_its_neighbours,
    submissions_keep_their_order,
    heads_and_messages_agree_at_all_times,
    reads_never_skip,
    trims_are_commits_like_any_other,
    a_fork_is_read_from_where_it_begins_itself,
    a_withdrawn_stream_is_still_there,
    pages_are_bounded_and_contiguous,
    cancelled_waits_change_nothing,
    closed_stays_closed,
    deleted_is_gone,
    names_are_listed_in_order,
    touches_only_move_forward,
    the_expired_are_found,
    what_is_to_be_looked_at_is_found,
    the_owned_are_found,
    a_closed_store_says_so,
)
