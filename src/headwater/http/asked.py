"""What a client asks on its socket, and the answers: each is carried out as its HTTP twin would be.

In order for each stream, so that an append may be asked for right behind the opening; streams do not wait for each
other. Too much that is unanswered is not taken in: `room` waits.

Knows streams, the auth seam and the frames; nothing of ASGI. Invariant: everything but `credit` is answered once.
"""

from __future__ import annotations

import asyncio
import functools
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from headwater.decide import Append, Create, Item, Stamp
from headwater.errors import BadOffset, BadRequest, Draining, Forbidden, HeadwaterError, TooLarge, Unauthorized
from headwater.http.access import HOUSEKEEPING, RESERVED
from headwater.http.admission import Admission
from headwater.http.auth import Action, Auth, Principal
from headwater.http.channels import Channel, Channels
from headwater.http.facts import add_facts
from headwater.http.outages import Outages
from headwater.model import Config, Offset
from headwater.problems import told
from headwater.streams import Streams
from headwater.wire import durable, multiplex


@dataclass(frozen=True, slots=True)
class SocketLimits:
    """What one socket may hold."""

    channels: int = 256
    """Streams followed at a time: a cursor and a future each."""
    frame_bytes: int = 1024 * 1024
    """Of a frame that comes in: it is parsed in one piece, while the loop does nothing else. More goes by POST."""
    unanswered: int = 64
    """Requests taken in before the first of them is answered; then the socket is not read (TCP slows the client)."""
    unanswered_bytes: int = 4 * 1024 * 1024
    """The same, in bytes of their frames."""


class Door(NamedTuple):
    """Who may do what, how often, and how much of it at once."""

    auth: Auth
    admission: Admission
    limits: SocketLimits
    outages: Outages


class Goodbye(NamedTuple):
    """How a socket is closed: 1000s are RFC 6455's, 4000s are 4000 + an HTTP status."""

    code: int
    reason: str


