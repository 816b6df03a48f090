"""Tracing with the real OpenTelemetry SDK: which spans there are, how they hang together, and what is not in them."""

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import agents
import pytest
from ag_ui.core import Event
from ag_ui_validate.pytest_plugin import assert_valid_agui
from agents import Agent, function_tool
from fastapi import FastAPI, Request
from opentelemetry import context, trace
from opentelemetry.instrumentation.fastapi import FastAPIInstrumentor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind
from pydantic import TypeAdapter

from asgi_client import Call, Client, both_ways  # noqa: F401 -- every reader here ends every way
from headwater import Streams, leases
from headwater.agui import BaseEvent, decode
from headwater.http import App
from headwater.http.lifespan import lifespan
from headwater.runs import Run, Runs
from headwater.sources import Answer, RunFailed, Sink
from headwater.tracing import Tracing
from headwater.wire.sse import Decoder
from scripted_model import calls, scripted

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
SECRET = "prompt-4711"


class Telescope:
    """Everything that was traced and measured."""

    def __init__(self) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracing = Tracing(self.provider, self.meters)

    def spans(self, name: str | None = None) -> list[ReadableSpan]:
        """Those that have ended, in that order."""
        return [span for span in self._exporter.get_finished_spans() if name in (None, span.name)]

    def span(self, name: str) -> ReadableSpan:
        found = self.spans(name)
        assert len(found) == 1, [span.name for span in self.spans()]
        return found[0]

    async def until(self, name: str, times: int = 1) -> list[ReadableSpan]:
        """They end just behind what is seen of them."""
        async with asyncio.timeout(5):
            while len(self.spans(name)) < times:
                await asyncio.sleep(0)
        return self.spans(name)

    def measured(self) -> dict[str, list[Any]]:
        """The points of each histogram."""
        data = self._reader.get_metrics_data()
        metrics = [metric for one in data.resource_metrics for scope in one.scope_metrics for metric in scope.metrics]
        return {metric.name: list(metric.data.data_points) for metric in metrics}

    def shutdown(self) -> None:
        self.provider.shutdown()
        self.meters.shutdown()


@pytest.fixture
def sky() -> Iterator[Telescope]:
    telescope = Telescope()
    yield telescope
    for span in telescope.spans():
        told = json.dumps([dict(span.attributes or {}), span.name, span.status.description, len(span.events)])
        assert SECRET not in told, "what was said is in no attribute"
        assert not span.events, "exceptions with their texts would be events"
    telescope.shutdown()


@asynccontextmanager
async def serving(sky: Telescope, *given: Any, **options: Any) -> AsyncIterator[tuple[Client, Runs]]:
    async with Streams("memory:", tracing=sky.tracing) as streams, Runs(streams, *given, **options) as runs:
        yield Client(App(streams, runs)), runs


def bot(*answers: list[Any], **options: Any) -> Agent[Any]:
    return Agent(name="Bot", model=scripted(*answers), **options)


def traceparent_of(span: ReadableSpan) -> str:
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-01"


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def post(client: Client, **headers: str) -> Call:
    body = json.dumps({"agent": "bot", "input": SECRET, "thread_id": "th"})
    return await client.ask("POST", "/v1/runs", body, **headers)


async def ended(run: Run) -> list[dict[str, Any]]:
    await run.wait()
    page = await run._runs.streams.read(run.stream)
    return [decode(message.data) for message in page.messages]


# --- runs ------------------------------------------------------------------------------------------------------------


async def test_caller_run_and_readers_are_one_trace(sky: Telescope) -> None:
    async with serving(sky, bot(["Hel", "lo"])) as (client, runs):
        posted = await post(client, traceparent=CALLER)
        run = posted.headers["x-run-id"]
        read = await client.ask("GET", f"/v1/runs/{run}/events?rollup=0", traceparent=CALLER)
        [made] = await sky.until("headwater.run")
        assert (f"{made.context.trace_id:032x}", f"{made.parent.span_id:016x}") == tuple(CALLER.split("-")[1:3])
        first = json.loads(Decoder().feed(read.body)[0].data)
        assert first["type"] == "RUN_STARTED"
        assert first["metadata"] == {"traceparent": traceparent_of(made)}
        assert read.headers["traceparent"] == traceparent_of(made)
        reader = (await sky.until("headwater.subscribe"))[-1]
        assert [link.context.span_id for link in reader.links] == [made.context.span_id]
        assert f"{reader.parent.span_id:016x}" == CALLER.split("-")[2]
        assert reader.kind is SpanKind.CONSUMER
        assert_valid_agui(await ended(await runs.get(run)), severity_overrides={"AGUI204": "off"})


