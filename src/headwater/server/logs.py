"""The log of a serving process: lines for people or JSON for programs, with what is nobody's business left out.

What Headwater logs itself holds no prompt, payload or key (`headwater.journal`). What others log, and what exceptions
say, may: so keys, queries of addresses and passwords are taken out of every line, and of an exception only its kind and
where it came from is shown, unless the level is debug. Other libraries are not heard below their warnings or, where
they are known to log what passes through them, at all below them.

Knows logging; nothing of streams.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Final, Literal, TextIO

from headwater.errors import HeadwaterError

LogFormat = Literal["human", "json"]

REDACTED: Final = "[redacted]"

_NOT_SHOWN: Final = "[not shown: it may hold what users said; log level debug shows it]"

_SECRETS: Final = (
    (re.compile(r"\b(bearer|basic)\s+[^\s\"',;]+", re.I), rf"\1 {REDACTED}"),
    (re.compile(r"\b((?:set-)?cookie)\b([\"']?\s*[:=]\s*)(?:\"[^\"]*\"|'[^']*'|.+)", re.I), rf"\1\2{REDACTED}"),
    (
        re.compile(
            r"\b((?:proxy-)?authorization|(?:x-)?api[-_]?key|(?:access|refresh|id|auth)[-_]?token|token|"
            r"client[-_]?secret|secret|password|passwd)\b([\"']?\s*[:=]\s*)(?!\s*[\"']?(?:bearer|basic)\b)"
            r"(?:\"[^\"]*\"|'[^']*'|[^\s,;&\"']+)",
            re.I,
        ),
        rf"\1\2{REDACTED}",
    ),
    (re.compile(r"\b(?:sk|pk|rk)-[\w-]{8,}|\bgh[pousr]_\w{16,}|\bxox[abp]-[\w-]{8,}|\bAKIA[0-9A-Z]{12,}"), REDACTED),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]+\.[\w-]*"), REDACTED),  # a JWT
    (re.compile(r"(://)[^/\s@\"']+@"), rf"\1{REDACTED}@"),
    (re.compile(r"((?:://|/)[^\s?#\"']*)\?[^\s#\"']+"), rf"\1?{REDACTED}"),
)

_QUIET: Final = ("httpx", "httpx2", "httpcore", "openai", "openai.agents", "websockets", "pydantic_ai", "langgraph")
"""Libraries whose lines below a warning tell of every request, and some of them of what is in it."""


def redacted(text: str) -> str:
    """`text` without keys, passwords and queries."""
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


class Lines(logging.Formatter):
    """For people: one line, and a traceback below it where there is one."""

    default_msec_format = "%s.%03d"

    def __init__(self, *, whole_errors: bool = False) -> None:
        """`whole_errors`: show what exceptions say."""
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")
        self._whole = whole_errors

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # another handler may have written it in full
        text = redacted(super().format(record))
        record.exc_text = None  # nor is what we leave out for others to show
        return text

    def formatException(self, ei: Any) -> str:  # noqa: N802 -- logging's name
        return super().formatException(ei) if self._whole else "\n".join(_without_words(ei[1]))


class JsonLines(Lines):
    """For programs: one object a line, with `time` (RFC 3339, UTC), `level`, `logger`, `message` or `event`."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        said: dict[str, Any] = {"time": at, "level": record.levelname.lower(), "logger": record.name}
        event = getattr(record, "event", None)
        if event is None:
            said["message"] = redacted(record.getMessage())
        else:
            facts = getattr(record, "facts", {})
            said["event"] = event
            said |= {name: redacted(fact) if isinstance(fact, str) else fact for name, fact in facts.items()}
        if record.exc_info and record.exc_info[1] is not None:
            said["error"] = f"{type(record.exc_info[1]).__module__}.{type(record.exc_info[1]).__qualname__}"
            said["traceback"] = redacted(self.formatException(record.exc_info))
        return json.dumps(said, ensure_ascii=False)


def begin(level: str, format_: LogFormat = "human", stream: TextIO | None = None) -> None:
    """Have this process log to `stream`, by default stderr, unless it logs already. `level` debug is of Headwater
    alone."""
    handler = logging.StreamHandler(stream or sys.stderr)
    kind = JsonLines if format_ == "json" else Lines
    handler.setFormatter(kind(whole_errors=level == "debug"))
    if (root := logging.getLogger()).handlers:
        return
    root.addHandler(handler)
    root.setLevel("INFO" if level == "debug" else level.upper())
    logging.getLogger("headwater").setLevel(level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def _without_words(error: BaseException | None) -> Iterator[str]:
    """What an exception is and where it came from, its causes first; what ours say is meant to be shown."""
    if error is None:
        return
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if before is not None:
        yield from _without_words(before)
        yield "… and because of that:"
    yield "Traceback (most recent call last):"
    yield from _frames(error.__traceback__)
    words = str(error) if isinstance(error, HeadwaterError) else _NOT_SHOWN
    yield f"{type(error).__module__}.{type(error).__qualname__}: {words}"


def _frames(at: TracebackType | None) -> list[str]:
    return [line.rstrip("\n") for line in traceback.format_tb(at)]
