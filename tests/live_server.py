"""An application under a real uvicorn, on the test's own loop, so that test and endpoint can wait for each other."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import uvicorn


@asynccontextmanager
async def live(application: Any, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the served application; `options` are uvicorn's."""
    listening = socket.create_server(("127.0.0.1", 0))
    given: dict[str, Any] = {"log_config": None, "ws": "none", "lifespan": "on", "timeout_graceful_shutdown": 5}
    config = uvicorn.Config(application, **given | options)
    server = _Server(config)
    serving = asyncio.create_task(server.serve([listening]))
    try:
        await asyncio.wait([serving, asyncio.ensure_future(server.up.wait())], return_when=asyncio.FIRST_COMPLETED)
        host, port = listening.getsockname()
        async with httpx.AsyncClient(base_url=f"http://{host}:{port}", timeout=10) as client:
            yield client
    finally:
        server.should_exit = True
        await serving
        listening.close()


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.up = asyncio.Event()

    async def main_loop(self) -> None:
        self.up.set()
        await super().main_loop()
