"""Pydantic AI as a source: real agents on its own function and test models; no network."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from pydantic import BaseModel

from headwater.errors import MissingExtra
from headwater.sources import progress, tool_call_id
from headwater.sources.recognised import source_of
from played_run import SECRET, Played, play

pytest.importorskip("pydantic_ai", reason="run: pip install 'headwater[pydantic-ai]'")

from pydantic_ai import Agent, ModelRetry, RunContext, exceptions
from pydantic_ai.messages import ModelMessage, ModelRequest
from pydantic_ai.models.function import AgentInfo, DeltaThinkingPart, DeltaToolCall, FunctionModel
from pydantic_ai.models.test import TestModel
from pydantic_ai.usage import UsageLimits

from headwater.sources.pydantic_ai import PydanticAIAgent


def scripted(*answers: list[Any], asked: list[list[ModelMessage]] | None = None) -> FunctionModel:
    """One list per call of the model: texts, tool calls, thoughts, events to wait for, exceptions to raise."""
    left = list(answers)

    async def answer(messages: list[ModelMessage], _: AgentInfo) -> AsyncIterator[Any]:
        if asked is not None:
            asked.append(messages)
        for part in left.pop(0):
            if isinstance(part, asyncio.Event):
                await part.wait()
            elif isinstance(part, Exception):
                raise part
            else:
                yield part

    return FunctionModel(stream_function=answer)


def calling(tool: str, id_: str = "call_1", index: int = 0, **arguments: Any) -> dict[int, DeltaToolCall]:
    return {index: DeltaToolCall(name=tool, json_args=json.dumps(arguments), tool_call_id=id_)}


def bot(*answers: list[Any], **options: Any) -> Agent[Any, Any]:
    return Agent(scripted(*answers), instructions=SECRET, name="My Bot", **options)


async def test_text_is_streamed_and_is_the_result() -> None:
    run = await play(PydanticAIAgent(bot(["It ", "is ", "42."])))
    assert run.order() == ["TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"]
    assert [event["delta"] for event in run.of("TEXT_MESSAGE_CONTENT")] == ["It ", "is ", "42."]
    assert "timestamp" not in run.of("TEXT_MESSAGE_CONTENT")[0]
    assert (run.record.status, run.record.result) == ("completed", "It is 42.")
    (usage,) = run.events[-1]["usage"]
    assert usage["model"] == "function::answer"
    assert usage["outputTokens"] > 0


async def test_thoughts_tools_their_progress_and_their_results() -> None:
    agent = bot([{0: DeltaThinkingPart(content="Hm.")}, calling("multiply", index=1, a=6, b=7)], ["42"])

    @agent.tool_plain
    async def multiply(a: int, b: int) -> dict[str, int]:
        progress("halfway", fraction=0.5)
        await asyncio.to_thread(progress, data={"from": "a thread"})
        return {"product": a * b}

    run = await play(PydanticAIAgent(agent))
    assert run.order() == [
        "REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT", "REASONING_MESSAGE_END",
        "REASONING_END", "TEXT_MESSAGE_START", "TEXT_MESSAGE_END",
        "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "tool.started", "tool.progress", "TOOL_CALL_RESULT",
        "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
    ]  # fmt: skip
    assert run.custom("tool.progress") == [
        {"toolCallId": "call_1", "message": "halfway", "fraction": 0.5},
        {"toolCallId": "call_1", "data": {"from": "a thread"}},
    ]
    (result,) = run.of("TOOL_CALL_RESULT")
    assert json.loads(result["content"]) == {"product": 42}


async def test_a_tool_is_told_of_while_it_runs_and_its_id_may_come_again() -> None:
    gate, told = asyncio.Event(), asyncio.Event()
    agent = bot([calling("wait")], [calling("wait")], ["done"])

    @agent.tool_plain
    async def wait() -> str:
        await gate.wait()
        return f"waited as {tool_call_id()}"

    def when(event: dict[str, Any]) -> None:
        if event.get("name") == "tool.started":
            told.set()
            gate.set()

    run = await play(PydanticAIAgent(agent), when=when)
    assert told.is_set()
    assert run.record.status == "completed"
    ids = [event["toolCallId"] for event in run.of("TOOL_CALL_START")]
    assert ids[0] == "call_1" != ids[1]
    assert [event["toolCallId"] for event in run.of("TOOL_CALL_RESULT")] == ids
    assert [event["content"] for event in run.of("TOOL_CALL_RESULT")] == [f"waited as {id_}" for id_ in ids]
    assert [value["toolCallId"] for value in run.custom("tool.started")] == ids


class Answer(BaseModel):
    number: int


async def test_a_structured_output_is_the_result() -> None:
    run = await play(PydanticAIAgent(Agent(TestModel(), output_type=Answer)))
    assert run.record.result == {"number": 0}
    (ended,) = run.of("TOOL_CALL_RESULT")
    assert "Final result" in ended["content"]


async def test_messages_are_the_conversation_so_far() -> None:
    asked: list[list[ModelMessage]] = []
    agent = Agent(scripted(["Bob."], asked=asked))
    history = [
        {"role": "user", "content": "I am Bob."},
        {"role": "assistant", "content": "Hi Bob."},
        {"role": "user", "content": "Who am I?"},
    ]
    run = await play(PydanticAIAgent(agent), history)
    assert run.record.result == "Bob."
    (messages,) = asked
    assert len(messages) == 3
    assert isinstance(messages[-1], ModelRequest)
    assert messages[-1].parts[-1].content == "Who am I?"


async def test_each_run_gets_its_dependencies() -> None:
    agent = Agent(scripted([calling("who")], ["ok"]), deps_type=str)

    @agent.tool
    def who(ctx: RunContext[str]) -> str:
        progress("a sync tool")
        return ctx.deps

    run = await play(PydanticAIAgent(agent, deps_factory=lambda: "Ada"))
    assert run.of("TOOL_CALL_RESULT")[0]["content"] == "Ada"
    assert run.custom("tool.progress") == [{"toolCallId": "call_1", "message": "a sync tool"}]


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RuntimeError(SECRET), "internal"),
        (exceptions.ModelHTTPError(429, "m", SECRET), "model_refused_request"),
        (exceptions.ModelHTTPError(502, "m", SECRET), "model_unreachable"),
        (exceptions.ModelRateLimitError("m", SECRET), "rate_limited"),
        (exceptions.ModelTimeoutError("m", SECRET), "model_timeout"),
        (exceptions.ModelConnectionError("m", SECRET, phase="read"), "upstream_cut"),
        (exceptions.ModelAuthenticationError("m", SECRET), "model_refused_request"),
        (exceptions.UnexpectedModelBehavior(SECRET), "model_behavior"),
    ],
)
async def test_a_failing_model_fails_the_run_and_nothing_of_it_is_told(
    error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headwater")
    run = await play(PydanticAIAgent(bot(["Hel", "lo", error])))
    assert (run.record.status, run.error) == ("failed", code)
    assert run.text() == "Hello"
    assert run.events[-1]["usage"][0]["inputTokens"] > 0
    assert SECRET not in caplog.text


async def test_a_model_that_cannot_be_reached_at_all() -> None:
    run = await play(PydanticAIAgent(bot([exceptions.ModelConnectionError("m", SECRET, phase="connect")])))
    assert run.error == "model_unreachable"


async def test_a_failing_tool_fails_the_run_unless_it_asks_for_another_try() -> None:
    def agent() -> Agent[Any, Any]:
        return bot([calling("fail")], [calling("fail", "call_2")], ["never mind"])

    failing, asking = agent(), agent()

    @failing.tool_plain(name="fail")
    def fail() -> str:
        raise RuntimeError(SECRET)

    tries: list[int] = []

    @asking.tool_plain(name="fail")
    def ask() -> str:
        tries.append(1)
        if len(tries) == 1:
            raise ModelRetry("once more")
        return "there"

    failed = await play(PydanticAIAgent(failing))
    assert (failed.record.status, failed.error) == ("failed", "tool_failed")
    assert "interrupted by an error" in failed.of("TOOL_CALL_RESULT")[0]["content"]
    done = await play(PydanticAIAgent(asking))
    assert done.record.result == "never mind"
    assert [event["content"] for event in done.of("TOOL_CALL_RESULT")][1] == "there"


async def test_a_cancelled_run_keeps_its_text_and_usage_and_stops_its_tools() -> None:
    run = await play(
        PydanticAIAgent(bot(["Once ", asyncio.Event()])), cancel_at=lambda event: event.get("delta") == "Once "
    )
    assert (run.record.status, run.text()) == ("cancelled", "Once ")
    assert run.events[-1]["usage"][0]["inputTokens"] > 0

    stopped: list[str] = []
    agent = bot([calling("wait")])

    @agent.tool_plain
    async def wait() -> str:
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append("yes")
        return ""

    run = await play(PydanticAIAgent(agent), cancel_at=lambda event: event.get("name") == "tool.started")
    assert (run.record.status, stopped) == ("cancelled", ["yes"])


async def test_limits() -> None:
    stalled = await play(PydanticAIAgent(bot(["Hel", asyncio.Event()]), idle_timeout=0.05))
    assert (stalled.error, stalled.text()) == ("model_stalled", "Hel")
    late = await play(PydanticAIAgent(bot(["Hel", asyncio.Event()]), total_timeout=0.05))
    assert (late.error, late.text()) == ("run_timeout", "Hel")
    used = await play(PydanticAIAgent(bot(["Hel"]), run_options={"usage_limits": UsageLimits(request_limit=0)}))
    assert used.error == "usage_limit"


async def test_a_slow_tool_is_no_stalled_model() -> None:
    agent = bot([calling("wait")], ["done"])

    @agent.tool_plain
    async def wait() -> str:
        await asyncio.sleep(0.15)
        return "waited"

    run = await play(PydanticAIAgent(agent, idle_timeout=0.1))
    assert run.record.result == "done"


async def test_an_approval_is_refused_and_said() -> None:
    from pydantic_ai import DeferredToolRequests

    agent = bot([calling("pay")], output_type=[str, DeferredToolRequests])

    @agent.tool_plain(requires_approval=True)
    def pay() -> str:
        raise AssertionError("must not run")

    run = await play(PydanticAIAgent(agent))
    assert (run.record.status, run.error) == ("failed", "approval_not_supported")
    assert "cannot wait" in run.events[-1]["message"]


async def test_what_is_no_input_is_said() -> None:
    run = await play(PydanticAIAgent(bot(["x"])), [{"role": "poet", "content": SECRET[:1]}])
    assert run.error == "bad_input"
    assert "AG-UI messages" in run.events[-1]["message"]


async def test_it_is_recognised() -> None:
    source = source_of(bot(["hi"]))
    assert isinstance(source, PydanticAIAgent)
    assert source.name == "my-bot"
    run = await play(source)
    assert isinstance(run, Played)
    assert run.text() == "hi"


def test_without_the_package_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydantic_ai", None)
    monkeypatch.delitem(sys.modules, "headwater.sources.pydantic_ai")
    with pytest.raises(MissingExtra, match=r"pip install 'headwater\[pydantic-ai\]'"):
        import headwater.sources.pydantic_ai  # noqa: F401
