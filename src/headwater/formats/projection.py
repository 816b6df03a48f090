"""Projections that remember: a run's messages -> events of a client whose words depend on what came before. Pure.

A `Projection` is a deterministic fold over a stream's messages from the first one. So who reads late or resumes gets
the same events with the same ids as everybody else: the messages that it has are folded in silence, the others are
rendered. That costs a reading of the log up to there, and needs no state outside the connection.

The id of an event names the run and the place behind it: `run~offset`, the offset after the message it came from. Where
a message became several events, those before its last have `run~offset.k`, the offset before that message and how many
of its events there were so far (four digits): so a resume between them is exact, too. Ids increase as texts do. Where a
run waits for people and the client's answer ends, the last id ends in PAUSED (`headwater.formats.pauses`).
"""

from __future__ import annotations

import abc
import re
from collections.abc import Sequence
from typing import ClassVar, Final, NamedTuple

from headwater.errors import BadOffset, HeadwaterError
from headwater.formats.format import Format
from headwater.formats.pauses import PAUSED, pause_of
from headwater.formats.sse import RECONNECT_MS
from headwater.model import Message, Offset, Page
from headwater.wire import sse

_ID: Final = re.compile(r"([^~]+)~(\d{16}_\d{16})(?:\.(\d{4,9}))?", re.ASCII)


class Projection(abc.ABC):
    """The fold."""

    @abc.abstractmethod
    def feed(self, data: bytes) -> Sequence[bytes]:
        """Takes the stream's next message; gives the data of the events that it is to this client, maybe none."""

    def pause(self) -> Sequence[bytes]:
        """What is said where the run waits for people, and the client's answer ends; the fold stays as it is. Nothing:
        it does not end there."""
        return ()


class Place(NamedTuple):
    """Where a client is: it has all up to `offset`, and `taken` events of the message after it."""

    offset: Offset
    taken: int = 0

    def __str__(self) -> str:
        return f"{self.offset}.{self.taken:04d}" if self.taken else str(self.offset)


def parse_id(last_id: str) -> tuple[str, Place]:
    """The run that an event's id names, and the place. Raises BadOffset for what is no such id."""
    match = _ID.fullmatch(last_id)
    offset = Offset.parse(match[2]) if match else None
    if match is None or offset is None:
        raise BadOffset("this Last-Event-ID is not one of this endpoint's")
    return match[1], Place(offset, int(match[3] or 0))


class ProjectedEvents(Format):
    """A projection as server-sent events, data only. One instance is one connection's: it holds the fold."""

    content_type = "text/event-stream; charset=utf-8"
    transport = "ai-sdk"
    # As in `ServerSentEvents`: the line of `retry` is within the first event.
    opening = sse.comment("open") + b"retry: %d\n" % RECONNECT_MS
    heartbeat = sse.HEARTBEAT
    key = None  # what it renders depends on more than the page
    folds: ClassVar[bool] = True

    def __init__(
        self, projection: Projection, run_id: str, place: Place | None = None, *, first: bytes | None = None
    ) -> None:
        """`place`: what the client has already; None is nothing. `first`: an event before what comes behind it."""
        self._projection, self._run_id = projection, run_id
        self._place = place
        self._paused = False
        if first is not None:
            self.opening = type(self).opening + sse.encode(sse.one_line(first), id=f"{run_id}~{place}")

    def __repr__(self) -> str:
        return f"<ProjectedEvents of {self._run_id} by {type(self._projection).__name__}>"

    def render(self, page: Page) -> bytes:
        last = page.messages[-1] if pause_of(page) is not None else None
        return b"".join([self._events(message, paused=message is last) for message in page.messages])

    def pauses(self, page: Page) -> bool:
        return self._paused

    def _events(self, message: Message, *, paused: bool) -> bytes:
        events = self._projection.feed(message.data)
        if paused and (said := self._projection.pause()):
            events, self._paused = [*events, *said], True
        place = self._place
        if place is None:
            return self._framed(message, events, 0)
        if message.offset <= place.offset:
            return b""
        self._place = None
        return self._framed(message, events, place.taken)

    def _framed(self, message: Message, events: Sequence[bytes], taken: int) -> bytes:
        before = message.offset._replace(position=message.offset.position - 1)
        places = [*(Place(before, k) for k in range(1, len(events))), Place(message.offset)]
        ids = [f"{self._run_id}~{place}" for place in places]
        if self._paused:
            ids[-1] += PAUSED
        return b"".join([self._event(id_, data) for id_, data in list(zip(ids, events, strict=False))[taken:]])

    def _event(self, id_: str, data: bytes) -> bytes:
        return sse.encode(sse.one_line(data), id=id_)

    def interruption(self, error: HeadwaterError) -> bytes:
        return sse.comment(f"interrupted: {error.code}")
