"""Any OpenAI-compatible streaming API (Chat Completions, Responses, Completions) as something to stream from.

Knows where such an API is, how it is asked, and how its answers end; nothing of streams or of who asks. Invariants:
- Only what was configured is reached: a base URL and a few endpoints below it. No redirect is followed.
- The key goes to the upstream and nowhere else: not into a repr, an error, or what comes back.
- The end of an answer is what the API says it is (`[DONE]`, a finish_reason, `response.completed`), never the end of
  its bytes: an answer that just stops was cut.
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, cast
from urllib.parse import SplitResult, quote, urlsplit

import msgspec

from headwater.errors import HeadwaterError, MissingExtra
from headwater.wire.sse import Decoder, Event

try:
    import httpx
except ImportError as error:
    raise MissingExtra("proxy", "httpx") from error

if TYPE_CHECKING:
    from typing import Self

__all__ = ["ENDPOINTS", "Ending", "Refusal", "Upstream", "UpstreamCut", "UpstreamRefused", "UpstreamUnreachable"]

_log: Final = logging.getLogger(__name__)

ENDPOINTS: Final = frozenset({"chat/completions", "completions", "responses"})
"""Those whose answers are streams of events."""

PASSED_ON: Final = {
    "models": "GET",
    "embeddings": "POST",
    "moderations": "POST",
    "images/generations": "POST",
    "images/edits": "POST",
    "audio/speech": "POST",
    "audio/transcriptions": "POST",
    "audio/translations": "POST",
}
"""Methods of those that answer in one piece, as `models/{id}` does, and keep nothing. No others: what an API keeps
(files, batches, stored answers) is the key's, and all clients here have the same key there."""

_MODEL: Final = re.compile(r"models(/(?!\.{1,2}(/|$))[A-Za-z0-9._:@-]+)+")

IDLE_SECONDS: Final = 120.0
"""Without a byte from the upstream, after which its answer counts as cut. Models think in silence for a minute."""
TOTAL_SECONDS: Final = 3600.0
"""Of one answer, however busy its upstream is: the longest researches in the field take half of it."""
LAST_SECONDS: Final = 1.0
"""For the end of the body behind the end of the answer."""
CONNECT_SECONDS: Final = 10.0
ANSWER_BYTES: Final = 16 * 1024 * 1024
"""Of an answer that is no stream: it is held in memory."""


class UpstreamUnreachable(HeadwaterError):
    """There was no answer at all."""

    status: ClassVar[int] = 502
    code: ClassVar[str] = "upstream_unreachable"
    retry: ClassVar[bool] = True


class UpstreamRefused(HeadwaterError):
    """It does not take this server's key, or sends it elsewhere: only who runs this server can mend that."""

    status: ClassVar[int] = 502
    code: ClassVar[str] = "upstream_refused"


class UpstreamCut(HeadwaterError):
    """The answer had begun, and was not finished."""

    status: ClassVar[int] = 502
    code: ClassVar[str] = "upstream_cut"


class Refusal(NamedTuple):
    """An answer that is no stream of events: as it is to be passed on."""

    status: int
    body: bytes
    headers: dict[str, str]


_PASSED_BACK: Final = frozenset({"content-type", "retry-after", "x-request-id"})


