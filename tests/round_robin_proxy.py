"""An HTTP proxy in front of several servers that gives each request to the next of them, as a load balancer does.

One request per connection: the client is told to connect again. So bodies pass as they are, both ways and at once, and
no framing has to be understood. Who leaves, client or server, takes the other side of the connection along.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Self

HEAD_BYTES = 1 << 20


class RoundRobinProxy:
    """`async with RoundRobinProxy(ports) as proxy`: `proxy.url` reaches them all, `proxy.requests` counts by port."""

    def __init__(self, ports: Sequence[int]) -> None:
        self.requests = dict.fromkeys(ports, 0)
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, limit=HEAD_BYTES, backlog=1000)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):  # somebody left, or it is over
                await self._pass_on(await reader.readuntil(b"\r\n\r\n"), reader, writer)
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _pass_on(self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        port = min(self.requests, key=self.requests.__getitem__)
        self.requests[port] += 1
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        up_writer.write(_alone(head))
        ways = [asyncio.create_task(_copy(reader, up_writer)), asyncio.create_task(_copy(up_reader, writer))]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            up_writer.close()


def _alone(head: bytes) -> bytes:
    """The head of a request that is the only one on its connection. Nothing else changes, `Host` least of all."""
    lines = [line for line in head.split(b"\r\n") if line and not line.lower().startswith(b"connection:")]
    return b"\r\n".join([*lines, b"connection: close", b"", b""])


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
