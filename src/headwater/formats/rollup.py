"""Compact catch-up of runs: what is past comes rolled up, what comes from now on as it comes. Pure.

Past is what a connection finds: everything until it has been at the tail once; who starts a run finds nothing. In it
the deltas of one part (a text, a thought, the arguments of a tool call) that stand behind each other in the log become
one delta, which has the id of the last of them. So no id is made up, everybody resumes exactly, and a client that adds
deltas up holds what it would hold without. Nothing else changes: not what is said, not its order.

Two ways in: `RolledUp` puts the messages of a log together before a format sees them, where ids are places in the log;
formats that number their own events put those together, after the fold (`RollUp`), so that the numbers stay. Invariant:
what is held back is bounded, and is said before anything that comes behind it, also where the connection ends.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, Generic, TypeAlias, TypeVar

import msgspec

from headwater.errors import BadRequest, HeadwaterError
from headwater.formats.format import Format
from headwater.model import BEGINNING, Message, Offset, Page

HELD_CHARACTERS: Final = 64 * 1024
"""Of text held back for more of its part: what is longer comes in several deltas of about this size."""

T = TypeVar("T")

Piece: TypeAlias = tuple[Hashable, str]
"""Which part a delta is of, and what it adds."""


def is_wanted(rollup: str | None) -> bool:
    """What `?rollup=` says; it is wanted unless it is turned off. Raises BadRequest."""
    if rollup not in (None, "0", "1"):
        raise BadRequest("rollup is 1, or 0 for every delta as it was made")
    return rollup != "0"


class RollUp(Generic[T]):
    """Puts deltas together that stand behind each other, until it has been at the tail. One connection's."""

    def __init__(
        self, piece_of: Callable[[T], Piece | None], joined: Callable[[T, str], T], *, wanted: bool = True
    ) -> None:
        """`piece_of`: None for what is no delta; `joined`: the last of several, with the text of all."""
        self.over = not wanted
        """Everything passes."""
        self._wanted = wanted
        self._piece_of, self._joined = piece_of, joined
        self._last: T | None = None
        self._part: Hashable = None
        self._texts: list[str] = []
        self._count = self._size = 0

    def __repr__(self) -> str:
        return f"<RollUp [{'over' if self.over else f'{self._size} characters held'}]>"

    def page(self, items: Iterable[T], *, up_to_date: bool) -> Sequence[T]:
        """What of a page can be said now. `up_to_date`: at its end is the tail."""
        if self.over:
            return items if isinstance(items, Sequence) else list(items)
        told: list[T] = []
        for item in items:
            piece = self._piece_of(item)
            if piece is None:
                told += self._released()
                told.append(item)
            else:
                told += self._held(item, piece)
        self._texts = ["".join(self._texts)]  # one text from page to page takes little room
        return [*told, *self.rest()] if up_to_date else told

    def rest(self) -> Sequence[T]:
        """What is still held back; from here on everything passes."""
        self.over = True
        return self._released()

    def again(self) -> bool:
        """Put together until the tail once more, if that is wanted at all."""
        self.over = not self._wanted
        return self._wanted

    def _held(self, item: T, piece: Piece) -> Sequence[T]:
        part, text = piece
        released = self._released() if part != self._part or self._size >= HELD_CHARACTERS else ()
        self._part, self._last = part, item
        self._texts.append(text)
        self._count += 1
        self._size += len(text)
        return released

    def _released(self) -> Sequence[T]:
        if self._last is None:
            return ()
        one = self._last if self._count == 1 else self._joined(self._last, "".join(self._texts))
        self._last = self._part = None
        self._texts, self._count, self._size = [], 0, 0
        return (one,)


class RolledUp(Format):
    """Any format of a run whose ids are places in its log, with the past rolled up. One connection's."""

    def __init__(self, told_by: Format, after: Offset = BEGINNING) -> None:
        """`after`: up to where the client has the run, for a format that folds: there a delta begins anew."""
        self._told_by = told_by
        self._rollup = RollUp(lambda message: None if message.offset <= after else _piece(message), _joined)
        self.content_type, self.opening, self.heartbeat = told_by.content_type, told_by.opening, told_by.heartbeat
        self.in_characters, self.tells_failure = told_by.in_characters, told_by.tells_failure
        self.transport = told_by.transport

    def __repr__(self) -> str:
        return f"<RolledUp {self._told_by!r} {self._rollup!r}>"

    @property
    def ends_openly(self) -> bool:  # type: ignore[override]
        return self._told_by.ends_openly

    @property
    def folds(self) -> bool:  # type: ignore[override]
        return self._told_by.folds

    @property
    def key(self) -> Hashable:
        return self._told_by.key if self._rollup.over else None

    def render(self, page: Page) -> bytes:
        told = self._rollup.page(page.messages, up_to_date=page.up_to_date)
        return self._told_by.render(page._replace(messages=told))

    def pauses(self, page: Page) -> bool:
        return self._told_by.pauses(page)

    def compact(self) -> bool:
        return self._rollup.again()

    def ending(self, page: Page) -> bytes:
        return self._rest(page) + self._told_by.ending(page)

    def rotation(self, page: Page, now: int, jitter: float) -> bytes:
        return self._rest(page) + self._told_by.rotation(page, now, jitter)

    def interruption(self, error: HeadwaterError) -> bytes:
        nowhere = Page([], BEGINNING, BEGINNING, up_to_date=False, closed=False)
        return self._rest(nowhere) + self._told_by.interruption(error)

    def _rest(self, page: Page) -> bytes:
        held = self._rollup.rest()
        return self._told_by.render(page._replace(messages=held)) if held else b""


# -- deltas of a run's log --------------------------------------------------------------------------------------------


class _Said(msgspec.Struct, tag_field="type", forbid_unknown_fields=True, omit_defaults=True, gc=False):
    """A delta that may be put together with another: one with further fields (rawEvent, …) stays as it is."""

    id: str = msgspec.field(name="messageId")
    delta: str
    timestamp: int | float | None = None
    subagent: str | None = msgspec.field(default=None, name="subagentRunId")


class _Text(_Said, tag="TEXT_MESSAGE_CONTENT"):
    pass


class _Thought(_Said, tag="REASONING_MESSAGE_CONTENT"):
    pass


class _Arguments(
    msgspec.Struct, tag_field="type", tag="TOOL_CALL_ARGS", forbid_unknown_fields=True, omit_defaults=True, gc=False
):
    id: str = msgspec.field(name="toolCallId")
    delta: str
    timestamp: int | float | None = None
    subagent: str | None = msgspec.field(default=None, name="subagentRunId")


_encode: Final = msgspec.json.Encoder().encode
_decode: Final = msgspec.json.Decoder(_Text | _Thought | _Arguments).decode
_begins_as_delta: Final = re.compile(
    rb'\{\s*"type"\s*:\s*"(?:TEXT_MESSAGE_CONTENT|REASONING_MESSAGE_CONTENT|TOOL_CALL_ARGS)"'
).match


def _piece(message: Message) -> Piece | None:
    if _begins_as_delta(message.data) is None:  # nothing has to be decoded
        return None
    try:
        delta = _decode(message.data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return (type(delta), delta.id, delta.subagent), delta.delta


def adds_to_same(message: Message, next_: Message) -> bool:
    """Whether both are deltas of one part."""
    one, other = _piece(message), _piece(next_)
    return one is not None and other is not None and one[0] == other[0]


def _joined(last: Message, text: str) -> Message:
    return msgspec.structs.replace(last, data=_encode(msgspec.structs.replace(_decode(last.data), delta=text)))
