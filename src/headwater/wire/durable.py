"""What Durable Streams says in headers, queries and JSON bodies: parsing and minting. Pure; sections are its own.

If-Match and Stream-Retention are additions of ours (PROTOCOL.md). Time is an argument, in ms since 1970. Everything a
client got wrong is a BadRequest that says what would be right.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from typing import Final, TypeVar
from urllib.parse import unquote

import msgspec

from headwater.decide import ForkOf, Stamp
from headwater.errors import BadOffset, BadRequest, TooLarge
from headwater.model import Offset, Retention

T = TypeVar("T")

BASES: Final = ("/v1/stream/", "/streams/")
"""Paths under which streams are found. The second is where TanStack AI's adapter looks."""

CURSOR_EPOCH_MS: Final = 1_728_432_000_000  # 2024-10-09T00:00:00Z (10)
CURSOR_INTERVAL_MS: Final = 20_000
LARGEST_INTEGER: Final = 2**53 - 1
LATEST_MS: Final = 253_402_300_799_999  # the last of the year 9999: later ones have no RFC 3339 form

LONGEST_TEXT: Final = 1024
"""Characters of a producer's id and of a Stream-Seq: the stream's head, which each append writes, holds them."""

MOST_MESSAGES: Final = 100_000
"""In one request, which is carried out in one piece, while the loop does nothing else: about half a second."""

PART_BYTES: Final = 128 * 1024
"""Of a JSON array, looked at in one piece: some milliseconds, if it has nothing but the smallest of elements."""

TRIES: Final = 8
"""Commas at which a part is tried to end: of every few, one is between two elements. Beyond a large element, one."""

OUTCOMES: Final = ("completed", "failed", "cancelled")

_decode_array: Final = msgspec.json.Decoder(list[msgspec.Raw]).decode
_TTL: Final = re.compile(r"0|[1-9][0-9]{0,15}", re.ASCII)
_BOUND: Final = re.compile(r"(seconds|bytes|messages)=([1-9][0-9]{0,15})", re.ASCII)
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


def parse_outcome(text: str | None, *, closes: bool) -> str | None:
    """Stream-Outcome (PROTOCOL.md 4): how the stream ended that is closed by this request."""
    if text is not None and not closes:
        raise BadRequest("Stream-Outcome says how a stream ended: it goes with Stream-Closed: true")
    if text is not None and text not in OUTCOMES:
        raise BadRequest(f"Stream-Outcome is one of {', '.join(OUTCOMES)}")
    return text


def parse_stamp(headers: Mapping[str, str]) -> Stamp | None:
    """Producer-Id, -Epoch and -Seq (5.2.1): all three or none."""
    values = [headers.get(name) for name in ("producer-id", "producer-epoch", "producer-seq")]
    if values == [None, None, None]:
        return None
    producer, epoch, seq = values
    if not producer or epoch is None or seq is None:
        raise BadRequest("Producer-Id, Producer-Epoch and Producer-Seq go together, and the id is not empty")
    if len(producer) > LONGEST_TEXT:
        raise BadRequest(f"a Producer-Id has at most {LONGEST_TEXT:,} characters")
    return Stamp(producer, _integer("Producer-Epoch", epoch), _integer("Producer-Seq", seq))


def parse_type(text: str) -> str:
    """A content type that does not come in a header: it leaves in one."""
    if not text.isascii() or not text.isprintable() or text != text.strip():
        raise BadRequest("a content type is one line of plain characters, like text/plain")
    return text


def parse_seq(text: str | None) -> str | None:
    """Stream-Seq (5.2): any text."""
    if text is not None and len(text) > LONGEST_TEXT:
        raise BadRequest(f"a Stream-Seq has at most {LONGEST_TEXT:,} characters")
    return text


def stream_name(path: str, prefix: str = "") -> str | None:
    """The stream that a path names, both without escapes, of a server that is mounted at `prefix`; None: none."""
    if path.startswith(prefix):
        for base in BASES:
            if path.startswith(base, len(prefix)):
                return path[len(prefix) + len(base) :] or None
    return None


def unescaped(path: str) -> str | None:
    """A path without its escapes; None where they are no UTF-8: else many addresses would name one stream."""
    try:
        return unquote(path, errors="strict")
    except UnicodeDecodeError:
        return None


