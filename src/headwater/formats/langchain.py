"""A run as LangChain's messages: what a LangGraph thread holds in `values.messages`. Pure.

A fold over the run's AG-UI events. One turn of the model (what it thinks, says and calls) is one `ai` message with the
id of what came first in it; a call's output is a `tool` message. Thoughts are `additional_kwargs.reasoning_content`.
What was said before the run comes from the note of the LangGraph door, or, in a run that was asked for otherwise, from
its input. Left out: what subagents say.

Knows both vocabularies, and the forms in which the SDKs' users write a message.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from headwater.agui import APPROVAL_DECIDED, APPROVAL_REQUESTED, RETRACTED, TOOL_STARTED

NOTED: Final = "langgraph.request"
"""Name of the CUSTOM event behind a run's input that keeps how the LangGraph door was asked: {messages: those before
the run's own, modes, after: the checkpoint it goes on from, digest: of the request}."""

INPUT: Final = "run.input"

Message: TypeAlias = dict[str, Any]
Event: TypeAlias = Mapping[str, Any]

_ROLES: Final = {
    "human": "human", "user": "human", "ai": "ai", "assistant": "ai",
    "system": "system", "developer": "system", "tool": "tool",
}  # fmt: skip


class Change(NamedTuple):
    """What an event did to the messages."""

    kind: Literal["began", "grew", "complete", "removed"]
    message: Message
    chunk: Message | None = None
    """Of `grew`: what was added, as an AIMessageChunk."""


@dataclass(slots=True)
class _Call:
    """A tool call; `arguments` are kept until it ends."""

    name: str
    message: Message
    index: int
    arguments: list[str] = field(default_factory=list)


