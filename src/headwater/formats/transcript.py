"""A run as the messages that TanStack AI keeps: what its client holds once it has read the run.

Pure: a fold over the run's AG-UI events by the client's own rules. A text message is a message; tool calls, results and
thoughts are parts of the one that they name or that came last, and where none came yet, the next text is theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import takewhile
from typing import Any

import msgspec

from headwater.agui import APPROVAL_DECIDED, APPROVAL_REQUESTED, RETRACTED, decode
from headwater.formats.pauses import approval_id

Part = dict[str, Any]
Message = dict[str, Any]


class Transcript:
    """The fold."""

    def __init__(self) -> None:
        self._messages: list[Message] = []
        self._run_id = ""
        self._unnamed = False
        """The only message has no text yet: it takes the id of the first."""
        self._parts: dict[str, Part] = {}  # texts and thoughts by message id
        self._calls: dict[str, tuple[Part, Message]] = {}

    def __repr__(self) -> str:
        return f"<Transcript [{len(self._messages)} messages]>"

    @property
    def messages(self) -> list[Message]:
        """Those of the agent so far."""
        return [message for message in self._messages if message["parts"]]

    def feed(self, data: bytes) -> None:
        """Takes the stream's next message."""
        event = decode(data)
        if event.get("subagentRunId"):
            return
        match event["type"]:
            case "TEXT_MESSAGE_START" if event.get("role", "assistant") == "assistant":
                self._start(event["messageId"])
            case "TEXT_MESSAGE_CONTENT" if message := self._known(event["messageId"]):
                self._said(message, "text", event)
            case "REASONING_MESSAGE_CONTENT":
                self._said(self._last(event["messageId"]), "thinking", event)
            case "TOOL_CALL_START":
                self._call(event)
            case "TOOL_CALL_ARGS" if event["toolCallId"] in self._calls:
                self._calls[event["toolCallId"]][0]["arguments"] += event["delta"]
            case "TOOL_CALL_END" if event["toolCallId"] in self._calls:
                self._calls[event["toolCallId"]][0]["state"] = "input-complete"
            case "TOOL_CALL_RESULT" if event["toolCallId"] in self._calls:
                self._result(event)
            case "RUN_STARTED":
                self._run_id = event["runId"]
            case "CUSTOM" if event["name"] == RETRACTED:
                self._retract(event["value"]["messageId"])
            case "CUSTOM" if event["name"] in (APPROVAL_REQUESTED, APPROVAL_DECIDED):
                self._approval(event["value"])

    def _start(self, id_: str) -> None:
        if self._unnamed:
            self._messages[-1]["id"] = id_
            self._unnamed = False
        else:
            self._messages.append({"id": id_, "role": "assistant", "parts": []})

    def _known(self, id_: str | None) -> Message | None:
        return next((message for message in reversed(self._messages) if message["id"] == id_), None)

    def _last(self, id_: str) -> Message:
        if not self._messages:
            self._start(id_)
            self._unnamed = True
        return self._messages[-1]

    def _said(self, message: Message, kind: str, event: Mapping[str, Any]) -> None:
        part = self._parts.get(event["messageId"])
        if part is None:
            part = self._parts[event["messageId"]] = {"type": kind, "content": ""}
            message["parts"].append(part)
        part["content"] += event["delta"]

    def _call(self, event: Mapping[str, Any]) -> None:
        id_, parent = event["toolCallId"], event.get("parentMessageId")
        message = self._known(parent) or self._last(parent or id_)
        part = {"type": "tool-call", "id": id_, "name": event["toolCallName"], "arguments": ""}
        message["parts"].append(part)
        self._calls[id_] = part, message

    def _result(self, event: Mapping[str, Any]) -> None:
        part, message = self._calls[event["toolCallId"]]
        content = event["content"]
        part |= {"state": "complete", "output": _value(content)}
        message["parts"].append(
            {"type": "tool-result", "toolCallId": part["id"], "content": content, "state": "complete"}
        )

    def _approval(self, value: Mapping[str, Any]) -> None:
        """Asked for, or decided on. Where it is asked for, the client's run ends: what is said after it is apart."""
        self._unnamed = False
        if value["toolCallId"] not in self._calls:
            return
        part, _ = self._calls[value["toolCallId"]]
        part["approval"] = {"id": approval_id(self._run_id, value["toolCallId"]), "needsApproval": True}
        part["state"] = "approval-requested"
        if "approved" in value:
            part["approval"]["approved"] = value["approved"]
            part["state"] = "approval-responded"

    def _retract(self, id_: str) -> None:
        message, part = self._known(id_), self._parts.pop(id_, None)
        if message is not None and part is not None:
            message["parts"].remove(part)


