"""An async generator as an agent: your own loop over a model, whose answers survive reloads, cuts and restarts.

uvicorn examples.generator_agent:app
curl -N -X POST 'localhost:8000/ask?question=Why'                    # the answer's first header lines: x-run-id
curl -N localhost:8000/runs/$RUN_ID -H "Last-Event-ID: $LAST_ID"     # the rest of it, after a cut
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request

from headwater import HeadwaterError, Streams
from headwater.http import error_response, lifespan
from headwater.runs import Runs
from headwater.sources import RunFailed
from headwater.sources.generator import Generator


async def answer(question: str) -> AsyncIterator[str | dict[str, Any]]:
    if "?" in question:
        raise RunFailed("no_questions", "Ask without a question mark.")  # what readers may know
    yield {"searching": question}  # data beside the text: a CUSTOM event
    for word in f"You ask: {question}. I wish I knew, and say so one word at a time.".split():
        await asyncio.sleep(0.05)  # the model
        yield f"{word} "  # the text of one message


streams = Streams("sqlite:///answers.db")
runs = Runs(streams, Generator(answer))
app = FastAPI(lifespan=lifespan(streams, runs), exception_handlers={HeadwaterError: error_response})


@app.post("/ask")
async def ask(question: str, request: Request):
    run = await runs.start("answer", question)
    return run.response(request)


@app.get("/runs/{run_id}")
async def follow(run_id: str, request: Request):
    run = await runs.get(run_id)
    return run.response(request)
