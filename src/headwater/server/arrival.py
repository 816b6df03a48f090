"""How large the head of a request may be, and how long one may take to come: for one connection.

httptools bounds neither: a sender that trickles would hold a connection, and what it has sent, for ever. A head must be
there in time as a whole; a body only has to go on, since a slow line takes as long as it takes. What stands in a body
and is not of it (fields behind it, sizes of its chunks) is bounded like a head. Time in which we ourselves do not read
does not count.

Knows the loop's clock; nothing of sockets or HTTP's syntax.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Literal

MOST_HEAD_BYTES: Final = 64 * 1024
"""Of request line and headers, and of what comes of a body without any of its data. Proxies stop at 8 to 32 KB; beyond
that it is no client but a probe."""

HEAD_SECONDS: Final = 30.0
"""From its first byte to its last, and from the connection to the first one."""

BODY_SECONDS: Final = 30.0
"""Without a byte of a body that has not come to its end."""


class Arrival:
    """What is expected of the sender: the head of a request, its body, or nothing."""

    def __init__(self, late: Callable[[], None], is_waiting: Callable[[], bool]) -> None:
        """`late` is called when the sender took too long; `is_waiting` says whether it is its turn at all."""
        self._loop = asyncio.get_running_loop()
        self._late, self._is_waiting = late, is_waiting
        self._timer: asyncio.TimerHandle | None = None
        self._since = 0.0
        self._bare_bytes = 0  # since the head began, or since the last data of a body
        self._fresh = False
        self.expected: Literal["head", "body"] | None = None
        self.begun = False
        """Something of the head that is expected has come."""

    def __repr__(self) -> str:
        return f"<Arrival of {self.expected or 'nothing'}>"

    def expect_head(self, *, begun: bool = False) -> None:
        self.expected, self.begun = "head", begun
        self._bare_bytes, self._fresh = 0, True
        self._wait()

    def head_came(self) -> None:
        self.expected = "body"
        self.data_came()

    def data_came(self) -> None:
        """Some of the body itself."""
        self._bare_bytes, self._fresh = 0, True

    def body_came(self) -> None:
        self.expected = None

    def went_on(self, size: int) -> bool:
        """So many bytes have come, and what is expected is not there yet. False: they are too many."""
        if self.expected is None:
            return True
        if self.expected == "body":
            self._wait()
        # How much of a chunk in which the counting began belongs to what was before it is not known: it is left out.
        self._bare_bytes += 0 if self._fresh else size
        self._fresh = False
        return self._bare_bytes <= MOST_HEAD_BYTES

    def forget(self) -> None:
        """Nothing is expected of this connection any more."""
        self.expected = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _wait(self) -> None:
        self._since = self._loop.time()
        if self._timer is None:
            self._timer = self._loop.call_later(HEAD_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.expected is None:
            return
        if not self._is_waiting():
            self._wait()
            return
        left = self._since + (HEAD_SECONDS if self.expected == "head" else BODY_SECONDS) - self._loop.time()
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self._late()
