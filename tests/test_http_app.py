"""http/app.py: routes, errors that show nothing, mounting, lifespan, and what every answer carries."""

import asyncio
import functools
import logging

import httpx
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount

from asgi_client import Client
from headwater import Streams
from headwater.errors import HeadwaterError, StoreUnavailable
from headwater.http import App
from headwater.http.exchange import Exchange
from headwater.http.outages import UNREADY_SECONDS
from headwater.problems import Seldom, answer
from headwater.stores.memory import MemoryStore
from headwater.testing import virtual_time
from http_site import open_site

SECRET = "hunter2-prompt-of-a-user"


class Silent:
    """A source that says nothing and ends."""

    name = "silent"

    async def run(self, input, sink):  # noqa: A002
        return None


@virtual_time
async def test_what_is_at_no_path_is_an_error_in_json():
    async with open_site(sources=[Silent()]) as site:
        for path in (
            "/",
            "/v1",
            "/v1/stream",
            "/v1/stream/",
            "/v1/streamsx",
            "/v1/runsx",
            "/v1/runs/a/b",
            "/v1/runs/a/b/c",
            "/x",
        ):
            call = await site.ask("GET", path)
            assert (call.status, call.json()["error"]["code"]) == (404, "not_found"), path
            assert call.headers["x-content-type-options"] == "nosniff"
            assert (await site.ask("OPTIONS", path)).status == 204
        assert (await site.ask("GET", "/v1/runs")).json() == {"runs": [], "next": None}
        assert (await site.ask("GET", "/v1/runs/none")).json()["error"]["code"] == "run_not_found"
    async with open_site() as site:
        assert (await site.ask("GET", "/v1/runs")).status == 404, "no runs were given"


@virtual_time
async def test_health_and_readiness():
    async with open_site() as site:
        for path in ("/healthz", "/readyz"):
            call = await site.ask("GET", path)
            assert (call.status, call.body) == (200, b"ok\n")
        site.streams.drain()
        assert (await site.ask("GET", "/healthz")).status == 200
        call = await site.ask("GET", "/readyz")
        assert (call.status, call.body) == (503, b"draining\n")


@virtual_time
async def test_pages_of_the_caller():
    async def page(exchange: Exchange) -> PlainTextResponse:
        return PlainTextResponse(f"{exchange.method} {exchange.query('q')}", headers={"x-content-type-options": "own"})

    async with open_site(pages={"/": page}) as site:
        call = await site.ask("GET", "/?q=1")
        assert (call.body, call.headers["x-content-type-options"]) == (b"GET 1", "own")
        assert [name for name, _ in call.raw_headers].count(b"x-content-type-options") == 1


@virtual_time
async def test_an_error_that_is_not_ours_shows_nothing_but_in_the_log(caplog):
    async with open_site() as site:
        await site.put("t", "a")

        async def load(name: str) -> None:
            raise RuntimeError(SECRET)

        site.streams.store.load = load  # type: ignore[method-assign,assignment]
        with caplog.at_level(logging.ERROR, "headwater.http"):
            call = await site.ask("GET", "t")
        assert call.status == 500
        assert call.json()["error"] == {
            "code": "internal",
            "message": "the server could not carry this out; its log says why",
            "retry": False,
        }
        assert SECRET.encode() not in call.body + repr(call.raw_headers).encode()
        assert SECRET in caplog.text


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (StoreUnavailable("away"), 503, {"retry-after": "1"}),
        (HeadwaterError("odd", epoch=3, other="x"), 500, {"producer-epoch": "3"}),
        (ValueError(SECRET), 500, {}),
    ],
)
def test_an_error_as_an_answer(error, status, headers):
    response = answer(error)
    assert response.status_code == status
    assert {**response.headers, **headers} == dict(response.headers)
    assert response.headers["cache-control"] == "no-store"
    assert SECRET.encode() not in response.body


async def test_mounted_under_a_prefix_in_another_application():
    async with Streams("memory:") as streams:
        site = Starlette(routes=[Mount("/deep/headwater", App(streams))])
        transport = httpx.ASGITransport(app=site)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver/deep/headwater") as client:
            made = await client.put("/v1/stream/a%2Fb", content="hi", headers={"content-type": "text/plain"})
            assert (made.status_code, made.headers["location"]) == (
                201,
                "http://testserver/deep/headwater/v1/stream/a/b",
            )
            assert (await client.get(made.headers["location"])).text == "hi"
            assert [name for name, _ in await streams.list()] == ["a/b"]
            assert (await client.get("/healthz")).text == "ok\n"
            assert (await client.get("/nothing")).json()["error"]["code"] == "not_found"
            closing = {"content-type": "text/plain", "stream-closed": "true"}
            await client.post("/v1/stream/a/b", headers=closing)
            assert (await client.get("/v1/stream/a/b?format=sse")).text.endswith(
                'event: end\ndata:{"outcome":"completed"}\n\n'
            )


async def test_the_lifespan_opens_and_closes_the_streams_and_says_why_it_cannot(tmp_path):
    async def lived(streams: Streams) -> list[dict]:
        told: list[dict] = []
        asked = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}])

        async def receive() -> dict:
            if told:
                assert streams.is_open
            return next(asked)

        async def send(event: dict) -> None:
            told.append(event)

        await App(streams)({"type": "lifespan"}, receive, send)  # type: ignore[arg-type]
        assert not streams.is_open
        return told

    told = await lived(Streams("memory:"))
    assert [event["type"] for event in told] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    foreign = tmp_path / "not-ours.db"
    foreign.write_text("this is no database " * 100)
    with pytest.raises(HeadwaterError):
        await lived(Streams(f"sqlite:///{foreign}"))


