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
    """Messages of the stream `name` after `start`: as many as fit in `max_bytes`, but at least one where there is one.

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
    messages = [_as_of(head, message) for message in found if message.offset.position <= stretch.until]
    after = messages[-1].offset if messages else start
    left = max_bytes - sum(len(message.data) for message in messages)
    if not stretch.until == after.position < head.tail or left <= 0:
        return messages
    # The page ends only because another stream's messages begin there: readers are not to notice (4.2).
    more = await read_messages(store, name, head, after, max_bytes=left)
    return messages + (more if sum(len(message.data) for message in more) <= left else [])


def _as_of(head: Head, message: Message) -> Message:
    return msgspec.structs.replace(message, offset=Offset(head.generation, message.offset.position))
