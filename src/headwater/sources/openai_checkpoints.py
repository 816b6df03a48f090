"""What is kept of a run of the OpenAI Agents SDK, so that another process can go on with it: by public means only.

Two things make a checkpoint: the SDK's RunState, which it gives at the end of each turn; and, between the end of a
model's response and the end of the tools that it called, that response and the outputs so far. Going on from there,
the response is replayed in place of the model's first answer, and those outputs in place of their tools: so no model is
asked twice, and what has to run again does so under the same ids.

Knows RunState as the SDK's own text, which can hold prompts and whatever tools wrote into a context.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import agents
import msgspec
from agents.run_state import RunState
from openai.types.responses import Response, ResponseCompletedEvent

__all__ = ["Contexts", "Kept", "Replaying", "keep", "restored"]

_log: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Contexts:
    """The SDK's context objects: how they are made, and kept.

    A mapping of JSON is kept as it is. Any other is kept by `to_mapping` and made again by `from_mapping`; without
    those a resumed run gets a new one from `make`, and what tools wrote into the old one is lost.
    """

    make: Callable[[], Any] | None = None
    to_mapping: Callable[[Any], Mapping[str, Any]] | None = None
    from_mapping: Callable[[Mapping[str, Any]], Any] | None = None

    def new(self) -> Any:
        return self.make() if self.make is not None else None


class Kept(msgspec.Struct, frozen=True):
    """One checkpoint."""

    state: str | None
    """RunState as JSON; None: the run is before the end of its first turn, and begins with its input."""
    response: str | None
    """The response whose tools are still to run, as JSON."""
    ids: dict[str, str] = {}
    """Tool call ids of the SDK that readers know by another one."""
    outputs: dict[str, Any] = {}
    """By the SDK's tool call id: those of the turn that has begun, as far as its tools have ended."""


def keep(
    result: agents.RunResultStreaming, response: Response | None, ids: Mapping[str, str], contexts: Contexts
) -> Kept | None:
    """The checkpoint of a run as it is now; None where the SDK cannot give one (it says why in the log)."""
    state = None
    if result.raw_responses or result.interruptions:
        try:
            state = result.to_state().to_string(context_serializer=contexts.to_mapping or (lambda _: {}))
        except Exception as error:  # noqa: BLE001 - whatever a context or a tool's output holds: the run itself is fine
            told = "a run has no checkpoint (%s), and cannot be gone on with if this process ends"
            _log.warning(told, type(error).__name__)
            return None
    return Kept(state, None if response is None else response.model_dump_json(), dict(ids))


async def restored(agent: agents.Agent[Any], kept: Kept, contexts: Contexts) -> RunState[Any, Any] | None:
    """The SDK's state, to run on from; None: from the beginning. Raises agents.UserError for one it cannot read."""
    if kept.state is None:
        return None
    state = msgspec.json.decode(kept.state)
    if kept.response is not None:
        state["current_turn"] -= 1  # the turn that is begun again was counted
    state["original_input"] = _as_given(state["original_input"])
    context = state["context"]["context"]
    if contexts.from_mapping is not None and isinstance(context, dict):
        made = contexts.from_mapping(context)
    else:
        made = contexts.new()
    replaced = made is not None and not isinstance(made, Mapping)
    override = agents.RunContextWrapper(made) if replaced else None
    return await RunState.from_json(agent, state, context_override=override)


def _as_given(items: Any) -> Any:
    """The SDK keeps what the agent has said before as parts of a finished message, which its own converter for Chat
    Completions then refuses; a text, as it was given, goes everywhere."""
    return [_plain(item) for item in items] if isinstance(items, list) else items


def _plain(item: Any) -> Any:
    match item:
        case {"role": "assistant", "content": [{"type": "output_text", "text": str(text)}], **more} if "id" not in more:
            return {"role": "assistant", "content": text}
    return item


class Replaying(agents.Model):
    """Answers once with a response that was given before, and then takes itself out of the run."""

    def __init__(self, response: str, config: agents.RunConfig) -> None:
        """`config`: of the run; its model is this one from now on, until the response was given."""
        self._response = Response.model_validate_json(response)
        self._config, self._model = config, config.model
        config.model = self

    async def stream_response(self, *_: Any, **__: Any) -> AsyncIterator[Any]:
        self._config.model = self._model
        yield ResponseCompletedEvent(type="response.completed", response=self._response, sequence_number=0)

    async def get_response(self, *_: Any, **__: Any) -> agents.ModelResponse:
        raise NotImplementedError("runs are streamed")
