"""How the checks of the store contract write, and how they say what they want. Knows the contract and real heads."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

from headwater.decide import Append, Create, Item, Request, Trim, Withdraw, decide
from headwater.errors import HeadwaterError
from headwater.model import Absent, Config, Head, Offset
from headwater.store import Store

NOW: Final = 1_700_000_000_000
"""The time of all that the checks do, in ms, unless they say another."""

NOTHING: Final = Absent(0)
"""What an empty store says of a name."""

MOMENT_SECONDS: Final = 5.0
"""What may become visible a moment later gets this long before it counts as lost; a busy machine is no failure."""


class Writing:
    """One stream as its only writer sees it: each commit is made on the head that the one before will leave."""

    def __init__(self, store: Store, name: str, before: Head | Absent = NOTHING) -> None:
        self.store, self.name, self.before = store, name, before

    @property
    def head(self) -> Head:
        """As the last commit leaves it."""
        assert isinstance(self.before, Head)
        return self.before

    def commit(self, request: Request, now: int = NOW, *, generation: int = 0) -> Awaitable[None]:
        decision = decide(self.before, request, now, generation)
        future = self.store.commit(self.name, self.before, decision.head, decision.messages)
        self.before = decision.head
        return future

    def create(
        self, *data: bytes, now: int = NOW, owner: str | None = None, ttl: int | None = None, at: int | None = None
    ) -> Awaitable[None]:
        return self.commit(Create(Config(ttl=ttl, expires_at=at), items(data), owner=owner), now)

    def append(self, *data: bytes, now: int = NOW, close: bool = False) -> Awaitable[None]:
        return self.commit(Append(items(data), close=close, outcome="completed" if close else None), now)

    def trim(self, start: int, *, size: int = 0, look: int | None = None) -> Awaitable[None]:
        return self.commit(Trim(self.head, start, size, look))

    def withdraw(self, *, look: int = NOW) -> Awaitable[None]:
        return self.commit(Withdraw(self.head.generation, look))

    def delete(self) -> Awaitable[None]:
        return self.store.delete(self.name, self.head)

    async def held(self) -> Head:
        """The stored head."""
        head = await self.store.load(self.name)
        if isinstance(head, Absent):
            raise AssertionError(f"{self.name} is not there")
        return head

    async def data(self) -> list[bytes]:
        """All the messages that are kept under its name."""
        head = await self.held()
        start = Offset(head.generation, head.first)
        return [message.data for message in await self.store.read(self.name, start, max_bytes=1 << 30)]


def items(data: Iterable[bytes]) -> list[Item]:
    return [Item(one) for one in data]


def must(holds: bool, otherwise: str) -> None:
    if not holds:
        raise AssertionError(otherwise)


def same(got: object, wanted: object) -> None:
    must(got == wanted, f"got {got!r}, not {wanted!r}")


async def raises(kind: type[HeadwaterError], doing: Awaitable[Any]) -> None:
    try:
        result = await doing
    except kind:
        return
    except HeadwaterError as error:
        raise AssertionError(f"raised {type(error).__name__}, not {kind.__name__}") from error
    raise AssertionError(f"gave {result!r}, but should have raised {kind.__name__}")


async def eventually(holds: Callable[[], Awaitable[bool]], what: str) -> None:
    end = asyncio.get_running_loop().time() + MOMENT_SECONDS
    while not await holds():
        must(asyncio.get_running_loop().time() < end, f"{what} never became visible")
        await asyncio.sleep(0.001)
