"""One changed line: a generator that went into EventSourceResponse or StreamingResponse, now durable and resumable.

uvicorn examples.fastapi_dropin:app
curl -N 'localhost:8000/answer?question=Why'
curl -N 'localhost:8000/answer?question=Why' -H "Last-Event-ID: $LAST_ID"     # what EventSource does by itself
"""

import asyncio
from collections.abc import AsyncIterator

from fastapi import FastAPI, Request

from headwater.http import StreamResponse, lifespan

app = FastAPI(lifespan=lifespan("sqlite:///answers.db"))


async def answer(question: str) -> AsyncIterator[dict[str, str]]:
    for word in f"You ask: {question} I wish I knew, and say so one word at a time.".split():
        await asyncio.sleep(0.05)
        yield {"token": f"{word} "}


@app.get("/answer")
async def get_answer(question: str, request: Request):
    return StreamResponse(answer(question), request)  # was: EventSourceResponse(answer(question))
