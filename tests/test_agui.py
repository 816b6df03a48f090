"""The event vocabulary: bytes, order rules, terminal events."""

from __future__ import annotations

import json
import runpy
import sys

import pytest
from ag_ui.core import (
    CustomEvent,
    Interrupt,
    ReasoningMessageStartEvent,
    ReasoningStartEvent,
    RunFinishedEvent,
    RunFinishedInterruptOutcome,
    StepFinishedEvent,
    StepStartedEvent,
    SubagentStartedEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)
from ag_ui_validate.pytest_plugin import assert_valid_agui
from hypothesis import given
from hypothesis import strategies as st

from headwater import agui
from headwater.errors import MissingExtra

STARTED = agui.run_started("t", "r")

ASKING = RunFinishedInterruptOutcome(interrupts=[Interrupt(id="i", reason="approval")])


def parts(*events: agui.BaseEvent) -> agui.OpenParts:
    open_parts = agui.OpenParts()
    for event in (STARTED, *events):
        open_parts.feed(event)
    return open_parts


@given(st.text())
def test_the_fast_way_of_content_gives_the_bytes_of_the_slow_one(text: str) -> None:
    event = TextMessageContentEvent(message_id="r.1", delta=text)
    assert json.loads(agui.encode(event)) == json.loads(event.model_dump_json(by_alias=True))
    assert agui.decode(agui.encode(event))["delta"] == text


def test_content_with_more_fields_keeps_them() -> None:
    event = TextMessageContentEvent(message_id="r.1", delta="x", subagent_run_id="s", timestamp=3)
    assert agui.decode(agui.encode(event)) == {
        "type": "TEXT_MESSAGE_CONTENT", "messageId": "r.1", "delta": "x", "subagentRunId": "s", "timestamp": 3
    }  # fmt: skip


def test_encoding_is_compact_camel_case_utf8_without_nulls() -> None:
    assert agui.encode(STARTED) == (b'{"type":"RUN_STARTED","threadId":"t","runId":"r","protocolVersion":"1.0"}')
    assert (
        agui.encode(CustomEvent(name="n", value={"é": None}))
        == '{"type":"CUSTOM","name":"n","value":{"é":null}}'.encode()
    )


@pytest.mark.parametrize("data", [b"", b"[]", b"{}", b'{"type":1}', b"{"])
def test_decode_wants_an_event(data: bytes) -> None:
    with pytest.raises(ValueError):
        agui.decode(data)


@pytest.mark.parametrize(
    ("event", "status"),
    [
        (agui.run_finished("t", "r", result={"a": 1}), "completed"),
        (RunFinishedEvent(thread_id="t", run_id="r"), "completed"),
        (RunFinishedEvent(thread_id="t", run_id="r", outcome=ASKING), "completed"),
        (agui.run_cancelled("t", "r"), "cancelled"),
        (agui.run_error("internal", "no"), "failed"),
    ],
)
def test_a_terminal_event_tells_how_the_run_ended(event: agui.BaseEvent, status: str) -> None:
    decoded = agui.decode(agui.encode(event))
    assert decoded["type"] in agui.TERMINAL
    assert agui.status_of(decoded) == status
    assert_valid_agui([agui.decode(agui.encode(STARTED)), decoded])


def test_other_events_have_no_status() -> None:
    with pytest.raises(ValueError, match="does not end a run"):
        agui.status_of({"type": "STEP_FINISHED"})


def test_usage_is_summed_per_model_and_left_out_where_there_is_none() -> None:
    usage = [agui.TokenUsage(model="m", input_tokens=2, output_tokens=1), agui.TokenUsage(model="m", input_tokens=3)]
    assert agui.decode(agui.encode(agui.run_error("c", "m", usage=usage)))["usage"] == [
        {"model": "m", "inputTokens": 5, "outputTokens": 1}
    ]
    assert "usage" not in agui.decode(agui.encode(agui.run_cancelled("t", "r")))


TEXT = TextMessageStartEvent(message_id="m")
CALL = ToolCallStartEvent(tool_call_id="c", tool_call_name="f")
RESULT = ToolCallResultEvent(message_id="x", tool_call_id="c", content="")
STEP = StepStartedEvent(step_name="s")
DONE = agui.run_finished("t", "r")


