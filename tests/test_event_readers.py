"""Whatever reads server-sent events reads runs: each of them with its own way of going on after a cut.

`EventSource` of Chromium and of npm, fetch-event-source in Chromium, httpx-sse with the loop that its users write, and
`headwater.client`. None of them is told when a run is over: they stop when the server has no more (204).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import httpx_sse
import pytest
from agents import Agent, function_tool

import matrix
from browser_pages import JS, PageAt, bundles, page_at
from event_cutter import EventCutter
from headwater import Streams
from headwater.client import Client, Retry
from headwater.formats.sse import ServerSentEvents
from headwater.http import App
from headwater.runs import Runs
from live_server import live
from real_server import Server, process
from scripted_model import SECRET, calls, scripted

__all__ = ["bundles", "page_at"]

pytestmark = pytest.mark.server

WORDS = ["Hel", "lo", " wor", "ld\u2028", "!"]
TOOL = calls("search", {"q": "x"})
PATIENCE_SECONDS = 30

Event = dict[str, Any]


class Target(NamedTuple):
    """A run, and how to ask for it."""

    url: str
    agent: str
    given: str
    key: str
    id: str = ""

    @property
    def events(self) -> str:
        return f"{self.url}/v1/runs/{self.id}/events"

    @property
    def body(self) -> dict[str, str]:
        return {"agent": self.agent, "input": self.given}


Read = Callable[[Target], AsyncIterator[Event]]


# --- the readers -----------------------------------------------------------------------------------------------------


async def by_httpx_sse(target: Target) -> AsyncIterator[Event]:
    last: dict[str, str] = {}
    async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as http:
        while True:
            with suppress(httpx.TransportError):
                async with httpx_sse.aconnect_sse(http, "GET", target.events, headers=last) as source:
                    if source.response.status_code == 204:
                        return
                    async for event in source.aiter_sse():
                        last["last-event-id"] = event.id
                        yield event.json()


async def by_headwater_client(target: Target) -> AsyncIterator[Event]:
    async with Client(target.url, retry=Retry(shortest=0.001)) as client:
        async for event in client.follow(target.events):
            yield json.loads(event.data)


async def by_npm(target: Target) -> AsyncIterator[Event]:
    async with process("node", str(JS / "eventsource.mjs"), target.events) as running:
        assert running.stdout is not None
        async for line in running.stdout:
            yield json.loads(line)
        assert await running.wait() == 0


def in_page(page_at: PageAt, bundles: Path, function: str) -> Read:
    async def read(target: Target) -> AsyncIterator[Event]:
        told: asyncio.Queue[str | None] = asyncio.Queue()
        asking = {"url": target.events, "post": f"{target.url}/v1/runs", "key": target.key}
        async with page_at(target.url) as page:
            await page.expose_function("told", told.put_nowait)
            await page.add_script_tag(path=bundles / "readers.js")
            script = f"(asked) => window.{function}(asked)"
            reading = asyncio.ensure_future(page.evaluate(script, asking | {"body": json.dumps(target.body)}))
            reading.add_done_callback(lambda _: told.put_nowait(None))
            while (data := await told.get()) is not None:
                yield json.loads(data)
            await reading

    return read


@pytest.fixture
def reader(request: pytest.FixtureRequest) -> Read:
    """The reader of this name."""
    if request.param in ("EventSource", "fetch-event-source"):
        function = {"EventSource": "byEventSource", "fetch-event-source": "byFetchEventSource"}[request.param]
        return in_page(request.getfixturevalue("page_at"), request.getfixturevalue("bundles"), function)
    if request.param == "eventsource":
        request.getfixturevalue("program")("node", "apt-get install nodejs npm")
        request.getfixturevalue("bundles")
        return by_npm
    return {"httpx-sse": by_httpx_sse, "headwater.client": by_headwater_client}[request.param]


READERS = ("EventSource", "eventsource", "fetch-event-source", "httpx-sse", "headwater.client")


def shows(*columns: str) -> pytest.MarkDecorator:
    """The test is run with each reader, and shows these columns of its row."""
    each = [pytest.param(name, marks=matrix.marks(name, *columns), id=name) for name in READERS]
    return pytest.mark.parametrize("reader", each, indirect=True)


# --- the server ------------------------------------------------------------------------------------------------------


@function_tool
def search(q: str) -> str:
    return f"found {q}"


@function_tool(needs_approval=True)
def danger(n: int) -> str:
    return f"dared {n}"


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients are asked to come back after 1 ms, not half a second."""
    monkeypatch.setattr(ServerSentEvents, "opening", b": open\nretry: 1\n")


@asynccontextmanager
async def started(*answers: list[Any], around: Callable[[Any], Any] = lambda app: app) -> AsyncIterator[Target]:
    """A run that has just been started, of an agent whose model says this."""
    streams = Streams("memory:")
    runs = Runs(streams, Agent(name="Bot", model=scripted(*answers), tools=[search, danger]))
    async with live(around(App(streams, runs))) as http, asyncio.timeout(PATIENCE_SECONDS):
        yield await start(Target(str(http.base_url).rstrip("/"), "bot", "hi", "k1"))


async def start(target: Target) -> Target:
    headers = {"idempotency-key": target.key}
    made = await ask(target, "/v1/runs", json=target.body, headers=headers)
    return target._replace(id=made["id"])


async def ask(target: Target, path: str, **more: Any) -> Any:
    async with httpx.AsyncClient(base_url=target.url) as http:
        answer = await http.post(path, **more)
        assert answer.is_success, answer.text
        return answer.json()


