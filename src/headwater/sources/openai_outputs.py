"""Gives a tool's output from before, in place of calling the tool again.

When a run is gone on with in the middle of a turn, the SDK carries out all tools of that turn, also those that had
ended. It has no seam for saying that one has; so the function by which it calls a tool is replaced, in the one place
where it looks it up, by one that asks first. It does so only inside `remembering` (a context variable says), and
changes nothing for others; where a version of the SDK has no such place, `CAN_REMEMBER` is False.

Must not know of runs or sinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

import agents.tool
from agents.run_internal import tool_execution

__all__ = ["CAN_REMEMBER", "is_json", "remembering"]

_NAME: Final = "_invoke_function_tool_with_metadata"
_RESULT: Final[Any] = getattr(agents.tool, "_FunctionToolInvocationResult", None)
_call_tool: Final[Any] = getattr(tool_execution, _NAME, None)

CAN_REMEMBER: Final = _RESULT is not None and _call_tool is not None

_outputs: Final[ContextVar[Mapping[str, Any]]] = ContextVar("headwater_tool_outputs", default={})  # noqa: B039 - read


@contextmanager
def remembering(outputs: Mapping[str, Any]) -> Iterator[None]:
    """In this context and in tasks begun in it, calls with these ids have these outputs, and their tools do not run."""
    if outputs and tool_execution.__dict__[_NAME] is _call_tool:
        tool_execution.__dict__[_NAME] = _asking_first
    token = _outputs.set(outputs)
    try:
        yield
    finally:
        _outputs.reset(token)


async def _asking_first(*, context: Any, **options: Any) -> Any:
    call, known = str(getattr(context, "tool_call_id", "")), _outputs.get()
    return _RESULT(known[call]) if call in known else await _call_tool(context=context, **options)


def is_json(value: object) -> bool:
    """Whether `value` is the same after it was JSON."""
    if isinstance(value, list):
        return type(value) is list and all(map(is_json, value))
    if isinstance(value, dict):
        return type(value) is dict and all(type(key) is str and is_json(item) for key, item in value.items())
    return value is None or type(value) in (str, int, float, bool)
