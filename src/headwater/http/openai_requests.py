"""What may be asked of the OpenAI APIs here, and what is made of it.

The agent has its own instructions, tools, model and settings, so most parameters have nothing to say to it. Of those:

- refused (400): what would change what is done or what comes back, and is not done: tools, limits, another shape of
  output, logprobs, several choices, moderation, prompt templates, `store=false` for Responses;
- ignored: advice (sampling, effort, verbosity, caching, tiers, who the user is), and extras beside the answer;
- unknown names are refused, as by OpenAI. `null` is the same as leaving a parameter out.

One parameter is our own: `tools_as`, how the tools are told that the agent runs (`function_call` for Responses,
`tool_calls` for chat completions; see those formats for what else they are).

Knows JSON bodies; starts nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from headwater.formats.openai_chat import AS_TOOL_CALLS
from headwater.formats.openai_input import from_messages
from headwater.formats.openai_responses import AS_FUNCTIONS, ID_PREFIX
from headwater.http.openai_problems import BadParameter

_ADVICE: Final = frozenset({
    "temperature", "top_p", "seed", "frequency_penalty", "presence_penalty", "reasoning", "reasoning_effort",
    "verbosity", "truncation", "user", "safety_identifier", "service_tier", "prompt_cache_key",
    "prompt_cache_options", "prompt_cache_retention", "parallel_tool_calls", "include", "prediction",
})  # fmt: skip
"""Ignored by both."""

_RESPONSES_TAKES: Final = frozenset({
    "model", "input", "instructions", "stream", "background", "previous_response_id", "metadata", "store",
    "stream_options", "tools_as",
})  # fmt: skip
_CHAT_TAKES: Final = frozenset({
    "model", "messages", "stream", "stream_options", "n", "store", "metadata", "tools_as",
})  # fmt: skip

_REFUSED: Final = frozenset({
    "tools", "tool_choice", "functions", "function_call", "max_output_tokens", "max_tool_calls", "max_tokens",
    "max_completion_tokens", "text", "response_format", "modalities", "audio", "stop", "logprobs", "top_logprobs",
    "logit_bias", "moderation", "prompt", "conversation", "context_management", "access_programs",
    "background_options", "image", "web_search_options",
})  # fmt: skip
_NEUTRAL: Final[dict[str, tuple[Any, ...]]] = {
    "tools": ([],),
    "tool_choice": ("auto",),
    "functions": ([],),
    "function_call": ("auto",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "stop": ([],),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "logit_bias": ({},),
}
"""Values of what is else refused, that ask for nothing."""

MOST_METADATA: Final = (16, 64, 512)
"""Entries, characters of a key and of a value: the API's own limits."""


@dataclass(frozen=True, slots=True)
class ResponseRequest:
    """`POST /v1/responses`"""

    model: str
    input: Any
    """A text, or items."""
    stream: bool
    background: bool
    instructions: str | None
    previous: str | None
    """Id of the run to go on from."""
    metadata: dict[str, str]
    as_functions: bool

    @property
    def note(self) -> dict[str, Any]:
        """What the Response repeats."""
        previous = None if self.previous is None else ID_PREFIX + self.previous
        told = {
            "background": self.background,
            "instructions": self.instructions,
            "metadata": self.metadata,
            "previous_response_id": previous,
            "tools_as": AS_FUNCTIONS if self.as_functions else None,
        }
        return {name: value for name, value in told.items() if value}


@dataclass(frozen=True, slots=True)
class ChatRequest:
    """`POST /v1/chat/completions`"""

    model: str
    input: list[dict[str, Any]]
    stream: bool
    include_usage: bool
    show_tools: bool


def response_request(body: Mapping[str, Any]) -> ResponseRequest:
    """Raises BadRequest that names the parameter."""
    asked = _known(body, _RESPONSES_TAKES)
    if asked.get("store") is False:
        raise BadParameter(
            "responses are kept here as streams, so store cannot be false; leave it out, and DELETE what must go",
            "store",
            "unsupported_value",
        )
    previous = _text(asked, "previous_response_id")
    return ResponseRequest(
        model=_model(asked),
        input=_input(asked.get("input")),
        stream=_flag(asked, "stream"),
        background=_flag(asked, "background"),
        instructions=_text(asked, "instructions"),
        previous=None if previous is None else run_id_of(previous, "previous_response_id"),
        metadata=_metadata(asked.get("metadata")),
        as_functions=_tools_as(asked, AS_FUNCTIONS),
    )


