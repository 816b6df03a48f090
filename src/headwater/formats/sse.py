"""Server-sent events for a browser's EventSource and everything that reads like one. Pure.

Each message is one event whose id is the offset after it, so that `Last-Event-ID` resumes behind it; only messages of
text with a character across their border are one event together, with the id of the last. With `named`
events the end of the stream is told as `event: end`, and a connection that must end before it as `event: interrupted`.
Without them (for clients that take every event for data, whatever its name) the stream's own last message is its end.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Hashable
from typing import Final

import msgspec

from headwater.decide import media_type
from headwater.errors import HeadwaterError
from headwater.formats.characters import joined
from headwater.formats.format import Format, is_json, is_text, lines_of
from headwater.model import Message, Offset, Page
from headwater.wire import sse

_STORED: Final = re.compile(rb"(?:event: [^\r\n]*\n)?(?:data:[^\r\n]*\n)+")
"""What `stored_event` makes. Others may append too: what is not of this form is text, lest it forges ids or events."""

RECONNECT_MS: Final = 500
"""Asked of a client whose server goes away: a new one is usually there by then; browsers wait 3 s otherwise."""


class ServerSentEvents(Format):
    """`format=sse`. The events of a stream of content type text/event-stream keep the names they were given."""

    content_type = "text/event-stream; charset=utf-8"
    transport = "sse"
    # The line of `retry` is within the first event: on its own some clients would take it for an empty one.
    opening = sse.comment("open") + b"retry: %d\n" % RECONNECT_MS
    heartbeat = sse.HEARTBEAT

    def __init__(self, stream_type: str, *, named: bool = True, prefix: str = "") -> None:
        """`stream_type`: the stream's content type; `prefix`: put before each offset in `id`."""
        self._kind = _kind_of(stream_type)
        self._named = named
        self._prefix, self._before = prefix, prefix.encode()
        self.in_characters = self._kind == "text"

    def __repr__(self) -> str:
        return f"<ServerSentEvents of {self._kind} [{'named' if self._named else 'data only'}]>"

    @property
    def key(self) -> Hashable:
        return "sse", self._kind, self._named, self._prefix

    @property
    def ends_openly(self) -> bool:  # type: ignore[override]
        return self._named

    def render(self, page: Page) -> bytes:
        if self._kind == "text":
            return b"".join([sse.encode(text, id=self._id(last)) for text, last in joined(page.messages)])
        if self._kind == "json":
            return self._json_events(page)
        return b"".join(map(self._event, page.messages))

    def _json_events(self, page: Page) -> bytes:
        # Who catches up gets thousands at a time, which differ in position and data alone.
        start = f"id: {self._prefix}{page.next.generation:016d}_".encode()
        lines = lines_of(page.messages)
        return b"".join(
            [
                b"%b%016d\ndata:%b\n\n" % (start, message.offset.position, line)
                for message, line in zip(page.messages, lines, strict=True)
            ]
        )

    def _id(self, message: Message) -> str:
        return f"{self._prefix}{message.offset}"

    def _event(self, message: Message) -> bytes:
        if self._kind == "json":
            return b"id: %b%b\ndata:%b\n\n" % (self._before, bytes(message.offset), sse.one_line(message.data))
        id_ = self._id(message)
        if self._kind == "events" and _STORED.fullmatch(message.data):
            return b"id: %s\n%s\n" % (id_.encode(), message.data)
        data = b64encode(message.data) if self._kind == "binary" else message.data
        return sse.encode(data, id=id_)

    def ending(self, page: Page) -> bytes:
        if not self._named:
            return b""
        said = msgspec.json.encode({"outcome": page.outcome or "completed"})
        return sse.encode(said, id=f"{self._prefix}{page.next}", event="end")

    def skipped(self, start: Offset, to: Offset) -> bytes | None:
        if not self._named or self.in_characters:  # a text with a hole is another text
            return None
        said = msgspec.json.encode({"from": str(start), "to": str(to), "messages": to.position - start.position})
        return sse.encode(said, id=f"{self._prefix}{to}", event="skipped")

    def interruption(self, error: HeadwaterError) -> bytes:
        if not self._named:
            return sse.comment(f"interrupted: {error.code}")
        said = msgspec.json.encode({"code": error.code, "message": error.said, "retry": error.retry})
        return sse.encode(said, event="interrupted", retry=RECONNECT_MS if error.retry else None)


def stored_event(data: bytes, event: str | None) -> bytes:
    """An event as a message of a text/event-stream stream: its lines without id and blank line.

    Raises ValueError where the name cannot be one.
    """
    return sse.encode(data, event=event)[:-1]


def _kind_of(stream_type: str) -> str:
    if media_type(stream_type) == "text/event-stream":
        return "events"
    if is_json(stream_type):
        return "json"
    return "text" if is_text(stream_type) else "binary"
