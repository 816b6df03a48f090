"""One execution of an agent of the OpenAI Agents SDK: its queue, its pump, its hooks, its checkpoints and its end.

Knows how to drive the SDK: pump, watch, keep, stop. Invariants:
- One pump takes the SDK's events as they come, so that they do not pile up in its unbounded queue (1.4 kB each) and an
  error drops none of those that came before it. Between pump and sink stands one bounded queue, which hooks and
  progress use too: all that is said of a run is in one order. A full queue slows tools and turns down, never readers.
  (Where the store is slower than the model, what is left of one response waits in the SDK's queue: it takes no hint.)
- No tool begins before the response that calls it is kept, and before it is durable in the stream that it begins. So a
  tool that may have run is always named there, and runs again, if it must, under the same id. (Agents inside tools have
  no checkpoints: see `openai_nested`.)
- A tool's result is in the stream only when its output is in the checkpoint: then it never runs again.
- Nothing is left running: however `drive()` ends, the SDK's tasks were cancelled and awaited.
- The SDK's iterator is never given a timeout: cancelling its `anext()` would kill the run. Time limits apply to the
  queue of ours.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import agents
import msgspec

from headwater.agui import BaseEvent, TokenUsage, aggregate_token_usage
from headwater.sources import (
    Paused,
    ProgressValue,
    Question,
    RunFailed,
    Sink,
    Stopped,
    current_call,
    current_trace,
    report_progress,
)
from headwater.sources.openai_asking import Asking
from headwater.sources.openai_calls import call_key, is_call, is_open_call
from headwater.sources.openai_checkpoints import Contexts, Kept, keep
from headwater.sources.openai_failures import failure
from headwater.sources.openai_nested import Fact, Nested, Told
from headwater.sources.openai_outputs import CAN_REMEMBER, is_json
from headwater.sources.openai_translation import Translation
from headwater.sources.openai_values import as_json, field_of, json_text

__all__ = ["Limits", "OneRun"]

_log: Final = logging.getLogger("headwater.sources.openai_agents")

_QUEUED: Final = 1024
"""Events between pump and sink: a few seconds of the fastest model, about 1 MB at most."""
_PROGRESS_QUEUED: Final = 256
"""Progress reports on their way; a tool that tells more at once has the rest dropped."""
_OF_OUR_SIDE: Final = frozenset({"internal", "tool_failed", "model_refused_request"})
"""Failures that somebody has to mend here: in the code, or in the configuration."""
_STOP_SECONDS: Final = 4.0
"""How long a cancelled run may take to wind up, since a tool may shield itself, before it is left behind. Less than the
supervisor waits, so that its stream is ended in time."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds, where None is no limit; and what is not to be told."""

    idle: float | None
    total: float | None
    nested: bool = True
    """Agents inside tools are told of."""


