"""An OpenAI-compatible API on a real socket that answers as it is told, breaks off included."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

KEY = "sk-upstream-4711"


class Upstream:
    """`script` is what each request gets: bytes, events to wait for, and "cut" (RST) or "end" (FIN, at once)."""

    def __init__(self) -> None:
        self.script: list[Any] = []
        self.head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        """Path, headers and body of each request."""
        self.left = asyncio.Event()
        """Set when somebody closed a connection before its answer was over."""

    def answer(self, body: Any) -> None:
        """Give each request from now on this JSON."""
        said = json.dumps(body).encode()
        self.head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(said)
        self.script = [said, "end"]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(body) for _, _, body in self.asked]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while await self._answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            self.left.set()
        finally:
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.asked.append((head[0].split()[1], headers, body))
        writer.write(self.head)
        chunked = b"chunked" in self.head
        for part in self.script:
            if isinstance(part, asyncio.Event):
                gone = asyncio.ensure_future(reader.read(1))
                waiting = asyncio.ensure_future(part.wait())
                await asyncio.wait([gone, waiting], return_when=asyncio.FIRST_COMPLETED)
                if gone.done():
                    waiting.cancel()
                    raise ConnectionResetError
                gone.cancel()
                await asyncio.wait([gone])
            elif part == "cut":
                await writer.drain()
                writer.transport.abort()
                return False
            elif part == "end":
                return False
            else:
                writer.write(b"%x\r\n%s\r\n" % (len(part), part) if chunked else part)
                await writer.drain()
        if chunked:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return chunked


@asynccontextmanager
async def upstream() -> AsyncIterator[tuple[Upstream, str]]:
    """The API and its base URL."""
    api = Upstream()
    server = await asyncio.start_server(api.serve, "127.0.0.1", 0)
    try:
        yield api, f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
    finally:
        server.close()
        await server.wait_closed()


def chunk(content: str | None = None, finish: str | None = None) -> bytes:
    """One event of Chat Completions."""
    delta = {} if content is None else {"content": content}
    return event(
        id="c1",
        object="chat.completion.chunk",
        created=1,
        model="tiny",
        choices=[{"index": 0, "delta": delta, "finish_reason": finish}],
    )


def event(name: str | None = None, **data: Any) -> bytes:
    return (b"event: %s\n" % name.encode() if name else b"") + b"data: %s\n\n" % json.dumps(data).encode()


DONE = b"data: [DONE]\n\n"
