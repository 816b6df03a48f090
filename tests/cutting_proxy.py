"""A TCP proxy that cuts connections after so many bytes of the answer: how networks fail, at will."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Self


class CuttingProxy:
    """Each connection takes the next of `cuts`: bytes of the answer that still pass, None for all of them.

    `abrupt`: cut by RST, as a dead machine or a dropped NAT entry is seen; else by FIN, as a stopped program is.
    """

    def __init__(self, port: int, cuts: Iterator[int | None], *, abrupt: bool = False) -> None:
        self._upstream, self.cuts, self.abrupt = port, cuts, abrupt
        self.passed = 0
        """Bytes of answers that went through, over all connections."""
        self.head = 0
        """Bytes of the newest whole answer before its body."""
        self._connections: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # Held here: asyncio lets go of the task of a connection that is lost, though it has still to close the other.
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        with suppress(asyncio.CancelledError):
            await self._pass_both_ways(reader, writer)
        self._connections.discard(connection)

    async def _pass_both_ways(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        left = next(self.cuts)
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", self._upstream)
        asking = asyncio.create_task(_pass_on(reader, up_writer))
        try:
            with suppress(OSError):
                while left != 0 and (data := await up_reader.read(65536)):
                    if left is None and data.startswith(b"HTTP/1.1 "):
                        self.head = data.index(b"\r\n\r\n") + 4
                    data = data[:left]
                    writer.write(data)
                    await writer.drain()
                    self.passed += len(data)
                    left = None if left is None else left - len(data)
            if self.abrupt:
                writer.transport.abort()
        finally:
            for end in (writer, up_writer):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()
