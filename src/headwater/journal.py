"""Lines of the log that tell of something that happened, with its figures: for people, and for programs.

    note(log, logging.INFO, "reader ended", transport="sse", reason="left", seconds=12.4)

A plain handler shows `reader ended: transport=sse reason=left seconds=12.4`; one that knows finds `event` and `facts`
on the record (`headwater.server.logs` writes JSON of them). Invariant: what is noted is names, words and numbers; never
what a stream holds, nor what a client sent as its key or in its query.
"""

from __future__ import annotations

import json
import logging
from typing import Final

Fact = str | int | float | bool | None

_PLAIN: Final = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-.:/@{}~*")

LONGEST_TEXT: Final = 256
"""Characters of one fact: names come from outside."""


def note(log: logging.Logger, level: int, event: str, **facts: Fact) -> None:
    """Log `event` and its facts; those that are None are left out."""
    if not log.isEnabledFor(level):
        return
    kept = {name: _told(value) for name, value in facts.items() if value is not None}
    log.log(level, "%s: %s", event, text_of(kept), extra={"event": event, "facts": kept})


def text_of(facts: dict[str, Fact]) -> str:
    """`name=value`, one after the other on one line; what is no plain word is in quotes."""
    return " ".join([f"{name}={_quoted(value)}" for name, value in facts.items()])


def _told(value: Fact) -> Fact:
    if isinstance(value, float):
        return round(value, 3)
    return value[:LONGEST_TEXT] if isinstance(value, str) else value


def _quoted(value: Fact) -> str:
    if isinstance(value, str):
        return value if value and _PLAIN.issuperset(value) else json.dumps(value)
    return json.dumps(value)
