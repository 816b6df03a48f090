"""http/conversation.py: the messages of chat clients as the input of a run."""

from typing import Any

import pytest

from headwater.errors import BadRequest
from headwater.http.conversation import DENIED, from_agui, from_ui

PICTURE = "data:image/png;base64,AAAA"


def ui(role: str, *parts: dict[str, Any]) -> dict[str, Any]:
    return {"id": "x", "role": role, "parts": list(parts)}


def text(said: str) -> dict[str, Any]:
    return {"type": "text", "text": said}


ASKED = ui("user", text("and now?"))
AND_NOW = {"role": "user", "content": "and now?"}


def called(id_: str, arguments: str, output: str, name: str = "look") -> list[dict[str, Any]]:
    return [
        {"type": "function_call", "call_id": id_, "name": name, "arguments": arguments},
        {"type": "function_call_output", "call_id": id_, "output": output},
    ]


def test_a_single_text_is_a_text() -> None:
    assert from_ui([ui("user", text("a"), text("b"))]) == "a\nb"
    assert from_agui([{"role": "user", "content": "a"}]) == "a"
    assert from_agui([{"role": "user", "content": [text("a")]}]) == "a"


@pytest.mark.parametrize(
    ("part", "items"),
    [
        (text("ok"), [{"role": "assistant", "content": "ok"}]),
        (text(""), []),
        ({"type": "reasoning", "text": "hm"}, []),
        ({"type": "step-start"}, []),
        ({"type": "data-tool-progress", "data": {}}, []),
        (
            {
                "type": "tool-look",
                "toolCallId": "c",
                "state": "output-available",
                "input": {"q": 1},
                "output": {"a": 2},
            },
            called("c", '{"q":1}', '{"a":2}'),
        ),
        (
            {"type": "dynamic-tool", "toolName": "see", "toolCallId": "c", "state": "output-error", "errorText": "no"},
            called("c", "{}", "no", "see"),
        ),
        (
            {
                "type": "tool-look",
                "toolCallId": "c",
                "state": "output-denied",
                "input": {},
                "approval": {"id": "r~c", "approved": False, "reason": "not on a Friday"},
            },
            called("c", "{}", "not on a Friday"),
        ),
        ({"type": "tool-look", "toolCallId": "c", "state": "output-denied", "input": {}}, called("c", "{}", DENIED)),
        ({"type": "tool-look", "toolCallId": "c", "state": "input-available", "input": {}}, []),
        ({"type": "tool-look", "toolCallId": "c", "state": "input-streaming"}, []),
    ],
)
def test_parts_of_an_answer(part: dict[str, Any], items: list[Any]) -> None:
    expected = [*items, AND_NOW] if items else "and now?"
    assert from_ui([ui("assistant", part), ASKED]) == expected


def test_texts_that_the_message_says_were_taken_back_are_left_out() -> None:
    def of(id_: object, said: str) -> dict[str, Any]:
        return text(said) | {"providerMetadata": {"headwater": {"messageId": id_}, "openai": {"itemId": "i"}}}

    gone = {"type": "data-message-retracted", "data": {"messageId": "r.1", "reason": "interrupted"}}
    odd = [gone | {"data": data} for data in (None, "r.2", {"messageId": ["r.2"]})]
    said = [of("r.1", "half"), *odd, gone, of("r.2", "whole"), text("old"), text("odd") | {"providerMetadata": 5}]
    elsewhere = ui("assistant", of("r.1", "of another message"))
    assert from_ui([ui("assistant", *said), elsewhere, ASKED]) == [
        *({"role": "assistant", "content": kept} for kept in ("whole", "old", "odd", "of another message")),
        AND_NOW,
    ]
    assert from_ui([ui("assistant", of("r.1", "half"), gone), ASKED]) == "and now?"


def test_files_of_the_ai_sdk() -> None:
    picture = {"type": "file", "mediaType": "image/png", "url": PICTURE}
    paper = {"type": "file", "mediaType": "application/pdf", "url": "https://x.test/a.pdf", "filename": "a.pdf"}
    assert from_ui([ui("user", text("look"), picture, paper)]) == [
        {
            "role": "user",
            "content": [
                {"type": "input_text", "text": "look"},
                {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
                {"type": "input_file", "file_url": "https://x.test/a.pdf", "filename": "a.pdf"},
            ],
        }
    ]


def test_media_of_ag_ui() -> None:
    inline = {"type": "image", "source": {"type": "data", "value": "AAAA", "mimeType": "image/png"}}
    linked = {"type": "image", "source": {"type": "url", "value": "https://x.test/a.png"}}
    binary = {"type": "binary", "mimeType": "application/pdf", "data": "AAAA"}
    given = from_agui([{"role": "user", "content": [inline, linked, binary]}])
    assert isinstance(given, list)
    assert given[0]["content"] == [
        {"type": "input_image", "image_url": PICTURE, "detail": "auto"},
        {"type": "input_image", "image_url": "https://x.test/a.png", "detail": "auto"},
        {"type": "input_file", "file_data": "data:application/pdf;base64,AAAA"},
    ]


def test_tool_calls_of_ag_ui_go_with_their_results_and_not_without() -> None:
    def call(id_: str) -> dict[str, Any]:
        return {"id": id_, "type": "function", "function": {"name": "look", "arguments": "{}"}}

    history = [
        {"role": "assistant", "content": "so", "toolCalls": [call("a"), call("never")]},
        {"role": "tool", "toolCallId": "a", "content": "seen"},
        {"role": "reasoning", "content": "hm"},
        {"role": "activity", "content": {}},
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": "and now?"},
    ]
    assert from_agui(history) == [
        {"role": "assistant", "content": "so"},
        *called("a", "{}", "seen"),
        {"role": "developer", "content": "Be brief."},
        AND_NOW,
    ]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        {},
        [],
        [1],
        [ui("assistant", text("x"))],
        [ui("user", {"type": "text", "text": 5})],
        [ui("user", {"type": "file", "url": "x"})],
        [{"role": "user"}],
        [{"role": "user", "parts": [3]}],
        [ui("assistant", {"type": 1}), ASKED],
        [ui("assistant", {"type": "tool-x", "state": "output-available"}), ASKED],
        [ui("king", text("x")), ASKED],
        [ui("user")],
    ],
)
def test_what_is_not_of_the_form_is_refused(messages: Any) -> None:
    with pytest.raises(BadRequest):
        from_ui(messages)
