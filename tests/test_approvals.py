"""Runs that wait for people: what is asked, who answers, and that a tool runs once whatever happens in between."""

import asyncio
import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from agents import Agent

from asgi_client import Client
from headwater import Streams, leases
from headwater.errors import BadRequest, Conflict, RunNotFound
from headwater.http import App
from headwater.http.auth import Keys, Principal
from headwater.runs import Run, Runs, recovery
from headwater.sources import Answer
from run_processes import Process, Processes, Tools, custom, final_text, processes, read, results, seen
from scripted_model import Answer as Said
from scripted_model import Call, calls, scripted

ASK = calls("danger", {"n": 1}, "d1")
ASK_TWICE = [
    Call(index=0, id="d1", type="function", function={"name": "danger", "arguments": '{"n": 1}'}),
    Call(index=1, id="p1", type="function", function={"name": "pay", "arguments": '{"n": 2}'}),
    Call(index=2, id="d2", type="function", function={"name": "danger", "arguments": '{"n": 3}'}),
]
YES, NO = Answer(approved=True), Answer(approved=False, message="not on a Friday")


@pytest.fixture(autouse=True)
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)


@pytest.fixture
def process(tmp_path: Path) -> Processes:
    return processes(f"sqlite:///{tmp_path}/runs.db")


async def waiting(process: Process, count: int = 1) -> Run:
    """A run that asks, once it is left alone."""
    run = await process.runs.start("bot", "hi")
    async with asyncio.timeout(5):
        while len((await run.record()).approvals or ()) < count or process.runs.statistics()["running"]:
            await asyncio.sleep(0.005)
    return run


async def test_a_run_waits_says_what_for_and_goes_on_when_it_is_answered(process: Processes) -> None:
    async with process(ASK, ["done"]) as one:
        run = await waiting(one)
        record = await run.record()
        asked = {"toolCallId": "d1", "toolName": "danger", "arguments": '{"n": 1}'}
        assert (record.status, record.approvals) == ("waiting", [asked])
        assert [listed.status for listed in (await one.runs.list())[0]] == ["waiting"]
        assert one.tools.done == []
        await run.approve("d1", by="ann")
        events = await read(run, one.streams)
        assert custom(events, "approval.requested") == [asked]
        assert custom(events, "approval.decided") == [{"toolCallId": "d1", "approved": True, "by": "ann"}]
        assert custom(events, "run.resumed") == []
        assert (results(events), final_text(events)) == ({"d1": "dared 1"}, "done")
        assert one.tools.done == [("danger", "d1")]
        assert (await run.record()).approvals is None


async def test_what_is_rejected_does_not_run_and_the_model_is_told_why(process: Processes) -> None:
    async with process(ASK, ["as you wish"]) as one:
        run = await waiting(one)
        await run.reject("d1", "not on a Friday")
        events = await read(run, one.streams)
        assert one.tools.done == []
        assert results(events) == {"d1": "not on a Friday"}
        assert one.asked[-1]["messages"][-1]["content"] == "not on a Friday"
        assert final_text(events) == "as you wish"


async def test_what_the_agent_said_before_is_there_still(process: Processes) -> None:
    said = [("user", "a"), ("assistant", "b"), ("user", "c")]
    async with process(ASK, ["done"]) as one:
        run = await one.runs.start("bot", [{"role": role, "content": content} for role, content in said])
        async with asyncio.timeout(5):
            while (await run.record()).status != "waiting":
                await asyncio.sleep(0.005)
        await run.approve("d1")
        assert final_text(await read(run, one.streams)) == "done"
        assert [(message["role"], message["content"]) for message in one.asked[-1]["messages"][:3]] == said


