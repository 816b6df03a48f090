"""What a server's answer means when it is not the one that was hoped for: our own error tree again. Pure.

Knows the errors and the JSON form in which a server tells them: `{"error": {"code", "message", "retry", …detail}}`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

import msgspec

from headwater.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    HeadwaterError,
    MissingExtra,
    NotAcceptable,
    NotFound,
    OffsetGone,
    OffsetMismatch,
    ProducerFenced,
    ProducerGap,
    StreamClosed,
    StreamExists,
    StreamNotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
)

LONGEST_WAIT: Final = 3600.0
"""Seconds. A server that asks for more is waited for so long; more would be a client that never comes back."""


class Unreachable(HeadwaterError):
    """No answer: nothing listens there, or the connection was lost or silent for too long."""

    status, code, retry = 503, "unreachable", True


class ConditionIgnored(HeadwaterError):
    """`if_match` was given to a server that does not know it: the messages are in the stream, whatever it ended at.

    `detail["offset"]` is where it ends now.
    """

    status, code = 501, "condition_ignored"


def error_from(
    code: object, message: object, status: int = 500, detail: Mapping[str, object] | None = None
) -> HeadwaterError:
    """The error that a server told; one whose code is not known here is classed by its HTTP status."""
    kind = _BY_CODE.get(code if isinstance(code, str) else "") or _BY_STATUS.get(status)
    if kind is None:
        kind = BadRequest if 400 <= status < 500 else HeadwaterError
    error = kind(message if isinstance(message, str) and message else f"the server answered {status}")
    error.detail.update({key: value for key, value in (detail or {}).items() if isinstance(value, str | int)})
    return error


def error_of(status: int, body: bytes) -> HeadwaterError:
    """The error that an answer of 300 or above is. A body that is not ours (a proxy's page) is never shown."""
    try:
        said = msgspec.json.decode(body)["error"]
        detail = {key: value for key, value in said.items() if key not in ("code", "message", "retry")}
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError, AttributeError):
        return error_from(None, None, status)
    return error_from(said.get("code"), said.get("message"), status, detail)


def stream_error(status: int, headers: Mapping[str, str], body: bytes, *, creating: bool = False) -> HeadwaterError:
    """The error that the answer of any Durable Streams server about a stream is: most say it in headers alone."""
    error = error_of(status, body)
    narrower = StreamExists if creating and status == 409 else _narrowed(status, headers)
    if narrower is not None and type(error) in narrower.__mro__[1:]:
        told = error.detail  # whose names are the server's, and may be any: not to be given as arguments
        error = narrower(str(error))
        error.detail = told
    for header, name in _DETAIL_OF.items():
        value = headers.get(header)
        if value:
            error.detail.setdefault(name, value if name == "offset" or not value.isdecimal() else int(value[:16]))
    return error


def _narrowed(status: int, headers: Mapping[str, str]) -> type[HeadwaterError] | None:
    if status == 404:
        return StreamNotFound
    if status == 403 and "producer-epoch" in headers:
        return ProducerFenced
    if status == 409 and headers.get("stream-closed") == "true":
        return StreamClosed
    if status == 409 and "producer-expected-seq" in headers:
        return ProducerGap
    return None


def may_pass(status: int) -> bool:
    """Whether the same request may be answered otherwise in a while: 408, 429, and 5xx but for "cannot" and "never"."""
    return status in (408, 429) or (status >= 500 and status not in (501, 505))


def retry_after(headers: Mapping[str, str]) -> float:
    """Seconds that `Retry-After` asks for, at most LONGEST_WAIT; 0 where it says nothing sensible.

    A date counts from the server's own `Date`, so clocks need not agree.
    """
    asked = headers.get("retry-after", "").strip()
    if asked.isascii() and asked.isdecimal() and len(asked) < 10:
        return min(float(asked), LONGEST_WAIT)
    try:
        seconds = (parsedate_to_datetime(asked) - parsedate_to_datetime(headers.get("date", ""))).total_seconds()
    except (ValueError, TypeError):
        return 0.0
    return min(max(seconds, 0.0), LONGEST_WAIT)


def _kinds(kind: type[HeadwaterError]) -> Iterator[type[HeadwaterError]]:
    yield kind
    for narrower in kind.__subclasses__():
        if narrower.__module__ == HeadwaterError.__module__:  # a server in this process has kinds of its own
            yield from _kinds(narrower)


# A server's missing package is its own affair: here it is an error like any other.
_BY_CODE: Final = {kind.code: kind for kind in _kinds(HeadwaterError) if kind is not MissingExtra}
_BY_STATUS: Final[dict[int, type[HeadwaterError]]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    406: NotAcceptable,
    409: Conflict,
    410: OffsetGone,
    412: OffsetMismatch,
    413: TooLarge,
    429: TooManyRequests,
}

# Facts of an error that Durable Streams tells in headers (5.2.1, 5.3), by their names in `detail`.
_DETAIL_OF: Final = {
    "producer-epoch": "epoch",
    "producer-expected-seq": "expected",
    "producer-received-seq": "received",
    "stream-next-offset": "offset",
}
