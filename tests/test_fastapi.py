"""StreamResponse and runs inside a FastAPI application as people have it: routers, dependencies and middleware, under a
real uvicorn with real connections."""

import asyncio
import contextlib
import json
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import fastapi.sse
import httpx
import pytest
import sse_starlette
from agents import Agent
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from pydantic import BaseModel
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import Response
from starlette.testclient import TestClient

from headwater import Streams
from headwater.http import App, StreamResponse, lifespan
from headwater.runs import Runs
from headwater.wire.sse import Decoder, Event
from live_server import live
from scripted_model import SECRET, scripted

BROWSER = {"origin": "https://page.example", "accept-encoding": "gzip, deflate"}


class Token(BaseModel):
    text: str


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-passed"] = "yes"
        return response


class World:
    """What endpoints share with the test that calls them."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.make: Callable[[], Any] = list
        self.media_type = "text/event-stream"
        self.started = self.ended = 0
        self.dependencies: list[str] = []

    async def generate(self) -> AsyncIterator[Any]:
        self.started += 1
        yield "a"
        await self.gate.wait()
        yield "b"
        self.ended += 1


@asynccontextmanager
async def application(
    world: World, *agents: Any, middleware: Sequence[Any] = (Passing,), **options: Any
) -> AsyncIterator[httpx.AsyncClient]:
    async def until_the_end() -> AsyncIterator[str]:
        yield "session"
        world.dependencies.append("closed at the end")

    async def while_the_endpoint_runs() -> AsyncIterator[str]:
        yield "session"
        world.dependencies.append("closed early")

    router = APIRouter(prefix="/api", dependencies=[Depends(until_the_end)])
    Early = Annotated[str, Depends(while_the_endpoint_runs, scope="function")]

    @router.get("/answer/{name}")
    @router.post("/answer/{name}")
    async def answer(name: str, request: Request, session: Early) -> Response:
        return StreamResponse(world.make(), request, media_type=world.media_type)

    streams = Streams("memory:")
    runs = Runs(streams, *agents)
    app = FastAPI(lifespan=lifespan(streams, runs))
    app.include_router(router)
    app.mount("/live", App(streams, runs))
    for kind in middleware:
        app.add_middleware(kind)
    app.add_middleware(GZipMiddleware, minimum_size=1)
    app.add_middleware(CORSMiddleware, allow_origins=["*"], expose_headers=["x-run-id"])
    async with live(app, **options) as client:
        client.headers.update(BROWSER)
        yield client


class Reading:
    """Events of a response that is open."""

    def __init__(self, response: httpx.Response) -> None:
        self._chunks = response.aiter_bytes()
        self._decoder = Decoder()
        self._ready: list[Event] = []

    async def event(self) -> Event:
        while not self._ready:
            self._ready = self._decoder.feed(await anext(self._chunks))
        return self._ready.pop(0)

    async def rest(self) -> list[Event]:
        found = [event async for chunk in self._chunks for event in self._decoder.feed(chunk)]
        return [*self._ready, *found]


def events(response: httpx.Response) -> list[Event]:
    return Decoder().feed(response.content)


async def eventually(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not holds():
            await asyncio.sleep(0.005)


# --- through all the middleware --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        ("token", ("message", "token")),
        ("data: framed\n\n", ("message", "framed")),
        (b"event: x\ndata: framed\n\n", ("x", "framed")),
        ({"text": "x"}, ("message", '{"text":"x"}')),
        ({"event": "x", "data": "y"}, ("x", "y")),
        (Token(text="x"), ("message", '{"text":"x"}')),
        (fastapi.sse.ServerSentEvent(data={"n": 1}, event="x"), ("x", '{"n":1}')),
        (fastapi.sse.ServerSentEvent(raw_data="y"), ("message", "y")),
        (sse_starlette.ServerSentEvent("y", event="x"), ("x", "y")),
    ],
    ids=lambda value: type(value).__name__,
)
async def test_every_kind_arrives_while_it_is_made(item: Any, wanted: tuple[str, str]) -> None:
    world = World()

    async def generate() -> AsyncIterator[Any]:
        yield item
        await world.gate.wait()
        yield item

    world.make = generate
    async with application(world) as client, client.stream("GET", "/api/answer/x") as response:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert response.headers["cache-control"] == "no-cache, no-transform"
        assert response.headers["access-control-allow-origin"] == "*"
        assert response.headers["x-passed"] == "yes"
        assert "content-encoding" not in response.headers
        reading = Reading(response)
        first = await reading.event()  # long before the generator has ended
        world.gate.set()
        (second,) = await reading.rest()
        assert (first.event, first.data) == (second.event, second.data) == wanted


async def test_plain_text_arrives_while_it_is_made_though_it_is_compressed() -> None:
    world = World()
    world.make, world.media_type = world.generate, "text/plain"
    async with application(world) as client, client.stream("GET", "/api/answer/x") as response:
        assert response.headers["content-type"] == "text/plain; charset=utf-8"
        chunks = response.aiter_text()
        assert await anext(chunks) == "a"
        world.gate.set()
        assert "".join([chunk async for chunk in chunks]) == "b"


async def test_a_sync_generator_that_blocks_does_not_block_others() -> None:
    world, go_on = World(), threading.Event()

    def generate() -> Iterator[str]:
        yield "a"
        go_on.wait(10)
        yield "b"

    world.make = generate
    async with application(world) as client, client.stream("GET", "/api/answer/x") as blocked:
        reading = Reading(blocked)
        assert (await reading.event()).data == "a"
        world.make = lambda: ["other"]
        other = await client.get("/api/answer/y")
        assert [event.data for event in events(other)] == ["other"]
        go_on.set()
        assert [event.data for event in await reading.rest()] == ["b"]


async def test_a_slow_first_item_has_its_headers_after_a_second() -> None:
    world = World()

    async def generate() -> AsyncIterator[str]:
        await world.gate.wait()
        yield "late"

    world.make = generate
    async with application(world) as client:
        began = time.monotonic()
        async with client.stream("GET", "/api/answer/x") as response:
            assert 0.9 < time.monotonic() - began < 3
            assert (await anext(response.aiter_bytes())).startswith(b":")  # a first byte, too
            world.gate.set()


# --- errors ----------------------------------------------------------------------------------------------------------


async def test_an_http_exception_before_the_first_item_keeps_its_status() -> None:
    world = World()

    async def generate() -> AsyncIterator[str]:
        raise HTTPException(402, "pay first", headers={"x-price": "7"})
        yield ""

    world.make = generate
    async with application(world) as client:
        response = await client.get("/api/answer/x")
        assert (response.status_code, response.json()) == (402, {"detail": "pay first"})
        assert response.headers["x-price"] == "7"


async def test_an_error_in_the_middle_is_an_event(caplog: pytest.LogCaptureFixture) -> None:
    world = World()

    async def generate() -> AsyncIterator[str]:
        yield "a"
        raise ValueError(SECRET)

    world.make = generate
    async with application(world) as client:
        response = await client.get("/api/answer/x")
        assert [event.event for event in events(response)] == ["message", "error"]
        assert SECRET not in response.text


@pytest.mark.parametrize("options", [{"middleware": ()}, {"http": "headwater.server:Protocol"}])
async def test_plain_text_that_fails_is_cut_off(options: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    """It cannot say that it failed. BaseHTTPMiddleware ends such a body cleanly, unless uvicorn has our Protocol."""
    world = World()

    async def generate() -> AsyncIterator[str]:
        yield "a"
        raise ValueError(SECRET)

    world.make, world.media_type = generate, "text/plain"
    async with application(world, **options) as client:
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/api/answer/x")


# --- leaving and coming back -----------------------------------------------------------------------------------------


async def test_a_client_that_leaves_finds_the_rest_when_it_is_back() -> None:
    world = World()
    world.make = world.generate
    async with application(world) as client:
        async with client.stream("GET", "/api/answer/x") as response:
            first = await Reading(response).event()
        world.gate.set()
        await eventually(lambda: world.ended == 1)
        for method in ("GET", "POST"):
            rest = await client.request(method, "/api/answer/x", headers={"last-event-id": first.id})
            assert [event.data for event in events(rest)] == ["b"]
        end = await client.get("/api/answer/x", headers={"last-event-id": events(rest)[-1].id})
        assert (end.status_code, end.content) == (204, b"")
        assert (await client.get("/api/answer/y", headers={"last-event-id": first.id})).status_code == 404
        assert (await client.get("/api/answer/x", headers={"last-event-id": "7"})).status_code == 400
        assert world.started == 1


async def test_when_dependencies_are_closed() -> None:
    """FastAPI's own doing: one of scope "function" when the endpoint has returned, any other when the response ends."""
    world = World()
    world.make = world.generate
    async with application(world) as client:
        async with client.stream("GET", "/api/answer/x") as response:
            await Reading(response).event()
            assert world.dependencies == ["closed early"]
        await eventually(lambda: world.dependencies == ["closed early", "closed at the end"])
        assert world.ended == 0  # the generator goes on without it
        world.gate.set()
        await eventually(lambda: world.ended == 1)


