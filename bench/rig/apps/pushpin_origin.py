"""What stands behind Pushpin: it tells it to hold each request as a stream of channel `b`."""

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

HELD = {"content-type": "text/event-stream", "grip-hold": "stream", "grip-channel": "b"}


async def follow(_: Request) -> Response:
    return PlainTextResponse(": open\n\n", headers=HELD)


app = Starlette(routes=[Route("/events", follow)])
