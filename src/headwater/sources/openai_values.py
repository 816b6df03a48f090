"""What values of the OpenAI Agents SDK become for readers: JSON, and never more than the value itself.

Pure. Must never fall back to the `str` or `repr` of an SDK object: those hold instructions, models and keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pydantic_core import PydanticSerializationError, from_json, to_json

from headwater.agui import TokenUsage, valid_text

__all__ = ["as_json", "field_of", "json_text", "tool_content", "usage_of"]


def field_of(item: Any, name: str) -> Any:
    """A field of an SDK item, which may be a pydantic model or a plain dict."""
    return item.get(name) if isinstance(item, Mapping) else getattr(item, name, None)


def json_text(value: object) -> str:
    return to_json(value, inf_nan_mode="null").decode()


def as_json(value: object) -> Any:
    """`value` as JSON, by pydantic's rules; what has no JSON becomes its `str`, and only that value."""
    try:
        return from_json(to_json(value, inf_nan_mode="null"))
    except (PydanticSerializationError, ValueError):
        return valid_text(str(value))


def tool_content(output: object) -> str:
    """A tool's output as the text of its result: strings as they are, images and files as a short JSON marker."""
    if isinstance(output, str):
        return output
    if isinstance(output, Sequence) and not isinstance(output, bytes) and any(_medium(piece) for piece in output):
        return json_text([_medium(piece) or as_json(piece) for piece in output])
    if (medium := _medium(output)) is not None:
        return str(medium["text"]) if "text" in medium else json_text(medium)
    try:
        return json_text(output)
    except (PydanticSerializationError, ValueError):
        return str(output)


def _medium(piece: object) -> dict[str, Any] | None:
    """For the SDK's ToolOutputText, -Image and -FileContent (or their dicts): what readers are told of it."""
    match field_of(piece, "type"):
        case "text" if isinstance(text := field_of(piece, "text"), str):
            return {"type": "text", "text": text}
        case "image" if field_of(piece, "image_url") or field_of(piece, "file_id"):
            return {"type": "image"}
        case "file" if field_of(piece, "file_data") or field_of(piece, "file_url") or field_of(piece, "file_id"):
            name = field_of(piece, "filename")
            return {"type": "file", "filename": name} if name else {"type": "file"}
    return None


def usage_of(response: Any) -> Iterable[TokenUsage]:
    """The counts of one response; none where the provider gave none (the SDK then says zero)."""
    usage = response.usage
    if usage is None or not (usage.input_tokens or usage.output_tokens):
        return ()
    read, thought = usage.input_tokens_details, usage.output_tokens_details
    return (
        TokenUsage(
            model=response.model or None,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.input_tokens + usage.output_tokens,
            cached_input_tokens=field_of(read, "cached_tokens") or None,
            cache_write_input_tokens=field_of(read, "cache_write_tokens") or None,
            reasoning_tokens=field_of(thought, "reasoning_tokens") or None,
        ),
    )
