"""`/v1/ws`, subprotocol `headwater.v1`: many streams on one WebSocket, each with credit. PROTOCOL.md, section 7.

A socket is two tasks. One reads, and takes in no more while too much is unanswered. The other writes, alone: answers
first, then a page for each channel in turn. Neither has a queue that grows (G9): a client that is slow, or gives no
credit, is simply behind.

Knows ASGI and delivery's policy. A socket that ends leaves nothing behind; what was asked before the client left is
carried out, and what was on its way when the server itself is stopped is wholly in or out (G6).
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, MutableMapping
from contextlib import suppress
from typing import Any, Final

from starlette.datastructures import Headers
from starlette.responses import Response

from headwater.delivery import CONNECTION, LAST_WRITE_SECONDS, Cut, Delivery, Receive, Scope, Send
from headwater.errors import BadRequest, Draining, HeadwaterError, Unauthorized
from headwater.http.admission import Admission, place
from headwater.http.asked import Asked, Door, Goodbye, SocketLimits
from headwater.http.auth import Auth, Principal
from headwater.http.channels import Channel
from headwater.http.facts import add_facts
from headwater.http.origins import Origins
from headwater.http.outages import Outages
from headwater.journal import note
from headwater.problems import answer, told
from headwater.wire import multiplex

_log = logging.getLogger("headwater.readers")

PATH: Final = "/v1/ws"

AUTH_SECONDS: Final = 10.0
"""From the opening to a valid `auth`, where the request itself had no key."""


_GOODBYES: Final = {1009: "too_large", 1012: "draining", 4400: "bad_frame", 4401: "unauthorized"}
"""Why a socket was closed by us, in a word."""


class UpgradeRequired(HeadwaterError):
    status, code = 426, "upgrade_required"


def not_upgraded(scope: Scope) -> Response:
    """The answer to a plain request at PATH (RFC 9110, 15.5.22)."""
    response = answer(UpgradeRequired(f"open a WebSocket here, with the subprotocol {multiplex.SUBPROTOCOL}"))
    if str(scope.get("http_version", "1.1")).startswith("1"):  # later ones know no such headers
        response.headers["upgrade"], response.headers["connection"] = "websocket", "upgrade"
    return response


class SocketResource:
    """Turns away or serves whoever opens a WebSocket."""

    def __init__(
        self,
        delivery: Delivery,
        auth: Auth,
        origins: Origins,
        admission: Admission,
        outages: Outages,
        limits: SocketLimits | None = None,
    ) -> None:
        self.delivery, self.door = delivery, Door(auth, admission, limits or SocketLimits(), outages)
        self._origins = origins
        self.sockets: set[Socket] = set()
        self.on_refusal: Callable[[Exception], None] = lambda _: None
        """Told of each opening that was refused."""

    def __repr__(self) -> str:
        return f"<SocketResource [{len(self.sockets)} sockets]>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One connection, from its opening to its end."""
        path = str(scope.get("path", "")).removeprefix(scope.get("root_path", ""))
        if path != PATH:
            await send({"type": "websocket.close", "code": 4404, "reason": "no WebSocket here"})
            return
        await receive()  # websocket.connect: there is nothing else that it could be
        headers = Headers(scope=scope)
        try:
            principal = self._let_in(scope, headers)
        except Exception as error:  # noqa: BLE001 -- whatever it was, it is an answer
            self.on_refusal(error)
            await _turn_away(scope, receive, send, error)
            return
        with suppress(OSError):  # ASGI 2.4: the client has left while we were sending
            await send({"type": "websocket.accept", "subprotocol": multiplex.SUBPROTOCOL})
            await Socket(self, scope, receive, send, headers, principal).serve()

    def _let_in(self, scope: Scope, headers: Headers) -> Principal | None:
        """Who comes; None: not known yet. Raises what refuses the connection."""
        # As for a POST: no browser keeps a page of another origin from opening a socket here and using it.
        self._origins.check("POST", headers)
        if multiplex.SUBPROTOCOL not in scope.get("subprotocols", ()):
            raise BadRequest(f"offer the WebSocket subprotocol {multiplex.SUBPROTOCOL}")
        if self.delivery.streams.draining:
            raise Draining("the server is going away; connect again")
        try:
            return self.door.auth.authenticate(headers)
        except Unauthorized:
            if "authorization" in headers:
                raise
            return None  # a browser cannot set headers here: its key comes in the first frame

    def statistics(self) -> dict[str, int]:
        """Sockets open now, and streams followed on them."""
        return {"sockets": len(self.sockets), "channels": sum(len(socket.channels) for socket in self.sockets)}


