"""Agent runs: what is in their streams, who owns them, and how each of them ends. The real SDK on a scripted wire."""

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from ag_ui.core import SubagentFinishedEvent, SubagentStartedEvent, TextMessageChunkEvent, ToolCallChunkEvent
from ag_ui_validate.pytest_plugin import assert_valid_agui
from agents import Agent, function_tool

from headwater import Streams
from headwater.agui import CustomEvent, OpenParts, decode, encode, run_started
from headwater.errors import (
    AgentNotFound,
    BadRequest,
    Draining,
    Interrupted,
    KeyReused,
    RunNotFound,
    StoreUnavailable,
    TooLarge,
)
from headwater.runs import Record, Run, Runs, keys
from headwater.runs.supervisor import STOP_SECONDS, Place, Supervised, Supervisor
from headwater.sources import Paused, Question, Resumption, RunFailed, Sink, progress
from headwater.stores.memory import MemoryStore
from headwater.testing import virtual_time
from scripted_model import SECRET, calls, scripted

Event = dict[str, Any]


# --- what tests read and run -----------------------------------------------------------------------------------------


async def read(run: Run, streams: Streams) -> list[Event]:
    """All events of a run, when it has ended; judged by AG-UI's rules and ours."""
    async with asyncio.timeout(30):
        events = [decode(m.data) async for page in streams.follow(run.stream) for m in page.messages]
    parts = OpenParts()
    for event in events:
        parts.feed(event)
    assert_valid_agui(events, severity_overrides={"AGUI204": "off"})
    assert (events[0]["type"], events[0]["runId"]) == ("RUN_STARTED", run.id)
    assert (events[1]["type"], events[1]["name"]) == ("CUSTOM", "run.input")
    assert [event["type"] for event in events if event["type"] in ("RUN_FINISHED", "RUN_ERROR")] == [events[-1]["type"]]
    assert SECRET not in json.dumps(events)
    return events


async def seen(streams: Streams, run: Run, what: str) -> None:
    """Wait until an event whose JSON holds `what` can be read."""
    async for page in streams.follow(run.stream):
        if any(what.encode() in message.data for message in page.messages):
            return


def text(events: list[Event]) -> str:
    return "".join(event["delta"] for event in events if event["type"] == "TEXT_MESSAGE_CONTENT")


def types(events: list[Event]) -> list[str]:
    return [event["type"] for event in events]


class Bare:
    """A source that is one function."""

    name = "bare"

    def __init__(self, body: Any) -> None:
        self.body, self.begun = body, 0

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 -- AG-UI's word
        self.begun += 1
        return await self.body(sink)


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    async with Streams("memory:") as opened:
        yield opened


async def forever(_: Sink) -> None:
    await asyncio.Event().wait()


# --- what a run's stream holds ---------------------------------------------------------------------------------------


async def test_a_run_is_its_input_its_events_and_one_end(streams: Streams) -> None:
    agent = Agent(name="Number Teller", model=scripted([" one", " two", "  three\n"]))
    async with Runs(streams, agent) as runs:
        run = await runs.start("number-teller", "count!", thread_id="chat-7")
        assert run.started
        events = await read(run, streams)
        assert types(events) == [
            "RUN_STARTED", "CUSTOM", "STEP_STARTED", "TEXT_MESSAGE_START", *["TEXT_MESSAGE_CONTENT"] * 3,
            "TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_FINISHED",
        ]  # fmt: skip
        assert events[0]["threadId"] == "chat-7"
        assert events[1]["value"] == "count!"
        assert text(events) == " one two  three\n"
        assert events[-1]["outcome"] == {"type": "success"}
        usage = [{"model": "tiny", "inputTokens": 7, "outputTokens": 3, "totalTokens": 10}]
        assert events[-1]["usage"] == usage
        record = await run.wait()
        assert (record.status, record.agent, record.thread_id, record.title) == (
            "completed", "number-teller", "chat-7", "count!",
        )  # fmt: skip
        assert (record.input, record.result, record.usage) == ("count!", " one two  three\n", usage)
        assert record.error is None
        assert record.ended is not None
        assert record.created <= record.ended
        assert (await streams.head(run.stream)).outcome == "completed"


