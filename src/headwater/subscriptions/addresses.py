"""Where a webhook may go: never into the network this server stands in (6.2; server-side request forgery).

Twice: `checked` reads an address when a subscription is made, `reachable` looks at what its name stands for each time
before something is sent, all of it, and gives the very numbers to connect to, so that a name which changes its mind
between the two (DNS rebinding) gains nothing.

Knows URLs and numbers of networks; asks the system's resolver, in threads.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
from concurrent.futures import ThreadPoolExecutor
from typing import Final, NamedTuple
from urllib.parse import urlsplit

from headwater.errors import BadRequest
from headwater.subscriptions.refusals import WebhookUrlRejected

LONGEST_URL: Final = 2048

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_PLAIN: Final = re.compile(r"[!-\[\]-~]+", re.ASCII)
"""Printable, no space, no backslash, which some take for a slash."""

_HOST: Final = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9_])?)*", re.ASCII)
_LIKE_A_NUMBER: Final = re.compile(r"([0-9]+|0x[0-9a-f]*)", re.ASCII)
"""A last label that browsers and resolvers take for (the rest of) an IPv4 address, in whatever base."""

_PUBLIC_V6: Final = ipaddress.ip_network("2000::/3")
_NOT_PUBLIC: Final = [
    ipaddress.ip_network(text)
    for text in (
        "2001::/23",  # Teredo and other stand-ins, which may carry an IPv4 address
        "2001:db8::/32",
        "2002::/16",  # 6to4: the same
        "3fff::/20",
        "192.88.99.0/24",  # 6to4's relays
    )
]


_RESOLVERS: Final = ThreadPoolExecutor(8, thread_name_prefix="headwater-resolver")
"""Of our own: a name server that is silent holds its thread for long, and `asyncio.to_thread` is the application's."""


class Target(NamedTuple):
    """A checked address, taken apart."""

    scheme: str
    host: str
    """As the certificate must name it."""
    port: int
    authority: str
    """For the Host header."""
    path: str
    """With the query."""

    @property
    def is_local(self) -> bool:
        """Meant for this very machine."""
        return self.scheme == "http"


def checked(url: str, *, loopback: bool) -> Target:
    """The target that `url` names. Raises WebhookUrlRejected. `loopback`: plain http to this machine is allowed."""
    if len(url) > LONGEST_URL or not _PLAIN.fullmatch(url):
        raise WebhookUrlRejected(f"a webhook's URL has at most {LONGEST_URL:,} plain characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise WebhookUrlRejected("this is not a URL") from None
    host = (parts.hostname or "").lower()
    if parts.scheme not in ("http", "https"):
        raise WebhookUrlRejected("a webhook's URL begins with https://")
    if "@" in parts.netloc or parts.netloc.endswith(":") or port == 0:
        raise WebhookUrlRejected("a webhook's URL names a host and maybe a port, no user and no password")
    (_check_local if parts.scheme == "http" else _check_public)(host, loopback)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, host, port or (80 if parts.scheme == "http" else 443), parts.netloc.lower(), path)


def _check_local(host: str, loopback: bool) -> None:
    if not loopback:
        raise WebhookUrlRejected("a webhook's URL begins with https://")
    if host != "localhost" and not (host.startswith("127.0.0.") and _literal(host) is not None):
        raise WebhookUrlRejected("http:// is for localhost and 127.0.0.x only; use https://")


def _check_public(host: str, _: bool) -> None:
    address = _literal(host)
    if address is not None:
        if not is_public(address):
            raise WebhookUrlRejected("a webhook does not go to private, local or reserved addresses")
        return
    last = host.rpartition(".")[2]
    if not _HOST.fullmatch(host) or _LIKE_A_NUMBER.fullmatch(last):
        raise WebhookUrlRejected("this is not the name of a host; write it in small plain letters, without a last dot")
    if last == "localhost":
        raise WebhookUrlRejected("a webhook does not go to this machine; in development use http://localhost")


def _literal(host: str) -> Address | None:
    """The address that `host` spells, in the one usual way; None for a name, and for an odd spelling."""
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether it is somewhere in the public internet, and not one that stands for another address."""
    if any(address in network for network in _NOT_PUBLIC):
        return False
    if isinstance(address, ipaddress.IPv6Address):  # which leaves out mapped, translated (NAT64), local and multicast
        return address.scope_id is None and address in _PUBLIC_V6 and address.is_global
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolved(host: str, port: int) -> list[Address]:
    """What the system's resolver says `host` is. Raises OSError."""
    asked = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = await asyncio.get_running_loop().run_in_executor(_RESOLVERS, asked)
    return list(dict.fromkeys(ipaddress.ip_address(place[0]) for *_, place in found))


async def reachable(target: Target) -> list[Address]:
    """The addresses to try, in order. Raises WebhookUrlRejected where one is not allowed, OSError where none is."""
    addresses = await resolved(target.host, target.port)
    for address in addresses:
        if not (address.is_loopback if target.is_local else is_public(address)):
            raise WebhookUrlRejected("the name of this host stands for an address that webhooks do not go to")
    return addresses


def checked_public_url(url: str) -> str:
    """`url`, if a webhook's receiver can be told to call back there. Raises BadRequest."""
    try:
        parts = urlsplit(url)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        fits = False
    if not fits or parts.username is not None or set(url) & set("?# ") or not (url.isascii() and url.isprintable()):
        raise BadRequest(f"{url!r} is no address of a server: write https://host, with a port and a prefix if need be")
    return url
