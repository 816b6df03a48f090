"""Server-Sent Events: bytes of one event, and an incremental reader of them.

Knows the event-stream format (WHATWG HTML, section 9.2 "Server-sent events") and what clients in the field trip over.
Must not know what the data means, where bytes come from or go to, nor when to reconnect.

Invariants:
- One call of `encode` is one event: nothing in `data`, `id` or `event` can start another event, nor another field.
- A `Decoder` gives the same events, comments, ids and errors however the bytes are cut into chunks.
- `Decoder.last_event_id` never runs ahead of the events that `feed` has returned, so it is always safe to resume from.
- A `Decoder` holds at most `max_event_bytes` of data and unfinished line.
"""

import re
from collections.abc import Callable
from typing import Final, NamedTuple

HEARTBEAT: Final = b": hb\n"
"""Keeps an idle connection alive. ONE newline: a comment never dispatches, but a blank line after an `id` makes several
clients (httpx-sse, the openai decoder, fetch-event-source) emit an empty event and crash on it."""

MAX_RETRY_MS: Final = 3_600_000  # an hour: a longer pause is a client that never comes back

# Control characters and the Unicode line ends: WHATWG splits at CR and LF only and forbids NUL in an id, but clients
# built on a line iterator like str.splitlines split at VT, FF, FS, GS, RS, U+0085, U+2028 and U+2029 too.
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_BOM: Final = b"\xef\xbb\xbf"
_RETRY_DIGITS: Final = 15  # far above any sane delay, far below the digits at which int() refuses


def comment(text: str) -> bytes:
    """One comment line, which readers skip. Control characters and line ends in `text` become spaces."""
    return b": " + _UNSAFE.sub(" ", text).encode(errors="replace") + b"\n"


def encode(data: bytes, *, id: str | None = None, event: str | None = None, retry: int | None = None) -> bytes:  # noqa: A002 - the field's own name
    """One event as bytes, ended by its blank line.

    `data` is UTF-8 and is not checked (readers replace what is not); its line ends (CRLF, CR, LF) all arrive as LF.
    `id` and `event` are refused with ValueError when they hold a control character or any line end; `retry` (ms) when
    it is not an int from 0 to MAX_RETRY_MS. An empty `id` tells the reader to forget its last id.
    """
    head = b""
    if id is not None:  # before data: clients that act on the data line, or on a cut-off event, know its id by then
        head = _field(b"id: ", id)
    if event is not None:
        head += _field(b"event: ", event)
    if retry is not None:  # within a data event: some clients take a block of `retry` alone for an empty event
        if type(retry) is not int or not 0 <= retry <= MAX_RETRY_MS:
            raise ValueError(f"retry must be an int from 0 to {MAX_RETRY_MS} ms")
        head += b"retry: %d\n" % retry
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\n" in data:
        return head + b"".join([_data_line(line) for line in data.split(b"\n")]) + b"\n"
    return head + _data_line(data) + b"\n"


def one_line(json_text: bytes) -> bytes:
    """The same JSON value on one line for every client, also those that split at U+0085, U+2028 and U+2029.

    `json_text` is compact JSON in UTF-8. Those three can only stand inside strings, where they become escapes; CR and
    LF can only stand between tokens, where they become spaces. Without any of them the same object comes back.
    """
    if not json_text.isascii():  # safe on bytes: in UTF-8 no character starts inside another
        json_text = json_text.replace(b"\xc2\x85", rb"\u0085")
        if b"\xe2\x80" in json_text:
            json_text = json_text.replace(b"\xe2\x80\xa8", rb"\u2028").replace(b"\xe2\x80\xa9", rb"\u2029")
    return json_text.replace(b"\n", b" ").replace(b"\r", b" ")


def _field(prefix: bytes, value: str) -> bytes:
    if _UNSAFE.search(value):
        raise ValueError(f"SSE {prefix[:-2].decode()} must not contain control characters or line ends")
    return prefix + value.encode() + b"\n"


def _data_line(line: bytes) -> bytes:
    # No space after the colon (the Durable Streams test suite reads it so, while it wants one in `event: data`), unless
    # the line has one of its own, which the reader would strip.
    return (b"data: " if line[:1] == b" " else b"data:") + line + b"\n"


