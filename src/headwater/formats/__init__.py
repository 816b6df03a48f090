"""Formats by name: pure projections of a stream, each for one kind of client. No I/O, no clock, no reader's state."""

from __future__ import annotations

import re
from typing import Final

from headwater.decide import media_type
from headwater.errors import NotAcceptable
from headwater.formats.format import Format
from headwater.formats.lines import Lines, Raw
from headwater.formats.sse import ServerSentEvents

NAMES: Final = ("sse", "ndjson", "text")
"""What `by_name` knows."""

_Q: Final = re.compile(r"[01](\.\d{0,3})?", re.ASCII)


def by_name(name: str, content_type: str) -> Format:
    """The format that `?format=` or `Accept` names, for a stream of `content_type`. Raises NotAcceptable."""
    if name == "sse":
        return ServerSentEvents(content_type)
    if name == "ndjson":
        return Lines(content_type)
    if name == "text":
        return Raw(content_type)
    raise NotAcceptable(f"there is no format {name!r}; choose {', '.join(NAMES[:-1])} or {NAMES[-1]}")


def accepted(accept: str) -> str | None:
    """The format that an Accept header asks for above all: its first of the highest quality. None: not one of ours."""
    names = {"text/event-stream": "sse", "application/x-ndjson": "ndjson", "application/jsonl": "ndjson"}
    best = max(accept.split(","), key=_quality)  # the first of equals
    return names.get(media_type(best)) if _quality(best) else None


def _quality(part: str) -> float:
    """The `q` of one part of an Accept header (RFC 9110, 12.4.2); 0 where it is none."""
    for parameter in part.split(";")[1:]:
        name, _, value = parameter.partition("=")
        if name.strip().lower() == "q":
            return float(value) if _Q.fullmatch(value.strip()) else 0.0
    return 1.0
