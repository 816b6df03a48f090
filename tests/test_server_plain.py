"""Appends that the connection answers without the application: they say and do what it does."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from headwater.errors import StoreUnavailable
from headwater.http.admission import Admission, Bounds
from headwater.http.app import App
from headwater.http.auth import Keys, Principal
from headwater.server.connection import Protocol
from headwater.stores.memory import MemoryStore
from headwater.streams import Streams
from live_server import live

JSON = {"content-type": "application/json"}
ASIDE = {"x-other": "1"}
"""A header that nobody knows: the application answers."""


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Methods of the requests that came to the application."""
    seen: list[str] = []
    answer = App._http

    async def noted(app: App, scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["method"])
        await answer(app, scope, receive, send)

    monkeypatch.setattr(App, "_http", noted)
    return seen


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory:" if request.param == "memory" else f"sqlite:///{tmp_path}/a.db?sync=normal"


@asynccontextmanager
async def served(streams: Streams, **options: Any) -> AsyncIterator[httpx.AsyncClient]:
    app = App(streams, **options)
    async with live(app, http=Protocol, access_log=False, server_header=False, date_header=False) as client:
        yield client


async def data(streams: Streams, name: str) -> list[bytes]:
    return [message.data for message in (await streams.read(name)).messages]


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b'{"n": 1}'),
        ({}, b"[1, 2, [3]]"),
        ({"producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}, b"1"),
        ({"stream-seq": "a"}, b"1"),
        ({"stream-closed": "true", "stream-outcome": "failed"}, b"1"),
    ],
)
async def test_the_answer_and_the_stream_are_those_of_the_application(
    url: str, asked: list[str], headers: dict[str, str], body: bytes
) -> None:
    async with served(Streams(url)) as client:
        answers = []
        for more in ({}, ASIDE):
            assert (await client.put(f"/v1/stream/s{len(more)}", headers=JSON)).status_code == 201
            asked.clear()
            answer = await client.post(f"/v1/stream/s{len(more)}", headers=JSON | headers | more, content=body)
            assert asked == ["POST"] * len(more)
            told = {name: value for name, value in answer.headers.items() if name not in ("stream-next-offset", "etag")}
            assert answer.headers["etag"] == f'"{answer.headers["stream-next-offset"]}"'
            position = answer.headers["stream-next-offset"].partition("_")[2]
            kept = await client.get(f"/v1/stream/s{len(more)}")
            answers.append((answer.status_code, answer.content, told, position, kept.content))
        assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("path", "headers", "body", "status"),
    [
        ("s", JSON, b"{", 400),
        ("s", JSON, b"[]", 400),
        ("s", {"content-type": "text/plain"}, b"x", 409),
        ("s", JSON | {"producer-id": "p"}, b"1", 400),
        ("s", JSON | {"producer-id": "p", "producer-epoch": "0", "producer-seq": "5"}, b"1", 409),
        ("s", {"content-type": "application/json", "origin": "https://evil.example"}, b"1", 403),
        ("closed", JSON, b"1", 409),
        ("nowhere", JSON, b"1", 404),
        ("responses/x", JSON, b"1", 403),
        ("__ds/x", JSON, b"1", 404),
        ("", JSON, b"1", 404),
    ],
)
async def test_what_is_refused_is_refused_as_ever(
    path: str, headers: dict[str, str], body: bytes, status: int, asked: list[str]
) -> None:
    streams = Streams("memory:")
    async with served(streams) as client:
        await streams.create("s")
        await streams.create("closed", closed=True)
        url = client.base_url.copy_with(raw_path=f"/v1/stream/{path}".encode())
        answers = [await client.post(url, headers=headers | more, content=body) for more in ({}, ASIDE)]
        assert [answer.status_code for answer in answers] == [status, status]
        assert answers[0].content == answers[1].content
        assert await data(streams, "s") == []


async def test_a_repeated_append_counts_once(url: str, asked: list[str]) -> None:
    stamp = JSON | {"producer-id": "p", "producer-epoch": "0", "producer-seq": "0"}
    streams = Streams(url)
    async with served(streams) as client:
        await streams.create("s")
        answers = [await client.post("/v1/stream/s", headers=stamp, content=b"1") for _ in range(2)]
        assert [answer.status_code for answer in answers] == [200, 204]
        assert await data(streams, "s") == [b"1"]


