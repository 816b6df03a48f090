"""What runs keep beside their streams, so that another process can go on with them.

A checkpoint is a source's state, opaque here, with the position that the run's stream has once the events are in it
that the state belongs to. It is written before those: so it counts when the stream has reached its position, and the
commit of those events is what makes it count.

Whoever takes a run over keeps the checkpoint that counts once more, under its own epoch, before it takes the stream.
From then on the one before it can keep none, and what it kept ahead of the stream never counts. So the checkpoint to go
on from is always: of the newest epoch, the last one that the stream has reached.

What came along with a run's input is kept here, too, before it begins: it is for the agent, and not for readers.

Knows streams. Each run's are in `headwater/checkpoints/{run}`, and `headwater/requests/{run}`, which nobody but the
server reads: states hold prompts.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec

from headwater.decide import Append, Create, Item, Stamp
from headwater.errors import HeadwaterError, StreamNotFound, TooLarge
from headwater.model import Config, Retention
from headwater.sources import NO_REQUEST, Request
from headwater.streams import Streams
from headwater.writer import patiently

PREFIX: Final = "headwater/checkpoints/"

REQUESTS: Final = "headwater/requests/"

KEPT: Final = Retention(messages=3)
"""One may be ahead of the stream."""

TTL_SECONDS: Final = 30 * 24 * 3600
"""How long a run may wait for people. Usually it goes with the run's end."""

_MAKER: Final = "run"


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    epoch: int
    position: int
    state: bytes | None = None
    """None: the run can begin anew from its input."""


class Keeper:
    """Keeps the checkpoints of one run, as the maker of this epoch."""

    def __init__(self, streams: Streams, run_id: str, epoch: int = 0) -> None:
        self.run_id, self.epoch = run_id, epoch
        self._streams = streams
        self._seq = 0

    def __repr__(self) -> str:
        return f"<Keeper of {self.run_id} [epoch {self.epoch}, {self._seq} kept]>"

    async def keep(self, position: int, state: bytes | None) -> None:
        """Durable when this returns. Raises TooLarge, StoreUnavailable; ProducerFenced when the run is another's."""
        item = Item(msgspec.msgpack.encode(Checkpoint(self.epoch, position, state)))
        if len(item.data) > self._streams.limits.message_bytes:
            raise TooLarge("the run's state is larger than a message may be")
        if self._seq == 0:
            create = Create(Config("application/msgpack", TTL_SECONDS, retention=KEPT))
            await patiently(lambda: self._streams.carry_out(PREFIX + self.run_id, create))
        append = Append([item], stamp=Stamp(_MAKER, self.epoch, self._seq))
        await patiently(lambda: self._streams.carry_out(PREFIX + self.run_id, append))
        self._seq += 1


async def newest(streams: Streams, run_id: str, reached: int) -> Checkpoint | None:
    """The checkpoint that counts for a run whose stream has reached this position; None where there is none."""
    found: Checkpoint | None = None
    offset = None
    with suppress(StreamNotFound):
        while True:
            page = await streams.read(PREFIX + run_id, offset)
            for message in page.messages:
                kept = msgspec.msgpack.decode(message.data, type=Checkpoint)
                if found is not None and kept.epoch > found.epoch:
                    found = None
                if kept.position <= reached:
                    found = kept
            offset = page.next
            if page.up_to_date:
                break
    return found


async def keep_request(streams: Streams, run_id: str, request: Request) -> None:
    """Durable when this returns; the first one counts. Raises TooLarge, StoreUnavailable."""
    item = Item(msgspec.msgpack.encode(request))
    if len(item.data) > streams.limits.message_bytes:
        raise TooLarge("what comes along with the input is larger than a message may be")
    create = Create(Config("application/msgpack", TTL_SECONDS), [item])
    await patiently(lambda: streams.carry_out(REQUESTS + run_id, create))


async def kept_request(streams: Streams, run_id: str) -> Request:
    """What was kept; an empty one where nothing was."""
    with suppress(StreamNotFound):
        for message in (await streams.read(REQUESTS + run_id)).messages:
            return msgspec.msgpack.decode(message.data, type=Request)
    return NO_REQUEST


async def drop(streams: Streams, run_id: str) -> None:
    """The run has ended. What cannot be dropped now goes by its TTL."""
    for prefix in (PREFIX, REQUESTS):
        with suppress(HeadwaterError):
            await streams.delete(prefix + run_id)
