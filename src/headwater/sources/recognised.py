"""Which source an agent of some framework is, told by its class, so that nobody has to name an adapter.

Must not import a framework that the agent is not of: each adapter is imported when its first agent comes.
"""

from __future__ import annotations

import importlib
from typing import Any, cast

from headwater.errors import BadRequest
from headwater.sources import Source

__all__ = ["source_of"]


def source_of(agent: object) -> Source | None:
    """`agent` as a source where it is of a kind we know: an async generator function, an agent of Pydantic AI, a
    compiled graph of LangGraph, an Agent of the OpenAI Agents SDK. None for anything else. Raises BadRequest for
    what is of those frameworks and cannot be run, like a RealtimeAgent, which needs more than itself.
    """
    from headwater.sources.generator import Generator, is_generator_function

    if is_generator_function(agent):
        return Generator(cast(Any, agent))
    modules = [kind.__module__ for kind in type(agent).__mro__]
    if any(_within("pydantic_ai", module) for module in modules):
        from headwater.sources.pydantic_ai import PydanticAIAgent

        _check(agent, "pydantic_ai.agent", "AbstractAgent", "a pydantic_ai.Agent")
        return PydanticAIAgent(cast(Any, agent))
    if any(_within("langgraph", module) for module in modules):
        from headwater.sources.langgraph import LangGraphAgent

        _check(agent, "langgraph.pregel.protocol", "PregelProtocol", "a compiled graph (graph.compile())")
        return LangGraphAgent(cast(Any, agent))
    if any(_within("agents.realtime", module) for module in modules):
        raise BadRequest("a RealtimeAgent needs streams for its sound: give headwater.sources.realtime.RealtimeVoice")
    if any(_within("agents", module) for module in modules):
        from headwater.sources.openai_agents import OpenAIAgent

        _check(agent, "agents", "Agent", "an agents.Agent")
        return OpenAIAgent(cast(Any, agent))
    return None


def _check(given: object, module: str, kind: str, wanted: str) -> None:
    """Raises BadRequest. Comes behind the import of the adapter, which says what to install."""
    if not isinstance(given, getattr(importlib.import_module(module), kind)):
        raise BadRequest(f"{type(given).__name__} is no agent; give {wanted}")


def _within(package: str, module: str) -> bool:
    return module == package or module.startswith(f"{package}.")
