"""One subscription: what is kept of it, and the events that change it. Pure: no I/O, time is in the events.

    apply(state, event) -> state

Which events there are to be is for `decisions`. Invariants: at most one wake at a time; each has a generation above the
one before. Section numbers are those of Durable Streams.
"""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

from headwater.model import BEGINNING, Head, Offset
from headwater.positions import START
from headwater.subscriptions import globs

LEASE_MS: Final = 30_000
SHORTEST_LEASE_MS: Final = 1_000
LONGEST_LEASE_MS: Final = 600_000  # (6.2)

UNREAD: Final = (START, str(BEGINNING))
"""Acked offsets of a stream of which nothing was ever worked on."""

_OURS: Final = ("headwater/", "__ds/")
"""Streams that are never subscribed to: the server's own, and names that stand for its controls (6)."""

Kind = Literal["webhook", "pull-wake"]


def reserved(name: str) -> bool:
    return name.startswith(_OURS) or name == "__ds"


class Terms(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a subscription was made with; two requests to make one under the same id must agree on it (6.2)."""

    kind: Kind
    pattern: str | None = None
    streams: tuple[str, ...] = ()
    """Sorted, each once."""
    url: str | None = None
    wake_stream: str | None = None
    lease_ms: int = LEASE_MS
    description: str | None = None

    def matches(self, name: str) -> bool:
        """Whether the pattern means this stream. A wake stream wakes nobody by being told of a wake."""
        if self.pattern is None or reserved(name) or name == self.wake_stream:
            return False
        return globs.matches(self.pattern, name)


class Link(msgspec.Struct, frozen=True, array_like=True):
    """One stream of a subscription."""

    acked: str
    """Offset up to which it was worked on, inclusive; "-1": not at all."""
    explicit: bool = False
    """It was named, and does not only match the pattern."""

    @property
    def awaited(self) -> bool:
        """Named, and maybe not there yet."""
        return self.explicit and self.acked in UNREAD

    def pending(self, head: Head | None) -> bool:
        """Whether the stream has gone on since it was worked on."""
        if head is None or not head.tail:
            return False
        at = Offset.parse(self.acked)
        return at is None or at == BEGINNING or at < head.offset


class Wake(msgspec.Struct, frozen=True, omit_defaults=True):
    """Something to do, which one worker is to be told of."""

    id: str
    tails: dict[str, str]
    """Where the streams with pending work ended then: what a worker that is done without a word has worked on."""
    stream: str
    """One that has pending work, for the event in a wake stream (7.2)."""
    until: int | None = None
    """When it ends by itself, or, of a pull wake that nobody has claimed, when it is to be announced again; ms."""
    holder: str | None = None
    """Who has claimed it (7.2)."""


class State(msgspec.Struct, omit_defaults=True):
    """All that is kept of one subscription. Changes by `apply` alone."""

    id: str
    terms: Terms
    created: int
    """ms since 1970."""
    address: str
    """URL of the place where streams are, as its maker saw it: callbacks go there."""
    key: str
    """Hex: what its tokens are made with."""
    links: dict[str, Link] = {}
    generation: int = 0
    wake: Wake | None = None
    failures: int = 0
    """Attempts to tell of the current wake that failed, one after the other."""
    retry_at: int | None = None
    """When to try again, ms."""

    def due(self) -> int | None:
        """When something is to happen by itself, ms."""
        if self.wake is None:
            return None
        return self.wake.until if self.retry_at is None else self.retry_at


# -- events -----------------------------------------------------------------------------------------------------------


class Snapshot(msgspec.Struct, frozen=True, tag="snapshot"):
    """Everything as it is: the first event there is, and what older ones are trimmed away for."""

    state: State


class Linked(msgspec.Struct, frozen=True, tag="linked"):
    links: dict[str, Link]


class Unlinked(msgspec.Struct, frozen=True, tag="unlinked"):
    streams: list[str]


class Woken(msgspec.Struct, frozen=True, tag="woken"):
    """A wake was made; it takes the place of the one before."""

    generation: int
    wake: Wake


class Sent(msgspec.Struct, frozen=True, tag="sent"):
    """Another attempt to tell of the wake begins."""

    until: int


class Delivered(msgspec.Struct, frozen=True, tag="delivered"):
    """It was told of."""

    until: int | None


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """It could not be told of."""

    retry_at: int


class Claimed(msgspec.Struct, frozen=True, tag="claimed"):
    worker: str
    until: int


class Acked(msgspec.Struct, frozen=True, tag="acked"):
    """Worked on up to these offsets; the worker lives."""

    offsets: dict[str, str]
    until: int


class Ended(msgspec.Struct, frozen=True, tag="ended"):
    """The wake is done with, given back or lapsed."""


Event = Snapshot | Linked | Unlinked | Woken | Sent | Delivered | Failed | Claimed | Acked | Ended
decode = msgspec.json.Decoder(Event).decode
encode = msgspec.json.Encoder().encode


def apply(state: State, event: Event) -> State:
    """`state` after `event`: the same object, but for a snapshot."""
    match event:
        case Snapshot(whole):
            return whole
        case Linked(links):
            state.links = state.links | links
        case Unlinked(streams):
            state.links = {name: link for name, link in state.links.items() if name not in set(streams)}
        case Woken(generation, wake):
            state.generation, state.wake, state.retry_at = generation, wake, None
        case Sent(until):
            state.wake, state.retry_at = _with(state.wake, until=until), None
        case Delivered(until):
            state.wake, state.retry_at, state.failures = _with(state.wake, until=until), None, 0
        case Failed(retry_at):
            state.retry_at, state.failures = retry_at, state.failures + 1
        case Claimed(worker, until):
            state.wake, state.retry_at, state.failures = _with(state.wake, holder=worker, until=until), None, 0
        case Acked(offsets, until):
            acked = {name: msgspec.structs.replace(state.links[name], acked=at) for name, at in offsets.items()}
            state.links = state.links | acked
            state.wake, state.retry_at, state.failures = _with(state.wake, until=until), None, 0
        case Ended():
            state.wake, state.retry_at, state.failures = None, None, 0
    return state


def _with(wake: Wake | None, **changes: Any) -> Wake | None:
    return None if wake is None else msgspec.structs.replace(wake, **changes)
