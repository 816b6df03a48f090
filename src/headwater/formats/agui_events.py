"""A run's AG-UI events for AG-UI clients (HttpAgent, TanStack AI): as they are, but for what the server notes. Pure.

Server-sent events are data only: these clients take every event for data, whatever its name. Ids are plain offsets. A
run's stream holds its input, which may be a whole conversation, and notes of the protocol it was asked by: their client
has those already.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Final

from headwater.agui import decode
from headwater.formats.lines import Lines
from headwater.formats.sse import ServerSentEvents
from headwater.model import Message, Page
from headwater.wire.sse import one_line

HIDDEN: Final = frozenset({"run.input", "openai.request", "langgraph.request"})
"""Names of the CUSTOM events in a run's stream that say how it was asked for."""

_MARK: Final = b'"CUSTOM"'
_TYPE_BYTES: Final = 40  # `type` stands first


class AguiEvents(ServerSentEvents):
    """AG-UI over server-sent events."""

    def __init__(self) -> None:
        super().__init__("application/json", named=False)

    @property
    def key(self) -> Hashable:
        return "ag-ui"

    def _event(self, message: Message) -> bytes:
        return b"" if _hidden(message) else super()._event(message)


class AguiLines(Lines):
    """AG-UI as `{"id": …, "chunk": event}`, one a line: TanStack AI's `fetchHttpStream`, which resumes by those ids."""

    def __init__(self) -> None:
        super().__init__("application/json", tells_failure=True)

    @property
    def key(self) -> Hashable:
        return "ag-ui-lines"

    def _lines(self, page: Page) -> Iterator[bytes]:
        for message in page.messages:
            if not _hidden(message):
                yield b'{"id":"%s","chunk":%s}' % (str(message.offset).encode(), one_line(message.data))


def _hidden(message: Message) -> bool:
    # Nearly always the mark is not there, and nothing has to be decoded.
    return _MARK in message.data[:_TYPE_BYTES] and is_hidden(decode(message.data))


def is_hidden(event: Mapping[str, Any]) -> bool:
    """Whether this event of a run's stream is not for readers by other protocols."""
    return event["type"] == "CUSTOM" and event.get("name") in HIDDEN
