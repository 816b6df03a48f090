"""Runs a realtime (voice) agent of the OpenAI Agents SDK as a source: words into the run, sound into streams beside it.

| stream | what |
|---|---|
| `runs/{id}` | transcripts of both sides as text messages, tools, handoffs; CUSTOM "audio.streams": the names below |
| `audio/{id}` | what the agent says, one message per chunk, each once; closed with the run |
| `audio/{id}/in` | what it is to hear: whoever talks to it appends chunks, and closes it to hang up |

So a call survives a cut connection on either side of the server, as any stream does. Knows the SDK's session and
streams. Invariants: sound is kept for a bounded time and size; what an interruption made void is said (CUSTOM
"audio.interrupted"), so that players stop; no text of an exception reaches a reader; the session is closed and waited
for, however the run ends.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any, Final

from ag_ui.core import (
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

from headwater.agui import HANDOFF, RETRACTED, TOOL_STARTED, BaseEvent, TokenUsage, custom
from headwater.decide import Append, Create, Item
from headwater.errors import HeadwaterError, MissingExtra
from headwater.model import Config, Offset, Retention
from headwater.sources import RunFailed, Sink
from headwater.sources.adoption import Adoption
from headwater.sources.openai_values import tool_content
from headwater.sources.realtime_failures import connection_failure
from headwater.sources.redacted import redacted
from headwater.streams import Streams

try:
    from agents.realtime import RealtimeAgent, RealtimeModel, RealtimeRunner
except ImportError as error:
    raise MissingExtra("agents", "openai-agents") from error

__all__ = ["INTERRUPTED", "SOUND", "STREAMS", "RealtimeVoice"]

STREAMS: Final = "audio.streams"
"""Name of the CUSTOM event {out, in, contentType}: names of streams."""
INTERRUPTED: Final = "audio.interrupted"
"""Name of the CUSTOM event {messageId, offset}: the agent's sound up to `offset` is not to be played any more."""

SOUND: Final = "audio/pcm;rate=24000"
"""What the SDK's models speak and hear unless they are told otherwise: 16 bit, mono."""
KEPT: Final = Retention(seconds=600, bytes=32 * 1024 * 1024)
"""Ten minutes of sound are 29 MB."""
TTL_SECONDS: Final = 3600

_log: Final = logging.getLogger(__name__)


