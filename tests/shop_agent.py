"""An agent whose tools leave a mark outside: `headwater serve shop_agent:shop`, to be killed at any time.

Its model is scripted by what it is asked, so that a new process goes on where the old one was: as many rounds of tools
as the input says, two in parallel each, then an answer. It takes its time with everything. The ids of its tool calls
are new each time, as a real model's are.
"""

import asyncio
import json
import os
import random
import secrets
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import agents
import httpx
import openai
from agents import Agent, function_tool

from headwater.sources import tool_call_id
from headwater.sources.openai_agents import OpenAIAgent
from scripted_model import Answer, Call, _sent

agents.set_tracing_disabled(True)

MARKS = Path(os.environ.get("SHOP_MARKS", "marks.ndjson"))
PAUSE = 0.02


def _mark(tool: str, order: str) -> None:
    line = json.dumps({"tool": tool, "order": order, "call": tool_call_id()}) + "\n"
    with MARKS.open("a") as file:  # in one write, which a kill leaves out or in
        file.write(line)


@function_tool
async def charge(order: str) -> str:
    """Charges."""
    await asyncio.sleep(PAUSE)
    await asyncio.to_thread(_mark, "charge", order)
    await asyncio.sleep(2 * PAUSE)
    return f"charged {order}"


@function_tool
def ship(order: str) -> str:
    """Ships."""
    _mark("ship", order)
    return f"shipped {order}"


@function_tool(needs_approval=True)
async def refund(order: str) -> str:
    """Refunds."""
    await asyncio.to_thread(_mark, "refund", order)
    return f"refunded {order}"


def _call(index: int, tool: str, order: str) -> Call:
    arguments = json.dumps({"order": order})
    return Call(
        index=index, id=f"call_{secrets.token_hex(6)}", type="function", function={"name": tool, "arguments": arguments}
    )


def _answer(messages: list[dict[str, Any]]) -> Answer:
    """`shop 3`: three rounds; `refund x`: one tool that needs approval."""
    what, _, name = messages[0]["content"].partition(" ")
    done = sum(message["role"] == "assistant" and bool(message.get("tool_calls")) for message in messages)
    if what == "refund" and not done:
        return [_call(0, "refund", name)]
    if what == "shop" and done < int(name):
        order = f"order-{done}"
        return [_call(0, "charge", order), _call(1, "ship", order)]
    return [f"word{number} " for number in range(20)]


async def _slowly(answer: Answer) -> AsyncIterator[bytes]:
    async for chunk in _sent(answer):
        await asyncio.sleep(PAUSE * random.random())
        yield chunk


async def _respond(request: httpx.Request) -> httpx.Response:
    answer = _answer(json.loads(request.content)["messages"])
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=_slowly(answer))


_client = openai.AsyncOpenAI(
    api_key="none",
    base_url="http://model.test/v1",
    max_retries=0,
    http_client=httpx.AsyncClient(transport=httpx.MockTransport(_respond)),
)
shop = OpenAIAgent(
    Agent(name="shop", tools=[charge, ship, refund], model=agents.OpenAIChatCompletionsModel("tiny", _client)),
    max_turns=30,
)
