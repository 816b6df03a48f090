"""The numbers of `/metrics` over time: what they are now, how fast they grow, and how values are spread. Pure.

Knows Prometheus' text format by prometheus-client. Invariant: memory is bounded (G9): a minute of what is WANTED.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Final, NamedTuple

from headwater.errors import HeadwaterError, MissingExtra
from headwater.http.console.figures import quantile

try:
    from prometheus_client.parser import text_string_to_metric_families
except ImportError as error:
    raise MissingExtra("server", "prometheus-client") from error

MINUTE: Final = 60.0
INFINITE: Final = float("inf")

WANTED: Final = frozenset(
    {
        "headwater_append_seconds",
        "headwater_build_info",
        "headwater_bytes_appended",
        "headwater_bytes_delivered",
        "headwater_delivery_seconds",
        "headwater_disconnects",
        "headwater_draining",
        "headwater_event_gap_seconds",
        "headwater_events_appended",
        "headwater_events_delivered",
        "headwater_loop_lag_seconds",
        "headwater_processes",
        "headwater_reader_lag_events",
        "headwater_reader_lag_seconds",
        "headwater_readers",
        "headwater_refused",
        "headwater_run_outcomes",
        "headwater_runs",
        "headwater_subscribes",
        "headwater_time_to_first_token_seconds",
        "process_start_time_seconds",
    }
)

Labels = tuple[tuple[str, str], ...]


class Scrape(NamedTuple):
    """What a server said at one moment."""

    at: float
    """Seconds, by whatever clock; the same for all scrapes."""
    values: dict[str, dict[Labels, float]]
    """By name as it is written (`_total`, `_bucket`), then by labels."""

    def by(self, name: str, label: str) -> Counter[str]:
        """Sums over all other labels."""
        found: Counter[str] = Counter()
        for labels, value in self.values.get(name, {}).items():
            found[dict(labels).get(label, "")] += value  # type: ignore[assignment]  # as a Counter does floats
        return found

    def total(self, name: str) -> float:
        return sum(self.values.get(name, {}).values())

    def spread(self, name: str, **where: str) -> dict[float, float]:
        """A histogram: upper bound of a bucket, and how many were within it, those of lower buckets included."""
        found: dict[float, float] = {}
        for labels, value in self.values.get(f"{name}_bucket", {}).items():
            if where.items() <= set(labels):
                bound = float(dict(labels)["le"])
                found[bound] = found.get(bound, 0.0) + value
        return dict(sorted(found.items()))


def scrape(text: str, at: float) -> Scrape:
    """Raises HeadwaterError where this is not what Prometheus reads."""
    values: dict[str, dict[Labels, float]] = {}
    try:
        for family in text_string_to_metric_families(text):
            if family.name in WANTED:
                for sample in family.samples:
                    values.setdefault(sample.name, {})[tuple(sample.labels.items())] = sample.value
    except ValueError as error:
        raise HeadwaterError("what is at /metrics are no metrics") from error
    if "headwater_build_info" not in values:
        raise HeadwaterError("what is at /metrics is not of a Headwater server")
    return Scrape(at, values)


class Spread(NamedTuple):
    """Of what was observed; None: nothing was."""

    p50: float | None
    p99: float | None
    least: float = 0.0
    """The lowest bound: what is within it is not told apart."""


class Watch:
    """The scrapes of the last minute, oldest first."""

    def __init__(self) -> None:
        self._past: deque[Scrape] = deque()

    def __repr__(self) -> str:
        return f"<Watch [{len(self._past)} scrapes]>"

    def add(self, new: Scrape) -> None:
        """One more. Where another process answers now, what was before is forgotten: its counters are others."""
        if self._past and self.now.total("process_start_time_seconds") != new.total("process_start_time_seconds"):
            self._past.clear()
        self._past.append(new)
        while len(self._past) > 2 and self._past[1].at <= new.at - MINUTE:
            self._past.popleft()

    @property
    def now(self) -> Scrape:
        return self._past[-1]

    @property
    def seconds(self) -> float:
        """How far back `lately` goes."""
        return self.now.at - self._past[0].at

    def per_second(self, name: str, label: str) -> dict[str, float]:
        """Of a counter, between the last two scrapes."""
        before = self._past[-2] if len(self._past) > 1 else self.now
        seconds = max(self.now.at - before.at, 0.001)
        earlier = before.by(name, label)
        return {word: max(0.0, value - earlier[word]) / seconds for word, value in self.now.by(name, label).items()}

    def lately(self, name: str, label: str) -> dict[str, float]:
        """How much a counter grew within the last minute, as far as that was watched."""
        earlier = self._past[0].by(name, label)
        return {word: max(0.0, value - earlier[word]) for word, value in self.now.by(name, label).items()}

    def spread_lately(self, name: str, **where: str) -> Spread:
        """Of what was observed within the last minute, as far as that was watched."""
        earlier = self._past[0].spread(name, **where)
        now = self.now.spread(name, **where)
        return _spread({bound: max(0.0, count - earlier.get(bound, 0.0)) for bound, count in now.items()})

    def spread_ever(self, name: str, **where: str) -> Spread:
        """Of all that was observed since the server began."""
        return _spread(self.now.spread(name, **where))


def _spread(within: dict[float, float]) -> Spread:
    bounds = [bound for bound in within if bound != INFINITE]
    counts, below = [], 0.0
    for count in within.values():
        counts.append(round(max(0.0, count - below)))
        below = max(below, count)
    if not bounds or not sum(counts):
        return Spread(None, None)
    return Spread(quantile(bounds, counts, 0.5), quantile(bounds, counts, 0.99), bounds[0])
