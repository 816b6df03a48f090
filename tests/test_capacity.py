"""A thousand readers on one stream, and one that never reads: what it costs the others, and the server's memory."""

import asyncio
import json
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from real_server import Server, process, serving

pytestmark = pytest.mark.server

READERS = 1000
RATE = 20  # messages a second
SECONDS = 4
GRACE = 10.0
BACKLOG = 3_000_000
MESSAGE = 64 * 1024
APPENDED = 20_000_000
JSON = {"content-type": "application/json"}
TEXT = {"content-type": "text/plain"}


@contextmanager
def stalled_reader(server: Server, stream: str) -> Iterator[socket.socket]:
    """A client that asks for the whole stream, and then reads nothing."""
    client = socket.socket()
    with closing(client):
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(b"GET /v1/stream/%s?format=sse HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" % stream.encode())
        yield client


def taken(client: socket.socket) -> int:
    """How many bytes there are to read, now that the server is gone."""
    total = 0
    try:
        while data := client.recv(65536):
            total += len(data)
    except ConnectionResetError:
        pass
    return total


async def beat(http_client: httpx.AsyncClient, url: str, until: asyncio.Event) -> None:
    """One message every 1/RATE s, each with the time of its sending."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while not until.is_set():
        answer = await http_client.post(url, json={"sent": time.monotonic_ns(), "text": " token"}, headers=JSON)
        answer.raise_for_status()
        due += 1 / RATE
        await asyncio.sleep(due - loop.time())


async def crowd_report(server: Server, stream: str) -> dict[str, Any]:
    """READERS readers for SECONDS; then the server is told to go. What they report, and how the server went."""
    before = server.rss()
    crowd_program = str(Path(__file__).with_name("reader_crowd.py"))
    async with process(sys.executable, crowd_program, str(server.port), stream, str(READERS)) as crowd:
        assert crowd.stdout is not None
        enough = asyncio.Event()
        async with asyncio.timeout(60), httpx.AsyncClient() as http_client, asyncio.TaskGroup() as tasks:
            tasks.create_task(beat(http_client, f"{server.url}/v1/stream/{stream}", enough))
            assert await crowd.stdout.readline() == b"ready\n"
            per_reader = (server.rss() - before) / READERS
            await asyncio.sleep(SECONDS)  # what is measured
            enough.set()
        status, stopped_in = await asyncio.to_thread(server.stop)
        report = json.loads(await crowd.stdout.readline())
    return {**report, "status": status, "stopped_in": stopped_in, "kb_per_reader": per_reader / 1024}


async def room_of_a_thousand(folder: Path, *, stalled: bool) -> dict[str, Any]:
    folder.mkdir()
    with serving("serve", folder, "--log-level", "warning") as server:
        async with httpx.AsyncClient(base_url=f"{server.url}/v1/stream/") as http_client:
            (await http_client.put("room", headers=JSON)).raise_for_status()
            for _ in range(BACKLOG // MESSAGE):
                (await http_client.post("room", json={"old": "x" * MESSAGE}, headers=JSON)).raise_for_status()
        if not stalled:
            return await crowd_report(server, "room")
        with stalled_reader(server, "room") as client:
            report = await crowd_report(server, "room")
            assert taken(client) < BACKLOG * 2 // 3, "it was meant to stall, and got everything"
            return report


async def test_a_reader_that_stalls_costs_a_thousand_others_nothing(tmp_path: Path) -> None:
    alone = await room_of_a_thousand(tmp_path / "alone", stalled=False)
    beside = await room_of_a_thousand(tmp_path / "beside", stalled=True)
    for name, report in (("without", alone), ("with", beside)):
        print(f"\n{name} a stalled reader: {report}", end="")
        assert report["deliveries"] >= READERS * RATE * SECONDS / 2  # a busy machine sends fewer
        assert report["ends"] == {"told": READERS}
        assert report["status"] == 0
        assert report["stopped_in"] < GRACE
    assert beside["p99"] <= 3 * alone["p99"] + 50


async def drain(server: Server, stream: str) -> int:
    """Reads a stream to its end; how many bytes of messages it had."""
    total = 0
    async with (
        httpx.AsyncClient(timeout=60) as http_client,
        http_client.stream("GET", f"{server.url}/v1/stream/{stream}", params={"format": "text"}) as answer,
    ):
        async for data in answer.aiter_raw():
            total += len(data)
    return total


async def most_memory(server: Server, stream: str, *, stalled: bool) -> int:
    """The most that the server held while a stream of APPENDED bytes was made and read by five, less what it had."""
    url = f"{server.url}/v1/stream/{stream}"
    before = most = server.rss()
    async with httpx.AsyncClient() as http_client, asyncio.TaskGroup() as tasks:
        (await http_client.put(url, headers=TEXT)).raise_for_status()
        reading = [tasks.create_task(drain(server, stream)) for _ in range(5)]
        with stalled_reader(server, stream) if stalled else closing(socket.socket()):
            for _ in range(APPENDED // MESSAGE):
                (await http_client.post(url, content=b"x" * MESSAGE, headers=TEXT)).raise_for_status()
                most = max(most, server.rss())
            (await http_client.post(url, headers={"stream-closed": "true"})).raise_for_status()
            await asyncio.wait(reading)
            most = max(most, server.rss())
    assert [task.result() for task in reading] == [APPENDED // MESSAGE * MESSAGE] * 5
    return most - before


async def test_a_reader_that_stalls_takes_no_memory(tmp_path: Path) -> None:
    with serving("serve", tmp_path, "--log-level", "warning") as server:
        warming = await most_memory(server, "warming", stalled=False)
        without = await most_memory(server, "without", stalled=False)
        with_it = await most_memory(server, "with", stalled=True)
    print(f"\nMemory while 20 MB are appended, in KB: {warming >> 10} at first, then {without >> 10} without and"
          f" {with_it >> 10} with a stalled reader")  # fmt: skip
    assert with_it - without < 4_000_000
