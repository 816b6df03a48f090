"""Reader: one stream, followed through cuts, restarts and silence; every message once, in order, none left out.

Reads plain SSE (`format=sse`), in which each message's `id` is the offset after it, and comes back with
`Last-Event-ID`. Only complete events count, so a cut in the middle of one is no cut at all.

The stream is over when the server says so: `event: end`, 204, or (a run, whose last message is its end) the end of the
body after RUN_FINISHED or RUN_ERROR. A connection that ends in any other way was lost.

Cancellation: a cancelled `anext` loses nothing; the connection is given up, and the next call goes on where it was.

Knows the wire and httpx. Invariant: `offset` is the offset after the last message handed out.
"""

from __future__ import annotations

import asyncio
import binascii
import random
import time
from base64 import b64decode
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

import msgspec

from headwater.client.answers import Unreachable, error_from, error_of, may_pass, retry_after
from headwater.errors import BadRequest, HeadwaterError, MissingExtra, NotAcceptable, TooLarge
from headwater.wire import sse

try:
    import httpx
except ImportError as error:
    raise MissingExtra("server", "httpx") from error

LARGEST_EVENT: Final = 64 * 1024 * 1024
"""Bytes: four times the largest message a server takes by default, for base64 and JSON escapes."""

_MOST_DOUBLINGS: Final = 16

OnLost = Callable[[HeadwaterError, float], None]


@dataclass(frozen=True, slots=True)
class Retry:
    """How a lost connection is found out and made again. Times in seconds."""

    shortest: float = 0.2
    """Before the first new attempt: a server that restarts is not hit by everybody in the same millisecond."""
    longest: float = 10.0
    """Between attempts, however often they failed."""
    silence: float = 45.0
    """Without a byte: three missed heartbeats of a server that sends one every 15 s."""
    connect: float = 10.0
    """For the connection to be made."""
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    clock: Callable[[], float] = time.monotonic
    jitter: Callable[[], float] = random.random

    def pause(self, failures: int, asked: float = 0.0) -> float:
        """Before the next attempt: longer with each failure in a row, never less than the server asked for."""
        floor = max(self.shortest, asked)
        doubled = max(2 * floor, self.shortest * 2.0 ** min(failures + 1, _MOST_DOUBLINGS))
        ceiling = max(floor, min(self.longest, doubled))
        return floor + self.jitter() * (ceiling - floor)


class Event(NamedTuple):
    """One message of a stream."""

    data: bytes
    """As it was appended; JSON on one line, line ends of text as LF."""
    offset: str
    """The offset after it: to go on behind it, follow from here."""
    name: str = "message"
    """The event's own name, in streams of content type text/event-stream."""

    def json(self) -> Any:
        """The value of a JSON message. Raises msgspec.DecodeError."""
        return msgspec.json.decode(self.data)


