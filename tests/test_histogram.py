"""Histograms: what falls where, and that two of them are as good as one."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.histogram import Histogram


def test_a_value_counts_in_the_bucket_whose_end_it_does_not_exceed() -> None:
    histogram = Histogram((1, 2, 5))
    for value in (0, 1, 1.5, 2, 5, 5.1, 100):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1, 2]
    assert (histogram.count, histogram.sum) == (7, pytest.approx(114.6))


def test_a_value_is_counted_many_times_at_once() -> None:
    histogram = Histogram((1, 2))
    histogram.observe(1.5, times=3)
    assert (histogram.counts, histogram.sum) == ([0, 3, 0], 4.5)


@given(st.lists(st.floats(0, 10)), st.lists(st.floats(0, 10)))
def test_merged_they_are_as_if_one_had_seen_everything(some: list[float], others: list[float]) -> None:
    one, other, both = (Histogram((0.5, 1, 2, 4, 8)) for _ in range(3))
    for histogram, values in ((one, some), (other, others), (both, [*some, *others])):
        for value in values:
            histogram.observe(value)
    one.merge(other)
    assert one.counts == both.counts
    assert one.sum == pytest.approx(both.sum)


def test_of_other_bounds_they_are_not_merged() -> None:
    with pytest.raises(ValueError, match="same bounds"):
        Histogram((1, 2)).merge(Histogram((1, 3)))


@pytest.mark.parametrize("bounds", [(), (1, 1), (2, 1)])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="rise"):
        Histogram(bounds)


def test_a_quantile_is_the_bound_that_so_many_stay_within() -> None:
    histogram = Histogram((1, 2, 5))
    assert histogram.quantile(0.99) == 0
    histogram.observe(0.5, times=98)
    histogram.observe(3)
    histogram.observe(70)
    assert [histogram.quantile(share) for share in (0.5, 0.98, 0.99, 1)] == [1, 1, 5, math.inf]
