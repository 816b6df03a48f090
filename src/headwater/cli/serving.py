"""`headwater serve` and `headwater demo`: options to a ServeConfig, and a word when the server is ready."""

from __future__ import annotations

import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Literal, NoReturn

import typer

from headwater.cli.agents import load
from headwater.errors import BadRequest
from headwater.model import Retention
from headwater.wire.durable import parse_retention

if TYPE_CHECKING:  # it needs an extra that other commands do not
    from headwater.server import ServeConfig

LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["human", "json"]

Store = Annotated[
    str,
    typer.Option(
        envvar="HEADWATER_STORE", metavar="URL", help="memory:, sqlite:///file.db or sqlite:////folder/file.db"
    ),
]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0: any that is free.")]
DemoPort = Annotated[int, typer.Option(min=0, max=65535, envvar="PORT", help="0: any that is free.")]

Agents = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[NAME=]MODULE:AGENT...",
        help="Agents to offer under /v1/runs, by NAME or the slug of their own.",
        show_default=False,
    ),
]
KeyFile = Annotated[
    str | None, typer.Option(metavar="keys.toml", help="Key file: who may do what.", show_default=False)
]
CorsOrigins = Annotated[
    list[str] | None,
    typer.Option(
        metavar="ORIGIN",
        help="Web pages that may use this server, like https://app.example.com; * for all. May be repeated.",
        show_default="pages of this machine",
    ),
]
Retain = Annotated[
    list[str] | None,
    typer.Option(
        metavar="PATTERN:BOUNDS",
        help="How much is kept of streams, by name: 'chat/*:seconds=3600', bytes=N, messages=N, or some of them with "
        "commas between. May be repeated; the first that matches counts.",
        show_default="everything",
    ),
]
SseMax = Annotated[
    float | None,
    typer.Option(
        metavar="SECONDS",
        help="After so long (10 % more or less, to the second) a live SSE response ends, and its client comes back for "
        "the next; nothing is lost. For CDNs that make one request of many: they need responses that end, say 60.",
        show_default="never",
    ),
]
JoinMs = Annotated[
    int,
    typer.Option(
        metavar="MS",
        help="Small messages that come within so long of a write go out together after it; the first one after a "
        "silence goes at once. 20 or 50 saves writes where tokens come fast; a reader may ask for "
        "its own time by ?join_ms=. 0: each as it comes.",
    ),
]
SlowReaders = Annotated[
    Literal["lag", "skip", "close"],
    typer.Option(
        help="What becomes of readers that fall behind: they get everything, late; or are moved on (a run rolled up, "
        "the newest message in format=sse, and told so); or are let go, and may resume. Who takes nothing at all is "
        "let go after 12 to 30 seconds in any case.",
    ),
]
SlowBytes = Annotated[int, typer.Option(metavar="N", help="How far behind a reader is slow, in bytes of messages.")]
SlowSeconds = Annotated[
    float, typer.Option(metavar="SECONDS", help="The same, in seconds: the age of what it has not got yet.")
]
MaxAppends = Annotated[
    float | None,
    typer.Option(
        metavar="N",
        help="Requests that write, by one key, or by one address where there are no keys; twice as many at once after "
        "a pause. What is more gets 429. Behind a proxy all clients without keys have its address.",
        show_default="no limit",
    ),
]
MaxReaders = Annotated[
    int | None,
    typer.Option(metavar="N", help="Live readers of this server; one more gets 429.", show_default="no limit"),
]
PublicUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Where this server is reached from outside: what webhooks are told to call back.",
        show_default="as the request that made the subscription reached it",
    ),
]
Proxies = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=URL",
        help="Pass /v1/proxy/NAME/... on to an OpenAI-compatible API, whose streamed answers can then be resumed: "
        "openai=https://api.openai.com/v1. Models, embeddings, moderations, images and audio go through as they are; "
        "files, batches and the like do not, since all clients would share them. Its key is "
        "OPENAI_API_KEY of the environment, for the name openai (MY_LLM_API_KEY for my-llm); clients' own keys are not "
        "passed on. May be repeated.",
        show_default="none",
    ),
]
OnShutdown = Annotated[
    Literal["resume", "interrupt"],
    typer.Option(
        help="What becomes of unfinished runs when this server is told to stop: the next process on the store goes on "
        "with them, or they end as failed.",
    ),
]
MostResumptions = Annotated[
    int,
    typer.Option(
        metavar="N",
        help="How often a run is gone on with from one point after its server died, so that one which kills its server "
        "does not do so for ever. 0: never.",
    ),
]
Console = Annotated[
    bool, typer.Option("--console/--no-console", help="Serve /console, a page that shows streams, runs and figures.")
]
MetricsPort = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=65535,
        metavar="PORT",
        help="Answer /metrics on a port of its own, without a key. 0: any that is free.",
        show_default="beside all else, with a key where there are some",
    ),
]
MetricsDir = Annotated[
    str | None,
    typer.Option(
        envvar="HEADWATER_METRICS_DIR",
        metavar="DIR",
        help="A directory that all server processes of this machine share: each then tells the sum of all.",
        show_default="each tells its own",
    ),
]
MaxReadersPerClient = Annotated[
    int | None, typer.Option(metavar="N", help="The same, of one key or address.", show_default="no limit")
]


