"""Realtime agents as a source: the real session on the SDK's own scripted transport, the sound in real streams."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import agents
import pytest
from ag_ui_validate.pytest_plugin import assert_valid_agui
from agents import function_tool
from agents.realtime import RealtimeAgent
from agents.realtime import model_events as on
from agents.realtime.testing import RealtimeStep, ScriptedRealtimeModel
from agents.usage import Usage
from websockets.datastructures import Headers
from websockets.exceptions import ConnectionClosedError, InvalidHandshake, InvalidStatus
from websockets.http11 import Response

from headwater import Streams
from headwater.runs import Run, Runs
from headwater.sources.realtime import SOUND, RealtimeVoice
from played_run import SECRET

agents.set_tracing_disabled(True)

Event = dict[str, Any]


class Call:
    """A running call: what the model says is told to it, what readers get comes out."""

    def __init__(self, streams: Streams, run: Run, model: ScriptedRealtimeModel) -> None:
        self.streams, self.run, self.model = streams, run, model
        self.sound, self.input = f"audio/{run.id}", f"audio/{run.id}/in"

    async def until(self, wanted: Callable[[Event], bool]) -> None:
        async for page in self.streams.follow(self.run.stream):
            if any(wanted(json.loads(message.data)) for message in page.messages):
                return

    async def started(self) -> None:
        await self.until(lambda event: event.get("name") == "audio.streams")
        while not self.model.connected:
            await asyncio.sleep(0)

    async def hang_up(self) -> list[Event]:
        """To the end of the run; its events."""
        await self.streams.close(self.input)
        return await self.ended()

    async def ended(self) -> list[Event]:
        events = [
            json.loads(message.data)
            async for page in self.streams.follow(self.run.stream)
            for message in page.messages
        ]  # fmt: skip
        assert_valid_agui(events, severity_overrides={"AGUI204": "off"})
        assert SECRET not in json.dumps(events)
        return events[2:]


@asynccontextmanager
async def calling(
    first: str = "", *, tools: Any = (), steps: Any = (), error: Exception | None = None, **options: Any
) -> AsyncIterator[Call]:
    model = ScriptedRealtimeModel(steps, connect_error=error, strict=False)
    agent = RealtimeAgent(name="Voice", instructions=SECRET, tools=list(tools))
    async with Streams("memory:") as streams:
        source = RealtimeVoice(agent, streams, model_factory=lambda: model, **options)
        async with Runs(streams, source) as runs:
            yield Call(streams, await runs.start("voice", first), model)


def audio(data: bytes, response: str = "r1", item: str = "i1") -> on.RealtimeModelAudioEvent:
    return on.RealtimeModelAudioEvent(data=data, response_id=response, item_id=item, content_index=0)


def spoken(delta: str, response: str = "r1", item: str = "i1") -> on.RealtimeModelTranscriptDeltaEvent:
    return on.RealtimeModelTranscriptDeltaEvent(item_id=item, delta=delta, response_id=response)


def begins(response: str = "r1") -> on.RealtimeModelTurnStartedEvent:
    return on.RealtimeModelTurnStartedEvent(response_id=response)


def ends(response: str = "r1") -> on.RealtimeModelTurnEndedEvent:
    return on.RealtimeModelTurnEndedEvent(response_id=response)


def words(events: list[Event]) -> list[str]:
    return [event["name"] if event["type"] == "CUSTOM" else event["type"] for event in events]


async def test_words_go_into_the_run_and_each_chunk_of_sound_into_its_stream_once() -> None:
    async with calling() as call:
        await call.started()
        await call.streams.append(call.input, b"\x01\x00", b"\x02\x00")
        await call.model.emit(
            on.RealtimeModelInputAudioTranscriptionCompletedEvent(item_id="u1", transcript="How are you?"),
            begins(),
            spoken("I am "),
            audio(b"\x0a\x00"),
            spoken("fine."),
            audio(b"\x0b\x00"),
            on.RealtimeModelUsageEvent(usage=Usage(requests=1, input_tokens=3, output_tokens=5, total_tokens=8)),
            ends(),
        )
        events = await call.hang_up()
        assert words(events) == [
            "audio.streams",
            "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
            "STEP_STARTED",
            "TEXT_MESSAGE_START", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_CONTENT", "TEXT_MESSAGE_END",
            "STEP_FINISHED", "RUN_FINISHED",
        ]  # fmt: skip
        assert events[0]["value"] == {"out": call.sound, "in": call.input, "contentType": SOUND}
        assert [event["role"] for event in events if event["type"] == "TEXT_MESSAGE_START"] == ["user", "assistant"]
        assert "".join(event.get("delta", "") for event in events) == "How are you?I am fine."
        assert events[-1]["usage"] == [{"inputTokens": 3, "outputTokens": 5, "totalTokens": 8}]
        page = await call.streams.read(call.sound)
        assert [message.data for message in page.messages] == [b"\x0a\x00", b"\x0b\x00"]
        assert (page.closed, page.outcome) == (True, "completed")
        heard = [event.audio for event in call.model.sent_events if hasattr(event, "audio")]
        assert heard == [b"\x01\x00", b"\x02\x00"]
        assert call.model.closed


async def test_the_sound_is_kept_within_bounds() -> None:
    async with calling() as call:
        await call.started()
        head = await call.streams.head(call.sound)
        assert head.config.content_type == SOUND
        assert head.config.retention is not None
        assert (head.config.retention.seconds, head.config.retention.bytes) == (600, 32 * 1024 * 1024)
        assert head.owner is not None  # if this process dies, another ends it
        await call.hang_up()


async def test_what_is_said_first_is_answered_before_hanging_up() -> None:
    from agents.realtime.model_inputs import RealtimeModelSendUserInput

    answer = [begins(), spoken("Hello."), ends()]
    async with calling("Hi!", steps=[RealtimeStep(RealtimeModelSendUserInput, answer)]) as call:
        await call.until(lambda event: event.get("name") == "audio.streams")
        events = await call.hang_up()
        assert "".join(event.get("delta", "") for event in events) == "Hello."


@function_tool
async def look_up(word: str) -> str:
    """Looks up."""
    return f"{word}: a word"


async def test_tools_have_their_ids_and_true_times() -> None:
    async with calling(tools=[look_up]) as call:
        await call.started()
        await call.model.emit(
            begins(),
            on.RealtimeModelToolCallEvent(name="look_up", call_id="c1", arguments='{"word":"tea"}'),
        )
        await call.until(lambda event: event["type"] == "TOOL_CALL_RESULT")
        await call.model.emit(spoken("A word."), ends())
        events = await call.hang_up()
        assert words(events)[2:7] == [
            "TOOL_CALL_START", "TOOL_CALL_ARGS", "TOOL_CALL_END", "tool.started", "TOOL_CALL_RESULT",
        ]  # fmt: skip
        (result,) = [event for event in events if event["type"] == "TOOL_CALL_RESULT"]
        assert (result["toolCallId"], result["content"]) == ("c1", "tea: a word")


async def test_an_interruption_says_what_is_not_to_be_played_any_more() -> None:
    async with calling() as call:
        await call.started()
        await call.model.emit(
            begins(),
            spoken("Once upon"),
            audio(b"\x01\x00"),
            on.RealtimeModelAudioInterruptedEvent(item_id="i1", content_index=0),
            ends(),
        )
        events = await call.hang_up()
        (value,) = [event["value"] for event in events if event.get("name") == "audio.interrupted"]
        (message,) = [event["messageId"] for event in events if event["type"] == "TEXT_MESSAGE_START"]
        assert value == {"messageId": message, "offset": str((await call.streams.head(call.sound)).offset)}


@pytest.mark.parametrize("late", [True, False], ids=["in the call", "at its beginning"])
async def test_a_failure_ends_run_and_sound_and_nothing_of_it_is_told(
    late: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headwater")
    async with calling(error=None if late else RuntimeError(SECRET)) as call:
        if late:
            await call.started()
            await call.model.emit(begins(), spoken("Hel"), on.RealtimeModelErrorEvent(error=SECRET))
            await call.model.emit(on.RealtimeModelExceptionEvent(exception=RuntimeError(SECRET), context=SECRET))
        events = await call.ended()
        assert (events[-1]["type"], events[-1]["code"]) == ("RUN_ERROR", "internal")
        head = await call.streams.head(call.sound)
        assert (head.closed, head.outcome) == (True, "failed")
        assert SECRET not in caplog.text


def answered(status: int) -> InvalidStatus:
    return InvalidStatus(Response(status, SECRET, Headers()))


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (socket.gaierror(SECRET), "model_unreachable"),
        (ConnectionRefusedError(SECRET), "model_unreachable"),
        (InvalidHandshake(SECRET), "model_unreachable"),
        (TimeoutError(SECRET), "model_timeout"),
        (answered(401), "model_refused_request"),
        (answered(429), "rate_limited"),
        (answered(503), "model_unreachable"),
    ],
    ids=str,
)
async def test_a_call_that_cannot_be_connected_says_so(
    error: Exception, code: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "headwater")
    async with calling(error=error) as call:
        assert (await call.ended())[-1]["code"] == code
        assert type(error).__name__ in caplog.text
        assert SECRET not in caplog.text


@pytest.mark.parametrize(
    ("error", "code"),
    [(ConnectionClosedError(None, None), "upstream_cut"), (FileNotFoundError("of a tool"), "internal")],
)
async def test_a_connection_that_breaks_in_the_call_is_told_from_other_errors(error: Exception, code: str) -> None:
    async with calling() as call:
        await call.started()
        await call.model.emit(begins(), spoken("Hel"), on.RealtimeModelExceptionEvent(exception=error))
        assert (await call.ended())[-1]["code"] == code


async def test_nobody_at_the_other_end_of_a_real_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    async with Streams("memory:") as streams:
        config = {"url": f"ws://127.0.0.1:{port}", "api_key": SECRET}
        source = RealtimeVoice(RealtimeAgent(name="Voice"), streams, model_config=config)
        async with Runs(streams, source) as runs:
            run = await runs.start("voice", "")
            said = [message.data async for page in streams.follow(run.stream) for message in page.messages]
        assert json.loads(said[-1])["code"] == "model_unreachable"


async def test_a_cancelled_call_is_closed() -> None:
    async with calling() as call:
        await call.started()
        await call.model.emit(begins(), spoken("Once"))
        await call.until(lambda event: event.get("delta") == "Once")
        await call.run.cancel()
        events = await call.ended()
        assert events[-1]["outcome"] == {"type": "cancelled"}
        assert (await call.streams.head(call.sound)).outcome == "cancelled"
        assert call.model.closed


async def test_a_call_that_takes_too_long_is_ended() -> None:
    async with calling(total_timeout=0.1) as call:
        events = await call.ended()
        assert events[-1]["code"] == "run_timeout"
        assert call.model.closed