def parse_fork(headers: Mapping[str, str], prefix: str = "") -> ForkOf | None:
    """Stream-Forked-From, Stream-Fork-Offset and Stream-Fork-Sub-Offset (4.2)."""
    names = ("stream-forked-from", "stream-fork-offset", "stream-fork-sub-offset")
    source, offset, sub_offset = (headers.get(name) for name in names)
    if source is None:
        if (offset, sub_offset) != (None, None):
            raise BadRequest("Stream-Fork-Offset and Stream-Fork-Sub-Offset need Stream-Forked-From")
        return None
    path = unescaped(source) if source.isascii() and not {"?", "#"} & set(source) else None
    name = None if path is None else stream_name(path, prefix)
    if name is None:
        raise BadRequest(f"Stream-Forked-From is the path of a stream, like {prefix}{BASES[0]}name")
    anchor = None if offset is None else Offset.parse(offset)
    if offset is not None and anchor is None:
        raise BadOffset("Stream-Fork-Offset is an offset that the server gave; leave it out to fork at the tail")
    more = 0 if sub_offset is None else _count(sub_offset)
    if more and anchor is None:
        raise BadRequest("Stream-Fork-Sub-Offset counts from Stream-Fork-Offset; give that, too")
    return ForkOf(name, anchor, more)


def _count(text: str) -> int:
    if not _TTL.fullmatch(text) or int(text) > LARGEST_INTEGER:
        raise BadRequest("Stream-Fork-Sub-Offset is a whole number, like 3")
    return int(text)


def parse_if_match(values: Sequence[str]) -> Offset | None:
    """If-Match of an append: the offset, quoted or not, at which the stream has to end. `values`: one per header."""
    if not values:
        return None
    value = values[0].strip()
    if len(value) >= 2 and value[0] == value[-1] == '"':
        value = value[1:-1]
    offset = Offset.parse(value)
    if len(values) > 1 or offset is None:
        raise BadRequest('If-Match is one offset, as Stream-Next-Offset gave it: If-Match: "<offset>"')
    return offset


def tail_tag(offset: Offset | str) -> str:
    """The ETag of an append's answer: what If-Match of the next one may be."""
    return f'"{offset}"'


def parse_retention(text: str) -> Retention:
    """Stream-Retention: how much of a stream is kept, any of `seconds=3600, bytes=1000000, messages=1000`."""
    bounds: dict[str, int] = {}
    for part in text.split(","):
        match = _BOUND.fullmatch(part.strip(" \t"))
        if match is None or match[1] in bounds or int(match[2]) > LARGEST_INTEGER:
            raise BadRequest("a retention is some of seconds=N, bytes=N, messages=N, with commas between, N above 0")
        bounds[match[1]] = int(match[2])
    return Retention(**bounds)


def retention_text(kept: Retention) -> str:
    """The same, the other way round."""
    bounds = {"seconds": kept.seconds, "bytes": kept.bytes, "messages": kept.messages}
    return ", ".join(f"{name}={bound}" for name, bound in bounds.items() if bound is not None)


def _integer(header: str, text: str) -> int:
    if not _DIGITS.fullmatch(text) or int(text) > LARGEST_INTEGER:
        raise BadRequest(f"{header} is a whole number from 0 to {LARGEST_INTEGER}")
    return int(text)


def split_json(body: bytes) -> list[bytes]:
    """The messages of a JSON body (9): an array is flattened by one level, anything else is one message.

    Raises BadRequest, TooLarge; the latter as soon as it is known.
    """
    try:
        if body.lstrip(b" \t\r\n").startswith(b"["):
            body.decode()  # msgspec.Raw leaves the bytes of strings unchecked
            messages: list[bytes] = []
            for part in _parts(body):
                messages += map(bytes, part)
                counted(messages)
            return messages
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("the body is not valid JSON") from error
    return [body]


def _parts(body: bytes) -> Iterator[list[msgspec.Raw]]:
    """The elements of a JSON array, some at a time: the first thousands tell whether there are too many.

    What is before a comma is whole elements if, and only if, it is an array once it is closed: a comma within a string
    or a nested value leaves that open.
    """
    begin = start = body.index(b"[") + 1
    size = PART_BYTES
    while (tried := start + size) < len(body):
        for _ in range(TRIES if size == PART_BYTES else 1):
            tried = body.find(b",", tried + 1)
            part = _elements(body[start:tried]) if tried > 0 else []
            if part:
                yield part
                start, size = tried + 1, PART_BYTES
                break
            if tried < 0:
                break
        else:
            size *= 2  # a large element, or one of many commas: look beyond it
        if tried < 0:
            break
    last = _decode_array(b"[" + body[start:])
    if start > begin and not last:
        raise msgspec.DecodeError("a comma is followed by nothing")
    yield last


def _elements(text: bytes) -> list[msgspec.Raw]:
    """Those that `text` is, with commas between; none where it is something else."""
    with suppress(msgspec.DecodeError):
        return _decode_array(b"[%b]" % text)
    return []


def counted(messages: Sequence[T]) -> Sequence[T]:
    """`messages`, if one request may bring so many. Raises TooLarge."""
    if len(messages) > MOST_MESSAGES:
        raise TooLarge(f"a request brings at most {MOST_MESSAGES:,} messages; send the others in more requests")
    return messages


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
