"""What many write with sse-starlette: a queue for each reader, and a generator that yields what comes."""

import asyncio
from collections.abc import AsyncIterator

from sse_starlette import EventSourceResponse, ServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from tokens import tokens

readers: set[asyncio.Queue[tuple[int, str]]] = set()
count = 0


async def events() -> AsyncIterator[ServerSentEvent]:
    queue: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    readers.add(queue)
    try:
        while True:
            number, data = await queue.get()
            yield ServerSentEvent(data, id=str(number), sep="\n")
    finally:
        readers.discard(queue)


async def follow(_: Request) -> Response:
    return EventSourceResponse(events(), sep="\n")


async def publish(request: Request) -> Response:
    global count
    count += 1
    data = (await request.body()).decode()
    for queue in readers:
        queue.put_nowait((count, data))
    return Response(status_code=204)


async def said() -> AsyncIterator[ServerSentEvent]:
    async for token in tokens():
        yield ServerSentEvent(token, sep="\n")


async def answer(_: Request) -> Response:
    return EventSourceResponse(said(), sep="\n")


app = Starlette(
    routes=[Route("/events", follow), Route("/events", publish, methods=["POST"]), Route("/answer", answer)]
)
