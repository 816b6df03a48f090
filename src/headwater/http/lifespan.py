"""When an application starts and ends: open the streams, and let readers go before the server waits for them.

A server that is told to stop (SIGTERM, Ctrl-C) waits for open responses, and one that follows a stream has no end of
its own: so readers must be told before, and no server tells its application in time. `headwater.server` does it by
itself; under a plain uvicorn `lifespan` chains itself in front of the handlers that are installed, and puts them back.

Knows Streams, Runs and Subscriptions. No global state: what is chained belongs to one running application.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from headwater.delivery import Cut, Receive, Send
from headwater.http.producers import Producers
from headwater.http.response import STATE
from headwater.streams import Streams
from headwater.subscriptions import Subscriptions

if TYPE_CHECKING:  # runs need an extra that streams do not
    from headwater.runs import Runs


@runtime_checkable
class Closing(Protocol):
    """Something that ends what it is making."""

    async def aclose(self) -> None:
        """Ends it; its streams say so when this returns."""


@asynccontextmanager
async def opened(
    streams: Streams,
    runs: Runs | None = None,
    producers: Producers | None = None,
    *,
    subscriptions: Subscriptions | None = None,
    closing: Sequence[Closing] = (),
    on_signals: bool = True,
) -> AsyncIterator[Streams]:
    """Open what is not open, drain on signals, and close again what was opened here, and `closing` in any case."""
    mine = not streams.is_open
    if mine:
        await streams.open()
    try:
        if runs is not None:
            await runs.open()
        if subscriptions is not None:
            await subscriptions.open()
        with (
            streams.lag.watched(),
            _cuts_are_no_failures(),
            _on_signals(lambda: drain(streams, runs, producers), wanted=on_signals),
        ):
            yield streams
    finally:
        await drain(streams, runs, producers)
        for one in closing:
            await one.aclose()
        if subscriptions is not None:
            await subscriptions.aclose()
        if runs is not None:
            await runs.aclose()
        if mine:
            await streams.aclose()


def lifespan(
    streams: Streams | str,
    runs: Runs | None = None,
    subscriptions: Subscriptions | None = None,
    *,
    closing: Sequence[Closing] = (),
) -> Callable[[Any], AbstractAsyncContextManager[dict[str, Any]]]:
    """`FastAPI(lifespan=lifespan("sqlite:///app.db"))`: streams for StreamResponse, opened and drained in time.

    `closing`: what writes streams of its own (a Proxy), to be closed before them.
    To use the same streams in endpoints, make a Streams and give it here.
    """
    kept = Streams(streams) if isinstance(streams, str) else streams

    @asynccontextmanager
    async def run(_: Any) -> AsyncIterator[dict[str, Any]]:
        producers = Producers(kept)
        async with opened(kept, runs, producers, subscriptions=subscriptions, closing=closing):
            yield {STATE: producers}

    return run


async def run_lifespan(
    receive: Receive,
    send: Send,
    streams: Streams,
    runs: Runs | None,
    subscriptions: Subscriptions | None = None,
    closing: Sequence[Closing] = (),
) -> None:
    """The ASGI lifespan protocol, for an application that is served alone."""
    await receive()
    running = opened(streams, runs, subscriptions=subscriptions, closing=closing)
    try:
        await running.__aenter__()
    except Exception as error:
        await send({"type": "lifespan.startup.failed", "message": str(error)})
        raise
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await running.__aexit__(None, None, None)
    await send({"type": "lifespan.shutdown.complete"})


async def drain(streams: Streams, runs: Runs | None, producers: Producers | None = None) -> None:
    """What is made here is left to another process, or ends as interrupted; then every reader is told of the end."""
    if runs is not None:
        await runs.interrupt()
    if producers is not None:
        await producers.interrupt()
    streams.drain()


@contextmanager
def _cuts_are_no_failures() -> Iterator[None]:
    """While inside, servers of others do not log a traceback for each connection that we meant to cut."""

    def wanted(record: logging.LogRecord) -> bool:
        return record.exc_info is None or record.exc_info[0] is not Cut

    logs = [logging.getLogger(name) for name in ("uvicorn.error", "hypercorn.error")]
    for log in logs:
        log.addFilter(wanted)
    try:
        yield
    finally:
        for log in logs:
            log.removeFilter(wanted)


@contextmanager
def _on_signals(work: Callable[[], Coroutine[Any, Any, None]], *, wanted: bool) -> Iterator[None]:
    """While inside, SIGTERM and SIGINT also start `work` on this loop, before whoever handled them until now."""
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    loop = asyncio.get_running_loop()
    begun: list[asyncio.Task[None]] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def begin() -> None:
        if not begun:
            begun.append(loop.create_task(work()))

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(begin)
        earlier = before[signal.Signals(number)]
        if callable(earlier):
            earlier(number, frame)

    chained = {number: earlier for number, earlier in before.items() if callable(earlier)}
    for number in chained:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, earlier in chained.items():
            if signal.getsignal(number) is handle:
                signal.signal(number, earlier)
