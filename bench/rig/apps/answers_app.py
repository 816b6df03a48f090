"""An answer of a model for each request, kept in a stream of its own that the client follows and may resume.

`/answer` writes it by hand (with `?writer=50` it joins what comes within 50 ms), `/response` leaves that to
StreamResponse, `/nobody` has it made and written nowhere.
"""

import asyncio
import secrets
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from tokens import tokens

from headwater import Streams
from headwater.http import StreamResponse, follow, lifespan

streams = Streams("memory:")
making: set[asyncio.Task[None]] = set()


async def make(name: str, opened: asyncio.Event, join_ms: int) -> None:
    async with streams.writer(name, join_ms=join_ms) as writer:
        opened.set()
        async for token in tokens():
            await writer.send(token.encode())


async def answer(request: Request) -> Response:
    name, opened = f"answers/{secrets.token_hex(8)}", asyncio.Event()
    task = asyncio.create_task(make(name, opened, int(request.query_params.get("writer", 0))))
    making.add(task)
    task.add_done_callback(making.discard)
    await opened.wait()
    return follow(streams, name, request)


async def response(request: Request) -> Response:
    return StreamResponse(tokens(), request)


async def silence() -> AsyncIterator[bytes]:
    yield b": open\n\n"
    async for _ in tokens():
        pass


async def nobody(_: Request) -> Response:
    return StreamingResponse(silence(), media_type="text/event-stream")


ENDPOINTS = {"/answer": answer, "/response": response, "/nobody": nobody}
app = Starlette(routes=[Route(path, made) for path, made in ENDPOINTS.items()], lifespan=lifespan(streams))
