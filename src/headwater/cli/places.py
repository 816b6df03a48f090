"""Where a command finds its streams: a server (by URL, with a key) or a store file on this machine.

Knows the options that several commands share, and how a stream is named on a command line.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer

from headwater.errors import BadRequest, Unauthorized
from headwater.stores import store_from_url
from headwater.stores.sqlite import SqliteStore
from headwater.streams import Streams

DEFAULT_SERVER: Final = "http://127.0.0.1:4437"

Server = Annotated[str, typer.Option("--server", "--url", envvar="HEADWATER_URL", metavar="URL", help="The server.")]
Key = Annotated[
    str | None,
    typer.Option(envvar="HEADWATER_KEY", show_envvar=True, metavar="KEY", help="API key, where the server wants one."),
]
StoreUrl = Annotated[
    str | None, typer.Option("--store", metavar="URL", help="Read a store file directly, without a server.")
]

_RUN: Final = re.compile(r"/v1/runs/[^/]+/?")


def address(target: str, server: str) -> tuple[str, str]:
    """The server to ask, and what to ask it for: a stream's name, or a URL.

    A target is a name (chat/42), a path (/v1/stream/chat/42, /v1/runs/ID) or a whole URL, which names its own server.
    """
    if target.startswith("/v1/"):
        target = server.rstrip("/") + target
    if not target.startswith(("http://", "https://")):
        return server, target
    parts = urlsplit(target)
    if _RUN.fullmatch(parts.path[parts.path.find("/v1/") :]):
        target = parts._replace(path=f"{parts.path.rstrip('/')}/events").geturl()
    return f"{parts.scheme}://{parts.netloc}", target


@contextmanager
def with_key(key: str | None) -> Iterator[None]:
    """Around what is asked of a server: one that wants a key is answered on a command line, and not in a header."""
    try:
        yield
    except Unauthorized as error:
        wrong = "the server wants a key" if key is None else "the server does not know this key"
        raise Unauthorized(f"{wrong}: give one with --key KEY, or in HEADWATER_KEY") from error


def existing(store: str) -> Streams:
    """The streams of a store that is there already; looking must not make one. Raises BadRequest."""
    found = store_from_url(store)
    if not isinstance(found, SqliteStore):
        raise BadRequest(f"{store} lives within its server's process; ask the server: --server URL")
    if not Path(found.path).exists():
        raise BadRequest(f"there is no file {found.path}")
    return Streams(found)
