"""Configuration, start and end of a serving process.

Knows how the parts are put together: store, runs, auth, origins, uvicorn. Invariant: everything is opened before the
first connection is accepted, and every error on the way is one of ours that says what to do.
"""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import logging
import math
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from headwater.delivery import Delivery, Policy, Slow
from headwater.errors import BadRequest, MissingExtra
from headwater.http.admission import Admission, Bounds
from headwater.http.app import App, Page
from headwater.http.asked import SocketLimits
from headwater.http.auth import Keys, OpenDoor
from headwater.http.lifespan import drain, opened
from headwater.http.metrics import Metrics
from headwater.http.origins import LOOPBACK, Origins, checked_origin
from headwater.joining import MOST_MS
from headwater.retention import Rules
from headwater.server import logs, metrics_port
from headwater.server.connection import Protocol, listen
from headwater.server.upgraded import SocketProtocol
from headwater.slow import DEFAULT_SLOW
from headwater.streams import Streams
from headwater.subscriptions import Subscriptions
from headwater.subscriptions.addresses import checked_public_url

if TYPE_CHECKING:  # they need extras that streams do not
    from headwater.http.proxy import Proxy
    from headwater.runs import Runs
    from headwater.sources.openai_compatible import Upstream
    from headwater.tracing import Tracing

try:
    import uvicorn
    import uvloop
except ImportError as error:
    raise MissingExtra("server", "uvicorn or uvloop") from error

OnShutdown = Literal["resume", "interrupt"]

DEFAULT_PORT: Final = 4437  # Durable Streams' own
MOST_RESUMPTIONS: Final = 1000
LAST_SECONDS: Final = 1.0
"""Of the grace period, kept for closing the store and the process itself."""


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What `headwater serve` can be told."""

    store: str = "sqlite:///headwater.db"
    host: str = "127.0.0.1"
    port: int = DEFAULT_PORT
    agents: Sequence[tuple[str | None, object]] = ()
    """(name or None for the agent's own, agent)."""
    auth: str | None = None
    """Path of a key file (headwater.http.auth)."""
    insecure: bool = False
    """Serve other machines without keys."""
    cors_origins: Sequence[str] = (LOOPBACK,)
    grace: float = 10.0
    """Seconds from SIGTERM to the end, whatever readers do. Kubernetes kills after 30, systemd after 90, Docker after
    10: there, say --grace 8."""
    heartbeat: float = 15.0
    long_poll: float = 30.0
    sse_max_seconds: float | None = None
    """How long a live SSE response lasts (delivery.Policy.rotate_seconds)."""
    join_ms: int = 0
    """Messages that come within so long of a write share the next one (delivery.Policy.join_ms)."""
    slow: Slow = DEFAULT_SLOW
    """What becomes of readers that do not keep up (delivery.Policy.slow)."""
    retention: Rules = ()
    """(shell pattern of stream names, what is kept of them); the first that matches counts."""
    max_appends_per_second: float | None = None
    """By one client, as the next two are per server and per client (http.admission.Bounds)."""
    max_readers: int | None = None
    max_readers_per_client: int | None = None
    log_level: str = "info"
    log_format: logs.LogFormat = "human"
    metrics_port: int | None = None
    """Where `/metrics` is, on an address of its own, which needs no key then; None: beside all else."""
    metrics_host: str = "127.0.0.1"
    metrics_dir: str | None = None
    """Shared by the processes behind one port or on one store, so that each tells the sum of all of them."""
    public_url: str | None = None
    """Where this server is reached from outside, for callbacks of webhooks; None: as their maker reached it."""
    console: bool = True
    """Serve `/console`; not to other machines without keys (`offers_console`)."""
    pages: Mapping[str, Page] = field(default_factory=dict)
    """Answers for further exact paths."""
    on_shutdown: OnShutdown = "resume"
    """What becomes of runs when this process ends in good order, as `Runs` takes it."""
    most_resumptions: int = 5
    """How often a run is gone on with from one checkpoint after its process died."""
    proxy: Mapping[str, str] = field(default_factory=dict)
    """Base URLs of OpenAI-compatible APIs behind `/v1/proxy/{name}`; the environment's NAME_API_KEY is each one's."""


def check(config: ServeConfig) -> None:
    """Raises BadRequest for what must not be served."""
    if config.auth is None and not config.insecure and not is_loopback(config.host):
        raise BadRequest(
            f"{config.host} is reachable from other machines, and there are no keys: give --auth keys.toml, "
            "or say --insecure if everybody who can reach it may do everything"
        )
    check_values(config)


def _check_ports(config: ServeConfig) -> None:
    if config.metrics_port is not None and config.metrics_port == config.port != 0:
        raise BadRequest("--metrics-port is another port than --port; leave it out to have /metrics there")


def check_values(config: ServeConfig) -> None:
    """Raises BadRequest for a value that can never be right."""
    _check_ports(config)
    if not 1 <= config.heartbeat <= 3600 or not 1 <= config.grace <= 3600 or not 0 < config.long_poll <= 3600:
        raise BadRequest("--heartbeat, --grace and --long-poll-timeout are seconds, from 1 to 3600")
    if config.sse_max_seconds is not None and not 1 <= config.sse_max_seconds <= 86_400:
        raise BadRequest("--sse-max-seconds is from 1 to 86400, like 60; leave it out for responses without an end")
    if not 0 <= config.join_ms <= MOST_MS:
        raise BadRequest(f"--join-ms is a whole number of milliseconds from 0 (each message as it comes) to {MOST_MS}")
    if config.max_appends_per_second is not None and not 0.001 <= config.max_appends_per_second <= 1_000_000:
        raise BadRequest("--max-appends-per-second is a number above 0, like 20; leave it out for no limit")
    if config.on_shutdown not in get_args(OnShutdown):
        raise BadRequest(f"--on-shutdown is {' or '.join(get_args(OnShutdown))}")
    if not 0 <= config.most_resumptions <= MOST_RESUMPTIONS:
        raise BadRequest(f"--most-resumptions is a whole number from 0 (never) to {MOST_RESUMPTIONS}")
    if config.proxy:
        _upstreams(config)
    for origin in config.cors_origins:
        with _named("--cors-origin"):
            checked_origin(origin)
    if config.public_url is not None:
        with _named("--public-url"):
            checked_public_url(config.public_url)
    for option, most in (("readers", config.max_readers), ("readers-per-client", config.max_readers_per_client)):
        if most is not None and most < 1:
            raise BadRequest(f"--max-{option} is a whole number from 1 on; leave it out for no limit")


@contextmanager
def _named(option: str) -> Iterator[None]:
    try:
        yield
    except BadRequest as error:
        raise BadRequest(f"{option}: {error}") from None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def offers_console(config: ServeConfig) -> bool:
    """Whether there is to be a console. It shows everything that streams hold: where everybody may reach this server,
    only who has a key shall see it."""
    return config.console and (config.auth is not None or is_loopback(config.host))


def run(config: ServeConfig, ready: Callable[[str], None] | None = None) -> int:
    """Serve until told to stop; the exit status. `ready` is called with the URL when connections are accepted."""

    def begun(url: str) -> None:
        _settle_objects()
        if ready is not None:
            ready(url)

    run_alone(serve(config, begun))
    return 0


def _settle_objects() -> None:
    """Have the interpreter's collector never look again at what is here by now: it stays until the end.

    Mostly code, some 200,000 objects: each full collection held the loop for 50 ms on their account alone, several
    times a second while a reader caught up.
    """
    gc.collect()
    gc.freeze()


def run_alone(main: Coroutine[Any, Any, None]) -> None:
    """Run `main`, which serves, as what this process is for: when it is done, the process may end here and now."""
    _allow_many_connections()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main)
        # The store is closed. A tool that is busy in a thread, or a task that takes no cancellation, would keep the
        # loop, and so the process, for as long as it likes.
        last = threading.Timer(LAST_SECONDS, os._exit, [0])
        last.daemon = True
        last.start()
    last.cancel()


