"""Idempotency keys: which run a key stands for, so that a start that is repeated starts nothing.

Knows streams: each key of a principal is a small one, `headwater/keys/{hash}`, made by whoever uses the key first.
"""

from __future__ import annotations

import hashlib
from typing import Any, Final

import msgspec

from headwater.decide import Create, Item
from headwater.errors import BadRequest, KeyReused, StreamNotFound
from headwater.model import Config
from headwater.streams import Streams

TTL_SECONDS: Final = 24 * 3600
"""How long a key is remembered: longer than anybody retries, short enough to forget."""


async def claim(streams: Streams, principal: str, key: str, body: bytes, run_id: str) -> tuple[str, bool]:
    """The run that `key` stands for, and whether it is claimed now, for `run_id`.

    Raises KeyReused where it stands for another `body`.
    """
    digest = hashlib.sha256(body).hexdigest()
    name = _stream(principal, key)
    held = Item(as_json({"run": run_id, "body": digest}))
    decision = await streams.carry_out(name, Create(Config("application/json", TTL_SECONDS), [held]))
    if decision.what == "created":
        return run_id, True
    known = msgspec.json.decode((await streams.read(name)).messages[0].data)
    if known["body"] != digest:
        raise KeyReused("this Idempotency-Key was used for another request")
    return known["run"], False


async def claimed(streams: Streams, principal: str, key: str) -> str | None:
    """The id of the run that was started with this key, if it is still remembered."""
    try:
        claims = await streams.read(_stream(principal, key))
    except StreamNotFound:
        return None
    return str(msgspec.json.decode(claims.messages[0].data)["run"])


def as_json(value: Any) -> bytes:
    """Raises BadRequest."""
    try:
        return msgspec.json.encode(value, order="sorted")
    except (TypeError, ValueError) as error:
        raise BadRequest("the input is not JSON") from error


def _stream(principal: str, key: str) -> str:
    return f"headwater/keys/{hashlib.sha256(as_json([principal, key])).hexdigest()}"
