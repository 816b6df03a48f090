"""The store in memory: what the contract means, in plain Python. Everything is gone with the process.

Knows the contract, nothing of its callers. Invariant: a commit happens within one turn of the loop and is told of at
once, so nobody ever sees half of it (G2) or sees it too early (G4).
"""

from __future__ import annotations

import asyncio
import functools
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Final

import msgspec

from headwater.errors import HeadwaterError, OffsetGone, StoreUnavailable, StreamNotFound, VersionConflict
from headwater.model import Absent, Head, Message, Offset
from headwater.store import Store
from headwater.stores.agenda import Agenda
from headwater.stores.memory_log import Log, Segment

SLICE: Final = 4
"""Segments let go of in one turn of the loop: a million messages at once would take a tenth of a second."""


@dataclass(slots=True)
class _Stream:
    head: Head
    log: Log
    touched: int = 0

    def seen(self) -> Head:
        if self.touched > self.head.touched:
            self.head = msgspec.structs.replace(self.head, touched=self.touched)
        return self.head


class MemoryStore(Store):
    """`memory:`. For tests, demos, and streams that may be lost."""

    durable = False

    def __init__(self) -> None:
        self._streams: dict[str, _Stream] = {}
        self._names: list[str] = []  # sorted, for listing
        self._owned: dict[str, dict[str, None]] = {}  # by owner
        self._agenda = Agenda(self._due_at)
        self._messages = 0
        self._garbage: list[list[Segment]] = []
        self._generation = 0  # above that of every stream ever deleted (G1)
        self._open = False
        self._done: asyncio.Future[None]
        """What every commit gives that was made."""

    def __repr__(self) -> str:
        return f"<MemoryStore [{len(self._streams)} streams]>"

    async def open(self) -> None:
        """What an earlier opening of this object left is still there."""
        self._done = asyncio.get_running_loop().create_future()
        self._done.set_result(None)
        self._garbage.clear()  # on whatever loop it was
        self._open = True

    async def aclose(self) -> None:
        self._open = False

    async def load(self, name: str) -> Head | Absent:
        self._check_open()
        return self._held(name)

    def commit(self, name: str, expected: Head | Absent, head: Head, messages: Sequence[Message]) -> Awaitable[None]:
        return self._submit(functools.partial(self._commit, name, expected, head, messages))

    def delete(self, name: str, expected: Head) -> Awaitable[None]:
        return self._submit(functools.partial(self._delete, name, expected))

    def _submit(self, change: Callable[[], None]) -> asyncio.Future[None]:
        # Here and now: whoever wants others to run between two of them has to see to that.
        try:
            self._check_open()
            change()
        except HeadwaterError as error:
            failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            failed.set_exception(error)
            return failed
        return self._done

    def _commit(self, name: str, expected: Head | Absent, head: Head, messages: Sequence[Message]) -> None:
        held = self._held(name)
        if not _matches(held, expected, head):
            raise VersionConflict("the stream has changed")
        stream = self._streams.get(name)
        if stream is None:
            self._names.insert(bisect_left(self._names, name), name)
        self._own(name, held, head)
        if stream is None or stream.head.generation != head.generation:
            self._drop(stream)
            stream = self._streams[name] = _Stream(head, Log(head.first))
        stream.head = head
        stream.log.extend(messages)
        self._messages += len(messages)
        if stream.log.base < head.first:
            self._drop(stream, head.first)
        self._agenda.note(name)

    def _delete(self, name: str, expected: Head) -> None:
        held = self._held(name)
        if isinstance(held, Absent) or not _matches(held, expected, held):
            raise VersionConflict("the stream has changed")
        self._drop(self._streams.pop(name))
        del self._names[bisect_left(self._names, name)]
        self._own(name, held, Absent(0))
        self._agenda.note(name)
        self._generation = max(self._generation, held.generation + 1)

    async def read(self, name: str, start: Offset, *, max_bytes: int) -> list[Message]:
        self._check_open()
        stream = self._streams.get(name)
        if stream is None:
            raise StreamNotFound("no such stream")
        if start.generation != stream.head.generation or start.position < stream.log.base:
            raise OffsetGone("this offset can no longer be served")
        return stream.log.read(start, max_bytes)

    def _drop(self, stream: _Stream | None, until: int | None = None) -> None:
        """Let go of a stream's messages, up to this position, a slice at a time."""
        if stream is None or not len(stream.log):
            return
        held = len(stream.log)
        dropped = stream.log.trim(stream.log.base + held if until is None else until)
        self._messages -= held - len(stream.log)
        if len(dropped) > SLICE:
            self._garbage.append(dropped)
            if len(self._garbage) == 1:
                asyncio.get_running_loop().call_soon(self._let_go)

    def _let_go(self) -> None:
        if not self._garbage:  # opened once more since
            return
        del self._garbage[-1][-SLICE:]
        if not self._garbage[-1]:
            self._garbage.pop()
        if self._garbage:
            asyncio.get_running_loop().call_soon(self._let_go)

    async def list(self, prefix: str, *, after: str | None, limit: int, newest: bool) -> Sequence[tuple[str, Head]]:
        self._check_open()
        first, last = bisect_left(self._names, prefix), bisect_left(self._names, prefix + "\U0010ffff")
        if newest:
            last = last if after is None else min(last, bisect_left(self._names, after))
            names = self._names[max(first, last - limit) : last][::-1]
        else:
            first = first if after is None else max(first, bisect_right(self._names, after))
            names = self._names[first : min(last, first + limit)]
        return [(name, self._streams[name].seen()) for name in names]

    def touch(self, name: str, generation: int, now: int) -> None:
        stream = self._streams.get(name)
        if stream is not None and stream.head.generation == generation:
            stream.touched = max(stream.touched, now)

    async def due(self, now: int, *, limit: int) -> Sequence[tuple[str, Head]]:
        self._check_open()
        return [(name, self._streams[name].seen()) for name in islice(self._agenda.due(now), limit)]

    def _due_at(self, name: str) -> int | None:
        stream = self._streams.get(name)
        head = stream and stream.seen()
        return min((at for at in (head.expiry(), head.look) if at is not None), default=None) if head else None

    async def owners(self) -> Sequence[str]:
        self._check_open()
        return list(self._owned)

    async def owned(self, owner: str) -> Sequence[str]:
        self._check_open()
        return list(self._owned.get(owner, ()))

    def _own(self, name: str, before: Head | Absent, after: Head | Absent) -> None:
        was = before.owner if isinstance(before, Head) else None
        now = after.owner if isinstance(after, Head) else None
        if was == now:
            return
        if was is not None:
            del self._owned[was][name]
            if not self._owned[was]:
                del self._owned[was]
        if now is not None:
            self._owned.setdefault(now, {})[name] = None

    def statistics(self) -> dict[str, int]:
        return {"streams": len(self._streams), "messages": self._messages}

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is not open")

    def _held(self, name: str) -> Head | Absent:
        stream = self._streams.get(name)
        return stream.seen() if stream else Absent(self._generation)


def _matches(held: Head | Absent, expected: Head | Absent, head: Head) -> bool:
    if isinstance(held, Absent):
        return isinstance(expected, Absent) and head.generation >= held.generation
    return held.version == expected.version and held.generation == expected.generation
