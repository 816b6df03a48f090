"""stores/memory_log.py: whatever is appended, trimmed and read, it is as a list of messages would be."""

from __future__ import annotations

import gc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.model import Message, Offset
from headwater.stores import memory_log
from headwater.stores.memory_log import SEGMENT, Log


def messages_after(position, count):
    return [
        Message(b"%d" % number * (number % 3), Offset(7, number), number * 10, "k" if number % 5 == 0 else None)
        for number in range(position + 1, position + 1 + count)
    ]


STEPS = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), max_size=12)


@given(STEPS, st.integers(0, 100), st.integers(1, 40))
def test_it_is_as_a_list_of_messages(steps, base, max_bytes):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory_log, "SEGMENT", 4)
        patch.setattr(memory_log, "most_messages", lambda _: 7)
        log, wanted, tail = Log(base), [], base
        for appended, trimmed in steps:
            more = messages_after(tail, appended)
            log.extend(more)
            wanted += more
            tail += appended
            to = min(tail, log.base + trimmed)
            dropped = log.trim(to)
            assert b"".join(map(b"".join, dropped)) == b"".join(
                message.data for message in wanted if message.offset.position <= to
            )
            wanted = [message for message in wanted if message.offset.position > to]
            assert (log.base, len(log)) == (to, len(wanted))
            for position in range(to, tail + 1):
                page = log.read(Offset(7, position), max_bytes)
                left = wanted[position - to :]
                assert page == left[: len(page)]
                fits = sum(len(message.data) for message in left[: len(page) + 1]) <= max_bytes
                assert len(page) == min(7, len(left)) or not fits
                assert bool(page) == bool(left)


def test_the_collector_has_nothing_to_look_at():
    log = Log(0)
    for position in range(0, 100 * SEGMENT, SEGMENT):
        log.extend(messages_after(position, SEGMENT))
    gc.collect()
    assert not any(map(gc.is_tracked, log._segments))
    assert len(log._newest) < SEGMENT
