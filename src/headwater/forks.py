"""Forks: making them, and keeping what they read for as long as they are there (Durable Streams 4.2).

A fork copies nothing: its first messages are read where they were appended (`headwater.lineage`). So a stream that was
forked is only withdrawn when it is deleted or expires: nobody reads it any more, but its forks, and its name stays
taken. When the last of them is gone it goes, too, and with it what it was forked off from itself.

What is needed is known by *claims*: small streams `headwater/forks/<source>/…`, each holding the name of a fork. One is
made before its fork, and removed after it, so that a crash at any moment leaves at most a claim too many. Each is
looked at once when it is no longer young, and those on a stream when it is withdrawn or to be trimmed: what stands for
no fork goes. The source's head is changed in between (`Hold`): whoever deletes the source at that moment either sees
the claim, or has the fork fail.

Knows commits. Cancellation: a fork that was begun is made, or leaves such a claim.
"""

from __future__ import annotations

import hashlib
import secrets
from contextlib import suppress
from typing import Final

import msgspec

from headwater.commits import MOST_CONFLICTS, Commits, checked_name
from headwater.decide import Create, Decision, ForkOf, Hold, Item, Trim, Withdraw, media_type
from headwater.errors import (
    BadRequest,
    Conflict,
    ContentTypeMismatch,
    HeadwaterError,
    OffsetGone,
    StoreError,
    StoreUnavailable,
    StreamNotFound,
    VersionConflict,
)
from headwater.formats.format import is_json
from headwater.lineage import read_messages
from headwater.model import Absent, Config, Fork, Head, Offset, Segment
from headwater.positions import resolve

CLAIMS: Final = "headwater/forks/"

DEEPEST: Final = 256
"""Forks of forks of forks …: each keeps in its head where all its messages stand."""

YOUNG_MS: Final = 60_000
"""A claim without a fork may be of one that is being made; later than this it is one that a crash left behind. The
clocks of processes on one store may differ by less."""

RECHECK_MS: Final = 3_600_000
"""Between two looks whether the forks of a withdrawn stream are still there. Usually the last one tells as it goes."""

CLAIMS_LOOKED_AT: Final = 100
"""In one look: the first that stands for a fork settles it; where none does, the next look is for the next ones."""


