"""What chat clients send -> what a run's source takes: the input, as a text or a list of Responses input items. Pure.

Knows the messages of the AI SDK (parts), of AG-UI (TanStack AI sends those, too) and of LangChain. The last message
must be the user's; those before it are the history. A single text stays a text. Tool calls of the history go along with
their outputs, those without one do not: a model refuses a call that was never answered. Left out as well: texts that
were taken back (`message.retracted`), reasoning, data parts, sources and activities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from typing import Any, Final, TypeAlias

import msgspec

from headwater.errors import BadRequest

__all__ = ["Input", "Item", "from_agui", "from_langchain", "from_ui"]

_RETRACTED: Final = "data-message-retracted"
"""What the AI SDK's client keeps of `message.retracted`."""

DENIED: Final = "This call was not approved, and not carried out."

Item: TypeAlias = dict[str, Any]
Input: TypeAlias = str | list[Item]
Message: TypeAlias = Mapping[str, Any]


def from_ui(messages: object) -> Input:
    """The `messages` that `DefaultChatTransport` posts. Raises BadRequest."""
    return _input(messages, lambda given: (item for message in given for item in _ui_items(message)))


def from_agui(messages: object, retracted: Set[str] = frozenset()) -> Input:
    """The `messages` of a RunAgentInput; `retracted`: ids of those whose text was taken back. Raises BadRequest."""
    return _input(messages, lambda given: _agui_items(given, retracted))


def from_langchain(messages: Iterable[Message]) -> Input:
    """The messages of a LangGraph thread, as `headwater.formats.langchain` has them. Raises BadRequest."""
    return _input([{**message, "role": _LANGCHAIN[message["type"]]} for message in messages], _langchain_items)


def _input(messages: object, convert: Callable[[list[Message]], Iterable[Item]]) -> Input:
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        raise BadRequest("messages is a list of messages (objects)")
    if not messages:
        raise BadRequest("messages is empty: send at least one, the user's")
    if messages[-1].get("role") != "user":
        raise BadRequest("the last message must be the user's; outputs of tools in the browser cannot be taken in")
    try:
        items = list(convert(messages))
    except (KeyError, TypeError, AttributeError) as error:
        raise BadRequest("a message is not of the form that this endpoint's client sends") from error
    if not items or items[-1].get("role") != "user":
        raise BadRequest("the last message is empty")
    only = items[0]["content"] if len(items) == 1 else None
    return only if isinstance(only, str) else items


# -- the AI SDK -------------------------------------------------------------------------------------------------------


def _ui_items(message: Message) -> Iterator[Item]:
    role = _role(message)
    if role != "assistant":
        yield from _said(role, list(_ui_content(message["parts"])))
        return
    retracted = {_id_in(part.get("data")) for part in message["parts"] if part["type"] == _RETRACTED} - {None}
    for part in message["parts"]:
        kind: str = part["type"]
        if kind == "text" and part["text"] and _message_of(part) not in retracted:
            yield {"role": "assistant", "content": _text(part["text"])}
        elif kind == "dynamic-tool" or kind.startswith("tool-"):
            yield from _ui_call(part)


def _message_of(part: Message) -> str | None:
    """Which message of the run a part is, as `headwater.formats.ai_sdk` has said."""
    metadata = part.get("providerMetadata")
    return _id_in(metadata.get("headwater")) if isinstance(metadata, dict) else None


def _id_in(value: object) -> str | None:
    id_ = value.get("messageId") if isinstance(value, dict) else None
    return id_ if isinstance(id_, str) else None


def _ui_content(parts: Iterable[Message]) -> Iterator[Item]:
    for part in parts:
        if part["type"] == "text" and part["text"]:
            yield {"type": "input_text", "text": _text(part["text"])}
        elif part["type"] == "file":
            yield _file(part["mediaType"], part["url"], part.get("filename"))


def _ui_call(part: Message) -> Iterator[Item]:
    state = part.get("state")
    if state == "output-available":
        output = part.get("output")
    elif state == "output-error":
        output = part.get("errorText")
    elif state == "output-denied":
        output = (part.get("approval") or {}).get("reason") or DENIED
    else:
        return
    name = part["toolName"] if part["type"] == "dynamic-tool" else part["type"].removeprefix("tool-")
    given = part.get("input", part.get("rawInput"))
    yield from _call(part["toolCallId"], name, "{}" if given is None else given, output)


# -- AG-UI ------------------------------------------------------------------------------------------------------------


