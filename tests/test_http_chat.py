"""`/agents/{name}/chat` over ASGI: what the AI SDK sends, what it gets, resuming, stopping, and who may."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from ag_ui.core import TextMessageContentEvent, TextMessageEndEvent, TextMessageStartEvent
from agents import Agent
from fastapi import FastAPI

from asgi_client import (
    Call,
    Client,
    both_ways,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater import Streams
from headwater.http import App
from headwater.http.auth import Keys
from headwater.runs import Runs
from headwater.wire.sse import Decoder, Event
from scripted_model import Answer, scripted

CHAT = "/agents/bot/chat"


@asynccontextmanager
async def serving(*answers: Answer, auth: Keys | None = None) -> AsyncIterator[Client]:
    async with Streams("memory:") as streams:
        agents = Agent(name="Bot", model=scripted(*answers)), Agent(name="Other", model=scripted(*answers))
        async with Runs(streams, *agents) as runs:
            yield Client(App(streams, runs, auth=auth))


def body(text: str = "hi", chat: str = "c 1", **more: Any) -> str:
    asked = {"id": "m1", "role": "user", "parts": [{"type": "text", "text": text}]}
    return json.dumps({"id": chat, "messages": [asked], "trigger": "submit-message"} | more)


def events(call: Call) -> list[Event]:
    return Decoder().feed(call.body)


def kinds(call: Call) -> list[str]:
    return [json.loads(event.data)["type"] if event.data != "[DONE]" else event.data for event in events(call)]


async def test_a_post_starts_a_run_and_is_answered_with_its_chunks() -> None:
    async with serving(["Hel", "lo"]) as client:
        call = await client.ask("POST", CHAT, body())
        run = call.headers["x-run-id"]
        assert call.status == 200
        assert call.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert call.headers["x-vercel-ai-ui-message-stream"] == "v1"
        assert call.headers["location"] == f"{CHAT}/c%201/stream?run={run}"
        assert kinds(call)[0] == "start"
        assert kinds(call)[-2:] == ["finish", "[DONE]"]
        assert b"event:" not in call.body
        record = (await client.ask("GET", f"/v1/runs/{run}")).json()
        assert (record["agent"], record["thread_id"], record["input"]) == ("bot", "c 1", "hi")


async def test_a_cut_answer_goes_on_behind_each_of_its_events() -> None:
    async with serving(["a", "b"]) as client:
        call = await client.ask("POST", f"{CHAT}?rollup=0", body())
        whole = events(call)
        for number, event in enumerate(whole[:-1], start=1):
            at_its_location = await client.ask("GET", call.headers["location"], last_event_id=event.id)
            by_the_chat = await client.ask("GET", f"{CHAT}/c%201/stream?rollup=0", last_event_id=event.id)
            posted_again = await client.ask("POST", f"{CHAT}?rollup=0", body(), last_event_id=event.id)
            assert events(at_its_location) == events(by_the_chat) == events(posted_again) == whole[number:]
        end = await client.ask("GET", call.headers["location"], last_event_id=whole[-1].id)
        assert (end.status, end.body) == (204, b"")
        again = await client.ask("GET", call.headers["location"])
        assert events(again) == whole
        assert len((await client.ask("GET", "/v1/runs")).json()["runs"]) == 1


class Talker:
    """Says a lot."""

    name = "talker"

    async def run(self, input: Any, sink: Any) -> None:  # noqa: A002
        await sink.emit(TextMessageStartEvent(message_id="m"))
        for number in range(3000):
            await sink.emit(TextMessageContentEvent(message_id="m", delta=f"word {number}, and more of them "))
        await sink.emit(TextMessageEndEvent(message_id="m"))


async def test_a_resume_behind_many_pages() -> None:
    async with Streams("memory:") as streams, Runs(streams, Talker()) as runs:
        client = Client(App(streams, runs))
        call = await client.ask("POST", "/agents/talker/chat?rollup=0", body())
        whole = events(call)
        assert len(call.body) > 4 * runs.delivery.policy.chunk_bytes
        for number in (1, len(whole) // 2, len(whole) - 1):
            resumed = await client.ask("GET", call.headers["location"], last_event_id=whole[number - 1].id)
            assert events(resumed) == whole[number:]


async def test_an_active_run_is_replayed_and_a_finished_one_is_not() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo"]) as client:
        at = f"{CHAT}/c%201/stream"
        assert (await client.ask("GET", at)).status == 204
        first = client.call("POST", CHAT, body())
        await first.until(b'"Hel"')
        second = client.call("GET", at)
        await second.until(b'"Hel"')
        gate.set()
        assert (await first.done()).body == (await second.done()).body
        over = await client.ask("GET", at)
        assert (over.status, over.body, over.headers["cache-control"]) == (204, b"", "no-store")


async def test_readers_at_the_same_place_by_different_doors() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo"]) as client:
        first = client.call("POST", CHAT, body())
        await first.until(b'"Hel"')
        doors = [client.call("GET", f"/agents/bot/{door}/c%201/stream") for door in ("chat-v5", "chat-v7", "chat-text")]
        for door in doors:
            await door.until(b"Hel")
        gate.set()
        await first.done()
        for door in doors:
            replayed = await client.ask("GET", f"{(await door.done()).headers['location']}&rollup=0")
            assert replayed.body == door.body
        assert [b"finishReason" in door.body for door in doors] == [False, True, False]


async def test_stop() -> None:
    async with serving(["Hel", asyncio.Event()], ["ok"]) as client:
        stop, at = f"{CHAT}/c%201/stop", f"{CHAT}/c%201/stream"
        nothing = await client.ask("POST", stop)
        assert (nothing.status, nothing.json()) == (200, {"stopped": False, "runId": None})
        call = client.call("POST", CHAT, body())
        await call.until(b'"Hel"')
        run = call.headers["x-run-id"]
        for other in ('{"runId": "x"}', '{"activeStreamId": "x"}', '{"assistantMessage": {"id": "x"}}'):
            assert (await client.ask("POST", stop, other)).json()["stopped"] is False
        assert not call.ended
        stopped = await client.ask("POST", stop, json.dumps({"runId": run}))
        assert (stopped.status, stopped.json()) == (202, {"stopped": True, "runId": run})
        assert (await client.ask("GET", at)).status == 204  # at once, whenever the run is told
        assert (await client.ask("DELETE", stop)).json()["stopped"] is True
        assert kinds(await call.done())[-2:] == ["abort", "[DONE]"]
        next_ = await client.ask("POST", CHAT, body())
        assert "finish" in kinds(next_)
        late = await client.ask("POST", stop, json.dumps({"runId": run}))
        assert late.json() == {"stopped": False, "runId": None}  # not the newer one
        assert (await client.ask("POST", stop)).json()["stopped"] is False  # which has ended
        assert (await client.ask("POST", stop, "{")).status == 400
        assert (await client.ask("POST", stop, "[]")).status == 400


async def test_a_retried_post_attaches_by_its_key() -> None:
    async with serving(["ok"]) as client:
        first = await client.ask("POST", CHAT, body(), idempotency_key="k")
        again = await client.ask("POST", CHAT, body(), idempotency_key="k")
        assert first.body == again.body
        assert (await client.ask("POST", CHAT, body("other"), idempotency_key="k")).status == 409


async def test_the_versions_and_the_text_stream() -> None:
    async with serving(*[["ok"]] * 4) as client:
        finish = {}
        for door in ("chat-v5", "chat-v6", "chat-v7"):
            call = await client.ask("POST", f"/agents/bot/{door}", body())
            assert f"/agents/bot/{door}/" in call.headers["location"]
            finish[door] = json.loads(events(call)[-2].data).get("finishReason")
        assert finish == {"chat-v5": None, "chat-v6": "stop", "chat-v7": "stop"}
        text = await client.ask("POST", "/agents/bot/chat-text", body())
        assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", "ok")
        assert text.headers["x-content-type-options"] == "nosniff"
        assert (await client.ask("GET", text.headers["location"])).text == "ok"


@pytest.mark.parametrize(
    ("asked", "status", "said"),
    [
        ("{", 400, "JSON"),
        (body(chat=""), 400, "chat's id"),
        (body(chat="x" * 256), 400, "chat's id"),
        (body(trigger="resume-stream"), 400, "trigger"),
        (body(messages=[]), 400, "messages is empty"),
        (body(messages="hi"), 400, "list of messages"),
        (body(messages=[1]), 400, "list of messages"),
        (body(messages=[{"role": "assistant", "parts": []}]), 400, "the user's"),
        (body(messages=[{"role": "user", "parts": []}]), 400, "empty"),
        (body(messages=[{"role": "user", "content": "hi"}]), 400, "form"),
    ],
)
async def test_a_bad_post_is_refused_and_says_why(asked: str, status: int, said: str) -> None:
    async with serving() as client:
        call = await client.ask("POST", CHAT, asked)
        assert call.status == status
        assert said in call.json()["error"]["message"]
        assert (await client.ask("GET", "/v1/runs")).json()["runs"] == []


async def test_other_refusals() -> None:
    async with serving(["ok"], ["ok"]) as client:
        assert (await client.ask("POST", "/agents/nobody/chat", body())).json()["error"]["code"] == "agent_not_found"
        assert (await client.ask("POST", "/agents/bot/talk", body())).status == 404
        assert (await client.ask("POST", "/agents/", body())).status == 404
        assert (await client.ask("POST", f"{CHAT}/c/what", body())).status == 404
        assert (await client.ask("GET", CHAT)).headers["allow"] == "POST"
        assert (await client.ask("POST", f"{CHAT}/c/stream")).headers["allow"] == "GET"
        assert (await client.ask("GET", f"{CHAT}/c/stop")).headers["allow"] == "POST, DELETE"
        assert (await client.ask("POST", CHAT, body(), idempotency_key="k" * 256)).status == 400
        call = await client.ask("POST", CHAT, body())
        run, last_id = call.headers["x-run-id"], events(call)[0].id
        for at in (f"{CHAT}/another/stream", "/agents/other/chat/c%201/stream"):  # nor of another chat or agent
            assert (await client.ask("GET", f"{at}?run={run}")).status == 404
            assert (await client.ask("GET", at, last_event_id=last_id)).status == 404
        at = f"{CHAT}/c%201/stream"
        assert (await client.ask("GET", f"{at}?run=nobody")).status == 404
        assert (await client.ask("GET", at, last_event_id="garbage")).status == 400
        beyond = f"{last_id.partition('_')[0]}_{99:016d}"
        assert (await client.ask("GET", at, last_event_id=beyond)).status == 400


async def test_a_chat_whose_id_has_a_slash() -> None:
    async with serving(["ok"]) as client:
        call = await client.ask("POST", CHAT, body(chat="a/b"))
        assert call.headers["location"].startswith(f"{CHAT}/a%2Fb/stream")
        assert (await client.ask("GET", call.headers["location"])).body == call.body


KEYS = """
[[key]]
name = "one"
secret = "secret-of-one-0123"

