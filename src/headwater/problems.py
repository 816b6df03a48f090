"""Errors as HTTP answers, and the headers that every answer carries.

Knows the error tree and Starlette's Response. What leaves here is an error's own message, code and detail: an error
that is not one of ours becomes a bare 500, and its text goes to the log only. So does what a store says of itself.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from starlette.responses import Response

from headwater.errors import HeadwaterError, StoreError
from headwater.wire.durable import tail_tag

_log = logging.getLogger("headwater.http")

SAFETY_HEADERS: Final = (("x-content-type-options", "nosniff"), ("cross-origin-resource-policy", "cross-origin"))
"""On every answer (Durable Streams 12.7): no sniffing, and readable by pages that isolate themselves."""

SELDOM_SECONDS: Final = 10.0
"""Between two lines that say the same of the store: with a full disk every append fails."""

RETRY_AFTER_SECONDS: Final = 1
"""Of an error that may pass, unless its detail `retry_after` says another time."""

# Facts of an error that Durable Streams tells in headers (5.2.1, 5.3).
_DETAIL_HEADERS: Final = {
    "epoch": "producer-epoch",
    "expected": "producer-expected-seq",
    "received": "producer-received-seq",
    "offset": "stream-next-offset",
    "outcome": "stream-outcome",
    "earliest": "stream-earliest-offset",  # ours: where a stream begins whose front was trimmed away
}


class Seldom(logging.Filter):
    """Lets each line pass once in a while."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._seconds, self._clock = seconds, clock
        self._passed: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        line, now = record.getMessage(), self._clock()
        if line in self._passed and now < self._passed[line] + self._seconds:
            return False
        self._passed = {known: at for known, at in self._passed.items() if now < at + self._seconds} | {line: now}
        return True


_store_log = logging.getLogger("headwater.store")
_store_log.addFilter(Seldom(SELDOM_SECONDS))


class MethodNotAllowed(HeadwaterError):
    status, code = 405, "method_not_allowed"


def told(error: Exception) -> HeadwaterError:
    """`error` as a client may know it. What only the server's operator can mend goes to the log."""
    if isinstance(error, StoreError):
        _store_log.error("a request failed: %s", error)
    if isinstance(error, HeadwaterError):
        return error
    _log.error("a request failed", exc_info=error)
    return HeadwaterError("the server could not carry this out; its log says why")


def not_allowed(methods: Iterable[str]) -> Response:
    """The answer to a method that is none of those."""
    allow = ", ".join(methods)
    response = answer(MethodNotAllowed(f"here one may ask {allow}"))
    response.headers["allow"] = allow
    return response


def answer(error: Exception) -> Response:
    """The response that `error` is."""
    error = told(error)
    headers = {"cache-control": "no-store"}
    for name, value in error.detail.items():
        if name in _DETAIL_HEADERS:
            headers[_DETAIL_HEADERS[name]] = str(value)
    if error.code == "stream_closed" or error.detail.get("closed"):
        headers["stream-closed"] = "true"
    if error.status == 412:
        headers["etag"] = tail_tag(str(error.detail["offset"]))
    if error.retry:
        headers["retry-after"] = str(error.detail.get("retry_after", RETRY_AFTER_SECONDS))
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    said = {"error": {"code": error.code, "message": error.said, "retry": error.retry, **error.detail}}
    return Response(msgspec.json.encode(said), error.status, headers, "application/json")
