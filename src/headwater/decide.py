"""The rules of a stream, as one pure function: what does this request do to that head, at this time?

    decide(head, request, now) -> Decision(head, messages, what)        or raises the error that answers the request

`generation` is drawn by the caller for a stream that is made now; one that the name has had is never taken again (G1).

Idempotent producers, Stream-Seq, closing, content types and expiry live here and nowhere else; a store only compares
and appends what was decided. Section numbers are those of the Durable Streams protocol.

Knows the model and the errors. No I/O, no clock: time is an argument, in ms since 1970.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, NamedTuple

import msgspec

from headwater.errors import (
    BadRequest,
    Conflict,
    ContentTypeMismatch,
    Forbidden,
    OffsetMismatch,
    ProducerFenced,
    ProducerGap,
    SequenceRegression,
    StreamClosed,
    StreamDeleted,
    StreamExists,
    StreamNotFound,
)
from headwater.model import BEGINNING, Absent, Config, Fork, Head, Message, Offset, Producer

PRODUCER_MEMORY_MS: Final = 7 * 24 * 3600 * 1000
"""A producer that was silent for so long is forgotten once a stream has many of them (5.2.1 allows it)."""

MOST_PRODUCERS: Final = 4096
"""Of one stream: they are in its head. With one more the longest silent are forgotten; should one of them come back, it
is refused (ProducerGap), and not taken for a new one."""

KIND: Final = "kind"
"""The label by which a layer above knows streams for its own (a run's), and alone writes and ends them."""

MANY_PRODUCERS: Final = 64
"""Below this number nobody is forgotten: the head stays small anyway."""


class Item(NamedTuple):
    """What becomes one message."""

    data: bytes
    key: str | None = None


class Stamp(NamedTuple):
    """Who sends an append and as which one: makes a repeated append count once (5.2.1)."""

    producer: str
    epoch: int
    seq: int


class ForkOf(msgspec.Struct, frozen=True):
    """What a fork is to branch off from (4.2)."""

    source: str
    offset: Offset | None = None
    """Of the source; None: its tail."""
    sub_offset: int = 0
    """Messages (JSON) or bytes behind `offset` that belong to the fork, too."""


class Create(msgspec.Struct, frozen=True):
    """PUT: make a stream, or agree that it exists as described (5.1)."""

    config: Config = Config()
    """For a fork: an empty content type, and a missing TTL and expiry, are the source's."""
    items: Sequence[Item] = ()
    closed: bool = False
    outcome: str | None = None
    owner: str | None = None
    labels: dict[str, str] = {}
    fork_of: ForkOf | None = None
    """As it was asked for."""
    fork: Fork | None = None
    """As `headwater.forks` has found it to be possible …"""
    start: int = 0
    """… and the position before the first message that can be inherited."""
    look: int | None = None
    """When the sweeper should look at it, ms."""


class Append(msgspec.Struct, frozen=True):
    """POST: add messages, close, or both at once (5.2, 5.3)."""

    items: Sequence[Item] = ()
    content_type: str | None = None
    """Compared with the stream's where given."""
    stamp: Stamp | None = None
    seq: str | None = None
    close: bool = False
    outcome: str | None = None
    expected: Offset | None = None
    """Where the stream has to end for this append to be carried out."""
    foreign: bool = False
    """Asked for by a client: refused for a stream of a `kind`, which the layer that made it writes alone."""
    owner: str | None = None
    """Who makes the stream from here on, as `headwater.leases` names processes; "": nobody, until somebody takes it."""


class Trim(msgspec.Struct, frozen=True):
    """Keep no message up to a position; without effect where the stream is no longer as it was when that was found."""

    found: Head
    """The stream then."""
    start: int
    size: int
    """Bytes of what is trimmed, as far as it is kept under this name."""
    look: int | None
    """When to look next, ms."""


class Hold(msgspec.Struct, frozen=True):
    """A fork of this stream is about to be made."""


class Withdraw(msgspec.Struct, frozen=True):
    """Delete a stream whose messages forks still need (4.2)."""

    generation: int
    """Of the one that is meant: its name may be another stream's by now."""
    look: int
    """When to look again whether they do, ms."""


Request = Create | Append | Trim | Hold | Withdraw
What = Literal["created", "exists", "appended", "duplicate", "trimmed", "noted", "held", "withdrawn"]


class Decision(NamedTuple):
    head: Head
    messages: list[Message]
    what: What
    replaced: Head | None = None
    """The expired stream whose name this one has taken."""

    @property
    def changes(self) -> bool:
        """Whether there is something to commit."""
        return self.what not in ("exists", "duplicate")


def decide(head: Head | Absent, request: Request, now: int, generation: int = 0) -> Decision:
    """What `request` makes of `head` at `now`; raises the HeadwaterError that answers a request it refuses."""
    alive = None if isinstance(head, Absent) or head.expired(now) else head
    if isinstance(request, Append) and alive is not None and alive.deleted is None:  # the usual case, so it comes first
        return _append(alive, request, now)
    if isinstance(request, Withdraw):  # also one that has expired
        return _withdraw(head, request, now)
    if isinstance(request, Create):
        if isinstance(head, Head) and (head.deleted is not None or (alive is None and head.forked)):
            raise StreamExists("a stream of this name was deleted, but forks of it remain; delete those first")
        return _agree(alive, request) if alive else _create(head, request, now, generation)
    if alive is None:
        raise StreamNotFound("no such stream")
    if isinstance(request, Hold):
        return _hold(alive)
    if alive.deleted is not None:
        raise StreamDeleted("this stream was deleted")
    assert isinstance(request, Trim)
    return _trim(alive, request)


def media_type(content_type: str) -> str:
    """The part of a content type that is compared: no parameters, no case (5.1, 5.2)."""
    return content_type.partition(";")[0].strip().lower()


def _create(before: Head | Absent, request: Create, now: int, drawn: int) -> Decision:
    # An expired stream is replaced: its offsets must not come back, so the next generation starts (G1).
    if request.fork_of is not None and request.fork is None:
        raise StreamNotFound("no such stream")  # it was there a moment ago, and agreed
    if not (request.config.content_type.isascii() and request.config.content_type.isprintable()):
        raise BadRequest("a content type is plain ASCII, like text/plain")  # it will stand in headers
    generation = max(drawn, before.generation if isinstance(before, Absent) else before.generation + 1)
    if request.fork is not None:  # an offset tells by its generation which stream of the family it is of
        generation = max(generation, request.fork.lineage[-1].generation + 1)
    begin = request.fork.position if request.fork else 0
    messages = _messages(request.items, generation, begin, now)
    head = Head(
        config=request.config,
        generation=generation,
        tail=begin + len(messages),
        start=request.start,
        size=sum(len(item.data) for item in request.items),
        closed=request.closed,
        outcome=request.outcome if request.closed else None,
        created=now,
        appended=now,
        touched=now,
        owner=None if request.closed else request.owner,
        labels=request.labels,
        fork=request.fork,
        look=request.look,
    )
    return Decision(head, messages, "created", before if isinstance(before, Head) else None)


def _agree(head: Head, request: Create) -> Decision:
    asked, has, fork_of = request.config, head.config, request.fork_of
    inherits_type = fork_of is not None and not asked.content_type
    inherits_expiry = fork_of is not None and asked.ttl is None and asked.expires_at is None
    if not inherits_type and media_type(asked.content_type) != media_type(has.content_type):
        raise StreamExists(f"this stream exists, and holds {has.content_type}")
    if not inherits_expiry and (asked.ttl, asked.expires_at) != (has.ttl, has.expires_at):
        raise StreamExists("this stream exists, with another TTL or expiry")
    if asked.retention is not None and asked.retention != has.retention:
        raise StreamExists("this stream exists, with another retention")
    if not _same_fork(head.fork, fork_of):
        raise StreamExists("this stream exists, and was not forked off there")
    if request.closed != head.closed:
        raise StreamExists(f"this stream exists, and is {'closed' if head.closed else 'open'}")
    return Decision(head, [], "exists")


def _same_fork(fork: Fork | None, asked: ForkOf | None) -> bool:
    if fork is None or asked is None:
        return fork is None and asked is None
    # Without an offset the tail was meant, which may have moved on since (4.2).
    anchor = fork.anchor if asked.offset is None else asked.offset.position
    return (fork.source, fork.anchor, fork.sub_offset) == (asked.source, anchor, asked.sub_offset)


def _hold(head: Head) -> Decision:
    if head.deleted is not None:
        raise Conflict("the stream to fork was deleted; fork one of its forks instead")
    return Decision(msgspec.structs.replace(head, version=head.version + 1, forked=head.forked + 1), [], "held")


def _withdraw(head: Head | Absent, request: Withdraw, now: int) -> Decision:
    if isinstance(head, Absent) or head.generation != request.generation:
        raise StreamNotFound("no such stream")
    deleted = now if head.deleted is None else head.deleted
    changed = msgspec.structs.replace(
        head, version=head.version + 1, deleted=deleted, look=request.look, owner=None, producers={}
    )
    return Decision(changed, [], "withdrawn")


def _trim(head: Head, request: Trim) -> Decision:
    """Keep nothing up to `start`; readers that are behind it learn so (G5)."""
    found = request.found
    # A fork that is being made needs what is there.
    if (found.generation, found.start, found.forked) != (head.generation, head.start, head.forked):
        return Decision(head, [], "duplicate")
    if request.start == head.start and found.tail != head.tail:
        return Decision(head, [], "duplicate")  # nothing was over, but may be now: it is looked at again
    trimmed = head.trimmed + request.size
    changed = msgspec.structs.replace(
        head, version=head.version + 1, start=request.start, trimmed=trimmed, look=request.look
    )
    return Decision(changed, [], "trimmed" if request.start > head.start else "noted")


def _append(head: Head, request: Append, now: int) -> Decision:
    if request.foreign and KIND in head.labels:
        raise Forbidden("this stream is written by the server alone")
    if head.closed:
        return _append_to_closed(head, request)
    if not request.items and not request.close:
        raise BadRequest("an append needs at least one message, unless it closes the stream")
    given, held = request.content_type, head.config.content_type
    if request.items and given is not None and given != held and media_type(given) != media_type(held):
        raise ContentTypeMismatch(f"this stream holds {head.config.content_type}, not {given}")
    if request.stamp and _is_duplicate(head.producers.get(request.stamp.producer), request.stamp):
        return Decision(head, [], "duplicate")
    if request.expected is not None and not _ends_at(head, request.expected):
        raise OffsetMismatch("the stream has gone on; read what is new and decide again", offset=str(head.offset))
    # Checked after the producer: a retried batch must count as the duplicate it is, not as a step back.
    if request.seq is not None and head.seq is not None and request.seq.encode() <= head.seq.encode():
        raise SequenceRegression("Stream-Seq must increase with every append (compared byte by byte)")
    messages = _messages(request.items, head.generation, head.tail, now)
    changed = msgspec.structs.replace(
        head,
        version=head.version + 1,
        tail=head.tail + len(messages),
        size=head.size + sum([len(item.data) for item in request.items]),
        appended=now,
        touched=max(now, head.touched),  # a clock that is set back must not end the stream early
        **_said(head, request, now),
    )
    return Decision(changed, messages, "appended")


def _said(head: Head, request: Append, now: int) -> dict[str, Any]:
    """What else an append changes in the head: mostly nothing."""
    said: dict[str, Any] = {}
    if request.stamp is None and request.seq is None and request.owner is None and not request.close:
        return said
    if request.seq is not None:
        said["seq"] = request.seq
    if request.stamp is not None:
        said["producers"] = _remember(head.producers, request.stamp, now)
    if request.owner is not None:
        said["owner"] = request.owner or None
    if request.close:
        said |= {"closed": True, "closed_by": _tuple(request.stamp), "outcome": request.outcome, "owner": None}
    return said


def _ends_at(head: Head, offset: Offset) -> bool:
    return offset == head.offset or (offset == BEGINNING and head.tail == 0)


def _append_to_closed(head: Head, request: Append) -> Decision:
    """5.3: closing again is fine, and so is the retry of the very append that closed; all else is refused."""
    only_closes = request.close and not request.items
    if request.stamp is None and only_closes:
        return Decision(head, [], "duplicate")
    if request.stamp is not None and head.closed_by == _tuple(request.stamp):
        return Decision(head, [], "duplicate")
    raise StreamClosed("this stream is closed", offset=str(head.offset))


def _is_duplicate(known: Producer | None, stamp: Stamp) -> bool:
    """5.2.1: True for a repeated batch, False for the next one; raises for one that is fenced off or out of order."""
    if known is not None and stamp.epoch < known.epoch:
        raise ProducerFenced("a newer epoch of this producer has appended", epoch=known.epoch)
    if known is not None and stamp.epoch == known.epoch:
        if stamp.seq > known.seq + 1:
            raise ProducerGap("a batch before this one is missing", expected=known.seq + 1, received=stamp.seq)
        return stamp.seq <= known.seq
    if stamp.seq != 0:
        if known is not None:
            raise BadRequest("a new epoch of a producer starts at sequence 0")
        raise ProducerGap("an unknown producer starts at sequence 0", expected=0, received=stamp.seq)
    return False


def _remember(producers: dict[str, Producer], stamp: Stamp, now: int) -> dict[str, Producer]:
    kept = producers
    if len(producers) >= MANY_PRODUCERS:
        kept = {name: known for name, known in producers.items() if now - known.time < PRODUCER_MEMORY_MS}
    if len(kept) >= MOST_PRODUCERS and stamp.producer not in kept:
        by_silence = sorted(kept.items(), key=lambda one: one[1].time)
        kept = dict(by_silence[MOST_PRODUCERS // 8 :])
    return {**kept, stamp.producer: Producer(stamp.epoch, stamp.seq, now)}


def _tuple(stamp: Stamp | None) -> tuple[str, int, int] | None:
    return None if stamp is None else (stamp.producer, stamp.epoch, stamp.seq)


def _messages(items: Sequence[Item], generation: int, position: int, now: int) -> list[Message]:
    return [
        Message(data, Offset(generation, position + count), now, key)
        for count, (data, key) in enumerate(items, start=1)
    ]
