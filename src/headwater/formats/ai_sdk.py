"""The Vercel AI SDK's UI message stream (`useChat`), as a projection of a run's AG-UI events. Pure.

A run is one assistant message whose id is the run's; its metadata are {runId, threadId, status, usage?, code?}, where
`status` comes with the end (completed, cancelled, failed) and `code` says why a run failed. Tool calls are parts of
type `tool-<name>`. What the SDK has no word for becomes a `data-*` part: a CUSTOM event by its name (`tool.progress` is
`data-tool-progress`), the run's state, its activities, its subagents. A text or a thought keeps the id of its message
as providerMetadata {headwater: {messageId}}, by which `data-message-retracted` names it. Left out: how the run was
asked for, MESSAGES_SNAPSHOT, RAW and encrypted reasoning.

A tool that needs an approval is asked for by `tool-approval-request`, and where nothing goes on until somebody has
answered, the answer ends (finishReason `tool-calls`, status `waiting`), since `useChat` answers by its next request.
Version 5 has no such words: there it is a data part, and the answer stays open.

Knows both vocabularies, and which chunks each major version of the SDK takes: its client fails the whole stream at a
chunk type it does not know, and early releases at an unknown field, too. Invariants: `start` comes first, `[DONE]`
last; a part is started before its deltas and ended before the stream is; every tool call ends with an output or an
error (one that stays open makes a thread unusable later).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeAlias

import msgspec

from headwater.agui import (
    APPROVAL_DECIDED,
    APPROVAL_REQUESTED,
    RETRACTED,
    TOOL_PROGRESS,
    TOOL_STARTED,
    decode,
    status_of,
)
from headwater.formats.agui_events import is_hidden
from headwater.formats.pauses import approval_id
from headwater.formats.projection import Projection

__all__ = ["DONE", "SdkVersion", "UiMessageChunks", "started"]

SdkVersion: TypeAlias = Literal[5, 6, 7]
"""5: nothing but what 5.0.0 knows. 6: what 6.0.0 knows, and so do all 6, all 7 and, but for approvals, the newest 5.
7: all."""

DONE: Final = b"[DONE]"

NO_OUTPUT: Final = "The run ended before this tool gave its output."
NOT_JSON: Final = "The arguments of this call are not valid JSON."

Chunk: TypeAlias = dict[str, Any]
Event: TypeAlias = Mapping[str, Any]

_encode: Final = msgspec.json.Encoder().encode
_UNSAFE: Final = re.compile(r"[^A-Za-z0-9_-]+")
_USAGE: Final = ("inputTokens", "outputTokens", "totalTokens", "reasoningTokens", "cachedInputTokens")
_TRANSIENT: Final = frozenset({TOOL_STARTED})


@dataclass(slots=True)
class _Call:
    """A tool call; `arguments` are kept until it ends."""

    name: str
    arguments: list[str] = field(default_factory=list)
    ended: bool = False


class UiMessageChunks(Projection):
    """The fold. Memory grows with the open parts and the arguments of open calls, not with the tokens."""

    def __init__(self, version: SdkVersion = 6) -> None:
        self._version = version
        self._prefix = self._run_id = ""
        self._asked: set[str] = set()
        """Calls that the client knows to wait for an approval."""
        self._denied: set[str] = set()
        self._step = False
        """A step is open."""
        self._answered = False
        """A tool of this step has given its output: what the model says next is another step."""
        self._texts: set[str] = set()
        self._thoughts: set[str] = set()
        self._calls: dict[str, _Call] = {}  # those without an output
        self._begun: set[str] = set()  # texts and calls of this step
        self._by_type: dict[str, Callable[[Event], Iterable[Chunk]]] = {
            "RUN_STARTED": self._started,
            "RUN_FINISHED": self._finished,
            "RUN_ERROR": self._failed,
            "TEXT_MESSAGE_START": self._text_start,
            "TEXT_MESSAGE_CONTENT": self._text_delta,
            "TEXT_MESSAGE_END": self._text_end,
            "REASONING_MESSAGE_START": self._thought_start,
            "REASONING_MESSAGE_CONTENT": self._thought_delta,
            "REASONING_MESSAGE_END": self._thought_end,
            "TOOL_CALL_START": self._call_start,
            "TOOL_CALL_ARGS": self._call_delta,
            "TOOL_CALL_END": self._call_end,
            "TOOL_CALL_RESULT": self._call_result,
            "CUSTOM": self._custom,
            "STATE_SNAPSHOT": lambda event: [_data("state", event.get("snapshot"), id_="state")],
            "STATE_DELTA": lambda event: [_data("state-delta", event.get("delta"), transient=True)],
            "ACTIVITY_SNAPSHOT": self._activity,
            "ACTIVITY_DELTA": lambda event: [_data("activity-delta", _bare(event), transient=True)],
            "SUBAGENT_STARTED": lambda event: [self._subagent(event, "running")],
            "SUBAGENT_FINISHED": lambda event: [self._subagent(event, "completed")],
            "SUBAGENT_ERROR": lambda event: [self._subagent(event, "failed")],
        }

    def __repr__(self) -> str:
        return f"<UiMessageChunks v{self._version} [{len(self._texts)} texts, {len(self._calls)} calls open]>"

    def feed(self, data: bytes) -> Sequence[bytes]:
        event = decode(data)
        name: str = event["type"]
        made = [_encode(chunk) for chunk in self._chunks(name, event)]
        return [*made, DONE] if name in ("RUN_FINISHED", "RUN_ERROR") else made

    def pause(self) -> Sequence[bytes]:
        """The end of an answer that waits for the approval of its tools: `useChat` sends that with its next request."""
        if self._version == 5:  # which has no approvals: its app answers by other ways
            return ()
        step = [{"type": "finish-step"}] if self._step else []
        finish = {"type": "finish", "finishReason": "tool-calls", "messageMetadata": {"status": "waiting"}}
        return [*map(_encode, [*step, finish]), DONE]

    def _chunks(self, name: str, event: Event) -> Iterable[Chunk]:
        if event.get("subagentRunId") and not name.startswith("SUBAGENT_"):
            # What goes on inside a tool: for those who listen (`onData`), but no part of the message. Save for a call
            # that people were asked about: that they have seen.
            result = self._call_result(event) if name == "TOOL_CALL_RESULT" else ()
            return [_data("subagent-event", _bare(event, "type"), transient=True), *result]
        made = self._by_type.get(name)
        return made(event) if made is not None else ()

    # -- the run --------------------------------------------------------------------------------------------------

    def _started(self, event: Event) -> Iterator[Chunk]:
        self._run_id = event["runId"]
        self._prefix = f"{self._run_id}."
        yield _start(self._run_id, event["threadId"])

    def _finished(self, event: Event) -> Iterator[Chunk]:
        outcome = event.get("outcome") or {}
        pending = outcome.get("pendingToolCallIds") or ()
        yield from self._end_parts(pending)
        if status_of(event) == "cancelled":
            yield {"type": "message-metadata", "messageMetadata": {"status": "cancelled"} | _usage(event)}
            yield {"type": "abort"}
            return
        finish: Chunk = {"type": "finish"}
        if self._version > 5:
            finish["finishReason"] = "tool-calls" if pending else "stop"
        yield finish | {"messageMetadata": {"status": "completed"} | _usage(event)}

    def _failed(self, event: Event) -> Iterator[Chunk]:
        yield from self._end_parts()
        status = {"status": "failed", "code": event.get("code") or "internal"}
        yield {"type": "message-metadata", "messageMetadata": status | _usage(event)}
        yield {"type": "error", "errorText": event["message"]}

    def _end_parts(self, pending: Iterable[str] = ()) -> Iterator[Chunk]:
        """What is open when the run ends. Its log has closed all but the calls whose tools never answered."""
        for call_id in [id_ for id_ in self._calls if id_ not in pending]:
            yield {"type": "tool-output-error", "toolCallId": call_id, "errorText": NO_OUTPUT}
        self._calls.clear()
        if self._step:
            yield {"type": "finish-step"}
            self._step = False

    def _in_step(self) -> Iterator[Chunk]:
        """A part of what the model says begins."""
        if self._step and self._answered and not self._texts and not self._thoughts:
            yield {"type": "finish-step"}
            self._step = False
        if not self._step:
            self._step, self._answered = True, False
            self._begun.clear()
            yield {"type": "start-step"}

    # -- texts and thoughts ---------------------------------------------------------------------------------------

    def _short(self, id_: str) -> str:
        """Ids of parts need to be unique within the message only: they stand in every delta."""
        return id_.removeprefix(self._prefix)

    def _text_start(self, event: Event) -> Iterator[Chunk]:
        if event.get("role", "assistant") != "assistant":
            return
        yield from self._in_step()
        id_ = self._short(event["messageId"])
        self._texts.add(id_)
        self._begun.add(id_)
        yield {"type": "text-start", "id": id_, "providerMetadata": _named(event)}

    def _text_delta(self, event: Event) -> Iterator[Chunk]:
        if (id_ := self._short(event["messageId"])) in self._texts:
            yield {"type": "text-delta", "id": id_, "delta": event["delta"]}

    def _text_end(self, event: Event) -> Iterator[Chunk]:
        if (id_ := self._short(event["messageId"])) in self._texts:
            self._texts.discard(id_)
            yield {"type": "text-end", "id": id_}

    def _thought_start(self, event: Event) -> Iterator[Chunk]:
        yield from self._in_step()
        id_ = self._short(event["messageId"])
        self._thoughts.add(id_)
        yield {"type": "reasoning-start", "id": id_, "providerMetadata": _named(event)}

    def _thought_delta(self, event: Event) -> Iterator[Chunk]:
        if (id_ := self._short(event["messageId"])) in self._thoughts:
            yield {"type": "reasoning-delta", "id": id_, "delta": event["delta"]}

    def _thought_end(self, event: Event) -> Iterator[Chunk]:
        if (id_ := self._short(event["messageId"])) in self._thoughts:
            self._thoughts.discard(id_)
            yield {"type": "reasoning-end", "id": id_}

    # -- tool calls -----------------------------------------------------------------------------------------------

    def _call_start(self, event: Event) -> Iterator[Chunk]:
        yield from self._in_step()
        id_, name = event["toolCallId"], event["toolCallName"]
        self._calls[id_] = _Call(name)
        self._begun.add(id_)
        yield {"type": "tool-input-start", "toolCallId": id_, "toolName": name}

    def _call_delta(self, event: Event) -> Iterator[Chunk]:
        id_, delta = event["toolCallId"], event["delta"]
        if (call := self._calls.get(id_)) is not None and not call.ended:
            call.arguments.append(delta)
            yield {"type": "tool-input-delta", "toolCallId": id_, "inputTextDelta": delta}

    def _call_end(self, event: Event) -> Iterator[Chunk]:
        id_ = event["toolCallId"]
        if (call := self._calls.get(id_)) is None or call.ended:
            return
        call.ended = True
        text = "".join(call.arguments)
        call.arguments.clear()
        said: Chunk = {"type": "tool-input-available", "toolCallId": id_, "toolName": call.name}
        try:
            yield said | {"input": msgspec.json.decode(text) if text.strip() else {}}
        except (msgspec.DecodeError, RecursionError):
            if self._version > 5:
                said |= {"type": "tool-input-error", "errorText": NOT_JSON}
            yield said | {"input": text}

    def _call_result(self, event: Event) -> Iterator[Chunk]:
        id_ = event["toolCallId"]
        if self._calls.pop(id_, None) is not None:
            self._answered = True
            if id_ in self._denied:
                yield {"type": "tool-output-denied", "toolCallId": id_}
                return
            yield {"type": "tool-output-available", "toolCallId": id_, "output": _output(event["content"])}

    # -- everything else ------------------------------------------------------------------------------------------

    def _custom(self, event: Event) -> Iterator[Chunk]:
        name: str = event["name"]
        value: Any = event.get("value")
        if is_hidden(event):
            return
        if self._version > 5 and name == APPROVAL_REQUESTED:
            yield from self._ask(value)
            return
        if self._version > 5 and name == APPROVAL_DECIDED and value["toolCallId"] in self._asked:
            yield self._decided(value)
            return
        id_ = value.get("toolCallId") if name == TOOL_PROGRESS else None
        if name == RETRACTED and self._version > 6 and self._short(value["messageId"]) in self._begun:
            yield self._reset_step()
        yield _data(_UNSAFE.sub("-", name).strip("-") or "custom", value, id_=id_, transient=name in _TRANSIENT)

    def _ask(self, asked: Mapping[str, Any]) -> Iterator[Chunk]:
        id_: str = asked["toolCallId"]
        if id_ not in self._calls:  # one of a subagent, which is no part of the message yet
            yield from self._in_step()
            self._calls[id_] = _Call(asked["toolName"], [asked["arguments"]])
            self._begun.add(id_)
            yield from self._call_end({"toolCallId": id_})
        self._asked.add(id_)
        yield {"type": "tool-approval-request", "approvalId": approval_id(self._run_id, id_), "toolCallId": id_}

    def _decided(self, made: Mapping[str, Any]) -> Chunk:
        id_: str = made["toolCallId"]
        if not made["approved"]:
            self._denied.add(id_)
        if self._version < 7:
            return _data("approval-decided", made, id_=id_)
        told = {"approvalId": approval_id(self._run_id, id_), "approved": made["approved"]}
        reason = {"reason": made["message"]} if "message" in made else {}
        return {"type": "tool-approval-response"} | told | reason

    def _reset_step(self) -> Chunk:
        """Takes back all parts of this step; the client then knows of none of them."""
        self._calls = {id_: call for id_, call in self._calls.items() if id_ not in self._begun}
        for known in (self._texts, self._thoughts, self._begun):
            known.clear()
        return {"type": "reset-step"}

    def _activity(self, event: Event) -> Iterator[Chunk]:
        value = {"activityType": event["activityType"], "content": event["content"]}
        yield _data("activity", value, id_=self._short(event["messageId"]))

    def _subagent(self, event: Event, status: str) -> Chunk:
        return _data("subagent", _bare(event) | {"status": status}, id_=event["subagentRunId"])


def started(run_id: str, thread_id: str) -> bytes:
    """The chunk that an answer begins with: it says which message it is, or goes on with."""
    return _encode(_start(run_id, thread_id))


def _start(run_id: str, thread_id: str) -> Chunk:
    metadata = {"runId": run_id, "threadId": thread_id}
    return {"type": "start", "messageId": run_id, "messageMetadata": metadata}


def _named(event: Event) -> Chunk:
    """What a part keeps of the message that it is, so that `data-message-retracted` names it."""
    return {"headwater": {"messageId": event["messageId"]}}


def _data(name: str, data: object, *, id_: str | None = None, transient: bool = False) -> Chunk:
    """A data part. One with an id replaces the earlier one; a transient one is told once and not kept."""
    chunk: Chunk = {"type": f"data-{name}", "data": data}
    if id_ is not None:
        chunk["id"] = id_
    return chunk | {"transient": True} if transient else chunk


def _bare(event: Event, *kept: str) -> Chunk:
    return {name: value for name, value in event.items() if name in kept or name not in ("type", "rawEvent")}


def _output(content: str) -> Any:
    """A tool's output. Objects and lists travel as JSON text in AG-UI; here they are themselves."""
    if content[:1] in ("{", "["):
        try:
            return msgspec.json.decode(content)
        except (msgspec.DecodeError, RecursionError):
            pass
    return content


def _usage(event: Event) -> Chunk:
    """The sum over all models, in the SDK's words."""
    entries = event.get("usage") or ()
    sums = {name: sum(entry.get(name) or 0 for entry in entries) for name in _USAGE}
    return {"usage": {name: count for name, count in sums.items() if count}} if entries else {}