# --- runs, mounted in the same application ---------------------------------------------------------------------------


async def test_runs_of_a_mounted_app_stream_through_the_middleware() -> None:
    gate = asyncio.Event()
    agent = Agent(name="bot", model=scripted(["Hel", gate, "lo"]))
    async with application(World(), agent) as client:
        del client.headers["origin"]  # the mounted application has its own rules for pages of other origins
        asked = {"agent": "bot", "input": "hi"}
        headers = {"accept": "text/event-stream", "idempotency-key": "k"}
        async with client.stream("POST", "/live/v1/runs", json=asked, headers=headers) as response:
            assert response.status_code == 201
            assert response.headers["location"] == f"/live/v1/runs/{response.headers['x-run-id']}/events"
            reading = Reading(response)
            before = [await reading.event()]
            while '"Hel"' not in before[-1].data:
                before.append(await reading.event())
        gate.set()
        rest = await client.post("/live/v1/runs", json=asked, headers={**headers, "last-event-id": before[-1].id})
        whole = await client.get(response.headers["location"], params={"rollup": "0"})
        assert rest.status_code == 200
        assert before + events(rest) == events(whole)
        assert json.loads(events(whole)[-1].data)["type"] == "RUN_FINISHED"


# --- one application, started twice ----------------------------------------------------------------------------------