class Upstream:
    """One API, and how it is asked."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
        endpoints: frozenset[str] = ENDPOINTS,
        idle_timeout: float = IDLE_SECONDS,
        total_timeout: float = TOTAL_SECONDS,
    ) -> None:
        """`base_url` as the openai clients take it (`https://api.openai.com/v1`); `key`: its API key, from the
        environment (`os.environ["OPENAI_API_KEY"]`); `headers`: more to be sent with each request; `endpoints`:
        those whose answers can be streams (PASSED_ON goes through beside them); `idle_timeout`: seconds of silence
        after which an answer counts as cut; `total_timeout`: seconds that it may take altogether. Raises ValueError
        for what is no such URL.
        """
        if not _is_plain(urlsplit(base_url)):
            raise ValueError("an upstream is http(s)://host/path, without a user name or a query")
        self.base_url, self.endpoints = base_url.rstrip("/"), endpoints
        self._key = key
        self._headers = {**(headers or {}), **({"authorization": f"Bearer {key}"} if key else {})}
        self._timeout = httpx.Timeout(idle_timeout, connect=CONNECT_SECONDS)
        self._total = total_timeout
        self._client: asyncio.Task[httpx.AsyncClient] | None = None

    def __repr__(self) -> str:
        return f"<Upstream {self.base_url}>"

    @classmethod
    def named(cls, name: str, base_url: str, environ: Mapping[str, str] = os.environ) -> Self:
        """With the key that the environment has for `name` (`key_variable`); none is fine, too."""
        return cls(base_url, key=environ.get(key_variable(name)))

    @property
    def has_key(self) -> bool:
        return bool(self._key)

    async def aclose(self) -> None:
        """Let go of its connections."""
        made, self._client = self._client, None
        if made is not None:
            await (await made).aclose()

    @asynccontextmanager
    async def ask(
        self, endpoint: str, body: bytes, *, content_type: str = "application/json"
    ) -> AsyncIterator[httpx.Response]:
        """Send `body`, and give the answer as soon as its head is there. Raises UpstreamUnreachable, and UpstreamCut
        when sending and reading together take too long."""
        if endpoint not in self.endpoints and method_of(endpoint) is None:
            raise ValueError(f"{endpoint!r} is none of this upstream's endpoints")
        try:
            async with asyncio.timeout(self._total) as limit, self._sent(endpoint, body, content_type) as response:
                yield response
        except TimeoutError as error:
            if not limit.expired():
                raise
            raise UpstreamCut("the upstream's answer took too long") from error

    @asynccontextmanager
    async def _sent(self, endpoint: str, body: bytes, content_type: str) -> AsyncIterator[httpx.Response]:
        client = await self._opened()
        fields = {
            **self._headers,
            "content-type": content_type,
            "accept": "text/event-stream, application/json" if endpoint in self.endpoints else "*/*",
            "accept-encoding": "identity",  # events that wait in a decompressor come late
        }
        method, url = method_of(endpoint) or "POST", f"{self.base_url}/{quote(endpoint)}"
        request = client.build_request(method, url, content=body if method == "POST" else None, headers=fields)
        try:
            response = await client.send(request, stream=True)
        except httpx.HTTPError as error:
            raise UpstreamUnreachable("the upstream cannot be reached") from error
        try:
            yield response
        finally:
            await response.aclose()

    async def whole(self, response: httpx.Response) -> Refusal:
        """An answer that is no stream of events: an error, or one that was not asked to be one. Raises UpstreamRefused
        and UpstreamCut."""
        if response.status_code in (401, 403) or response.is_redirect:
            why = "redirects are not followed" if response.is_redirect else f"sent {'a' if self._key else 'no'} key"
            _log.warning("%s refuses this server: HTTP %d (%s)", self.base_url, response.status_code, why)
            raise UpstreamRefused(f"the upstream refuses this server (HTTP {response.status_code}); see its log")
        body = bytearray()
        try:
            async for chunk in response.aiter_bytes():
                body += chunk
                if len(body) > ANSWER_BYTES:
                    raise UpstreamCut("the upstream's answer is too large")
        except httpx.HTTPError as error:
            raise UpstreamCut("the upstream's answer was cut off") from error
        said = bytes(body)
        if self._key:  # some services repeat it in what they complain of
            said = said.replace(self._key.encode(), b"***")
        headers = {name: value for name, value in response.headers.items() if name in _PASSED_BACK}
        return Refusal(response.status_code, said, headers)

    async def events(self, response: httpx.Response) -> AsyncIterator[Event]:
        """The events of a streamed answer until it says that it is over. Raises UpstreamCut where it never does."""
        decoder, ending = Decoder(), Ending()
        chunks = response.aiter_bytes()
        try:
            async for chunk in chunks:
                for event in decoder.feed(chunk):
                    ending.note(event)
                    yield event
                    if ending.over:
                        await _read_out(chunks)
                        return
        except (httpx.HTTPError, ValueError) as error:
            if not ending.complete:
                raise UpstreamCut("the upstream's answer was cut off") from error
        if not ending.complete:
            raise UpstreamCut("the upstream's answer was cut off")

    async def _opened(self) -> httpx.AsyncClient:
        if self._client is None:  # in a thread: it reads the certificates of this machine
            self._client = asyncio.ensure_future(asyncio.to_thread(self._made))
        return await asyncio.shield(self._client)

    def _made(self) -> httpx.AsyncClient:
        secure = self.base_url.startswith("https:")  # else no certificate is ever asked for, and none need be read
        return httpx.AsyncClient(timeout=self._timeout, limits=httpx.Limits(max_connections=None), verify=secure)


def key_variable(name: str) -> str:
    """Where the environment has the key of the upstream `name`: `OPENAI_API_KEY` for "openai"."""
    return f"{name.upper().replace('-', '_')}_API_KEY"


def method_of(endpoint: str) -> str | None:
    """How one of those that answer in one piece is asked; None: it is none."""
    return "GET" if _MODEL.fullmatch(endpoint) else PASSED_ON.get(endpoint)


def _is_plain(place: SplitResult) -> bool:
    with suppress(ValueError):  # a port that is none
        more = place.username or place.query or place.fragment or place.port == 0
        return place.scheme in ("http", "https") and bool(place.hostname) and not more
    return False


async def _read_out(chunks: AsyncIterator[bytes]) -> None:
    """To the end of the body, if that comes at once: the connection can be used again then."""
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(LAST_SECONDS):
            async for _ in chunks:
                pass


class _Choice(msgspec.Struct):
    finish_reason: Any = None


class _Said(msgspec.Struct):
    """What of an event tells how the answer goes on."""

    type: Any = None
    error: Any = None
    choices: list[_Choice] | None = None


_SAID: Final = msgspec.json.Decoder(_Said)
_LAST: Final = frozenset({"response.completed", "response.incomplete", "response.failed"})


class Ending:
    """How far an answer is from its end, told by its events. Pure."""

    def __init__(self) -> None:
        self.over = False
        """It has said its last."""
        self.complete = False
        """Nothing more has to come, although something may (the usage, `[DONE]`)."""
        self.failed = False
        """It told of an error, in its own words."""

    def note(self, event: Event) -> None:
        """Takes the next event. One that nobody understands changes nothing."""
        if event.data == "[DONE]":
            self.over = self.complete = True
            return
        try:
            said = _SAID.decode(event.data)
        except msgspec.DecodeError:
            return
        if said.type == "response.failed" or said.type == "error" or said.error not in (None, {}, ""):
            self.failed = self.over = self.complete = True
        elif said.type in _LAST:
            self.over = self.complete = True
        elif said.choices and any(choice.finish_reason is not None for choice in said.choices):
            self.complete = True


def is_stream(response: httpx.Response) -> bool:
    """Whether the answer is one that `events` reads."""
    kind = cast("str", response.headers.get("content-type", ""))
    return response.status_code == 200 and kind.partition(";")[0].strip().lower() == "text/event-stream"
