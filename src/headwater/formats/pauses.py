"""Where a run stands still because it waits for people, for clients to whom an answer has to end there. Pure.

Such a client answers by a request of its own, whose response is the rest of the run. The log says that a run waits by
an event (`run.waiting`), which is the last one for as long as that is so. Only who finds it there at the tail is told
of the pause: a run that has gone on reads as if it had never paused.

The last thing that is said at a pause has an id of its own: the place behind the log's event, with PAUSED. Who comes
back with it has been told.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from headwater.agui import WAITING, decode
from headwater.model import Page

PAUSED: Final = ".0000"

_MARK: Final = b'"run.waiting"'
_NAME_BYTES: Final = 80  # type and name stand first


class Pause(NamedTuple):
    """What a run waits for."""

    thread_id: str
    run_id: str
    approvals: list[dict[str, Any]]
    """{toolCallId, toolName, arguments} of each."""


def pause_of(page: Page) -> Pause | None:
    """The pause that a reader has come to who has read this page; None where the run goes on, or is over."""
    if not page.up_to_date or page.closed or not page.messages or _MARK not in page.messages[-1].data[:_NAME_BYTES]:
        return None
    event = decode(page.messages[-1].data)
    if event["type"] != "CUSTOM" or event["name"] != WAITING:
        return None
    value = event["value"]
    return Pause(value["threadId"], value["runId"], value["approvals"])


def approval_id(run_id: str, tool_call_id: str) -> str:
    """What clients know a question as: models may use the id of a tool call again in the next run."""
    return f"{run_id}~{tool_call_id}"