[[key]]
name = "two"
secret = "secret-of-two-0123"

[[key]]
name = "reader"
secret = "secret-of-reader-0"
actions = ["read"]
"""


async def test_every_action_asks_whether_it_may(tmp_path: Any) -> None:
    await asyncio.to_thread((tmp_path / "keys.toml").write_text, KEYS)
    auth = await asyncio.to_thread(Keys.from_file, str(tmp_path / "keys.toml"))
    one, two, reader = (f"Bearer secret-of-{name}" for name in ("one-0123", "two-0123", "reader-0"))
    async with serving(["Hel", asyncio.Event()], auth=auth) as client:
        for method, path in (("POST", CHAT), ("GET", f"{CHAT}/c/stream"), ("POST", f"{CHAT}/c/stop")):
            assert (await client.ask(method, path, body())).status == 401
        assert (await client.ask("POST", CHAT, body(), authorization=reader)).status == 403
        call = client.call("POST", CHAT, body(), authorization=one)
        await call.until(b'"Hel"')
        # Another principal's chat of that id is another chat.
        assert (await client.ask("GET", f"{CHAT}/c%201/stream", authorization=two)).status == 204
        assert (await client.ask("POST", f"{CHAT}/c%201/stop", authorization=two)).json()["stopped"] is False
        location = call.headers["location"]
        head = await client.ask("HEAD", location, authorization=reader)
        assert (head.status, head.headers["x-vercel-ai-ui-message-stream"]) == (200, "v1")
        assert (await client.ask("POST", f"{CHAT}/c%201/stop", authorization=one)).status == 202
        await call.done()


async def test_under_a_prefix_the_location_is_right() -> None:
    async with Streams("memory:") as streams, Runs(streams, Agent(name="bot", model=scripted(["ok"]))) as runs:
        application = FastAPI()
        application.mount("/live", App(streams, runs))
        client = Client(application)
        call = await client.ask("POST", f"/live{CHAT}", body())
        assert call.headers["location"].startswith(f"/live{CHAT}/")
        assert (await client.ask("GET", call.headers["location"])).body == call.body


async def test_a_chat_whose_newest_run_was_deleted_has_nothing_to_resume_or_stop() -> None:
    async with serving(["ok"]) as client:
        run = (await client.ask("POST", CHAT, body())).headers["x-run-id"]
        assert (await client.ask("DELETE", f"/v1/responses/resp_{run}")).status == 200
        assert (await client.ask("GET", f"{CHAT}/c%201/stream")).status == 204
        stop = await client.ask("POST", f"{CHAT}/c%201/stop")
        assert (stop.status, stop.json()["stopped"]) == (200, False)
