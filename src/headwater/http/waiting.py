"""Waiting inside a request: for no longer than the server is there, and, where that counts, the client.

Knows draining and ASGI's `receive`. Invariant: what is waited for is over, or cancelled, when the wait is.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from headwater.delivery import Receive
from headwater.errors import Draining
from headwater.streams import Streams

T = TypeVar("T")


class ClientLeft(Exception):
    """Nobody waits for the answer any more."""


async def while_there(streams: Streams, work: Coroutine[Any, Any, T], receive: Receive | None = None) -> T:
    """`await work`, unless the server goes away, or, with its `receive`, the client. Raises Draining or ClientLeft."""
    draining = asyncio.Event()
    if streams.draining:
        draining.set()
    streams.on_drain.append(draining.set)
    working = asyncio.ensure_future(work)
    leaving: list[asyncio.Future[Any]] = [asyncio.ensure_future(draining.wait())]
    if receive is not None:
        leaving.append(asyncio.ensure_future(_left(receive)))
    try:
        await asyncio.wait([working, *leaving], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        if draining.is_set():
            raise Draining("the server is going away; the run may go on elsewhere")
        raise ClientLeft
    finally:
        streams.on_drain.remove(draining.set)
        for task in (working, *leaving):
            task.cancel()
        await asyncio.wait([working, *leaving])


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
