"""`headwater top`: what a server is doing now, as a table that stays in its place.

Knows `/metrics`, which every `headwater serve` answers, for several processes where they share a directory,
and the list of streams. Looks and does nothing else: a server that goes away is asked again until it is back.
"""

from __future__ import annotations

import time
from contextlib import suppress
from datetime import datetime
from typing import Annotated, Any, Final

import typer
from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

from headwater.cli.asking import Asking, helped
from headwater.cli.figures import Scrape, Watch, scrape
from headwater.cli.panels import ACCENT, Busiest, screen
from headwater.cli.places import DEFAULT_SERVER, Key, Server, with_key
from headwater.cli.shown import lasted, plain
from headwater.client import Unreachable
from headwater.errors import BadRequest, Forbidden, HeadwaterError, NotFound, Unauthorized

LISTED: Final = 1000
"""Open streams among which the busiest are looked for."""
LISTS_EVERY: Final = 5.0
"""Seconds: a list costs the server more than its numbers do."""
SHOWN: Final = 10
SHORTEST: Final = 0.2
UNNAMED: Final = 120
"""Columns, where it is not a terminal."""


def top(
    server: Server = DEFAULT_SERVER,
    key: Key = None,
    interval: Annotated[
        float, typer.Option(metavar="SECONDS", min=SHORTEST, help="Between two looks, and what rates are taken over.")
    ] = 1.0,
    once: Annotated[
        bool, typer.Option("--once", help="Print it once, and end; a pipe or file gets it so anyhow.")
    ] = False,
    metrics: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Where /metrics is, if on a port of its own (serve --metrics-port).",
            show_default="the server",
        ),
    ] = None,
) -> None:
    """Show live what a server is doing: readers, events, runs, how long things take, who goes and why.

    Goes on by itself when the server goes away and comes back. Ctrl-C ends it.

    [bold]Examples[/]

    [dim]$[/] headwater top
    [dim]$[/] headwater top --once > now.txt
    [dim]$[/] headwater top --server https://streams.example.org --interval 5
    """
    with with_key(key), Asking(server, key) as asking:
        looking = _Looking(asking, metrics)
        try:
            looking.look()
        except Unreachable as error:
            raise helped(error) from error
        console = Console(highlight=False)
        if once or not console.is_terminal:
            time.sleep(interval)
            looking.look()
            width = console.width if console.is_terminal else UNNAMED
            Console(highlight=False, width=width).print(looking.shown(width))
        else:
            with suppress(KeyboardInterrupt):
                _live(looking, console, interval)


def _live(looking: _Looking, console: Console, interval: float) -> None:
    with Live(console=console, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        due = time.monotonic()
        while True:
            live.update(looking.shown(console.width), refresh=True)
            due = max(due + interval, time.monotonic())
            time.sleep(max(0.0, due - time.monotonic()))
            looking.look_or_say()


class _Looking:
    """Asks one server again and again, and keeps what it said."""

    def __init__(self, asking: Asking, metrics: str | None) -> None:
        self._asking = asking
        self._metrics = None if metrics is None else metrics.rstrip("/").removesuffix("/metrics")
        self._watch = Watch()
        self._busiest: Busiest | None = None
        self._listed = -LISTS_EVERY
        self._lost: tuple[float, str] | None = None
        self._back = ""

    def look(self) -> None:
        """Raises Unreachable, Unauthorized, Forbidden, NotFound, …."""
        self._watch.add(self._scraped())
        if time.monotonic() >= self._listed + LISTS_EVERY:
            self._busiest = self._busy()
            self._listed = time.monotonic()

    def look_or_say(self) -> None:
        """The same; that there is no answer is said where it is shown."""
        try:
            self.look()
        except (BadRequest, Unauthorized, Forbidden, NotFound):
            raise
        except HeadwaterError as error:
            self._lost = self._lost or (time.monotonic(), str(error))
        else:
            if self._lost is not None:
                gone = lasted(time.monotonic() - self._lost[0])
                self._lost, self._back = None, f"connected again at {_clock()} after {gone}"

    def _scraped(self) -> Scrape:
        try:
            return scrape(self._asking.get(f"{self._metrics or ''}/metrics").text, time.monotonic())
        except Forbidden as error:
            raise Forbidden(f"{error}: give a key that may `observe` headwater/metrics") from error
        except NotFound as error:
            raise NotFound(
                f"there is no /metrics at {self._metrics or self._asking.base}; where the server has it on a port of "
                "its own (serve --metrics-port), name that: --metrics http://127.0.0.1:PORT"
            ) from error

    def _busy(self) -> Busiest | None:
        try:
            listed = self._asking.json("/v1/streams", {"state": "open", "limit": str(LISTED)})
        except Forbidden:
            return Busiest([], "this key may not list streams")
        except NotFound:
            return None
        streams = [stream for stream in listed.get("streams", []) if isinstance(stream, dict)]
        streams.sort(key=lambda stream: (-_whole(stream.get("readers")), -_whole(stream.get("appended"))))
        said = "" if listed.get("next") is None else f"of the first {len(streams):,} open streams by name"
        return Busiest(streams[:SHOWN], said)

    def shown(self, width: int) -> RenderableType:
        return screen(self._watch, self._busiest, self._title(), width)

    def _title(self) -> Text:
        now = self._watch.now
        facts = dict(next(iter(now.values["headwater_build_info"])))
        title = Text.assemble(
            ("headwater top", f"bold {ACCENT}"), f"  {plain(self._asking.base)}  ",
            (f"{plain(facts.get('store', '').removesuffix('Store'), 20)} {plain(facts.get('version', ''), 20)}", "dim"),
        )  # fmt: skip
        began = now.total("process_start_time_seconds")
        processes = now.total("headwater_processes")
        if began:
            title.append(f"  up {lasted(max(0.0, time.time() - began))}", "dim")
        if processes > 1:
            title.append(f"  {processes:.0f} processes", "dim")
        if now.total("headwater_draining"):
            title.append("  draining", "bold yellow")
        title.append(f"  {_clock()}", "dim")
        title.append("\n" + self._note()[0], self._note()[1])
        return title

    def _note(self) -> tuple[str, str]:
        if self._lost is None:
            return self._back, "green"
        return f"{self._lost[1]}; trying again since {lasted(time.monotonic() - self._lost[0])}", "bold red"


def _whole(fact: Any) -> int:
    return fact if isinstance(fact, int) else 0


def _clock() -> str:
    return datetime.now().astimezone().strftime("%H:%M:%S")
