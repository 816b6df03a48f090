"""Runs that outlive their process: another one goes on, on the same stream, and no finished tool runs twice.

Two `Streams` on one file stand for two processes. The first one's lease is taken away, as when it sleeps for too long.
"""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import agents
import pytest
from agents import Agent, ShellTool, function_tool
from agents.testing import ModelStep, ScriptedModel, assistant_message
from openai.types.responses import Response, ResponseCompletedEvent, ResponseFunctionShellToolCall

from headwater import Streams, leases
from headwater.runs import Runs, recovery
from headwater.runs.checkpoints import PREFIX as CHECKPOINTS
from headwater.runs.checkpoints import REQUESTS, Keeper, newest
from headwater.runs.history import NOT_RUN, UNKNOWN
from headwater.sources import Request, request
from headwater.sources.openai_agents import OpenAIAgent
from run_processes import Processes, Tools, custom, final_text, processes, read, results, seen
from scripted_model import Answer, Call, calls, scripted


@pytest.fixture(autouse=True)
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases are neither renewed nor looked after but by the test."""
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)


@pytest.fixture
def process(tmp_path: Path) -> Processes:
    return processes(f"sqlite:///{tmp_path}/runs.db")


PAY_AND_MAIL = [
    Call(index=0, id="c1", type="function", function={"name": "pay", "arguments": '{"n": 1}'}),
    Call(index=1, id="c2", type="function", function={"name": "mail", "arguments": '{"n": 2}'}),
]


async def test_tools_that_had_begun_run_again_under_their_ids_and_the_stream_names_them(process: Processes) -> None:
    async with process(PAY_AND_MAIL) as one, process(["done"]) as two:
        one.tools.hold["mail"] = asyncio.Event()
        run = await one.runs.start("bot", "pay and mail")
        await seen(one.streams, run, "paid 1")  # it has ended; the turn has not
        await one.lapse()
        assert await two.look() == 0
        events = await read(run, two.streams)
        assert two.tools.done == [("mail", "c2")]
        assert custom(events, "run.resumed") == [{"attempt": 1, "from": "checkpoint", "inDoubt": ["c2"], "notRun": []}]
        assert results(events) == {"c1": "paid 1", "c2": "mailed 2"}
        assert final_text(events) == "done"
        assert events[-1]["outcome"] == {"type": "success"}
        assert len(two.asked) == 1, "the response that called the tools was not asked for again"
        assert [m["role"] for m in two.asked[0]["messages"]] == ["user", "assistant", "tool", "tool"]
        one.tools.hold["mail"].set()  # the first one wakes up
        await asyncio.sleep(0.05)
        assert len(one.asked) == 1
        assert await read(run, one.streams) == events


async def test_finished_tools_do_not_run_again_and_the_interrupted_text_is_taken_back(process: Processes) -> None:
    gate = asyncio.Event()
    async with process(calls("pay", {"n": 1}, "c1"), ["half an ", gate, "answer"]) as one:
        run = await one.runs.start("bot", "pay")
        await seen(one.streams, run, "half an ")
        async with process(["the whole ", "answer"]) as two:
            await one.lapse()
            await two.look()
            events = await read(run, two.streams)
            assert two.tools.done == []
            assert custom(events, "run.resumed") == [{"attempt": 1, "from": "checkpoint", "inDoubt": [], "notRun": []}]
            assert final_text(events) == "the whole answer"
            assert results(events) == {"c1": "paid 1"}
            assert [m["role"] for m in two.asked[0]["messages"]] == ["user", "assistant", "tool"]
            usage = events[-1]["usage"]
            assert sum(entry["inputTokens"] for entry in usage) == 14, "that of the first process counts, too"
            gate.set()
            await asyncio.sleep(0.05)
            assert one.runs.statistics()["running"] == 0
            assert await read(run, one.streams) == events
            async with asyncio.timeout(5):
                while await two.streams.list(CHECKPOINTS):
                    await asyncio.sleep(0.01)


async def test_what_came_along_with_the_input_is_there_in_the_next_process_too(process: Processes) -> None:
    seen_by: list[Any] = []

    class Asking(Tools):
        async def _do(self, name: str, result: str) -> str:
            seen_by.append(request())
            return await super()._do(name, result)

    given = Request({"cart": ["tea"]}, ({"description": "page", "value": "shop"},), {"token": "x"})
    pay, mail = calls("pay", {"n": 1}, "c1"), calls("mail", {"n": 1}, "c2")
    async with process(pay, mail, tools=Asking()) as one, process(["done"], tools=Asking()) as two:
        one.tools.hold["mail"] = asyncio.Event()
        run = await one.runs.start("bot", "pay", request=given)
        await one.tools.began["mail"].wait()
        assert [name for name, _ in await two.streams.list(REQUESTS)] == [REQUESTS + run.id]
        await one.lapse()
        await two.look()
        events = await read(run, two.streams)
        assert final_text(events) == "done"
        assert seen_by == [given] * 3
        one.tools.hold["mail"].set()
        async with asyncio.timeout(5):
            while await two.streams.list(REQUESTS):
                await asyncio.sleep(0.01)


async def test_a_run_in_which_no_tool_began_begins_anew(process: Processes) -> None:
    async with process(["half", asyncio.Event()]) as one, process(["a whole answer"]) as two:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "half")
        await one.lapse()
        await two.look()
        events = await read(run, two.streams)
        assert custom(events, "run.resumed") == [{"attempt": 1, "from": "input", "inDoubt": [], "notRun": []}]
        assert final_text(events) == "a whole answer"
        assert two.asked[0]["messages"] == [{"role": "user", "content": "hi"}]


async def test_a_run_that_was_started_by_its_agent_itself_goes_on_too(tmp_path: Path) -> None:
    """As in the README: `Runs(streams, agent)`, then `runs.start(agent, …)`."""
    url = f"sqlite:///{tmp_path}/runs.db"
    agent = Agent(name="bot", model=scripted(["half", asyncio.Event()]))
    async with Streams(url) as here, Runs(here, agent) as one:
        run = await one.start(agent, "hi")
        await seen(here, run, "half")
        await here.delete(leases.PREFIX + here.leases.owner)
        async with Streams(url) as there, Runs(there, Agent(name="bot", model=scripted(["whole"]))):
            await there.leases.finish_orphans()
            assert final_text(await read(run, there)) == "whole"


async def test_a_call_that_was_not_whole_is_answered_and_made_again(process: Processes) -> None:
    asking = Call(index=0, id="c1", type="function", function={"name": "pay", "arguments": '{"n"'})
    async with process([asking, asyncio.Event()]) as one, process(calls("pay", {"n": 1}, "c1"), ["ok"]) as two:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "TOOL_CALL_ARGS")
        await one.lapse()
        await two.look()
        events = await read(run, two.streams)
        assert custom(events, "run.resumed")[0]["notRun"] == ["c1"]
        again = f"{run.id}.r1.1"
        assert two.tools.done == [("pay", again)], "the provider used its id again; ours is new"
        assert results(events) == {"c1": NOT_RUN, again: "paid 1"}


async def test_a_run_is_taken_over_again_and_again(process: Processes) -> None:
    """Ids of a run's second and third process must not meet, and a call known by another id keeps it."""
    broken = Call(index=0, id="c1", type="function", function={"name": "pay", "arguments": '{"n"'})
    async with (
        process([broken, asyncio.Event()]) as one,
        process(calls("pay", {"n": 1}, "c1")) as two,
        process(["ha", asyncio.Event()]) as three,
        process(["haha"]) as four,
    ):
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "TOOL_CALL_ARGS")
        two.tools.hold["pay"] = asyncio.Event()
        await one.lapse()
        await two.look()
        await asyncio.wait_for(two.tools.began["pay"].wait(), 5)
        await two.lapse()
        await three.look()
        await seen(three.streams, run, '"delta":"ha"')
        await three.lapse()
        await four.look()
        events = await read(run, four.streams)
        again = f"{run.id}.r1.1"
        assert [(value["attempt"], value["inDoubt"]) for value in custom(events, "run.resumed")] == [
            (1, []), (2, [again]), (3, [])
        ]  # fmt: skip
        assert three.tools.done == two.tools.done == [("pay", again)]
        assert final_text(events) == "haha"


