"""Requests of one application: which were made, how they were answered, and why they were refused.

By route, which is the path with its names left out: so that what is counted and logged says nothing of what clients
have in their addresses, and stays small. Knows paths; nothing of resources.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Final

from headwater.errors import HeadwaterError
from headwater.journal import note

_log = logging.getLogger("headwater.requests")

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_WHOLE: Final = frozenset(
    {
        "/v1/stream",
        "/v1/streams",
        "/v1/runs",
        "/v1/responses",
        "/v1/chat/completions",
        "/v1/models",
        "/v1/ws",
        "/v1/quality",
        "/healthz",
        "/readyz",
        "/metrics",
    }
)
_BELOW: Final = {
    "/v1/stream/": "/v1/stream/{name}",
    "/v1/streams/": "/v1/streams/{name}",
    "/v1/models/": "/v1/models/{model}",
    "/v1/chat/completions/": "/v1/chat/completions/{id}",
    "/v1/proxy/": "/v1/proxy/{name}",
    "/langgraph/": "/langgraph/{path}",
}
_OF_RUNS: Final = frozenset({"events", "cancel", "approvals"})
_OF_AGENTS: Final = frozenset({"ag-ui", "chat", "chat-v5", "chat-v6", "chat-v7", "chat-text"})


def route_of(path: str, pages: Iterable[str] = ()) -> str:
    """The route of a path within the application; `other` where there is nothing. `pages`: paths that were added."""
    if path in _WHOLE or path in pages:
        return path
    parts = path.split("/")
    if path.startswith(("/v1/runs/", "/v1/responses/")):
        verb = f"/{parts[4]}" if len(parts) == 5 and parts[4] in _OF_RUNS | {"input_items"} else ""
        return f"/v1/{parts[2]}/{{id}}{verb}"
    if path.startswith("/agents/") and len(parts) > 3 and parts[3] in _OF_AGENTS:
        return f"/agents/{{name}}/{parts[3]}" + ("" if len(parts) == 4 else "/{chat}")
    below = next((route for prefix, route in _BELOW.items() if path.startswith(prefix)), None)
    return below or next((page for page in pages if page.endswith("/") and path.startswith(page)), "other")


class Traffic:
    """What came, and what became of it."""

    def __init__(self) -> None:
        self.answered: Counter[tuple[str, str, str]] = Counter()
        """(route, method, status); a response that follows a stream counts when it begins."""
        self.refused: Counter[str] = Counter()
        """By the error's code, or `http_` and the status where a protocol has its own words for it."""

    def __repr__(self) -> str:
        return f"<Traffic [{self.answered.total()} requests, {self.refused.total()} refused]>"

    def statistics(self) -> dict[str, int]:
        """So far."""
        return {"requests": self.answered.total(), "refused": self.refused.total()}

    def answer(self, method: str, route: str, status: int, seconds: float, why: Exception | None) -> None:
        """A request was answered, or its client left before it was (status 0). `why`: what it was refused with."""
        method = method if method in _METHODS else "other"
        self.answered[route, method, str(status)] += 1
        if why is not None or status >= 400:
            code = getattr(why, "code", "internal") if why is not None else f"http_{status}"
            self.refuse(code, method=method, route=route, status=status, seconds=seconds)
        else:
            note(_log, logging.DEBUG, "request", method=method, route=route, status=status or None, seconds=seconds)

    def refuse(self, code: str, **facts: str | int | float) -> None:
        """Something was asked for in vain."""
        self.refused[code] += 1
        note(_log, logging.DEBUG, "refused", reason=code, **facts)

    def turned_away(self, error: Exception) -> None:
        """Somebody who wanted to open a WebSocket."""
        code = error.code if isinstance(error, HeadwaterError) else "internal"
        self.refuse(code, method="GET", route="/v1/ws")
