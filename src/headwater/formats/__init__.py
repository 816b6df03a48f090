"""Formats by name: pure projections of a stream, each for one kind of client. No I/O, no clock, no reader's state."""

from __future__ import annotations

from headwater.decide import media_type
from headwater.errors import NotAcceptable
from headwater.formats.format import Format
from headwater.formats.lines import Lines, Raw
from headwater.formats.sse import ServerSentEvents


def by_name(name: str, content_type: str) -> Format:
    """The format that `?format=` or `Accept` names, for a stream of `content_type`. Raises NotAcceptable."""
    if name == "sse":
        return ServerSentEvents(content_type)
    if name == "ndjson":
        return Lines(content_type)
    if name == "text":
        return Raw(content_type)
    raise NotAcceptable(f"there is no format {name!r}; choose sse, ndjson or text")


def accepted(accept: str) -> str | None:
    """The format that an Accept header asks for above all, or None where it names none of ours."""
    names = {"text/event-stream": "sse", "application/x-ndjson": "ndjson", "application/jsonl": "ndjson"}
    wanted = [media_type(part) for part in accept.split(",")]
    return next((names[kind] for kind in wanted if kind in names), None)
