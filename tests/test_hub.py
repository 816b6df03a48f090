"""hub.py: the ring, the waiters and the tails that are kept."""

import asyncio
import gc
import random
import tracemalloc

import pytest

from headwater import hub as hub_module
from headwater.hub import IDLE_RING_BYTES, MEMO_PAGES, MESSAGE_OVERHEAD, MOST_MESSAGES, Hub, Tail, page_of
from headwater.model import Absent, Config, Head, Message, Offset


def messages(first, last, *, size=0, generation=1):
    return [Message(b"x" * size, Offset(generation, position), 0) for position in range(first, last + 1)]


def head(tail, *, version=None, generation=1, **more):
    return Head(Config(), generation, version or tail + 1, tail, **more)


def positions(found):
    return [message.offset.position for message in found]


# -- the ring ----------------------------------------------------------------------------------------------------------


def test_a_ring_gives_what_follows_an_offset():
    tail = Tail("a")
    tail.extend(messages(1, 3))
    tail.extend(messages(4, 5))
    assert positions(tail.messages(Offset(1, 0), 1 << 20)) == [1, 2, 3, 4, 5]
    assert positions(tail.messages(Offset(1, 3), 1 << 20)) == [4, 5]
    assert tail.messages(Offset(1, 5), 1 << 20) == []
    assert tail.messages(Offset(1, 6), 1 << 20) == []
    assert tail.messages(Offset(0, 3), 1 << 20) == []
    assert tail.messages(Offset(2, 3), 1 << 20) == []


def test_a_page_out_of_the_ring_is_bounded_and_never_empty():
    tail = Tail("a")
    tail.extend(messages(1, 10, size=100))
    each = 100 + MESSAGE_OVERHEAD
    assert positions(tail.messages(Offset(1, 2), 1)) == [3]
    assert positions(tail.messages(Offset(1, 2), each)) == [3]
    assert positions(tail.messages(Offset(1, 2), 2 * each - 1)) == [3]
    assert positions(tail.messages(Offset(1, 2), 2 * each)) == [3, 4]
    tail.extend(messages(11, MOST_MESSAGES + 500))
    assert len(tail.messages(Offset(1, 10), 1 << 30)) <= MOST_MESSAGES


def test_a_ring_is_bounded_and_keeps_the_newest(monkeypatch):
    monkeypatch.setattr(hub_module, "RING_BYTES", 10_000)
    tail, random_ = Tail("a"), random.Random(1)
    position = 0
    for _ in range(500):
        count = random_.randint(1, 20)
        tail.extend(messages(position + 1, position + count, size=random_.randint(0, 900)))
        position += count
        kept = tail.messages(Offset(1, position - 1), 1)
        assert positions(kept) == [position]
        first = next(p for p in range(position) if tail.messages(Offset(1, p), 1))
        ring = tail.messages(Offset(1, first), 1 << 30)
        assert positions(ring) == list(range(first + 1, position + 1))
        assert sum(len(m.data) + MESSAGE_OVERHEAD for m in ring) <= 12_500 or len(ring) == 1


def test_a_message_larger_than_the_ring_is_the_only_one_in_it(monkeypatch):
    monkeypatch.setattr(hub_module, "RING_BYTES", 1000)
    tail = Tail("a")
    tail.extend(messages(1, 3))
    tail.extend(messages(4, 4, size=5000))
    assert positions(tail.messages(Offset(1, 3), 1)) == [4]
    assert tail.messages(Offset(1, 2), 1) == []
    tail.extend(messages(5, 5))
    assert positions(tail.messages(Offset(1, 4), 1)) == [5]


def test_a_ring_never_has_a_hole_and_never_goes_back():
    tail = Tail("a")
    tail.extend(messages(5, 7))
    tail.extend(messages(1, 3))  # a slow reader's page
    tail.extend(messages(6, 9))  # overlaps: known in part
    assert positions(tail.messages(Offset(1, 4), 1 << 20)) == [5, 6, 7]
    tail.extend(messages(10, 11))  # a hole: begins anew
    assert tail.messages(Offset(1, 4), 1 << 20) == []
    assert positions(tail.messages(Offset(1, 9), 1 << 20)) == [10, 11]
    tail.extend(messages(1, 2, generation=2))
    assert tail.messages(Offset(1, 9), 1 << 20) == []
    assert positions(tail.messages(Offset(2, 0), 1 << 20)) == [1, 2]
    tail.extend([])
    assert positions(tail.messages(Offset(2, 0), 1 << 20)) == [1, 2]


