"""An agent of Pydantic AI whose answers survive reloads, cut connections and restarts.

pip install 'headwater[pydantic-ai,server]' 'pydantic-ai-slim[openai]'
export OPENAI_API_KEY=…
uvicorn examples.pydantic_ai_agent:app
curl -N -X POST 'localhost:8000/ask?question=What+is+7+times+6'      # the answer's first header lines: x-run-id
curl -N localhost:8000/runs/$RUN_ID -H "Last-Event-ID: $LAST_ID"     # the rest of it, after a cut
"""

from fastapi import FastAPI, Request
from pydantic_ai import Agent

from headwater import HeadwaterError, Streams
from headwater.http import error_response, lifespan
from headwater.runs import Runs
from headwater.sources import progress
from headwater.sources.pydantic_ai import PydanticAIAgent

agent = Agent("openai:gpt-5.2", name="assistant", instructions="Answer in one short paragraph.", defer_model_check=True)


@agent.tool_plain
async def multiply(a: float, b: float) -> float:
    """Multiplies two numbers."""
    progress("multiplying", fraction=0.5)  # to whoever watches the run
    return a * b


streams = Streams("sqlite:///agent.db")
runs = Runs(streams, PydanticAIAgent(agent))
app = FastAPI(lifespan=lifespan(streams, runs), exception_handlers={HeadwaterError: error_response})


@app.post("/ask")
async def ask(question: str, request: Request):
    run = await runs.start("assistant", question)
    return run.response(request)


@app.get("/runs/{run_id}")
async def follow(run_id: str, request: Request):
    run = await runs.get(run_id)
    return run.response(request)
