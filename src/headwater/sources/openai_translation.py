"""From the events of the OpenAI Agents SDK to those of AG-UI: what to say, in which order, under which ids.

Pure: no I/O, no asyncio, no clock. Knows the SDK's stream events and hook facts as data. Invariants:
- Ids are made here (`{run id}.{n}`), unique and in order over the run. The provider's are not trusted: Chat Completions
  models call every item `__fake_id__`, and sequence numbers begin anew with each response. Only tool call ids are taken
  over, since tools know them, and made unique.
- Whatever is said of a tool call while it runs (started, progress, result) comes after TOOL_CALL_END: facts from hooks,
  which may overtake the model's events on their way here, are held back until then.
- A tool call gets one result: the first that is known, which is the hook's, at the true time.
- What the stream holds already, of a run that is gone on with, is not said again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from ag_ui.core import (
    ReasoningEndEvent,
    ReasoningMessageContentEvent,
    ReasoningMessageEndEvent,
    ReasoningMessageStartEvent,
    ReasoningStartEvent,
    StepFinishedEvent,
    StepStartedEvent,
    SubagentErrorEvent,
    SubagentFinishedEvent,
    SubagentFinishedSuspendedOutcome,
    SubagentStartedEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)

from headwater.agui import (
    HANDOFF,
    REFUSED,
    RETRACTED,
    TOOL_PROGRESS,
    TOOL_STARTED,
    BaseEvent,
    TokenUsage,
    custom,
    valid_text,
)
from headwater.sources import ProgressValue, Resumption
from headwater.sources.openai_calls import (
    RUN_BY_PROVIDER,
    arguments_of,
    call_key,
    is_call,
    is_open_call,
    name_of,
    provider_result,
)
from headwater.sources.openai_parts import Call, MessagePart, ReasoningPart
from headwater.sources.openai_values import field_of, tool_content, usage_of

__all__ = ["Translation"]


class _Run:
    """What the translations of a run and of the agents inside its tools share."""

    def __init__(self, prefix: str) -> None:
        self.usage: list[TokenUsage] = []
        self.call_ids: set[str] = set()
        self.asked: dict[str, Call] = {}
        """Calls that have been approved or not, and may be of an agent inside a tool."""
        self.nested: list[Translation] = []
        self._prefix, self._made = prefix, 0

    def new_id(self) -> str:
        self._made += 1
        return f"{self._prefix}.{self._made}"


_PartT = TypeVar("_PartT", MessagePart, ReasoningPart, Call)


class Translation:
    """The events of one run. Every method gives what is to be emitted now, in order."""

    def __init__(self, run_id: str, at: Resumption | None = None, ids: Mapping[str, str] | None = None) -> None:
        """`at`: where the run is gone on with; `ids`: what `self.ids` was then."""
        if at is None:
            self._begin(_Run(run_id))
            return
        self._begin(_Run(f"{run_id}.r{at.attempt}"))
        self._shown.extend(at.messages)
        keys = {id_: key for key, id_ in (ids or {}).items()}
        for id_, answered in at.calls.items():
            self._run.call_ids.add(id_)
            call = self._calls[keys.get(id_, id_)] = Call(id_, opened=True, ended=True, answered=answered)
            if id_ in at.answers and not answered:
                self._run.asked[keys.get(id_, id_)] = call

    def _begin(self, run: _Run, subagent: str | None = None) -> None:
        self._run = run
        self.usage = run.usage
        """Of each response that ended and told its usage, also of agents inside tools."""
        self.subagent = subagent
        """The id of the agent inside a tool whose events these are; None: they are the run's own."""
        self.answering = False
        """A model response has begun and not ended."""
        self.replaying = False
        """The next response is one that was told before."""
        self._step: str | None = None
        self._calls: dict[str, Call] = {}
        self._shown: list[str] = []
        self._begin_response()
        self.answering = False
        self._by_type: dict[str, Callable[[Any], Iterator[BaseEvent]]] = {
            "response.created": self._created,
            "response.output_item.added": self._added,
            "response.output_text.delta": self._text_delta,
            "response.refusal.delta": self._refusal_delta,
            "response.reasoning_text.delta": self._reasoning_delta,
            "response.reasoning_summary_text.delta": self._summary_delta,
            "response.function_call_arguments.delta": self._arguments_delta,
            "response.mcp_call_arguments.delta": self._arguments_delta,
            "response.output_item.done": self._done,
            "response.completed": self._completed,
            "response.incomplete": self._broken_off,
            "response.failed": self._broken_off,
            "error": self._broken_off,
        }

    @property
    def ids(self) -> dict[str, str]:
        """Tool call ids of the SDK that readers know by another one."""
        all_ = [*self._run.nested, self]
        return {key: call.id for one in all_ for key, call in one._calls.items() if key != call.id}

    def call_id(self, key: str) -> str:
        """As readers know the tool call that the SDK knows as `key`."""
        return self._call_of(key).id

    def asked_id(self, key: str) -> str:
        """The same, of a call that people are asked about: an agent inside a tool may have made it."""
        made = [one._calls[key] for one in self._run.nested if key in one._calls and not one._calls[key].answered]
        return made[-1].id if made else self.call_id(key)

    # An agent inside a tool

    def nested(self, name: str, key: str) -> tuple[Translation, Iterator[BaseEvent]]:
        """The translation of an agent called `name` inside the tool of the call `key`; and what to say first."""
        inner = Translation.__new__(Translation)
        inner._begin(self._run, self._run.new_id())
        self._run.nested.append(inner)
        started = SubagentStartedEvent(
            subagent_run_id=inner.subagent or "",
            name=name,
            parent_subagent_run_id=self.subagent,
            parent_tool_call_id=self.call_id(key),
        )
        return inner, iter((started,))

    def nested_end(self, *, suspended: bool = False, failed: tuple[str, str] | None = None) -> Iterator[BaseEvent]:
        """The agent inside a tool has ended, waits for people, or has failed with a code and a message."""
        assert self.subagent is not None
        yield from self._attributed(self._close_parts())
        if failed is not None:
            if failed[0] in ("input_guardrail", "output_guardrail"):
                yield from self._attributed(self.retract(failed[0], whole_run=failed[0] == "input_guardrail"))
            yield SubagentErrorEvent(subagent_run_id=self.subagent, code=failed[0], message=failed[1])
        else:
            outcome = SubagentFinishedSuspendedOutcome() if suspended else None
            yield SubagentFinishedEvent(subagent_run_id=self.subagent, outcome=outcome)

    def _attributed(self, events: Iterator[BaseEvent]) -> Iterator[BaseEvent]:
        for event in events:
            event.subagent_run_id = self.subagent  # type: ignore[attr-defined] # all that are made here have one
            yield event

    def _in_response(self) -> None:
        if not self.answering:  # some models never say "created"
            self._begin_response()

    def _begin_response(self) -> None:
        self.answering = True
        self._parts: dict[int, MessagePart | ReasoningPart | Call] = {}  # by output_index
        self._seen: set[int] = set()  # output indices that have had their part
        self._holder: str | None = None  # the assistant message that holds this response's tool calls
        self._shown_now: list[str] = []

    # What the SDK's iterator gives

    def sdk_event(self, event: Any) -> Iterator[BaseEvent]:
        """`event`: one `agents.StreamEvent`."""
        return self._event(event) if self.subagent is None else self._attributed(self._event(event))

    def _event(self, event: Any) -> Iterator[BaseEvent]:
        if event.type == "raw_response_event":
            translate = self._by_type.get(event.data.type)
            return translate(event.data) if translate is not None else iter(())
        if event.type == "agent_updated_stream_event":
            return self._agent(event.new_agent.name)
        return self._item(event.name, event.item)

    def _agent(self, name: str) -> Iterator[BaseEvent]:
        if self.subagent is not None:
            return  # its start says who it is; and steps go by their names, which agents in parallel share
        yield from self._end_step()
        self._step = name
        yield StepStartedEvent(step_name=name)

    def _end_step(self) -> Iterator[BaseEvent]:
        if self._step is not None:
            yield StepFinishedEvent(step_name=self._step)
            self._step = None

    def _item(self, name: str, item: Any) -> Iterator[BaseEvent]:
        raw = item.raw_item
        if name in ("tool_called", "handoff_requested"):
            # Models that give only whole responses: the call was in no event so far.
            if not self._call_of(call_key(raw)).ended:
                yield from self._whole_call(raw)
        elif name == "tool_output":
            yield from self.tool_ended(call_key(raw), item.output)
        elif name == "handoff_occured":
            yield from self.tool_ended(call_key(raw), field_of(raw, "output"))
            yield custom(HANDOFF, **{"from": item.source_agent.name, "to": item.target_agent.name})

    # One model response

    def _created(self, _: Any) -> Iterator[BaseEvent]:
        yield from self._close_parts()
        self._begin_response()

    def _added(self, data: Any) -> Iterator[BaseEvent]:
        self._in_response()
        if is_call(data.item):
            yield from self._open_call(data.output_index, data.item)

    def _text_delta(self, data: Any) -> Iterator[BaseEvent]:
        return self._text(data.output_index, data.delta)

    def _refusal_delta(self, data: Any) -> Iterator[BaseEvent]:
        return self._text(data.output_index, data.delta, refusal=True)

    def _text(self, index: int, delta: str, *, refusal: bool = False) -> Iterator[BaseEvent]:
        if not delta:
            return
        part = self._parts.get(index)
        if not isinstance(part, MessagePart):
            yield from self._close_reasoning()
            part = self._open(index, MessagePart(self._run.new_id()))
            self._holder = part.id
            self._shown.append(part.id)
            self._shown_now.append(part.id)
            yield TextMessageStartEvent(message_id=part.id, role="assistant")
        if refusal and not part.refused:
            part.refused = True
            yield custom(REFUSED, messageId=part.id)
        yield TextMessageContentEvent(message_id=part.id, delta=valid_text(delta))

    def _reasoning_delta(self, data: Any) -> Iterator[BaseEvent]:
        return self._reasoning(data.output_index, ("text", data.content_index), data.delta)

    def _summary_delta(self, data: Any) -> Iterator[BaseEvent]:
        return self._reasoning(data.output_index, ("summary", data.summary_index), data.delta)

    def _reasoning(self, index: int, section: tuple[str, int], delta: str) -> Iterator[BaseEvent]:
        if not delta:
            return
        part = self._parts.get(index)
        if not isinstance(part, ReasoningPart):
            part = self._open(index, ReasoningPart(self._run.new_id()))
            yield ReasoningStartEvent(message_id=part.id)
        if part.section != section:
            if part.section is not None:
                yield ReasoningMessageEndEvent(message_id=part.message)
            part.message, part.section = self._run.new_id(), section
            yield ReasoningMessageStartEvent(message_id=part.message, role="reasoning")
        yield ReasoningMessageContentEvent(message_id=part.message, delta=valid_text(delta))

    def _arguments_delta(self, data: Any) -> Iterator[BaseEvent]:
        call = self._parts.get(data.output_index)
        if isinstance(call, Call) and data.delta:
            call.has_arguments = True
            yield ToolCallArgsEvent(tool_call_id=call.id, delta=valid_text(data.delta))

    def _done(self, data: Any) -> Iterator[BaseEvent]:
        self._in_response()
        yield from self._whole_item(data.output_index, data.item)

    def _whole_item(self, index: int, item: Any) -> Iterator[BaseEvent]:
        """Ends the item's part; first says it all where no delta did."""
        if is_call(item):
            if index not in self._seen:
                yield from self._open_call(index, item)
            part = self._parts.pop(index, None)
            if isinstance(part, Call):
                yield from self._end_call(part, item)
            return
        if index not in self._seen:
            if item.type == "message":
                for piece in item.content:
                    refusal = piece.type == "refusal"
                    yield from self._text(index, piece.refusal if refusal else piece.text, refusal=refusal)
            elif item.type == "reasoning":
                for name, pieces in (("summary", item.summary), ("text", item.content)):
                    for number, piece in enumerate(pieces or ()):
                        yield from self._reasoning(index, (name, number), piece.text)
        yield from self._close_part(index)

    def _completed(self, data: Any) -> Iterator[BaseEvent]:
        self._in_response()
        if not self._seen and not self.replaying:
            for index, item in enumerate(data.response.output):
                yield from self._whole_item(index, item)
        yield from self._close_parts()
        self.answering = self.replaying = False
        self.usage.extend(usage_of(data.response))

    def _broken_off(self, data: Any) -> Iterator[BaseEvent]:
        self.answering = False  # the provider ended it, in its own words; the SDK raises next
        if data.type != "error":
            self.usage.extend(usage_of(data.response))
        return iter(())

    # Parts

    def _open(self, index: int, part: _PartT) -> _PartT:
        self._in_response()
        self._parts[index] = part
        self._seen.add(index)
        return part

    def _close_parts(self) -> Iterator[BaseEvent]:
        for index in list(self._parts):
            yield from self._close_part(index)

    def _close_reasoning(self) -> Iterator[BaseEvent]:
        """What is said next ends the thought: Chat Completions models say so only at the end of the response."""
        for index in [index for index, part in self._parts.items() if isinstance(part, ReasoningPart)]:
            yield from self._close_part(index)

    def _close_part(self, index: int) -> Iterator[BaseEvent]:
        match self._parts.pop(index, None):
            case MessagePart(id=id_):
                yield TextMessageEndEvent(message_id=id_)
            case ReasoningPart() as part:
                if part.section is not None:
                    yield ReasoningMessageEndEvent(message_id=part.message)
                yield ReasoningEndEvent(message_id=part.id)
            case Call() as call:
                yield from self._end_call(call, None)
            case None:
                pass

    # Tool calls

    def _call_of(self, key: str) -> Call:
        if (call := self._calls.get(key)) is None:
            asked = None if self.subagent is None else self._run.asked.pop(key, None)
            call = self._calls[key] = asked or Call(self._unique_call_id(key))
        return call

    def _unique_call_id(self, key: str) -> str:
        id_ = key if key and key not in self._run.call_ids else self._run.new_id()
        self._run.call_ids.add(id_)
        return id_

    def _open_call(self, index: int, item: Any) -> Iterator[BaseEvent]:
        key = call_key(item)
        if key in self._calls and self._calls[key].opened:
            del self._calls[key]  # the provider used this id before
        yield from self._close_reasoning()
        call = self._open(index, self._call_of(key))
        yield self._start_call(call, item)

    def _start_call(self, call: Call, item: Any) -> BaseEvent:
        if self._holder is None:
            self._holder = self._run.new_id()
        call.opened, call.nameless = True, is_open_call(item) and field_of(item, "name") is None
        return ToolCallStartEvent(tool_call_id=call.id, tool_call_name=name_of(item), parent_message_id=self._holder)

    def _whole_call(self, item: Any) -> Iterator[BaseEvent]:
        call = self._call_of(call_key(item))
        if not call.opened:
            yield self._start_call(call, item)
        yield from self._end_call(call, item)

    def _end_call(self, call: Call, item: Any) -> Iterator[BaseEvent]:
        if item is not None and not call.has_arguments and (arguments := arguments_of(item)):
            yield ToolCallArgsEvent(tool_call_id=call.id, delta=valid_text(arguments))
        yield ToolCallEndEvent(tool_call_id=call.id)
        call.ended = True
        for fact in call.held:
            yield from fact()
        call.held.clear()
        if item is not None and field_of(item, "type") in RUN_BY_PROVIDER:
            yield from self._result(call, provider_result(item))

    def _after_end(self, call: Call, fact: Callable[[], Iterator[BaseEvent]]) -> Iterator[BaseEvent]:
        if call.ended:
            return fact() if self.subagent is None else self._attributed(fact())
        call.held.append(fact)
        return iter(())

    def tool_started(self, key: str) -> Iterator[BaseEvent]:
        """The tool of the call whose id the SDK knows as `key` begins to run."""
        call = self._call_of(key)
        return self._after_end(call, lambda: iter((custom(TOOL_STARTED, toolCallId=call.id),)))

    def others_started(self) -> Iterator[BaseEvent]:
        """A tool begins whose call is not known, a shell for one: so it may be any of such tools."""
        for key, call in self._calls.items():
            if call.nameless:
                call.nameless = False
                yield from self.tool_started(key)

    def tool_progress(self, key: str, value: ProgressValue) -> Iterator[BaseEvent]:
        call = self._call_of(key)

        def told() -> Iterator[BaseEvent]:
            if not call.answered:
                yield custom(TOOL_PROGRESS, toolCallId=call.id, **value)

        return self._after_end(call, told)

    def tool_ended(self, key: str, output: object) -> Iterator[BaseEvent]:
        """The tool gave `output`, which may be anything; of several ends of one call the first counts."""
        call = self._call_of(key)
        content = tool_content(output)
        return self._after_end(call, lambda: self._result(call, content))

    def _result(self, call: Call, content: str) -> Iterator[BaseEvent]:
        if not call.answered:
            call.answered = True
            yield ToolCallResultEvent(
                message_id=self._run.new_id(), tool_call_id=call.id, content=valid_text(content), role="tool"
            )

    # Ends

    def whole_text(self, text: str) -> Iterator[BaseEvent]:
        """A message that no model gave."""
        yield from self._close_parts()
        self._begin_response()
        yield from self._text(0, text)
        self.answering = False

    def end(self) -> Iterator[BaseEvent]:
        """The run came to a good end: what is left to say."""
        yield from self._close_parts()
        yield from self._end_step()

    def retract(self, reason: str, *, whole_run: bool) -> Iterator[BaseEvent]:
        """Takes back the text of the whole run, or of its last response."""
        yield from self._close_parts()
        within = self._run.nested if self.subagent is None else []
        for one in within if whole_run else ():
            yield from one._attributed(one.retract(reason, whole_run=True))
        for id_ in self._shown if whole_run else self._shown_now:
            yield custom(RETRACTED, messageId=id_, reason=reason)
