"""Standing before the runner of the OpenAI Agents SDK, which is one for the whole process, to see the runs that begin.

Several of us may stand there, each once: who looks only at the first would put himself before the others again with
each run, and the row would grow until no run can begin. Must not know who stands there, or what for.
"""

from __future__ import annotations

from typing import Any

from agents import RunResult, RunResultStreaming
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner

__all__ = ["Before", "stand_before"]


class Before(AgentRunner):
    """Passes everything on to the runner that was there."""

    def __init__(self, runner: AgentRunner) -> None:
        self.runner = runner

    async def run(self, starting_agent: Any, input: Any, **options: Any) -> RunResult:  # noqa: A002 - the SDK's word
        return await self.runner.run(starting_agent, input, **options)

    def run_sync(self, starting_agent: Any, input: Any, **options: Any) -> RunResult:  # noqa: A002 - the SDK's word
        return self.runner.run_sync(starting_agent, input, **options)

    def run_streamed(self, starting_agent: Any, input: Any, **options: Any) -> RunResultStreaming:  # noqa: A002
        return self.runner.run_streamed(starting_agent, input, **options)


def stand_before(kind: type[Before]) -> None:
    """Have a `kind` there from now on. Whoever has set a runner of his own meanwhile keeps it: inside ours."""
    first = runner = get_default_agent_runner()
    while isinstance(runner, Before) and not isinstance(runner, kind):
        runner = runner.runner
    if not isinstance(runner, kind):
        set_default_agent_runner(kind(first))
