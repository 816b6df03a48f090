"""What is counted where it happens: writes, reads and uses of the store, as plain numbers and histograms.

Whoever shows them (`/metrics`, a console) reads the objects when it is asked to; nothing is pushed, and no metrics
library is known here. Times are seconds unless a name says otherwise.

Knows heads, decisions and histograms; no clock: whoever counts says how long it took. Invariants: a label is one of
few words, never the name of a stream or a person, so that memory is bounded (`few`); a number that counts never falls.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal, Protocol

from headwater.decide import KIND as LABEL
from headwater.decide import Append, Decision, Request
from headwater.errors import StoreError, VersionConflict
from headwater.histogram import Histogram
from headwater.model import Absent, Head

Resumed = Literal["ok", "nothing_new", "gap", "other_stream", "bad_offset"]
"""What became of a reader that said where it was: there was more; there was not; what follows is no longer kept; the
stream was made anew meanwhile; it was no place of this stream."""

SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
"""Of what a person waits for: OpenTelemetry's bounds for calls of models, so that both can be laid side by side."""

LONG_SECONDS: Final = (*SECONDS[4:], 163.84, 327.68, 655.36, 1310.72, 2621.44, 5242.88, 10485.76)
"""The same bounds and on to three hours: of streams and connections."""

SHORT_SECONDS: Final = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Of what a machine waits for: appends, the store, the way to a socket."""

EVENTS: Final = (0, 1, 10, 100, 1_000, 10_000, 100_000, 1_000_000)

MOST_WORDS: Final = 32
"""Different words of one label; what comes beyond those is counted as `other`."""

OUTCOMES: Final = frozenset({"completed", "failed", "cancelled"})

HOUSEKEEPING: Final = "headwater/"
"""Streams of this name are the server's own."""


class Words:
    """The words that a label may be, in the order in which they came."""

    def __init__(self) -> None:
        self._known: set[str] = set()

    def __repr__(self) -> str:
        return f"<Words [{len(self._known)}]>"

    def few(self, word: str) -> str:
        """`word`, or `other` where there are too many different ones by now."""
        if word in self._known:
            return word
        if len(self._known) >= MOST_WORDS:
            return "other"
        self._known.add(word)
        return word


class Kind:
    """What was written to the streams of one kind."""

    __slots__ = ("bytes", "created", "events", "first_event", "gaps", "lasted", "outcomes")

    def __init__(self) -> None:
        self.created = self.events = self.bytes = 0
        self.outcomes: Counter[str] = Counter()
        """Of those that were closed."""
        self.first_event = Histogram(SECONDS)
        """From the making of a stream to the first append to it."""
        self.gaps = Histogram(SECONDS)
        """From one append to the next of the same stream."""
        self.lasted: dict[str, Histogram] = {}
        """By outcome: from the making to the end."""

    def __repr__(self) -> str:
        return f"<Kind [{self.created} created, {self.events} events]>"

    def ended(self, head: Head) -> None:
        """A stream of this kind was closed."""
        outcome = outcome_of(head)
        self.outcomes[outcome] += 1
        if outcome not in self.lasted:
            self.lasted[outcome] = Histogram(LONG_SECONDS)
        self.lasted[outcome].observe((head.appended - head.created) / 1000)


class Writes:
    """What this process wrote to the streams of one store. Asked of `Commits` only."""

    def __init__(self) -> None:
        self.by_kind: dict[str, Kind] = {}
        self.visible = Histogram(SHORT_SECONDS)
        """From the call of an append to its return: then every reader can see it."""
        self.repeated: Counter[str] = Counter()
        """Requests that changed nothing because they had been carried out before: `producer` knew the batch, the stream
        was `closed` already, or it `exists` as it was to be made."""
        self._words = Words()

    def __repr__(self) -> str:
        return f"<Writes [{sum(kind.events for kind in self.by_kind.values())} events]>"

    def statistics(self) -> dict[str, int]:
        """In sum over all kinds, so far."""
        kinds = self.by_kind.values()
        return {
            "created": sum(kind.created for kind in kinds),
            "events": sum(kind.events for kind in kinds),
            "bytes": sum(kind.bytes for kind in kinds),
        }

    def committed(self, name: str, before: Head | Absent, decision: Decision, *, first: bool) -> None:
        """A commit is durable; `first`: the stream had not changed before since it was made."""
        if decision.what not in ("appended", "created"):
            return
        head, messages = decision.head, decision.messages
        label = self.kind_of(name, head.labels)
        kind = self.by_kind.get(label)
        if kind is None:
            kind = self.by_kind[label] = Kind()
        kind.events += len(messages)
        if decision.what == "created" or isinstance(before, Absent):
            kind.created += 1
            kind.bytes += head.size
        else:
            kind.bytes += head.size - before.size
            if messages:  # in ms, by the clock of whoever appended: the one before may have been another process
                (kind.first_event if first else kind.gaps).observe((head.appended - before.appended) / 1000)
        if head.closed:
            kind.ended(head)

    def kind_of(self, name: str, labels: Mapping[str, str]) -> str:
        """What a stream of this name is for: its maker's word for it, `stream` where there is none."""
        if name.startswith(HOUSEKEEPING):
            return "internal"
        return self._words.few(labels.get(LABEL, "stream"))

    def answered(self, request: Request, decision: Decision, seconds: float) -> None:
        """A request was carried out, all waiting included."""
        if isinstance(request, Append):
            self.visible.observe(seconds)
        if decision.what == "exists":
            self.repeated["exists"] += 1
        elif decision.what == "duplicate" and isinstance(request, Append):
            self.repeated["producer" if request.stamp else "closed"] += 1


