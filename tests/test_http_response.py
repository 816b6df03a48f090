"""StreamResponse and follow over ASGI: resuming, endings, ownership, headers. Real servers are in test_fastapi.py."""

import asyncio
import json
import logging
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, HTTPException, Request
from starlette.background import BackgroundTask
from starlette.responses import Response

from asgi_client import (
    Call,
    Client,
    every_way,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater import Streams
from headwater.delivery import Cut
from headwater.errors import StoreUnavailable
from headwater.http import StreamResponse, follow, lifespan
from headwater.stores.memory import MemoryStore
from headwater.testing import virtual_time
from headwater.wire.sse import Decoder, Event
from scripted_model import SECRET


@asynccontextmanager
async def serving(
    generate: Callable[[], Any], streams: Streams | None = None, **options: Any
) -> AsyncIterator[tuple[Client, Streams]]:
    """`generate()` behind `/a` and `/b`, GET, POST and HEAD."""
    application = FastAPI()

    @application.api_route("/a", methods=["GET", "POST", "HEAD"])
    @application.api_route("/b", methods=["GET"])
    async def endpoint(request: Request) -> Response:
        owner = request.headers.get("user", "")
        return StreamResponse(generate(), request, owner=owner, **options)

    streams = streams or Streams("memory:")
    async with lifespan(streams)(application) as state:
        client = Client(application)
        client.state = state
        yield client, streams


def events(call: Call) -> list[Event]:
    return Decoder().feed(call.body)


def data(call: Call) -> list[str]:
    return [event.data for event in events(call)]


class Counting:
    """An async generator function that counts its starts and its ends."""

    def __init__(self, *items: Any) -> None:
        self.items, self.started, self.ended = items, 0, 0

    async def __call__(self) -> AsyncIterator[Any]:
        self.started += 1
        for item in self.items:
            if isinstance(item, asyncio.Event):
                await item.wait()
            elif isinstance(item, Exception):
                raise item
            else:
                yield item
        self.ended += 1


# --- resuming --------------------------------------------------------------------------------------------------------


async def test_a_client_resumes_at_every_boundary_and_nothing_starts_again() -> None:
    generate = Counting("a", {"event": "tick", "data": "b"}, "c\nd", {"n": 1}, "")
    async with serving(generate) as (client, _):
        whole = await client.ask("GET", "/a")
        assert whole.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert data(whole) == ["a", "b", "c\nd", '{"n":1}', ""]
        for number, event in enumerate(events(whole)[:-1], start=1):
            for method in ("GET", "POST"):
                rest = await client.ask(method, "/a", last_event_id=event.id)
                assert events(rest) == events(whole)[number:]
        end = await client.ask("GET", "/a", last_event_id=events(whole)[-1].id)
        assert (end.status, end.body) == (204, b"")
        assert generate.started == 1


async def test_the_generator_runs_to_its_end_though_the_client_leaves() -> None:
    gate = asyncio.Event()
    generate = Counting("a", gate, "b", "c")
    async with serving(generate) as (client, _):
        call = client.call("GET", "/a")
        await call.until(b"data:a\n\n")
        await call.leave()
        gate.set()
        rest = await client.ask("GET", "/a", last_event_id=events(call)[0].id)
        assert data(rest) == ["b", "c"]
        assert (generate.started, generate.ended) == (1, 1)


async def test_each_request_without_an_id_starts_its_own() -> None:
    generate = Counting("a")
    async with serving(generate) as (client, _):
        first, second = await client.ask("GET", "/a"), await client.ask("GET", "/a")
        assert events(first)[0].id != events(second)[0].id
        assert generate.started == 2


async def test_an_id_is_good_for_its_endpoint_and_owner_only() -> None:
    generate = Counting("a", "b")
    async with serving(generate) as (client, _):
        call = await client.ask("GET", "/a", user="ann")
        id_ = events(call)[0].id
        assert data(await client.ask("GET", "/a", user="ann", last_event_id=id_)) == ["b"]
        for path, user in (("/a", "bob"), ("/a", ""), ("/b", "ann")):
            assert (await client.ask("GET", path, user=user, last_event_id=id_)).status == 404
        stream, _, offset = id_.partition("~")
        for garbage in ("x", "~", f"{stream}~", f"{stream}~zzz", f"x{id_}", offset, f"{stream}~{int(offset[0]) + 9}"):
            assert 400 <= int((await client.ask("GET", "/a", user="ann", last_event_id=garbage)).status or 0) < 500
        assert generate.started == 1


@virtual_time
async def test_a_response_can_be_resumed_for_its_ttl() -> None:
    loop = asyncio.get_running_loop()
    streams = Streams("memory:", clock=lambda: 1_700_000_000_000 + int(loop.time() * 1000))
    async with serving(Counting("a", "b"), streams, ttl=60) as (client, _):
        id_ = events(await client.ask("GET", "/a"))[0].id
        await asyncio.sleep(59)
        assert data(await client.ask("GET", "/a", last_event_id=id_)) == ["b"]
        await asyncio.sleep(61)
        assert (await client.ask("GET", "/a", last_event_id=id_)).status == 404


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [(HTTPException(418, "no coffee"), 418), (StoreUnavailable("busy"), 503), (HTTPException(401), 401)],
)
async def test_an_error_before_the_first_item_is_an_http_error(error: Exception, status: int) -> None:
    async with serving(Counting(error)) as (client, _):
        call = await client.ask("GET", "/a")
        assert call.status == status
        assert call.headers["content-type"] == "application/json"


