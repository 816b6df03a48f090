"""A run as one Response of OpenAI's Responses API: its streaming events, its object, its input items. Pure.

`ResponseFold` is fed the events of a run's stream, from the first on, and gives what they become. The same run gives
the same events, ids and `sequence_number`s (0, 1, 2, …) to everyone at any time, since nothing but the log decides
them: so `starting_after=N` is "fold from the start, leave out what is not beyond N", and is exact.

What has no word in that API is left out: steps, handoffs, progress, what agents inside the agent say. A tool that the
agent runs is an `mcp_call`, the API's word for what the server runs itself. Where the request asked for it
(`"tools_as": "function_call"`) it is a `function_call` and a `function_call_output` behind it; that is not the rule,
since agent SDKs take every `function_call` for one that they are to run. A run that a guardrail stopped is `incomplete`
(`content_filter`), with the text that was taken back taken out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

import msgspec

from headwater.agui import REFUSED, RETRACTED, decode
from headwater.errors import HeadwaterError, Interrupted
from headwater.formats.format import Format
from headwater.formats.openai_input import SERVER_CALL_PREFIX, Items, as_items, without_instructions
from headwater.formats.openai_items import (
    CallItem,
    CallOutputItem,
    Event,
    Item,
    MessageItem,
    ReasoningItem,
    ServerCallItem,
)
from headwater.formats.rollup import Piece, RollUp
from headwater.model import Page
from headwater.wire import sse

REQUEST: Final = "openai.request"
"""Name of the CUSTOM event, third in a run that was asked for by this API, whose value is what the Response repeats of
the request: {background?, instructions?, metadata?, previous_response_id?}, and how tools are told: {tools_as?}."""

AS_FUNCTIONS: Final = "function_call"
"""Value of `tools_as`."""

ID_PREFIX: Final = "resp_"

_OPENING: Final = 3
"""RUN_STARTED, the input, and then whatever is third: the Response begins with it."""

_FILTERED: Final = frozenset({"input_guardrail", "output_guardrail"})
_ERROR_CODES: Final = {"rate_limited": "rate_limit_exceeded"}
"""Where the API has a word of its own for a failure; the others are `server_error`."""


class ResponseFold:
    """One run on its way into a Response."""

    def __init__(self, run_id: str, model: str) -> None:
        """`model`: the name of the agent."""
        self.run_id = run_id
        self.status = "queued"
        self.count = 0
        """Events given so far: the next one's `sequence_number`."""
        self._model = model
        self._input: Any = None
        self._note: dict[str, Any] = {}
        self._fed = 0
        self._created = self._completed = 0
        self._error: dict[str, Any] | None = None
        self._incomplete: dict[str, Any] | None = None
        self._usage: dict[str, Any] | None = None
        self._items: list[Item] = []
        self._messages: dict[str, MessageItem] = {}
        self._calls: dict[str, ServerCallItem | CallItem] = {}
        self._reasoning: ReasoningItem | None = None
        self._takes: dict[str, Callable[[Mapping[str, Any]], Iterable[Event]]] = {
            "TEXT_MESSAGE_START": self._message,
            "TEXT_MESSAGE_CONTENT": self._text,
            "TEXT_MESSAGE_END": lambda event: self._closed(self._messages.get(event["messageId"])),
            "TOOL_CALL_START": self._call,
            "TOOL_CALL_ARGS": self._arguments,
            "TOOL_CALL_END": self._asked,
            "TOOL_CALL_RESULT": self._result,
            "REASONING_START": self._thought,
            "REASONING_MESSAGE_START": self._thought,
            "REASONING_MESSAGE_CONTENT": self._thinking,
            "REASONING_MESSAGE_END": self._section_end,
            "REASONING_END": self._thought_end,
            "CUSTOM": self._custom,
            "RUN_FINISHED": self._finished,
            "RUN_ERROR": self._failed,
        }

    def __repr__(self) -> str:
        return f"<ResponseFold {self.run_id} {self.status} [{self.count} events]>"

    @property
    def ended(self) -> bool:
        return self.status not in ("queued", "in_progress")

    @property
    def input(self) -> Items:
        """What the run was given, as items, but for the instructions of the request."""
        return without_instructions(self._note.get("instructions"), as_items(self._input))

    def feed(self, event: Mapping[str, Any]) -> list[Event]:
        """What the run's next event becomes: events of the API, numbered."""
        return [self._numbered(one) for one in self._taken(event)]

    def broken_off(self) -> list[Event]:
        """The stream was closed; where it does not say how the run ended, this does."""
        if self.ended:
            return []
        why = Interrupted()
        return self.feed({"type": "RUN_ERROR", "code": why.code, "message": why.said})

    def response(self) -> dict[str, Any]:
        """The Response as it stands."""
        note = self._note
        fixed = {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "truncation": "disabled"}
        # What belongs to the agent and cannot be asked for here.
        agents_own = dict.fromkeys(("max_output_tokens", "max_tool_calls", "temperature", "top_p", "user"))
        return {
            "id": ID_PREFIX + self.run_id,
            "object": "response",
            "created_at": self._created,
            "status": self.status,
            "background": note.get("background", False),
            "completed_at": self._completed or None,
            "error": self._error,
            "incomplete_details": self._incomplete,
            "instructions": note.get("instructions"),
            "metadata": note.get("metadata") or {},
            "model": self._model,
            "output": [item.body() for item in self._items],
            "previous_response_id": note.get("previous_response_id"),
            "reasoning": {"effort": None, "summary": None},
            "store": True,
            "text": {"format": {"type": "text"}},
            "usage": self._usage,
            **fixed,
            **agents_own,
        }

    # -- from event to events -----------------------------------------------------------------------------------------

    def _numbered(self, event: Event) -> Event:
        numbered = {"type": event["type"], "sequence_number": self.count, **event}
        self.count += 1
        return numbered

    def _taken(self, event: Mapping[str, Any]) -> Iterator[Event]:
        self._fed += 1
        if self._fed == 1:
            self._created = event.get("timestamp", 0) // 1000
        elif self._fed == _OPENING - 1 and event["type"] == "CUSTOM":
            self._input = event.get("value")
        if self._fed == _OPENING or (self._fed < _OPENING and event["type"] in ("RUN_FINISHED", "RUN_ERROR")):
            yield from self._begin(event)
        if self._fed >= _OPENING or self.status != "queued":
            yield from self._told(event)

    def _begin(self, event: Mapping[str, Any]) -> Iterator[Event]:
        if event.get("name") == REQUEST and isinstance(event.get("value"), dict):
            self._note = event["value"]
        background = self._note.get("background", False)
        self.status = "queued" if background else "in_progress"
        yield self._lifecycle("response.created")
        yield self._lifecycle("response.queued" if background else "response.in_progress")

    def _told(self, event: Mapping[str, Any]) -> Iterator[Event]:
        if event.get("name") == REQUEST and event["type"] == "CUSTOM":
            return
        if self.status == "queued":
            self.status = "in_progress"
            yield self._lifecycle("response.in_progress")
        take = self._takes.get(event["type"])
        if take is not None and "subagentRunId" not in event:
            yield from take(event)

    def _lifecycle(self, type_: str) -> Event:
        return {"type": type_, "response": self.response()}

    # -- messages -----------------------------------------------------------------------------------------------------

    def _opened(self, item: Item) -> Iterator[Event]:
        self._items.append(item)
        return item.opened()

    @staticmethod
    def _closed(item: Item | None) -> Iterator[Event]:
        return item.closed() if item is not None else iter(())

    def _message(self, event: Mapping[str, Any]) -> Iterator[Event]:
        if event.get("role", "assistant") != "assistant":
            return iter(())
        id_ = event["messageId"]
        self._messages[id_] = MessageItem(f"msg_{id_}", len(self._items))
        return self._opened(self._messages[id_])

    def _text(self, event: Mapping[str, Any]) -> Iterator[Event]:
        message = self._messages.get(event["messageId"])
        return message.add(event["delta"]) if message is not None else iter(())

    def _custom(self, event: Mapping[str, Any]) -> Iterator[Event]:
        value = event.get("value")
        message = self._messages.get(str(value.get("messageId"))) if isinstance(value, dict) else None
        if message is not None:
            message.refused |= event["name"] == REFUSED
            message.retracted |= event["name"] == RETRACTED
        return iter(())

    # -- tools --------------------------------------------------------------------------------------------------------

    def _call(self, event: Mapping[str, Any]) -> Iterator[Event]:
        id_ = event["toolCallId"]
        index, name = len(self._items), event["toolCallName"]
        if self._note.get("tools_as") == AS_FUNCTIONS:
            self._calls[id_] = CallItem(f"fc_{id_}", index, id_, name)
        else:
            self._calls[id_] = ServerCallItem(f"{SERVER_CALL_PREFIX}{id_}", index, self._model, name)
        return self._opened(self._calls[id_])

    def _arguments(self, event: Mapping[str, Any]) -> Iterator[Event]:
        call = self._calls.get(event["toolCallId"])
        return call.add(event["delta"]) if call is not None else iter(())

    def _asked(self, event: Mapping[str, Any]) -> Iterator[Event]:
        call = self._calls.get(event["toolCallId"])
        return call.asked() if call is not None else iter(())

    def _result(self, event: Mapping[str, Any]) -> Iterator[Event]:
        id_ = event["toolCallId"]
        call = self._calls.get(id_)
        if isinstance(call, ServerCallItem):
            yield from call.answered(event["content"])
        elif call is not None:
            output = CallOutputItem(f"fco_{id_}", len(self._items), id_, event["content"])
            yield from self._opened(output)
            yield from output.closed()

    # -- reasoning ----------------------------------------------------------------------------------------------------

    def _thought(self, event: Mapping[str, Any]) -> Iterator[Event]:
        if self._reasoning is None:  # some say only the message, not the span that holds it
            self._reasoning = ReasoningItem(f"rs_{event['messageId']}", len(self._items))
            yield from self._opened(self._reasoning)

    def _thinking(self, event: Mapping[str, Any]) -> Iterator[Event]:
        return self._reasoning.add(event["delta"]) if self._reasoning is not None else iter(())

    def _section_end(self, _: Mapping[str, Any]) -> Iterator[Event]:
        return self._reasoning.end_section() if self._reasoning is not None else iter(())

    def _thought_end(self, _: Mapping[str, Any]) -> Iterator[Event]:
        ended, self._reasoning = self._reasoning, None
        return self._closed(ended)

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finished(self, event: Mapping[str, Any]) -> Iterator[Event]:
        outcome = (event.get("outcome") or {}).get("type", "success")
        status = {"success": "completed", "cancelled": "cancelled"}.get(outcome, "incomplete")
        return self._end(event, status)

    def _failed(self, event: Mapping[str, Any]) -> Iterator[Event]:
        code = event.get("code", "")
        if code in _FILTERED:
            self._incomplete = {"reason": "content_filter"}
            return self._end(event, "incomplete")
        self._error = {"code": _ERROR_CODES.get(code, "server_error"), "message": event["message"]}
        return self._end(event, "failed")

    def _end(self, event: Mapping[str, Any], status: str) -> Iterator[Event]:
        for item in self._items:
            yield from item.closed()
        self.status = status
        self._usage = usage_of(event.get("usage"))
        if status == "completed":
            self._completed = event.get("timestamp", 0) // 1000
        yield self._lifecycle(f"response.{status}")


