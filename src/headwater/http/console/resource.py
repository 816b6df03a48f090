"""The console's paths: the page's files, and below `/console/api/` what only the page asks for.

    /console/                          the page; it may be loaded by everybody, as it shows nothing by itself
    /console/api/about                 who asks, and what there is here
    /console/api/figures               the server's figures, live (`feed`): takes `observe`, as `/metrics` does
    /console/api/{entries,live,readers,formats,preview,download}/{stream}: takes `read` of the stream (`looking`)

Everything else the page needs is the public surface: streams, runs, approvals. Knows the auth seam and HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from pathlib import PurePath
from typing import TYPE_CHECKING, Final

import msgspec
from starlette.responses import RedirectResponse, Response

from headwater import __version__
from headwater.delivery import Delivery
from headwater.errors import NotFound
from headwater.http.access import may_read
from headwater.http.admission import Admission
from headwater.http.console.feed import Feed
from headwater.http.console.figures import Sampler
from headwater.http.console.looking import Looking, formats_of
from headwater.http.exchange import Exchange
from headwater.http.socket import SocketResource
from headwater.http.traffic import Traffic
from headwater.problems import not_allowed

if TYPE_CHECKING:  # runs need an extra that streams do not
    from headwater.runs import Runs

PATH: Final = "/console"
API: Final = "/console/api/"

RESOURCE: Final = "headwater/metrics"
"""What a key has to be allowed to `observe`: the figures are those of `/metrics`."""

_TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

# Everything comes from this server: no script, style or request may go elsewhere, whatever a payload says.
POLICY: Final = (
    "default-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)


class Console:
    """The console of one application."""

    def __init__(
        self,
        delivery: Delivery,
        runs: Runs | None,
        admission: Admission,
        sockets: SocketResource,
        traffic: Traffic,
    ) -> None:
        self._streams, self._runs, self._admission = delivery.streams, runs, admission
        self._looking = Looking(delivery, admission, sockets)
        self._feed = Feed(delivery.streams, Sampler(delivery.streams, runs, traffic))

    def __repr__(self) -> str:
        return f"<Console {self._feed!r}>"

    def begin(self) -> None:
        """Begin to take figures, so that there is a past when somebody looks."""
        self._feed.begin()

    async def aclose(self) -> None:
        await self._feed.aclose()

    async def __call__(self, exchange: Exchange) -> Response | None:
        """The answer to what is asked below `/console`; None where it was sent already."""
        path = exchange.path
        methods = ["GET"] if path.startswith(API) else ["GET", "HEAD"]  # some of the API's answers have no end
        if exchange.method not in methods:
            return not_allowed(methods)
        if path == PATH:
            return RedirectResponse(f"{exchange.prefix}{PATH}/", 307)
        if not path.startswith(API):
            return await _file(path.removeprefix(f"{PATH}/") or "index.html")
        what, _, name = path.removeprefix(API).partition("/")
        if name:
            return await self._of_stream(exchange, what, name)
        if what == "about":
            return self._about(exchange)
        if what == "figures":
            exchange.authorize("observe", RESOURCE)
            await self._feed.respond(exchange, self._admission)
            return None
        raise NotFound("there is nothing at this path")

    async def _of_stream(self, exchange: Exchange, what: str, name: str) -> Response | None:
        match what:
            case "entries":
                return await self._looking.entries(exchange, name)
            case "live":
                await self._looking.live(exchange, name)
                return None
            case "readers":
                return await self._looking.readers(exchange, name)
            case "preview":
                return await self._looking.preview(exchange, name)
            case "download":
                return await self._looking.download(exchange, name)
            case "formats":
                may_read(exchange, name)
                return _json({"formats": formats_of(name, await self._streams.head(name))})
        raise NotFound("there is nothing at this path")

    def _about(self, exchange: Exchange) -> Response:
        principal = exchange.principal
        said = {
            "version": __version__,
            "store": type(self._streams.store).__name__.removesuffix("Store"),
            "durable": self._streams.store.durable,
            "key": not exchange.auth.open_to_all,
            "name": principal.name,
            "figures": exchange.allows("observe", RESOURCE),
            "runs": self._runs is not None,
            "agents": sorted(self._runs.agents) if self._runs is not None else [],
        }
        return _json(said)


@cache
def page_files() -> Mapping[str, tuple[bytes, str]]:
    """What the browser may load: by path below `/console/`, the content and its type."""
    found: dict[str, tuple[bytes, str]] = {}
    page = files("headwater.http.console").joinpath("page")
    for folder in ("", "vendor/"):
        for file in page.joinpath(folder).iterdir():
            kind = _TYPES.get(PurePath(file.name).suffix)
            if kind is not None:
                found[folder + file.name] = file.read_bytes(), kind
    return found


async def _file(name: str) -> Response:
    try:
        content, kind = (await asyncio.to_thread(page_files))[name]
    except KeyError:
        raise NotFound("there is nothing at this path") from None
    headers = {"content-security-policy": POLICY, "cache-control": "no-cache", "referrer-policy": "no-referrer"}
    return Response(content, headers=headers, media_type=kind)


def _json(said: object) -> Response:
    return Response(msgspec.json.encode(said), 200, {"cache-control": "no-store"}, "application/json")
