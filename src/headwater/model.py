"""The words: offset, message, head, page. Plain frozen data, no behaviour that needs a clock or a wire.

Knows nobody. Everything above speaks in these. None can hold what leads back to it, so the interpreter's collector need
not look (`gc=False`): with 50,000 heads in memory that would be a pause that readers notice.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

import msgspec

_OFFSET: Final = re.compile(r"(\d{16})_(\d{16})", re.ASCII)


class Offset(NamedTuple):
    """A position in one stream: everything after it is still to be read.

    `generation` tells apart streams that bore one name one after the other: it grows with each, so an offset is never
    reused (G1) and an old one is answered loudly (G5). `position` counts messages from the stream's beginning. Sorts
    as a tuple and, in its text form, as a string (Durable Streams 8). To clients it is opaque.
    """

    generation: int
    position: int

    def __str__(self) -> str:
        return "%016d_%016d" % self  # noqa: UP031 -- a third of what an f-string takes, twice in each append

    def __bytes__(self) -> bytes:
        return b"%016d_%016d" % self

    @classmethod
    def parse(cls, text: str) -> Offset | None:
        """The offset that `text` is, or None where it is not one."""
        match = _OFFSET.fullmatch(text)
        return cls(int(match[1]), int(match[2])) if match else None


BEGINNING: Final = Offset(0, 0)
"""Before everything, in every generation: the one offset that is good for any stream."""


class Message(msgspec.Struct, frozen=True, gc=False):
    """One entry of a stream."""

    data: bytes
    offset: Offset
    """The offset after this message: to go on behind it, resume here."""
    time: int
    """When it was appended, in ms since 1970 (UTC)."""
    key: str | None = None
    """What it is about (a topic, a cell, an element), for replay by key, last values and compaction."""


class Producer(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a stream remembers of one idempotent producer (Durable Streams 5.2.1)."""

    epoch: int
    seq: int
    time: int
    """Of its last append, ms."""


class Retention(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """How much of a stream is kept; None: no bound. What is over is trimmed away from the front."""

    seconds: int | None = None
    """Age of a message."""
    bytes: int | None = None
    """Of all messages together; the newest message is always kept."""
    messages: int | None = None


class Segment(NamedTuple):
    """A stretch of messages that a fork reads in the stream they were appended to."""

    stream: str
    generation: int
    until: int
    """Position after the last one."""


class Fork(msgspec.Struct, frozen=True, gc=False):
    """Where a stream branched off (Durable Streams 4.2)."""

    source: str
    anchor: int
    """The position that was asked for …"""
    sub_offset: int
    """… and how many messages (JSON) or bytes behind it (4.2)."""
    position: int
    """Position before the first message of its own; those up to here are read through `lineage`."""
    lineage: tuple[Segment, ...]
    """All ancestors, oldest first; the last one is the source. Of some, nothing may come before `position`."""
    claim: str
    """Name of the stream by which the source is known to be needed: see `headwater.forks`."""


class Config(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """What a stream was created with. Two creations of one name must agree on it (Durable Streams 5.1)."""

    content_type: str = "application/octet-stream"
    ttl: int | None = None
    """Seconds without a read or a write after which the stream is gone."""
    expires_at: int | None = None
    """Absolute end of life, ms since 1970."""
    retention: Retention | None = None
    """None: as the server keeps streams of this name (`headwater.retention`)."""


class Head(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """The small state of a stream; each accepted request makes a new one."""

    config: Config
    generation: int
    version: int = 1
    """Grows with each head; what a store compares. No two heads ever offered for a stream may have the same one."""
    tail: int = 0
    """Position after the last message."""
    start: int = 0
    """Position before the first message that is still kept."""
    size: int = 0
    """Bytes of all messages appended so far, without those a fork inherited."""
    trimmed: int = 0
    """Bytes of those of them that are no longer kept."""
    closed: bool = False
    outcome: str | None = None
    """How it ended, once closed: `completed`, `failed`, `cancelled`; None where the closer did not say."""
    seq: str | None = None
    """The last Stream-Seq (Durable Streams 5.2)."""
    producers: dict[str, Producer] = {}
    closed_by: tuple[str, int, int] | None = None
    """Producer id, epoch and seq of the append that closed it, so that its retry is known for what it is."""
    created: int = 0
    """ms, like the next two."""
    appended: int = 0
    """When the last append, or the closing, happened."""
    touched: int = 0
    """Last read or write, ms: where a sliding TTL counts from. The store may hold a later one than the head."""
    owner: str | None = None
    """The process that is making an open stream, as `headwater.leases` names it; None: nobody in particular."""
    labels: dict[str, str] = {}
    """Small facts of the layer above (a run's agent and owner); never shown to readers of the stream."""
    fork: Fork | None = None
    """Set where it is a fork of another stream."""
    forked: int = 0
    """How often it was forked: while any of those forks is there, its messages stay."""
    deleted: int | None = None
    """When it was deleted, ms, although forks still need its messages: nobody else sees those any more (4.2)."""
    look: int | None = None
    """When the sweeper should look at it, ms, apart from its expiry: to trim it, or to see whether forks remain."""

    @property
    def offset(self) -> Offset:
        """The tail offset."""
        return Offset(self.generation, self.tail)

    @property
    def first(self) -> int:
        """Position before the first message that is kept under its own name."""
        return self.start if self.fork is None else max(self.start, self.fork.position)

    def expiry(self) -> int | None:
        """When the stream ceases to be, in ms, if nothing touches it before."""
        if self.deleted is not None:
            return None
        if self.config.ttl is not None:
            return self.touched + self.config.ttl * 1000
        return self.config.expires_at

    def expired(self, now: int) -> bool:
        end = self.expiry()
        return end is not None and now >= end


class Absent(msgspec.Struct, frozen=True, gc=False):
    """What a store knows of a name that holds no stream: the generation the next one under it gets."""

    generation: int
    version: int = 0


class Page(NamedTuple):
    """Some messages in a row, and where they stand."""

    messages: Sequence[Message]
    start: Offset
    """Before the first message."""
    next: Offset
    """After the last one: where to go on."""
    up_to_date: bool
    """`next` was the tail when the page was made."""
    closed: bool
    """`next` is the end for ever: nothing follows."""
    outcome: str | None = None
    """How the stream ended, where `closed`."""
