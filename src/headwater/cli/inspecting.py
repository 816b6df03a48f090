"""`headwater inspect`: all that a server tells of one stream, or of one run.

Knows which paths tell what: `/v1/streams` of a stream, `/v1/runs` of a run, its log for what it did, and
`/console/api` for readers and the last messages, where the console is served.
"""

from __future__ import annotations

import difflib
import json
import time
from contextlib import suppress
from typing import Annotated, Any, Final
from urllib.parse import quote, unquote

import msgspec
import typer
from rich.console import Console

from headwater.cli.asking import Asking, helped
from headwater.cli.places import DEFAULT_SERVER, Key, Server, with_key
from headwater.cli.sheet import Known, sheet
from headwater.cli.shown import plain
from headwater.cli.story import Story, Telling
from headwater.client import Unreachable
from headwater.client.pages import page_of
from headwater.errors import BadRequest, Forbidden, HeadwaterError, NotFound

RUNS: Final = "runs/"
MOST_READ: Final = 32 * 1024 * 1024
"""Bytes of a run's log that are gone through."""
MOST_TAILED: Final = 1000
TAILED_BYTES: Final = 1024
"""Of a message that is shown."""
NAMES: Final = 1000
"""Among which a name that is near is looked for."""
UNNAMED: Final = 120
"""Columns, where it is not a terminal."""


def inspect(
    name: Annotated[
        str,
        typer.Argument(metavar="STREAM-OR-RUN", help="chat/42, a run's id, runs/ID, or a URL.", show_default=False),
    ],
    tail: Annotated[
        int, typer.Option(metavar="N", min=0, max=MOST_TAILED, help="Show the last N messages, too, shortened.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
    server: Server = DEFAULT_SERVER,
    key: Key = None,
) -> None:
    """Tell what is known of a stream, or of a run: how it stands, who reads it, what it did.

    Looking does not count as reading: a stream with a TTL is not kept alive by it, but for a run's log.

    [bold]Examples[/]

    [dim]$[/] headwater inspect chat/42 --tail 5
    [dim]$[/] headwater inspect runs/ID
    [dim]$[/] headwater inspect ID --json
    """
    base, path = _place(name, server)
    with with_key(key), Asking(base, key) as asking:
        try:
            known = _known(asking, path, tail)
        except Unreachable as error:
            raise helped(error) from error
    if as_json:
        typer.echo(json.dumps(msgspec.to_builtins(known)))  # all beyond ASCII is escaped: nothing acts on a terminal
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=UNNAMED)
    console.print(sheet(known, time.time() * 1000, console.width))


def _place(name: str, server: str) -> tuple[str, str]:
    """The server to ask, and a stream's name. A URL names its own server."""
    if not name.startswith(("http://", "https://", "/v1/")):
        return server, name
    base, _, rest = name.partition("/v1/")
    kind, _, path = rest.partition("?")[0].rstrip("/").partition("/")
    if kind == "runs" and path:
        return base or server, RUNS + unquote(path.partition("/")[0])
    if kind in ("stream", "streams") and path:
        return base or server, unquote(path)
    raise BadRequest("this URL is of no stream and no run; those have /v1/stream/NAME or /v1/runs/ID in it")


def _known(asking: Asking, name: str, tail: int) -> Known:
    """Raises StreamNotFound, Unauthorized, Forbidden, …."""
    name, stream = _stream(asking, name)
    path = quote(name)
    known = Known(stream, readers=_readers(asking, path))
    if name.startswith(RUNS):
        with suppress(NotFound):  # other makers of streams may use the same prefix; or there are no runs here
            known.run = asking.json(f"/v1/runs/{quote(name.removeprefix(RUNS), safe='')}")
            known.story = _story(asking, path)
    if tail:
        known.tail = _tail(asking, path, tail)
    return known


def _stream(asking: Asking, name: str) -> tuple[str, dict[str, Any]]:
    """Its whole name, and what is known of it. A name alone may be the id of a run."""
    tried = [name] if "/" in name else [name, RUNS + name]
    missing: NotFound | None = None
    for one in tried:
        try:
            return one, asking.facts(one)
        except NotFound as error:
            missing = error
    near = _near(asking, name)
    hint = f"; did you mean {' or '.join(map(plain, near))}?" if near else "; `headwater ls` lists them"
    raise NotFound(f"there is no stream and no run {plain(name)}{hint}") from missing


def _near(asking: Asking, name: str) -> list[str]:
    """Names like it, among those in its folder, or of all where it is in none."""
    folder = name[: name.rfind("/") + 1]
    try:
        listed = asking.json("/v1/streams", {"prefix": folder, "limit": str(NAMES)})["streams"]
        names = [str(stream["name"]) for stream in listed]
    except (HeadwaterError, LookupError, TypeError):  # it was only for a hint
        return []
    ends = [one for one in names if one.endswith(f"/{name}")]
    return (ends + difflib.get_close_matches(name, names, n=3, cutoff=0.7))[:3]


def _readers(asking: Asking, path: str) -> list[dict[str, Any]] | None:
    """None: the server does not tell, as it has no console."""
    try:
        return list(asking.json(f"/console/api/readers/{path}")["readers"])
    except (NotFound, Forbidden, LookupError):
        return None


def _tail(asking: Asking, path: str, count: int) -> list[dict[str, Any]]:
    query = {"limit": str(count), "most": str(TAILED_BYTES)}
    try:
        return list(asking.json(f"/console/api/entries/{path}", query)["entries"])
    except NotFound as error:
        raise NotFound("--tail takes the server's console, which is off; `headwater tail` prints the stream") from error


def _story(asking: Asking, path: str) -> Story:
    telling, read, offset = Telling(), 0, "-1"
    while True:
        response = asking.get(f"/v1/stream/{path}", {"offset": offset})
        page = page_of(response)
        for message in page.messages:
            telling.feed(message)
        read += len(response.content)
        if page.up_to_date or page.closed or not page.messages:
            return telling.story
        if read >= MOST_READ:
            telling.story.whole = False
            return telling.story
        offset = page.offset
