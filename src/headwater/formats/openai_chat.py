"""A run as one chat completion of OpenAI's Chat Completions API: its chunks and its object. Pure.

All text of the run is one message, its parts divided by an empty line. Tools that the agent runs are left out, as the
API has only `tool_calls`, which ask the client to run them; where the request wants to see them nevertheless
(`"tools_as": "tool_calls"`), they are told so, and the `finish_reason` is still `stop`. What has no place in a chunk
(results of tools, steps) is left out, too. A run that failed or was cancelled ends with an error, on which the
official clients raise, and without `[DONE]`: never as if it had finished. One that a guardrail stopped ends with
`content_filter`. Words that were taken back are not in the object. Chunks cannot take any back: who comes late is not
told what was taken back before, and what is taken back later, stays.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from typing import Any, Final, TypeAlias

import msgspec

from headwater.agui import REFUSED, RETRACTED, decode
from headwater.errors import HeadwaterError, Interrupted
from headwater.formats.format import Format
from headwater.formats.openai_responses import usage_of
from headwater.formats.rollup import Piece, RollUp
from headwater.model import Page
from headwater.wire import sse

Chunk: TypeAlias = dict[str, Any]

DONE: Final = b"data: [DONE]\n\n"
BETWEEN: Final = "\n\n"
"""Between two messages of one run, which the API has no other way to tell apart."""

AS_TOOL_CALLS: Final = "tool_calls"
"""Value of `tools_as`."""

_OPENING: Final = 3
"""RUN_STARTED, the input, and then whatever is third: the first chunk comes with it."""

_UNTOLD: Final[Chunk] = {}
"""Stands for a chunk that has its number, and is told no more."""

_FILTERED: Final = frozenset({"input_guardrail", "output_guardrail"})


class ChatFold:
    """One run on its way into a chat completion."""

    def __init__(self, run_id: str, model: str, *, include_usage: bool = False, show_tools: bool = False) -> None:
        """`model`: the name of the agent; `include_usage`: a last chunk that counts tokens; `show_tools`: as
        `tool_calls`."""
        self.error: dict[str, Any] | None = None
        """How the run failed, in the API's shape."""
        self.finish_reason: str | None = None
        self.count = 0
        """Chunks given so far: the next one's number."""
        self._id, self._model, self._include_usage = f"chatcmpl-{run_id}", model, include_usage
        self._fed = self._created = 0
        self._open: dict[str, bool] = {}  # messages: whether the text of each is a refusal
        self._said = self._apart = False
        self._calls: dict[str, int] = {}
        self._texts: dict[str, list[str]] = {}  # by message, as are refusals
        self._refusals: dict[str, list[str]] = {}
        self._untold: Set[str] = frozenset()
        self._told = 0
        self._tool_calls: list[dict[str, Any]] = []
        self._arguments: list[list[str]] = []
        self._usage: dict[str, Any] | None = None
        self._takes: dict[str, Callable[[Mapping[str, Any]], Iterable[Chunk]]] = {
            "TEXT_MESSAGE_START": self._message,
            "TEXT_MESSAGE_CONTENT": self._content,
            **({"TOOL_CALL_START": self._call, "TOOL_CALL_ARGS": self._argument} if show_tools else {}),
            "REASONING_MESSAGE_CONTENT": lambda event: [self._chunk({"reasoning_content": event["delta"]})],
            "CUSTOM": self._custom,
            "RUN_FINISHED": self._finished,
            "RUN_ERROR": self._failed,
        }

    def __repr__(self) -> str:
        return f"<ChatFold {self._id} {self.finish_reason or self.error or 'running'}>"

    @property
    def ended(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def leave_out(self, retracted: Set[str], told: int) -> None:
        """Words of these messages are for a reader who has the first `told` chunks already, and is told no more."""
        self._untold, self._told = retracted, told

    def feed(self, event: Mapping[str, Any]) -> list[Chunk]:
        """The chunks that the run's next event becomes; a failure is the dict {"error": …}."""
        self._fed += 1
        chunks: list[Chunk] = []
        if self._fed == 1:
            self._created = event.get("timestamp", 0) // 1000
        if self._fed == _OPENING:
            chunks.append(self._chunk({"role": "assistant", "content": ""}))
        take = self._takes.get(event["type"])
        if take is not None and "subagentRunId" not in event:
            chunks += take(event)
        self.count += len(chunks)
        return chunks

    def broken_off(self) -> list[Chunk]:
        """The stream was closed; where it does not say how the run ended, this does."""
        if self.ended:
            return []
        why = Interrupted()
        return self.feed({"type": "RUN_ERROR", "code": why.code, "message": why.said})

    def completion(self) -> dict[str, Any]:
        """The whole answer, of a run that has ended and not failed."""
        message: dict[str, Any] = {
            "role": "assistant",
            "content": _all_of(self._texts, BETWEEN) if self._texts or not self._refusals else None,
            "refusal": _all_of(self._refusals, "") or None,
            "annotations": [],
        }
        for call, arguments in zip(self._tool_calls, self._arguments, strict=True):
            function = {"name": call["function"]["name"], "arguments": "".join(arguments)}
            message.setdefault("tool_calls", []).append({"id": call["id"], "type": "function", "function": function})
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": self.finish_reason}
        return {
            "id": self._id,
            "object": "chat.completion",
            "created": self._created,
            "model": self._model,
            "choices": [choice],
            "usage": self._usage,
        }

    # -- from event to chunks -----------------------------------------------------------------------------------------

    def _chunk(self, delta: dict[str, Any], finish_reason: str | None = None) -> Chunk:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._framed([choice])

    def _framed(self, choices: list[dict[str, Any]], **more: Any) -> Chunk:
        head = {"id": self._id, "object": "chat.completion.chunk", "created": self._created, "model": self._model}
        return {**head, "choices": choices, **({"usage": None} if self._include_usage else {}), **more}

    def _message(self, event: Mapping[str, Any]) -> Iterable[Chunk]:
        if event.get("role", "assistant") == "assistant":
            self._open[event["messageId"]] = False
            self._apart = self._said
        return ()

    def _content(self, event: Mapping[str, Any]) -> Iterable[Chunk]:
        id_, delta = event["messageId"], event["delta"]
        refused = self._open.get(id_)
        if refused is None:
            return
        (self._refusals if refused else self._texts).setdefault(id_, []).append(delta)
        if id_ in self._untold and self.count >= self._told:
            yield _UNTOLD
        elif refused:
            yield self._chunk({"refusal": delta})
        else:
            between = BETWEEN if self._apart else ""
            self._said, self._apart = True, False
            yield self._chunk({"content": between + delta})

    def _custom(self, event: Mapping[str, Any]) -> Iterable[Chunk]:
        value = event.get("value")
        if event["name"] == REFUSED and isinstance(value, dict) and value.get("messageId") in self._open:
            self._open[value["messageId"]] = True
        elif event["name"] == RETRACTED and isinstance(value, dict):
            for said in (self._texts, self._refusals):
                said.pop(str(value.get("messageId")), None)
        return ()

    def _call(self, event: Mapping[str, Any]) -> Iterable[Chunk]:
        index = self._calls[event["toolCallId"]] = len(self._tool_calls)
        function = {"name": event["toolCallName"], "arguments": ""}
        call = {"index": index, "id": event["toolCallId"], "type": "function", "function": function}
        self._tool_calls.append(call)
        self._arguments.append([])
        yield self._chunk({"tool_calls": [call]})

    def _argument(self, event: Mapping[str, Any]) -> Iterable[Chunk]:
        index = self._calls.get(event["toolCallId"])
        if index is not None:
            self._arguments[index].append(event["delta"])
            yield self._chunk({"tool_calls": [{"index": index, "function": {"arguments": event["delta"]}}]})

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finished(self, event: Mapping[str, Any]) -> Iterable[Chunk]:
        outcome = (event.get("outcome") or {}).get("type", "success")
        if outcome == "success":
            return self._end(event, "stop")
        if outcome == "cancelled":
            return self._error(outcome, "the run was cancelled")
        return self._error(outcome, "the run waits for something that it cannot get here")

    def _failed(self, event: Mapping[str, Any]) -> Iterable[Chunk]:
        code = event.get("code", "")
        if code in _FILTERED:
            return self._end(event, "content_filter")
        return self._error(code, event["message"])

    def _error(self, code: str, message: str) -> Iterable[Chunk]:
        self.error = {"message": message, "type": "server_error", "param": None, "code": code or None}
        return [{"error": self.error}]

    def _end(self, event: Mapping[str, Any], reason: str) -> Iterable[Chunk]:
        self.finish_reason = reason
        counted = usage_of(event.get("usage"))
        if counted is not None:
            self._usage = {
                "prompt_tokens": counted["input_tokens"],
                "completion_tokens": counted["output_tokens"],
                "total_tokens": counted["total_tokens"],
                "prompt_tokens_details": {"cached_tokens": counted["input_tokens_details"]["cached_tokens"]},
                "completion_tokens_details": dict(counted["output_tokens_details"]),
            }
        yield self._chunk({}, reason)
        if self._include_usage:
            yield self._framed([], usage=self._usage)


def _all_of(said: Mapping[str, Sequence[str]], between: str) -> str:
    return between.join("".join(deltas) for deltas in said.values())


class ChatChunks(Format):
    """`stream=true`. Made for one reader, which must be given the run from its first event on.

    Each chunk's id is its number (0, 1, 2, …), the same for everyone who asked alike.
    """

    content_type = "text/event-stream; charset=utf-8"
    transport = "openai-chat"
    opening = sse.comment("open")
    heartbeat = sse.HEARTBEAT
    folds = True
    key = None

    def __init__(
        self, fold: ChatFold, after: int = -1, *, rolled_up: bool = False, retracted: Set[str] = frozenset()
    ) -> None:
        """`after`: the number of the last chunk that the reader has; `rolled_up`: what is past comes so; `retracted`:
        ids of messages whose words are left out, and their numbers with them."""
        self._fold, self._after = fold, after
        fold.leave_out(retracted, after + 1)
        self._rollup = RollUp(_piece, _joined, wanted=rolled_up)

    def render(self, page: Page) -> bytes:
        chunks = [one for message in page.messages for one in self._new(self._fold.feed(decode(message.data)))]
        return _framed(self._rollup.page(chunks, up_to_date=page.up_to_date))

    def compact(self) -> bool:
        return self._rollup.again()

    def ending(self, page: Page) -> bytes:
        said = _framed([*self._rollup.rest(), *self._new(self._fold.broken_off())])
        return said if self._fold.error is not None else said + DONE

    def interruption(self, error: HeadwaterError) -> bytes:
        return _framed(self._rollup.rest()) + sse.comment(f"interrupted: {error.code}")

    def _new(self, chunks: Sequence[Chunk]) -> list[_Numbered]:
        """Those that the fold has just given and the reader has not."""
        numbered = enumerate(chunks, start=self._fold.count - len(chunks))
        return [one for one in numbered if one[0] > self._after and one[1] is not _UNTOLD]


_Numbered: TypeAlias = tuple[int, Chunk]


def _piece(numbered: _Numbered) -> Piece | None:
    """Texts, refusals, thoughts and arguments. Another chunk has more than one of these, or what comes once."""
    choices = numbered[1].get("choices")
    if not choices or choices[0]["finish_reason"] is not None or len(choices[0]["delta"]) != 1:
        return None
    ((kind, told),) = choices[0]["delta"].items()
    if kind != "tool_calls":
        return kind, told
    call = told[0]
    return None if "id" in call else ((kind, call["index"]), call["function"]["arguments"])


def _joined(last: _Numbered, text: str) -> _Numbered:
    number, chunk = last
    choice = chunk["choices"][0]
    ((kind, told),) = choice["delta"].items()
    delta: Any = text if kind != "tool_calls" else [{**told[0], "function": {"arguments": text}}]
    return number, {**chunk, "choices": [{**choice, "delta": {kind: delta}}]}


def _framed(chunks: Sequence[_Numbered]) -> bytes:
    return b"".join([sse.encode(sse.one_line(msgspec.json.encode(chunk)), id=str(number)) for number, chunk in chunks])