class Operations:
    """How often the store of one process was used, how long it took, and what failed."""

    def __init__(self) -> None:
        self.seconds: dict[str, Histogram] = {}
        """By operation."""
        self.errors: Counter[str] = Counter()
        """The same: where the store was away or unusable. That another was quicker is none."""
        self.conflicts = 0
        """Commits that came second, and were decided again."""

    def __repr__(self) -> str:
        return f"<Operations [{sum(one.count for one in self.seconds.values())}, {self.errors.total()} failed]>"

    def statistics(self) -> dict[str, int]:
        """So far."""
        done = sum(one.count for one in self.seconds.values())
        return {"operations": done, "errors": self.errors.total(), "conflicts": self.conflicts}

    def done(self, operation: str, seconds: float) -> None:
        """One that came to an end, good or bad."""
        histogram = self.seconds.get(operation)
        if histogram is None:
            histogram = self.seconds[operation] = Histogram(SHORT_SECONDS)
        histogram.observe(seconds)

    def failed(self, operation: str, error: BaseException) -> None:
        """`error` ended one."""
        if isinstance(error, VersionConflict):
            self.conflicts += 1
        elif isinstance(error, StoreError):
            self.errors[operation] += 1


class Reading(Protocol):
    """Where somebody stands who reads on and on."""

    def behind(self, now: int) -> tuple[int, float]:
        """Events and seconds that it is behind the end of its stream; `now` in ms."""


class Reads:
    """What readers of one process got, and how they came and went. By transport: how they are served."""

    def __init__(self) -> None:
        self.here: dict[Reading, str] = {}
        """Those that are here now, and how each is served."""
        self.subscribed: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()
        """(transport, reason)."""
        self.lasted: dict[str, Histogram] = {}
        self.resumed: Counter[Resumed] = Counter()
        self.replayed = Histogram(EVENTS)
        """Events between where a reader began and the end of its stream at that moment."""
        self.events: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.delivery: dict[str, Histogram] = {}
        """From the acceptance of an append, by any process, until it was written to the connection of a reader that had
        all before it. One observation for each message or batch and reader; to the millisecond."""
        self.heartbeats = 0
        self.slow: Counter[str] = Counter()
        """What was done to readers that took nothing: `drop`."""

    def __repr__(self) -> str:
        return f"<Reads [{len(self.here)} readers, {self.ended.total()} ended]>"

    def statistics(self) -> dict[str, int]:
        """Readers now, those that came so far, and what they got."""
        return {
            "readers": len(self.here),
            "subscribed": self.subscribed.total(),
            "events": self.events.total(),
            "bytes": self.bytes.total(),
            "heartbeats": self.heartbeats,
        }

    def came(self, reader: Reading, transport: str, replayed: int) -> None:
        """`replayed`: events it has to catch up with."""
        self.here[reader] = transport
        self.subscribed[transport] += 1
        self.replayed.observe(replayed)

    def left(self, reader: Reading, reason: str, seconds: float) -> None:
        """One that came, after so many seconds."""
        transport = self.here.pop(reader)
        self.ended[transport, reason] += 1
        if transport not in self.lasted:
            self.lasted[transport] = Histogram(LONG_SECONDS)
        self.lasted[transport].observe(seconds)

    def wrote(self, transport: str, events: int, size: int, seconds: float | None, times: int = 1) -> None:
        """So many readers were written the same; `seconds`: None for those that were catching up."""
        self.events[transport] += events * times
        self.bytes[transport] += size * times
        if seconds is not None:
            histogram = self.delivery.get(transport)
            if histogram is None:
                histogram = self.delivery[transport] = Histogram(SHORT_SECONDS)
            histogram.observe(max(0.0, seconds), times)


def outcome_of(head: Head) -> str:
    """How a closed stream ended, in one of few words."""
    if head.outcome is None:
        return "unsaid"
    return head.outcome if head.outcome in OUTCOMES else "other"