def serve(  # noqa: PLR0913 -- the options of a command
    agents: Agents = None,
    store: Store = "sqlite:///headwater.db",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Port = 4437,
    auth: KeyFile = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Serve other machines without keys.")] = False,
    cors_origin: CorsOrigins = None,
    retain: Retain = None,
    grace: Annotated[float, typer.Option(metavar="SECONDS", help="From SIGTERM to the end.")] = 10.0,
    heartbeat: Annotated[float, typer.Option(metavar="SECONDS", help="Of silence, before a sign of life.")] = 15.0,
    long_poll_timeout: Annotated[float, typer.Option(metavar="SECONDS", help="Longest wait of live=long-poll.")] = 30.0,
    sse_max_seconds: SseMax = None,
    join_ms: JoinMs = 0,
    slow_readers: SlowReaders = "lag",
    slow_after_bytes: SlowBytes = 1024 * 1024,
    slow_after_seconds: SlowSeconds = 10.0,
    max_appends_per_second: MaxAppends = None,
    max_readers: MaxReaders = None,
    max_readers_per_client: MaxReadersPerClient = None,
    public_url: PublicUrl = None,
    proxy: Proxies = None,
    on_shutdown: OnShutdown = "resume",
    most_resumptions: MostResumptions = 5,
    console: Console = True,
    metrics_port: MetricsPort = None,
    metrics_host: Annotated[str, typer.Option(help="Address of that port.")] = "127.0.0.1",
    metrics_dir: MetricsDir = None,
    log_level: Annotated[LogLevel, typer.Option(help="What to log, on stderr.")] = "info",
    log_format: Annotated[LogFormat, typer.Option(help="For people, or one JSON object a line.")] = "human",
) -> None:
    """Serve streams, and runs of agents, over HTTP.

    [bold]Example[/] [dim]$[/] headwater serve app.agents:helper --store sqlite:////var/lib/headwater.db --port 8000
    """
    from headwater.delivery import Slow
    from headwater.server import ServeConfig

    with _bad_values_said():
        slow = Slow(slow_readers, slow_after_bytes, slow_after_seconds)
    config = ServeConfig(
        store=store, host=host, port=port, auth=auth, insecure=insecure, grace=grace, heartbeat=heartbeat,
        cors_origins=tuple(cors_origin) if cors_origin else ServeConfig().cors_origins,
        long_poll=long_poll_timeout, sse_max_seconds=sse_max_seconds, join_ms=join_ms, slow=slow,
        retention=_rules(retain or []),
        max_appends_per_second=max_appends_per_second,
        max_readers=max_readers, max_readers_per_client=max_readers_per_client,
        public_url=public_url,
        proxy=_upstreams(proxy or []),
        on_shutdown=on_shutdown, most_resumptions=most_resumptions, console=console,
        log_level=log_level,
        metrics_port=metrics_port, metrics_host=metrics_host, metrics_dir=metrics_dir,
        log_format=log_format,
    )  # fmt: skip
    _serve(config, agents or [])


