"""Agents that say what the user asks for by name, on a scripted wire: for clients in other processes.

    headwater serve tests.agents_to_read:bot

`words` speaks in its own time, `slowly` in a second or two, `tool` calls one first, `error` breaks off, `hold` begins
and never goes on, `history` says what the model was sent, `approval` calls a tool that has to be approved, and a second
one that has not.
"""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import agents
import httpx
import openai

sys.path.insert(0, str(Path(__file__).parent))

from scripted_model import SECRET, Answer, Call, _sent, calls

WORDS = [f"word {number} 漢\u2028字\n" for number in range(20)]


def script(asked: str, messages: list[dict[str, Any]]) -> Answer:
    if asked in ("words", "slowly"):
        seconds = 0.01 if asked == "words" else 0.1
        return [part for number, word in enumerate(WORDS) for part in (pause(seconds * number), word)]
    if asked == "tool" and messages[-1]["role"] != "tool":
        return calls("search", {"q": "x"}, call_id=f"call_{len(messages)}")
    if asked == "tool":
        return ["Found: ", messages[-1]["content"]]
    if asked == "error":
        return ["Hel", "lo", ConnectionError("cut")]
    if asked == "hold":
        return ["Hel", asyncio.Event()]
    if asked == "approval" and messages[-1]["role"] != "tool":
        both = [("danger", {"n": 1}), ("search", {"q": "x"})]
        return [
            Call(
                index=at,
                id=f"call_{len(messages)}_{at}",
                type="function",
                function={"name": name, "arguments": json.dumps(given)},
            )
            for at, (name, given) in enumerate(both)
        ]
    if asked == "approval":
        return [
            "It said: ",
            next(m["content"] for m in messages if m["role"] == "tool" and "found" not in m["content"]),
        ]
    if asked == "history":
        return [json.dumps([[message["role"], _text(message)] for message in messages])]
    return ["?"]


def pause(seconds: float) -> asyncio.Event:
    """Comes so long after the answer was asked for."""
    over = asyncio.Event()
    asyncio.get_running_loop().call_later(seconds, over.set)
    return over


def _text(message: dict[str, Any]) -> str:
    content = message.get("content")
    if isinstance(content, list):
        return " ".join(part.get("text", part["type"]) for part in content)
    return content or " ".join(call["function"]["name"] for call in message["tool_calls"])


async def _answer(request: httpx.Request) -> httpx.Response:
    messages = json.loads(request.content)["messages"]
    asked = next(_text(message) for message in reversed(messages) if message["role"] == "user")
    content = _sent(script(asked, messages))
    return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=content)


@agents.function_tool
def search(q: str) -> dict[str, str]:
    """Looks it up."""
    return {"found": q}


@agents.function_tool(needs_approval=True)
def danger(n: int) -> str:
    """Asks first."""
    return f"dared {n}"


_http = httpx.AsyncClient(transport=httpx.MockTransport(_answer))
_client = openai.AsyncOpenAI(api_key=SECRET, base_url="http://model.test/v1", max_retries=0, http_client=_http)
bot = agents.Agent(name="Bot", model=agents.OpenAIChatCompletionsModel("tiny", _client), tools=[search, danger])
