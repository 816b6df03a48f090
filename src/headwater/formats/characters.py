"""Where text may be cut: between its characters. Pure.

A message of a text stream may end in the middle of a character (UTF-8), whose rest is in the next one. A client that
decodes event by event would make two replacement characters of it; so an event ends where a character does. Bytes that
nothing can complete are no reason to wait: they are replaced wherever they are cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Final

from headwater.model import Message

MOST_CUT: Final = 64
"""Messages in a row that all end within a character: that is no text, and nothing waits for it."""

_LONGEST_START: Final = 3
"""Bytes of a character that lacks its last one."""

_START: Final = re.compile(
    rb"""(?: [\xc2-\xf4]
    | (?: \xe0[\xa0-\xbf] | [\xe1-\xec\xee\xef][\x80-\xbf] | \xed[\x80-\x9f] )
    | (?: \xf0[\x90-\xbf] | [\xf1-\xf3][\x80-\xbf] | \xf4[\x80-\x8f] ) [\x80-\xbf]?
    )\Z""",
    re.VERBOSE,
)
"""How a character may begin that is not complete (Unicode, table 3-7)."""


def is_cut(text: bytes) -> bool:
    """Whether `text` ends with the beginning of a character, which more bytes could complete."""
    end = text[-_LONGEST_START:]
    return not end.isascii() and _START.search(end) is not None


def whole(messages: Sequence[Message]) -> int:
    """How many of the first messages can be shown: at the end of the last of them, a character ends. Usually all."""
    total = len(messages)
    for count in range(total, max(0, total - MOST_CUT), -1):
        if not is_cut(_end_of(messages, count)):
            return count
    return 0 if total < MOST_CUT else total


def joined(messages: Sequence[Message]) -> Iterator[tuple[bytes, Message]]:
    """The texts of messages, and the last message of each: those with a character across their border are one text."""
    parts: list[bytes] = []
    for count, message in enumerate(messages, start=1):
        parts.append(message.data)
        if count == len(messages) or not is_cut(_end_of(messages, count)):
            yield (b"".join(parts) if len(parts) > 1 else message.data), message
            parts.clear()


def _end_of(messages: Sequence[Message], count: int) -> bytes:
    """The last bytes of the first `count` messages."""
    end = b""
    while count and len(end) < _LONGEST_START:
        count -= 1
        end = messages[count].data[-_LONGEST_START:] + end
    return end
