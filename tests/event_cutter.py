"""Cuts a streaming answer after so many of its events: how connections fail, at the places that matter.

App(...)  ->  EventCutter(App(...), each=3, abrupt=True)
"""

from __future__ import annotations

import math
from typing import Any

from headwater.delivery import Cut


class EventCutter:
    """Every answer that is an event stream is over after `each` events: as if it had ended, or `abrupt`ly.

    `times`: only the first so many.
    """

    def __init__(self, application: Any, *, each: int, abrupt: bool, times: float = math.inf) -> None:
        self._application, self._each, self._abrupt, self._times = application, each, abrupt, times
        self.cuts = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or self.cuts >= self._times:
            await self._application(scope, receive, send)
            return
        left, is_stream = self._each, False

        async def cutting(event: Any) -> None:
            nonlocal left, is_stream
            if event["type"] == "http.response.start":
                is_stream = dict(event["headers"]).get(b"content-type", b"").startswith(b"text/event-stream")
            if not is_stream or event["type"] != "http.response.body":
                await send(event)
                return
            blocks = event.get("body", b"").split(b"\n\n")
            passed = blocks[:left]
            left -= len(blocks) - 1
            if left > 0:
                await send(event)
                return
            await send({**event, "body": b"\n\n".join([*passed, b""]), "more_body": True})
            raise _Enough

        try:
            await self._application(scope, receive, cutting)
        except _Enough:
            self.cuts += 1
            if self._abrupt:
                raise Cut from None
            await send({"type": "http.response.body", "body": b"", "more_body": False})


class _Enough(Exception):
    pass