def _allow_many_connections() -> None:
    """Raise this process's limit of open files, often 1,024, to what the system lets it have."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):  # macOS names a hard limit that it then refuses
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(config: ServeConfig, ready: Callable[[str], None] | None = None) -> None:
    """The same on a running loop. Raises BadRequest, PortTaken, StoreFileUnusable, StoreUnavailable."""
    check(config)
    auth = OpenDoor() if config.auth is None else Keys.from_file(config.auth)
    # Without keys the only guard is being on loopback, and a page may reach that by a name that lies.
    hosts = None if config.auth is not None or config.insecure else [config.host]
    streams = Streams(config.store, retention=config.retention, tracing=_tracing())
    policy = Policy(config.heartbeat, rotate_seconds=config.sse_max_seconds, join_ms=config.join_ms, slow=config.slow)
    delivery = Delivery(streams, policy)
    bounds = Bounds(config.max_appends_per_second, config.max_readers, config.max_readers_per_client)
    runs, proxy = _runs(streams, delivery, config), _proxy(streams, config)
    # With keys it may be loopback behind a proxy, whose clients must not send this server to what else listens here.
    subscriptions = Subscriptions(streams, webhooks_to_loopback=hosts is not None, public_url=config.public_url)
    app = App(
        streams,
        runs,
        auth=auth,
        origins=Origins(config.cors_origins, hosts),
        delivery=delivery,
        admission=Admission(bounds),
        long_poll_seconds=config.long_poll,
        pages={**config.pages, **({"/v1/proxy/": proxy} if proxy is not None else {})},
        subscriptions=subscriptions,
        console=offers_console(config),
        metrics=(config.metrics_dir or True) if config.metrics_port is None else False,
    )
    metrics = app.metrics or app.numbers(config.metrics_dir)
    listening = listen(config.host, config.port)
    try:
        closing = [part for part in (proxy, app.console, metrics) if part is not None]
        async with (
            opened(streams, runs, subscriptions=subscriptions, closing=closing, on_signals=False),
            AsyncExitStack() as beside,
        ):
            metrics.begin()
            if app.console is not None:
                app.console.begin()  # with the first request it would, too: its past is to begin before
            if config.metrics_port is not None:
                at = await beside.enter_async_context(_metrics_site(metrics, config, config.metrics_port))
                logging.getLogger("headwater.server").info("metrics are at %s", at)
            server = _Server(_uvicorn(app, config), streams, runs)
            host = f"[{config.host}]" if ":" in config.host else config.host
            server.on_started = lambda: ready(f"http://{host}:{listening.getsockname()[1]}") if ready else None
            await server.serve(sockets=[listening])
    finally:
        listening.close()


def _tracing() -> Tracing | None:
    """For whoever has said where spans go before this began: `opentelemetry-instrument headwater serve` does."""
    if "opentelemetry.trace" not in sys.modules:
        return None
    from headwater.tracing import Tracing, is_set_up

    return Tracing() if is_set_up() else None


def _metrics_site(metrics: Metrics, config: ServeConfig, port: int) -> AbstractAsyncContextManager[str]:
    # On loopback a page in somebody's browser may reach it by a name that lies.
    hosts = [config.metrics_host] if is_loopback(config.metrics_host) else None
    return metrics_port.listening(metrics, config.metrics_host, port, hosts=hosts)


def _runs(streams: Streams, delivery: Delivery, config: ServeConfig) -> Runs | None:
    """The runs of what is served; None where their extra is not installed and no agent was asked for."""
    try:
        from headwater.runs import Runs
    except MissingExtra:
        if config.agents:
            raise
        return None
    runs = Runs(streams, delivery=delivery, on_shutdown=config.on_shutdown, most_resumptions=config.most_resumptions)
    for name, (_, agent) in zip(agent_names(config.agents), config.agents, strict=True):
        runs.register(agent, name)
        logging.getLogger("headwater.server").info("agent %s is registered", name)
    return runs


def agent_names(agents: Sequence[tuple[str | None, object]]) -> list[str]:
    """What each is registered under. Raises BadRequest for what is no agent, and for a name that two would have."""
    names: list[str] = []
    for given, agent in agents:
        from headwater.runs.runs import as_source  # without agents its extra may be missing

        own = as_source(agent).name
        name = own if given is None else given
        if name in names:
            raise BadRequest(f"two agents would be registered as {name!r}; give one a name: other=MODULE:ATTRIBUTE")
        names.append(name)
    return names


def _proxy(streams: Streams, config: ServeConfig) -> Proxy | None:
    if not config.proxy:
        return None
    from headwater.http.proxy import Proxy
    from headwater.sources.openai_compatible import key_variable

    upstreams = _upstreams(config)
    for name in [name for name, upstream in upstreams.items() if not upstream.has_key]:
        logging.getLogger("headwater.server").warning(
            "proxy %s: %s is not set, so what is asked there goes out without a key (clients' own are not passed on)",
            name,
            key_variable(name),
        )
    return Proxy(streams, upstreams)


def _upstreams(config: ServeConfig) -> dict[str, Upstream]:
    """Raises BadRequest, and MissingExtra where there are some and no client to ask them with."""
    from headwater.http.proxy import checked_upstream_name
    from headwater.sources.openai_compatible import Upstream

    try:
        return {checked_upstream_name(name): Upstream.named(name, url) for name, url in config.proxy.items()}
    except ValueError as error:
        raise BadRequest(f"--proxy: {error}") from None


def _uvicorn(app: App, config: ServeConfig) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=Protocol,
        ws=SocketProtocol,
        ws_max_size=SocketLimits().frame_bytes,
        ws_per_message_deflate=False,  # up to 300 KB for each connection
        ws_ping_interval=None,  # heartbeats are frames, which pages see too; the kernel finds peers that are gone
        loop="none",
        lifespan="off",
        log_config=None,
        log_level=config.log_level,
        access_log=False,  # it would write queries, and what is in them, into the log
        server_header=False,
        timeout_graceful_shutdown=max(1, math.floor(config.grace - LAST_SECONDS)),
    )


class _Server(uvicorn.Server):
    """Drains before uvicorn waits for open responses, and does not end the process by the signal it was sent."""

    def __init__(self, config: uvicorn.Config, streams: Streams, runs: Runs | None) -> None:
        super().__init__(config)
        self.on_started: Callable[[], None] = lambda: None
        self._streams, self._runs = streams, runs
        self._loop = asyncio.get_running_loop()
        self._draining: asyncio.Task[None] | None = None
        self._patience_seconds = (config.timeout_graceful_shutdown or 1) - 0.5

    async def main_loop(self) -> None:
        self.on_started()
        await super().main_loop()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # Who takes nothing any more is let go before uvicorn cancels what is left, which it logs as failures.
        last_call = self._loop.call_later(self._patience_seconds, self._abort_all)
        try:
            await super().shutdown(sockets)
        finally:
            last_call.cancel()

    def _abort_all(self) -> None:
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True
        self._loop.call_soon_threadsafe(self._drain)

    def _drain(self) -> None:
        if self._draining is None:
            self._draining = asyncio.ensure_future(drain(self._streams, self._runs))