async def test_of_several_questions_each_is_answered_and_then_it_goes_on(process: Processes) -> None:
    async with process(ASK_TWICE, ["done"]) as one:
        run = await waiting(one, 2)
        assert one.tools.done == [("pay", "p1")], "what needs no approval runs at once"
        assert (await one.runs.answer(run.id, {"d2": NO})).status == "waiting"
        assert [asked["toolCallId"] for asked in (await run.record()).approvals or ()] == ["d1"]
        await run.approve("d1")
        events = await read(run, one.streams)
        assert one.tools.done == [("pay", "p1"), ("danger", "d1")]
        assert results(events) == {"p1": "paid 2", "d1": "dared 1", "d2": "not on a Friday"}


async def test_all_answers_given_together_are_taken_or_none(process: Processes) -> None:
    async with process(ASK_TWICE, ["done"]) as one:
        run = await waiting(one, 2)
        with pytest.raises(BadRequest, match="does not ask about tool call 'p1'; it asks about d1, d2"):
            await one.runs.answer(run.id, {"d1": YES, "p1": YES})
        with pytest.raises(BadRequest, match="say which"):
            await one.runs.answer(run.id, {})
        assert len((await run.record()).approvals or ()) == 2
        await one.runs.answer(run.id, {"d1": YES, "d2": YES})
        assert results(await read(run, one.streams)).keys() == {"p1", "d1", "d2"}
        with pytest.raises(Conflict, match="approved"):
            await run.approve("d1")
        with pytest.raises(Conflict, match="ended"):
            await run.approve("other")
        with pytest.raises(RunNotFound):
            await one.runs.answer("nobody", {"d1": YES})


@pytest.mark.parametrize("first", range(0, 50, 10))
async def test_two_clients_of_two_servers_answer_together(process: Processes, first: int) -> None:
    done = [["done"]] * 10
    async with process(*[ASK] * 10) as maker, process(*done) as one, process(*done) as two:
        for number in range(first, first + 10):
            run = await waiting(maker)
            tries = [
                one.runs.answer(run.id, {"d1": YES if number % 3 else NO}, by="ann"),
                two.runs.answer(run.id, {"d1": YES if number % 2 else NO}, by="bob"),
            ]
            said = await asyncio.gather(*tries[:: 1 if number % 5 else -1], return_exceptions=True)
            (lost,) = [answer for answer in said if isinstance(answer, BaseException)]
            assert isinstance(lost, Conflict)
            events = await read(run, two.streams)
            (made,) = custom(events, "approval.decided")
            assert (lost.detail["by"], lost.detail["approved"]) == (made["by"], int(made["approved"]))
            assert [*one.tools.done, *two.tools.done] == [("danger", "d1")] * made["approved"]
            one.tools.done.clear()
            two.tools.done.clear()


@pytest.mark.parametrize("settling", [False, True])
async def test_an_answer_whose_request_breaks_off_is_carried_out(
    process: Processes, monkeypatch: pytest.MonkeyPatch, settling: bool
) -> None:
    """Whoever has taken the run over must also go on with it: nobody else will."""
    async with process(ASK, ["done"]) as one:
        run = await waiting(one)
        commit = one.streams.store.commit

        def breaking_off(name: str, *args: Any) -> Any:
            if name == run.stream:
                answering.cancel()
            return commit(name, *args)

        monkeypatch.setattr(one.streams.store, "commit", breaking_off)
        answer = one.runs.settle if settling else one.runs.answer
        answering = asyncio.ensure_future(answer(run.id, {"d1": YES}))
        await asyncio.wait([answering])
        monkeypatch.undo()
        assert answering.cancelled()
        assert final_text(await read(run, one.streams)) == "done"
        assert one.tools.done == [("danger", "d1")]


async def test_a_waiting_run_outlives_its_process(process: Processes) -> None:
    async with process(ASK) as one:
        run = await waiting(one)
    async with process(["done"]) as two:
        assert await two.look() == 0, "it is nobody's, and so nobody's orphan"
        assert (await two.runs.record(run.id)).status == "waiting"
        await two.runs.answer(run.id, {"d1": YES})
        assert final_text(await read(run, two.streams)) == "done"
        assert two.tools.done == [("danger", "d1")]


