"""What is to happen to a subscription. Pure: no I/O, no clock, no chance but what is given.

    decision(state, …, sight) -> [event, …]        or raises the refusal that answers the request

`sight` is what a decision is made on besides the state. The events of one decision are appended together or not at all,
and only if nothing else was appended meanwhile; only then are they applied.

Invariants: an acked offset never goes back; a worker acts on the wake that there is or not at all. Section numbers are
those of Durable Streams.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from headwater.errors import BadOffset, OffsetGone
from headwater.model import BEGINNING, Head, Offset
from headwater.positions import START, resolve
from headwater.subscriptions.refusals import AlreadyClaimed, Fenced, InvalidOffset, InvalidRequest, NoPendingWork
from headwater.subscriptions.state import (
    UNREAD,
    Acked,
    Claimed,
    Delivered,
    Ended,
    Event,
    Failed,
    Link,
    Linked,
    Sent,
    State,
    Unlinked,
    Wake,
    Woken,
    apply,
)

MOST_LINKS: Final = 10_000
"""Streams of one subscription: each wake looks at all of them and names all of them."""

ANNOUNCED_WITHIN_MS: Final = 10_000
"""Whoever made a pull wake has so long to say so in the wake stream; then another process does."""

SHORTEST_RETRY_MS: Final = 1_000
LONGEST_RETRY_MS: Final = 60_000
RETRY_JITTER: Final = 0.2  # (7.1)


class Sight(NamedTuple):
    """What a decision is made on."""

    heads: Mapping[str, Head]
    """Of the streams it is about: those that are missing here do not exist."""
    now: int
    """ms since 1970."""
    wake_id: str
    """To use if a wake is made."""


class Proof(NamedTuple):
    """What a worker says to be acting on; `token_generation` is what its token was made for."""

    wake_id: str
    generation: int
    token_generation: int


def work(state: State, sight: Sight) -> list[str]:
    """Streams that have gone on."""
    return [name for name, link in state.links.items() if link.pending(sight.heads.get(name))]


def infos(state: State, tails: Mapping[str, str]) -> list[dict[str, Any]]:
    """The streams as workers are told of them (7.1, 7.2), with these tails; the others end where they were acked."""
    told = []
    for name, link in state.links.items():
        tail = tails.get(name) or (link.acked if link.acked != START else str(BEGINNING))
        told.append(
            {
                "path": name,
                "link_type": "explicit" if link.explicit else "glob",
                "acked_offset": link.acked,
                "tail_offset": tail,
                "has_pending": _moved(tail) and tail > link.acked,
            }
        )
    return told


def tails_of(heads: Mapping[str, Head]) -> dict[str, str]:
    return {name: str(head.offset) for name, head in heads.items()}


def _moved(tail: str) -> bool:
    offset = Offset.parse(tail)
    return offset is not None and offset.position > 0


# -- membership -------------------------------------------------------------------------------------------------------


def begun(state: State, heads: Mapping[str, Head]) -> State:
    """`state` with the streams there are, from where they end now: what was before is nobody's work (6.2)."""
    links = {name: _link(heads.get(name), explicit=True) for name in state.terms.streams}
    for name, head in heads.items():
        if state.terms.matches(name):
            links[name] = Link(str(head.offset), explicit=name in links)
    if len(links) > MOST_LINKS:
        raise InvalidRequest(f"this would be more than {MOST_LINKS:,} streams; give a narrower pattern")
    return msgspec.structs.replace(state, links=links)


def added(state: State, sight: Sight, names: Iterable[str]) -> list[Event]:
    """Explicit streams, from where they end now; one that is there by the pattern keeps its place (6.4)."""
    links = {}
    for name in names:
        known = state.links.get(name)
        if known is None:
            links[name] = _link(sight.heads.get(name), explicit=True)
        elif not known.explicit:
            links[name] = msgspec.structs.replace(known, explicit=True)
    if len(state.links | links) > MOST_LINKS:
        raise InvalidRequest(f"a subscription has at most {MOST_LINKS:,} streams")
    return [Linked(links)] if links else []


def removed(state: State, name: str) -> list[Event]:
    """Without its explicit link; the pattern's remains (6.4)."""
    link = state.links.get(name)
    if link is None or not link.explicit:
        return []
    if state.terms.matches(name):
        return [Linked({name: msgspec.structs.replace(link, explicit=False)})]
    return [Unlinked([name])]


def _link(head: Head | None, *, explicit: bool) -> Link:
    return Link(str(BEGINNING if head is None else head.offset), explicit)


# -- wakes ------------------------------------------------------------------------------------------------------------


def looked(state: State, names: Iterable[str], sight: Sight) -> list[Event]:
    """Streams in `names` have gone on: take those in that the pattern means; a wake, if none is out and one is needed.

    A stream that is found by the pattern was not there when the subscription was made: all of it is pending (6.2).
    """
    found = {
        name: Link(START)
        for name in names
        if name not in state.links and name in sight.heads and state.terms.matches(name)
    }
    room = MOST_LINKS - len(state.links)
    events: list[Event] = [Linked(dict(list(found.items())[:room]))] if found and room > 0 else []
    return events + _woken_after(state, events, sight) if state.wake is None else events


