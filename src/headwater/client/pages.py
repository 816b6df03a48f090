"""Pages: what one answer of a Durable Streams server holds, of any make. Pure; section numbers are the protocol's.

Knows headers, JSON bodies and the control event. Invariant: a page is whole, or it is an error; nothing is skipped.
"""

from __future__ import annotations

import binascii
from base64 import b64decode
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

import httpx
import msgspec

from headwater.client.asking import Ask, is_json
from headwater.errors import HeadwaterError

START: Final = "-1"
"""Before everything, in words that every server understands (8)."""


class Page(NamedTuple):
    """Some messages in a row, and where they end."""

    messages: list[bytes]
    """Of a JSON stream: its messages. Of any other: the bytes of the page in one piece, as the protocol knows no
    boundaries there."""
    offset: str
    """After the last one: where to read on."""
    up_to_date: bool
    """That was the end when the page was made."""
    closed: bool
    """That is the end for ever."""
    outcome: str | None = None
    """How it ended, where `closed` and somebody said."""


class Control(msgspec.Struct, rename="camel"):
    """What `event: control` says (5.8)."""

    stream_next_offset: str
    stream_cursor: str | None = None
    up_to_date: bool = False
    stream_closed: bool = False


def is_page(headers: Mapping[str, str]) -> bool:
    """Whether an answer is one page, of a stream of whatever content type: only those have an ETag (10)."""
    if "stream-next-offset" not in headers:
        return False
    return "etag" in headers or not is_events(headers)


def is_events(headers: Mapping[str, str]) -> bool:
    return headers.get("content-type", "").lower().startswith("text/event-stream")


def check_end(headers: Mapping[str, str]) -> None:
    """Raises HeadwaterError for the head of a 200 whose body could be cut without anybody seeing it."""
    if "content-length" not in headers and "transfer-encoding" not in headers:
        raise HeadwaterError("an answer that does not say where it ends may be cut unseen, and is not read")


def page(headers: Mapping[str, str], body: bytes) -> Page:
    """The page that a 200 or a 204 is (5.6). Raises HeadwaterError for what is none."""
    offset = headers.get("stream-next-offset")
    if not offset:
        raise HeadwaterError("this is no Durable Streams server: its answer has no Stream-Next-Offset")
    return Page(
        messages_of(headers.get("content-type", ""), body) if body else [],
        offset,
        up_to_date=headers.get("stream-up-to-date", "").lower() == "true",
        closed=headers.get("stream-closed", "").lower() == "true",
        outcome=headers.get("stream-outcome"),
    )


def page_after(url: httpx.URL, offset: str | None) -> Ask:
    """The request for the page after `offset`; None: for the first."""
    return Ask("GET", str(url.copy_merge_params({"offset": offset or START})), {"accept": "*/*"})


def page_of(response: httpx.Response) -> Page:
    """The page that its answer is. Raises HeadwaterError."""
    if response.status_code == 200:
        check_end(response.headers)
    return page(response.headers, response.content)


def messages_of(content_type: str, body: bytes) -> list[bytes]:
    """The messages in a page's body, or in one `data` event (9)."""
    if not is_json(content_type):
        return [body]
    try:
        return [bytes(item) for item in msgspec.json.decode(body, type=list[msgspec.Raw])]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise HeadwaterError("the server sent a page of JSON that is not an array") from error


def control(data: str) -> Control:
    try:
        return msgspec.json.decode(data, type=Control)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise HeadwaterError("the server sent a control event that is not one") from error


def from_base64(data: str) -> bytes:
    """The bytes of an event of a stream that is not text (5.8); its line ends mean nothing."""
    try:
        return b64decode(data.replace("\n", ""), validate=True)
    except (binascii.Error, ValueError) as error:
        raise HeadwaterError("the server sent data that is not base64") from error


def field(data: str | bytes, name: str) -> Any:
    """One field of what may be a JSON object; None where it is not."""
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value.get(name) if isinstance(value, dict) else None