async def test_a_websocket_is_turned_away():
    told: list[dict] = []

    async def send(event: dict) -> None:
        told.append(event)

    await App(Streams("memory:"))({"type": "websocket"}, None, send)  # type: ignore[arg-type]
    assert told == [{"type": "websocket.close", "code": 4404, "reason": "no WebSocket here"}]


@virtual_time
async def test_a_client_that_leaves_before_its_body_has_come_appends_nothing():
    async with open_site() as site:
        await site.put("t")
        scope_of: list[dict] = []

        async def half(scope, receive, send):
            events = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])

            async def broken() -> dict:
                return next(events)

            scope_of.append(scope)
            await site.app(scope, broken, send)

        call = await Client(half).ask("POST", "/v1/stream/t", content_type="text/plain")
        assert call.status == 400
        assert (await site.ask("GET", "t")).body == b""


@virtual_time
async def test_a_body_is_bounded_while_it_comes_whatever_its_length_says():
    async with open_site() as site:
        await site.put("t")
        taken = 0

        async def endless(scope, receive, send):
            async def more() -> dict:
                nonlocal taken
                taken += 1
                return {"type": "http.request", "body": b"x" * 1024 * 1024, "more_body": True}

            await site.app(scope, more, send)

        call = await Client(endless).ask("POST", "/v1/stream/t", content_type="text/plain")
        assert (call.status, taken) == (413, 17)


@virtual_time
async def test_the_streams_readers_are_let_go_when_the_application_is_cancelled(monkeypatch):
    monkeypatch.setattr("asgi_client.way", "parked")  # the direct way there is no task to be cancelled any more
    async with open_site() as site:
        await site.put("t", "a")
        calls = [site.call("GET", f"t?offset=-1&{how}") for how in ("live=sse", "format=sse", "format=text")]
        calls.append(site.call("GET", "t?offset=now&live=long-poll"))
        for call in calls[:3]:
            await call.started()
        await asyncio.sleep(1)
        assert site.streams.statistics()["readers"] == 4
        for call in calls:
            call.task.cancel()
        await asyncio.wait([call.task for call in calls])
        assert site.streams.statistics()["readers"] == 0


class Full(MemoryStore):
    """A store whose disk is full for a while."""

    full = False

    def commit(self, *args):
        if not self.full:
            return super().commit(*args)
        future = asyncio.get_running_loop().create_future()
        future.set_exception(StoreUnavailable(f"{id(self)}.db cannot grow: the disk is full"))
        return future


@virtual_time
async def test_a_store_that_fails_is_in_the_log_and_the_server_is_not_ready(caplog):
    store, clock = Full(), asyncio.get_running_loop().time
    async with Streams(store) as streams:
        app = App(streams)
        app._outages._clock = clock
        site = Client(app)
        put = functools.partial(site.ask, "PUT", content_type="text/plain")
        assert (await put("/v1/stream/a")).status == 201
        store.full = True
        for _ in range(20):
            failed = await site.ask("POST", "/v1/stream/a", "x", content_type="text/plain")
            assert (failed.status, failed.json()["error"]["code"]) == (503, "store_unavailable")
            assert "disk" not in failed.text
        ready = await site.ask("GET", "/readyz")
        assert (ready.status, ready.text, "retry-after" in ready.headers) == (503, "store unavailable\n", True)
        assert (await site.ask("GET", "/v1/stream/a")).status == 200
        assert (await site.ask("GET", "/readyz")).status == 503, "that it can be read says nothing"
        assert [(r.name, r.levelname) for r in caplog.records] == [("headwater.store", "ERROR")]
        assert caplog.messages == [f"a request failed: {id(store)}.db cannot grow: the disk is full"]
        store.full = False
        assert (await put("/v1/stream/b")).status == 201
        assert (await site.ask("GET", "/readyz")).status == 200
        store.full = True
        assert (await put("/v1/stream/c")).status == 503
        await asyncio.sleep(UNREADY_SECONDS - 0.1)
        assert (await site.ask("GET", "/readyz")).status == 503
        await asyncio.sleep(0.2)
        assert (await site.ask("GET", "/readyz")).status == 200, "else nobody would be sent here to find it well"


async def test_a_store_that_fails_in_the_middle_of_a_response_is_heard_of_too(caplog):
    store = MemoryStore()

    async def load(name):
        raise StoreUnavailable(f"{id(store)}.db: input/output error")

    async with Streams(store) as streams:
        site = Client(App(streams))
        await streams.create("a", b"x", content_type="text/plain")
        call = site.call("GET", "/v1/stream/a?offset=-1&live=sse")
        await call.until(b"x")
        store.load = load
        streams.hub.known("a").forget()
        await call.done()
        ready = await site.ask("GET", "/readyz")
        assert (ready.status, ready.text) == (503, "store unavailable\n")
        assert caplog.messages == [f"a request failed: {id(store)}.db: input/output error"]


def test_the_same_line_comes_seldom():
    now = [0.0]
    seldom = Seldom(10, lambda: now[0])
    passed = []
    for at, line in [(0, "a"), (1, "a"), (2, "b"), (9.9, "a"), (10, "a"), (11, "a"), (12, "b"), (100, "c")]:
        now[0] = at
        if seldom.filter(logging.LogRecord("x", logging.ERROR, "", 0, "%s", (line,), None)):
            passed.append((at, line))
    assert passed == [(0, "a"), (2, "b"), (10, "a"), (12, "b"), (100, "c")]
    assert list(seldom._passed) == ["c"], "what is over is forgotten"
