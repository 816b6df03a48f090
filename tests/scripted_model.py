"""A model that says what a test wants, when the test wants it: the real SDK and the real client on a scripted wire.

    agent = Agent(name="Bot", model=scripted(["Hel", gate, "lo"], calls("search", {"q": "x"}), [RuntimeError("cut")]))

One answer per call of the model: a list of deltas, of events to wait for, and of exceptions that break the connection.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import agents
import httpx
import openai

SECRET = "sk-secret-4711"

Answer = list[Any]

agents.set_tracing_disabled(True)


class Call(dict[str, Any]):
    """A delta that calls a tool."""


def calls(tool: str, arguments: dict[str, Any], call_id: str = "call_1") -> Answer:
    function = {"name": tool, "arguments": json.dumps(arguments)}
    return [Call(index=0, id=call_id, type="function", function=function)]


def scripted(*answers: Answer, asked: Callable[[dict[str, Any]], None] = lambda _: None) -> agents.Model:
    """`asked` is called with the body of each request for an answer."""
    left = list(answers)

    async def answer(request: httpx.Request) -> httpx.Response:
        asked(json.loads(request.content))
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=_sent(left.pop(0)))

    http = httpx.AsyncClient(transport=httpx.MockTransport(answer))
    client = openai.AsyncOpenAI(api_key=SECRET, base_url="http://model.test/v1", max_retries=0, http_client=http)
    return agents.OpenAIChatCompletionsModel("tiny", client)


async def _sent(parts: Answer) -> AsyncIterator[bytes]:
    count = 0
    for part in parts:
        if isinstance(part, asyncio.Event):
            await part.wait()
        elif isinstance(part, Exception):
            raise httpx.ReadError(str(part))
        else:
            count += 1
            yield _chunk({"tool_calls": [part]} if isinstance(part, Call) else {"content": part})
            await asyncio.sleep(0)
    yield _chunk({}, finish="tool_calls" if isinstance(parts[0], Call) else "stop")
    usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
    yield _chunk(None, usage=usage) + b"data: [DONE]\n\n"


def _chunk(delta: dict[str, Any] | None, *, finish: str | None = None, usage: dict[str, int] | None = None) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "tiny"}
    return b"data: %s\n\n" % json.dumps(body | {"choices": choices} | ({"usage": usage} if usage else {})).encode()