def usage_of(entries: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    """The `usage` of a terminal event in the API's words; None where nobody counted."""
    if not entries:
        return None

    def total(name: str) -> int:
        return sum(entry.get(name) or 0 for entry in entries)

    read, written = total("inputTokens"), total("outputTokens")
    return {
        "input_tokens": read,
        "input_tokens_details": {
            "cached_tokens": total("cachedInputTokens"),
            "cache_write_tokens": total("cacheWriteInputTokens"),
        },
        "output_tokens": written,
        "output_tokens_details": {"reasoning_tokens": total("reasoningTokens")},
        "total_tokens": read + written,
    }


class ResponseEvents(Format):
    """`stream=true`. Made for one reader, which must be given the run from its first event on.

    Each event's id is its `sequence_number`.
    """

    content_type = "text/event-stream; charset=utf-8"
    transport = "openai-responses"
    opening = sse.comment("open")
    heartbeat = sse.HEARTBEAT  # one newline: after an id, the official Python client takes a blank line for an event
    folds = True
    key = None

    def __init__(self, fold: ResponseFold, after: int = -1, *, rolled_up: bool = False) -> None:
        """`after`: the last `sequence_number` that the reader has; `rolled_up`: what is past comes so."""
        self._fold, self._after = fold, after
        self._rollup = RollUp(_piece, _joined, wanted=rolled_up)

    def render(self, page: Page) -> bytes:
        events = [event for message in page.messages for event in self._fold.feed(decode(message.data))]
        return _framed(self._rollup.page(self._new(events), up_to_date=page.up_to_date))

    def compact(self) -> bool:
        return self._rollup.again()

    def ending(self, page: Page) -> bytes:
        return _framed([*self._rollup.rest(), *self._new(self._fold.broken_off())])

    def interruption(self, error: HeadwaterError) -> bytes:
        return _framed(self._rollup.rest()) + sse.comment(f"interrupted: {error.code}")

    def _new(self, events: Iterable[Event]) -> list[Event]:
        return [event for event in events if event["sequence_number"] > self._after]


def _piece(event: Event) -> Piece | None:
    if not event["type"].endswith(".delta"):
        return None
    return (event["type"], event["item_id"], event.get("content_index"), event.get("summary_index")), event["delta"]


def _joined(last: Event, text: str) -> Event:
    return {**last, "delta": text}


def _framed(events: Sequence[Event]) -> bytes:
    return b"".join(
        [
            sse.encode(sse.one_line(msgspec.json.encode(event)), id=str(event["sequence_number"]), event=event["type"])
            for event in events
        ]
    )


class WholeResponse(Format):
    """Without `stream`: nothing until the run has ended, then the Response. Silence is kept alive by line ends, which
    may stand before a JSON value. Made for one reader."""

    content_type = "application/json"
    transport = "openai-responses"
    heartbeat = b"\n"
    folds = True
    key = None

    def __init__(self, fold: ResponseFold) -> None:
        self._fold = fold

    def render(self, page: Page) -> bytes:
        for message in page.messages:
            self._fold.feed(decode(message.data))
        return b""

    def ending(self, page: Page) -> bytes:
        self._fold.broken_off()
        return msgspec.json.encode(self._fold.response())