def _value(content: str) -> Any:
    try:
        return msgspec.json.decode(content)
    except (msgspec.DecodeError, RecursionError):
        return content


def asked_by(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """What the user said last, out of the `messages` of a RunAgentInput: those after the agent's last one."""
    said: list[Message] = []
    for message in reversed(messages):
        if message.get("role") != "user":
            break
        content = message.get("content")
        parts = [{"type": "text", "content": content}] if isinstance(content, str) else _parts(content)
        said.append({"id": message.get("id"), "role": "user", "parts": parts})
    return said[::-1]


def _parts(content: Any) -> list[Part]:
    """AG-UI's parts of a message as TanStack's, which says `content` for `text`."""
    parts = _parts_of(content)
    return [{"type": "text", "content": part.get("text")} if part.get("type") == "text" else part for part in parts]


def _parts_of(content: Any) -> list[Part]:
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def said_in(given: Any, run_id: str) -> tuple[list[Message] | None, list[Message]]:
    """What the user had said before, by the input of a run, and what they said last.

    None: that is not known, since the input holds no history; what was said before goes on.
    """
    items = [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []
    if isinstance(given, str):
        items = [{"role": "user", "content": given}]
    spoken = [item for item in items if item.get("role") not in ("system", "developer")]
    begin = len(spoken) - sum(1 for _ in takewhile(lambda item: item.get("role") == "user", reversed(spoken)))
    said = [
        (number, {"id": f"{run_id}.u{number}", "role": "user", "parts": parts})
        for number, item in enumerate(spoken)
        if item.get("role") == "user" and (parts := _shown(item.get("content")))
    ]
    before = [message for number, message in said if number < begin] if begin else None
    return before, [message for number, message in said if number >= begin]


def _shown(content: Any) -> list[Part]:
    """Parts of a Responses input message as TanStack's; those that only the model can read are left out."""
    if isinstance(content, str):
        return [{"type": "text", "content": content}]
    return [shown for part in _parts_of(content) if (shown := _shown_part(part)) is not None]


def _shown_part(part: Mapping[str, Any]) -> Part | None:
    match part:
        case {"type": "input_text" | "output_text" | "text", "text": str(text)}:
            return {"type": "text", "content": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {"type": "image", "source": _source(url)}
        case {"type": "input_file", "file_data": str(url)} | {"type": "input_file", "file_url": str(url)}:
            return {"type": "document", "source": _source(url)}
    return None


def _source(url: str) -> Part:
    head, _, value = url.partition(";base64,")
    if not head.startswith("data:"):
        return {"type": "url", "value": url}
    return {"type": "data", "value": value, "mimeType": head.removeprefix("data:")}


def taken_up(transcript: Sequence[Message], before: Sequence[Message]) -> list[Message]:
    """The part of a conversation that goes on where the user had said what is in `before`: at its beginning if that
    says the same, else at the newest place that does (the input began in the middle); with the answers to it."""
    asked = [place for place, message in enumerate(transcript) if message["role"] == "user"]
    said, wanted = [_text(transcript[place]) for place in asked], [_text(message) for message in before]
    ends = [len(wanted), *range(len(said), len(wanted), -1)]
    end = next((end for end in ends if said[end - len(wanted) : end] == wanted), len(wanted))
    return list(transcript[: asked[end]] if end < len(asked) else transcript)


def _text(message: Message) -> str:
    return "\n".join(part["content"] for part in message["parts"] if part["type"] == "text")


def continued(transcript: Iterable[Message], ids: Sequence[str], asked: Iterable[Message]) -> list[Message]:
    """The conversation once `asked` was said: of `transcript` what the client still had then, by its `ids`.

    So a message that was edited, or an answer that was made anew, takes the place of what it replaced.
    """
    new = list(asked)
    known = set(ids) - {message["id"] for message in new}
    return [*(message for message in transcript if message["id"] in known), *new]
