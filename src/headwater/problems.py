"""Errors as HTTP answers, and the headers that every answer carries.

Knows the error tree and Starlette's Response. What leaves here is an error's own message, code and detail: an error
that is not one of ours becomes a bare 500, and its text goes to the log only.
"""

from __future__ import annotations

import logging
from typing import Final

import msgspec
from starlette.responses import Response

from headwater.errors import HeadwaterError
from headwater.wire.durable import tail_tag

_log = logging.getLogger("headwater.http")

SAFETY_HEADERS: Final = (("x-content-type-options", "nosniff"), ("cross-origin-resource-policy", "cross-origin"))
"""On every answer (Durable Streams 12.7): no sniffing, and readable by pages that isolate themselves."""

RETRY_AFTER_SECONDS: Final = 1
"""Of an error that may pass, unless its detail `retry_after` says another time."""

# Facts of an error that Durable Streams tells in headers (5.2.1, 5.3).
_DETAIL_HEADERS: Final = {
    "epoch": "producer-epoch",
    "expected": "producer-expected-seq",
    "received": "producer-received-seq",
    "offset": "stream-next-offset",
    "earliest": "stream-earliest-offset",  # ours: where a stream begins whose front was trimmed away
}


def answer(error: Exception) -> Response:
    """The response that `error` is."""
    if not isinstance(error, HeadwaterError):
        _log.error("a request failed", exc_info=error)
        error = HeadwaterError("the server could not carry this out; its log says why")
    headers = {"cache-control": "no-store"}
    for name, value in error.detail.items():
        if name in _DETAIL_HEADERS:
            headers[_DETAIL_HEADERS[name]] = str(value)
    if error.code == "stream_closed":
        headers["stream-closed"] = "true"
    if error.status == 412:
        headers["etag"] = tail_tag(str(error.detail["offset"]))
    if error.retry:
        headers["retry-after"] = str(error.detail.get("retry_after", RETRY_AFTER_SECONDS))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    said = {"error": {"code": error.code, "message": error.said, "retry": error.retry, **error.detail}}
    return Response(msgspec.json.encode(said), error.status, headers, "application/json")
