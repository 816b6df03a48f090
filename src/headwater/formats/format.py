"""What a format is: pages of messages -> bytes for one kind of client. A pure projection.

A format says what a connection begins with, what a page becomes, what keeps it alive, and how it ends: because the
stream is over, or because something else is (then the reader must never take it for finished).
"""

from __future__ import annotations

import abc
from collections.abc import Hashable, Sequence
from typing import ClassVar

from headwater.decide import media_type
from headwater.errors import HeadwaterError
from headwater.model import Message, Offset, Page
from headwater.wire.sse import one_line


class Format(abc.ABC):
    """How one kind of client reads a stream. Instances are shared between readers and hashable by `key`."""

    content_type: str
    """Of the response."""

    transport: str = "other"
    """What it is called in metrics and logs."""

    opening: bytes = b""
    """Sent at once, before anything has happened: a first byte that proxies and clients wait for."""

    heartbeat: bytes = b""
    """Sent after silence; empty where the format has no room for one."""

    ends_openly: ClassVar[bool] = False
    """Whether the client can tell, from the bytes alone, an interrupted stream from a finished one. Where it cannot,
    an interrupted response must be cut off and not ended."""

    in_characters: bool = False
    """Whether each page is decoded on its own, so that none may end in the middle of a character
    (`headwater.formats.characters`)."""

    tells_failure: bool = True
    """Whether the client can tell from the bytes that a closed stream was closed as failed or cancelled. Where it
    cannot, the response is cut off then, too."""

    folds: ClassVar[bool] = False
    """Whether it must be given every message from the stream's first, wherever the client is, to render a later one;
    it then says nothing of what the client has. Such an instance serves one connection."""

    @property
    @abc.abstractmethod
    def key(self) -> Hashable:
        """The same for formats that render every page alike; None where that is not for the page alone to say."""

    @abc.abstractmethod
    def render(self, page: Page) -> bytes:
        """The page's messages. May be empty."""

    def ending(self, page: Page) -> bytes:
        """Said after the last message of a closed stream."""
        return b""

    def pauses(self, page: Page) -> bool:
        """Whether the response is over with this page, which was rendered, though the stream is open: its client asks
        again when there is more for it."""
        return False

    def compact(self) -> bool:
        """Say what comes up to the tail more briefly, for a reader that did not keep up; False: it cannot."""
        return False

    def skipped(self, start: Offset, to: Offset) -> bytes | None:
        """Said where the messages from `start` to `to` are left out. None: it has no word for that, so none may be."""
        return None

    def rotation(self, page: Page, now: int, jitter: float) -> bytes:
        """Said when the connection ends only to be made anew. `page` is empty and says where the reader stands; `now`
        in ms since 1970, `jitter` in [0, 1). Only of formats that end openly."""
        return b""

    def interruption(self, error: HeadwaterError) -> bytes:
        """Said when the connection must end although the stream goes on, or nobody knows."""
        return b""


def is_json(content_type: str) -> bool:
    """Whether messages are JSON values (Durable Streams 9: exactly this media type)."""
    return media_type(content_type) == "application/json"


def is_text(content_type: str) -> bool:
    """Whether messages are UTF-8 text."""
    return is_json(content_type) or content_type.lower().startswith("text/")


def lines_of(messages: Sequence[Message]) -> list[bytes]:
    """The JSON of messages, each on one line. Looked at all at once, for nearly all are so already."""
    data = [message.data for message in messages]
    whole = b"".join(data)
    return data if one_line(whole) is whole else list(map(one_line, data))
