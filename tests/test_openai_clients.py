"""The official `openai` clients, of Python (async and not) and npm, against a real server that runs agents.

Whole runs, tools, failures, cancelling, background and resuming after a cut at every k-th event, joining late, reading
twice. The clients are those that are installed; nothing of them is replaced.
"""

import asyncio
import itertools
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from agents import Agent, Runner, function_tool
from agents.models.openai_chatcompletions import OpenAIChatCompletionsModel
from agents.models.openai_responses import OpenAIResponsesModel

import real_server
from cutting_proxy import CuttingProxy
from event_cutter import EventCutter
from headwater import Streams
from headwater.delivery import Delivery, Policy
from headwater.http import App
from headwater.runs import Runs
from live_server import live
from matrix import cell, marks
from scripted_model import SECRET, calls, scripted

ENDS = ("response.completed", "response.failed", "response.incomplete", "response.cancelled")
ASK = {"model": "bot", "input": "hi"}
CHAT: dict[str, Any] = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}
WORDS = ["Hel", "lo", " wor", "ld\u2028", "!"]
TEXT = "".join(WORDS)

Told = tuple[int, str, Any]


@function_tool
def search(q: str) -> str:
    return f"found {q}"


@function_tool(needs_approval=True)
def danger(n: int) -> str:
    return f"dared {n}"


class Site:
    def __init__(self, http: httpx.AsyncClient) -> None:
        self.http = http
        self.url = f"{http.base_url}/v1"
        self.client = openai.AsyncOpenAI(api_key="k", base_url=self.url, max_retries=0)

    async def log(self, id_: str) -> list[Told]:
        """All events of a response, read in one piece by a reader of our own."""
        body = (await self.http.get(f"/v1/responses/{id_}?stream=true&rollup=0")).text
        events = [json.loads(line[5:]) for line in body.splitlines() if line.startswith("data:")]
        return [(event["sequence_number"], event["type"], event.get("delta")) for event in events]

    async def runs_made(self) -> int:
        return len((await self.http.get("/v1/runs")).json()["runs"])


@asynccontextmanager
async def serving(
    *answers: list[Any], around: Callable[[Any], Any] = lambda app: app, heartbeat: float = 15.0
) -> AsyncIterator[Site]:
    streams = Streams("memory:")
    agent = Agent(name="Bot", model=scripted(*answers), tools=[search, danger])
    runs = Runs(streams, agent, delivery=Delivery(streams, Policy(heartbeat_seconds=heartbeat)))
    async with live(around(App(streams, runs))) as http:
        site = Site(http)
        async with site.client:
            yield site


async def collect(asking: Awaitable[Any], take: Callable[[Any], object]) -> None:
    async for one in await asking:
        take(one)


def told(event: Any) -> Told:
    return event.sequence_number, event.type, getattr(event, "delta", None)


def rolled(events: list[Told]) -> list[Told]:
    """Deltas that stand behind each other as one, with the number of the last."""
    made: list[Told] = []
    for number, type_, delta in events:
        if made and delta is not None and made[-1][1] == type_:
            made[-1] = number, type_, made[-1][2] + delta
        else:
            made.append((number, type_, delta))
    return made


def gapless(events: list[Told]) -> bool:
    """No event is missing: a number is left out only where the next one told is a delta that holds its text, too."""
    numbers = [-1, *(number for number, _, _ in events)]
    return all(
        number == before + 1 or (number > before and delta is not None)
        for before, (number, _, delta) in zip(numbers, events, strict=False)
    )


# --- Python: Responses -----------------------------------------------------------------------------------------------


@cell("openai-python responses", "whole", "tool call")
async def test_a_whole_run_with_tools() -> None:
    async with serving(calls("search", {"q": "x"}), WORDS) as site:
        events = [event async for event in await site.client.responses.create(**ASK, stream=True)]
        final = events[-1].response
        assert (final.status, final.output_text) == ("completed", TEXT)
        assert [item.type for item in final.output] == ["mcp_call", "message"]
        ran = final.output[0]
        assert (ran.name, ran.arguments, ran.output) == ("search", '{"q": "x"}', "found x")
        assert [told(event) for event in events] == await site.log(final.id)
        assert "".join(event.delta for event in events if event.type == "response.output_text.delta") == TEXT
        retrieved = await site.client.responses.retrieve(final.id)
        assert retrieved.to_dict() == final.to_dict()
        assert final.usage.total_tokens == 7 + 1 + 7 + 5


