"""All subscriptions of one store: make, look up, change, claim, ack (Durable Streams 6, 7).

What is refused is refused on the newest state there is, whichever process made it; what is answered is durable.

Knows what goes on by itself (`waking`), the decisions and the tokens; nothing of HTTP, and of who may do what only that
a worker acts by the token of its wake.

Cancellation: a change is wholly in or wholly out, as an append is.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Self

from headwater.commits import checked_name
from headwater.errors import BadRequest
from headwater.streams import Streams
from headwater.subscriptions import decisions, globs, tokens
from headwater.subscriptions.addresses import checked_public_url
from headwater.subscriptions.decisions import Proof
from headwater.subscriptions.kept import Kept, linked, nothing
from headwater.subscriptions.refusals import InvalidRequest, NoPendingWork, SubscriptionExists, SubscriptionNotFound
from headwater.subscriptions.state import (
    LONGEST_LEASE_MS,
    SHORTEST_LEASE_MS,
    Claimed,
    State,
    Terms,
    Woken,
    reserved,
)
from headwater.subscriptions.waking import MOST, Waking, streams_of
from headwater.subscriptions.webhooks import Sender

_log = logging.getLogger("headwater.subscriptions")

LONGEST_ID: Final = 256
LONGEST_TEXT: Final = 1024
"""Of a description, and of a worker's name."""


