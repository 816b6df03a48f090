"""The figures of this server as a stream: Headwater watches itself by what it is for.

One JSON object a second is appended to a stream in a memory store of its own, so that nothing of it is among the user's
streams. Who comes is told the past first (`event: history`), then each second as it comes; who comes back is told the
past again, which costs less than remembering where everybody was.

Invariant: it never outlives the streams it watches. It begins with the first request and ends with them.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Final

import msgspec

from headwater.delivery import Delivery
from headwater.errors import Draining
from headwater.formats.sse import ServerSentEvents
from headwater.http.admission import Admission
from headwater.http.console.figures import FIGURES, Sampler
from headwater.http.console.history import History
from headwater.http.exchange import Exchange
from headwater.model import Retention
from headwater.streams import Streams
from headwater.wire import sse

STREAM: Final = "figures"
SECOND: Final = 1.0
KEPT: Final = 60
"""Seconds in the stream itself: a reader that is further behind has the past in the history."""


class FigureEvents(ServerSentEvents):
    """The feed for one reader: what was before it came, then as any other stream."""

    def __init__(self, history: bytes) -> None:
        super().__init__("application/json")
        self.opening = type(self).opening + sse.encode(history, event="history")


class Feed:
    """Samples, keeps and streams."""

    def __init__(self, streams: Streams, sampler: Sampler) -> None:
        self._watched, self._sampler = streams, sampler
        self._history = History(FIGURES)
        self._own = Streams("memory:", retention=[("*", Retention(messages=KEPT))])
        self._delivery = Delivery(self._own)
        self._task: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Feed {self._history!r}>"

    def begin(self) -> None:
        """Begin to watch, unless it does so already."""
        is_over = self._task is None or self._task.done()
        if is_over and self._watched.is_open and not self._watched.draining:
            self._sampler.begin()
            self._task = asyncio.create_task(self._watch(), name="headwater-console-feed")

    async def aclose(self) -> None:
        """Stop watching."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    async def respond(self, exchange: Exchange, admission: Admission) -> None:
        """The feed, for as long as this client wants it. Raises Draining, TooManyRequests."""
        if self._task is None or self._task.done() or self._watched.draining:
            raise Draining("the server is going away; connect again")
        await self._begun.wait()
        cursor = await self._own.cursor(STREAM, "now")  # before the history is told: a second twice, but none missing
        try:
            format_ = FigureEvents(msgspec.json.encode(self._history.told()))
            with admission.response(exchange.scope, exchange.client):
                await self._delivery.respond(
                    exchange.scope, exchange.receive, exchange.send, cursor, format_, anchored=False
                )
        except BaseException:
            cursor.close()
            raise

    async def _watch(self) -> None:
        self._watched.on_drain.append(self._own.drain)
        try:
            async with self._own:
                await self._own.create(STREAM)
                self._begun.set()
                await self._every_second()
        finally:
            self._begun.clear()
            self._watched.on_drain.remove(self._own.drain)

    async def _every_second(self) -> None:
        time_of_loop = asyncio.get_running_loop().time
        due = time_of_loop() + SECOND
        while self._watched.is_open:
            await asyncio.sleep(due - time_of_loop())
            late = time_of_loop() - due
            row = self._history.add(self._watched.clock() / 1000, self._sampler.sample(late))
            await self._own.append(STREAM, row)
            due = max(due, time_of_loop() - SECOND) + SECOND  # after a long sleep: no row for each second missed
