"""The LangGraph SDKs against a real server: PyPI's langgraph-sdk here, npm's @langchain/langgraph-sdk under node.

Nothing of them is replaced but the pauses before they connect again. Of npm's there are two: 1.15.0 is the newest,
2.0.0 an earlier one that npm takes for the newest.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, function_tool
from langgraph_sdk import get_client
from langgraph_sdk.errors import BadRequestError, ConflictError

import js_cells
import matrix
from event_cutter import EventCutter
from headwater import Streams
from headwater.http import App
from headwater.runs import Runs
from live_server import live
from real_server import Server
from real_server import serving as serving_process
from scripted_model import calls, scripted

pytestmark = pytest.mark.server

JS = Path(__file__).parent / "js-langgraph"
WORDS = ["Hel", "lo", " wor", "ld\u2028", "!"]
MODES = ["values", "messages-tuple", "updates", "custom"]

ASKS_THE_RUN = (
    "where a stream ends cleanly it asks whether the run goes on, and not whether it has read it to its end: "
    "what it has not read of a finished run is lost (langgraphjs#2701)"
)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("langgraph_sdk._async.http._reconnect_delay", lambda *_, **__: 0)


@function_tool
def search(q: str) -> str:
    return f"found {q}"


@function_tool(needs_approval=True)
def danger(level: int) -> str:
    return f"dared {level}"


@asynccontextmanager
async def serving(*answers: Any, around: Callable[[Any], Any] = lambda app: app) -> AsyncIterator[Any]:
    """The SDK's client of an agent."""
    streams = Streams("memory:")
    runs = Runs(streams, Agent(name="Bot", model=scripted(*answers), tools=[search, danger]))
    async with live(around(App(streams, runs))) as http, get_client(url=f"{http.base_url}/langgraph") as client:
        yield client


def said(text: str = "hi") -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}]}


async def collected(stream: Any) -> list[Any]:
    return [part async for part in stream]


def stream(client: Any, thread: str = "t", text: str = "hi", **more: Any) -> Any:
    return client.runs.stream(thread, "bot", input=said(text), **{"stream_mode": MODES, **more})


def final(parts: list[Any]) -> list[tuple[str, str]]:
    values = [part.data for part in parts if part.event == "values"][-1]
    return [(message["type"], message["content"]) for message in values["messages"]]


WHOLE = [("human", "hi"), ("ai", ""), ("tool", "found x"), ("ai", "".join(WORDS))]


@matrix.cell("langgraph-python", "whole", "tool call")
async def test_a_whole_run_with_a_tool() -> None:
    made: list[Any] = []
    async with serving(calls("search", {"q": "x"}), WORDS) as client:
        thread = (await client.threads.create())["thread_id"]
        parts = await collected(stream(client, thread, on_run_created=made.append))
        assert (parts[0].event, parts[-1].event, final(parts)) == ("metadata", "end", WHOLE)
        assert made == [{"run_id": parts[0].data["run_id"], "thread_id": thread}]
        chunks = [part.data[0] for part in parts if part.event == "messages"]
        assert "".join(chunk["content"] for chunk in chunks if chunk["type"] == "AIMessageChunk") == "".join(WORDS)
        assert {part.event for part in parts} == {"metadata", "values", "messages", "updates", "custom", "end"}
        run = await client.runs.get(thread, parts[0].data["run_id"])
        assert (run["status"], run["assistant_id"]) == ("success", "bot")


async def test_the_second_form_of_its_parts() -> None:
    async with serving(WORDS) as client:
        parts = await collected(stream(client, version="v2"))
        assert [part["type"] for part in parts][:2] == ["metadata", "values"]
        assert parts[-1]["type"] == "values"
        assert parts[-1]["data"]["messages"][-1]["content"] == "".join(WORDS)


async def test_a_thread_goes_on_and_is_read() -> None:
    async with serving(["one"], ["two"]) as client:
        await collected(stream(client, text="a"))
        waited = await client.runs.wait("t", "bot", input=said("b"))
        state = await client.threads.get_state("t")
        assert state["values"] == waited
        assert [message["content"] for message in waited["messages"]] == ["a", "one", "b", "two"]
        history = await client.threads.get_history("t")
        assert [len(at["values"]["messages"]) for at in history] == [4, 3, 2, 1]
        assert len(await client.runs.list("t")) == 2
        assert (await client.threads.get("t"))["status"] == "idle"
        assert [one["graph_id"] for one in await client.assistants.search()] == ["bot"]


