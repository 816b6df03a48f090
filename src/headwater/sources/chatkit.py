"""One streaming request on its way through a ChatKitServer: its events, and its end when it is to stop.

ChatKit learns of the user's Stop by CancelledError, and only where it is waiting for the next event: there it saves the
partial items (`handle_stream_cancelled`). So a stop is kept until it can be delivered there, and delivered once: what
the server does about it runs to its end. That takes a task of our own, which nobody else cancels.

Knows ChatKit; nothing of streams and requests.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec

from headwater.errors import MissingExtra
from headwater.sources.chatkit_runs import cancel_runs, note_runs
from headwater.wire.sse import Decoder

try:
    from chatkit.errors import ErrorCode
    from chatkit.server import ChatKitServer, StreamingResult
    from chatkit.types import ErrorEvent
except ImportError as error:
    raise MissingExtra("chatkit", "openai-chatkit") from error

_BEFORE: Final = frozenset({"thread.created", "thread.item.done"})
"""Events that may come before ChatKit takes notice of a stop: the first other one is `stream_options`."""


class _Thread(msgspec.Struct):
    id: str


class Said(msgspec.Struct):
    """What of an event matters here."""

    type: str = ""
    thread: _Thread | None = None


Take = Callable[[bytes, Said], Awaitable[None]]

_said = msgspec.json.Decoder(Said).decode


class Processing:
    """One call of `ChatKitServer.process`."""

    def __init__(self, server: ChatKitServer[Any], body: bytes, context: Any) -> None:
        """`body`: a request that ChatKit answers with a stream."""
        self._server, self._body, self._context = server, body, context
        self._task: asyncio.Task[Any] | None = None
        self._runs: list[Any] = []
        self._asked = self._waits = self._begun = False
        self.last = ""
        """Type of the last event."""
        self.stopped = False
        """It was told to stop, and has taken notice."""

    async def run(self, take: Take) -> None:
        """Give each event's JSON to `take`, which must not raise. In a task of its own, which only `stop` cancels.

        Raises CancelledError when it was stopped, and whatever the server raises.
        """
        self._task, self._runs = asyncio.current_task(), note_runs()
        result = await self._server.process(self._body, self._context)
        assert isinstance(result, StreamingResult), "asked for one of the requests that are answered at once"
        decoder = Decoder()
        self._wait()
        try:
            async for chunk in result:
                self._waits = False
                for event in decoder.feed(chunk):
                    data = event.data.encode()
                    said = _said(data)
                    self.last, self._begun = said.type, self._begun or said.type not in _BEFORE
                    await take(data, said)
                self._wait()
        finally:
            self._waits = False

    def stop(self) -> None:
        """Tell the server that the user wants no more, as soon as it can be told; twice is fine."""
        self._asked = True
        self._soon()

    def _wait(self) -> None:
        self._waits = True
        if self._asked:
            self._soon()

    def _soon(self) -> None:
        # Not now: when this is called, it is the task that waits, and then it does so inside of ChatKit or not.
        asyncio.get_running_loop().call_soon(self._deliver)

    def _deliver(self) -> None:
        if self._task is not None and self._waits and self._begun and not self.stopped:
            self.stopped = True
            self._task.cancel()
            cancel_runs(self._runs)


def error_event(message: str, *, allow_retry: bool = True) -> bytes:
    """ChatKit's own `error`, as JSON."""
    event = ErrorEvent(code=ErrorCode.STREAM_ERROR, message=message, allow_retry=allow_retry)
    return event.model_dump_json(by_alias=True, exclude_none=True).encode()
