"""formats/ai_sdk.py and formats/projection.py: the chunks of a run, what each version takes, and exact resumption."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.agui import RETRACTED, TOOL_PROGRESS
from headwater.errors import BadOffset, Draining
from headwater.formats.ai_sdk import NO_OUTPUT, NOT_JSON, UiMessageChunks, started
from headwater.formats.projection import Place, ProjectedEvents, parse_id
from headwater.model import Message, Offset, Page
from headwater.runs.record import INPUT
from headwater.wire.sse import Decoder, Event
from random_runs import RUN, messages, runs

SHARED = Path(os.environ.get("HEADWATER_SHARED") or Path(__file__).parents[2] / "shared")
FIELDS_FILE = SHARED / "data" / "vercel_chunk_fields.json"
FIELDS: dict[str, Any] = json.loads(FIELDS_FILE.read_text()) if FIELDS_FILE.exists() else {}

VERSIONS = (5, 6, 7)
TAKEN_BY = {5: ("5.0.0", "5.0.277"), 6: ("5.0.277", "6.0.0", "6.0.326", "7.0.173"), 7: ("7.0.173",)}
"""What we speak -> the releases that take it."""

FINISHED = {"type": "RUN_FINISHED", "threadId": "t", "runId": RUN, "outcome": {"type": "success"}}
START = {"type": "start", "messageId": RUN, "messageMetadata": {"runId": RUN, "threadId": "t"}}


def chunks(version: int, *events: dict[str, Any]) -> list[Any]:
    """What a run of `events` becomes, without `start` and with `[DONE]` as None."""
    fold = UiMessageChunks(version)  # type: ignore[arg-type]
    data = [one for message in messages(*events) for one in fold.feed(message.data)]
    made = [None if one == b"[DONE]" else json.loads(one) for one in data]
    assert made[0] == START
    return made[1:]


def text(id_: str = "1", *deltas: str) -> list[dict[str, Any]]:
    return [
        {"type": "TEXT_MESSAGE_START", "messageId": f"{RUN}.{id_}", "role": "assistant"},
        *({"type": "TEXT_MESSAGE_CONTENT", "messageId": f"{RUN}.{id_}", "delta": delta} for delta in deltas),
        {"type": "TEXT_MESSAGE_END", "messageId": f"{RUN}.{id_}"},
    ]


def call(id_: str = "c", arguments: str = "", result: str | None = None) -> list[dict[str, Any]]:
    made = [
        {"type": "TOOL_CALL_START", "toolCallId": id_, "toolCallName": "look"},
        {"type": "TOOL_CALL_ARGS", "toolCallId": id_, "delta": arguments},
        {"type": "TOOL_CALL_END", "toolCallId": id_},
    ]
    if result is not None:
        made.append({"type": "TOOL_CALL_RESULT", "messageId": "x", "toolCallId": id_, "content": result})
    return made


def custom(name: str, value: object) -> dict[str, Any]:
    return {"type": "CUSTOM", "name": name, "value": value}


def of_message(id_: str) -> dict[str, Any]:
    return {"headwater": {"messageId": f"{RUN}.{id_}"}}


def kinds(made: list[Any]) -> list[str | None]:
    return [chunk and chunk["type"] for chunk in made]


# --- what becomes of what --------------------------------------------------------------------------------------------


def test_a_text() -> None:
    usage = [{"model": "a", "inputTokens": 1, "outputTokens": 2}, {"model": "b", "outputTokens": 3}]
    assert chunks(6, *text("1", "Hel", "lo"), FINISHED | {"usage": usage}) == [
        {"type": "start-step"},
        {"type": "text-start", "id": "1", "providerMetadata": of_message("1")},
        {"type": "text-delta", "id": "1", "delta": "Hel"},
        {"type": "text-delta", "id": "1", "delta": "lo"},
        {"type": "text-end", "id": "1"},
        {"type": "finish-step"},
        {
            "type": "finish",
            "finishReason": "stop",
            "messageMetadata": {"status": "completed", "usage": {"inputTokens": 1, "outputTokens": 5}},
        },
        None,
    ]


def test_a_tool_call_and_what_is_said_after_it_is_another_step() -> None:
    made = chunks(6, *call(arguments='{"q": 1}', result='{"a": 2}'), *text("2", "ok"), FINISHED)
    assert made[1:5] == [
        {"type": "tool-input-start", "toolCallId": "c", "toolName": "look"},
        {"type": "tool-input-delta", "toolCallId": "c", "inputTextDelta": '{"q": 1}'},
        {"type": "tool-input-available", "toolCallId": "c", "toolName": "look", "input": {"q": 1}},
        {"type": "tool-output-available", "toolCallId": "c", "output": {"a": 2}},
    ]
    assert kinds(made)[5:8] == ["finish-step", "start-step", "text-start"]


def test_calls_of_one_response_are_one_step() -> None:
    both = [*call("a"), *call("b"), call("a", result="1")[-1], call("b", result="2")[-1]]
    assert kinds(chunks(6, *both, FINISHED)).count("start-step") == 1


def test_a_step_does_not_end_while_a_text_goes_on() -> None:
    begun, *rest = text("1", "so")  # a step's end makes the client forget its open texts
    assert kinds(chunks(6, begun, *call(result="1"), *text("2", "ok"), *rest, FINISHED)).count("start-step") == 1


@pytest.mark.parametrize(
    ("content", "output"), [("plain", "plain"), ("42", "42"), ("[1]", [1]), ("{not json", "{not json")]
)
def test_outputs(content: str, output: object) -> None:
    made = chunks(6, *call(result=content), FINISHED)
    assert [chunk["output"] for chunk in made if chunk and chunk["type"] == "tool-output-available"] == [output]


@pytest.mark.parametrize(("arguments", "input_"), [("", {}), (" ", {}), ('"x"', "x"), ("[1]", [1])])
def test_inputs(arguments: str, input_: object) -> None:
    made = chunks(6, *call(arguments=arguments), FINISHED)
    assert [chunk["input"] for chunk in made if chunk and chunk["type"] == "tool-input-available"] == [input_]


def test_arguments_that_are_no_json() -> None:
    said = {"toolCallId": "c", "toolName": "look", "input": '{"q'}
    assert {"type": "tool-input-error", "errorText": NOT_JSON, **said} in chunks(6, *call(arguments='{"q'), FINISHED)
    assert {"type": "tool-input-available", **said} in chunks(5, *call(arguments='{"q'), FINISHED)


def test_reasoning() -> None:
    thought = [
        {"type": "REASONING_START", "messageId": f"{RUN}.1"},
        {"type": "REASONING_MESSAGE_START", "messageId": f"{RUN}.2", "role": "reasoning"},
        {"type": "REASONING_MESSAGE_CONTENT", "messageId": f"{RUN}.2", "delta": "hm"},
        {"type": "REASONING_MESSAGE_END", "messageId": f"{RUN}.2"},
        {"type": "REASONING_END", "messageId": f"{RUN}.1"},
    ]
    assert chunks(6, *thought, FINISHED)[1:4] == [
        {"type": "reasoning-start", "id": "2", "providerMetadata": of_message("2")},
        {"type": "reasoning-delta", "id": "2", "delta": "hm"},
        {"type": "reasoning-end", "id": "2"},
    ]


def test_a_failure_closes_what_is_open_and_says_so() -> None:
    failed = {"type": "RUN_ERROR", "message": "It broke.", "code": "model_failed"}
    assert chunks(6, *call(), failed)[-5:] == [
        {"type": "tool-output-error", "toolCallId": "c", "errorText": NO_OUTPUT},
        {"type": "finish-step"},
        {"type": "message-metadata", "messageMetadata": {"status": "failed", "code": "model_failed"}},
        {"type": "error", "errorText": "It broke."},
        None,
    ]


def test_a_cancelled_run_is_aborted_and_not_finished() -> None:
    made = chunks(6, *text("1", "Hel"), FINISHED | {"outcome": {"type": "cancelled"}})
    assert kinds(made)[-4:] == ["finish-step", "message-metadata", "abort", None]
    assert "finish" not in kinds(made)


def test_calls_that_the_client_is_to_answer_stay_open() -> None:
    outcome = {"type": "success", "pendingToolCallIds": ["c"]}
    made = chunks(6, *call(), FINISHED | {"outcome": outcome})
    assert "tool-output-error" not in kinds(made)
    assert made[-2]["finishReason"] == "tool-calls"


def test_a_run_that_says_nothing_has_no_step() -> None:
    assert kinds(chunks(6, FINISHED)) == ["finish", None]
    assert kinds(chunks(6, {"type": "RUN_ERROR", "message": "no"})) == ["message-metadata", "error", None]


@pytest.mark.parametrize(
    ("event", "chunk"),
    [
        (custom("my.event of/mine", 1), {"type": "data-my-event-of-mine", "data": 1}),
        (custom("…", 1), {"type": "data-custom", "data": 1}),
        (
            custom(TOOL_PROGRESS, {"toolCallId": "c", "fraction": 1}),
            {"type": "data-tool-progress", "id": "c", "data": {"toolCallId": "c", "fraction": 1}},
        ),
        (
            custom("tool.started", {"toolCallId": "c"}),
            {"type": "data-tool-started", "data": {"toolCallId": "c"}, "transient": True},
        ),
        ({"type": "STATE_SNAPSHOT", "snapshot": {"a": 1}}, {"type": "data-state", "id": "state", "data": {"a": 1}}),
        ({"type": "STATE_DELTA", "delta": []}, {"type": "data-state-delta", "data": [], "transient": True}),
        (
            {"type": "ACTIVITY_SNAPSHOT", "messageId": f"{RUN}.4", "activityType": "PLAN", "content": {"a": 1}},
            {"type": "data-activity", "id": "4", "data": {"activityType": "PLAN", "content": {"a": 1}}},
        ),
        (
            {"type": "SUBAGENT_STARTED", "subagentRunId": "s", "name": "helper"},
            {
                "type": "data-subagent",
                "id": "s",
                "data": {"subagentRunId": "s", "name": "helper", "status": "running"},
            },
        ),
        (
            {"type": "TEXT_MESSAGE_CONTENT", "messageId": "x", "delta": "y", "subagentRunId": "s"},
            {
                "type": "data-subagent-event",
                "data": {"type": "TEXT_MESSAGE_CONTENT", "messageId": "x", "delta": "y", "subagentRunId": "s"},
                "transient": True,
            },
        ),
    ],
)
def test_what_has_no_word_of_its_own_is_a_data_part(event: dict[str, Any], chunk: dict[str, Any]) -> None:
    assert chunks(6, event, FINISHED)[0] == chunk


@pytest.mark.parametrize(
    "event",
    [
        custom(INPUT, "secret prompt"),
        custom("openai.request", {}),
        {"type": "MESSAGES_SNAPSHOT", "messages": []},
        {"type": "RAW", "event": {}},
        {"type": "STEP_STARTED", "stepName": "Bot"},
        {"type": "TEXT_MESSAGE_START", "messageId": "u", "role": "user"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "u", "delta": "never started"},
    ],
)
def test_left_out(event: dict[str, Any]) -> None:
    assert kinds(chunks(6, event, FINISHED)) == ["finish", None]


def test_version_7_takes_back_the_step_that_was_retracted() -> None:
    retracted = custom(RETRACTED, {"messageId": f"{RUN}.2", "reason": "output_guardrail"})
    events = [*call("a", result="1"), *text("2", "bad"), *call("b"), retracted, FINISHED]
    data = {"type": "data-message-retracted", "data": retracted["value"]}
    made = chunks(7, *events)
    assert made[made.index(data) - 1] == {"type": "reset-step"}
    assert "tool-output-error" not in kinds(made)  # the client knows of no call any more
    assert "reset-step" not in kinds(chunks(6, *events))
    assert data in chunks(6, *events)
    earlier = [*text("2", "bad"), *call("a", result="1"), *text("3", "good"), retracted, FINISHED]
    assert "reset-step" not in kinds(chunks(7, *earlier))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_retraction_names_the_part_that_it_is_about(version: int) -> None:
    thought = [
        {"type": "REASONING_MESSAGE_START", "messageId": f"{RUN}.1"},
        {"type": "REASONING_MESSAGE_END", "messageId": f"{RUN}.1"},
    ]
    made = chunks(version, *thought, *text("2", "bad"), custom(RETRACTED, {"messageId": f"{RUN}.2"}), FINISHED)
    started = [chunk for chunk in made if chunk and chunk["type"] in ("reasoning-start", "text-start")]
    assert [chunk["providerMetadata"] for chunk in started] == [of_message("1"), of_message("2")]
    (data,) = [chunk["data"] for chunk in made if chunk and chunk["type"] == "data-message-retracted"]
    assert data == started[1]["providerMetadata"]["headwater"]


# --- what holds for every run ----------------------------------------------------------------------------------------


@given(runs(), st.sampled_from(VERSIONS))
def test_any_run_is_what_the_client_takes(run: list[Message], version: int) -> None:
    fold = UiMessageChunks(version)  # type: ignore[arg-type]
    data = [one for message in run for one in fold.feed(message.data)]
    assert data.count(b"[DONE]") == 1
    assert data[-1] == b"[DONE]"
    as_the_client_reads([json.loads(one) for one in data[:-1]])


def as_the_client_reads(made: list[dict[str, Any]]) -> None:
    """The rules of its `processUIMessageStream`, and that nothing is left open."""
    open_: set[tuple[str, str]] = set()
    calls: dict[str, str] = {}
    in_step = False
    assert [chunk["type"] == "start" for chunk in made] == [True, *[False] * (len(made) - 1)]
    assert made[-1]["type"] in ("finish", "abort", "error")
    for chunk in made:
        kind, _, what = chunk["type"].rpartition("-")
        if kind in ("text", "reasoning") and what in ("start", "delta", "end"):
            part = kind, chunk["id"]
            assert in_step
            assert (part in open_) == (what != "start"), chunk
            open_ = open_ | {part} if what != "end" else open_ - {part}
        elif chunk["type"] in ("start-step", "finish-step"):
            assert in_step == (what == "step" and kind == "finish")
            assert not open_
            in_step = not in_step
        elif chunk["type"] == "reset-step":
            open_, calls = set(), {id_: state for id_, state in calls.items() if state == "done"}
        elif kind == "tool-input" and what == "start":
            assert in_step
            assert chunk["toolCallId"] not in calls
            calls[chunk["toolCallId"]] = "streaming"
        elif kind == "tool-input":
            assert calls[chunk["toolCallId"]] == "streaming"
            calls[chunk["toolCallId"]] = "streaming" if what == "delta" else "called"
        elif kind == "tool-output":
            assert calls[chunk["toolCallId"]] == "called"
            calls[chunk["toolCallId"]] = "done"
    assert not open_
    assert not in_step
    assert set(calls.values()) <= {"done"}


@pytest.mark.skipif(not FIELDS, reason=f"{FIELDS_FILE.name} of the shared data is not here (set HEADWATER_SHARED)")
@given(runs(), st.sampled_from(VERSIONS))
def test_any_run_has_only_types_and_fields_that_the_version_knows(run: list[Message], version: int) -> None:
    fold = UiMessageChunks(version)  # type: ignore[arg-type]
    made = [json.loads(one) for message in run for one in fold.feed(message.data) if one != b"[DONE]"]
    for release in TAKEN_BY[version]:
        types = FIELDS[release]["types"]
        for chunk in made:
            name = "data-*" if chunk["type"].startswith("data-") else chunk["type"]
            assert name in types, f"{release} does not know {name}"
            assert chunk.keys() - {"type"} <= types[name].keys(), f"{release}: {chunk}"
            # The vectors take `finishReason` for required where it is an enum; 5.0.0 has none.
            wanted = {field for field, need in types[name].items() if need == "req"} - {"finishReason"}
            assert wanted <= chunk.keys(), f"{release}: {chunk}"


# --- ids and places --------------------------------------------------------------------------------------------------


def page_of(some: list[Message]) -> Page:
    first, last = some[0].offset, some[-1].offset
    return Page(some, first._replace(position=first.position - 1), last, True, False)


def read(run: list[Message], place: Place | None = None, page: int = 1000) -> list[Event]:
    events = ProjectedEvents(UiMessageChunks(7), RUN, place)
    return Decoder().feed(b"".join(events.render(page_of(run[at : at + page])) for at in range(0, len(run), page)))


@given(runs(), st.integers(1, 5))
def test_whoever_resumes_anywhere_gets_the_rest_with_the_same_ids(run: list[Message], page: int) -> None:
    whole = read(run)
    assert read(run, page=page) == whole
    ids = [event.id for event in whole]
    assert ids == sorted(set(ids))
    assert ids[-1] == f"{RUN}~{run[-1].offset}"
    for number, id_ in enumerate(ids, start=1):
        named, place = parse_id(id_)
        assert named == RUN
        assert f"{named}~{place}" == id_
        assert read(run, place, page) == whole[number:]


def test_events_are_on_one_line_whatever_the_text() -> None:
    awkward = "a\u2028b\u2029c\u0085d\r\n"
    events = read(messages(*text("1", awkward), FINISHED))
    assert [json.loads(event.data)["delta"] for event in events if '"text-delta"' in event.data] == [awkward]
    assert not any(end in event.data for event in events for end in "\u2028\u2029\u0085\r\n")


@pytest.mark.parametrize(
    "last_id", ["", "x", "run~5", f"~{Offset(0, 1)}", f"run~{Offset(0, 1)}.", f"run~{Offset(0, 1)}.1"]
)
def test_what_is_no_id_is_refused(last_id: str) -> None:
    with pytest.raises(BadOffset):
        parse_id(last_id)


def test_an_interruption_is_a_comment_only() -> None:
    events = ProjectedEvents(UiMessageChunks(), RUN)
    said = events.opening + events.heartbeat + events.interruption(Draining("gone"))
    assert all(line.startswith((b":", b"retry:")) for line in said.splitlines())
    assert not events.ends_openly
    assert "run" in repr(events)
    assert "0 texts" in repr(UiMessageChunks())


# -- runs that wait for people ----------------------------------------------------------------------------------------

ASKED = {"toolCallId": "c", "toolName": "look", "arguments": '{"n": 1}'}
ASK = [*call(arguments='{"n": 1}'), custom("approval.requested", ASKED)]
WAITS = custom("run.waiting", {"threadId": "t", "runId": RUN, "approvals": [ASKED]})
REQUEST = {"type": "tool-approval-request", "approvalId": f"{RUN}~c", "toolCallId": "c"}
PAUSE = ["finish-step", "finish", None]


def decided(approved: bool, **more: str) -> dict[str, Any]:
    return custom("approval.decided", {"toolCallId": "c", "approved": approved, **more})


def answered(content: str) -> dict[str, Any]:
    return {"type": "TOOL_CALL_RESULT", "messageId": "x", "toolCallId": "c", "content": content}


def test_a_tool_is_asked_for_and_then_runs() -> None:
    made = chunks(7, *ASK, WAITS, decided(True), answered("5"), FINISHED)
    assert made[4] == REQUEST
    assert made[5] == {"type": "tool-approval-response", "approvalId": f"{RUN}~c", "approved": True}
    assert kinds(made)[6:] == ["tool-output-available", "finish-step", "finish", None]
    six = chunks(6, *ASK, WAITS, decided(True), answered("5"), FINISHED)
    said = {"type": "data-approval-decided", "data": {"toolCallId": "c", "approved": True}, "id": "c"}
    assert six == [*made[:5], said, *made[6:]]


def test_a_tool_that_was_denied_has_no_output() -> None:
    made = chunks(7, *ASK, WAITS, decided(False, message="no"), answered("no"), FINISHED)
    assert made[5] == {"type": "tool-approval-response", "approvalId": f"{RUN}~c", "approved": False, "reason": "no"}
    assert made[6] == {"type": "tool-output-denied", "toolCallId": "c"}
    assert kinds(chunks(6, *ASK, decided(False), answered("no"), FINISHED))[6] == "tool-output-denied"


def test_version_5_has_no_approvals_and_does_not_pause() -> None:
    made = chunks(5, *ASK, WAITS, decided(False), answered("no"), FINISHED)
    assert kinds(made)[4:7] == ["data-approval-requested", "data-approval-decided", "tool-output-available"]
    assert made[4]["data"] == ASKED
    assert UiMessageChunks(5).pause() == ()


def test_what_a_subagent_asks_is_a_call_of_the_message() -> None:
    inner = [{**event, "subagentRunId": "s"} for event in call(arguments='{"n": 1}')]
    made = chunks(6, *inner, custom("approval.requested", ASKED), {**answered("5"), "subagentRunId": "s"}, FINISHED)
    assert kinds(made)[4:6] == ["tool-input-available", "tool-approval-request"]
    assert made[4]["input"] == {"n": 1}
    assert kinds(made)[6:8] == ["data-subagent-event", "tool-output-available"]


def standing(run: list[Message], place: Place | None = None) -> tuple[list[Event], bool]:
    """What a reader gets who finds this at the tail of an open stream, and whether that is all."""
    format_ = ProjectedEvents(UiMessageChunks(7), RUN, place)
    page = Page(run, run[0].offset._replace(position=0), run[-1].offset, True, False)
    body = format_.opening + format_.render(page)
    return Decoder().feed(body), format_.pauses(page)


def test_an_answer_that_waits_ends_and_one_that_has_gone_on_never_did() -> None:
    run = messages(*ASK, WAITS, decided(True), answered("5"), FINISHED)
    at = next(number for number, message in enumerate(run, start=1) if b"run.waiting" in message.data)
    waits, over = standing(run[:at])
    assert over
    assert [None if e.data == "[DONE]" else json.loads(e.data)["type"] for e in waits[-3:]] == PAUSE
    assert json.loads(waits[-2].data)["finishReason"] == "tool-calls"
    assert waits[-1].id == f"{RUN}~{run[at - 1].offset}.0000"
    for number, event in enumerate(waits, start=1):
        place = parse_id(str(event.id))[1]
        assert standing(run[:at], place)[0] == waits[number:]
    whole = read(run)
    assert not {event.id for event in waits[-3:]} & {event.id for event in whole}
    assert waits[:-3] == whole[: len(waits) - 3]
    for event in waits[-3:]:
        assert read(run, parse_id(str(event.id))[1]) == whole[len(waits) - 3 :]


def test_the_rest_of_an_answer_begins_with_its_message() -> None:
    run = messages(*ASK, WAITS, decided(True), answered("5"), FINISHED)
    at = next(message.offset for message in run if b"run.waiting" in message.data)
    format_ = ProjectedEvents(UiMessageChunks(7), RUN, Place(at), first=started(RUN, "t"))
    first, *rest = Decoder().feed(format_.opening + format_.render(page_of(run)))
    assert (json.loads(first.data), first.id) == (START, f"{RUN}~{at}")
    assert rest == read(run, Place(at))


@pytest.mark.skipif(not FIELDS, reason="needs the table of chunk fields")
@pytest.mark.parametrize(("version", "release"), [(6, "6.0.0"), (6, "7.0.173"), (7, "7.0.173")])
def test_approvals_have_only_types_and_fields_that_the_version_knows(version: int, release: str) -> None:
    made = chunks(version, *ASK, WAITS, decided(False, message="no"), answered("no"), FINISHED)
    pause = [json.loads(one) for one in UiMessageChunks(version).pause() if one != b"[DONE]"]  # type: ignore[arg-type]
    types = FIELDS[release]["types"]
    for chunk in [*made[:-1], *pause]:
        known = types["data-*" if chunk["type"].startswith("data-") else chunk["type"]]
        assert chunk.keys() - {"type"} <= known.keys(), chunk
