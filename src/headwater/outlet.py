"""Where the bytes of a response go: through ASGI's `send`, or straight to the connection.

The portable way works on every server. The direct one is what `headwater.server` offers in the scope, as a `Line`: the
body is written to the transport by whoever has it, without a task that waits for its turn. It is taken only where
nobody on the way minds the body: each `Part` of it that goes through `send` says whether the very same message has
arrived at the server, in the same task, and whether anybody has looked at more than its type. So a middleware that
compresses, counts, collects or waits for the end keeps all of it; one that looks at the head of a response only has
it, either way.

Knows ASGI; nothing of streams or formats.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any, Final, Protocol

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

CONNECTION: Final = "headwater.connection"
"""ASGI extension offered by `headwater.server`: an object whose `cut(at_once=...)` ends the connection as it stands."""

PIECE_BYTES: Final = 16 * 1024

LINE: Final = "headwater.line"
"""ASGI extension offered by `headwater.server` for a request over HTTP: a `Line`."""


class Part(dict[str, Any]):
    """A part of a body, as a message of ASGI, that notes whether anybody on its way to the server minds what it is."""

    __slots__ = ("seen", "task")

    def __init__(self, body: bytes) -> None:
        super().__init__(type="http.response.body", body=body, more_body=True)
        self.seen = False
        self.task: asyncio.Task[Any] | None = None

    def arrived(self) -> Any:
        """What the server sends for it, which it must not look at itself."""
        self.task = asyncio.current_task()
        return self.copy()

    def was_minded(self) -> bool:
        """Once it was sent by this task: whether anything but this task and the server had to do with it."""
        return self.seen or self.task is not asyncio.current_task()

    def __getitem__(self, key: str) -> Any:
        self.seen = self.seen or key != "type"
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen = self.seen or key != "type"
        return super().get(key, default)

    def __setitem__(self, key: str, value: Any) -> None:
        self.seen = True
        super().__setitem__(key, value)

    def values(self) -> Any:
        self.seen = True
        return super().values()

    def items(self) -> Any:
        self.seen = True
        return super().items()


class Cut(Exception):
    """Leaves the application so that the server closes the connection without the end of the body."""


class Follower(Protocol):
    """Who writes to a line that was taken."""

    def resume(self) -> None:
        """What was written has gone out far enough for more."""

    def lost(self) -> None:
        """The connection is gone. Called once, and nothing after it."""


class Line(Protocol):
    """The connection of one response."""

    is_full: bool
    """So much is kept that nothing should be added until `Follower.resume`."""
    alone: bool
    """Nothing stands between the application and the server, which minds no end of the task before the response's."""

    def is_reached_by(self, send: Send) -> bool:
        """Whether `send` is the server's own, with nothing around it."""

    def take(self, follower: Follower) -> bool:
        """Have the rest of the body written by `follower`. False: it has to go through `send`."""

    def write(self, data: bytes) -> None:
        """Send these bytes as they stand (see `framed`), or keep them until there is room."""

    async def drained(self) -> None:
        """Until it is no longer full, or the connection is gone."""

    def finish(self) -> None:
        """The end of the body: what comes next on this connection is another response."""

    def on_over(self, call: Callable[[], None]) -> None:
        """Have this called when its follower is done, whichever way; at once, if it never had one."""

    def over(self) -> None:
        """The follower is done."""


def framed(data: bytes) -> bytes:
    """`data` as a chunk of a body (RFC 9112, 7.1)."""
    return b"%x\r\n%b\r\n" % (len(data), data) if data else b""


def pieces(data: bytes) -> Iterable[bytes]:
    """`data`, so that what has gone out of it need not be kept until all has: for who may stop reading at any byte."""
    if len(data) <= PIECE_BYTES:
        return (data,)
    return [data[at : at + PIECE_BYTES] for at in range(0, len(data), PIECE_BYTES)]


def line_of(scope: Scope) -> Line | None:
    """That of a request, where its server offers one."""
    line: Line | None = (scope.get("extensions") or {}).get(LINE)
    return line


class Outlet:
    """The body of one response. `write` and `finish` return when the bytes were taken."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send = send
        self._connection = (scope.get("extensions") or {}).get(CONNECTION)
        self.line = line_of(scope)
        self._bare = False  # a part has passed that nobody minded
        self.direct = False
        """The line was taken."""

    async def start(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, data: bytes) -> None:
        if self.direct:
            assert self.line is not None
            self.line.write(framed(data))
            if self.line.is_full:
                await self.line.drained()
            return
        if self.line is None:
            await self._send({"type": "http.response.body", "body": data, "more_body": True})
            return
        part = Part(data)
        await self._send(part)
        self._bare = not part.was_minded()
        if not self._bare:
            self.line = None  # nor will it be

    async def finish(self, data: bytes) -> None:
        if not self.direct:
            await self._send({"type": "http.response.body", "body": data, "more_body": False})
            return
        assert self.line is not None
        if data:
            await self.write(data)
        self.line.finish()

    def take(self, follower: Follower) -> Line | None:
        """The line, if there is one and it can be had."""
        if not self.direct:
            self.direct = self.line is not None and self._bare and self.line.take(follower)
            if self.direct:
                self._send = _taken  # the server's own would keep the whole request
        return self.line if self.direct else None

    def cut(self, *, at_once: bool = False) -> None:
        """End the connection without the end of the body. Raises Cut where the server has to do that."""
        if self._connection is None:
            raise Cut
        self._connection.cut(at_once=at_once)


async def _taken(event: MutableMapping[str, Any]) -> None:
    raise AssertionError("the line was taken: what is sent goes there")


async def listen(receive: Receive, lost: Callable[[], None]) -> None:
    """ASGI tells of a client that left only to those who ask."""
    while (await receive())["type"] != "http.disconnect":
        pass
    lost()
