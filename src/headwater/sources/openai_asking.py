"""What no event tells: when the OpenAI Agents SDK asks a model, which one, and in which context a tool runs.

Knows the SDK's agents and models, and `TracedRun`. Where nobody traces, nothing is done. What the SDK traces itself,
for OpenAI or for processors of the application, goes on beside this, untouched.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import agents
from agents.models import get_default_model

from headwater.traced import TracedModel, TracedRun

__all__ = ["Asking"]

_OF_OPENAI: Final = (agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel)


class Asking:
    """Tells of the models that one run asks, or one agent inside a tool; one at a time."""

    def __init__(self, trace: TracedRun | None, model: object = None, within: str | None = None) -> None:
        """`model`: the run's, which stands in for each agent's own; `within`: the subagent that asks."""
        self._trace, self._model, self._within = trace, model, within
        self._asked: TracedModel | None = None

    def begins(self, agent: agents.Agent[Any]) -> None:
        """A model is asked."""
        if self._trace is not None:
            self._asked = self._trace.model(*_named(self._model or agent.model or get_default_model()), self._within)

    def ends(self, response: agents.ModelResponse) -> None:
        """It has answered. Where it fails, this is not called."""
        if self._asked is not None:
            self._asked.over(response.usage.input_tokens, response.usage.output_tokens)

    def enter_tool(self, id_of: Callable[[str], str], key: str, name: str) -> None:
        """A tool begins in the current context. `id_of`: the call's id, as readers know it, of the one it has here."""
        if self._trace is not None:
            self._trace.enter_tool(id_of(key), name, self._within)

    def tool_ends(self, id_of: Callable[[str], str], key: str) -> None:
        """A tool has ended. Its result may be told later, with those of others."""
        if self._trace is not None:
            self._trace.tool_over(id_of(key))


def _named(model: object) -> tuple[str | None, str | None]:
    """What a model is called, and whose it is, as far as that is known."""
    if isinstance(model, str):
        provider, _, name = model.rpartition("/")
        return (name, "openai") if provider in ("", "openai") else (model, None)
    given = getattr(model, "model", None)
    return given if isinstance(given, str) else None, "openai" if isinstance(model, _OF_OPENAI) else None
