"""`/v1/proxy`: OpenAI-compatible APIs, with streamed answers that can be resumed, which theirs cannot.

| request | what |
|---|---|
| POST `/v1/proxy/{upstream}/{endpoint}` | passed on; a streamed answer goes into a stream, which the client follows |
| GET `/v1/proxy/{upstream}/{id}` | the same answer again, from `Last-Event-ID` on; `Location` of the POST says where |
| POST `/v1/proxy/{upstream}/{id}/cancel` | let go of the upstream; the stream ends as cancelled, whoever makes it |
| GET, POST `/v1/proxy/{upstream}/…` | models, embeddings, images, speech (`PASSED_ON`): passed on and not kept |

The official clients work with `base_url=".../v1/proxy/{upstream}"`. The answer is asked for by this process and not by
the request, once: a client that leaves changes nothing, and a POST with the Last-Event-ID or the Idempotency-Key of
an earlier one attaches to its answer.

Knows upstreams, writers and the wire form of errors that those clients raise. Invariants: which upstreams there are is
configured, none is named by a client; no header of either side is kept; an answer that the upstream did not finish
ends with an error event, its stream as failed.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, Literal

import msgspec
from starlette.responses import Response

from headwater.decide import KIND as LABEL
from headwater.decide import Append, Item, media_type
from headwater.delivery import Delivery
from headwater.errors import (
    BadOffset,
    BadRequest,
    Conflict,
    Draining,
    HeadwaterError,
    Interrupted,
    KeyReused,
    NotFound,
    StreamClosed,
    StreamExists,
)
from headwater.following import Following
from headwater.formats.sse import ServerSentEvents, stored_event
from headwater.http.exchange import Exchange
from headwater.http.openai_problems import NO_RETRY
from headwater.model import Head
from headwater.problems import answer
from headwater.sources.openai_compatible import (
    PASSED_ON,
    Ending,
    Refusal,
    Upstream,
    UpstreamRefused,
    is_stream,
    method_of,
)
from headwater.streams import Streams
from headwater.writer import Writer

_log = logging.getLogger("headwater.http")

KIND: Final = "proxied"
"""The label that tells leases how such a stream is to be ended; streams are named `proxied/{upstream}/{id}`."""

TTL_SECONDS: Final = 3600
"""How long an answer can be resumed after its last reader or writer."""

BODY_BYTES: Final = 32 * 1024 * 1024
"""Of a request: images go to models as base64."""

STOP_SECONDS: Final = 5.0
"""How long answers on their way get to be ended when the process ends."""

_CANCELLED: Final = "the answer was cancelled"
_EVENTS: Final = "text/event-stream"
_ID: Final = re.compile(r"[A-Za-z0-9_-]{22}")
_LAST_ID: Final = re.compile(rf"({_ID.pattern})~(.+)")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

Reason = Literal["cancelled", "interrupted", "ended"]
"""`ended`: somebody else has ended its stream."""


class _Asked(msgspec.Struct):
    """What of a request's body matters here."""

    stream: bool | None = None


class _Events(ServerSentEvents):
    transport = "proxy"


