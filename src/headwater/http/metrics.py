"""`/metrics`: the numbers of `headwater.http.families`, for Prometheus, in its text format or OpenMetrics.

Knows prometheus-client, which has the formats; the numbers are read when somebody asks. Written in a thread: a long
answer does not hold up readers.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Final

from starlette.responses import Response

from headwater.errors import MissingExtra
from headwater.histogram import Histogram
from headwater.http.exchange import Exchange
from headwater.http.families import FAMILIES, Family, Measured, Value, Values, snapshot
from headwater.http.together import Snapshot, Together
from headwater.problems import not_allowed

try:
    from prometheus_client import GCCollector, PlatformCollector, ProcessCollector
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.exposition import choose_encoder
    from prometheus_client.registry import Collector, CollectorRegistry
except ImportError as error:
    raise MissingExtra("metrics", "prometheus-client") from error

_log = logging.getLogger("headwater.metrics")

KEEP_SECONDS: Final = 5.0
"""Between two snapshots for the other processes: as old as what they show of this one may be."""

RESOURCE: Final = "headwater/metrics"
"""What a key has to be allowed to `observe`."""


class Metrics:
    """The numbers of one application. Close it, where it shares a directory."""

    def __init__(self, at: Measured, directory: str | None = None) -> None:
        """`directory`: where the processes behind one port keep their numbers, so that each can tell all of them."""
        self._at = at
        self._together = None if directory is None else Together(directory)
        self._writing = asyncio.Lock()
        self._keeping: asyncio.Task[None] | None = None
        self._closing = asyncio.Event()
        self._own = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self._own)

    def __repr__(self) -> str:
        return f"<Metrics [{len(FAMILIES)} families] {self._together or ''}>"

    def begin(self) -> None:
        """On a running loop: keep the others up to date from now on. Twice is fine."""
        if self._together is not None and self._keeping is None:
            self._keeping = asyncio.create_task(self._keep_on(self._together), name="headwater-metrics")

    async def aclose(self) -> None:
        """Leave the last figures to the others."""
        if self._together is None or self._keeping is None:
            return
        self._closing.set()
        await self._keeping
        await self._keep(self._together)
        await asyncio.to_thread(self._together.close)

    async def page(self, exchange: Exchange) -> Response:
        """As a page of `App`. Raises Unauthorized, Forbidden."""
        exchange.authorize("observe", RESOURCE)
        if exchange.method not in ("GET", "HEAD"):
            return not_allowed(["GET", "HEAD"])
        return await self.answer(exchange.headers.get("accept", ""))

    async def answer(self, accept: str) -> Response:
        """In the format that the client takes."""
        encode, content_type = choose_encoder(accept)
        text = await asyncio.to_thread(encode, _Shown(await self._all(), None if self._together else self._own))
        return Response(text, 200, {"content-type": content_type, "cache-control": "no-store"})

    async def _all(self) -> Snapshot:
        mine = snapshot(self._at)
        if self._together is None:
            return mine
        async with self._writing:
            return await asyncio.to_thread(self._together.sum, mine)

    async def _keep_on(self, together: Together) -> None:
        while not self._closing.is_set():
            await self._keep(together)
            with suppress(TimeoutError):
                await asyncio.wait_for(self._closing.wait(), KEEP_SECONDS)

    async def _keep(self, together: Together) -> None:
        try:
            async with self._writing:  # the newer one last
                await asyncio.to_thread(together.keep, snapshot(self._at))
        except OSError as error:
            _log.warning("the metrics of this process cannot be kept in %s: %s", together.directory, error.strerror)


class _Shown(Collector):
    """A snapshot as prometheus-client takes it; `own`: what it knows of this very process."""

    def __init__(self, values: Snapshot, own: CollectorRegistry | None) -> None:
        self._values, self._own = values, own

    def collect(self) -> Iterable[Metric]:
        for family in FAMILIES:
            yield _metric(family, self._values[family.name])
        if self._own is not None:
            yield from self._own.collect()


def _metric(family: Family, values: Values) -> Metric:
    if family.sort == "histogram":
        histogram = HistogramMetricFamily(family.name, family.help, labels=family.labels)
        for labels, value in sorted(values.items()):
            if isinstance(value, Histogram):
                histogram.add_metric(labels, list(_buckets(value)), value.sum)
        return histogram
    made = CounterMetricFamily if family.sort == "counter" else GaugeMetricFamily
    metric = made(family.name, family.help, labels=family.labels)
    for labels, value in sorted(values.items()):
        metric.add_metric(labels, _number(value))
    return metric


def _number(value: Value) -> float:
    assert not isinstance(value, Histogram)
    return float(value)


def _buckets(histogram: Histogram) -> Iterator[tuple[str, float]]:
    """Upper bound, and how many are within: as Prometheus has it, those of all buckets below included."""
    count = 0
    for bound, own in zip([*histogram.bounds, float("inf")], histogram.counts, strict=True):
        count += own
        yield ("+Inf" if bound == float("inf") else str(float(bound))), count
