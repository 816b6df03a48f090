"""The contract of a store: compare and append.

A store keeps, per stream name, a head and its messages. It decides nothing: `headwater.decide` made the new head, the
store writes it and its messages if, and only if, the head it holds is still the one the decision was made on. What a
store must keep of the guarantees:

- G1  `Absent.generation`, which load() gives for a free name, is above that of every stream ever deleted under it.
- G2  commit() is all or nothing.
- G3  after commit()'s future is done, every load() and read() anywhere sees it.
- G4  before it is done, nobody sees it. With a durable store, done means that it survives.
- G5  read() raises for a generation that is gone or a position that was trimmed; it never skips.
- G6  a submitted commit is carried out whether or not anybody waits for its future.
- G7  `on_wake` may be called late, twice, or without need; a lost call costs delay, never data.

Kept by the layers above, on that ground:

- G8  closed is for ever, durable, and the last thing a reader sees; one whose maker died is gone on with or closed.
- G9  memory is bounded whatever readers do: per reader a fixed window, per stream a ring, never a queue that grows.
- G10 no byte of one stream, owner or tenant reaches another.

`headwater.testing.check_store` is this contract as a test suite. Knows the model and the errors; no I/O.
"""

from __future__ import annotations

import abc
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import repeat
from typing import ClassVar, Final

from headwater.model import Absent, Head, Message, Offset

MOST_MESSAGES: Final = 2048
"""In one page, however small they are: bounds the time for which a page holds the loop, to some milliseconds."""


def most_messages(max_bytes: int) -> int:
    """In a page of so many bytes: so that a small one is found quickly, however small the messages are."""
    return min(MOST_MESSAGES, 64 + max_bytes // 64)


def in_a_row(
    start: Offset, data: Iterable[bytes], times: Sequence[int], keys: Iterable[str | None] = repeat(None)
) -> list[Message]:
    """The messages that follow on `start`, of what a store keeps of each: as many as there are `times`."""
    positions = range(start.position + 1, start.position + 1 + len(times))
    # All of it in C: a page has thousands.
    offsets = map(tuple.__new__, repeat(Offset), zip(repeat(start.generation), positions, strict=False))
    return list(map(Message, data, offsets, times, keys))


class Store(abc.ABC):
    """Where streams live. One object serves one event loop; every method is called on that loop."""

    durable: ClassVar[bool]
    """Whether what was committed is still there after the process died."""

    on_wake: Callable[[str], None] | None = None
    """Set by the layer above: called on the loop with the name of a stream that another process may have changed."""

    @abc.abstractmethod
    async def open(self) -> None:
        """Make ready. Raises StoreFileUnusable or StoreUnavailable, saying what to do."""

    @abc.abstractmethod
    async def aclose(self) -> None:
        """Finish what was submitted, then let go of everything."""

    @abc.abstractmethod
    async def load(self, name: str) -> Head | Absent:
        """The head as last committed, `touched` being the latest known. An expired stream is still given."""

    @abc.abstractmethod
    def commit(self, name: str, expected: Head | Absent, head: Head, messages: Sequence[Message]) -> Awaitable[None]:
        """Write `head` and `messages` if the store still holds `expected`: the same generation and version, or, where
        that is Absent, no stream, and no generation of this name so far that is not below the head's.

        Submission is immediate and in order: of two commits of one stream, the first called is the first tried. The
        returned future raises VersionConflict where something else is there (nothing was written then), or
        StoreUnavailable. A head of another generation than `expected` replaces the stream, old messages and all; one
        whose `start` has moved on gives up the messages before it (their space may be freed later, in slices). That no
        two heads offered for a stream have the same version is for the caller to see to.
        Cancelling the wait changes nothing (G6).
        """

    @abc.abstractmethod
    def delete(self, name: str, expected: Head) -> Awaitable[None]:
        """Remove the stream if the store still holds `expected`, else VersionConflict. Durable like a commit."""

    @abc.abstractmethod
    async def read(self, name: str, start: Offset, *, max_bytes: int) -> list[Message]:
        """Messages after `start`, in order: as many as fit in `max_bytes` and in `most_messages`, but at least one
        where there is one. To cost what the page holds, however much is before and behind it.

        Raises StreamNotFound, or OffsetGone where `start` cannot be served from the generation that is there, or lies
        before `Head.first`: what a fork inherits is read under the name it was appended to. A stream that is `deleted`
        is still read, by its forks.
        """

    @abc.abstractmethod
    async def list(self, prefix: str, *, after: str | None, limit: int, newest: bool) -> Sequence[tuple[str, Head]]:
        """Streams by name: those with `prefix`, beyond `after` in the order asked for (`newest`: descending)."""

    @abc.abstractmethod
    def touch(self, name: str, generation: int, now: int) -> None:
        """Note a read at `now` (ms), for a sliding TTL. Never goes back; may become visible a moment later."""

    @abc.abstractmethod
    async def due(self, now: int, *, limit: int) -> Sequence[tuple[str, Head]]:
        """Some streams that the sweeper should see to at `now`: their expiry has come, or their `look`. To cost what
        is due, and not what there is."""

    @abc.abstractmethod
    async def owners(self) -> Sequence[str]:
        """Whoever owns an open stream, once each. Asked for every few seconds: to cost what owners there are, and not
        what they own."""

    @abc.abstractmethod
    async def owned(self, owner: str) -> Sequence[str]:
        """Names of the open streams that this one owns."""

    def watch(self, name: str, *, watched: bool) -> None:  # noqa: B027 -- a store without other processes needs none
        """Say that `on_wake` is wanted for this stream (or no longer)."""

    def statistics(self) -> dict[str, int]:
        """Figures of its own for a console or metrics."""
        return {}