async def test_a_run_says_who_ran_in_which_conversation_what_it_took_and_how_it_ended(sky: Telescope) -> None:
    async with serving(sky, bot(["Hel", "lo"])) as (client, _):
        run = (await post(client)).headers["x-run-id"]
        [made] = await sky.until("headwater.run")
    told = dict(made.attributes or {})
    assert told.pop("gen_ai.response.time_to_first_chunk") > 0
    assert told == {
        "gen_ai.operation.name": "invoke_agent",
        "gen_ai.agent.name": "bot",
        "gen_ai.conversation.id": "th",
        "gen_ai.usage.input_tokens": 7,
        "gen_ai.usage.output_tokens": 2,
        "headwater.run.id": run,
        "headwater.run.outcome": "completed",
    }
    assert made.parent is None
    assert made.status.is_unset


async def test_model_calls_and_tools_are_children_at_their_true_times(sky: Telescope) -> None:
    inside: list[trace.SpanContext] = []

    @function_tool
    async def search(q: str) -> str:
        inside.append(trace.get_current_span().get_span_context())
        with sky.provider.get_tracer("theirs").start_as_current_span("query"):
            return SECRET

    async with serving(sky, bot(calls("search", {"q": SECRET}), ["done"], tools=[search])) as (client, _):
        await post(client)
        [made] = await sky.until("headwater.run")
    asked, told = sky.spans("chat tiny")
    tool, query = sky.span("execute_tool search"), sky.span("query")
    assert [parent_of(span) for span in (asked, tool, told)] == [made.context.span_id] * 3
    assert asked.end_time <= tool.end_time <= told.start_time
    assert inside == [tool.context]
    assert parent_of(query) == tool.context.span_id, "what a tool does is inside of it"
    assert asked.kind is SpanKind.CLIENT
    assert asked.attributes["gen_ai.provider.name"] == "openai"
    assert asked.attributes["gen_ai.request.model"] == "tiny"
    assert (asked.attributes["gen_ai.usage.input_tokens"], told.attributes["gen_ai.usage.output_tokens"]) == (7, 1)
    assert 0 < told.attributes["gen_ai.response.time_to_first_chunk"] < (told.end_time - told.start_time) / 1e9
    assert tool.attributes["gen_ai.tool.name"] == "search"
    assert tool.attributes["gen_ai.tool.call.id"] == "call_1"


async def test_agents_inside_tools_are_inside_their_spans(sky: Telescope) -> None:
    inner = Agent(name="Inner", model=scripted(["in", "side"]))
    outer = bot(calls("ask", {"input": SECRET}), ["done"], tools=[inner.as_tool("ask", "asks")])
    async with serving(sky, outer) as (client, _):
        await post(client)
        await sky.until("headwater.run")
    tool, within = sky.span("execute_tool ask"), sky.span("invoke_agent Inner")
    assert parent_of(within) == tool.context.span_id
    assert [parent_of(span) for span in sky.spans("chat tiny")].count(within.context.span_id) == 1
    assert len(sky.spans("chat tiny")) == 3


async def test_a_failed_run_is_an_error_with_its_code_and_without_its_text(sky: Telescope) -> None:
    async with serving(sky, bot(["He", RuntimeError(SECRET)])) as (client, runs):
        run = (await post(client)).headers["x-run-id"]
        [made] = await sky.until("headwater.run")
        code = (await runs.record(run)).error["code"]
    assert not made.status.is_ok
    assert not made.status.is_unset
    assert made.attributes["error.type"] == code == sky.span("chat tiny").attributes["error.type"]
    assert made.attributes["headwater.run.outcome"] == "failed"


