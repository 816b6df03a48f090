"""Each message with what the log knows of it: where it stands, when it was appended, its key and its size. Pure.

For people who look at a stream (`headwater.http.console`): a message is shown as text where it is UTF-8, else as
base64, and cut off where it is long. Not a format for clients: it says nothing of a stream's own content type.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Hashable

import msgspec

from headwater.formats.sse import ServerSentEvents
from headwater.model import Message, Page
from headwater.wire.sse import one_line


class Entry(msgspec.Struct, omit_defaults=True):
    """One message, as JSON says it: either `text` or `base64` is there."""

    position: int
    """How many messages of the stream come before it."""
    offset: str
    """After it."""
    time: int
    """When it was appended, ms since 1970."""
    size: int
    """Bytes of the whole message."""
    key: str | None = None
    text: str | None = None
    base64: str | None = None
    cut: bool = False
    """Only its beginning is here."""


def entry_of(message: Message, most: int) -> Entry:
    """`message` with at most `most` of its bytes."""
    data, size = message.data[:most], len(message.data)
    entry = Entry(message.offset.position - 1, str(message.offset), message.time, size, message.key, cut=size > most)
    try:
        # Only what was cut off here may end within a character.
        entry.text = data.decode(errors="strict") if size <= most else _beginning(data)
    except UnicodeDecodeError:
        entry.base64 = b64encode(data).decode()
    return entry


def _beginning(data: bytes) -> str:
    """Text whose last character may be incomplete. Raises UnicodeDecodeError where more is wrong with it."""
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        if len(data) - error.start >= 4:  # bytes of the longest character
            raise
        return data[: error.start].decode()


class Entries(ServerSentEvents):
    """Live: an event for each message, whose id is the offset after it, and `event: end` as with `format=sse`."""

    transport = "console"

    def __init__(self, most: int) -> None:
        """`most`: bytes of a message that are shown."""
        super().__init__("application/json")
        self._most = most

    @property
    def key(self) -> Hashable:
        return "entries", self._most

    def render(self, page: Page) -> bytes:
        return b"".join(map(self._said, page.messages))

    def _said(self, message: Message) -> bytes:
        said = msgspec.json.encode(entry_of(message, self._most))
        return b"id: %s\ndata:%s\n\n" % (str(message.offset).encode(), one_line(said))