@matrix.cell("langgraph-python", "late join", "two readers")
async def test_a_run_in_the_background_is_joined() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo"], ["alone"]) as client:
        run = await client.runs.create("t", "bot", input=said())
        with pytest.raises(ConflictError):
            await client.runs.create("t", "bot", input=said())
        reading = [asyncio.create_task(collected(client.runs.join_stream("t", run["run_id"]))) for _ in range(2)]
        await asyncio.sleep(0)
        gate.set()
        one, two = await asyncio.gather(*reading)
        assert one == two
        late = await collected(client.runs.join_stream("t", run["run_id"], stream_mode="values", last_event_id="-1"))
        assert late == [part for part in one if part.event in ("metadata", "values", "end")]
        assert await client.runs.join("t", run["run_id"]) == late[-2].data
        alone = await collected(stream(client, None))
        assert final(alone)[-1] == ("ai", "alone")


@matrix.cell("langgraph-python", "error in mid-stream")
async def test_an_error_in_mid_stream() -> None:
    async with serving(["Hel", ConnectionError("cut")], ["Hel", ConnectionError("cut")]) as client:
        parts = await collected(stream(client))
        assert (parts[-1].event, parts[-1].data["error"]) == ("error", "upstream_cut")
        with pytest.raises(Exception, match="upstream_cut: The model's stream was cut off"):
            await client.runs.wait("t2", "bot", input=said())
        with pytest.raises(BadRequestError, match="stream_mode"):
            await collected(stream(client, "t3", stream_mode="debug"))


@matrix.cell("langgraph-python", "cancel")
async def test_cancelling_and_leaving() -> None:
    async with serving(["Hel", asyncio.Event()], ["Hel", asyncio.Event()]) as client:
        reading = stream(client)
        first = await anext(reading)
        await reading.aclose()
        run = first.data["run_id"]
        assert (await client.runs.get("t", run))["status"] == "running", "leaving stops nothing"
        await client.runs.cancel("t", run, wait=True)
        assert (await client.runs.get("t", run))["status"] == "interrupted"
        last = (await collected(client.runs.join_stream("t", run)))[-1]
        assert last.event == "end"
        run = (await client.runs.create("t", "bot", input=said("again")))["run_id"]
        await client.runs.cancel("t", run)


@matrix.cell("langgraph-python", "approval")
async def test_an_interrupt_is_answered() -> None:
    async with serving(calls("danger", {"level": 1}, call_id="d1"), ["done"]) as client:
        parts = await collected(stream(client))
        (ask,) = next(part for part in reversed(parts) if part.event == "values").data["__interrupt__"]
        assert (parts[-1].event, ask["value"]["action_requests"][0]["args"]) == ("end", {"level": 1})
        resume = {"resume": {"decisions": [{"type": "approve"}]}}
        rest = await collected(client.runs.stream("t", "bot", command=resume, stream_mode=MODES))
        assert final(rest)[-2:] == [("tool", "dared 1"), ("ai", "done")]


class Cutter(EventCutter):
    """Says when a client comes back; an answer that is not cut `abrupt`ly is ended once."""

    def __init__(self, application: Any, *, each: int, abrupt: bool) -> None:
        super().__init__(application, each=each, abrupt=abrupt)
        self.back = asyncio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if b"last-event-id" in dict(scope.get("headers") or ()):
            self.back.set()
            self._each = self._each if self._abrupt else 1000
        await super().__call__(scope, receive, send)


@asynccontextmanager
async def cutting(*answers: Any, each: int, abrupt: bool) -> AsyncIterator[tuple[Any, Cutter]]:
    made: list[Cutter] = []

    def around(app: Any) -> Any:
        made.append(Cutter(app, each=each, abrupt=abrupt))
        return made[0]

    async with serving(*answers, around=around) as client:
        yield client, made[0]
        assert made[0].cuts


async def whole(client: Any, cutter: Cutter, cut: list[Any]) -> list[Any]:
    """The same run, read in one piece."""
    cutter._each = 1000
    return await collected(client.runs.join_stream("t", cut[0].data["run_id"]))


@pytest.mark.parametrize("each", range(1, 19))
@matrix.cell("langgraph-python", "cut after each event", "one event per connection")
async def test_cut_after_every_so_many_events(each: int) -> None:
    async with cutting(calls("search", {"q": "x"}), WORDS, each=each, abrupt=True) as (client, cutter):
        cut = await collected(stream(client))
        assert cut == await whole(client, cutter, cut)


