"""Runs an agent of the OpenAI Agents SDK as a source.

Knows how to drive the SDK: start, pump, watch, stop. What its events mean is `openai_translation`'s, what its errors
may say is `openai_failures`'s. Invariants:
- One pump takes the SDK's events as they come, so that they do not pile up in its unbounded queue (1.4 kB each) and an
  error drops none of those that came before it. Between pump and sink stands one bounded queue, which hooks and
  progress use too: all that is said of a run is in one order. A full queue slows tools and turns down, never readers.
- Nothing is left running: however `run()` ends, the SDK's tasks were cancelled and awaited.
- The SDK's iterator is never given a timeout: cancelling its `anext()` would kill the run. Time limits apply to the
  queue of ours.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeAlias

from headwater.agui import BaseEvent, TokenUsage, aggregate_token_usage
from headwater.errors import MissingExtra
from headwater.sources import ProgressValue, RunFailed, Sink, report_progress

try:
    import agents
    from agents.items import TResponseInputItem
    from agents.run import DEFAULT_MAX_TURNS
except ImportError as error:
    raise MissingExtra("agents", "openai-agents") from error

from headwater.sources.openai_cut import watching_for_cuts
from headwater.sources.openai_failures import failure
from headwater.sources.openai_translation import Translation
from headwater.sources.openai_values import as_json

__all__ = ["OpenAIAgent"]

_log: Final = logging.getLogger(__name__)

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
class _Limits:
    """Seconds; None is no limit."""

    idle: float | None
    total: float | None


class OpenAIAgent:
    """An `agents.Agent` as a source.

    - `name`: what it is registered under; by default the slug of the agent's name.
    - `max_turns`: model calls per run; by default the SDK's (10).
    - `run_config`: for every run; `context_factory` makes the SDK's context object of each run.
    - `idle_timeout`: seconds without any event from the model while no tool runs; then RunFailed("model_stalled").
    - `total_timeout`: seconds for the whole run; then RunFailed("run_timeout").
    - `require_finish_reason`: a Chat Completions stream that just ends is a failure ("upstream_cut"). Turn it off for a
      provider that never sends a finish_reason.

    Chat Completions models tell their token usage only with `ModelSettings(include_usage=True)`.
    """

    def __init__(
        self,
        agent: agents.Agent[Any],
        *,
        name: str | None = None,
        max_turns: int | None = None,
        run_config: agents.RunConfig | None = None,
        context_factory: Callable[[], Any] | None = None,
        idle_timeout: float | None = 120.0,
        total_timeout: float | None = None,
        require_finish_reason: bool = True,
    ) -> None:
        self.agent = agent
        self.name = name or re.sub(r"[^a-z0-9]+", "-", agent.name.lower()).strip("-") or "agent"
        self._max_turns = DEFAULT_MAX_TURNS if max_turns is None else max_turns
        self._run_config = run_config
        self._context_factory = context_factory
        self._limits = _Limits(idle_timeout, total_timeout)
        self._require_finish_reason = require_finish_reason

    def __repr__(self) -> str:
        return f"<OpenAIAgent {self.name}>"

    async def run(self, input: str | list[TResponseInputItem], sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """See `Source.run`. `input` is what the SDK takes: a text, or a list of Responses input items.

        The result is the final output as JSON: a string, or the object of the agent's `output_type`.
        """
        with watching_for_cuts(self._require_finish_reason):
            return await _Run(sink, self._limits).drive(partial(self._start, input))

    def _start(self, given: str | list[TResponseInputItem], hooks: agents.RunHooks[Any]) -> agents.RunResultStreaming:
        return agents.Runner.run_streamed(
            self.agent,
            given,
            context=self._context_factory() if self._context_factory is not None else None,
            max_turns=self._max_turns,
            hooks=hooks,
            run_config=self._run_config,
        )


_Fact: TypeAlias = Callable[[], Iterator[BaseEvent]]
"""Something that happened; called when its turn has come, it gives the events that say so."""


class _Run(agents.RunHooks[Any]):
    """One execution: the queue, its pump, its hooks, and its end."""

    def __init__(self, sink: Sink, limits: _Limits) -> None:
        self._sink = sink
        self._loop = asyncio.get_running_loop()
        self._translation = Translation(sink.run_id)
        self._facts: asyncio.Queue[_Fact | None] = asyncio.Queue(_QUEUED)
        self._running: set[str] = set()  # tools
        self._progress_slots = threading.BoundedSemaphore(_PROGRESS_QUEUED)
        self._idle = limits.idle
        self._deadline = None if limits.total is None else self._loop.time() + limits.total

    async def drive(self, start: Callable[[agents.RunHooks[Any]], agents.RunResultStreaming]) -> object:
        """Runs to the end, whichever. Only errors of the agent become RunFailed; the sink's go up as they are."""
        try:
            result = start(self)
        except Exception as error:
            raise self._failure(error) from error
        pump = asyncio.create_task(self._pump(result), name=f"headwater pump {self._sink.run_id}")
        try:
            while (fact := await self._next()) is not None:
                await self._emit(fact())
            return await self._outcome(result, await pump)
        finally:
            self._sink.usage(self._usage(result))
            await self._stop(result, pump)

    async def _emit(self, events: Iterator[BaseEvent]) -> None:
        for event in events:
            await self._sink.emit(event)

    # The pump and its watch

    async def _pump(self, result: agents.RunResultStreaming) -> Exception | None:
        """Moves the SDK's events into the queue; gives the error that ended them."""
        error: BaseException | None = None
        try:
            async with aclosing(_generator(result.stream_events())) as events:
                async for event in events:
                    await self._facts.put(partial(self._translation.sdk_event, event))
            error = result.run_loop_exception  # early failures are not raised by the iterator
        except Exception as raised:  # noqa: BLE001 - judged in `_outcome`, when the events before it are out
            error = raised
        await self._facts.put(None)
        return error if isinstance(error, Exception) else None

    async def _next(self) -> _Fact | None:
        left = None if self._deadline is None else self._deadline - self._loop.time()
        if left is not None and left <= 0:
            raise RunFailed("run_timeout", "The run took longer than it may.")
        if not self._facts.empty():
            return self._facts.get_nowait()
        idle = None if self._running else self._idle
        patience = min((seconds for seconds in (left, idle) if seconds is not None), default=None)
        try:
            async with asyncio.timeout(patience):
                return await self._facts.get()
        except TimeoutError:
            if patience == left:
                raise RunFailed("run_timeout", "The run took longer than it may.") from None
            raise RunFailed("model_stalled", "The model has stopped sending.") from None

    # Hooks: the true times of tools

    def on_tool_start(self, context: Any, agent: Any, tool: agents.Tool) -> Any:
        # A plain function on purpose: it is called in the task that goes on to run the tool, so the context variable
        # reaches the tool. What it returns is awaited in a task of its own, where setting it would be in vain.
        key = _tool_key(context, tool)
        self._running.add(key)
        if not _has_call_id(context):
            return _nothing()
        report_progress.set(partial(self._report, key))
        return self._facts.put(partial(self._translation.tool_started, key))

    async def on_tool_end(self, context: Any, agent: Any, tool: agents.Tool, result: object) -> None:
        key = _tool_key(context, tool)
        self._running.discard(key)
        if _has_call_id(context):
            await self._facts.put(partial(self._translation.tool_ended, key, result))

    async def on_llm_start(self, *_: Any) -> None:
        self._running.clear()  # a tool that failed has no end of its own

    # Progress, from any thread

    def _report(self, key: str, value: ProgressValue) -> None:
        if not self._progress_slots.acquire(blocking=False):
            return
        if _running_loop() is self._loop:
            self._take_progress(key, value)
        else:
            with suppress(RuntimeError):  # the loop is closed: the process goes down
                self._loop.call_soon_threadsafe(self._take_progress, key, value)

    def _take_progress(self, key: str, value: ProgressValue) -> None:
        try:
            self._facts.put_nowait(partial(self._progress_fact, key, value))
        except asyncio.QueueFull:
            self._progress_slots.release()

    def _progress_fact(self, key: str, value: ProgressValue) -> Iterator[BaseEvent]:
        self._progress_slots.release()
        return self._translation.tool_progress(key, value)

    # The end

    async def _outcome(self, result: agents.RunResultStreaming, error: Exception | None) -> object:
        if error is not None:
            await self._emit(self._retraction(error))
            raise self._failure(error) from error
        if result.interruptions:
            raise RunFailed("approval_not_supported", "A tool asks for an approval, which nobody can give here.")
        task = result.run_loop_task
        if task is not None and task.cancelled():
            raise RunFailed("internal", "The run was stopped inside the server.")
        await self._emit(self._translation.end())
        return as_json(result.final_output)

    def _retraction(self, error: Exception) -> Iterator[BaseEvent]:
        if isinstance(error, agents.OutputGuardrailTripwireTriggered):
            return self._translation.retract("output_guardrail", whole_run=False)
        if isinstance(error, agents.InputGuardrailTripwireTriggered):
            return self._translation.retract("input_guardrail", whole_run=True)
        return iter(())

    def _failure(self, error: Exception) -> RunFailed:
        failed = failure(error, answering=self._translation.answering, tool_running=bool(self._running))
        # What kind of error, and where: enough to find it. Its text may hold prompts and keys, so it is for debugging.
        told = f"run {self._sink.run_id} failed: {failed.code} ({type(error).__name__} at {_place_of(error)})"
        if failed.code in _OF_OUR_SIDE:
            _log.error("%s; log level debug for %s shows the whole error", told, __name__)
        else:
            _log.info("%s", told)
        _log.debug("run %s", self._sink.run_id, exc_info=error)
        return failed

    def _usage(self, result: agents.RunResultStreaming) -> list[TokenUsage]:
        """Per model; what agents inside tools used comes without a model's name, since only its sum is known."""
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