class Reader(AsyncIterator[Event]):
    """`async for event in reader`; then `outcome` says how the stream ended. Made by `Client.follow`.

    Raises what the server answers and time will not change: StreamNotFound, OffsetGone, Unauthorized, ….
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        url: httpx.URL,
        offset: str | None,
        headers: dict[str, str],
        retry: Retry,
        on_lost: OnLost | None,
        on_connected: Callable[[], None] | None,
    ) -> None:
        self.offset = offset
        self.outcome: str | None = None
        """`completed`, `failed` or `cancelled`, once the stream is over; None before, and where nobody said."""
        self.over = False
        """The stream has ended, and everything before its end was handed out."""
        self.connections = 0
        """How often the server has answered with the stream."""
        self._http, self._headers, self._retry, self._on_lost = http, headers, retry, on_lost
        self._on_connected = on_connected
        self._first = url if offset is None else url.copy_set_param("offset", offset)
        self._again = url.copy_remove_param("offset")
        self._last_id: str | None = None
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] = aiter(_nothing())
        self._decoder = sse.Decoder()
        self._arrived: deque[sse.Event] = deque()
        self._is_run = False
        self._terminal_seen = False
        self._connected_at: float | None = None
        self._failures = 0
        self._pause: float | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "over" if self.over else "connected" if self._response is not None else "not connected"
        return f"<Reader of {self._again.path!r} at {self.offset} [{state}, {self.connections} connections]>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connection; iteration ends."""
        self._closed = True
        await self._disconnect()

    async def __anext__(self) -> Event:
        try:
            while not self._closed:
                if self._arrived:
                    event = self._taken(self._arrived.popleft())
                    if event is not None:
                        return event
                elif self.over:
                    await self.aclose()
                else:
                    await self._advance()
        except HeadwaterError:
            await self.aclose()
            raise
        raise StopAsyncIteration

    # -- events -------------------------------------------------------------------------------------------------------

    def _taken(self, event: sse.Event) -> Event | None:
        """The message that an event is, or None for the server's own words, which are acted upon.

        A message moves the id on; the server's own events carry the id of the last message, or none. So a message
        that happens to be called `end` is still a message.
        """
        if event.event == "end" and event.id in ("", self.offset or event.id):
            self.outcome, self.over = _field(event.data, "outcome"), True
            return None
        if event.event == "interrupted" and event.id in ("", self.offset):
            self._interrupted(event.data)
            return None
        self.offset = self._last_id = event.id
        self._failures = 0
        data = event.data.encode()
        if self._is_run:
            self._terminal_seen = self._ends_run(data)
        return Event(self._decoded(data), event.id, event.event)

    def _interrupted(self, data: str) -> None:
        error = error_from(_field(data, "code"), _field(data, "message"))
        if _field(data, "retry") is not True:
            raise error
        self._lose(error)

    def _ends_run(self, data: bytes) -> bool:
        """Whether a run's event is its last (AG-UI: RUN_FINISHED or RUN_ERROR), and what it says of the outcome."""
        if b'"RUN_FINISHED"' not in data and b'"RUN_ERROR"' not in data:
            return False
        kind = _field(data, "type")
        if kind == "RUN_ERROR":
            self.outcome = "failed"
        elif kind == "RUN_FINISHED":
            said = _field(data, "outcome")
            cancelled = isinstance(said, dict) and said.get("type") == "cancelled"
            self.outcome = "cancelled" if cancelled else "completed"
        return kind in ("RUN_ERROR", "RUN_FINISHED")

    def _decoded(self, data: bytes) -> bytes:
        response = self._response
        if response is None or response.headers.get("stream-sse-data-encoding") != "base64":
            return data
        try:
            return b64decode(data, validate=True)
        except binascii.Error as error:
            raise HeadwaterError("the server sent data that is not base64") from error

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _advance(self) -> None:
        """One step: sit out a pause, connect, or take what has come."""
        try:
            if self._pause is not None:
                await self._disconnect()
                await self._retry.sleep(self._pause)
                self._pause = None
            elif self._response is None:
                await self._connect()
            else:
                await self._receive(self._response)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise BadRequest(f"this request cannot be sent: {error}") from error
        except httpx.RequestError as error:
            await self._disconnect()
            self._lose(unreachable(self._again, error))
        except BaseException:  # cancelled in the middle of a read: what is left of the connection is of no use
            await self._disconnect()
            raise

    async def _connect(self) -> None:
        headers, url = dict(self._headers), self._first
        if self._last_id is not None:
            headers["last-event-id"], url = self._last_id, self._again
        timeout = httpx.Timeout(self._retry.silence, connect=self._retry.connect, pool=None)
        request = self._http.build_request("GET", url, headers=headers, timeout=timeout)
        self._response = response = await self._http.send(request, stream=True, follow_redirects=True)
        if response.status_code == 204:
            self.over = True
            self.outcome = response.headers.get("stream-outcome", self.outcome)
        elif response.status_code == 200:
            self._begin(response)
        else:
            await self._refused(response)

    def _begin(self, response: httpx.Response) -> None:
        if not response.headers.get("content-type", "").lower().startswith("text/event-stream"):
            raise NotAcceptable("there is no stream of events at this address")
        self.connections += 1
        self._connected_at = self._retry.clock()
        self._chunks = response.aiter_bytes()
        self._decoder = sse.Decoder(max_event_bytes=LARGEST_EVENT)
        self._is_run = "x-run-id" in response.headers
        # Where the server began to read: a connection lost before the first message resumes there too, not at
        # another `now`, nor in another stream of this name.
        if self._last_id is None and "stream-next-offset" in response.headers:
            self.offset = self._last_id = response.headers["stream-next-offset"]
        if self._on_connected is not None:
            self._on_connected()

    async def _refused(self, response: httpx.Response) -> None:
        error = error_of(response.status_code, await response.aread())
        if not may_pass(response.status_code):
            raise error
        await self._disconnect()
        self._lose(error, retry_after(response.headers))

    async def _receive(self, response: httpx.Response) -> None:
        chunk = await anext(self._chunks, None)
        if chunk is None:
            await self._disconnect()
            self.over = self._terminal_seen
            if not self.over:
                self._lose(Unreachable("the server ended the connection, but the stream goes on"))
            return
        try:
            self._arrived.extend(self._decoder.feed(chunk))
        except ValueError as error:
            raise TooLarge(str(error)) from error

    def _lose(self, error: HeadwaterError, asked: float = 0.0) -> None:
        """Have the next step be a pause."""
        if self._decoder.retry is not None:
            asked = max(asked, self._decoder.retry / 1000)
        self._pause = self._retry.pause(self._failures, asked)
        self._failures += 1
        if self._on_lost is not None:
            self._on_lost(error, self._pause)

    async def _disconnect(self) -> None:
        response, self._response = self._response, None
        since, self._connected_at = self._connected_at, None
        # Silence with heartbeats is a good connection too: its end is the first failure, not one more.
        if since is not None and self._retry.clock() - since >= self._retry.longest:
            self._failures = 0
        if response is not None:
            await response.aclose()


def unreachable(url: httpx.URL, error: httpx.RequestError) -> Unreachable:
    """What to say of a request without an answer."""
    where = f"{url.scheme}://{url.netloc.decode('ascii')}"
    if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
        return Unreachable(f"nothing answers at {where}")
    if isinstance(error, httpx.ReadTimeout):
        return Unreachable(f"{where} has been silent for too long")
    return Unreachable(f"the connection to {where} was lost")


def _field(data: str | bytes, name: str) -> Any:
    try:
        value = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return value.get(name) if isinstance(value, dict) else None


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield
