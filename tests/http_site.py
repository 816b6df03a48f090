"""The ASGI application over streams in memory, on the loop's own clock, and a client of it."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from asgi_client import Call, Client
from headwater import Limits, Streams
from headwater.http import App
from headwater.runs import Runs

START_MS = 1_893_456_000_000
"""What the streams' clock says when the loop's says 0: 2030-01-01T00:00:00Z."""


class Site(Client):
    """`await site.ask("PUT", "s")` is a request to `/v1/stream/s`."""

    def __init__(self, streams: Streams, app: App) -> None:
        super().__init__(app)
        self.streams, self.app = streams, app

    def call(self, method: str, url: str, body: bytes | str = b"", **headers: str) -> Call:
        return super().call(method, url if url.startswith("/") else f"/v1/stream/{url}", body, **headers)

    async def put(self, name: str, body: bytes | str = b"", content_type: str = "text/plain", **headers: str) -> Call:
        return await self.ask("PUT", name, body, content_type=content_type, **headers)

    async def post(self, name: str, body: bytes | str = b"", content_type: str = "text/plain", **headers: str) -> Call:
        return await self.ask("POST", name, body, content_type=content_type, **headers)


@asynccontextmanager
async def open_site(
    limits: Limits | None = None, sources: Any = (), *, retention: Any = (), known_offsets: bool = True, **app: Any
) -> AsyncIterator[Site]:
    """`sources`: what can be run, if there are to be runs; `app`: further arguments of App.

    `known_offsets`: offsets are those that `at` gives. Forks need them to be drawn, as they are otherwise.
    """
    loop = asyncio.get_running_loop()
    clock = lambda: START_MS + round(loop.time() * 1000)  # noqa: E731
    streams = Streams("memory:", limits=limits or Limits(), retention=retention, clock=clock)
    if known_offsets:
        streams._commits._drawn = lambda: 0  # type: ignore[method-assign]
    async with streams:
        if not sources:
            yield Site(streams, App(streams, **app))
            return
        async with Runs(streams, *sources) as runs:
            yield Site(streams, App(streams, runs, **app))


def at(position: int, generation: int = 0) -> str:
    return f"{generation:016d}_{position:016d}"


def facts(call: Call) -> dict[str, str]:
    """The headers that Durable Streams gives a meaning."""
    told = ("stream-", "producer-", "location", "etag")
    return {name: value for name, value in call.headers.items() if name.startswith(told)}


def refused(call: Call, status: int, code: str) -> None:
    """It is an honest error: status, code, JSON, never stored by a cache, and safe."""
    assert (call.status, call.json()["error"]["code"]) == (status, code), call.body
    assert call.headers["content-type"] == "application/json"
    assert call.headers["cache-control"] == "no-store"
    safe(call)


def safe(call: Call) -> None:
    assert call.headers["x-content-type-options"] == "nosniff"
    assert call.headers["cross-origin-resource-policy"] == "cross-origin"
