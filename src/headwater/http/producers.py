"""Generators that are run by the process and not by a request, each into a stream of its own.

Knows streams, writers and what generators give. Invariants: the stream's last word says how the generator ended
(`error` event, closed as failed), however long the store was away; nothing of an exception but that it happened reaches
a reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Any, Final

from starlette.concurrency import iterate_in_threadpool

from headwater.decide import Append, Item
from headwater.delivery import Delivery
from headwater.errors import HeadwaterError, Interrupted, StreamClosed
from headwater.http.items import error_event
from headwater.model import Head
from headwater.streams import Streams
from headwater.writer import Writer

_log = logging.getLogger("headwater.http")

KIND: Final = "response"
"""The label that tells leases how such a stream is to be ended."""

EVENTS: Final = "text/event-stream"


STOP_SECONDS: Final = 5.0
"""How long generators get to wind up when the process ends."""

Content = AsyncIterable[Any] | Iterable[Any]
Messages = Callable[[Any], Iterator[bytes]]


class Unfinished(HeadwaterError):
    """What a reader is told of a generator that failed, whatever it raised."""

    code = "failed"


class Producers:
    """The generators that this process is running for responses, and the delivery to their readers."""

    def __init__(self, streams: Streams) -> None:
        self.delivery = Delivery(streams)
        self._starting: set[asyncio.Future[None]] = set()
        self._running: dict[asyncio.Task[None], Production] = {}
        self._given_up: set[asyncio.Task[None]] = set()
        streams.leases.finisher(KIND, self._finish_orphan)

    def __repr__(self) -> str:
        return f"<Producers [{len(self._running)} running]>"

    async def start(self, production: Production) -> None:
        """Make the stream and begin. Cancelled or not: with the stream there is a task that ends it."""
        starting = asyncio.ensure_future(self._start(production))
        self._starting.add(starting)
        starting.add_done_callback(self._starting.discard)
        await asyncio.shield(starting)

    async def _start(self, production: Production) -> None:
        try:
            await production.writer.open()
        except HeadwaterError:
            await let_go(production.content)
            raise
        task = asyncio.create_task(production.run(), name=f"headwater-response {production.writer.name}")
        self._running[task] = production
        task.add_done_callback(self._running.pop)

    async def interrupt(self) -> None:
        """End all of them, because the process ends; their streams say so when this returns, but for those that do not
        stop, which are waited for once."""
        if self._starting:
            await asyncio.wait(self._starting, timeout=STOP_SECONDS)
        for task, production in self._running.items():
            production.interrupt(task)
        stopping = self._running.keys() - self._given_up
        if stopping:
            _, stuck = await asyncio.wait(stopping, timeout=STOP_SECONDS)
            self._given_up |= stuck

    async def _finish_orphan(self, name: str, head: Head, why: HeadwaterError) -> None:
        last = [Item(message) for message in _error(head.config.content_type, why)]
        await self.delivery.streams.carry_out(name, Append(last, close=True, outcome="failed"))


class Production:
    """One generator on its way into its stream."""

    def __init__(self, content: Content, messages: Messages, writer: Writer) -> None:
        self.content, self.writer = content, writer
        self._messages = messages
        self._decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._interrupted = self._ending = False

    async def decided(self, seconds: float) -> None:
        """Wait until the first item has come, or so long; raises what the generator raised before its first item."""
        try:
            await asyncio.wait([self._decided], timeout=seconds)
        finally:
            if not self._decided.done():
                self._decided.cancel()  # too late for an error status: an error is the stream's last event from now on
        if not self._decided.cancelled():
            self._decided.result()

    def interrupt(self, task: asyncio.Task[None]) -> None:
        """Stop it once: its own cleaning up is not to be cut short by being told twice."""
        if not self._interrupted and not self._ending:
            # Behind the task's first step: one that is cancelled before it would never come to end its stream.
            asyncio.get_running_loop().call_soon(task.cancel)
        self._interrupted = True

    async def run(self) -> None:
        """Run the generator to its end, whoever reads."""
        outcome, last = await self._outcome()
        self._ending = True
        if not self._decided.done():
            self._decided.set_result(None)
        try:
            await asyncio.shield(asyncio.ensure_future(self.writer.aclose(outcome, *last)))
        except StreamClosed:
            _log.warning("response %s was ended by another process", self.writer.name)
        except HeadwaterError as error:
            _log.error("response %s could not be written to its stream: %s", self.writer.name, error)

    async def _outcome(self) -> tuple[str, list[bytes]]:
        try:
            items = aiter(self._iterable())
            try:
                async for item in items:
                    for message in self._messages(item):
                        await self.writer.send(message)
                    if not self._decided.done():
                        self._decided.set_result(None)
            finally:
                await let_go(items)
        except asyncio.CancelledError:
            return "failed", _error(self.writer.content_type, Interrupted())
        except Exception as error:  # noqa: BLE001 -- a generator may raise anything, and its readers must be told
            self._failed(error)
            return "failed", _error(self.writer.content_type, Unfinished("the answer could not be finished"))
        return "completed", []

    def _failed(self, error: Exception) -> None:
        if not self._decided.done():
            self._decided.set_exception(error)  # the request is still waiting: it becomes an HTTP error
        else:
            _log.error("the generator of response %s failed", self.writer.name, exc_info=error)

    def _iterable(self) -> AsyncIterable[Any]:
        if isinstance(self.content, AsyncIterable):
            return self.content
        return iterate_in_threadpool(self.content)  # a sync generator may block: not on the loop


def _error(content_type: str, error: HeadwaterError) -> list[bytes]:
    return [error_event(error.code, error.said)] if content_type == EVENTS else []


async def let_go(content: Content) -> None:
    """Close a generator, begun or not, so that it cleans up now and nobody warns that it was never run."""
    close = getattr(content, "aclose", None)
    if close is not None:
        await close()
