"""`headwater ls`: the streams of a server or of a store file, as a table or as JSON lines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Annotated, Final

import msgspec
import typer
from rich.console import Console
from rich.table import Table

from headwater.cli.places import DEFAULT_SERVER, Key, Server, StoreUrl, existing, with_key
from headwater.cli.shown import ago
from headwater.client import Client, StreamInfo
from headwater.model import Head
from headwater.streams import Streams

PAGE: Final = 500
UNBOUNDED: Final = 100_000
"""Columns."""
OWN: Final = "headwater/"
"""What the server keeps for itself."""


def ls(
    prefix: Annotated[str, typer.Argument(help="Only streams whose name starts so.", show_default=False)] = "",
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object a line.")] = False,
    server: Server = DEFAULT_SERVER,
    store: StoreUrl = None,
    key: Key = None,
) -> None:
    """List streams.

    [bold]Examples[/]

    [dim]$[/] headwater ls
    [dim]$[/] headwater ls chat/ --json
    [dim]$[/] headwater ls --store sqlite:///headwater.db
    """
    found = _of_server(server, key, prefix) if store is None else _of_store(existing(store), prefix)
    with with_key(key):
        asyncio.run(_print(found, as_json))


async def _print(found: AsyncIterator[StreamInfo], as_json: bool) -> None:
    if as_json:
        async for stream in found:
            typer.echo(msgspec.json.encode(stream))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("stream", "type", "state"):
        table.add_column(column, no_wrap=True)  # a name on one line can be copied, and found by grep
    for column in ("messages", "bytes", "last append"):
        table.add_column(column, justify="right", no_wrap=True)
    now = time.time() * 1000
    async for stream in found:
        state = (stream.outcome or "closed") if stream.closed else "open"
        figures = [f"{n:,}" if n is not None else "" for n in (stream.messages, stream.bytes)]
        table.add_row(
            stream.name, stream.content_type, state, *figures, ago(now - (stream.appended or stream.created or now))
        )
    if table.row_count:
        # Whole on any terminal and in a pipe: a table never asks for more width than its columns need.
        Console(highlight=False, markup=False, width=UNBOUNDED).print(table, crop=False, soft_wrap=True)
    else:
        typer.echo("no streams", err=True)


async def _of_server(server: str, key: str | None, prefix: str) -> AsyncIterator[StreamInfo]:
    async with Client(server, key=key) as client:
        after: str | None = None
        while True:
            streams, after = await client.list(prefix, after=after, limit=PAGE)
            for stream in streams:
                yield stream
            if after is None:
                return


async def _of_store(store: Streams, prefix: str) -> AsyncIterator[StreamInfo]:
    async with store as streams:
        after: str | None = None
        while found := await streams.list(prefix, after=after, limit=PAGE):
            for name, head in found:
                if not name.startswith(OWN):
                    yield _info(name, head)
            after = found[-1][0]


def _info(name: str, head: Head) -> StreamInfo:
    return StreamInfo(
        name=name,
        content_type=head.config.content_type,
        offset=str(head.offset),
        closed=head.closed,
        outcome=head.outcome,
        messages=head.tail - head.start,
        state="closed" if head.closed else "open",
        bytes=head.size - head.trimmed,
        created=head.created,
        appended=head.appended,
        ttl=head.config.ttl,
        expires_at=head.config.expires_at,
        retention=head.config.retention,
    )
