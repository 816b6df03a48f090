"""Which messages of a run were taken back: for formats that cannot take words back, and for what goes to a model again.

Knows how to read a run's stream. What is found in that of a run which is over is kept, for the runs that were asked
about last; nothing else is remembered.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, NamedTuple

from headwater.agui import RETRACTED, decode
from headwater.errors import RunNotFound, StreamNotFound
from headwater.model import Offset
from headwater.runs.record import read_head, stream_of
from headwater.streams import Streams

MOST_KNOWN: Final = 4096
"""Runs that are over and of which it is known: nearly always a few hundred bytes each, since nothing was taken back."""

_MARK: Final = RETRACTED.encode()


class _Found(NamedTuple):
    agent: str
    thread: str
    messages: frozenset[str]


class Retractions:
    """Those of the runs of one Streams."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams
        self._known: OrderedDict[str, _Found] = OrderedDict()  # runs that are over, the one asked about last at the end

    def __repr__(self) -> str:
        return f"<Retractions [{len(self._known)} runs known]>"

    async def of(self, run_id: str) -> frozenset[str]:
        """Ids of the run's messages that were taken back so far. Raises RunNotFound."""
        return (await self._found(run_id)).messages

    async def of_thread(self, agent: str, thread: str, run_ids: Iterable[str]) -> frozenset[str]:
        """The same of several runs; those that are not of this agent and thread, or not there, are left out."""
        messages: frozenset[str] = frozenset()
        for run_id in run_ids:
            with suppress(RunNotFound):
                found = await self._found(run_id)
                if (found.agent, found.thread) == (agent, thread):
                    messages |= found.messages
        return messages

    async def _found(self, run_id: str) -> _Found:
        if (known := self._known.get(run_id)) is not None:
            self._known.move_to_end(run_id)
            return known
        labels = (await read_head(self._streams, run_id)).labels
        messages, over = await self._read(run_id)
        found = _Found(labels.get("agent", ""), labels.get("thread", ""), messages)
        if over:
            self._known[run_id] = found
            if len(self._known) > MOST_KNOWN:
                self._known.popitem(last=False)
        return found

    async def _read(self, run_id: str) -> tuple[frozenset[str], bool]:
        """The messages, and whether the run is over."""
        messages: set[str] = set()
        offset: Offset | None = None
        while True:
            try:
                page = await self._streams.read(stream_of(run_id), offset)
            except StreamNotFound:
                raise RunNotFound("no such run") from None
            for message in page.messages:
                if _MARK in message.data:  # nearly always it is not there, and nothing has to be decoded
                    messages.update(_taken_back(message.data))
            if page.up_to_date:
                return frozenset(messages), page.closed
            offset = page.next


def _taken_back(data: bytes) -> Iterable[str]:
    event = decode(data)
    value: Any = event.get("value")
    if event["type"] == "CUSTOM" and event.get("name") == RETRACTED and isinstance(value, dict):
        id_ = value.get("messageId")
        return [id_] if isinstance(id_, str) else []
    return []
