"""What Durable Streams says in headers, queries and JSON bodies: parsing and minting. Pure; sections are its own.

Time is an argument, in ms since 1970. Everything a client got wrong is a BadRequest that says what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Final

import msgspec

from headwater.decide import Stamp
from headwater.errors import BadRequest
from headwater.model import Offset

CURSOR_EPOCH_MS: Final = 1_728_432_000_000  # 2024-10-09T00:00:00Z (10)
CURSOR_INTERVAL_MS: Final = 20_000
LARGEST_INTEGER: Final = 2**53 - 1
LATEST_MS: Final = 253_402_300_799_999  # the last of the year 9999: later ones have no RFC 3339 form

_TTL: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_DIGITS: Final = re.compile(r"[0-9]{1,16}", re.ASCII)
_RFC3339: Final = re.compile(r"\d{4}-\d\d-\d\d[Tt]\d\d:\d\d:\d\d(\.\d+)?([Zz]|[+-]\d\d:\d\d)", re.ASCII)


def parse_ttl(text: str) -> int:
    """Stream-TTL in seconds (5.1): decimal, no sign, no leading zero."""
    if not _TTL.fullmatch(text) or int(text) > LARGEST_INTEGER:
        raise BadRequest("Stream-TTL is a whole number of seconds, like 3600")
    return int(text)


def parse_expires_at(text: str) -> int:
    """Stream-Expires-At, as ms since 1970 (5.1): RFC 3339 with a time zone."""
    if not _RFC3339.fullmatch(text):
        raise BadRequest("Stream-Expires-At is a time like 2030-01-01T00:00:00Z")
    try:
        at = round(datetime.fromisoformat(text.upper()).timestamp() * 1000)
    except ValueError as error:
        raise BadRequest("Stream-Expires-At is not a time of the calendar") from error
    if not 0 <= at <= LATEST_MS:
        raise BadRequest("Stream-Expires-At is a time from 1970 to 9999")
    return at


def parse_closed(text: str | None) -> bool:
    """Stream-Closed (5.3): only `true` says it, in any case; everything else is as good as absent."""
    return text is not None and text.lower() == "true"


def parse_stamp(headers: Mapping[str, str]) -> Stamp | None:
    """Producer-Id, -Epoch and -Seq (5.2.1): all three or none."""
    values = [headers.get(name) for name in ("producer-id", "producer-epoch", "producer-seq")]
    if values == [None, None, None]:
        return None
    producer, epoch, seq = values
    if not producer or epoch is None or seq is None:
        raise BadRequest("Producer-Id, Producer-Epoch and Producer-Seq go together, and the id is not empty")
    return Stamp(producer, _integer("Producer-Epoch", epoch), _integer("Producer-Seq", seq))


def _integer(header: str, text: str) -> int:
    if not _DIGITS.fullmatch(text) or int(text) > LARGEST_INTEGER:
        raise BadRequest(f"{header} is a whole number from 0 to {LARGEST_INTEGER}")
    return int(text)


def split_json(body: bytes) -> list[bytes]:
    """The messages of a JSON body (9): an array is flattened by one level, anything else is one message."""
    try:
        if body.lstrip(b" \t\r\n").startswith(b"["):
            body.decode()  # msgspec.Raw leaves the bytes of strings unchecked
            return [bytes(item) for item in msgspec.json.decode(body, type=list[msgspec.Raw])]
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("the body is not valid JSON") from error
    return [body]


def etag(name_hash: str, start: Offset, end: Offset, *, closed: bool) -> str:
    """The ETag of a catch-up page (10): the same bytes, and the same state of the stream, have the same one."""
    return f'"{name_hash}:{start}:{end}{":c" if closed else ""}"'


def cursor(now: int, clients: str | None, jitter: float) -> str:
    """The Stream-Cursor (10): the current interval; a client that has it already, or is ahead, moves on at random.

    `jitter` is in [0, 1).
    """
    current = (now - CURSOR_EPOCH_MS) // CURSOR_INTERVAL_MS
    if clients is None or not _DIGITS.fullmatch(clients) or int(clients) < current:
        return str(current)
    seconds = 1 + int(jitter * 3600)
    return str(int(clients) + max(1, -(-seconds * 1000 // CURSOR_INTERVAL_MS)))