class Proxy:
    """The upstreams of this process, and their answers on their way: `App(streams, pages={"/v1/proxy/": proxy})`."""

    def __init__(self, streams: Streams, upstreams: Mapping[str, Upstream], *, ttl: int = TTL_SECONDS) -> None:
        """`upstreams` by the name in the path: small letters, digits and hyphens."""
        for name in upstreams:
            checked_upstream_name(name)
        self.streams, self.upstreams, self._ttl = streams, dict(upstreams), ttl
        self._delivery = Delivery(streams)
        self._passing: dict[str, _Passing] = {}  # by stream
        self._tasks: set[asyncio.Task[None]] = set()
        streams.leases.finisher(KIND, self._finish_orphan)
        streams.on_drain.append(self._begin_interrupt)

    def __repr__(self) -> str:
        return f"<Proxy to {', '.join(sorted(self.upstreams))} [{len(self._passing)} answers on their way]>"

    def statistics(self) -> dict[str, int]:
        """Answers that are on their way."""
        return {"passing": len(self._passing)}

    async def __call__(self, exchange: Exchange) -> Response:
        """`/v1/proxy/…`. Raises HeadwaterError."""
        try:
            return await self._routed(exchange)
        except UpstreamRefused as error:
            response = answer(error)
            response.headers.append(*NO_RETRY)  # the official clients would: it is a 502
            return response

    async def _routed(self, exchange: Exchange) -> Response:
        rest = exchange.path.split("/")[3:]
        _ = exchange.principal  # before anything is told of upstreams
        upstream = self.upstreams.get(rest[0]) if rest else None
        if upstream is None:
            raise NotFound(f"there is no such upstream; there are: {', '.join(sorted(self.upstreams))}")
        name, below = rest[0], "/".join(rest[1:])
        if below in upstream.endpoints:
            return await self._asked(exchange, name, below) if exchange.method == "POST" else _not_allowed("POST")
        if (method := method_of(below)) is not None:
            return await self._passed_on(exchange, name, below) if exchange.method == method else _not_allowed(method)
        id_, _, verb = below.partition("/")
        if not _ID.fullmatch(id_) or verb not in ("", "cancel"):
            raise NotFound(f"what is passed on is {', '.join(sorted(upstream.endpoints | PASSED_ON.keys()))}")
        stream = f"proxied/{name}/{id_}"
        if verb:
            return await self._cancel(exchange, stream) if exchange.method == "POST" else _not_allowed("POST")
        if exchange.method not in ("GET", "HEAD"):
            return _not_allowed("GET")
        exchange.authorize("read", stream)
        return self._following(exchange, name, id_)

    async def interrupt(self) -> None:
        """End what is on its way, because the process ends; its streams say so when this returns."""
        self._begin_interrupt()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=STOP_SECONDS)

    async def aclose(self) -> None:
        """Interrupt, and let go of the connections."""
        await self.interrupt()
        for upstream in self.upstreams.values():
            await upstream.aclose()

    def _begin_interrupt(self) -> None:
        for passing in list(self._passing.values()):
            passing.stop("interrupted")

    # -- requests -----------------------------------------------------------------------------------------------------

    async def _asked(self, exchange: Exchange, name: str, endpoint: str) -> Response:
        principal = exchange.principal.name  # before a body is taken in
        last = _LAST_ID.fullmatch(exchange.headers.get("last-event-id", ""))
        if last is not None:
            exchange.authorize("read", f"proxied/{name}/{last[1]}")
            return self._following(exchange, name, last[1])
        key = exchange.headers.get("idempotency-key")
        id_ = secrets.token_urlsafe(16) if key is None else _id_of(principal, name, endpoint, key)
        exchange.authorize("start", f"proxied/{name}/{id_}")
        if media_type(exchange.headers.get("content-type", "")) != "application/json":
            raise BadRequest("send JSON, and say so: Content-Type: application/json")
        body = await exchange.body(BODY_BYTES)
        try:
            streamed = msgspec.json.decode(body, type=_Asked).stream
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadRequest("the body is not a JSON object that the API would take") from error
        if self.streams.draining:
            raise Draining("the server is going away; ask again")
        if not streamed:
            async with self.upstreams[name].ask(endpoint, body) as response:
                return _as_it_is(await self.upstreams[name].whole(response))
        refusal = await self._passed(name, endpoint, body, f"proxied/{name}/{id_}")
        return self._following(exchange, name, id_) if refusal is None else _as_it_is(refusal)

    async def _passed_on(self, exchange: Exchange, name: str, endpoint: str) -> Response:
        """What answers in one piece."""
        exchange.authorize("start", f"proxied/{name}/{endpoint}")
        body = await exchange.body(BODY_BYTES)
        if self.streams.draining:
            raise Draining("the server is going away; ask again")
        given = exchange.headers.get("content-type", "application/json")
        async with self.upstreams[name].ask(endpoint, body, content_type=given) as response:
            return _as_it_is(await self.upstreams[name].whole(response))

    async def _passed(self, name: str, endpoint: str, body: bytes, stream: str) -> Refusal | None:
        """Ask, unless that has been done; the answer if it is no stream."""
        digest = hashlib.sha256(body).hexdigest()
        passing = self._passing.get(stream)
        if passing is None:
            labels = {"kind": KIND, "upstream": name, "body": digest}
            writer = self.streams.writer(stream, content_type=_EVENTS, ttl=self._ttl, labels=labels)
            passing = _Passing(self.upstreams[name], endpoint, body, writer, digest)
            self._passing[stream] = passing
            task = asyncio.create_task(self._pass(passing), name=f"headwater-proxy {stream}")
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
            passing.task = task
        if passing.digest != digest:
            raise KeyReused("this Idempotency-Key was used for another request")
        # Shielded: whoever asked first may leave, and others wait for the same.
        return await asyncio.shield(passing.head)

    async def _pass(self, passing: _Passing) -> None:
        try:
            await passing.run(self.streams)
        except Exception as error:
            passing.fail(error)
            if not isinstance(error, HeadwaterError):
                raise
        finally:
            del self._passing[passing.writer.name]

    def _following(self, exchange: Exchange, name: str, id_: str) -> Following:
        def offset_of(last_id: str) -> str:
            match = _LAST_ID.fullmatch(last_id)
            if match is None or match[1] != id_:
                raise BadOffset("this Last-Event-ID is not one of this answer's")
            return match[2]

        return Following(
            self._delivery,
            f"proxied/{name}/{id_}",
            lambda *_: _Events(_EVENTS, named=False, prefix=f"{id_}~"),
            headers={"location": f"{exchange.prefix}/v1/proxy/{name}/{id_}", "x-stream-id": id_},
            offset_of=offset_of,
        )

    async def _cancel(self, exchange: Exchange, stream: str) -> Response:
        exchange.authorize("cancel", stream)
        passing = self._passing.get(stream)
        if passing is not None:
            passing.stop("cancelled")
            return Response(status_code=202)
        head = await self.streams.head(stream)
        if head.labels.get(LABEL) != KIND:
            raise NotFound("there is no such answer")
        if not head.closed:  # another process makes it, or died doing so: it finds its stream ended
            said = Append([Item(_error(_Cancelled(_CANCELLED)))], close=True, outcome="cancelled")
            with suppress(StreamClosed):
                await self.streams.carry_out(stream, said)
        return Response(status_code=200)

    async def _finish_orphan(self, name: str, _: Head, why: HeadwaterError) -> None:
        await self.streams.carry_out(name, Append([Item(_error(why))], close=True, outcome="failed"))