class RealtimeVoice:
    """A `RealtimeAgent` as a source; its sound goes through `streams`.

    - `name`: what it is registered under; by default the slug of the agent's name.
    - `model_factory` makes the model of each run; by default the SDK's own, over WebSocket. `model_config` and
      `run_config` are the SDK's.
    - `content_type` of the sound. Ten minutes of it are kept.
    - `total_timeout`: seconds for the whole call; then RunFailed("run_timeout"). OpenAI's end after an hour.

    A run's input is what is said first, in text; empty where the caller begins. The run ends when its input stream is
    closed and the answer that was being given is over.
    """

    def __init__(
        self,
        agent: RealtimeAgent[Any],
        streams: Streams,
        *,
        name: str | None = None,
        model_factory: Callable[[], RealtimeModel] | None = None,
        model_config: Mapping[str, Any] | None = None,
        run_config: Mapping[str, Any] | None = None,
        content_type: str = SOUND,
        total_timeout: float | None = 3600.0,
    ) -> None:
        self.agent = agent
        self.name = name or re.sub(r"[^a-z0-9]+", "-", agent.name.lower()).strip("-") or "agent"
        self._streams, self._content_type, self._total = streams, content_type, total_timeout
        self._model_factory = model_factory
        self._model_config, self._run_config = model_config, run_config

    def __repr__(self) -> str:
        return f"<RealtimeVoice {self.name}>"

    async def run(self, input: str, sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """See `Source.run`. It has no result but what was said."""
        sound = _Sound(self._streams, f"audio/{sink.run_id}", self._content_type)
        call = _Call(sink, sound)
        outcome = "failed"
        try:
            async with asyncio.timeout(self._total) as limit:
                await sound.open()
                await call.talk(await self._session(), input)
            outcome = "completed"
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        except (RunFailed, HeadwaterError):
            raise
        except Exception as error:
            if isinstance(error, TimeoutError) and limit.expired():
                raise RunFailed("run_timeout", "The run took longer than it may.") from error
            told = redacted(error, sink.run_id, _log)
            raise connection_failure(error, connected=call.connected) or told from error
        finally:
            sink.usage(call.usage())
            await asyncio.shield(asyncio.ensure_future(sound.close(outcome)))
        return None

    async def _session(self) -> Any:
        model = self._model_factory() if self._model_factory is not None else None
        given: Any = self._run_config  # typed dicts of the SDK's
        config: Any = self._model_config
        return await RealtimeRunner(self.agent, model=model, config=given).run(model_config=config)


class _Sound:
    """The two streams of one call."""

    def __init__(self, streams: Streams, name: str, content_type: str) -> None:
        self.name, self.input = name, f"{name}/in"
        self.content_type = content_type
        self.offset: Offset | None = None
        self._streams = streams

    async def open(self) -> None:
        """Made as ours: if this process dies, another ends it as failed."""
        owner = await self._streams.leases.hold()
        config = Config(self.content_type, TTL_SECONDS, None, KEPT)
        await self._streams.carry_out(self.name, Create(config, owner=owner))
        await self._streams.create(self.input, content_type=self.content_type, ttl=TTL_SECONDS, retention=KEPT)

    async def add(self, chunk: bytes) -> None:
        self.offset = (await self._streams.carry_out(self.name, Append([Item(chunk)]))).head.offset

    async def hear(self, session: Any) -> None:
        """Passes on what comes in, until it is closed."""
        async for page in self._streams.follow(self.input):
            for message in page.messages:
                await session.send_audio(message.data)

    async def close(self, outcome: str) -> None:
        for name in (self.name, self.input):
            with suppress(HeadwaterError):  # closed already; or what cannot be ended now is ended when our lease lapses
                await self._streams.close(name, outcome)


class _Call:
    """One session, from its first word to its last."""

    def __init__(self, sink: Sink, sound: _Sound) -> None:
        self._sink, self._sound = sink, sound
        self._adoption = Adoption(sink.run_id)
        self._translation = _Translation(sink.run_id)
        self._session: Any = None
        self._hung_up = False
        self._answers_due = 0
        self.connected = False
        """The call has begun."""

    async def talk(self, session: Any, first: str) -> None:
        """Raises what ends the call early."""
        self._session = session
        sound = self._sound
        await self._emit(
            iter((custom(STREAMS, out=sound.name, **{"in": sound.input}, contentType=sound.content_type),))
        )
        async with session:
            self.connected = True
            hearing = asyncio.create_task(self._hear(), name=f"headwater hears {self._sink.run_id}")
            try:
                if first:
                    self._answers_due += 1
                    await session.send_message(first)
                async for event in session:
                    await self._take(event)
            finally:
                hearing.cancel()
                await asyncio.wait([hearing])
        if not hearing.cancelled() and (error := hearing.exception()) is not None:
            raise error
        await self._emit(self._translation.end())

    async def _hear(self) -> None:
        try:
            await self._sound.hear(self._session)
            self._hung_up = True
            if self._answers_due <= 0:
                await self._session.close()
        except Exception:
            await self._session.close()  # ends the loop in `talk`, which raises it
            raise

    async def _take(self, event: Any) -> None:
        if event.type == "audio":  # not its twin among the raw events
            await self._sound.add(event.audio.data)
        elif event.type == "audio_interrupted":
            value = {
                "messageId": self._translation.message_of(event.item_id),
                "offset": str(self._sound.offset or "-1"),
            }
            await self._emit(iter((custom(INTERRUPTED, **value),)))
        elif event.type == "tool_approval_required":
            raise RunFailed("approval_not_supported", "A tool asks for an approval, which nobody can give here.")
        elif event.type == "error":
            _log.warning(
                "run %s: the model told of an error; log level debug for %s shows it", self._sink.run_id, __name__
            )
            _log.debug("run %s: %s", self._sink.run_id, event.error)
        else:
            await self._emit(self._translation.events(event))
            self._turn(event)
        if self._hung_up and self._answers_due <= 0:
            await self._session.close()

    def _turn(self, event: Any) -> None:
        if event.type == "agent_start":
            self._answers_due = max(1, self._answers_due)
        elif event.type == "agent_end":
            self._answers_due = max(0, self._answers_due - 1)

    async def _emit(self, events: Iterator[BaseEvent]) -> None:
        for event in events:
            for ours in self._adoption.events(event):
                await self._sink.emit(ours)

    def usage(self) -> list[TokenUsage]:
        return self._translation.usage


class _Translation:
    """The session's events as those of AG-UI. Pure. Ids are the model's, which are unique within a session."""

    def __init__(self, run_id: str) -> None:
        self.usage: list[TokenUsage] = []
        self._run_id = run_id
        self._step: str | None = None
        self._open: dict[str, str] = {}  # text messages of the agent: item -> message
        self._shown: dict[str, str] = {}
        self._waiting: list[tuple[tuple[str, str], str]] = []  # calls that were asked for: (name, arguments), id
        self._running: list[tuple[tuple[str, str], str]] = []
        self._made = 0

    def message_of(self, item: str) -> str | None:
        return self._shown.get(item)

    def events(self, event: Any) -> Iterator[BaseEvent]:
        match event.type:
            case "raw_model_event":
                yield from self._raw(event.data)
            case "agent_start":
                yield from self._agent(event.agent.name)
            case "agent_end":
                yield from self._end_messages()
            case "handoff":
                yield custom(HANDOFF, **{"from": event.from_agent.name, "to": event.to_agent.name})
            case "tool_start":
                if (call := _taken(self._waiting, event)) is not None:
                    self._running.append(call)
                    yield custom(TOOL_STARTED, toolCallId=call[1])
            case "tool_end":
                if (call := _taken(self._running, event) or _taken(self._waiting, event)) is not None:
                    content = tool_content(event.output)
                    yield ToolCallResultEvent(message_id=self._new_id(), tool_call_id=call[1], content=content)
            case "guardrail_tripped":
                shown = list(self._open.values()) or list(self._shown.values())[-1:]
                yield from self._end_messages()
                for message in shown:
                    yield custom(RETRACTED, messageId=message, reason="output_guardrail")

    def end(self) -> Iterator[BaseEvent]:
        yield from self._end_messages()
        if self._step is not None:
            yield StepFinishedEvent(step_name=self._step)

    def _raw(self, data: Any) -> Iterator[BaseEvent]:
        match data.type:
            case "transcript_delta" | "output_text_delta":
                yield from self._said(data.item_id, data.delta)
            case "input_audio_transcription_completed":
                yield from self._heard(data.transcript)
            case "function_call":
                yield from self._asked(data)
            case "usage":
                self._count(data.usage)

    def _agent(self, name: str) -> Iterator[BaseEvent]:
        if name != self._step:
            if self._step is not None:
                yield StepFinishedEvent(step_name=self._step)
            self._step = name
            yield StepStartedEvent(step_name=name)

    def _said(self, item: str, delta: str) -> Iterator[BaseEvent]:
        if not delta:
            return
        if item not in self._open:
            yield from self._end_messages()
            self._open[item] = self._shown[item] = self._new_id()
            yield TextMessageStartEvent(message_id=self._open[item], role="assistant")
        yield TextMessageContentEvent(message_id=self._open[item], delta=delta)

    def _heard(self, transcript: str) -> Iterator[BaseEvent]:
        if transcript:
            id_ = self._new_id()
            yield TextMessageStartEvent(message_id=id_, role="user")
            yield TextMessageContentEvent(message_id=id_, delta=transcript)
            yield TextMessageEndEvent(message_id=id_)

    def _asked(self, call: Any) -> Iterator[BaseEvent]:
        self._made += 1
        id_ = (
            f"{self._run_id}.{self._made}" if any(known == call.call_id for _, known in self._waiting) else call.call_id
        )
        self._waiting.append(((call.name, call.arguments), id_))
        yield ToolCallStartEvent(tool_call_id=id_, tool_call_name=call.name)
        if call.arguments:
            yield ToolCallArgsEvent(tool_call_id=id_, delta=call.arguments)
        yield ToolCallEndEvent(tool_call_id=id_)

    def _end_messages(self) -> Iterator[BaseEvent]:
        for message in self._open.values():
            yield TextMessageEndEvent(message_id=message)
        self._open.clear()

    def _new_id(self) -> str:
        self._made += 1
        return f"{self._run_id}.{self._made}"

    def _count(self, usage: Any) -> None:
        if usage.input_tokens or usage.output_tokens:
            self.usage.append(
                TokenUsage(
                    input_tokens=usage.input_tokens,
                    output_tokens=usage.output_tokens,
                    total_tokens=usage.input_tokens + usage.output_tokens,
                )
            )


def _taken(calls: list[tuple[tuple[str, str], str]], event: Any) -> tuple[tuple[str, str], str] | None:
    """The first of `calls` that `event` tells of: the SDK's events of tools have no ids."""
    key = (event.tool.name, event.arguments)
    found = next((call for call in calls if call[0] == key), None)
    if found is not None:
        calls.remove(found)
    return found