async def test_the_stream_helper() -> None:
    async with serving(calls("search", {"q": "x"}), WORDS) as site:
        async with site.client.responses.stream(**ASK) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert events[-1].type == "response.completed"
        assert final.output_text == TEXT
        async with site.client.responses.stream(response_id=final.id, starting_after=4) as later:
            numbers = [event.sequence_number async for event in later]
        assert numbers == [number for number, _, _ in rolled([told(event) for event in events[5:]])]


async def test_tools_as_functions() -> None:
    async with serving(calls("search", {"q": "x"}), WORDS) as site:
        async with site.client.responses.stream(**ASK, extra_body={"tools_as": "function_call"}) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        assert [item.type for item in final.output] == ["function_call", "function_call_output", "message"]
        assert (final.output[0].name, final.output[0].arguments) == ("search", '{"q": "x"}')
        assert final.output[1].output == "found x"
        assert "".join(event.delta for event in events if event.type.endswith("arguments.delta")) == '{"q": "x"}'


async def test_waiting_and_going_on() -> None:
    async with serving(["One."], ["Two."]) as site:
        first = await site.client.responses.create(**ASK, metadata={"a": "b"}, instructions="Be brief.")
        assert (first.output_text, first.metadata, first._request_id) == ("One.", {"a": "b"}, first.id[5:])
        second = await site.client.responses.create(model="bot", input="and?", previous_response_id=first.id)
        assert second.output_text == "Two."
        items = [item async for item in site.client.responses.input_items.list(second.id, limit=1, order="asc")]
        assert [item.content[0].text for item in items] == ["hi", "One.", "and?"]
        await site.client.responses.delete(first.id)
        with pytest.raises(openai.NotFoundError, match="not found"):
            await site.client.responses.retrieve(first.id)


def test_the_client_that_is_not_async() -> None:
    """Its calls block, so they are in a thread of their own, away from the server's loop."""

    def ask(url: str) -> tuple[Any, ...]:
        with openai.OpenAI(api_key="k", base_url=url, max_retries=0) as client:
            whole = list(client.responses.create(**ASK, stream=True))
            rest = list(client.responses.retrieve(whole[0].response.id, stream=True, starting_after=3))
            waited = client.responses.create(**ASK)
            chat = client.chat.completions.create(**CHAT)
            chunks = list(client.chat.completions.create(**CHAT, stream=True))
            models = [model.id for model in client.models.list()]
            with pytest.raises(openai.NotFoundError) as unknown:
                client.responses.create(model="nobody", input="x")
            return whole, rest, waited, chat, chunks, models, unknown.value

    async def served() -> tuple[Any, ...]:
        async with serving(WORDS, WORDS, WORDS, WORDS) as site:
            return await asyncio.to_thread(ask, site.url)

    whole, rest, waited, chat, chunks, models, unknown = asyncio.run(served())
    assert [told(event) for event in rest] == rolled([told(event) for event in whole[4:]])
    assert whole[-1].response.output_text == waited.output_text == chat.choices[0].message.content == TEXT
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert models == ["bot"]
    assert (unknown.code, unknown.param) == ("model_not_found", "model")


@cell("openai-python responses", "error in mid-stream")
@cell("openai-python chat", "error in mid-stream")
async def test_a_failure_in_mid_stream_is_told_and_nothing_secret_with_it() -> None:
    answer = ["Hel", RuntimeError(f"key {SECRET}")]
    async with serving(answer, answer, answer, answer) as site:
        events = [event async for event in await site.client.responses.create(**ASK, stream=True)]
        assert events[-1].type == "response.failed"
        assert (events[-1].response.error.code, events[-1].response.output_text) == ("server_error", "Hel")
        waited = await site.client.responses.create(**ASK)
        assert (waited.status, waited.error.code) == ("failed", "server_error")
        chunks: list[Any] = []
        with pytest.raises(openai.APIError) as raised:
            await collect(site.client.chat.completions.create(**CHAT, stream=True), chunks.append)
        texts = [chunk.choices[0].delta.content for chunk in chunks]
        assert (raised.value.code, texts) == ("upstream_cut", ["", "Hel"])
        patient = site.client.with_options(max_retries=2)
        with pytest.raises(openai.InternalServerError) as failed:
            await patient.chat.completions.create(**CHAT)
        assert failed.value.code == "upstream_cut"
        assert await site.runs_made() == 4  # the client was told not to try again by itself
        assert SECRET not in str(raised.value) + str(failed.value) + str(events)


