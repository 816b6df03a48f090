"""`headwater serve` and `headwater demo`: options to a ServeConfig, and a word when the server is ready."""

from __future__ import annotations

import logging
import webbrowser
from dataclasses import replace
from typing import Annotated, Final, Literal

import typer

from headwater.cli.agents import load

LogLevel = Literal["debug", "info", "warning", "error"]

Store = Annotated[
    str,
    typer.Option(
        envvar="HEADWATER_STORE", metavar="URL", help="memory:, sqlite:///file.db or sqlite:////folder/file.db"
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")]

_LOG_FORMAT: Final = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


def serve(  # noqa: PLR0913 -- the options of a command
    agents: Annotated[
        list[str] | None,
        typer.Argument(metavar="[NAME=]MODULE:AGENT...", help="Agents to offer under /v1/runs.", show_default=False),
    ] = None,
    store: Store = "sqlite:///headwater.db",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 4437,
    auth: Annotated[
        str | None, typer.Option(metavar="keys.toml", help="Key file: who may do what.", show_default=False)
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without keys.")] = False,
    cors_origin: Annotated[
        list[str] | None,
        typer.Option(
            metavar="ORIGIN",
            help="Web pages that may use this server, like https://app.example.com; * for all. May be repeated.",
            show_default="pages of this machine",
        ),
    ] = None,
    grace: Annotated[float, typer.Option(metavar="SECONDS", help="From SIGTERM to the end.")] = 10.0,
    heartbeat: Annotated[float, typer.Option(metavar="SECONDS", help="Of silence, before a sign of life.")] = 15.0,
    long_poll_timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Longest wait of live=long-poll.")] = 30.0,
    log_level: Annotated[LogLevel, typer.Option(help="What to log, on stderr.")] = "info",
) -> None:
    """Serve streams, and runs of agents, over HTTP.

    An agent is offered under the slug of its own name, or under NAME.

    [bold]Examples[/]

    [dim]$[/] headwater serve
    [dim]$[/] headwater serve app.agents:assistant helper=app.agents:second
    [dim]$[/] headwater serve --store sqlite:////var/lib/headwater.db --host 0.0.0.0 --auth keys.toml
    """
    from headwater.server import ServeConfig, run
    from headwater.server.serve import check

    config = ServeConfig(
        store=store,
        host=host,
        port=port,
        auth=auth,
        insecure=insecure,
        cors_origins=tuple(cors_origin) if cors_origin else ServeConfig().cors_origins,
        grace=grace,
        heartbeat=heartbeat,
        long_poll=long_poll_timeout,
        log_level=log_level,
    )
    check(config)  # before any module of the caller's is imported
    _log(log_level)
    config = replace(config, agents=[load(spec) for spec in agents or []])
    raise typer.Exit(run(config, lambda url: typer.echo(f"Headwater serves {store} at {url} (Ctrl-C ends it)")))


def demo(
    store: Store = "sqlite:///headwater-demo.db",
    port: Port = 4437,
    browser: Annotated[bool, typer.Option("--open", help="Open the page in the browser.")] = False,
    log_level: Annotated[LogLevel, typer.Option(help="What to log, on stderr.")] = "warning",
) -> None:
    """Chat with an agent on a real language model on this machine, in the browser.

    With OPENAI_API_KEY set (and OPENAI_BASE_URL, HEADWATER_MODEL, if you like) it uses that model instead.

    [bold]Examples[/]

    [dim]$[/] headwater demo
    [dim]$[/] headwater demo --port 8080 --open
    """
    from headwater.demo.main import TRY, run
    from headwater.server import ServeConfig

    def ready(url: str) -> None:
        typer.echo(f"The demo is at {url} (Ctrl-C ends it). Ask it, for example:")
        for question in TRY:
            typer.echo(f"  {question}")
        typer.echo("Reload in the middle of an answer, open a second tab, or restart this command: nothing is lost.")
        if browser:
            webbrowser.open(url)

    _log(log_level)
    raise typer.Exit(run(ServeConfig(store=store, port=port, log_level=log_level), ready))


def _log(level: LogLevel) -> None:
    logging.basicConfig(level=level.upper(), format=_LOG_FORMAT)
    if level != "debug":
        for name in ("httpx", "httpx2"):  # what openai's client is built on: reports every request of every agent
            logging.getLogger(name).setLevel(logging.WARNING)