class Asked:
    """All that is asked on one socket."""

    def __init__(
        self,
        streams: Streams,
        door: Door,
        headers: Mapping[str, str],
        address: str,
        principal: Principal | None,
        wake: Callable[[], None],
    ) -> None:
        """`headers`, `address`: of whoever opened the socket; `wake` is called when there is something to say."""
        self._streams, self._headers, self._address, self.principal = streams, headers, address, principal
        self._auth, self._admission, self._limits, self._outages = door
        self._wake = wake
        self.channels = Channels(streams, self._limits.channels, wake)
        self._answers: deque[tuple[multiplex.Answer, int]] = deque()
        self._turns = _Turns()
        self._count = self._bytes = 0
        self._room = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Asked [{self._count} unanswered] {self.channels!r}>"

    # -- coming and going ---------------------------------------------------------------------------------------------

    async def room(self) -> None:
        """Until another frame may come."""
        while self._count >= self._limits.unanswered or self._bytes >= self._limits.unanswered_bytes:
            self._room.clear()
            await self._room.wait()

    def hear(self, data: str | bytes) -> Goodbye | None:
        """Begin what a frame asks for; how to end the socket if it cannot go on."""
        if len(data) > self._limits.frame_bytes:
            return Goodbye(1009, f"a frame may have {self._limits.frame_bytes:,} bytes")
        try:
            frame = multiplex.parse(data)
        except multiplex.Garbage as error:
            return Goodbye(4400, str(error))
        except multiplex.Misspoken as error:
            if self.principal is None:
                return Goodbye(4401, "say auth first, with a valid token")
            self._refuse(error, error.ref, error.channel, self._taken(len(data)))
            return None
        op = frame.op
        if self.principal is None or isinstance(op, multiplex.Auth):
            return self._authenticate(op)
        if isinstance(op, multiplex.Credit):
            self.channels.grant(op.id, op.bytes)
            return None
        size = self._taken(len(data))
        try:
            self._begin(frame, op, self.principal, size)
        except HeadwaterError as error:
            self._refuse(error, op.ref, getattr(op, "id", None), size)
        return None

    def answer(self) -> multiplex.Answer | None:
        """What is to be said next. Ask again only when it was said: then there is room for another request."""
        if not self._answers:
            return None
        said, size = self._answers.popleft()
        self._count -= 1
        self._bytes -= size
        self._room.set()
        return said

    @property
    def settled(self) -> bool:
        """Nothing that was begun is still being done."""
        return not self._turns.tasks

    async def settle(self) -> None:
        """Until that is so."""
        await self._turns.settle()

    async def aclose(self) -> None:
        """Give up what is not done, and leave all streams."""
        await self._turns.cancel()
        self.channels.drop_all()

    def _taken(self, size: int) -> int:
        self._count += 1
        self._bytes += size
        return size

    def _say(self, said: multiplex.Answer, size: int) -> None:
        self._answers.append((said, size))
        self._wake()

    def _refuse(self, error: Exception, ref: multiplex.Ref | None, channel: int | None, size: int) -> None:
        self._say(multiplex.error(told(error), ref, channel), size)

    # -- who and whether ----------------------------------------------------------------------------------------------

    def _authenticate(self, op: multiplex.Op) -> Goodbye | None:
        """A key may also be renewed by a later `auth`; what is followed already goes on."""
        if not isinstance(op, multiplex.Auth):
            return Goodbye(4401, "say auth first, with a valid token")
        try:
            self.principal = self._auth.authenticate({**self._headers, "authorization": f"Bearer {op.token}"})
        except Unauthorized:
            return Goodbye(4401, "this token is not valid")
        self._say(multiplex.Ok(ref=op.ref), self._taken(0))
        return None

    def _begin(self, frame: multiplex.Frame, op: multiplex.Asking, principal: Principal, size: int) -> None:
        """Raises what refuses it. Else it is answered, now or later."""
        if self._streams.draining:
            raise Draining("the server is going away; connect again")
        stream, actions = _needed(frame)
        for action in actions:
            self._authorize(principal, action, stream)
        if actions and actions != ["read"]:
            self._admission.write(self._client)
        match op:
            case multiplex.Follow():
                channel = self.channels.add(op.id, op.stream, op.credit)
                try:
                    channel.place.enter_context(self._admission.reader(self._client))
                except HeadwaterError:
                    self.channels.drop(channel)
                    raise
                self._in_turn(op, op.stream, functools.partial(self._follow, op, channel), size)
            case multiplex.Unfollow() if (known := self.channels.get(op.id)) is not None:
                # Behind its `follow`, which may be on its way.
                self._in_turn(op, known.stream, functools.partial(self._unfollow, op, known), size)
            case multiplex.Unfollow():
                self._say(multiplex.Ok(ref=op.ref, id=op.id), size)  # it has ended just now
            case multiplex.Open():
                self._in_turn(op, op.stream, functools.partial(self._open, op, frame), size)
            case multiplex.Append():
                self._in_turn(op, op.stream, functools.partial(self._append, op, frame), size)
            case multiplex.Close():
                self._in_turn(op, op.stream, functools.partial(self._close, op), size)
            case _:
                self._say(multiplex.Pong(ref=op.ref), size)

    @property
    def _client(self) -> str:
        """Whom limits count, as for HTTP."""
        return self._address if self._auth.open_to_all or self.principal is None else self.principal.name

    def _authorize(self, principal: Principal, action: Action, stream: str) -> None:
        self._auth.authorize(principal, action, stream)
        if action != "read" and stream.startswith(RESERVED):
            raise Forbidden("streams under this name are written by the server alone")
        if stream.startswith(HOUSEKEEPING):
            raise Forbidden("streams under this name are the server's own")

    def _in_turn(
        self, op: multiplex.Asking, stream: str, work: Callable[[], Coroutine[Any, Any, multiplex.Answer]], size: int
    ) -> None:
        async def carry_out() -> None:
            try:
                self._say(await work(), size)
            except Exception as error:  # noqa: BLE001 -- whatever it was, it is answered, and the socket goes on
                self._outages.note(error)
                await add_facts(error, self._streams, stream)
                self._refuse(error, op.ref, getattr(op, "id", None), size)

        self._turns.put(stream, carry_out)

    # -- what can be asked --------------------------------------------------------------------------------------------

    async def _open(self, op: multiplex.Open, frame: multiplex.Frame) -> multiplex.Ok:
        if op.ttl is not None and op.expires_at is not None:
            raise BadRequest("give ttl or expires_at, not both")
        expires_at = None if op.expires_at is None else durable.parse_expires_at(op.expires_at)
        retention = None if op.retention is None else durable.parse_retention(op.retention)
        config = Config(durable.parse_type(op.content_type), op.ttl, expires_at, retention)
        decision = await self._streams.carry_out(op.stream, Create(config, self._items(config, frame), op.closed))
        head = decision.head
        return multiplex.Ok(
            ref=op.ref,
            offset=str(head.offset),
            content_type=head.config.content_type,
            created=decision.what == "created",
            closed=head.closed or None,
        )

    async def _append(self, op: multiplex.Append, frame: multiplex.Frame) -> multiplex.Ok:
        if op.outcome is not None and not op.close:
            raise BadRequest("outcome says how a stream ended: it goes with close")
        if op.if_match is not None and op.producer is not None:
            raise BadRequest("give if_match or producer: a retried append would meet its own first try")
        expected = None if op.if_match is None else Offset.parse(op.if_match)
        if op.if_match is not None and expected is None:
            raise BadOffset("if_match is an offset that the server gave")
        # What a message may be depends on what the stream holds; if that changes meanwhile, the append is refused.
        config = (await self._streams.head(op.stream)).config
        items = self._items(config, frame)
        request = Append(
            items, config.content_type, _stamp(op.producer), op.seq, op.close, op.outcome, expected, foreign=True
        )
        return await self._written(op, request)

    async def _close(self, op: multiplex.Close) -> multiplex.Ok:
        return await self._written(op, Append(stamp=_stamp(op.producer), close=True, outcome=op.outcome, foreign=True))

    def _items(self, config: Config, frame: multiplex.Frame) -> list[Item]:
        items, most = multiplex.items(config.content_type, frame), self._streams.limits.message_bytes
        if any(len(item.data) > most for item in items):
            raise TooLarge(f"a message may have {most:,} bytes")
        return items

    async def _written(self, op: multiplex.Append | multiplex.Close, request: Append) -> multiplex.Ok:
        decision = await self._streams.carry_out(op.stream, request)
        head = decision.head
        return multiplex.Ok(
            ref=op.ref,
            offset=str(head.offset),
            duplicate=decision.what == "duplicate" or None,
            closed=head.closed or None,
            outcome=head.outcome,
        )

    async def _follow(self, op: multiplex.Follow, channel: Channel) -> multiplex.Following:
        try:
            cursor = await self._streams.cursor(op.stream, op.offset)
        except BaseException:
            self.channels.drop(channel)
            raise
        channel.cursor = cursor  # whoever drops the channel closes it
        try:
            head = await self._streams.head(op.stream)
        except BaseException:
            self.channels.drop(channel)
            raise
        self.channels.begin(channel, head.config.content_type)
        return multiplex.Following(
            id=op.id,
            ref=op.ref,
            stream=op.stream,
            content_type=head.config.content_type,
            offset=str(cursor.offset),
            up_to_date=cursor.offset == head.offset,
        )

    async def _unfollow(self, op: multiplex.Unfollow, channel: Channel) -> multiplex.Ok:
        self.channels.drop(channel, "unfollowed")
        return multiplex.Ok(ref=op.ref, id=op.id)