class Event(NamedTuple):
    """A dispatched event. `id` is the last event id at that moment: set by this event or kept from an earlier one."""

    data: str
    event: str = "message"
    id: str = ""


class Decoder:
    """Incremental decoder of one event stream (WHATWG HTML, 9.2.6): `feed` it chunks, get the events they complete.

    `last_event_id` is what `Last-Event-ID` must carry on a reconnect; an `id:` line counts once its blank line came.
    `retry` is the last valid delay asked for, in ms. `on_comment` gets the text after a comment's colon as it stands.
    At the end of the stream there is nothing to flush: an event without its blank line is discarded.
    """

    def __init__(
        self, *, on_comment: Callable[[str], None] | None = None, max_event_bytes: int = 16 * 1024 * 1024
    ) -> None:
        self.last_event_id: str = ""
        self.retry: int | None = None
        self._on_comment = on_comment
        self._max = max_event_bytes
        self._tail = bytearray()  # a line whose end has not come
        self._data = bytearray()  # data lines of the event, each with its LF
        self._event = b""
        self._id = ""
        self._first = True  # no line seen: a byte order mark may still come
        self._after_cr = False  # the last line ended in CR at a chunk's end: an LF next belongs to it
        self._failed = False

    def __repr__(self) -> str:
        held = len(self._data) + len(self._tail)
        state = " failed" if self._failed else ""
        return f"<Decoder{state} last_event_id={self.last_event_id!r} retry={self.retry} held={held}/{self._max}>"

    def feed(self, chunk: bytes) -> list[Event]:
        """Takes the next bytes, returns the events they complete, in order (often none).

        ValueError when an unfinished event exceeds `max_event_bytes` (its data so far plus the line being read). The
        decoder is then of no more use; events of that same chunk are not returned, nor counted in `last_event_id`.
        """
        if self._failed:
            raise ValueError("this decoder has failed before; start a new one")
        safe_id = self.last_event_id
        try:
            return self._read(chunk)
        except BaseException:  # also what on_comment raised
            self.last_event_id = safe_id
            self._failed = True
            raise

    def _read(self, chunk: bytes) -> list[Event]:
        events: list[Event] = []
        for line in self._lines(chunk):
            if len(line) + len(self._data) > self._max:
                raise self._too_long()
            if self._first:
                self._first, line = False, line.removeprefix(_BOM)
            if line:
                self._take(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        if len(self._tail) + len(self._data) > self._max:
            raise self._too_long()
        return events

    def _lines(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without their ends. What is left over waits in the tail."""
        if not chunk:
            return []
        if self._after_cr and chunk[:1] == b"\n":
            chunk = chunk[1:]
        self._after_cr = chunk[-1:] == b"\r"
        if b"\n" not in chunk and b"\r" not in chunk:
            self._tail += chunk  # no line ends, no scan of the tail: linear also byte by byte
            return []
        lines = b"".join((self._tail, chunk)).splitlines()  # of bytes: at CR, LF and CRLF only
        self._tail.clear()
        if chunk[-1] not in b"\r\n":
            self._tail += lines.pop()
        return lines

    def _take(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        if not name:
            if self._on_comment is not None:
                self._on_comment(value.decode(errors="replace"))
            return
        if value[:1] == b" ":
            value = value[1:]
        if name == b"data":
            self._data += value
            self._data += b"\n"
        elif name == b"event":
            self._event = value
        elif name == b"id":
            if b"\0" not in value:
                self._id = value.decode(errors="replace")
        elif name == b"retry" and value.isdigit() and len(value) <= _RETRY_DIGITS:
            self.retry = int(value)

    def _dispatch(self) -> Event | None:
        self.last_event_id = self._id  # also when there is no data to dispatch
        name, self._event = self._event, b""
        if not self._data:
            return None
        self._data.pop()  # the last LF
        data = self._data.decode(errors="replace")  # same as line by line: no UTF-8 sequence spans an LF
        self._data.clear()
        return Event(data, name.decode(errors="replace") or "message", self._id)

    def _too_long(self) -> ValueError:
        return ValueError(f"an event of the stream is longer than {self._max} bytes")