class LangChainMessages:
    """The fold. `feed` takes decoded events; so does `changes`, and says what each does while it does it."""

    def __init__(self) -> None:
        self.run_id = ""
        self.messages: list[Message] = []
        """All so far, also those before the run's own. To be read, not written."""
        self.note: Mapping[str, Any] = {}
        """That of the LangGraph door, once it has come."""
        self.asked: dict[str, Mapping[str, Any]] = {}
        """Questions to people that are not decided, by tool call id, as the run's events say them."""
        self._open: Message | None = None
        """The message of the model's turn that goes on."""
        self._by_part: dict[str, Message] = {}  # by the ids of texts and thoughts
        self._with_text: set[str] = set()  # ids of messages in which a text has begun: each has one
        self._calls: dict[str, _Call] = {}

    def __repr__(self) -> str:
        return f"<LangChainMessages [{len(self.messages)}]>"

    def feed(self, event: Event) -> None:
        """The run's next event."""
        for _ in self.changes(event):
            pass

    def changes(self, event: Event) -> Iterator[Change]:
        """The same, to be read to its end."""
        match event["type"]:
            case _ if event.get("subagentRunId"):
                return
            case "RUN_STARTED":
                self.run_id = event["runId"]
            case "TEXT_MESSAGE_START" if event.get("role", "assistant") == "assistant":
                yield from self._starts(event["messageId"], text=True)
            case "TEXT_MESSAGE_CONTENT" if message := self._by_part.get(event["messageId"]):
                message["content"] += event["delta"]
                yield Change("grew", message, _chunk(message, content=event["delta"]))
            case "TEXT_MESSAGE_END" if (late := self._by_part.get(event["messageId"])) not in (None, self._open):
                yield Change("complete", late)  # its turn was over before it was
            case "REASONING_MESSAGE_START":
                yield from self._starts(event["messageId"])
            case "REASONING_MESSAGE_CONTENT" if message := self._by_part.get(event["messageId"]):
                more = message["additional_kwargs"]
                more["reasoning_content"] = more.get("reasoning_content", "") + event["delta"]
                thought = {"reasoning_content": event["delta"]}
                yield Change("grew", message, _chunk(message, additional_kwargs=thought))
            case "TOOL_CALL_START" | "TOOL_CALL_ARGS" | "TOOL_CALL_END" | "TOOL_CALL_RESULT":
                yield from self._call(event["type"], event)
            case "RUN_FINISHED" | "RUN_ERROR":
                yield from self._close()
            case "CUSTOM":
                yield from self._custom(event["name"], event.get("value"))

    def _starts(self, id_: str, *, text: bool = False) -> Iterator[Change]:
        """A text or a thought begins: in the turn that goes on, unless what comes is a second text, or comes late."""
        going_on = self._open
        if going_on is None or (text and (going_on["id"] in self._with_text or going_on["tool_calls"])):
            yield from self._close()
            going_on = self._new(id_)
            yield Change("began", going_on)
        if text:
            self._with_text.add(going_on["id"])
        self._by_part[id_] = going_on

    def _new(self, id_: str) -> Message:
        self._open = ai_message(id_)
        self.messages.append(self._open)
        return self._open

    def _close(self) -> Iterator[Change]:
        """The turn is over."""
        if self._open is not None:
            closed, self._open = self._open, None
            yield Change("complete", closed)

    # -- tools ----------------------------------------------------------------------------------------------------

    def _call(self, what: str, event: Event) -> Iterator[Change]:
        id_: str = event["toolCallId"]
        if what == "TOOL_CALL_START":
            yield from self._call_starts(id_, event)
            return
        call = self._calls.get(id_)
        if call is None:
            return
        if what == "TOOL_CALL_ARGS":
            call.arguments.append(event["delta"])
            yield Change("grew", call.message, _call_chunk(call.message, call.index, args=event["delta"]))
        elif what == "TOOL_CALL_END":
            _add_call(call.message, id_, call.name, "".join(call.arguments))
        else:
            yield from self._close()
            answer = tool_message(event["messageId"], id_, call.name, event["content"])
            self.messages.append(answer)
            yield Change("complete", answer)

    def _call_starts(self, id_: str, event: Event) -> Iterator[Change]:
        parent = event.get("parentMessageId")
        message = self._open or self._by_part.get(parent or "")
        if message is None:
            message = self._new(parent or id_)
            yield Change("began", message)
        self._open = message
        index = sum(call.message is message for call in self._calls.values())
        self._calls[id_] = _Call(event["toolCallName"], message, index)
        if parent:
            self._by_part.setdefault(parent, message)
        yield Change("grew", message, _call_chunk(message, index, id=id_, name=event["toolCallName"], args=""))

    # -- what AG-UI has no word for ---------------------------------------------------------------------------------

    def _custom(self, name: str, value: Any) -> Iterator[Change]:
        if name == INPUT:
            self.messages = from_input(value, self.run_id)
        elif name == NOTED:
            self.note, self.messages = value, list(value["messages"])
        elif name == TOOL_STARTED:
            yield from self._close()
        elif name == APPROVAL_REQUESTED:
            yield from self._close()
            self.asked[value["toolCallId"]] = value
        elif name == APPROVAL_DECIDED:
            self.asked.pop(value["toolCallId"], None)
        elif name == RETRACTED and (message := self._by_part.pop(value["messageId"], None)):
            yield from self._retract(message)

    def _retract(self, message: Message) -> Iterator[Change]:
        message["content"] = ""
        message["additional_kwargs"].pop("reasoning_content", None)
        if any(call.message is message for call in self._calls.values()):
            yield Change("complete", message)  # what it called stays
            return
        self.messages = [other for other in self.messages if other is not message]
        self._by_part = {id_: other for id_, other in self._by_part.items() if other is not message}
        self._open = None if self._open is message else self._open
        yield Change("removed", message)


# -- messages -----------------------------------------------------------------------------------------------------


def ai_message(id_: str, content: Any = "") -> Message:
    return {
        "type": "ai", "id": id_, "content": content, "tool_calls": [], "invalid_tool_calls": [],
        "additional_kwargs": {}, "response_metadata": {},
    }  # fmt: skip


def tool_message(id_: str, call_id: str, name: str | None, content: Any) -> Message:
    return {
        "type": "tool", "id": id_, "tool_call_id": call_id, "name": name, "content": content, "status": "success",
        "additional_kwargs": {}, "response_metadata": {},
    }  # fmt: skip


def _chunk(message: Message, *, content: str = "", **more: Any) -> Message:
    return {**ai_message(message["id"], content), "type": "AIMessageChunk", "tool_call_chunks": [], **more}


