"""A graph of LangGraph, with a question to a person in it, whose runs survive reloads, cuts and restarts.

pip install 'headwater[langgraph,server]'
uvicorn examples.langgraph_agent:app
curl -N -X POST 'localhost:8000/ask?thread=t1&text=Tea+for+two'      # ends with a CUSTOM event "interrupt"
curl -N -X POST 'localhost:8000/reply?thread=t1&text=yes'            # another run, which goes on from there
"""

from fastapi import FastAPI, Request
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.types import interrupt

from headwater import HeadwaterError, Streams
from headwater.http import error_response, lifespan
from headwater.runs import Runs
from headwater.sources.langgraph import LangGraphAgent


def order(state: MessagesState):
    said = interrupt({"question": f"Really: {state['messages'][-1].text}?"})
    return {"messages": [AIMessage("It is on its way." if said == "yes" else "Then not.")]}


graph = StateGraph(MessagesState).add_node("order", order).add_edge(START, "order")
compiled = graph.compile(checkpointer=InMemorySaver(), name="waiter")  # a real one belongs into a database
streams = Streams("sqlite:///graph.db")
runs = Runs(streams, LangGraphAgent(compiled))
app = FastAPI(lifespan=lifespan(streams, runs), exception_handlers={HeadwaterError: error_response})


@app.post("/ask")
async def ask(thread: str, text: str, request: Request):
    run = await runs.start("waiter", text, thread_id=thread)
    return run.response(request)


@app.post("/reply")
async def reply(thread: str, text: str, request: Request):
    run = await runs.start("waiter", {"resume": text}, thread_id=thread)
    return run.response(request)
