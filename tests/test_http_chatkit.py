"""A ChatKitServer served durably, on real sockets: every event is read by ChatKit's own types."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("chatkit", reason="run: pip install 'headwater[chatkit]'")
from agents import OpenAIChatCompletionsModel, function_tool
from chatkit.errors import CustomStreamError
from chatkit.server import ChatKitServer
from chatkit.types import ProgressUpdateEvent, ThreadItemUpdatedEvent
from fastapi import FastAPI, Request
from openai import AsyncOpenAI

from chatkit_site import Site, asked, read, said, text, thread_of, types
from headwater import Streams
from headwater.delivery import Delivery, Policy
from headwater.errors import Interrupted
from headwater.http import App, lifespan
from headwater.http.auth import Keys, Principal
from headwater.http.chatkit import ChatKit
from headwater.http.chatkit_answers import Answers, Place
from headwater.model import Head
from headwater.sources.chatkit import Processing
from headwater.wire.sse import Decoder
from live_server import live
from matrix import cell
from real_server import Server, process
from scripted_model import calls, scripted

CHATKIT = "/chatkit"
MARKER = "The user cancelled the stream. Stop responding to the prior request."


class Served:
    """A ChatKitServer behind a real uvicorn."""

    def __init__(self, http: httpx.AsyncClient, chatkit: ChatKit) -> None:
        self.http, self.chatkit, self.streams = http, chatkit, chatkit.streams
        self.store: Any = chatkit.server.store

    async def post(self, body: Any = None, **headers: str) -> httpx.Response:
        given = {name.replace("_", "-"): value for name, value in headers.items()}
        return await self.http.post(CHATKIT, json=body or asked(), headers=given)

    async def heads(self) -> list[Head]:
        return [head for _, head in await self.streams.list("chatkit/")]

    async def ended(self) -> Head:
        """The only answer, once it has ended; looked for without becoming a reader of it."""
        async with asyncio.timeout(5):
            while not (heads := await self.heads()) or not heads[0].closed:
                await asyncio.sleep(0.01)
        return heads[0]


@asynccontextmanager
async def serving(
    server: ChatKitServer[Any], auth: Keys | None = None, policy: Policy | None = None, **options: Any
) -> AsyncIterator[Served]:
    async with Streams("memory:") as streams:
        chatkit = ChatKit(server, streams, delivery=Delivery(streams, policy or Policy()), **options)
        async with live(App(streams, auth=auth, pages={CHATKIT: chatkit, f"{CHATKIT}/stop": chatkit})) as http:
            yield Served(http, chatkit)


class Reading:
    """What comes of a response."""

    def __init__(self, response: httpx.Response) -> None:
        self.got = b""
        self._chunks = response.aiter_raw()

    async def until(self, said: bytes) -> bytes:
        while said not in self.got:
            self.got += await anext(self._chunks)
        return self.got

    async def end(self) -> bytes:
        async for chunk in self._chunks:
            self.got += chunk
        return self.got


class Scripted(ChatKitServer[Any]):
    """Without an agent: `respond` is given."""

    def __init__(self, respond: Any, store: Any = None) -> None:
        super().__init__(store or Site(None).store)
        self._respond = respond

    async def respond(self, thread: Any, input_user_message: Any, context: Any) -> AsyncIterator[Any]:
        async for event in self._respond():
            yield event


# --- what ChatKit's client gets --------------------------------------------------------------------------------------


@cell("chatkit", "whole")
async def test_a_new_thread_is_answered_saved_and_comes_again_from_anywhere() -> None:
    async with serving(Site(scripted(["Hel", "lo."]))) as site:
        answer = await site.post()
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert answer.headers["x-accel-buffering"] == "no"
        assert types(answer.content)[:3] == ["thread.created", "thread.item.done", "stream_options"]
        assert text(answer.content) == "Hello."
        assert answer.content.count(b'\ndata: {"type":') == len(
            read(answer.content)
        )  # byte for byte as ChatKit says it
        assert site.store.texts() == ["Hello?", "Hello."]
        at = answer.headers["location"]
        assert (await site.http.get(at)).content == answer.content
        for number, event in enumerate(read(answer.content)[:-1], start=1):
            rest = await site.http.get(at, headers={"last-event-id": event.id})
            assert read(rest.content) == read(answer.content)[number:]
        again = await site.post(last_event_id=read(answer.content)[0].id)  # starts nothing
        assert read(again.content) == read(answer.content)[1:]
        over = await site.http.get(at, headers={"last-event-id": read(answer.content)[-1].id})
        assert (over.status_code, over.headers["stream-outcome"]) == (204, "completed")
        assert [head.outcome for head in await site.heads()] == ["completed"]
        assert site.chatkit.statistics() == {"answering": 0}


@pytest.mark.server
@cell("chatkit", "local model")
async def test_a_language_model_on_this_machine(local_model: Server) -> None:
    async with (
        AsyncOpenAI(api_key="k", base_url=f"{local_model.url}/v1") as client,
        serving(Site(OpenAIChatCompletionsModel("assistant", client))) as site,
    ):
        site.http.timeout = 60
        answer = await site.post(asked("What is the weather in Lisbon?"))
        assert text(answer.content).strip()
        assert site.store.texts()[1:] == [text(answer.content)]


async def test_requests_without_a_stream_are_answered_with_json() -> None:
    async with serving(Site(scripted(["Hello."]))) as site:
        thread = thread_of((await site.post()).content)
        listed = await site.post({"type": "items.list", "params": {"thread_id": thread, "order": "asc"}})
        assert listed.headers["content-type"] == "application/json"
        assert [item["type"] for item in listed.json()["data"]] == ["user_message", "assistant_message"]
        unknown = await site.post({"type": "threads.get_by_id", "params": {"thread_id": "thr_none"}})
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "not_found")
        assert len(await site.heads()) == 1


async def test_a_retried_request_attaches_and_starts_nothing() -> None:
    async with serving(Site(scripted(["Hello."]))) as site:
        one, other = await asyncio.gather(site.post(idempotency_key="k"), site.post(idempotency_key="k"))
        late = await site.post(idempotency_key="k")
        assert one.content == other.content == late.content
        assert text(one.content) == "Hello."
        refused = await site.post(asked("Something else"), idempotency_key="k")
        assert (refused.status_code, refused.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert len(site.store.threads) == 1


async def test_silence_is_kept_alive_by_one_line() -> None:
    gate = asyncio.Event()
    async with serving(Site(scripted(["Hel", gate, "lo."])), policy=Policy(heartbeat_seconds=0.01)) as site:
        async with site.http.stream("POST", CHATKIT, json=asked()) as answer:
            got = await (reading := Reading(answer)).until(b": hb\n")
            gate.set()
            got = await reading.end()
        assert text(got) == "Hello."


# --- a lost connection is no stop ------------------------------------------------------------------------------------


@cell("chatkit", "late join", "two readers")
async def test_an_answer_goes_on_without_its_reader_and_is_joined_by_its_thread() -> None:
    gate = asyncio.Event()
    async with serving(Site(scripted(["Hel", gate, "lo."]))) as site:
        async with site.http.stream("POST", CHATKIT, json=asked()) as answer:
            got = await Reading(answer).until(b'"Hel"')
        thread, last = thread_of(got), read(got)[-1].id
        # A reload: what is stored is the question only, and the rest is being made.
        assert site.store.texts() == ["Hello?"]
        url = f"{CHATKIT}?thread={thread}"
        joins = [site.http.get(url), site.http.get(url, headers={"last-event-id": last}), site.http.get(url)]
        joining = [asyncio.ensure_future(join) for join in joins]
        gate.set()
        whole, rest, other = await asyncio.gather(*joining)
        assert whole.content == other.content
        assert text(whole.content) == "Hello."
        assert read(whole.content) == read(got) + read(rest.content)
        assert site.store.texts() == ["Hello?", "Hello."]
        after = await site.http.get(url)
        assert (after.status_code, after.content) == (204, b"")
        assert (await site.http.get(f"{CHATKIT}?thread=unknown")).status_code == 204


async def test_a_second_answer_of_a_thread_is_the_one_that_is_joined() -> None:
    gate = asyncio.Event()
    async with serving(Site(scripted(["One."], ["Tw", gate, "o."]))) as site:
        thread = thread_of((await site.post()).content)
        async with site.http.stream("POST", CHATKIT, json=asked("More", thread)) as answer:
            await Reading(answer).until(b'"Tw"')
        joining = asyncio.ensure_future(site.http.get(f"{CHATKIT}?thread={thread}"))
        gate.set()
        assert text((await joining).content) == "Two."


# --- the user's Stop -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "url"), [("DELETE", "{at}"), ("DELETE", "?thread={thread}"), ("POST", "/stop?thread={thread}")]
)
@cell("chatkit", "cancel")
async def test_a_stop_saves_the_partial_answer_and_ends_the_agents_run(method: str, url: str) -> None:
    called = asyncio.Event()

    @function_tool
    async def act() -> str:
        """Acts."""
        called.set()
        return "done"

    gate = asyncio.Event()
    model = scripted(["Hel", "lo", gate], calls("act", {}), ["end"])
    async with serving(Site(model, act)) as site:
        async with site.http.stream("POST", CHATKIT, json=asked()) as answer:
            got = await (reading := Reading(answer)).until(b'"lo"')
            at, thread = answer.headers["location"], thread_of(got)
            to = url.format(at=at.removeprefix(CHATKIT), thread=thread)
            stopped = await site.http.request(method, CHATKIT + to)
            assert (stopped.status_code, stopped.json()) == (202, {"stopped": True})
            got = await reading.end()
        # The end of the stream says that everything is saved, though this store's writes wait.
        assert site.store.texts() == ["Hello?", "Hello", MARKER]
        assert site.store.begun == site.store.finished == 3
        assert text(got) == "Hello"
        assert "error" not in types(got)
        assert [head.outcome for head in await site.heads()] == ["cancelled"]
        gate.set()
        (run,) = site.chatkit.server.runs
        assert run.is_complete
        assert run.run_loop_task is None or run.run_loop_task.done()
        assert not called.is_set()
        again = await site.http.delete(at)
        assert (again.status_code, again.json()) == (200, {"stopped": False})


async def test_a_stop_where_the_agent_acts_cancels_what_it_does() -> None:
    acting, cancelled = asyncio.Event(), asyncio.Event()

    @function_tool
    async def act() -> str:
        """Acts for ever."""
        acting.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()
        return ""

    async with serving(Site(scripted(calls("act", {}), ["end"]), act)) as site:
        async with site.http.stream("POST", CHATKIT, json=asked()) as answer:
            await acting.wait()
            await site.http.delete(answer.headers["location"])
            await answer.aread()
        async with asyncio.timeout(5):
            await cancelled.wait()
        assert site.store.texts() == ["Hello?", MARKER]


async def test_a_stop_that_comes_while_the_server_is_busy_ends_the_agents_run() -> None:
    class Busy(Site):
        """Waits for something of its own at the first delta, as for a database."""

        async def respond(self, thread: Any, input_user_message: Any, context: Any) -> AsyncIterator[Any]:
            async for event in super().respond(thread, input_user_message, context):
                yield event
                if isinstance(event, ThreadItemUpdatedEvent):
                    busy.set()
                    await asyncio.Event().wait()

    called: list[str] = []

    @function_tool
    async def act() -> str:
        """Acts."""
        called.append("act")
        return "done"

    busy, gate = asyncio.Event(), asyncio.Event()
    server = Busy(scripted(["Hel", gate], calls("act", {}), ["end"]), act)
    async with serving(server) as site:
        async with site.http.stream("POST", CHATKIT, json=asked()) as answer:
            await busy.wait()
            await site.http.delete(answer.headers["location"])
            await answer.aread()
        gate.set()
        (run,) = server.runs
        assert run.is_complete
        assert run.run_loop_task.cancelled()
        assert site.store.texts() == ["Hello?", MARKER]
        assert called == []


async def test_a_stop_that_comes_before_the_server_listens_waits_until_it_does() -> None:
    class Waiting(type(Site(None).store)):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.reached, self.gate = asyncio.Event(), asyncio.Event()

        async def save_thread(self, thread: Any, context: Any) -> None:
            await super().save_thread(thread, context)
            self.reached.set()
            await self.gate.wait()

    async def respond() -> AsyncIterator[Any]:
        yield ProgressUpdateEvent(text="thinking")
        await asyncio.Event().wait()

    store = Waiting()
    async with serving(Scripted(respond, store)) as site:
        async with site.http.stream("POST", CHATKIT, json=asked()) as answer:
            await store.reached.wait()
            assert (await site.http.delete(answer.headers["location"])).status_code == 202
            store.gate.set()
            await answer.aread()
        assert store.texts() == ["Hello?", MARKER]  # the question is there


async def test_a_server_may_say_something_when_it_is_stopped() -> None:
    async def respond() -> AsyncIterator[Any]:
        try:
            yield ProgressUpdateEvent(text="working")
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            yield ProgressUpdateEvent(text="stopped")

    async with serving(Scripted(respond)) as site:
        async with site.http.stream("POST", CHATKIT, json=asked()) as answer:
            got = await (reading := Reading(answer)).until(b"working")
            await site.http.delete(answer.headers["location"])
            got = await reading.end()
        assert said(got)[-1]["text"] == "stopped"
        assert [head.outcome for head in await site.heads()] == ["cancelled"]


async def test_a_stop_at_any_event_is_heard_once_and_leaves_the_thread_whole() -> None:
    outcomes = []
    for moment in range(15):
        server = Site(scripted(["Hel", "lo", "."]))
        store: Any = server.store
        async with Streams("memory:") as streams:
            answers = Answers(streams, ttl=60, cancel_when_unread=None)
            place = Place("chatkit/me/", f"{moment}", "me", None)
            await answers.start(place, Processing(server, json.dumps(asked()).encode(), None), "")
            seen = 0
            async for page in streams.follow(place.stream):
                seen += len(page.messages)
                if seen >= moment:
                    await answers.stop(place.stream)
                if page.closed:
                    break
            await answers.aclose()
        outcomes.append(page.outcome)
        assert store.begun == store.finished
        assert store.texts()[0] == "Hello?"
        assert store.texts().count(MARKER) == (page.outcome == "cancelled")
        if page.outcome == "completed":
            assert store.texts() == ["Hello?", "Hello."]
    assert (outcomes[0], outcomes[-1]) == ("cancelled", "completed")
    assert set(outcomes) == {"cancelled", "completed"}


async def test_nobody_reading_counts_as_a_stop_where_that_is_wanted() -> None:
    async with serving(Site(scripted(["Hel", asyncio.Event()])), cancel_when_unread=0.05) as site:
        async with site.http.stream("POST", CHATKIT, json=asked()) as answer:
            await Reading(answer).until(b'"Hel"')
        assert (await site.ended()).outcome == "cancelled"
        assert site.store.texts() == ["Hello?", "Hel", MARKER]


async def test_another_process_is_asked_to_stop(tmp_path: Path) -> None:
    store = f"sqlite:///{tmp_path}/streams.db"
    making = Site(scripted(["Hel", asyncio.Event()]))
    async with Streams(store) as one, Streams(store) as other:
        door = ChatKit(Site(scripted()), other)
        chatkit = ChatKit(making, one)
        async with (
            live(App(one, pages={CHATKIT: chatkit})) as http,
            live(App(other, pages={CHATKIT: door})) as elsewhere,
            http.stream("POST", CHATKIT, json=asked()) as answer,
        ):
            got = await (reading := Reading(answer)).until(b'"Hel"')
            stopped = await elsewhere.delete(f"{CHATKIT}?thread={thread_of(got)}")
            assert stopped.status_code == 202
            await reading.end()
        assert making.store.texts() == ["Hello?", "Hel", MARKER]


# --- what goes wrong -------------------------------------------------------------------------------------------------


@cell("chatkit", "error in mid-stream")
async def test_errors_are_chatkits_own_and_show_nothing() -> None:
    async def secretive() -> AsyncIterator[Any]:
        yield ProgressUpdateEvent(text="working")
        raise RuntimeError("sk-secret at /srv/app.py")

    async def saying() -> AsyncIterator[Any]:
        raise CustomStreamError("You have no credit.", allow_retry=False)
        yield

    for respond, last in (
        (secretive, {"type": "error", "code": "stream.error", "allow_retry": True}),
        (saying, {"type": "error", "code": "custom", "message": "You have no credit.", "allow_retry": False}),
    ):
        async with serving(Scripted(respond)) as site:
            answer = await site.post()
            assert said(answer.content)[-1] == last
            assert "secret" not in answer.text
            assert [head.outcome for head in await site.heads()] == ["failed"]


async def test_an_error_outside_of_the_answer_is_told_as_one() -> None:
    async with serving(Site(scripted())) as site:
        answer = await site.post(asked("Hello?", "thr_unknown"))
        (error,) = said(answer.content)
        assert (error["type"], error["code"], error["allow_retry"]) == ("error", "stream.error", True)
        assert [head.outcome for head in await site.heads()] == ["failed"]


async def test_a_server_that_goes_away_saves_what_there_is_and_says_so() -> None:
    server = Site(scripted(["Hel", asyncio.Event()]))
    async with Streams("memory:") as streams:
        chatkit = ChatKit(server, streams)
        app = App(streams, pages={CHATKIT: chatkit})
        async with live(app) as http, http.stream("POST", CHATKIT, json=asked()) as answer:
            await Reading(answer).until(b'"Hel"')
        ((name, head),) = await streams.list("chatkit/")
        assert (head.closed, head.outcome) == (True, "failed")
        last = json.loads((await streams.read(name)).messages[-1].data.removeprefix(b"data: "))
        assert (last["type"], last["message"], last["allow_retry"]) == ("error", Interrupted().said, True)
        assert server.store.texts()[1] == "Hel"


async def test_what_is_no_request_of_chatkits_is_refused() -> None:
    async with serving(Site(scripted())) as site:
        for body in (
            b"",
            b"[]",
            b'{"type": "threads.burn"}',
            b'{"type": "threads.create", "params": {"input": "sk-secret"}}',
        ):
            answer = await site.http.post(CHATKIT, content=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_request")
            assert "secret" not in answer.text
        site.streams.limits = type(site.streams.limits)(message_bytes=100)
        assert (await site.post(asked("x" * 100))).status_code == 413
        assert (await site.http.get(CHATKIT)).status_code == 400
        assert (await site.http.delete(CHATKIT)).status_code == 400
        assert (await site.http.put(CHATKIT)).status_code == 405
        assert (await site.http.get(f"{CHATKIT}?stream=../x")).status_code == 404
        assert (await site.http.get(f"{CHATKIT}?stream={'A' * 22}")).status_code == 404
        assert (await site.http.get(CHATKIT, headers={"last-event-id": "1"})).status_code == 400
        assert await site.heads() == []


# --- whose it is -----------------------------------------------------------------------------------------------------


async def test_another_principal_can_neither_join_nor_stop() -> None:
    may = frozenset({"start", "read", "cancel"})
    granted = {"ann": Principal("ann", may, ("chatkit/*",)), "bob": Principal("bob", may, ("chatkit/*",))}
    granted["eve"] = Principal("eve", frozenset({"read"}), ("chatkit/*",))
    auth = Keys({sha256(key.encode()).hexdigest(): principal for key, principal in granted.items()})
    ann, bob, eve = ({"authorization": f"Bearer {key}"} for key in granted)
    gate = asyncio.Event()
    server = Site(scripted(["Hel", gate, "lo."]))
    async with serving(server, auth) as site:
        assert (await site.post()).status_code == 401
        assert (await site.post(**eve)).status_code == 403
        async with site.http.stream("POST", CHATKIT, json=asked(), headers=ann) as answer:
            got = await (reading := Reading(answer)).until(b'"Hel"')
            at, thread = answer.headers["location"], thread_of(got)
            assert (await site.http.get(at, headers=bob)).status_code == 404
            assert (await site.http.get(f"{CHATKIT}?thread={thread}", headers=bob)).status_code == 204
            assert (await site.http.delete(at, headers=bob)).status_code == 404
            assert (await site.http.delete(f"{CHATKIT}?thread={thread}", headers=bob)).json() == {"stopped": False}
            last = {"last-event-id": read(got)[-1].id}
            assert (await site.http.post(CHATKIT, json=asked(), headers=bob | last)).status_code == 404
            assert (await site.http.delete(at, headers=eve)).status_code == 403
            gate.set()
            got = await reading.end()
        assert text(got) == "Hello."
        assert [context.name for context in server.contexts] == ["ann"]
        delete = {"type": "threads.delete", "params": {"thread_id": thread}}
        assert (await site.post(delete, **eve)).status_code == 403


async def test_it_answers_in_an_endpoint_of_fastapi() -> None:
    gate = asyncio.Event()
    server = Site(scripted(["Hel", gate, "lo."]))
    streams = Streams("memory:")
    chatkit = ChatKit(server, streams)
    app = FastAPI(lifespan=lifespan(streams, closing=[chatkit]))

    @app.api_route("/api/chat", methods=["GET", "POST", "DELETE"])
    async def endpoint(request: Request, user: str = "ann") -> Any:
        return await chatkit.answer(request, {"user": user}, owner=user)

    async with live(app) as http:
        async with http.stream("POST", "/api/chat", json=asked()) as answer:
            got = await Reading(answer).until(b'"Hel"')
        at = answer.headers["location"]
        assert at.startswith("/api/chat?stream=")
        assert (await http.get(at, params={"user": "bob", "stream": answer.headers["x-stream-id"]})).status_code == 404
        joining = asyncio.ensure_future(http.get(at, headers={"last-event-id": read(got)[-1].id}))
        gate.set()
        assert text(got + (await joining).content) == "Hello."
        assert (await http.post("/api/chat", json={})).status_code == 400
        assert server.contexts == [{"user": "ann"}]


# --- a process that dies ---------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


async def ready(url: str) -> None:
    async with httpx.AsyncClient() as http, asyncio.timeout(60):
        while True:
            try:
                await http.get(f"{url}/readyz")
                return
            except httpx.TransportError:
                await asyncio.sleep(0.05)


@pytest.mark.server
async def test_an_answer_whose_server_is_killed_ends_as_failed_and_its_reader_is_told(tmp_path: Path) -> None:
    port = free_port()
    command = [
        sys.executable,
        str(Path(__file__).with_name("chatkit_site.py")),
        f"sqlite:///{tmp_path}/s.db",
        str(port),
    ]
    url = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=url, timeout=30) as http:
        async with process(*command) as server:
            await ready(url)
            async with http.stream("POST", CHATKIT, json=asked()) as answer:
                got = await (reading := Reading(answer)).until(b'"3 "')
                at, thread = answer.headers["location"], thread_of(got)
                os.kill(server.pid, signal.SIGKILL)
                with pytest.raises(httpx.TransportError):
                    await reading.end()
            await server.wait()
        async with process(*command):
            await ready(url)
            rest, other = await asyncio.gather(
                http.get(at, headers={"last-event-id": read(got)[-1].id}), http.get(f"{CHATKIT}?thread={thread}")
            )
            (error,) = said(rest.content)
            assert (error["type"], error["message"], error["allow_retry"]) == ("error", Interrupted().said, True)
            assert other.status_code in (200, 204)  # whether it came before it was noticed or after
            whole = await http.get(at)
            assert read(whole.content) == read(got) + read(rest.content)
            over = await http.get(at, headers={"last-event-id": Decoder().feed(whole.content)[-1].id})
            assert (over.status_code, over.headers["stream-outcome"]) == (204, "failed")
