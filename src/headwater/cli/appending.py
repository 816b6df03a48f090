"""`headwater append`: messages from the command line or from stdin, line by line as they come."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from io import BufferedIOBase
from typing import Annotated, Final, cast

import typer

from headwater.cli.places import DEFAULT_SERVER, Key, Server, address, with_key
from headwater.client import Client
from headwater.errors import BadRequest, StreamNotFound

JSON: Final = "application/json"
CHUNK_BYTES: Final = 64 * 1024


def append(
    path: Annotated[str, typer.Argument(help="The stream: chat/42, or its URL.", show_default=False)],
    data: Annotated[
        str | None, typer.Argument(help="One message; - takes each line of stdin as one.", show_default=False)
    ] = None,
    content_type: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Of the stream.", show_default=f"the stream's own, or {JSON}")
    ] = None,
    create: Annotated[bool, typer.Option("--create", help="Make the stream, if it is not there.")] = False,
    close: Annotated[bool, typer.Option("--close", help="End the stream for ever, afterwards.")] = False,
    server: Server = DEFAULT_SERVER,
    key: Key = None,
) -> None:
    """Add messages to a stream, and print the offset where it then ends.

    [bold]Examples[/]

    [dim]$[/] headwater append --create chat/42 '{"text": "hello"}'
    [dim]$[/] make 2>&1 | headwater append --create --close --content-type text/plain builds/7 -
    [dim]$[/] headwater append --close chat/42
    """
    if data is None and not create and not close:
        raise BadRequest("there is nothing to append: give a message, or - for the lines of stdin")
    base, path = address(path, server)
    # A loop that runs only while a request does: waiting for stdin stays an ordinary read, which Ctrl-C ends.
    with with_key(key), asyncio.Runner() as runner:
        client = Client(base, key=key)
        try:
            kind = runner.run(_type_of(client, path, content_type, create=create))
            offset = ""
            for batch in _batches(data, as_json=_is_json(kind)):
                offset = runner.run(client.append(path, *batch, content_type=kind))
            if close:
                offset = runner.run(client.close(path))
            typer.echo(offset or runner.run(client.head(path)).offset)
        finally:
            runner.run(client.aclose())


async def _type_of(client: Client, path: str, given: str | None, *, create: bool) -> str:
    """The content type to append with; the stream is made where that was asked for."""
    if given is not None:
        if create:
            await client.create(path, content_type=given)
        return given
    try:
        return (await client.head(path)).content_type
    except StreamNotFound:
        if not create:
            raise StreamNotFound(f"there is no stream {path}; --create makes it") from None
    await client.create(path, content_type=JSON)
    return JSON


def _is_json(content_type: str) -> bool:
    return content_type.partition(";")[0].strip().lower() == JSON


def _batches(data: str | None, *, as_json: bool) -> Iterator[list[bytes]]:
    """What to append with one request each. JSON messages may share one; others may not."""
    if data is None:
        return
    if data != "-":
        yield [data.encode(errors="surrogateescape")]
        return
    for lines in _lines(cast(BufferedIOBase, sys.stdin.buffer)):
        if not as_json:
            yield from ([line] for line in lines)
        elif messages := [line for line in lines if line.strip()]:
            yield messages


def _lines(source: BufferedIOBase) -> Iterator[list[bytes]]:
    """The lines that have come by now, each with its end; again and again until the end of `source`."""
    rest = b""
    while chunk := source.read1(CHUNK_BYTES):
        *lines, rest = (rest + chunk).split(b"\n")
        if lines:
            yield [line + b"\n" for line in lines]
    if rest:
        yield [rest]
