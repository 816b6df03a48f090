"""More of the matrix for the official `openai` clients: what `test_openai_clients` has not, of Python and of npm.

Chat Completions has no way to go on with an answer: who asks again with the same Idempotency-Key gets the answer of
the same run from its beginning, which is how it survives a cut, comes late, and is read twice.
"""

import asyncio
import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from event_cutter import EventCutter
from headwater.client import Client
from matrix import cell, marks
from scripted_model import calls
from test_openai_clients import ASK, CHAT, TEXT, WORDS, Site, ask, collect, serving

__all__ = ["ask"]

KEY = {"Idempotency-Key": "k1"}
DANGER = calls("danger", {"n": 1})
TOOL = calls("search", {"q": "x"})
MOST = 30
"""Connections that somebody patient would make."""


async def newest(site: Site) -> str:
    """The run that was started last, as soon as there is one."""
    while True:
        runs = (await site.http.get("/v1/runs")).json()["runs"]
        if runs:
            return str(runs[0]["id"])
        await asyncio.sleep(0.01)


async def read_by(site: Site, count: int) -> None:
    """Until so many follow the run, who have then been sent what there is."""
    run = await newest(site)
    async with Client(str(site.http.base_url)) as client:
        while (await client.info(f"runs/{run}")).readers != count:
            await asyncio.sleep(0.01)


async def approve(site: Site) -> None:
    """What the run asks, once it does."""
    run = await newest(site)
    while not (asked := (await site.http.get(f"/v1/runs/{run}")).json().get("approvals")):
        await asyncio.sleep(0.01)
    answer = {"tool_call_id": asked[0]["toolCallId"], "approve": True}
    (await site.http.post(f"/v1/runs/{run}/approvals", json=answer)).raise_for_status()


def said(chunks: list[Any]) -> str:
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"])


def plain(chunks: list[Any]) -> list[Any]:
    """What is said, put together: what is past comes in fewer chunks."""
    told = [chunk["choices"][0] for chunk in chunks if chunk["choices"]]
    return [{chunk["id"] for chunk in chunks}, said(chunks), [one["finish_reason"] for one in told][-1]]


# --- approval --------------------------------------------------------------------------------------------------------


@cell("openai-python responses", "approval")
@cell("openai-python chat", "approval")
async def test_an_answer_waits_and_goes_on_once_it_is_approved() -> None:
    async with serving(DANGER, WORDS) as site:
        events: list[Any] = []
        reading = asyncio.create_task(collect(site.client.responses.create(**ASK, stream=True), events.append))
        await approve(site)
        await reading
        assert (events[-1].type, events[-1].response.output_text) == ("response.completed", TEXT)
        (call,) = [item for item in events[-1].response.output if item.type == "mcp_call"]
        assert (call.name, call.output) == ("danger", "dared 1")
    async with serving(DANGER, WORDS) as site:
        assert said(await both(site, chat_chunks(site.client), approve(site))) == TEXT


@pytest.mark.server
@cell("openai-js responses", "approval")
@cell("openai-js chat", "approval")
async def test_npm_an_answer_waits_and_goes_on_once_it_is_approved(ask: Callable[..., Any]) -> None:
    async with serving(DANGER, WORDS) as site:
        whole = await both(site, ask(site, "whole", create=ASK), approve(site))
        assert whole["last"]["status"] == "completed"
        assert [item["type"] for item in whole["last"]["output"]] == ["mcp_call", "message"]
    async with serving(DANGER, WORDS) as site:
        assert said((await both(site, ask(site, "chat", create=CHAT), approve(site)))["chunks"]) == TEXT


async def both(site: Site, reading: Any, doing: Any) -> Any:
    async with asyncio.TaskGroup() as tasks:
        read = tasks.create_task(reading)
        tasks.create_task(doing)
    return read.result()


# --- cuts, of chats --------------------------------------------------------------------------------------------------


async def chat_chunks(client: openai.AsyncOpenAI, **more: Any) -> list[Any]:
    stream = await client.chat.completions.create(**CHAT, **more, stream=True)
    return [chunk.to_dict() async for chunk in stream]


async def chat_again(client: openai.AsyncOpenAI, most: int) -> tuple[list[Any], int]:
    """What an application writes: it asks again with the same key, and begins anew, until an answer is whole."""
    for connections in range(1, most + 1):
        chunks: list[Any] = []
        try:
            stream = await client.chat.completions.create(**CHAT, stream=True, extra_headers=KEY)
            async for chunk in stream:
                chunks.append(chunk.to_dict())  # noqa: PERF401 -- those before a cut count
        except openai.APIConnectionError:
            continue
        if any(chunk["choices"] and chunk["choices"][0]["finish_reason"] for chunk in chunks):
            return chunks, connections
    return [], most


