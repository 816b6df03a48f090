"""Where a reader that names an offset stands in a stream. Pure; section numbers are Durable Streams'."""

from __future__ import annotations

from typing import Final

from headwater.errors import BadOffset, OffsetGone
from headwater.model import BEGINNING, Head, Offset

START: Final = "-1"
"""The sentinel for the beginning (8)."""

NOW: Final = "now"
"""The sentinel for the tail (8)."""


def resolve(head: Head, offset: Offset | str | None) -> Offset:
    """The offset to read from. None and "-1" are the first message kept, "now" the tail.

    Raises BadOffset for what is no offset or lies beyond the tail, OffsetGone for what was trimmed or belongs to an
    earlier stream of this name: never another place than the one asked for (G5).
    """
    if offset is None or offset == START:
        return Offset(head.generation, head.start)
    if offset == NOW:
        return head.offset
    asked = Offset.parse(offset) if isinstance(offset, str) else offset
    if asked is None:
        raise BadOffset("this is not an offset of a stream; use one that the server gave, or -1, or now")
    if asked == BEGINNING:
        asked = Offset(head.generation, 0)
    asked = _inherited(head, asked)
    if asked > head.offset:
        raise BadOffset("this offset lies beyond the end of the stream")
    if asked.generation < head.generation:
        raise OffsetGone("this offset belongs to an earlier stream of this name; read again from the start")
    if asked.position < head.start:
        raise OffsetGone("what followed this offset is no longer kept; read again from the start")
    return asked


def _inherited(head: Head, offset: Offset) -> Offset:
    """An offset of a stream that this one was forked off from, as one of its own: they count alike (4.2)."""
    for stretch in head.fork.lineage if head.fork else ():
        if offset.generation == stretch.generation and offset.position <= stretch.until:
            return Offset(head.generation, offset.position)
    return offset
