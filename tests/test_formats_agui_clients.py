"""formats/agui_events.py and formats/transcript.py: what AG-UI clients are sent, and what TanStack AI keeps of it."""

import json
from typing import Any

import pytest
from ag_ui.core import RunFinishedEvent, RunFinishedInterruptOutcome
from hypothesis import given

from headwater.agui import RETRACTED, WAITING
from headwater.formats.agui_events import HIDDEN, AguiEvents, AguiLines
from headwater.formats.langchain import NOTED
from headwater.formats.openai_responses import REQUEST
from headwater.formats.transcript import Transcript, asked_by, continued, said_in, taken_up
from headwater.model import Message, Page
from headwater.runs.record import INPUT
from headwater.wire.sse import Decoder
from random_runs import RUN, messages, runs


@given(runs())
def test_the_events_as_they_are_but_for_the_input(run: list[Message]) -> None:
    page = Page(run, run[0].offset._replace(position=0), run[-1].offset, True, True)
    told = [(event.id, json.loads(event.data)) for event in Decoder().feed(AguiEvents().render(page))]
    assert told == [(str(one.offset), json.loads(one.data)) for one in run if b"run.input" not in one.data]
    lines = [json.loads(line) for line in AguiLines().render(page).split(b"\n") if line]
    assert lines == [{"id": id_, "chunk": event} for id_, event in told]


def test_what_is_hidden_is_what_others_write() -> None:
    assert {INPUT, REQUEST, NOTED, WAITING} == HIDDEN
    other = [
        {"type": "CUSTOM", "name": "mine", "value": "run.input"},
        {"type": "TEXT_MESSAGE_CONTENT", "delta": '"CUSTOM"'},
    ]
    page = Page(messages(*other), messages()[0].offset, messages()[0].offset, True, True)
    assert len(Decoder().feed(AguiEvents().render(page))) == 3


def kept(*events: dict[str, Any]) -> list[Any]:
    transcript = Transcript()
    for message in messages(*events):
        transcript.feed(message.data)
    return transcript.messages


def text(id_: str, delta: str) -> list[dict[str, Any]]:
    return [
        {"type": "TEXT_MESSAGE_START", "messageId": id_, "role": "assistant"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": id_, "delta": delta[:1]},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": id_, "delta": delta[1:]},
        {"type": "TEXT_MESSAGE_END", "messageId": id_},
    ]


CALL: list[dict[str, Any]] = [
    {"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": "look", "parentMessageId": "m0"},
    {"type": "TOOL_CALL_ARGS", "toolCallId": "c", "delta": "{}"},
    {"type": "TOOL_CALL_END", "toolCallId": "c"},
    {"type": "TOOL_CALL_RESULT", "messageId": "x", "toolCallId": "c", "content": '{"a":1}'},
]
CALLED = [
    {"type": "tool-call", "id": "c", "name": "look", "arguments": "{}", "state": "complete", "output": {"a": 1}},
    {"type": "tool-result", "toolCallId": "c", "content": '{"a":1}', "state": "complete"},
]
THOUGHT = {"type": "REASONING_MESSAGE_CONTENT", "messageId": "r", "delta": "hm"}


def test_a_call_before_any_text_is_of_the_first() -> None:
    parts = [{"type": "thinking", "content": "hm"}, *CALLED, {"type": "text", "content": "ok"}]
    assert kept(THOUGHT, *CALL, *text("m1", "ok")) == [{"id": "m1", "role": "assistant", "parts": parts}]


def test_a_call_behind_a_text_is_of_that() -> None:
    assert kept(*text("m1", "so"), *CALL, *text("m2", "ok")) == [
        {"id": "m1", "role": "assistant", "parts": [{"type": "text", "content": "so"}, *CALLED]},
        {"id": "m2", "role": "assistant", "parts": [{"type": "text", "content": "ok"}]},
    ]


def test_a_call_that_never_ended_and_an_output_that_is_no_json() -> None:
    assert kept(*CALL[:2])[0]["parts"] == [{"type": "tool-call", "id": "c", "name": "look", "arguments": "{}"}]
    assert kept(*CALL[:3], CALL[3] | {"content": "{x"})[0]["parts"][0]["output"] == "{x"


