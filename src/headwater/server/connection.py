"""uvicorn's HTTP/1.1 protocol, with the connection offered to the application, bounds on what a request may be, and a
socket that notices dead peers.

Knows uvicorn and the extensions that `headwater.outlet` looks for; nothing of streams.
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, cast

from headwater.errors import BadRequest, HeadersTooLarge, HeadwaterError, MissingExtra
from headwater.http.plain import Head, PlainAppends
from headwater.outlet import CONNECTION, LINE, Follower, Receive, Scope, Send
from headwater.problems import SAFETY_HEADERS, answer
from headwater.server.arrival import MOST_HEAD_BYTES, Arrival
from headwater.server.line import Flow, OpenLine, Pipeline, Remainder
from headwater.server.plain import PlainCycle, plain_appends

try:
    import httptools
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
except ImportError as error:
    raise MissingExtra("server", "uvicorn or httptools") from error

if TYPE_CHECKING:
    from uvicorn.config import Config
    from uvicorn.server import ServerState

BACKLOG: Final = 2048
SEND_BUFFER_BYTES: Final = 128 * 1024
"""The kernel's, for one connection (it doubles the figure). Left alone it grows to megabytes for a reader that stalls,
all of it stale by the time it is read."""

USER_TIMEOUT_MS: Final = 12_000
"""Sent data that nobody acknowledges for so long: the peer is gone. With a heartbeat every 15 s that is found within
27 s; a phone in a tunnel for longer resumes. On Linux it also ends a reader that acknowledges but takes nothing for so
long, before delivery's own deadline does; that one resumes, too."""

UNSENT_BYTES: Final = 96 * 1024
"""Of the kernel's buffer, what may wait for a turn on the wire. What was sent and waits for its acknowledgement does
not count: a long, fat way is still filled. It is a chunk of delivery's and half of the next, so that of a reader that
stalls less than one waits in this process."""

WRITE_BUFFER_BYTES: Final = 1
"""Kept in this process for one connection before its reader is told to wait, beside what is left of the write that went
over it: who does not read costs no more than that. The kernel keeps enough to go on with. (With 0, TLS would wait for
ever.)"""

KEEPALIVE_SECONDS: Final = 10
"""Of idleness before the kernel asks whether the peer is still there."""


LINGER_SECONDS: Final = 2.0
"""How long what a refused client still sends is read and thrown away. Closed at once, the connection would be reset,
and the refusal lost with it."""

TOO_LARGE: Final = HeadersTooLarge(f"request line and headers may have {MOST_HEAD_BYTES:,} bytes together")


NO_OPENING: Final = BadRequest("a WebSocket is opened by GET, without a body, with at most 128 fields of 8 KB each")


_NONE: Final[list[bytes]] = []
"""Of a body, where none is held."""


class RequestTimedOut(HeadwaterError):
    """The head of a request did not come in time."""

    status, code, retry = 408, "request_timed_out", True


class PortTaken(HeadwaterError):
    """The address cannot be listened on; the message says what to do."""

    code = "port_taken"


