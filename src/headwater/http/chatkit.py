"""ChatKit, with answers that outlive connections: a ChatKitServer of the application's own, served durably.

    chatkit = ChatKit(MyChatKitServer(MyStore()), streams)
    app = FastAPI(lifespan=lifespan(streams, closing=[chatkit]))

    @app.api_route("/chatkit", methods=["GET", "POST", "DELETE"])
    async def endpoint(request: Request, user: CurrentUser):
        return await chatkit.answer(request, context=user, owner=user.id)

or, alone: `App(streams, pages={"/chatkit": ChatKit(server, streams)})`.

| request | what |
|---|---|
| POST | what ChatKit's client asks for: JSON, or a stream of ChatKit's events, which this process makes |
| GET `?stream=…` (the `Location` of a stream) | the same answer, from `Last-Event-ID` on; 204 when there is no more |
| GET `?thread=…` | the answer that is being made for a thread, from its beginning; 204 where there is none |
| DELETE with either, or POST at a path that ends in `/stop` | the user's Stop |

A client that leaves changes nothing: the answer is finished, and its items are saved by the server's store. A POST with
an Idempotency-Key or a Last-Event-ID of an earlier one attaches to its answer. ChatKit's own client stops by closing
the connection, which nobody can tell from a lost one: `cancel_when_unread` takes so many seconds without a reader for
it. A stop runs the server's `handle_stream_cancelled` to its end and cancels the agent's run; the end of the stream
says that this was done.

Knows requests, auth and ChatKit's request types. Invariants: an answer is read and stopped by its owner only (G10).
"""

from __future__ import annotations

import hashlib
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote

import msgspec
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from headwater.delivery import Delivery
from headwater.errors import BadOffset, BadRequest, HeadwaterError, MissingExtra, NotFound, TooLarge
from headwater.following import Following
from headwater.formats.sse import ServerSentEvents
from headwater.http.auth import Action
from headwater.http.chatkit_answers import EVENTS, Answers, Place
from headwater.http.exchange import Exchange
from headwater.problems import answer as error_answer
from headwater.sources.chatkit import Processing
from headwater.streams import Streams

try:
    from chatkit.server import ChatKitServer, NonStreamingResult
    from chatkit.store import NotFoundError
    from chatkit.types import ChatKitReq, is_streaming_req
    from pydantic import TypeAdapter, ValidationError
except ImportError as error:
    raise MissingExtra("chatkit", "openai-chatkit") from error

TTL_SECONDS: Final = 3600
"""How long an answer can be resumed after its last reader or writer; its items are in the server's own store."""

_ID: Final = re.compile(r"[A-Za-z0-9_-]{22}")
_LAST_ID: Final = re.compile(rf"({_ID.pattern})~(.+)")
_READING: Final = frozenset({"threads.get_by_id", "threads.list", "items.list"})
_REQUEST: Final[TypeAdapter[Any]] = TypeAdapter(ChatKitReq)


class _Events(ServerSentEvents):
    transport = "chatkit"


@dataclass(frozen=True)
class _Asker:
    """Who asks, and what is granted."""

    owner: str
    prefix: str
    """Of the names of his streams."""
    context: Any
    authorize: Callable[[Action, str], None]


