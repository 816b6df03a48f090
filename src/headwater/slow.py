"""Readers that do not keep up: when one counts as slow, and what becomes of it.

A slow reader costs the server nothing: it is an older position in the log (G9). So by default it lags, and has
everything in the end. Where a late answer is worth less than a fresh one, it is moved on instead, and told so in its
format's own words; a format that has none lags, since a gap that nobody tells of would be a lie (G5). Or it is let go,
with a reason, and may resume.

Slow is only who has been at the tail since it came and fell behind: whoever reads the past does so at leisure. And who
takes nothing at all is given up by another rule (`Policy.write_seconds`).

Knows pages, heads and the words for it; sends nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Final, Literal, NamedTuple, get_args

from headwater.errors import BadRequest, TooSlow
from headwater.formats.format import Format
from headwater.hub import MOST_MESSAGES, RING_BYTES, Tail
from headwater.model import Head, Offset, Page

LEAST_BYTES: Final = 64 * 1024
"""One write (`Policy.chunk_bytes`): who lacks no more than that has it with the next one."""

What = Literal["lag", "skip", "close"]


@dataclass(frozen=True, slots=True)
class Slow:
    """Which readers are slow, and what becomes of them. Raises BadRequest for bounds that cannot be."""

    what: What = "lag"
    """lag: it has everything in the end. skip: a run's reader gets what it lacks rolled up, a reader of `format=sse`
    goes on with the newest message. close: it is interrupted (`too_slow`), and may resume."""
    bytes: int = 1024 * 1024
    """Of messages that it lacks. Four times what is kept in memory of a hot stream, some 100,000 tokens."""
    seconds: float = 10.0
    """Age of the oldest of them: nobody takes that for live any more."""

    def __post_init__(self) -> None:
        if self.what not in get_args(What):
            raise BadRequest("what becomes of slow readers is lag, skip or close")
        if self.bytes < LEAST_BYTES or self.seconds < 0:
            raise BadRequest(
                f"a slow reader is at least {LEAST_BYTES:,} bytes behind (--slow-after-bytes), or a time in seconds"
            )


DEFAULT_SLOW: Final = Slow()


class Skip(NamedTuple):
    """Where a reader is moved to, and what it is told."""

    to: Offset
    said: bytes


class Standing(NamedTuple):
    """Where a reader stands that has been at the tail, and how large the stream was there."""

    offset: Offset
    size: int


def standing_at(tail: Tail, offset: Offset) -> Standing | None:
    """That of a reader at `offset` who has just fallen behind; None where it cannot be told any more."""
    head = tail.head
    if not isinstance(head, Head):
        return None
    if head.offset == offset:
        return Standing(offset, head.size)
    lacking = tail.messages(offset, RING_BYTES)
    if not lacking or len(lacking) == MOST_MESSAGES or lacking[-1].offset != head.offset:
        return None
    return Standing(offset, head.size - sum(len(message.data) for message in lacking))


class Keeping:
    """How one reader keeps up. Told wherever it is at the tail, or found not to be; not where it just goes on."""

    __slots__ = ("_counted", "_known", "_slow", "is_slow")

    def __init__(self, slow: Slow, counted: Counter[str]) -> None:
        """`counted`: what became of slow readers."""
        self._slow, self._counted = slow, counted
        self._known: Head | Standing | None = None
        self.is_slow = False

    def up(self, tail: Tail) -> None:
        """It has everything."""
        self._known = tail.head if isinstance(tail.head, Head) else None
        self.is_slow = False

    def not_up(self, tail: Tail, offset: Offset) -> None:
        """It stands there and cannot take more now. One that was at the tail had everything a moment ago."""
        if self._known is not None and self._known.offset != offset:
            self._known = standing_at(tail, offset)

    def judge(self, tail: Tail, page: Page, format_: Format, now: int) -> Skip | None:
        """It gets this page, and that is not all. What to say instead, for who is moved on. Raises TooSlow.

        `now`: ms since 1970.
        """
        head, known, slow = tail.head, self._known, self._slow
        if not isinstance(head, Head) or known is None or known.offset != page.start or not page.messages:
            return None
        self._known = Standing(page.next, known.size + sum(len(message.data) for message in page.messages))
        late = head.size - known.size > slow.bytes or now - page.messages[0].time > slow.seconds * 1000
        if self.is_slow or not late:
            return None
        self.is_slow = True
        if slow.what == "close":
            self._counted["close"] += 1
            raise TooSlow("this client did not keep up with the stream; it may resume")
        to = Offset(head.generation, head.tail - 1)  # the newest message is of use, whatever was before it
        compact = slow.what == "skip" and format_.compact()
        said = format_.skipped(page.start, to) if slow.what == "skip" and not compact else None
        self._counted["skip" if compact or said is not None else "lag"] += 1
        return None if said is None else Skip(to, said)
