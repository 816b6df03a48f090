"""What one process asks of the runs, or other answers, that another one makes: to end.

Each process hears what is in `headwater/control/{owner}`, for runs; other makers have a prefix of their own. It may die
before it does, or may not make the run any more: so whoever finds such a run without a maker looks there, too, and no
wish to end a run is lost.

Knows streams; ends nothing itself.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final, Literal

import msgspec

from headwater.errors import StreamNotFound
from headwater.streams import Streams

TTL_SECONDS: Final = 3600
"""Not deleted when its process ends: runs that were left to the next one may be asked to end just then."""

RUNS: Final = "headwater/control/"

When = Literal["now", "after_turn"]


class Asked(msgspec.Struct, frozen=True, rename={"run_id": "cancel"}):
    """That a run be cancelled."""

    run_id: str
    """By what its maker knows it."""
    when: When = "now"


_decode = msgspec.json.Decoder(Asked).decode


async def ask(streams: Streams, owner: str, run_id: str, when: When = "now", *, prefix: str = RUNS) -> None:
    """Ask whoever makes the run."""
    name = prefix + owner
    await streams.create(name, ttl=TTL_SECONDS)
    await streams.append(name, msgspec.json.encode(Asked(run_id, when)))


async def heard(streams: Streams, *, prefix: str = RUNS) -> AsyncIterator[Asked]:
    """What is asked of this process, until its stream is gone: some of it again where one begins to hear anew."""
    name = prefix + streams.leases.owner
    await streams.create(name, ttl=TTL_SECONDS)
    async for page in streams.follow(name):
        for message in page.messages:
            yield _decode(message.data)


async def was_asked(streams: Streams, owner: str | None, run_id: str) -> bool:
    """Whether its owner was asked to end this run."""
    offset = None
    with suppress(StreamNotFound):
        while True:
            page = await streams.read(RUNS + (owner or ""), offset)
            if any(_decode(message.data).run_id == run_id for message in page.messages):
                return True
            if page.up_to_date:
                break
            offset = page.next
    return False
