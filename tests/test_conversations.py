"""Conversations: several runs that share the SDK's session, one at a time."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from agents import Agent, SQLiteSession, function_tool

from headwater import Streams, leases
from headwater.errors import Conflict, TooLarge
from headwater.runs import Runs
from headwater.runs.checkpoints import REQUESTS
from headwater.runs.conversations import BEGINNING_MS, MOST_WAITING, Conversations
from headwater.sources import Busy, Request
from headwater.sources.openai_agents import OpenAIAgent
from headwater.sources.openai_checkpoints import Kept
from headwater.sources.openai_sessions import forget_turn
from run_processes import final_text, read, results, seen
from scripted_model import Answer, calls, scripted

sessions: list[SQLiteSession] = []


@pytest.fixture(autouse=True)
def sessions_are_closed() -> Iterator[None]:
    """The SDK leaves that to whoever made them."""
    yield
    while sessions:
        sessions.pop().close()


def bot(
    folder: Path, *answers: Answer, busy: Busy = "refuse", asked: list[Any] | None = None, tools: Any = ()
) -> OpenAIAgent:
    heard = [] if asked is None else asked
    agent = Agent(name="bot", tools=list(tools), model=scripted(*answers, asked=heard.append))

    def session_of(thread: str) -> SQLiteSession:
        sessions.append(SQLiteSession(thread, folder / "chat.db"))
        return sessions[-1]

    return OpenAIAgent(agent).remembering(session_of, busy=busy)


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/runs.db"


def said(asked: Any) -> list[str]:
    return [f"{message['role']}: {message.get('content') or 'calls'}" for message in asked["messages"]]


async def test_one_principals_thread_is_no_others(tmp_path: Path) -> None:
    """G10: neither what was said, nor whose turn it is, whatever a thread is called."""
    asked: list[Any] = []
    never = asyncio.Event()
    source = bot(tmp_path, ["Ada"], [never], ["No idea"], ["no"], asked=asked)
    async with Streams(url(tmp_path)) as streams, Runs(streams, source) as runs:
        await (await runs.start("bot", "I am Ada", thread_id="t", principal="ann")).wait()
        going_on = await runs.start("bot", "and", thread_id="t", principal="ann")
        while len(asked) < 2:
            await asyncio.sleep(0)
        for principal in ("bob", ""):
            await (await runs.start("bot", "who am I?", thread_id="t", principal=principal)).wait()
            assert said(asked[-1]) == ["user: who am I?"]
        await going_on.cancel()
        await going_on.wait()


async def test_a_later_run_knows_what_was_said(tmp_path: Path) -> None:
    asked: list[Any] = []
    async with Streams(url(tmp_path)) as streams, Runs(streams, bot(tmp_path, ["Ada"], ["Ada!"], asked=asked)) as runs:
        await (await runs.start("bot", "I am Ada", thread_id="t")).wait()
        await (await runs.start("bot", "who am I?", thread_id="t")).wait()
    assert said(asked[1]) == ["user: I am Ada", "assistant: Ada", "user: who am I?"]


async def test_a_second_run_of_a_conversation_is_refused_and_others_are_not(tmp_path: Path) -> None:
    gate = asyncio.Event()
    answers: list[Answer] = [["a", gate], ["b"], ["c"]]
    async with (
        Streams(url(tmp_path)) as here, Runs(here, bot(tmp_path, *answers)) as one,
        Streams(url(tmp_path)) as there, Runs(there, bot(tmp_path, ["from there"])) as two,
    ):  # fmt: skip
        first = await one.start("bot", "hi", thread_id="t", idempotency_key="k")
        await seen(here, first, '"delta":"a"')
        for runs in (one, two):
            with pytest.raises(Conflict, match="has not ended") as refused:
                await runs.start("bot", "hi again", thread_id="t")
            assert refused.value.detail == {"run": first.id}
        again = await two.start("bot", "hi", thread_id="t", idempotency_key="k")
        assert (again.id, again.started) == (first.id, False), "a retried start is no second run"
        assert (await (await one.start("bot", "hi", thread_id="other")).wait()).status == "completed"
        gate.set()
        await first.wait()
        assert (await (await two.start("bot", "hi", thread_id="t")).wait()).result == "from there"


async def test_of_many_that_start_together_one_is_taken(tmp_path: Path) -> None:
    gate = asyncio.Event()
    async with (
        Streams(url(tmp_path)) as here, Runs(here, bot(tmp_path, ["x", gate])) as one,
        Streams(url(tmp_path)) as there, Runs(there, bot(tmp_path, ["x", gate])) as two,
    ):  # fmt: skip
        tries = [runs.start("bot", "hi", thread_id="t") for runs in (one, two) * 5]
        made = await asyncio.gather(*tries, return_exceptions=True)
        assert sum(not isinstance(run, BaseException) for run in made) == 1
        assert all(isinstance(run, Conflict) for run in made if isinstance(run, BaseException))
        gate.set()


async def test_runs_that_wait_have_their_turn_in_order_and_may_be_cancelled_before(tmp_path: Path) -> None:
    asked: list[Any] = []
    gate = asyncio.Event()
    source = bot(tmp_path, ["one", gate], ["two"], ["four"], busy="queue", asked=asked)
    async with Streams(url(tmp_path)) as streams, Runs(streams, source) as runs:
        started = [await runs.start("bot", f"question {number}", thread_id="t") for number in range(1, 5)]
        await seen(streams, started[0], '"delta":"one"')
        assert len(asked) == 1
        await runs.cancel(started[2].id)
        assert (await started[2].wait()).status == "cancelled"
        gate.set()
        assert [(await run.wait()).result for run in started] == ["one", "two", None, "four"]
    assert said(asked[-1]) == [
        "user: question 1", "assistant: one", "user: question 2", "assistant: two", "user: question 4"
    ]  # fmt: skip


async def test_no_more_wait_than_are_bounded(tmp_path: Path) -> None:
    async with Streams("memory:") as streams:
        order = Conversations(streams)
        for number in range(MOST_WAITING):
            await order.enter("t", f"run-{number}", wait=True)
        with pytest.raises(Conflict, match="too many"):
            await order.enter("t", "one-more", wait=True)


async def test_a_run_whose_process_died_before_it_began_holds_nobody_up_for_long() -> None:
    now = 1_700_000_000_000
    async with Streams("memory:", clock=lambda: now) as streams:
        order = Conversations(streams)
        await order.enter("t", "never-begun", wait=False)
        with pytest.raises(Conflict):
            await order.enter("t", "next", wait=False)
        now += BEGINNING_MS
        await order.enter("t", "next", wait=False)
        await order.turn("t", "next")
        await order.turn("never seen", "next")


async def test_a_run_that_is_too_large_to_begin_holds_nobody_up(tmp_path: Path) -> None:
    async with Streams(url(tmp_path)) as streams, Runs(streams, bot(tmp_path, ["a", asyncio.Event()])) as runs:
        much = "x" * streams.limits.message_bytes
        with pytest.raises(TooLarge):
            await runs.start("bot", much, thread_id="t")
        with pytest.raises(TooLarge):
            await runs.start("bot", "hi", thread_id="t", request=Request(much))
        run = await runs.start("bot", "hi", thread_id="t", request=Request("kept"))
        with pytest.raises(Conflict):
            await runs.start("bot", "hi", thread_id="t", request=Request("not kept"))
        assert [name for name, _ in await streams.list(REQUESTS)] == [REQUESTS + run.id]


@pytest.mark.parametrize("written", [False, True])
async def test_of_a_session_only_the_turn_that_is_begun_again_is_taken_back(written: bool) -> None:
    call: Any = {"type": "function_call", "call_id": "call_0", "name": "dig", "arguments": "{}"}
    output: Any = {"type": "function_call_output", "call_id": "call_0", "output": "gold"}
    before = [{"role": "user", "content": "dig"}, call, output, {"role": "assistant", "content": "done"}]
    before.append({"role": "user", "content": "once more"})
    sessions.append(session := SQLiteSession("t"))
    await session.add_items([*before, call] if written else before)
    kept = Kept("{}", msgspec.json.encode({"output": [call]}).decode())
    await forget_turn(session, kept)
    assert await session.get_items() == before


@pytest.mark.parametrize("tool_ran", [False, True])
async def test_a_run_that_is_gone_on_with_says_nothing_twice_in_its_conversation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool_ran: bool
) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)
    began = asyncio.Event()

    @function_tool
    async def dig() -> str:
        """Digs."""
        if not began.is_set():
            began.set()
            await asyncio.Event().wait()
        return "gold"

    answers: list[Answer] = [calls("dig", {}, "c1")] if tool_ran else [["half", asyncio.Event()]]
    asked: list[Any] = []
    async with Streams(url(tmp_path)) as here, Runs(here, bot(tmp_path, *answers, tools=[dig])) as one:
        run = await one.start("bot", "dig!", thread_id="t")
        await (asyncio.wait_for(began.wait(), 5) if tool_ran else seen(here, run, "half"))
        await here.delete(leases.PREFIX + here.leases.owner)
        source = bot(tmp_path, ["done"], ["again"], asked=asked, tools=[dig])
        async with Streams(url(tmp_path)) as there, Runs(there, source) as two:
            await there.leases.finish_orphans()
            events = await read(run, there)
            assert final_text(events) == "done"
            assert results(events) == ({"c1": "gold"} if tool_ran else {})
            await (await two.start("bot", "and now?", thread_id="t")).wait()
    middle = ["assistant: calls", "tool: gold"] if tool_ran else []
    assert said(asked[-1]) == ["user: dig!", *middle, "assistant: done", "user: and now?"]
