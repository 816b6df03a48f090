"""A response that follows a stream: what an endpoint of FastAPI or Starlette returns.

Knows delivery and how a client says where it was. The endpoint itself has returned by then, and its end or failure
touches no producer. FastAPI, however, closes a dependency with `yield` only when the response is over, which is when
the stream is: one that holds something dear (a database session) should be `Depends(..., scope="function")`, which is
closed when the endpoint returns.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Final

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response

from headwater.delivery import STREAMING_HEADERS, Delivery, Receive, Scope, Send
from headwater.errors import Draining, HeadwaterError
from headwater.formats.format import Format
from headwater.joining import joined_ms
from headwater.model import Head, Offset
from headwater.positions import NOW
from headwater.problems import answer

_OURS: Final = {"content-type", *(name for name, _ in STREAMING_HEADERS)}
"""Headers that delivery says itself."""


class Following(Response):
    """Sends stream `name` from where the client was (Last-Event-ID, or `?offset=`), in the format it asked for."""

    def __init__(
        self,
        delivery: Delivery,
        name: str,
        choose: Callable[[Head, Headers, QueryParams], Format | Awaitable[Format]],
        *,
        headers: Mapping[str, str] | None = None,
        status_code: int = 200,
        offset_of: Callable[[str], str] = str,
        start: str | None = None,
        refused: Callable[[HeadwaterError], Response] = answer,
    ) -> None:
        """`choose` gives the format for a request; `offset_of` turns its Last-Event-ID into an offset. `start`: where
        who does not say where it was begins; `refused`: how an error is told, where there is nothing to follow."""
        super().__init__(status_code=status_code, headers=headers)
        del self.headers["content-length"]
        self._delivery, self._name, self._choose = delivery, name, choose
        self._offset_of, self._start, self._refused = offset_of, start, refused

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        response: Callable[[Scope, Receive, Send], Awaitable[None]]
        try:
            response = await self._opened(scope)
        except HeadwaterError as error:  # nothing was sent yet, so it can still be an honest status
            response = self._refused(error)
        await response(scope, receive, send)
        if self.background is not None:
            await self.background()

    async def _opened(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        streams = self._delivery.streams
        if streams.draining:
            raise Draining("the server is going away; connect again")
        joined_ms(scope)  # refused while that can still be said
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        given = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in self.raw_headers]
        own = [(name, value) for name, value in given if name not in _OURS]
        last_id = headers.get("last-event-id")
        resumed = self._offset_of(last_id) if last_id else query.get("offset", self._start)
        head = await streams.head(self._name)
        chosen = self._choose(head, headers, query)
        format_ = chosen if isinstance(chosen, Format) else await chosen
        if scope["method"] == "HEAD":
            return bodiless(self.status_code, [("content-type", format_.content_type), *STREAMING_HEADERS, *own])
        cursor = await streams.cursor(self._name, resumed)
        if resumed and head.closed and cursor.offset == head.offset:
            cursor.close()
            ended = [("stream-closed", "true"), *([("stream-outcome", head.outcome)] if head.outcome else [])]
            return bodiless(204, [*own, *ended])  # nothing to resume: EventSource stops for good
        if format_.folds:
            cursor.offset = Offset(head.generation, head.start)

        async def deliver(scope: Scope, receive: Receive, send: Send) -> None:
            await self._delivery.respond(
                scope, receive, send, cursor, format_, own, self.status_code, anchored=resumed != NOW
            )

        return deliver


def bodiless(status: int, headers: Iterable[tuple[str, str]]) -> Response:
    """A response without a body, and without saying how long one would be."""
    response = Response(status_code=status)
    del response.headers["content-length"]
    for name, value in headers:
        response.headers.append(name, value)
    return response