async def test_of_several_processes_one_goes_on(process: Processes) -> None:
    async with process(["half", asyncio.Event()]) as one:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "half")
        await one.lapse()
        async with process(["whole"]) as two, process(["whole"]) as three, process(["whole"]) as four:
            await asyncio.gather(two.look(), three.look(), four.look())
            events = await read(run, two.streams)
            assert final_text(events) == "whole"
            assert len(custom(events, "run.resumed")) == 1
            assert [len(other.asked) for other in (two, three, four)].count(1) == 1


async def test_a_maker_that_slept_starts_no_tool(process: Processes) -> None:
    gate = asyncio.Event()
    async with process([*calls("pay", {"n": 1}, "c1"), gate]) as one, process(["no need"]) as two:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "TOOL_CALL_ARGS")
        await one.lapse()
        await two.look()
        events = await read(run, two.streams)
        gate.set()
        async with asyncio.timeout(5):
            while one.runs.statistics()["running"]:
                await asyncio.sleep(0.01)
        assert one.tools.done == []
        assert await read(run, one.streams) == events


async def test_a_run_whose_taking_was_only_begun_goes_on_where_it_was_made(process: Processes) -> None:
    """Whoever began it died, or could not write to the stream; and the maker was only asleep."""
    tools = Tools()
    tools.hold["pay"] = asyncio.Event()
    async with process(calls("pay", {"n": 1}, "c1"), ["done"], tools=tools) as one:
        run = await one.runs.start("bot", "hi")
        await asyncio.wait_for(tools.began["pay"].wait(), 5)
        kept = await newest(one.streams, run.id, (await one.streams.head(run.stream)).tail)
        assert kept is not None
        await Keeper(one.streams, run.id, 1).keep(kept.position, kept.state)
        tools.hold.pop("pay").set()
        events = await read(run, one.streams)
        assert [value["inDoubt"] for value in custom(events, "run.resumed")] == [["c1"]]
        assert (final_text(events), results(events)) == ("done", {"c1": "paid 1"})


