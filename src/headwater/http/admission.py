"""How fast a client may write, and how many may follow at once: who is over is told 429, and when to come again.

Knows nobody. A client is a name: the principal's, or the network address where all are the same principal.
Invariants: memory is bounded, however many clients there are (G9); refusing costs a look into one table.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Final

from headwater.errors import TooManyRequests
from headwater.outlet import Scope, line_of

BURST_SECONDS: Final = 2.0
"""A client that was silent may write at once what it could have written in so long."""

MOST_CLIENTS: Final = 10_000
"""Remembered, the latest ones. Who was silent for BURST_SECONDS need not be; only where more than so many wrote in that
time is somebody forgotten, and let in, too early. About 2 MB."""

READERS_RETRY_SECONDS: Final = 5
"""A place is free when a reader leaves, which nobody can foretell; coming at once would only add to the load."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What is admitted; None: no bound."""

    appends_per_second: float | None = None
    """By one client; every request that writes counts as one. Off by default: what is much differs between a phone
    and a pipeline, and behind a proxy without keys all clients look like one."""
    readers: int | None = None
    """Following at once. Off by default: how many a server carries is a matter of its memory (7 to 30 KB each) and of
    the system's limit on open files, which both differ."""
    readers_per_client: int | None = None
    """Off by default, for the same reason as the first."""


class Admission:
    """The door of one process."""

    def __init__(self, bounds: Bounds = Bounds(), clock: Callable[[], float] = time.monotonic) -> None:
        self.bounds, self._clock = bounds, clock
        self._paid_until: OrderedDict[str, float] = OrderedDict()  # by client, the one that wrote last at the end
        self._following: dict[str, int] = {}
        self.readers = 0
        self.refused = 0

    def __repr__(self) -> str:
        return f"<Admission [{self.readers} readers, {self.refused} refused]>"

    def write(self, client: str) -> None:
        """Count one request that writes. Raises TooManyRequests, which says when there is room for it."""
        rate = self.bounds.appends_per_second
        if rate is None:
            return
        # A bucket that leaks, as one number: when what has been let in will have leaked out.
        now = self._clock()
        paid = max(self._paid_until.get(client, now), now) + 1 / rate
        wait = paid - now - max(BURST_SECONDS, 1 / rate)
        if wait > 0.01 / rate:  # sums of fractions are not exact
            raise self._too_many(f"at most {rate:g} appends a second; send many messages in one", math.ceil(wait))
        self._paid_until[client] = paid
        self._paid_until.move_to_end(client)
        self._forget(now)

    def _forget(self, now: float) -> None:
        for _ in range(2):  # two for one that comes: so the table shrinks again
            client, paid = next(iter(self._paid_until.items()))
            if paid > now and len(self._paid_until) <= MOST_CLIENTS:
                return
            del self._paid_until[client]  # never the one that has just paid

    @contextmanager
    def reader(self, client: str) -> Iterator[None]:
        """While inside, `client` has one reader more. Raises TooManyRequests."""
        self._join(client)
        try:
            yield
        finally:
            self._leave(client)

    @contextmanager
    def response(self, scope: Scope, client: str) -> Iterator[None]:
        """The same until the response to a request is over, which may be later (`headwater.outlet.Line`)."""
        self._join(client)
        try:
            yield
        finally:
            line = line_of(scope)
            if line is None:
                self._leave(client)
            else:
                line.on_over(partial(self._leave, client))

    def _join(self, client: str) -> None:
        bounds, mine = self.bounds, self._following.get(client, 0)
        if bounds.readers is not None and self.readers >= bounds.readers:
            raise self._too_many("this server has as many readers as it takes; come again", READERS_RETRY_SECONDS)
        if bounds.readers_per_client is not None and mine >= bounds.readers_per_client:
            raise self._too_many(
                f"a client may follow {bounds.readers_per_client} streams at once; leave one", READERS_RETRY_SECONDS
            )
        self.readers += 1
        self._following[client] = mine + 1

    def _leave(self, client: str) -> None:
        self.readers -= 1
        self._following[client] -= 1
        if not self._following[client]:
            del self._following[client]

    def _too_many(self, message: str, seconds: int) -> TooManyRequests:
        self.refused += 1
        return TooManyRequests(message, retry_after=seconds)

    def statistics(self) -> dict[str, int]:
        """Readers now, and requests refused so far."""
        return {"readers": self.readers, "refused": self.refused}


def place(client: tuple[str, int] | None) -> str:
    """Whose an ASGI `client` is: its address; of IPv6 the /64, which is one customer's, and all of it free to use."""
    if client is None:
        return ""
    host = client[0]
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host.partition("%")[0])
    except ValueError:
        return host
    if address.ipv4_mapped is not None:  # of a server that listens to both
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), 64), strict=False))
