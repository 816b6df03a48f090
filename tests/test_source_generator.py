"""Async generators as runs: text, dicts and AG-UI events, how they end, and what of a failure is told."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import Any

import pytest
from ag_ui.core import (
    BaseEvent,
    CustomEvent,
    ReasoningMessageChunkEvent,
    RunErrorEvent,
    RunFinishedEvent,
    RunStartedEvent,
    TextMessageChunkEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    TokenUsage,
    ToolCallArgsEvent,
    ToolCallChunkEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)

from headwater.errors import BadRequest
from headwater.sources import RunFailed
from headwater.sources.generator import Generator
from headwater.sources.recognised import source_of
from played_run import SECRET, Played, play


def giving(*items: Any) -> Generator:
    """A generator that gives `items`, and raises those that are exceptions."""

    async def answer(_: Any) -> AsyncIterator[Any]:
        for item in items:
            if isinstance(item, Exception):
                raise item
            yield item

    return Generator(answer)


async def test_text_is_one_message_and_the_result() -> None:
    async def echo(question: str) -> AsyncIterator[str]:
        yield "You said: "
        yield ""
        yield question

    run = await play(Generator(echo), "hello")
    assert run.order() == ["TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"]
    assert [event["delta"] for event in run.of("TEXT_MESSAGE_CONTENT")] == ["You said: ", "hello"]
    assert (run.record.status, run.record.result) == ("completed", "You said: hello")


async def test_dicts_are_data_within_a_message_and_events_end_it() -> None:
    call = [
        {"type": "TOOL_CALL_START", "toolCallId": "c1", "toolCallName": "look"},
        ToolCallArgsEvent(tool_call_id="c1", delta="{}"),
        ToolCallEndEvent(tool_call_id="c1"),
        ToolCallResultEvent(message_id="m9", tool_call_id="c1", content="seen"),
    ]
    run = await play(giving("a", {"found": 3, "type": "mine"}, "b", *call, "c"))
    assert run.order() == [
        "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "data", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
        "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT",
        "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
    ]  # fmt: skip
    assert run.custom("data") == [{"found": 3, "type": "mine"}]
    first, second = run.of("TEXT_MESSAGE_START")
    assert first["messageId"] != second["messageId"]
    assert run.record.result == "c"


async def test_a_frameworks_own_lifecycle_is_taken_for_what_it_is() -> None:
    usage = [TokenUsage(model="tiny", input_tokens=3, output_tokens=5)]
    run = await play(
        giving(
            RunStartedEvent(thread_id="theirs", run_id="theirs"),
            TextMessageStartEvent(message_id="m1", role="assistant"),
            TextMessageContentEvent(message_id="m1", delta="Hi", timestamp=1, raw_event={"key": SECRET}),
            TextMessageEndEvent(message_id="m1", raw_event={"key": SECRET}),
            {"type": "RAW", "event": {"key": SECRET}},
            RunFinishedEvent(thread_id="theirs", run_id="theirs", result={"n": 1}, usage=usage),
        )
    )
    assert run.order() == ["TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"]
    assert run.of("TEXT_MESSAGE_CONTENT") == [{"type": "TEXT_MESSAGE_CONTENT", "messageId": "m1", "delta": "Hi"}]
    assert run.record.result == {"n": 1}
    assert run.events[-1]["usage"] == [{"model": "tiny", "inputTokens": 3, "outputTokens": 5}]
    assert "theirs" not in str(run.events)


async def test_ids_that_come_twice_become_new_ones() -> None:
    def call(answer: str) -> list[BaseEvent]:
        return [
            ToolCallStartEvent(tool_call_id="call_0", tool_call_name="look", parent_message_id="m"),
            ToolCallEndEvent(tool_call_id="call_0"),
            ToolCallResultEvent(message_id=f"r{answer}", tool_call_id="call_0", content=answer),
            TextMessageStartEvent(message_id="m", role="assistant"),
            TextMessageContentEvent(message_id="m", delta=answer),
            TextMessageEndEvent(message_id="m"),
        ]

    run = await play(giving(*call("1"), *call("2")))
    assert run.record.status == "completed"
    started = [event["toolCallId"] for event in run.of("TOOL_CALL_START")]
    assert started[0] == "call_0" != started[1]
    assert [event["toolCallId"] for event in run.of("TOOL_CALL_END", "TOOL_CALL_RESULT")] == [
        id_ for id_ in started for _ in range(2)
    ]
    assert len({event["messageId"] for event in run.of("TEXT_MESSAGE_CONTENT")}) == 2


async def test_chunks_become_whole_events() -> None:
    run = await play(
        giving(
            ReasoningMessageChunkEvent(message_id="r", delta="Hm."),
            TextMessageChunkEvent(message_id="m", role="assistant", delta="Hel"),
            TextMessageChunkEvent(delta="lo"),
            {"any": "thing"},
            ToolCallChunkEvent(tool_call_id="c", tool_call_name="look", delta='{"a"'),
            ToolCallChunkEvent(tool_call_id="c", delta=":1}"),
            TextMessageChunkEvent(delta="again"),
        )
    )
    assert run.record.status == "completed"
    assert run.order() == [
        "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT", "REASONING_MESSAGE_END",
        "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "data", "TEXT_MESSAGE_END",
        "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END",
        "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
    ]  # fmt: skip
    assert run.text() == "Helloagain"
    assert "".join(event["delta"] for event in run.of("TOOL_CALL_ARGS")) == '{"a":1}'


@pytest.mark.parametrize(
    ("source", "code"),
    [
        (giving("Hel", RuntimeError(SECRET)), "internal"),
        (giving("Hel", 5), "internal"),
        (giving("Hel", {"x": object()}), "internal"),
        (giving(TextMessageContentEvent(message_id="nobody", delta="x")), "internal"),
        (giving({"type": "TEXT_MESSAGE_START", "secret": SECRET}), "internal"),
        (giving("Hel", RunFailed("no_seats", "There are no seats left.")), "no_seats"),
        (giving("Hel", RunErrorEvent(message=f"Traceback {SECRET}", code=SECRET)), "failed"),
        (
            giving(
                {
                    "type": "RUN_FINISHED",
                    "threadId": "t",
                    "runId": "r",
                    "outcome": {"type": "interrupt", "interrupts": [{"id": "i", "reason": "tool_call"}]},
                }
            ),
            "approval_not_supported",
        ),
        (Generator(lambda: giving()), "internal"),  # not callable with an input
    ],
    ids=["raises", "no event", "no JSON", "out of order", "no valid event", "says why", "error event", "asks", "call"],
)
async def test_a_failing_generator_fails_its_run_and_tells_no_more(
    source: Generator, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    run = await play(source)
    assert (run.record.status, run.error) == ("failed", code)
    assert [event["type"] for event in run.of("TEXT_MESSAGE_START", "TEXT_MESSAGE_END")] in (
        [], ["TEXT_MESSAGE_START", "TEXT_MESSAGE_END"],
    )  # fmt: skip
    assert SECRET not in caplog.text
    assert (code == "internal") == ("log level debug" in caplog.text)


async def test_a_cancelled_generator_is_closed() -> None:
    closed: list[str] = []

    async def endless(_: Any) -> AsyncIterator[str]:
        try:
            yield "on "
            await asyncio.Event().wait()
        finally:
            closed.append("yes")

    run = await play(Generator(endless), cancel_at=lambda event: event["type"] == "TEXT_MESSAGE_CONTENT")
    assert (run.record.status, closed) == ("cancelled", ["yes"])
    assert run.text() == "on "


async def test_what_a_generator_leaves_open_is_closed_for_it() -> None:
    run = await play(giving(CustomEvent(name="x", value=1), TextMessageStartEvent(message_id="m", role="assistant")))
    assert isinstance(run, Played)
    assert run.order() == ["x", "TEXT_MESSAGE_START", "TEXT_MESSAGE_END"]


class Answering:
    async def __call__(self, _: Any) -> AsyncIterator[str]:
        yield "hi"

    async def method(self, _: Any) -> AsyncIterator[str]:
        yield "hi"


async def my_answer(_: Any, *, loud: bool = False) -> AsyncIterator[str]:
    yield "HI" if loud else "hi"


@pytest.mark.parametrize(
    ("function", "name", "said"),
    [
        (my_answer, "my-answer", "hi"),
        (partial(my_answer, loud=True), "my-answer", "HI"),
        (Answering(), "answering", "hi"),
        (Answering().method, "method", "hi"),
    ],
)
async def test_every_kind_of_generator_function_is_recognised(
    function: Callable[..., Any], name: str, said: str
) -> None:
    source = source_of(function)
    assert isinstance(source, Generator)
    assert source.name == name
    assert (await play(source)).text() == said


def test_what_is_no_agent_is_not_recognised() -> None:
    for other in (object(), print, "bot", Generator(my_answer), lambda _: None):
        assert source_of(other) is None


def test_agents_of_frameworks_are_recognised_by_their_class() -> None:
    from agents import Agent
    from agents.realtime import RealtimeAgent

    from headwater.sources.openai_agents import OpenAIAgent

    assert isinstance(source_of(Agent(name="Bot")), OpenAIAgent)
    with pytest.raises(BadRequest, match="RealtimeVoice"):
        source_of(RealtimeAgent(name="Bot"))
