"""Tokens of workers: bound to one subscription, one generation of its wakes, and an hour (7.1, 7.3). Pure.

    <generation>.<end, s since 1970>.<HMAC-SHA256>

Nothing of them is kept: every process of a store makes and checks them with the subscription's own key.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from base64 import urlsafe_b64encode
from typing import Final

from headwater.subscriptions.refusals import TokenExpired, TokenInvalid

SECONDS: Final = 3600

RENEWED_SECONDS: Final = 1200
"""Before its end a token can be exchanged: a worker that lives may work for longer than one is good for."""

_TOKEN: Final = re.compile(r"([0-9]{1,15})\.([0-9]{1,15})\.([A-Za-z0-9_-]{43})", re.ASCII)


def make(key: str, subscription: str, generation: int, now: int) -> str:
    """A token that is good from `now` (ms) on. `key`: hex."""
    end = now // 1000 + SECONDS
    return f"{generation}.{end}.{_mac(key, subscription, generation, end)}"


def generation_of(token: str, key: str, subscription: str, now: int) -> int:
    """The generation a token was made for. Raises TokenInvalid or TokenExpired."""
    match = _TOKEN.fullmatch(token)
    if match is None:
        raise TokenInvalid("this is no token of a wake; send the one that came with it: Authorization: Bearer <token>")
    generation, end = int(match[1]), int(match[2])
    if not hmac.compare_digest(_mac(key, subscription, generation, end), match[3]):
        raise TokenInvalid("this token is not for this subscription")
    if now // 1000 > end:
        raise TokenExpired("this token was good for an hour, which is over")
    return generation


def renewed(token: str, key: str, subscription: str, now: int) -> str | None:
    """A token to go on with, for one that is good but not for long. Raises TokenInvalid or TokenExpired."""
    generation = generation_of(token, key, subscription, now)
    left = int(token.split(".")[1]) - now // 1000
    return make(key, subscription, generation, now) if left < RENEWED_SECONDS else None


def _mac(key: str, subscription: str, generation: int, end: int) -> str:
    text = f"{subscription}\n{generation}\n{end}".encode()
    mac = hmac.new(bytes.fromhex(key), text, hashlib.sha256).digest()
    return urlsafe_b64encode(mac).rstrip(b"=").decode()
