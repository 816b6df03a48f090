"""`/v1/stream/{path}`: Durable Streams, and the same streams for EventSource and plain readers.

Knows delivery, formats and the protocol's rules (wire.durable). Section numbers are Durable Streams'. Nothing of runs.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from headwater.cursor import Cursor
from headwater.decide import Append, Create, Decision, Item, media_type
from headwater.delivery import Delivery
from headwater.errors import (
    BadOffset,
    BadRequest,
    ContentTypeMismatch,
    Draining,
    Forbidden,
    NotAcceptable,
    StreamClosed,
)
from headwater.formats import accepted, by_name
from headwater.formats.durable import DurableEvents, body
from headwater.formats.format import Format, is_json, is_text
from headwater.http.auth import Action
from headwater.http.exchange import Exchange
from headwater.model import Config, Head, Page
from headwater.positions import NOW
from headwater.streams import Streams
from headwater.wire import durable

DEFAULT_TYPE: Final = "application/octet-stream"  # of a PUT without Content-Type (5.1)
RESERVED: Final = ("runs/", "responses/", "headwater/")
"""Streams the server itself writes: read like any other (but for its own housekeeping), written by nobody else."""

CACHEABLE: Final = "max-age=60, stale-while-revalidate=300"  # (10)

SANDBOX: Final = ("content-security-policy", "sandbox")
"""A writer chooses the content type: what it stored, opened as a page, must not act as one of this server's own."""

Answer = Response | None
"""None: the answer has been sent already."""


