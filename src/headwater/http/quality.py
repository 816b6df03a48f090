"""`POST /v1/quality`: what a client says of the service that one of its readers got.

A server sees bytes leave; only the reader knows how long it waited for the first one, and for how long it had nothing.
What is said is counted per agent and per kind of client, and forgotten.

Knows exchanges and the names of runs. A report is hearsay: it is bounded in every figure, it changes nothing but these
counts, and an agent that is not registered here, or a client of an unknown kind, makes no row of its own (G9).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response

from headwater.errors import BadRequest, HeadwaterError
from headwater.histogram import Histogram
from headwater.http.access import may_read
from headwater.http.admission import Admission
from headwater.http.exchange import Exchange
from headwater.problems import not_allowed
from headwater.streams import Streams
from headwater.wire.durable import stream_name

PATH: Final = "/v1/quality"

MOST_BYTES: Final = 4096
CLIENTS: Final = ("javascript", "python", "other")

BOUNDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Seconds; those of OpenTelemetry's GenAI metrics."""

Ended = Literal["ended", "left", "failed"]

_Seconds = Annotated[float, msgspec.Meta(ge=0, le=7 * 86_400)]
_Count = Annotated[int, msgspec.Meta(ge=0, le=1_000_000_000)]


class Report(msgspec.Struct, frozen=True):
    """Of one reader that is done. Times in seconds."""

    url: Annotated[str, msgspec.Meta(max_length=2048)]
    """What was read: an address of this server, or its path."""
    ended: Ended
    """The stream did; the reader left before that; or gave up."""
    client: str = "other"
    events: _Count = 0
    reconnects: _Count = 0
    first_event: _Seconds | None = None
    """From the request to the first event; None: there was none."""
    longest_gap: _Seconds = 0.0
    """Between two events, or the request and the first."""
    lost: _Seconds = 0.0
    """Without a connection."""


class Seen:
    """What readers of one agent, by one kind of client, had."""

    def __init__(self) -> None:
        self.ended: dict[str, int] = {"ended": 0, "left": 0, "failed": 0}
        self.events = self.reconnects = 0
        self.first_event, self.longest_gap, self.lost = (Histogram(BOUNDS) for _ in range(3))

    def add(self, report: Report) -> None:
        self.ended[report.ended] += 1
        self.events += report.events
        self.reconnects += report.reconnects
        if report.first_event is not None:
            self.first_event.observe(report.first_event)
        self.longest_gap.observe(report.longest_gap)
        if report.reconnects:
            self.lost.observe(report.lost)

    def statistics(self) -> dict[str, Any]:
        """Counts, and for each histogram its p50 and p99 in seconds (upper bounds of their buckets)."""
        times = {name: getattr(self, name) for name in ("first_event", "longest_gap", "lost")}
        return {
            **self.ended,
            "events": self.events,
            "reconnects": self.reconnects,
            **{name: {"p50": seen.quantile(0.5), "p99": seen.quantile(0.99)} for name, seen in times.items()},
        }


class Quality:
    """What has been reported to this process."""

    def __init__(self, streams: Streams, agents: Collection[str], admission: Admission) -> None:
        """`agents`: the names of those that are registered, looked at anew with each report."""
        self._streams, self._agents, self._admission = streams, agents, admission
        self.seen: dict[tuple[str, str], Seen] = {}
        """By agent (empty: a stream that is no run's, or a run of none that is registered) and kind of client."""

    def __repr__(self) -> str:
        return f"<Quality [{sum(sum(seen.ended.values()) for seen in self.seen.values())} reports]>"

    async def answer(self, exchange: Exchange) -> Response:
        """Count a report. Whoever makes one may read what it is about."""
        if exchange.method != "POST":
            return not_allowed(["POST"])
        self._admission.write(exchange.client)
        report = _parsed(await exchange.body(MOST_BYTES))
        agent = await self._agent(exchange, report.url)
        client = report.client if report.client in CLIENTS else "other"
        self.seen.setdefault((agent, client), Seen()).add(report)
        return Response(status_code=204)

    async def _agent(self, exchange: Exchange, url: str) -> str:
        """Whose answer is at `url`, which may have the prefix of a mount or of a proxy."""
        exchange.principal  # noqa: B018 -- raises Unauthorized
        for door in ("/v1/", "/streams/", "/agents/"):
            _, found, rest = url.partition("?")[0].partition(door)
            if not found:
                continue
            match (door + rest).split("/")[1:]:
                case ["agents", name, *_]:
                    return self._registered(name)
                case ["v1", "runs", run, *_]:
                    return await self._of_stream(exchange, f"runs/{run}")
            stream = stream_name(door + rest)
            return "" if stream is None else await self._of_stream(exchange, stream)
        return ""

    async def _of_stream(self, exchange: Exchange, name: str) -> str:
        may_read(exchange, name)
        try:
            head = await self._streams.head(name)
        except HeadwaterError:  # it may be gone by now
            return ""
        return self._registered(head.labels.get("agent", ""))

    def _registered(self, name: str) -> str:
        return name if name in self._agents else ""

    def statistics(self) -> list[dict[str, Any]]:
        """One row per agent and kind of client: see `Seen.statistics`."""
        return [{"agent": key[0], "client": key[1], **seen.statistics()} for key, seen in self.seen.items()]


def _parsed(body: bytes) -> Report:
    try:
        return msgspec.json.decode(body, type=Report)
    except msgspec.ValidationError as error:
        raise BadRequest(f"this is no report: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("the body is not valid JSON") from error
