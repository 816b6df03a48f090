"""`useChat` in Chromium: a page with React and the AI SDK, used as a person does, with an agent on a real server."""

import asyncio
import contextlib
import functools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from agents import Agent, function_tool
from playwright.async_api import Page, expect

from browser_pages import PageAt, bundles, page_at
from event_cutter import EventCutter
from headwater import Streams
from headwater.http import App
from headwater.runs import Runs
from live_server import live
from matrix import cell, marks
from real_server import Server
from scripted_model import SECRET, calls, scripted

__all__ = ["bundles", "page_at"]

pytestmark = pytest.mark.server

WORDS = ["Hel", "lo", " wor", "ld\u2028", "!"]
TEXT = "".join(WORDS)
TOOL = calls("search", {"q": "x"})
DANGER = calls("danger", {"n": 1})
DOOR = "/agents/bot/chat-v7"
EVENTS = 16
"""That an answer with a tool has at least."""

expect.set_options(timeout=20_000)


@function_tool
def search(q: str) -> dict[str, str]:
    return {"found": q}


@function_tool(needs_approval=True)
def danger(n: int) -> str:
    return f"dared {n}"


@pytest.fixture
async def serving() -> AsyncIterator[Callable[..., Any]]:
    """`await serving(*answers)`: the address of a server whose agent says this."""
    async with contextlib.AsyncExitStack() as stack:

        async def served(*answers: list[Any], around: Callable[[Any], Any] = lambda app: app) -> str:
            streams = Streams("memory:")
            runs = Runs(streams, Agent(name="Bot", model=scripted(*answers), tools=[search, danger]))
            http = await stack.enter_async_context(live(around(App(streams, runs))))
            return str(http.base_url).rstrip("/")

        yield served


class Chat:
    """A tab with the chat."""

    def __init__(self, page: Page) -> None:
        self.page = page
        self.answers = page.locator("[data-role=assistant]")
        self.text = self.answers.last.locator(".text")
        self.tool = self.answers.last.locator("[data-tool]")

    async def ask(self, text: str) -> None:
        await self.page.locator("input").fill(text)
        await self.page.locator("input").press("Enter")

    async def is_(self, status: str) -> None:
        await self.page.locator(f"main[data-status={status}]").wait_for(timeout=20_000)

    async def says(self, text: str) -> None:
        """Until it does; as it is, white space and all."""
        await expect(self.text).to_have_js_property("textContent", text)

    async def ended(self, outcome: str, text: str) -> None:
        await self.is_("ready")
        await expect(self.answers.last).to_have_attribute("data-outcome", outcome)
        await self.says(text)
        assert await self.answers.count() == 1


@pytest.fixture
async def chat_at(page_at: PageAt, bundles: Path) -> AsyncIterator[Callable[..., Any]]:
    """`await chat_at(url)`: a tab with an empty chat; with `resume=True` it goes on with what is being said."""
    async with contextlib.AsyncExitStack() as stack:

        async def opened(url: str, door: str = DOOR, **given: Any) -> Chat:
            chat = Chat(await stack.enter_async_context(page_at(url)))
            await load(chat, door, **given)
            return chat

        async def load(chat: Chat, door: str = DOOR, **given: Any) -> None:
            await chat.page.reload()
            await chat.page.set_content("<div id=root></div>")
            await chat.page.add_script_tag(path=bundles / "chat.js")
            await chat.page.evaluate("openChat", {"api": door, "id": "c1", **given})

        opened.again = load  # type: ignore[attr-defined]
        yield opened


@cell("useChat", "whole", "tool call")
async def test_a_whole_run_with_a_tool(serving: Any, chat_at: Any) -> None:
    chat = await chat_at(await serving(TOOL, WORDS))
    await chat.ask("hi")
    await chat.ended("completed", TEXT)
    await expect(chat.tool).to_have_attribute("data-tool", "search")
    await expect(chat.tool).to_have_attribute("data-state", "output-available")
    await expect(chat.tool.locator("code")).to_have_text('{"q":"x"}')
    await expect(chat.tool.locator("output")).to_have_text('{"found":"x"}')


@cell("useChat", "approval")
async def test_a_tool_is_approved_by_a_click(serving: Any, chat_at: Any) -> None:
    chat = await chat_at(await serving(DANGER, WORDS))
    await chat.ask("hi")
    await chat.tool.locator(".approve").click(timeout=5_000)
    await chat.ended("completed", TEXT)
    await expect(chat.tool.locator("output")).to_have_text('"dared 1"')