@pytest.mark.parametrize("approved", [True, False])
@pytest.mark.parametrize("restarted", [True, False])
async def test_a_tool_of_an_agent_inside_a_tool_asks_too(tmp_path: Path, approved: bool, restarted: bool) -> None:
    def bot(tools: Tools, outside: list[Said], within: list[Said]) -> Agent[Any]:
        inner = Agent(name="Inner", tools=tools.all(), model=scripted(*within))
        return Agent(name="bot", tools=[inner.as_tool("ask", "asks")], model=scripted(*outside))

    tools, url = Tools(), f"sqlite:///{tmp_path}/runs.db"
    before: list[list[Said]] = [[calls("ask", {"input": "?"}, "o1")], [calls("pay", {"n": 1}, "p1"), ASK]]
    after: list[list[Said]] = [["done"], ["said inside"]]
    first = bot(tools, before[0] + after[0] * (not restarted), before[1] + after[1] * (not restarted))
    async with AsyncExitStack() as open_:
        streams = await open_.enter_async_context(Streams(url))
        runs = await open_.enter_async_context(Runs(streams, first))
        run = await waiting(Process(streams, runs, tools, []))
        if restarted:
            await open_.aclose()
            streams = await open_.enter_async_context(Streams(url))
            runs = await open_.enter_async_context(Runs(streams, bot(tools, *after)))
        await runs.answer(run.id, {"d1": YES if approved else NO})
        events = await read(run, streams)
    assert tools.done == [("pay", "p1")] + [("danger", "d1")] * approved
    assert results(events) == {"p1": "paid 1", "d1": "dared 1" if approved else NO.message, "o1": "said inside"}
    segments = [event for event in events if event["type"] == "SUBAGENT_FINISHED"]
    assert [event.get("outcome", {}).get("type") for event in segments] == ["suspended", None]
    assert final_text(events) == "said insidedone"


async def test_an_agent_that_was_handed_the_run_asks_and_goes_on_in_another_process(tmp_path: Path) -> None:
    def bot(tools: Tools, *said: Said) -> Agent[Any]:
        model = scripted(*said)
        return Agent(name="bot", model=model, handoffs=[Agent(name="Second", tools=tools.all(), model=model)])

    tools, url = Tools(), f"sqlite:///{tmp_path}/runs.db"
    async with Streams(url) as here, Runs(here, bot(tools, calls("transfer_to_second", {}, "h1"), ASK)) as one:
        run = await waiting(Process(here, one, tools, []))
    async with Streams(url) as there, Runs(there, bot(tools, ["done"])) as two:
        await two.answer(run.id, {"d1": YES})
        events = await read(run, there)
    assert tools.done == [("danger", "d1")]
    assert [e["stepName"] for e in events if e["type"] == "STEP_STARTED"] == ["bot", "Second", "Second"]
    assert final_text(events) == "done"


async def test_a_process_that_dies_after_the_answer_is_followed_by_another(process: Processes) -> None:
    async with process(ASK) as one, process(["done"]) as two:
        one.tools.hold["danger"] = asyncio.Event()
        run = await waiting(one)
        await run.approve("d1")
        await asyncio.wait_for(one.tools.began["danger"].wait(), 5)
        await one.lapse()
        await two.look()
        events = await read(run, two.streams)
        assert [value["inDoubt"] for value in custom(events, "run.resumed")] == [["d1"]]
        assert (two.tools.done, results(events)) == ([("danger", "d1")], {"d1": "dared 1"})


