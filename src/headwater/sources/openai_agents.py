"""Runs an agent of the OpenAI Agents SDK as a source, from its input or from a checkpoint.

Knows how a run is configured and begun. How it is driven is `openai_run`'s, what its events mean is
`openai_translation`'s, what is kept of it is `openai_checkpoints`', what its errors may say is `openai_failures`'.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Self

import msgspec

from headwater.errors import MissingExtra
from headwater.sources import Busy, Resumption, RunFailed, Sink

try:
    import agents
    from agents.items import TResponseInputItem
    from agents.memory import Session
    from agents.run import DEFAULT_MAX_TURNS
    from agents.run_state import RunState
except ImportError as error:
    raise MissingExtra("agents", "openai-agents") from error

from headwater.sources.openai_calls import call_key
from headwater.sources.openai_checkpoints import Contexts, Kept, Replaying, restored
from headwater.sources.openai_cut import watching_for_cuts
from headwater.sources.openai_nested import watch_nested
from headwater.sources.openai_outputs import remembering
from headwater.sources.openai_run import Limits, OneRun
from headwater.sources.openai_sessions import forget_input, forget_turn
from headwater.sources.openai_translation import Translation

__all__ = ["OpenAIAgent"]

_log: Final = logging.getLogger(__name__)

_Input = str | list[TResponseInputItem]


class OpenAIAgent:
    """An `agents.Agent` as a source.

    - `name`: what it is registered under; by default the slug of the agent's name.
    - `max_turns`: model calls per run; by default the SDK's (10).
    - `run_config`: for every run; `context_factory` makes the SDK's context object of each run.
    - `context_mapping`: a function that makes a mapping of a context, and one that makes a context of it: so that it
      outlives its process. A context that is a mapping does so by itself; any other is made anew by `context_factory`
      where a run is gone on with, and what tools wrote into it is lost.
    - `idle_timeout`: seconds without any event from the model while no tool runs; then RunFailed("model_stalled").
    - `total_timeout`: seconds for the whole run in one process; then RunFailed("run_timeout").
    - `show_nested`: what agents inside tools (`Agent.as_tool`) say and do is told, as AG-UI's subagents. If not, all
      their tools run under the id of the call that they are inside of.
    - `error_handlers`: as `Runner.run_streamed` takes them: a last answer in place of "max_turns", say.
    - `require_finish_reason`: a Chat Completions stream that just ends is a failure ("upstream_cut"). Turn it off for a
      provider that never sends a finish_reason.

    `remembering(…)` gives it the SDK's sessions, for conversations of several runs.

    Chat Completions models tell their token usage only with `ModelSettings(include_usage=True)`.
    """

    def __init__(  # noqa: PLR0913 - by their names, and each may be left out
        self,
        agent: agents.Agent[Any],
        *,
        name: str | None = None,
        max_turns: int | None = None,
        run_config: agents.RunConfig | None = None,
        context_factory: Callable[[], Any] | None = None,
        context_mapping: tuple[Callable[[Any], Mapping[str, Any]], Callable[[Mapping[str, Any]], Any]] | None = None,
        idle_timeout: float | None = 120.0,
        total_timeout: float | None = None,
        require_finish_reason: bool = True,
        show_nested: bool = True,
        error_handlers: agents.RunErrorHandlers[Any] | None = None,
    ) -> None:
        self.agent = agent
        self.name = name or re.sub(r"[^a-z0-9]+", "-", agent.name.lower()).strip("-") or "agent"
        self._max_turns = DEFAULT_MAX_TURNS if max_turns is None else max_turns
        self._run_config = run_config
        self._contexts = Contexts(context_factory, *(context_mapping or ()))
        self._limits = Limits(idle_timeout, total_timeout, show_nested)
        self._error_handlers = error_handlers
        self._require_finish_reason = require_finish_reason
        self._session_of: Callable[[str], Session] | None = None
        self.busy: Busy | None = None

    def remembering(self, session_of: Callable[[str], Session], *, busy: Busy = "refuse") -> Self:
        """Keep each conversation in a session of the SDK, which `session_of` makes, or has, for its id.

        That is the thread's; where runs are started by principals, `principal/thread`, so that nobody goes on with what
        another one said. It is called in a worker thread, once for each run in each process, and what it gives is not
        closed here.
        `busy`: what becomes of a run whose conversation has another one that has not ended. It is refused (Conflict),
        or begins when its turn has come.
        """
        self._session_of, self.busy = session_of, busy
        return self

    def __repr__(self) -> str:
        return f"<OpenAIAgent {self.name}>"

    async def run(self, input: _Input, sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """See `Source.run`. `input` is what the SDK takes: a text, or a list of Responses input items.

        The result is the final output as JSON: a string, or the object of the agent's `output_type`.
        """
        return await self._drive(input, sink, Translation(sink.run_id), None, await self._session(sink))

    async def resume(self, input: _Input, at: Resumption, sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """See `Resumable.resume`."""
        session = await self._session(sink)
        if at.state is None:
            await forget_input(session, input)
            return await self._drive(input, sink, Translation(sink.run_id, at), None, session)
        kept = msgspec.json.decode(at.state, type=Kept)
        translation = Translation(sink.run_id, at, kept.ids)
        try:
            state = await restored(self.agent, kept, self._contexts)
        except Exception as error:
            _log.error("run %s cannot be gone on with: %s", sink.run_id, type(error).__name__)
            _log.debug("run %s", sink.run_id, exc_info=error)
            raise RunFailed("not_resumable", "The run was interrupted, and cannot be gone on with.") from error
        if state is not None:
            _decide(state, at, translation)
            await forget_turn(session, kept)
        else:
            await forget_input(session, input)
        return await self._drive(input if state is None else state, sink, translation, kept, session)

    async def _session(self, sink: Sink) -> Session | None:
        # In a thread, since the SDK's own sessions open their files when they are made.
        return None if self._session_of is None else await asyncio.to_thread(self._session_of, sink.conversation)

    async def _drive(
        self,
        given: _Input | RunState[Any, Any],
        sink: Sink,
        translation: Translation,
        kept: Kept | None,
        session: Session | None,
    ) -> object:
        model = None if self._run_config is None else self._run_config.model
        run = OneRun(sink, self._limits, self._contexts, translation, kept, model)
        response, outputs = (kept.response, kept.outputs) if kept is not None else (None, {})
        with watching_for_cuts(self._require_finish_reason), remembering(outputs):
            return await run.drive(partial(self._start, given, translation, response, session))

    def _start(
        self,
        given: _Input | RunState[Any, Any],
        translation: Translation,
        response: str | None,
        session: Session | None,
        run: OneRun,
    ) -> agents.RunResultStreaming:
        watch_nested()
        config = self._run_config
        if response is not None:
            config = dataclasses.replace(config or agents.RunConfig())
            Replaying(response, config)
            translation.replaying = True
        return agents.Runner.run_streamed(
            self.agent,
            given,
            context=None if isinstance(given, RunState) else self._contexts.new(),
            max_turns=self._max_turns,
            hooks=run,
            run_config=config,
            error_handlers=run.noting(self._error_handlers),
            session=session,
        )


def _decide(state: RunState[Any, Any], at: Resumption, translation: Translation) -> None:
    """Tell the SDK what people have decided."""
    for item in state.get_interruptions():
        answer = at.answers.get(translation.call_id(call_key(item.raw_item)))
        if answer is None:
            continue
        if answer.approved:
            state.approve(item)
        else:
            state.reject(item, rejection_message=answer.message)
