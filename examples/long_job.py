"""A long job that tells its progress to whoever follows it, now or later.

uvicorn examples.long_job:app
curl -X POST 'localhost:8000/jobs?items=20'          # {"follow": "/jobs/…"}
curl -N localhost:8000/jobs/…                        # or: new EventSource("/jobs/…")
"""

import asyncio
from uuid import uuid4

from fastapi import FastAPI, Request

from headwater import Streams, Writer
from headwater.http import follow, lifespan

streams = Streams("sqlite:///jobs.db")
app = FastAPI(lifespan=lifespan(streams))
running: set[asyncio.Task[None]] = set()


async def work(job: Writer, items: int) -> None:
    async with job:  # the stream ends as completed, failed or cancelled by how this block ends
        for done in range(1, items + 1):
            await asyncio.sleep(0.05)  # the work
            await job.send({"done": done, "of": items})


@app.post("/jobs", status_code=202)
async def start(items: int = 10):
    path = f"jobs/{uuid4()}"
    job = streams.writer(path)
    await job.open()  # before the answer, so that it can be followed at once
    task = asyncio.create_task(work(job, items))
    running.add(task)  # asyncio itself does not hold on to its tasks
    task.add_done_callback(running.discard)
    return {"follow": f"/{path}"}


@app.get("/jobs/{job_id}")
async def progress(job_id: str, request: Request):
    return follow(streams, f"jobs/{job_id}", request)