class _Turns:
    """What is asked of one stream is carried out in the order it was asked; streams do not wait for each other."""

    def __init__(self) -> None:
        self._last: dict[str, asyncio.Task[None]] = {}
        self.tasks: set[asyncio.Task[None]] = set()

    def put(self, stream: str, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """`work` must not raise."""
        task = asyncio.create_task(self._after(self._last.get(stream), work), name="headwater-socket-carries-out")
        self._last[stream] = task
        self.tasks.add(task)
        task.add_done_callback(functools.partial(self._done, stream))

    async def _after(self, before: asyncio.Task[None] | None, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        if before is not None:
            await asyncio.wait([before])
        await work()

    def _done(self, stream: str, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        if self._last.get(stream) is task:
            del self._last[stream]

    async def settle(self) -> None:
        while self.tasks:
            await asyncio.wait(self.tasks)

    async def cancel(self) -> None:
        for task in self.tasks:
            task.cancel()
        await self.settle()


def _needed(frame: multiplex.Frame) -> tuple[str, list[Action]]:
    """What one must be allowed to do, and to which stream."""
    match frame.op:
        case multiplex.Follow(stream=stream):
            return stream, ["read"]
        case multiplex.Open(stream=stream):
            return stream, ["create"]
        case multiplex.Append(stream=stream, close=True) as op:
            return stream, ["append", "close"] if op.messages or frame.data else ["close"]
        case multiplex.Append(stream=stream):
            return stream, ["append"]
        case multiplex.Close(stream=stream):
            return stream, ["close"]
    return "", []


def _stamp(producer: multiplex.Producer | None) -> Stamp | None:
    return None if producer is None else Stamp(producer.id, producer.epoch, producer.seq)
