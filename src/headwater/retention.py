"""Retention: how much of a stream is kept, and trimming away what is over.

A stream is kept as it was created (`Config.retention`), else by the first rule that matches its name. Appends only
note in the head when the stream should be looked at; the sweeper trims, from the front, by a small commit of its own,
and the store frees the space in slices: no append ever waits for it. Readers behind the new start learn so (G5).

What is kept is at least what was asked for, and for a while more: up to an eighth, or, of age, what comes between two
sweeps. So each trim is worth its commit. A stream whose messages forks need is not trimmed.

Knows commits and forks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Final

import msgspec

from headwater.commits import Commits
from headwater.decide import Decision, Trim
from headwater.errors import BadRequest, OffsetGone, StreamNotFound
from headwater.forks import Forks
from headwater.lineage import read_messages
from headwater.model import Head, Message, Offset, Retention

Rules = Sequence[tuple[str, Retention]]
"""Shell patterns of stream names, and what is kept of such streams; the first that matches counts."""

PAGE_BYTES: Final = 1024 * 1024
"""Looked at in one step of a trim."""

PAGES: Final = 16
"""Steps of one trim; what is left then is left for the next, so that other streams have their turn."""

PINNED_MS: Final = 60_000
"""Until a stream that could not be trimmed for its forks is looked at again."""


class Keeping:
    """What is kept of the streams of one store."""

    def __init__(self, commits: Commits, forks: Forks, rules: Rules = ()) -> None:
        self._commits, self._forks = commits, forks
        self.rules = tuple((pattern, checked(kept)) for pattern, kept in rules)

    def __repr__(self) -> str:
        return f"<Keeping by {len(self.rules)} rules>"

    def of(self, name: str, head: Head) -> Retention | None:
        """What is kept of a stream; None: everything."""
        if head.config.retention is not None:
            return head.config.retention
        if name.startswith("headwater/"):
            return None
        return next((kept for pattern, kept in self.rules if fnmatchcase(name, pattern)), None)

    def noted(self, name: str, decision: Decision) -> Head:
        """The head that was decided on, with a note of when the stream is to be looked at."""
        head = decision.head
        forked = decision.what == "created" and head.fork is not None
        kept = self.of(name, head) if decision.messages or forked or decision.what == "trimmed" else None
        if kept is None or head.start >= head.tail:
            return head
        look = head.look
        if forked or _over(head.tail - head.start, kept.messages) or _over(head.size - head.trimmed, kept.bytes):
            look = head.appended  # what a fork inherits may be old already
        elif look is None and kept.seconds is not None:
            look = head.appended + kept.seconds * 1000  # after a trim: of what is left, all came meanwhile
        return head if look == head.look else msgspec.structs.replace(head, look=look)

    async def trim(self, name: str, head: Head) -> bool:
        """Trim what is over, as much as is done at a time; False: nothing changed."""
        try:
            trim = await self._found(name, head)
            if (trim.start, trim.look) == (head.start, head.look):
                return False
            return (await self._commits.carry_out(name, trim)).changes
        except (StreamNotFound, OffsetGone):
            return False  # somebody else has trimmed it meanwhile, or it is gone, and with it what was over

    async def _found(self, name: str, head: Head) -> Trim:
        kept, now = self.of(name, head), self._commits.clock()
        if kept is not None and head.forked and await self._forks.needed(name, head) is not None:
            return Trim(head, head.start, 0, now + PINNED_MS)
        return Trim(head, head.start, 0, None) if kept is None else await self._front(name, head, kept, now)

    async def _front(self, name: str, head: Head, kept: Retention, now: int) -> Trim:
        """How far the stream can be trimmed, and when to look next."""
        position, size = head.start, 0
        own = head.first
        for page in range(PAGES):
            if position >= head.tail:
                return Trim(head, position, size, None)
            start, most = Offset(head.generation, position), PAGE_BYTES if page else 1  # often the first one stays
            for message in await read_messages(self._commits.store, name, head, start, max_bytes=most):
                if not _goes(message, head, position, size, kept, now):
                    look = None if kept.seconds is None else message.time + kept.seconds * 1000
                    return Trim(head, position, size, look)
                position += 1
                size += len(message.data) if position > own else 0
            await asyncio.sleep(0)  # a store in memory never waits: the others have their turn
        return Trim(head, position, size, now)

    async def survey(self) -> None:
        """Look at all streams that rules are for: they may be older than the rule. Appends note only what is new."""
        for pattern, _ in self.rules:
            prefix, after = _literal(pattern), None
            while found := await self._commits.store.list(prefix, after=after, limit=100, newest=False):
                for name, head in found:
                    if head.start < head.tail and self.of(name, head) is not None:
                        await self.trim(name, head)
                after = found[-1][0]
                await asyncio.sleep(0)


def checked(kept: Retention) -> Retention:
    """`kept`, if its bounds are any. Raises BadRequest."""
    if any(bound is not None and bound < 1 for bound in (kept.seconds, kept.bytes, kept.messages)):
        raise BadRequest("a retention keeps at least 1 second, 1 byte or 1 message; leave out what has no bound")
    return kept


def _over(has: int, most: int | None) -> bool:
    return most is not None and has > most + most // 8


def _goes(message: Message, head: Head, position: int, trimmed: int, kept: Retention, now: int) -> bool:
    """Whether the message at `position` is over, `trimmed` bytes before it being gone."""
    if kept.seconds is not None and message.time + kept.seconds * 1000 <= now:
        return True
    if kept.messages is not None and head.tail - position > kept.messages:
        return True
    left = head.size - head.trimmed - trimmed
    return kept.bytes is not None and left > kept.bytes and position < head.tail - 1


def _literal(pattern: str) -> str:
    """What every name that a shell pattern matches begins with."""
    wild = [pattern.index(sign) for sign in "*?[" if sign in pattern]
    return pattern[: min(wild)] if wild else pattern
