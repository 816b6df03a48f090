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
from headwater.http.writing import append_answer, append_of, appended_items
from headwater.problems import SAFETY_HEADERS, answer
from headwater.streams import Streams
from headwater.wire.durable import BASES

MOST_BYTES: Final = 64 * 1024
"""Of a body that is taken in before anybody has asked who sends it; uvicorn takes as much."""

_BASE: Final = BASES[0].encode()
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
Head = tuple[str, dict[str, str]]
"""The stream that is meant, and the headers."""


class PlainAppends:
    """Those of one application."""

    def __init__(self, streams: Streams, auth: Auth, origins: Origins, admission: Admission, outages: Outages) -> None:
        self._streams, self._auth, self._origins = streams, auth, origins
        self._admission, self._outages = admission, outages

    def __repr__(self) -> str:
        return f"<PlainAppends to {self._streams!r}>"

    def head(self, url: bytes, fields: Fields) -> Head | None:
        """Of a POST with this request target and these fields (lower-case names): what there is to know of it, if it
        may turn out to be a plain append."""
        if not url.startswith(_BASE) or url.startswith(_CONTROL) or not _NO_PATH.isdisjoint(url):
            return None
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
        length = headers.get("content-length", "")
        if len(headers) < len(fields) or not headers.keys() <= _KNOWN or len(length) > 6 or not length.isdecimal():
            return None
        return (url[len(_BASE) :].decode("ascii"), headers) if int(length) <= MOST_BYTES else None

    def request(self, head: Head, body: bytes) -> Append | None:
        """What is asked of the stream, if its sender may do that. None, or an error: it is no plain append."""
        name, headers = head
        if name.startswith(RESERVED) or len(body) > self._streams.limits.message_bytes or self._is_bounded:
            return None
        self._origins.check("POST", headers)
        request = append_of(headers, (), has_body=bool(body))
        principal = self._auth.authenticate(headers)
        if request.close:
            self._auth.authorize(principal, "close", name)
        if body:
            self._auth.authorize(principal, "append", name)
            items = appended_items(request.content_type or "", body)
            request = msgspec.structs.replace(request, items=items)
        return request

    @property
    def _is_bounded(self) -> bool:
        """Who writes too fast is refused; and being left to the application, too, would count twice."""
        return self._admission.bounds.appends_per_second is not None

    def carry_out(self, name: str, request: Append) -> asyncio.Future[Decision] | Decision | None:
        """`Streams.at_once`."""
        return self._streams.at_once(name, request)

    def answer(self, request: Append, decision: Decision) -> tuple[int, str]:
        """The status, and the lines of the head, that tell what has come of it. There is no body."""
        status, headers = append_answer(request, decision)
        if status == 200:
            headers["content-length"] = "0"
        return status, "".join([f"{name}: {value}\r\n" for name, value in headers.items()]) + _ADDED

    async def refusal(self, name: str, error: Exception) -> tuple[int, str, bytes]:
        """The same of one that came to nothing, and the body."""
        self._outages.note(error)
        await add_facts(error, self._streams, name)
        response = answer(error)
        lines = "".join([f"{name}: {value}\r\n" for name, value in response.headers.items()]) + _ADDED
        return response.status_code, lines, bytes(response.body)
