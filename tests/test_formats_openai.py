"""A run as OpenAI's APIs tell it: tables of events, numbers that never change, and objects that equal their streams."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import omit
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from openai.types.responses import Response
from openai.types.responses.response_stream_event import ResponseStreamEvent
from pydantic import TypeAdapter

from headwater.agui import (
    CustomEvent,
    TokenUsage,
    custom,
    decode,
    encode,
    run_cancelled,
    run_error,
    run_finished,
    run_started,
    stamped,
)
from headwater.errors import BadRequest, Interrupted, StoreUnavailable
from headwater.formats.openai_chat import ChatChunks, ChatFold
from headwater.formats.openai_input import (
    as_items,
    from_messages,
    history,
    listed,
    with_instructions,
    without_instructions,
)
from headwater.formats.openai_responses import REQUEST, ResponseEvents, ResponseFold, WholeResponse
from headwater.model import Message, Offset, Page
from headwater.runs.record import INPUT
from headwater.wire.sse import Decoder, Event

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
NOW = 1_893_456_000_500
USAGE = [
    TokenUsage(model="a", input_tokens=7, output_tokens=2, cached_input_tokens=3),
    TokenUsage(model="b", input_tokens=10, output_tokens=5, reasoning_tokens=4),
]

Run = list[dict[str, Any]]


def begun(*events: dict[str, Any], note: dict[str, Any] | None = None) -> Run:
    instructions = (note or {}).get("instructions")
    asked = "hi" if instructions is None else with_instructions(instructions, as_items("hi"))
    started = [stamped(run_started("t1", "r1"), NOW), CustomEvent(name=INPUT, value=asked)]
    noted = [] if note is None else [CustomEvent(name=REQUEST, value=note)]
    return [*(decode(encode(event)) for event in [*started, *noted]), *events]


def ended(terminal: Any) -> dict[str, Any]:
    return decode(encode(stamped(terminal, NOW + 2000)))


def text(id_: str, *deltas: str, refused_from: int | None = None, **more: Any) -> Run:
    events: Run = [{"type": "TEXT_MESSAGE_START", "messageId": id_, "role": "assistant", **more}]
    for number, delta in enumerate(deltas):
        if number == refused_from:
            events.append(decode(encode(custom("message.refused", messageId=id_))))
        events.append({"type": "TEXT_MESSAGE_CONTENT", "messageId": id_, "delta": delta})
    return [*events, {"type": "TEXT_MESSAGE_END", "messageId": id_}]


def call(id_: str, name: str, *arguments: str, **more: Any) -> Run:
    return [
        {"type": "TOOL_CALL_START", "toolCallId": id_, "toolCallName": name, **more},
        *({"type": "TOOL_CALL_ARGS", "toolCallId": id_, "delta": delta} for delta in arguments),
        {"type": "TOOL_CALL_END", "toolCallId": id_},
    ]


def result(id_: str, content: str) -> dict[str, Any]:
    return {"type": "TOOL_CALL_RESULT", "messageId": f"m{id_}", "toolCallId": id_, "content": content, "role": "tool"}


def thought(id_: str, *sections: Sequence[str]) -> Run:
    events: Run = [{"type": "REASONING_START", "messageId": id_}]
    for number, deltas in enumerate(sections):
        part = f"{id_}.{number}"
        events.append({"type": "REASONING_MESSAGE_START", "messageId": part, "role": "reasoning"})
        events += [{"type": "REASONING_MESSAGE_CONTENT", "messageId": part, "delta": delta} for delta in deltas]
        events.append({"type": "REASONING_MESSAGE_END", "messageId": part})
    return [*events, {"type": "REASONING_END", "messageId": id_}]


DONE = ended(run_finished("t1", "r1", result="Hello", usage=USAGE))

NOTE = {"background": True, "metadata": {"a": "b"}, "instructions": "be brief", "previous_response_id": "resp_r0"}
EVENTS: Run = [
    {"type": "STEP_STARTED", "stepName": "Bot"},
    *thought("r1.1", ["Think", "ing"], ["more"]),
    *text("r1.2", "Let me ", "see\u2028."),
    *call("c1", "search", '{"q":', '"x"}'),
    *call("c2", "inner", "{}"),
    decode(encode(custom("tool.started", toolCallId="c1"))),
    {"type": "SUBAGENT_STARTED", "subagentRunId": "s1", "name": "inner"},
    *text("s1.1", "never shown", subagentRunId="s1"),
    *call("sc1", "deep", "{}", subagentRunId="s1"),
    result("c2", "in"),
    result("c1", "found"),
    *text("r1.5", "Hel", "lo"),
    {"type": "STEP_FINISHED", "stepName": "Bot"},
    DONE,
]
WHOLE = begun(*EVENTS, note=NOTE)
AS_FUNCTIONS = begun(*EVENTS, note={**NOTE, "tools_as": "function_call"})


def folded(run: Run) -> list[dict[str, Any]]:
    fold = ResponseFold("r1", "bot")
    return [one for event in run for one in fold.feed(event)]


def types(events: list[dict[str, Any]]) -> list[str]:
    return [event["type"].removeprefix("response.") for event in events]


# --- Responses: the table --------------------------------------------------------------------------------------------


def test_a_whole_run_in_the_words_of_the_api() -> None:
    events = folded(WHOLE)
    message = ["output_item.added", "content_part.added", "output_text.delta", "output_text.delta"]
    message += ["output_text.done", "content_part.done", "output_item.done"]
    section = ["reasoning_summary_part.added", "reasoning_summary_text.delta"]
    section_end = ["reasoning_summary_text.done", "reasoning_summary_part.done"]
    called = ["output_item.added", "mcp_call.in_progress", "mcp_call_arguments.delta"]
    answered = ["mcp_call.completed", "output_item.done"]
    assert types(events) == [
        *("created", "queued", "in_progress"),
        "output_item.added",
        *(*section, "reasoning_summary_text.delta", *section_end),
        *(*section, *section_end),
        "output_item.done",
        *message,
        *(*called, "mcp_call_arguments.delta", "mcp_call_arguments.done"),
        *(*called, "mcp_call_arguments.done"),
        *answered * 2,
        *message,
        "completed",
    ]
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    for event in events:
        EVENT.validate_python(event)  # every field that the official types ask for, and of the right type


def test_tools_as_functions_where_the_request_asks_for_it() -> None:
    events = folded(AS_FUNCTIONS)
    arguments = "function_call_arguments"
    tools = [
        type_ for type_, event in zip(types(events), events, strict=True) if event.get("output_index") in range(2, 6)
    ]
    assert tools == [
        *("output_item.added", f"{arguments}.delta", f"{arguments}.delta", f"{arguments}.done", "output_item.done"),
        *("output_item.added", f"{arguments}.delta", f"{arguments}.done", "output_item.done"),
        *("output_item.added", "output_item.done") * 2,
    ]
    for event in events:
        EVENT.validate_python(event)
    call = {"type": "function_call", "status": "completed"}
    output = {"type": "function_call_output", "status": "completed"}
    assert events[-1]["response"]["output"][2:6] == [
        {**call, "id": "fc_c1", "call_id": "c1", "name": "search", "arguments": '{"q":"x"}'},
        {**call, "id": "fc_c2", "call_id": "c2", "name": "inner", "arguments": "{}"},
        {**output, "id": "fco_c2", "call_id": "c2", "output": "in"},
        {**output, "id": "fco_c1", "call_id": "c1", "output": "found"},
    ]


def test_a_tool_that_never_answered() -> None:
    events = folded(begun(*call("c1", "search", "{}"), ended(run_cancelled("t1", "r1"))))
    assert types(events)[-3:] == ["mcp_call.failed", "output_item.done", "cancelled"]
    [item] = events[-1]["response"]["output"]
    assert (item["status"], item["output"]) == ("incomplete", None)
    for event in events[:-1]:
        EVENT.validate_python(event)


def test_the_response_at_the_end() -> None:
    response = folded(WHOLE)[-1]["response"]
    Response.model_validate(response)
    told = {name: response[name] for name in ("id", "status", "model", "background", "metadata", "instructions")}
    assert told == {
        "id": "resp_r1",
        "status": "completed",
        "model": "bot",
        "background": True,
        "metadata": {"a": "b"},
        "instructions": "be brief",
    }
    assert (response["created_at"], response["completed_at"]) == (NOW // 1000, NOW // 1000 + 2)
    assert response["previous_response_id"] == "resp_r0"
    assert response["usage"] == {
        "input_tokens": 17,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": 7,
        "output_tokens_details": {"reasoning_tokens": 4},
        "total_tokens": 24,
    }
    spoken = {"type": "output_text", "annotations": [], "logprobs": []}
    ran = {"type": "mcp_call", "server_label": "bot", "status": "completed", "error": None, "approval_request_id": None}
    assert response["output"] == [
        {
            "id": "rs_r1.1",
            "type": "reasoning",
            "status": "completed",
            "summary": [{"type": "summary_text", "text": "Thinking"}, {"type": "summary_text", "text": "more"}],
        },
        {
            "id": "msg_r1.2",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{**spoken, "text": "Let me see\u2028."}],
        },
        {**ran, "id": "mcp_c1", "name": "search", "arguments": '{"q":"x"}', "output": "found"},
        {**ran, "id": "mcp_c2", "name": "inner", "arguments": "{}", "output": "in"},
        {
            "id": "msg_r1.5",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{**spoken, "text": "Hello"}],
        },
    ]


def test_what_was_given_out_never_changes() -> None:
    fold = ResponseFold("r1", "bot")
    given_out, as_it_was = [], []
    for event in WHOLE:
        for one in fold.feed(event):
            given_out.append(one)
            as_it_was.append(json.dumps(one))
    assert [json.dumps(one) for one in given_out] == as_it_was


@pytest.mark.parametrize("run", [WHOLE, AS_FUNCTIONS])
def test_the_official_accumulator_agrees_with_the_last_event(run: Run) -> None:
    state: Any = ResponseStreamState(text_format=omit, input_tools=omit)
    for event in folded(run):
        state.handle_event(EVENT.validate_python(event))
    final = state._completed_response
    assert final.output_text == "Let me see\u2028.Hello"
    assert [item.id for item in final.output] == [item["id"] for item in folded(run)[-1]["response"]["output"]]


REFUSAL = [*text("r1.1", "Well, ", "no", ".", refused_from=1)]


@pytest.mark.parametrize(
    ("run", "said", "status", "facts"),
    [
        (begun(DONE), ["created", "in_progress", "completed"], "completed", {"output": []}),
        (begun(DONE, note={}), ["created", "in_progress", "completed"], "completed", {"metadata": {}}),
        (
            begun(DONE, note={"background": True}),
            ["created", "queued", "in_progress", "completed"],
            "completed",
            {"background": True},
        ),
        (
            begun(ended(run_cancelled("t1", "r1"))),
            ["created", "in_progress", "cancelled"],
            "cancelled",
            {"error": None, "completed_at": None, "usage": None},
        ),
        (
            begun(ended(run_error("upstream_cut", "The model's stream was cut off."))),
            ["created", "in_progress", "failed"],
            "failed",
            {"error": {"code": "server_error", "message": "The model's stream was cut off."}},
        ),
        (
            begun(ended(run_error("rate_limited", "Slow down."))),
            ["created", "in_progress", "failed"],
            "failed",
            {"error": {"code": "rate_limit_exceeded", "message": "Slow down."}},
        ),
        (
            begun(ended(run_error("output_guardrail", "Withdrawn."))),
            ["created", "in_progress", "incomplete"],
            "incomplete",
            {"incomplete_details": {"reason": "content_filter"}, "error": None},
        ),
        (
            begun({"type": "RUN_FINISHED", "threadId": "t1", "runId": "r1", "outcome": {"type": "interrupt"}}),
            ["created", "in_progress", "incomplete"],
            "incomplete",
            {"incomplete_details": None},
        ),
        (
            begun(*text("u1", "mine", role="user"), DONE),
            ["created", "in_progress", "completed"],
            "completed",
            {"output": []},
        ),
        ([ended(run_error("internal", "Never began."))], ["created", "in_progress", "failed"], "failed", {}),
    ],
)
def test_how_runs_end(run: Run, said: list[str], status: str, facts: dict[str, Any]) -> None:
    events = folded(run)
    assert types(events) == said
    response = events[-1]["response"]
    assert response["status"] == status
    assert {name: response[name] for name in facts} == facts
    Response.model_validate(response)


def test_a_refusal_is_one_from_its_beginning() -> None:
    events = folded(begun(*REFUSAL, DONE))
    assert types(events)[3:-2] == [
        *("content_part.added", "output_text.delta", "output_text.done", "content_part.done"),
        *("content_part.added", "refusal.delta", "refusal.delta", "refusal.done", "content_part.done"),
    ]
    assert events[-1]["response"]["output"][0]["content"] == [
        {"type": "output_text", "text": "Well, ", "annotations": [], "logprobs": []},
        {"type": "refusal", "refusal": "no."},
    ]
    for event in events:
        EVENT.validate_python(event)


def test_text_that_was_taken_back_is_not_in_the_response() -> None:
    retraction = decode(encode(custom("message.retracted", messageId="r1.1", reason="output_guardrail")))
    run = begun(*text("r1.1", "secret"), retraction, ended(run_error("output_guardrail", "Withdrawn.")))
    [message] = folded(run)[-1]["response"]["output"]
    assert (message["status"], message["content"]) == ("incomplete", [])


def test_parts_that_the_run_left_open_are_closed_before_its_end() -> None:
    run = begun(*text("r1.1", "Hel")[:-1], *call("c1", "search", "{")[:-1], DONE)
    events = folded(run)
    assert types(events)[-6:] == [
        *("content_part.done", "output_item.done"),
        *("mcp_call_arguments.done", "mcp_call.failed", "output_item.done"),
        "completed",
    ]


def test_a_stream_that_does_not_say_how_it_ended_is_a_failure() -> None:
    fold = ResponseFold("r1", "bot")
    for event in begun(*text("r1.1", "Hel")[:-1]):
        fold.feed(event)
    assert types(fold.broken_off())[-1] == "failed"
    assert fold.response()["error"] == {"code": "server_error", "message": Interrupted().said}
    assert fold.broken_off() == []


@pytest.mark.parametrize("count", range(1, len(WHOLE)))
def test_the_status_on_the_way(count: int) -> None:
    fold = ResponseFold("r1", "bot")
    for event in WHOLE[:count]:
        fold.feed(event)
    assert fold.response()["status"] == ("queued" if count <= 3 else "in_progress")
    Response.model_validate(fold.response())
    if count != 2:  # never seen: what the third says comes in the same append
        assert fold.input == ([{"role": "user", "content": "hi"}] if count > 2 else [])


# --- numbers that never change ---------------------------------------------------------------------------------------


def messages(run: Run) -> list[Message]:
    return [Message(json.dumps(event).encode(), Offset(0, place), NOW) for place, event in enumerate(run, start=1)]


def paged(run: Run, *cuts: int) -> list[Page]:
    """The run in pages that end at `cuts`."""
    log, pages, start = messages(run), [], 0
    for cut in sorted({*cuts, len(log)}):
        closed = cut == len(log)
        pages.append(Page(log[start:cut], Offset(0, start), Offset(0, cut), closed, closed, "completed"))
        start = cut
    return pages


def rendered(format_: Any, pages: list[Page]) -> bytes:
    return b"".join([format_.opening, *map(format_.render, pages), format_.ending(pages[-1])])


def responses(after: int = -1) -> ResponseEvents:
    return ResponseEvents(ResponseFold("r1", "bot"), after)


def chunks(after: int = -1) -> ChatChunks:
    return ChatChunks(ChatFold("r1", "bot", include_usage=True), after)


def read(body: bytes) -> list[Event]:
    return Decoder().feed(body)


@pytest.mark.parametrize("make", [responses, chunks])
@given(cuts=st.lists(st.integers(0, len(WHOLE))))
def test_pages_do_not_matter(make: Any, cuts: list[int]) -> None:
    assert rendered(make(), paged(WHOLE, *cuts)) == rendered(make(), paged(WHOLE))


@pytest.mark.parametrize("make", [responses, chunks])
@given(length=st.integers(0, len(WHOLE)))
def test_a_prefix_gives_a_prefix(make: Any, length: int) -> None:
    """Who reads while the run goes on sees what everybody sees later."""
    whole = rendered(make(), paged(WHOLE))
    early = make()
    begin = early.opening + b"".join(map(early.render, paged(WHOLE[:length])))
    assert whole.startswith(begin)
    assert begin + b"".join(map(early.render, paged(WHOLE, length)[1:])) + early.ending(paged(WHOLE)[-1]) == whole


@pytest.mark.parametrize("make", [responses, chunks])
def test_resuming_after_each_number_gives_the_rest(make: Any) -> None:
    whole = [event for event in read(rendered(make(), paged(WHOLE))) if event.data != "[DONE]"]
    assert [event.id for event in whole] == [str(number) for number in range(len(whole))]
    for number in range(len(whole)):
        rest = [event for event in read(rendered(make(number), paged(WHOLE))) if event.data != "[DONE]"]
        assert rest == whole[number + 1 :]


def test_each_event_is_named_numbered_and_on_one_line() -> None:
    body = rendered(responses(), paged(WHOLE))
    assert body.startswith(b": open\nid: 0\nevent: response.created\ndata:{")
    for block in body.removeprefix(b": open\n").removesuffix(b"\n\n").split(b"\n\n"):
        assert [line.split(b":")[0] for line in block.split(b"\n")] == [b"id", b"event", b"data"]
    assert b"\xe2\x80\xa8" not in body  # some clients would split there
    for event in read(body):
        assert json.loads(event.data)["type"] == event.event
        assert json.loads(event.data)["sequence_number"] == int(event.id)


def test_readers_never_share_what_was_rendered() -> None:
    for format_ in (responses(), chunks(), WholeResponse(ResponseFold("r1", "bot"))):
        assert (format_.key, format_.folds) == (None, True)


def test_the_whole_response_is_the_last_event_and_nothing_before() -> None:
    format_ = WholeResponse(ResponseFold("r1", "bot"))
    assert b"".join(map(format_.render, paged(WHOLE, 3, 9))) == b""
    body = format_.heartbeat * 3 + format_.ending(paged(WHOLE)[-1])
    assert json.loads(body) == folded(WHOLE)[-1]["response"]


@pytest.mark.parametrize("make", [responses, chunks])
def test_an_interruption_is_a_comment_and_the_connection_is_cut(make: Any) -> None:
    assert make().interruption(StoreUnavailable("x")) == b": interrupted: store_unavailable\n"
    assert not make().ends_openly
    assert make().tells_failure


# --- Chat Completions ------------------------------------------------------------------------------------------------


def chat(run: Run, **how: bool) -> tuple[list[dict[str, Any]], ChatFold]:
    fold = ChatFold("r1", "bot", **how)
    return [chunk for event in run for chunk in fold.feed(event)], fold


def test_a_whole_run_as_chunks() -> None:
    said, _ = chat(WHOLE, include_usage=True, show_tools=True)
    for chunk in said:
        ChatCompletionChunk.model_validate(chunk)
        assert {name: chunk[name] for name in ("id", "created", "model")} == {
            "id": "chatcmpl-r1",
            "created": NOW // 1000,
            "model": "bot",
        }
    deltas = [chunk["choices"][0]["delta"] for chunk in said[:-1]]
    assert deltas == [
        {"role": "assistant", "content": ""},
        *({"reasoning_content": delta} for delta in ("Think", "ing", "more")),
        {"content": "Let me "},
        {"content": "see\u2028."},
        {"tool_calls": [_called(0, "c1", "search")]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '{"q":'}}]},
        {"tool_calls": [{"index": 0, "function": {"arguments": '"x"}'}}]},
        {"tool_calls": [_called(1, "c2", "inner")]},
        {"tool_calls": [{"index": 1, "function": {"arguments": "{}"}}]},
        {"content": "\n\nHel"},
        {"content": "lo"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in said[:-1]] == [None] * (len(said) - 2) + ["stop"]
    assert (said[-1]["choices"], said[-1]["usage"]["total_tokens"]) == ([], 24)
    assert {chunk["usage"] for chunk in said[:-1]} == {None}
    assert "usage" not in chat(WHOLE)[0][-1]
    assert [chunk for chunk in chat(WHOLE)[0] if "tool_calls" in chunk["choices"][0]["delta"]] == []


def _called(index: int, id_: str, name: str) -> dict[str, Any]:
    return {"index": index, "id": id_, "type": "function", "function": {"name": name, "arguments": ""}}


def test_the_completion_is_what_its_chunks_add_up_to() -> None:
    said, fold = chat(WHOLE, include_usage=True, show_tools=True)
    completion = ChatCompletion.model_validate(fold.completion())
    state: Any = ChatCompletionStreamState()
    for chunk in said:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    added = state.get_final_completion()
    assert added.choices[0].message.content == completion.choices[0].message.content == "Let me see\u2028.\n\nHello"
    assert [(one.id, one.function.arguments) for one in added.choices[0].message.tool_calls] == [
        (one.id, one.function.arguments)
        for one in completion.choices[0].message.tool_calls or []
        if one.type == "function"
    ]
    assert (added.usage, added.choices[0].finish_reason) == (completion.usage, "stop")


@pytest.mark.parametrize(
    ("terminal", "code"),
    [
        (run_error("upstream_cut", "Cut off."), "upstream_cut"),
        (run_cancelled("t1", "r1"), "cancelled"),
    ],
)
def test_a_failed_run_ends_with_an_error_and_not_as_done(terminal: Any, code: str) -> None:
    run = begun(*text("r1.1", "Hel"), ended(terminal))
    body = rendered(chunks(), paged(run))
    error = json.loads(read(body)[-1].data)["error"]
    assert (error["code"], error["type"], error["param"]) == (code, "server_error", None)
    assert b"[DONE]" not in body
    assert b'"finish_reason":"' not in body


def test_a_chat_without_a_terminal_event_is_a_failure() -> None:
    body = rendered(chunks(), paged(begun(*text("r1.1", "Hel"))))
    assert json.loads(read(body)[-1].data)["error"]["code"] == "interrupted"


def test_a_guardrail_is_a_content_filter() -> None:
    said, fold = chat(begun(*text("r1.1", "x"), ended(run_error("output_guardrail", "Withdrawn."))))
    assert (said[-1]["choices"][0]["finish_reason"], fold.error) == ("content_filter", None)


def test_a_refusal_in_a_chat() -> None:
    said, fold = chat(begun(*text("r1.1", "no", ".", refused_from=0), DONE))
    assert [chunk["choices"][0]["delta"] for chunk in said[1:-1]] == [{"refusal": "no"}, {"refusal": "."}]
    message = fold.completion()["choices"][0]["message"]
    assert (message["content"], message["refusal"]) == (None, "no.")


def test_done_is_the_last_thing() -> None:
    assert rendered(chunks(), paged(WHOLE)).endswith(b"data: [DONE]\n\n")


# --- input -----------------------------------------------------------------------------------------------------------


def test_messages_become_items() -> None:
    assert from_messages(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [
                {"type": "text", "text": "What is it?"},
                {"type": "image_url", "image_url": {"url": "https://a.test/x.png"}},
                {"type": "file", "file": {"file_id": "f1"}},
            ]},
            {"role": "assistant", "content": None, "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ]},
            {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "a cat"}]},
            {"role": "assistant", "content": "A cat."},
        ]
    ) == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [
            {"type": "input_text", "text": "What is it?"},
            {"type": "input_image", "image_url": "https://a.test/x.png", "detail": "auto"},
            {"type": "input_file", "file_id": "f1"},
        ]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "a cat"},
        {"role": "assistant", "content": "A cat."},
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ("hi", "messages[0]"),
        ({"content": "hi"}, "messages[0].role"),
        ({"role": "function", "content": "hi"}, "messages[0].role"),
        ({"role": ["user"], "content": "hi"}, "messages[0].role"),
        ({"role": "tool", "content": "hi"}, "messages[0].role"),
        ({"role": "user", "content": None}, "messages[0].content"),
        ({"role": "user", "content": []}, "messages[0].content"),
        ({"role": "user", "content": [{"type": "input_audio"}]}, "messages[0].content[0]"),
        ({"role": "assistant", "content": [1]}, "messages[0].content"),
        ({"role": "assistant", "tool_calls": [{"id": "c1"}]}, "messages[0].tool_calls"),
    ],
)
def test_a_message_that_cannot_be_taken_is_named(message: Any, param: str) -> None:
    with pytest.raises(BadRequest, match=r"messages\[0\]") as raised:
        from_messages([message])
    assert raised.value.detail["param"] == param


@pytest.mark.parametrize("note", [None, {"tools_as": "function_call"}])
def test_the_history_of_a_response_is_input_that_any_model_takes(note: dict[str, Any] | None) -> None:
    calls = [*call("c1", "a", "{}"), result("c1", "1"), *call("c2", "b", "{}")]
    run = begun(*thought("t", ["x"]), *text("m", "Let me see."), *calls, *text("e"), DONE, note=note)
    output = folded(run)[-1]["response"]["output"]
    asked = [{"role": "user", "content": "hi"}]
    assert history(asked, output) == [
        *asked,
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "a", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "1"},
    ]
    assert without_instructions("x", with_instructions("x", asked)) == with_instructions(None, asked) == asked
    assert without_instructions(None, asked) == asked


def test_input_items_have_ids_and_their_long_form() -> None:
    given_items = ["hi", None, 5, [{"role": "assistant", "content": "A"}, {"type": "function_call", "call_id": "c"}]]
    assert [as_items(one) for one in given_items[:3]] == [[{"role": "user", "content": "hi"}], [], []]
    assert listed("r1", given_items[3]) == [
        {
            "id": "msg_r1.in0",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "annotations": [], "text": "A"}],
        },
        {"id": "item_r1.in1", "type": "function_call", "call_id": "c"},
    ]


def test_text_that_was_taken_back_is_not_in_the_completion() -> None:
    retraction = decode(encode(custom("message.retracted", messageId="r1.1", reason="interrupted")))
    run = begun(*text("r1.0", "Well."), *text("r1.1", "Hel"), retraction, *text("r1.2", "Hel", "lo"), DONE)
    fold = ChatFold("r1", "bot")
    for event in run:
        fold.feed(event)
    assert fold.completion()["choices"][0]["message"]["content"] == "Well.\n\nHello"