def places(client: str) -> Iterator[object]:
    for each, abrupt in itertools.product((1, 2, 4), (False, True)):
        column = "cut after each event" if abrupt else "ended after each event"
        yield pytest.param(each, abrupt, marks=marks(client, column), id=f"{'abrupt' if abrupt else 'clean'}-{each}")


@pytest.mark.parametrize(("each", "abrupt"), list(places("openai-python chat")))
async def test_a_chat_that_was_cut_is_asked_for_again(each: int, abrupt: bool) -> None:
    async with serving(TOOL, WORDS, around=functools.partial(EventCutter, each=each, abrupt=abrupt, times=2)) as site:
        chunks, connections = await chat_again(site.client, MOST)
        assert (said(chunks), connections, await site.runs_made()) == (TEXT, 3, 1)


@pytest.mark.server
@pytest.mark.parametrize(("each", "abrupt"), list(places("openai-js chat")))
async def test_npm_a_chat_that_was_cut_is_asked_for_again(ask: Callable[..., Any], each: int, abrupt: bool) -> None:
    async with serving(TOOL, WORDS, around=functools.partial(EventCutter, each=each, abrupt=abrupt, times=2)) as site:
        got = await ask(site, "chatAgain", create=CHAT, key="k1", most=MOST)
        assert (said(got["chunks"]), got["connections"], await site.runs_made()) == (TEXT, 3, 1)


@cell("openai-python chat", "one event per connection")
async def test_a_chat_of_one_event_per_connection() -> None:
    async with serving(TOOL, WORDS, around=functools.partial(EventCutter, each=1, abrupt=False)) as site:
        chunks, _ = await chat_again(site.client, MOST)
        assert said(chunks) == TEXT


@pytest.mark.server
@cell("openai-js chat", "one event per connection")
async def test_npm_a_chat_of_one_event_per_connection(ask: Callable[..., Any]) -> None:
    async with serving(TOOL, WORDS, around=functools.partial(EventCutter, each=1, abrupt=False)) as site:
        got = await ask(site, "chatAgain", create=CHAT, key="k1", most=MOST)
        assert said(got["chunks"]) == TEXT


# --- late, and twice -------------------------------------------------------------------------------------------------


@cell("openai-python chat", "late join", "two readers")
async def test_a_chat_is_read_twice_and_late() -> None:
    gate = asyncio.Event()
    async with serving([*WORDS[:2], gate, *WORDS[2:]]) as site:
        early = [asyncio.create_task(chat_chunks(site.client, extra_headers=KEY)) for _ in range(2)]
        await read_by(site, 2)
        late = asyncio.create_task(chat_chunks(site.client, extra_headers=KEY))
        await read_by(site, 3)
        gate.set()
        first, second, third = [plain(await one) for one in (*early, late)]
        assert first == second == third
        assert (first[1:], await site.runs_made()) == ([TEXT, "stop"], 1)


@pytest.mark.server
@cell("openai-js responses", "late join", "two readers")
@cell("openai-js chat", "late join", "two readers")
async def test_npm_reads_twice_and_late(ask: Callable[..., Any]) -> None:
    gate = asyncio.Event()
    async with serving([*WORDS[:2], gate, *WORDS[2:]]) as site:
        chatting = {"create": CHAT, "key": "k1", "most": 1}
        early = [asyncio.create_task(ask(site, "chatAgain", **chatting)) for _ in range(2)]
        await read_by(site, 2)
        late = asyncio.create_task(ask(site, "chatAgain", **chatting))
        response = f"resp_{await newest(site)}"
        following = [asyncio.create_task(ask(site, "late", id=response)) for _ in range(2)]
        await read_by(site, 5)
        gate.set()
        chats = [plain((await one)["chunks"]) for one in (*early, late)]
        assert chats[0] == chats[1] == chats[2]
        assert chats[0][1:] == [TEXT, "stop"]
        for one in following:
            events = (await one)["events"]
            assert "".join(delta for _, type_, delta in events if type_ == "response.output_text.delta") == TEXT
            assert events[-1][1] == "response.completed"


# --- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.server
@cell("openai-js chat", "cancel")
async def test_npm_a_chat_is_cancelled(ask: Callable[..., Any]) -> None:
    async with serving(["Hel", asyncio.Event()]) as site:

        async def cancel() -> None:
            await read_by(site, 1)
            answer: httpx.Response = await site.http.post(f"/v1/runs/{await newest(site)}/cancel")
            answer.raise_for_status()

        got = await both(site, ask(site, "chat", create=CHAT), cancel())
        assert (got["raised"], "cancelled" in got["said"]) == ("APIError", True)
