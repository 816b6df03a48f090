"""Way: how a stream is asked for, and how what comes back is understood. What a Reader needs of it, and no more. Pure.

Two ways keep this contract: `plain.PlainEvents` and `durable.DurablePages`. A Reader owns the connection and the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple, Protocol

import httpx
import msgspec

from headwater.errors import HeadwaterError

LARGEST_EVENT: Final = 64 * 1024 * 1024
"""Bytes: four times the largest message a server takes by default, for base64 and JSON escapes."""


class Event(NamedTuple):
    """One message of a stream."""

    data: bytes
    """As it was appended. Followed as plain events (the usual way on a Headwater server): JSON on one line, line ends
    of text as LF."""
    offset: str
    """To go on behind it, follow from here. Where a server gives a page of messages one offset for all of them (every
    server but Headwater), only the last message has the offset after it; those before have the offset before the
    page: whoever resumes there meets them again, and misses none."""
    name: str = "message"
    """The event's own name, in streams of content type text/event-stream."""

    def json(self) -> Any:
        """The value of a JSON message. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.data)


class Wanted(NamedTuple):
    """A request to make."""

    url: httpx.URL
    headers: dict[str, str]
    silence: float = 1.0
    """How much more than the usual silence this answer may take."""


class Way(Protocol):
    offset: str | None
    """After the last message taken; before the first, where to begin."""
    outcome: str | None
    over: bool
    """The stream has ended, and everything before its end was taken."""
    interrupted: HeadwaterError | None
    """What the server said about a connection that it is about to end. Whoever reads it sets it to None."""

    @property
    def asked(self) -> float:
        """Seconds that the server wants a client to wait before it comes again."""

    def request(self) -> Wanted:
        """What to ask next."""

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The head of an answer of 200 or 204."""

    def feed(self, chunk: bytes) -> None:
        """The next bytes of its body. Raises TooLarge and HeadwaterError."""

    def take(self) -> Event | None:
        """The next message, if one is there."""

    def ended(self, waited: float, lived: float, *, cut: bool) -> HeadwaterError | None:
        """The body has ended, or the connection was lost (`cut`): None where that is as it should be.

        `waited`: seconds since the request was sent; `lived`: since the head of its answer came, 0 where none did.
        """