async def test_a_process_that_learns_that_its_lease_lapsed_stops_what_is_no_longer_its_own(process: Processes) -> None:
    tools = Tools()
    tools.hold["pay"] = asyncio.Event()
    async with process(calls("pay", {"n": 1}, "c1"), tools=tools) as one, process(["done"]) as two:
        run = await one.runs.start("bot", "hi")
        await asyncio.wait_for(tools.began["pay"].wait(), 5)
        await one.lapse()
        await two.look()
        await one.streams.leases._renew()
        async with asyncio.timeout(5):
            while one.runs.statistics()["running"]:
                await asyncio.sleep(0.01)
        assert final_text(await read(run, two.streams)) == "done"


async def test_a_process_without_the_agent_leaves_the_run_to_one_that_has_it_but_not_for_ever(
    process: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with process(["half", asyncio.Event()]) as one:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "half")
        await one.lapse()
        async with Streams(f"sqlite:///{tmp_path}/runs.db") as streams, Runs(streams):
            await streams.leases.finish_orphans()
            assert not (await streams.head(run.stream)).closed
            monkeypatch.setattr(recovery, "ELSEWHERE_SECONDS", 0.0)
            await streams.leases.finish_orphans()  # if not this look, then one that had begun before it
            assert (await read(run, streams))[-1]["code"] == "interrupted"


async def test_a_run_that_is_an_orphan_again_is_left_to_others_again(
    process: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        Streams(f"sqlite:///{tmp_path}/runs.db") as streams, Runs(streams),
        process(["half", asyncio.Event()]) as one, process(["again", asyncio.Event()]) as two,
        process(["whole"]) as three,
    ):  # fmt: skip
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "half")
        await one.lapse()
        await streams.leases.finish_orphans()
        await two.look()
        await seen(two.streams, run, "again")
        await two.lapse()
        monkeypatch.setattr(recovery, "ELSEWHERE_SECONDS", 0.5)
        await asyncio.sleep(0.6)  # since it was seen first
        await streams.leases.finish_orphans()
        await three.look()
        assert final_text(await read(run, streams)) == "whole"


