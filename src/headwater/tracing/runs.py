"""The spans of one run: its own, and in it one for each model call, tool and agent inside a tool.

A source that can tell says when a model is asked and a tool begins; the rest is taken from the events as they go out,
so that runs of every framework have their tools. Costs nothing per token: after the first one of an answer, only a look
at an empty dict.

Knows AG-UI's events and their ids. Invariant: whatever is open ends with the run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from ag_ui.core import EventType, ReasoningMessageContentEvent, TextMessageContentEvent, ToolCallArgsEvent
from opentelemetry import context
from opentelemetry.trace import SpanKind, Tracer

from headwater.agui import TOOL_STARTED, BaseEvent, TokenUsage
from headwater.tracing.instruments import Instruments
from headwater.tracing.operations import Operation

_CHUNKS: Final = frozenset({TextMessageContentEvent, ReasoningMessageContentEvent, ToolCallArgsEvent})
"""What a model says, as it says it. By their classes, whose look-up is five times as fast as that of an EventType."""

_FINAL: Final = frozenset({"completed", "failed", "cancelled"})
_WRONG: Final = frozenset({"lost", "refused", "unwritten"})
"""Outcomes that are errors without a code of their own (`headwater.runs.figures`)."""

UNKNOWN: Final = "_OTHER"


class RunSpans:
    """See `headwater.traced.TracedRun`."""

    def __init__(self, tracer: Tracer, instruments: Instruments, run: Operation, *, children: bool) -> None:
        self._tracer, self._instruments, self._run, self._children = tracer, instruments, run, children
        own = run.span.get_span_context()
        self.traceparent = f"00-{own.trace_id:032x}-{own.span_id:016x}-{own.trace_flags:02x}"
        self._chats: dict[Operation, None] = {}
        self._silent: dict[str | None, list[Operation]] = {None: [run]}
        """Who has said nothing yet, by the subagent it is of."""
        self._models_tell = False
        """Tokens are counted with each call of a model."""
        self._names: dict[str, tuple[str, str | None, int]] = {}
        """Tool call id -> the tool's name, whose call it is, and when it was whole, ns."""
        self._tools: dict[str, Operation] = {}
        self._agents: dict[str, Operation] = {}
        self._error: str | None = None
        self._begun = False
        self._told: dict[EventType, Callable[[Any], None]] = {
            EventType.RUN_FINISHED: self._finished,
            EventType.RUN_ERROR: self._failed,
        }
        if children:
            self._told |= {
                EventType.TOOL_CALL_START: self._called,
                EventType.TOOL_CALL_END: self._called_whole,
                EventType.CUSTOM: self._custom,
                EventType.TOOL_CALL_RESULT: self._result,
                EventType.SUBAGENT_STARTED: self._agent,
                EventType.SUBAGENT_FINISHED: self._agent_over,
                EventType.SUBAGENT_ERROR: self._agent_failed,
            }

    def __repr__(self) -> str:
        return f"<RunSpans {self.traceparent} [{len(self._tools)} tools, {len(self._agents)} agents open]>"

    def enter(self) -> None:
        self._begun = True
        context.attach(self._run.around)

    def saw(self, event: BaseEvent) -> None:
        if type(event) in _CHUNKS:
            if self._silent:
                self._first_chunk(getattr(event, "subagent_run_id", None))
        elif (told := self._told.get(event.type)) is not None:
            told(event)

    def over(self, outcome: str) -> None:
        error = self._error or (outcome if outcome in _WRONG else None)
        for operation in [*self._chats, *self._tools.values(), *self._agents.values()]:
            operation.over(error or outcome, counts=error is not None)
        self._chats.clear()
        self._run.span.set_attribute("headwater.run.outcome", outcome)
        self._run.over(error, counts=self._begun and outcome in _FINAL)

    def not_begun(self, why: str) -> None:
        if not self._begun:
            self.over(why)

    # -- models -------------------------------------------------------------------------------------------------------

    def model(self, name: str | None, provider: str | None, within: str | None = None) -> Chat | None:
        if not self._children:
            return None
        known = {"gen_ai.operation.name": "chat", "gen_ai.provider.name": provider, "gen_ai.request.model": name}
        labels = {key: value for key, value in known.items() if value is not None}
        inside = self._inside(None, within)
        called = "chat" if name is None else f"chat {name}"
        span = self._tracer.start_span(called, inside, kind=SpanKind.CLIENT, attributes=labels)
        chat = Operation(span, inside, self._instruments.chat, labels)
        self._chats[chat] = None
        self._silent.setdefault(within, []).append(chat)
        return Chat(self, chat)

    def answered(self, chat: Operation, input_tokens: int, output_tokens: int) -> None:
        """A model has, in full."""
        if chat not in self._chats:
            return  # the run has ended before
        for within, silent in list(self._silent.items()):
            if chat in silent:  # what it said is still on its way here
                self._first_chunk(within)
        del self._chats[chat]
        self._count(chat, input_tokens, output_tokens, chat.labels)
        self._models_tell = self._models_tell or input_tokens + output_tokens > 0
        chat.over()

    def _first_chunk(self, within: str | None) -> None:
        for said in self._silent.pop(within, ()):
            seconds = said.seconds
            said.span.set_attribute("gen_ai.response.time_to_first_chunk", seconds)
            if said in self._chats:
                self._instruments.first_chunk.record(seconds, said.labels, said.around)

    # -- tools --------------------------------------------------------------------------------------------------------

    def enter_tool(self, tool_call_id: str, name: str, within: str | None = None) -> None:
        if self._children:
            self._names.setdefault(tool_call_id, (name, within, 0))
            context.attach(self._tool(tool_call_id).around)

    def tool_over(self, tool_call_id: str) -> None:
        if (known := self._tools.get(tool_call_id)) is not None:
            known.over()

    def _called(self, event: Any) -> None:
        self._names.setdefault(event.tool_call_id, (event.tool_call_name, event.subagent_run_id, 0))

    def _called_whole(self, event: Any) -> None:
        if (known := self._names.get(event.tool_call_id)) is not None:
            self._names[event.tool_call_id] = *known[:2], time.time_ns()

    def _custom(self, event: Any) -> None:
        if event.name == TOOL_STARTED:
            self._tool(event.value["toolCallId"])

    def _result(self, event: Any) -> None:
        whole = self._names.get(event.tool_call_id, ("", None, 0))[2]
        self._tool(event.tool_call_id, began=whole or None).over()
        del self._tools[event.tool_call_id]
        self._names.pop(event.tool_call_id, None)

    def _tool(self, id_: str, *, began: int | None = None) -> Operation:
        """That of a call; one that was not told to have begun has begun as soon as its call was whole."""
        if (known := self._tools.get(id_)) is not None:
            return known
        name, within, _ = self._names.get(id_, (UNKNOWN, None, 0))
        labels = {"gen_ai.tool.name": name}
        more = {"gen_ai.operation.name": "execute_tool", "gen_ai.tool.call.id": id_, "gen_ai.tool.type": "function"}
        inside = self._inside(None, within)
        span = self._tracer.start_span(f"execute_tool {name}", inside, attributes=labels | more, start_time=began)
        self._tools[id_] = Operation(span, inside, self._instruments.execute_tool, labels, began=began)
        return self._tools[id_]

    # -- agents inside tools ------------------------------------------------------------------------------------------

    def _agent(self, event: Any) -> None:
        labels = {"gen_ai.agent.name": event.name}
        inside = self._inside(event.parent_tool_call_id, event.parent_subagent_run_id)
        attributes = {"gen_ai.operation.name": "invoke_agent", **labels}
        span = self._tracer.start_span(f"invoke_agent {event.name}", inside, attributes=attributes)
        operation = Operation(span, inside, self._instruments.invoke_agent, labels)
        self._agents[event.subagent_run_id] = operation

    def _agent_over(self, event: Any) -> None:
        self._agent_ends(event.subagent_run_id, None)

    def _agent_failed(self, event: Any) -> None:
        self._agent_ends(event.subagent_run_id, event.code or UNKNOWN)

    def _agent_ends(self, subagent: str, error: str | None) -> None:
        if (known := self._agents.pop(subagent, None)) is not None:
            known.over(error)

    def _inside(self, tool_call_id: str | None, subagent: str | None) -> context.Context:
        """What something new is made in: the tool's span, the agent's, or the run's."""
        found = self._tools.get(tool_call_id or "") or self._agents.get(subagent or "") or self._run
        return found.around

    # -- the end ------------------------------------------------------------------------------------------------------

    def _finished(self, event: Any) -> None:
        self._used(event.usage or ())

    def _failed(self, event: Any) -> None:
        self._error = event.code or UNKNOWN
        self._used(event.usage or ())

    def _used(self, usage: Sequence[TokenUsage]) -> None:
        for kind in ("input", "output"):
            if tokens := sum(getattr(entry, f"{kind}_tokens") or 0 for entry in usage):
                self._run.span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)
        for entry in usage if not self._models_tell else ():
            labels = {"gen_ai.operation.name": "invoke_agent", "gen_ai.provider.name": entry.provider or UNKNOWN}
            labels |= {"gen_ai.request.model": entry.model} if entry.model else {}
            self._count(None, entry.input_tokens or 0, entry.output_tokens or 0, labels)

    def _count(self, chat: Operation | None, taken: int, given: int, labels: dict[str, str]) -> None:
        of = chat or self._run
        for kind, tokens in (("input", taken), ("output", given)):
            if tokens:
                self._instruments.tokens.record(tokens, {**labels, "gen_ai.token.type": kind}, of.around)
                if chat is not None:
                    chat.span.set_attribute(f"gen_ai.usage.{kind}_tokens", tokens)


class Chat:
    """One call of a model. See `headwater.traced.TracedModel`."""

    __slots__ = ("_chat", "_run")

    def __init__(self, run: RunSpans, chat: Operation) -> None:
        self._run, self._chat = run, chat

    def over(self, input_tokens: int, output_tokens: int) -> None:
        self._run.answered(self._chat, input_tokens, output_tokens)