async def test_tools_with_progress_are_told_as_they_happen(streams: Streams) -> None:
    @function_tool
    async def dig(where: str) -> str:
        """Digs."""
        progress("half way", fraction=0.5)
        return f"gold in {where}"

    agent = Agent(name="Digger", tools=[dig], model=scripted(calls("dig", {"where": "Bern"}), ["done"]))
    async with Runs(streams, agent) as runs:
        events = await read(await runs.start(agent, "dig"), streams)
        names = [event["name"] if event["type"] == "CUSTOM" else event["type"] for event in events]
        inner = ["TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "tool.started", "tool.progress"]
        assert [name for name in names if name in inner] == inner
        (result,) = [event for event in events if event["type"] == "TOOL_CALL_RESULT"]
        assert result["content"] == "gold in Bern"
        assert text(events) == "done"


async def test_two_readers_see_the_same_and_a_reader_that_leaves_changes_nothing(streams: Streams) -> None:
    gate = asyncio.Event()
    async with Runs(streams, Agent(name="bot", model=scripted(["a", gate, "b", "c"]))) as runs:
        run = await runs.start("bot", "hi")
        leaving = asyncio.create_task(read(run, streams))
        staying = asyncio.create_task(read(run, streams))
        await seen(streams, run, '"delta":"a"')
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        gate.set()
        events = await staying
        assert text(events) == "abc"
        assert await read(run, streams) == events


async def test_the_input_may_be_a_list_of_messages(streams: Streams) -> None:
    bodies: list[Any] = []
    agent = Agent(name="bot", model=scripted(["ok"], asked=bodies.append))
    given = [
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "yes?"},
        {"role": "user", "content": [{"type": "input_text", "text": "the   last\nthing"}]},
    ]
    async with Runs(streams, agent) as runs:
        run = await runs.start(agent, given)
        assert (await read(run, streams))[1]["value"] == given
        record = await run.record()
        assert (record.input, record.title) == (given, "the last thing")
        assert [message["role"] for message in bodies[0]["messages"]] == ["user", "assistant", "user"]


# --- failures --------------------------------------------------------------------------------------------------------