async def test_who_may_not_is_told_so_and_who_may_is_not_asked_twice(asked: list[str]) -> None:
    writer = Principal("writer", frozenset({"append"}), ("mine/*",))
    keys = Keys({"2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b": writer})  # of "secret"
    streams = Streams("memory:")
    async with served(streams, auth=keys) as client:
        for name in ("mine/a", "other/a"):
            await streams.create(name)
        said = []
        for name, key in (("mine/a", "secret"), ("mine/a", "wrong"), ("other/a", "secret")):
            headers = JSON | {"authorization": f"Bearer {key}"}
            said.append((await client.post(f"/v1/stream/{name}", headers=headers, content=b"1")).status_code)
        assert said == [204, 401, 403]
        assert asked == ["POST", "POST"]
        closing = JSON | {"authorization": "Bearer secret", "stream-closed": "true"}
        assert (await client.post("/v1/stream/mine/a", headers=closing, content=b"2")).status_code == 403


async def test_who_is_limited_is_counted_once(asked: list[str]) -> None:
    streams = Streams("memory:")
    async with served(streams, admission=Admission(Bounds(appends_per_second=1), clock=lambda: 0.0)) as client:
        await streams.create("s")
        said = [(await client.post("/v1/stream/s", headers=JSON, content=b"1")).status_code for _ in range(3)]
    assert said == [204, 204, 429]


def request(body: bytes, method: str = "POST", more: str = "") -> bytes:
    head = f"{method} /v1/stream/s HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n{more}"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


@asynccontextmanager
async def talking(client: httpx.AsyncClient) -> AsyncIterator[tuple[Callable[[], Awaitable[bytes]], Any]]:
    """What gives the next answer's status line, and where to write to."""
    reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)

    async def answer() -> bytes:
        async with asyncio.timeout(10):
            head = await reader.readuntil(b"\r\n\r\n")
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return head.partition(b"\r\n")[0] + b" " + await reader.readexactly(int(length or 0))

    try:
        yield answer, writer
    finally:
        writer.close()
        await writer.wait_closed()


async def test_pipelined_requests_of_both_kinds_are_carried_out_and_answered_in_order(url: str) -> None:
    streams = Streams(url)
    async with served(streams) as client, talking(client) as (answer, writer):
        await streams.create("s")
        writer.write(request(b"1") + request(b"22") + request(b"", "GET") + request(b"3", more="x-other: 1\r\n"))
        writer.write(request(b"[") + request(b"4"))
        said = [await answer() for _ in range(6)]
        assert [line.split()[1] for line in said] == [b"204", b"204", b"200", b"204", b"400", b"204"]
        assert said[2].endswith(b"[1,22]")
        assert await data(streams, "s") == [b"1", b"22", b"3", b"4"]


async def test_a_request_that_comes_byte_by_byte_is_the_same(asked: list[str]) -> None:
    streams = Streams("memory:")
    async with served(streams) as client, talking(client) as (answer, writer):
        await streams.create("s")
        for byte in request(b'"abc"'):
            writer.write(bytes([byte]))
            await asyncio.sleep(0)
        assert (await answer()).startswith(b"HTTP/1.1 204")
        assert (await data(streams, "s"), asked) == ([b'"abc"'], [])


class Failing(MemoryStore):
    """Carries a commit out, and says that it could not."""

    fails = False

    def commit(self, *commit: Any) -> Any:
        return asyncio.ensure_future(self._late(*commit))

    async def _late(self, *commit: Any) -> None:
        await super().commit(*commit)
        if self.fails:
            raise StoreUnavailable("the answer was lost")


async def test_what_may_have_been_carried_out_is_not_tried_again(asked: list[str]) -> None:
    store = Failing()
    streams = Streams(store)
    async with served(streams) as client:
        await streams.create("s")
        store.fails = True
        answer = await client.post("/v1/stream/s", headers=JSON, content=b"1")
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "store_unavailable")
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert (await client.get("/readyz")).status_code == 503
        store.fails = False
        assert (await client.post("/v1/stream/s", headers=JSON, content=b"2")).status_code == 204
        assert await data(streams, "s") == [b"1", b"2"]
        assert asked == ["GET", "POST"]  # the second one's stream was not known here any more


