"""What is measured for the console, all of it here: a dict of figures, once a second.

Knows the `statistics()` of the parts. Asks nobody who is busy, reads no file and no store: a sample costs microseconds.
Invariant: what it gives are numbers by the names in FIGURES; one that cannot be told now is left out.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from headwater.decide import KIND, Decision
from headwater.delivery import Delivery
from headwater.http.admission import Admission
from headwater.http.console.history import Figure

if TYPE_CHECKING:  # runs need an extra that streams do not
    from headwater.runs import Runs

FIGURES: Final = (
    Figure("readers"),  # following now, over HTTP
    Figure("hot"),  # streams that this process holds the tail of
    Figure("running"),  # runs that are made here
    Figure("appended"),  # messages a second
    Figure("bytes"),  # of those, a second
    Figure("served"),  # responses to readers that began, a second
    Figure("dropped"),  # readers let go for not reading, a second
    Figure("refused"),  # requests over a bound (429), a second
    Figure("completed"),  # runs that ended within the last minute: this and the next two
    Figure("failed"),
    Figure("cancelled"),
    Figure("loop_lag", "most"),  # ms by which the event loop was late
    Figure("cpu"),  # of one core, per cent
)

_PER_SECOND: Final = ("appended", "bytes", "served", "dropped", "refused")
_IN_A_MINUTE: Final = ("completed", "failed", "cancelled")


class Sampler:
    """Takes the figures of one server. `begin` before the first sample, `end` when there is none any more."""

    def __init__(
        self,
        delivery: Delivery,
        runs: Runs | None,
        admission: Admission,
        cpu: Callable[[], float] = time.process_time,
    ) -> None:
        self._delivery, self._runs, self._admission, self._cpu = delivery, runs, admission, cpu
        self._counted = dict.fromkeys(("appended", "bytes", *_IN_A_MINUTE), 0)
        self._past: deque[dict[str, float]] = deque(maxlen=60)

    def __repr__(self) -> str:
        return f"<Sampler of {self._delivery!r}>"

    def begin(self) -> None:
        self._delivery.streams.on_commit.append(self._committed)
        self._past.append(self._counters())

    def end(self) -> None:
        self._delivery.streams.on_commit.remove(self._committed)

    def _committed(self, name: str, decision: Decision) -> None:
        if decision.what not in ("created", "appended"):
            return
        self._counted["appended"] += len(decision.messages)
        self._counted["bytes"] += sum([len(message.data) for message in decision.messages])
        head = decision.head
        if head.closed and head.labels.get(KIND) == "run":
            self._counted[head.outcome if head.outcome in _IN_A_MINUTE else "failed"] += 1

    def _counters(self) -> dict[str, float]:
        """What only grows."""
        delivered = self._delivery.statistics()
        return {
            "at": asyncio.get_running_loop().time(),
            "cpu": self._cpu(),
            "served": delivered["served"],
            "dropped": delivered["dropped"],
            "refused": self._admission.statistics()["refused"],
            **self._counted,
        }

    def sample(self, late_seconds: float) -> Mapping[str, float]:
        """The figures since the last one. `late_seconds`: by how much the event loop was behind when it was asked."""
        now, before, minute = self._counters(), self._past[-1], self._past[0]
        self._past.append(now)
        seconds = max(now["at"] - before["at"], 0.001)
        sample: dict[str, float] = {
            "readers": self._delivery.statistics()["readers"],
            "hot": self._delivery.streams.statistics()["tails"],
            "loop_lag": round(max(0.0, late_seconds) * 1000, 1),
            "cpu": round((now["cpu"] - before["cpu"]) / seconds * 100, 1),
        }
        if self._runs is not None:
            sample["running"] = self._runs.statistics()["running"]
        sample |= {name: round((now[name] - before[name]) / seconds, 2) for name in _PER_SECOND}
        return sample | {name: now[name] - minute[name] for name in _IN_A_MINUTE}