async def test_a_cancelled_run_is_no_error(sky: Telescope) -> None:
    gate = asyncio.Event()
    async with serving(sky, bot(["He", gate])) as (client, runs):
        run = await runs.get((await post(client)).headers["x-run-id"])
        await run.cancel()
        await run.wait()
        [made] = await sky.until("headwater.run")
    assert made.status.is_unset
    assert made.attributes["headwater.run.outcome"] == "cancelled"


class Plain:
    """A source that tells nothing but events, like those of other frameworks."""

    name = "bot"

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002
        def event(kind: str, **fields: Any) -> BaseEvent:
            return TypeAdapter(Event).validate_python({"type": kind, **fields})

        await sink.emit(event("TOOL_CALL_START", tool_call_id="c1", tool_call_name="look"))
        await sink.emit(event("TOOL_CALL_END", tool_call_id="c1"))
        await sink.emit(event("TOOL_CALL_RESULT", message_id="m", tool_call_id="c1", content=SECRET))
        await sink.emit(event("TOOL_CALL_START", tool_call_id="c2", tool_call_name="wait"))
        await sink.emit(event("TOOL_CALL_END", tool_call_id="c2"))
        await sink.emit(event("CUSTOM", name="tool.started", value={"toolCallId": "c2"}))
        raise RunFailed("no_luck", SECRET)


async def test_runs_of_every_framework_have_their_tools(sky: Telescope) -> None:
    async with serving(sky, Plain()) as (client, _):
        await post(client)
        [made] = await sky.until("headwater.run")
    looked, waited = sky.span("execute_tool look"), sky.span("execute_tool wait")
    assert [parent_of(span) for span in (looked, waited)] == [made.context.span_id] * 2
    assert looked.status.is_unset
    assert waited.attributes["error.type"] == "no_luck", "what was open when the run failed has failed"


async def test_a_start_that_is_repeated_is_the_same_run_and_one_that_is_refused_says_so(sky: Telescope) -> None:
    async with serving(sky, bot(["one"])) as (client, _):
        await post(client, idempotency_key="k")
        await post(client, idempotency_key="k")
        await sky.until("headwater.run")
        assert len(sky.spans("headwater.run")) == 1
        deep = json.dumps({"agent": "bot", "input": [{"a": json.loads("[" * 600 + "]" * 600)}]})
        assert (await client.ask("POST", "/v1/runs", deep)).status == 400
        refused = (await sky.until("headwater.run", 2))[-1]
        assert refused.attributes["headwater.run.outcome"] == "refused"
        assert not refused.status.is_ok


# --- on from process to process --------------------------------------------------------------------------------------


async def test_who_takes_a_run_over_goes_on_in_its_trace(
    sky: Telescope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)
    gate, url = asyncio.Event(), f"sqlite:///{tmp_path}/runs.db"
    async with Streams(url, tracing=sky.tracing) as one, Runs(one, bot(["He", gate, "y"])) as first:
        run = await first.start("bot", SECRET)
        async with Streams(url, tracing=sky.tracing) as two, Runs(two, bot(["Hey"])) as second:
            head = await one.head(run.stream)
            await one.delete(leases.PREFIX + head.owner)  # as when nothing was heard of it for too long
            await two.leases.finish_orphans()
            events = await ended(await second.get(run.id))
            again = (await sky.until("headwater.run"))[0]
            gate.set()
    begun = events[0]["metadata"]["traceparent"].split("-")
    assert (f"{again.context.trace_id:032x}", f"{again.parent.span_id:016x}") == (begun[1], begun[2])
    assert again.attributes["headwater.run.attempt"] == 1
    assert again.attributes["headwater.run.outcome"] == "completed"
    lost = (await sky.until("headwater.run", 2))[1]
    assert lost.attributes["headwater.run.outcome"] == "lost"