async def test_a_run_that_kills_its_process_each_time_is_not_gone_on_with_for_ever(process: Processes) -> None:
    async with process(["half", asyncio.Event()], most_resumptions=2) as one:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "half")
        await one.lapse()
        for attempt in (1, 2):
            async with process([f"again {attempt}", asyncio.Event()], most_resumptions=2) as next_one:
                await next_one.look()
                await seen(next_one.streams, run, f"again {attempt}")
                await next_one.lapse()
        async with process(most_resumptions=2) as last:
            await last.look()
            events = await read(run, last.streams)
            assert events[-1]["code"] == "interrupted"
            assert "too often" in events[-1]["message"]
            assert final_text(events) == "again 2"


@pytest.mark.parametrize("on_shutdown", ["resume", "interrupt"])
async def test_when_a_process_ends_in_good_order_the_next_one_goes_on(process: Processes, on_shutdown: str) -> None:
    async with process(["half", asyncio.Event()], on_shutdown=on_shutdown) as one:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "half")
    async with process(["whole"]) as two:
        events = await read(run, two.streams)
        if on_shutdown == "resume":
            assert final_text(events) == "whole"
            assert (await two.runs.record(run.id)).status == "completed"
        else:
            assert (final_text(events), events[-1]["code"]) == ("half", "interrupted")


async def test_after_a_handoff_the_run_goes_on_with_the_agent_that_has_it(tmp_path: Path) -> None:
    def bots(*answers: Answer) -> Agent[Any]:
        model = scripted(*answers)
        second = Agent(name="Second", model=model)
        return Agent(name="First", model=model, handoffs=[second])

    url = f"sqlite:///{tmp_path}/runs.db"
    gate = asyncio.Event()
    first = bots(calls("transfer_to_second", {}, "h1"), ["half", gate])
    async with Streams(url) as here, Runs(here, first) as one:
        run = await one.start("first", "hi")
        await seen(here, run, "half")
        await here.delete(leases.PREFIX + here.leases.owner)
        async with Streams(url) as there, Runs(there, bots(["whole"])):
            await there.leases.finish_orphans()
            events = await read(run, there)
            assert final_text(events) == "whole"
            assert [e["stepName"] for e in events if e["type"] == "STEP_STARTED"] == ["First", "Second", "Second"]
            assert len(custom(events, "handoff")) == 1


async def test_an_agent_inside_a_tool_begins_anew_and_all_that_it_did_is_named(tmp_path: Path) -> None:
    def bot(tools: Tools, outside: list[Answer], within: list[Answer]) -> Agent[Any]:
        inner = Agent(name="Inner", tools=tools.all(), model=scripted(*within))
        return Agent(name="bot", tools=[inner.as_tool("ask", "asks")], model=scripted(*outside))

    url = f"sqlite:///{tmp_path}/runs.db"
    one, two = Tools(), Tools()
    one.hold["mail"] = asyncio.Event()
    within = [calls("pay", {"n": 1}, "i1"), calls("mail", {"n": 2}, "i2")]
    first = bot(one, [calls("ask", {"input": "?"}, "o1")], within)
    async with Streams(url) as here, Runs(here, first) as runs:
        run = await runs.start("bot", "hi")
        await asyncio.wait_for(one.began["mail"].wait(), 5)
        await here.delete(leases.PREFIX + here.leases.owner)
        async with Streams(url) as there, Runs(there, bot(two, [["done"]], [*within, ["said inside"]])):
            await there.leases.finish_orphans()
            events = await read(run, there)
    again = [call_id for _, call_id in two.done]
    assert one.done == [("pay", "i1"), ("mail", "i2")]
    assert [name for name, _ in two.done] == ["pay", "mail"]
    assert not {"i1", "i2"} & set(again), "other calls, which a model made anew"
    assert custom(events, "run.resumed")[0]["inDoubt"] == ["o1", "i1", "i2"]
    assert results(events) == {
        "i1": "paid 1", "i2": UNKNOWN, again[0]: "paid 1", again[1]: "mailed 2", "o1": "said inside"
    }  # fmt: skip
    unknown = next(event for event in events if event.get("content") == UNKNOWN)
    started = [event["subagentRunId"] for event in events if event["type"] == "SUBAGENT_STARTED"]
    assert unknown["subagentRunId"] == started[0] != started[1]
    assert [e["subagentRunId"] for e in events if e["type"] in ("SUBAGENT_ERROR", "SUBAGENT_FINISHED")] == started


