"""Reading a stream's messages wherever they stand: a fork's first ones under the names they were appended to.

Knows the store contract and the model. Invariant: whoever reads gets offsets of the stream that was asked for, without
a gap; what is no longer there is raised (G5).
"""

from __future__ import annotations

import msgspec

from headwater.errors import OffsetGone, StreamNotFound
from headwater.model import Head, Message, Offset
from headwater.store import Store


async def read_messages(store: Store, name: str, head: Head, start: Offset, *, max_bytes: int) -> list[Message]:
    """Messages of the stream `name` after `start`, as `Store.read` gives them: a page may end where a fork begins.

    `head` is the stream's, and of the generation of `start`. Raises StreamNotFound, OffsetGone.
    """
    if head.fork is None or start.position >= head.fork.position:
        return await store.read(name, start, max_bytes=max_bytes)
    if start.position < head.start:
        raise OffsetGone("what followed this offset is no longer kept; read again from the start")
    stretch = next(one for one in head.fork.lineage if start.position < one.until)
    try:
        found = await store.read(stretch.stream, Offset(stretch.generation, start.position), max_bytes=max_bytes)
    except StreamNotFound:
        raise OffsetGone("the stream that this one was forked off from is gone") from None
    return [_as_of(head, message) for message in found if message.offset.position <= stretch.until]


def _as_of(head: Head, message: Message) -> Message:
    return msgspec.structs.replace(message, offset=Offset(head.generation, message.offset.position))
