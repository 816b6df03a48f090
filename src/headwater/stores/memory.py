"""The store in memory: what the contract means, in plain Python. Everything is gone with the process.

Knows the contract, nothing of its callers. Invariant: a commit happens within one turn of the loop and is told of at
once, so nobody ever sees half of it (G2) or sees it too early (G4).
"""

from __future__ import annotations

import asyncio
import functools
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from headwater.errors import HeadwaterError, OffsetGone, StoreUnavailable, StreamNotFound, VersionConflict
from headwater.model import Absent, Head, Message, Offset
from headwater.store import Store


@dataclass(slots=True)
class _Stream:
    head: Head
    base: int
    """Position before the first of `messages`."""
    messages: list[Message] = field(default_factory=list)
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
        self._generation = 0  # above that of every stream ever deleted (G1)
        self._open = False

    def __repr__(self) -> str:
        return f"<MemoryStore [{len(self._streams)} streams]>"

    async def open(self) -> None:
        """What an earlier opening of this object left is still there."""
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
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        try:
            self._check_open()
            change()
        except HeadwaterError as error:
            future.set_exception(error)
        else:
            future.set_result(None)
        return future

    def _commit(self, name: str, expected: Head | Absent, head: Head, messages: Sequence[Message]) -> None:
        held = self._held(name)
        if not _matches(held, expected, head):
            raise VersionConflict("the stream has changed")
        stream = self._streams.get(name)
        if stream is None:
            self._names.insert(bisect_left(self._names, name), name)
        if stream is None or stream.head.generation != head.generation:
            stream = self._streams[name] = _Stream(head, head.first)
        stream.messages.extend(messages)
        del stream.messages[: head.first - stream.base]
        stream.head, stream.base = head, head.first

    def _delete(self, name: str, expected: Head) -> None:
        held = self._held(name)
        if isinstance(held, Absent) or not _matches(held, expected, held):
            raise VersionConflict("the stream has changed")
        del self._streams[name]
        del self._names[bisect_left(self._names, name)]
        self._generation = max(self._generation, held.generation + 1)

    async def read(self, name: str, start: Offset, *, max_bytes: int) -> list[Message]:
        self._check_open()
        stream = self._streams.get(name)
        if stream is None:
            raise StreamNotFound("no such stream")
        if start.generation != stream.head.generation or start.position < stream.base:
            raise OffsetGone("this offset can no longer be served")
        first = start.position - stream.base
        return fitting(stream.messages[first : first + 4096], max_bytes)

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
        heads = ((name, stream.seen()) for name, stream in self._streams.items())
        over = (pair for pair in heads if pair[1].expired(now) or (pair[1].look or now + 1) <= now)
        return [pair for pair, _ in zip(over, range(limit), strict=False)]

    async def owned(self) -> Sequence[tuple[str, Head]]:
        self._check_open()
        return [(name, stream.seen()) for name, stream in self._streams.items() if stream.head.owner is not None]

    def statistics(self) -> dict[str, int]:
        return {"streams": len(self._streams), "messages": sum(len(s.messages) for s in self._streams.values())}

    def _check_open(self) -> None:
        if not self._open:
            raise StoreUnavailable("the store is not open")

    def _held(self, name: str) -> Head | Absent:
        stream = self._streams.get(name)
        return stream.seen() if stream else Absent(self._generation)


def fitting(messages: list[Message], max_bytes: int) -> list[Message]:
    """The first of `messages` that together stay within `max_bytes`; the first one always."""
    size = 0
    for count, message in enumerate(messages):
        size += len(message.data)
        if size > max_bytes and count:
            return messages[:count]
    return messages


def _matches(held: Head | Absent, expected: Head | Absent, head: Head) -> bool:
    if isinstance(held, Absent):
        return isinstance(expected, Absent) and head.generation >= held.generation
    return held.version == expected.version and held.generation == expected.generation
