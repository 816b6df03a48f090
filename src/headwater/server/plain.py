"""Appends that are answered without an ASGI request: what `headwater.http.plain` is asked, for one connection.

Knows uvicorn's protocol, to which an append on its way looks like any other request. Invariants: answers keep the order
of their requests; what was submitted is answered, or its client has gone, and is never done again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final, Protocol

from headwater.decide import Append, Decision
from headwater.errors import MissingExtra
from headwater.http.app import App
from headwater.http.plain import PlainAppends
from headwater.server.line import Remainder

try:
    from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
    from uvicorn.protocols.http.httptools_impl import STATUS_LINE
    from uvicorn.server import ServerState
except ImportError as error:
    raise MissingExtra("server", "uvicorn or httptools") from error

_CLOSE: Final = "connection: close\r\n"


def plain_appends(app: object) -> PlainAppends | None:
    """Those of our application, if nothing stands before it but uvicorn's reader of proxies' headers."""
    if isinstance(app, ProxyHeadersMiddleware):
        app = app.app
    return app.plain if isinstance(app, App) else None


class Connected(Protocol):
    """uvicorn's protocol, as far as an append has to do with it."""

    transport: asyncio.Transport
    server_state: ServerState
    tasks: set[asyncio.Task[None]]
    """Waited for when the server ends."""

    def on_response_complete(self) -> None:
        """The next request may come, or be answered."""


class PlainCycle:
    """One append from its submission to its answer, in the place of uvicorn's request and response."""

    __slots__ = (
        "_began", "_name", "_plain", "_protocol", "_request", "disconnected", "keep_alive", "response_complete",
    )  # fmt: skip

    message_event: Final = Remainder.message_event

    def __init__(self, protocol: Connected, plain: PlainAppends, name: str, request: Append) -> None:
        self._protocol, self._plain, self._name, self._request = protocol, plain, name, request
        self._began = time.perf_counter()
        self.disconnected = self.response_complete = False
        self.keep_alive = True

    def submit(self) -> bool:
        """False: nothing has happened."""
        try:
            come = self._plain.carry_out(self._name, self._request)
        except Exception as error:  # noqa: BLE001 -- what has happened is not known, so it must not be tried again
            self._refuse(error)
            return True
        if come is None:
            return False
        if isinstance(come, Decision):
            self._answer(come)
        else:
            come.add_done_callback(self._done)
        return True

    def _done(self, future: asyncio.Future[Decision]) -> None:
        error = future.exception()
        if error is None:
            self._answer(future.result())
        elif isinstance(error, Exception):
            self._refuse(error)

    def _answer(self, decision: Decision) -> None:
        self._write(*self._plain.answer(self._request, decision, time.perf_counter() - self._began))

    def _refuse(self, error: Exception) -> None:
        refusing = asyncio.get_running_loop().create_task(self._refused(error), name="headwater-append-refused")
        self._protocol.tasks.add(refusing)
        refusing.add_done_callback(self._protocol.tasks.discard)

    async def _refused(self, error: Exception) -> None:
        self._write(*await self._plain.refusal(self._name, error, time.perf_counter() - self._began))

    def _write(self, status: int, lines: str, body: bytes = b"") -> None:
        protocol, transport = self._protocol, self._protocol.transport
        if self.disconnected or transport.is_closing():
            return
        if not self.keep_alive:
            lines += _CLOSE
        given = _lines(protocol.server_state.default_headers)
        transport.write(b"".join((STATUS_LINE[status], given, lines.encode("latin-1"), b"\r\n", body)))
        self.response_complete = True
        if not self.keep_alive:
            transport.close()
        protocol.on_response_complete()


_last: tuple[Sequence[tuple[bytes, bytes]], bytes] = ((), b"")


def _lines(fields: Sequence[tuple[bytes, bytes]]) -> bytes:
    """The fields that uvicorn adds to every answer, which change once a second."""
    global _last
    if _last[0] is not fields:
        _last = fields, b"".join([b"%b: %b\r\n" % field for field in fields])
    return _last[1]
