"""Runs made up by hypothesis: any events in AG-UI's order, as the messages of a run's stream."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from headwater import agui
from headwater.model import Message, Offset

RUN = "run"


def message(event: dict[str, Any], position: int) -> Message:
    return Message(json.dumps(event, ensure_ascii=False, separators=(",", ":")).encode(), Offset(3, position), 0)


def messages(*events: dict[str, Any]) -> list[Message]:
    """A run's stream: RUN_STARTED, and `events`."""
    started = {"type": "RUN_STARTED", "threadId": "t", "runId": RUN}
    return [message(event, position) for position, event in enumerate([started, *events], start=1)]


KINDS = ["text", "thought", "call", "use", "use", "end", "result", "custom"]

_text = st.text(st.characters(codec="utf-8"), max_size=8)
_subagent = st.sampled_from([{}, {}, {}, {"subagentRunId": "s"}])


@st.composite
def runs(draw: st.DrawFn) -> list[Message]:
    """A whole run, its terminal event included; parts may be interleaved, calls may stay without a result."""
    parts, events = agui.OpenParts(), []
    open_: list[tuple[str, str]] = []
    ended: list[str] = []

    def say(event: dict[str, Any]) -> None:
        events.append(event)
        parts.feed(event)

    parts.feed({"type": "RUN_STARTED", "threadId": "t", "runId": RUN})
    say({"type": "CUSTOM", "name": "run.input", "value": draw(_text)})
    for made, what in enumerate(draw(st.lists(st.sampled_from(KINDS))), start=1):
        if what in ("text", "thought"):
            kind = {"text": "TEXT_MESSAGE", "thought": "REASONING_MESSAGE"}[what]
            say({"type": f"{kind}_START", "messageId": f"{RUN}.{made}"} | draw(_subagent))
            open_.append((kind, f"{RUN}.{made}"))
        elif what == "call":
            say({"type": "TOOL_CALL_START", "toolCallId": f"c{made}", "toolCallName": "look"})
            open_.append(("TOOL_CALL", f"c{made}"))
        elif what in ("use", "end") and open_:
            kind, id_ = draw(st.sampled_from(open_))
            key = "toolCallId" if kind == "TOOL_CALL" else "messageId"
            if what == "use":
                verb = "ARGS" if kind == "TOOL_CALL" else "CONTENT"
                delta = draw(st.sampled_from(['{"a":', "1}", "{}"])) if kind == "TOOL_CALL" else draw(_text)
                say({"type": f"{kind}_{verb}", key: id_, "delta": delta})
            else:
                say({"type": f"{kind}_END", key: id_})
                open_.remove((kind, id_))
                ended += [id_] if kind == "TOOL_CALL" else []
        elif what == "result" and ended:
            id_ = ended.pop(draw(st.integers(0, len(ended) - 1)))
            say({"type": "TOOL_CALL_RESULT", "messageId": f"{RUN}.{made}", "toolCallId": id_, "content": draw(_text)})
        elif what == "custom":
            shown = [event["messageId"] for event in events if event["type"] == "TEXT_MESSAGE_START"]
            taken_back = {"messageId": draw(st.sampled_from(shown)), "reason": "x"} if shown else None
            name, value = (agui.RETRACTED, taken_back) if taken_back and draw(st.booleans()) else ("my event", [1])
            say({"type": "CUSTOM", "name": name, "value": value})
    for event in parts.closing_events():
        say(agui.decode(agui.encode(event)))
    say(draw(st.sampled_from(TERMINALS)))
    return messages(*events)


TERMINALS = [
    {"type": "RUN_FINISHED", "threadId": "t", "runId": RUN, "outcome": {"type": "success"}},
    {"type": "RUN_FINISHED", "threadId": "t", "runId": RUN, "outcome": {"type": "cancelled"}},
    {"type": "RUN_ERROR", "message": "It broke.", "code": "model_failed"},
]