@cell("useChat", "error in mid-stream")
async def test_a_failure_is_told(serving: Any, chat_at: Any) -> None:
    chat = await chat_at(await serving(["Hel", RuntimeError(f"key {SECRET}")]))
    await chat.ask("hi")
    await chat.is_("error")
    await chat.says("Hel")
    assert SECRET not in await chat.page.content()
    await expect(chat.page.locator("[role=alert]")).not_to_be_empty()


@cell("useChat", "cancel")
async def test_stop_keeps_what_there_is(serving: Any, chat_at: Any) -> None:
    chat = await chat_at(await serving(["Hel", asyncio.Event()]))
    await chat.ask("hi")
    await chat.says("Hel")
    await chat.page.locator("#stop").click()
    await chat.ended("cancelled", "Hel")


@pytest.mark.parametrize("each", [2, 5])
@pytest.mark.parametrize(
    "abrupt",
    [
        pytest.param(True, marks=marks("useChat", "cut after each event")),
        pytest.param(False, marks=marks("useChat", "ended after each event")),
    ],
)
async def test_connections_that_break_with_a_fetch_that_resumes(
    serving: Any, chat_at: Any, each: int, abrupt: bool
) -> None:
    await lossless(serving, chat_at, each=each, abrupt=abrupt)


@cell("useChat", "one event per connection")
async def test_one_event_per_connection(serving: Any, chat_at: Any) -> None:
    await lossless(serving, chat_at, each=1, abrupt=True)


async def lossless(serving: Any, chat_at: Any, *, each: int, abrupt: bool) -> None:
    cutters = []

    def around(app: Any) -> Any:
        cutters.append(EventCutter(app, each=each, abrupt=abrupt))
        return cutters[0]

    chat = await chat_at(await serving(TOOL, WORDS, around=around), lossless=True)
    await chat.ask("hi")
    await chat.ended("completed", TEXT)
    assert cutters[0].cuts >= EVENTS // each


@cell("useChat", "cut after each event")
async def test_a_break_in_mid_answer_is_gone_on_from_by_itself(serving: Any, chat_at: Any) -> None:
    """Without any fetch of ours: the page goes on, and the answer is played to it again."""

    gate = asyncio.Event()
    once = functools.partial(EventCutter, each=5, abrupt=True, times=1)
    chat = await chat_at(await serving([*WORDS[:3], gate, *WORDS[3:]], around=once))
    await chat.ask("hi")
    await chat.is_("error")
    await chat.page.locator("#again").click()
    await chat.says("".join(WORDS[:3]))
    gate.set()
    await chat.ended("completed", TEXT)


@cell("useChat", "late join", "two readers")
async def test_a_reload_and_a_second_tab_in_mid_answer(serving: Any, chat_at: Any) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    url = await serving([*WORDS[:2], gates[0], *WORDS[2:4], gates[1], WORDS[4]])
    chat = await chat_at(url)
    await chat.ask("hi")
    await chat.says("Hello")
    await chat_at.again(chat, resume=True)
    other = await chat_at(url, resume=True)
    for one in (chat, other):
        await one.says("Hello")
    gates[0].set()
    for one in (chat, other):
        await one.says("".join(WORDS[:4]))
    gates[1].set()
    for one in (chat, other):
        await one.ended("completed", TEXT)
    await chat_at.again(chat, resume=True)
    await chat.is_("ready")  # nothing is being said: 204
    assert await chat.answers.count() == 0


@cell("useChat", "local model")
async def test_a_language_model_on_this_machine(chat_at: Any, local_model: Server) -> None:
    chat = await chat_at(local_model.url, "/agents/assistant/chat-v7")
    await chat.ask("What is the weather in Lisbon?")
    await expect(chat.answers.last).to_have_attribute("data-outcome", "completed", timeout=60_000)
    await expect(chat.tool).to_have_attribute("data-state", "output-available")
    async with httpx.AsyncClient(base_url=local_model.url) as http:
        (run,) = [one for one in (await http.get("/v1/runs")).json()["runs"] if one["thread_id"] == "c1"]
        record = (await http.get(f"/v1/runs/{run['id']}")).json()
    await chat.ended("completed", record["result"])
