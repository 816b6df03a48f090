"""An agent whose answers survive reloads, cut connections and restarts.

export OPENAI_API_KEY=…                       # or OPENAI_BASE_URL too, for another provider
uvicorn examples.fastapi_agent:app --http headwater.server:Protocol
curl -N -X POST 'localhost:8000/ask?question=What+is+7+times+6'      # the answer's first header lines: x-run-id
curl -N localhost:8000/runs/$RUN_ID -H "Last-Event-ID: $LAST_ID"     # the rest of it, after a cut
curl -X POST localhost:8000/runs/$RUN_ID/cancel
"""

from agents import Agent, function_tool
from fastapi import FastAPI, Request

from headwater import HeadwaterError, Streams
from headwater.http import error_response, lifespan
from headwater.runs import Runs


@function_tool
def multiply(a: float, b: float) -> float:
    """Multiplies two numbers."""
    return a * b


agent = Agent(name="Assistant", instructions="Answer in one short paragraph.", tools=[multiply])
streams = Streams("sqlite:///agent.db")
runs = Runs(streams, agent)
app = FastAPI(lifespan=lifespan(streams, runs), exception_handlers={HeadwaterError: error_response})


@app.post("/ask")
async def ask(question: str, request: Request):
    key = request.headers.get("idempotency-key")  # the same request again attaches, and starts nothing
    run = await runs.start(agent, question, idempotency_key=key)  # owned by this process, not by this request
    return run.response(request)  # server-sent events, from the first one


@app.get("/runs/{run_id}")
async def follow(run_id: str, request: Request):
    run = await runs.get(run_id)  # after a cut, in another tab, tomorrow
    return run.response(request)  # goes on behind the client's Last-Event-ID


@app.post("/runs/{run_id}/cancel", status_code=202)
async def cancel(run_id: str):
    await runs.cancel(run_id)
