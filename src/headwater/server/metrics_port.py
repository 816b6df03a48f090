"""`/metrics` on an address of its own: so that it can be reached by whoever scrapes, and by nobody else.

There are no keys there; the address is the guard. Knows uvicorn and the numbers.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from starlette.datastructures import Headers
from starlette.responses import Response

from headwater.delivery import Receive, Scope, Send
from headwater.errors import NotFound
from headwater.http.metrics import Metrics
from headwater.http.origins import Origins
from headwater.problems import SAFETY_HEADERS, answer, not_allowed
from headwater.server.connection import Protocol, listen


class MetricsSite:
    """The application there."""

    def __init__(self, metrics: Metrics, origins: Origins) -> None:
        self._metrics, self._origins = metrics, origins

    def __repr__(self) -> str:
        return f"<MetricsSite of {self._metrics!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        try:
            response = await self._answer(scope)
        except Exception as error:  # noqa: BLE001 -- whatever it was, it is an answer
            response = answer(error)
        for name, value in SAFETY_HEADERS:
            response.headers[name] = value
        await response(scope, receive, send)

    async def _answer(self, scope: Scope) -> Response:
        headers = Headers(scope=scope)
        self._origins.check(scope["method"], headers)
        if scope["path"] != "/metrics":
            raise NotFound("there is only /metrics here")
        if scope["method"] not in ("GET", "HEAD"):
            return not_allowed(["GET", "HEAD"])
        return await self._metrics.answer(headers.get("accept", ""))


class _Server(uvicorn.Server):
    """Leaves signals, and what there is to say of a process, to the server beside it."""

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets)
        await self.main_loop()
        await self.shutdown(sockets)


@asynccontextmanager
async def listening(metrics: Metrics, host: str, port: int, *, hosts: list[str] | None) -> AsyncIterator[str]:
    """While inside, answer there; gives the URL. `hosts`: names by which it may be called; None: any. Raises PortTaken,
    and BadRequest for an address that is none."""
    accepting = listen(host, port)
    site = MetricsSite(metrics, Origins((), hosts))
    server = _Server(
        uvicorn.Config(
            site,
            http=Protocol,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=1,
        )
    )
    serving = asyncio.create_task(server.serve(sockets=[accepting]), name="headwater-metrics-port")
    name = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{name}:{accepting.getsockname()[1]}/metrics"
    finally:
        server.should_exit = True
        await serving
        accepting.close()