async def logged(target: Target) -> list[Event]:
    """The run as its stream holds it, read in pages."""
    async with httpx.AsyncClient(base_url=target.url) as http:
        offset, events = "-1", list[Event]()
        while True:
            page = await http.get(f"/v1/stream/runs/{target.id}", params={"offset": offset})
            events += page.json()
            offset = page.headers["stream-next-offset"]
            if "stream-up-to-date" in page.headers:
                return events


async def whole(read: Read, target: Target) -> list[Event]:
    """What the reader gives, which must be the log."""
    events = [event async for event in read(target)]
    assert rolled(events) == rolled(await logged(target))
    return events


def rolled(events: list[Event]) -> list[Event]:
    """Deltas of one part that stand behind each other as one: what is past may come so."""
    made: list[Event] = []
    for event in events:
        bare = {name: value for name, value in event.items() if name != "timestamp"}
        if made and "delta" in bare and made[-1] | {"delta": bare["delta"]} == bare:
            made[-1]["delta"] += bare["delta"]
        else:
            made.append(bare)
    return made


def said(events: list[Event]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")


def types(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


# --- the columns -----------------------------------------------------------------------------------------------------


@shows("whole", "tool call")
async def test_a_whole_run_with_a_tool(reader: Read) -> None:
    async with started(TOOL, WORDS) as target:
        events = await whole(reader, target)
    (call,) = [event for event in events if event["type"] == "TOOL_CALL_START"]
    (result,) = [event for event in events if event["type"] == "TOOL_CALL_RESULT"]
    assert (call["toolCallName"], result["content"], said(events)) == ("search", "found x", "".join(WORDS))
    assert (types(events)[0], types(events)[-1]) == ("RUN_STARTED", "RUN_FINISHED")


@shows("approval")
async def test_who_reads_is_asked_and_goes_on_reading(reader: Read) -> None:
    async with started(calls("danger", {"n": 1}), WORDS) as target:
        events = []
        async for event in reader(target):
            events.append(event)
            if event.get("name") == "approval.requested":
                answer = {"tool_call_id": event["value"]["toolCallId"], "approve": True}
                await ask(target, f"/v1/runs/{target.id}/approvals", json=answer)
        assert rolled(events) == rolled(await logged(target))
    (result,) = [event for event in events if event["type"] == "TOOL_CALL_RESULT"]
    assert (result["content"], said(events)) == ("dared 1", "".join(WORDS))


@shows("error in mid-stream")
async def test_a_failure_is_told(reader: Read) -> None:
    async with started(["Hel", RuntimeError(f"key {SECRET}")]) as target:
        events = await whole(reader, target)
    assert (types(events)[-1], said(events)) == ("RUN_ERROR", "Hel")
    assert SECRET not in str(events)


@shows("cancel")
async def test_who_reads_cancels_and_keeps_what_was_said(reader: Read) -> None:
    async with started(["Hel", asyncio.Event()]) as target:
        events = []
        async for event in reader(target):
            events.append(event)
            if event["type"] == "TEXT_MESSAGE_CONTENT":
                await ask(target, f"/v1/runs/{target.id}/cancel")
        assert rolled(events) == rolled(await logged(target))
    assert (events[-1]["outcome"]["type"], said(events)) == ("cancelled", "Hel")


async def cut(reader: Read, *, each: int, abrupt: bool) -> None:
    cutters = []

    def around(app: Any) -> Any:
        cutters.append(EventCutter(app, each=each, abrupt=abrupt))
        return cutters[0]

    async with started(TOOL, WORDS, around=around) as target:
        events = await whole(reader, target)
        assert cutters[0].cuts >= len(events) // each - 1


@pytest.mark.parametrize("each", [2, 5])
@shows("cut after each event")
async def test_connections_that_break(reader: Read, each: int) -> None:
    await cut(reader, each=each, abrupt=True)


@pytest.mark.parametrize("each", [2, 5])
@shows("ended after each event")
async def test_connections_that_end(reader: Read, each: int) -> None:
    await cut(reader, each=each, abrupt=False)


@shows("one event per connection")
async def test_one_event_per_connection(reader: Read) -> None:
    await cut(reader, each=1, abrupt=True)


class Reading:
    """A reader at work in a task of its own."""

    def __init__(self, reader: Read, target: Target) -> None:
        self.events: list[Event] = []
        self._news = asyncio.Condition()
        self.over = asyncio.create_task(self._read(reader, target))

    async def _read(self, reader: Read, target: Target) -> list[Event]:
        async for event in reader(target):
            async with self._news:
                self.events.append(event)
                self._news.notify_all()
        return self.events

    async def until(self, text: str) -> None:
        """It has been told so much."""
        async with self._news:
            await self._news.wait_for(lambda: said(self.events) == text)


@shows("late join", "two readers")
async def test_two_readers_of_which_one_comes_late(reader: Read) -> None:
    gates = [asyncio.Event(), asyncio.Event()]
    async with started([*WORDS[:2], gates[0], *WORDS[2:4], gates[1], WORDS[4]]) as target:
        early = [Reading(reader, target) for _ in range(2)]
        for one in early:
            await one.until("Hello")
        late = Reading(reader, target)
        await late.until("Hello")
        gates[0].set()
        for one in (*early, late):
            await one.until("".join(WORDS[:4]))
        gates[1].set()
        for one in (*early, late):
            assert rolled(await one.over) == rolled(await logged(target))


@shows("local model")
async def test_a_language_model_on_this_machine(reader: Read, local_model: Server) -> None:
    async with asyncio.timeout(60):
        key = f"{id(reader)}"
        target = await start(Target(local_model.url, "assistant", "What is the weather in Lisbon?", key))
        events = await whole(reader, target)
    assert types(events)[-1] == "RUN_FINISHED"
    assert "TOOL_CALL_RESULT" in types(events)
    assert said(events).strip()
