"""What may be asked of streams by name, beside what a principal was granted: some names are the server's own.

Knows the auth seam and names; nothing of requests' contents.
"""

from __future__ import annotations

from typing import Final

from headwater.errors import Forbidden
from headwater.http.auth import Action
from headwater.http.exchange import Exchange

RESERVED: Final = ("responses/", "headwater/")
"""Streams the server itself writes: read like any other (but for its own housekeeping), written by nobody else.

Runs are known by a label instead (`Append.foreign`): clients of other makers keep their own streams under `runs/`.
"""

HOUSEKEEPING: Final = "headwater/"


def may_write(exchange: Exchange, action: Action, name: str) -> None:
    """Raises Unauthorized or Forbidden."""
    exchange.authorize(action, name)
    if name.startswith(RESERVED):
        raise Forbidden("streams under this name are written by the server alone")


def may_read(exchange: Exchange, name: str) -> None:
    """Raises Unauthorized or Forbidden."""
    exchange.authorize("read", name)
    if name.startswith(HOUSEKEEPING):
        raise Forbidden("streams under this name are the server's own")
