"""The bodies of Durable Streams: catch-up, long-poll and `live=sse`. Pure; section numbers are the protocol's.

In SSE a `data` event holds a whole page and is followed by one `control` event (5.8): both in one piece, so that no
reader sees the one without the other. JSON pages are arrays (9), other text is cut into data lines, the rest is base64.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Hashable, Sequence

import msgspec

from headwater.formats.format import Format, is_json, is_text
from headwater.model import Message, Page
from headwater.wire import durable, sse


def body(content_type: str, messages: Sequence[Message]) -> bytes:
    """Messages as the body of a catch-up or long-poll answer: a JSON array, or bytes one after the other."""
    if is_json(content_type):
        return b"[" + b",".join([message.data for message in messages]) + b"]"
    return b"".join([message.data for message in messages])


class DurableEvents(Format):
    """`live=sse`."""

    content_type = "text/event-stream"  # exactly: the conformance suite compares
    transport = "durable-sse"
    heartbeat = sse.HEARTBEAT
    ends_openly = True  # the end is `streamClosed`; anything else means: come again

    def __init__(self, stream_type: str, cursor: str) -> None:
        """`cursor`: the Stream-Cursor of this connection (10)."""
        self._stream_type, self._cursor = stream_type, cursor
        self._json, self._text = is_json(stream_type), is_text(stream_type)
        self.in_characters = self._text and not self._json

    @property
    def key(self) -> Hashable:
        return "durable", self._stream_type, self._cursor

    @property
    def base64(self) -> bool:
        """Whether data is base64, which a header tells the client."""
        return not self._text

    def render(self, page: Page) -> bytes:
        data = b""
        if page.messages:
            whole = body(self._stream_type, page.messages)
            if self._json:
                data = b"event: data\ndata:%s\n\n" % sse.one_line(whole)
            else:
                data = sse.encode(whole if self._text else b64encode(whole), event="data")
        return data + self._control(page, self._cursor)

    def rotation(self, page: Page, now: int, jitter: float) -> bytes:
        """The cursor has moved on: a client that sees neither it nor the offset move takes the server for stuck."""
        return self._control(page, durable.cursor(now, self._cursor, jitter))

    def _control(self, page: Page, cursor: str) -> bytes:
        said: dict[str, str | bool] = {"streamNextOffset": str(page.next)}
        if page.closed:
            said["streamClosed"] = True
        else:
            said["streamCursor"] = cursor
        if page.up_to_date:
            said["upToDate"] = True
        return sse.encode(msgspec.json.encode(said), event="control")
