"""The messages of one stream in memory: in columns, of which a page makes messages when it is read.

A million messages are then a list of bytes and an array of times, which the interpreter's collector has nothing to look
at in: as objects they would be a tenth of a second of each full collection, while nobody is served, and twice the
memory. Positions and offsets are not kept: messages are without a gap.

Knows the model. Invariant: what is read or dropped costs what it is, not what the log holds.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, repeat

from headwater.model import Message, Offset
from headwater.store import in_a_row, most_messages


class Log:
    """Those after position `base`."""

    __slots__ = ("_data", "_keys", "_times", "base")

    def __init__(self, base: int) -> None:
        self.base = base
        self._data: list[bytes] = []
        self._times = array("q")
        self._keys: dict[int, str] = {}  # by position: few streams have any

    def __len__(self) -> int:
        return len(self._data)

    def extend(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._data.append(message.data)
            self._times.append(message.time)
            if message.key is not None:
                self._keys[message.offset.position] = message.key

    def trim(self, base: int) -> list[bytes]:
        """Drop the messages up to position `base`; their data is given to the caller, who lets go of it in slices."""
        count = base - self.base
        dropped = self._data[:count]
        del self._data[:count], self._times[:count]
        if self._keys:
            for position in range(self.base + 1, base + 1):
                self._keys.pop(position, None)
        self.base = base
        return dropped

    def read(self, start: Offset, max_bytes: int) -> list[Message]:
        """A page of those after `start`, which is not before `base`."""
        first = start.position - self.base
        data = self._data[first : first + most_messages(max_bytes)]
        sizes = list(map(len, data))
        if sum(sizes) > max_bytes:
            del data[max(1, bisect_right(list(accumulate(sizes)), max_bytes)) :]
        keys: Iterable[str | None] = repeat(None)
        if self._keys:
            keys = map(self._keys.get, range(start.position + 1, start.position + 1 + len(data)))
        return in_a_row(start, data, self._times[first : first + len(data)], keys)
