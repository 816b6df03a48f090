"""The messages of one stream in memory: in columns, of which a page makes messages when it is read.

A million messages are then some bytes, an array of times, and tuples of SEGMENT bytes each, in which the interpreter's
collector has nothing to look at (it forgets tuples of what cannot refer to anything; a list it goes through each time).
As objects they would be a tenth of a second of each full collection, while nobody is served, and twice the memory.
Positions and offsets are not kept: messages are without a gap.

Knows the model. Invariant: what is read or dropped costs what it is, not what the log holds.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, repeat
from typing import Final

from headwater.model import Message, Offset
from headwater.store import in_a_row, most_messages

SEGMENT: Final = 1024
"""Messages in a tuple: what a trim copies at most, and a page puts together in a few steps."""

Segment = tuple[bytes, ...]


class Log:
    """Those after position `base`."""

    __slots__ = ("_keys", "_newest", "_segments", "_times", "base")

    def __init__(self, base: int) -> None:
        self.base = base
        self._segments: list[Segment] = []  # all full, but for the first, whose front may have been dropped
        self._newest: list[bytes] = []  # less than one
        self._times = array("q")
        self._keys: dict[int, str] = {}  # by position: few streams have any

    def __len__(self) -> int:
        return len(self._times)

    def extend(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._times.append(message.time)
            if message.key is not None:
                self._keys[message.offset.position] = message.key
        self._newest += [message.data for message in messages]
        while len(self._newest) >= SEGMENT:
            self._segments.append(tuple(self._newest[:SEGMENT]))
            del self._newest[:SEGMENT]

    def trim(self, base: int) -> list[Segment]:
        """Drop the messages up to position `base`; their data is given to the caller, who lets go of it in slices."""
        count = base - self.base
        if self._keys:
            for position in range(self.base + 1, base + 1):
                self._keys.pop(position, None)
        del self._times[:count]
        self.base = base
        number, within = self._place(count)
        dropped = self._segments[:number]
        del self._segments[:number]
        if self._segments:
            dropped.append(self._segments[0][:within])
            self._segments[0] = self._segments[0][within:]
        else:
            dropped.append(tuple(self._newest[:within]))
            del self._newest[:within]
        return dropped

    def read(self, start: Offset, max_bytes: int) -> list[Message]:
        """A page of those after `start`, which is not before `base`."""
        first = start.position - self.base
        data = self._data(first, most_messages(max_bytes))
        sizes = list(map(len, data))
        if sum(sizes) > max_bytes:
            del data[max(1, bisect_right(list(accumulate(sizes)), max_bytes)) :]
        keys: Iterable[str | None] = repeat(None)
        if self._keys:
            keys = map(self._keys.get, range(start.position + 1, start.position + 1 + len(data)))
        return in_a_row(start, data, self._times[first : first + len(data)], keys)

    def _data(self, first: int, most: int) -> list[bytes]:
        number, within = self._place(first)
        data: list[bytes] = []
        for segment in self._segments[number : number + 2 + most // SEGMENT]:
            data += segment[within : within + most - len(data)]
            within = 0
        return data + self._newest[within : within + most - len(data)]

    def _place(self, index: int) -> tuple[int, int]:
        """The segment that the message at `index` of the log is in, the newest being the last one; and where in it."""
        first = len(self._segments[0]) if self._segments else 0
        if index < first:
            return 0, index
        number = min((index - first) // SEGMENT + 1, len(self._segments)) if self._segments else 0
        return number, index - (first + (number - 1) * SEGMENT if number else 0)
