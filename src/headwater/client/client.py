"""Client: the streams of one server, over HTTP. Create, append, close, look at, list; `follow` gives a Reader.

Knows the paths and headers of Durable Streams and of `/v1/streams`. A request that gets no answer raises Unreachable;
whether it was carried out is then not known.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import msgspec

from headwater.client.answers import error_of
from headwater.client.reader import OnLost, Reader, Retry, unreachable
from headwater.errors import BadRequest, HeadwaterError, MissingExtra, NotFound, StreamNotFound
from headwater.wire.values import to_bytes

try:
    import httpx
except ImportError as error:
    raise MissingExtra("server", "httpx") from error

STREAMS: Final = "/v1/stream/"

_ANSWER_SECONDS: Final = 30.0
"""For anything but following: an append waits for a disk, nothing more."""

_JSON: Final = "application/json"


class StreamInfo(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a server tells of a stream. Times are ms since 1970; what only a list tells is None after `head`."""

    name: str
    content_type: str
    offset: str
    """Where it ends now."""
    closed: bool
    outcome: str | None = None
    messages: int | None = None
    bytes: int | None = None
    created: int | None = None
    appended: int | None = None
    ttl: int | None = None
    """Seconds without a read or a write after which it is gone."""
    expires_at: int | None = None


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
        self._base = _checked(base_url)
        self._key, self._retry = key, retry or Retry()
        self._http = httpx.AsyncClient(
            transport=transport,
            timeout=httpx.Timeout(_ANSWER_SECONDS, connect=self._retry.connect, pool=None),
            # A reader keeps its connection for as long as it follows: there is no sensible most.
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
            # What is on this machine is never behind a proxy.
            mounts=dict.fromkeys(("all://localhost", "all://127.0.0.1", "all://[::1]")),
        )

    def __repr__(self) -> str:
        return f"<Client of {self._base}>"

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
        on_lost: OnLost | None = None,
        on_connected: Callable[[], None] | None = None,
    ) -> Reader:
        """Every message after `offset` (None: from the start; "now": from here on), live, until the stream is over.

        `path_or_url`: a stream's name, or any URL that answers with a stream or a run as server-sent events.
        `on_lost(error, seconds)` hears of each lost connection and of the pause before the next, `on_connected()` of
        each that is made; what they raise ends the reading. Nothing is sent before the first message is asked for.
        """
        url = self._url(path_or_url)
        if STREAMS in url.path:
            url = url.copy_remove_param("live").copy_set_param("format", "sse")
        headers = {"accept": "text/event-stream", "accept-encoding": "identity", "cache-control": "no-store"}
        headers |= self._credentials(url)
        return Reader(self._http, url, offset, headers, self._retry, on_lost, on_connected)

    async def head(self, path: str) -> StreamInfo:
        """How a stream stands. Raises StreamNotFound."""
        try:
            headers = (await self._ask("HEAD", path)).headers
        except NotFound:  # an answer to HEAD has no body that could say so
            raise StreamNotFound("no such stream") from None
        ttl = headers.get("stream-ttl")
        return StreamInfo(
            name=path,
            content_type=headers.get("content-type", ""),
            offset=headers.get("stream-next-offset", ""),
            closed=headers.get("stream-closed") == "true",
            outcome=headers.get("stream-outcome"),
            ttl=None if ttl is None else int(ttl),
        )

    async def list(
        self, prefix: str = "", *, after: str | None = None, limit: int = 100
    ) -> tuple[list[StreamInfo], str | None]:
        """Streams by name, and what to give as `after` for the next ones (None: these were all)."""
        query = {"prefix": prefix, "limit": str(limit)} | ({} if after is None else {"after": after})
        url = self._base.copy_with(path=f"{self._base.path.rstrip('/')}/v1/streams", params=query)
        response = await self._ask("GET", str(url))
        try:
            listed = msgspec.json.decode(response.content, type=_Listed)
        except msgspec.DecodeError as error:
            raise HeadwaterError(f"{self._base} does not answer like a Headwater server") from error
        return listed.streams, listed.next

    # -- writing ------------------------------------------------------------------------------------------------------

    async def create(self, path: str, *, content_type: str = _JSON, ttl: int | None = None) -> bool:
        """Make a stream. True: made now; False: it was there, as described. Raises StreamExists."""
        headers = {"content-type": content_type} | ({} if ttl is None else {"stream-ttl": str(ttl)})
        return (await self._ask("PUT", path, headers=headers)).status_code == 201

    async def append(self, path: str, *values: Any, content_type: str = _JSON, close: bool = False) -> str:
        """Add messages, all or none, and say where the stream now ends. `close` ends it for ever in the same step.

        bytes and str are taken as they are, anything else becomes JSON. A stream of another content type takes one
        message at a time. Raises StreamNotFound, StreamClosed, ContentTypeMismatch, TooLarge, ….
        """
        headers = {"content-type": content_type} | ({"stream-closed": "true"} if close else {})
        response = await self._ask("POST", path, headers=headers, content=_body(values, content_type))
        return str(response.headers.get("stream-next-offset", ""))

    async def close(self, path: str) -> str:
        """End a stream for ever; closing a closed one changes nothing. Says where it ends."""
        response = await self._ask("POST", path, headers={"stream-closed": "true"})
        return str(response.headers.get("stream-next-offset", ""))

    # -- requests -----------------------------------------------------------------------------------------------------

    def _url(self, path_or_url: str) -> httpx.URL:
        if path_or_url.startswith(("http://", "https://")):
            return _checked(path_or_url)
        if not path_or_url:
            raise BadRequest("name a stream, like chat/42")
        return self._base.copy_with(raw_path=f"{self._base.path.rstrip('/')}{STREAMS}{quote(path_or_url)}".encode())

    def _credentials(self, url: httpx.URL) -> dict[str, str]:
        mine = (url.scheme, url.host, url.port) == (self._base.scheme, self._base.host, self._base.port)
        return {"authorization": f"Bearer {self._key}"} if self._key and mine else {}

    async def _ask(
        self, method: str, path: str, *, headers: dict[str, str] | None = None, content: bytes = b""
    ) -> httpx.Response:
        url = self._url(path)
        sent = {**(headers or {}), **self._credentials(url)}
        try:
            response = await self._http.request(method, url, headers=sent, content=content)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise BadRequest(f"this request cannot be sent: {error}") from error
        except httpx.RequestError as error:
            raise unreachable(url, error) from error
        if response.status_code >= 300:
            raise error_of(response.status_code, response.content)
        return response


def _checked(url: str) -> httpx.URL:
    try:
        checked = httpx.URL(url)
    except httpx.InvalidURL as error:
        raise BadRequest(f"{url!r} is not a URL: {error}") from error
    if checked.scheme not in ("http", "https") or not checked.host:
        raise BadRequest(f"{url!r} is not the URL of a server; one looks like http://127.0.0.1:4437")
    return checked


def _body(values: tuple[Any, ...], content_type: str) -> bytes:
    """JSON goes as an array, which a server takes apart by one level: so a list is still one message."""
    parts = [to_bytes(value) for value in values]
    if content_type.partition(";")[0].strip().lower() != _JSON:
        if len(parts) > 1:
            raise BadRequest(f"one append to a stream of {content_type} is one message")
        return b"".join(parts)
    try:
        for part in parts:
            msgspec.json.decode(part, type=msgspec.Raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest('the message is not valid JSON (a text stands in quotes: "hello")') from error
    return b"[%s]" % b",".join(parts) if parts else b""
