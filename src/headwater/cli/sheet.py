"""What `headwater inspect` prints: facts in lines, spans and readers in tables. Pure.

Knows rich. Names, titles, errors and messages are somebody else's words: all of them pass through `plain`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Final

import msgspec
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from headwater.cli.shown import ago, lasted, plain, size
from headwater.cli.story import Span, Story

ACCENT: Final = "cyan"
HEADING: Final = f"bold {ACCENT}"
STYLES: Final = {"failed": "bold red", "waiting": "bold yellow", "open": "green", "running": "green"}
WORDS: Final = 400
"""Characters of an error, an input or a question."""
MOST_SPANS: Final = 40
MOST_READERS: Final = 20
BAR: Final = 32
"""Columns of the time line."""

Fact = tuple[str, Text | str]


class Known(msgspec.Struct, omit_defaults=True):
    """Of one stream, each part as the server tells it."""

    stream: dict[str, Any]
    run: dict[str, Any] | None = None
    story: Story | None = None
    readers: list[dict[str, Any]] | None = None
    tail: list[dict[str, Any]] | None = None


def sheet(known: Known, now: float, width: int) -> RenderableType:
    """`now`: ms since 1970."""
    run, stream = known.run, known.stream
    state = str((run or {}).get("status") or stream.get("outcome") or stream.get("state"))
    name = plain(str(stream.get("name")))
    title = Text.assemble((name, f"bold {ACCENT}"), "  ", (plain(state, 40), STYLES.get(state, "bold")))
    parts: list[RenderableType] = [title]
    if run is not None:
        story = known.story or Story()
        parts.append(_lines([*_of_run(run, story, now)]))
        for part in (*_spans("turns", story.turns, story), *_spans("tools", story.tools, story), *_approvals(run)):
            parts += [Text(), part]
        parts += [Text(), Text("its stream", HEADING)]
    parts.append(_lines([*_of_stream(stream, now), *_readership(stream, known.readers)]))
    for part in (*_lagging(known.readers or []), *_last(known.tail, width)):
        parts += [Text(), part]
    return Group(*parts)


def _lines(facts: list[Fact]) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=12)
    table.add_column(overflow="fold")
    for name, fact in facts:
        table.add_row(name, fact if isinstance(fact, Text) else Text(fact))
    return table


def _of_stream(stream: dict[str, Any], now: float) -> Iterator[Fact]:
    kept = stream.get("retention")
    yield "type", plain(str(stream.get("content_type")), WORDS)
    if stream.get("closed"):
        yield "closed", plain(str(stream.get("outcome") or "its closer did not say how it ended"), WORDS)
    yield "messages", f"{_whole(stream.get('messages')):,}, {size(_whole(stream.get('bytes')))}"
    if stream.get("start"):
        yield "kept from", f"{plain(str(stream['start']))} (older ones were let go)"
    yield "ends at", plain(str(stream.get("offset")))
    yield "created", _moment(stream.get("created"), now)
    yield "last append", _moment(stream.get("appended"), now)
    if isinstance(kept, dict) and kept:
        yield "keeps", plain(", ".join(f"{most} {bound}" for bound, most in kept.items()), WORDS)
    if stream.get("ttl") is not None:
        yield "goes", f"{_whole(stream['ttl'])} s after it was last read or written"
    if stream.get("expires_at") is not None:
        yield "goes at", _moment(stream["expires_at"], now)
    if stream.get("producers"):
        yield "producers", f"{_whole(stream['producers']):,} remembered"


def _readership(stream: dict[str, Any], readers: list[dict[str, Any]] | None) -> Iterator[Fact]:
    count = f"{_whole(stream.get('readers')):,} at this server"
    if readers is None:
        yield "readers", f"{count}; who they are is told where the console is served"
        return
    transports = Counter(plain(str(one.get("transport")), 24) for one in readers)
    said = ", ".join(f"{n:,} {transport}" for transport, n in transports.most_common())
    yield "readers", f"{count} ({said})" if said else count
    if readers:
        yield "behind", f"{sum(map(_is_behind, readers)):,} of them"


def _of_run(run: dict[str, Any], story: Story, now: float) -> Iterator[Fact]:
    created, ended = _whole(run.get("created")), run.get("ended")
    yield "agent", plain(str(run.get("agent")), WORDS)
    if run.get("title"):
        yield "about", plain(str(run["title"]), WORDS)
    yield "thread", plain(str(run.get("thread_id")), WORDS)
    if maker := _MAKERS.get(str(run.get("status"))):
        yield "made by", maker
    if isinstance(ended, int):
        yield "took", f"{lasted(max(0, ended - created) / 1000)}, ended {ago(now - ended)}"
    else:
        yield "for", lasted(max(0.0, now - created) / 1000)
    if story.first_said is not None:
        yield "first token", f"after {lasted(max(0, story.first_said - created) / 1000)}"
    yield "events", f"{story.events:,}" + ("" if story.whole else ", and more that were not gone through")
    if story.attempts > 1:
        yield "processes", f"{story.attempts}: others went on with it"
    for used in run.get("usage") or []:
        yield "tokens", _usage(used)
    if error := run.get("error"):
        said = f"{error.get('code')}: {error.get('message')}" if isinstance(error, dict) else str(error)
        yield "error", Text(plain(said, WORDS), "red")


_MAKERS: Final = {"running": "a process that holds it now", "waiting": "nobody while it waits for people"}


def _usage(used: Any) -> str:
    if not isinstance(used, dict):
        return ""
    counts = {word: used[f"{word}Tokens"] for word in ("input", "output", "reasoning", "cachedInput", "total")
              if isinstance(used.get(f"{word}Tokens"), int)}  # fmt: skip
    said = ", ".join(f"{n:,} {'cached input' if word == 'cachedInput' else word}" for word, n in counts.items())
    model = used.get("model")
    return said + (f" ({plain(str(model), 60)})" if model else "")


def _spans(what: str, spans: list[Span], story: Story) -> Iterator[Table]:
    """With a time line, all on one scale: from the first turn or tool to the end of the last."""
    if not spans:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(min_width=12, no_wrap=True)
    table.add_column(justify="right", min_width=9, no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_row(Text(f"{what}  {len(spans):,}", HEADING))
    for span in spans[:MOST_SPANS]:
        took = "not ended" if span.seconds is None else lasted(span.seconds)
        table.add_row(plain(span.name, 40), took, Text(_bar(span, story), ACCENT))
    if len(spans) > MOST_SPANS:
        table.add_row(Text(f"and {len(spans) - MOST_SPANS:,} more (--json has all)", "dim"))
    yield table


def _bar(span: Span, story: Story) -> str:
    times = [at for one in (*story.turns, *story.tools) for at in (one.started, one.ended) if at is not None]
    if span.started is None or not times:
        return ""
    low, whole = min(times), max(max(times) - min(times), 1)
    begin = min(BAR - 1, int((span.started - low) / whole * BAR))
    end = BAR if span.ended is None else max(begin + 1, round((span.ended - low) / whole * BAR))
    return " " * begin + ("━" * (end - begin) if span.ended is not None else "╌" * (end - begin))


def _approvals(run: dict[str, Any]) -> Iterator[RenderableType]:
    asked = [one for one in run.get("approvals") or [] if isinstance(one, dict)]
    if asked:
        yield Text("waits for an answer", "bold yellow")
        yield _lines([(plain(str(one.get("toolName")), 40), _question(one)) for one in asked])


def _question(one: dict[str, Any]) -> str:
    given = one.get("arguments")
    text = given if isinstance(given, str) else json.dumps(given, ensure_ascii=False)
    return f"{plain(text, WORDS)}  {plain(str(one.get('toolCallId')), 80)}"


def _is_behind(reader: dict[str, Any]) -> bool:
    return _whole(reader.get("behind")) > 0 or bool(reader.get("stalled"))


def _lagging(readers: list[dict[str, Any]]) -> Iterator[RenderableType]:
    found = [one for one in readers if _is_behind(one)]
    if not found:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column(Text("readers that are behind", HEADING), min_width=12, no_wrap=True)
    for column in ("behind", "silent", "at"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("")
    for one in found[:MOST_READERS]:
        silent = one.get("silent")
        table.add_row(
            plain(str(one.get("transport")), 24),
            f"{_whole(one.get('behind')):,}",
            lasted(silent) if isinstance(silent, int | float) else "",
            plain(str(one.get("offset")), 60),
            Text("takes nothing", "bold red") if one.get("stalled") else Text(),
        )
    if len(found) > MOST_READERS:
        table.add_row(Text(f"and {len(found) - MOST_READERS:,} more that are less behind", "dim"))
    yield table


def _last(entries: list[dict[str, Any]] | None, width: int) -> Iterator[RenderableType]:
    if entries is None:
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True, min_width=12)
    table.add_column(style="dim", justify="right", no_wrap=True, min_width=8)
    table.add_column(no_wrap=True, overflow="ellipsis")
    for entry in entries:
        said = plain(str(entry.get("text", "")), width) if "text" in entry else f"base64 {entry.get('base64', '')}"
        table.add_row(_clock(entry.get("time")), size(_whole(entry.get("size"))), Text(plain(said, width)))
    yield Group(Text("last messages" if entries else "no messages", HEADING), table)


def _clock(at: Any) -> str:
    return datetime.fromtimestamp(_whole(at) / 1000).astimezone().strftime("%H:%M:%S.%f")[:-3]


def _moment(at: Any, now: float) -> str:
    if not isinstance(at, int) or not at:
        return "never"
    when = datetime.fromtimestamp(at / 1000).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return f"{when} ({ago(now - at)})" if at <= now + 1000 else f"{when} (in {lasted((at - now) / 1000)})"


def _whole(fact: Any) -> int:
    return fact if isinstance(fact, int) else 0