def _agui_items(messages: list[Message], retracted: Set[str]) -> Iterator[Item]:
    outputs = {message["toolCallId"]: message.get("content") for message in messages if message.get("role") == "tool"}
    for message in messages:
        role = message.get("role")
        if role in ("tool", "reasoning", "activity"):
            continue
        content: Any = message.get("content")
        if role != "assistant":
            yield from _said(_role(message), list(_agui_content(content)))
            continue
        if content and message.get("id") not in retracted:
            yield {"role": "assistant", "content": _text(content)}
        for call in message.get("toolCalls") or ():
            if call["id"] in outputs:
                function = call["function"]
                yield from _call(call["id"], function["name"], function["arguments"], outputs[call["id"]])


def _agui_content(content: str | Iterable[Message]) -> Iterator[Item]:
    parts: Iterable[Message] = [{"type": "text", "text": content}] if isinstance(content, str) else content
    for part in parts:
        if part["type"] == "text":
            if part["text"]:
                yield {"type": "input_text", "text": _text(part["text"])}
        elif part["type"] == "binary":
            url = part.get("url") or f"data:{part['mimeType']};base64,{part['data']}"
            yield _file(part["mimeType"], url, part.get("filename"))
        elif part["type"] in ("image", "document"):
            source = part["source"]
            media = source.get("mimeType") or ("image/*" if part["type"] == "image" else "application/octet-stream")
            inline = source["type"] == "data"
            yield _file(media, f"data:{media};base64,{source['value']}" if inline else source["value"], None)
        else:
            raise BadRequest(f"a part of type {part['type']!r} cannot be taken in; send text, images or documents")


# -- LangChain --------------------------------------------------------------------------------------------------------

_LANGCHAIN: Final = {"human": "user", "ai": "assistant", "system": "system", "tool": "tool"}


def _langchain_items(messages: list[Message]) -> Iterator[Item]:
    outputs = {message["tool_call_id"]: message["content"] for message in messages if message["type"] == "tool"}
    for message in messages:
        content = message["content"]
        parts: list[Any] = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if message["type"] in ("human", "system"):
            yield from _said(message["role"], list(_langchain_content(parts)))
        elif message["type"] == "ai":
            text = "".join(_text(part["text"]) for part in parts if part["type"] == "text")
            if text:
                yield {"role": "assistant", "content": text}
            for call in message.get("tool_calls") or ():
                if call["id"] in outputs:
                    yield from _call(call["id"], call["name"], call["args"], outputs[call["id"]])


def _langchain_content(parts: Iterable[Message]) -> Iterator[Item]:
    for part in parts:
        if part["type"] == "text":
            if part["text"]:
                yield {"type": "input_text", "text": _text(part["text"])}
        elif part["type"] == "image_url":
            url = part["image_url"]
            yield _file("image/*", url if isinstance(url, str) else url["url"], None)
        elif part["type"] in ("image", "file"):
            media = part.get("mime_type") or ("image/*" if part["type"] == "image" else "application/octet-stream")
            inline = part.get("base64") or part.get("data")
            yield _file(media, f"data:{media};base64,{inline}" if inline else part["url"], part.get("filename"))
        else:
            raise BadRequest(f"a part of type {part['type']!r} cannot be taken in; send text, images or files")


# -- items ------------------------------------------------------------------------------------------------------------


def _role(message: Message) -> str:
    role = message.get("role")
    if role not in ("user", "assistant", "system", "developer"):
        raise BadRequest("a message has the role user, assistant, system, developer or tool")
    return str(role)


def _said(role: str, content: list[Item]) -> Iterator[Item]:
    """Texts alone as one text, which every model takes."""
    if content and all(part["type"] == "input_text" for part in content):
        yield {"role": role, "content": "\n".join(part["text"] for part in content)}
    elif content:
        yield {"role": role, "content": content}


def _file(media: str, url: str, name: str | None) -> Item:
    if media.startswith("image/"):
        return {"type": "input_image", "image_url": _text(url), "detail": "auto"}
    found: Item = {"type": "input_file", "file_data" if url.startswith("data:") else "file_url": url}
    return found | {"filename": _text(name)} if name else found


def _call(id_: str, name: str, arguments: object, output: object) -> Iterator[Item]:
    yield {"type": "function_call", "call_id": _text(id_), "name": _text(name), "arguments": _as_text(arguments)}
    yield {"type": "function_call_output", "call_id": id_, "output": _as_text(output)}


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError("not a text")
    return value


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()
