"""Appends that need no application: a small POST to a stream, answered by who has parsed it, without a task.

`headwater.server` asks here before it makes an ASGI request of one. What is said and done is what `http.app` and
`http.writing` say and do, by the same functions; whatever is out of the ordinary (a header that is not known here, an
origin, a refusal, a stream that is not known yet) is left to them.

Invariants: None means that nothing has happened yet; an append that was submitted is never left to anybody
else, who would do it again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

import msgspec

from headwater.decide import Append, Decision
from headwater.http.access import RESERVED
from headwater.http.admission import Admission
from headwater.http.auth import Auth
from headwater.http.facts import add_facts
from headwater.http.origins import Origins
from headwater.http.outages import Outages
from headwater.http.subscriptions import CONTROL
from headwater.http.traffic import Traffic, route_of
from headwater.http.writing import append_answer, append_of, appended_items
from headwater.problems import SAFETY_HEADERS, answer
from headwater.streams import Streams
from headwater.wire.durable import BASES

MOST_BYTES: Final = 64 * 1024
"""Of a body that is taken in before anybody has asked who sends it; uvicorn takes as much."""

_BASE: Final = BASES[0].encode()
_ROUTE: Final = route_of(f"{BASES[0]}name")
_CONTROL: Final = _BASE + CONTROL.encode()

_NO_PATH: Final = frozenset(b"%?#")
"""Of a request target: it is not the plain path of a stream."""

_SEEN_TO: Final = ("host", "content-type", "content-length", "authorization", "producer-id", "producer-epoch",
    "producer-seq", "stream-seq", "stream-closed", "stream-outcome")  # fmt: skip
_IDLE: Final = ("accept", "accept-encoding", "accept-language", "user-agent", "connection", "sec-fetch-mode", "via",
    "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "x-real-ip")  # fmt: skip
_KNOWN: Final = frozenset((*_SEEN_TO, *_IDLE))
"""Headers that are seen to here, or that say nothing to an append."""

_ADDED: Final = "".join(f"{name}: {value}\r\n" for name, value in (*SAFETY_HEADERS, ("vary", "origin")))
"""As every answer has them; `vary` is what CORS adds where no page asks."""

Fields = Sequence[tuple[bytes, bytes]]


class Head:
    """Of a POST: the stream that is meant, and what is asked of it by all but the body."""

    __slots__ = ("_after", "_at", "_before", "_url", "headers", "name", "request")

    def __init__(self, url: bytes, fields: Fields, name: str, headers: dict[str, str], request: Append) -> None:
        self._url, self.name, self.headers, self.request = url, name, headers, request
        self._at = at = list(headers).index("content-length") if "content-length" in headers else len(headers)
        self._before, self._after = fields[:at], fields[at + 1 :]

    def __repr__(self) -> str:
        return f"<Head of an append to {self.name!r}>"

    def fits(self, url: bytes, fields: Fields) -> bool:
        """Whether this one says the same: who writes by one connection repeats all but the length."""
        at = self._at
        if url != self._url or at >= len(fields) or fields[:at] != self._before or fields[at + 1 :] != self._after:
            return False
        name, length = fields[at]
        return name == b"content-length" and len(length) <= 6 and length.isdigit() and 0 < int(length) <= MOST_BYTES


class PlainAppends:
    """Those of one application."""

    def __init__(
        self,
        streams: Streams,
        auth: Auth,
        origins: Origins,
        admission: Admission,
        outages: Outages,
        traffic: Traffic,
    ) -> None:
        self._streams, self._auth, self._origins = streams, auth, origins
        self._admission, self._outages, self._traffic = admission, outages, traffic

    def __repr__(self) -> str:
        return f"<PlainAppends to {self._streams!r}>"

    def head(self, url: bytes, fields: Fields) -> Head | None:
        """That of a POST with this request target and these fields (lower-case names), if it may turn out to be a plain
        append. None, or an error: it is none."""
        if not url.startswith(_BASE) or url.startswith(_CONTROL) or not _NO_PATH.isdisjoint(url) or url == _BASE:
            return None
        if self._streams.tracing is not None:  # its span is made by `Streams.carry_out`
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
        name = url[len(_BASE) :].decode("ascii")
        if len(headers) < len(fields) or not headers.keys() <= _KNOWN or name.startswith(RESERVED):
            return None
        self._origins.check("POST", headers)
        head = Head(url, fields, name, headers, append_of(headers, (), has_body=True))
        return head if head.fits(url, fields) else None

    def request(self, head: Head, body: bytes) -> Append | None:
        """What is asked of the stream, if its sender may do that. None, or an error: it is no plain append."""
        if len(body) > self._streams.limits.message_bytes or self._is_bounded:
            return None
        request, name = head.request, head.name
        principal = self._auth.authenticate(head.headers)
        if request.close:
            self._auth.authorize(principal, "close", name)
        self._auth.authorize(principal, "append", name)
        return msgspec.structs.replace(request, items=appended_items(request.content_type or "", body))

    @property
    def _is_bounded(self) -> bool:
        """Who writes too fast is refused; and being left to the application, too, would count twice."""
        return self._admission.bounds.appends_per_second is not None

    def carry_out(self, name: str, request: Append) -> asyncio.Future[Decision] | Decision | None:
        """`Streams.at_once`."""
        return self._streams.at_once(name, request)

    def answer(self, request: Append, decision: Decision, seconds: float) -> tuple[int, str]:
        """The status, and the lines of the head, that tell what has come of it. There is no body.

        `seconds`: since it was submitted.
        """
        status, headers = append_answer(request, decision)
        self._traffic.answer("POST", _ROUTE, status, seconds, None)
        if status == 200:
            headers["content-length"] = "0"
        return status, "".join([f"{name}: {value}\r\n" for name, value in headers.items()]) + _ADDED

    async def refusal(self, name: str, error: Exception, seconds: float) -> tuple[int, str, bytes]:
        """The same of one that came to nothing, and the body."""
        self._outages.note(error)
        await add_facts(error, self._streams, name)
        response = answer(error)
        self._traffic.answer("POST", _ROUTE, response.status_code, seconds, error)
        lines = "".join([f"{name}: {value}\r\n" for name, value in response.headers.items()]) + _ADDED
        return response.status_code, lines, bytes(response.body)
