"""`headwater.v1`: the frames of a WebSocket that carries many streams. Pure; the rules are in PROTOCOL.md, section 7.

A text frame is one JSON object, its `op` says what it is. A binary frame is such an object and messages as they are,
each part after its length: see `joined`. What a client sends is parsed into the structs of `Op`, what a server says is
made from those of `Answer`.

Knows offsets, messages and the errors; nothing of connections, credit left or who may do what.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Final, Literal, NamedTuple

import msgspec
from msgspec import UNSET, Meta, Raw, Struct, UnsetType

from headwater.decide import Item
from headwater.errors import BadRequest, HeadwaterError
from headwater.formats.format import is_json, is_text
from headwater.model import Page
from headwater.wire.durable import LONGEST_TEXT, counted

SUBPROTOCOL: Final = "headwater.v1"
LARGEST_INTEGER: Final = 2**53 - 1
LENGTH_BYTES: Final = 4
"""Of the length before each part of a binary frame: big-endian, unsigned."""

Ref = Annotated[int, Meta(ge=-LARGEST_INTEGER, le=LARGEST_INTEGER)] | Annotated[str, Meta(max_length=64)]
"""The client's own name for what it asked; the answer carries it."""
Count = Annotated[int, Meta(ge=0, le=LARGEST_INTEGER)]
Name = Annotated[str, Meta(min_length=1, max_length=1024)]
Outcome = Literal["completed", "failed", "cancelled"]


class Garbage(Exception):
    """Not a frame at all: whoever sends this speaks another protocol, and is told by the end of the connection."""


class Misspoken(BadRequest):
    """A frame that can be read but not followed. `ref` and `channel` are those it carried, if valid."""

    def __init__(self, message: str, ref: Ref | None, channel: int | None) -> None:
        super().__init__(message)
        self.ref, self.channel = ref, channel


# -- what a client says -----------------------------------------------------------------------------------------------


class _Op(Struct, frozen=True, tag_field="op", tag=str.lower, forbid_unknown_fields=True):
    """Unknown members are refused: one that this server does not know might have changed what is meant."""


class Auth(_Op, frozen=True, kw_only=True):
    token: str
    ref: Ref | None = None


class Producer(Struct, frozen=True, forbid_unknown_fields=True):
    """Durable Streams' Producer-Id, -Epoch and -Seq (5.2.1)."""

    id: Annotated[str, Meta(min_length=1, max_length=LONGEST_TEXT)]
    epoch: Count
    seq: Count


class Open(_Op, frozen=True, kw_only=True):
    """Create a stream, or agree that it exists as described."""

    ref: Ref
    stream: Name
    content_type: Annotated[str, Meta(min_length=1, max_length=1024)] = "application/json"
    ttl: Count | None = None
    expires_at: str | None = None
    retention: str | None = None
    closed: bool = False
    messages: list[Raw] = []


class Append(_Op, frozen=True, kw_only=True):
    ref: Ref
    stream: Name
    messages: list[Raw] = []
    producer: Producer | None = None
    seq: Annotated[str, Meta(max_length=LONGEST_TEXT)] | None = None
    if_match: str | None = None
    close: bool = False
    outcome: Outcome | None = None


class Close(_Op, frozen=True, kw_only=True):
    ref: Ref
    stream: Name
    producer: Producer | None = None
    outcome: Outcome | None = None


class Follow(_Op, frozen=True, kw_only=True):
    id: Count
    stream: Name
    offset: str | None = None
    credit: Count = 0
    ref: Ref | None = None


class Credit(_Op, frozen=True, kw_only=True):
    id: Count
    bytes: Count


class Unfollow(_Op, frozen=True, kw_only=True):
    id: Count
    ref: Ref | None = None


class Ping(_Op, frozen=True, kw_only=True):
    ref: Ref | None = None


