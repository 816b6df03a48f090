"""`/v1/stream/__ds/…`: subscriptions, and the keys their webhooks are signed with (Durable Streams 6, 7).

Knows the service and the wire form of what is asked of it. Who makes, changes or claims a subscription has to be
allowed to `subscribe` to all it can ever tell of, and to `read` it; a worker at work shows the token of its wake.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import msgspec
from starlette.responses import Response

from headwater.errors import BadRequest, NotFound
from headwater.http.access import may_read, may_write
from headwater.http.exchange import Exchange
from headwater.problems import not_allowed
from headwater.subscriptions import Subscriptions, Terms
from headwater.subscriptions.refusals import InvalidRequest, SubscriptionNotFound, TokenInvalid
from headwater.subscriptions.state import LEASE_MS

CONTROL: Final = "__ds"
"""First segment of stream paths that are no streams (6)."""

_FIELDS: Final = {"type", "pattern", "streams", "webhook", "wake_stream", "lease_ttl_ms", "description"}

_ACKS: Final = 'acks is a list like [{"stream": "events/a", "offset": "…"}]'

Method = Callable[[Exchange, str], Awaitable[Response]]


class SubscriptionResource:
    """The subscriptions of one Subscriptions, over HTTP; None: there are none here."""

    def __init__(self, subscriptions: Subscriptions | None) -> None:
        self._kept = subscriptions
        self._actions: dict[str, dict[str, Method]] = {
            "": {"PUT": self._put, "GET": self._get, "DELETE": self._delete},
            "streams": {"POST": self._add},
            "claim": {"POST": self._claim},
            "callback": {"POST": self._callback},
            "ack": {"POST": self._ack},
            "release": {"POST": self._release},
        }

    @property
    def _subscriptions(self) -> Subscriptions:
        if self._kept is None or not self._kept.is_open:
            raise NotFound("this server keeps no subscriptions; give App and lifespan a Subscriptions to have them")
        return self._kept

    async def answer(self, exchange: Exchange, name: str) -> Response:
        """Carry out a request on `name`, a path from `__ds` on."""
        if exchange.method == "OPTIONS":
            return Response(status_code=204)  # CORS adds what it has to say
        try:
            return await self._answered(exchange, name.split("/")[1:])
        except BadRequest as error:
            raise error if error.code.isupper() else InvalidRequest(str(error), **error.detail) from None

    async def _answered(self, exchange: Exchange, rest: list[str]) -> Response:
        match rest:
            case ["jwks.json"]:
                return await self._keys(exchange)
            case ["subscriptions", id_, "streams", *path] if id_ and path:
                return await self._remove(exchange, id_, "/".join(path))
            case ["subscriptions", id_]:
                action = ""
            case ["subscriptions", id_, action]:
                pass
            case _:
                raise SubscriptionNotFound("there is nothing at this path")
        if not id_ or action not in self._actions or (len(rest) == 3 and not action):
            raise SubscriptionNotFound("there is nothing at this path")
        methods = self._actions[action]
        if exchange.method not in methods:
            return not_allowed(methods)
        return await methods[exchange.method](exchange, id_)

    async def _keys(self, exchange: Exchange) -> Response:
        if exchange.method not in ("GET", "HEAD"):
            return not_allowed(["GET"])
        keys = msgspec.json.encode(await self._subscriptions.keys())
        return Response(keys, 200, {"cache-control": "public, max-age=300"}, "application/jwk-set+json")

    # -- makers -------------------------------------------------------------------------------------------------------

    async def _put(self, exchange: Exchange, id_: str) -> Response:
        _ = exchange.principal  # before a body is taken in
        terms = _terms(await self._json(exchange))
        self._authorize(exchange, terms, terms.streams)
        if terms.wake_stream is not None:
            may_write(exchange, "append", terms.wake_stream)
        view, made = await self._subscriptions.make(id_, terms, _address(exchange))
        if not made:
            await self._may(exchange, id_)  # it may tell of streams that were added since
        return _json(view, 201 if made else 200)

    async def _get(self, exchange: Exchange, id_: str) -> Response:
        await self._may(exchange, id_)
        return _json(await self._subscriptions.get(id_))

    async def _delete(self, exchange: Exchange, id_: str) -> Response:
        try:
            await self._may(exchange, id_)
        except SubscriptionNotFound:
            return Response(status_code=204)
        await self._subscriptions.delete(id_)
        return Response(status_code=204)

    async def _add(self, exchange: Exchange, id_: str) -> Response:
        await self._may(exchange, id_)
        names = _names((await self._json(exchange)).get("streams"))
        if not names:
            raise InvalidRequest('name the streams: {"streams": ["events/a"]}')
        self._authorize(exchange, None, names)
        await self._subscriptions.add(id_, names)
        return Response(status_code=204)

    async def _remove(self, exchange: Exchange, id_: str, path: str) -> Response:
        if exchange.method != "DELETE":
            return not_allowed(["DELETE"])
        await self._may(exchange, id_)
        await self._subscriptions.remove(id_, path.strip("/"))
        return Response(status_code=204)

    async def _claim(self, exchange: Exchange, id_: str) -> Response:
        await self._may(exchange, id_)
        worker = (await self._json(exchange)).get("worker")
        if not isinstance(worker, str):
            raise InvalidRequest('say who claims it: {"worker": "…"}')
        return _json(await self._subscriptions.claim(id_, worker))

    async def _may(self, exchange: Exchange, id_: str) -> None:
        """Raises Unauthorized, SubscriptionNotFound, Forbidden."""
        _ = exchange.principal
        terms, names = await self._subscriptions.terms(id_)
        self._authorize(exchange, terms, names)

    def _authorize(self, exchange: Exchange, terms: Terms | None, names: Iterable[str]) -> None:
        if terms is not None and terms.pattern is not None:
            exchange.auth.authorize_all(exchange.principal, "subscribe", terms.pattern)
            exchange.auth.authorize_all(exchange.principal, "read", terms.pattern)
        for name in names:
            exchange.authorize("subscribe", name)
            may_read(exchange, name)

    # -- workers, by the token of a wake ------------------------------------------------------------------------------

    async def _callback(self, exchange: Exchange, id_: str) -> Response:
        return await self._acked(exchange, id_, pulled=False)

    async def _ack(self, exchange: Exchange, id_: str) -> Response:
        return await self._acked(exchange, id_, pulled=True)

    async def _acked(self, exchange: Exchange, id_: str, *, pulled: bool) -> Response:
        token, asked = await self._token(exchange, id_), await self._json(exchange)
        acks, done = _acks(asked.get("acks")), asked.get("done") is True
        follows = await self._subscriptions.ack(id_, token, _wake(asked), acks, done=done, pulled=pulled)
        answer: dict[str, Any] = {"ok": True, "next_wake": follows}
        fresh = None if done else await self._subscriptions.renewed(id_, token)
        return _json(answer if fresh is None else {**answer, "token": fresh})  # an addition of ours (11.1)

    async def _release(self, exchange: Exchange, id_: str) -> Response:
        token, asked = await self._token(exchange, id_), await self._json(exchange)
        await self._subscriptions.release(id_, token, _wake(asked))
        return Response(status_code=204)

    async def _token(self, exchange: Exchange, id_: str) -> str:
        """The token of a wake, checked before a body is taken in. Raises TokenInvalid, TokenExpired."""
        token = _token(exchange)
        await self._subscriptions.check_token(id_, token)
        return token

    async def _json(self, exchange: Exchange) -> dict[str, Any]:
        return await exchange.json(self._subscriptions.streams.limits.message_bytes)


def _terms(asked: dict[str, Any]) -> Terms:
    """What a PUT asks for (6.2). Raises InvalidRequest."""
    unknown = asked.keys() - _FIELDS
    if unknown:
        raise InvalidRequest(f"{min(unknown)[:100]!r} is not known; a subscription takes {', '.join(sorted(_FIELDS))}")
    kind, lease = asked.get("type"), asked.get("lease_ttl_ms", LEASE_MS)
    if kind not in ("webhook", "pull-wake"):
        raise InvalidRequest("type is webhook or pull-wake")
    if not isinstance(lease, int) or isinstance(lease, bool):
        raise InvalidRequest("lease_ttl_ms is a whole number")
    webhook = asked.get("webhook")
    if webhook is not None and not isinstance(webhook, dict):
        raise InvalidRequest('webhook is an object: {"url": "https://…"}')
    url = webhook.get("url") if webhook else None
    pattern, wake_stream, description = (asked.get(name) for name in ("pattern", "wake_stream", "description"))
    for said, value in (("webhook.url", url), ("pattern", pattern), ("wake_stream", wake_stream)):
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"{said} is a text")
    if description is not None and not isinstance(description, str):
        raise InvalidRequest("description is a text")
    return Terms(
        kind,
        pattern.strip("/") or None if pattern is not None else None,
        tuple(sorted(set(_names(asked.get("streams"))))),
        url if kind == "webhook" else None,
        wake_stream.strip("/") or None if wake_stream is not None and kind == "pull-wake" else None,
        lease,
        description,
    )


def _names(given: Any) -> list[str]:
    """Names of streams, without slashes around them. Raises InvalidRequest."""
    if given is None:
        return []
    if not isinstance(given, list) or not all(isinstance(name, str) and name.strip("/") for name in given):
        raise InvalidRequest("streams is a list of names of streams")
    return [name.strip("/") for name in given]


def _wake(asked: dict[str, Any]) -> tuple[str, int]:
    wake_id, generation = asked.get("wake_id"), asked.get("generation")
    if not isinstance(wake_id, str) or not isinstance(generation, int):
        raise InvalidRequest("say which wake it is about: wake_id and generation, as they came with it")
    return wake_id, generation


def _acks(given: Any) -> dict[str, str]:
    """Offsets by stream; of several for one stream, the last (7.1). Raises InvalidRequest."""
    if given is not None and not isinstance(given, list):
        raise InvalidRequest(_ACKS)
    acks: dict[str, str] = {}
    for ack in given or ():
        said = ack if isinstance(ack, dict) else {}
        name, offset = said.get("stream", said.get("path")), said.get("offset")
        if not isinstance(name, str) or not isinstance(offset, str):
            raise InvalidRequest(_ACKS)
        acks[name.strip("/")] = offset
    return acks


def _token(exchange: Exchange) -> str:
    scheme, _, token = exchange.headers.get("authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise TokenInvalid("send the token that came with the wake: Authorization: Bearer <token>")
    return token.strip()


def _address(exchange: Exchange) -> str:
    """Where streams are, as this client sees the server."""
    host, path = exchange.headers.get("host", "localhost"), exchange.scope["path"]
    return f"{exchange.scope.get('scheme', 'http')}://{host}{path[: path.index(f'/{CONTROL}/')]}"


def _json(value: dict[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, {"cache-control": "no-store"}, "application/json")