class Subscriptions:
    """The subscriptions of a Streams. Open it after the streams, close it before them."""

    def __init__(
        self,
        streams: Streams,
        *,
        webhooks_to_loopback: bool = False,
        public_url: str | None = None,
        sender: Sender | None = None,
    ) -> None:
        """`webhooks_to_loopback`: for development, plain http to this machine; `public_url`: where this server is
        reached from outside, with its prefix, for callbacks; None: as whoever makes a subscription reached it."""
        self.streams = streams
        self.public_url = None if public_url is None else checked_public_url(public_url).rstrip("/")
        self._waking = Waking(streams, sender or Sender(streams, loopback=webhooks_to_loopback))
        self._open = False

    def __repr__(self) -> str:
        return f"<Subscriptions [{'open' if self._open else 'closed'}] {self._waking!r}>"

    @property
    def is_open(self) -> bool:
        return self._open

    async def open(self) -> None:
        """Know all that there are, and begin to look after them. Raises StoreUnavailable."""
        await self._waking.open()
        self._open = True

    async def aclose(self) -> None:
        """Leave them to the other processes, and to the next start. Closing twice is fine."""
        self._open = False
        await self._waking.aclose()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        await self.aclose()

    def statistics(self) -> dict[str, int]:
        """Figures for a console or metrics; those of wakes are this process's own, since it started."""
        states = [kept.state for kept in self._waking]
        return {
            "subscriptions": len(states),
            "links": sum(len(state.links) for state in states),
            "awake": sum(state.wake is not None for state in states),
            "failing": sum(state.failures > 0 for state in states),
            **self._waking.figures,
        }

    # -- making and changing ------------------------------------------------------------------------------------------

    async def make(self, id_: str, terms: Terms, address: str) -> tuple[dict[str, Any], bool]:
        """Make a subscription, or agree that it exists as described; its view, and whether it was made now (6.2).

        `address`: URL of the place where streams are, for callbacks. Raises InvalidRequest, WebhookUrlRejected,
        SubscriptionExists.
        """
        checked_id(id_)
        self._check(terms)
        if terms.url is not None:
            await self._waking.sender.check(terms.url)
        for _ in range(2):  # who finds it made in the same moment looks once more
            with suppress(SubscriptionNotFound):
                return await self._agreed(id_, terms), False
            with suppress(SubscriptionExists):
                return await self._made(id_, terms, address), True
        return await self._agreed(id_, terms), False

    async def _agreed(self, id_: str, terms: Terms) -> dict[str, Any]:
        kept = await self._newest(id_)
        if kept.state.terms != terms:
            raise SubscriptionExists("a subscription of this id exists already, with other terms")
        return await self._view(kept)

    async def _made(self, id_: str, terms: Terms, address: str) -> dict[str, Any]:
        if len(self._waking) >= MOST:
            raise InvalidRequest(f"this server has {MOST:,} subscriptions and takes no more; delete some")
        if self.public_url is not None:
            address = f"{self.public_url}/v1/stream"
        blank = State(id_, terms, self.streams.clock(), address, secrets.token_hex(32))
        if terms.wake_stream is not None and not await Kept(self.streams, id_).heads([terms.wake_stream]):
            _log.warning("subscription %s: its wake_stream %r does not exist; create it", id_, terms.wake_stream)
        heads = await Kept(self.streams, id_).heads(terms.streams)
        async for name, head in streams_of(self.streams, terms):
            heads[name] = head
            if len(heads) > 2 * decisions.MOST_LINKS:
                break  # too many; that is said below
        kept = self._waking.adopt(await Kept.make(self.streams, decisions.begun(blank, heads)))
        await self._waking.ring()
        return await self._view(kept)

    def _check(self, terms: Terms) -> None:
        """Raises InvalidRequest for terms that nothing can be done with."""
        if terms.pattern is None and not terms.streams:
            raise InvalidRequest("name at least one of pattern and streams")
        if not SHORTEST_LEASE_MS <= terms.lease_ms <= LONGEST_LEASE_MS:
            raise InvalidRequest(f"lease_ttl_ms is a whole number from {SHORTEST_LEASE_MS} to {LONGEST_LEASE_MS}")
        if len(terms.description or "") > LONGEST_TEXT:
            raise InvalidRequest(f"a description has at most {LONGEST_TEXT:,} characters")
        if terms.kind == "webhook" and terms.url is None:
            raise InvalidRequest('a webhook subscription needs where to send to: "webhook": {"url": "https://…"}')
        if terms.kind == "pull-wake" and terms.wake_stream is None:
            raise InvalidRequest("a pull-wake subscription needs a wake_stream")
        if terms.pattern is not None:
            checked_pattern(terms.pattern)
        for name in [*terms.streams, *([terms.wake_stream] if terms.wake_stream else [])]:
            checked_stream(name)
        if terms.wake_stream in terms.streams:
            raise InvalidRequest("the wake stream of a subscription cannot be one of its streams")

    async def delete(self, id_: str) -> None:
        """Whoever acts on it from now on is refused. One that does not exist is deleted already (6.3)."""
        with suppress(SubscriptionNotFound):
            kept = await self._waking.known(id_)
            await kept.delete()
            self._waking.forget(kept)
            await self._waking.ring()

    async def add(self, id_: str, names: Iterable[str]) -> None:
        """Explicit streams, from where they end now (6.4)."""
        kept, wanted = await self._waking.known(id_), [checked_stream(name) for name in names]
        if kept.state.terms.wake_stream in wanted:
            raise InvalidRequest("the wake stream of a subscription cannot be one of its streams")
        await self._waking.change(kept, partial(decisions.added, names=wanted), lambda _, __: wanted)

    async def remove(self, id_: str, name: str) -> None:
        """No longer an explicit stream; where the pattern means it, it stays (6.4)."""
        kept = await self._waking.known(id_)
        await self._waking.change(kept, lambda state, _: decisions.removed(state, name), nothing)

    # -- looking ------------------------------------------------------------------------------------------------------

    async def get(self, id_: str) -> dict[str, Any]:
        """How it is shown to clients (6.3). Raises SubscriptionNotFound."""
        return await self._view(await self._newest(id_))

    async def terms(self, id_: str) -> tuple[Terms, list[str]]:
        """What it was made with, and its explicit streams as of now. Raises SubscriptionNotFound."""
        state = (await self._newest(id_)).state
        return state.terms, [name for name, link in state.links.items() if link.explicit]

    async def keys(self) -> dict[str, list[dict[str, str]]]:
        """The public keys of webhooks (RFC 7517)."""
        return {"keys": [(await self._waking.sender.signer()).jwk]}

    async def _newest(self, id_: str) -> Kept:
        kept = await self._waking.known(id_)
        await kept.catch_up()
        return kept

    async def _view(self, kept: Kept) -> dict[str, Any]:
        state = kept.state
        heads = await kept.heads(state.links)
        streams = [
            {"path": name, "link_type": "explicit" if link.explicit else "glob", "acked_offset": link.acked}
            for name, link in state.links.items()
            if name in heads or link.awaited
        ]
        terms, created = state.terms, datetime.fromtimestamp(state.created / 1000, UTC)
        view: dict[str, Any] = {
            "id": kept.id,
            "subscription_id": kept.id,
            "type": terms.kind,
            "pattern": terms.pattern,
            "streams": streams,
            "wake_stream": terms.wake_stream,
            "lease_ttl_ms": terms.lease_ms,
            "created_at": created.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "status": "failed" if state.failures else "active",
            "description": terms.description,
        }
        if terms.url is not None:
            kid = (await self._waking.sender.signer()).kid
            signing = {"alg": "ed25519", "kid": kid, "jwks_url": f"{state.address}/__ds/jwks.json"}
            view["webhook"] = {"url": terms.url, "signing": signing}
        return {name: value for name, value in view.items() if value is not None}

    # -- workers ------------------------------------------------------------------------------------------------------

    async def claim(self, id_: str, worker: str) -> dict[str, Any]:
        """The lease for `worker`, and what there is to do (7.2). Raises AlreadyClaimed, NoPendingWork."""
        if not 1 <= len(worker) <= LONGEST_TEXT:
            raise InvalidRequest(f"worker is a text of 1 to {LONGEST_TEXT:,} characters")
        kept = await self._waking.known(id_)
        await self._waking.settle(kept)
        changed = await self._waking.change(kept, lambda state, sight: decisions.claimed(state, worker, sight))
        if not any(isinstance(event, Claimed) for event in changed.events):
            raise NoPendingWork("there is nothing to do")
        state = kept.state
        assert state.wake is not None, "it was just claimed"
        return {
            "wake_id": state.wake.id,
            "generation": state.generation,
            "token": tokens.make(state.key, id_, state.generation, changed.sight.now),
            "streams": decisions.infos(state, decisions.tails_of(changed.sight.heads)),
            "lease_ttl_ms": state.terms.lease_ms,
        }

    async def ack(
        self,
        id_: str,
        token: str,
        wake: tuple[str, int],
        offsets: Mapping[str, str],
        *,
        done: bool,
        pulled: bool,
    ) -> bool:
        """A worker lives, has worked up to `offsets`, and maybe is `done`; whether another wake follows (7.1, 7.2).

        `wake`: its id and generation; `pulled`: only for pull-wake subscriptions. Raises TokenInvalid, TokenExpired,
        Fenced, InvalidOffset.
        """
        kept, proof = await self._proven(id_, token, wake, pulled=pulled)
        if done:
            await self._waking.settle(kept)
        changed = await self._waking.change(
            kept,
            lambda state, sight: decisions.acked(state, proof, offsets, sight, done=done),
            linked if done else lambda _, __: offsets,
        )
        return any(isinstance(event, Woken) for event in changed.events)

    async def check_token(self, id_: str, token: str) -> None:
        """Raises TokenInvalid, TokenExpired, SubscriptionNotFound for one that no wake of this came with."""
        kept = await self._newest(id_)  # made anew under this id, it has another key
        tokens.generation_of(token, kept.state.key, id_, self.streams.clock())

    async def renewed(self, id_: str, token: str) -> str | None:
        """Another token for the same wake, where this one ends soon. Raises TokenInvalid, TokenExpired."""
        state = (await self._waking.known(id_)).state
        return tokens.renewed(token, state.key, id_, self.streams.clock())

    async def release(self, id_: str, token: str, wake: tuple[str, int]) -> None:
        """A worker gives its wake back; somebody else is woken (7.2). Raises as `ack`."""
        kept, proof = await self._proven(id_, token, wake, pulled=True)
        await self._waking.change(kept, lambda state, sight: decisions.released(state, proof, sight))

    async def _proven(self, id_: str, token: str, wake: tuple[str, int], *, pulled: bool) -> tuple[Kept, Proof]:
        kept = await self._newest(id_)  # made anew under this id, it has another key
        if pulled:
            decisions.only_pull(kept.state)
        generation = tokens.generation_of(token, kept.state.key, id_, self.streams.clock())
        return kept, Proof(*wake, generation)