@cell("openai-python responses", "cancel")
@cell("openai-python chat", "cancel")
async def test_cancel_while_it_streams() -> None:
    async with serving(["Hel", asyncio.Event()], ["Hel", asyncio.Event()]) as site:
        events = []
        async for event in await site.client.responses.create(**ASK, stream=True):
            events.append(event)
            if event.type == "response.output_text.delta":
                cancelled = await site.client.responses.cancel(events[0].response.id)
        assert (events[-1].type, cancelled.status, cancelled.output_text) == ("response.cancelled", "cancelled", "Hel")
        started = asyncio.Event()
        failing = asyncio.create_task(
            collect(site.client.chat.completions.create(**CHAT, stream=True), lambda _: started.set())
        )
        await started.wait()
        newest = (await site.http.get("/v1/runs")).json()["runs"][0]["id"]
        await site.client.responses.cancel(f"resp_{newest}")
        with pytest.raises(openai.APIError, match="cancelled"):
            await failing


async def test_background_and_polling() -> None:
    gate = asyncio.Event()
    async with serving([gate, *WORDS]) as site:
        response = await site.client.responses.create(**ASK, background=True)
        assert response.status == "queued"
        gate.set()
        while response.status in ("queued", "in_progress"):
            response = await site.client.responses.retrieve(response.id)
        assert response.output_text == TEXT


@cell("openai-python responses", "two readers", "late join")
async def test_two_readers_and_a_late_one_get_the_same() -> None:
    gate = asyncio.Event()
    async with serving([*WORDS[:2], gate, *WORDS[2:]]) as site:
        id_ = (await site.client.responses.create(**ASK, background=True)).id

        async def read(after: Any = openai.omit) -> list[Told]:
            stream = await site.client.responses.retrieve(id_, stream=True, starting_after=after)
            return [told(event) async for event in stream]

        early = [asyncio.create_task(read()) for _ in range(2)]
        while (await site.client.responses.retrieve(id_)).output_text != "Hello":
            await asyncio.sleep(0.01)
        late, from_four = asyncio.create_task(read()), asyncio.create_task(read(4))
        gate.set()
        first, second, third = await early[0], await early[1], await late
        log = rolled(await site.log(id_))
        assert rolled(first) == rolled(second) == rolled(third) == log
        assert rolled(await from_four) == [event for event in log if event[0] > 4]


def cuts(client: str, *places: int) -> Iterator[object]:
    """Cut behind every so many events, cleanly and abruptly: the cells that this shows."""
    for each, abrupt in itertools.product(places, (False, True)):
        column = "cut after each event" if abrupt else "ended after each event"
        shown = "one event per connection" if each == 1 else column
        yield pytest.param(each, abrupt, marks=marks(client, shown), id=f"{'abrupt' if abrupt else 'clean'}-{each}")


async def resumed(client: openai.AsyncOpenAI) -> tuple[list[Told], int, int]:
    """What an application writes to lose nothing: create in the background, come back until it is over.

    Gives the events, the connections it took, and how many of those the client saw break.
    """
    events: list[Told] = []
    id_, broken = "", 0
    for connections in itertools.count(1):
        try:
            if id_:
                stream = await client.responses.retrieve(id_, stream=True, starting_after=events[-1][0])
            else:
                stream = await client.responses.create(**ASK, stream=True, background=True)
            async for event in stream:
                id_ = id_ or event.response.id
                events.append(told(event))
        except openai.APIConnectionError:
            broken += 1
        if events and events[-1][1] in ENDS:
            return events, connections, broken
    raise AssertionError


@pytest.mark.parametrize(("each", "abrupt"), list(cuts("openai-python responses", 1, 2, 3, 7)))
async def test_nothing_is_lost_when_cut_at_every_kth_event(each: int, abrupt: bool) -> None:
    answers = [calls("search", {"q": "x"}), WORDS]
    async with serving(*answers, around=lambda app: EventCutter(app, each=each, abrupt=abrupt)) as site:
        events, connections, broken = await resumed(site.client)
        assert gapless(events)
        assert "".join(delta for _, type_, delta in events if type_ == "response.output_text.delta") == TEXT
        assert events[-1][1] == "response.completed"
        assert connections >= len(events) // each
        assert broken in ((connections, connections - 1) if abrupt else (0,))
        assert await site.runs_made() == 1


