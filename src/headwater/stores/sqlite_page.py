"""Reading a page of messages out of an SQLite file: in few rows, however many messages it has.

Each row that sqlite3 gives takes the interpreter's lock once more, and waits for it where the loop is busy: thousands
of times for one page. So the sizes come first, as one row, and say where the page ends; small messages then come as one
value, which is cut up by the sizes; large ones as rows, for joining would only copy them once more.

Knows the file format and the model. Blocking: called in a reader's thread, inside one read transaction. Invariant:
nothing beyond the page is read, however large it is.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from itertools import accumulate, repeat
from typing import Final

import msgspec

from headwater.errors import OffsetGone, StreamNotFound
from headwater.model import Head, Message, Offset
from headwater.store import in_a_row, most_messages
from headwater.stores.sqlite_file import message_id

LARGE_BYTES: Final = 4096
"""Of a message, on average: from there on a row costs less than copying what is in it."""

FEW: Final = 64
"""Messages whose sizes are looked at first."""

_decode_head = msgspec.msgpack.Decoder(Head).decode
_SIZES: Final = (  # the length of what is not otherwise asked for is known without reading it
    "SELECT group_concat(size) FROM"
    " (SELECT length(data) AS size FROM message WHERE id > ? AND id < ? ORDER BY id LIMIT ?)"
)
_JOINED: Final = (
    # Bytes pass through TEXT as they are: SQLite neither checks nor changes them, and counts them by their length.
    "SELECT CAST(group_concat(CAST(data AS TEXT), '') AS BLOB), group_concat(time), count(key)"
    " FROM (SELECT time, key, data FROM message WHERE id > ? AND id <= ? ORDER BY id)"
)


def page(connection: sqlite3.Connection, name: str, start: Offset, max_bytes: int) -> list[Message]:
    """What `Store.read` gives."""
    row = connection.execute("SELECT id, generation, head FROM stream WHERE name = ?", (name,)).fetchone()
    if row is None:
        raise StreamNotFound("no such stream")
    stream, generation, head = row
    if start.generation != generation or start.position < _decode_head(head).first:
        raise OffsetGone("this offset can no longer be served")
    sizes = _sizes(connection, message_id(stream, start.position), message_id(stream + 1, 0), max_bytes)
    after = message_id(stream, start.position)
    read = _as_rows if sum(sizes) > LARGE_BYTES * len(sizes) else _as_one
    return read(connection, after, sizes, start) if sizes else []


def _sizes(connection: sqlite3.Connection, after: int, before: int, max_bytes: int) -> list[int]:
    """Of the messages that make up the page."""
    sizes: list[int] = []
    for most in (FEW, most_messages(max_bytes)):  # large ones lie far apart in the file
        if len(sizes) < most and sum(sizes) <= max_bytes:
            asked = after + len(sizes), before, most - len(sizes)
            sizes += _numbers(connection.execute(_SIZES, asked).fetchone()[0])
    return sizes[: max(1, bisect_right(list(accumulate(sizes)), max_bytes))]


def _as_rows(connection: sqlite3.Connection, after: int, sizes: Sequence[int], start: Offset) -> list[Message]:
    rows = connection.execute(
        "SELECT data, time, key FROM message WHERE id > ? AND id <= ? ORDER BY id", (after, after + len(sizes))
    )
    return in_a_row(start, *zip(*rows, strict=True))


def _as_one(connection: sqlite3.Connection, after: int, sizes: Sequence[int], start: Offset) -> list[Message]:
    beyond = after + len(sizes)
    joined, times, keyed = connection.execute(_JOINED, (after, beyond)).fetchone()
    keys: Iterable[str | None] = repeat(None)
    if keyed:
        rows = connection.execute("SELECT key FROM message WHERE id > ? AND id <= ? ORDER BY id", (after, beyond))
        keys = [key for (key,) in rows]
    ends = list(accumulate(sizes))
    return in_a_row(start, map(joined.__getitem__, map(slice, [0, *ends], ends)), _numbers(times), keys)


def _numbers(text: str | None) -> list[int]:
    return list(map(int, text.split(","))) if text else []