async def test_a_run_that_nobody_can_go_on_with_is_found_in_its_trace(
    sky: Telescope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)
    gate, url = asyncio.Event(), f"sqlite:///{tmp_path}/runs.db"
    async with Streams(url, tracing=sky.tracing) as one, Runs(one, bot(["He", gate, "y"]), most_resumptions=0) as first:
        run = await first.start("bot", SECRET)
        async with Streams(url, tracing=sky.tracing) as two, Runs(two, bot(), most_resumptions=0):
            await one.delete(leases.PREFIX + (await one.head(run.stream)).owner)
            await two.leases.finish_orphans()
            [found] = await sky.until("headwater.run")
        begun = decode((await one.read(run.stream)).messages[0].data)["metadata"]["traceparent"].split("-")
        gate.set()
        await sky.until("headwater.run", 2)
    assert (f"{found.context.trace_id:032x}", f"{found.parent.span_id:016x}") == (begun[1], begun[2])
    assert (found.attributes["headwater.run.outcome"], found.attributes["error.type"]) == ("failed", "interrupted")


async def test_a_run_that_waits_for_people_goes_on_in_its_trace(sky: Telescope) -> None:
    @function_tool(needs_approval=True)
    def danger() -> str:
        return "dared"

    async with serving(sky, bot(calls("danger", {}), ["done"], tools=[danger])) as (client, runs):
        run = await runs.get((await post(client, traceparent=CALLER)).headers["x-run-id"])
        [asked] = await sky.until("headwater.run")
        assert asked.attributes["headwater.run.outcome"] == "waiting"
        assert asked.status.is_unset
        await runs.answer(run.id, {"call_1": Answer(approved=True)})
        await ended(run)
        made = (await sky.until("headwater.run", 2))[1]
    assert parent_of(made) == asked.context.span_id
    assert f"{made.context.trace_id:032x}" == CALLER.split("-")[1]
    assert parent_of(sky.span("execute_tool danger")) == made.context.span_id


# --- appends and readers ---------------------------------------------------------------------------------------------


async def test_an_append_is_a_span_and_the_commits_of_a_run_are_none(sky: Telescope) -> None:
    async with serving(sky, bot(["one"])) as (client, runs):
        await runs.streams.create("chat/1")
        said = json.dumps([SECRET, SECRET])
        sent = {"content_type": "application/json", "traceparent": CALLER}
        stamped = {"producer_id": "p", "producer_epoch": "0", "producer_seq": "0"}
        for _ in range(2):
            await client.ask("POST", "/v1/stream/chat/1", said, **sent, **stamped)
        await client.ask("POST", "/v1/stream/chat/2", said, **sent)
        await post(client)
        await sky.until("headwater.run")
        new, again, nowhere = sky.spans("headwater.append")
    assert new.kind is SpanKind.PRODUCER
    assert f"{new.parent.span_id:016x}" == CALLER.split("-")[2]
    assert dict(new.attributes) == {
        "messaging.system": "headwater",
        "messaging.operation.name": "append",
        "messaging.operation.type": "send",
        "messaging.destination.name": "chat/1",
        "messaging.batch.message_count": 2,
        "messaging.message.body.size": 2 * len(json.dumps(SECRET)),
        "headwater.append.result": "appended",
    }
    assert again.attributes["headwater.append.result"] == "duplicate"
    assert nowhere.attributes["error.type"] == "stream_not_found"