class OneRun(Told):
    """One execution, or what is left of one."""

    def __init__(
        self,
        sink: Sink,
        limits: Limits,
        contexts: Contexts,
        translation: Translation,
        last: Kept | None = None,
        model: object = None,
    ) -> None:
        """`last`: the checkpoint that it goes on from; `model`: stands in for those of all agents."""
        self._last, self._known = last, last.outputs if last is not None else {}
        self._sink, self._contexts, self._translation = sink, contexts, translation
        self._loop = asyncio.get_running_loop()
        self._facts: asyncio.Queue[Fact | None] = asyncio.Queue(_QUEUED)
        self._responses: list[asyncio.Event] = []  # of this process, each set when it is kept
        self._responses_kept = 0
        self._items_kept = 0
        self._steps = 0
        self._waiting: set[asyncio.Event] = set()
        self._stopping = False
        self.running: set[str] = set()  # tools
        self._progress_slots = threading.BoundedSemaphore(_PROGRESS_QUEUED)
        self._limits = limits
        self._deadline = None if limits.total is None else self._loop.time() + limits.total
        self._result: agents.RunResultStreaming | None = None
        self._tripped: Exception | None = None
        self._handled = False
        self._asking = Asking(current_trace.get(), model)

    async def drive(self, start: Callable[[OneRun], agents.RunResultStreaming]) -> object:
        """Runs to the end, whichever. Only errors of the agent become RunFailed; the sink's go up as they are."""
        try:
            result = start(self)
        except Exception as error:
            raise self._failure(error) from error
        self._result = result
        self._responses_before, self._items_kept = len(result.raw_responses), len(result.new_items)
        self._sink.on_stop(partial(self._stop_after_turn, result))
        pump = asyncio.create_task(self._pump(result), name=f"headwater pump {self._sink.run_id}")
        try:
            while (fact := await self._next()) is not None:
                told = fact()
                await (self.say(told) if isinstance(told, Iterator) else told)
            return await self._outcome(result, self._tripped or await pump)
        finally:
            self._sink.usage(self._usage(result))
            await self._stop(result, pump)

    async def say(self, events: Iterator[BaseEvent]) -> None:
        for event in events:
            await self._sink.emit(event)

    # The pump and its watch

    async def _pump(self, result: agents.RunResultStreaming) -> Exception | None:
        """Moves the SDK's events into the queue; gives the error that ended them."""
        error: BaseException | None = None
        try:
            async with aclosing(_generator(result.stream_events())) as events:
                async for event in events:
                    if (kept := self._checkpoint_at(event)) is None:
                        await self._facts.put(partial(self._translation.sdk_event, event))
                    else:
                        await self.through(partial(kept, result, event))
            error = result.run_loop_exception  # early failures are not raised by the iterator
        except Exception as raised:  # noqa: BLE001 - judged in `_outcome`, when the events before it are out
            error = raised
        await self._facts.put(None)
        return error if isinstance(error, Exception) else None

    async def through(self, fact: Callable[[], Awaitable[None]]) -> None:
        """Put a fact into the queue, and wait until it is said: meanwhile the SDK goes no further."""
        said = asyncio.Event()
        self._waiting.add(said)

        async def say() -> None:
            await fact()
            said.set()

        try:
            await self._facts.put(say)
            await said.wait()
        finally:
            self._waiting.discard(said)

    async def _next(self) -> Fact | None:
        if self._tripped is not None:
            return None
        left = None if self._deadline is None else self._deadline - self._loop.time()
        if left is not None and left <= 0:
            raise RunFailed("run_timeout", "The run took longer than it may.")
        if not self._facts.empty():
            return self._facts.get_nowait()
        idle = None if self.running else self._limits.idle
        patience = min((seconds for seconds in (left, idle) if seconds is not None), default=None)
        try:
            async with asyncio.timeout(patience):
                return await self._facts.get()
        except TimeoutError:
            if patience == left:
                raise RunFailed("run_timeout", "The run took longer than it may.") from None
            raise RunFailed("model_stalled", "The model has stopped sending.") from None

    # Input guardrails that run beside the model

    def _watch_guardrails(self) -> None:
        """The SDK tells of a tripwire only when the model has said all it has to say; here it ends the run at once."""
        task = getattr(self._result, "_input_guardrails_task", None)
        if task is not None:
            task.add_done_callback(self._guardrails_done)

    def _guardrails_done(self, _: object) -> None:
        assert self._result is not None
        for judged in self._result.input_guardrail_results:
            if judged.output.tripwire_triggered:
                self._tripped = agents.InputGuardrailTripwireTriggered(judged)
                self.put_now(lambda: iter(()))  # wakes whoever waits for a fact
                return

    # Checkpoints

    def _checkpoint_at(self, event: Any) -> Callable[[agents.RunResultStreaming, Any], Awaitable[None]] | None:
        """What is to be done at `event` beyond telling it."""
        if event.type == "raw_response_event":
            return self._after_response if event.data.type == "response.completed" else None
        if event.type == "agent_updated_stream_event":
            self._steps += 1
            return self._after_turn if self._steps > 1 else None
        return self._after_turn if event.name == "tool_output" else None

    async def _after_response(self, result: agents.RunResultStreaming, event: Any) -> None:
        """The response is whole; if it calls tools, it is kept before they begin."""
        response, replayed = event.data.response, self._translation.replaying
        events = list(self._translation.sdk_event(event))
        fresh = len(result.raw_responses) == self._responses_before + self._responses_kept and not replayed
        if fresh and any(is_call(item) for item in response.output) and self._may_keep(result):
            await self._keep(keep(result, response, self._translation.ids, self._contexts), events)
        else:
            await self.say(iter(events))
        if self._responses_kept < len(self._responses):
            self._responses[self._responses_kept].set()
        self._responses_kept += 1

    async def _after_turn(self, result: agents.RunResultStreaming, event: Any) -> None:
        """A turn is over: all its outputs are told and kept together."""
        outputs = [item for item in result.new_items if item.type == "tool_call_output_item"]
        ended = [self._translation.tool_ended(call_key(item.raw_item), item.output) for item in outputs]
        events = [said for told in (*ended, self._translation.sdk_event(event)) for said in told]
        answered = {call_key(item.raw_item) for item in outputs}
        calls = [item.raw_item for item in result.new_items if item.type == "tool_call_item"]
        whole = all(call_key(call) in answered for call in calls if is_open_call(call))
        if whole and len(result.new_items) > self._items_kept and self._may_keep(result):
            self._items_kept = len(result.new_items)
            await self._keep(keep(result, None, self._translation.ids, self._contexts), events)
        else:
            await self.say(iter(events))

    async def _after_tool(self, key: str, output: object) -> None:
        """A tool has ended while others of its turn still run."""
        if self._last is not None:
            outputs = self._last.outputs | {key: output}
            kept = msgspec.structs.replace(self._last, outputs=outputs, ids=self._translation.ids)
            await self._keep(kept, list(self._translation.tool_ended(key, output)))

    async def _keep(self, kept: Kept | None, events: list[BaseEvent]) -> None:
        self._last = kept or self._last
        if kept is None:
            await self.say(iter(events))
        else:
            await self._sink.checkpoint(msgspec.json.encode(kept), events)

    def _may_keep(self, result: agents.RunResultStreaming) -> bool:
        """A run that is gone on with asks its input guardrails only where it begins in its first turn."""
        task = getattr(result, "_input_guardrails_task", None)
        return self._sink.keeps and (not result.raw_responses or task is None or task.done())

    # Hooks: the true times of tools

    def on_tool_start(self, context: Any, agent: Any, tool: agents.Tool) -> Any:
        # A plain function on purpose: it is called in the task that goes on to run the tool, so the context variables
        # reach the tool. What it returns is awaited in a task of its own, where setting them would be in vain.
        key = _tool_key(context, tool)
        if key in self._known:
            return _nothing()
        self.running.add(key)
        if _has_call_id(context):
            report_progress.set(partial(self.report, self._translation, key))
            current_call.set(partial(self._translation.call_id, key))
            self._asking.enter_tool(self._translation.call_id, key, tool.name)
        return self._begin_tool(key, named=_has_call_id(context))

    def nested(self, key: str) -> Nested | None:
        return Nested(self, self._translation, key, key) if self._limits.nested else None

    async def _begin_tool(self, key: str, *, named: bool) -> None:
        if self._responses:
            await self._responses[-1].wait()
        begun = partial(self._translation.tool_started, key) if named else self._translation.others_started
        await self.through(partial(self._say_begun, begun))

    async def _say_begun(self, begun: Callable[[], Iterator[BaseEvent]]) -> None:
        await self.say(begun())
        await self._sink.flush()

    async def put(self, fact: Fact) -> None:
        await self._facts.put(fact)

    def put_now(self, fact: Fact) -> None:
        """From where nothing can wait. What finds no room is not said."""
        with suppress(asyncio.QueueFull):
            self._facts.put_nowait(fact)

    async def flush(self) -> None:
        await self._sink.flush()

    async def on_tool_end(self, context: Any, agent: Any, tool: agents.Tool, result: object) -> None:
        key = _tool_key(context, tool)
        self.running.discard(key)
        if not _has_call_id(context) or key in self._known:
            return
        self._asking.tool_ends(self._translation.call_id, key)
        # What is not told now comes with the end of the turn. After the last tool that is at once.
        if not self._sink.keeps:
            await self._facts.put(partial(self._translation.tool_ended, key, result))
        elif self.running and CAN_REMEMBER and is_json(result):
            await self._facts.put(partial(self._after_tool, key, result))

    async def on_llm_start(self, context: Any, agent: agents.Agent[Any], *_: Any) -> None:
        self._asking.begins(agent)
        if not self._responses:
            self._watch_guardrails()
        self.running.clear()  # a tool that failed has no end of its own
        self._responses.append(asyncio.Event())

    async def on_llm_end(self, context: Any, agent: Any, response: agents.ModelResponse) -> None:
        self._asking.ends(response)

    # Progress, from any thread

    def report(self, translation: Translation, key: str, value: ProgressValue) -> None:
        """A tool tells how far it is, in any thread."""
        if not self._progress_slots.acquire(blocking=False):
            return
        if _running_loop() is self._loop:
            self._take_progress(translation, key, value)
        else:
            with suppress(RuntimeError):  # the loop is closed: the process goes down
                self._loop.call_soon_threadsafe(self._take_progress, translation, key, value)

    def _take_progress(self, translation: Translation, key: str, value: ProgressValue) -> None:
        try:
            self._facts.put_nowait(partial(self._progress_fact, translation, key, value))
        except asyncio.QueueFull:
            self._progress_slots.release()

    def _progress_fact(self, translation: Translation, key: str, value: ProgressValue) -> Iterator[BaseEvent]:
        self._progress_slots.release()
        return translation.tool_progress(key, value)

    # The end

    async def _outcome(self, result: agents.RunResultStreaming, error: Exception | None) -> object:
        if error is not None:
            await self.say(self._retraction(error))
            raise self._failure(error) from error
        if self._stopping and result.final_output is None:
            raise Stopped
        if result.interruptions:
            raise self._pause(result)
        task = result.run_loop_task
        if task is not None and task.cancelled():
            raise RunFailed("internal", "The run was stopped inside the server.")
        answer = as_json(result.final_output)
        if self._handled:
            await self.say(self._translation.whole_text(answer if isinstance(answer, str) else json_text(answer)))
        await self.say(self._translation.end())
        return answer

    def noting(self, handlers: Mapping[str, Any] | None) -> Any:
        """`handlers` of errors, which note that they gave the answer: no model said it, so it has to be told."""
        return None if handlers is None else {kind: partial(self._handle, one) for kind, one in handlers.items()}

    async def _handle(self, handler: Callable[[Any], Any], error: Any) -> Any:
        answer = handler(error)
        answer = await answer if inspect.isawaitable(answer) else answer
        self._handled = answer is not None
        return answer

    def _pause(self, result: agents.RunResultStreaming) -> Exception:
        state = keep(result, None, self._translation.ids, self._contexts)
        if state is None:
            return RunFailed("internal", "The run cannot be kept until somebody has decided.")
        return Paused([self._question(item) for item in result.interruptions], msgspec.json.encode(state))

    def _question(self, item: agents.ToolApprovalItem) -> Question:
        arguments = field_of(item.raw_item, "arguments")
        name = item.tool_name or str(field_of(item.raw_item, "name"))
        told = arguments if isinstance(arguments, str) else ""
        return Question(self._translation.asked_id(call_key(item.raw_item)), name, told)

    def _stop_after_turn(self, result: agents.RunResultStreaming) -> None:
        self._stopping = True
        result.cancel(mode="after_turn")

    def _retraction(self, error: Exception) -> Iterator[BaseEvent]:
        if isinstance(error, agents.OutputGuardrailTripwireTriggered):
            return self._translation.retract("output_guardrail", whole_run=False)
        if isinstance(error, agents.InputGuardrailTripwireTriggered):
            return self._translation.retract("input_guardrail", whole_run=True)
        return iter(())

    def _failure(self, error: Exception) -> RunFailed:
        failed = failure(error, answering=self._translation.answering, tool_running=bool(self.running))
        # What kind of error, and where: enough to find it. Its text may hold prompts and keys, so it is for debugging.
        told = f"run {self._sink.run_id} failed: {failed.code} ({type(error).__name__} at {_place_of(error)})"
        if failed.code in _OF_OUR_SIDE:
            _log.error("%s; log level debug for %s shows the whole error", told, __name__)
        else:
            _log.info("%s", told)
        _log.debug("run %s", self._sink.run_id, exc_info=error)
        return failed

    def _usage(self, result: agents.RunResultStreaming) -> list[TokenUsage]:
        """Per model; what is known only as a sum, of agents inside tools for one, comes without a model's name."""
        known = aggregate_token_usage(self._translation.usage)
        total = result.context_wrapper.usage
        inner_in = total.input_tokens - sum(entry.input_tokens or 0 for entry in known)
        inner_out = total.output_tokens - sum(entry.output_tokens or 0 for entry in known)
        if inner_in > 0 or inner_out > 0:
            inner_in, inner_out = max(0, inner_in), max(0, inner_out)
            known.append(TokenUsage(input_tokens=inner_in, output_tokens=inner_out, total_tokens=inner_in + inner_out))
        return known

    async def _stop(self, result: agents.RunResultStreaming, pump: asyncio.Task[Any]) -> None:
        """Ends what the SDK still runs. A second cancellation cuts the waiting short."""
        if pump.done():
            return
        result.cancel()
        for said in self._waiting:  # nobody says anything any more
            said.set()
        while not self._facts.empty():  # makes room for a pump that waits for some
            self._facts.get_nowait()
        try:
            await asyncio.wait({pump}, timeout=_STOP_SECONDS)
        finally:
            if not pump.done():
                pump.cancel()
                _left_behind.add(pump)
                pump.add_done_callback(_left_behind.discard)
                _log.warning("run %s was cancelled, and something in it does not stop", self._sink.run_id)


_left_behind: Final[set[asyncio.Task[Any]]] = set()
"""Pumps of runs that do not stop; kept here because asyncio itself keeps its tasks only weakly."""


def _has_call_id(context: Any) -> bool:
    return isinstance(getattr(context, "tool_call_id", None), str)


def _tool_key(context: Any, tool: agents.Tool) -> str:
    """What the SDK knows the tool call as; tools that are not function tools (a shell, say) have no id in hooks."""
    return str(context.tool_call_id) if _has_call_id(context) else tool.name


async def _nothing() -> None:
    return None


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _generator(iterator: AsyncIterator[Any]) -> Any:
    """The SDK types as an iterator what is a generator, and wants closing."""
    return iterator


def _place_of(error: BaseException) -> str:
    """File and line that raised it."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "?" if at is None else f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
