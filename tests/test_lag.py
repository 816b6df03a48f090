"""lag.py: a loop that is held is seen to be, for as long as it is."""

from __future__ import annotations

import asyncio

import pytest

from headwater.http.lifespan import opened
from headwater.lag import BOUNDS, MOST_MISSED, SAMPLE_SECONDS, LoopLag
from headwater.streams import Streams
from headwater.testing import virtual_time


class Hand:
    """A loop whose time is moved by hand, and holds one timer."""

    def __init__(self) -> None:
        self.now = 100.0
        self.timer = None

    def time(self) -> float:
        return self.now

    def call_at(self, when, call):
        self.timer = (when, call)
        return self

    def cancel(self) -> None:
        self.timer = None

    def wake(self, late: float) -> None:
        when, call = self.timer
        self.now = when + late
        call()


@pytest.fixture
def loop(monkeypatch):
    hand = Hand()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: hand)
    return hand


def bucket(seconds: float) -> int:
    return next((number for number, bound in enumerate(BOUNDS) if seconds <= bound), len(BOUNDS))


def test_each_sample_counts_by_how_late_it_was(loop):
    with LoopLag().watched() as lag:
        for late in (0.0001, 0.0001, 0.003, 0.03):
            loop.wake(late)
    counts = [0] * (len(BOUNDS) + 1)
    for late in (0.0001, 0.0001, 0.003, 0.03):
        counts[bucket(late)] += 1
    assert lag.histogram.counts == counts
    assert lag.statistics() == {"samples": 4, "late": 1, "longest_us": 30_000}
    assert loop.timer is None


def test_a_pause_counts_for_every_sample_that_it_swallowed(loop):
    """Else a server that stands still for a second of every two would look fine half of the time."""
    with LoopLag().watched() as lag:
        loop.wake(1.05)
        assert lag.statistics() == {"samples": 11, "late": 11, "longest_us": 1_050_000}
        loop.wake(0)
    assert lag.statistics()["samples"] == 12
    assert lag.histogram.sum == pytest.approx(sum(1.05 - SAMPLE_SECONDS * count for count in range(11)))


def test_after_a_very_long_pause_it_goes_on_at_once(loop):
    with LoopLag().watched() as lag:
        loop.wake(1e6)
        assert lag.statistics()["samples"] == MOST_MISSED + 1
        loop.wake(0)
        assert lag.statistics()["samples"] == MOST_MISSED + 2


@virtual_time
async def test_samples_are_taken_while_streams_are_served_and_by_one_timer():
    async with Streams() as streams:
        async with opened(streams), opened(streams):
            await asyncio.sleep(10.05)
            assert streams.lag.statistics()["samples"] == 100
        assert streams.lag.histogram.count == 100
        await asyncio.sleep(10)
        assert streams.lag.statistics()["samples"] == 100
    assert repr(streams.lag) == "<LoopLag [100 samples, at most 0.0 ms late]>"