async def test_any_other_error_before_the_first_item_is_for_the_application() -> None:
    for generate in (Counting(ZeroDivisionError("no")), lambda: 5):
        async with serving(generate) as (client, _):
            with pytest.raises((ZeroDivisionError, TypeError)):
                await client.call("GET", "/a").done()


@pytest.mark.parametrize("error", [ValueError(SECRET), StoreUnavailable(SECRET), HTTPException(500, SECRET)])
async def test_an_error_in_the_middle_is_told_as_one_and_not_what_it_was(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Counting("a", error)) as (client, streams):
        call = await client.ask("GET", "/a")
        assert call.status == 200
        assert [event.event for event in events(call)] == ["message", "error"]
        assert json.loads(data(call)[1]) == {"code": "failed", "message": "the answer could not be finished"}
        assert SECRET not in call.text
        ((_, head),) = await streams.list("responses/")
        assert head.outcome == "failed"
        resumed = await client.ask("GET", "/a", last_event_id=events(call)[0].id)
        assert events(resumed) == events(call)[1:]
        assert (await client.ask("GET", "/a", last_event_id=events(call)[1].id)).status == 204
    assert "the generator of response" in caplog.text


async def test_an_item_that_cannot_be_sent_is_an_error_too(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Counting("a", object())) as (client, _):
        assert [event.event for event in events(await client.ask("GET", "/a"))] == ["message", "error"]


async def test_a_generator_that_fails_while_it_is_closed_still_ends_its_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def generate() -> AsyncIterator[Any]:
        try:
            yield "a"
            yield object()
        finally:
            raise ValueError(SECRET)

    async with serving(generate) as (client, _):
        assert [event.event for event in events(await client.ask("GET", "/a"))] == ["message", "error"]


@virtual_time
async def test_headers_go_out_after_a_second_and_an_error_after_it_is_an_event() -> None:
    async def generate() -> AsyncIterator[str]:
        await asyncio.sleep(5)
        raise HTTPException(404)
        yield ""

    async with serving(generate) as (client, _):
        loop = asyncio.get_running_loop()
        began = loop.time()
        call = await client.call("GET", "/a").started()
        assert call.status == 200
        assert 0.9 < loop.time() - began < 1.1
        await call.done()
        assert 4.9 < loop.time() - began < 5.1
        assert [event.event for event in events(call)] == ["error"]


@virtual_time
async def test_a_store_that_is_away_for_long_does_not_leave_the_stream_open() -> None:
    class Failing(MemoryStore):
        away = False

        def commit(self, *args: Any) -> Any:
            if self.away:
                future = asyncio.get_running_loop().create_future()
                future.set_exception(StoreUnavailable("the disk is full"))
                return future
            return super().commit(*args)

    store = Failing()

    async def generate() -> AsyncIterator[str]:
        yield "a"
        await asyncio.sleep(1)
        store.away = True
        for _ in range(100):
            yield "lost"
            await asyncio.sleep(1)

    async with serving(generate, Streams(store)) as (client, _):
        call = client.call("GET", "/a")
        await asyncio.sleep(60)
        assert data(call) == ["a"]
        store.away = False
        await call.done()
        assert [event.event for event in events(call)] == ["message", "error"]