class Protocol(HttpToolsProtocol):
    """Offers the connection to the application of every request, refuses heads that are too large (431) or too slow
    (408), and has the kernel look after the peer.

    For your own uvicorn: `uvicorn main:app --http headwater.server:Protocol`.
    """

    # uvicorn's own attributes, too: kept in a dict they would take 1.5 KB for each connection.
    __slots__ = (
        "_arrival", "_cycles", "_head", "_held", "_known_head", "_over", "_plain", "_too_large", "access_log",
        "access_logger", "app", "app_state", "asgi_version", "client", "config", "connections", "cycle",
        "expect_100_continue", "flow", "follower", "headers", "limit_concurrency", "line", "logger", "loop", "parser",
        "pipeline", "root_path", "scheme", "scope", "server", "server_state", "tasks", "timeout_keep_alive",
        "timeout_keep_alive_task", "transport", "url", "ws_protocol_class",
    )  # fmt: skip

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self.pipeline = Pipeline()  # type: ignore[assignment]
        self._cycles: tuple[RequestResponseCycle | Remainder, ...] = ()
        """Whose responses have not been completed: several where requests are pipelined."""
        self._over = False
        """No request is taken here any more."""
        self._too_large = False
        plain = not self.access_log and not self.root_path and self.limit_concurrency is None
        self._plain = plain_appends(self.app) if plain else None
        """Who may answer an append without the application."""
        self._known_head: Head | None = None
        """That of the last append."""
        self._head: Head | None = None
        """Of a request that may be a plain append …"""
        self._held: list[bytes] = _NONE
        """… and what has come of its body."""
        self.line: OpenLine | None = None
        self.follower: Follower | None = None
        """Who writes the body of the response without the application."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES, low=0)
        self.flow = Flow(transport)
        self._arrival = Arrival(self._late, self._is_waiting)
        self._arrival.expect_head()
        accepted = transport.get_extra_info("socket")
        if accepted is not None and accepted.family != socket.AF_UNIX:
            with socket.socket(fileno=os.dup(accepted.fileno())) as same:  # uvloop's own cannot be set
                notice_dead_peers(same)

    def data_received(self, data: bytes) -> None:
        if not self._over:
            if not self.parser:  # since `rest`
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)  # as uvicorn's own
            super().data_received(data)
            self._took(len(data))

    def _took(self, size: int) -> None:
        if self._over:  # by what has come
            return
        arrival = self._arrival
        if arrival.expected is None and self._is_idle and not self.timeout_keep_alive_task:
            arrival.expect_head()  # line ends between requests, which uvicorn takes for the sign of one
        if arrival.went_on(size):
            return
        if arrival.expected == "head":
            self._refuse(TOO_LARGE)
        else:  # its answer may be on its way, or have been given
            self._over = True
            self.transport.close()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._unset_keepalive_if_required()  # a plain append in the same chunk has been answered by now
        self._arrival.expect_head(begun=True)

    def on_header(self, name: bytes, value: bytes) -> None:
        # Fields behind a body (RFC 9110, 6.5) are left out: uvicorn would add them to the headers, past whoever looked
        # at those on the way here, and without an end.
        if self._arrival.expected == "head":
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._arrival.head_came()
        self._head = self._plain_head()
        if self._head is None:
            self._make_request()
        else:
            self._held = []

    def _plain_head(self) -> Head | None:
        """Of a request that may be a plain append."""
        plain, parser = self._plain, self.parser
        if plain is None or parser.get_method() != b"POST" or not self._is_idle:
            return None
        if parser.get_http_version() != "1.1" or parser.should_upgrade() or not parser.should_keep_alive():
            return None
        if self.expect_100_continue or self.flow.write_paused:
            return None
        if self._known_head is None or not self._known_head.fits(self.url, self.headers):
            self._known_head = None
            with suppress(HeadwaterError, UnicodeDecodeError):  # the application finds the same, and answers it
                if self._head_bytes <= MOST_HEAD_BYTES:
                    self._known_head = plain.head(self.url, self.headers)
        return self._known_head

    @property
    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)

    def _is_answered(self, plain: PlainAppends, head: Head) -> bool:
        """Whether the request that has come was a plain append, and is seen to. If not, nothing has happened."""
        try:
            request = plain.request(head, b"".join(self._held))
        except Exception:  # noqa: BLE001 -- the application finds the same, and answers it
            return False
        if request is None:
            return False
        before, cycle = self.cycle, PlainCycle(self, plain, head.name, request)
        self.cycle = cast("RequestResponseCycle", cycle)  # as far as the class above goes
        if cycle.submit():
            return True
        self.cycle = before
        return False

    def _make_request(self) -> None:
        """Have the application answer."""
        self._too_large = self._head_bytes > MOST_HEAD_BYTES
        before, app = self.cycle, self.app
        if self._too_large:
            self.app, self.url = _refuse_head, b"/"  # httptools takes no URL of that size apart
        super().on_headers_complete()  # makes the cycle; the application itself runs later, in a task
        self.app = app
        if self.cycle is not before:  # else it becomes a WebSocket
            line = OpenLine(self, self.cycle)
            extensions: dict[str, Any] = {CONNECTION: line, LINE: line}
            self.scope["extensions"] = extensions
            self._cycles = (*(cycle for cycle in self._cycles if not cycle.response_complete), self.cycle)

    def on_body(self, body: bytes) -> None:
        self._arrival.data_came()
        if self._head is not None:
            self._held.append(body)
        elif not self._rests:
            super().on_body(body)

    def on_message_complete(self) -> None:
        head, plain = self._head, self._plain
        if head is None or plain is None or not self._is_answered(plain, head):
            self._make_request_of_held()
            if not self._rests:
                super().on_message_complete()
        self._head, self._held = None, _NONE
        self._arrival.body_came()

    def _make_request_of_held(self) -> None:
        if self._head is not None:
            self._head, held = None, self._held
            self._make_request()
            for part in held:
                super().on_body(part)

    def shutdown(self) -> None:
        self._make_request_of_held()  # the rest of it is still to come
        super().shutdown()

    def handle_websocket_upgrade(self) -> None:
        self._arrival.forget()
        if self._too_large or not self._is_idle:  # pipelined: its 101 would overtake the answers before it
            self._refuse(TOO_LARGE)
            return
        self._over = True
        super().handle_websocket_upgrade()
        # What websockets takes for no opening (a POST, a line of over 8 KB) it leaves unanswered, and open.
        if not getattr(self.transport.get_protocol(), "handshake_initiated", True):
            self._refuse(NO_OPENING)

    @property
    def _rests(self) -> bool:
        """The application of the newest request has returned: nobody wants its body any more."""
        cycle: object = self.cycle
        return isinstance(cycle, Remainder)

    @property
    def _is_idle(self) -> bool:
        return self.cycle is None or self.cycle.response_complete

    def _is_waiting(self) -> bool:
        """Whether it is the client whose turn it is."""
        return self._is_idle if self._arrival.expected == "head" else not self.flow.read_paused

    def _late(self) -> None:
        if self._arrival.expected == "head" and self._arrival.begun:
            self._refuse(RequestTimedOut("the head of the request did not come in time"))
        else:  # nothing of a request, or half of a body: there is nobody to talk to
            self.transport.close()

    def _refuse(self, error: HeadwaterError) -> None:
        """Answer what is no request yet, and be done with the connection."""
        self._over = True
        self._arrival.forget()
        if not self._is_idle:  # another answer is on its way: this one would end up within it
            self.transport.close()
            return
        response = answer(error)
        head = [*response.raw_headers, *((name.encode(), value.encode()) for name, value in SAFETY_HEADERS)]
        lines = [b"%s: %s\r\n" % field for field in [*head, (b"connection", b"close")]]
        self.transport.write(b"".join([STATUS_LINE[response.status_code], *lines, b"\r\n", bytes(response.body)]))
        if self.transport.can_write_eof():
            self.transport.write_eof()
            self.loop.call_later(LINGER_SECONDS, self.transport.close)
        else:
            self.transport.close()

    def rest(self, cycle: RequestResponseCycle, remainder: Remainder) -> None:
        """The response goes on without its application, for hours perhaps: keep what its end needs, and no more."""
        self._cycles = tuple(remainder if one is cycle else one for one in self._cycles)
        self._known_head = None
        if self.cycle is cycle:
            self.cycle = remainder  # type: ignore[assignment]
            self.scope = self.headers = None  # type: ignore[assignment]
        if self._arrival.expected is None:  # nothing of a next request has come
            self._arrival.forget()
            self.parser = None  # type: ignore[assignment]

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.line is not None:
            self.line.is_full = True

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.line is not None:
            self.line.is_full = False
        if self.follower is not None:
            self.follower.resume()

    def eof_received(self) -> None:
        # The transport closes behind this and takes nothing any more, but is lost only when its buffer has gone out.
        self._lose_follower()

    def connection_lost(self, exc: Exception | None) -> None:
        self._arrival.forget()
        for cycle in self._cycles:  # uvicorn tells the newest only, and the others would go on for ever
            cycle.disconnected = not cycle.response_complete
            cycle.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)
        self._lose_follower()

    def _lose_follower(self) -> None:
        follower, self.follower = self.follower, None
        if follower is not None:
            follower.lost()


async def _refuse_head(scope: Scope, receive: Receive, send: Send) -> None:
    """The application of a request whose head came at once, but is too large."""
    response = answer(TOO_LARGE)
    for name, value in (*SAFETY_HEADERS, ("connection", "close")):
        response.headers[name] = value
    await response(scope, receive, send)


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
        connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
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
