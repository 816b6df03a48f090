"""LangGraph as a source: real graphs, real tool nodes, and a chat model on a script; no network."""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from typing import Any, TypedDict

import pytest

from headwater.errors import MissingExtra
from headwater.sources.recognised import source_of
from played_run import SECRET, play

pytest.importorskip("langgraph", reason="run: pip install 'headwater[langgraph]'")

from ag_ui.core import CustomEvent
from langchain_core.language_models.chat_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, SystemMessage
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode
from langgraph.types import Send, interrupt

from headwater.sources.langgraph import LangGraphAgent


class Scripted(BaseChatModel):
    """One list of chunks per call: texts, AIMessageChunks, events to wait for, exceptions."""

    script: list[list[Any]]

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def _generate(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    async def _astream(self, *_: Any, **__: Any) -> AsyncIterator[ChatGenerationChunk]:
        for part in self.script.pop(0):
            if isinstance(part, asyncio.Event):
                await part.wait()
            elif isinstance(part, Exception):
                raise part
            else:
                message = AIMessageChunk(content=part) if isinstance(part, str) else part
                yield ChatGenerationChunk(message=message)


def calling(name: str, *pieces: str, id_: str = "call_1") -> list[Any]:
    first, *rest = pieces
    return [
        AIMessageChunk(content="", tool_call_chunks=[{"name": name, "args": first, "id": id_, "index": 0}]),
        *(
            AIMessageChunk(content="", tool_call_chunks=[{"name": None, "args": piece, "id": None, "index": 0}])
            for piece in rest
        ),
    ]


@tool
def multiply(a: int, b: int) -> int:
    """Multiplies."""
    get_stream_writer()({"halfway": True})
    return a * b


def agent(*script: list[Any], tools: Any = (multiply,), **compiled: Any) -> Any:
    model = Scripted(script=list(script))

    async def talk(state: MessagesState) -> dict[str, Any]:
        return {"messages": [await model.ainvoke([SystemMessage(SECRET), *state["messages"]])]}

    def next_(state: MessagesState) -> str:
        last = state["messages"][-1]
        return "tools" if isinstance(last, AIMessage) and last.tool_calls else END

    graph = StateGraph(MessagesState)
    graph.add_node("talk", talk)
    graph.add_node("tools", ToolNode(list(tools)))
    graph.add_edge(START, "talk")
    graph.add_conditional_edges("talk", next_, ["tools", END])
    graph.add_edge("tools", "talk")
    return graph.compile(name="My Graph", **compiled)


async def test_text_is_streamed_and_is_the_result() -> None:
    used = AIMessageChunk(
        content="",
        usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        response_metadata={"model_name": "tiny"},
    )
    run = await play(LangGraphAgent(agent(["It ", "is ", "42.", used])))
    assert run.order() == [
        "STEP_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "STEP_FINISHED",
    ]  # fmt: skip
    assert [event["delta"] for event in run.of("TEXT_MESSAGE_CONTENT")] == ["It ", "is ", "42."]
    assert (run.record.status, run.record.result) == ("completed", "It is 42.")
    assert run.events[-1]["usage"] == [{"model": "tiny", "inputTokens": 3, "outputTokens": 4, "totalTokens": 7}]


async def test_thoughts_tools_their_data_and_their_results() -> None:
    thought = AIMessageChunk(content=[{"type": "reasoning", "reasoning": "Hm."}])
    run = await play(LangGraphAgent(agent([thought, *calling("multiply", '{"a":6', ',"b":7}')], ["42"])))
    assert run.order() == [
        "STEP_STARTED",
        "REASONING_START", "REASONING_MESSAGE_START", "REASONING_MESSAGE_CONTENT", "REASONING_MESSAGE_END",
        "REASONING_END", "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END",
        "STEP_FINISHED", "STEP_STARTED", "data", "TOOL_CALL_RESULT", "STEP_FINISHED",
        "STEP_STARTED", "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END", "STEP_FINISHED",
    ]  # fmt: skip
    assert [event["stepName"] for event in run.of("STEP_STARTED")] == ["talk", "tools", "talk"]
    assert json.loads("".join(event["delta"] for event in run.of("TOOL_CALL_ARGS"))) == {"a": 6, "b": 7}
    assert run.of("TOOL_CALL_RESULT")[0]["content"] == "42"
    assert run.custom("data") == [{"halfway": True}]


async def test_tool_call_ids_may_come_again() -> None:
    run = await play(
        LangGraphAgent(agent(calling("multiply", '{"a":1,"b":1}'), calling("multiply", '{"a":2,"b":2}'), ["ok"]))
    )
    assert run.record.result == "ok"
    started = [event["toolCallId"] for event in run.of("TOOL_CALL_START")]
    assert len(set(started)) == 2
    assert [event["toolCallId"] for event in run.of("TOOL_CALL_RESULT")] == started


async def test_a_whole_message_of_a_node_is_told() -> None:
    def talk(_: MessagesState) -> dict[str, Any]:
        call = {"name": "multiply", "args": {"a": 6, "b": 7}, "id": "c", "type": "tool_call"}
        return {"messages": [AIMessage(content="Let me see.", tool_calls=[call]), SystemMessage(SECRET)]}

    graph = StateGraph(MessagesState)
    graph.add_node("talk", talk)
    graph.add_edge(START, "talk")
    run = await play(LangGraphAgent(graph.compile()), [{"role": "user", "content": "hi"}])
    assert run.text() == "Let me see."
    assert run.of("TOOL_CALL_ARGS")[0]["delta"] == '{"a":6,"b":7}'


async def test_the_state_that_was_named_is_told_and_no_other() -> None:
    class State(TypedDict, total=False):
        plan: list[str]
        secret: str

    def plan(_: State) -> State:
        get_stream_writer()(CustomEvent(name="mine", value=1))
        return {"plan": ["a", "b"], "secret": SECRET}

    graph = StateGraph(State)
    graph.add_node("make", plan)
    graph.add_edge(START, "make")
    run = await play(LangGraphAgent(graph.compile(), state_keys=["plan"]), {"secret": SECRET[:2]})
    assert [event["snapshot"] for event in run.of("STATE_SNAPSHOT")] == [{"plan": ["a", "b"]}]
    assert run.custom("mine") == [1]
    assert run.record.result == {"plan": ["a", "b"]}


async def test_nodes_that_run_side_by_side_and_graphs_inside() -> None:
    inner = agent(["one"])

    def many(_: MessagesState) -> list[Send]:
        return [Send("leaf", {}), Send("leaf", {})]

    graph = StateGraph(MessagesState)
    graph.add_node("leaf", lambda _: {"messages": []})
    graph.add_node("inner", inner)
    graph.add_conditional_edges(START, many, ["leaf"])
    graph.add_edge("leaf", "inner")
    run = await play(LangGraphAgent(graph.compile()))
    assert [event["stepName"] for event in run.of("STEP_STARTED")] == ["leaf", "inner", "inner/talk"]
    assert run.text() == "one"


async def test_an_interrupt_ends_the_run_and_another_goes_on() -> None:
    asked: list[Any] = []

    def ask(_: MessagesState) -> dict[str, Any]:
        asked.append(interrupt({"question": "May I?"}))
        return {"messages": [AIMessage(content=f"You said {asked[0]}.")]}

    graph = StateGraph(MessagesState)
    graph.add_node("ask", ask)
    graph.add_edge(START, "ask")
    source = LangGraphAgent(graph.compile(checkpointer=InMemorySaver()))
    first = await play(source, thread="t1")
    (question,) = first.custom("interrupt")
    assert question["value"] == {"question": "May I?"}
    assert (first.record.status, first.record.result) == ("completed", {"interrupts": [question]})
    second = await play(source, {"resume": {question["id"]: "yes"}}, thread="t1")
    assert (second.record.result, asked) == ("You said yes.", ["yes"])


@pytest.mark.parametrize("failing", ["model", "tool"])
async def test_a_failure_fails_the_run_and_nothing_of_it_is_told(
    failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headwater")

    @tool
    def fail() -> str:
        """Fails."""
        raise RuntimeError(SECRET)

    script = [["Hel", RuntimeError(SECRET)]] if failing == "model" else [["Hel", *calling("fail", "{}")]]
    run = await play(LangGraphAgent(agent(*script, tools=[fail])))
    assert (run.record.status, run.error, run.text()) == ("failed", "internal", "Hel")
    assert SECRET not in caplog.text
    assert "RuntimeError" in caplog.text


async def test_limits() -> None:
    endless = [calling("multiply", '{"a":1,"b":1}', id_=f"c{n}") for n in range(9)]
    turns = await play(LangGraphAgent(agent(*endless), config={"recursion_limit": 4}))
    assert turns.error == "max_turns"
    late = await play(LangGraphAgent(agent(["Hel", asyncio.Event()]), total_timeout=0.1))
    assert (late.error, late.text()) == ("run_timeout", "Hel")


async def test_a_cancelled_run_keeps_its_text() -> None:
    run = await play(
        LangGraphAgent(agent(["Once ", asyncio.Event()])), cancel_at=lambda event: event.get("delta") == "Once "
    )
    assert (run.record.status, run.text()) == ("cancelled", "Once ")


async def test_it_is_recognised() -> None:
    source = source_of(agent(["hi"]))
    assert isinstance(source, LangGraphAgent)
    assert source.name == "my-graph"
    assert (await play(source)).text() == "hi"


def test_without_the_package_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "langgraph.errors", None)
    monkeypatch.delitem(sys.modules, "headwater.sources.langgraph")
    with pytest.raises(MissingExtra, match=r"pip install 'headwater\[langgraph\]'"):
        import headwater.sources.langgraph  # noqa: F401