async def test_readers_say_what_they_got_and_why_they_left(sky: Telescope) -> None:
    async with serving(sky, bot()) as (client, runs):
        await runs.streams.create("s", "a", "b", "c", labels={"traceparent": CALLER})
        page = await runs.streams.read("s")
        left = client.call("GET", "/v1/stream/s?format=sse")
        await left.until(b'"c"')
        await left.leave()
        gone = (await sky.until("headwater.subscribe"))[-1]
        last = str(page.messages[0].offset)
        followed = client.call("GET", "/v1/stream/s?format=ndjson", last_event_id=last)
        await followed.until(b'"c"')
        await runs.streams.append("s", "d", close=True)
        await followed.done()
        over = (await sky.until("headwater.subscribe", 2))[-1]
        await client.ask("GET", "/v1/stream/s?offset=-1&live=long-poll")
        polled = (await sky.until("headwater.subscribe", 3))[-1]
    assert dict(gone.attributes) | {"headwater.bytes": 0} == {
        "messaging.system": "headwater",
        "messaging.operation.name": "subscribe",
        "messaging.operation.type": "receive",
        "messaging.destination.name": "s",
        "headwater.transport": "sse",
        "headwater.resume": "none",
        "headwater.replayed": 3,
        "headwater.events": 3,
        "headwater.bytes": 0,
        "headwater.reason": "left",
    }
    assert gone.attributes["headwater.bytes"] == len('"a""b""c"')
    assert [link.context.span_id for link in gone.links] == [int(CALLER.split("-")[2], 16)]
    told = ("headwater.resume", "headwater.replayed", "headwater.events", "headwater.reason", "headwater.transport")
    assert [over.attributes[name] for name in told] == ["ok", 2, 3, "ended", "ndjson"]
    assert polled.attributes["headwater.transport"] == "long-poll"
    assert all(span.status.is_unset for span in (gone, over, polled))


async def test_a_reader_that_cannot_go_on_is_an_error(sky: Telescope) -> None:
    async with serving(sky, bot()) as (client, runs):
        await runs.streams.create("s", "a")
        await client.ask("GET", "/v1/stream/s?format=sse", last_event_id="0000000000000001_0000000000000001")
        refused = sky.span("headwater.subscribe")
    assert refused.attributes["headwater.resume"] in ("gap", "other_stream", "bad_offset")
    assert refused.attributes["error.type"] in ("offset_gone", "bad_offset")
    assert not refused.status.is_ok


# --- metrics ---------------------------------------------------------------------------------------------------------


async def test_the_metrics_of_genai_have_its_names_buckets_and_attributes(sky: Telescope) -> None:
    @function_tool
    def search(q: str) -> str:
        return q

    async with serving(sky, bot(calls("search", {"q": "x"}), ["do", "ne"], tools=[search])) as (client, _):
        await post(client)
        await sky.until("headwater.run")
    measured = sky.measured()
    model = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": "openai", "gen_ai.request.model": "tiny"}
    [agent] = measured["gen_ai.invoke_agent.duration"]
    assert (dict(agent.attributes), agent.count) == ({"gen_ai.agent.name": "bot"}, 1)
    assert list(agent.explicit_bounds)[:3] == [0.1, 0.2, 0.4]
    for name in ("gen_ai.client.operation.duration", "gen_ai.client.operation.time_to_first_chunk"):
        [chats] = measured[name]
        assert (dict(chats.attributes), chats.count) == (model, 2)
        assert list(chats.explicit_bounds)[-2:] == [40.96, 81.92]
    [tools] = measured["gen_ai.execute_tool.duration"]
    assert dict(tools.attributes) == {"gen_ai.tool.name": "search"}
    used = {point.attributes["gen_ai.token.type"]: point for point in measured["gen_ai.client.token.usage"]}
    assert (used["input"].sum, used["input"].count, used["output"].sum) == (14, 2, 3)
    assert list(used["input"].explicit_bounds)[-1] == 67108864
    assert model.items() <= dict(used["input"].attributes).items()


# --- beside others ---------------------------------------------------------------------------------------------------


class Recorded(agents.TracingProcessor):
    """What the Agents SDK traces itself."""

    def __init__(self) -> None:
        self.kinds: list[str] = []

    def on_trace_start(self, trace: Any) -> None:
        self.kinds.append("trace")

    def on_trace_end(self, trace: Any) -> None: ...
    def on_span_start(self, span: Any) -> None: ...

    def on_span_end(self, span: Any) -> None:
        self.kinds.append(span.span_data.type)

    def shutdown(self) -> None: ...
    def force_flush(self) -> None: ...


@pytest.fixture
def theirs() -> Iterator[Recorded]:
    recorded = Recorded()
    agents.set_trace_processors([recorded])
    agents.set_tracing_disabled(False)
    yield recorded
    agents.set_tracing_disabled(True)
    agents.set_trace_processors([])


