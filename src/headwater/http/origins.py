"""Which web pages may talk to this server: CORS, cross-site requests, and names that lie (DNS rebinding).

Knows headers only. A server without keys is protected by being on loopback, and every web page the user visits can
reach loopback: so pages of other origins are refused unless they were named, and so is a Host that is not ours.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import urlsplit

from headwater.errors import BadRequest, Forbidden

LOOPBACK: Final = "loopback"
"""Stands for pages served from this machine, whatever their port: front ends in development."""

_LOOPBACK_HOSTS: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_ORIGIN: Final = re.compile(r"[a-z][a-z0-9+.-]*://(\[[0-9a-f:]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?/?", re.ASCII | re.I)
_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})

ALLOWED_METHODS: Final = "GET, HEAD, POST, PUT, DELETE, OPTIONS"
ALLOWED_HEADERS: Final = (
    "accept, authorization, content-type, if-match, if-none-match, last-event-id, idempotency-key, x-run-id, "
    "stream-ttl, stream-expires-at, stream-closed, stream-outcome, stream-seq, stream-retention, producer-id, "
    "producer-epoch, producer-seq, stream-forked-from, stream-fork-offset, stream-fork-sub-offset, "
    # What clients of others say of themselves; a browser sends nothing at all where one of them is not allowed.
    "openai-organization, openai-project, x-stainless-arch, x-stainless-custom-poll-interval, "
    "x-stainless-helper-method, x-stainless-lang, x-stainless-os, x-stainless-package-version, "
    "x-stainless-poll-helper, x-stainless-retry-count, x-stainless-runtime, x-stainless-runtime-version, "
    "x-stainless-timeout, x-vercel-ai-ui-message-stream"
)
EXPOSED_HEADERS: Final = (
    "location, content-location, etag, retry-after, x-run-id, stream-next-offset, stream-up-to-date, stream-closed, "
    "stream-outcome, stream-cursor, stream-ttl, stream-expires-at, stream-retention, stream-earliest-offset, "
    "stream-sse-data-encoding, producer-epoch, producer-seq, producer-expected-seq, producer-received-seq, "
    "x-stream-id, x-vercel-ai-ui-message-stream"
)


def checked_origin(text: str) -> str:
    """`text`, if a browser can send it as an Origin, or it is `*` or `loopback`. Raises BadRequest."""
    if text not in ("*", LOOPBACK) and not _ORIGIN.fullmatch(text):
        raise BadRequest(f"{text!r} is no origin: write scheme://host or scheme://host:port, or * for all")
    return text


class Origins:
    """The pages and host names that are welcome."""

    def __init__(self, allowed: Sequence[str] = (LOOPBACK,), hosts: Sequence[str] | None = None) -> None:
        """`allowed`: origins like https://app.example.com, `loopback`, or `*`; `hosts`: None accepts every name."""
        self._allowed = frozenset(origin.rstrip("/").lower() for origin in allowed)
        self._hosts = None if hosts is None else frozenset(host.lower() for host in hosts) | _LOOPBACK_HOSTS

    def __repr__(self) -> str:
        return f"<Origins {sorted(self._allowed)}>"

    def check(self, method: str, headers: Mapping[str, str]) -> None:
        """Raises Forbidden for a request that a page of another origin makes a browser send, or with a foreign Host."""
        host = headers.get("host", "")
        if self._hosts is not None and _host_name(host) not in self._hosts:
            raise Forbidden(
                "without keys this server answers to this machine's own names only; "
                "start it with --auth keys.toml, or --insecure"
            )
        origin = headers.get("origin")
        if origin is None or method in _SAFE_METHODS or (host and _place(origin) == host) or self.allows(origin):
            return
        raise Forbidden("pages of this origin may not write here; start the server with --cors-origin to allow it")

    def allows(self, origin: str) -> bool:
        if "*" in self._allowed or origin in self._allowed:
            return True
        return LOOPBACK in self._allowed and _host_name(_place(origin)) in _LOOPBACK_HOSTS

    def headers(self, method: str, request: Mapping[str, str]) -> list[tuple[str, str]]:
        """What CORS adds to the answer. Credentials are never allowed: keys travel in a header, not in cookies."""
        added: list[tuple[str, str]] = []
        origin = request.get("origin")
        if origin is not None and self.allows(origin):
            added = [("access-control-allow-origin", origin), ("access-control-expose-headers", EXPOSED_HEADERS)]
        if method == "OPTIONS":
            added += [
                ("access-control-allow-methods", ALLOWED_METHODS),
                ("access-control-allow-headers", ALLOWED_HEADERS),
                ("access-control-max-age", "86400"),
            ]
        return [*added, ("vary", "origin")]


def _place(origin: str) -> str:
    """Host and port of an origin; empty for `null` and for what is none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


@functools.lru_cache(256)
def _host_name(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
