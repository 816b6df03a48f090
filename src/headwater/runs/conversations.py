"""Runs of one conversation, one at a time: a second one is refused, or waits for its turn.

For agents that remember: two runs that read and write one session at a time would mix up what was said (the SDK has no
lock). Each run of a conversation is an entry in `headwater/threads/{hash of the conversation}`, in their order, and has
its turn when all before it have ended. Nothing is ever released: that a run has ended is what its own stream says,
however it ended and whoever ended it.

Knows streams, and the names of runs' streams.
"""

from __future__ import annotations

import asyncio
import hashlib
from typing import Final

import msgspec

from headwater.decide import Append, Create, Item
from headwater.errors import Conflict, OffsetMismatch, StoreUnavailable, StreamNotFound
from headwater.model import Config, Message, Page, Retention
from headwater.runs.record import stream_of
from headwater.streams import Streams
from headwater.writer import MOST_TRIES

MOST_WAITING: Final = 32
"""Runs of one conversation, that has its turn and those that wait."""

TTL_SECONDS: Final = 31 * 24 * 3600
"""Longer than a run may wait for people."""

BEGINNING_MS: Final = 30_000
"""So long after its entry a run without a stream may still be about to begin; later, its process died first."""

_CONFIG: Final = Config("application/json", TTL_SECONDS, retention=Retention(messages=2 * MOST_WAITING))


class Conversations:
    """The order of runs in each conversation of one Streams."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def enter(self, conversation: str, run_id: str, *, wait: bool) -> None:
        """Give the run its place. Raises Conflict where another one is there, or, with `wait`, too many are."""
        name = _name(conversation)
        for _ in range(MOST_TRIES):
            await self._streams.carry_out(name, Create(_CONFIG))
            page = await self._entries(name)
            if any(_run_of(message) == run_id for message in page.messages):
                return  # a start that is repeated
            there = [_run_of(message) for message in page.messages if await self._goes_on(message)]
            if there and not wait:
                raise Conflict("another run of this conversation has not ended", run=there[0])
            if len(there) >= MOST_WAITING:
                raise Conflict("too many runs of this conversation wait already")
            entry = Append([Item(msgspec.json.encode({"run": run_id}))], expected=page.next)
            try:
                await self._streams.carry_out(name, entry)
            except OffsetMismatch:
                continue
            return
        raise StoreUnavailable("too many start runs of this conversation at a time; try again")

    async def turn(self, conversation: str, run_id: str) -> None:
        """Returns when all runs of the conversation before this one have ended."""
        try:
            page = await self._entries(_name(conversation))
        except StreamNotFound:
            return
        for message in page.messages:
            if _run_of(message) == run_id:
                return
            while await self._goes_on(message):
                await self._ended(_run_of(message))

    async def _entries(self, name: str) -> Page:
        return await self._streams.read(name)  # few and small: one page

    async def _goes_on(self, entry: Message) -> bool:
        try:
            return not (await self._streams.head(stream_of(_run_of(entry)))).closed
        except StreamNotFound:
            return self._streams.clock() - entry.time < BEGINNING_MS

    async def _ended(self, run_id: str) -> None:
        try:
            async for page in self._streams.follow(stream_of(run_id), "now"):
                if page.closed:
                    return
        except StreamNotFound:
            await asyncio.sleep(1)  # about to begin


def _name(conversation: str) -> str:
    return f"headwater/threads/{hashlib.sha256(conversation.encode()).hexdigest()}"


def _run_of(entry: Message) -> str:
    return str(msgspec.json.decode(entry.data)["run"])
