"""uvicorn's HTTP/1.1 protocol, with the connection offered to the application, and a socket that notices dead peers.

Knows uvicorn and the extension that `headwater.delivery` looks for; nothing of streams.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from typing import Any, Final

from headwater.delivery import CONNECTION
from headwater.errors import HeadwaterError, MissingExtra

try:
    from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
except ImportError as error:
    raise MissingExtra("server", "uvicorn or httptools") from error

BACKLOG: Final = 2048
SEND_BUFFER_BYTES: Final = 128 * 1024
"""The kernel's, for one connection (it doubles the figure). Left alone it grows to megabytes for a reader that stalls,
all of it stale by the time it is read."""

USER_TIMEOUT_MS: Final = 12_000
"""Sent data that nobody acknowledges for so long: the peer is gone. With a heartbeat every 15 s that is found within
27 s; a phone in a tunnel for longer resumes. On Linux it also ends a reader that acknowledges but takes nothing for so
long, before delivery's own deadline does; that one resumes, too."""

KEEPALIVE_SECONDS: Final = 10
"""Of idleness before the kernel asks whether the peer is still there."""


class PortTaken(HeadwaterError):
    """The address cannot be listened on; the message says what to do."""

    code = "port_taken"


class Connection:
    """What an application may do to the connection of one response."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol
        self.cycle: RequestResponseCycle | None = None

    def cut(self, *, at_once: bool = False) -> None:
        """End the connection without the end of the body; what is buffered still goes out, unless `at_once`."""
        if self.cycle is not None:
            self.cycle.disconnected = True  # so that uvicorn takes the missing end for meant
        if at_once:
            self._protocol.transport.abort()
        else:
            self._protocol.transport.close()


class Protocol(HttpToolsProtocol):
    """Puts a Connection into the scope of every request, and has the kernel look after the peer.

    For your own uvicorn: `uvicorn main:app --http headwater.server:Protocol`.
    """

    _cycles: tuple[RequestResponseCycle, ...] = ()
    """Whose responses have not been completed: several where requests are pipelined."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        accepted = transport.get_extra_info("socket")
        if accepted is not None and accepted.family != socket.AF_UNIX:
            with socket.socket(fileno=os.dup(accepted.fileno())) as same:  # uvloop's own cannot be set
                notice_dead_peers(same)

    def on_headers_complete(self) -> None:
        connection = Connection(self)
        extensions: dict[str, Any] = {CONNECTION: connection}
        self.scope["extensions"] = extensions
        super().on_headers_complete()  # makes the cycle; the application itself runs later, in a task
        connection.cycle = self.cycle
        self._cycles = (*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle)

    def connection_lost(self, exc: Exception | None) -> None:
        for cycle in self._cycles:  # uvicorn tells the newest only, and the others would go on for ever
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket. Raises PortTaken, naming the way out."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(BACKLOG)
    except (OSError, OverflowError) as error:
        listening.close()
        raise PortTaken(_why(error, host, port)) from error
    listening.setblocking(False)
    return listening


def notice_dead_peers(connected: socket.socket) -> None:
    """Bound what the kernel buffers for a peer, and how long it waits for one that is gone."""
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connected.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
    if sys.platform == "linux":
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, USER_TIMEOUT_MS)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_SECONDS)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5)
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _why(error: OSError | OverflowError, host: str, port: int) -> str:
    code = getattr(error, "errno", None)
    if code == errno.EADDRINUSE:
        return f"port {port} is taken on {host}: another server runs there. Choose another with --port, or stop it"
    if code == errno.EACCES:
        return f"this user may not listen on port {port}; choose one above 1023 with --port"
    if code == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return f"{host} is no address of this machine; choose another with --host"
    return f"cannot listen on {host}:{port}; choose others with --host and --port"
