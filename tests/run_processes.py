"""Several processes on one store, as far as runs can tell: each with its own Streams, Runs and tools."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import agents
from ag_ui_validate.pytest_plugin import assert_valid_agui
from agents import Agent, function_tool

from headwater import Streams, leases
from headwater.agui import OpenParts, decode
from headwater.runs import Run, Runs
from headwater.sources import tool_call_id
from scripted_model import SECRET, Answer, scripted

Event = dict[str, Any]


class Tools:
    """Tools that note what they do, and can be held up."""

    def __init__(self) -> None:
        self.done: list[tuple[str, str | None]] = []
        self.hold: dict[str, asyncio.Event] = {}
        self.began: dict[str, asyncio.Event] = {name: asyncio.Event() for name in ("pay", "mail", "danger")}

    def all(self) -> list[agents.Tool]:
        @function_tool
        async def pay(n: int) -> str:
            """Pays."""
            return await self._do("pay", f"paid {n}")

        @function_tool
        async def mail(n: int) -> str:
            """Writes."""
            return await self._do("mail", f"mailed {n}")

        @function_tool(needs_approval=True)
        async def danger(n: int) -> str:
            """Asks first."""
            return await self._do("danger", f"dared {n}")

        return [pay, mail, danger]

    async def _do(self, name: str, result: str) -> str:
        self.done.append((name, tool_call_id()))
        self.began[name].set()
        if name in self.hold:
            await self.hold[name].wait()
        return result


class Process:
    """What one process has of it all."""

    def __init__(self, streams: Streams, runs: Runs, tools: Tools, asked: list[Any]) -> None:
        self.streams, self.runs, self.tools, self.asked = streams, runs, tools, asked

    async def lapse(self) -> None:
        """As when nothing was heard of it for too long."""
        await self.streams.delete(leases.PREFIX + self.streams.leases.owner)

    async def look(self) -> int:
        return await self.streams.leases.finish_orphans()


Processes = Callable[..., AbstractAsyncContextManager[Process]]


def processes(url: str) -> Processes:
    """`async with processes(url)(*answers) as process`: one whose model gives these."""

    @asynccontextmanager
    async def running(*answers: Answer, tools: Tools | None = None, **options: Any) -> AsyncIterator[Process]:
        tools, asked = tools or Tools(), []
        agent = Agent(name="bot", tools=tools.all(), model=scripted(*answers, asked=asked.append))
        async with Streams(url) as streams, Runs(streams, agent, **options) as runs:
            yield Process(streams, runs, tools, asked)

    return running


async def read(run: Run, streams: Streams) -> list[Event]:
    """All events of a run, when it has ended; judged by AG-UI's rules and ours."""
    async with asyncio.timeout(10):
        events = [decode(m.data) async for page in streams.follow(run.stream) for m in page.messages]
    parts = OpenParts()
    for event in events:
        parts.feed(event)
    assert_valid_agui(events, severity_overrides={"AGUI204": "off"})
    assert SECRET not in json.dumps(events)
    return events


async def seen(streams: Streams, run: Run, what: str) -> None:
    async with asyncio.timeout(10):
        async for page in streams.follow(run.stream):
            if any(what.encode() in message.data for message in page.messages):
                return


def custom(events: list[Event], name: str) -> list[Any]:
    return [event["value"] for event in events if event["type"] == "CUSTOM" and event["name"] == name]


def final_text(events: list[Event]) -> str:
    """What a reader has in the end that takes back what is retracted."""
    messages: dict[str, str] = {}
    for event in events:
        if event["type"] == "TEXT_MESSAGE_CONTENT":
            messages[event["messageId"]] = messages.get(event["messageId"], "") + event["delta"]
    for value in custom(events, "message.retracted"):
        messages.pop(value["messageId"], None)
    return "".join(messages.values())


def results(events: list[Event]) -> dict[str, str]:
    return {event["toolCallId"]: event["content"] for event in events if event["type"] == "TOOL_CALL_RESULT"}
