"""Ending a run: after its turn, from elsewhere, and when nobody reads it any more."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from asgi_client import Client
from headwater import Streams
from headwater.agui import CustomEvent
from headwater.http import App
from headwater.runs import Runs
from headwater.runs.asking import ask
from headwater.sources import Sink, Stopped
from headwater.testing import virtual_time
from run_processes import Processes, custom, final_text, processes, read, results, seen
from scripted_model import calls


@pytest.fixture
def process(tmp_path: Path) -> Processes:
    return processes(f"sqlite:///{tmp_path}/runs.db")


class Counting:
    """Counts a second each second."""

    name = "counting"

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 -- AG-UI's word
        for number in range(input):
            await sink.emit(CustomEvent(name="n", value=number))
            await asyncio.sleep(1)
        return "done"


async def test_cancelling_after_the_turn(process: Processes) -> None:
    async with process(calls("pay", {"n": 1}, "p1"), ["never said"]) as one:
        one.tools.hold["pay"] = asyncio.Event()
        client = Client(App(one.streams, one.runs))
        run = await one.runs.start("bot", "hi")
        await asyncio.wait_for(one.tools.began["pay"].wait(), 5)
        call = await client.ask("POST", f"/v1/runs/{run.id}/cancel", '{"when": "tomorrow"}')
        assert call.status == 400
        call = await client.ask("POST", f"/v1/runs/{run.id}/cancel", '{"when": "after_turn"}')
        assert call.status == 202
        one.tools.hold["pay"].set()
        events = await read(run, one.streams)
        assert results(events) == {"p1": "paid 1"}
        assert events[-1]["outcome"] == {"type": "cancelled"}
        assert events[-1]["usage"][0]["inputTokens"] == 7
        assert len(one.asked) == 1


async def test_cancelling_after_the_turn_from_another_process(process: Processes) -> None:
    gate = asyncio.Event()
    async with process(["Hel", gate, "lo"]) as one, process() as two:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, '"delta":"Hel"')
        await two.runs.cancel(run.id, when="after_turn")
        await asyncio.sleep(0.05)
        gate.set()
        events = await read(run, two.streams)
        assert final_text(events) == "Hello"
        assert events[-1]["outcome"] == {"type": "success"}, "the turn was the last one, and ended by itself"


async def test_a_run_whose_process_dies_before_it_hears_of_it_is_cancelled_by_the_next(process: Processes) -> None:
    async with process(["half", asyncio.Event()]) as one, process(["never said"]) as two:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "half")
        assert one.runs._control is not None
        one.runs._control.cancel()
        assert (await two.runs.cancel(run.id)).status == "running"
        await one.lapse()
        await two.look()
        events = await read(run, two.streams)
        assert events[-1]["outcome"] == {"type": "cancelled"}
        assert (await run.record()).status == "cancelled"
        assert two.asked == []


async def test_a_run_that_was_left_to_wait_before_its_process_heard_of_it_is_cancelled(process: Processes) -> None:
    async with process(calls("danger", {"n": 1}, "d1")) as one, process() as two:
        run = await one.runs.start("bot", "hi")
        async with asyncio.timeout(5):
            while (await run.record()).status != "waiting":
                await asyncio.sleep(0.005)
        await ask(two.streams, one.streams.leases.owner, run.id, "now")  # as who looked when it still ran
        assert (await read(run, two.streams))[-1]["outcome"] == {"type": "cancelled"}


async def test_a_waiting_run_that_is_answered_just_as_it_is_cancelled_ends(
    process: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(calls("danger", {"n": 1}, "d1"), ["done"]) as one:
        one.tools.hold["danger"] = asyncio.Event()
        run = await one.runs.start("bot", "hi")
        async with asyncio.timeout(5):
            while (await run.record()).status != "waiting":
                await asyncio.sleep(0.005)
        cancel_waiting = one.runs._recovery.cancel_waiting

        async def too_late(run_id: str) -> bool:
            await run.approve("d1")
            return await cancel_waiting(run_id)

        monkeypatch.setattr(one.runs._recovery, "cancel_waiting", too_late)
        await run.cancel()
        assert (await read(run, one.streams))[-1]["outcome"] == {"type": "cancelled"}


async def test_a_source_that_knows_turns_is_asked_and_another_is_cancelled() -> None:
    class Turns(Counting):
        async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 -- AG-UI's word
            stopping = asyncio.Event()
            sink.on_stop(stopping.set)
            await stopping.wait()
            raise Stopped

    async with Streams("memory:") as streams, Runs(streams) as runs:
        for source in (Turns(), Counting()):
            run = await runs.start(source, 100)
            await asyncio.sleep(0)
            await run.cancel(when="after_turn")
            assert (await asyncio.wait_for(run.wait(), 5)).status == "cancelled"


@virtual_time
async def test_a_run_that_nobody_reads_is_cancelled_if_it_was_asked_for() -> None:
    async with Streams("memory:") as streams, Runs(streams, Counting()) as runs:
        left = await runs.start("counting", 60, cancel_when_unread=10)
        meant = await runs.start("counting", 60)
        watched = await runs.start("counting", 60, cancel_when_unread=10)

        async def watch() -> None:
            async for page in streams.follow(watched.stream):
                if any(b'"value":20' in message.data for message in page.messages):
                    return

        await watch()
        await asyncio.sleep(5)  # away for a while
        await watch()  # it is long past; reading on takes no time, and counts
        await asyncio.sleep(40)
        assert (await meant.wait()).status == "completed"
        assert (await left.record()).status == (await watched.record()).status == "cancelled"
        counted = [custom(await read(run, streams), "n") for run in (left, watched)]
        assert [10 <= len(numbers) <= 11 for numbers in counted] == [True, False]
        assert 30 <= len(counted[1]) <= 37


async def test_over_http_the_seconds_are_checked(process: Processes) -> None:
    async with process(["ok"]) as one:
        client = Client(App(one.streams, one.runs))
        for wrong in (0, "10", True, 1e9):
            body = json.dumps({"agent": "bot", "input": "hi", "cancel_when_unread": wrong})
            call = await client.ask("POST", "/v1/runs", body)
            assert (call.status, call.json()["error"]["code"]) == (400, "bad_request")
        body = json.dumps({"agent": "bot", "input": "hi", "cancel_when_unread": 30})
        call = await client.ask("POST", "/v1/runs", body)
        assert call.status == 201
        run = await one.runs.get(call.json()["id"])
        assert (await one.streams.head(run.stream)).labels["unread"] == "30"
        await run.wait()