# --- the process ends ------------------------------------------------------------------------------------------------


async def test_when_the_process_ends_readers_are_told_and_the_generator_cleans_up_in_peace() -> None:
    steps: list[str] = []
    cleaning, go_on = asyncio.Event(), asyncio.Event()

    async def generate() -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await go_on.wait()
            steps.append("cleaned up")

    async with serving(generate) as (client, streams):
        call = client.call("GET", "/a")
        await call.until(b"data:a\n\n")
        producers = client.state["headwater"]
        first = asyncio.create_task(producers.interrupt())
        await cleaning.wait()
        second = asyncio.create_task(producers.interrupt())  # a signal and the end of the lifespan both do it
        await asyncio.sleep(0.01)
        go_on.set()
        await asyncio.gather(first, second)
        await call.done()
        assert json.loads(data(call)[1])["code"] == "interrupted"
        assert steps == ["cleaned up"]
        streams.drain()
        generate_again = await client.ask("GET", "/a")
        assert (generate_again.status, generate_again.headers["retry-after"]) == (503, "1")
        assert steps == ["cleaned up"]


# --- kinds of content ------------------------------------------------------------------------------------------------


async def test_a_sync_generator_may_block_without_blocking_others() -> None:
    go_on = threading.Event()

    def generate() -> Any:
        yield "a"
        assert go_on.wait(10)
        yield "b"

    async with serving(generate) as (client, _):
        blocked = client.call("GET", "/a")
        await blocked.until(b"data:a\n\n")
        go_on_later = client.call("GET", "/b")
        await go_on_later.until(b"data:a\n\n")  # served while the other one's thread is blocked
        go_on.set()
        assert data(await blocked.done()) == data(await go_on_later.done()) == ["a", "b"]


async def test_a_list_and_an_empty_generator_are_streams_too() -> None:
    async with serving(lambda: ["a", "b"]) as (client, _):
        assert data(await client.ask("GET", "/a")) == ["a", "b"]
    async with serving(Counting()) as (client, _):
        empty = await client.ask("GET", "/a")
        assert (empty.status, data(empty)) == (200, [])


async def test_framed_text_may_come_in_pieces() -> None:
    async with serving(Counting("da", "ta: x\n", "\nevent: e\nda", "ta: y\n\n"), framed=True) as (client, _):
        assert [(event.event, event.data) for event in events(await client.ask("GET", "/a"))] == [
            ("message", "x"), ("e", "y")
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("media_type", "content_type"),
    [
        ("text/plain", "text/plain; charset=utf-8"),
        ("text/csv; charset=latin-1", "text/csv; charset=latin-1"),
        ("application/json", "application/json"),
        ("audio/mpeg", "audio/mpeg"),
    ],
)
async def test_other_media_types_get_the_bytes_as_they_are(media_type: str, content_type: str) -> None:
    async with serving(Counting('["a",', b'"b"', "]"), media_type=media_type) as (client, _):
        call = await client.ask("GET", "/a")
        assert (call.headers["content-type"], call.text) == (content_type, '["a","b"]')


async def test_plain_bytes_that_fail_are_cut_off_and_not_ended(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Counting("half", ValueError("no")), media_type="text/plain") as (client, _):
        call = client.call("GET", "/a")
        with pytest.raises(Cut):
            await call.done()
        assert (call.text, call.ended) == ("half", False)


# --- around it -------------------------------------------------------------------------------------------------------


