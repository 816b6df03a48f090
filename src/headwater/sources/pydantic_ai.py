"""Runs an agent of Pydantic AI as a source, through its own AG-UI adapter.

Knows how to start, watch and stop an agent; what it says in AG-UI is the adapter's affair. Added are when a tool begins
to run, its progress, and the usage of runs that were cancelled. Invariants: no text of an exception reaches a reader;
however the run ends, the agent has been stopped and waited for. Idle time counts only while no tool runs.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from headwater.agui import TOOL_PROGRESS, TOOL_STARTED, BaseEvent, TokenUsage, custom
from headwater.errors import HeadwaterError, MissingExtra
from headwater.sources import ProgressValue, RunFailed, Sink, current_call, report_progress
from headwater.sources.adoption import CANNOT_ASK, Adoption
from headwater.sources.openai_values import as_json
from headwater.sources.redacted import redacted

try:
    from ag_ui.core import Message, RunAgentInput
    from pydantic import TypeAdapter, ValidationError
    from pydantic_ai import DeferredToolRequests, exceptions
    from pydantic_ai.agent import AbstractAgent
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import (
        CapabilityEvent,
        FunctionToolCallEvent,
        FunctionToolResultEvent,
        PartDeltaEvent,
        PartEndEvent,
        PartStartEvent,
    )
    from pydantic_ai.run import AgentRunResult
    from pydantic_ai.ui import NativeEvent
    from pydantic_ai.ui.ag_ui import AGUIAdapter, AGUIEventStream
    from pydantic_ai.usage import RunUsage
except ImportError as error:
    raise MissingExtra("pydantic-ai", "pydantic-ai-slim") from error

__all__ = ["PydanticAIAgent"]

_log: Final = logging.getLogger(__name__)
_MESSAGES: Final[TypeAdapter[list[Message]]] = TypeAdapter(list[Message])
_PROGRESS_QUEUED: Final = 256
"""Progress reports of one tool on their way; what it tells beyond is dropped."""


class PydanticAIAgent:
    """A `pydantic_ai.Agent` as a source.

    - `name`: what it is registered under; by default the slug of the agent's name.
    - `deps_factory` makes the agent's dependencies for each run.
    - `run_options`: further arguments of every run (`model_settings`, `usage_limits`, …), as `AGUIAdapter.run_stream`
      takes them; `adapter_options`: of its `AGUIAdapter` (`conversation_store`, …).
    - `idle_timeout`: seconds without any event while no tool runs; then RunFailed("model_stalled").
    - `total_timeout`: seconds for the whole run; then RunFailed("run_timeout").

    Tools that ask for an approval, or that are run elsewhere, end the run with RunFailed("approval_not_supported").
    """

    def __init__(
        self,
        agent: AbstractAgent[Any, Any],
        *,
        name: str | None = None,
        deps_factory: Callable[[], Any] | None = None,
        run_options: Mapping[str, Any] | None = None,
        adapter_options: Mapping[str, Any] | None = None,
        idle_timeout: float | None = 120.0,
        total_timeout: float | None = None,
    ) -> None:
        self.agent = agent
        self.name = name or re.sub(r"[^a-z0-9]+", "-", (agent.name or "").lower()).strip("-") or "agent"
        self._deps_factory = deps_factory
        self._run_options, self._adapter_options = dict(run_options or {}), dict(adapter_options or {})
        self._idle, self._total = idle_timeout, total_timeout

    def __repr__(self) -> str:
        return f"<PydanticAIAgent {self.name}>"

    async def run(self, input: str | list[dict[str, Any]], sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """See `Source.run`. `input` is a text, or a list of AG-UI messages, whose ids may be missing.

        The result is the agent's output as JSON. The agent's conversation is the run's thread.
        """
        asked = RunAgentInput(
            thread_id=sink.thread_id, run_id=sink.run_id, messages=_messages(input), tools=[], context=[]
        )
        run = _Run(asked, sink, self._idle)
        try:
            async with asyncio.timeout(self._total) as limit:
                await run.drive(self._events(asked, run))
        except TimeoutError as error:
            if not limit.expired():
                raise run.failure(error) from error
            raise RunFailed("run_timeout", "The run took longer than it may.") from error
        except (RunFailed, HeadwaterError):
            raise
        except Exception as error:
            raise run.failure(error) from error
        finally:
            sink.usage(run.used())
        return as_json(run.output)

    def _events(self, asked: RunAgentInput, run: _Run) -> AsyncIterator[BaseEvent]:
        adapter = AGUIAdapter(self.agent, asked, **self._adapter_options)
        options = {
            **self._run_options,
            "usage": run.usage,
            "capabilities": [*self._run_options.get("capabilities", ()), _TellingProgress(run.tool_call_id)],
        }
        if self._deps_factory is not None:
            options["deps"] = self._deps_factory()
        if adapter.conversation_store is not None:
            del options["usage"]  # the store brings the conversation's own, and takes no other
        return run.stream.transform_stream(adapter.run_stream_native(**options), on_complete=run.completed)


class _Stream(AGUIEventStream[Any, Any]):
    """The adapter's translation, which keeps an error for itself instead of telling its text."""

    failed: Exception | None = None
    answering = False
    """A model's answer has begun and not ended."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tools_running: set[str] = set()

    async def handle_event(self, event: NativeEvent) -> AsyncIterator[BaseEvent]:
        self.answering = isinstance(event, PartStartEvent | PartDeltaEvent | PartEndEvent)
        if isinstance(event, FunctionToolCallEvent):
            self.tools_running.add(event.part.tool_call_id)
        elif isinstance(event, FunctionToolResultEvent):
            self.tools_running.discard(event.part.tool_call_id)
        async for said in super().handle_event(event):
            yield said

    async def on_error(self, error: Exception) -> AsyncIterator[BaseEvent]:
        self.failed, self._error = error, True
        nothing: tuple[BaseEvent, ...] = ()
        for event in nothing:
            yield event

    async def on_cancelled(self, cancelled: exceptions.RunCancelled) -> AsyncIterator[BaseEvent]:
        async for event in self.on_error(cancelled):
            yield event

    async def handle_function_tool_call(self, event: FunctionToolCallEvent) -> AsyncIterator[BaseEvent]:
        yield custom(TOOL_STARTED, toolCallId=event.part.tool_call_id)

    async def handle_capability_event(self, event: CapabilityEvent) -> AsyncIterator[BaseEvent]:
        if isinstance(event, _Told):
            yield custom(TOOL_PROGRESS, toolCallId=event.tool_call_id, **event.value)


class _Run:
    """One execution: what it has said, and the watch over it."""

    def __init__(self, asked: RunAgentInput, sink: Sink, idle: float | None) -> None:
        self.usage = RunUsage()
        self.output: object = None
        self.stream = _Stream(asked, include_usage=True)
        self._sink, self._idle = sink, idle
        self._adoption = Adoption(sink.run_id)

    async def drive(self, events: AsyncIterator[BaseEvent]) -> None:
        """Everything the agent says, into the sink. Raises what ended it early."""
        async with aclosing(events):  # type: ignore[type-var]
            while (event := await self._next(events)) is not None:
                for ours in self._adoption.events(event):
                    await self._sink.emit(ours)
        if self.stream.failed is not None:
            raise self.stream.failed
        if isinstance(self.output, DeferredToolRequests):
            raise RunFailed("approval_not_supported", CANNOT_ASK)

    async def _next(self, events: AsyncIterator[BaseEvent]) -> BaseEvent | None:
        try:
            # Cancelling the agent is what is wanted here: the run is over then.
            async with asyncio.timeout(None if self.stream.tools_running else self._idle) as limit:
                return await anext(events, None)
        except TimeoutError:
            if not limit.expired():
                raise
            raise RunFailed("model_stalled", "The model has stopped sending.") from None

    def tool_call_id(self, theirs: str) -> str:
        return self._adoption.tool_call_id(theirs)

    def completed(self, result: AgentRunResult[Any]) -> None:
        self.output = result.output

    def used(self) -> list[TokenUsage]:
        """Per model; of a run that did not come to its end only the sum is known."""
        total = self.usage
        if self._adoption.usage or not (total.input_tokens or total.output_tokens):
            return self._adoption.usage
        return [
            TokenUsage(
                input_tokens=total.input_tokens,
                output_tokens=total.output_tokens,
                total_tokens=total.input_tokens + total.output_tokens,
            )
        ]

    def failure(self, error: Exception) -> RunFailed:
        for kinds, code, message in _FAILURES:
            if isinstance(error, kinds):
                _log.info("run %s failed: %s", self._sink.run_id, code)
                _log.debug("run %s", self._sink.run_id, exc_info=error)
                return RunFailed(code, message)
        told = redacted(error, self._sink.run_id, _log)
        if isinstance(error, exceptions.ModelConnectionError):
            if self.stream.answering:
                return RunFailed("upstream_cut", "The model's stream was cut off in the middle of its answer.")
            return RunFailed("model_unreachable", "The model cannot be reached.")
        if isinstance(error, exceptions.ModelHTTPError):
            return _refused(error.status_code)
        return RunFailed("tool_failed", "A tool failed.") if self.stream.tools_running else told


_FAILURES: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...]] = (
    (exceptions.RunTimedOut, "run_timeout", "The run took longer than it may."),
    (exceptions.RunCancelled, "stopped", "The run was stopped by its agent."),
    (exceptions.UsageLimitExceeded, "usage_limit", "The run used more than it may."),
    (exceptions.ContentFilterError, "model_refused", "The model declined to answer."),
    (exceptions.UnexpectedModelBehavior, "model_behavior", "The model answered with something that cannot be used."),
    (
        (exceptions.ModelRateLimitError, exceptions.ModelQuotaExceededError),
        "rate_limited",
        "The model's provider allows no more requests at the moment.",
    ),
    (
        (exceptions.ModelTimeoutError, exceptions.ModelRequestTimeout),
        "model_timeout",
        "The model took too long to answer.",
    ),
    (
        (exceptions.ModelUnavailableError, exceptions.ModelServerError),
        "model_unreachable",
        "The model's provider failed.",
    ),
    (exceptions.ModelRequestRejectedError, "model_refused_request", "The model's provider refused the request."),
)


def _refused(status: int) -> RunFailed:
    if status >= 500:
        return RunFailed("model_unreachable", f"The model's provider failed (HTTP {status}).")
    return RunFailed("model_refused_request", f"The model's provider refused the request (HTTP {status}).")


def _messages(given: str | list[dict[str, Any]]) -> list[Message]:
    """Raises RunFailed for what the agent cannot be asked."""
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    try:
        return _MESSAGES.validate_python([{"id": f"in.{n}", **message} for n, message in enumerate(given, start=1)])
    except (ValidationError, TypeError) as error:
        said = 'The input is a text, or AG-UI messages: [{"role": "user", "content": "…"}].'
        raise RunFailed("bad_input", said) from error


# Progress of tools


@dataclass(kw_only=True)
class _Told(CapabilityEvent, namespace="headwater"):
    """Something a tool told through `headwater.sources.progress`."""

    value: ProgressValue


class _TellingProgress(AbstractCapability[Any]):
    """Lets `progress(...)` inside of tools reach the run, from any thread, and tells them their calls' ids."""

    def __init__(self, tool_call_id: Callable[[str], str]) -> None:
        """`tool_call_id` gives the id by which readers know the call that the model gave this one."""
        self._tool_call_id = tool_call_id

    async def wrap_tool_execute(self, ctx: Any, *, call: Any, tool_def: Any, args: Any, handler: Any) -> Any:
        telling: set[asyncio.Task[Any]] = set()
        loop = asyncio.get_running_loop()

        def tell(value: ProgressValue) -> None:
            if len(telling) < _PROGRESS_QUEUED:
                task = loop.create_task(ctx.emit(_Told(tool_call_id=call.tool_call_id, value=value)))
                telling.add(task)
                task.add_done_callback(telling.discard)

        def report(value: ProgressValue) -> None:
            with suppress(RuntimeError):  # the loop is closed: the process goes down
                loop.call_soon_threadsafe(partial(tell, value))

        # Both for this call only: each runs in a context of its own.
        current_call.set(partial(self._tool_call_id, call.tool_call_id))
        report_progress.set(report)
        try:
            result = await handler(args)
            await asyncio.sleep(0)  # what was told last has been scheduled, and is on its way
            if telling:
                await asyncio.wait(telling)
            return result
        finally:
            for task in telling:
                task.cancel()
