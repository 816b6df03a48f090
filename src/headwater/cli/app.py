"""The commands put together, and what every one of them does with an error: one line that helps, and a status.

0 done · 1 an error · 2 wrong usage · 3 the stream ended failed or cancelled · 130 Ctrl-C · 141 nobody reads on
"""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

from headwater import __version__
from headwater.errors import HeadwaterError, MissingExtra

try:
    import typer
    from rich.console import Console
    from typer.core import TyperGroup
except ImportError as error:
    raise MissingExtra("server", "typer or rich") from error

from headwater.cli.appending import append
from headwater.cli.inspecting import inspect
from headwater.cli.listing import ls
from headwater.cli.serving import demo, serve
from headwater.cli.tailing import tail
from headwater.cli.top import top

READER_LEFT = 141
"""What a shell reports of a program that SIGPIPE ended."""


class Commands(TyperGroup):
    """Errors of ours are for people: their message, and no traceback."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except HeadwaterError as error:
            said = Console(stderr=True, soft_wrap=True, highlight=False)
            said.print("[bold red]error:[/]", end=" ")
            said.print(str(error), markup=False)
            raise typer.Exit(1) from error
        except BrokenPipeError as error:  # `headwater tail … | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
            raise typer.Exit(READER_LEFT) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,  # they print local variables, and keys with them
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"headwater {__version__}")
        raise typer.Exit


@app.callback()
def _headwater(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version and end.")
    ] = False,
) -> None:
    """Streams what is still being made, an AI agent's answer above all, and loses nothing.

    [bold]Examples[/]

    [dim]$[/] headwater demo
    [dim]$[/] headwater serve app.agents:assistant
    [dim]$[/] headwater append --create chat/42 '{"text": "hello"}'
    [dim]$[/] headwater tail chat/42
    """


for command in (serve, demo, tail, append, ls, inspect, top):
    app.command()(command)
