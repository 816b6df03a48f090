"""`/v1/streams`: which streams there are, and what is known of one.

Knows streams and who may read which. Nothing of a stream's content is shown, nor who made it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec
from starlette.responses import Response

from headwater.errors import BadRequest
from headwater.http.access import HOUSEKEEPING, may_read
from headwater.http.exchange import Exchange
from headwater.http.standing import earliest
from headwater.model import Head
from headwater.problems import not_allowed
from headwater.streams import Streams

MOST_LISTED = 1000

MOST_LOOKED_AT = 5000
"""Streams in one search, some 20 ms: it goes on with the next page."""

_STATES: Final[dict[str, Callable[[Head], bool]]] = {
    "open": lambda head: not head.closed,
    "closed": lambda head: head.closed,
    "failed": lambda head: head.closed and head.outcome == "failed",
}


async def list_streams(exchange: Exchange, streams: Streams) -> Response:
    """`GET /v1/streams?prefix=&after=&limit=&contains=&state=`: the streams this principal may read, by name."""
    if exchange.method not in ("GET", "HEAD"):
        return not_allowed(["GET"])
    prefix = exchange.query("prefix") or ""
    exchange.authorize("list", prefix)
    limit, after, more = exchange.whole_number("limit", 100, MOST_LISTED), exchange.query("after"), True
    wanted, is_search = _wanted(exchange)
    batch, looked, seen = MOST_LISTED if is_search else limit, 0, ""
    listed: list[tuple[str, Head]] = []
    while more and len(listed) < limit and not (seen and looked >= MOST_LOOKED_AT):
        found = await streams.list(prefix, after=after, limit=batch)
        for name, head in found:
            if len(listed) < limit and not name.startswith(HOUSEKEEPING) and exchange.allows("read", name):
                seen = name  # `next` is only ever a name that this principal may see
                listed += [(name, head)] if wanted(name, head) else []
        after, more, looked = found[-1][0] if found else None, len(found) == batch, looked + len(found)
    said = [_facts(streams, *one) for one in listed]
    return _json({"streams": said, "next": seen if len(listed) >= limit or more else None})


def _wanted(exchange: Exchange) -> tuple[Callable[[str, Head], bool], bool]:
    """What a search is for, and whether it is one. Raises BadRequest."""
    contains, state = (exchange.query("contains") or "").casefold(), exchange.query("state")
    if state is not None and state not in _STATES:
        raise BadRequest(f"state is one of {', '.join(_STATES)}")
    holds = _STATES[state] if state is not None else None

    def wanted(name: str, head: Head) -> bool:
        return contains in name.casefold() and (holds is None or holds(head))

    return wanted, bool(contains or holds)


async def inspect_stream(exchange: Exchange, streams: Streams, name: str) -> Response:
    """`GET /v1/streams/{path}`: one of them, and what concerns it alone. Does not count as a read of it."""
    if exchange.method not in ("GET", "HEAD"):
        return not_allowed(["GET"])
    may_read(exchange, name)
    head = await streams.head(name)
    kept = head.config.retention
    more: dict[str, object] = {"producers": len(head.producers)}
    if kept is not None:
        more["retention"] = {bound: most for bound, most in msgspec.structs.asdict(kept).items() if most is not None}
    return _json(_facts(streams, name, head) | more)


def _facts(streams: Streams, name: str, head: Head) -> dict[str, object]:
    """`readers`: in this process; `bytes` and `messages`: kept now, `bytes` without what a fork inherited."""
    tail = streams.hub.known(name)
    facts: dict[str, object] = {
        "name": name,
        "content_type": head.config.content_type,
        "offset": str(head.offset),
        "messages": head.tail - head.start,
        "bytes": head.size - head.trimmed,
        "state": "closed" if head.closed else "open",
        "closed": head.closed,
        "readers": tail.readers if tail is not None else 0,
        "created": head.created,
        "appended": head.appended,
    }
    optional = {
        "start": str(earliest(head)) if head.start else None,
        "outcome": head.outcome,
        "ttl": head.config.ttl,
        "expires_at": head.config.expires_at,
    }
    return facts | {key: value for key, value in optional.items() if value is not None}


def _json(said: object) -> Response:
    return Response(msgspec.json.encode(said), 200, {"cache-control": "no-store"}, "application/json")