class ChatKit:
    """One ChatKitServer, and its answers on their way."""

    def __init__(
        self,
        server: ChatKitServer[Any],
        streams: Streams,
        *,
        name: str = "chatkit",
        context: Callable[[Exchange], Any] = lambda exchange: exchange.principal,
        cancel_when_unread: float | None = None,
        ttl: int = TTL_SECONDS,
        delivery: Delivery | None = None,
    ) -> None:
        """`name`: first part of its streams' names; each of several servers on one Streams needs its own.

        `context`: what the server gets as its context where this is a page of `App`; elsewhere the endpoint says it.
        `cancel_when_unread`: stop an answer that nobody has been reading, in this process, for so many seconds.
        """
        self.server, self.streams, self.name = server, streams, name
        self._context, self._delivery = context, delivery or Delivery(streams)
        self._answers = Answers(streams, ttl=ttl, cancel_when_unread=cancel_when_unread)

    def __repr__(self) -> str:
        return f"<ChatKit {self.name!r} of {type(self.server).__name__} [{len(self._answers)} answers on their way]>"

    def statistics(self) -> dict[str, int]:
        """Answers that are on their way."""
        return {"answering": len(self._answers)}

    async def __call__(self, exchange: Exchange) -> Response:
        """As a page of `App`. Raises HeadwaterError."""
        owner = exchange.principal.name  # before a body is taken in
        asker = self._asker(owner, self._context(exchange), exchange.authorize)
        return await self._answered(Request(exchange.scope, exchange.receive), asker)

    async def answer(self, request: Request, context: Any = None, *, owner: str = "") -> Response:
        """What an endpoint of FastAPI or Starlette returns; it says by `context` to the server who asks.

        `owner`: only requests that give the same one can read or stop an answer (a user's id, say).
        """
        try:
            return await self._answered(request, self._asker(owner, context, lambda _, __: None))
        except HeadwaterError as error:
            return error_answer(error)

    async def interrupt(self) -> None:
        """End what is on its way, because the process ends; its streams say so when this returns."""
        await self._answers.interrupt()

    async def aclose(self) -> None:
        """Interrupt, and end for good."""
        await self._answers.aclose()

    def _asker(self, owner: str, context: Any, authorize: Callable[[Action, str], None]) -> _Asker:
        # Part of the stream's name, so that an id of one owner is good for no other (G10).
        return _Asker(owner, f"{self.name}/{_digest(owner)}/", context, authorize)

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _answered(self, request: Request, asker: _Asker) -> Response:
        if request.method == "DELETE" or (request.method == "POST" and request.scope["path"].endswith("/stop")):
            return await self._stop(request, asker)
        if request.method in ("GET", "HEAD"):
            return await self._read(request, asker)
        if request.method != "POST":
            return Response(status_code=405, headers={"allow": "POST, GET, DELETE"})
        if last := request.headers.get("last-event-id"):
            return self._following(request, asker, _parsed(last)[0])
        return await self._asked(request, asker)

    async def _asked(self, request: Request, asker: _Asker) -> Response:
        body = await _body(request, self.streams.limits.message_bytes)
        try:
            asked = _REQUEST.validate_json(body)
        except ValidationError:
            raise BadRequest("the body is not a request of ChatKit's, of the version served here") from None
        if not is_streaming_req(asked):
            asker.authorize("read" if asked.type in _READING else "start", asker.prefix)
            return await self._at_once(body, asker.context)
        asker.authorize("start", asker.prefix)
        key = request.headers.get("idempotency-key")
        id_ = secrets.token_urlsafe(16) if key is None else _digest(asker.owner, self.name, key)
        place = Place(asker.prefix, id_, asker.owner, getattr(asked.params, "thread_id", None))
        processing = Processing(self.server, body, asker.context)
        await self._answers.start(place, processing, hashlib.sha256(body).hexdigest())
        return self._following(request, asker, id_)

    async def _at_once(self, body: bytes, context: Any) -> Response:
        try:
            result = await self.server.process(body, context)
        except NotFoundError:
            raise NotFound("there is no such thread or item") from None
        assert isinstance(result, NonStreamingResult)
        return _json(200, result.json)

    async def _read(self, request: Request, asker: _Asker) -> Response:
        last = request.headers.get("last-event-id")
        if last or (stream := request.query_params.get("stream")):
            return self._following(request, asker, _parsed(last)[0] if last else _checked(str(stream)))
        thread = request.query_params.get("thread")
        if thread is None:
            raise BadRequest("say which answer: ?stream= as in Location, ?thread= or a Last-Event-ID")
        asker.authorize("read", asker.prefix)
        newest = await self._answers.newest(asker.prefix, asker.owner, thread)
        if newest is None:
            return Response(status_code=204, headers={"cache-control": "no-store"})
        return self._following(request, asker, newest)

    async def _stop(self, request: Request, asker: _Asker) -> Response:
        asker.authorize("cancel", asker.prefix)
        thread, id_ = request.query_params.get("thread"), request.query_params.get("stream")
        if thread is not None:
            id_ = await self._answers.newest(asker.prefix, asker.owner, thread)
        elif id_ is None:
            raise BadRequest("say what to stop: ?stream= as in Location, or ?thread=")
        stopped = id_ is not None and await self._answers.stop(asker.prefix + _checked(id_))
        return _json(202 if stopped else 200, msgspec.json.encode({"stopped": stopped}))

    def _following(self, request: Request, asker: _Asker, id_: str) -> Following:
        asker.authorize("read", asker.prefix + id_)

        def offset_of(last: str) -> str:
            named, offset = _parsed(last)
            if named != id_:
                raise BadOffset("this Last-Event-ID is not one of this answer's")
            return offset

        at = f"{quote(request.scope['path'])}?stream={id_}"
        return Following(
            self._delivery,
            asker.prefix + id_,
            lambda *_: _Events(EVENTS, named=False, prefix=f"{id_}~"),
            headers={"location": at, "x-stream-id": id_},
            offset_of=offset_of,
        )


def _parsed(last: str) -> tuple[str, str]:
    match = _LAST_ID.fullmatch(last)
    if match is None:
        raise BadOffset("this Last-Event-ID is not one of an answer of ChatKit's")
    return match[1], match[2]


def _checked(id_: str) -> str:
    if not _ID.fullmatch(id_):
        raise NotFound("there is no such answer")
    return id_


def _digest(*facts: str) -> str:
    return urlsafe_b64encode(hashlib.sha256(msgspec.json.encode(facts)).digest()[:16]).decode().rstrip("=")


def _json(status: int, body: bytes) -> Response:
    return Response(body, status, {"cache-control": "no-store"}, "application/json")


async def _body(request: Request, most: int) -> bytes:
    """The whole body. Raises TooLarge beyond `most` bytes, before it is held in memory."""
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            chunks.append(chunk)
            size += len(chunk)
            if size > most:
                raise TooLarge(f"a request may have {most:,} bytes")
    except ClientDisconnect:
        raise BadRequest("the client left before its body had arrived") from None
    return b"".join(chunks)
