"""`headwater tail`: a stream on stdout as it grows, through lost connections, to its end.

Knows the client, or a store file, and how messages look on a terminal or in a pipe. What is not the stream's own goes
to stderr.
"""

from __future__ import annotations

import asyncio
import sys
from base64 import b64encode
from collections.abc import Callable
from contextlib import aclosing
from typing import Annotated, Any, Final, Literal

import msgspec
import typer

from headwater.cli.places import DEFAULT_SERVER, Key, Server, StoreUrl, address, existing, with_key
from headwater.client import Client, Event, Retry, Unreachable
from headwater.errors import HeadwaterError
from headwater.streams import Streams

ENDED_BADLY: Final = 3

LONGEST_PAUSE: Final = 2.0
"""Seconds between attempts: somebody is watching, and it is only one reader."""

FormatName = Literal["data", "json", "text", "raw", "offsets"]
Show = Callable[[Event], None]


def tail(
    target: Annotated[
        str, typer.Argument(metavar="URL-OR-PATH", help="chat/42, /v1/runs/ID, or a whole URL.", show_default=False)
    ],
    from_: Annotated[
        str | None,
        typer.Option(
            "--from",
            metavar="OFFSET",
            help="Go on behind this offset; now: only what is new.",
            show_default="the start",
        ),
    ] = None,
    format_: Annotated[
        FormatName,
        typer.Option(
            "--format",
            help="data: a message a line. json: an object a line, with its offset. text: words only (of a run, the "
            "answer). raw: the bytes, nothing added. offsets: the offset before each message.",
        ),
    ] = "data",
    verbose: Annotated[bool, typer.Option("-v", help="The same as --format offsets.")] = False,
    server: Server = DEFAULT_SERVER,
    store: StoreUrl = None,
    key: Key = None,
) -> None:
    """Print a stream as it grows, until it ends.

    Goes on by itself when the server goes away and comes back.
    Ends with status 3 where the stream ended as failed or cancelled.

    [bold]Examples[/]

    [dim]$[/] headwater tail chat/42
    [dim]$[/] headwater tail http://127.0.0.1:4437/v1/runs/ID/events --format text
    [dim]$[/] headwater tail chat/42 --format offsets --from 0000000000000001_0000000000000007
    [dim]$[/] headwater tail chat/42 --store sqlite:///headwater.db
    """
    printer = _Printer("offsets" if verbose else format_)
    if store is not None:
        outcome = asyncio.run(_from_store(existing(store), target, from_, printer.show))
    else:
        with with_key(key):
            outcome = asyncio.run(_from_server(*address(target, server), key, from_, printer.show))
    printer.finish()
    if outcome in ("failed", "cancelled"):
        _note(f"the stream ended as {outcome}")
        raise typer.Exit(ENDED_BADLY)


async def _from_server(base: str, target: str, key: str | None, offset: str | None, show: Show) -> str | None:
    def on_lost(error: HeadwaterError, seconds: float) -> None:
        if reader.connections == 0 and isinstance(error, Unreachable):
            raise Unreachable(f"{error}; start a server with `headwater serve`, or name another with --server URL")
        _note(f"{error}; trying again in {seconds:.1f} s")

    def on_connected() -> None:
        if reader.connections > 1:
            _note("connected again")

    async with Client(base, key=key, retry=Retry(longest=LONGEST_PAUSE)) as client:
        reader = client.follow(target, offset, on_lost=on_lost, on_connected=on_connected)
        async with reader:
            async for event in reader:
                show(event)
    return reader.outcome


async def _from_store(store: Streams, name: str, offset: str | None, show: Show) -> str | None:
    outcome: str | None = None
    async with store as streams, aclosing(streams.follow(name, offset)) as pages:
        async for page in pages:
            for message in page.messages:
                show(Event(message.data, str(message.offset)))
            outcome = page.outcome
    return outcome


class _Printer:
    """Messages on stdout, each flushed, so that whoever reads the pipe has it at once."""

    def __init__(self, format_: FormatName) -> None:
        self._render = _RENDERERS[format_]
        self._ends_line = format_ == "text"
        self._last = b"\n"

    def show(self, event: Event) -> None:
        self._write(self._render(event))

    def finish(self) -> None:
        if self._ends_line and not self._last.endswith(b"\n"):
            self._write(b"\n")

    def _write(self, data: bytes) -> None:
        if data:
            self._last = data
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()


def _data(event: Event) -> bytes:
    return event.data if event.data.endswith(b"\n") else event.data + b"\n"


def _raw(event: Event) -> bytes:
    return event.data


def _offsets(event: Event) -> bytes:
    return event.offset.encode() + b" " + _data(event)


def _text(event: Event) -> bytes:
    """Of a run only the answer's words; of anything else the message."""
    value = _value(event)
    if not isinstance(value, dict) or not isinstance(value.get("type"), str):
        return value.encode() if isinstance(value, str) else event.data
    delta = value.get("delta")
    return delta.encode() if value["type"] == "TEXT_MESSAGE_CONTENT" and isinstance(delta, str) else b""


def _json(event: Event) -> bytes:
    said: dict[str, Any] = {"offset": event.offset, "data": _value(event)}
    if event.name != "message":
        said["event"] = event.name
    return msgspec.json.encode(said) + b"\n"


def _value(event: Event) -> Any:
    """JSON as it is, text as a string, other bytes as base64."""
    try:
        return event.json()
    except (msgspec.DecodeError, UnicodeDecodeError):
        pass
    try:
        return event.data.decode()
    except UnicodeDecodeError:
        return b64encode(event.data).decode()


_RENDERERS: Final[dict[FormatName, Callable[[Event], bytes]]] = {
    "data": _data,
    "json": _json,
    "text": _text,
    "raw": _raw,
    "offsets": _offsets,
}


def _note(text: str) -> None:
    typer.echo(f"headwater: {text}", err=True)
