"""What a client is told besides when a stream refuses it: where what is kept begins, and how a closed one ended.

Knows streams and errors; nothing of requests.
"""

from __future__ import annotations

from contextlib import suppress

from headwater.errors import HeadwaterError, OffsetGone, StreamClosed, StreamExists
from headwater.http.standing import earliest
from headwater.streams import Streams


async def add_facts(error: Exception, streams: Streams, name: str) -> None:
    """Put into the detail of `error`, which stream `name` gave, what PROTOCOL.md (5, 8) has it say; never raises."""
    if not isinstance(error, OffsetGone | StreamClosed | StreamExists) or "earliest" in error.detail:
        return
    with suppress(HeadwaterError):  # gone altogether meanwhile
        head = await streams.head(name)
        if isinstance(error, OffsetGone):
            error.detail["earliest"] = str(earliest(head))
        elif head.closed:
            if isinstance(error, StreamExists):
                error.detail |= {"offset": str(head.offset), "closed": True}
            if head.outcome is not None:
                error.detail["outcome"] = head.outcome
