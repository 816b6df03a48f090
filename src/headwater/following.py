"""A response that follows a stream: what an endpoint of FastAPI or Starlette returns.

Knows delivery and how a client says where it was. The endpoint itself has returned by then: no dependency, session or
lock of it is held while the stream goes on, and its end or failure touches no producer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping

from starlette.datastructures import Headers, QueryParams
from starlette.responses import Response

from headwater.delivery import Delivery, Receive, Scope, Send
from headwater.errors import Draining, HeadwaterError
from headwater.formats.format import Format
from headwater.model import Head
from headwater.problems import answer


class Following(Response):
    """Sends stream `name` from where the client was (Last-Event-ID, or `?offset=`), in the format it asked for."""

    def __init__(
        self,
        delivery: Delivery,
        name: str,
        choose: Callable[[Head, Headers, QueryParams], Format],
        *,
        headers: Mapping[str, str] | None = None,
        status_code: int = 200,
        offset_of: Callable[[str], str] = str,
    ) -> None:
        """`choose` gives the format for a request; `offset_of` turns its Last-Event-ID into an offset."""
        super().__init__(status_code=status_code, headers=headers)
        del self.headers["content-length"]
        self._delivery, self._name, self._choose, self._offset_of = delivery, name, choose, offset_of

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            ready = await self._opened(scope)
        except HeadwaterError as error:  # nothing was sent yet, so it can still be an honest status
            await answer(error)(scope, receive, send)
            return
        await ready(scope, receive, send)

    async def _opened(self, scope: Scope) -> Callable[[Scope, Receive, Send], Awaitable[None]]:
        streams = self._delivery.streams
        if streams.draining:
            raise Draining("the server is going away; connect again")
        headers, query = Headers(scope=scope), QueryParams(scope["query_string"])
        last_id = headers.get("last-event-id")
        resumed = self._offset_of(last_id) if last_id else query.get("offset")
        head = await streams.head(self._name)
        format_ = self._choose(head, headers, query)
        cursor = await streams.cursor(self._name, resumed)
        own = _own_headers(self.raw_headers)
        if resumed and head.closed and cursor.offset == head.offset:
            cursor.close()
            return Response(status_code=204, headers=dict(own))  # nothing to resume: EventSource stops for good

        async def deliver(scope: Scope, receive: Receive, send: Send) -> None:
            await self._delivery.respond(scope, receive, send, cursor, format_, own, self.status_code)
            if self.background is not None:
                await self.background()

        return deliver


def _own_headers(raw: Iterable[tuple[bytes, bytes]]) -> list[tuple[str, str]]:
    return [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