async def test_a_shell_command_that_had_begun_is_named_too(tmp_path: Path) -> None:
    """The SDK's hooks do not say which call it is."""
    began, done = asyncio.Event(), []

    async def asks(call: Any) -> AsyncIterator[Any]:
        response = Response(
            id="r", created_at=0, model="m", object="response", output=[command], parallel_tool_calls=False,
            tool_choice="auto", tools=[],
        )  # fmt: skip
        yield ResponseCompletedEvent(type="response.completed", response=response, sequence_number=0)

    def bot(step: Any, hold: bool) -> Agent[Any]:
        async def carry_out(request: Any) -> str:
            done.append(request.data.call_id)
            began.set()
            await (asyncio.Event().wait() if hold else asyncio.sleep(0))
            return "listed"

        return Agent(name="bot", tools=[ShellTool(executor=carry_out)], model=ScriptedModel([step]))

    command = ResponseFunctionShellToolCall(
        id="s", call_id="s1", type="shell_call", status="completed", action={"commands": ["ls"]},
        environment=None, created_by=None,
    )  # fmt: skip
    url = f"sqlite:///{tmp_path}/runs.db"
    async with Streams(url) as here, Runs(here, bot(ModelStep.stream(asks), hold=True)) as one:
        run = await one.start("bot", "hi")
        await asyncio.wait_for(began.wait(), 5)
        await here.delete(leases.PREFIX + here.leases.owner)
        async with Streams(url) as there, Runs(there, bot([assistant_message("done")], hold=False)):
            await there.leases.finish_orphans()
            events = await read(run, there)
    assert final_text(events) == "done"
    assert custom(events, "run.resumed")[0]["inDoubt"] == ["s1"]
    assert done == ["s1", "s1"]
    assert results(events) == {"s1": "listed"}


class Basket:
    """A context that is no mapping."""

    def __init__(self) -> None:
        self.things: list[str] = []


@pytest.mark.parametrize("kept", [True, False])
async def test_a_context_of_ones_own_is_kept_by_a_serializer(tmp_path: Path, kept: bool) -> None:
    found: list[list[str]] = []

    @function_tool
    async def put(ctx: agents.RunContextWrapper[Basket], thing: str) -> str:
        """Puts."""
        ctx.context.things.append(thing)
        found.append(list(ctx.context.things))
        return thing

    def unpacked(kept: Any) -> Basket:
        basket = Basket()
        basket.things = list(kept["things"])
        return basket

    def source(*answers: Answer) -> OpenAIAgent:
        return OpenAIAgent(
            Agent(name="bot", tools=[put], model=scripted(*answers)),
            context_factory=Basket,
            context_mapping=(lambda basket: {"things": basket.things}, unpacked) if kept else None,
        )

    url = f"sqlite:///{tmp_path}/runs.db"
    async with (
        Streams(url) as here,
        Runs(here, source(calls("put", {"thing": "a"}, "c1"), ["x", asyncio.Event()])) as one,
    ):
        run = await one.start("bot", "hi")
        await seen(here, run, '"delta":"x"')
        await here.delete(leases.PREFIX + here.leases.owner)
        async with Streams(url) as there, Runs(there, source(calls("put", {"thing": "b"}, "c2"), ["y"])):
            await there.leases.finish_orphans()
            assert final_text(await read(run, there)) == "y"
    assert found == [["a"], ["a", "b"] if kept else ["b"]]


async def test_a_state_that_cannot_be_read_is_a_failure_that_says_so(
    process: Processes, caplog: pytest.LogCaptureFixture
) -> None:
    async with process(calls("pay", {"n": 1}, "c1"), ["half", asyncio.Event()]) as one:
        run = await one.runs.start("bot", "hi")
        await seen(one.streams, run, "half")
        keeper = next(iter(one.runs._supervisor)).keeper
        await keeper.keep(4, b'{"state": "{\\"$schemaVersion\\": \\"99.0\\"}", "response": null}')
        await one.lapse()
        async with process() as two:
            await two.look()
            assert (await read(run, two.streams))[-1]["code"] == "not_resumable"
