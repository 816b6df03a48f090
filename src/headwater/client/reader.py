"""Reader: one stream, followed through cuts, restarts and silence; every message once, in order, none left out.

How a stream is asked for and understood is its Way's: plain events of a Headwater server, or the pages of any Durable
Streams server, to which it goes over by itself where the server turns out to be one. The connection, the pauses between
connections and the time are the Reader's.

Cancellation: a cancelled `anext` loses nothing; the connection is given up, and the next call goes on where it was.

Knows the ways and httpx. Invariant: `offset` is that of the last message handed out.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

import httpx

from headwater.client.answers import Unreachable, may_pass, retry_after, stream_error
from headwater.client.pages import is_page
from headwater.client.service import Ended, Service
from headwater.client.way import Event, Way
from headwater.errors import BadRequest, HeadwaterError

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


class Reader(AsyncIterator[Event]):
    """`async for event in reader`; then `outcome` says how the stream ended. Made by `Client.follow`.

    Raises what the server answers and time will not change: StreamNotFound, OffsetGone, Unauthorized, ….
    """

    def __init__(
        self,
        http: httpx.AsyncClient,
        way: Way,
        retry: Retry,
        on_lost: OnLost | None = None,
        on_connected: Callable[[], None] | None = None,
        *,
        over_to: Callable[[str | None], Way] | None = None,
        service: Service | None = None,
    ) -> None:
        """`over_to(offset)`: the way to go on where the server answers with pages; None: that is an error. `service`
        takes down how it goes."""
        self.connections = 0
        """How often the server was reached: once, and once more after each loss."""
        self._http, self._way, self._retry, self._over_to = http, way, retry, over_to
        self._on_lost, self._on_connected, self._service = on_lost, on_connected, service
        self._url = way.request().url
        self._response: httpx.Response | None = None
        self._chunks: AsyncIterator[bytes] = aiter(_nothing())
        self._in_touch = False
        self._asked_at = 0.0
        self._connected_at: float | None = None
        self._failures = 0
        self._pause: float | None = None
        self._sleeping: asyncio.Future[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        state = "over" if self.over else "connected" if self._response is not None else "not connected"
        return f"<Reader of {self._url.path!r} at {self.offset} [{state}, {self.connections} connections]>"

    @property
    def offset(self) -> str | None:
        """Of the last message handed out; before the first, where the reading begins."""
        return self._way.offset

    @property
    def outcome(self) -> str | None:
        """`completed`, `failed` or `cancelled`, once the stream is over; None before, and where nobody said."""
        return self._way.outcome

    @property
    def over(self) -> bool:
        """The stream has ended, and everything before its end was handed out."""
        return self._way.over

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Let go of the connection; iteration ends."""
        await self._end("ended" if self.over else "left")

    async def _end(self, how: Ended) -> None:
        self._closed = True
        if self._sleeping is not None:
            self._sleeping.cancel()
        await self._disconnect()
        if self._service is not None:
            await self._service.over(how)

    async def __anext__(self) -> Event:
        try:
            while not self._closed:
                event = self._way.take()
                if event is not None:
                    self._failures = 0
                    if self._service is not None:
                        self._service.event()
                    return event
                if self.over:
                    await self.aclose()
                elif (interrupted := self._way.interrupted) is not None:
                    self._way.interrupted = None
                    self._lose(interrupted)
                else:
                    await self._advance()
        except HeadwaterError:
            await self._end("failed")
            raise
        await self._disconnect()  # closed by somebody else, a connection may have been made meanwhile
        raise StopAsyncIteration

    # -- the connection -----------------------------------------------------------------------------------------------

    async def _advance(self) -> None:
        """One step: sit out a pause, connect, or take what has come."""
        try:
            if self._pause is not None:
                await self._disconnect()
                await self._sleep(self._pause)
                self._pause = None
            elif self._response is None:
                await self._connect()
            else:
                await self._receive()
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise BadRequest(f"this request cannot be sent: {error}") from error
        except httpx.RequestError as error:
            if not isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
                self._ended(cut=True)
            await self._disconnect()
            if not self.over:
                self._lose(unreachable(self._url, error))
        except BaseException:  # cancelled in the middle of a read: what is left of the connection is of no use
            await self._disconnect()
            raise

    async def _sleep(self, seconds: float) -> None:
        """As long as that, or until the reader is closed: a server may ask for an hour."""
        self._sleeping = sleeping = asyncio.ensure_future(self._retry.sleep(seconds))
        try:
            await asyncio.wait([sleeping])
            if not sleeping.cancelled():
                sleeping.result()
        finally:
            sleeping.cancel()
            self._sleeping = None

    async def _connect(self) -> None:
        wanted = self._way.request()
        timeout = httpx.Timeout(self._retry.silence * wanted.silence, connect=self._retry.connect, pool=None)
        request = self._http.build_request("GET", wanted.url, headers=wanted.headers, timeout=timeout)
        self._asked_at = self._retry.clock()
        if self._service is not None:
            self._service.asked()
        self._response = response = await self._http.send(request, stream=True, follow_redirects=True)
        if response.status_code not in (200, 204):
            await self._refused(response)
        elif self._over_to is not None and response.status_code == 200 and is_page(response.headers):
            self._way, self._over_to = self._over_to(self.offset), None
            await self._disconnect()
        else:
            self._begin(response)

    def _begin(self, response: httpx.Response) -> None:
        self._way.begin(response.status_code, response.headers)
        self._chunks = response.aiter_bytes()
        self._connected_at = self._retry.clock()
        if not self._in_touch and not self.over:
            self._in_touch = True
            self.connections += 1
            if self._service is not None:
                self._service.back()
            if self._on_connected is not None:
                self._on_connected()

    async def _refused(self, response: httpx.Response) -> None:
        error = stream_error(response.status_code, response.headers, await response.aread())
        if not may_pass(response.status_code):
            raise error
        await self._disconnect()
        self._lose(error, retry_after(response.headers))

    async def _receive(self) -> None:
        chunk = await anext(self._chunks, None)
        if chunk is not None:
            self._way.feed(chunk)
            return
        error = self._ended(cut=False)
        await self._disconnect()
        if error is None:
            self._failures = 0
        else:
            self._lose(error)

    def _ended(self, *, cut: bool) -> HeadwaterError | None:
        """What the way makes of the end of an answer, or of a request that got none."""
        now, since = self._retry.clock(), self._connected_at
        lived = 0.0 if since is None else now - since
        # Silence with heartbeats is a good connection too: its end is the first failure, not one more.
        if lived >= self._retry.longest:
            self._failures = 0
        return self._way.ended(now - self._asked_at, lived, cut=cut)

    def _lose(self, error: HeadwaterError, asked: float = 0.0) -> None:
        """Have the next step be a pause."""
        self._in_touch = False
        if self._service is not None:
            self._service.lost()
        self._pause = self._retry.pause(self._failures, max(asked, self._way.asked))
        self._failures += 1
        if self._on_lost is not None:
            self._on_lost(error, self._pause)

    async def _disconnect(self) -> None:
        response, self._response, self._connected_at = self._response, None, None
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


async def _nothing() -> AsyncIterator[bytes]:
    return
    yield