class Socket:
    """One open connection. `Rounds` calls `due` and `look_after`."""

    def __init__(
        self,
        resource: SocketResource,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: Headers,
        principal: Principal | None,
    ) -> None:
        self._resource, self._delivery = resource, resource.delivery
        self._streams, self._policy = self._delivery.streams, self._delivery.policy
        self._scope, self._receive, self._send = scope, receive, send
        self._wakes = asyncio.Event()
        address = place(scope.get("client"))
        self._asked = Asked(self._streams, resource.door, headers, address, principal, self._wakes.set)
        self.channels = self._asked.channels
        self._clock = asyncio.get_running_loop().time
        self._task = asyncio.current_task()
        self._last_write = self._clock()
        self._writing = False
        self._stalled = False
        """A write was not taken in time, and the task is cancelled for it."""

    def __repr__(self) -> str:
        return f"<Socket {self._asked!r}>"

    async def serve(self) -> None:
        """Until the client leaves, breaks the protocol or takes nothing any more, or the server goes away."""
        began, reason = self._clock(), "cut"
        self._resource.sockets.add(self)
        self._streams.on_drain.append(self._drain)
        self._delivery.rounds.add(self)
        try:
            goodbye = await self._conversed()
            reason = "left" if goodbye is None else _GOODBYES.get(goodbye.code, "closed")
            if goodbye is not None:
                await self._sent({"type": "websocket.close", "code": goodbye.code, "reason": goodbye.reason})
        except asyncio.CancelledError:
            # Our own doing, unless the server wants it too: the task is the server's, which knows nothing of it.
            if not self._stalled or (self._task is not None and self._task.uncancel()):
                raise
            reason = "slow"
            self._delivery.dropped += 1
            self._streams.reads.slow["drop"] += 1
            self._cut()
        finally:
            self._delivery.rounds.discard(self)
            self._streams.on_drain.remove(self._drain)
            self._resource.sockets.discard(self)
            note(
                _log, logging.INFO, "socket ended", transport="websocket", reason=reason, seconds=self._clock() - began
            )

    async def _conversed(self) -> Goodbye | None:
        """Read and write until either is over. None: the client has left."""
        reading = asyncio.create_task(self._read(), name="headwater-socket-reads")
        writing = asyncio.create_task(self._write(), name="headwater-socket-writes")
        try:
            await asyncio.wait([reading, writing], return_when=asyncio.FIRST_COMPLETED)
            over = reading if reading.done() else writing
            await _end(reading, writing)
            await self._asked.settle()
            return over.result()
        finally:
            await _end(reading, writing)
            await self._asked.aclose()

    def _cut(self) -> None:
        connection = (self._scope.get("extensions") or {}).get(CONNECTION)
        if connection is None:
            raise Cut
        connection.cut(at_once=True)

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _read(self) -> Goodbye | None:
        """Take in what the client says. None: it has left."""
        try:
            async with asyncio.timeout(AUTH_SECONDS) as patience:
                while True:
                    if self._asked.principal is not None:
                        patience.reschedule(None)
                    await self._asked.room()
                    event = await self._receive()
                    if event["type"] == "websocket.disconnect":
                        return None
                    text: str | None = event.get("text")
                    goodbye = self._asked.hear(event["bytes"] if text is None else text)
                    if goodbye is not None:
                        return goodbye
        except TimeoutError:
            return Goodbye(4401, "no valid auth frame came in time")

    # -- writing ------------------------------------------------------------------------------------------------------

    async def _write(self) -> Goodbye:
        """Answers first, then each channel in its turn. Ends when the server goes away."""
        while True:
            said = self._asked.answer()
            if said is not None:
                if isinstance(said, multiplex.Following):
                    self._look_again()  # its stream may end by the clock before this socket is due
                await self._say(said)
            elif (channel := self.channels.next()) is not None:
                await self._turn(channel)
            elif self._streams.draining and self._asked.settled:
                await self._say(multiplex.Draining())
                return Goodbye(1012, "the server is going away; connect again")
            elif self._streams.draining:
                await self._asked.settle()
            else:
                await self._wait()

    async def _turn(self, channel: Channel) -> None:
        """One page of a channel, or its end."""
        wakes = channel.wakes
        try:
            page = await channel.take(self._policy.chunk_bytes)
        except Exception as error:  # noqa: BLE001 -- it ends this channel, and no other
            self._resource.door.outages.note(error)
            await add_facts(error, self._streams, channel.stream)
            if self.channels.drop(channel, getattr(error, "code", "internal")):
                await self._say(multiplex.interrupted(channel.id, channel.offset, told(error)))
            return
        if page is None:
            self.channels.wait(channel, wakes)
            return
        if page.messages and not channel.gone:
            frame = multiplex.messages(channel.id, channel.content_type, page)
            await self._sent({"type": "websocket.send", "text" if isinstance(frame, str) else "bytes": frame})
            if channel.visit is not None:
                channel.visit.wrote(page, len(frame))
        if page.closed:
            if self.channels.drop(channel, "ended"):
                await self._say(multiplex.End(id=channel.id, offset=str(page.next), outcome=page.outcome))
        elif not self._streams.draining:  # then everybody had a last turn
            self.channels.line_up(channel)

    async def _wait(self) -> None:
        """Until there is something to say; a heartbeat where there was nothing for long."""
        self._wakes.clear()
        await self._wakes.wait()
        if self._clock() - self._last_write >= self._policy.heartbeat_seconds:
            self._streams.reads.heartbeats += 1
            await self._say(multiplex.Heartbeat())

    async def _say(self, said: multiplex.Answer) -> None:
        await self._sent({"type": "websocket.send", "text": multiplex.text(said)})

    async def _sent(self, event: MutableMapping[str, Any]) -> None:
        self._writing, self._last_write = True, self._clock()
        try:
            await self._send(event)
        finally:
            self._writing, self._last_write = False, self._clock()

    # -- rounds -------------------------------------------------------------------------------------------------------

    def due(self) -> float:
        """When somebody should look after this socket next, on the loop's clock."""
        now = self._clock()
        if self._writing:
            patience = self._policy.write_seconds
            given_up = self._last_write + (min(patience, LAST_WRITE_SECONDS) if self._streams.draining else patience)
            return min(given_up, now + self._policy.heartbeat_seconds)
        end = self.channels.expiry()
        left = math.inf if end is None else (end - self._streams.clock()) / 1000
        return min(self._last_write + self._policy.heartbeat_seconds, now + left)

    def look_after(self) -> None:
        """Its time has come: for a heartbeat, for a stream to expire, or for a stalled write to be given up."""
        if not self._writing:
            self.channels.look_at_expired()
            self._wakes.set()
        elif self._task is not None and not self._stalled:
            self._stalled = True
            self._task.cancel()

    def _look_again(self) -> None:
        """It may be due earlier than it was."""
        self._delivery.rounds.discard(self)
        self._delivery.rounds.add(self)

    def _drain(self) -> None:
        """The server goes away: the client is told, and has less time to take what is written."""
        self._wakes.set()
        self._look_again()


async def _turn_away(scope: Scope, receive: Receive, send: Send, error: Exception) -> None:
    """Before the socket is open: an honest status where the server can send one, else a close code."""
    if "websocket.http.response" in (scope.get("extensions") or {}):
        await answer(error)(scope, receive, send)
    else:
        refused = told(error)
        await send({"type": "websocket.close", "code": 4000 + refused.status, "reason": refused.said[:100]})


async def _end(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