async def test_without_a_lifespan_responses_are_kept_in_memory_and_it_is_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    application = FastAPI()

    @application.get("/a")
    async def endpoint(request: Request) -> Response:
        return StreamResponse(Counting("a", "b")(), request)

    client = Client(application)
    with caplog.at_level(logging.WARNING):
        first, _ = await asyncio.gather(client.ask("GET", "/a"), client.ask("GET", "/a"))
    assert data(await client.ask("GET", "/a", last_event_id=events(first)[0].id)) == ["b"]
    assert [record.message for record in caplog.records if "no lifespan" in record.message] == [
        "no lifespan(...) was given: responses are kept in memory, and lost with this process"
    ]
    await application.state.headwater.delivery.streams.aclose()


async def test_head_starts_nothing() -> None:
    generate = Counting("a")
    async with serving(generate) as (client, _):
        call = await client.ask("HEAD", "/a")
        assert (call.status, call.body, generate.started) == (200, b"", 0)
        assert call.headers["content-type"] == "text/event-stream; charset=utf-8"


async def test_headers_cookies_status_and_background_are_kept() -> None:
    done: list[str] = []
    application = FastAPI()

    @application.get("/a")
    async def endpoint(request: Request) -> Response:
        headers = {"Cache-Control": "no-cache", "X-Mine": "1", "X-Accel-Buffering": "no"}
        response = StreamResponse(Counting("a")(), request, status_code=202, headers=headers)
        response.set_cookie("one", "1")
        response.set_cookie("two", "2")
        response.background = BackgroundTask(done.append, "in the background")
        return response

    async with lifespan("memory:")(application) as state:
        client = Client(application)
        client.state = state
        call = await client.ask("GET", "/a")
        assert call.status == 202
        names = [name for name, _ in call.raw_headers]
        assert names.count(b"cache-control") == names.count(b"x-accel-buffering") == names.count(b"content-type") == 1
        assert names.count(b"set-cookie") == 2
        assert call.headers["cache-control"] == "no-cache, no-transform"
        assert call.headers["x-mine"] == "1"
        assert done == ["in the background"]


# --- follow ----------------------------------------------------------------------------------------------------------


async def test_follow_serves_any_stream_to_any_client() -> None:
    streams = Streams("memory:")
    application = FastAPI()

    @application.api_route("/jobs/{number}", methods=["GET", "HEAD"])
    async def job(number: int, request: Request) -> Response:
        return follow(streams, f"jobs/{number}", request, headers={"x-job": str(number)})

    async with lifespan(streams)(application) as state:
        client = Client(application)
        client.state = state
        async with streams.writer("jobs/7") as writer:
            call = client.call("GET", "/jobs/7")
            await writer.send({"done": 1})
            await call.until(b'data:{"done":1}\n\n')
            await writer.send({"done": 2})
        await call.done()
        assert [(event.event, event.data) for event in events(call)] == [
            ("message", '{"done":1}'), ("message", '{"done":2}'), ("end", '{"outcome":"completed"}')
        ]  # fmt: skip
        assert call.headers["x-job"] == "7"
        resumed = await client.ask("GET", "/jobs/7", last_event_id=events(call)[0].id)
        assert events(resumed) == events(call)[1:]
        assert (await client.ask("GET", "/jobs/7?format=ndjson")).text == '{"done":1}\n{"done":2}\n'
        assert (await client.ask("GET", "/jobs/7", accept="application/x-ndjson")).text == '{"done":1}\n{"done":2}\n'
        assert (await client.ask("GET", "/jobs/7", last_event_id=events(call)[-1].id)).status == 204
        assert (await client.ask("GET", "/jobs/7?format=xml")).status == 406
        assert (await client.ask("GET", "/jobs/7?offset=zzz")).status == 400
        assert (await client.ask("GET", "/jobs/8")).status == 404
        head = await client.ask("HEAD", "/jobs/7")
        assert (head.status, head.body, head.headers["x-job"]) == (200, b"", "7")
        assert state["headwater"].delivery.served > 0  # the timer of the lifespan's delivery is shared


async def test_follow_works_without_a_lifespan_of_ours() -> None:
    async with Streams("memory:") as streams:
        await streams.create("news", {"n": 1}, closed=True)
        application = FastAPI()

        @application.get("/news")
        async def news(request: Request) -> Response:
            return follow(streams, "news", request)

        assert data(await Client(application).ask("GET", "/news"))[0] == '{"n":1}'
        assert streams.on_drain == []  # nothing stays of a response that is over
