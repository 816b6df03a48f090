"""Writing to the stream that a path names: PUT, POST, DELETE. Section numbers are Durable Streams'.

Knows the protocol's rules (wire.durable), what may be written, and how fast; what comes of a request is decided below.
Invariant: nobody's body is taken in who may not write, or writes too fast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Final
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from headwater.decide import KIND, Append, Create, Decision, ForkOf, Item, media_type
from headwater.errors import BadRequest, ContentTypeMismatch, Forbidden, OffsetGone, StreamClosed, StreamNotFound
from headwater.formats.format import is_json
from headwater.http.access import may_read, may_write
from headwater.http.admission import Admission
from headwater.http.exchange import Exchange
from headwater.http.facts import add_facts
from headwater.http.standing import state
from headwater.model import Config
from headwater.streams import Streams
from headwater.wire import durable

DEFAULT_TYPE: Final = "application/octet-stream"  # of a PUT without Content-Type (5.1)


class Writing:
    """The requests that change a stream."""

    def __init__(self, streams: Streams, admission: Admission) -> None:
        self._streams, self._admission = streams, admission

    async def put(self, exchange: Exchange, name: str) -> Response:
        may_write(exchange, "create", name)
        _unconditional(exchange)
        fork_of = durable.parse_fork(exchange.headers, exchange.prefix)
        if fork_of is not None:
            may_read(exchange, fork_of.source)
        config, close, outcome = _config(exchange), *_ending(exchange.headers)
        self._admission.write(exchange.client)
        data = await exchange.body(self._streams.limits.message_bytes)
        content_type = exchange.headers.get("content-type") or await self._type_left_out(name, fork_of, data)
        request = Create(
            Config(content_type, config.ttl, config.expires_at, config.retention),
            _items(content_type, data),
            close,
            outcome,
            fork_of=fork_of,
        )
        try:
            decision = await self._streams.carry_out(name, request)
        except OffsetGone as gone:
            await add_facts(gone, self._streams, name if fork_of is None else fork_of.source)
            raise
        answer = {**state(decision.head), "content-type": decision.head.config.content_type}
        if decision.what == "created":
            answer["location"] = _url(exchange)
            return Response(status_code=201, headers=answer)
        return Response(status_code=200, headers=answer)

    async def _type_left_out(self, name: str, fork_of: ForkOf | None, data: bytes) -> str:
        """What a PUT without Content-Type means. A fork's body must be known for what it is: JSON is many messages."""
        if fork_of is None:
            return DEFAULT_TYPE
        if not data:
            return ""  # the source's
        for one in (name, fork_of.source):
            with suppress(StreamNotFound):
                return (await self._streams.head(one)).config.content_type
        return DEFAULT_TYPE  # refused for want of a source

    async def post(self, exchange: Exchange, name: str) -> Response:
        headers = exchange.headers
        close, _ = _ending(headers)
        may_write(exchange, "close" if close else "append", name)
        self._admission.write(exchange.client)
        data = await exchange.body(self._streams.limits.message_bytes)
        if data and close:
            may_write(exchange, "append", name)
        request = append_of(headers, headers.getlist("if-match"), has_body=bool(data))
        if data:
            items = await self._appended(name, request.content_type, data)
            request = msgspec.structs.replace(request, items=items)
        decision = await self._streams.carry_out(name, request)
        status, answer = append_answer(request, decision)
        return Response(status_code=status, headers=answer)

    async def _appended(self, name: str, content_type: str | None, data: bytes) -> list[Item]:
        """The messages of a body. A stream that would refuse it anyway says so first (precedence, 5.2)."""
        try:
            return appended_items(content_type or DEFAULT_TYPE, data)
        except BadRequest:
            head = await self._streams.head(name)
            if head.closed:
                raise StreamClosed("this stream is closed", offset=str(head.offset)) from None
            if media_type(content_type or "") != media_type(head.config.content_type):
                raise ContentTypeMismatch(f"this stream holds {head.config.content_type}") from None
            raise

    async def delete(self, exchange: Exchange, name: str) -> Response:
        may_write(exchange, "delete", name)
        _unconditional(exchange)
        self._admission.write(exchange.client)
        if KIND in (await self._streams.head(name)).labels:
            raise Forbidden("this stream is written by the server alone")
        await self._streams.delete(name)
        return Response(status_code=204)


def append_of(headers: Mapping[str, str], if_match: Sequence[str], *, has_body: bool) -> Append:
    """What the headers of a POST ask for, without its messages. Raises BadRequest."""
    content_type, (close, outcome) = headers.get("content-type"), _ending(headers)
    if has_body and content_type is None:
        raise BadRequest("an append with a body needs a Content-Type")
    if not has_body and not close:
        raise BadRequest("an append needs a body, unless it closes the stream (Stream-Closed: true)")
    stamp, expected = durable.parse_stamp(headers), durable.parse_if_match(if_match)
    if stamp is not None and expected is not None:
        raise BadRequest("give If-Match or the Producer- headers: a retried append would meet its own first try")
    seq = durable.parse_seq(headers.get("stream-seq"))
    return Append((), content_type if has_body else None, stamp, seq, close, outcome, expected, foreign=True)


def appended_items(content_type: str, data: bytes) -> list[Item]:
    """The messages of a POST's body. Raises BadRequest, TooLarge."""
    items = _items(content_type, data)
    if not items:
        raise BadRequest("an empty JSON array appends nothing; leave the request out")
    return items


def append_answer(request: Append, decision: Decision) -> tuple[int, dict[str, str]]:
    """Status and headers that tell what became of a POST."""
    head, stamp = decision.head, request.stamp
    headers = state(head)
    headers["etag"] = durable.tail_tag(headers["stream-next-offset"])
    if stamp is None:
        return 204, headers
    known = head.producers.get(stamp.producer)
    headers |= {"producer-epoch": str(stamp.epoch), "producer-seq": str(known.seq if known else stamp.seq)}
    return (200 if request.items and decision.what == "appended" else 204), headers


def _unconditional(exchange: Exchange) -> None:
    if "if-match" in exchange.headers:  # better than to do it on no condition
        raise BadRequest("If-Match is for appends; leave it out")


def _ending(headers: Mapping[str, str]) -> tuple[bool, str | None]:
    """Whether the stream is to be closed, and as what."""
    close = durable.parse_closed(headers.get("stream-closed"))
    return close, durable.parse_outcome(headers.get("stream-outcome"), closes=close)


def _config(exchange: Exchange) -> Config:
    """How long a stream is to live and what is to be kept of it."""
    headers = exchange.headers
    ttl, expires, kept = (headers.get(f"stream-{name}") for name in ("ttl", "expires-at", "retention"))
    if ttl is not None and expires is not None:
        raise BadRequest("give Stream-TTL or Stream-Expires-At, not both")
    return Config(
        ttl=None if ttl is None else durable.parse_ttl(ttl),
        expires_at=None if expires is None else durable.parse_expires_at(expires),
        retention=None if kept is None else durable.parse_retention(kept),
    )


def _items(content_type: str, data: bytes) -> list[Item]:
    if not data:
        return []
    return [Item(part) for part in durable.split_json(data)] if is_json(content_type) else [Item(data)]


def _url(exchange: Exchange) -> str:
    """The stream's own address, as this client sees the server."""
    host = exchange.headers.get("host", "localhost")
    return f"{exchange.scope.get('scheme', 'http')}://{host}{quote(exchange.scope['path'])}"
