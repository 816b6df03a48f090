"""What was taken back stays so: for who comes late by a protocol without a word for it, and in what a model is sent."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ag_ui.core import CustomEvent, TextMessageContentEvent, TextMessageEndEvent, TextMessageStartEvent

from asgi_client import Client
from headwater import Streams
from headwater.agui import RETRACTED, custom
from headwater.errors import RunNotFound
from headwater.http import App
from headwater.http.auth import Keys
from headwater.runs import Runs, retractions
from headwater.sources import Sink
from headwater.wire.sse import Decoder
from test_http_agui import AGUI, asked
from test_http_chat import KEYS, body

WHOLE = "It is four."


class Corrected:
    """Begins twice: what it says first is taken back; ends at once, or when `gate` opens. Keeps what it was asked."""

    name = "bot"

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.asked: list[Any] = []

    async def run(self, input: Any, sink: Sink) -> None:  # noqa: A002
        self.asked.append(input)
        half, whole = f"{sink.run_id}.1", f"{sink.run_id}.2"
        await said(sink, half, "It is ", "fi")
        await sink.emit(custom(RETRACTED, messageId=half, reason="interrupted"))
        await said(sink, whole, f'No "{RETRACTED}" in this. ' if input == "quote" else "", WHOLE)
        await self.gate.wait()


async def said(sink: Sink, id_: str, *deltas: str) -> None:
    await sink.emit(TextMessageStartEvent(message_id=id_))
    for delta in deltas:
        if delta:
            await sink.emit(TextMessageContentEvent(message_id=id_, delta=delta))
    await sink.emit(TextMessageEndEvent(message_id=id_))


class Site(Client):
    runs: Runs
    agent: Corrected


@asynccontextmanager
async def serving(auth: Keys | None = None) -> AsyncIterator[Site]:
    agent = Corrected()
    async with Streams("memory:") as streams, Runs(streams, agent) as runs:
        runs.register(agent, "other")
        site = Site(App(streams, runs, auth=auth))
        site.runs, site.agent = runs, agent
        yield site


# -- the messages that were taken back --------------------------------------------------------------------------------


async def test_they_are_found_as_soon_as_the_run_says_so_and_kept_once_it_is_over() -> None:
    async with serving() as site:
        site.agent.gate.clear()
        run = await site.runs.start("bot", "quote")
        found = site.runs.retractions
        async for page in site.runs.streams.follow(run.stream):
            if any(WHOLE.encode() in message.data for message in page.messages):
                break
        assert await found.of(run.id) == {f"{run.id}.1"}
        assert repr(found) == "<Retractions [0 runs known]>"  # more may be taken back
        site.agent.gate.set()
        await run.wait()
        assert await found.of(run.id) == {f"{run.id}.1"}
        await site.runs.streams.delete(run.stream)
        assert await found.of(run.id) == {f"{run.id}.1"}
        with pytest.raises(RunNotFound):
            await found.of("nobody")


async def test_so_many_runs_that_are_over_are_known_the_last_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retractions, "MOST_KNOWN", 2)
    async with serving() as site:
        runs = [await site.runs.start("bot", "hi") for _ in range(3)]
        for run in runs:
            await run.wait()
        for run in (runs[0], runs[1], runs[0], runs[2]):
            await site.runs.retractions.of(run.id)
        assert [run.id in site.runs.retractions._known for run in runs] == [True, False, True]


async def test_only_those_of_the_thread_that_is_meant() -> None:
    async with serving() as site:
        runs = [await site.runs.start(agent, "hi", thread_id=thread) for agent, thread in (
            ("bot", "t"), ("bot", "t"), ("bot", "u"), ("other", "t"))]  # fmt: skip
        for run in runs:
            await run.wait()
        ids = [*(run.id for run in runs), "nobody"]
        assert await site.runs.retractions.of_thread("bot", "t", ids) == {f"{run.id}.1" for run in runs[:2]}


async def test_an_event_of_that_name_and_another_shape_takes_nothing_back() -> None:
    async with Streams("memory:") as streams:

        async def odd(_: Any) -> AsyncIterator[CustomEvent]:
            for value in (None, "m", {}, {"messageId": 5}):
                yield CustomEvent(name=RETRACTED, value=value)

        async with Runs(streams, odd) as runs:
            run = await runs.start("odd", "hi")
            assert (await run.wait()).status == "completed"
            assert await runs.retractions.of(run.id) == frozenset()


# -- what late readers are told ---------------------------------------------------------------------------------------


async def test_the_text_of_a_run_is_whole_for_who_comes_late() -> None:
    async with serving() as site:
        asked = json.dumps({"agent": "bot", "input": "hi"})
        started = await site.ask("POST", "/v1/runs?format=text", asked, accept="text/event-stream", idempotency_key="k")
        late = await site.ask("GET", f"/v1/runs/{started.headers['x-run-id']}/events?format=text")
        again = await site.ask("POST", "/v1/runs?format=text", asked, accept="text/event-stream", idempotency_key="k")
        events = await site.ask("GET", f"/v1/runs/{started.headers['x-run-id']}/events?format=ndjson")
        assert (started.text, late.text, again.text) == ("It is fi" + WHOLE, WHOLE, WHOLE)
        assert "It is fi" in events.text  # these readers are told what was taken back


async def test_the_text_that_was_started_keeps_what_it_has_told() -> None:
    async with serving() as site:
        post = await site.ask("POST", "/agents/bot/chat-text", body())
        assert post.text == "It is fi" + WHOLE
        assert (await site.ask("GET", post.headers["location"])).text == WHOLE


async def test_who_joins_a_chat_in_text_is_not_told_what_was_taken_back_before() -> None:
    async with serving() as site:
        site.agent.gate.clear()
        first = site.call("POST", "/agents/bot/chat-text", body())
        await first.until(WHOLE.encode())
        joined = site.call("GET", "/agents/bot/chat-text/c%201/stream")
        await joined.until(WHOLE.encode())
        site.agent.gate.set()
        assert (await joined.done()).text == WHOLE
        await first.done()


ASK = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}


def content(sent: bytes) -> str:
    chunks = [json.loads(event.data) for event in Decoder().feed(sent) if event.data != "[DONE]"]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


async def test_a_completion_is_whole_for_who_waits_and_for_who_comes_late() -> None:
    async with serving() as site:
        waited = await site.ask("POST", "/v1/chat/completions", json.dumps(ASK))
        assert waited.json()["choices"][0]["message"]["content"] == WHOLE
        streamed = json.dumps({**ASK, "stream": True})
        at = "/v1/chat/completions?rollup=0"
        first = await site.ask("POST", at, streamed, idempotency_key="k")
        assert content(first.body) == f"It is fi\n\n{WHOLE}"  # it had been told when it was taken back
        again = await site.ask("POST", at, streamed, idempotency_key="k")
        assert content(again.body) == WHOLE
        whole = Decoder().feed(first.body)
        numbers = {event.id: event.data for event in Decoder().feed(again.body)}
        assert numbers.items() - {(event.id, event.data) for event in whole} == {
            (event.id, event.data.replace("\\n\\n", "")) for event in whole if WHOLE in event.data
        }
        behind = next(event.id for event in whole if '"It is "' in event.data)
        resumed = await site.ask("POST", at, streamed, idempotency_key="k", last_event_id=behind)
        assert content(resumed.body) == f"\n\n{WHOLE}"  # behind what this reader has of the first


async def test_a_response_does_not_hold_what_was_taken_back() -> None:
    async with serving() as site:
        waited = await site.ask("POST", "/v1/responses", json.dumps({"model": "bot", "input": "hi"}))
        texts = [part["text"] for item in waited.json()["output"] for part in item["content"]]
        assert texts == [WHOLE]


# -- what goes to the model again -------------------------------------------------------------------------------------


async def messages_of(site: Site, run: str) -> list[dict[str, Any]]:
    """What HttpAgent keeps of a run: all its texts."""
    log = await site.ask("GET", f"/v1/runs/{run}/events?format=ndjson")
    texts: dict[str, str] = {}
    for event in map(json.loads, log.text.splitlines()):
        if event["type"] == "TEXT_MESSAGE_CONTENT":
            texts[event["messageId"]] = texts.get(event["messageId"], "") + event["delta"]
    return [{"id": id_, "role": "assistant", "content": text} for id_, text in texts.items()]


async def test_an_ag_ui_client_sends_it_back_and_the_model_does_not_see_it() -> None:
    async with serving() as site:
        run = (await site.ask("POST", AGUI, asked())).headers["x-run-id"]
        kept = await messages_of(site, run)
        assert [message["content"] for message in kept] == ["It is fi", WHOLE]
        others = ["no-run-s", "nobody.1", f"{run}.9"]
        unknown = [{"id": id_, "role": "assistant", "content": id_} for id_ in others]
        history = [*kept, *unknown, {"id": "q2", "role": "user", "content": "sure?"}]
        assert (await site.ask("POST", AGUI, asked(run="r2", messages=history))).status == 200
        assert [item["content"] for item in site.agent.asked[-1]] == [
            WHOLE,
            "no-run-s",
            "nobody.1",
            f"{run}.9",
            "sure?",
        ]
        elsewhere = asked(run="r3", thread="t2", messages=history)
        assert (await site.ask("POST", AGUI, elsewhere)).status == 200
        assert [item["content"] for item in site.agent.asked[-1]][:2] == ["It is fi", WHOLE]


async def test_calls_of_a_message_that_was_taken_back_stay_with_their_results() -> None:
    async with serving() as site:
        run = (await site.ask("POST", AGUI, asked())).headers["x-run-id"]
        call = {"id": "c", "type": "function", "function": {"name": "look", "arguments": "{}"}}
        half, whole = await messages_of(site, run)
        result = {"id": "c-result", "role": "tool", "toolCallId": "c", "content": "seen"}
        history = [half | {"toolCalls": [call]}, result, whole, {"id": "q2", "role": "user", "content": "sure?"}]
        await site.ask("POST", AGUI, asked(run="r2", messages=history))
        kinds = [item.get("type") or item["content"] for item in site.agent.asked[-1]]
        assert kinds == ["function_call", "function_call_output", WHOLE, "sure?"]


async def test_what_a_run_took_back_is_told_to_nobody_who_may_not_read_it(tmp_path: Any) -> None:
    starts_only = '\n[[key]]\nname = "starter"\nsecret = "secret-of-starter"\nactions = ["start"]\n'
    await asyncio.to_thread((tmp_path / "keys.toml").write_text, KEYS + starts_only)
    auth = await asyncio.to_thread(Keys.from_file, str(tmp_path / "keys.toml"))
    async with serving(auth) as site:
        mine, starter = "Bearer secret-of-one-0123", "Bearer secret-of-starter"
        run = (await site.ask("POST", AGUI, asked(), authorization=mine)).headers["x-run-id"]
        half = {"id": f"{run}.1", "role": "assistant", "content": "It is fi"}
        history = asked(run="r2", messages=[half, {"id": "q2", "role": "user", "content": "sure?"}])
        await site.ask("POST", AGUI, history, authorization=mine)
        assert site.agent.asked[-1] == "sure?"
        assert (await site.ask("POST", AGUI, history, authorization=starter)).status == 200
        assert [item["content"] for item in site.agent.asked[-1]] == ["It is fi", "sure?"]


@pytest.mark.parametrize("door", ["chat", "chat-v5", "chat-v7"])
async def test_useChat_sends_it_back_and_the_model_does_not_see_it(door: str) -> None:
    async with serving() as site:
        call = await site.ask("POST", f"/agents/bot/{door}", body())
        parts: dict[str, dict[str, Any]] = {}
        data: list[dict[str, Any]] = []
        for event in Decoder().feed(call.body):
            match json.loads(event.data) if event.data != "[DONE]" else {}:
                case {"type": "text-start", "id": id_, "providerMetadata": named}:
                    parts[id_] = {"type": "text", "text": "", "providerMetadata": named}
                case {"type": "text-delta", "id": id_, "delta": delta}:
                    parts[id_]["text"] += delta
                case {"type": "data-message-retracted"} as part:
                    data.append(part)
        # As version 5 and 6 keep it; 7 has taken the step back at its door, and sends it all from another one.
        answer = {"id": "a", "role": "assistant", "parts": [*parts.values(), *data]}
        next_ = {"id": "q2", "role": "user", "parts": [{"type": "text", "text": "sure?"}]}
        assert [part["text"] for part in parts.values()] == ["It is fi", WHOLE]
        assert (await site.ask("POST", f"/agents/bot/{door}", body(messages=[answer, next_]))).status == 200
        assert [item["content"] for item in site.agent.asked[-1]] == [WHOLE, "sure?"]
