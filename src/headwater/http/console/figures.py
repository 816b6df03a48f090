"""What is measured for the console, all of it here: a dict of figures, once a second.

Knows what is counted elsewhere (`headwater.counts`, `headwater.runs.figures`, `headwater.http.traffic`), and reads it.
Asks nobody who is busy, reads no file and no store: a sample costs less than a millisecond, and two where readers are
thousands. Invariant: what it gives are numbers by the names in FIGURES; one that cannot be told now is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Final, NamedTuple

from headwater.http.console.history import Figure
from headwater.http.traffic import Traffic
from headwater.streams import Streams

if TYPE_CHECKING:  # runs need an extra that streams do not
    from headwater.histogram import Histogram
    from headwater.runs import Runs

FIGURES: Final = (
    Figure("readers"),  # following now, by whatever transport
    Figure("hot"),  # streams that this process holds the tail of
    Figure("running"),  # runs that are made here
    Figure("appended"),  # messages a second
    Figure("bytes"),  # of those, a second
    Figure("delivered"),  # messages to readers, a second
    Figure("came"),  # readers, a second
    Figure("left"),  # readers that ended, a second: because they went away …
    Figure("ended"),  # … the stream was over …
    Figure("slow"),  # … they took nothing …
    Figure("cut"),  # … or for another reason
    Figure("refused"),  # requests, a second
    Figure("completed"),  # runs that ended within the last minute: this and the next two
    Figure("failed"),
    Figure("cancelled"),
    *(
        Figure(f"{what}_{share}", "most")
        for what in ("first_token", "gap", "delivery")
        for share in ("p50", "p95", "p99")
    ),
    Figure("behind", "most"),  # events that the slowest reader lacks
    Figure("lagging"),  # readers that lack any
    Figure("loop_lag", "most"),  # ms by which the event loop was late
    Figure("cpu"),  # of one core, per cent
)
"""The nine in the middle are ms, of what was observed within the last minute: from a run's start to its first token,
between appends to a run, and from an append to the socket of a reader that keeps up."""

MOST_LOOKED_AT: Final = 2000
"""Readers whose lag is looked at in one sample, some 2 ms: of more, every second or third one, others each time."""

_MINUTE: Final = 60
_PER_SECOND: Final = ("appended", "bytes", "delivered", "came", "left", "ended", "slow", "cut", "refused")
_IN_A_MINUTE: Final = ("completed", "failed", "cancelled")
_SHARES: Final = (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
_REASONS: Final = frozenset({"left", "ended", "slow"})

Counts = tuple[Sequence[float], Sequence[int]]
"""Bounds of a histogram, and how many fell between them so far."""


class _Seen(NamedTuple):
    """What only grows, at one moment."""

    at: float
    counted: Mapping[str, float]
    spread: Mapping[str, Counts]


class Sampler:
    """Takes the figures of one server. `begin` before the first sample."""

    def __init__(
        self, streams: Streams, runs: Runs | None, traffic: Traffic, cpu: Callable[[], float] = time.process_time
    ) -> None:
        self._streams, self._runs, self._traffic, self._cpu = streams, runs, traffic, cpu
        self._past: deque[_Seen] = deque(maxlen=_MINUTE)

    def __repr__(self) -> str:
        return f"<Sampler of {self._streams!r}>"

    def begin(self) -> None:
        self._past.append(self._seen())

    def sample(self, late_seconds: float) -> Mapping[str, float]:
        """The figures since the last one. `late_seconds`: by how much the event loop was behind when it was asked."""
        now, before, minute = self._seen(), self._past[-1], self._past[0]
        self._past.append(now)
        seconds = max(now.at - before.at, 0.001)
        grown = {name: now.counted[name] - before.counted[name] for name in now.counted}
        sample: dict[str, float] = {
            "readers": len(self._streams.reads.here),
            "hot": len(self._streams.hub),
            "loop_lag": round(max(0.0, late_seconds) * 1000, 1),
            "cpu": round(grown["cpu"] / seconds * 100, 1),
        }
        if self._runs is not None:
            sample["running"] = self._runs.statistics()["running"]
        sample |= {name: round(grown[name] / seconds, 2) for name in _PER_SECOND}
        sample |= {name: now.counted[name] - minute.counted[name] for name in _IN_A_MINUTE}
        return sample | _quantiles(now.spread, minute.spread) | self._lag(int(now.at))

    def _seen(self) -> _Seen:
        reads, writes = self._streams.reads, self._streams.writes
        written, ended = writes.statistics(), reads.ended
        counted: dict[str, float] = {
            "cpu": self._cpu(),
            "appended": written["events"],
            "bytes": written["bytes"],
            "delivered": reads.events.total(),
            "came": reads.subscribed.total(),
            "cut": sum(count for (_, reason), count in ended.items() if reason not in _REASONS),
            "refused": self._traffic.refused.total(),
        }
        counted |= {why: sum(count for (_, reason), count in ended.items() if reason == why) for why in _REASONS}
        spread = {"delivery": _summed(reads.delivery.values())}
        if (of_runs := writes.by_kind.get("run")) is not None:
            spread["gap"] = _summed([of_runs.gaps])
        if self._runs is not None:
            spread["first_token"] = _summed(self._runs.figures.first_token.values())
        outcomes = self._runs.figures.ended if self._runs is not None else {}
        counted |= {
            how: sum(count for (_, outcome), count in outcomes.items() if outcome == how) for how in _IN_A_MINUTE
        }
        return _Seen(asyncio.get_running_loop().time(), counted, spread)

    def _lag(self, second: int) -> dict[str, float]:
        here, now = self._streams.reads.here, self._streams.clock()
        step = len(here) // MOST_LOOKED_AT + 1
        behind = [reader.behind(now)[0] for reader in islice(here, second % step, None, step)]
        return {"behind": max(behind, default=0), "lagging": sum(events > 0 for events in behind) * step}


def _summed(histograms: Iterable[Histogram]) -> Counts:
    found = list(histograms)
    if not found:
        return (), ()
    return found[0].bounds, [sum(column) for column in zip(*(one.counts for one in found), strict=True)]


def _quantiles(now: Mapping[str, Counts], minute: Mapping[str, Counts]) -> dict[str, float]:
    """Of what came since `minute`; nothing where nothing did."""
    found: dict[str, float] = {}
    for name, (bounds, counts) in now.items():
        before = minute.get(name, ((), ()))[1] or [0] * len(counts)
        fresh = [count - earlier for count, earlier in zip(counts, before, strict=True)]
        if sum(fresh):
            found |= {f"{name}_{word}": round(quantile(bounds, fresh, share) * 1000, 1) for word, share in _SHARES}
    return found


def quantile(bounds: Sequence[float], counts: Sequence[int], share: float) -> float:
    """The value that this share of all (0 to 1) stays within, as if those of one bucket were spread evenly over it; at
    most the last bound. There is at least one."""
    left, low = share * sum(counts), 0.0
    for high, count in zip(bounds, counts, strict=False):
        if count and left <= count:
            return low + (high - low) * left / count
        left -= count
        low = high
    return bounds[-1]