def chat_request(body: Mapping[str, Any]) -> ChatRequest:
    """Raises BadRequest that names the parameter."""
    asked = _known(body, _CHAT_TAKES)
    if asked.get("n", 1) != 1:
        raise BadParameter("a run gives one answer: n is 1", "n", "unsupported_value")
    messages = asked.get("messages")
    if not isinstance(messages, list) or not messages:
        raise BadParameter("messages is a list of messages, and not empty", "messages", "invalid_type")
    options = asked.get("stream_options", {})
    if not isinstance(options, dict):
        raise BadParameter("stream_options is an object", "stream_options", "invalid_type")
    items = from_messages(messages)
    if not items:
        raise BadParameter("messages say nothing", "messages")
    return ChatRequest(
        model=_model(asked),
        input=items,
        stream=_flag(asked, "stream"),
        include_usage=_flag(options, "include_usage"),
        show_tools=_tools_as(asked, AS_TOOL_CALLS),
    )


def run_id_of(response_id: str, param: str = "response_id") -> str:
    """The run whose Response has this id."""
    if not response_id.startswith(ID_PREFIX):
        raise BadParameter(f"an id of a response begins with {ID_PREFIX}", param)
    return response_id.removeprefix(ID_PREFIX)


def _known(body: Mapping[str, Any], takes: frozenset[str]) -> dict[str, Any]:
    """What was asked and is heeded. Raises for what is refused, and for what nobody knows."""
    asked = {}
    for name, value in body.items():
        if name in takes and value is not None:
            asked[name] = value
        elif name in _REFUSED and not _asks_nothing(name, value):
            raise BadParameter(
                f"{name} is not supported: the agent has its own; leave it out", name, "unsupported_parameter"
            )
        elif name not in takes | _ADVICE | _REFUSED:
            raise BadParameter(f"Unknown parameter: {name[:80]!r}.", name[:80], "unknown_parameter")
    return asked


def _asks_nothing(name: str, value: Any) -> bool:
    if name == "text" and isinstance(value, dict):  # `verbosity` beside the format is advice
        return value.get("format") in (None, {"type": "text"})
    return value is None or any(value == neutral for neutral in _NEUTRAL.get(name, ()))


def _model(asked: Mapping[str, Any]) -> str:
    model = asked.get("model")
    if not isinstance(model, str):
        raise BadParameter("model names the agent; GET /v1/models lists them", "model", "missing_required_parameter")
    return model


def _text(asked: Mapping[str, Any], name: str) -> str | None:
    value = asked.get(name)
    if value is not None and not isinstance(value, str):
        raise BadParameter(f"{name} is a text", name, "invalid_type")
    return value


def _flag(asked: Mapping[str, Any], name: str) -> bool:
    value = asked.get(name) or False
    if not isinstance(value, bool):
        raise BadParameter(f"{name} is true or false", name, "invalid_type")
    return value


def _tools_as(asked: Mapping[str, Any], word: str) -> bool:
    if asked.get("tools_as", word) != word:
        raise BadParameter(f"tools_as is {word!r}, or left out", "tools_as")
    return "tools_as" in asked


def _input(given: Any) -> Any:
    if isinstance(given, str) and given:
        return given
    if not isinstance(given, list) or not given:
        raise BadParameter("input is a text or a list of items, and not empty", "input", "missing_required_parameter")
    for number, item in enumerate(given):
        _check_item(item, f"input[{number}]")
    return given


def _check_item(item: Any, where: str) -> None:
    if not isinstance(item, dict) or not (isinstance(item.get("role"), str) or isinstance(item.get("type"), str)):
        raise BadParameter(f"{where} is an item: an object with a role or a type", where, "invalid_type")
    if item.get("type") == "item_reference":
        raise BadParameter(f"{where}: items cannot be referred to here; send them whole", where, "unsupported_value")


def _metadata(given: Any) -> dict[str, str]:
    entries, key, value = MOST_METADATA
    if given is None:
        return {}
    if not isinstance(given, dict) or not all(isinstance(text, str) for text in given.values()):
        raise BadParameter("metadata is an object whose values are texts", "metadata", "invalid_type")
    if len(given) > entries or any(len(name) > key or len(text) > value for name, text in given.items()):
        raise BadParameter(
            f"metadata has at most {entries} entries, of {key} characters for a key and {value} for a value", "metadata"
        )
    return given
