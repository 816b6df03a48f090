"""The ASGI application: mount it in FastAPI or Starlette under any prefix, or serve it alone.

    app = FastAPI(lifespan=...)
    app.mount("/headwater", App(streams, runs))

Knows the resources and their paths. Every request passes, in this order: host and origin, the path, authentication and
authorization in the resource, and on the way out the headers that every answer carries.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Final

from starlette.datastructures import Headers
from starlette.responses import Response

from headwater.delivery import Cut, Delivery, Receive, Scope, Send
from headwater.errors import NotFound
from headwater.following import Following
from headwater.http.admission import Admission
from headwater.http.auth import Auth, OpenDoor
from headwater.http.console.resource import Console
from headwater.http.exchange import Exchange
from headwater.http.lifespan import Closing, run_lifespan
from headwater.http.listing import inspect_stream, list_streams
from headwater.http.origins import Origins
from headwater.http.outages import Outages
from headwater.http.plain import PlainAppends
from headwater.http.quality import PATH as QUALITY
from headwater.http.quality import Quality
from headwater.http.socket import PATH, SocketResource, not_upgraded
from headwater.http.streams import StreamResource
from headwater.http.subscriptions import CONTROL, SubscriptionResource
from headwater.http.traffic import Traffic, route_of
from headwater.joining import joined_ms
from headwater.outlet import line_of
from headwater.problems import RETRY_AFTER_SECONDS, SAFETY_HEADERS, answer
from headwater.streams import Streams
from headwater.subscriptions import Subscriptions
from headwater.visits import ROUTE
from headwater.wire.durable import stream_name

if TYPE_CHECKING:  # runs need an extra that streams do not
    from headwater.http.agents import AgentResource
    from headwater.http.langgraph_door import LangGraphDoor
    from headwater.http.metrics import Metrics
    from headwater.http.openai_resource import OpenAIResource
    from headwater.http.runs import RunResource
    from headwater.runs import Runs

STREAMS: Final = "/v1/streams"

Page = Callable[[Exchange], Awaitable[Response | None]]
"""None: it has answered already."""


class App:
    """Streams and runs over HTTP. Opens and closes both itself where it is served alone."""

    def __init__(  # noqa: PLR0913 -- each is one part of the whole, and nearly always left out
        self,
        streams: Streams,
        runs: Runs | None = None,
        *,
        auth: Auth | None = None,
        origins: Origins | None = None,
        delivery: Delivery | None = None,
        admission: Admission | None = None,
        long_poll_seconds: float = 30.0,
        pages: Mapping[str, Page] | None = None,
        subscriptions: Subscriptions | None = None,
        metrics: bool | str = False,
        console: bool = False,
    ) -> None:
        """`runs`: serve `/v1/runs` too; `pages`: answers for further paths, made by the caller: exact ones, and what is
        below one that ends with a slash. One that has `aclose` is closed where the application is served alone.
        `metrics`: answer `/metrics`, too; a text is the directory by which the processes behind one port tell the sum
        of all of them. `console`: serve `/console`, which shows what streams hold to whoever may read them. Mounted
        elsewhere, have them closed: `lifespan(..., closing=[app.metrics, app.console])`.
        """
        self.streams, self.runs, self.subscriptions = streams, runs, subscriptions
        self.delivery = delivery or (runs.delivery if runs is not None else Delivery(streams))
        self._auth, self._origins = auth or OpenDoor(), origins or Origins()
        self._admission = admission or Admission()
        self._streams = StreamResource(self.delivery, self._admission, long_poll_seconds=long_poll_seconds)
        self._outages = Outages(streams)
        self.traffic = Traffic()
        self._subscriptions = SubscriptionResource(subscriptions)
        self.plain = PlainAppends(streams, self._auth, self._origins, self._admission, self._outages, self.traffic)
        """What a server may ask before it makes a request of an append."""
        self.quality = Quality(streams, runs.agents if runs is not None else (), self._admission)
        self._sockets = SocketResource(self.delivery, self._auth, self._origins, self._admission, self._outages)
        self._sockets.on_refusal = self.traffic.turned_away
        self.metrics = self.numbers(None if metrics is True else metrics) if metrics is not False else None
        """The numbers of this application, where they were asked for."""
        self._runs = _resource(runs) if runs is not None else None
        self._agents = _agents(runs) if runs is not None else None
        self._langgraph = _langgraph(runs) if runs is not None else None
        self._openai = _openai(runs) if runs is not None else None
        self._pages = dict(pages or {})
        if self.metrics is not None:
            self._pages["/metrics"] = self.metrics.page
        self.console = Console(self.delivery, runs, self._admission, self._sockets, self.traffic) if console else None
        if self.console is not None:
            self._pages |= dict.fromkeys(("/console", "/console/"), self.console)
        longest_first = sorted(self._pages.items(), key=lambda pair: -len(pair[0]))
        self._below = {path: page for path, page in longest_first if path.endswith("/")}
        held: list[object] = [*self._pages.values(), self.metrics]
        self._closing = [page for page in held if isinstance(page, Closing)]

    def __repr__(self) -> str:
        return f"<App {self.streams!r} {self.runs!r}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await run_lifespan(receive, send, self.streams, self.runs, self.subscriptions, self._closing)
        elif self.streams.tracing is None:
            await self._served(scope, receive, send)
        else:
            with self.streams.tracing.request(Headers(scope=scope)):
                await self._served(scope, receive, send)

    async def _served(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await self._http(scope, receive, send)
        else:
            await self._sockets(scope, receive, send)

    def numbers(self, directory: str | None = None) -> Metrics:
        """The numbers of this application, to be shown elsewhere. `directory`: as in `metrics`; close them then."""
        from headwater.http.families import Lags, Measured
        from headwater.http.metrics import Metrics

        at = Measured(self.streams, self.runs, self.traffic, self._sockets, self.quality, Lags())
        return Metrics(at, directory)

    async def _http(self, scope: Scope, receive: Receive, send: Send) -> None:
        line = line_of(scope)
        if line is not None:
            line.alone = line.is_reached_by(send)
        if self.console is not None:
            self.console.begin()
        exchange = Exchange(scope, receive, send, self._auth)
        added = [*SAFETY_HEADERS, *self._origins.headers(exchange.method, exchange.headers)]
        if self.metrics is not None:
            self.metrics.begin()
        route = scope[ROUTE] = route_of(str(scope["path"]).removeprefix(exchange.prefix), self._pages)
        began, status, why = time.perf_counter(), 0, None

        async def send_with_headers(event: dict[str, object]) -> None:
            nonlocal status
            if event["type"] == "http.response.start":
                status = int(event["status"])  # type: ignore[call-overload]
                event = {**event, "headers": _merged(event.get("headers") or (), added)}  # type: ignore[arg-type]
            await send(event)

        exchange.send = send_with_headers  # type: ignore[assignment]
        try:
            response = await self._routed(exchange)
            follows = isinstance(response, Following) and exchange.method == "GET"
            with self._admission.response(scope, exchange.client) if follows else nullcontext():
                if response is not None:
                    await response(scope, receive, send_with_headers)  # type: ignore[arg-type]
        except Cut:
            raise
        except Exception as error:
            self._outages.note(error)
            if status:
                raise
            why = error
            await answer(error)(scope, receive, send_with_headers)  # type: ignore[arg-type]
        finally:
            self.traffic.answer(exchange.method, route, status, time.perf_counter() - began, why)

    async def _routed(self, exchange: Exchange) -> Response | None:
        self._origins.check(exchange.method, exchange.headers)
        joined_ms(exchange.scope)  # refused here, before anything is started
        path = exchange.path
        stream = stream_name(path)
        if stream is not None and stream.split("/", 1)[0] == CONTROL:
            return await self._subscriptions.answer(exchange, stream)
        if stream is not None:
            return await self._streams.answer(exchange, stream)
        if exchange.method == "OPTIONS":
            return Response(status_code=204)
        if path in (STREAMS, f"{STREAMS}/"):
            return await list_streams(exchange, self.streams)
        if path.startswith(f"{STREAMS}/"):
            return await inspect_stream(exchange, self.streams, path.removeprefix(f"{STREAMS}/"))
        if path == QUALITY:
            return await self.quality.answer(exchange)
        if path in self._pages:
            return await self._pages[path](exchange)
        if path == "/healthz":
            return Response("ok\n", media_type="text/plain")
        if path == "/readyz":
            unready = self._unready
            if unready is None:
                return Response("ok\n", 200)
            return Response(f"{unready}\n", 503, {"retry-after": str(RETRY_AFTER_SECONDS)})
        if path == PATH:
            return not_upgraded(exchange.scope)
        return await self._of_runs(exchange, path)

    async def _of_runs(self, exchange: Exchange, path: str) -> Response | None:
        if self._openai is not None and self._openai.serves(path):
            return await self._openai.answer(exchange, path)
        if (path == "/v1/runs" or path.startswith("/v1/runs/")) and self._runs is not None:
            return await self._run(exchange, self._runs, path.split("/")[3:])
        if path.startswith("/agents/") and self._agents is not None:
            return await self._agents.answer(exchange, path.removeprefix("/agents/"))
        if path.startswith("/langgraph/") and self._langgraph is not None:
            return await self._langgraph.answer(exchange, path.removeprefix("/langgraph"))
        page = next((page for above, page in self._below.items() if path.startswith(above)), _nowhere)
        return await page(exchange)

    async def _run(self, exchange: Exchange, runs: RunResource, rest: list[str]) -> Response:
        match rest:
            case [] | [""]:
                return await runs.collection(exchange)
            case [run_id]:
                return await runs.one(exchange, run_id)
            case [run_id, "events"]:
                return await runs.events(exchange, run_id)
            case [run_id, "cancel"]:
                return await runs.cancel(exchange, run_id)
            case [run_id, "approvals"]:
                return await runs.approvals(exchange, run_id)
        raise NotFound("there is nothing at this path")

    @property
    def _unready(self) -> str | None:
        """Why no more clients should be sent here."""
        if not self.streams.is_open or self.streams.draining:
            return "draining"
        return "store unavailable" if self._outages.is_out else None


async def _nowhere(_: Exchange) -> Response:
    raise NotFound("there is nothing at this path")


def _resource(runs: Runs) -> RunResource:
    from headwater.http.runs import RunResource

    return RunResource(runs)


def _openai(runs: Runs) -> OpenAIResource:
    from headwater.http.openai_resource import OpenAIResource

    return OpenAIResource(runs)


def _agents(runs: Runs) -> AgentResource:
    from headwater.http.agents import AgentResource

    return AgentResource(runs)


def _langgraph(runs: Runs) -> LangGraphDoor:
    from headwater.http.langgraph_door import LangGraphDoor

    return LangGraphDoor(runs)


def _merged(given: Iterable[tuple[bytes, bytes]], added: Iterable[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    """`given`, and those of `added` that it does not say itself."""
    headers = list(given)
    names = {name.lower() for name, _ in headers}
    for name, value in added:
        if name.encode() not in names:
            headers.append((name.encode("latin-1"), value.encode("latin-1")))
    return headers
