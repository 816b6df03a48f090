"""A run's AG-UI events for AG-UI clients (HttpAgent, TanStack AI): as they are, but for what the server notes. Pure.

Server-sent events are data only: these clients take every event for data, whatever its name. Ids are plain offsets. A
run's stream holds its input, which may be a whole conversation, and notes of the protocol it was asked by: their client
has those already. Where a run waits for people, a response ends with RUN_FINISHED and its interrupts; the one that goes
on behind it begins with RUN_STARTED.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any, Final

import msgspec

from headwater.agui import WAITING, decode
from headwater.formats.lines import Lines
from headwater.formats.pauses import PAUSED, Pause, approval_id, pause_of
from headwater.formats.sse import ServerSentEvents
from headwater.model import Message, Offset, Page
from headwater.wire import sse

HIDDEN: Final = frozenset({"run.input", "openai.request", "langgraph.request", WAITING})
"""Names of the CUSTOM events in a run's stream that are the server's notes: how it was asked for, where it waits."""

ANSWER: Final = {
    "type": "object",
    "properties": {"approved": {"type": "boolean"}, "message": {"type": "string"}},
    "required": ["approved"],
}
"""What answers an interrupt, as a JSON Schema; `message` is for the model, where it was not approved."""

_MARK: Final = b'"CUSTOM"'
_TYPE_BYTES: Final = 40  # `type` stands first


class AguiEvents(ServerSentEvents):
    """AG-UI over server-sent events."""

    transport = "ag-ui"

    def __init__(self) -> None:
        super().__init__("application/json", named=False)

    @property
    def key(self) -> Hashable:
        return "ag-ui"

    def begin(self, started: bytes, after: Offset) -> None:
        """A response that goes on behind a pause begins with this event, as every response must."""
        self.opening = type(self).opening + sse.encode(sse.one_line(started), id=str(after))

    def render(self, page: Page) -> bytes:
        said = super().render(page._replace(messages=[one for one in page.messages if not _hidden(one)]))
        if (pause := pause_of(page)) is None:
            return said
        return said + sse.encode(sse.one_line(_interrupted(pause)), id=f"{page.next}{PAUSED}")

    def pauses(self, page: Page) -> bool:
        return pause_of(page) is not None


class AguiLines(Lines):
    """AG-UI as `{"id": …, "chunk": event}`, one a line: TanStack AI's `fetchHttpStream`, which resumes by those ids."""

    transport = "ag-ui"

    def __init__(self) -> None:
        super().__init__("application/json", tells_failure=True)

    @property
    def key(self) -> Hashable:
        return "ag-ui-lines"

    def begin(self, started: bytes, after: Offset) -> None:
        """As of `AguiEvents`."""
        self.opening = _line(str(after), started) + b"\n"

    def pauses(self, page: Page) -> bool:
        return pause_of(page) is not None

    def _lines(self, page: Page) -> Iterator[bytes]:
        for message in page.messages:
            if not _hidden(message):
                yield _line(str(message.offset), message.data)
        if (pause := pause_of(page)) is not None:
            yield _line(f"{page.next}{PAUSED}", _interrupted(pause))


def _line(id_: str, event: bytes) -> bytes:
    return b'{"id":"%s","chunk":%s}' % (id_.encode(), sse.one_line(event))


def interrupts(pause: Pause) -> list[dict[str, Any]]:
    """What a run waits for, in AG-UI's words. The metadata are what TanStack AI knows a tool's approval by."""
    return [
        {
            "id": approval_id(pause.run_id, asked.tool_call_id),
            "reason": "approval_required",
            "message": f"May {asked.tool_name} run?",
            "toolCallId": asked.tool_call_id,
            "responseSchema": ANSWER,
            "metadata": {"kind": "approval", "toolName": asked.tool_name, "input": _input(asked.arguments)},
        }
        for asked in pause.approvals
    ]


def _input(arguments: str) -> Any:
    try:
        return msgspec.json.decode(arguments)
    except (msgspec.DecodeError, RecursionError):
        return arguments


def _interrupted(pause: Pause) -> bytes:
    outcome = {"type": "interrupt", "interrupts": interrupts(pause)}
    finished = {"type": "RUN_FINISHED", "threadId": pause.thread_id, "runId": pause.run_id, "outcome": outcome}
    return msgspec.json.encode(finished)


def _hidden(message: Message) -> bool:
    # Nearly always the mark is not there, and nothing has to be decoded.
    return _MARK in message.data[:_TYPE_BYTES] and is_hidden(decode(message.data))


def is_hidden(event: Mapping[str, Any]) -> bool:
    """Whether this event of a run's stream is not for readers by other protocols."""
    return event["type"] == "CUSTOM" and event.get("name") in HIDDEN
