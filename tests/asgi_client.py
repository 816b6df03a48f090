"""An ASGI server and its client in one process, for responses without an end: read a little, stall, leave, look again.

`Client(app)` makes requests; a `Call` is one of them, running as a task of its own. A client that has stalled takes
nothing more: the application's next `send` waits, as on a connection whose buffers are full.

With the fixture `both_ways`, calls also offer their connection, as headwater.server does: what the rest of a body is
written to without the application. With `every_way`, something that wraps the application waits for its end, too.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote

import pytest

from headwater.outlet import CONNECTION, LINE, Cut, Follower, Part

Event = MutableMapping[str, Any]
App = Callable[..., Coroutine[Any, Any, None]]

PATIENCE_SECONDS = 5.0

way = "direct"
"""direct, the usual one: calls offer their connection; parked: they do, but something that wraps the application waits
for its end; portable: they do not."""


@pytest.fixture(autouse=True, params=["portable", "direct"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Imported by a test module, it has all tests there go both ways to the client."""
    monkeypatch.setattr("asgi_client.way", request.param)


@pytest.fixture(autouse=True, params=["portable", "direct", "parked"])
def every_way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same, and parked."""
    monkeypatch.setattr("asgi_client.way", request.param)


class CallLine:
    """The connection of a call, as `headwater.outlet.Line`; and what may cut it."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._kept: list[bytes] = []
        self._come = b""  # of a chunk
        self._on_over: list[Callable[[], None]] = []
        self.follower: Follower | None = None
        self.is_full = False
        self.alone = way == "direct"
        self.was_cut = False
        self.done = asyncio.Event()

    def is_reached_by(self, send: object) -> bool:
        return way == "direct" and send == self._call._send

    def take(self, follower: Follower) -> bool:
        if self._call._gone.is_set():
            return False
        self.follower = follower
        return True

    def write(self, data: bytes) -> None:
        self._come += data
        size, _, rest = self._come.partition(b"\r\n")
        if len(rest) < int(size, 16) + 2:
            return  # there is more of this chunk to come
        assert rest[int(size, 16) :] == b"\r\n", "not one chunk"
        self._come = b""
        if self._call._taking.is_set():
            self._call._took(rest[:-2])
        else:
            self._kept.append(rest[:-2])
            self.is_full = True

    def room(self) -> None:
        """The client takes again."""
        kept, self._kept, self.is_full = self._kept, [], False
        for data in kept:
            self._call._took(data)
        if self.follower is not None:
            self.follower.resume()

    async def drained(self) -> None:
        await self._call._taking.wait()

    def finish(self) -> None:
        self._call.ended = True

    def on_over(self, call: Callable[[], None]) -> None:
        if self.follower is None:
            call()
        else:
            self._on_over.append(call)

    def over(self) -> None:
        self.follower = None
        self.done.set()
        for call in self._on_over:
            call()
        self._call._changed.set()

    def cut(self, *, at_once: bool = False) -> None:
        self.was_cut = True
        self.lost()

    def lost(self) -> None:
        if self.follower is not None:
            self.follower.lost()