class StreamResource:
    """The stream that a path names."""

    def __init__(self, delivery: Delivery, *, long_poll_seconds: float = 30.0) -> None:
        self._delivery, self._streams = delivery, delivery.streams
        self._long_poll_seconds = long_poll_seconds
        self._methods: dict[str, Callable[[Exchange, str], Awaitable[Answer]]] = {
            "PUT": self._put,
            "POST": self._post,
            "GET": self._get,
            "HEAD": self._head,
            "DELETE": self._delete,
            "OPTIONS": self._options,
        }

    async def answer(self, exchange: Exchange, name: str) -> Answer:
        """Carry out the request on stream `name`."""
        method = self._methods.get(exchange.method)
        if method is None:
            return Response(status_code=405, headers={"allow": ", ".join(self._methods)})
        return await method(exchange, name)

    async def _options(self, exchange: Exchange, name: str) -> Answer:
        return Response(status_code=204)  # CORS adds what it has to say

    # -- writing --------------------------------------------------------------------------------------------------

    async def _put(self, exchange: Exchange, name: str) -> Answer:
        _may_write(exchange, "create", name)
        headers = exchange.headers
        if "stream-forked-from" in headers:
            raise BadRequest("this server does not fork streams; create the stream without Stream-Forked-From")
        content_type = headers.get("content-type", DEFAULT_TYPE)
        ttl, expires = headers.get("stream-ttl"), headers.get("stream-expires-at")
        if ttl is not None and expires is not None:
            raise BadRequest("give Stream-TTL or Stream-Expires-At, not both")
        config = Config(
            content_type,
            None if ttl is None else durable.parse_ttl(ttl),
            None if expires is None else durable.parse_expires_at(expires),
        )
        data = await exchange.body(self._streams.limits.message_bytes)
        items = _items(content_type, data)
        request = Create(config, items, durable.parse_closed(headers.get("stream-closed")))
        decision = await self._streams.carry_out(name, request)
        answer = {**_state(decision.head), "content-type": decision.head.config.content_type}
        if decision.what == "created":
            answer["location"] = _url(exchange)
            return Response(status_code=201, headers=answer)
        return Response(status_code=200, headers=answer)

    async def _post(self, exchange: Exchange, name: str) -> Answer:
        headers = exchange.headers
        close = durable.parse_closed(headers.get("stream-closed"))
        _may_write(exchange, "close" if close else "append", name)  # before a body is taken in
        data = await exchange.body(self._streams.limits.message_bytes)
        if data and close:
            _may_write(exchange, "append", name)
        content_type = headers.get("content-type")
        if data and content_type is None:
            raise BadRequest("an append with a body needs a Content-Type")
        if not data and not close:
            raise BadRequest("an append needs a body, unless it closes the stream (Stream-Closed: true)")
        stamp = durable.parse_stamp(headers)
        items = await self._appended(name, content_type, data) if data else []
        request = Append(items, content_type if data else None, stamp, headers.get("stream-seq"), close)
        decision = await self._streams.carry_out(name, request)
        answer = _state(decision.head)
        if stamp is not None:
            known = decision.head.producers.get(stamp.producer)
            answer |= {"producer-epoch": str(stamp.epoch), "producer-seq": str(known.seq if known else stamp.seq)}
        return Response(status_code=200 if stamp and data and _is_new(decision) else 204, headers=answer)

    async def _appended(self, name: str, content_type: str | None, data: bytes) -> list[Item]:
        """The messages of a body. A stream that would refuse it anyway says so first (precedence, 5.2)."""
        try:
            items = _items(content_type or DEFAULT_TYPE, data)
            if not items:
                raise BadRequest("an empty JSON array appends nothing; leave the request out")
        except BadRequest:
            head = await self._streams.head(name)
            if head.closed:
                raise StreamClosed("this stream is closed", offset=str(head.offset)) from None
            if media_type(content_type or "") != media_type(head.config.content_type):
                raise ContentTypeMismatch(f"this stream holds {head.config.content_type}") from None
            raise
        return items

    async def _delete(self, exchange: Exchange, name: str) -> Answer:
        _may_write(exchange, "delete", name)
        await self._streams.delete(name)
        return Response(status_code=204)

    # -- reading --------------------------------------------------------------------------------------------------

    async def _head(self, exchange: Exchange, name: str) -> Answer:
        _may_read(exchange, name)
        head = await self._streams.head(name)
        headers = {**_state(head), "content-type": head.config.content_type, "cache-control": "no-store"}
        return Response(status_code=200, headers=headers)

    async def _get(self, exchange: Exchange, name: str) -> Answer:
        _may_read(exchange, name)
        offset, live = exchange.query("offset"), exchange.query("live")
        if offset == "":
            raise BadOffset("offset is empty; leave it out to read from the start")
        if live is not None:
            if offset is None:
                raise BadRequest(f"live={live} needs an offset (-1 is the start, now the tail)")
            if live == "sse":
                return await self._live(exchange, name, offset)
            if live == "long-poll":
                return await self._long_poll(exchange, name, offset)
            raise BadRequest("live is sse or long-poll")
        format_name = exchange.query("format") or accepted(exchange.headers.get("accept", ""))
        if format_name is not None:
            return await self.follow(exchange, name, format_name)
        return await self._catch_up(exchange, name, offset)

    async def _catch_up(self, exchange: Exchange, name: str, offset: str | None) -> Answer:
        page = await self._streams.read(name, offset)
        head = await self._streams.head(name)
        headers = _position(page) | {"content-type": head.config.content_type}
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
        try:
            at = cursor.offset
            page = await self._next_page(cursor)
            head = await self._streams.head(name)
        finally:
            cursor.close()
        if page is None:
            page = Page([], at, at, up_to_date=True, closed=False)
        headers = _position(page) | {"cache-control": "no-store"}
        if not page.closed:
            headers["stream-cursor"] = self._cursor(exchange)
        if not page.messages:
            return Response(status_code=204, headers=headers)
        headers["content-type"] = head.config.content_type
        return Response(body(head.config.content_type, page.messages), 200, headers)

    async def _next_page(self, cursor: Cursor) -> Page | None:
        """The next page, or None when the time is up or the server goes away."""
        loop = asyncio.get_running_loop()
        give_up = loop.time() + self._long_poll_seconds
        while True:
            wakes = cursor.tail.wakes
            page = await cursor.take()
            if page is not None or self._streams.draining or loop.time() >= give_up:
                return page
            if cursor.tail.wakes == wakes:
                waiter = cursor.tail.waiter()
                try:
                    await asyncio.wait([waiter], timeout=give_up - loop.time())
                finally:
                    cursor.tail.discard(waiter)

    async def _live(self, exchange: Exchange, name: str, offset: str) -> Answer:
        head = await self._streams.head(name)
        format_ = DurableEvents(head.config.content_type, self._cursor(exchange))
        cursor = await self._streams.cursor(name, offset)
        headers = [("stream-sse-data-encoding", "base64")] if format_.base64 else []
        await self._deliver(exchange, cursor, format_, headers)
        return None

    async def follow(self, exchange: Exchange, name: str, format_name: str) -> Answer:
        """The whole stream, live, in a format for plain readers, from where the client was."""
        resumed = exchange.headers.get("last-event-id") or exchange.query("offset")
        head = await self._streams.head(name)
        cursor = await self._streams.cursor(name, resumed)
        if resumed and head.closed and cursor.offset == head.offset:
            cursor.close()
            return Response(status_code=204, headers=_state(head))  # ends EventSource's reconnecting for good
        try:
            format_ = by_name(format_name, head.config.content_type)
        except NotAcceptable:
            cursor.close()
            raise
        headers = [("stream-next-offset", str(cursor.offset)), SANDBOX]
        if format_name == "sse" and not is_text(head.config.content_type):
            headers.append(("stream-sse-data-encoding", "base64"))
        await self._deliver(exchange, cursor, format_, headers)
        return None

    async def _deliver(
        self, exchange: Exchange, cursor: Cursor, format_: Format, headers: list[tuple[str, str]]
    ) -> None:
        if self._streams.draining:
            cursor.close()
            raise Draining("the server is going away; connect again")
        await self._delivery.respond(exchange.scope, exchange.receive, exchange.send, cursor, format_, headers)

    def _cursor(self, exchange: Exchange) -> str:
        # Not for secrecy: it only keeps clients that share a cache from asking in step (10).
        return durable.cursor(self._streams.clock(), exchange.query("cursor"), random.random())  # noqa: S311


