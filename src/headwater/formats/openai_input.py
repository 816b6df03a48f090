"""What a run is given, between the shapes of OpenAI's two APIs and the items that an agent takes. Pure.

An agent takes a text, or a list of Responses input items. Raises BadRequest, saying where, for what cannot be turned
into those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

from headwater.errors import BadRequest

Items = list[dict[str, Any]]

SERVER_CALL_PREFIX: Final = "mcp_"
"""Of the id of an item of output that is a tool that the agent ran; the rest is the id of the call."""

_SPEAKERS: Final = frozenset({"user", "system", "developer"})


# -- the input of a Response ------------------------------------------------------------------------------------------


def as_items(given: Any) -> Items:
    """What a run was given, as items. Empty for what is neither a text nor a list of them."""
    if isinstance(given, str):
        return [{"role": "user", "content": given}]
    return [item for item in given if isinstance(item, dict)] if isinstance(given, list) else []


def with_instructions(instructions: str | None, items: Items) -> Items:
    """`instructions` come before the items, as the API says: a system message."""
    return items if instructions is None else [{"role": "system", "content": instructions}, *items]


def without_instructions(instructions: str | None, items: Items) -> Items:
    """The items that `with_instructions` was given."""
    return items if instructions is None else items[1:]


def history(before: Items, output: Sequence[dict[str, Any]]) -> Items:
    """What a Response that goes on from another is given first: that one's input and output, as input.

    Without ids, which mean nothing to the agent's model, and without calls that were never answered, which no model
    accepts.
    """
    answered = {item["call_id"] for item in output if item["type"] == "function_call_output"}
    return [*before, *(item for said in output for item in _as_input(said, answered))]


def _as_input(item: dict[str, Any], answered: set[str]) -> Iterable[dict[str, Any]]:
    kind = item["type"]
    if kind == "message":
        text = "".join(part.get("text") or part.get("refusal") or "" for part in item["content"])
        if text:
            yield {"role": "assistant", "content": text}
    elif kind == "mcp_call" and item["output"] is not None:
        call_id = item["id"].removeprefix(SERVER_CALL_PREFIX)
        yield {"type": "function_call", "call_id": call_id, "name": item["name"], "arguments": item["arguments"]}
        yield {"type": "function_call_output", "call_id": call_id, "output": item["output"]}
    elif kind in ("function_call", "function_call_output") and item["call_id"] in answered:
        yield {name: value for name, value in item.items() if name not in ("id", "status")}


def listed(run_id: str, items: Items) -> Items:
    """The input as `GET …/input_items` tells it, in order: every item with an id, messages in their long form."""
    return [_listed(f"{run_id}.in{number}", item) for number, item in enumerate(items)]


def _listed(id_: str, item: dict[str, Any]) -> dict[str, Any]:
    if item.get("type", "message") != "message":
        return {**item, "id": item.get("id") or f"item_{id_}"}
    role, content = item.get("role", "user"), item.get("content", "")
    if isinstance(content, str):
        said = {"type": "output_text", "annotations": []} if role == "assistant" else {"type": "input_text"}
        content = [{**said, "text": content}]
    fixed = {"type": "message", "role": role, "status": item.get("status") or "completed", "content": content}
    return {"id": item.get("id") or f"msg_{id_}", **fixed}


# -- the messages of a chat completion --------------------------------------------------------------------------------


def from_messages(messages: Sequence[Any]) -> Items:
    """Chat messages as items."""
    return [item for number, message in enumerate(messages) for item in _from_message(message, f"messages[{number}]")]


def _from_message(message: Any, where: str) -> Iterable[dict[str, Any]]:
    if not isinstance(message, dict):
        raise BadRequest(f"{where} is a message: an object with role and content", param=where)
    role, content = message.get("role"), message.get("content")
    if isinstance(role, str) and role in _SPEAKERS:
        yield {"role": role, "content": _content(content, where)}
    elif role == "assistant":
        text = _text(content, where) or _text(message.get("refusal"), where)
        if text:
            yield {"role": "assistant", "content": text}
        for call in message.get("tool_calls") or ():
            yield _call(call, f"{where}.tool_calls")
    elif role == "tool" and isinstance(message.get("tool_call_id"), str):
        yield {"type": "function_call_output", "call_id": message["tool_call_id"], "output": _text(content, where)}
    else:
        raise BadRequest(f"{where} has no role that is known here; there are user, system, developer, assistant and "
                         "tool (with tool_call_id)", param=f"{where}.role")  # fmt: skip


def _call(call: Any, where: str) -> dict[str, Any]:
    function = call.get("function") if isinstance(call, dict) else None
    if isinstance(function, dict):
        said = call.get("id"), function.get("name"), function.get("arguments")
        if all(isinstance(one, str) for one in said):
            return {"type": "function_call", "call_id": said[0], "name": said[1], "arguments": said[2]}
    raise BadRequest(f"{where}: each is {{id, type: 'function', function: {{name, arguments}}}}", param=where)


def _text(content: Any, where: str) -> str:
    """Text, or parts of text."""
    if content is None or isinstance(content, str):
        return content or ""
    if isinstance(content, list):
        said = [part.get("text", part.get("refusal")) for part in content if isinstance(part, dict)]
        texts = [text for text in said if isinstance(text, str)]
        if len(texts) == len(content):
            return "".join(texts)
    raise BadRequest(f"{where}: the content is a text or a list of text parts", param=f"{where}.content")


def _content(content: Any, where: str) -> str | Items:
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise BadRequest(f"{where}: the content is a text or a list of parts", param=f"{where}.content")
    return [_part(part, f"{where}.content[{number}]") for number, part in enumerate(content)]


def _part(part: Any, where: str) -> dict[str, Any]:
    match part:
        case {"type": "text", "text": str(text)}:
            return {"type": "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": str(url), **more}}:
            return {"type": "input_image", "image_url": url, "detail": more.get("detail") or "auto"}
        case {"type": "file", "file": dict(file)}:
            return {"type": "input_file", **file}
    raise BadRequest(f"{where} is a part that is not known here; there are text, image_url and file", param=where)
