"""Every number that Headwater shows, in one table: its name, its labels, what it means, and where it is read.

`docs/monitoring.md` has a line for each, and says what to do about it; a test holds the two together. Values are read
when somebody asks (a scrape), from the objects that counted them; nothing is copied before.

Knows streams, runs and traffic; no metrics library. Invariant: no label is a name that somebody outside gave.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from headwater import __version__
from headwater.counts import EVENTS, SECONDS, Kind
from headwater.histogram import Histogram
from headwater.http.quality import Quality, Seen
from headwater.http.socket import SocketResource
from headwater.http.traffic import Traffic
from headwater.model import Head
from headwater.streams import Streams

if TYPE_CHECKING:  # runs need an extra that streams do not
    from headwater.runs import Runs

MOST_SAMPLED: Final = 1000
"""Readers whose lag is looked at in one scrape: about a millisecond."""

MOST_TAILS: Final = 5000
"""Streams whose state is looked at in one scrape."""

Value = float | Histogram
Labels = tuple[str, ...]
Values = Mapping[Labels, Value]
Sort = Literal["counter", "gauge", "histogram"]


class Lags:
    """How far readers are behind, as samples that are taken at each scrape."""

    def __init__(self) -> None:
        self.events, self.seconds = Histogram(EVENTS), Histogram(SECONDS)

    def sample(self, streams: Streams) -> None:
        """Look at those that are here, or at some of them where they are many."""
        here = list(streams.reads.here)
        now = streams.clock()
        for reader in here if len(here) <= MOST_SAMPLED else random.sample(here, MOST_SAMPLED):
            events, seconds = reader.behind(now)
            self.events.observe(events)
            self.seconds.observe(seconds)


class Measured(NamedTuple):
    """What the numbers are read from."""

    streams: Streams
    runs: Runs | None
    traffic: Traffic
    sockets: SocketResource
    quality: Quality
    lags: Lags


class Family(NamedTuple):
    """One number, or one for each value of its labels."""

    name: str
    """Without the `_total` of counters."""
    sort: Sort
    help: str
    labels: Labels
    read: Callable[[Measured], Values]


def by_kind(read: Callable[[Kind], Value]) -> Callable[[Measured], Values]:
    return lambda at: {(kind,): read(one) for kind, one in at.streams.writes.by_kind.items()}


def by_kind_and(read: Callable[[Kind], Mapping[str, Value]]) -> Callable[[Measured], Values]:
    return lambda at: {
        (kind, word): value for kind, one in at.streams.writes.by_kind.items() for word, value in read(one).items()
    }


def by_word(read: Callable[[Measured], Mapping[Any, Value]]) -> Callable[[Measured], Values]:
    """Of what is counted by one word, or by several."""
    return lambda at: {key if isinstance(key, tuple) else (key,): value for key, value in read(at).items()}


def one(read: Callable[[Measured], Value]) -> Callable[[Measured], Values]:
    return lambda at: {(): read(at)}


def of_runs(read: Callable[[Runs], Mapping[Any, Value]]) -> Callable[[Measured], Values]:
    return by_word(lambda at: {} if at.runs is None else read(at.runs))


def reported(read: Callable[[Seen], Value]) -> Callable[[Measured], Values]:
    """By agent (`none`: a stream that is of no registered one) and kind of client."""
    return lambda at: {(agent or "none", client): read(seen) for (agent, client), seen in at.quality.seen.items()}


def _reports(at: Measured) -> Values:
    return {
        (agent or "none", client, ended): count
        for (agent, client), seen in at.quality.seen.items()
        for ended, count in seen.ended.items()
    }


def _streams(at: Measured) -> Values:
    found: Counter[Labels] = Counter()
    for tail, _ in zip(at.streams.hub, range(MOST_TAILS), strict=False):
        if isinstance(head := tail.head, Head):
            found["closed" if head.closed else "open", at.streams.writes.kind_of(tail.name, head.labels)] += 1
    return dict(found)


def _stages(at: Measured) -> Values:
    durable = at.streams.operations.seconds.get("commit")
    visible: Values = {("visible",): at.streams.writes.visible}
    return visible if durable is None else {**visible, ("durable",): durable}


def _readers(at: Measured) -> Values:
    return {(transport,): count for transport, count in Counter(at.streams.reads.here.values()).items()}


def snapshot(at: Measured) -> dict[str, Values]:
    """All of them, as they are now; nothing in it changes later. On the loop that they are counted on."""
    at.lags.sample(at.streams)
    return {family.name: {labels: _kept(value) for labels, value in family.read(at).items()} for family in FAMILIES}


def _kept(value: Value) -> Value:
    if not isinstance(value, Histogram):
        return value
    kept = Histogram(value.bounds)
    kept.merge(value)
    return kept


def _of_writes() -> Iterator[Family]:
    yield Family(
        "headwater_streams",
        "gauge",
        "Streams that this process has at hand: read or used lately.",
        ("state", "kind"),
        _streams,
    )
    yield Family("headwater_streams_created", "counter", "Streams made.", ("kind",), by_kind(lambda kind: kind.created))
    yield Family(
        "headwater_stream_outcomes",
        "counter",
        "Streams ended, by how.",
        ("kind", "outcome"),
        by_kind_and(lambda kind: kind.outcomes),
    )
    yield Family(
        "headwater_stream_seconds",
        "histogram",
        "From the making of a stream to its end.",
        ("kind", "outcome"),
        by_kind_and(lambda kind: kind.lasted),
    )
    yield Family(
        "headwater_events_appended", "counter", "Messages appended.", ("kind",), by_kind(lambda kind: kind.events)
    )
    yield Family(
        "headwater_bytes_appended", "counter", "Bytes of those messages.", ("kind",), by_kind(lambda kind: kind.bytes)
    )
    yield Family(
        "headwater_append_seconds",
        "histogram",
        "How long an append took: in the store until it was durable; from its call until every reader saw it.",
        ("stage",),
        _stages,
    )
    yield Family(
        "headwater_append_dedup",
        "counter",
        "Requests that had been carried out before, and changed nothing.",
        ("reason",),
        by_word(lambda at: at.streams.writes.repeated),
    )
    yield Family(
        "headwater_time_to_first_event_seconds",
        "histogram",
        "From the making of a stream to the first append to it.",
        ("kind",),
        by_kind(lambda kind: kind.first_event),
    )
    yield Family(
        "headwater_event_gap_seconds",
        "histogram",
        "Between two appends to the same stream.",
        ("kind",),
        by_kind(lambda kind: kind.gaps),
    )


def _of_reads() -> Iterator[Family]:
    yield Family("headwater_readers", "gauge", "Readers that follow a stream now.", ("transport",), _readers)
    yield Family(
        "headwater_sockets",
        "gauge",
        "WebSockets open now; each may follow many streams.",
        (),
        one(lambda at: len(at.sockets.sockets)),
    )
    yield Family(
        "headwater_subscribes",
        "counter",
        "Readers that came.",
        ("transport",),
        by_word(lambda at: at.streams.reads.subscribed),
    )
    yield Family(
        "headwater_resumes",
        "counter",
        "Readers that said where they had been, by what became of it.",
        ("result",),
        by_word(lambda at: at.streams.reads.resumed),
    )
    yield Family(
        "headwater_replayed_events",
        "histogram",
        "Messages that a reader was behind when it came.",
        (),
        one(lambda at: at.streams.reads.replayed),
    )


def _of_delivery() -> Iterator[Family]:
    yield Family(
        "headwater_events_delivered",
        "counter",
        "Messages written to readers.",
        ("transport",),
        by_word(lambda at: at.streams.reads.events),
    )
    yield Family(
        "headwater_bytes_delivered",
        "counter",
        "Bytes written for those.",
        ("transport",),
        by_word(lambda at: at.streams.reads.bytes),
    )
    yield Family(
        "headwater_delivery_seconds",
        "histogram",
        "From the acceptance of an append to its being written to the connection of a reader that kept up.",
        ("transport",),
        by_word(lambda at: at.streams.reads.delivery),
    )
    yield Family(
        "headwater_reader_lag_events",
        "histogram",
        "Messages that readers were behind, looked at when this was scraped.",
        (),
        one(lambda at: at.lags.events),
    )
    yield Family(
        "headwater_reader_lag_seconds",
        "histogram",
        "For how long the first of those had been there.",
        (),
        one(lambda at: at.lags.seconds),
    )


def _of_endings() -> Iterator[Family]:
    yield Family(
        "headwater_slow_reader",
        "counter",
        "What was done to readers that did not keep up, or took nothing (drop).",
        ("action",),
        by_word(lambda at: {"drop": 0} | at.streams.reads.slow),
    )
    yield Family(
        "headwater_disconnects",
        "counter",
        "Readers that went, by why.",
        ("transport", "reason"),
        by_word(lambda at: at.streams.reads.ended),
    )
    yield Family(
        "headwater_connection_seconds",
        "histogram",
        "How long readers stayed.",
        ("transport",),
        by_word(lambda at: at.streams.reads.lasted),
    )
    yield Family(
        "headwater_heartbeats",
        "counter",
        "Signs of life sent in silence.",
        (),
        one(lambda at: at.streams.reads.heartbeats),
    )


def _of_runs() -> Iterator[Family]:
    yield Family(
        "headwater_runs", "gauge", "Runs that are being made now.", ("agent",), of_runs(lambda runs: runs.running())
    )
    yield Family(
        "headwater_runs_silent",
        "gauge",
        "Of those, runs that have had no event for at least so many seconds.",
        ("agent", "seconds"),
        of_runs(lambda runs: runs.figures.silent(asyncio.get_running_loop().time())),
    )
    yield Family(
        "headwater_runs_started",
        "counter",
        "Runs begun, or gone on with.",
        ("agent",),
        of_runs(lambda runs: runs.figures.started),
    )
    yield Family(
        "headwater_run_outcomes",
        "counter",
        "Runs ended here, by how.",
        ("agent", "outcome"),
        of_runs(lambda runs: runs.figures.ended),
    )
    yield Family(
        "headwater_run_seconds",
        "histogram",
        "How long they took.",
        ("agent", "outcome"),
        of_runs(lambda runs: runs.figures.lasted),
    )
    yield Family(
        "headwater_time_to_first_token_seconds",
        "histogram",
        "From the start of a run to the first thing its model said.",
        ("agent",),
        of_runs(lambda runs: runs.figures.first_token),
    )
    yield Family(
        "headwater_run_tokens",
        "counter",
        "Tokens that ended runs took and made.",
        ("agent", "direction"),
        of_runs(lambda runs: runs.figures.tokens),
    )
    yield Family(
        "headwater_run_tools",
        "counter",
        "Tools that ended runs called.",
        ("agent",),
        of_runs(lambda runs: runs.figures.tools),
    )


def _of_reports() -> Iterator[Family]:
    by = ("agent", "client")
    yield Family(
        "headwater_reported_readers",
        "counter",
        "Readers that reported the service they got, by how it ended for them.",
        (*by, "ended"),
        _reports,
    )
    yield Family(
        "headwater_reported_reconnects",
        "counter",
        "How often those had to connect again.",
        by,
        reported(lambda seen: seen.reconnects),
    )
    yield Family(
        "headwater_reported_first_event_seconds",
        "histogram",
        "From the request of such a reader to its first event.",
        by,
        reported(lambda seen: seen.first_event),
    )
    yield Family(
        "headwater_reported_gap_seconds",
        "histogram",
        "The longest time that such a reader had nothing.",
        by,
        reported(lambda seen: seen.longest_gap),
    )
    yield Family(
        "headwater_reported_lost_seconds",
        "histogram",
        "For how long such a reader had no connection, where it lost one.",
        by,
        reported(lambda seen: seen.lost),
    )


def _of_the_server() -> Iterator[Family]:
    yield Family(
        "headwater_requests",
        "counter",
        "Requests answered; status 0: the client left first.",
        ("route", "method", "status"),
        by_word(lambda at: at.traffic.answered),
    )
    yield Family(
        "headwater_refused",
        "counter",
        "Requests and sockets refused, by the code of the error.",
        ("reason",),
        by_word(lambda at: at.traffic.refused),
    )
    yield Family(
        "headwater_store_op_seconds",
        "histogram",
        "How long the store took, by operation.",
        ("op",),
        by_word(lambda at: at.streams.operations.seconds),
    )
    yield Family(
        "headwater_store_errors",
        "counter",
        "Operations that failed: the store was away, busy or full.",
        ("op",),
        by_word(lambda at: at.streams.operations.errors),
    )
    yield Family(
        "headwater_store_conflicts",
        "counter",
        "Commits that came second, and were decided again.",
        (),
        one(lambda at: at.streams.operations.conflicts),
    )
    yield Family(
        "headwater_loop_lag_seconds",
        "histogram",
        "How late the event loop was, looked at ten times a second.",
        (),
        one(lambda at: at.streams.lag.histogram),
    )
    yield Family("headwater_processes", "gauge", "Server processes that this is the sum of.", (), one(lambda _: 1))
    yield Family(
        "headwater_draining", "gauge", "Processes that are going away.", (), one(lambda at: int(at.streams.draining))
    )
    yield Family(
        "headwater_build_info",
        "gauge",
        "Processes, by version and store.",
        ("version", "store"),
        lambda at: {(__version__, type(at.streams.store).__name__): 1},
    )


FAMILIES: Final = (
    *_of_writes(),
    *_of_reads(),
    *_of_delivery(),
    *_of_endings(),
    *_of_runs(),
    *_of_reports(),
    *_of_the_server(),
)
