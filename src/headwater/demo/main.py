"""`headwater demo`: one process with the agent, its model, the streams and the page.

Knows how to serve and what the page is made of. What the page does, it does through the public HTTP surface.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.resources import files
from pathlib import PurePath
from typing import Final

import msgspec
from starlette.responses import Response

from headwater import __version__
from headwater.demo.agent import demo_agent, describe
from headwater.http.app import Page
from headwater.http.exchange import Exchange
from headwater.server import ServeConfig, serve
from headwater.server.serve import run_alone

AGENT: Final = "assistant"

TRY: Final = (
    "What is the weather in Lisbon?",
    "Research the history of tea",
    "Tell me a long story about a river",
)

_TYPES: Final = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}

# Everything comes from this server: no script, style or request may go elsewhere.
_POLICY: Final = "default-src 'self'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"


def run(config: ServeConfig, ready: Callable[[str], None]) -> int:
    """Serve the demo until told to stop; the exit status. `ready` is called with the URL of the page.

    Raises what `serve` raises, and MissingExtra or LocalModelFailed, each saying what to do.
    """
    run_alone(_run(config, ready))
    return 0


async def _run(config: ServeConfig, ready: Callable[[str], None]) -> None:
    async with demo_agent() as agent:
        await serve(replace(config, agents=[(AGENT, agent)], pages=pages()), ready)


def pages() -> Mapping[str, Page]:
    """The page, what it loads, and what it says about the model."""
    found: dict[str, Page] = {"/v1/demo": _about}
    for file in files("headwater.demo").joinpath("page").iterdir():
        kind = _TYPES.get(PurePath(file.name).suffix)
        if kind is not None:
            found[f"/demo/{file.name}"] = _file(file.read_bytes(), kind)
    found["/"] = found.pop("/demo/index.html")
    return found


def _file(content: bytes, kind: str) -> Page:
    async def page(exchange: Exchange) -> Response:
        headers = {"content-security-policy": _POLICY, "cache-control": "no-cache"}
        return Response(content, headers=headers, media_type=kind)

    return page


async def _about(exchange: Exchange) -> Response:
    said = {"agent": AGENT, "model": describe(), "version": __version__, "try": TRY}
    return Response(msgspec.json.encode(said), media_type="application/json")
