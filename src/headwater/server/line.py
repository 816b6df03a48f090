"""The connection of one response, for who writes its body without a task: `headwater.outlet.Line` on uvicorn.

Knows uvicorn's request and response, whose state it leaves as if all had come through `send`. Invariant: bytes are
written between the head and the end of one response, and only while the connection is whole.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final, Protocol

from headwater.errors import MissingExtra
from headwater.outlet import Follower, Part, Send

try:
    from uvicorn.protocols.http.flow_control import FlowControl
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
except ImportError as error:
    raise MissingExtra("server", "uvicorn or httptools") from error

LAST_CHUNK = b"0\r\n\r\n"


class Connected(Protocol):
    """uvicorn's protocol, as far as a line has to do with it."""

    transport: asyncio.Transport
    flow: FlowControl
    follower: Follower | None
    line: OpenLine | None

    def on_response_complete(self) -> None:
        """The next request may come, or be answered."""

    def rest(self, cycle: RequestResponseCycle, remainder: Remainder) -> None:
        """Keep no more of a request than its remainder."""


class Flow(FlowControl):
    """uvicorn's, with an event only while somebody may wait for it: 0.8 KB less for each connection."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.read_paused = self.write_paused = False
        self._writable: asyncio.Event | None = None

    async def drain(self) -> None:
        if self.write_paused:
            if self._writable is None:
                self._writable = asyncio.Event()
            await self._writable.wait()

    def pause_writing(self) -> None:
        self.write_paused = True

    def resume_writing(self) -> None:
        self.write_paused = False
        if self._writable is not None:
            self._writable.set()
            self._writable = None


class Pipeline(list[Any]):
    """For uvicorn's deque, which takes 0.7 KB even when it is empty, as it nearly always is."""

    def appendleft(self, one: Any) -> None:
        self.insert(0, one)


class _Unheard:
    """For the event of a request that nobody waits for any more."""

    def set(self) -> None:
        pass


class Remainder:
    """What is left of a request and response whose application has returned, as far as uvicorn looks at it."""

    __slots__ = ("disconnected", "keep_alive", "response_complete")

    message_event: Final = _Unheard()

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self.keep_alive = cycle.keep_alive
        self.disconnected, self.response_complete = cycle.disconnected, False


class Cycle(RequestResponseCycle):
    """uvicorn's request and response, which tells a part of a body that it has come through all that wraps `send`."""

    async def send(self, message: Any) -> None:
        await super().send(message.arrived() if isinstance(message, Part) else message)


class OpenLine:
    """Of one response."""

    __slots__ = ("_cycle", "_follower", "_on_over", "_protocol", "alone", "is_full", "write")

    def __init__(self, protocol: Connected, cycle: RequestResponseCycle) -> None:
        cycle.__class__ = Cycle  # uvicorn has no seam for a class of one's own
        self._protocol = protocol
        self._cycle: RequestResponseCycle | Remainder = cycle
        self._follower: Follower | None = None
        self._on_over: list[Callable[[], None]] = []
        self.alone = False
        self.is_full = protocol.flow.write_paused
        self.write: Callable[[bytes], None] = protocol.transport.write

    def __repr__(self) -> str:
        return f"<OpenLine [{'taken' if self._follower is not None else 'free'}]>"

    def cut(self, *, at_once: bool = False) -> None:
        """End the connection without the end of the body; what is buffered still goes out, unless `at_once`."""
        self._cycle.disconnected = True  # so that uvicorn takes the missing end for meant
        if at_once:
            self._protocol.transport.abort()
        else:
            self._protocol.transport.close()

    def is_reached_by(self, send: Send) -> bool:
        """Whether `send` is the server's own, with nothing around it."""
        return getattr(send, "__self__", None) is self._cycle

    def take(self, follower: Follower) -> bool:
        cycle = self._cycle
        assert not isinstance(cycle, Remainder), "taken once"
        if not cycle.chunked_encoding or cycle.disconnected or self._protocol.transport.is_closing():
            return False
        cycle.disconnected = self.alone  # so that uvicorn takes it for meant when the application returns
        self.is_full = self._protocol.flow.write_paused
        self._protocol.line = self
        self._follower = self._protocol.follower = follower
        if self.alone:
            self._cycle = Remainder(cycle)
            self._protocol.rest(cycle, self._cycle)
        return True

    async def drained(self) -> None:
        await self._protocol.flow.drain()

    def finish(self) -> None:
        cycle, protocol = self._cycle, self._protocol
        if protocol.transport.is_closing():
            return
        protocol.follower = None
        protocol.transport.write(LAST_CHUNK)
        cycle.disconnected, cycle.response_complete = False, True
        cycle.message_event.set()
        if not cycle.keep_alive:
            protocol.transport.close()
        protocol.on_response_complete()

    def on_over(self, call: Callable[[], None]) -> None:
        if self._follower is None:
            call()
        else:
            self._on_over.append(call)

    def over(self) -> None:
        if self._protocol.follower is self._follower:
            self._protocol.follower = None
        self._follower = None
        if not self._cycle.response_complete:  # nor will it be: a client that left is told of before it is lost
            self._cycle.disconnected = True
        for call in self._on_over:
            call()
        self._on_over.clear()