def checked_id(id_: str) -> str:
    """`id_`, if it can be a subscription's. Raises InvalidRequest."""
    if not 1 <= len(id_) <= LONGEST_ID or not id_.isprintable() or "/" in id_ or id_ in (".", ".."):
        raise InvalidRequest(f"a subscription's id is 1 to {LONGEST_ID} printable characters, without a slash")
    return id_


def checked_stream(name: str) -> str:
    """`name`, if it can be a stream's that users subscribe to. Raises InvalidRequest."""
    try:
        checked_name(name)
    except BadRequest as error:
        raise InvalidRequest(str(error)) from None
    if reserved(name):
        raise InvalidRequest("streams under headwater/ are the server's own")
    return name


def checked_pattern(pattern: str) -> str:
    """`pattern`, if streams can match it. Raises InvalidRequest."""
    checked_stream(pattern)
    wild = [segment for segment in pattern.split("/") if "*" in segment]
    if any(segment not in (globs.ONE, globs.ANY) for segment in wild):
        raise InvalidRequest("in a pattern, * stands for a whole segment and ** for any number of them: a/*/b, a/**")
    if globs.many(pattern) > globs.MOST_ANY:
        raise InvalidRequest(f"a pattern has at most {globs.MOST_ANY} of **")
    return pattern
