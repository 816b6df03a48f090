"""Readers that wait without a task: on a wake of their stream, its fan writes to all of them.

Most wakes are the same for most readers: a message has come, and whoever has all before it gets the same bytes. So
those are made once, and written to each transport in a plain loop. Whatever else there is to do (catching up, an end,
an expiry, an error, a reader that is full) is for the reader's own loop: it goes on in a task, and may wait here again.

A slice of writing takes SLICE_SECONDS, then others have their turn; what comes meanwhile goes out with the next slice,
so that a stream that is busy costs each reader fewer and larger writes. Nothing is queued: a reader is a position.

Knows tails and the loop's clock; nothing of formats or connections.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Hashable, Iterator
from typing import Final, NamedTuple, Protocol

from headwater.hub import Tail
from headwater.model import BEGINNING, Offset

SLICE_SECONDS: Final = 0.002
"""A delay that nobody notices, in which hundreds of readers are written to."""

_LOOKED_AT_ONCE: Final = 32
"""Readers between two looks at the clock."""


class Frame(NamedTuple):
    """The bytes that lead some readers on to `end`."""

    data: bytes
    end: Offset
    since: int
    """When the first of their messages was appended, ms."""
    transport: str


class Frames:
    """What was made in one slice: by what a reader is and where it stands, the bytes, and where it stands then.

    The newest stands apart, to be compared by identity: in nearly every slice it is the same for all.
    """

    __slots__ = ("_made", "_times", "count", "data", "end", "key", "start")

    def __init__(self) -> None:
        self._made: dict[tuple[Hashable, Offset], Frame] = {}
        self._times: dict[tuple[Hashable, Offset], int] = {}
        self.count = 0
        """To how many readers the newest was written since it became that."""
        self.key: Hashable = None
        self.start = self.end = BEGINNING
        self.data = b""

    def find(self, key: Hashable, start: Offset) -> Frame | None:
        """What was made for readers of this `key` that stand there."""
        return self._made.get((key, start))

    def keep(self, key: Hashable, start: Offset, frame: Frame) -> None:
        self._note()
        self._made[key, start] = frame
        self.key, self.start, self.data, self.end = key, start, frame.data, frame.end

    def written(self) -> Iterator[tuple[Frame, int, int]]:
        """Each, the messages in it, and to how many readers it was written."""
        self._note()
        for (key, start), times in self._times.items():
            frame = self._made[key, start]
            yield frame, frame.end.position - start.position, times

    def _note(self) -> None:
        if self.count:
            self._times[self.key, self.start] = self._times.get((self.key, self.start), 0) + self.count
            self.count = 0


class Waiting(Protocol):
    """A reader that waits in a fan."""

    def pull(self, frames: Frames, now: float) -> None:
        """Take what is new. May leave the fan."""


class Fan:
    """Those of one tail. Called on the loop only."""

    def __init__(self, tail: Tail, wrote: Callable[[Frames], None]) -> None:
        self.tail = tail
        self._wrote = wrote
        self._readers: dict[Waiting, None] = {}
        self._left: list[Waiting] = []  # of the round that goes on
        self._wakes = 0
        self._again: list[Waiting] = []  # who must be looked at, wake or not
        self._handle: asyncio.Handle | None = None

    def __repr__(self) -> str:
        return f"<Fan of {self.tail!r} [{len(self._readers)} waiting]>"

    def __len__(self) -> int:
        return len(self._readers)

    def add(self, reader: Waiting) -> None:
        self._readers[reader] = None

    def discard(self, reader: Waiting) -> None:
        del self._readers[reader]

    def wake(self) -> None:
        """The tail may have grown."""
        if self._handle is None:
            self._handle = asyncio.get_running_loop().call_soon(self._slice)

    def look(self, reader: Waiting) -> None:
        """This one may have missed something."""
        self._again.append(reader)
        self.wake()

    def _slice(self) -> None:
        self._handle = None
        if not self._left:
            self._left, self._again = (
                [*self._again, *self._readers] if self._wakes != self.tail.wakes else self._again,
                [],
            )
            self._wakes = self.tail.wakes
        time = asyncio.get_running_loop().time
        now = time()
        until, frames = now + SLICE_SECONDS, Frames()
        left, waiting = self._left, self._readers
        while left and now < until:
            for reader in left[-_LOOKED_AT_ONCE:]:
                if reader in waiting:
                    reader.pull(frames, now)
            del left[-_LOOKED_AT_ONCE:]
            now = time()
        self._wrote(frames)
        if left or self._again or self._wakes != self.tail.wakes:
            self.wake()


class Fans:
    """All of one Delivery, by tail."""

    def __init__(self, wrote: Callable[[Frames], None]) -> None:
        """`wrote` is told what was written in each slice."""
        self._fans: dict[Tail, Fan] = {}
        self._wrote = wrote

    def __repr__(self) -> str:
        return f"<Fans [{len(self._fans)} tails]>"

    def join(self, tail: Tail, reader: Waiting) -> Fan:
        """Wait there. Whoever joins has looked after the tail's last wake, or calls `Fan.look`."""
        fan = self._fans.get(tail)
        if fan is None:
            fan = self._fans[tail] = Fan(tail, self._wrote)
            fan._wakes = tail.wakes
            tail.on_wake.append(fan.wake)
        fan.add(reader)
        return fan

    def leave(self, fan: Fan, reader: Waiting) -> None:
        fan.discard(reader)
        if not fan:
            fan.tail.on_wake.remove(fan.wake)
            del self._fans[fan.tail]
