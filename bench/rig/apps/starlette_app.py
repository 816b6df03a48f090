"""The same by hand: Starlette's StreamingResponse, no heartbeat, one frame made for all."""

import asyncio
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from tokens import tokens

readers: set[asyncio.Queue[bytes]] = set()
count = 0


async def events() -> AsyncIterator[bytes]:
    queue: asyncio.Queue[bytes] = asyncio.Queue()
    readers.add(queue)
    try:
        yield b": open\n"
        while True:
            yield await queue.get()
    finally:
        readers.discard(queue)


async def follow(_: Request) -> Response:
    return StreamingResponse(events(), media_type="text/event-stream")


async def publish(request: Request) -> Response:
    global count
    count += 1
    frame = b"id: %d\ndata: %b\n\n" % (count, await request.body())
    for queue in readers:
        queue.put_nowait(frame)
    return Response(status_code=204)


async def frames() -> AsyncIterator[bytes]:
    async for token in tokens():
        yield f"data: {token}\n\n".encode()


async def answer(_: Request) -> Response:
    return StreamingResponse(frames(), media_type="text/event-stream")


app = Starlette(
    routes=[Route("/events", follow), Route("/events", publish, methods=["POST"]), Route("/answer", answer)]
)
