"""Plain bodies: one JSON value a line, or the messages' bytes as they are. Pure.

Neither can say in its own terms that it was interrupted, so such a response is cut off, never ended (`ends_openly`).
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Hashable, Iterable

import msgspec

from headwater.formats.characters import joined
from headwater.formats.format import Format, is_json, is_text, lines_of
from headwater.model import Page
from headwater.wire.sse import one_line


class Lines(Format):
    """`format=ndjson`: JSON messages as they are, text as JSON strings, other bytes as base64 in JSON strings."""

    content_type = "application/x-ndjson"
    transport = "ndjson"
    heartbeat = b"\n"  # readers of NDJSON skip empty lines

    def __init__(self, stream_type: str, *, tells_failure: bool = False) -> None:
        """`tells_failure`: the messages themselves say how the stream ended."""
        self.tells_failure = tells_failure
        self._json, self._text = is_json(stream_type), is_text(stream_type)
        self.in_characters = self._text and not self._json

    @property
    def key(self) -> Hashable:
        return "ndjson", self._json, self._text

    def render(self, page: Page) -> bytes:
        return b"\n".join([*self._lines(page), b""])

    def _lines(self, page: Page) -> Iterable[bytes]:
        if self._json:
            return lines_of(page.messages)
        if self._text:  # a character across the border of messages makes one line of them
            texts = (text.decode(errors="replace") for text, _ in joined(page.messages))
        else:
            texts = (b64encode(message.data).decode() for message in page.messages)
        return (one_line(msgspec.json.encode(text)) for text in texts)


class Raw(Format):
    """`format=text`: the messages' bytes one after the other, each JSON message on a line of its own."""

    transport = "text"
    tells_failure = False

    def __init__(self, stream_type: str) -> None:
        self.content_type = "text/plain; charset=utf-8" if is_text(stream_type) else stream_type
        self._end = b"\n" if is_json(stream_type) else b""

    @property
    def key(self) -> Hashable:
        return "text", self._end

    def render(self, page: Page) -> bytes:
        return b"".join([message.data + self._end for message in page.messages])