def overdue(state: State, sight: Sight) -> list[Event]:
    """What the time brings: another attempt to tell of the wake, or, where its worker is silent, the next one (7.3)."""
    wake, due = state.wake, state.due()
    if wake is None or due is None or sight.now < due:
        return []
    announcing = state.terms.kind == "pull-wake" and wake.holder is None
    if state.retry_at is not None or announcing:
        return [Sent(sight.now + (ANNOUNCED_WITHIN_MS if announcing else state.terms.lease_ms))]
    return [Ended(), *_woken_after(state, [Ended()], sight)]


def delivered(state: State, sight: Sight, *, wake_id: str, done: bool) -> list[Event]:
    """The wake was told of; `done`: and the answer was that all of it is done (7.1)."""
    wake = state.wake
    if wake is None or wake.id != wake_id or wake.holder is not None:
        return []  # it is another's by now
    if done:
        offsets = {name: at for name, at in wake.tails.items() if name in state.links and at > state.links[name].acked}
        ending: list[Event] = [Acked(offsets, sight.now), Ended()]
        return ending + _woken_after(state, ending, sight)
    if state.terms.kind == "pull-wake":
        return [Delivered(None)]  # its lease begins when it is claimed (7.3)
    return [Delivered(wake.until)] if state.failures or state.retry_at is not None else []


def failed(state: State, sight: Sight, *, wake_id: str, chance: float) -> list[Event]:
    """The wake could not be told of: once more, later and later. `chance`, from 0 to 1, spreads the attempts."""
    if state.wake is None or state.wake.id != wake_id or state.wake.holder is not None:
        return []
    wait = min(SHORTEST_RETRY_MS * 2 ** min(state.failures, 16), LONGEST_RETRY_MS)
    return [Failed(sight.now + round(wait * (1 + RETRY_JITTER * (2 * chance - 1))))]


def claimed(state: State, worker: str, sight: Sight) -> list[Event]:
    """A worker takes the wake, or makes one where there is work and none is out (7.2)."""
    only_pull(state)
    wake = state.wake
    if wake is not None and wake.holder is not None and (wake.until is None or sight.now < wake.until):
        raise AlreadyClaimed("another worker has claimed this", current_holder=wake.holder, generation=state.generation)
    claim = Claimed(worker, sight.now + state.terms.lease_ms)
    if not work(state, sight):
        if wake is not None:
            return [Ended()]  # a stream was deleted meanwhile: nobody is to wait for this wake any more
        raise NoPendingWork("there is nothing to do")
    if wake is not None and wake.holder is None:
        return [claim]
    return [*_woken_after(state, [Ended()], sight), claim]


def acked(state: State, proof: Proof, offsets: Mapping[str, str], sight: Sight, *, done: bool) -> list[Event]:
    """A worker lives, has worked up to these offsets, and maybe ends its wake (7.1, 7.2).

    A lease is ended by an event, not by the clock: until somebody has appended that event, its worker may go on.
    """
    _hold(state, proof)
    checked = {name: _ackable(state.links.get(name), sight.heads.get(name), at) for name, at in offsets.items()}
    events: list[Event] = [Acked(checked, sight.now + state.terms.lease_ms)]
    if not done:
        return events
    events.append(Ended())
    return events + _woken_after(state, events, sight)


def released(state: State, proof: Proof, sight: Sight) -> list[Event]:
    """A worker gives its wake back (7.2)."""
    _hold(state, proof)
    return [Ended(), *_woken_after(state, [Ended()], sight)]


def only_pull(state: State) -> None:
    """Raises InvalidRequest where the subscription is no pull-wake one."""
    if state.terms.kind != "pull-wake":
        raise InvalidRequest("this is a webhook subscription; its workers answer by callback")


def _hold(state: State, proof: Proof) -> None:
    """Raises Fenced unless the worker acts on the wake that there is (7.3)."""
    current = state.wake is not None and state.wake.id == proof.wake_id
    if not current or not state.generation == proof.generation == proof.token_generation:
        raise Fenced("this wake is over: it was done with, or its lease ran out and another was made")


def _ackable(link: Link | None, head: Head | None, given: str) -> str:
    """The offset to keep for an ack (7.1)."""
    if link is None or head is None:
        raise InvalidOffset("this subscription has no such stream")
    offset = Offset.parse(given)
    if offset is None or given == START:
        raise InvalidOffset("an ack names an offset that the server gave")
    if offset.generation != head.generation:
        try:
            offset = resolve(head, offset)  # that of a stream this one was forked off from
        except (BadOffset, OffsetGone) as error:
            raise InvalidOffset(str(error)) from None
    if offset > head.offset:
        raise InvalidOffset("this offset lies beyond the end of the stream")
    if link.acked not in UNREAD and str(offset) < link.acked:
        raise InvalidOffset("an ack does not go back")
    return str(offset)


def _woken_after(state: State, events: Iterable[Event], sight: Sight) -> list[Event]:
    """What follows `events`: streams that are gone leave; a wake, if there is work."""
    after = msgspec.structs.replace(state)
    for event in events:
        after = apply(after, event)
    gone = [name for name, link in after.links.items() if name not in sight.heads and not link.awaited]
    if gone:
        after = apply(after, Unlinked(gone))
    leaving: list[Event] = [Unlinked(gone)] if gone else []
    waiting = work(after, sight)
    if not waiting:
        return leaving
    tails = {name: str(sight.heads[name].offset) for name in waiting}
    lease = ANNOUNCED_WITHIN_MS if state.terms.kind == "pull-wake" else state.terms.lease_ms
    wake = Wake(sight.wake_id, tails, waiting[0], sight.now + lease)
    return [*leaving, Woken(state.generation + 1, wake)]