def test_what_was_taken_back_or_is_of_a_subagent_is_not_kept() -> None:
    taken_back = {"type": "CUSTOM", "name": RETRACTED, "value": {"messageId": "m1", "reason": "output_guardrail"}}
    inner = [event | {"subagentRunId": "s"} for event in text("m9", "inner")]
    assert kept(*inner, *text("m1", "bad"), taken_back) == []


@given(runs())
def test_any_run_has_a_transcript(run: list[Message]) -> None:
    transcript = Transcript()
    for message in run:
        transcript.feed(message.data)
    events = [json.loads(message.data) for message in run]
    named = [event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_START"]
    parts = [part for message in transcript.messages for part in message["parts"]]
    assert [part["id"] for part in parts if part["type"] == "tool-call"] == named
    assert RUN in events[0]["runId"]


def test_what_was_asked_is_what_follows_the_last_answer() -> None:
    said = [
        {"id": "1", "role": "user", "content": "a"},
        {"id": "2", "role": "assistant", "content": "b"},
        {"id": "3", "role": "user", "content": "c"},
        {"id": "4", "role": "user", "content": [{"type": "text", "text": "d"}, {"type": "image", "source": {}}]},
    ]
    assert asked_by(said) == [
        {"id": "3", "role": "user", "parts": [{"type": "text", "content": "c"}]},
        {"id": "4", "role": "user", "parts": [{"type": "text", "content": "d"}, {"type": "image", "source": {}}]},
    ]


def test_a_conversation_goes_on_from_what_the_client_had() -> None:
    transcript = [{"id": one} for one in "abcd"]
    assert continued(transcript, ["a", "b", "e"], [{"id": "e"}]) == [{"id": "a"}, {"id": "b"}, {"id": "e"}]
    again = continued(transcript, ["a", "b", "c"], [{"id": "c", "new": 1}])
    assert again == [{"id": "a"}, {"id": "b"}, {"id": "c", "new": 1}]


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


@pytest.mark.parametrize(
    ("asked", "before", "said"),
    [
        ("hi", None, ["hi"]),
        ([user("a"), user("b")], None, ["a", "b"]),
        ([{"role": "system", "content": "s"}, user("a")], None, ["a"]),
        ([user("a"), {"role": "assistant", "content": "x"}, user("b"), user("c")], ["a"], ["b", "c"]),
        (
            [user("a"), {"type": "function_call", "name": "f"}, {"type": "function_call_output"}, user("b")],
            ["a"],
            ["b"],
        ),
        ([user("a"), {"role": "assistant", "content": "x"}], ["a"], []),
        ([], None, []),
        (None, None, []),
        ([5, {"role": "user"}], None, []),
    ],
)
def test_what_the_user_said_is_found_in_a_runs_input(asked: Any, before: list[str] | None, said: list[str]) -> None:
    earlier, new = said_in(asked, "r")
    assert (earlier and [message["parts"][0]["content"] for message in earlier]) == before
    assert [message["parts"] for message in new] == [[{"type": "text", "content": text}] for text in said]
    ids = [message["id"] for message in [*(earlier or []), *new]]
    assert len(set(ids)) == len(ids)


def test_parts_of_what_was_said_as_tanstack_has_them() -> None:
    content = [
        {"type": "input_text", "text": "look"},
        {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
        {"type": "input_image", "image_url": "https://a.example/b.png"},
        {"type": "input_file", "file_url": "https://a.example/c.pdf"},
        {"type": "input_file", "file_id": "only the model can read it"},
        "no part",
    ]
    _, (message,) = said_in([{"role": "user", "content": content}], "r")
    assert message["parts"] == [
        {"type": "text", "content": "look"},
        {"type": "image", "source": {"type": "data", "value": "AAAA", "mimeType": "image/png"}},
        {"type": "image", "source": {"type": "url", "value": "https://a.example/b.png"}},
        {"type": "document", "source": {"type": "url", "value": "https://a.example/c.pdf"}},
    ]


@pytest.mark.parametrize(
    ("before", "length"),
    [
        ([], 0),
        (["a"], 2),
        (["a", "b"], 4),
        (["a", "b", "a"], 6),
        (["b"], 4),  # the input began in the middle
        (["b", "a"], 6),
        (["other", "words"], 4),
        (["more", "than", "there", "is"], 6),
    ],
)
def test_where_a_conversation_is_taken_up(before: list[str], length: int) -> None:
    def message(role: str, text: str) -> dict[str, Any]:
        return {"role": role, "parts": [{"type": "text", "content": text}]}

    transcript = [message(role, text) for text in "aba" for role in ("user", "assistant")]
    assert taken_up(transcript, [message("user", text) for text in before]) == transcript[:length]


# -- runs that wait for people ----------------------------------------------------------------------------------------

ASKED = {"toolCallId": "c", "toolName": "look", "arguments": '{"n": 1}'}
WAITS = {"type": "CUSTOM", "name": "run.waiting", "value": {"threadId": "t", "runId": RUN, "approvals": [ASKED]}}
STARTED = b'{"type":"RUN_STARTED"}'


def page_of(run: list[Message], *, up_to_date: bool = True, closed: bool = False) -> Page:
    return Page(run, run[0].offset._replace(position=0), run[-1].offset, up_to_date, closed)


def test_a_run_that_waits_is_finished_by_an_interrupt() -> None:
    page = page_of(messages(*CALL, WAITS))
    *_, before, last = Decoder().feed(AguiEvents().render(page))
    assert (before.id, last.id) == (str(page.messages[-2].offset), f"{page.next}.0000")
    told = RunFinishedEvent.model_validate_json(last.data)
    assert (told.thread_id, told.run_id) == ("t", RUN)
    assert isinstance(told.outcome, RunFinishedInterruptOutcome)
    (interrupt,) = told.outcome.interrupts
    assert (interrupt.id, interrupt.reason, interrupt.tool_call_id) == (f"{RUN}~c", "approval_required", "c")
    assert interrupt.metadata == {"kind": "approval", "toolName": "look", "input": {"n": 1}}
    line = json.loads(AguiLines().render(page).splitlines()[-1])
    assert line == {"id": last.id, "chunk": json.loads(last.data)}
    assert AguiEvents().pauses(page)
    assert AguiLines().pauses(page)


def test_a_run_that_went_on_or_may_have_is_not_finished() -> None:
    run = messages(*CALL, WAITS)
    gone_on = messages(*CALL, WAITS, *text("m1", "ok"))
    of_another = messages({**WAITS, "value": 5})
    pages = page_of(run, up_to_date=False), page_of(run, closed=True), page_of(gone_on), page_of(of_another)
    for page in pages:
        for format_ in AguiEvents(), AguiLines():
            assert not format_.pauses(page)
            assert b"RUN_FINISHED" not in format_.render(page)
            assert b"run.waiting" not in format_.render(page)


def test_the_rest_of_a_run_begins_with_its_start() -> None:
    after = messages()[0].offset
    events, lines = AguiEvents(), AguiLines()
    events.begin(STARTED, after)
    lines.begin(STARTED, after)
    (event,) = Decoder().feed(events.opening)
    assert (event.id, event.data.encode()) == (str(after), STARTED)
    assert json.loads(lines.opening) == {"id": str(after), "chunk": json.loads(STARTED)}


def test_the_transcript_says_what_was_asked_and_decided() -> None:
    asked = {"type": "CUSTOM", "name": "approval.requested", "value": ASKED}
    made = {"type": "CUSTOM", "name": "approval.decided", "value": {"toolCallId": "c", "approved": False}}
    approval = {"id": f"{RUN}~c", "needsApproval": True}
    (part,) = kept(*CALL[:3], asked)[0]["parts"]
    assert (part["state"], part["approval"]) == ("approval-requested", approval)
    (part,) = kept(*CALL[:3], asked, made)[0]["parts"]
    assert (part["state"], part["approval"]) == ("approval-responded", approval | {"approved": False})
    assert [message["id"] for message in kept(*CALL[:3], asked, made, CALL[3], *text("m1", "ok"))] == ["m0", "m1"]
    assert kept(asked, made) == []
