"""Runs a compiled graph of LangGraph as a source, from its stream of messages, tasks and custom data.

Knows how to run a graph and what its parts (`version="v2"`) mean in AG-UI: a node is a step; what a model says in it is
a message, thoughts and tool calls included; a ToolMessage is a call's result; what a node writes with
`get_stream_writer()` is a CUSTOM event "data". Invariants: of the graph's state readers get what was named and nothing
else (it holds system messages, documents, and whatever a node put there); no text of an exception reaches a reader.

A graph that calls `interrupt(…)` ends its run: readers get a CUSTOM event "interrupt" for each question, `{id, value}`,
and the run's result lists them. Another run on the same thread, with `{"resume": answer}` as its input (or `{"resume":
{id: answer}}` for several), goes on from there; the graph needs a checkpointer for it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from ag_ui.core import (
    ReasoningEndEvent,
    ReasoningMessageContentEvent,
    ReasoningMessageEndEvent,
    ReasoningMessageStartEvent,
    ReasoningStartEvent,
    StateSnapshotEvent,
    StepFinishedEvent,
    StepStartedEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)

from headwater.agui import BaseEvent, CustomEvent, TokenUsage
from headwater.errors import HeadwaterError, MissingExtra
from headwater.sources import RunFailed, Sink
from headwater.sources.adoption import Adoption
from headwater.sources.openai_values import as_json, json_text
from headwater.sources.redacted import redacted

try:
    from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
    from langgraph.errors import GraphRecursionError
    from langgraph.pregel import Pregel
    from langgraph.types import Command
except ImportError as error:
    raise MissingExtra("langgraph", "langgraph") from error

__all__ = ["DATA", "INTERRUPT", "LangGraphAgent"]

DATA: Final = "data"
"""Name of the CUSTOM event for what a node writes."""
INTERRUPT: Final = "interrupt"
"""Name of the CUSTOM event for what the graph asks: {id, value}."""

_log: Final = logging.getLogger(__name__)
_MODES: Final = ["messages", "tasks", "custom", "values"]


class LangGraphAgent:
    """A compiled graph as a source.

    - `name`: what it is registered under; by default the slug of the graph's name.
    - `config`: for every run (`recursion_limit`, `tags`, …). The graph's `thread_id` is the run's conversation:
      its thread, or, where runs are started by principals, `principal/thread`.
    - `context_factory` makes the graph's runtime context for each run.
    - `state_keys`: of the state, what readers get as STATE_SNAPSHOT whenever it has changed.
    - `total_timeout`: seconds for the whole run; then RunFailed("run_timeout").

    A run's input is a text or a list of messages, which become `{"messages": …}`; `{"resume": answer}`; or any other
    dict, as the graph takes it.
    """

    def __init__(
        self,
        graph: Pregel[Any, Any, Any, Any],
        *,
        name: str | None = None,
        config: Mapping[str, Any] | None = None,
        context_factory: Callable[[], Any] | None = None,
        state_keys: Sequence[str] = (),
        total_timeout: float | None = None,
    ) -> None:
        self.graph = graph
        self.name = name or re.sub(r"[^a-z0-9]+", "-", (graph.name or "").lower()).strip("-") or "graph"
        self._config, self._context_factory = dict(config or {}), context_factory
        self._state_keys, self._total = tuple(state_keys), total_timeout

    def __repr__(self) -> str:
        return f"<LangGraphAgent {self.name}>"

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """See `Source.run`. The result is the text of a model's last message in the state; where there is none, what of
        the state is named in `state_keys`; and `{"interrupts": [{id, value}]}` where the graph asks something."""
        parts = _Parts(sink.run_id, self._state_keys)
        adoption = Adoption(sink.run_id)
        try:
            async with asyncio.timeout(self._total) as limit, aclosing(self._stream(input, sink)) as stream:
                async for part in stream:
                    for event in parts.events(part):
                        for ours in adoption.events(event):
                            await sink.emit(ours)
        except TimeoutError as error:
            if not limit.expired():
                raise redacted(error, sink.run_id, _log) from error
            raise RunFailed("run_timeout", "The run took longer than it may.") from error
        except GraphRecursionError as error:
            raise RunFailed("max_turns", "The agent took more turns than it may.") from error
        except (RunFailed, HeadwaterError):
            raise
        except Exception as error:
            raise redacted(error, sink.run_id, _log) from error
        finally:
            sink.usage(parts.usage)
        return parts.result

    def _stream(self, given: Any, sink: Sink) -> Any:
        chosen = self._config.get("configurable", {})
        config = {**self._config, "configurable": {"thread_id": sink.conversation, **chosen}}
        context = {"context": self._context_factory()} if self._context_factory is not None else {}
        graph: Any = self.graph  # its overloads do not know a list of modes with a version
        return graph.astream(_asked(given), config, stream_mode=_MODES, subgraphs=True, version="v2", **context)


def _asked(given: Any) -> Any:
    if isinstance(given, str):
        return {"messages": [{"role": "user", "content": given}]}
    if isinstance(given, list):
        return {"messages": given}
    if isinstance(given, Mapping) and given.keys() == {"resume"}:
        return Command(resume=given["resume"])
    return given


class _Open:
    """A message of a model that has begun: which of its parts are open."""

    def __init__(self, id_: str, place: str) -> None:
        self.id, self.place = id_, place
        self.text = self.reasoning = False
        self.calls: dict[Any, str] = {}  # by index -> id


class _Parts:
    """The graph's stream, part by part, as events. Pure."""

    def __init__(self, run_id: str, state_keys: Sequence[str]) -> None:
        self.usage: list[TokenUsage] = []
        self._run_id, self._state_keys = run_id, state_keys
        self._made = 0
        self._messages: dict[str, _Open] = {}
        self._said: set[str] = set()  # ids of messages that are over
        self._answerable: set[str] = set()  # tool calls without a result
        self._steps: Counter[str] = Counter()
        self._state: Mapping[str, Any] = {}
        self._shown: dict[str, Any] = {}
        self._asked: dict[str, Any] = {}

    @property
    def result(self) -> object:
        if self._asked:
            return {"interrupts": [{"id": id_, "value": value} for id_, value in self._asked.items()]}
        messages = self._state.get("messages") if isinstance(self._state, Mapping) else None
        said = [one for one in messages if isinstance(one, AIMessage)] if isinstance(messages, Sequence) else []
        return _text(said[-1]) if said else self._shown or None

    def events(self, part: Mapping[str, Any]) -> Iterator[BaseEvent]:
        data, place = part["data"], part["ns"]
        match part["type"]:
            case "messages":
                yield from self._message(data[0], str(data[1].get("langgraph_checkpoint_ns", "")))
            case "tasks":
                yield from self._task(data, place)
            case "custom":
                yield data if isinstance(data, BaseEvent) else CustomEvent(name=DATA, value=as_json(data))
            case "values" if not place:  # of the graph itself, not of one inside
                yield from self._values(data, part["interrupts"])

    # Steps and state

    def _task(self, task: Mapping[str, Any], place: Sequence[str]) -> Iterator[BaseEvent]:
        name = "/".join([*(above.partition(":")[0] for above in place), task["name"]])
        if "result" not in task:
            self._steps[name] += 1
            if self._steps[name] == 1:  # the same node may run many times at once: one step for readers
                yield StepStartedEvent(step_name=name)
            return
        for open_ in [one for one in self._messages.values() if one.place.endswith(task["id"])]:
            yield from self._end(open_)
        self._steps[name] -= 1
        if self._steps[name] == 0:
            yield StepFinishedEvent(step_name=name)

    def _values(self, state: Any, interrupts: Sequence[Any]) -> Iterator[BaseEvent]:
        self._state = state
        if isinstance(state, Mapping):
            shown = {key: as_json(state[key]) for key in self._state_keys if key in state}
            if shown != self._shown:
                self._shown = shown
                yield StateSnapshotEvent(snapshot=shown)
        for interrupt in interrupts:
            if interrupt.id not in self._asked:
                self._asked[interrupt.id] = value = as_json(interrupt.value)
                yield CustomEvent(name=INTERRUPT, value={"id": interrupt.id, "value": value})

    # Messages

    def _message(self, message: BaseMessage, place: str) -> Iterator[BaseEvent]:
        if isinstance(message, ToolMessage):
            yield from self._answer(message)
        elif isinstance(message, AIMessage):  # of others, readers know (their own) or must not know (system messages)
            id_ = message.id or self._new_id()
            if id_ in self._said:
                return
            open_ = self._messages.setdefault(id_, _Open(id_, place))
            yield from self._said_in(open_, message)
            if not isinstance(message, AIMessageChunk) or message.chunk_position == "last":
                yield from self._end(open_)
            self._count(message)

    def _said_in(self, open_: _Open, message: AIMessage) -> Iterator[BaseEvent]:
        if thought := _thought(message):
            yield from self._think(open_, thought)
        if text := _text(message):
            yield from self._end_reasoning(open_)
            if not open_.text:
                open_.text = True
                yield TextMessageStartEvent(message_id=open_.id, role="assistant")
            yield TextMessageContentEvent(message_id=open_.id, delta=text)
        if isinstance(message, AIMessageChunk):
            for chunk in message.tool_call_chunks:
                yield from self._call(open_, chunk["index"], chunk["id"], chunk["name"], chunk["args"])
        else:
            for number, call in enumerate(message.tool_calls):
                yield from self._call(open_, number, call["id"], call["name"], json_text(call["args"]))

    def _think(self, open_: _Open, thought: str) -> Iterator[BaseEvent]:
        id_ = f"{open_.id}.thought"
        if not open_.reasoning:
            open_.reasoning = True
            yield ReasoningStartEvent(message_id=id_)
            yield ReasoningMessageStartEvent(message_id=id_, role="reasoning")
        yield ReasoningMessageContentEvent(message_id=id_, delta=thought)

    def _end_reasoning(self, open_: _Open) -> Iterator[BaseEvent]:
        if open_.reasoning:
            open_.reasoning = False
            yield ReasoningMessageEndEvent(message_id=f"{open_.id}.thought")
            yield ReasoningEndEvent(message_id=f"{open_.id}.thought")

    def _call(
        self, open_: _Open, index: Any, id_: str | None, name: str | None, arguments: str | None
    ) -> Iterator[BaseEvent]:
        yield from self._end_reasoning(open_)
        if index not in open_.calls:
            open_.calls[index] = call = id_ or self._new_id()
            self._answerable.add(call)
            yield ToolCallStartEvent(tool_call_id=call, tool_call_name=name or "", parent_message_id=open_.id)
        if arguments:
            yield ToolCallArgsEvent(tool_call_id=open_.calls[index], delta=arguments)

    def _answer(self, message: ToolMessage) -> Iterator[BaseEvent]:
        for open_ in [one for one in self._messages.values() if message.tool_call_id in one.calls.values()]:
            yield from self._end(open_)
        if message.tool_call_id in self._answerable:
            self._answerable.discard(message.tool_call_id)
            yield ToolCallResultEvent(
                message_id=message.id or self._new_id(),
                tool_call_id=message.tool_call_id,
                content=_text(message) or json_text(as_json(message.content)),
                role="tool",
            )

    def _end(self, open_: _Open) -> Iterator[BaseEvent]:
        yield from self._end_reasoning(open_)
        if open_.text:
            yield TextMessageEndEvent(message_id=open_.id)
        for call in open_.calls.values():
            yield ToolCallEndEvent(tool_call_id=call)
        del self._messages[open_.id]
        self._said.add(open_.id)

    def _new_id(self) -> str:
        self._made += 1
        return f"{self._run_id}.{self._made}"

    def _count(self, message: AIMessage) -> None:
        used = message.usage_metadata
        if used is None:
            return
        read, thought = used.get("input_token_details", {}), used.get("output_token_details", {})
        self.usage.append(
            TokenUsage(
                model=message.response_metadata.get("model_name"),
                input_tokens=used["input_tokens"],
                output_tokens=used["output_tokens"],
                total_tokens=used["total_tokens"],
                cached_input_tokens=read.get("cache_read") or None,
                reasoning_tokens=thought.get("reasoning") or None,
            )
        )


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    return "".join(
        piece if isinstance(piece, str) else str(piece.get("text", ""))
        for piece in message.content
        if isinstance(piece, str) or piece.get("type") == "text"
    )


def _thought(message: AIMessage) -> str:
    """What the model said of its thinking, in the ways that providers say it."""
    told = message.additional_kwargs.get("reasoning_content")
    pieces = [told] if isinstance(told, str) else []
    if isinstance(message.content, list):
        pieces += [
            str(piece.get("reasoning") or piece.get("thinking") or "")
            for piece in message.content
            if isinstance(piece, dict) and piece.get("type") in ("reasoning", "thinking")
        ]
    return "".join(pieces)
