"""Whether the store failed when it was used last: what `/readyz` says, so that clients are sent to another server.

Knows commits and errors. No probe of its own: a full disk still reads, and one that writes would wear it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Final

from headwater.errors import StoreFileUnusable, StoreUnavailable
from headwater.streams import Streams

UNREADY_SECONDS: Final = 10.0
"""After a failure that nothing followed: who is sent no requests never learns that the store is back."""


class Outages:
    """What became of the last use of one process's store."""

    def __init__(self, streams: Streams, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._failed_at = clock, -math.inf
        streams.on_commit.append(lambda _, __: self._worked())
        streams.on_interruption.append(self.note)

    def __repr__(self) -> str:
        return f"<Outages [{'out' if self.is_out else 'none'}]>"

    @property
    def is_out(self) -> bool:
        return self._clock() < self._failed_at + UNREADY_SECONDS

    def note(self, error: Exception) -> None:
        """A request ended in `error`, or a response did in its middle."""
        if isinstance(error, StoreUnavailable | StoreFileUnusable):
            self._failed_at = self._clock()

    def _worked(self) -> None:
        self._failed_at = -math.inf