Asking = Auth | Open | Append | Close | Follow | Unfollow | Ping
"""Answered once, each."""
Op = Asking | Credit
NO_OBJECT: Final = "a frame is a JSON object"
UNREADABLE: Final = "this JSON cannot be kept: it has half a character (a lone surrogate), NaN or the like"
OPS: Final = "auth, open, append, close, follow, credit, unfollow, ping"

_op = msgspec.json.Decoder(Op)


class Frame(NamedTuple):
    op: Op
    data: Sequence[bytes] | None
    """The messages of a binary frame; None for a text frame."""


def parse(frame: str | bytes) -> Frame:
    """What a client's frame says. Raises Garbage, or Misspoken that names the fix."""
    head, data = (frame, None) if isinstance(frame, str) else split(frame)
    try:
        op = _op.decode(head)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _misspoken(head, error) from error
    except UnicodeDecodeError as error:
        raise Garbage(NO_OBJECT) from error
    if data is not None and (not isinstance(op, Open | Append) or op.messages):
        wrong = "a binary frame is an open or an append, with its messages behind the JSON object and none in it"
        raise Misspoken(wrong, getattr(op, "ref", None), getattr(op, "id", None))
    return Frame(op, data)


def _misspoken(head: str | bytes, error: Exception) -> Misspoken:
    try:
        # JavaScript may cut a text between the halves of a surrogate pair and write the half as JSON, which msgspec
        # refuses as a whole. That is the fault of one request, not of a client that speaks another protocol.
        said = json.loads(head)
    except (ValueError, RecursionError):
        raise Garbage(NO_OBJECT) from error
    if not isinstance(said, dict):
        raise Garbage(NO_OBJECT)
    op = said.get("op")
    known = isinstance(op, str) and op in OPS.split(", ")
    # Cut: it names members that are not known, and those are as long as the client likes.
    what = str(error)[:200] if isinstance(error, msgspec.ValidationError) else UNREADABLE
    message = f"{op}: {what}" if known else f"unknown op; it is one of {OPS}"
    return Misspoken(message, _valid(said.get("ref"), Ref), _valid(said.get("id"), Count))


def _valid(value: object, kind: Any) -> Any:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return None


def items(content_type: str, frame: Frame) -> list[Item]:
    """The messages that an open or append brings for a stream of this type. Raises BadRequest, TooLarge."""
    op, data = frame
    assert isinstance(op, Open | Append)
    counted(op.messages if data is None else data)
    if data is not None:
        return [Item(_checked_json(one) if is_json(content_type) else one) for one in data]
    if is_json(content_type):
        return [Item(bytes(one)) for one in op.messages]
    if op.messages and not is_text(content_type):
        raise BadRequest(f"this stream holds {content_type}: send its messages in a binary frame")
    return [Item(_text(one)) for one in op.messages]


def _checked_json(data: bytes) -> bytes:
    try:
        data.decode()  # msgspec.Raw leaves the bytes of strings unchecked
        msgspec.json.decode(data, type=Raw)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("this stream holds JSON: each message is one valid JSON value") from error
    return data


def _text(raw: Raw) -> bytes:
    try:
        return msgspec.json.decode(raw, type=str).encode()
    except (msgspec.DecodeError, UnicodeError) as error:
        raise BadRequest("this stream holds text: each message is a JSON string") from error


# -- what a server says -----------------------------------------------------------------------------------------------


class _Answer(Struct, frozen=True, tag_field="op", tag=str.lower, omit_defaults=True):
    pass


class Ok(_Answer, frozen=True, kw_only=True):
    """Done. To `auth` and `unfollow`: nothing more. To `open`, `append`, `close`: where the stream stands now."""

    ref: Ref | None = None
    id: int | None = None
    offset: str | None = None
    content_type: str | None = None
    created: bool | None = None
    duplicate: bool | None = None
    closed: bool | None = None
    outcome: str | None = None


