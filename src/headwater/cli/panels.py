"""What `headwater top` shows: the numbers of a Watch as tables, each in its place.

Knows rich and the names of the numbers (`docs/monitoring.md`). Asks nobody. Labels come over the network: they are
shown as plain text.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from headwater.cli.figures import Spread, Watch
from headwater.cli.shown import lasted, number, plain, size

WIDE: Final = 120
"""Columns from which on tables stand side by side."""

ACCENT: Final = "cyan"
NAME: Final = 48
"""Characters of a stream's name."""
WORD: Final = 24
"""Characters of a label."""
OUTCOMES: Final = ("completed", "failed", "cancelled")

_TIMES: Final[tuple[tuple[str, str, dict[str, str]], ...]] = (
    ("first token", "headwater_time_to_first_token_seconds", {}),
    ("gap in runs", "headwater_event_gap_seconds", {"kind": "run"}),
    ("gap in streams", "headwater_event_gap_seconds", {"kind": "stream"}),
    ("append, durable", "headwater_append_seconds", {"stage": "durable"}),
    ("append to socket", "headwater_delivery_seconds", {}),
    ("loop lag", "headwater_loop_lag_seconds", {}),
    ("reader lag", "headwater_reader_lag_seconds", {}),
)


class Busiest(NamedTuple):
    """The open streams that are read most."""

    streams: list[dict[str, Any]]
    """As the server lists them."""
    said: str = ""
    """What one has to know of the list."""


def screen(watch: Watch, busiest: Busiest | None, title: Text, width: int) -> RenderableType:
    """All of it, for a terminal of so many columns."""
    left = [_readers(watch), _appended(watch), _runs(watch)]
    right = [_times(watch), _reasons(watch)]
    shown: list[RenderableType] = [title]
    if width >= WIDE:
        grid = Table.grid(padding=(0, 3))
        grid.add_row(_stacked(left), _stacked(right))
        shown.append(grid)
    else:
        shown.append(_stacked(left + right))
    if busiest is not None:
        shown.append(_streams(busiest, width))
    return Group(*shown)


def _stacked(tables: list[Table]) -> Group:
    return Group(*(Padding(table, (0, 0, 1, 0)) for table in tables))


def _table(name: str, *columns: str, widths: tuple[int, ...] = ()) -> Table:
    """Its first column says what a row is, the others are numbers. Fixed widths: nothing jumps as they grow."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    table.add_column(Text(name, style=f"bold {ACCENT}"), no_wrap=True, min_width=17)
    for column, width in zip(columns, widths or (9,) * len(columns), strict=True):
        table.add_column(column, justify="right", no_wrap=True, min_width=width)
    return table


def _readers(watch: Watch) -> Table:
    table = _table("readers", "now", "came/s", "events/s", "bytes/s")
    now = watch.now.by("headwater_readers", "transport")
    came, events, sent = (
        watch.per_second(f"headwater_{what}_total", "transport")
        for what in ("subscribes", "events_delivered", "bytes_delivered")
    )
    for transport in sorted(now.keys() | events.keys()):
        row = (now[transport], came.get(transport, 0), events.get(transport, 0))
        table.add_row(plain(transport, WORD), *map(_count, row), _size(sent.get(transport, 0)))
    totals = (sum(now.values()), sum(came.values()), sum(events.values()))
    table.add_row("all, out", *map(number, totals), size(sum(sent.values())), style="bold")
    return table


def _appended(watch: Watch) -> Table:
    table = _table("appended", "", "", "events/s", "bytes/s")
    events = watch.per_second("headwater_events_appended_total", "kind")
    sizes = watch.per_second("headwater_bytes_appended_total", "kind")
    for kind in sorted(events):
        if kind != "internal":
            table.add_row(plain(kind, WORD), "", "", _count(events[kind]), _size(sizes.get(kind, 0)))
    table.add_row("all, in", "", "", number(sum(events.values())), size(sum(sizes.values())), style="bold")
    return table


def _runs(watch: Watch) -> Table:
    table = _table("runs", "now", *OUTCOMES)
    now = watch.now.total("headwater_runs")
    lately = watch.lately("headwater_run_outcomes_total", "outcome")
    ever = watch.now.by("headwater_run_outcomes_total", "outcome")
    table.add_row("running", number(now), style="bold")
    for name, counts in ((_window(watch), lately), ("since the start", ever)):
        table.add_row(name, "", *(_failures(word, counts.get(word, 0)) for word in OUTCOMES))
    for word in sorted(ever.keys() - set(OUTCOMES)):
        table.add_row(plain(word, WORD), "", _count(ever[word]))
    return table


def _times(watch: Watch) -> Table:
    table = _table("times", "p50", "p99", "p50 ever", "p99 ever")
    for name, family, where in _TIMES:
        lately, ever = watch.spread_lately(family, **where), watch.spread_ever(family, **where)
        table.add_row(name, *_spread(lately, lasted), *_spread(ever, lasted, "dim"))
    events = "headwater_reader_lag_events"
    lately, ever = watch.spread_lately(events), watch.spread_ever(events)
    table.add_row("reader lag, events", *_spread(lately, _whole), *_spread(ever, _whole, "dim"))
    return table


def _reasons(watch: Watch) -> Table:
    table = _table("gone", _window(watch), "ever")
    for title, name in (("", "headwater_disconnects_total"), ("refused: ", "headwater_refused_total")):
        lately, ever = watch.lately(name, "reason"), watch.now.by(name, "reason")
        for reason in sorted(ever):
            table.add_row(title + plain(reason, WORD), _count(lately[reason]), Text(number(ever[reason]), "dim"))
    if not table.row_count:
        table.add_row(Text("nobody yet", "dim"))
    return table


def _streams(busiest: Busiest, width: int) -> Table:
    table = _table("busiest streams", "readers", "messages", "bytes", widths=(9, 11, 9))
    most = max(16, min(NAME, width - 33))  # a long name must not push the numbers out
    for stream in busiest.streams:
        facts = (stream.get(word) for word in ("readers", "messages", "bytes"))
        readers, messages, held = (fact if isinstance(fact, int) else 0 for fact in facts)
        table.add_row(plain(str(stream.get("name")), most), number(readers), number(messages), size(held))
    if not busiest.streams:
        table.add_row(Text("no open stream", "dim"))
    if busiest.said:
        table.add_row(Text(busiest.said, "dim"))
    return table


def _window(watch: Watch) -> str:
    return f"last {min(watch.seconds, 60):.0f} s"


def _count(n: float) -> Text:
    return Text(number(n), "" if n else "dim")


def _size(n: float) -> Text:
    return Text(size(n), "" if n else "dim")


def _failures(word: str, n: float) -> Text:
    return Text(number(n), "red" if word == "failed" and n else "" if n else "dim")


def _spread(spread: Spread, shown: Callable[[float], str], style: str = "") -> tuple[Text, Text]:
    def said(share: float | None) -> Text:
        if share is None:
            return Text("·", "dim")
        return Text(f"<{shown(spread.least)}" if 0 < share <= spread.least else shown(share), style)

    return said(spread.p50), said(spread.p99)


def _whole(n: float) -> str:
    return f"{n:,.0f}"