async def test_nothing_is_lost_when_cut_at_any_byte() -> None:
    chance = random.Random(4711)
    async with serving(calls("search", {"q": "x"}), WORDS * 20) as site:
        port = site.http.base_url.port
        assert port is not None
        cuts = (chance.randint(600, 6000) for _ in itertools.count())
        async with CuttingProxy(port, cuts, abrupt=True) as proxy:
            client = openai.AsyncOpenAI(api_key="k", base_url=f"{proxy.url}/v1", max_retries=0)
            async with client:
                events, connections, _ = await resumed(client)
        assert gapless(events)
        assert "".join(delta for _, type_, delta in events if type_ == "response.output_text.delta") == TEXT * 20
        assert connections > 5
        assert await site.runs_made() == 1


async def test_a_clients_own_retry_attaches_by_its_key() -> None:
    """The client sends a POST again when its connection is cut: with a key that is the same run."""
    async with serving(WORDS, WORDS) as site:
        port = site.http.base_url.port
        assert port is not None
        async with CuttingProxy(port, iter([10, 10, None]), abrupt=True) as proxy:
            client = openai.AsyncOpenAI(api_key="k", base_url=f"{proxy.url}/v1", max_retries=2)
            async with client:
                response = await client.responses.create(**ASK, extra_headers={"Idempotency-Key": "k1"})
        assert response.output_text == TEXT
        assert await site.runs_made() == 1


async def test_what_is_asked_wrongly_is_raised_as_the_client_does() -> None:
    async with serving() as site:
        with pytest.raises(openai.BadRequestError) as raised:
            await site.client.responses.create(**ASK, max_output_tokens=5)
        assert (raised.value.param, raised.value.code) == ("max_output_tokens", "unsupported_parameter")
        with pytest.raises(openai.NotFoundError) as unknown:
            await site.client.chat.completions.create(**{**CHAT, "model": "nobody"})
        assert unknown.value.code == "model_not_found"


class Heartbeats:
    """An application whose heartbeats are counted: `enough` is set at the third."""

    def __init__(self, application: Any, enough: asyncio.Event) -> None:
        self._application, self._enough = application, enough
        self._count = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def counting(event: Any) -> None:
            self._count += event.get("body") in (b": hb\n", b"\n")
            if self._count >= 3:
                self._enough.set()
            await send(event)

        await self._application(scope, receive, counting)


async def test_heartbeats_are_nothing_to_the_client() -> None:
    """One that is ended by a blank line, behind an event with an id, makes this client raise JSONDecodeError."""
    gates = [asyncio.Event() for _ in range(3)]
    answers = [["Hel", gate, "lo"] for gate in gates]

    def around(app: Any) -> Any:
        waiting = [Heartbeats(app, gate) for gate in gates]

        async def routed(scope: Any, receive: Any, send: Any) -> None:
            first = next((one for one, gate in zip(waiting, gates, strict=True) if not gate.is_set()), app)
            await first(scope, receive, send)

        return routed

    async with serving(*answers, around=around, heartbeat=0.02) as site:
        events: list[Any] = []
        await collect(site.client.responses.create(**ASK, stream=True), events.append)
        assert (events[-1].response.output_text, len(events)) == ("Hello", 10)
        chunks: list[Any] = []
        await collect(site.client.chat.completions.create(**CHAT, stream=True), chunks.append)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "Hello"
        assert (await site.client.responses.create(**ASK)).output_text == "Hello"
    assert all(gate.is_set() for gate in gates)


# --- Python: Chat Completions ----------------------------------------------------------------------------------------


