"""The runs of a conversation, by the id that its client has for it: a small stream per thread, known to every process.

Knows streams; starts and reads no run. An entry is appended for each run, with what its transcript needs of the
client's messages, and for each stop that was accepted. A thread belongs to the principal that made it: an id that
somebody else uses, too, is another thread (G10).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from headwater.errors import StreamNotFound
from headwater.model import Offset
from headwater.streams import Streams

PREFIX: Final = "headwater/threads/"

LOOKED_AT: Final = 8
"""Entries at the end of a thread that are read to find its newest run: usually the last one is it."""


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a thread remembers."""

    run: str = ""
    stopped: bool = False
    """This entry says that the run is to be stopped; the one that tells of its start came before."""
    history: bool = False
    """The run's input holds what was said before, so that a message that was edited stands in for what it replaced."""
    asked: list[Any] = []
    """The messages that the client sent after the last one of the agent; none: they are in the run's input alone."""
    ids: list[str] = []
    """Ids of all messages that it sent."""


_decode = msgspec.json.Decoder(Entry).decode


class Threads:
    """The threads of one Streams."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    def __repr__(self) -> str:
        return f"<Threads of {self._streams!r}>"

    async def note(self, principal: str, agent: str, thread: str, entry: Entry) -> None:
        """Add `entry` to a thread, which need not be there yet."""
        name = _name(principal, agent, thread)
        await self._streams.create(name)
        await self._streams.append(name, msgspec.json.encode(entry))

    async def newest(self, principal: str, agent: str, thread: str) -> Entry | None:
        """The thread's newest run, and whether it was stopped; None where there is none."""
        name = _name(principal, agent, thread)
        try:
            head = await self._streams.head(name)
            found = await self._read(name, head.offset._replace(position=max(0, head.tail - LOOKED_AT)))
        except StreamNotFound:
            return None
        if found and all(entry.stopped for entry in found):
            found = await self._read(name, None)
        stopped = {entry.run for entry in found if entry.stopped}
        runs = [entry for entry in found if not entry.stopped]
        return Entry(runs[-1].run, stopped=runs[-1].run in stopped) if runs else None

    async def entries(self, principal: str, agent: str, thread: str) -> Sequence[Entry]:
        """The thread's runs, oldest first."""
        try:
            found = await self._read(_name(principal, agent, thread), None)
        except StreamNotFound:
            return []
        return [entry for entry in found if not entry.stopped]

    async def _read(self, name: str, offset: Offset | None) -> list[Entry]:
        found: list[Entry] = []
        while True:
            page = await self._streams.read(name, offset)
            found += [_decode(message.data) for message in page.messages]
            if page.up_to_date:
                return found
            offset = page.next


def _name(principal: str, agent: str, thread: str) -> str:
    return PREFIX + hashlib.sha256(msgspec.json.encode([principal, agent, thread])).hexdigest()