async def test_an_append_that_another_process_was_quicker_than_is_decided_again(asked: list[str]) -> None:
    kept = Failing()
    here, there = Streams(kept), Streams(kept)
    async with served(here) as client, there:
        await here.create("s")
        await there.append("s", b"0")
        assert (await client.post("/v1/stream/s", headers=JSON, content=b"1")).status_code == 204
        await there.close("s")
        answer = await client.post("/v1/stream/s", headers=JSON, content=b"2")
        assert (answer.status_code, answer.headers["stream-closed"]) == (409, "true")
        assert answer.headers["stream-outcome"] == "completed"
        assert await data(there, "s") == [b"0", b"1"]
        assert asked == []


async def test_an_append_on_its_way_is_answered_before_the_server_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    class Held(MemoryStore):
        gate = asyncio.Event()

        def commit(self, *commit: Any) -> Any:
            return asyncio.ensure_future(self._late(*commit))

        async def _late(self, *commit: Any) -> None:
            await self.gate.wait()
            await super().commit(*commit)

    shutdown = Protocol.shutdown

    def shut_down(protocol: Protocol) -> None:
        shutdown(protocol)
        store.gate.set()

    monkeypatch.setattr(Protocol, "shutdown", shut_down)
    store = Held()
    store.gate.set()
    streams = Streams(store)
    async with served(streams) as client:
        await streams.create("s")
        store.gate.clear()
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writer.write(request(b"1"))
        while streams.hub.tail("s").settled:
            await asyncio.sleep(0)
    said = await reader.read()
    assert said.startswith(b"HTTP/1.1 204")
    assert b"connection: close" in said
    writer.close()


async def test_a_request_of_which_a_part_has_come_is_taken_to_its_end_before_the_server_ends(
    monkeypatch: pytest.MonkeyPatch, asked: list[str]
) -> None:
    here = asyncio.Event()
    on_body, shutdown = Protocol.on_body, Protocol.shutdown
    rest: list[Callable[[], None]] = []

    def noted(protocol: Protocol, body: bytes) -> None:
        on_body(protocol, body)
        here.set()

    def shut_down(protocol: Protocol) -> None:
        shutdown(protocol)
        rest.pop()()

    monkeypatch.setattr(Protocol, "on_body", noted)
    monkeypatch.setattr(Protocol, "shutdown", shut_down)
    streams = Streams("memory:")
    async with served(streams) as client:
        await streams.create("s")
        reader, writer = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        message = request(b'"abc"')
        writer.write(message[:-2])
        rest.append(lambda: writer.write(message[-2:]))
        await here.wait()
    assert (await reader.read()).startswith(b"HTTP/1.1 204")
    assert asked == ["POST"]
    writer.close()


async def test_what_is_pipelined_behind_an_append_is_not_taken_for_idleness() -> None:
    """Answered within the chunk in which both came: the time for a next request must not run on."""
    streams = Streams("memory:")
    app = App(streams)
    async with (
        live(app, http=Protocol, access_log=False, timeout_keep_alive=0.05) as client,
        talking(client) as (answer, writer),
    ):
        await streams.create("s")
        writer.write(request(b"1") + b"GET /v1/stream/s?offset=-1&live=sse HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert [(await answer()).split()[1] for _ in range(2)] == [b"204", b"200"]
        await asyncio.sleep(0.15)
        assert streams.statistics()["readers"] == 1


async def test_appends_are_counted_as_the_requests_that_they_are(asked: list[str]) -> None:
    streams = Streams("memory:")
    app = App(streams)
    async with live(app, http=Protocol, access_log=False) as client:
        await streams.create("s")
        for more in ({}, ASIDE):
            await client.post("/v1/stream/s", headers=JSON | more, content=b"1")
        assert (app.traffic.answered, asked) == ({("/v1/stream/{name}", "POST", "204"): 2}, ["POST"])


async def test_an_append_that_fails_on_its_way_is_counted_as_refused() -> None:
    store = Failing()
    streams = Streams(store)
    app = App(streams)
    async with live(app, http=Protocol, access_log=False) as client:
        await streams.create("s")
        store.fails = True
        await client.post("/v1/stream/s", headers=JSON, content=b"1")
    assert app.traffic.answered == {("/v1/stream/{name}", "POST", "503"): 1}
    assert app.traffic.refused == {"store_unavailable": 1}


async def test_what_is_traced_is_left_to_the_application(asked: list[str]) -> None:
    pytest.importorskip("opentelemetry")
    from headwater.tracing import Tracing

    streams = Streams("memory:", tracing=Tracing())
    async with served(streams) as client:
        await streams.create("s")
        await client.post("/v1/stream/s", headers=JSON, content=b"1")
    assert asked == ["POST"]
