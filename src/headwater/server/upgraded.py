"""uvicorn's WebSocket protocol, with the connection offered to the application, an end that the application tells, and
bounds on what a client can have it keep.

Knows uvicorn and the extension that `headwater.delivery` looks for; nothing of streams.
"""

from __future__ import annotations

import logging
from typing import Any, Final

from headwater.delivery import CONNECTION
from headwater.errors import MissingExtra

try:
    from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
except ImportError as error:
    raise MissingExtra("server", "uvicorn or websockets") from error

_log = logging.getLogger("headwater.server.upgraded")
_log.setLevel(logging.WARNING)  # below that uvicorn tells of every connection, with its query and what is in it

CLOSE_SECONDS: Final = 2.0
"""For the client to answer a close frame; one that does not must not hold up the end of the server."""


MOST_FRAGMENTS: Final = 1024
"""Of a message, kept apart: joined beyond that, since many small or empty ones take more memory than their bytes."""


class UpgradedConnection:
    """What an application may do to the connection of a WebSocket, as to that of a response."""

    def __init__(self, protocol: SocketProtocol) -> None:
        self._protocol = protocol

    def cut(self, *, at_once: bool = False) -> None:
        """End it without a close frame; what is buffered still goes out, unless `at_once`."""
        if at_once:
            self._protocol.transport.abort()
        else:
            self._protocol.transport.close()


class SocketProtocol(WebSocketsSansIOProtocol):
    """Of one connection, once `headwater.server.Protocol` has handed it on."""

    _pong = b""
    """What a client is owed that takes nothing: the newest only (RFC 6455, 5.5.3), however often it pings."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.logger = self.conn.logger = _log
        self.close_timeout = CLOSE_SECONDS

    def handle_connect(self, event: Any) -> None:
        super().handle_connect(event)  # makes the scope; the application itself runs later, in a task
        if self.response.status_code == 101:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions[CONNECTION] = UpgradedConnection(self)

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "websocket.http.response.body" and self.close_sent:
            self.handshake_complete = True  # refused, and told so: else uvicorn logs an error for each

    def handle_ping(self) -> None:
        pong = b"".join(self.conn.data_to_send())
        if self.writable.is_set():
            self.transport.write(pong)
        else:
            self._pong = pong or self._pong

    def resume_writing(self) -> None:
        super().resume_writing()
        pong, self._pong = self._pong, b""
        if pong:
            self.transport.write(pong)  # which may pause it again

    def handle_cont(self, event: Any) -> None:
        if len(self.frames) >= MOST_FRAGMENTS:
            self.frames = [b"".join(self.frames)]
        super().handle_cont(event)

    def shutdown(self) -> None:
        """The server stops. The application, which drains, says more than a close code, and closes by itself."""
        if not self.handshake_complete or self.close_sent:
            super().shutdown()
