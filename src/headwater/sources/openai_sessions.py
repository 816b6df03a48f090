"""Takes back from a session of the OpenAI Agents SDK what an interrupted run wrote there, and will write again.

The SDK writes a run's input before the first call of the model, and what was said in a turn at the turn's end. A run
that begins anew, or begins a turn again, would have it twice. Since a conversation has one run at a time, whatever is
to be taken back stands at the session's end.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from agents.items import ItemHelpers, TResponseInputItem
from agents.memory import Session

from headwater.sources.openai_checkpoints import Kept

__all__ = ["forget_input", "forget_turn"]

_MOST: Final = 200
"""Items of one turn."""


async def forget_input(session: Session | None, given: str | list[TResponseInputItem]) -> None:
    """Take the run's input back, if the session ends with it."""
    if session is not None:
        wanted = [_said(item) for item in ItemHelpers.input_to_new_input_list(given)]
        found = [_said(item) for item in await session.get_items(limit=len(wanted))]
        if found == wanted:
            await _pop(session, len(wanted))


async def forget_turn(session: Session | None, kept: Kept) -> None:
    """Take back what the session has of the turn that is begun again."""
    if session is None or kept.response is None:
        return
    output = msgspec.json.decode(kept.response)["output"]
    calls = [item for item in output if item.get("call_id")]
    last: list[Any] = list(await session.get_items(limit=_MOST)) if calls else []
    for at in reversed(range(len(last))):
        item = last[at]
        if (item.get("type"), item.get("call_id")) == (calls[0]["type"], calls[0]["call_id"]):
            await _pop(session, len(last) - max(0, at - output.index(calls[0])))
            return
        # What was said before stays, though some providers give their calls the same ids in each turn.
        if item.get("role") == "user" or item.get("call_id") not in (None, *(call["call_id"] for call in calls)):
            return


async def _pop(session: Session, count: int) -> None:
    for _ in range(count):
        await session.pop_item()


def _said(item: Any) -> tuple[Any, Any]:
    return item.get("role"), item.get("content")
