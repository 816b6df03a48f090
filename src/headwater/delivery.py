"""Delivery: responses that follow a stream, over any ASGI server.

A reader (`headwater.reader`) is a cursor and a place to write to. Silence, stalled writes, expiry and rotation are
looked after by one timer for all readers (`Rounds`), and those that wait without a task by one fan for each stream
(`Fans`).

Knows streams, formats and ASGI. Cancellation of a response leaves nothing behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Final

from headwater.cursor import HELD_BYTES, Cursor
from headwater.fans import Fans, Frames
from headwater.formats.format import Format
from headwater.joining import Joining, joined_ms
from headwater.outlet import CONNECTION, Cut, Line, Outlet, Receive, Scope, Send, listen
from headwater.policy import Policy
from headwater.reader import LAST_WRITE_SECONDS, ROTATION_JITTER, Reader, Standing, Stay
from headwater.rounds import Rounds
from headwater.slow import Keeping, Slow
from headwater.streams import Streams
from headwater.traced import TRACEPARENT
from headwater.visits import Visit

__all__ = [
    "CONNECTION", "HELD_BYTES", "LAST_WRITE_SECONDS", "ROTATION_JITTER", "STREAMING_HEADERS",
    "Cut", "Delivery", "Policy", "Receive", "Scope", "Send", "Slow",
]  # fmt: skip

STREAMING_HEADERS: Final = (
    ("cache-control", "no-cache, no-transform"),  # no-transform: also no compression on the way, which would buffer
    ("x-accel-buffering", "no"),  # nginx and those who copied it
    ("x-content-type-options", "nosniff"),
)


DEFAULT_POLICY: Final = Policy()


class Delivery:
    """Serves readers of one Streams."""

    def __init__(self, streams: Streams, policy: Policy = DEFAULT_POLICY) -> None:
        self.streams = streams
        self.policy = policy
        self.rounds = Rounds()
        self.readers = 0
        self.served = 0
        self.dropped = 0
        self._fans = Fans(self._wrote)

    def __repr__(self) -> str:
        return f"<Delivery of {self.streams!r} [{self.readers} readers, {self.served} served, {self.dropped} dropped]>"

    async def respond(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        cursor: Cursor,
        format_: Format,
        headers: Iterable[tuple[str, str]] = (),
        status: int = 200,
        anchored: bool = True,
    ) -> None:
        """Send the stream from `cursor` to the client until it is over, the client is gone, or the server drains.

        `anchored`: the client that repeats its request gets all that it would have got now; not so where it asked for
        what comes from now on. Takes the cursor over and closes it. Raises BadRequest for a joining time that cannot
        be, if nobody has looked at it before (`headwater.joining`).
        """
        joining = self._joining(scope)
        cursor.max_bytes = self.policy.chunk_bytes
        outlet = Outlet(scope, send)
        visit = Visit(self.streams, cursor, format_.transport, scope, status=status)
        stay = Stay(visit, joining, Keeping(self.policy.slow, self.streams.reads.slow))
        reader = Reader(
            self.streams,
            self.policy,
            self._fans,
            cursor,
            format_,
            outlet,
            anchored=anchored,
            stay=stay,
            on_over=self._left,
        )

        def lost() -> None:
            if not outlet.direct:  # else its line tells, and the server says so of every request whose line was taken
                reader.lost()

        listening = asyncio.create_task(listen(receive, lost), name="headwater-reader-listens")
        self.served += 1
        self._joined(reader)
        fields = [("content-type", format_.content_type), *STREAMING_HEADERS, *headers, *_traced(cursor)]
        raw = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in fields]
        try:
            try:
                await reader.start(status, raw)
            finally:
                listening.cancel()
                await asyncio.wait([listening])
            if outlet.direct and outlet.line is not None and not outlet.line.alone:
                await _over(outlet.line)
        except asyncio.CancelledError:
            if reader.is_parked:
                reader.drop()
            raise

    def _joining(self, scope: Scope) -> Joining | None:
        asked = joined_ms(scope)
        ms = self.policy.join_ms if asked is None else asked
        return Joining(ms / 1000, self.policy.chunk_bytes, lambda: self.streams.draining) if ms else None

    def _joined(self, reader: Reader) -> None:
        self.rounds.add(reader)
        self.readers += 1
        if self.readers == 1:
            self.streams.on_drain.append(self.rounds.again)

    def _left(self, reader: Reader) -> None:
        self.rounds.discard(reader)
        self.readers -= 1
        reader.visit.over("slow" if reader.stalled else "left" if reader.gone else "cut")
        if reader.stalled:
            self.dropped += 1
            self.streams.reads.slow["drop"] += 1
        if not self.readers:  # the streams may outlive this Delivery: `follow` makes one for a single response
            self.streams.on_drain.remove(self.rounds.again)

    def standing(self, stream: str) -> Iterator[Standing]:
        """Those who follow `stream` now."""
        found = (one.standing for one in self.rounds if isinstance(one, Reader))
        return (standing for standing in found if standing.stream == stream)

    def _wrote(self, frames: Frames) -> None:
        now, wrote = self.streams.clock(), self.streams.reads.wrote
        for frame, events, times in frames.written():
            wrote(frame.transport, events, len(frame.data), (now - frame.since) / 1000, times)

    def statistics(self) -> dict[str, int]:
        """Readers now, responses served so far, those dropped for not reading; and how often one did not keep up, by
        what became of it (`headwater.slow`). `Streams.reads` knows more."""
        slow = self.streams.reads.slow
        return {
            "readers": self.readers,
            "served": self.served,
            "dropped": self.dropped,
            "lagged": slow["lag"],
            "skipped": slow["skip"],
            "closed_slow": slow["close"],
        }


def _traced(cursor: Cursor) -> list[tuple[str, str]]:
    """Where the run belongs that this stream is of, for clients that see no event of it as it is."""
    return [] if cursor.traceparent is None else [(TRACEPARENT, cursor.traceparent)]


async def _over(line: Line) -> None:
    """Until the response is: where something stands around the application, which would take its end for that."""
    over = asyncio.Event()
    line.on_over(over.set)
    await over.wait()
