"""A receiver of webhooks: a real HTTP server on loopback that keeps what came and answers as it is told."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, Self

Answer = tuple[int, bytes]
DONE: Answer = (200, b'{"done":true}')
TAKEN: Answer = (200, b"{}")


class Webhook(NamedTuple):
    """One request."""

    target: str
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Receiver:
    """`async with Receiver() as receiver`: `await receiver.next()` is the next webhook.

    It is answered by the next of `answers`, and then by `usual`. An answer is a status and a body, or a function that
    is given the webhook and awaited for one.
    """

    def __init__(self, *answers: Any, usual: Any = TAKEN, tls: ssl.SSLContext | None = None) -> None:
        self.answers, self.usual = list(answers), usual
        self.received: list[Webhook] = []
        self._tls = tls
        self._news: asyncio.Queue[Webhook] = asyncio.Queue()
        self._serving: set[asyncio.Task[Any]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=self._tls)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}/hook?a=b"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def next(self) -> Webhook:
        return await self._news.get()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            with suppress(OSError, asyncio.IncompleteReadError):
                await self._answer(reader, writer)
        finally:
            self._serving.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
        webhook = Webhook(first.split(" ")[1], headers, await reader.readexactly(int(headers["content-length"])))
        self.received.append(webhook)
        self._news.put_nowait(webhook)
        answer: Answer | Callable[[Webhook], Any] = self.answers.pop(0) if self.answers else self.usual
        status, body = await answer(webhook) if callable(answer) else answer
        more = b"location: http://127.0.0.1:1/elsewhere\r\n" if status == 302 else b""
        writer.write(b"HTTP/1.1 %d x\r\ncontent-length: %d\r\n%b\r\n%b" % (status, len(body), more, body))
        await writer.drain()
