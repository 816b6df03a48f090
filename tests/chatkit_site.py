"""A ChatKit backend for tests: the official server and Agents SDK helper over a scripted model, and its client's types.

As a program (`python chatkit_site.py STORE PORT`) it serves `/chatkit`, with an answer that stops in its middle.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from agents import Agent, Runner
from chatkit.agents import AgentContext, stream_agent_response
from chatkit.server import ChatKitServer
from chatkit.types import ThreadStreamEvent
from pydantic import TypeAdapter

from headwater.wire.sse import Decoder, Event

sys.path.insert(0, str(Path(__file__).parent.parent))
from examples.chatkit_agent import MemoryStore

EVENT: TypeAdapter[Any] = TypeAdapter(ThreadStreamEvent)
DELTA = "assistant_message.content_part.text_delta"


class SlowStore(MemoryStore):
    """Its writes of items really wait, and say whether they were let finish."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = self.finished = 0

    async def add_thread_item(self, thread_id: str, item: Any, context: Any) -> None:
        self.begun += 1
        for _ in range(3):
            await asyncio.sleep(0.001)
        await super().save_item(thread_id, item, context)
        self.finished += 1

    def texts(self) -> list[Any]:
        """Of all items, in the order of their saving."""
        return [text_of(item) for items in self.items.values() for item in items.values()]


def text_of(item: Any) -> Any:
    return item.content if isinstance(item.content, str) else "".join(part.text for part in item.content)


class Site(ChatKitServer):  # type: ignore[type-arg]
    """Answers with an agent."""

    def __init__(self, model: Any, *tools: Any) -> None:
        super().__init__(SlowStore())
        self.agent = Agent(name="bot", model=model, tools=list(tools))
        self.contexts: list[Any] = []
        self.runs: list[Any] = []

    async def respond(self, thread: Any, input_user_message: Any, context: Any) -> AsyncIterator[Any]:
        self.contexts.append(context)
        about = AgentContext(thread=thread, store=self.store, request_context=context)
        run = Runner.run_streamed(self.agent, text_of(input_user_message), context=about)
        self.runs.append(run)
        async for event in stream_agent_response(about, run):
            yield event


def asked(text: str = "Hello?", thread: str | None = None) -> dict[str, Any]:
    """The request of a user's message, to a thread or a new one."""
    said = {"content": [{"type": "input_text", "text": text}], "attachments": [], "inference_options": {}}
    if thread is None:
        return {"type": "threads.create", "params": {"input": said}}
    return {"type": "threads.add_user_message", "params": {"thread_id": thread, "input": said}}


def read(body: bytes) -> list[Event]:
    """The events, each of which ChatKit's own types take."""
    events = Decoder().feed(body)
    for event in events:
        assert event.event == "message"
        EVENT.validate_json(event.data)
    return events


def said(body: bytes) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in read(body)]


def types(body: bytes) -> list[str]:
    return [event["type"] for event in said(body)]


def text(body: bytes) -> str:
    updates = [event["update"] for event in said(body) if event["type"] == "thread.item.updated"]
    return "".join(update["delta"] for update in updates if update["type"] == DELTA)


def thread_of(body: bytes) -> str:
    return next(event["thread"]["id"] for event in said(body) if event["type"] == "thread.created")


def _serve(store: str, port: int) -> None:
    import uvicorn

    from headwater import Streams
    from headwater.http import App
    from headwater.http.chatkit import ChatKit
    from scripted_model import scripted

    streams = Streams(store)
    site = Site(scripted(["0 ", "1 ", "2 ", "3 ", asyncio.Event()]))
    uvicorn.run(App(streams, pages={"/chatkit": ChatKit(site, streams)}), port=port, log_level="warning")


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
