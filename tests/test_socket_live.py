"""`headwater.v1` on the real server: a real client, a browser, connections that are cut, and a server that stops."""

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus

from cutting_proxy import CuttingProxy
from headwater import Streams
from headwater.http import App, lifespan
from headwater.wire import multiplex
from live_server import live
from real_server import Server, chromium, serving

pytestmark = pytest.mark.server

STREAMS = 20
EVENT_SOURCES = 6
"""Connections that a browser opens to one server by HTTP/1.1."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("serve", tmp_path_factory.mktemp("socket")) as server:
        yield server
        assert server.running
        assert "Traceback" not in server.log.read_text()


@asynccontextmanager
async def socket(url: str, *subprotocols: Any, **options: Any) -> AsyncIterator[ClientConnection]:
    given: dict[str, Any] = {"subprotocols": subprotocols or ("headwater.v1",), "proxy": None, "max_size": None}
    async with connect(url.replace("http:", "ws:") + "/v1/ws?token=secret-in-query", **given | options) as connection:
        yield connection


async def say(connection: ClientConnection, op: str, *data: bytes, **said: Any) -> None:
    head = json.dumps({"op": op, **said})
    await connection.send(multiplex.joined(head.encode(), data) if data else head)


async def hear(connection: ClientConnection) -> dict[str, Any]:
    """The next frame that is not a heartbeat; the messages of a binary one are bytes."""
    async with asyncio.timeout(30):
        frame = await connection.recv()
    if isinstance(frame, bytes):
        head, data = multiplex.split(frame)
        return {**json.loads(head), "messages": data}
    said: dict[str, Any] = json.loads(frame)
    return await hear(connection) if said["op"] == "heartbeat" else said


async def ask(connection: ClientConnection, op: str, *data: bytes, **said: Any) -> dict[str, Any]:
    await say(connection, op, *data, **said)
    return await hear(connection)


async def test_a_real_client_writes_and_follows(server: Server) -> None:
    async with socket(server.url) as connection:
        assert connection.subprotocol == "headwater.v1"
        assert connection.protocol.extensions == []
        assert (await ask(connection, "open", ref=1, stream="talk"))["created"] is True
        assert (await ask(connection, "follow", id=1, stream="talk", credit=1 << 20))["op"] == "following"
        await say(connection, "append", ref=2, stream="talk", messages=[{"n": 1}, "ä"], close=True)
        said = sorted([await hear(connection) for _ in range(3)], key=lambda one: one["op"])
        assert [one["op"] for one in said] == ["end", "messages", "ok"]
        assert said[1]["messages"] == [{"n": 1}, "ä"]
        assert await ask(connection, "ping") == {"op": "pong"}
    async with httpx.AsyncClient() as http_client:
        answer = await http_client.get(f"{server.url}/v1/stream/talk")
        assert answer.json() == [{"n": 1}, "ä"]
    assert "secret-in-query" not in server.log.read_text()


async def test_who_is_not_let_in_gets_an_honest_status(server: Server) -> None:
    for status, options in (
        (400, {"subprotocols": ("graphql-ws",)}),
        (400, {"subprotocols": None}),
        (403, {"origin": "https://evil.example"}),
        (403, {"origin": "null"}),
    ):
        with pytest.raises(InvalidStatus) as refused:
            async with socket(server.url, **options):  # type: ignore[arg-type]
                pass
        assert refused.value.response.status_code == status
        assert json.loads(refused.value.response.body)["error"]["message"]
    async with socket(server.url, origin=server.url):
        pass


async def test_a_frame_that_is_too_large_ends_the_connection(server: Server) -> None:
    async with socket(server.url) as connection:
        await connection.send("x" * (1 << 20) + "x")
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1009
    async with socket(server.url) as connection:
        await connection.send("garbage")
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert (connection.close_code, connection.close_reason) == (4400, "a frame is a JSON object")


async def test_a_binary_stream_survives_cuts_at_any_byte(server: Server) -> None:
    seed = random.randrange(1 << 32)
    print("seed", seed)
    dice = random.Random(seed)
    sent = [dice.randbytes(dice.choice([0, 1, 50, 3000])) for _ in range(1500)]
    got: list[bytes] = []
    cuts = iter(lambda: dice.choice([dice.randrange(0, 700), dice.randrange(700, 150_000)]), None)
    abrupt = iter(lambda: dice.random() < 0.5, None)

    async def write() -> None:
        async with socket(server.url) as writer:
            assert (await ask(writer, "open", ref=0, stream="bytes", content_type="image/png"))["op"] == "ok"
            begun.set()
            for at in range(0, len(sent), 30):
                answer = await ask(writer, "append", *sent[at : at + 30], ref=at, stream="bytes")
                assert answer["op"] == "ok", answer
                while len(got) < at - 600:  # the first part is live, all of it is behind now and then
                    await asyncio.sleep(0.001)
            await ask(writer, "close", ref=-1, stream="bytes", outcome="completed")

    async def follow(proxy: CuttingProxy) -> int:
        connections, offset = 0, "-1"
        while True:
            connections += 1
            proxy.abrupt = next(abrupt)
            with contextlib.suppress(ConnectionClosed, InvalidHandshake, InvalidMessage, OSError, EOFError):
                async with socket(proxy.url) as reader:
                    await say(reader, "follow", id=1, stream="bytes", offset=offset, credit=20_000)
                    while (said := await hear(reader))["op"] != "end":
                        assert said["op"] in ("following", "messages"), said
                        if said["op"] == "messages":
                            got.extend(said["messages"])
                            offset = said["offset"]
                            await say(reader, "credit", id=1, bytes=said["bytes"])
                    return connections

    begun = asyncio.Event()
    async with CuttingProxy(server.port, cuts) as proxy, asyncio.TaskGroup() as group:
        group.create_task(write())
        await begun.wait()
        following = group.create_task(follow(proxy))
    assert following.result() > 10
    assert got == sent
    async with httpx.AsyncClient() as http_client:
        logged, offset = b"", "-1"
        while True:
            answer = await http_client.get(f"{server.url}/v1/stream/bytes", params={"offset": offset})
            logged, offset = logged + answer.content, answer.headers["stream-next-offset"]
            if "stream-up-to-date" in answer.headers:
                break
    assert b"".join(got) == logged


async def test_clients_that_do_not_read_cost_little_and_hold_up_nobody(server: Server) -> None:
    async with httpx.AsyncClient() as http_client, contextlib.AsyncExitStack() as stack:
        await http_client.put(f"{server.url}/v1/stream/big", headers={"content-type": "image/png"})
        for _ in range(20):
            data = random.randbytes(1_000_000)
            answer = await http_client.post(
                f"{server.url}/v1/stream/big", content=data, headers={"content-type": "image/png"}
            )
            assert answer.status_code == 204
        before = server.rss()
        for _ in range(10):
            stuck = await stack.enter_async_context(socket(server.url, max_queue=1, close_timeout=0))
            for number in range(5):
                await say(stuck, "follow", id=number, stream="big", credit=1 << 40)
        reader = await stack.enter_async_context(socket(server.url))
        await say(reader, "follow", id=0, stream="big", credit=1 << 40)
        taken = 0
        while taken < 20_000_000:
            taken += (await hear(reader)).get("bytes", 0)
        # 50 channels of 20 MB each: per socket a message on its way, and what uvicorn holds of it.
        grown = server.rss() - before
        print("grown by", grown)
        assert grown < 80_000_000


async def test_a_server_that_stops_says_so_and_loses_nothing(tmp_path: Path) -> None:
    with serving("serve", tmp_path) as server:
        async with socket(server.url) as connection, socket(server.url) as stuck:
            await ask(connection, "open", ref=0, stream="s", messages=[1])
            following = await ask(connection, "follow", id=1, stream="s", credit=100)
            first = await hear(connection)
            assert first["messages"] == [1]
            assert following["op"] == "following"
            stopping = asyncio.create_task(asyncio.to_thread(server.stop))
            assert await hear(connection) == {"op": "draining"}
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            assert connection.close_code == 1012
            assert stuck.subprotocol == "headwater.v1"
        status, seconds = await stopping
        assert (status, seconds < 8) == (0, True)
        assert "Traceback" not in server.log.read_text()
        await server.restart()
        async with socket(server.url) as again:
            await ask(again, "append", ref=1, stream="s", messages=[2])
            await ask(again, "follow", id=1, stream="s", offset=first["offset"], credit=100)
            assert (await hear(again))["messages"] == [2]


async def test_mounted_in_another_application_on_a_plain_uvicorn() -> None:
    streams = Streams("memory:")
    application = FastAPI(lifespan=lifespan(streams))
    application.mount("/headwater", App(streams))
    async with live(application, ws="websockets-sansio") as http_client:
        url = f"{http_client.base_url}/headwater"
        async with socket(url) as connection:
            await ask(connection, "open", ref=0, stream="s", content_type="text/plain", messages=["x"])
            await ask(connection, "follow", id=1, stream="s", credit=10)
            assert (await hear(connection))["messages"] == ["x"]
        async with socket(url) as connection:
            await connection.send("garbage")
            with pytest.raises(ConnectionClosed):
                await connection.recv()
            assert connection.close_code == 4400
        with pytest.raises(InvalidStatus) as refused:
            async with socket(url, "graphql-ws"):
                pass
        assert refused.value.response.status_code == 400
        assert streams.statistics()["readers"] == 0


# What a page needs to follow many streams: this is all of it.
FOLLOW_ALL = """([url, names]) => {
  window.got = Object.fromEntries(names.map((name) => [name, []]));
  window.opened = 0;
  const socket = new WebSocket(url, "headwater.v1");
  socket.binaryType = "arraybuffer";
  window.socket = socket;
  const say = (said) => socket.send(JSON.stringify(said));
  socket.onopen = () => names.forEach((stream, id) => say({op: "follow", id, stream, credit: 10}));
  socket.onmessage = ({data}) => {
    let said, messages;
    if (typeof data === "string") {
      said = JSON.parse(data);
      messages = said.messages;
    } else {
      const parts = [], view = new DataView(data);
      for (let at = 0; at < data.byteLength; at += 4 + view.getUint32(at))
        parts.push(new Uint8Array(data, at + 4, view.getUint32(at)));
      said = JSON.parse(new TextDecoder().decode(parts.shift()));
      messages = parts.map((part) => Array.from(part));
    }
    if (said.op !== "messages") return;
    window.got[names[said.id]].push(...messages);
    say({op: "credit", id: said.id, bytes: said.bytes});
  };
}"""

EVENT_SOURCE_ALL = """(names) => {
  window.heard = {};
  window.sources = names.map((name) => {
    const source = new EventSource(`/v1/stream/${name}?format=sse&offset=-1`);
    source.onmessage = () => { window.heard[name] = true; };
    return source;
  });
}"""


async def test_a_browser_follows_twenty_streams_on_one_connection(
    server: Server, program: Callable[[str, str], str]
) -> None:
    path = program("chromium", "apt-get install chromium")
    names = [f"many/{number}" for number in range(STREAMS)]
    picture = f"{server.url}/v1/stream/{names[-1]}"
    async with chromium(path) as browser, httpx.AsyncClient() as http_client:
        for name in names[:-1]:
            await http_client.put(f"{server.url}/v1/stream/{name}", json=[f"first of {name}"])
        await http_client.put(picture, content=b"\0\xff\n", headers={"content-type": "image/png"})
        page = await browser.new_page()
        await page.goto(f"{server.url}/healthz")
        await page.evaluate(EVENT_SOURCE_ALL, names[:-1])
        await page.wait_for_function(f"Object.keys(window.heard).length >= {EVENT_SOURCES}")
        # A WebSocket is not counted among the six, so it opens although they are all taken.
        await page.evaluate(FOLLOW_ALL, [server.url.replace("http:", "ws:") + "/v1/ws", names])
        await page.wait_for_function("Object.values(window.got).every((one) => one.length === 1)")
        for name in names[:-1]:
            await http_client.post(f"{server.url}/v1/stream/{name}", json={"second": name})
        await http_client.post(picture, content=bytes(range(256)), headers={"content-type": "image/png"})
        await page.wait_for_function("Object.values(window.got).every((one) => one.length === 2)")
        got = await page.evaluate("window.got")
        assert got.pop(names[-1]) == [[0, 255, 10], list(range(256))]
        assert got == {name: [f"first of {name}", {"second": name}] for name in names[:-1]}
        assert await page.evaluate("Object.keys(window.heard).length") == EVENT_SOURCES
        await page.evaluate("window.socket.close(); window.sources.forEach((source) => source.close())")