def _call_chunk(message: Message, index: int, **said: Any) -> Message:
    part = {"type": "tool_call_chunk", "index": index, "id": None, "name": None, **said}
    return _chunk(message, tool_call_chunks=[part])


def _add_call(message: Message, id_: str, name: str, arguments: str) -> None:
    """As LangChain has it: a call whose arguments are no JSON object is an invalid one."""
    try:
        args = msgspec.json.decode(arguments or "{}")
    except (msgspec.DecodeError, RecursionError):
        args = None
    if isinstance(args, dict):
        message["tool_calls"].append({"type": "tool_call", "id": id_, "name": name, "args": args})
    else:
        wrong = {"type": "invalid_tool_call", "id": id_, "name": name, "args": arguments, "error": None}
        message["invalid_tool_calls"].append(wrong)


def from_input(given: Any, run_id: str) -> list[Message]:
    """The input of a run (a text, or a list of Responses items) as messages."""
    items = [{"role": "user", "content": given}] if isinstance(given, str) else given
    messages: list[Message] = []
    for number, item in enumerate(item for item in _list(items) if isinstance(item, dict)):
        id_ = f"{run_id}.input.{number}"
        role = _ROLES.get(str(item.get("role")))
        if role == "ai":
            messages.append(ai_message(id_, _content(item.get("content"))))
        elif role is not None:
            messages.append({"type": role, "id": id_, "content": _content(item.get("content"))})
        elif item.get("type") == "function_call":
            message = messages[-1] if messages and messages[-1]["type"] == "ai" else ai_message(id_)
            _add_call(message, str(item.get("call_id")), str(item.get("name")), str(item.get("arguments") or "{}"))
            if not messages or messages[-1] is not message:
                messages.append(message)
        elif item.get("type") == "function_call_output":
            messages.append(tool_message(id_, str(item.get("call_id")), None, _content(item.get("output"))))
    return messages


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _content(content: Any) -> Any:
    if not isinstance(content, list):
        return content if isinstance(content, str) else ""
    return [_part(part) for part in content if isinstance(part, dict)]


def _part(part: Message) -> Message:
    if part.get("type") in ("input_text", "output_text"):
        return {"type": "text", "text": part.get("text", "")}
    if part.get("type") == "input_image":
        return {"type": "image_url", "image_url": {"url": part.get("image_url")}}
    return part


# -- as users write them ----------------------------------------------------------------------------------------------


def coerced(given: Any, id_: str) -> list[Message]:
    """`messages` as LangChain takes them: one or several; texts, pairs of role and text, objects with `type` or `role`,
    serialised ones. Those without an id get one that begins with `id_`. Raises ValueError, TypeError or KeyError.
    """
    several = given if isinstance(given, list) and not _is_pair(given) else [given]
    return [_coerced(one, f"{id_}.{number}") for number, one in enumerate(several)]


def _is_pair(given: Any) -> bool:
    return (
        isinstance(given, list)
        and len(given) == 2
        and all(isinstance(one, str) for one in given)
        and (given[0] in _ROLES)
    )


def _coerced(one: Any, id_: str) -> Message:
    if isinstance(one, str):
        return {"type": "human", "id": id_, "content": one}
    if _is_pair(one):
        return {"type": _ROLES[one[0]], "id": id_, "content": one[1]}
    if not isinstance(one, dict):
        raise TypeError("a message is a text or an object")
    if one.get("lc") == 1:  # JSON.stringify of a message object
        one = {**one["kwargs"], "type": one["id"][-1]}
    kind = str(one.get("type") or one["role"])
    role = _ROLES.get(kind.removesuffix("Chunk").removesuffix("Message").lower())
    if role is None:
        raise ValueError(f"there is no message of type {kind[:40]!r}")
    bare = {name: value for name, value in one.items() if name not in ("role", "type", "id")}
    return {"type": role, "id": str(one.get("id") or id_), "content": "", **bare}


def added(messages: Iterable[Message], more: Sequence[Message]) -> list[Message]:
    """LangGraph's `add_messages`: one with an id that is there already takes its place."""
    new = {message["id"]: message for message in more}
    kept = [new.pop(message["id"], message) for message in messages]
    return [*kept, *(message for message in more if message["id"] in new)]
