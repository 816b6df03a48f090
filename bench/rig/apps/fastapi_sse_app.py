"""The same with FastAPI's own server-sent events."""

import asyncio
from collections.abc import AsyncIterable

from fastapi import FastAPI, Request, Response
from fastapi.sse import EventSourceResponse, ServerSentEvent
from tokens import tokens

app = FastAPI()
readers: set[asyncio.Queue[tuple[int, str]]] = set()
count = 0


@app.get("/events", response_class=EventSourceResponse)
async def follow() -> AsyncIterable[ServerSentEvent]:
    queue: asyncio.Queue[tuple[int, str]] = asyncio.Queue()
    readers.add(queue)
    try:
        while True:
            number, data = await queue.get()
            yield ServerSentEvent(raw_data=data, id=str(number))
    finally:
        readers.discard(queue)


@app.post("/events", status_code=204)
async def publish(request: Request) -> Response:
    global count
    count += 1
    data = (await request.body()).decode()
    for queue in readers:
        queue.put_nowait((count, data))
    return Response(status_code=204)


@app.get("/answer", response_class=EventSourceResponse)
async def answer() -> AsyncIterable[ServerSentEvent]:
    async for token in tokens():
        yield ServerSentEvent(raw_data=token)
