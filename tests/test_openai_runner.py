"""Who stands before the SDK's runner stands there once, whoever else does."""

from collections.abc import Iterator
from typing import Any

import pytest
from agents import Agent, Runner
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner

from headwater.sources.openai_runner import Before, stand_before


class Echo(AgentRunner):
    async def run(self, _: Any, given: Any, **__: Any) -> Any:
        return given


class Ours(Before):
    pass


class AlsoOurs(Before):
    pass


class Theirs(AgentRunner):
    def __init__(self, inner: AgentRunner) -> None:
        self.inner = inner

    async def run(self, *given: Any, **options: Any) -> Any:
        return await self.inner.run(*given, **options)


@pytest.fixture(autouse=True)
def the_runner_that_was_there() -> Iterator[None]:
    was = get_default_agent_runner()
    set_default_agent_runner(Echo())
    yield
    set_default_agent_runner(was)


def row() -> list[str]:
    runner: Any = get_default_agent_runner()
    names = []
    while runner is not None:
        names.append(type(runner).__name__)
        runner = getattr(runner, "runner", None) or getattr(runner, "inner", None)
    return names


async def test_two_of_us_stand_there_once_however_often_they_come() -> None:
    for _ in range(1000):
        stand_before(Ours)
        stand_before(AlsoOurs)
    assert row() == ["AlsoOurs", "Ours", "Echo"]
    said: Any = await Runner.run(Agent(name="bot"), "hello")
    assert said == "hello"


def test_a_runner_that_somebody_else_sets_stays_inside_ours() -> None:
    stand_before(Ours)
    set_default_agent_runner(Theirs(get_default_agent_runner()))
    for _ in range(3):
        stand_before(Ours)
        stand_before(AlsoOurs)
    assert row() == ["AlsoOurs", "Ours", "Theirs", "Ours", "Echo"]
