"""Generators that are run by the process and not by a request, each into a stream of its own.

Knows streams, writers and what generators give. Invariants: the stream's last word says how the generator ended
(`error` event, closed as failed); nothing of an exception but that it happened reaches a reader.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Callable, Iterable, Iterator
from typing import Any, Final

from starlette.concurrency import iterate_in_threadpool

from headwater.decide import Append, Item
from headwater.delivery import Delivery
from headwater.errors import HeadwaterError
from headwater.http.items import error_event
from headwater.model import Head
from headwater.streams import Streams
from headwater.writer import Writer

_log = logging.getLogger("headwater.http")

KIND: Final = "response"
"""The label that tells leases how such a stream is to be ended."""

EVENTS: Final = "text/event-stream"

_FAILED: Final = ("failed", "the answer could not be finished")
_INTERRUPTED: Final = ("interrupted", "the server that made this answer went away before it was finished")

Content = AsyncIterable[Any] | Iterable[Any]
Messages = Callable[[Any], Iterator[bytes]]


class Producers:
    """The generators that this process is running for responses, and the delivery to their readers."""

    def __init__(self, streams: Streams) -> None:
        self.delivery = Delivery(streams)
        self._tasks: set[asyncio.Task[None]] = set()
        streams.leases.finisher(KIND, self._finish_orphan)

    def __repr__(self) -> str:
        return f"<Producers [{len(self._tasks)} running]>"

    def start(self, production: Production) -> None:
        task = asyncio.create_task(production.run(), name=f"headwater-response {production.writer.name}")
        production.task = task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def interrupt(self) -> None:
        """End all of them, because the process ends; their streams say so when this returns."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=5.0)

    async def _finish_orphan(self, name: str, head: Head) -> None:
        last = [Item(error_event(*_INTERRUPTED))] if head.config.content_type == EVENTS else []
        await self.delivery.streams.carry_out(name, Append(last, close=True, outcome="failed"))


class Production:
    """One generator on its way into its stream."""

    def __init__(self, content: Content, messages: Messages, writer: Writer) -> None:
        self.writer = writer
        self.task: asyncio.Task[None] | None = None
        self._content, self._messages = content, messages
        self._decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def decided(self, seconds: float) -> None:
        """Wait until the first item has come, or so long; raises what the generator raised before its first item."""
        await asyncio.wait([self._decided], timeout=seconds)
        if not self._decided.done():
            self._decided.cancel()  # too late for an error status: from now on an error is the stream's last event
        else:
            self._decided.result()

    async def run(self) -> None:
        """Run the generator to its end, whoever reads."""
        try:
            outcome, last = await self._outcome()
            if not self._decided.done():
                self._decided.set_result(None)
            await asyncio.shield(asyncio.ensure_future(self.writer.aclose(outcome, *last)))
        except HeadwaterError as error:
            _log.error("response %s could not be written to its stream: %s", self.writer.name, error)

    async def _outcome(self) -> tuple[str, list[bytes]]:
        items = aiter(self._iterable())
        try:
            async for item in items:
                for message in self._messages(item):
                    await self.writer.send(message)
                if not self._decided.done():
                    self._decided.set_result(None)
        except asyncio.CancelledError:
            return "failed", self._error(_INTERRUPTED)
        except HeadwaterError:
            raise
        except Exception as error:  # noqa: BLE001 -- a generator may raise anything, and its readers must be told
            return "failed", self._failed(error)
        finally:
            close = getattr(items, "aclose", None)
            if close is not None:
                await close()
        return "completed", []

    def _failed(self, error: Exception) -> list[bytes]:
        if not self._decided.done():
            self._decided.set_exception(error)  # the request is still waiting: it becomes an HTTP error
        else:
            _log.error("the generator of response %s failed", self.writer.name, exc_info=error)
        return self._error(_FAILED)

    def _error(self, said: tuple[str, str]) -> list[bytes]:
        return [error_event(*said)] if self.writer.content_type == EVENTS else []

    def _iterable(self) -> AsyncIterable[Any]:
        if isinstance(self._content, AsyncIterable):
            return self._content
        return iterate_in_threadpool(self._content)  # a sync generator may block: not on the loop


async def never_started(content: Content) -> None:
    """Let go of a generator that is not needed, without a warning that it was never run."""
    close = getattr(content, "aclose", None)
    if close is not None:
        await close()
