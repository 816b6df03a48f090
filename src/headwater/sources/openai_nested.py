"""Agents inside tools (`Agent.as_tool`): what they say and do, told within the run that they are inside of.

The SDK runs such an agent without a stream, in its runner's `run`. It gives no seam for watching that; so the runner is
replaced, where the SDK looks it up, by one that streams those runs and watches the stream pass. It does so only in the
tools of runs of ours (a context variable says), and changes nothing for others: nor for agents that a tool's own code,
or a guardrail, runs by itself.

Knows the SDK's runner, and `Around`, the run outside. Invariants:
- What is said of an agent inside carries its subagent id, between its SUBAGENT_STARTED and its end.
- Its tools have ids of their own, and none begins before its call is durable in the stream. But there is no checkpoint
  inside: where the run is gone on with, the outer tool runs again, and so does all that is inside, under new ids.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, Final, Protocol, TypeAlias

import agents
from agents.tool_context import ToolContext

from headwater.agui import BaseEvent
from headwater.sources import ProgressValue, current_call, current_trace, report_progress
from headwater.sources.openai_asking import Asking
from headwater.sources.openai_failures import failure
from headwater.sources.openai_runner import Before, stand_before
from headwater.sources.openai_translation import Translation

__all__ = ["Fact", "Nested", "Told", "watch_nested"]

Fact: TypeAlias = Callable[[], Iterator[BaseEvent] | Awaitable[None]]
"""Something that happened; called when its turn has come, it gives the events that say so, or says them itself."""


class Around(Protocol):
    """The run outside."""

    running: set[str]
    """Tools that run: while some do, a silent model is none that has stalled."""

    async def put(self, fact: Fact) -> None: ...
    def put_now(self, fact: Fact) -> None: ...
    async def through(self, fact: Callable[[], Awaitable[None]]) -> None: ...
    async def say(self, events: Iterator[BaseEvent]) -> None: ...
    async def flush(self) -> None: ...
    def report(self, translation: Translation, key: str, value: ProgressValue) -> None: ...


class Told(agents.RunHooks[Any]):
    """The hooks of a run that is told of."""

    def nested(self, key: str) -> Nested | None:
        """What is to watch the agent inside the tool of the call that the SDK knows as `key`; None: it is not told."""
        raise NotImplementedError


class Nested(Told):
    """The agent inside one call of a tool."""

    def __init__(self, around: Around, outer: Translation, key: str, name: str) -> None:
        """`name`: of the call in `around.running`."""
        self._around, self._outer, self._key, self._name = around, outer, key, name
        self._inner: Translation
        self._theirs: agents.RunHooks[Any] = agents.RunHooks()
        self._responses: list[asyncio.Event] = []
        self._told = 0
        self._asking = Asking(None)

    async def run(
        self, start: Callable[..., agents.RunResultStreaming], agent: Any, given: Any, options: dict[str, Any]
    ) -> agents.RunResultStreaming:
        """What the runner's `run` does, watched."""
        self._inner, started = self._outer.nested(agent.name, self._key)
        self._theirs = options.get("hooks") or self._theirs
        self._asking = Asking(current_trace.get(), _model_of(options), self._inner.subagent)
        was_running = self._name in self._around.running
        self._around.running.discard(self._name)  # now it is a model that works
        try:
            await self._around.put(lambda: started)
            result = start(agent, given, **{**options, "hooks": self})
            await self._watch(result)
        except BaseException as error:
            self._around.put_now(partial(self._inner.nested_end, failed=self._failed(error)))
            raise
        finally:
            self._around.running -= {name for name in self._around.running if name.startswith(self._prefix)}
            if was_running:
                self._around.running.add(self._name)
        await self._around.put(partial(self._inner.nested_end, suspended=bool(result.interruptions)))
        return result

    async def _watch(self, result: agents.RunResultStreaming) -> None:
        async with aclosing(_generator(result.stream_events())) as events:
            try:
                async for event in events:
                    await self._around.put(partial(self._say, event))
            except BaseException:
                result.cancel()
                raise
        if (error := result.run_loop_exception) is not None:  # early failures are not raised by the iterator
            raise error

    def _say(self, event: Any) -> Iterator[BaseEvent]:
        yield from self._inner.sdk_event(event)
        if event.type == "raw_response_event" and event.data.type == "response.completed":
            for response in self._responses[self._told :]:
                response.set()
            self._told = len(self._responses)

    def _failed(self, error: BaseException) -> tuple[str, str]:
        if isinstance(error, Exception):
            running = any(name.startswith(self._prefix) for name in self._around.running)
            failed = failure(error, answering=self._inner.answering, tool_running=running)
            return failed.code, failed.message
        return "cancelled", "It was stopped."

    def nested(self, key: str) -> Nested:
        return Nested(self._around, self._inner, key, self._prefix + key)

    @property
    def _prefix(self) -> str:
        return f"{self._inner.subagent}/"

    # Hooks: see those of the run outside

    def on_tool_start(self, context: Any, agent: Any, tool: agents.Tool) -> Any:
        key = getattr(context, "tool_call_id", None)
        theirs = self._theirs.on_tool_start(context, agent, tool)
        if not isinstance(key, str):
            return self._begin_tool(self._inner.others_started, theirs)
        self._around.running.add(self._prefix + key)
        report_progress.set(partial(self._around.report, self._inner, key))
        current_call.set(partial(self._inner.call_id, key))
        self._asking.enter_tool(self._inner.call_id, key, tool.name)
        return self._begin_tool(partial(self._inner.tool_started, key), theirs)

    async def _begin_tool(self, begun: Callable[[], Iterator[BaseEvent]], theirs: Awaitable[None]) -> None:
        if self._responses:
            await self._responses[-1].wait()
        await self._around.through(partial(self._say_begun, begun))
        await theirs

    async def _say_begun(self, begun: Callable[[], Iterator[BaseEvent]]) -> None:
        await self._around.say(begun())
        await self._around.flush()

    async def on_tool_end(self, context: Any, agent: Any, tool: agents.Tool, result: object) -> None:
        await self._theirs.on_tool_end(context, agent, tool, result)
        key = getattr(context, "tool_call_id", None)
        if isinstance(key, str):
            self._around.running.discard(self._prefix + key)
            self._asking.tool_ends(self._inner.call_id, key)
            await self._around.put(partial(self._inner.tool_ended, key, result))

    async def on_llm_start(self, context: Any, agent: agents.Agent[Any], *given: Any, **named: Any) -> None:
        self._asking.begins(agent)
        self._responses.append(asyncio.Event())
        await self._theirs.on_llm_start(context, agent, *given, **named)

    async def on_llm_end(self, context: Any, agent: Any, response: agents.ModelResponse) -> None:
        self._asking.ends(response)
        await self._theirs.on_llm_end(context, agent, response)

    async def on_agent_start(self, *given: Any, **named: Any) -> None:
        await self._theirs.on_agent_start(*given, **named)

    async def on_agent_end(self, *given: Any, **named: Any) -> None:
        await self._theirs.on_agent_end(*given, **named)

    async def on_handoff(self, *given: Any, **named: Any) -> None:
        await self._theirs.on_handoff(*given, **named)


