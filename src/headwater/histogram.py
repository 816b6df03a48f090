"""A histogram: how often a value fell between which bounds. What metrics are made of, without a library for them.

Knows nobody, not even a unit: whoever observes says what it is, and keeps to it. Invariants: memory is that of its
bounds, however much is observed; of two with the same bounds, the sum is as if all had been observed by one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence


class Histogram:
    """Counts per bucket. Belongs to one thread."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds`: upper ends of the buckets, rising; a value that equals one is within. Above them is one more."""
        self.bounds = tuple(bounds)
        if not self.bounds or any(low >= high for low, high in zip(self.bounds, self.bounds[1:], strict=False)):
            raise ValueError("the bounds of a histogram rise, and there is at least one")
        self.counts = [0] * (len(self.bounds) + 1)
        """How many fell into each bucket alone (not into those below it as well)."""
        self.sum = 0.0
        """Of all that was observed."""

    def __repr__(self) -> str:
        return f"<Histogram [{self.count} observed, {self.sum:g} in sum]>"

    @property
    def count(self) -> int:
        """How many were observed."""
        return sum(self.counts)

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, so many times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def merge(self, other: Histogram) -> None:
        """Count all that `other` counted. Raises ValueError where it has other bounds."""
        if self.bounds != other.bounds:
            raise ValueError("only histograms with the same bounds can be merged")
        self.counts = [mine + its for mine, its in zip(self.counts, other.counts, strict=True)]
        self.sum += other.sum

    def quantile(self, share: float) -> float:
        """The bound that this share of all (0 to 1) stays within; infinity above the last, 0 where nothing was seen."""
        left = share * self.count
        if not left:
            return 0.0
        for bound, count in zip(self.bounds, self.counts, strict=False):
            left -= count
            if left <= 0:
                return bound
        return float("inf")
