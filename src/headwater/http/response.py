"""What endpoints return: `StreamResponse` for a generator, `follow` for a stream that somebody else is making.

    return StreamResponse(answer(question), request)    # was: StreamingResponse(…) or EventSourceResponse(…)

The generator is run by the process and not by the request; what it gives goes into a stream of its own, and the client
follows that stream. So a client that is cut off goes on where it was (EventSource does it by itself: each event's id
names stream and offset, and the endpoint, called again with Last-Event-ID, attaches and starts nothing), silence is
kept alive, a slow client holds up nothing, and an error is told as one.

Knows producers, delivery and Starlette. A generator that raises before its first item makes an ordinary HTTP error. It
may outlive the request, so what it uses must be its own: a database session that the endpoint got by `Depends` is
closed when the client leaves; open one inside the generator.
"""

from __future__ import annotations

import hashlib
import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final

from starlette.datastructures import Headers, QueryParams
from starlette.requests import Request
from starlette.responses import Response

from headwater.decide import media_type as without_parameters
from headwater.delivery import Delivery, Receive, Scope, Send
from headwater.errors import BadOffset, Draining, HeadwaterError
from headwater.following import Following, bodiless
from headwater.formats import accepted, by_name
from headwater.formats.format import Format
from headwater.formats.lines import Raw
from headwater.formats.sse import ServerSentEvents
from headwater.http.items import Events
from headwater.http.producers import EVENTS, KIND, Content, Producers, Production, let_go
from headwater.model import Head
from headwater.problems import answer
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
        """`content` gives str, bytes, dicts, pydantic models or ServerSentEvents, async or not; str and bytes as they
        are, the rest as JSON. A dict with `data` and no other keys than an event's is an event, as for sse-starlette.

        `media_type` other than text/event-stream sends the bytes as they are: it cannot be resumed by Last-Event-ID,
        and where the generator fails, the connection is cut. (Starlette's BaseHTTPMiddleware ends the body cleanly even
        then, unless the server is `uvicorn --http headwater.server:Protocol`.)
        `owner`: only requests that give the same one can resume this response (a user's id, say). `framed`: whether
        str and bytes are finished SSE text; by default the first one tells.
        """
        super().__init__(status_code=status_code, headers=headers)
        del self.headers["content-length"]
        self._content, self._request = content, request
        self._framed, self._ttl = framed, ttl
        self._events = without_parameters(media_type) == EVENTS
        self._type = EVENTS if self._events else _with_charset(media_type)
        # Part of the stream's name, so that an id of one endpoint or owner is good for no other (G10).
        self._place = hashlib.sha256(f"{request.scope['path']}\0{owner}".encode()).hexdigest()[:16]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Response
        try:
            response = await self._response(await _producers(self._request), scope["method"])
        except HeadwaterError as error:
            response = answer(error)
        await response(scope, receive, send)

    async def _response(self, producers: Producers, method: str) -> Response:
        last_id = self._request.headers.get("last-event-id") if self._events else None
        if last_id or method == "HEAD" or producers.delivery.streams.draining:
            await let_go(self._content)
        if producers.delivery.streams.draining:
            raise Draining("the server is going away; connect again")
        if method == "HEAD":
            return bodiless(self.status_code, [("content-type", self._format("").content_type), *self.headers.items()])
        id_, offset = _parsed(last_id) if last_id else (await self._start(producers), "-1")
        following = Following(
            producers.delivery,
            self._name(id_),
            lambda *_: self._format(id_),
            status_code=self.status_code,
            offset_of=lambda _: offset,
        )
        following.raw_headers = [*self.raw_headers, (b"x-stream-id", id_.encode())]
        following.background = self.background
        return following

    async def _start(self, producers: Producers) -> str:
        id_ = secrets.token_urlsafe(16)
        streams = producers.delivery.streams
        writer = streams.writer(self._name(id_), content_type=self._type, ttl=self._ttl, labels={"kind": KIND})
        production = Production(self._content, self._messages(), writer)
        await producers.start(production)
        await production.decided(FIRST_SECONDS)
        return id_

    def _name(self, id_: str) -> str:
        return f"responses/{self._place}/{id_}"

    def _messages(self) -> Any:
        return Events(self._framed).messages if self._events else _as_they_are

    def _format(self, id_: str) -> Format:
        if self._events:
            return ServerSentEvents(EVENTS, named=False, prefix=f"{id_}~")
        raw = Raw("text/plain")  # nothing is put between the messages, whatever they are
        raw.content_type = self._type
        return raw


def follow(
    streams: Streams,
    name: str,
    request: Request,
    *,
    status_code: int = 200,
    headers: Mapping[str, str] | None = None,
) -> Following:
    """Stream `name` for the client that asks, from where it was: return this from an endpoint.

    Server-sent events, unless `?format=` or Accept wants `ndjson` or `text`. A client resumes by Last-Event-ID or
    `?offset=`, and gets 404 where there is no such stream, 204 where it has all of a closed one.
    """
    producers = (request.scope.get("state") or {}).get(STATE)
    if producers is None or producers.delivery.streams is not streams:
        delivery = Delivery(streams)
    else:
        delivery = producers.delivery  # with one timer for all readers
    return Following(delivery, name, _choose, status_code=status_code, headers=headers)


async def error_response(_: Request, error: Exception) -> Response:
    """Tells an error of ours as it should be told: `FastAPI(exception_handlers={HeadwaterError: error_response})`.

    For what an endpoint itself may raise: 404 from `runs.get`, 409 from `runs.start`, 503 while the server goes away.
    """
    return answer(error)


def _choose(head: Head, headers: Headers, query: QueryParams) -> Format:
    name = query.get("format") or accepted(headers.get("accept", "")) or "sse"
    return by_name(name, head.config.content_type)


def _with_charset(media_type: str) -> str:
    """As Starlette has it: text is UTF-8, and says so."""
    in_text = media_type.startswith("text/") and "charset=" not in media_type
    return f"{media_type}; charset=utf-8" if in_text else media_type


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