async def test_what_the_agents_sdk_traces_itself_is_as_without_us(sky: Telescope, theirs: Recorded) -> None:
    @function_tool
    def search(q: str) -> str:
        return q

    def searcher() -> Agent[Any]:
        return bot(calls("search", {"q": "x"}), ["done"], tools=[search])

    async with Streams("memory:") as streams, Runs(streams, searcher()) as runs:
        await (await runs.start("bot", "x")).wait()
    without, theirs.kinds[:] = list(theirs.kinds), []
    async with serving(sky, searcher()) as (client, _):
        await post(client)
        await sky.until("headwater.run")
    assert theirs.kinds == without
    assert {"trace", "agent", "function"} <= set(without)
    names = sorted(span.name for span in sky.spans())
    assert names == ["chat tiny", "chat tiny", "execute_tool search", "headwater.run"], "and ours are there once"


async def test_children_can_be_left_to_others_whose_spans_are_then_inside_the_run(sky: Telescope) -> None:
    sky.tracing = Tracing(sky.provider, sky.meters, children=False)

    @function_tool
    def search(q: str) -> str:
        with sky.provider.get_tracer("theirs").start_as_current_span("their tool"):
            return q

    async with serving(sky, bot(calls("search", {"q": "x"}), ["done"], tools=[search])) as (client, _):
        await post(client)
        [made] = await sky.until("headwater.run")
    assert {span.name for span in sky.spans()} == {"headwater.run", "their tool"}
    assert parent_of(sky.span("their tool")) == made.context.span_id
    assert made.attributes["gen_ai.usage.input_tokens"] == 14


@pytest.mark.parametrize("instrumented", [True, False])
async def test_in_a_fastapi_application_runs_and_readers_are_where_they_belong(
    sky: Telescope, instrumented: bool
) -> None:
    streams = Streams("memory:", tracing=sky.tracing)
    runs = Runs(streams, bot(["Hel", "lo"]))
    api = FastAPI(lifespan=lifespan(streams, runs))

    @api.post("/ask")
    async def ask(request: Request) -> Any:
        return (await runs.start("bot", SECRET)).response(request)

    if instrumented:
        FastAPIInstrumentor.instrument_app(api, tracer_provider=sky.provider, meter_provider=sky.meters)
    try:
        async with streams, runs:
            call = await Client(api).ask("POST", "/ask", traceparent=CALLER)
            assert b"RUN_FINISHED" in call.body
            [made] = await sky.until("headwater.run")
            [reader] = await sky.until("headwater.subscribe")
    finally:
        FastAPIInstrumentor.uninstrument_app(api)
    assert reader.attributes["headwater.reason"] == "ended"
    assert [link.context.span_id for link in reader.links] == [made.context.span_id]
    if instrumented:
        [request] = await sky.until("POST /ask")
        assert f"{request.context.trace_id:032x}" == CALLER.split("-")[1]
        assert parent_of(made) == parent_of(reader) == request.context.span_id
    else:  # an endpoint's own call of `start` sees no request; a response does
        assert (made.parent, f"{reader.parent.span_id:016x}") == (None, CALLER.split("-")[2])


# --- off -------------------------------------------------------------------------------------------------------------


async def test_without_a_provider_nothing_is_made_and_nothing_is_told() -> None:
    async with Streams("memory:", tracing=Tracing()) as streams, Runs(streams, bot(["one"])) as runs:
        client = Client(App(streams, runs))
        run = await runs.get((await post(client)).headers["x-run-id"])
        events = await ended(run)
        read = await client.ask("GET", f"/v1/runs/{run.id}/events")
    assert "metadata" not in events[0]
    assert "traceparent" not in read.headers
    assert not trace.get_current_span(context.get_current()).get_span_context().is_valid


def test_nobody_imports_opentelemetry_who_does_not_switch_it_on() -> None:
    """In a process of its own; the SDK of agents imports the API by itself, through mcp."""
    program = "import sys, headwater.http, headwater.server, headwater.client, headwater.traced; "
    program += "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_a_missing_package_is_said_with_the_line_that_installs_it() -> None:
    program = "import sys; sys.modules['opentelemetry'] = None\nimport headwater.tracing"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "pip install 'headwater[tracing]'" in said.stderr
