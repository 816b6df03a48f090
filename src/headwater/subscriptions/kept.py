"""One subscription as this process knows it: loaded from its stream, kept up to date, changed by compare-and-append.

The stream is the truth, this is a fold of it that may be a moment old. A change is decided on the fold, and appended
only if the stream still ends where the fold does; else what is new is folded first, and it is decided again. So of
several processes that would make the same wake, or take the same claim, one does.

Every so many events a snapshot is appended and what is before it trimmed away: loading stays short.

Knows streams, and the decisions; nothing of deliveries or timers.
"""

from __future__ import annotations

import asyncio
import os.path
import secrets
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing, suppress
from typing import Final, NamedTuple

from headwater.decide import Append, Create, Decision, Item, Trim
from headwater.errors import (
    HeadwaterError,
    OffsetGone,
    OffsetMismatch,
    StoreUnavailable,
    StreamExists,
    StreamNotFound,
)
from headwater.model import Config, Head, Message, Offset, Retention
from headwater.streams import Streams
from headwater.subscriptions.decisions import Sight
from headwater.subscriptions.refusals import SubscriptionExists, SubscriptionNotFound
from headwater.subscriptions.state import Event, Linked, Snapshot, State, Unlinked, apply, decode, encode

PLACE: Final = "headwater/subscriptions/"
"""Before the id, in the name of a subscription's stream."""

SNAPSHOT_EVERY: Final = 200
"""Events; reading so many takes a store one page."""

SNAPSHOT_BYTES: Final = 256 * 1024
"""Of all events: another reason for a snapshot, unless the last one is large itself."""

MOST_TRIES: Final = 100
"""Decisions tried on one change: each that fails means that another process has changed the subscription."""

AT_ONCE: Final = 64
"""Heads asked for together."""

LISTED: Final = 1000
"""Streams in one list."""

Decide = Callable[[State, Sight], list[Event]]
Wanted = Callable[[State, int], Iterable[str]]
"""Of which streams a decision on this state, at this time (ms), needs the heads."""


class Change(NamedTuple):
    """What was appended, and what it was decided on."""

    events: list[Event]
    sight: Sight


def linked(state: State, _: int) -> Iterable[str]:
    """All streams of a subscription."""
    return state.links


def nothing(_: State, __: int) -> Iterable[str]:
    return ()