@pytest.mark.parametrize(
    "broken",
    [
        (STARTED,),
        (TextMessageContentEvent(message_id="m", delta="x"),),
        (TextMessageEndEvent(message_id="m"),),
        (TEXT, TEXT),
        (TEXT, TextMessageEndEvent(message_id="m"), TEXT),
        (TEXT, TextMessageEndEvent(message_id="m"), TextMessageContentEvent(message_id="m", delta="x")),
        (TEXT, TextMessageContentEvent(message_id="other", delta="x")),
        (TEXT, DONE),
        (CALL, DONE),
        (STEP, DONE),
        (STEP, STEP),
        (ReasoningStartEvent(message_id="m"), DONE),
        (StepFinishedEvent(step_name="s"),),
        (ToolCallArgsEvent(tool_call_id="c", delta="{}"),),
        (RESULT,),
        (CALL, RESULT),
        (CALL, ToolCallEndEvent(tool_call_id="c"), RESULT, RESULT),
        (DONE, DONE),
        (DONE, agui.run_error("c", "m")),
        (agui.run_error("c", "m"), STEP),
    ],
    ids=lambda events: "-".join(event.type.value for event in events),
)
def test_order_violations_are_refused(broken: tuple[agui.BaseEvent, ...]) -> None:
    open_parts = parts(*broken[:-1])
    with pytest.raises(ValueError):
        open_parts.feed(broken[-1])


def test_nothing_comes_before_run_started_but_an_error() -> None:
    with pytest.raises(ValueError, match="before RUN_STARTED"):
        agui.OpenParts().feed(TEXT)
    open_parts = agui.OpenParts()
    open_parts.feed(agui.run_error("internal", "could not start"))
    assert open_parts.terminal == "RUN_ERROR"


def test_a_refused_event_leaves_no_trace() -> None:
    open_parts = parts(TEXT)
    with pytest.raises(ValueError):
        open_parts.feed(DONE)
    assert open_parts.terminal is None
    open_parts.feed(TextMessageEndEvent(message_id="m"))
    open_parts.feed(DONE)
    assert open_parts.terminal == "RUN_FINISHED"


def test_what_is_open_is_closed_from_the_inside_out() -> None:
    opened = [
        STEP,
        SubagentStartedEvent(subagent_run_id="sub", name="helper"),
        TextMessageStartEvent(message_id="m", subagent_run_id="sub"),
        CALL,
        ReasoningStartEvent(message_id="think"),
        ReasoningMessageStartEvent(message_id="think", role="reasoning"),
    ]
    open_parts = parts(*opened)
    closing = open_parts.closing_events()
    assert [event.type.value for event in closing] == [
        "REASONING_MESSAGE_END", "REASONING_END", "TOOL_CALL_END", "TEXT_MESSAGE_END", "SUBAGENT_ERROR", "STEP_FINISHED"
    ]  # fmt: skip
    assert agui.decode(agui.encode(closing[3]))["subagentRunId"] == "sub"
    for event in (*closing, DONE):
        open_parts.feed(event)
    assert open_parts.closing_events() == []
    assert_valid_agui([agui.decode(agui.encode(event)) for event in (STARTED, *opened, *closing, DONE)])


def test_a_stream_read_back_from_a_log_is_tracked_alike() -> None:
    open_parts = agui.OpenParts()
    for event in (STARTED, STEP, TEXT, CALL):
        open_parts.feed(agui.decode(agui.encode(event)))
    assert open_parts.closing_events() == parts(STEP, TEXT, CALL).closing_events()
    assert "TEXT_MESSAGE" in repr(open_parts)
    with pytest.raises(ValueError, match="without messageId"):
        open_parts.feed({"type": "TEXT_MESSAGE_END"})


def test_valid_text_repairs_what_utf8_cannot_hold() -> None:
    assert agui.valid_text("a é 😀") == "a é 😀"
    assert agui.valid_text("\ud83d\ude00") == "😀"
    assert agui.valid_text("caf\udce9!") == "caf\ufffd!"


def test_without_the_package_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ag_ui.core", None)
    with pytest.raises(MissingExtra, match=r"pip install 'headwater\[agents\]'"):
        runpy.run_path(agui.__file__)