class Following(_Answer, frozen=True, kw_only=True):
    id: int
    ref: Ref | None = None
    stream: str
    content_type: str
    offset: str
    up_to_date: bool = False


class Messages(_Answer, frozen=True, kw_only=True):
    """Some messages in a row. In a binary frame, `messages` is left out and they follow behind."""

    id: int
    offset: str
    bytes: int
    up_to_date: bool = False
    messages: Raw | UnsetType = UNSET


class End(_Answer, frozen=True, kw_only=True):
    id: int
    offset: str
    outcome: str | None = None


class Interrupted(_Answer, frozen=True, kw_only=True):
    id: int
    offset: str
    code: str
    message: str
    status: int
    retry: bool
    detail: dict[str, str | int] = {}


class Error(_Answer, frozen=True, kw_only=True):
    ref: Ref | None = None
    id: int | None = None
    code: str
    message: str
    status: int
    retry: bool
    detail: dict[str, str | int] = {}


class Pong(_Answer, frozen=True, kw_only=True):
    ref: Ref | None = None


class Heartbeat(_Answer, frozen=True, kw_only=True):
    pass


class Draining(_Answer, frozen=True, kw_only=True):
    pass


Answer = Ok | Following | Messages | End | Interrupted | Error | Pong | Heartbeat | Draining

_answer = msgspec.json.Encoder()


def text(answer: Answer) -> str:
    """The text frame that says `answer`."""
    return _answer.encode(answer).decode()


def error(what: HeadwaterError, ref: Ref | None, channel: int | None) -> Error:
    """The answer to a request that `what` refuses."""
    code, message = what.code, what.said
    status, retry, detail = what.status, what.retry, what.detail
    return Error(ref=ref, id=channel, code=code, message=message, status=status, retry=retry, detail=detail)


def interrupted(channel: int, offset: str, what: HeadwaterError) -> Interrupted:
    """Says that a channel ends at `offset` because of `what`, and its stream does not."""
    code, message = what.code, what.said
    status, retry, detail = what.status, what.retry, what.detail
    return Interrupted(id=channel, offset=offset, code=code, message=message, status=status, retry=retry, detail=detail)


def size(page: Page) -> int:
    """The credit that the messages of `page` take: the bytes of their data."""
    return sum([len(message.data) for message in page.messages])


def messages(channel: int, content_type: str, page: Page) -> str | bytes:
    """The frame with a page's messages: text for JSON and for whole UTF-8, else binary."""
    said = Messages(id=channel, offset=str(page.next), bytes=size(page), up_to_date=page.up_to_date)
    data = [message.data for message in page.messages]
    try:
        if is_json(content_type):
            array = b"[%s]" % b",".join(data)
            return text(msgspec.structs.replace(said, messages=Raw(array)))
        if is_text(content_type):
            array = _answer.encode([one.decode() for one in data])
            return text(msgspec.structs.replace(said, messages=Raw(array)))
    except UnicodeDecodeError:
        pass  # a character that two messages share: only bytes keep them apart
    return joined(_answer.encode(said), data)


# -- binary frames ----------------------------------------------------------------------------------------------------


def joined(head: bytes, data: Sequence[bytes]) -> bytes:
    """A binary frame: the JSON object, then each message; before each part its length."""
    return b"".join([piece for part in (head, *data) for piece in (len(part).to_bytes(LENGTH_BYTES, "big"), part)])


def split(frame: bytes) -> tuple[bytes, list[bytes]]:
    """The JSON object and the messages of a binary frame. Raises Garbage."""
    parts: list[bytes] = []
    at = 0
    while at < len(frame):
        begin = at + LENGTH_BYTES
        at = begin + int.from_bytes(frame[at:begin], "big")
        if begin > len(frame) or at > len(frame):
            raise Garbage("a part of this binary frame is shorter than its length says")
        parts.append(frame[begin:at])
    if not parts:
        raise Garbage("a binary frame begins with a JSON object and its length")
    return parts[0], parts[1:]