@cell("openai-python chat", "whole", "tool call")
async def test_a_chat_with_tools() -> None:
    async with serving(*[calls("search", {"q": "x"}), WORDS] * 4) as site:
        usage = {"include_usage": True}
        tools = {"tools_as": "tool_calls"}
        chunks = [
            one async for one in await site.client.chat.completions.create(**CHAT, stream=True, stream_options=usage)
        ]
        choices = [chunk.choices[0] for chunk in chunks if chunk.choices]
        assert "".join(choice.delta.content or "" for choice in choices) == TEXT
        assert [choice.finish_reason for choice in choices if choice.finish_reason] == ["stop"]
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.total_tokens == 20
        quiet = await site.client.chat.completions.create(**CHAT)
        assert (quiet.choices[0].message.content, quiet.choices[0].message.tool_calls) == (TEXT, None)
        async with site.client.chat.completions.stream(**CHAT, stream_options=usage, extra_body=tools) as stream:
            async for _ in stream:
                pass
            added = await stream.get_final_completion()
        waited = await site.client.chat.completions.create(**CHAT, extra_body=tools)
        for completion in (added, waited):
            message = completion.choices[0].message
            assert message.content == TEXT
            assert [(call.id, call.function.arguments) for call in message.tool_calls or ()] == [
                ("call_1", '{"q": "x"}')
            ]
            assert completion.usage == chunks[-1].usage


async def test_agents_of_the_sdk_have_an_agent_as_their_model() -> None:
    """They run every function call that they are given: those that the inner agent has run must not look like one."""
    async with serving(*[calls("search", {"q": "x"}), WORDS] * 4) as site:
        for model in (OpenAIResponsesModel("bot", site.client), OpenAIChatCompletionsModel("bot", site.client)):
            asking = Agent(name="Outer", model=model, instructions="Ask the other one.")
            assert (await Runner.run(asking, "hi")).final_output == TEXT
            streamed = Runner.run_streamed(asking, "hi")
            deltas = [
                event.data.delta
                async for event in streamed.stream_events()
                if event.type == "raw_response_event" and event.data.type == "response.output_text.delta"
            ]
            assert (streamed.final_output, "".join(deltas)) == (TEXT, TEXT)


# --- npm -------------------------------------------------------------------------------------------------------------

JS = Path(__file__).parent / "js-openai"


@pytest.fixture
def ask(program: Callable[[str, str], str]) -> Callable[..., Any]:
    """`await ask(site, "whole", create=…)`: what the npm client gave for it."""
    node = program("node", "apt-get install nodejs npm")
    if not (JS / "node_modules" / "openai").is_dir():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("the npm client is missing. To run this test: npm ci --prefix tests/js-openai")

    async def asked(site: Site, what: str, **task: Any) -> Any:
        pipe = asyncio.subprocess.PIPE
        command = [node, str(JS / "ask.mjs"), site.url, json.dumps({"what": what, **task})]
        running = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
        try:
            async with asyncio.timeout(60):
                out, error = await running.communicate()
        finally:
            if running.returncode is None:
                running.kill()
                await running.wait()
        assert running.returncode == 0, error.decode()
        return json.loads(out)

    return asked


def as_told(events: list[list[Any]]) -> list[Told]:
    return [(number, type_, delta) for number, type_, delta in events]


@pytest.mark.server
@cell("openai-python responses", "local model")
@cell("openai-python chat", "local model")
@cell("openai-js responses", "local model")
@cell("openai-js chat", "local model")
async def test_the_local_model_answers_every_client(ask: Callable[..., Any], local_model: real_server.Server) -> None:
    """One real run each."""
    create = {"model": "assistant", "input": "What is the weather in Lisbon?"}
    chat = {"model": "assistant", "messages": [{"role": "user", "content": "What is the capital of France?"}]}
    client = openai.AsyncOpenAI(api_key="k", base_url=f"{local_model.url}/v1", max_retries=0)
    async with client, httpx.AsyncClient(base_url=local_model.url) as http:
        site = Site(http)
        async with client.responses.stream(**create) as stream:
            response = await stream.get_final_response()
        assert response.output[0].type == "mcp_call"
        assert response.output_text.strip()  # what so small a model says is another matter
        completion = await client.chat.completions.create(**chat)
        assert (completion.choices[0].message.content or "").strip()
        npm = await ask(site, "whole", create=create)
        assert (npm["last"]["status"], as_told(npm["events"])) == ("completed", await site.log(npm["last"]["id"]))
        chunks = (await ask(site, "chat", create=chat))["chunks"]
        assert chunks[-1]["choices"][0]["finish_reason"] == "stop"
        await site.client.close()


