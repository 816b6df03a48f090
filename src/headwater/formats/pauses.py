"""Where a run stands still because it waits for people, for clients to whom an answer has to end there. Pure.

Such a client answers by a request of its own, whose response is the rest of the run. The log says that a run waits by
an event (`run.waiting`), which is the last one for as long as that is so. Only who finds it there at the tail is told
of the pause: a run that has gone on reads as if it had never paused.

The last thing that is said at a pause has an id of its own: the place behind the log's event, with PAUSED. Who comes
back with it has been told.
"""

from __future__ import annotations

from typing import Final

import msgspec

from headwater.agui import WAITING
from headwater.model import Page

PAUSED: Final = ".0000"

_MARK: Final = b'"run.waiting"'
_NAME_BYTES: Final = 80  # type and name stand first


class Asked(msgspec.Struct, rename="camel", frozen=True):
    """A question."""

    tool_call_id: str
    tool_name: str
    arguments: str
    """As the model gave them."""


class Pause(msgspec.Struct, rename="camel", frozen=True):
    """What a run waits for."""

    thread_id: str
    run_id: str
    approvals: list[Asked]


class _Waiting(msgspec.Struct):
    type: str
    name: str
    value: Pause


_decode: Final = msgspec.json.Decoder(_Waiting).decode


def pause_of(page: Page) -> Pause | None:
    """The pause that a reader has come to who has read this page; None where the run goes on, or is over."""
    if not page.up_to_date or page.closed or not page.messages or _MARK not in page.messages[-1].data[:_NAME_BYTES]:
        return None
    try:
        event = _decode(page.messages[-1].data)
    except msgspec.DecodeError:  # of another source, by the same name
        return None
    return event.value if (event.type, event.name) == ("CUSTOM", WAITING) else None


def approval_id(run_id: str, tool_call_id: str) -> str:
    """What clients know a question as: models may use the id of a tool call again in the next run."""
    return f"{run_id}~{tool_call_id}"