def _model_of(options: dict[str, Any]) -> object:
    config = options.get("run_config")
    return None if config is None else config.model


_inside: Final[ContextVar[Told | None]] = ContextVar("headwater_inside", default=None)
"""The run of ours, or the agent inside one, that the tools of this context are of."""


@contextmanager
def _within(told: Told | None) -> Iterator[None]:
    token = _inside.set(told)
    try:
        yield
    finally:
        _inside.reset(token)


class _Runner(Before):
    """Asks first whether somebody watches."""

    async def run(self, starting_agent: Any, input: Any, **options: Any) -> Any:  # noqa: A002 - the SDK's word
        told, context = _inside.get(), options.get("context")
        # Agents that are tools are run with the context of their call; who runs one by hand gives a context of theirs.
        nested = told.nested(context.tool_call_id) if told is not None and isinstance(context, ToolContext) else None
        if nested is None:
            with _within(None):
                return await super().run(starting_agent, input, **options)
        return await nested.run(self.run_streamed, starting_agent, input, options)

    def run_streamed(self, starting_agent: Any, input: Any, **options: Any) -> Any:  # noqa: A002 - the SDK's word
        hooks = options.get("hooks")
        with _within(hooks if isinstance(hooks, Told) else None):
            return super().run_streamed(starting_agent, input, **options)


def watch_nested() -> None:
    """From now on, runs whose hooks are a `Told` hear of the agents inside them."""
    stand_before(_Runner)


def _generator(iterator: AsyncIterator[Any]) -> Any:
    """The SDK types as an iterator what is a generator, and wants closing."""
    return iterator
