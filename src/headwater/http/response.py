"""StreamResponse: what FastAPI users return instead of StreamingResponse or EventSourceResponse, with the same generator.

    return StreamResponse(answer(question), request)

The generator is run by the process and not by the request; what it gives goes into a stream of its own, and the client
follows that stream. So a client that is cut off goes on where it was (EventSource does it by itself: each event's id
names stream and offset, and the endpoint, called again with Last-Event-ID, attaches and starts nothing), silence is
kept alive, a slow client holds up nothing, and an error is told as one.

Knows producers, delivery and Starlette. A generator that raises before its first item makes an ordinary HTTP error.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from headwater.decide import media_type as bare
from headwater.delivery import Receive, Scope, Send
from headwater.errors import BadOffset
from headwater.following import Following
from headwater.formats.format import Format
from headwater.formats.lines import Raw
from headwater.formats.sse import ServerSentEvents
from headwater.http.items import Events
from headwater.http.producers import EVENTS, KIND, Content, Producers, Production, never_started
from headwater.streams import Streams
from headwater.wire.values import to_bytes

_log = logging.getLogger("headwater.http")

STATE: Final = "headwater"
"""Key of the lifespan state, and name of the application's attribute, under which Producers are found."""

TTL_SECONDS: Final = 3600
"""How long a response can still be resumed after its last reader or writer."""

FIRST_SECONDS: Final = 1.0
"""How long the first item may take and still decide the status. Long enough for a look-up to fail, too short for any
proxy to mind (Heroku, the strictest, waits 30 s)."""

_ID: Final = re.compile(r"([A-Za-z0-9_-]{22})~(.+)")


class StreamResponse(Response):
    """Runs a generator into a stream and follows it."""

    def __init__(
        self,
        content: Content,
        request: Request,
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        media_type: str = EVENTS,
        owner: str = "",
        framed: bool | None = None,
        ttl: int = TTL_SECONDS,
    ) -> None:
        """`content` gives str, bytes, dicts, pydantic models or ServerSentEvents, async or not.

        `media_type` other than text/event-stream sends the bytes as they are (and cannot be resumed by Last-Event-ID).
        `owner`: only requests that give the same one can resume this response (a user's id, say). `framed`: whether
        str and bytes are finished SSE text; by default the first one tells.
        """
        super().__init__(status_code=status_code, headers=headers)
        del self.headers["content-length"]
        self._content, self._request = content, request
        self._type, self._framed, self._ttl = media_type, framed, ttl
        self._events = bare(media_type) == EVENTS
        # Part of the stream's name, so that an id of one endpoint or owner is good for no other (G10).
        self._place = hashlib.sha256(f"{request.scope['path']}\0{owner}".encode()).hexdigest()[:16]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        producers = await _producers(self._request)
        last_id = self._request.headers.get("last-event-id")
        if last_id and self._events:
            await never_started(self._content)
            id_, offset = _parsed(last_id)
        else:
            id_, offset = secrets.token_urlsafe(16), None
            await self._start(producers, id_)
        following = Following(
            producers.delivery,
            self._name(id_),
            lambda *_: self._format(id_),
            headers={**dict(self.headers), "x-stream-id": id_},
            status_code=self.status_code,
            offset_of=lambda _: offset or "-1",
        )
        following.background = self.background
        await following(scope, receive, send)

    async def _start(self, producers: Producers, id_: str) -> None:
        writer = producers.delivery.streams.writer(
            self._name(id_), content_type=self._type, ttl=self._ttl, labels={"kind": KIND}
        )
        await writer.open()
        production = Production(self._content, self._messages(), writer)
        producers.start(production)
        await production.decided(FIRST_SECONDS)

    def _name(self, id_: str) -> str:
        return f"responses/{self._place}/{id_}"

    def _messages(self) -> Any:
        return Events(self._framed).messages if self._events else _as_they_are

    def _format(self, id_: str) -> Format:
        if self._events:
            return ServerSentEvents(EVENTS, named=False, prefix=f"{id_}~")
        raw = Raw(self._type)
        raw.content_type = self._type
        return raw


def _as_they_are(item: Any) -> Iterator[bytes]:
    yield to_bytes(item)


def _parsed(last_id: str) -> tuple[str, str]:
    match = _ID.fullmatch(last_id)
    if match is None:
        raise BadOffset("this Last-Event-ID is not one of this endpoint's")
    return match[1], match[2]


async def _producers(request: Request) -> Producers:
    """Those of the lifespan; else ones in memory, made for this application at their first use."""
    found = (request.scope.get("state") or {}).get(STATE)
    if found is None:
        application = request.scope["app"].state
        found = getattr(application, STATE, None)
        if found is None:
            _log.warning("no lifespan(...) was given: responses are kept in memory, and lost with this process")
            found = Producers(Streams("memory:"))
            setattr(application, STATE, found)
            await found.delivery.streams.open()
    producers: Producers = found
    return producers
