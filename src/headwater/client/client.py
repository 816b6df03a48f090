"""Client: the streams of one server, over HTTP: create, append, read, close, fork, delete, look at, list.

`follow` gives a Reader, `producer` a Producer; what is here asks once.

A request that gets no answer raises Unreachable; whether it was carried out is then not known (a producer knows).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Literal, Self, TypeVar

import httpx
import msgspec

from headwater.client import asking
from headwater.client.answers import stream_error
from headwater.client.asking import JSON, STREAMS, Address, Ask
from headwater.client.batches import Batching, Lost, Reply
from headwater.client.durable import DurablePages, Live
from headwater.client.pages import Page, page_after, page_of
from headwater.client.plain import PlainEvents
from headwater.client.producer import Producer, begun, no_answer
from headwater.client.reader import OnLost, Reader, Retry, unreachable
from headwater.client.service import Report, Service
from headwater.client.way import Way
from headwater.errors import BadRequest, HeadwaterError
from headwater.model import Retention
from headwater.wire.durable import parse_retention

By = Literal["auto", "durable", "sse", "long-poll"]

T = TypeVar("T")

REPORT_SECONDS: Final = 2.0
"""A report that takes longer is not worth the wait of whoever closes a reader."""


class StreamInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a server tells of a stream. Times are ms since 1970; what it does not tell is None.

    `head` works with any server and tells the first five, and `start`, `ttl`, `expires_at` and `retention` where they
    are set; `info` tells all that a Headwater server knows, `list` all but `retention` and `producers`.
    """

    name: str
    content_type: str
    offset: str
    """Where it ends now."""
    closed: bool
    outcome: str | None = None
    state: str | None = None
    """`open` or `closed`."""
    start: str | None = None
    """Before the first message that is still kept, where some are not."""
    messages: int | None = None
    """How many are kept, and in `bytes` how much that is."""
    bytes: int | None = None
    readers: int | None = None
    """How many follow it, at the server that answers."""
    producers: int | None = None
    """How many it remembers."""
    created: int | None = None
    appended: int | None = None
    ttl: int | None = None
    """Seconds without a read or a write after which it is gone."""
    expires_at: int | None = None
    retention: Retention | None = None
    """How much of it is kept, where its creator said so."""


class _Listed(msgspec.Struct):
    streams: list[StreamInfo]
    next: str | None = None