async def test_a_failure_is_told_without_what_it_was_about(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    agent = Agent(name="bot", instructions=SECRET, model=scripted(["Hel", ConnectionError(SECRET)]))
    async with Runs(streams, agent) as runs:
        run = await runs.start(agent, "hi")
        events = await read(run, streams)
        assert types(events)[-3:] == ["TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_ERROR"]
        assert text(events) == "Hel"
        record = await run.record()
        assert record.status == "failed"
        assert record.error == {"code": events[-1]["code"], "message": events[-1]["message"]}
        assert record.error["code"] != "internal"


async def test_a_source_that_raises_ends_its_run(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    async def broken(_: Sink) -> None:
        raise ZeroDivisionError(SECRET)

    async def refused(_: Sink) -> None:
        raise RunFailed("no_credit", "There is no credit left.")

    async def out_of_order(sink: Sink) -> None:
        from headwater.agui import TextMessageContentEvent

        await sink.emit(TextMessageContentEvent(message_id="never opened", delta="x"))

    async def too_large(sink: Sink) -> None:
        await sink.emit(CustomEvent(name="big", value="x" * streams.limits.message_bytes))

    async def not_json(sink: Sink) -> None:
        await sink.emit(CustomEvent(name="odd", value=object()))

    codes = {broken: "internal", refused: "no_credit", out_of_order: "internal", too_large: "too_large"}
    async with Runs(streams) as runs:
        for body, code in {**codes, not_json: "internal"}.items():
            events = await read(await runs.start(Bare(body), "hi"), streams)
            assert types(events) == ["RUN_STARTED", "CUSTOM", "RUN_ERROR"]
            assert events[-1]["code"] == code
    assert "ZeroDivisionError" in caplog.text


async def test_a_result_that_is_not_json_is_left_out(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    async def odd(_: Sink) -> object:
        return object()

    async with Runs(streams) as runs:
        run = await runs.start(Bare(odd), "hi")
        assert (await read(run, streams))[-1] == {
            "type": "RUN_FINISHED", "threadId": f"th_{run.id}", "runId": run.id, "outcome": {"type": "success"}
        }  # fmt: skip
        assert (await run.record()).status == "completed"
    assert "not JSON" in caplog.text


async def test_a_result_that_is_too_large_is_a_failure(streams: Streams, caplog: pytest.LogCaptureFixture) -> None:
    async def huge(_: Sink) -> object:
        return "x" * streams.limits.message_bytes

    async with Runs(streams) as runs:
        events = await read(await runs.start(Bare(huge), "hi"), streams)
        assert events[-1]["code"] == TooLarge.code


class Failing(MemoryStore):
    """A store that can be away."""

    away = False
    away_for: str | None = None
    """For streams whose names begin so."""

    def commit(self, name: str, *args: Any) -> Any:
        if self.away or (self.away_for is not None and name.startswith(self.away_for)):
            future = asyncio.get_running_loop().create_future()
            future.set_exception(StoreUnavailable("the disk is full"))
            return future
        return super().commit(name, *args)


@virtual_time
async def test_a_store_that_is_away_for_seconds_costs_nothing() -> None:
    store = Failing()

    async def counts(sink: Sink) -> None:
        for number in range(30):
            await sink.emit(CustomEvent(name="n", value=number))
            await asyncio.sleep(0.1)
            store.away = 5 <= number < 15

    async with Streams(store) as streams, Runs(streams) as runs:
        events = await read(await runs.start(Bare(counts), "hi"), streams)
        assert [event["value"] for event in events[2:-1]] == list(range(30))


@virtual_time
async def test_a_run_whose_store_was_away_for_long_is_ended_when_it_is_back() -> None:
    store = Failing()

    async def counts(sink: Sink) -> None:
        for number in range(100):
            await sink.emit(CustomEvent(name="n", value=number))
            await asyncio.sleep(2)
            store.away = number >= 5

    async with Streams(store) as streams, Runs(streams) as runs:
        run = await runs.start(Bare(counts), "hi")
        await asyncio.sleep(60)
        assert not (await streams.head(run.stream)).closed
        store.away = False
        events = await asyncio.wait_for(read(run, streams), 10)
        assert events[-1]["code"] == "store_unavailable"
        assert [event["value"] for event in events[2:-1]] == list(range(6))
        assert runs.statistics()["running"] == 0


@virtual_time
async def test_a_thread_knows_its_run_though_the_store_was_away_just_then() -> None:
    store = Failing()
    store.away_for = "headwater/threads/"
    async with Streams(store) as streams, Runs(streams) as runs:
        starting = asyncio.ensure_future(runs.start(Bare(forever), "hi", thread_id="t"))
        await asyncio.sleep(3)
        store.away_for = None
        run = await starting
        assert (await runs.threads.entries("", "bare", "t"))[0].run == run.id


@virtual_time
async def test_a_run_that_could_not_be_left_to_wait_is_gone_on_with_when_the_store_is_back() -> None:
    store = Failing()

    class Asking:
        name = "asking"
        asked = 0

        async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 -- AG-UI's word
            self.asked += 1
            store.away_for = "runs/" if self.asked == 1 else None
            raise Paused([Question("t1", "danger", "{}")], b"")

        async def resume(self, input: Any, at: Resumption, sink: Sink) -> object:  # noqa: A002 -- AG-UI's word
            return "done" if at.answers else await self.run(input, sink)

    async with Streams(store) as streams, Runs(streams, Asking()) as runs:
        run = await runs.start("asking", "hi")
        await asyncio.sleep(60)
        assert (await run.record()).status == "running"
        store.away_for = None
        async with asyncio.timeout(10):
            while (await run.record()).status != "waiting":
                await asyncio.sleep(0.1)
        await run.approve("t1")
        assert (await run.wait()).result == "done"


@virtual_time
async def test_a_process_ends_though_its_store_is_away() -> None:
    store = Failing()
    async with Streams(store) as streams:
        runs = Runs(streams)
        await runs.open()
        run = await runs.start(Bare(forever), "hi")
        store.away = True
        await runs.cancel(run.id)
        await asyncio.sleep(60)  # the writer has given up by now
        before = asyncio.get_running_loop().time()
        await runs.aclose()
        assert asyncio.get_running_loop().time() - before < 1
        store.away = False
    async with Streams(store) as streams, Runs(streams):  # the next process
        assert (await read(run, streams))[-1]["code"] == "interrupted"


async def test_chunks_become_whole_events_whatever_the_source(streams: Streams) -> None:
    async def chunks(sink: Sink) -> None:
        await sink.emit(SubagentStartedEvent(subagent_run_id="s", name="Inner"))
        await sink.emit(TextMessageChunkEvent(message_id="m", delta="in", subagent_run_id="s"))
        await sink.emit(TextMessageChunkEvent(delta="side"))
        await sink.emit(SubagentFinishedEvent(subagent_run_id="s"))
        await sink.checkpoint(b"kept", [ToolCallChunkEvent(tool_call_name="look", delta="{}")])
        await sink.emit(TextMessageChunkEvent(delta="out"))  # and nothing says that it ends

    async with Runs(streams) as runs:
        run = await runs.start(Bare(chunks), "hi")
        events = await read(run, streams)
    seen = [(e["type"], e.get("subagentRunId"), e.get("delta")) for e in events[2:-1]]
    call, text = f"{run.id}.c0.1", f"{run.id}.c0.2"
    assert seen == [
        ("SUBAGENT_STARTED", "s", None),
        ("TEXT_MESSAGE_START", "s", None), ("TEXT_MESSAGE_CONTENT", "s", "in"),
        ("TEXT_MESSAGE_CONTENT", "s", "side"), ("TEXT_MESSAGE_END", "s", None),
        ("SUBAGENT_FINISHED", "s", None),
        ("TOOL_CALL_START", None, None), ("TOOL_CALL_ARGS", None, "{}"), ("TOOL_CALL_END", None, None),
        ("TEXT_MESSAGE_START", None, None), ("TEXT_MESSAGE_CONTENT", None, "out"), ("TEXT_MESSAGE_END", None, None),
    ]  # fmt: skip
    assert [e["toolCallId"] for e in events if e["type"] == "TOOL_CALL_ARGS"] == [call]
    assert [e["messageId"] for e in events if e["type"] == "TEXT_MESSAGE_END"] == ["m", text]


# --- stopping --------------------------------------------------------------------------------------------------------


async def test_cancel_in_mid_text_closes_what_is_open(streams: Streams) -> None:
    async with Runs(streams, Agent(name="bot", model=scripted(["Hel", asyncio.Event(), "lo"]))) as runs:
        run = await runs.start("bot", "hi")
        await seen(streams, run, '"delta":"Hel"')
        assert (await runs.cancel(run.id)).status == "running"
        await runs.cancel(run.id)
        events = await read(run, streams)
        assert types(events)[-3:] == ["TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_FINISHED"]
        assert events[-1]["outcome"] == {"type": "cancelled"}
        assert (await streams.head(run.stream)).outcome == "cancelled"
        assert (await runs.cancel(run.id)).status == "cancelled"  # after the end: nothing happens
        assert await read(run, streams) == events


async def test_cancel_in_mid_tool_stops_the_tool(streams: Streams) -> None:
    asleep, stopped = asyncio.Event(), asyncio.Event()

    @function_tool
    async def sleep() -> str:
        """Sleeps."""
        asleep.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()
        return ""

    async with Runs(streams, Agent(name="bot", tools=[sleep], model=scripted(calls("sleep", {})))) as runs:
        run = await runs.start("bot", "hi")
        await asyncio.wait_for(asleep.wait(), 5)
        await run.cancel()
        assert (await read(run, streams))[-1]["outcome"] == {"type": "cancelled"}
        await asyncio.wait_for(stopped.wait(), 5)


async def test_a_run_that_is_stopped_before_its_first_step_is_ended_too(streams: Streams) -> None:
    writer, started = streams.writer("runs/x"), run_started("thread", "x")
    await writer.open(encode(started))
    source, supervisor, parts = Bare(forever), Supervisor(), OpenParts()
    parts.feed(started)
    run = Supervised(Place("x", "thread", "thread", writer, None), parts, lambda: 0)
    supervisor.start(run, source.run("hi", run))
    assert supervisor.stop("x")
    assert not source.begun
    async with asyncio.timeout(5):
        pages = [page async for page in streams.follow("runs/x")]
    assert pages[-1].outcome == "cancelled"


async def test_a_run_that_is_being_started_when_the_process_ends_is_ended_too(streams: Streams) -> None:
    runs = Runs(streams)
    starting = asyncio.create_task(runs.start(Bare(forever), "hi"))
    await asyncio.sleep(0)
    await runs.interrupt()
    run = await starting
    assert (await asyncio.wait_for(run.wait(), 5)).error == {"code": "interrupted", "message": Interrupted().said}


async def test_cancel_from_another_process_on_the_same_file(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    async with (
        Streams(url) as here, Runs(here) as making, Streams(url) as there, Runs(there) as asking,
    ):  # fmt: skip
        run = await making.start(Bare(forever), "hi")
        assert (await asking.cancel(run.id)).status == "running"
        assert (await asyncio.wait_for((await asking.get(run.id)).wait(), 5)).status == "cancelled"
        assert (await read(run, here))[-1]["outcome"] == {"type": "cancelled"}


async def test_a_start_that_is_cancelled_leaves_no_run_without_an_end(streams: Streams) -> None:
    async with Runs(streams) as runs:
        for turns in range(8):
            starting = asyncio.create_task(runs.start(Bare(forever), "hi"))
            for _ in range(turns):
                await asyncio.sleep(0)
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        await asyncio.sleep(0)
        made, _ = await runs.list()
        assert len(made) == runs.statistics()["running"]
    assert {record.status for record in (await Runs(streams).list())[0]} <= {"failed"}


async def test_when_the_process_ends_runs_end_as_interrupted(streams: Streams) -> None:
    runs = Runs(streams, Agent(name="bot", model=scripted(["Hel", asyncio.Event()])))
    async with runs:
        run = await runs.start("bot", "hi")
        await seen(streams, run, '"delta":"Hel"')
        await runs.interrupt()
        with pytest.raises(Draining):
            await runs.start("bot", "again")
    events = await read(run, streams)
    assert types(events)[-3:] == ["TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_ERROR"]
    assert events[-1]["code"] == "interrupted"
    assert (await streams.head(run.stream)).outcome == "failed"


@virtual_time
async def test_a_run_that_does_not_stop_is_waited_for_once(caplog: pytest.LogCaptureFixture) -> None:
    enough = asyncio.Event()

    async def stubborn(_: Sink) -> None:
        while not enough.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await enough.wait()

    loop = asyncio.get_running_loop()
    async with Streams("memory:") as streams, Runs(streams) as runs:
        run = await runs.start(Bare(stubborn), "hi")
        await asyncio.sleep(0)
        began = loop.time()
        for _ in range(3):  # a signal, the end of the lifespan, the end of the runs
            await runs.interrupt()
        assert loop.time() - began == STOP_SECONDS
        assert [record.message for record in caplog.records if "does not stop" in record.message] == [
            f"headwater-run {run.id} does not stop; the next process on this store ends its stream"
        ]
        enough.set()
        await run.wait()


async def test_of_two_reasons_to_stop_the_first_is_told(streams: Streams) -> None:
    async def slow_to_stop(_: Sink) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)

    async with Runs(streams) as runs:
        run = await runs.start(Bare(slow_to_stop), "hi")
        await asyncio.sleep(0)
        await run.cancel()
        await asyncio.sleep(0)
        await runs.interrupt()
        assert (await run.record()).status == "cancelled"


# --- one key, one run ------------------------------------------------------------------------------------------------


async def test_a_retried_start_attaches_and_starts_nothing(streams: Streams) -> None:
    source = Bare(forever)
    async with Runs(streams, source) as runs:
        tries = [runs.start("bare", "hi", idempotency_key="k", principal="ann") for _ in range(20)]
        started = await asyncio.gather(*tries)
        assert len({run.id for run in started}) == 1
        assert sum(run.started for run in started) == 1
        await started[0].cancel()
        await started[0].wait()
        again = await runs.start("bare", "hi", idempotency_key="k", principal="ann")
        assert (again.id, again.started) == (started[0].id, False)
        assert source.begun == 1
        other = await runs.start("bare", "hi", idempotency_key="k", principal="bob")
        assert other.started
        assert other.id != again.id
        for body in ({"input": "ho"}, {"input": "hi", "thread_id": "t"}):
            with pytest.raises(KeyReused):
                await runs.start("bare", **body, idempotency_key="k", principal="ann")


async def test_a_key_that_was_claimed_by_a_process_that_died_starts_its_run(streams: Streams) -> None:
    source = Bare(forever)
    async with Runs(streams, source) as runs:
        body = msgspec.json.encode({"agent": "bare", "input": "hi", "thread_id": None}, order="sorted")
        claimed, fresh = await keys.claim(streams, "", "k", body, "the-id")
        assert (claimed, fresh) == ("the-id", True)
        first = await runs.start("bare", "hi", idempotency_key="k")
        second = await runs.start("bare", "hi", idempotency_key="k")
        assert (first.id, first.started, second.id, second.started) == ("the-id", True, "the-id", False)


async def test_two_processes_that_get_the_same_key_start_one_run(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    source = Bare(forever)
    async with Streams(url) as here, Runs(here, source) as one, Streams(url) as there, Runs(there, source) as two:
        tries = [runs.start("bare", "hi", idempotency_key="k") for runs in (one, two) * 5]
        started = await asyncio.gather(*tries)
        assert len({run.id for run in started}) == 1
        assert sum(run.started for run in started) == 1
        await asyncio.sleep(0)
        assert source.begun == 1


# --- what is known of runs -------------------------------------------------------------------------------------------


async def test_runs_are_listed_newest_first_in_pages(streams: Streams) -> None:
    async with Runs(streams, Agent(name="bot", model=scripted(*[["ok"]] * 5))) as runs:
        made = []
        for number in range(5):
            run = await runs.start("bot", f"question {number}")
            await run.wait()
            made.append(run.id)
            await asyncio.sleep(0.002)  # ids sort by their millisecond
        running = await runs.start(Bare(forever), "slow one")
        first, before = await runs.list(limit=4)
        second, end = await runs.list(limit=4, before=before)
        assert [record.id for record in [*first, *second]] == [running.id, *reversed(made)]
        assert end is None
        assert [record.title for record in first] == ["slow one", "question 4", "question 3", "question 2"]
        assert [record.status for record in first] == ["running", "completed", "completed", "completed"]
        assert first[0].ended is None


async def test_what_is_not_there_is_said(streams: Streams) -> None:
    async with Runs(streams, Bare(forever)) as runs:
        with pytest.raises(AgentNotFound, match=r"'boot'.*bare"):
            await runs.start("boot", "hi")
        with pytest.raises(BadRequest, match="not JSON"):
            await runs.start("bare", object())
        with pytest.raises(BadRequest, match="int is no agent"):
            runs.register(7)
        for asking in (runs.get("nobody"), runs.record("nobody"), runs.cancel("nobody")):
            with pytest.raises(RunNotFound):
                await asking


def test_agents_are_registered_by_their_slug_or_a_name_given() -> None:
    class Mine(Agent[None]):
        pass

    runs = Runs(Streams("memory:"), Agent(name="Support Bot"), Mine(name="Mine"))
    runs.register(Bare(forever), "other")
    assert list(runs.agents) == ["support-bot", "mine", "other"]
    assert "support-bot, mine, other" in repr(runs)


def test_a_record_leaves_out_what_is_not_known() -> None:
    record = Record(id="1", agent="a", thread_id="t", status="running", created=5)
    assert msgspec.json.decode(msgspec.json.encode(record)) == {
        "id": "1", "agent": "a", "thread_id": "t", "status": "running", "created": 5
    }  # fmt: skip


# --- a process that dies ---------------------------------------------------------------------------------------------

DYING = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from agents import Agent, function_tool
from scripted_model import scripted
from headwater import Streams
from headwater.runs import Runs

async def main():
    async with Streams({url!r}) as streams, Runs(streams) as runs:
        agent = Agent(name="bot", model=scripted(["Hel", asyncio.Event(), "lo"]))
        run = await runs.start(agent, "hi")
        async for page in streams.follow(run.stream):
            if any(b'"delta":"Hel"' in message.data for message in page.messages):
                print(run.id, flush=True)

asyncio.run(main())
"""


@pytest.mark.server
async def test_a_run_whose_process_was_killed_is_ended_for_its_readers(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/runs.db"
    code = DYING.format(tests=os.path.dirname(__file__), url=url)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=subprocess.PIPE)
    assert process.stdout
    run_id = (await asyncio.wait_for(process.stdout.readline(), 30)).decode().strip()
    async with Streams(url) as streams:
        reading = asyncio.create_task(read(Run(Runs(streams), run_id, started=False), streams))
        await asyncio.sleep(0.1)
        assert not reading.done()
        process.kill()
        await process.wait()
        async with Runs(streams) as runs:  # as when the server starts again
            events = await asyncio.wait_for(reading, 10)
            assert text(events) == "Hel"
            assert types(events)[-3:] == ["TEXT_MESSAGE_END", "STEP_FINISHED", "RUN_ERROR"]
            record = await runs.record(run_id)
            assert (record.status, record.error and record.error["code"]) == ("failed", "interrupted")
            assert (await runs.cancel(run_id)).status == "failed"
