"""`/v1/stream/{path}`: Durable Streams, and the same streams for EventSource and plain readers.

Knows delivery, formats and the protocol's rules (wire.durable). Section numbers are Durable Streams'. Nothing of runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.responses import Response

from headwater.cursor import Cursor
from headwater.delivery import Delivery
from headwater.errors import BadOffset, BadRequest, Draining, HeadwaterError, NotAcceptable
from headwater.formats import accepted, by_name
from headwater.formats.durable import DurableEvents, body
from headwater.formats.format import Format, is_text
from headwater.http.access import may_read
from headwater.http.admission import Admission
from headwater.http.exchange import Exchange
from headwater.http.facts import add_facts
from headwater.http.standing import SANDBOX, earliest, position, state
from headwater.http.writing import Writing
from headwater.model import Page
from headwater.positions import NOW
from headwater.problems import not_allowed
from headwater.visits import Visit
from headwater.wire import durable

CACHEABLE: Final = "max-age=60, stale-while-revalidate=300"  # (10)

Answer = Response | None
"""None: the answer has been sent already."""


class StreamResource:
    """The stream that a path names."""

    def __init__(self, delivery: Delivery, admission: Admission, *, long_poll_seconds: float = 30.0) -> None:
        self._delivery, self._streams, self._admission = delivery, delivery.streams, admission
        self._long_poll_seconds = long_poll_seconds
        writing = Writing(self._streams, admission)
        self._methods: dict[str, Callable[[Exchange, str], Awaitable[Answer]]] = {
            "PUT": writing.put,
            "POST": writing.post,
            "GET": self._get,
            "HEAD": self._head,
            "DELETE": writing.delete,
            "OPTIONS": self._options,
        }

    async def answer(self, exchange: Exchange, name: str) -> Answer:
        """Carry out the request on stream `name`."""
        method = self._methods.get(exchange.method)
        if method is None:
            return not_allowed(self._methods)
        try:
            return await method(exchange, name)
        except HeadwaterError as error:
            await add_facts(error, self._streams, name)
            raise

    async def _options(self, exchange: Exchange, name: str) -> Answer:
        return Response(status_code=204)  # CORS adds what it has to say

    async def _head(self, exchange: Exchange, name: str) -> Answer:
        may_read(exchange, name)
        head = await self._streams.head(name)
        headers = {**state(head), "content-type": head.config.content_type, "cache-control": "no-store"}
        if head.start:
            headers["stream-earliest-offset"] = str(earliest(head))
        return Response(status_code=200, headers=headers)

    async def _get(self, exchange: Exchange, name: str) -> Answer:
        may_read(exchange, name)
        offset, live = exchange.query("offset"), exchange.query("live")
        if offset == "":
            raise BadOffset("offset is empty; leave it out to read from the start")
        if live not in (None, "sse", "long-poll"):
            raise BadRequest("live is sse or long-poll")
        if live is not None:
            if offset is None:
                raise BadRequest(f"live={live} needs an offset (-1 is the start, now the tail)")
            if live == "sse":
                return await self._live(exchange, name, offset)
            with self._admission.reader(exchange.client):
                return await self._long_poll(exchange, name, offset)
        format_name = exchange.query("format") or accepted(exchange.headers.get("accept", ""))
        if format_name is not None:
            return await self.follow(exchange, name, format_name)
        return await self._catch_up(exchange, name, offset)

    async def _catch_up(self, exchange: Exchange, name: str, offset: str | None) -> Answer:
        head, page = await self._streams.page(name, offset)
        headers = position(page) | {"content-type": head.config.content_type}
        if offset == NOW:
            headers["cache-control"] = "no-store"
        else:
            name_hash = hashlib.sha256(name.encode()).hexdigest()[:16]
            tag = durable.etag(name_hash, page.start, page.next, closed=page.closed)
            public = exchange.auth.open_to_all and "authorization" not in exchange.headers
            headers |= {"etag": tag, "cache-control": f"{'public' if public else 'private'}, {CACHEABLE}"}
            headers["vary"] = "origin, accept"  # with another Accept the same address is followed live
            if _matches(exchange.headers.get("if-none-match"), tag):
                return Response(status_code=304, headers=headers)
        return Response(body(head.config.content_type, page.messages), 200, headers)

    async def _long_poll(self, exchange: Exchange, name: str, offset: str) -> Answer:
        cursor = await self._streams.cursor(name, offset)
        visit = Visit(self._streams, cursor, "long-poll", exchange.scope, level=logging.DEBUG)
        leaving = asyncio.create_task(_leaves(exchange), name="headwater-long-poll-listens")
        try:
            at = cursor.offset
            page = await self._next_page(cursor, leaving)
            if leaving.done():
                visit.ended = "left"
                return None  # nobody is there to be answered
            head = await self._streams.head(name)
            data = b"" if page is None else body(head.config.content_type, page.messages)
            if page is not None:
                visit.wrote(page, len(data))
            visit.ended = "answered" if page is not None else "draining" if self._streams.draining else "nothing_new"
        finally:
            visit.over("cut")
            cursor.close()
            leaving.cancel()
            await asyncio.wait([leaving])
        if page is None:
            page = Page([], at, at, up_to_date=True, closed=False)
        headers = position(page) | {"cache-control": "no-store"}
        if not page.closed:
            headers["stream-cursor"] = self._cursor(exchange)
        if not page.messages:
            return Response(status_code=204, headers=headers)
        headers["content-type"] = head.config.content_type
        return Response(data, 200, headers)

    async def _next_page(self, cursor: Cursor, leaving: asyncio.Task[None]) -> Page | None:
        """The next page, or None when the time is up, the client has left, or the server goes away."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._long_poll_seconds
        while True:
            wakes = cursor.tail.wakes
            page = await cursor.take()
            if page is not None or leaving.done() or self._streams.draining or loop.time() >= give_up:
                return page
            if cursor.tail.wakes == wakes:
                waiter = cursor.tail.waiter()
                try:
                    await asyncio.wait(
                        [waiter, leaving], timeout=give_up - loop.time(), return_when=asyncio.FIRST_COMPLETED
                    )
                finally:
                    cursor.tail.discard(waiter)

    async def _live(self, exchange: Exchange, name: str, offset: str) -> Answer:
        head = await self._streams.head(name)
        format_ = DurableEvents(head.config.content_type, self._cursor(exchange))
        cursor = await self._streams.cursor(name, offset)
        headers = [("stream-sse-data-encoding", "base64")] if format_.base64 else []
        return await self._deliver(exchange, cursor, format_, headers)

    async def follow(self, exchange: Exchange, name: str, format_name: str) -> Answer:
        """The whole stream, live, in a format for plain readers, from where the client was."""
        resumed = exchange.headers.get("last-event-id") or exchange.query("offset")
        head = await self._streams.head(name)
        cursor = await self._streams.cursor(name, resumed)
        if resumed and head.closed and cursor.offset == head.offset:
            cursor.close()
            return Response(status_code=204, headers=state(head))  # ends EventSource's reconnecting for good
        try:
            format_ = by_name(format_name, head.config.content_type)
        except NotAcceptable:
            cursor.close()
            raise
        headers = [("stream-next-offset", str(cursor.offset)), SANDBOX]
        if format_name == "sse" and not is_text(head.config.content_type):
            headers.append(("stream-sse-data-encoding", "base64"))
        return await self._deliver(exchange, cursor, format_, headers, anchored=resumed != NOW)

    async def _deliver(
        self,
        exchange: Exchange,
        cursor: Cursor,
        format_: Format,
        headers: list[tuple[str, str]],
        *,
        anchored: bool = True,
    ) -> Answer:
        scope, receive, send = exchange.scope, exchange.receive, exchange.send
        try:
            if self._streams.draining:
                raise Draining("the server is going away; connect again")
            with self._admission.response(scope, exchange.client):
                await self._delivery.respond(scope, receive, send, cursor, format_, headers, anchored=anchored)
        except BaseException:
            cursor.close()
            raise
        return None

    def _cursor(self, exchange: Exchange) -> str:
        # Not for secrecy: it only keeps clients that share a cache from asking in step (10).
        return durable.cursor(self._streams.clock(), exchange.query("cursor"), random.random())  # noqa: S311


async def _leaves(exchange: Exchange) -> None:
    """Until the client has gone: its place among the readers is free then, and not when its time is up."""
    while (await exchange.receive())["type"] != "http.disconnect":
        pass


def _matches(if_none_match: str | None, tag: str) -> bool:
    if if_none_match is None:
        return False
    tags = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    return tag in tags or "*" in tags