def test_an_application_may_be_started_again_on_another_loop(tmp_path: Path) -> None:
    streams = Streams(f"sqlite:///{tmp_path}/again.db")
    runs = Runs(streams, Agent(name="bot", model=scripted(["ok"], ["ok"])))
    app = FastAPI(lifespan=lifespan(streams, runs))

    @app.post("/s")
    async def append() -> int:
        await streams.create("s")
        appended = await asyncio.gather(*[streams.append("s", n) for n in range(5)])
        return max(offset.position for offset in appended)

    @app.get("/run")
    async def run(request: Request) -> Response:
        return (await runs.start("bot", "hi")).response(request)

    for position in (5, 10):
        with TestClient(app) as client:  # as tests of applications do it, again and again
            assert client.post("/s").json() == position
            assert "RUN_FINISHED" in client.get("/run").text


# --- processes -------------------------------------------------------------------------------------------------------

PROGRAM = """
import asyncio
from fastapi import FastAPI, Request
from headwater.http import StreamResponse, lifespan

app = FastAPI(lifespan=lifespan("sqlite:///answers.db"))

async def endless():
    n = 0
    while True:
        yield {"n": n}
        n += 1
        await asyncio.sleep(0.01)

@app.get("/endless")
async def get(request: Request):
    return StreamResponse(endless(), request)
"""


@asynccontextmanager
async def plain_uvicorn(folder: Path) -> AsyncIterator[tuple[asyncio.subprocess.Process, httpx.AsyncClient]]:
    """`uvicorn program:app` as a process of its own."""
    (folder / "program.py").write_text(PROGRAM)
    command = (sys.executable, "-m", "uvicorn", "program:app", "--port", "0")
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stderr=asyncio.subprocess.PIPE)
    assert process.stderr
    try:
        line = b""
        while b"running on" not in line:
            line = await asyncio.wait_for(process.stderr.readline(), 30)
            assert line, "uvicorn did not start"
        url = line.split(b"running on ")[1].split()[0].decode()
        async with httpx.AsyncClient(base_url=url, timeout=10) as client:
            yield process, client
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_plain_uvicorn_ends_at_once_and_tells_its_readers(number: signal.Signals, tmp_path: Path) -> None:
    async with plain_uvicorn(tmp_path) as (process, client), client.stream("GET", "/endless") as response:
        reading = Reading(response)
        await reading.event()
        began = time.monotonic()
        process.send_signal(number)
        last = (await reading.rest())[-1]
        assert (last.event, json.loads(last.data)["code"]) == ("error", "interrupted")
        assert process.stderr
        log = await asyncio.wait_for(process.stderr.read(), 10)
        await asyncio.wait_for(process.wait(), 10)
        assert time.monotonic() - began < 3
        if number == signal.SIGTERM:  # after Ctrl-C uvicorn itself ends with KeyboardInterrupt
            assert b"Traceback" not in log


@pytest.mark.server
async def test_an_answer_of_a_killed_server_is_ended_by_the_next_one(tmp_path: Path) -> None:
    async with plain_uvicorn(tmp_path) as (process, client), client.stream("GET", "/endless") as response:
        reading = Reading(response)
        seen = [await reading.event() for _ in range(5)]
        process.kill()
        with pytest.raises(httpx.RemoteProtocolError):
            await reading.rest()
    async with plain_uvicorn(tmp_path) as (_, client):
        rest = events(await client.get("/endless", headers={"last-event-id": seen[-1].id}))
        numbers = [json.loads(event.data)["n"] for event in [*seen, *rest[:-1]]]
        assert numbers == list(range(len(numbers)))
        assert (rest[-1].event, json.loads(rest[-1].data)["code"]) == ("error", "interrupted")
