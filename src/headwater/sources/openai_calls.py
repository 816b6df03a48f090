"""What the items of the OpenAI Agents SDK say of tool calls: whose they are, their names, arguments and results.

Pure. Knows the shapes of the SDK's raw items, which may be pydantic models or plain dicts. Never their
`str` or `repr`.
"""

from __future__ import annotations

from typing import Any, Final

from headwater.sources.openai_values import field_of, json_text

__all__ = ["RUN_BY_PROVIDER", "arguments_of", "call_key", "is_call", "is_open_call", "name_of", "provider_result"]

RUN_BY_PROVIDER: Final = frozenset(
    {"web_search_call", "file_search_call", "code_interpreter_call", "image_generation_call", "mcp_call"}
)
"""Tools that the model's provider runs: their items are complete with what came out, and no tool_output follows."""


def is_call(item: Any) -> bool:
    return str(field_of(item, "type")).endswith("_call")


def is_open_call(item: Any) -> bool:
    """A call of a tool that is carried out on our side, so that an output is to follow."""
    return is_call(item) and field_of(item, "type") not in RUN_BY_PROVIDER


def call_key(item: Any) -> str:
    """What the SDK knows the item's tool call as."""
    return str(field_of(item, "call_id") or field_of(item, "id") or "")


def name_of(item: Any) -> str:
    return str(field_of(item, "name") or str(field_of(item, "type")).removesuffix("_call"))


def arguments_of(item: Any) -> str:
    """What the tool is called with, as JSON; empty where the item does not say."""
    if isinstance(arguments := field_of(item, "arguments"), str):
        return arguments
    for name in ("input", "code", "action", "operation", "queries"):
        if (value := field_of(item, name)) is not None:
            return json_text({name: value})
    return ""


def provider_result(item: Any) -> str:
    output = field_of(item, "output")
    return output if isinstance(output, str) else json_text({"status": field_of(item, "status") or "completed"})