class Client:
    """One server. Use it with `async with`, or call `aclose`."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        retry: Retry | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        """`base_url`: the server, with the path it is mounted at, if any; `key`: an API key, sent to it alone."""
        self._address, self._retry = Address(base_url, key), retry or Retry()
        self._http = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(asking.ANSWER_SECONDS, connect=self._retry.connect, pool=None),
            # A reader keeps its connection for as long as it follows: there is no sensible most.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            mounts=asking.AT_HOME,
        )

    def __repr__(self) -> str:
        return f"<Client of {self._address.base}>"

    async def aclose(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        await self.aclose()

    # -- reading ------------------------------------------------------------------------------------------------------

    def follow(
        self,
        path_or_url: str,
        offset: str | None = None,
        *,
        by: By = "auto",
        on_lost: OnLost | None = None,
        on_connected: Callable[[], None] | None = None,
        report: bool | Callable[[Report], None] = False,
    ) -> Reader:
        """Every message after `offset` (None: from the start; "now": from here on), live, until the stream is over.

        `path_or_url`: a stream's name, or any URL that answers with a stream or a run as server-sent events.
        `on_lost(error, seconds)` hears of each lost connection and of the pause before the next, `on_connected()` of
        each that is made; what they raise ends the reading. Nothing is sent before the first message is asked for.

        `by`: "auto" follows as plain events, where each message has its own offset, and goes over to the way of
        Durable Streams at a server that is not Headwater. "durable" goes that way at once: text comes byte for byte,
        and messages that arrived in one page share an offset (see `Event.offset`); caught up, it follows by SSE, and
        text by long-poll. "sse" and "long-poll" are the same with one transport for everything, but that SSE which
        does not get through gives way to long-poll.
        """
        url = self._address.stream(path_or_url)
        headers = {"accept-encoding": "identity", "cache-control": "no-store", **self._address.credentials(url)}
        live: Live | None = by if by in ("sse", "long-poll") else None

        def durable(at: str | None) -> Way:
            return DurablePages(url, at, headers, live)

        service = Service(str(url).partition("?")[0], self._retry.clock, self._telling(report)) if report else None
        if by != "auto":
            return Reader(self._http, durable(offset), self._retry, on_lost, on_connected, service=service)
        plain = url.copy_remove_param("live").copy_set_param("format", "sse") if STREAMS in url.path else url
        way = PlainEvents(plain, offset, {"accept": "text/event-stream", **headers})
        return Reader(self._http, way, self._retry, on_lost, on_connected, over_to=durable, service=service)

    def _telling(self, report: bool | Callable[[Report], None]) -> Callable[[Report], Awaitable[None]]:
        async def tell(said: Report) -> None:
            if callable(report):
                report(said)
                return
            url = self._address.quality()
            body, headers = msgspec.json.encode(said), self._address.credentials(url)
            with suppress(httpx.RequestError):  # it is for the server's good, not the reader's
                await self._http.post(url, content=body, headers=headers, timeout=REPORT_SECONDS)

        return tell

    async def read(self, path: str, offset: str | None = None) -> Page:
        """The next page after `offset`, as it is now: without waiting, and perhaps empty. Raises OffsetGone, …."""
        return page_of(await self._ask(page_after(self._address.stream(path), offset)))

    async def head(self, path: str) -> StreamInfo:
        """How a stream stands. Raises StreamNotFound."""
        headers = (await self._ask(Ask("HEAD", path, {}))).headers
        ttl, expires, kept = (headers.get(f"stream-{name}") for name in ("ttl", "expires-at", "retention"))
        return StreamInfo(
            name=path,
            content_type=headers.get("content-type", ""),
            offset=headers.get("stream-next-offset", ""),
            closed=headers.get("stream-closed") == "true",
            outcome=headers.get("stream-outcome"),
            start=headers.get("stream-earliest-offset"),
            ttl=None if ttl is None else int(ttl),
            expires_at=None if expires is None else round(datetime.fromisoformat(expires).timestamp() * 1000),
            retention=None if kept is None else parse_retention(kept),
        )

    async def info(self, path: str) -> StreamInfo:
        """All that a Headwater server knows of a stream; does not count as a read of it. Raises StreamNotFound."""
        return self._understood(await self._ask(Ask("GET", str(self._address.facts(path)), {})), StreamInfo)

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 100
    ) -> tuple[list[StreamInfo], str | None]:
        """Streams by name, and what to give as `after` for the next ones (None: these were all). Headwater only."""
        query = {"prefix": prefix, "limit": str(limit)} | ({} if after is None else {"after": after})
        listed = self._understood(await self._ask(Ask("GET", str(self._address.listing(query)), {})), _Listed)
        return listed.streams, listed.next

    def _understood(self, response: httpx.Response, kind: type[T]) -> T:
        try:
            return msgspec.json.decode(response.content, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HeadwaterError(f"{self._address.base} does not answer like a Headwater server") from error

    # -- writing ------------------------------------------------------------------------------------------------------

    async def create(
        self,
        path: str,
        *values: Any,
        content_type: str = JSON,
        ttl: int | None = None,
        expires_at: datetime | int | None = None,
        retention: Retention | None = None,
        closed: bool = False,
    ) -> bool:
        """Make a stream. True: made now; False: it was there, as described. Raises StreamExists.

        `values`: its first messages, as in `append`; `closed`: and that is all. `ttl`: seconds without a read or a
        write after which it is gone; `expires_at`: when it is gone at any rate (a datetime, or ms since 1970).
        `retention`: how much of it a Headwater server keeps, like `Retention(seconds=3600)`; others keep everything.
        """
        made = asking.create(
            path, values, content_type=content_type,
            ttl=ttl, expires_at=expires_at, retention=retention, closed=closed,
        )  # fmt: skip
        return (await self._ask(made)).status_code == 201

    async def fork(
        self,
        source: str,
        name: str,
        offset: str | None = None,
        sub_offset: int | None = None,
        *,
        ttl: int | None = None,
        expires_at: datetime | int | None = None,
    ) -> bool:
        """Make a stream that begins as `source` up to `offset` (None: its end now), and then goes its own way.

        `sub_offset`: so many messages more (of a stream that is not JSON: bytes). True: made now; False: it was
        there, as described. Raises StreamNotFound, StreamDeleted, StreamExists, BadOffset.
        """
        made = asking.create(name, (), content_type=None, ttl=ttl, expires_at=expires_at, closed=False)
        forked = asking.fork(made, self._address.stream(source), offset, sub_offset)
        return (await self._ask(forked)).status_code == 201

    async def append(
        self, path: str, *values: Any, content_type: str = JSON, close: bool = False, if_match: str | None = None
    ) -> str:
        """Add messages, all or none, and say where the stream now ends. `close` ends it for ever in the same step.

        bytes and str are taken as they are, anything else becomes JSON. A stream of another content type takes one
        message at a time. `if_match`: only if the stream ends at this offset; else OffsetMismatch, whose
        `detail["offset"]` is where it ends. A server that is not Headwater may ignore that and append at once; then
        ConditionIgnored says so, afterwards. Raises StreamNotFound, StreamClosed, ContentTypeMismatch, TooLarge, ….
        """
        ask = asking.append(path, values, content_type=content_type, close=close, if_match=if_match)
        return asking.offset_after(await self._ask(ask), if_match)

    async def close(self, path: str, outcome: str | None = None) -> str:
        """End a stream for ever; closing a closed one changes nothing. Says where it ends.

        `outcome`: how it ended (`completed`, `failed`, `cancelled`), for readers of a Headwater server.
        """
        return asking.offset_after(await self._ask(asking.close(path, outcome)))

    async def delete(self, path: str) -> None:
        """Remove a stream; what was forked from it stays. Raises StreamNotFound."""
        await self._ask(Ask("DELETE", path, {}))

    def producer(
        self,
        stream: str,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's own name
        epoch: int | None = None,
        claim: bool = False,
        content_type: str = JSON,
        boundaries: bool = False,
        batching: Batching | None = None,
    ) -> Producer:
        """One writer to an existing stream, whose messages count exactly once, whatever fails.

        `id`: None makes one up, which nobody else has. Give one where a program that is started anew is to fence off
        its former self: with an `epoch` one higher in each life, or with `claim=True`, which takes a higher one than
        any before it. Without a claim, an epoch that was used or passed raises ProducerFenced; with it, so does being
        superseded later on.

        A batch is one request. In a JSON stream its messages stay apart. Any other stream is bytes: what gathers in a
        batch is joined, and is one message for those who tell messages apart; `boundaries=True` sends each alone.
        """
        self._address.stream(stream)
        batches = begun(
            stream, id, epoch, claim=claim, content_type=content_type, boundaries=boundaries,
            batching=batching, retry=self._retry,
        )  # fmt: skip
        return Producer(batches, self._post, self._retry)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _ask(self, ask: Ask) -> httpx.Response:
        url = self._address.stream(ask.path)
        headers = {**ask.headers, **self._address.credentials(url)}
        try:
            response = await self._http.request(ask.method, url, headers=headers, content=ask.content)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise BadRequest(f"this request cannot be sent: {error}") from error
        except httpx.RequestError as error:
            raise unreachable(url, error) from error
        if response.status_code >= 300:
            creating = ask.method == "PUT"
            raise stream_error(response.status_code, response.headers, response.content, creating=creating)
        return response

    async def _post(self, ask: Ask) -> Reply | Lost:
        url = self._address.stream(ask.path)
        headers = {**ask.headers, **self._address.credentials(url)}
        try:
            response = await self._http.post(url, headers=headers, content=ask.content)
        except httpx.RequestError as error:
            return no_answer(url, error)
        return Reply(response.status_code, response.headers, response.content)