async def test_a_process_without_the_agent_takes_the_answer_and_another_goes_on(
    process: Processes, tmp_path: Path
) -> None:
    async with process(ASK, ["done"]) as one:
        run = await waiting(one)
        async with processes(f"sqlite:///{tmp_path}/runs.db")() as other:
            other.runs.agents.clear()
            assert (await other.runs.answer(run.id, {"d1": YES})).status == "running"
            assert other.tools.done == []
            await other.look()
        await one.look()
        assert final_text(await read(run, one.streams)) == "done"
        assert one.tools.done == [("danger", "d1")]


async def test_a_waiting_run_can_be_cancelled(process: Processes) -> None:
    async with process(ASK) as one:
        run = await waiting(one)
        assert (await one.runs.cancel(run.id)).status == "cancelled"
        events = await read(run, one.streams)
        assert events[-1]["outcome"] == {"type": "cancelled"}
        with pytest.raises(Conflict, match="ended"):
            await run.approve("d1")


async def test_a_run_that_is_cancelled_while_it_is_being_left_ends(process: Processes) -> None:
    for delay in range(12):
        async with process(ASK) as one:
            run = await one.runs.start("bot", "hi")
            await seen(one.streams, run, "TOOL_CALL_END")
            for _ in range(delay * 3):
                await asyncio.sleep(0)
            await run.cancel()
            assert (await read(run, one.streams))[-1]["outcome"] == {"type": "cancelled"}


async def test_a_run_that_waited_for_longer_than_its_state_is_kept_says_so(process: Processes) -> None:
    async with process(ASK) as one:
        run = await waiting(one)
        await one.streams.delete(f"headwater/checkpoints/{run.id}")
        with pytest.raises(Conflict, match="waited for too long"):
            await run.approve("d1")
        await run.cancel()


async def test_answers_over_http(process: Processes) -> None:
    async with process(ASK, ["done"]) as one:
        client = Client(App(one.streams, one.runs))
        run = await waiting(one)
        path = f"/v1/runs/{run.id}/approvals"
        for body in (
            {}, {"tool_call_id": "d1"}, {"tool_call_id": "d1", "approve": "yes"}, {"approvals": {}}, {"approvals": []},
            {"approvals": [{"tool_call_id": "d1", "approve": True}] * 2}, {"tool_call_id": "other", "approve": True},
            {"tool_call_id": "d1", "approve": True, "x": 1},
        ):  # fmt: skip
            call = await client.ask("POST", path, json.dumps(body))
            assert (call.status, call.json()["error"]["code"]) == (400, "bad_request"), body
        assert (await client.ask("GET", path)).status == 405
        call = await client.ask("POST", path, json.dumps({"approvals": [{"tool_call_id": "d1", "approve": True}]}))
        assert (call.status, call.json()["status"]) == (202, "running")
        again = await client.ask("POST", path, json.dumps({"tool_call_id": "d1", "approve": False}))
        assert (again.status, again.json()["error"]["code"]) == (409, "conflict")
        assert final_text(await read(run, one.streams)) == "done"


async def test_to_answer_takes_a_key_that_allows_it_and_its_name_is_told(process: Processes) -> None:
    import hashlib

    def key(name: str, *actions: str) -> tuple[str, Principal]:
        return hashlib.sha256(name.encode()).hexdigest(), Principal(name, frozenset(actions), ("*",))

    async with process(ASK, ["done"]) as one:
        client = Client(App(one.streams, one.runs, auth=Keys(dict([key("reader", "read"), key("boss", "approve")]))))
        run = await waiting(one)
        body, path = '{"tool_call_id": "d1", "approve": true}', f"/v1/runs/{run.id}/approvals"
        assert (await client.ask("POST", path, body, authorization="Bearer reader")).status == 403
        assert (await client.ask("POST", path, body, authorization="Bearer boss")).status == 202
        (made,) = custom(await read(run, one.streams), "approval.decided")
        assert made["by"] == "boss"


def test_the_name_that_nobody_has_is_no_process() -> None:
    assert recovery.ANYBODY not in {leases.Leases(None).owner for _ in range(10)}  # type: ignore[arg-type]
