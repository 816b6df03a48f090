"""Notices that a Chat Completions stream was cut off.

A stream that ends cleanly but early (a proxy's time limit, a model server that goes away) counts as a whole answer for
the SDK, unless it comes from api.openai.com, and nothing in the SDK's events tells. It gives no seam between wire and
events, so its stream handler is replaced, in the one place where the Chat Completions model looks it up, by one that
watches the chunks pass. It does so only inside `watching_for_cuts` (a context variable says), and changes nothing for
others. Must not know of runs or sinks.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from agents.models import openai_chatcompletions
from agents.models.chatcmpl_stream_handler import ChatCmplStreamHandler

__all__ = ["UpstreamCut", "watching_for_cuts"]

_watching: Final[ContextVar[bool]] = ContextVar("headwater_watching_for_cuts", default=False)


class UpstreamCut(Exception):
    """A Chat Completions stream ended without a finish_reason."""


@contextmanager
def watching_for_cuts(watch: bool) -> Iterator[None]:
    """In this context and in tasks begun in it, a cut stream raises UpstreamCut, where `watch` says so."""
    if watch and openai_chatcompletions.__dict__["ChatCmplStreamHandler"] is ChatCmplStreamHandler:
        openai_chatcompletions.__dict__["ChatCmplStreamHandler"] = _WatchingHandler
    token = _watching.set(watch)
    try:
        yield
    finally:
        _watching.reset(token)


class _Watched:
    """Chat Completions chunks as they come."""

    def __init__(self, chunks: Any) -> None:
        self._chunks = aiter(chunks)
        self._finished = False

    def __aiter__(self) -> _Watched:
        return self

    async def __anext__(self) -> Any:
        try:
            chunk = await anext(self._chunks)
        except StopAsyncIteration:
            if not self._finished:
                raise UpstreamCut from None
            raise
        self._finished = self._finished or any(choice.finish_reason is not None for choice in chunk.choices)
        return chunk


class _WatchingHandler(ChatCmplStreamHandler):
    @classmethod
    def handle_stream(cls, response: Any, stream: Any, *args: Any, **options: Any) -> Any:
        watched: Any = _Watched(stream) if _watching.get() else stream
        return super().handle_stream(response, watched, *args, **options)