def test_a_page_is_rendered_once_for_all_who_ask_for_it():
    tail, made = Tail("a"), []

    def rendered(key):
        return tail.rendered(key, lambda: made.append(key) or str(key).encode())

    assert [rendered(1), rendered(1), rendered(2), rendered(1)] == [b"1", b"1", b"2", b"1"]
    assert made == [1, 2]
    for key in range(3, 3 + MEMO_PAGES):
        rendered(key)
    rendered(1)
    assert made == [1, 2, *range(3, 3 + MEMO_PAGES), 1]


# -- what is known of the head -----------------------------------------------------------------------------------------


def test_a_tail_learns_newer_heads_only():
    tail = Tail("a")
    for known, offered, after in [
        (None, head(3), head(3)),
        (head(3), head(2), head(3)),
        (head(3), head(4), head(4)),
        (head(4), head(0, generation=2), head(0, generation=2)),
        (head(0, generation=2), head(9), head(0, generation=2)),
        (head(9), Absent(2), Absent(2)),
        (Absent(2), head(9), Absent(2)),
        (Absent(2), head(0, generation=2), head(0, generation=2)),
    ]:
        tail.head = known
        tail.learn(offered)
        assert tail.head == after


def test_a_head_out_of_the_store_counts_only_if_nothing_happened_while_it_was_fetched():
    """Else a reader that was woken for a commit would look at the head before it, and wait for the next one."""
    tail = Tail("a")
    wakes = tail.wakes
    tail.forget()
    tail.learn(head(3), wakes)
    assert tail.head is None
    tail.learn(head(4), tail.wakes)
    assert tail.head == head(4)


def test_a_commit_that_was_overtaken_does_not_pass_for_the_newest_head():
    tail = Tail("a")
    tail.head = head(3)
    tail.forget()  # another process went on to 5
    tail.grow(head(4), messages(4, 4))  # and our own commit before that is told late
    assert tail.head is None
    assert tail.wakes == 2


def test_a_read_here_moves_a_sliding_end_before_the_store_knows():
    tail = Tail("a")
    tail.head = tail.latest = Head(Config(ttl=1), 1, touched=100)
    tail.touch(900)
    tail.touch(500)
    assert tail.head.touched == tail.latest.touched == 900
    assert tail.touched_head(Head(Config(ttl=1), 1, touched=100)).touched == 900
    assert tail.touched_head(Head(Config(ttl=1), 1, touched=950)).touched == 950
    assert tail.touched_head(Head(Config(), 1, touched=100)).touched == 100
    assert tail.touched_head(Absent(1)) == Absent(1)


# -- waiting -----------------------------------------------------------------------------------------------------------


async def test_a_wake_wakes_everybody_and_a_cancelled_waiter_only_itself():
    tail = Tail("a")
    waiters = [tail.waiter() for _ in range(5)]
    waiters[2].cancel()
    tail.wake()
    assert [waiter.cancelled() for waiter in waiters] == [False, False, True, False, False]
    assert all(waiter.done() for waiter in waiters)
    tail.wake()
    assert tail.wakes == 2


async def test_whoever_stops_waiting_leaves_nothing_behind():
    tail = Tail("a")
    for _ in range(1000):
        tail.discard(tail.waiter())
    assert not tail._waiters


async def test_a_wake_between_looking_and_waiting_is_seen_by_the_number_of_wakes():
    tail = Tail("a")
    wakes = tail.wakes
    tail.wake()
    assert tail.wakes != wakes


# -- the tails of a process --------------------------------------------------------------------------------------------


@pytest.fixture
def watched():
    return []


@pytest.fixture
def hub(watched):
    return Hub(lambda name, on: watched.append((name, on)))


def test_a_stream_is_watched_while_it_has_readers(hub, watched):
    first = hub.join("a")
    assert hub.join("a") is first
    hub.leave(first)
    assert watched == [("a", True)]
    hub.leave(first)
    assert watched == [("a", True), ("a", False)]
    assert first.readers == 0
    first.head = head(3)
    assert hub.join("a") is first
    assert first.head is None, "nobody listened to other processes meanwhile"