def checked_upstream_name(name: str) -> str:
    """`name`, if it can be the part of a path. Raises ValueError."""
    if not _NAME.fullmatch(name):
        raise ValueError(f"{name!r} cannot name an upstream: use small letters, digits and hyphens")
    return name


class _Passing:
    """One request on its way to its upstream, and its answer on its way into a stream."""

    def __init__(self, upstream: Upstream, endpoint: str, body: bytes, writer: Writer, digest: str) -> None:
        self.writer, self.digest = writer, digest
        self.task: asyncio.Task[None] | None = None
        self.head: asyncio.Future[Refusal | None] = asyncio.get_running_loop().create_future()
        """Set when it is known whether the answer is a stream; None: it is."""
        self.head.add_done_callback(_seen)
        self._upstream, self._endpoint, self._body = upstream, endpoint, body
        self._stopped: Reason | None = None
        self._asking = False
        """Only then the task may be cancelled: before, nobody would end the stream that it is making."""

    def stop(self, why: Reason) -> None:
        """Let go of the upstream; the first reason counts."""
        if self._stopped is None:
            self._stopped = why
            if self._asking and self.task is not None:
                self.task.cancel()

    def fail(self, error: Exception) -> None:
        if not self.head.done():
            self.head.set_exception(error)

    async def run(self, streams: Streams) -> None:
        """From the claim of the stream to its end. Raises what kept it from beginning."""
        if not await self._claimed(streams):
            self.head.set_result(None)
            return
        watching = asyncio.create_task(self._watch(streams))
        self._asking = True
        try:
            outcome, last = await self._outcome()
        finally:
            self._asking = False
            watching.cancel()
        if not self.head.done() or self.head.cancelled() or self.head.exception() or self.head.result():
            await streams.delete(self.writer.name)  # there is no answer to resume: the next attempt asks anew
            return
        try:
            await asyncio.shield(asyncio.ensure_future(self.writer.aclose(outcome, *last)))
        except StreamClosed:
            _log.info("answer %s was ended by another process", self.writer.name)

    async def _watch(self, streams: Streams) -> None:
        """Lets go of the upstream when somebody else ends the stream: an upstream may be silent for minutes."""
        with suppress(HeadwaterError):  # what is appended next tells as well
            async for page in streams.follow(self.writer.name, "now"):
                if page.closed:
                    self.stop("ended")

    async def _claimed(self, streams: Streams) -> bool:
        try:
            if await self.writer.open():
                return True
        except StreamExists:
            pass  # another process was quicker, or its answer is there already
        if (await streams.head(self.writer.name)).labels.get("body") != self.digest:
            raise KeyReused("this Idempotency-Key was used for another request")
        return False

    async def _outcome(self) -> tuple[str, list[bytes]]:
        """How it ended, and what is to be said of it last."""
        ending = Ending()
        try:
            if self._stopped is not None:  # while the stream was being made
                raise asyncio.CancelledError
            async with self._upstream.ask(self._endpoint, self._body) as response:
                self._body = b""
                if not is_stream(response):
                    self.head.set_result(await self._upstream.whole(response))
                    return "failed", []
                self.head.set_result(None)
                async for event in self._upstream.events(response):
                    ending.note(event)
                    await self.writer.send(stored_event(event.data.encode(), _name_of(event.event)))
        except asyncio.CancelledError:
            if self._stopped in ("cancelled", "ended"):
                self.fail(cancelled := _Cancelled(_CANCELLED))
                return "cancelled", [_error(cancelled)]
            self.fail(Draining("the server is going away; ask again"))
            return "failed", [_error(Interrupted())]
        except HeadwaterError as error:
            self.fail(error)
            return "failed", [_error(error)]
        except Exception as error:  # noqa: BLE001 -- whatever it is, its readers must be told
            _log.exception("answer %s could not be passed on", self.writer.name)
            self.fail(error)
            return "failed", [_error(Interrupted())]
        return ("failed" if ending.failed else "completed"), []


class _Cancelled(Conflict):
    code = "cancelled"


def _error(error: HeadwaterError) -> bytes:
    """The event for which the official clients raise: an object with `error`, and no name of its own."""
    said = {"error": {"message": error.said, "type": error.code, "code": error.code, "param": None}}
    return stored_event(msgspec.json.encode(said), None)


def _name_of(event: str) -> str | None:
    """The event's name as it can be stored; clients of these APIs read the type in the data."""
    return event if event != "message" and event.isprintable() else None


def _id_of(*facts: str) -> str:
    digest = hashlib.sha256(msgspec.json.encode(facts)).digest()
    return urlsafe_b64encode(digest[:16]).decode().rstrip("=")


def _as_it_is(refusal: Refusal) -> Response:
    return Response(refusal.body, refusal.status, {"cache-control": "no-store", **refusal.headers})


def _not_allowed(allow: str) -> Response:
    return Response(status_code=405, headers={"allow": allow})


def _seen(head: asyncio.Future[Refusal | None]) -> None:
    """So that nobody complains of an error that nobody waited for."""
    if not head.cancelled():
        head.exception()
