"""Readers that wait without a task: on a wake of their stream, its fan writes to all of them.

Most wakes are the same for most readers: a message has come, and whoever has all before it gets the same bytes. So
those are made once, and written to each transport in a plain loop. Whatever else there is to do (catching up, an end,
an expiry, an error, a reader that is full) is for the reader's own loop: it goes on in a task, and may wait here again.

A slice of writing takes SLICE_SECONDS, then others have their turn; what comes meanwhile goes out with the next slice,
so that a stream that is busy costs each reader fewer and larger writes. Nothing is queued: a reader is a position.

Readers that hold back for a joining time (`headwater.joining`) have a fan of their own, by that time, and one timer
for all of them: each wake within it costs them a look at what has come, and nothing more.

Knows tails, cursors, lines and the loop's clock; nothing of formats.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Hashable, Iterator
from typing import Final, NamedTuple, Protocol

from headwater.cursor import Cursor
from headwater.hub import Tail
from headwater.joining import Joining
from headwater.model import BEGINNING, Offset
from headwater.outlet import Line

SLICE_SECONDS: Final = 0.002
"""A delay that nobody notices, in which hundreds of readers are written to."""

ALONE_SECONDS: Final = 0.001
"""A reader that is alone is written to within the wake, unless the last one was so little ago: then what comes in the
same turn of the loop goes out together."""

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

    def pull_alone(self, now: float) -> None:
        """The same, where nobody else will want what is made for it."""


class Seat:
    """A reader's place in a fan: all that the usual wake needs to know of it, in one small object."""

    __slots__ = ("cursor", "key", "line", "reader", "write", "written_at")

    line: Line
    write: Callable[[bytes], None]

    def __init__(self, cursor: Cursor, now: float) -> None:
        self.cursor, self.written_at = cursor, now
        self.reader: Waiting | None = None
        """None: nobody sits there now."""
        self.key: Hashable = None
        """Of the bytes that it takes without being asked; None: it is to be asked."""

    def sit(self, reader: Waiting, line: Line) -> None:
        """`reader` is going to wait, and to be written to on this line."""
        self.reader, self.line, self.write = reader, line, line.write

    def __repr__(self) -> str:
        return f"<Seat of {self.reader!r}>"


class Fan:
    """Those of one tail and one joining time. Called on the loop only."""

    def __init__(self, tail: Tail, joining: Joining | None, wrote: Callable[[Frames], None]) -> None:
        self.tail = tail
        self.joining = joining
        self._wrote = wrote
        self._seats: dict[Seat, None] = {}
        self._keys: dict[Hashable, Hashable] = {}
        self._left: list[Seat] = []  # of the round that goes on
        self._wakes = 0
        self._again: list[Seat] = []  # who must be looked at, wake or not
        self._loop = asyncio.get_running_loop()
        self._alone_at = -math.inf
        self._handle: asyncio.Handle | None = None
        self._held = False  # the handle is a timer's
        self._everybody = False  # the round is not only of those who must be looked at

    def __repr__(self) -> str:
        return f"<Fan of {self.tail!r} [{len(self._seats)} waiting]>"

    def __len__(self) -> int:
        return len(self._seats)

    def same(self, key: Hashable) -> Hashable:
        """The one object that stands for all keys here that equal `key`: so they are compared by identity."""
        return self._keys.setdefault(key, key)

    def add(self, seat: Seat) -> None:
        self._seats[seat] = None

    def discard(self, seat: Seat) -> None:
        seat.reader = None
        del self._seats[seat]

    def wake(self) -> None:
        """The tail may have grown."""
        if self.joining is not None:
            self._wake(self.joining)
        elif self._handle is None and not self._looked_alone():
            self._handle = self._loop.call_soon(self._slice)

    def _looked_alone(self) -> bool:
        """The only reader has been looked after here and now: usual for an agent's answer, and half of the work."""
        now = self._loop.time()
        if len(self._seats) > 1 or self._left or self._again or now < self._alone_at + ALONE_SECONDS:
            return False
        self._alone_at, self._wakes = now, self.tail.wakes
        for seat in self._seats:
            try:
                assert seat.reader is not None
                seat.reader.pull_alone(now)
            except Exception as error:  # noqa: BLE001 -- as of any callback of the loop; who appends is not to blame
                self._loop.call_exception_handler({"message": "a reader failed", "exception": error})
            break
        return True

    def _wake(self, joining: Joining) -> None:
        loop = self._loop
        holds = not self._left and not self._again and joining.holds(self.tail, loop.time())
        if self._handle is not None:
            if holds or not self._held:
                return
            self._handle.cancel()
        self._held = holds
        self._handle = loop.call_at(joining.until, self._slice) if holds else loop.call_soon(self._slice)

    def close(self) -> None:
        """Nobody waits here any more."""
        del self.tail.on_wake[self.wake]
        if self._held and self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def look(self, seat: Seat) -> None:
        """This one may have missed something."""
        self._again.append(seat)
        self.wake()

    def _slice(self) -> None:
        self._handle = None
        time, joining = self._loop.time, self.joining
        now = begun = time()
        if not self._left:
            self._left, self._again = self._again, []
            self._everybody = self._wakes != self.tail.wakes and not (joining and joining.holds(self.tail, now))
            if self._everybody:
                self._left += self._seats
                self._wakes = self.tail.wakes
        until, frames, left = now + SLICE_SECONDS, Frames(), self._left
        while left and now < until:
            _write(left[-_LOOKED_AT_ONCE:], frames, now)
            del left[-_LOOKED_AT_ONCE:]
            now = time()
        self._wrote(frames)
        if joining is not None and self._everybody and frames.data:
            joining.wrote(self.tail, begun)
        if left or self._again or self._wakes != self.tail.wakes:
            self.wake()


def _write(seats: list[Seat], frames: Frames, now: float) -> None:
    """To these. Here is where the time goes: what most of them have in common is done without asking each."""
    key, start, end, data = frames.key, frames.start, frames.end, frames.data
    for seat in seats:
        reader, cursor = seat.reader, seat.cursor
        if reader is None:
            continue
        if cursor.offset is start and seat.key is key and data and not seat.line.is_full:
            cursor.offset = end
            seat.written_at = now
            frames.count += 1
            seat.write(data)
        else:
            reader.pull(frames, now)
            key, start, end, data = frames.key, frames.start, frames.end, frames.data


class Fans:
    """All of one Delivery, by tail and joining time."""

    def __init__(self, wrote: Callable[[Frames], None]) -> None:
        """`wrote` is told what was written in each slice."""
        self._fans: dict[tuple[Tail, float], Fan] = {}
        self._wrote = wrote

    def __repr__(self) -> str:
        return f"<Fans [{len(self._fans)}]>"

    def join(self, tail: Tail, seat: Seat, joining: Joining | None = None) -> Fan:
        """Wait there. Whoever joins has looked after the tail's last wake, or calls `Fan.look`.

        The first one's `joining` is where the fan begins to count.
        """
        key = tail, 0.0 if joining is None else joining.seconds
        fan = self._fans.get(key)
        if fan is None:
            fan = self._fans[key] = Fan(tail, None if joining is None else joining.copy(), self._wrote)
            fan._wakes = tail.wakes
            tail.on_wake[fan.wake] = None
        fan.add(seat)
        return fan

    def leave(self, fan: Fan, seat: Seat) -> None:
        fan.discard(seat)
        if not fan:
            fan.close()
            del self._fans[fan.tail, 0.0 if fan.joining is None else fan.joining.seconds]