class Kept:
    """The fold of one subscription's stream."""

    def __init__(self, streams: Streams, id_: str) -> None:
        """Use `load` or `make`."""
        self.id, self._streams, self._name = id_, streams, PLACE + id_
        self.at = Offset(0, 0)
        """Up to where the stream is folded."""
        self.gone = False
        """It was deleted."""
        self.on_fold: Callable[[], None] = lambda: None
        """Called when something was folded."""
        self.links_changed = 0
        """Counts changes of which streams are linked."""
        self._state: State | None = None
        self._turn = asyncio.Lock()
        self._since_snapshot = 0
        self._bytes = 0  # of the messages from the last snapshot on
        self._snapshot_bytes = 0

    def __repr__(self) -> str:
        state = self._state
        if state is None:
            return f"<Kept {self.id!r} [not loaded]>"
        wake = "idle" if state.wake is None else f"awake, generation {state.generation}"
        return f"<Kept {self.id!r} [{state.terms.kind}, {len(state.links)} streams, {wake}]>"

    @property
    def state(self) -> State:
        assert self._state is not None, "loaded first"
        return self._state

    @classmethod
    async def load(cls, streams: Streams, id_: str) -> Kept:
        """The subscription as its stream says. Raises SubscriptionNotFound."""
        kept = cls(streams, id_)
        await kept.catch_up()
        return kept

    @classmethod
    async def make(cls, streams: Streams, state: State) -> Kept:
        """A new subscription. Raises SubscriptionExists where the id is taken."""
        kept = cls(streams, state.id)
        first = Create(Config("application/json", retention=Retention()), [Item(encode(Snapshot(state)))])
        try:
            decision = await streams.carry_out(kept._name, first)
        except StreamExists:
            decision = None
        if decision is None or decision.what != "created":
            raise SubscriptionExists("a subscription of this id exists already, with other terms")
        kept.fold(decision.messages)
        return kept

    async def delete(self) -> None:
        """Nobody can act on it any more: its tokens, too, are worth nothing."""
        with suppress(StreamNotFound):
            await self._streams.delete(self._name)
        self.gone = True

    # -- reading ----------------------------------------------------------------------------------------------------

    def fold(self, messages: Sequence[Message]) -> None:
        """Take in what is new of these messages; they follow on what is known, or begin with a snapshot."""
        folded = False
        for message in messages:
            if self._state is None or message.offset > self.at:
                self._fold(message)
                folded = True
        if folded:
            self.on_fold()

    def _fold(self, message: Message) -> None:
        event = decode(message.data)
        if isinstance(event, Snapshot):
            self._since_snapshot, self._bytes, self._snapshot_bytes = 0, 0, len(message.data)
        if isinstance(event, Snapshot | Linked | Unlinked):
            self.links_changed += 1
        self._state = event.state if isinstance(event, Snapshot) else apply(self.state, event)
        self.at = message.offset
        self._since_snapshot += 1
        self._bytes += len(message.data)

    async def catch_up(self) -> None:
        """Fold all that has been committed by now. Raises SubscriptionNotFound."""
        try:
            while await self._caught_up():
                pass
        except StreamNotFound:
            self.gone = True
            raise SubscriptionNotFound("there is no such subscription") from None

    async def _caught_up(self) -> bool:
        """Fold one page; whether there may be more."""
        try:
            page = await self._streams.read(self._name, None if self._state is None else self.at)
        except OffsetGone:  # trimmed away up to a newer snapshot, or made anew: either way a snapshot is first
            page = await self._streams.read(self._name)
        self.fold(page.messages)
        return not page.up_to_date

    async def follow(self) -> None:
        """Keep up to date until the subscription is deleted. Raises SubscriptionNotFound then, StoreUnavailable."""
        while True:
            await self.catch_up()
            with suppress(OffsetGone, StreamNotFound):  # what is behind those, catching up finds out
                async with aclosing(self._streams.follow(self._name, self.at)) as pages:
                    async for page in pages:
                        self.fold(page.messages)

    async def heads(self, names: Iterable[str]) -> dict[str, Head]:
        """Of those of the streams that exist."""
        wanted = sorted(set(names))
        found = await self._listed(wanted) if len(wanted) > AT_ONCE else {}
        # What a list has not is asked for by name: it may lie beyond, or live on by a read of a moment ago.
        rest = [name for name in wanted if name not in found]
        for first in range(0, len(rest), AT_ONCE):
            some = rest[first : first + AT_ONCE]
            heads = await asyncio.gather(*(self._head(name) for name in some))
            found |= {name: head for name, head in zip(some, heads, strict=True) if head is not None}
        return found

    async def _listed(self, wanted: Sequence[str]) -> dict[str, Head]:
        """Those of `wanted`, which is sorted, that lists show, a thousand at a time: they mostly lie close together."""
        prefix = os.path.commonprefix([wanted[0], wanted[-1]])  # noqa: RUF071 -- characters are meant
        among, found = set(wanted), dict[str, Head]()
        after: str | None = None
        for _ in range(2 + 2 * len(wanted) // LISTED):
            page = await self._streams.list(prefix, after=after, limit=LISTED)
            found |= {name: head for name, head in page if name in among}
            if len(page) < LISTED or page[-1][0] >= wanted[-1]:
                break
            after = page[-1][0]
        return found

    async def _head(self, name: str) -> Head | None:
        try:
            return await self._streams.head(name)
        except StreamNotFound:
            return None

    # -- changing ---------------------------------------------------------------------------------------------------

    async def change(self, decide: Decide, wanted: Wanted = linked) -> Change:
        """Append what `decide` makes of the state and the heads of the `wanted` streams, if it makes anything of them.

        Raises what `decide` raises, made on the newest state there is; SubscriptionNotFound; StoreUnavailable.
        """
        async with self._turn:
            for _ in range(MOST_TRIES):
                await self.catch_up()
                at, now = self.at, self._streams.clock()
                heads = await self.heads(wanted(self.state, now))
                if at != self.at:
                    continue  # what was wanted may be another by now
                sight = Sight(heads, now, f"w_{secrets.token_hex(12)}")
                events = decide(self.state, sight)
                try:
                    if events:
                        await self._append(events, at)
                except OffsetMismatch:
                    continue
                return Change(events, sight)
        raise StoreUnavailable("this subscription is changed by too many at a time; try again")

    async def _append(self, events: Sequence[Event], at: Offset) -> None:
        decision = await self._carry_out([Item(encode(event)) for event in events], at)
        self.fold(decision.messages)
        if self._since_snapshot > SNAPSHOT_EVERY or self._bytes > 4 * max(self._snapshot_bytes, SNAPSHOT_BYTES):
            with suppress(HeadwaterError):  # the next change does it: the events themselves are in
                await self._shorten()

    async def _shorten(self) -> None:
        """Append a snapshot and trim away what is before it."""
        before = self._bytes
        decision = await self._carry_out([Item(encode(Snapshot(self.state)))], self.at)
        self.fold(decision.messages)
        head = decision.head
        await self._streams.carry_out(self._name, Trim(head, head.tail - 1, before, None))

    async def _carry_out(self, items: list[Item], at: Offset) -> Decision:
        try:
            return await self._streams.carry_out(self._name, Append(items, expected=at))
        except StreamNotFound:
            self.gone = True
            raise SubscriptionNotFound("there is no such subscription") from None