async def list_streams(exchange: Exchange, streams: Streams) -> Response:
    """`GET /v1/streams?prefix=&after=&limit=`: the streams this principal may read, by name."""
    if exchange.method not in ("GET", "HEAD"):
        return Response(status_code=405, headers={"allow": "GET"})
    prefix = exchange.query("prefix") or ""
    exchange.authorize("list", prefix)
    limit, after, more = exchange.whole_number("limit", 100, 1000), exchange.query("after"), True
    visible: list[tuple[str, Head]] = []
    while more and len(visible) < limit:  # `next` is only ever a name that this principal may see
        found = await streams.list(prefix, after=after, limit=limit)
        visible += [(n, h) for n, h in found if not n.startswith("headwater/") and exchange.allows("read", n)]
        after, more = found[-1][0] if found else None, len(found) == limit
    shown = visible[:limit]
    said = {"streams": [_listed(*one) for one in shown], "next": shown[-1][0] if len(visible) >= limit else None}
    return Response(msgspec.json.encode(said), 200, {"cache-control": "no-store"}, "application/json")


def _listed(name: str, head: Head) -> dict[str, object]:
    facts: dict[str, object] = {
        "name": name,
        "content_type": head.config.content_type,
        "offset": str(head.offset),
        "messages": head.tail - head.start,
        "bytes": head.size,
        "closed": head.closed,
        "created": head.created,
        "appended": head.appended,
    }
    optional = {"outcome": head.outcome, "ttl": head.config.ttl, "expires_at": head.config.expires_at}
    return facts | {key: value for key, value in optional.items() if value is not None}


def _items(content_type: str, data: bytes) -> list[Item]:
    if not data:
        return []
    return [Item(part) for part in durable.split_json(data)] if is_json(content_type) else [Item(data)]


def _is_new(decision: Decision) -> bool:
    return decision.what == "appended"


def _may_write(exchange: Exchange, action: Action, name: str) -> None:
    exchange.authorize(action, name)
    if name.startswith(RESERVED):
        raise Forbidden("streams under this name are written by the server alone")


def _may_read(exchange: Exchange, name: str) -> None:
    exchange.authorize("read", name)
    if name.startswith("headwater/"):
        raise Forbidden("streams under this name are the server's own")


def _state(head: Head) -> dict[str, str]:
    """Where a stream stands, in headers (5)."""
    headers = {"stream-next-offset": str(head.offset)}
    if head.closed:
        headers["stream-closed"] = "true"
        if head.outcome is not None:
            headers["stream-outcome"] = head.outcome
    if head.config.ttl is not None:
        headers["stream-ttl"] = str(head.config.ttl)
    if head.config.expires_at is not None:
        at = datetime.fromtimestamp(head.config.expires_at / 1000, UTC)
        headers["stream-expires-at"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return headers


def _position(page: Page) -> dict[str, str]:
    """Where a page ends, in headers (5.6): at the tail, and at the end for ever."""
    headers = dict([("stream-next-offset", str(page.next)), SANDBOX])
    if page.up_to_date:
        headers["stream-up-to-date"] = "true"
    if page.closed:
        headers["stream-closed"] = "true"
        if page.outcome is not None:
            headers["stream-outcome"] = page.outcome
    return headers


def _matches(if_none_match: str | None, tag: str) -> bool:
    if if_none_match is None:
        return False
    tags = [part.strip().removeprefix("W/") for part in if_none_match.split(",")]
    return tag in tags or "*" in tags


def _url(exchange: Exchange) -> str:
    """The stream's own address, as this client sees the server."""
    host = exchange.headers.get("host", "localhost")
    return f"{exchange.scope.get('scheme', 'http')}://{host}{quote(exchange.scope['path'])}"
