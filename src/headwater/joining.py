"""Joining: small messages that come close behind each other share a write.

A write costs more than the token in it, for the server, the network and the client. So a reader may have a joining
time: what comes first after a silence goes out at once, and what comes within that time of a write goes out together
when it is over. The time to the first token is what it would be; of those behind it each comes at most so much later.

What a reader should not be kept waiting for does not wait: the end of the stream, that it is gone, a pause of a run,
a server that goes away; nor does more than one write may hold.

Knows tails and the query that asks. Sets no timer: who holds back asks `until`, and looks at `holds` at each wake.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from typing import Any, Final
from urllib.parse import parse_qs

from headwater.errors import BadRequest
from headwater.hub import Tail
from headwater.model import Head

PARAMETER: Final = "join_ms"

MOST_MS: Final = 1000
"""Above that it is no stream any more; a heartbeat is far from it, too."""

_PAUSE: Final = b'"run.waiting"'
_NAME_BYTES: Final = 80
"""As `headwater.formats.pauses` knows the message by which a run waits; that one needs the extra of runs."""

_SOON: Final = 0.0005
"""Seconds: timers of uvloop come as much too early."""


def joined_ms(scope: MutableMapping[str, Any]) -> int | None:
    """The joining time that a request asks for; None where it leaves that to the server. Raises BadRequest."""
    query: bytes = scope.get("query_string", b"")
    if b"join_ms" not in query:  # nearly always
        return None
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get(PARAMETER)
    if values is None:
        return None
    text = values[0]
    if len(values) > 1 or not (text.isascii() and text.isdecimal()) or len(text) > 4 or int(text) > MOST_MS:
        raise BadRequest(
            f"{PARAMETER} is a whole number of milliseconds from 0 to {MOST_MS}, once: with join_ms=20 what comes "
            "within 20 ms shares a write"
        )
    return int(text)


class Joining:
    """When the next write of a reader may be, or of several that were written to together."""

    __slots__ = ("_draining", "_most", "_volume", "seconds", "until")

    def __init__(self, seconds: float, most: int, draining: Callable[[], bool]) -> None:
        """`most`: bytes that are not held back any more, since one write should not have more."""
        self.seconds, self._most, self._draining = seconds, most, draining
        self.until = 0.0
        """On the loop's clock."""
        self._volume = 0

    def __repr__(self) -> str:
        return f"<Joining for {self.seconds:g} s [until {self.until:.3f}]>"

    def copy(self) -> Joining:
        """One that holds for as long as this one does."""
        other = Joining(self.seconds, self._most, self._draining)
        other.until, other._volume = self.until, self._volume
        return other

    def wrote(self, tail: Tail, now: float) -> None:
        """All that there was has gone out."""
        self.until, self._volume = now + self.seconds, tail.volume

    def holds(self, tail: Tail, now: float) -> bool:
        """Whether what has come since should wait."""
        if now + _SOON >= self.until or tail.volume - self._volume >= self._most:
            return False
        head, newest = tail.head, tail.newest
        if not isinstance(head, Head) or head.closed or head.deleted is not None or self._draining():
            return False
        return newest is None or _PAUSE not in newest.data[:_NAME_BYTES]