class Forks:
    """The family ties of one store's streams."""

    def __init__(self, commits: Commits) -> None:
        self._commits, self._store = commits, commits.store

    def __repr__(self) -> str:
        return f"<Forks in {self._store!r}>"

    async def create(self, name: str, request: Create) -> Decision:
        """Make a stream, the fork that `request.fork_of` asks for if so, or agree that it exists.

        Raises StreamNotFound (no source), Conflict (the source was deleted), ContentTypeMismatch, BadOffset,
        OffsetGone, BadRequest (sub-offset), StreamExists.
        """
        asked = request.fork_of
        if asked is None:
            return await self._placed(name, request)
        checked_name(asked.source)
        for _ in range(MOST_CONFLICTS):
            known = await self._commits.look(name)
            if isinstance(known, Head) and not known.expired(self._commits.clock()):
                with suppress(StreamNotFound):  # deleted meanwhile
                    return await self._commits.carry_out(name, request)
                continue
            with suppress(VersionConflict):  # another stream has taken the source's name meanwhile
                return await self._make(name, request, asked)
        raise StoreUnavailable("these streams change too often to be forked now; try again")

    async def delete(self, name: str) -> None:
        """Remove a stream, or withdraw it while forks need its messages. Raises StreamNotFound, StreamDeleted."""
        for _ in range(MOST_CONFLICTS):
            if await self.remove(name, await self._commits.head(name)):
                return
        raise StoreUnavailable("this stream changes too often to be deleted now; try again")

    async def remove(self, name: str, head: Head) -> bool:
        """The same for a stream that has this head, deleted or expired as it may be; False where it has another."""
        try:
            if head.forked and await self._claimed(name, head):
                soon = self._commits.clock() + YOUNG_MS
                head = (await self._commits.carry_out(name, Withdraw(head.generation, soon))).head
                if await self._claimed(name, head):
                    return True  # the last one to go takes this stream along
            await self._commits.remove(name, head)
        except (VersionConflict, StreamNotFound):
            return False
        await self._let_go(head)
        return True

    async def cleared(self, name: str) -> bool:
        """Whether a name was only taken by a stream that is over and that no fork needs any more; it is free then."""
        head = await self._commits.look(name)
        if isinstance(head, Absent):
            return True
        needed = not self._is_over(head) or await self._claimed(name, head)
        return not needed and await self.remove(name, head)

    async def recheck(self, name: str, head: Head) -> bool:
        """Look whether a withdrawn stream is still needed, and remove it if not. False: it has changed meanwhile."""
        look = await self.needed(name, head)
        if look is None:
            return await self.remove(name, head)
        with suppress(StreamNotFound):
            await self._commits.carry_out(name, Withdraw(head.generation, look))
        return True

    async def needed(self, name: str, head: Head) -> int | None:
        """When to look again whether forks need this stream's messages, ms; None: none does."""
        now, look = self._commits.clock(), None
        claims = await self._claims(name, head, CLAIMS_LOOKED_AT)
        for claim, held in claims:
            if await self._stands(claim, held):
                return now + RECHECK_MS
            if now - held.created < YOUNG_MS:
                look = now + YOUNG_MS
            else:
                await self._drop(claim)
        return now if look is None and len(claims) == CLAIMS_LOOKED_AT else look  # the next ones may stand

    async def review(self, claim: str, held: Head) -> None:
        """Look at a claim that is no longer young: most stand for a fork, and will be dropped when that goes."""
        if not await self._stands(claim, held):
            await self._drop(claim)
            return
        with suppress(StreamNotFound):
            await self._commits.carry_out(claim, Trim(held, held.start, 0, None))

    # -- making -------------------------------------------------------------------------------------------------------

    async def _make(self, name: str, request: Create, asked: ForkOf) -> Decision:
        source = await self._commits.look(asked.source)
        if isinstance(source, Absent) or source.expired(self._commits.clock()):
            raise StreamNotFound("the stream to fork does not exist")
        if source.deleted is not None:
            raise Conflict("the stream to fork was deleted; fork one of its forks instead")
        config = _config(request.config, source.config)
        anchor = resolve(source, asked.offset if asked.offset is not None else source.offset)
        position, prefix = await self._branch(asked, source, anchor)
        claim = f"{_claims_on(asked.source, source)}{secrets.token_hex(8)}"
        items, old = [Item(msgspec.json.encode(name))], self._commits.clock() + YOUNG_MS
        await self._commits.carry_out(claim, Create(Config("application/json"), items, look=old))
        try:
            held = (await self._commits.carry_out(asked.source, Hold())).head
            if held.generation != source.generation:
                raise VersionConflict("the source has changed")
            if position < held.start:
                raise OffsetGone("what precedes this offset is no longer kept")
            fork = Fork(
                asked.source, anchor.position, asked.sub_offset, position, _lineage(asked.source, held, position), claim
            )
            items = [*prefix, *request.items]
            made = msgspec.structs.replace(request, config=config, items=items, fork=fork, start=held.start)
            decision = await self._placed(name, made)
        except StoreError:
            raise  # it may be there, or come to be there: the claim stays
        except HeadwaterError:
            await self._drop(claim)
            raise
        has = decision.head.fork
        if has is None or has.claim != claim:  # somebody else has made it
            await self._drop(claim)
        elif self._commits.clock() >= old:
            await self.delete(name)
            raise StoreUnavailable("making this fork took so long that its source may be gone; try again")
        return decision

    async def _placed(self, name: str, request: Create) -> Decision:
        decision = await self._commits.carry_out(name, request)
        if decision.replaced is not None:
            await self._let_go(decision.replaced)
        return decision

    async def _branch(self, asked: ForkOf, source: Head, anchor: Offset) -> tuple[int, list[Item]]:
        """Position up to which messages are inherited whole, and the part of one that comes after it, if any."""
        more = asked.sub_offset
        if more == 0:
            return anchor.position, []
        too_far = BadRequest("the sub-offset lies beyond what the stream to fork holds after the fork offset")
        if is_json(source.config.content_type):
            if anchor.position + more > source.tail:
                raise too_far
            return anchor.position + more, []
        if anchor.position >= source.tail:
            raise too_far
        first, *_ = await read_messages(self._store, asked.source, source, anchor, max_bytes=1)
        if more > len(first.data):
            raise too_far
        if more == len(first.data):
            return anchor.position + 1, []
        return anchor.position, [Item(first.data[:more], first.key)]

    # -- claims -------------------------------------------------------------------------------------------------------

    async def _claims(self, name: str, head: Head, limit: int) -> list[tuple[str, Head]]:
        return list(await self._store.list(_claims_on(name, head), after=None, limit=limit, newest=False))

    async def _claimed(self, name: str, head: Head) -> bool:
        return bool(await self._claims(name, head, 1))

    async def _stands(self, claim: str, held: Head) -> bool:
        """Whether the fork that this claim was made for is there, and not trimmed beyond all that it inherited."""
        try:
            (message,) = await self._store.read(claim, Offset(held.generation, 0), max_bytes=1)
        except StreamNotFound:
            return False
        head = await self._commits.look(msgspec.json.decode(message.data, type=str))
        if isinstance(head, Absent) or head.fork is None:
            return False
        return head.fork.claim == claim and head.start <= head.fork.position

    async def _drop(self, claim: str) -> None:
        with suppress(StreamNotFound):
            await self._commits.delete(claim)

    async def _let_go(self, head: Head) -> None:
        """A stream is gone: so is its claim, and whatever was kept for it alone."""
        while head.fork is not None:
            await self._drop(head.fork.claim)
            name, source = head.fork.source, await self._commits.look(head.fork.source)
            if isinstance(source, Absent) or not self._is_over(source) or await self._claimed(name, source):
                return
            try:
                await self._commits.remove(name, source)
            except VersionConflict:
                return  # the sweeper looks at it again
            head = source

    def _is_over(self, head: Head) -> bool:
        return head.deleted is not None or head.expired(self._commits.clock())