def test_tails_without_readers_hold_little(hub):
    """G9: there may be a thousand of them."""
    tail = hub.join("a")
    tail.extend(messages(1, 1000, size=100))
    for number in range(MEMO_PAGES):
        tail.rendered(number, lambda: b"x" * 64 * 1024)
    assert len(tail._messages) > 500
    hub.leave(tail)
    most = IDLE_RING_BYTES * 5 // 4 // (100 + MESSAGE_OVERHEAD)
    assert len(tail._messages) <= most
    assert not tail._memo
    for position in range(1001, 3000):  # written, and read by nobody
        tail.extend(messages(position, position, size=100))
    assert len(tail._messages) <= most
    assert positions(tail.messages(Offset(1, 2998), 1)) == [2999]
    tail = hub.join("a")
    tail.extend(messages(3000, 4000, size=100))
    assert len(tail._messages) > 500


async def test_tails_without_readers_are_kept_for_a_while_and_those_in_use_always(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "IDLE_TAILS", 10)
    read, decided, committing = hub.join("read"), hub.tail("decided"), hub.tail("committing")
    call = decided.begun()
    committing.outstanding = asyncio.get_running_loop().create_future()
    for number in range(100):
        hub.tail(f"s/{number}")
    assert len(hub) <= 10 + 3
    assert [hub.known(name) for name in ("read", "decided", "committing")] == [read, decided, committing]
    assert hub.known("s/99") is not None
    assert hub.known("s/1") is None
    committing.outstanding.set_result(None)
    decided.ended(call)
    for number in range(100, 200):
        hub.tail(f"s/{number}")
    assert [hub.known(name) for name in ("decided", "committing")] == [None, None]
    assert len(hub) == 11


async def test_the_number_of_tails_falls_again_after_many_were_busy(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "IDLE_TAILS", 10)
    calls = [(tail := hub.tail(f"busy/{number}"), tail.begun()) for number in range(100)]
    assert len(hub) == 100
    for tail, call in calls:
        tail.ended(call)
    for number in range(100):
        hub.tail(f"s/{number}")
    assert len(hub) == 10


def test_the_last_used_tail_is_kept_longest(hub, monkeypatch):
    monkeypatch.setattr(hub_module, "IDLE_TAILS", 3)
    for name in "abcad":
        hub.tail(name)
    assert [name for name in "abcd" if hub.known(name)] == ["a", "c", "d"]


def test_readers_cost_a_fixed_amount_however_much_they_have_not_read(hub):
    """G9"""
    tail = hub.tail("a")
    for _ in range(1000):
        hub.join("a")
    gc.collect()
    tracemalloc.start()
    try:
        position = 0
        while position < 50_000:
            tail.grow(head(position + 10), messages(position + 1, position + 10, size=50))
            position += 10
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1024 * 1024, f"{held:,} bytes held for 1,000 readers that never read 50,000 messages"


# -- pages -------------------------------------------------------------------------------------------------------------


def test_a_page_says_whether_it_ends_at_the_tail_and_whether_that_is_the_end():
    start = Offset(1, 2)
    for held, found, up_to_date, closed in [
        (head(5), messages(3, 4), False, False),
        (head(5), messages(3, 5), True, False),
        (head(5, closed=True), messages(3, 4), False, False),
        (head(5, closed=True), messages(3, 5), True, True),
        (head(2), [], True, False),
        (head(2, closed=True), [], True, True),
        (head(4), messages(3, 5), True, False),
    ]:
        page = page_of(held, start, found)
        assert (page.start, page.next.position) == (start, found[-1].offset.position if found else 2)
        assert (page.up_to_date, page.closed) == (up_to_date, closed)
    assert page_of(head(2, closed=True, outcome="failed"), start, []).outcome == "failed"


async def test_a_call_waits_for_those_before_it_and_for_no_other():
    tail = Tail("a")
    first, second, third = tail.begun(), tail.begun(), tail.begun()
    waiting = [asyncio.create_task(tail.is_first(call)) for call in (second, third)]
    await tail.is_first(first)
    await asyncio.sleep(0)
    tail.ended(first)
    await waiting[0]
    assert not waiting[1].done()
    fourth = tail.begun()
    given_up = asyncio.create_task(tail.is_first(fourth))
    await asyncio.sleep(0)
    given_up.cancel()
    await asyncio.wait([given_up])
    tail.ended(fourth)
    tail.ended(second)
    await waiting[1]
    tail.ended(third)
    assert tail.settled