def _serve(config: ServeConfig, agents: list[str]) -> NoReturn:
    from headwater.server import logs, run
    from headwater.server.serve import agent_names, check, check_values

    with _bad_values_said():
        check_values(config)
    check(config)  # before any module of the caller's is imported
    logs.begin(config.log_level, config.log_format)
    with _bad_values_said():
        config = replace(config, agents=[load(spec) for spec in agents])
        agent_names(config.agents)
    raise typer.Exit(run(config, lambda url: _ready(config, url)))


def _ready(config: ServeConfig, url: str) -> None:
    from headwater.server.serve import offers_console

    typer.echo(f"Headwater serves {config.store} at {url} (Ctrl-C ends it)")
    if offers_console(config):
        typer.echo(f"The console is at {url}/console")
    elif config.console:
        typer.echo(
            f"The console is off: other machines reach {config.host}, and there are no keys. "
            "It comes with --auth keys.toml, or on a loopback address (ssh -L 4437:127.0.0.1:4437)"
        )


@contextmanager
def _bad_values_said() -> Iterator[None]:
    """One line and status 2, as for an option that is not known."""
    try:
        yield
    except BadRequest as error:
        typer.echo(f"error: {error}", err=True)
        raise typer.Exit(2) from error


def _rules(texts: list[str]) -> list[tuple[str, Retention]]:
    with _bad_values_said():
        return [_rule(text) for text in texts]


def _rule(text: str) -> tuple[str, Retention]:
    """What `--retain` says: a pattern of names, and what is kept."""
    pattern, _, bounds = text.rpartition(":")
    if not pattern:
        raise BadRequest(f"--retain {text!r}: write PATTERN:BOUNDS, like 'chat/*:seconds=3600,messages=1000'")
    try:
        return pattern, parse_retention(bounds)
    except BadRequest as error:
        raise BadRequest(f"--retain {text!r}: {error}") from error


def _upstreams(texts: list[str]) -> dict[str, str]:
    """What `--proxy` says: names, and base URLs."""
    found: dict[str, str] = {}
    with _bad_values_said():
        for text in texts:
            name, _, url = text.partition("=")
            if not name or not url:
                raise BadRequest(f"--proxy {text!r}: write NAME=URL, like openai=https://api.openai.com/v1")
            if name in found:
                raise BadRequest(f"--proxy: {name!r} is given twice; each API has a name of its own")
            found[name] = url
    return found


def demo(
    store: Store = "sqlite:///headwater-demo.db",
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: DemoPort = 4437,
    insecure: Annotated[bool, typer.Option("--insecure", help="Let other machines use it.")] = False,
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
    from headwater.server import ServeConfig, logs
    from headwater.server.connection import PortTaken
    from headwater.server.serve import is_loopback

    def ready(url: str) -> None:
        typer.echo(f"The demo is at {url} (Ctrl-C ends it). Ask it, for example:")
        for question in TRY:
            typer.echo(f"  {question}")
        typer.echo("Reload in the middle of an answer, open a second tab, or restart this command: nothing is lost.")
        if browser:
            webbrowser.open(url)

    logs.begin(log_level)
    if not insecure and not is_loopback(host):
        raise BadRequest(f"{host} is reachable from other machines, and the demo has no keys: --insecure lets them in")
    config = ServeConfig(store=store, host=host, port=port, insecure=insecure, log_level=log_level)
    try:
        raise typer.Exit(run(config, ready))
    except PortTaken as error:
        raise PortTaken(f"{error} (PORT=4600 does it, too: PORT=4600 make demo)") from error
