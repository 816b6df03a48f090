"""What generators give to StreamingResponse and EventSourceResponse today -> messages of a stream. Pure.

Events become messages of a text/event-stream stream (`formats.sse.stored_event`); ids of the generator's own are left
out, because ours are what a client resumes by. Comments and `retry` are left out too: delivery sees to both.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from headwater.formats.sse import stored_event
from headwater.wire.sse import Decoder, Event
from headwater.wire.values import to_bytes, to_json

FIELDS: Final = frozenset({"data", "event", "id", "retry", "comment", "sep"})
"""Of an event as sse-starlette takes it from a dict. A dict with `data` and no key but these is such an event."""

_FRAMED: Final = re.compile(rb"\A(?::|(?:data|event|id|retry):)[^\r\n]*[\r\n]")


class Events:
    """Items of one generator as stored events.

    str and bytes are either finished SSE text, as people give to StreamingResponse, or plain text of one event each, as
    they give to EventSourceResponse: told apart by the first one, unless `framed` says which.
    """

    def __init__(self, framed: bool | None = None) -> None:
        self._framed = framed
        self._decoder = Decoder()

    def messages(self, item: Any) -> Iterator[bytes]:
        """The messages that `item` makes: none, one, or several. Raises TypeError for what cannot be sent."""
        if isinstance(item, str | bytes | bytearray | memoryview):
            yield from self._text(to_bytes(item))
        elif isinstance(item, Mapping) and "data" in item and FIELDS.issuperset(item):
            yield stored_event(_plain(item["data"]), item.get("event"))
        elif any(kind.__name__ == "ServerSentEvent" for kind in type(item).__mro__):
            yield from _event_object(item)
        else:
            yield stored_event(to_json(item), None)

    def _text(self, data: bytes) -> Iterator[bytes]:
        if self._framed is None:
            self._framed = _FRAMED.match(data) is not None
        if not self._framed:
            yield stored_event(data, None)
            return
        for event in self._decoder.feed(data):
            yield _stored(event)


def error_event(code: str, message: str) -> bytes:
    """The last message of a stream whose generator failed: an `error` event, as a stored one."""
    return stored_event(msgspec.json.encode({"code": code, "message": message}), "error")


def _stored(event: Event) -> bytes:
    return stored_event(event.data.encode(), None if event.event == "message" else event.event)


def _event_object(item: Any) -> Iterator[bytes]:
    """FastAPI's ServerSentEvent has its data as JSON, and `raw_data` for text; sse-starlette's has text."""
    if hasattr(item, "raw_data"):
        if item.raw_data is not None:
            yield stored_event(item.raw_data.encode(), item.event)
        elif item.data is not None:
            yield stored_event(to_json(item.data), item.event)
    elif item.data is not None:
        yield stored_event(_plain(item.data), item.event)


def _plain(data: Any) -> bytes:
    return b"" if data is None else to_bytes(data)
