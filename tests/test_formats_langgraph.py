"""formats/langgraph.py and formats/langchain.py: a run as LangGraph's parts, by LangChain's own merging of chunks."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessageChunk

from headwater.agui import APPROVAL_DECIDED, APPROVAL_REQUESTED, RETRACTED, TOOL_PROGRESS, TOOL_STARTED
from headwater.formats.langchain import NOTED, LangChainMessages, added, coerced, from_input
from headwater.formats.langgraph import MODES, LangGraphEvents, state_values
from headwater.formats.projection import Place, parse_id
from headwater.model import Message, Page
from headwater.runs.record import INPUT
from headwater.wire.sse import Decoder, Event
from random_runs import RUN, messages, runs

FINISHED = {"type": "RUN_FINISHED", "threadId": "t", "runId": RUN, "outcome": {"type": "success"}}
ASKED = {"type": "CUSTOM", "name": INPUT, "value": "hi"}
HI = {"type": "human", "id": f"{RUN}.input.0", "content": "hi"}


def read(run: list[Message], modes: Any = MODES, place: Place | None = None, page: int = 100) -> list[Event]:
    events, decoder, told = LangGraphEvents(modes, RUN, place), Decoder(), []
    for at in range(0, len(run), page):
        some = run[at : at + page]
        told += decoder.feed(events.render(Page(some, some[0].offset, some[-1].offset, True, False)))
    return told


def parts(*events: dict[str, Any], modes: Any = MODES) -> list[tuple[str, Any]]:
    """What a run of `events` becomes, without `metadata`."""
    told = [(event.event, json.loads(event.data)) for event in read(messages(*events), modes)]
    assert told[0] == ("metadata", {"run_id": RUN, "thread_id": "t", "attempt": 1})
    return told[1:]


def text(id_: str, *deltas: str, kind: str = "TEXT") -> list[dict[str, Any]]:
    return [
        {"type": f"{kind}_MESSAGE_START", "messageId": id_, "role": "assistant"},
        *({"type": f"{kind}_MESSAGE_CONTENT", "messageId": id_, "delta": delta} for delta in deltas),
        {"type": f"{kind}_MESSAGE_END", "messageId": id_},
    ]


def call(id_: str, arguments: str = "{}", parent: str | None = None) -> list[dict[str, Any]]:
    start = {"type": "TOOL_CALL_START", "toolCallId": id_, "toolCallName": "search"}
    return [
        start | ({"parentMessageId": parent} if parent else {}),
        {"type": "TOOL_CALL_ARGS", "toolCallId": id_, "delta": arguments},
        {"type": "TOOL_CALL_END", "toolCallId": id_},
    ]


def result(id_: str, content: str = "found") -> dict[str, Any]:
    return {"type": "TOOL_CALL_RESULT", "messageId": f"r-{id_}", "toolCallId": id_, "content": content}


def custom(name: str, **value: Any) -> dict[str, Any]:
    return {"type": "CUSTOM", "name": name, "value": value}


def ai(id_: str, content: str = "", **more: Any) -> dict[str, Any]:
    empty = {"tool_calls": [], "invalid_tool_calls": [], "additional_kwargs": {}, "response_metadata": {}}
    return {"type": "ai", "id": id_, "content": content} | empty | more


def folded(*events: dict[str, Any]) -> LangChainMessages:
    fold = LangChainMessages()
    for message in messages(*events):
        fold.feed(json.loads(message.data))
    return fold


def test_a_text_in_each_mode() -> None:
    run = [ASKED, *text("m", "Hel", "lo"), FINISHED]
    told = {"metadata": {"run_id": RUN, "thread_id": "t", "langgraph_node": "agent"}}
    hello = ai("m", "Hello")
    assert parts(*run, modes=["values"]) == [
        ("values", {"messages": [HI]}), ("values", {"messages": [HI, hello]}), ("end", None),
    ]  # fmt: skip
    assert parts(*run, modes=["updates"]) == [("updates", {"agent": {"messages": [hello]}}), ("end", None)]
    assert parts(*run, modes=["messages"]) == [
        ("messages/complete", [HI]), ("messages/metadata", {"m": told}),
        ("messages/partial", [ai("m", "Hel")]), ("messages/partial", [hello]), ("messages/complete", [hello]),
        ("end", None),
    ]  # fmt: skip
    chunks = [
        [ai("m", said, type="AIMessageChunk", tool_call_chunks=[]), told["metadata"]] for said in ("Hel", "lo")
    ]  # fmt: skip
    assert parts(*run, modes=["messages-tuple"]) == [("messages", chunks[0]), ("messages", chunks[1]), ("end", None)]


def test_one_turn_is_one_message() -> None:
    run = [ASKED, *text("th", "hm", kind="REASONING"), *text("m", "I look.")]
    run += [*call("a", '{"q":1}', "m"), *call("b", "[")]
    run += [custom(TOOL_STARTED, toolCallId="a"), result("b"), result("a"), *text("n", "Done"), FINISHED]
    turn = ai(
        "th",
        "I look.",
        additional_kwargs={"reasoning_content": "hm"},
        tool_calls=[{"type": "tool_call", "id": "a", "name": "search", "args": {"q": 1}}],
        invalid_tool_calls=[{"type": "invalid_tool_call", "id": "b", "name": "search", "args": "[", "error": None}],
    )
    told = [name for name, _ in parts(*run, modes=["updates", "values"])]
    assert told == ["values", *["updates", "values"] * 4, "end"]
    kept = folded(*run).messages
    assert kept[:2] == [HI, turn]
    assert [(one["type"], one["id"], one["content"]) for one in kept[2:]] == [
        ("tool", "r-b", "found"), ("tool", "r-a", "found"), ("ai", "n", "Done"),
    ]  # fmt: skip
    indices = [
        piece["index"]
        for name, data in parts(*run, modes=["messages-tuple"])
        if name == "messages"
        for piece in data[0].get("tool_call_chunks", [])
    ]
    assert indices == [0, 0, 1, 1]


def test_the_note_says_what_was_there_before() -> None:
    before = [HI | {"id": "q0"}, ai("m0", "b"), HI | {"id": "q1"}]
    note = custom(NOTED, messages=before, modes=["values"], after="x")
    told = parts(ASKED, note, *text("m", "d"), FINISHED, modes=["values", "custom"])
    assert told == [
        ("values", {"messages": before}), ("values", {"messages": [*before, ai("m", "d")]}), ("end", None),
    ]  # fmt: skip


def test_what_is_taken_back_is_gone() -> None:
    run = [ASKED, *text("m", "Oh"), custom(RETRACTED, messageId="m", reason="x"), *text("n", "No"), FINISHED]
    told = parts(*run, modes=["messages-tuple", "values"])
    assert ("messages", [{"type": "remove", "id": "m", "content": ""}, told[1][1][1]]) in told
    assert told[-2] == ("values", {"messages": [HI, ai("n", "No")]})
    called = folded(ASKED, *text("m", "Oh"), *call("a", "{}", "m"), custom(RETRACTED, messageId="m"))
    (kept,) = called.messages[1:]
    assert (kept["id"], kept["content"], len(kept["tool_calls"])) == ("m", "", 1)


def test_how_a_run_ends() -> None:
    failed = {"type": "RUN_ERROR", "code": "upstream_cut", "message": "It was cut."}
    assert parts(ASKED, *text("m", "Hel"), failed, modes=[]) == [
        ("error", {"error": "upstream_cut", "message": "It was cut."})
    ]
    cancelled = FINISHED | {"outcome": {"type": "cancelled"}}
    assert parts(ASKED, cancelled, modes=["values"]) == [("values", {"messages": [HI]}), ("end", None)]


def test_questions_are_interrupts() -> None:
    asks = [
        custom(APPROVAL_REQUESTED, toolCallId=id_, toolName="search", arguments=arguments)
        for id_, arguments in (("a", '{"q":1}'), ("b", "{"))
    ]
    decided = [custom(APPROVAL_DECIDED, toolCallId=id_, approved=True) for id_ in "ab"]
    run = [ASKED, *call("a", '{"q":1}'), *asks, *decided, FINISHED]
    told = [data.get("__interrupt__", []) for name, data in parts(*run, modes=["values"]) if name == "values"]
    ids = [[ask["id"].removeprefix(f"{RUN}~") for ask in asked] for asked in told]
    assert ids == [[], [], ["a"], ["a", "b"], ["b"], []]
    assert told[3][0]["value"] == {
        "action_requests": [{"name": "search", "args": {"q": 1}}],
        "review_configs": [{"action_name": "search", "allowed_decisions": ["approve", "reject"]}],
    }
    assert told[3][1]["value"]["action_requests"][0]["args"] == "{"
    updates = [data for name, data in parts(*run, modes=["updates"]) if "__interrupt__" in (data or {})]
    assert [len(update["__interrupt__"]) for update in updates] == [1, 2]


def test_everything_else_is_custom() -> None:
    run = [
        ASKED,
        custom(TOOL_PROGRESS, toolCallId="c", fraction=0.5),
        {"type": "STATE_SNAPSHOT", "snapshot": {"a": 1}, "timestamp": 5},
        custom("mine", x=1) | {"subagentRunId": "s"},
        FINISHED,
    ]
    assert parts(*run, modes=["custom"]) == [
        ("custom", {"name": TOOL_PROGRESS, "value": {"toolCallId": "c", "fraction": 0.5}}),
        ("custom", {"name": "state_snapshot", "value": {"snapshot": {"a": 1}}}),
        ("custom", {"name": "mine", "value": {"x": 1}}),
        ("end", None),
    ]


@given(runs())
@settings(max_examples=20)
def test_what_a_client_merges_is_what_the_values_say(run: list[Message]) -> None:
    merged: dict[str, Any] = {}
    partial: dict[str, Any] = {}
    values: dict[str, Any] = {}
    for event in read(run):
        data = json.loads(event.data)
        if event.event == "values":
            values = data
        elif event.event == "messages":
            chunk = data[0]
            if chunk["type"] == "remove":
                merged.pop(chunk["id"], None)  # it may have said nothing yet
            elif chunk["type"] == "tool":
                merged[chunk["id"]] = chunk["content"]
            else:
                piece = AIMessageChunk(**{name: said for name, said in chunk.items() if name != "type"})
                known = merged.get(chunk["id"])
                merged[chunk["id"]] = piece if known is None else known + piece
        elif event.event in ("messages/partial", "messages/complete"):
            partial |= {one["id"]: one["content"] for one in data}
    told = {one["id"]: one for one in values["messages"] if one["type"] != "human"}
    assert merged.keys() <= told.keys()
    for id_, one in merged.items():
        if isinstance(one, str):
            assert told[id_]["content"] == one
            continue
        assert told[id_]["content"] == partial[id_]
        taken_back = not told[id_]["content"] and (told[id_]["tool_calls"] or told[id_]["invalid_tool_calls"])
        assert taken_back or told[id_]["content"] == one.content
        ended = {call["id"]: call["args"] for call in told[id_]["tool_calls"]}
        assert ended.items() <= {call["id"]: call["args"] for call in one.tool_calls}.items()


@given(runs(), st.integers(1, 7), st.sets(st.sampled_from(MODES)))
@settings(max_examples=50)
def test_whoever_resumes_anywhere_gets_the_rest_with_the_same_ids(run: list[Message], page: int, modes: Any) -> None:
    everything, whole = read(run), read(run, modes)
    assert read(run, modes, page=page) == whole
    ids = [event.id for event in everything]
    assert ids == sorted(set(ids))
    assert {event.id for event in whole} <= set(ids), "the same place, whatever was asked for"
    assert ids[-1] == whole[-1].id == f"{RUN}~{run[-1].offset}"
    for number, event in enumerate(whole, start=1):
        assert read(run, modes, parse_id(event.id)[1], page) == whole[number:]


@pytest.mark.parametrize("given_input", [None, "x", [], [5], [{"role": "king"}], {"a": 1}])
def test_any_input_can_be_shown(given_input: Any) -> None:
    assert len(from_input(given_input, RUN)) == (1 if given_input == "x" else 0)


def test_an_input_of_items_as_messages() -> None:
    items = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_image", "image_url": "u"}]},
        {"role": "assistant", "content": "b"},
        {"type": "function_call", "call_id": "c", "name": "search", "arguments": '{"q":1}'},
        {"type": "function_call_output", "call_id": "c", "output": "x"},
    ]
    system, human, said, tool = from_input(items, RUN)
    assert (system["type"], tool["type"], tool["tool_call_id"], tool["content"]) == ("system", "tool", "c", "x")
    assert human["content"] == [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": "u"}}]
    call = {"type": "tool_call", "id": "c", "name": "search", "args": {"q": 1}}
    assert said == ai(f"{RUN}.input.2", "b", tool_calls=[call])


def test_messages_take_the_place_of_those_with_their_id() -> None:
    one, two = coerced(["a", {"role": "assistant", "id": "m", "content": "b"}], "new")
    assert (one["id"], two["type"]) == ("new.0", "ai")
    again = {**one, "content": "c"}
    assert added([one, two], [again, {**one, "id": "other"}]) == [again, two, {**one, "id": "other"}]


def test_the_state_of_a_fold() -> None:
    fold = folded(ASKED, custom(APPROVAL_REQUESTED, toolCallId="a", toolName="search", arguments="{}"))
    assert state_values(fold).keys() == {"messages", "__interrupt__"}
    assert repr(fold) == "<LangChainMessages [1]>"


def test_what_is_past_of_a_long_message_is_not_told_with_each_delta() -> None:
    run = messages(ASKED, *text("m", *["0123456789"] * 3000), FINISHED)
    page = Page(run, run[0].offset, run[-1].offset, True, False)
    told = LangGraphEvents(["messages"], RUN).render(page)
    assert 1024 * 1024 < len(told) < 1.2 * 1024 * 1024
    events = Decoder().feed(told)
    live = read(run, ["messages"], page=1)
    assert len(live) > len(events)
    by_id = {event.id: event for event in live}
    assert [by_id[event.id] for event in events] == events
    partials = [json.loads(event.data)[0]["content"] for event in events if event.event == "messages/partial"]
    assert partials[-1] == "0123456789" * 3000
    for event in (live[5], events[5], events[-3]):
        assert read(run, ["messages"], parse_id(event.id)[1], page=1) == live[live.index(event) + 1 :]