async def test_ended_while_the_run_goes_on() -> None:
    gate = asyncio.Event()
    async with cutting(["Hel", gate, "lo"], each=3, abrupt=False) as (client, cutter):
        reading = asyncio.create_task(collected(stream(client)))
        await cutter.back.wait()
        gate.set()
        cut = await reading
        assert cut == await whole(client, cutter, cut)


@matrix.cell("langgraph-python", "ended after each event")
async def test_ended_when_the_run_is_over() -> None:
    async with cutting(["Hel", "lo"], each=3, abrupt=False) as (client, cutter):
        run = await client.runs.create("t", "bot", input=said())
        await client.runs.join("t", run["run_id"])
        cut = await collected(client.runs.join_stream("t", run["run_id"]))
        assert cut == await whole(client, cutter, cut)


@matrix.cell("langgraph-python", "local model")
async def test_a_language_model_on_this_machine(local_model: Server) -> None:
    async with get_client(url=f"{local_model.url}/langgraph") as client:
        asked = {"messages": [{"role": "user", "content": "What is the weather in Lisbon?"}]}
        parts = await collected(client.runs.stream("t-python", "assistant", input=asked, stream_mode=MODES))
        assert [role for role, _ in final(parts)] == ["human", "ai", "tool", "ai"]
        assert final(parts)[-1][1].strip()


# --- npm -----------------------------------------------------------------------------------------------------------

CELLS = (
    "whole",
    "tool call",
    "a thread goes on",
    "error in mid-stream",
    "cancel",
    "leaving stops nothing",
    "approval",
    "cut after each event",
    "one event per connection",
    "ended while the run goes on",
    "ended when the run is over",
    "by resumableFetch",
    "late join",
    "two readers",
    "useStream",
)
CLIENTS = {"1.15.0": "sdk1", "2.0.0": "sdk2"}
ROWS = {"1.15.0": "langgraph-js", "2.0.0": "langgraph-js 2"}
COLUMNS = {"ended when the run is over": "ended after each event"}
UPSTREAM = {
    ("1.15.0", "ended when the run is over"): ASKS_THE_RUN,
    ("2.0.0", "ended when the run is over"): "a clean end is an end to it (langgraphjs#2701)",
    ("2.0.0", "ended while the run goes on"): "a clean end is an end to it (langgraphjs#2701)",
    ("2.0.0", "one event per connection"): "it comes back five times in all, whatever it has read",
}


def cells() -> Iterator[object]:
    for client in CLIENTS:
        for name in CELLS:
            reason = UPSTREAM.get((client, name))
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            column = COLUMNS.get(name, name)
            marks += matrix.marks(ROWS[client], column) if column in matrix.COLUMNS else []
            yield pytest.param(client, name, marks=marks, id=f"{client}: {name}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving_process("serve", tmp_path_factory.mktemp("langgraph"), "tests.agents_to_read:bot") as started:
        yield started


@pytest.fixture(scope="module")
def went() -> dict[str, dict[str, str]]:
    """Client -> cell -> how it went; filled as clients are asked for."""
    return {}


def ran(node: str, server: Server, client: str, *only: str) -> dict[str, str]:
    return js_cells.ran([node, JS / "langgraph.mjs", server.url, CLIENTS[client], *only])


@pytest.fixture
def node(program: Callable[[str, str], str]) -> str:
    """Where it is, and the clients are."""
    if not (JS / "node_modules").exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"the clients are not installed. To run this test: cd {JS} && npm ci")
    return program("node", "sudo apt-get install nodejs npm")


@pytest.mark.parametrize(("client", "cell"), list(cells()))
def test_npm_client(client: str, cell: str, server: Server, went: dict[str, dict[str, str]], node: str) -> None:
    if client not in went:
        went[client] = ran(node, server, client)
        assert tuple(went[client]) == CELLS, "the script has other cells"
    assert went[client][cell] == "well", went[client][cell]


@pytest.mark.parametrize(
    "client", [pytest.param(client, marks=matrix.marks(ROWS[client], "local model")) for client in CLIENTS]
)
def test_npm_a_language_model_on_this_machine(client: str, local_model: Server, node: str) -> None:
    assert ran(node, local_model, client, "local model") == {"local model": "well"}
