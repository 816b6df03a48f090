"""An agent all of whose words are markup: `headwater serve tests.hostile_agent:hostile`, for pages that show runs."""

from ag_ui.core import (
    ReasoningMessageContentEvent,
    ReasoningMessageEndEvent,
    ReasoningMessageStartEvent,
    StepFinishedEvent,
    StepStartedEvent,
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)

from headwater.agui import custom
from headwater.sources import RunFailed

MARKUP = (
    '"><img src=/stolen onerror="window.hit=1;alert(1)"><script>window.hit=1</script>'
    "<svg onload=window.hit=1><a href=javascript:window.hit=1>x</a>${window.hit=1}{{window.hit=1}}"
)


class Hostile:
    """Says MARKUP in every field that a reader may show."""

    name = "hostile"

    async def run(self, input, sink):  # noqa: A002
        for event in (
            StepStartedEvent(step_name=MARKUP),
            ReasoningMessageStartEvent(message_id="r", role="reasoning"),
            ReasoningMessageContentEvent(message_id="r", delta=MARKUP),
            ReasoningMessageEndEvent(message_id="r"),
            ToolCallStartEvent(tool_call_id=MARKUP, tool_call_name=MARKUP),
            ToolCallArgsEvent(tool_call_id=MARKUP, delta=MARKUP),
            ToolCallEndEvent(tool_call_id=MARKUP),
            custom("tool.progress", toolCallId=MARKUP, message=MARKUP, fraction=MARKUP),
            ToolCallResultEvent(message_id="t", tool_call_id=MARKUP, content=MARKUP),
            custom("handoff", **{"from": MARKUP, "to": MARKUP}),
            TextMessageStartEvent(message_id="m", role="assistant"),
            TextMessageContentEvent(message_id="m", delta=MARKUP),
            TextMessageEndEvent(message_id="m"),
            custom("message.retracted", messageId="m", reason=MARKUP),
            custom(MARKUP, html=MARKUP, __proto__=MARKUP),
            StepFinishedEvent(step_name=MARKUP),
        ):
            await sink.emit(event)
        raise RunFailed(MARKUP, MARKUP)


hostile = Hostile()
