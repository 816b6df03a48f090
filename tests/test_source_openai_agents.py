"""The OpenAI Agents SDK as a source: the real SDK and the real openai client, on scripted models and scripted wires."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

import agents
import httpx
import openai
import pytest
from ag_ui_validate.pytest_plugin import assert_valid_agui
from agents import Agent, function_tool
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from openai.types.responses import (
    Response,
    ResponseIncompleteEvent,
    ResponseOutputItemDoneEvent,
    ResponseReasoningItem,
)
from openai.types.responses.response_reasoning_item import Content, Summary
from pydantic import BaseModel

from headwater import agui
from headwater.sources import Paused, Question, RunFailed, progress, tool_call_id
from headwater.sources.openai_agents import OpenAIAgent
from headwater.sources.openai_translation import Translation

SECRET = "sk-secret-4711 in my instructions"

Event = dict[str, Any]


@pytest.fixture(autouse=True)
def no_traces() -> Iterator[None]:
    agents.set_tracing_disabled(True)
    yield
    gc.collect(1)  # what was never awaited complains in the test that left it


class Recording:
    """A sink that does what a run supervisor does, and keeps the events as readers see them."""

    run_id = "run"
    thread_id = conversation = "thread"
    keeps = True

    def __init__(self, *, when: Callable[[Event], None] = lambda event: None) -> None:
        self.events: list[Event] = []
        self.parts = agui.OpenParts()
        self.known: list[agui.TokenUsage] = []
        self.kept: list[tuple[int, bytes]] = []
        self.result: object = None
        self.failed: RunFailed | None = None
        self._when = when

    async def emit(self, event: agui.BaseEvent) -> None:
        self.parts.feed(event)
        seen = agui.decode(agui.encode(event))
        self.events.append(seen)
        self._when(seen)

    def usage(self, entries: Sequence[agui.TokenUsage]) -> None:
        self.known = list(entries)

    async def checkpoint(self, state: bytes, events: Sequence[agui.BaseEvent] = ()) -> None:
        self.kept.append((len(self.events) + len(events), state))
        for event in events:
            await self.emit(event)

    async def flush(self) -> None:
        pass

    def on_stop(self, stop: Callable[[], None]) -> None:
        self.stop = stop

    async def supervise(self, source: OpenAIAgent, given: Any) -> None:
        await self.emit(agui.run_started(self.thread_id, self.run_id))
        try:
            self.result = await source.run(given, self)
            terminal = agui.run_finished(self.thread_id, self.run_id, result=self.result, usage=self.known)
        except asyncio.CancelledError:
            terminal = agui.run_cancelled(self.thread_id, self.run_id, usage=self.known)
        except RunFailed as failed:
            self.failed = failed
            terminal = agui.run_error(failed.code, failed.message, usage=self.known)
        else:
            assert self.parts.closing_events() == [], "a source that ends well closes what it opened"
        for event in (*self.parts.closing_events(), terminal):
            await self.emit(event)
        assert_valid_agui(self.events, severity_overrides={"AGUI204": "off"})
        assert SECRET not in json.dumps(self.events)

    def of(self, *types: str) -> list[Event]:
        return [event for event in self.events if event["type"] in types]

    def custom(self, name: str) -> list[Any]:
        return [event["value"] for event in self.of("CUSTOM") if event["name"] == name]

    def order(self) -> list[str]:
        """The run as one word per event; repeated contents once."""
        words: list[str] = []
        for event in self.events:
            word = event.get("name", event["type"]) if event["type"] == "CUSTOM" else event["type"]
            if not words or words[-1] != word:
                words.append(word)
        return words

    def text(self) -> str:
        return "".join(event["delta"] for event in self.of("TEXT_MESSAGE_CONTENT"))


async def play(agent: Agent[Any] | OpenAIAgent, given: Any = "hi", *, sink: Recording | None = None) -> Recording:
    source = agent if isinstance(agent, OpenAIAgent) else OpenAIAgent(agent)
    recording = sink or Recording()
    before = asyncio.all_tasks()
    await recording.supervise(source, given)
    assert asyncio.all_tasks() == before, "tasks were left behind"
    return recording


# The Chat Completions wire: the real client and the real model class, on a scripted transport


def chunk(delta: Event | None = None, *, finish: str | None = None, usage: Event | None = None) -> str:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "tiny", "choices": choices}
    return f"data: {json.dumps(body | ({'usage': usage} if usage else {}))}\n\n"


def says(*deltas: str) -> list[str]:
    usage = {"prompt_tokens": 7, "completion_tokens": len(deltas), "total_tokens": 7 + len(deltas)}
    return [*(chunk({"content": delta}) for delta in deltas), chunk({}, finish="stop"), chunk(usage=usage), DONE]


def calls(*wanted: tuple[str, str, list[str]]) -> list[str]:
    lines = []
    for index, (id_, name, arguments) in enumerate(wanted):
        head = {"index": index, "id": id_, "type": "function", "function": {"name": name, "arguments": ""}}
        lines.append(chunk({"tool_calls": [head]}))
        pieces = [{"index": index, "function": {"arguments": piece}} for piece in arguments]
        lines.extend(chunk({"tool_calls": [piece]}) for piece in pieces)
    return [*lines, chunk({}, finish="tool_calls"), DONE]


DONE = "data: [DONE]\n\n"


def chat(*answers: list[str] | httpx.Response | Exception) -> agents.OpenAIChatCompletionsModel:
    left = list(answers)

    async def answer(request: httpx.Request) -> httpx.Response:
        scripted = left.pop(0)
        if isinstance(scripted, Exception):
            raise scripted
        if isinstance(scripted, httpx.Response):
            return scripted
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, content=_pieces(scripted))

    client = openai.AsyncOpenAI(
        api_key=SECRET,
        base_url="http://model.test/v1",
        max_retries=0,
        http_client=httpx.AsyncClient(transport=httpx.MockTransport(answer)),
    )
    return agents.OpenAIChatCompletionsModel("tiny", client)


async def _pieces(lines: list[str]) -> AsyncIterator[bytes]:
    for line in lines:
        if line == RESET:
            raise httpx.ReadError(SECRET)
        await asyncio.sleep(0)
        yield line.encode()


RESET = "the connection is reset here"


# Text


async def test_fifty_deltas_arrive_in_order_with_ids_of_ours() -> None:
    deltas = [f" {n}" for n in range(50)]
    run = await play(Agent(name="Number Teller", model=chat(says("", *deltas))))
    assert [event["delta"] for event in run.of("TEXT_MESSAGE_CONTENT")] == deltas
    assert {event["messageId"] for event in run.of("TEXT_MESSAGE_CONTENT")} == {"run.1"}
    assert run.result == "".join(deltas)
    assert run.order() == [
        "RUN_STARTED", "STEP_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
        "STEP_FINISHED", "RUN_FINISHED",
    ]  # fmt: skip
    assert run.of("STEP_STARTED")[0]["stepName"] == "Number Teller"
    assert run.events[-1]["usage"] == [{"model": "tiny", "inputTokens": 7, "outputTokens": 51, "totalTokens": 58}]


def test_the_name_is_the_slug_of_the_agents_name() -> None:
    assert OpenAIAgent(Agent(name="Number Teller (v2)")).name == "number-teller-v2"
    assert OpenAIAgent(Agent(name="!")).name == "agent"
    assert repr(OpenAIAgent(Agent(name="x"), name="other")) == "<OpenAIAgent other>"


async def test_a_list_of_input_items_and_a_context_reach_the_run() -> None:
    @function_tool
    def who(ctx: agents.RunContextWrapper[dict[str, str]]) -> str:
        return ctx.context["user"]

    model = ScriptedModel([[function_call("who", {}, call_id="c")], [assistant_message("you")]])
    source = OpenAIAgent(Agent(name="A", model=model, tools=[who]), context_factory=lambda: {"user": "Ada"})
    run = await play(source, [{"role": "user", "content": "who am I?"}])
    assert run.of("TOOL_CALL_RESULT")[0]["content"] == "Ada"
    assert model.calls[0].input == [{"role": "user", "content": "who am I?"}]


async def test_a_refusal_is_text_that_is_marked() -> None:
    answer = [chunk({"refusal": "I may "}), chunk({"refusal": "not"}), chunk({}, finish="stop"), DONE]
    run = await play(Agent(name="A", model=chat(answer)))
    assert run.text() == "I may not"
    assert run.custom(agui.REFUSED) == [{"messageId": "run.1"}]


async def test_text_that_utf8_cannot_hold_is_repaired() -> None:
    @function_tool
    def names() -> str:
        return "caf\udce9"

    model = ScriptedModel([[function_call("names", {}, call_id="c")], [assistant_message("fine")]])
    run = await play(Agent(name="A", model=model, tools=[names]))
    assert run.of("TOOL_CALL_RESULT")[0]["content"] == "caf\ufffd"


# Reasoning


async def test_reasoning_of_a_chat_model_comes_before_its_text() -> None:
    answer = [chunk({"reasoning_content": "let me "}), chunk({"reasoning_content": "think"}), *says("42")]
    run = await play(Agent(name="A", model=chat(answer)))
    assert run.order()[2:10] == [
        "REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT", "REASONING_MESSAGE_END",
        "REASONING_END", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
    ]  # fmt: skip
    assert "".join(event["delta"] for event in run.of("REASONING_MESSAGE_CONTENT")) == "let me think"


async def test_each_part_of_a_reasoning_summary_is_a_message_of_one_span() -> None:
    thought = ResponseReasoningItem(
        id="r",
        type="reasoning",
        summary=[Summary(text="first", type="summary_text"), Summary(text="second", type="summary_text")],
        content=[Content(text="raw", type="reasoning_text")],
    )
    run = await play(Agent(name="A", model=ScriptedModel([[thought, assistant_message("so")]])))
    assert [event["delta"] for event in run.of("REASONING_MESSAGE_CONTENT")] == ["first", "second", "raw"]
    assert len({event["messageId"] for event in run.of("REASONING_MESSAGE_START")}) == 3
    assert len(run.of("REASONING_START")) == len(run.of("REASONING_END")) == 1


# Tools


async def test_two_tools_in_parallel_are_told_at_their_true_times() -> None:
    go_on = asyncio.Event()

    @function_tool
    async def slow() -> str:
        await go_on.wait()
        return "slow is done"

    @function_tool
    async def fast(n: int) -> dict[str, int]:
        return {"twice": 2 * n}

    def release(event: Event) -> None:
        if event["type"] == "TOOL_CALL_RESULT" and event["toolCallId"] == "fast-1":
            go_on.set()  # so the run ends only if the fast result is told while the slow tool runs

    model = chat(calls(("slow-1", "slow", []), ("fast-1", "fast", ['{"n"', ": 21}"])), says("both"))
    sink = Recording(when=release)
    run = await asyncio.wait_for(play(Agent(name="A", model=model, tools=[slow, fast]), sink=sink), 5)
    assert [event["delta"] for event in run.of("TOOL_CALL_ARGS") if event["toolCallId"] == "fast-1"] == [
        '{"n"',
        ": 21}",
    ]
    assert [(event["toolCallId"], event["content"]) for event in run.of("TOOL_CALL_RESULT")] == [
        ("fast-1", '{"twice":42}'), ("slow-1", "slow is done")
    ]  # fmt: skip
    assert {value["toolCallId"] for value in run.custom(agui.TOOL_STARTED)} == {"slow-1", "fast-1"}
    parents = {event["parentMessageId"] for event in run.of("TOOL_CALL_START")}
    assert len(parents) == 1, "calls of one response belong to one assistant message"
    ids = [event["messageId"] for event in run.of("TEXT_MESSAGE_START", "TOOL_CALL_RESULT")]
    assert len(set(ids)) == 3


async def test_turns_with_the_same_provider_ids_have_ids_of_their_own() -> None:
    @function_tool
    def ping() -> str:
        return "pong"

    model = chat([chunk({"content": "wait"}), *calls(("c1", "ping", []))], says("done"))
    run = await play(Agent(name="A", model=model, tools=[ping]))
    first, second = run.of("TEXT_MESSAGE_START")
    assert first["messageId"] != second["messageId"]
    assert run.of("TOOL_CALL_START")[0]["parentMessageId"] == first["messageId"]
    assert run.text() == "waitdone"


async def test_progress_is_told_by_the_right_tool_from_thread_and_loop() -> None:
    both = threading.Barrier(2, timeout=5)

    @function_tool
    def threaded(name: str) -> str:
        both.wait()  # the two calls are in their threads at once
        for step in (1, 2, 3):
            progress(f"{name} {step}", fraction=step / 2, data={"at": [step]})
        return name

    @function_tool
    async def looped() -> str:
        progress("async")
        await asyncio.sleep(0)
        progress(fraction=0.5)
        return "looped"

    wanted = [function_call("threaded", {"name": id_}, call_id=id_) for id_ in ("t1", "t2")]
    model = ScriptedModel([[*wanted, function_call("looped", {}, call_id="l")], [assistant_message("done")]])
    run = await play(Agent(name="A", model=model, tools=[threaded, looped]))
    told = run.custom(agui.TOOL_PROGRESS)
    for id_ in ("t1", "t2"):
        assert [value for value in told if value["toolCallId"] == id_] == [
            {"toolCallId": id_, "message": f"{id_} 1", "fraction": 0.5, "data": {"at": [1]}},
            {"toolCallId": id_, "message": f"{id_} 2", "fraction": 1.0, "data": {"at": [2]}},
            {"toolCallId": id_, "message": f"{id_} 3", "fraction": 1.0, "data": {"at": [3]}},
        ]
    assert [value for value in told if value["toolCallId"] == "l"] == [
        {"toolCallId": "l", "message": "async"}, {"toolCallId": "l", "fraction": 0.5}
    ]  # fmt: skip
    for id_ in ("t1", "t2", "l"):
        about = [event for event in run.events if (event.get("value") or event).get("toolCallId") == id_]
        words = [event.get("name", event["type"]) for event in about]
        assert words[-1] == "TOOL_CALL_RESULT"
        assert words.index("TOOL_CALL_END") < words.index(agui.TOOL_STARTED) < words.index(agui.TOOL_PROGRESS)


def test_what_hooks_say_of_a_call_waits_for_the_calls_end() -> None:
    translation = Translation("run")
    call = function_call("f", {"a": 1}, call_id="c")
    done = ResponseOutputItemDoneEvent(type="response.output_item.done", item=call, output_index=0, sequence_number=0)
    early = [
        *translation.tool_started("c"),
        *translation.tool_progress("c", {"message": "half"}),
        *translation.tool_ended("c", "out"),
        *translation.tool_progress("c", {"message": "too late"}),
        *translation.tool_ended("c", "again"),
    ]
    assert early == []
    events = list(translation.sdk_event(agents.RawResponsesStreamEvent(data=done)))
    assert [event.type.value for event in events] == [
        "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "CUSTOM", "CUSTOM", "TOOL_CALL_RESULT"
    ]  # fmt: skip
    assert list(translation.tool_ended("c", "again")) == []


def test_a_call_id_that_the_provider_uses_again_becomes_another() -> None:
    translation = Translation("run")
    ids = []
    for number in (0, 1):
        call = function_call("f", {}, call_id="c")
        done = ResponseOutputItemDoneEvent(
            type="response.output_item.done", item=call, output_index=number, sequence_number=0
        )
        events = list(translation.sdk_event(agents.RawResponsesStreamEvent(data=done)))
        events += translation.tool_ended("c", "out")
        assert {agui.decode(agui.encode(event))["toolCallId"] for event in events} == {events[0].tool_call_id}
        assert events[-1].type.value == "TOOL_CALL_RESULT"
        ids.append(events[0].tool_call_id)
    assert ids[0] == "c"
    assert ids[1] != "c"


async def test_progress_that_nobody_can_take_is_dropped_and_the_rest_arrives() -> None:
    @function_tool
    async def noisy() -> str:
        for n in range(100_000):
            progress(str(n))
        return "quiet"

    model = ScriptedModel([[function_call("noisy", {}, call_id="c")], [assistant_message("done")]])
    run = await play(Agent(name="A", model=model, tools=[noisy]))
    assert 1 <= len(run.custom(agui.TOOL_PROGRESS)) <= 256
    assert run.result == "done"


def test_progress_outside_a_run_does_nothing() -> None:
    progress("nobody hears", fraction=3.0)


async def test_progress_wants_json() -> None:
    @function_tool(failure_error_function=lambda _, error: type(error).__name__)
    def wrong() -> str:
        progress(data=object())  # type: ignore[arg-type]
        return "unreachable"

    model = ScriptedModel([[function_call("wrong", {}, call_id="c")], [assistant_message("done")]])
    run = await play(Agent(name="A", model=model, tools=[wrong]))
    assert run.of("TOOL_CALL_RESULT")[0]["content"] == "TypeError"


async def test_a_failing_tool_gives_the_sdks_harmless_text() -> None:
    @function_tool
    def fails() -> str:
        raise RuntimeError(SECRET)

    model = ScriptedModel([[function_call("fails", {}, call_id="c")], [assistant_message("sorry")]])
    run = await play(Agent(name="A", model=model, tools=[fails]))
    assert len(run.of("TOOL_CALL_RESULT")) == 1
    assert "error" in run.of("TOOL_CALL_RESULT")[0]["content"]
    assert run.result == "sorry"


async def test_bad_arguments_end_in_a_result_too() -> None:
    @function_tool
    def adds(a: int) -> int:
        return a + 1

    model = ScriptedModel([[function_call("adds", '{"a": "x"}', call_id="c")], [assistant_message("sorry")]])
    run = await play(Agent(name="A", model=model, tools=[adds]))
    assert len(run.of("TOOL_CALL_RESULT")) == 1


async def test_tool_outputs_become_json_or_their_own_str() -> None:
    class Point(BaseModel):
        x: float

    class Opaque:
        def __str__(self) -> str:
            return "opaque"

    outputs: dict[str, Any] = {
        "model": Point(x=float("nan")),
        "opaque": Opaque(),
        "image": agents.ToolOutputImage(image_url="data:image/png;base64,AAAA"),
        "mixed": [agents.ToolOutputText(text="see"), agents.ToolOutputFileContent(file_id="f", filename="a.pdf")],
        "none": None,
    }

    @function_tool
    def give(what: str) -> Any:
        return outputs[what]

    wanted = [function_call("give", {"what": what}, call_id=what) for what in outputs]
    run = await play(Agent(name="A", model=ScriptedModel([wanted, [assistant_message("ok")]]), tools=[give]))
    assert {event["toolCallId"]: event["content"] for event in run.of("TOOL_CALL_RESULT")} == {
        "model": '{"x":null}',
        "opaque": "opaque",
        "image": '{"type":"image"}',
        "mixed": '[{"type":"text","text":"see"},{"type":"file","filename":"a.pdf"}]',
        "none": "null",
    }


# Agents inside tools


def asks(inner: Agent[Any], name: str = "ask", **options: Any) -> agents.Tool:
    return inner.as_tool(name, "asks", **options)


def outer(*tools: agents.Tool, first: list[Any], usage: agents.Usage | None = None) -> Agent[Any]:
    model = ScriptedModel([first, [assistant_message("ok")]], default_usage=usage)
    return Agent(name="Outer", model=model, tools=list(tools))


def within(run: Recording, subagent: str | None) -> list[str]:
    """One word per event of this subagent; repeated contents once."""
    words = [e.get("name", e["type"]) if e["type"] == "CUSTOM" else e["type"]
             for e in run.events if e.get("subagentRunId") == subagent]  # fmt: skip
    return [word for at, word in enumerate(words) if words[at - 1 : at] != [word]]


async def test_an_agent_inside_a_tool_is_told_as_a_subagent() -> None:
    @function_tool
    def inner_tool() -> str:
        progress("inside")
        return f"found as {tool_call_id()}"

    usage = agents.Usage(requests=1, input_tokens=10, output_tokens=2, total_tokens=12)
    model = chat(calls(("i", "inner_tool", [])), says("expert ", "opinion"))
    inner = Agent(name="Inner", instructions=SECRET, model=model, tools=[inner_tool])
    run = await play(outer(asks(inner), first=[function_call("ask", {"input": "?"}, call_id="o")], usage=usage))
    (started,) = run.of("SUBAGENT_STARTED")
    assert (started["name"], started["parentToolCallId"]) == ("Inner", "o")
    assert "parentSubagentRunId" not in started
    assert within(run, started["subagentRunId"]) == [
        "SUBAGENT_STARTED", "TOOL_CALL_START", "TOOL_CALL_END", agui.TOOL_STARTED, agui.TOOL_PROGRESS,
        "TOOL_CALL_RESULT", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "SUBAGENT_FINISHED",
    ]  # fmt: skip
    assert [(e["toolCallId"], e["content"]) for e in run.of("TOOL_CALL_RESULT")] == [
        ("i", "found as i"), ("o", "expert opinion")
    ]  # fmt: skip
    assert run.custom(agui.TOOL_PROGRESS) == [{"toolCallId": "i", "message": "inside"}]
    assert run.result == "ok"
    assert {entry.get("model"): entry["inputTokens"] for entry in run.events[-1]["usage"]} == {
        "scripted-model": 20, "tiny": 7
    }  # fmt: skip


async def test_agents_in_parallel_and_inside_one_another_are_told_apart() -> None:
    both = asyncio.Barrier(2)

    @function_tool
    async def meet() -> str:
        async with asyncio.timeout(5):
            await both.wait()
        return "met"

    def innermost() -> Agent[Any]:
        return Agent(name="Deep", model=chat(calls(("same", "meet", [])), says("deep")), tools=[meet])

    def middle() -> Agent[Any]:
        deep = asks(innermost(), "dig")
        return Agent(name="Middle", model=chat(calls(("m", "dig", ['{"input":"?"}'])), says("mid")), tools=[deep])

    first = [function_call(name, {"input": "?"}, call_id=name) for name in ("left", "right")]
    run = await play(outer(asks(middle(), "left"), asks(middle(), "right"), first=first))
    started = {event["subagentRunId"]: event for event in run.of("SUBAGENT_STARTED")}
    middles = [event for event in started.values() if event["name"] == "Middle"]
    assert {event["parentToolCallId"] for event in middles} == {"left", "right"}
    deeps = [event for event in started.values() if event["name"] == "Deep"]
    assert {event["parentSubagentRunId"] for event in deeps} == {event["subagentRunId"] for event in middles}
    calls_ = run.of("TOOL_CALL_START")
    assert len({event["toolCallId"] for event in calls_}) == len(calls_) == 6, "also where models use the same ids"
    for event in deeps:
        assert within(run, event["subagentRunId"])[-4:-1] == [
            "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"
        ]  # fmt: skip
    assert len(run.of("SUBAGENT_FINISHED")) == 4
    assert sum(entry["inputTokens"] for entry in run.events[-1]["usage"]) == 14 * 2


async def test_an_agent_inside_a_tool_that_fails_is_told_and_the_run_goes_on() -> None:
    inner = Agent(name="Inner", model=chat([chunk({"content": "Hel"}), RESET]))
    run = await play(outer(asks(inner), first=[function_call("ask", {"input": "?"}, call_id="o")]))
    (failed_,) = run.of("SUBAGENT_ERROR")
    assert failed_["code"] == "upstream_cut"
    assert within(run, failed_["subagentRunId"])[-2:] == ["TEXT_MESSAGE_END", "SUBAGENT_ERROR"]
    assert run.result == "ok"


async def test_a_tripwire_inside_a_tool_takes_back_what_was_said_there() -> None:
    @agents.output_guardrail
    async def never(ctx: Any, agent: Any, output: Any) -> agents.GuardrailFunctionOutput:
        return agents.GuardrailFunctionOutput(output_info=SECRET, tripwire_triggered=True)

    inner = Agent(name="Inner", model=chat(says("terrible")), output_guardrails=[never])
    run = await play(outer(asks(inner), first=[function_call("ask", {"input": "?"}, call_id="o")]))
    (said,) = [e["messageId"] for e in run.of("TEXT_MESSAGE_START") if "subagentRunId" in e]
    assert run.custom(agui.RETRACTED) == [{"messageId": said, "reason": "output_guardrail"}]
    assert run.of("SUBAGENT_ERROR")[0]["code"] == "output_guardrail"


async def test_cancelling_ends_the_agents_inside() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield chunk({"content": "it "}).encode()
            await asyncio.Event().wait()
        finally:
            closed.set()

    model = chat(httpx.Response(200, headers={"content-type": "text/event-stream"}, content=endless()))
    inner = Agent(name="Inner", model=model)
    agent = outer(asks(inner), first=[function_call("ask", {"input": "?"}, call_id="o")])
    run = await cancelled_at(agent, lambda event: event["type"] == "TEXT_MESSAGE_CONTENT")
    assert len(run.of("SUBAGENT_ERROR")) == 1
    await asyncio.wait_for(closed.wait(), 5)


async def test_a_silent_model_inside_a_tool_is_noticed() -> None:
    async def silent(call: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    inner = Agent(name="Inner", model=ScriptedModel([ModelStep.stream(silent)]))
    agent = outer(asks(inner), first=[function_call("ask", {"input": "?"}, call_id="o")])
    run = await asyncio.wait_for(play(OpenAIAgent(agent, idle_timeout=0.05)), 5)
    assert failed(run) == "model_stalled"
    assert len(run.of("SUBAGENT_ERROR")) == 1


async def test_what_a_tools_own_code_runs_or_nobody_wants_to_show_stays_inside() -> None:
    aside = Agent(name="Aside", model=ScriptedModel([[assistant_message("aside")]] * 2))

    @function_tool
    async def by_hand() -> str:
        return str((await agents.Runner.run(aside, "?")).final_output)

    @agents.input_guardrail
    async def asks_another(ctx: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
        said = (await agents.Runner.run(aside, "?")).final_output
        return agents.GuardrailFunctionOutput(said, tripwire_triggered=False)

    inner_model = chat(calls(("i", "by_hand", [])), says("hidden"))
    inner = Agent(name="Inner", model=inner_model, tools=[by_hand], input_guardrails=[asks_another])
    run = await play(outer(asks(inner), first=[function_call("ask", {"input": "?"}, call_id="o")]))
    assert [event["name"] for event in run.of("SUBAGENT_STARTED")] == ["Inner"]
    assert run.text() == "hiddenok"

    inner = Agent(name="Inner", model=ScriptedModel([[assistant_message("hidden")]]))
    quiet = outer(asks(inner), first=[function_call("ask", {"input": "?"}, call_id="o")])
    run = await play(OpenAIAgent(quiet, show_nested=False))
    assert run.of("SUBAGENT_STARTED") == []
    assert (run.text(), run.of("TOOL_CALL_RESULT")[0]["content"]) == ("ok", "hidden")


async def test_hooks_that_somebody_gave_to_an_agent_inside_are_called_all_the_same() -> None:
    class Noting(agents.RunHooks[Any]):
        def __init__(self) -> None:
            self.seen: list[str] = []

        async def on_llm_start(self, *given: Any) -> None:
            self.seen.append("llm")

        async def on_llm_end(self, *given: Any) -> None:
            self.seen.append("llm over")

        async def on_agent_start(self, *given: Any) -> None:
            self.seen.append("agent")

        async def on_agent_end(self, *given: Any) -> None:
            self.seen.append("agent over")

        async def on_tool_start(self, *given: Any) -> None:
            self.seen.append("tool")

        async def on_tool_end(self, *given: Any) -> None:
            self.seen.append("tool over")

        async def on_handoff(self, **given: Any) -> None:
            self.seen.append("handoff")

    @function_tool
    def ping() -> str:
        return "pong"

    second = Agent(name="Second", model=chat(says("here")))
    model = chat(calls(("i", "ping", [])), calls(("h", "transfer_to_second", ["{}"])))
    hooks = Noting()
    inner = Agent(name="Inner", model=model, tools=[ping], handoffs=[second])
    agent = outer(asks(inner, hooks=hooks), first=[function_call("ask", {"input": "?"}, call_id="o")])
    run = await play(agent)
    assert hooks.seen == [
        "agent", "llm", "llm over", "tool", "tool over", "llm", "llm over", "handoff", "agent", "llm", "llm over",
        "agent over",
    ]  # fmt: skip
    assert run.custom(agui.HANDOFF) == [{"from": "Inner", "to": "Second"}]


# Handoffs, structured output


async def test_a_handoff_answers_its_call_and_changes_the_step() -> None:
    second = Agent(name="Second", model=chat(says("here")))
    first = Agent(name="First", model=chat(calls(("h", "transfer_to_second", ["{}"]))), handoffs=[second])
    run = await play(first)
    assert run.order()[2:12] == [
        "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "TOOL_CALL_RESULT", agui.HANDOFF,
        "STEP_FINISHED", "STEP_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
    ]  # fmt: skip
    assert run.custom(agui.HANDOFF) == [{"from": "First", "to": "Second"}]
    assert [event["stepName"] for event in run.of("STEP_STARTED")] == ["First", "Second"]
    assert run.result == "here"


async def test_structured_output_is_the_result_as_json() -> None:
    class Weather(BaseModel):
        city: str
        degrees: float

    answer = '{"city":"Oslo","degrees":-3.5}'
    run = await play(Agent(name="A", model=chat(says(*answer)), output_type=Weather))
    assert run.text() == answer
    assert run.result == {"city": "Oslo", "degrees": -3.5}


async def test_a_model_that_gives_only_whole_responses_is_told_in_whole() -> None:
    @function_tool
    def ping() -> str:
        return "pong"

    def only_completed(step: ModelStep) -> ModelStep:
        async def last_event(call: Any) -> AsyncIterator[Any]:
            model = ScriptedModel([step])
            async for event in model.stream_response(
                None, "", agents.ModelSettings(), [], None, [], agents.ModelTracing.DISABLED,
                previous_response_id=None, conversation_id=None, prompt=None,
            ):  # fmt: skip
                if event.type == "response.completed":
                    yield event

        return ModelStep.stream(last_event)

    steps = [
        ModelStep([assistant_message("first"), function_call("ping", {"a": 1}, call_id="c")]),
        ModelStep([assistant_message("last")]),
    ]
    run = await play(Agent(name="A", model=ScriptedModel(map(only_completed, steps)), tools=[ping]))
    assert run.text() == "firstlast"
    assert [event["delta"] for event in run.of("TOOL_CALL_ARGS")] == ['{"a":1}']
    assert run.of("TOOL_CALL_RESULT")[0]["content"] == "pong"


# Failures


def failed(run: Recording) -> str:
    assert run.failed is not None
    assert run.events[-1]["type"] == "RUN_ERROR"
    assert run.events[-1]["code"] == run.failed.code
    return run.failed.code


async def test_an_unknown_tool_is_the_models_fault() -> None:
    run = await play(Agent(name="A", model=ScriptedModel([[function_call("nosuch", {}, call_id="c")]])))
    assert failed(run) == "model_behavior"


async def test_a_tool_that_hides_nothing_from_the_sdk_fails_the_run_without_its_text() -> None:
    @function_tool(failure_error_function=None)
    def fails() -> str:
        raise RuntimeError(SECRET)

    run = await play(Agent(name="A", model=ScriptedModel([[function_call("fails", {}, call_id="c")]]), tools=[fails]))
    assert failed(run) == "tool_failed"


async def test_too_many_turns() -> None:
    @function_tool
    def again() -> str:
        return "again"

    model = ScriptedModel([[function_call("again", {}, call_id=f"c{n}")] for n in range(3)])
    run = await play(OpenAIAgent(Agent(name="A", model=model, tools=[again]), max_turns=2))
    assert failed(run) == "max_turns"
    assert [event["content"] for event in run.of("TOOL_CALL_RESULT")] == ["again", "again"]


async def test_an_answer_in_place_of_an_error_is_told() -> None:
    @function_tool
    def again() -> str:
        return "again"

    def gives_up(_: Any) -> agents.RunErrorHandlerResult:
        return agents.RunErrorHandlerResult(final_output="That is all I found.")

    async def declines(_: Any) -> None:
        return None

    for handler in (gives_up, declines):
        model = chat(*[calls((f"c{n}", "again", [])) for n in range(2)])
        agent = Agent(name="A", model=model, tools=[again])
        run = await play(OpenAIAgent(agent, max_turns=1, error_handlers={"max_turns": handler}))
        if handler is gives_up:
            assert run.text() == run.result == "That is all I found."
            assert run.order()[-4:-2] == ["TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END"]
        else:
            assert (failed(run), run.text()) == ("max_turns", "")


async def test_an_input_guardrail_stops_the_run_and_takes_back_what_was_shown() -> None:
    shown = asyncio.Event()

    @agents.input_guardrail
    async def never(ctx: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
        await shown.wait()
        return agents.GuardrailFunctionOutput(output_info=SECRET, tripwire_triggered=True)

    def note(event: Event) -> None:
        if event["type"] == "TEXT_MESSAGE_CONTENT":
            shown.set()

    model = chat(says(*"a long answer to a bad question"))
    run = await play(Agent(name="A", model=model, input_guardrails=[never]), sink=Recording(when=note))
    assert failed(run) == "input_guardrail"
    assert run.custom(agui.RETRACTED) == [{"messageId": "run.1", "reason": "input_guardrail"}]


async def test_a_tripwire_is_told_when_it_is_known_and_not_when_the_model_has_finished() -> None:
    shown, closed = asyncio.Event(), asyncio.Event()

    @agents.input_guardrail
    async def never(ctx: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
        await shown.wait()
        return agents.GuardrailFunctionOutput(output_info=SECRET, tripwire_triggered=True)

    @agents.input_guardrail
    async def undecided(ctx: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
        await asyncio.Event().wait()
        return agents.GuardrailFunctionOutput(None, tripwire_triggered=False)

    async def endless() -> AsyncIterator[bytes]:
        try:
            yield chunk({"content": "it "}).encode()
            await asyncio.Event().wait()
        finally:
            closed.set()

    model = chat(httpx.Response(200, headers={"content-type": "text/event-stream"}, content=endless()))
    agent = Agent(name="A", model=model, input_guardrails=[undecided, never])
    sink = Recording(when=lambda event: shown.set() if event["type"] == "TEXT_MESSAGE_CONTENT" else None)
    run = await asyncio.wait_for(play(agent, sink=sink), 5)
    assert failed(run) == "input_guardrail"
    assert run.custom(agui.RETRACTED) == [{"messageId": "run.1", "reason": "input_guardrail"}]
    await asyncio.wait_for(closed.wait(), 5)


async def test_an_output_guardrail_takes_back_the_last_answer() -> None:
    @function_tool
    def ping() -> str:
        return "pong"

    @agents.output_guardrail
    async def never(ctx: Any, agent: Any, output: Any) -> agents.GuardrailFunctionOutput:
        return agents.GuardrailFunctionOutput(output_info=SECRET, tripwire_triggered=True)

    model = chat([chunk({"content": "harmless"}), *calls(("c", "ping", []))], says("terrible"))
    run = await play(Agent(name="A", model=model, tools=[ping], output_guardrails=[never]))
    assert failed(run) == "output_guardrail"
    assert run.custom(agui.RETRACTED) == [
        {"messageId": run.of("TEXT_MESSAGE_START")[1]["messageId"], "reason": "output_guardrail"}
    ]


async def test_an_exception_of_the_model_is_not_shown() -> None:
    run = await play(Agent(name="A", model=ScriptedModel([RuntimeError(SECRET)])))
    assert failed(run) == "internal"


def problem(status: int) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": SECRET}})


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (problem(429), "rate_limited"),
        (problem(401), "model_refused_request"),
        (problem(400), "model_refused_request"),
        (problem(503), "model_unreachable"),
        (httpx.ConnectError(SECRET), "model_unreachable"),
        (httpx.ReadTimeout(SECRET), "model_timeout"),
        ([chunk({"content": "Hel"})], "upstream_cut"),
        ([chunk({"content": "Hel"}), DONE], "upstream_cut"),
        ([chunk({"content": "Hel"}), RESET], "upstream_cut"),
    ],
    ids=["429", "401", "400", "503", "no connection", "timeout", "early end", "no finish_reason", "reset"],
)
async def test_failures_of_the_provider_have_stable_codes(answer: Any, code: str) -> None:
    run = await play(Agent(name="A", model=chat(answer)))
    assert failed(run) == code
    assert run.text() in ("", "Hel")
    if code == "upstream_cut":
        assert run.text() == "Hel", "what came before the cut is kept"


async def test_a_provider_without_finish_reasons_can_be_trusted_by_saying_so() -> None:
    source = OpenAIAgent(Agent(name="A", model=chat([chunk({"content": "Hel"}), DONE])), require_finish_reason=False)
    assert (await play(source)).result == "Hel"


async def test_runs_that_are_not_ours_keep_the_sdks_behaviour() -> None:
    await play(Agent(name="A", model=chat(says("x"))))
    result = agents.Runner.run_streamed(Agent(name="A", model=chat([chunk({"content": "Hel"}), DONE])), "hi")
    async for _ in result.stream_events():
        pass
    assert result.final_output == "Hel"


async def test_a_responses_stream_that_ends_early_is_a_cut() -> None:
    async def cut(call: Any) -> AsyncIterator[Any]:
        model = ScriptedModel([[assistant_message("Hello")]])
        async for event in model.stream_response(
            None, "", agents.ModelSettings(), [], None, [], agents.ModelTracing.DISABLED,
            previous_response_id=None, conversation_id=None, prompt=None,
        ):  # fmt: skip
            yield event
            await asyncio.sleep(0)
            if event.type == "response.output_text.delta":
                return

    run = await play(Agent(name="A", model=ScriptedModel([ModelStep.stream(cut)])))
    assert failed(run) == "upstream_cut"
    assert run.text() == "Hello"


async def test_what_an_incomplete_answer_has_used_counts() -> None:
    details: Event = {
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens_details": {"reasoning_tokens": 0},
    }
    response = Response.model_validate(
        {
            "id": "r", "created_at": 0, "model": "tiny", "object": "response", "output": [], "status": "incomplete",
            "parallel_tool_calls": False, "tool_choice": "auto", "tools": [],
            "usage": {"input_tokens": 5, "output_tokens": 2, "total_tokens": 7, **details},
        }
    )  # fmt: skip

    async def incomplete(call: Any) -> AsyncIterator[Any]:
        yield ResponseIncompleteEvent(type="response.incomplete", response=response, sequence_number=0)

    run = await play(Agent(name="A", model=ScriptedModel([ModelStep.stream(incomplete)])))
    assert failed(run) == "model_behavior"
    assert run.events[-1]["usage"] == [{"model": "tiny", "inputTokens": 5, "outputTokens": 2, "totalTokens": 7}]


async def test_a_tool_that_asks_for_approval_pauses_the_run() -> None:
    @function_tool(needs_approval=True)
    def danger(what: str) -> str:
        return "done"

    sink, model = Recording(), ScriptedModel([[function_call("danger", {"what": "x"}, call_id="c")]])
    with pytest.raises(Paused) as paused:
        await sink.supervise(OpenAIAgent(Agent(name="A", model=model, tools=[danger])), "hi")
    assert paused.value.questions == [Question("c", "danger", '{"what":"x"}')]
    assert sink.of("TOOL_CALL_RESULT") == []
    assert sink.custom(agui.TOOL_STARTED) == []


async def test_no_tool_begins_before_the_response_that_calls_it_is_kept() -> None:
    order: list[str] = []

    class Slow(Recording):
        async def checkpoint(self, state: bytes, events: Sequence[agui.BaseEvent] = ()) -> None:
            await asyncio.sleep(0.01)
            await super().checkpoint(state, events)
            order.append("kept")

        async def flush(self) -> None:
            order.append(self.order()[-1])

    @function_tool
    async def ping() -> str:
        order.append(f"ran {tool_call_id()}")
        return "pong"

    sink = Slow()
    await play(Agent(name="A", model=chat(calls(("c1", "ping", [])), says("done")), tools=[ping]), sink=sink)
    assert order == ["kept", "tool.started", "ran c1", "kept"]
    assert [sink.events[at - 1]["type"] for at, _ in sink.kept] == ["TOOL_CALL_END", "TOOL_CALL_RESULT"]
    assert tool_call_id() is None


async def test_nothing_is_kept_that_would_pass_by_an_input_guardrail() -> None:
    said = asyncio.Event()

    @agents.input_guardrail
    async def slow(ctx: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
        await said.wait()
        return agents.GuardrailFunctionOutput(None, tripwire_triggered=False)

    @function_tool
    def ping() -> str:
        return "pong"

    def watch(event: Event) -> None:
        if event["type"] == "TEXT_MESSAGE_CONTENT":
            said.set()

    sink = Recording(when=watch)
    model = chat(calls(("c1", "ping", [])), says("done"))
    await play(Agent(name="A", model=model, tools=[ping], input_guardrails=[slow]), sink=sink)
    (kept,) = [json.loads(state) for _, state in sink.kept]
    assert kept["state"] is None, "gone on with from there, the guardrail is asked"


async def test_a_run_that_something_inside_it_cancels_does_not_count_as_done() -> None:
    async def cancels(ctx: Any, agent: Any) -> str:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)
        return "never"

    run = await play(Agent(name="A", model=ScriptedModel([[assistant_message("x")]]), instructions=cancels))
    assert failed(run) == "internal"


async def test_a_silent_model_is_noticed() -> None:
    async def silent(call: Any) -> AsyncIterator[Any]:
        await asyncio.Event().wait()
        yield None

    source = OpenAIAgent(Agent(name="A", model=ScriptedModel([ModelStep.stream(silent)])), idle_timeout=0.02)
    assert failed(await play(source)) == "model_stalled"


async def test_a_working_tool_is_no_silent_model_but_the_whole_run_has_a_limit() -> None:
    @function_tool
    async def slow() -> str:
        await asyncio.Event().wait()
        return "never"

    model = ScriptedModel([[function_call("slow", {}, call_id="c")]])
    source = OpenAIAgent(Agent(name="A", model=model, tools=[slow]), idle_timeout=0.15, total_timeout=0.4)
    run = await play(source)
    assert failed(run) == "run_timeout"
    assert run.custom(agui.TOOL_STARTED) == [{"toolCallId": "c"}]


async def test_an_error_of_the_sink_goes_up_as_it_is_and_stops_the_run() -> None:
    class Full(Recording):
        async def emit(self, event: agui.BaseEvent) -> None:
            if event.type.value == "TEXT_MESSAGE_CONTENT":
                raise OSError("disk full")
            await super().emit(event)

    before = asyncio.all_tasks()
    sink = Full()
    await sink.emit(agui.run_started("thread", "run"))
    with pytest.raises(OSError, match="disk full"):
        await OpenAIAgent(Agent(name="A", model=chat(says(*"a long answer" * 500)))).run("hi", sink)
    assert asyncio.all_tasks() == before


# Cancellation


async def cancelled_at(agent: Agent[Any], wanted: Callable[[Event], bool]) -> Recording:
    """Runs the agent, cancels at the first event that is `wanted`, and waits for the end."""
    seen = asyncio.Event()
    sink = Recording(when=lambda event: seen.set() if wanted(event) else None)
    before = asyncio.all_tasks()
    task = asyncio.create_task(sink.supervise(OpenAIAgent(agent), "hi"))
    await asyncio.wait_for(seen.wait(), 5)
    task.cancel()
    await asyncio.wait_for(asyncio.wait({task}), 5)
    assert asyncio.all_tasks() == before, "tasks were left behind"
    assert sink.events[-1]["outcome"] == {"type": "cancelled"}
    return sink


async def test_cancelling_in_mid_text_stops_the_model_and_keeps_the_usage_so_far() -> None:
    closed = asyncio.Event()

    @function_tool
    def ping() -> str:
        return "pong"

    async def endless() -> AsyncIterator[bytes]:
        try:
            while True:
                await asyncio.sleep(0)
                yield chunk({"content": "on and "}).encode()
        finally:
            closed.set()

    usage = {"prompt_tokens": 5, "completion_tokens": 1, "total_tokens": 6}
    first = [*calls(("c", "ping", []))[:-1], chunk(usage=usage), DONE]
    model = chat(first, httpx.Response(200, headers={"content-type": "text/event-stream"}, content=endless()))
    run = await cancelled_at(
        Agent(name="A", model=model, tools=[ping]), lambda event: event["type"] == "TEXT_MESSAGE_CONTENT"
    )
    assert run.events[-1]["usage"] == [{"model": "tiny", "inputTokens": 5, "outputTokens": 1, "totalTokens": 6}]
    await asyncio.wait_for(closed.wait(), 5)


async def test_cancelling_in_mid_tool_cancels_an_async_tool() -> None:
    was_cancelled = False

    @function_tool
    async def slow() -> str:
        nonlocal was_cancelled
        progress("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            was_cancelled = True
            raise
        return "never"

    model = ScriptedModel([[function_call("slow", {}, call_id="c")]])
    run = await cancelled_at(
        Agent(name="A", model=model, tools=[slow]), lambda event: event.get("name") == agui.TOOL_PROGRESS
    )
    assert was_cancelled
    assert run.of("TOOL_CALL_RESULT") == []


async def test_cancelling_does_not_wait_for_a_thread_and_its_late_progress_is_ignored() -> None:
    release, finished = threading.Event(), threading.Event()

    @function_tool
    def threaded() -> str:
        progress("early")
        release.wait(5)
        progress("late")
        finished.set()
        return "never"

    model = ScriptedModel([[function_call("threaded", {}, call_id="c")]])
    run = await cancelled_at(
        Agent(name="A", model=model, tools=[threaded]), lambda event: event.get("name") == agui.TOOL_PROGRESS
    )
    release.set()
    await asyncio.to_thread(finished.wait, 5)
    await asyncio.sleep(0)
    assert run.custom(agui.TOOL_PROGRESS) == [{"toolCallId": "c", "message": "early"}]


async def test_a_tool_that_does_not_stop_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.sources.openai_run._STOP_SECONDS", 0.01)
    release, started = asyncio.Event(), asyncio.Event()

    @function_tool
    async def stubborn() -> str:
        started.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "at last"

    model = ScriptedModel([[function_call("stubborn", {}, call_id="c")], [assistant_message("never said")]])
    sink = Recording()
    before = asyncio.all_tasks()
    source = OpenAIAgent(Agent(name="A", model=model, tools=[stubborn]))
    task = asyncio.create_task(sink.supervise(source, "hi"))
    await asyncio.wait_for(started.wait(), 5)
    task.cancel()
    await asyncio.wait_for(asyncio.wait({task}), 5)
    assert sink.events[-1]["outcome"] == {"type": "cancelled"}
    release.set()
    await asyncio.wait_for(asyncio.wait(asyncio.all_tasks() - before), 5)
    assert sink.text() == ""


async def test_cancelling_while_the_sink_waits_ends_a_run_whose_queue_is_full() -> None:
    stuck = asyncio.Event()

    class Slow(Recording):
        async def emit(self, event: agui.BaseEvent) -> None:
            await super().emit(event)
            if event.type.value == "TEXT_MESSAGE_CONTENT":
                stuck.set()
                await asyncio.Event().wait()

    before = asyncio.all_tasks()
    sink = Slow()
    model = ScriptedModel([ModelStep.stream(_flood(5000))])
    task = asyncio.create_task(sink.supervise(OpenAIAgent(Agent(name="A", model=model)), "hi"))
    await asyncio.wait_for(stuck.wait(), 5)
    task.cancel()
    await asyncio.wait_for(asyncio.wait({task}), 5)
    assert asyncio.all_tasks() == before
    assert sink.events[-1]["outcome"] == {"type": "cancelled"}


def _flood(deltas: int) -> Any:
    """The events of one long message, as fast as they can be taken."""

    async def events(call: Any) -> AsyncIterator[Any]:
        model = ScriptedModel([[assistant_message("x")]])
        async for event in model.stream_response(
            None, "", agents.ModelSettings(), [], None, [], agents.ModelTracing.DISABLED,
            previous_response_id=None, conversation_id=None, prompt=None,
        ):  # fmt: skip
            for _ in range(deltas if event.type == "response.output_text.delta" else 1):
                yield event

    return events


async def test_a_flood_of_deltas_arrives_whole() -> None:
    run = await play(Agent(name="A", model=ScriptedModel([ModelStep.stream(_flood(5000))])))
    assert run.text() == "x" * 5000