def _claims_on(name: str, head: Head) -> str:
    """Prefix of the names of all claims on a stream; hashed, for a name may be as long as a name can be."""
    return f"{CLAIMS}{hashlib.sha256(name.encode()).hexdigest()[:32]}/{head.generation:016d}/"


def _config(asked: Config, source: Config) -> Config:
    """What a fork is created with: what was asked for goes before what is inherited (4.2)."""
    if asked.content_type and media_type(asked.content_type) != media_type(source.content_type):
        raise ContentTypeMismatch(f"the stream to fork holds {source.content_type}, and so does its fork")
    own_expiry = asked.ttl is not None or asked.expires_at is not None
    return Config(
        asked.content_type or source.content_type,
        asked.ttl if own_expiry else source.ttl,
        asked.expires_at if own_expiry else source.expires_at,
        asked.retention or source.retention,
    )


def _lineage(name: str, source: Head, position: int) -> tuple[Segment, ...]:
    """Where the messages up to `position` of the stream `name` stand."""
    inherited = source.fork.lineage if source.fork else ()
    if len(inherited) >= DEEPEST:
        raise Conflict(f"a stream can be forked {DEEPEST} times in a row; copy it to go on")
    family = (*inherited, Segment(name, source.generation, position))
    return tuple(one._replace(until=min(one.until, position)) for one in family)
