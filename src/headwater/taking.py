"""Pages that end between two characters of a text, for formats that give text as text.

Every offset that a client learns is between two characters: what it got up to there, and what it gets from there,
may be decoded apart. Knows cursors; nothing of connections.
"""

from __future__ import annotations

from typing import Final

from headwater.cursor import Cursor
from headwater.formats.characters import whole
from headwater.model import Page

HELD_BYTES: Final = 1024 * 1024
"""Held back of text, behind a first message, for the rest of a character; what is more is sent as it is."""


async def taken(cursor: Cursor, *, in_characters: bool) -> Page | None:
    """The next page, moving `cursor` behind it. Messages at its end wait for the rest of a character; what never gets
    one comes when the stream is closed, or when it is too much to wait for. None: at the tail, as far as is known."""
    start = cursor.offset
    page = await cursor.take()
    while page is not None and in_characters and not page.closed:
        messages = whole(page.messages)
        if messages == len(page.messages) > 0:
            return page
        if messages:
            cursor.offset = page.messages[messages - 1].offset
            return page._replace(messages=page.messages[:messages], next=cursor.offset)
        if sum(len(message.data) for message in page.messages[1:]) > HELD_BYTES:
            return page
        more = None if page.up_to_date else await cursor.take()
        if more is None:  # looked at again at the next wake
            cursor.offset = start
            return None
        page = more._replace(messages=[*page.messages, *more.messages], start=start)
    return page