@pytest.mark.server
@cell("openai-js responses", "whole", "tool call")
async def test_npm_a_whole_run_with_tools(ask: Callable[..., Any]) -> None:
    answers = [calls("search", {"q": "x"}), WORDS] * 3
    async with serving(*answers) as site:
        whole = await ask(site, "whole", create=ASK)
        assert as_told(whole["events"]) == await site.log(whole["last"]["id"])
        assert whole["last"]["output"] == whole["retrieved"]["output"]
        assert [item["type"] for item in whole["last"]["output"]] == ["mcp_call", "message"]
        for way in ("late", "helperLate"):
            late = await ask(site, way, id=whole["last"]["id"], after=4)
            assert as_told(late["events"]) == rolled(as_told(whole["events"][5:]))
        helped = await ask(site, "helper", create=ASK)
        plain = await ask(site, "plain", create=ASK)
        assert (helped["text"], plain["text"], plain["status"]) == (TEXT, TEXT, "completed")


@pytest.mark.server
@pytest.mark.parametrize(("each", "abrupt"), list(cuts("openai-js responses", 1, 3)))
async def test_npm_nothing_is_lost_when_cut_at_every_kth_event(
    ask: Callable[..., Any], each: int, abrupt: bool
) -> None:
    answers = [calls("search", {"q": "x"}), WORDS]
    async with serving(*answers, around=lambda app: EventCutter(app, each=each, abrupt=abrupt)) as site:
        got = await ask(site, "resumed", create={**ASK, "background": True})
        assert gapless(as_told(got["events"]))
        assert got["connections"] >= len(got["events"]) // each
        assert await site.runs_made() == 1
    assert "".join(delta for _, type_, delta in got["events"] if type_ == "response.output_text.delta") == TEXT


@pytest.mark.server
@cell("openai-js responses", "error in mid-stream", "cancel")
@cell("openai-js chat", "error in mid-stream")
async def test_npm_failures_cancelling_and_what_is_raised(ask: Callable[..., Any]) -> None:
    failing = ["Hel", RuntimeError(f"key {SECRET}")]
    async with serving(failing, failing, failing, ["Hel", asyncio.Event()]) as site:
        failed = await ask(site, "whole", create=ASK)
        assert (failed["last"]["status"], failed["last"]["error"]["code"]) == ("failed", "server_error")
        streamed = await ask(site, "chat", create=CHAT)
        assert (streamed["raised"], streamed["code"]) == ("APIError", "upstream_cut")
        waited = await ask(site, "chatPlain", create=CHAT)
        assert (waited["raised"], waited["status"], waited["code"]) == ("InternalServerError", 500, "upstream_cut")
        cancelled = await ask(site, "cancel", create=ASK, after="Hel")
        assert (cancelled["cancelled"], cancelled["events"][-1][1]) == ("cancelled", "response.cancelled")
        unknown = await ask(site, "plain", create={**ASK, "model": "nobody"})
        assert (unknown["raised"], unknown["code"], unknown["param"]) == ("NotFoundError", "model_not_found", "model")
        refused = await ask(site, "plain", create={**ASK, "max_output_tokens": 5})
        assert (refused["raised"], refused["param"]) == ("BadRequestError", "max_output_tokens")
        assert SECRET not in json.dumps([failed, streamed, waited])


@pytest.mark.server
@cell("openai-js chat", "whole", "tool call")
async def test_npm_chat_and_the_rest(ask: Callable[..., Any]) -> None:
    async with serving(*[calls("search", {"q": "x"}), WORDS] * 2, WORDS, ["One."], ["Two."]) as site:
        usage = {"stream_options": {"include_usage": True}}
        chunks = (await ask(site, "chat", create={**CHAT, **usage}))["chunks"]
        said = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
        assert ("".join(said), chunks[-1]["usage"]["total_tokens"]) == (TEXT, 20)
        helped = await ask(site, "chatHelper", create={**CHAT, **usage, "tools_as": "tool_calls"})
        assert helped["choices"][0]["message"]["content"] == TEXT
        assert helped["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"] == '{"q": "x"}'
        plain = await ask(site, "chatPlain", create=CHAT)
        assert plain["choices"][0]["message"]["content"] == TEXT
        first = await site.client.responses.create(**ASK)
        second = await site.client.responses.create(**ASK, previous_response_id=first.id)
        rest = await ask(site, "rest", id=second.id)
        assert [item["content"][0]["text"] for item in rest["items"]] == ["hi", "One.", "hi"]
        assert rest["models"] == ["bot"]
        assert await site.runs_made() == 4
