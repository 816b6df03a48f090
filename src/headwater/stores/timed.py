"""A store as the layers above use it: every question to it is counted and timed, whatever store it is.

Knows the contract. Opens and closes nothing: whoever made the store does that. Commits are handed on as they are:
`Commits`, which waits for them in any case, counts those itself.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Sequence
from typing import TypeVar

from headwater.counts import Operations
from headwater.model import Absent, Head, Message, Offset
from headwater.store import Store

T = TypeVar("T")


class TimedStore(Store):
    """`store`, whose operations are counted in `operations`."""

    def __init__(self, store: Store, operations: Operations) -> None:
        self._store, self._operations = store, operations
        self.durable = store.durable  # type: ignore[misc]

    def __repr__(self) -> str:
        return repr(self._store)

    async def open(self) -> None:
        await self._store.open()

    async def aclose(self) -> None:
        await self._store.aclose()

    async def load(self, name: str) -> Head | Absent:
        return await self._timed("load", self._store.load(name))

    def commit(self, name: str, expected: Head | Absent, head: Head, messages: Sequence[Message]) -> Awaitable[None]:
        return self._store.commit(name, expected, head, messages)

    def delete(self, name: str, expected: Head) -> Awaitable[None]:
        return self._timed("delete", self._store.delete(name, expected))  # submitted now, as it is by any store

    async def read(self, name: str, start: Offset, *, max_bytes: int) -> list[Message]:
        return await self._timed("read", self._store.read(name, start, max_bytes=max_bytes))

    async def list(self, prefix: str, *, after: str | None, limit: int, newest: bool) -> Sequence[tuple[str, Head]]:
        return await self._timed("list", self._store.list(prefix, after=after, limit=limit, newest=newest))

    def touch(self, name: str, generation: int, now: int) -> None:
        self._store.touch(name, generation, now)

    async def due(self, now: int, *, limit: int) -> Sequence[tuple[str, Head]]:
        return await self._timed("due", self._store.due(now, limit=limit))

    async def owners(self) -> Sequence[str]:
        return await self._timed("owners", self._store.owners())

    async def owned(self, owner: str) -> Sequence[str]:
        return await self._timed("owned", self._store.owned(owner))

    def watch(self, name: str, *, watched: bool) -> None:
        self._store.watch(name, watched=watched)

    def statistics(self) -> dict[str, int]:
        return self._store.statistics()

    async def _timed(self, operation: str, asked: Awaitable[T]) -> T:
        began = time.perf_counter()
        try:
            return await asked
        except Exception as error:
            self._operations.failed(operation, error)
            raise
        finally:
            self._operations.done(operation, time.perf_counter() - began)