class Call:
    """One request and what has come back so far."""

    def __init__(self, app: App, scope: dict[str, Any], body: bytes) -> None:
        self.status: int | None = None
        self.raw_headers: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.ended = False
        """The body has ended as a body ends; a response that was cut has not."""
        self._seen = 0
        self._changed = asyncio.Event()
        self._taking = asyncio.Event()
        self._taking.set()
        self._gone = asyncio.Event()
        self._asked = False
        self._body = body
        self.line = CallLine(self) if way != "portable" else None
        if self.line is not None:
            scope["extensions"] = {CONNECTION: self.line, LINE: self.line, **(scope.get("extensions") or {})}
        self.task = asyncio.create_task(app(scope, self._receive, self._send), name=f"call {scope['path']}")
        self.task.add_done_callback(lambda _: self._changed.set())

    # -- the server's side ----------------------------------------------------------------------------------------

    async def _receive(self) -> Event:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, event: Event) -> None:
        await self._taking.wait()
        if self._gone.is_set():
            raise OSError("the client has left")  # ASGI 2.4
        if isinstance(event, Part):
            event = event.arrived()
        if event["type"] == "http.response.start":
            assert self.status is None, "the response started twice"
            self.status, self.raw_headers = event["status"], list(event["headers"])
        else:
            assert self.status is not None, "a body before its head"
            assert not self.ended, "a body after its end"
            self.chunks.append(event.get("body", b""))
            self.ended = not event.get("more_body", False)
        self._changed.set()

    def _took(self, data: bytes) -> None:
        assert not self.ended, "a body after its end"
        self.chunks.append(data)
        self._changed.set()

    # -- the client's side ----------------------------------------------------------------------------------------

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode("latin-1"): value.decode("latin-1") for name, value in self.raw_headers}

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)

    @property
    def text(self) -> str:
        return self.body.decode()

    def json(self) -> Any:
        return json.loads(self.body)

    async def started(self) -> Call:
        """Once the status and headers are there, and what was sent together with them."""
        await self._until(lambda: self.status is not None)
        return self

    async def until(self, wanted: bytes) -> bytes:
        """What comes next, up to and with `wanted`."""
        await self._until(lambda: wanted in self.body[self._seen :])
        end = self.body.index(wanted, self._seen) + len(wanted)
        begin, self._seen = self._seen, end
        return self.body[begin:end]

    def skip(self) -> None:
        """Count all that is there as read."""
        self._seen = len(self.body)

    def forget(self) -> None:
        """Hold nothing of what has come."""
        self._seen = 0
        self.chunks.clear()

    def unread(self) -> bytes:
        """What is there beyond the last `until`."""
        return self.body[self._seen :]

    async def done(self) -> Call:
        """Once the application has returned. Raises what it raised."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            await asyncio.shield(self.task)
            if self._goes_on:
                assert self.line is not None
                await self.line.done.wait()
        if self.line is not None and self.line.was_cut:
            raise Cut
        return self

    async def over(self) -> None:
        """Once there is nothing left of it on the server's side, however it ended."""
        await asyncio.wait([self.task])
        if self._goes_on:
            assert self.line is not None
            await self.line.done.wait()

    @property
    def is_over(self) -> bool:
        return self.task.done() and not self._goes_on

    @property
    def _goes_on(self) -> bool:
        """Though the application has returned."""
        return self.line is not None and self.line.follower is not None

    async def more(self) -> bytes:
        """The next chunk that comes, whenever it does."""
        known = len(self.chunks)
        await self._until(lambda: len(self.chunks) > known, 3600)
        return self.chunks[known]

    def stall(self) -> None:
        """Take nothing from now on."""
        self._taking.clear()

    def take(self) -> None:
        """Take again."""
        self._taking.set()
        if self.line is not None:
            self.line.room()

    async def leave(self) -> Call:
        """Close the connection, and wait until the application is done with it."""
        self._gone.set()
        self._taking.set()
        if self.line is not None:
            self.line.lost()
        return await self.done()

    async def _until(self, said: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> None:
        async with asyncio.timeout(seconds):
            while not said():
                if self.task.done() and not self._goes_on:
                    self.task.result()
                    raise AssertionError(f"the application is done; it sent {self.status} {self.body!r}")
                self._changed.clear()
                await self._changed.wait()


class Client:
    """Requests to one application."""

    def __init__(self, app: App, *, headers: Mapping[str, str] | None = None, extensions: Any = None) -> None:
        self._app, self._headers, self._extensions = app, {"host": "testserver", **(headers or {})}, extensions
        self.state: dict[str, Any] = {}

    def call(self, method: str, url: str, body: bytes | str = b"", **headers: str) -> Call:
        """Start a request. `stream_ttl="1"` is the header `stream-ttl: 1`."""
        target, _, query = url.partition("?")
        given = self._headers | {name.replace("_", "-"): value for name, value in headers.items()}
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": unquote(target),
            "raw_path": target.encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode("latin-1"), value.encode("latin-1")) for name, value in given.items()],
            "client": ("127.0.0.1", 50000),
            "server": ("127.0.0.1", 4437),
            "state": self.state,
        }
        if self._extensions is not None:
            scope["extensions"] = self._extensions
        return Call(self._app, scope, body.encode() if isinstance(body, str) else body)

    async def ask(self, method: str, url: str, body: bytes | str = b"", **headers: str) -> Call:
        """A request whose response has an end."""
        call = await self.call(method, url, body, **headers).done()
        assert call.ended, "the response was not ended"
        return call
