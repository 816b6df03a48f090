"""server/: a real process on real sockets: how it starts, what it refuses, and how it goes away."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import headwater.runs  # noqa: F401 -- serving imports it, and a first import reads files, which blocks
from headwater.errors import BadRequest
from headwater.server import PortTaken, ServeConfig, listen
from headwater.server.connection import SEND_BUFFER_BYTES, USER_TIMEOUT_MS
from headwater.server.serve import check, is_loopback, serve

PROGRAM = """
import asyncio, contextlib, gc, json, socket, sys, time
from starlette.responses import JSONResponse
from headwater.delivery import CONNECTION
from headwater.http.app import App
from headwater.server import ServeConfig, run

async def options(exchange):
    transport = exchange.scope["extensions"][CONNECTION]._protocol.transport
    asked = transport.get_extra_info("socket").getsockopt
    names = ["SO_SNDBUF", "SO_KEEPALIVE"], ["TCP_USER_TIMEOUT", "TCP_KEEPIDLE", "TCP_NODELAY"]
    levels = socket.SOL_SOCKET, socket.IPPROTO_TCP
    of = [(level, name) for level, some in zip(levels, names) for name in some]
    return JSONResponse({name: asked(level, getattr(socket, name)) for level, name in of})

async def readers(exchange):
    gc.unfreeze()  # what was there when the server was ready
    (app,) = [one for one in gc.get_objects() if type(one) is App]
    return JSONResponse(app.delivery.statistics())

class Stubborn:
    name = "stubborn"

    async def run(self, given, sink):
        if given == "in a thread":
            await asyncio.to_thread(time.sleep, 60)
        while True:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(60)

pages = {"/options": options, "/readers": readers}
config = ServeConfig(store="memory:", agents=[(None, Stubborn())], pages=pages, **json.loads(sys.argv[1]))
sys.exit(run(config, lambda url: print(url, flush=True)))
"""


class Server:
    """A serving process."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, f"{process.communicate()} {log.read_text()}"
        self.process, self.log = process, log
        self.writers: list[asyncio.StreamWriter] = []
        self.host, _, port = url.removeprefix("http://").rpartition(":")
        self.port = int(port)

    def signalled(self, number: int) -> Callable[[], tuple[int, float]]:
        """Send it, now; what is returned waits for the exit status, and the seconds until then."""
        begun = time.monotonic()
        self.process.send_signal(number)
        return lambda: (self.process.wait(60), time.monotonic() - begun)

    async def ask(self, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
        reader, writer = await self.connect()
        writer.write(request(method, path, body, connection="close", **headers))
        answer = await reader.read()
        writer.close()
        head, _, rest = answer.partition(b"\r\n\r\n")
        return int(head.split()[1]), rest

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Closed when the test is over, however it ends."""
        reader, writer = await asyncio.open_connection(self.host, self.port)
        self.writers.append(writer)
        return reader, writer

    async def stop(self) -> None:
        self.process.kill()
        await asyncio.to_thread(self.process.communicate)
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def readers(self) -> int:
        return int(json.loads((await self.ask("GET", "/readers"))[1])["readers"])

    async def until_readers(self, number: int, seconds: float) -> None:
        async with asyncio.timeout(seconds):
            while await self.readers() != number:
                await asyncio.sleep(0.05)


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    given = {"host": "localhost", "content-length": str(len(body))} | {
        n.replace("_", "-"): v for n, v in headers.items()
    }
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    return "\r\n".join(lines).encode() + body


@pytest.fixture
async def start(tmp_path: Path) -> AsyncIterator[Callable[..., Server]]:
    started: list[Server] = []

    def run(**config: Any) -> Server:
        log = tmp_path / f"{len(started)}.log"
        command = [sys.executable, "-c", PROGRAM, json.dumps({"port": 0, **config})]
        with log.open("w") as errors:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
        started.append(Server(process, log))
        return started[-1]

    yield run
    for server in started:
        await server.stop()


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("127.1.2.3", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("::", False),
     ("10.0.0.1", False), ("example.com", False), ("localhost.evil.com", False), ("", False)],
)  # fmt: skip
def test_other_machines_are_served_only_with_keys_or_said_aloud(host, loopback):
    assert is_loopback(host) is loopback
    if not loopback:
        with pytest.raises(BadRequest, match=r"--auth keys\.toml, or say --insecure"):
            check(ServeConfig(host=host))
    else:
        check(ServeConfig(host=host))
    check(ServeConfig(host=host, insecure=True))
    check(ServeConfig(host=host, auth="keys.toml"))


@pytest.mark.parametrize(
    "wrong",
    [{"heartbeat": 0}, {"heartbeat": 3601}, {"grace": 0.5}, {"grace": 3601}, {"long_poll": 0}, {"long_poll": -1}],
)
def test_seconds_have_bounds(wrong):
    with pytest.raises(BadRequest, match="seconds, from 1 to 3600"):
        check(ServeConfig(**wrong))


def test_an_address_that_cannot_be_had_is_named_with_the_way_out():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with pytest.raises(PortTaken, match=rf"port {port} is taken on 127\.0\.0\.1.*--port"):
            listen("127.0.0.1", port)
    with pytest.raises(PortTaken, match=r"203\.0\.113\.1 is no address of this machine.*--host"):
        listen("203.0.113.1", 0)
    with pytest.raises(PortTaken, match="no address of this machine"):
        listen("no-such-host.invalid", 0)
    with pytest.raises(PortTaken, match="--port"):
        listen("127.0.0.1", 70000)


async def test_nothing_is_opened_where_the_port_is_taken(tmp_path):
    file = tmp_path / "streams.db"
    with listen("127.0.0.1", 0) as first, pytest.raises(PortTaken):
        await serve(ServeConfig(store=f"sqlite:///{file}", port=first.getsockname()[1]))
    assert not file.exists()
    with pytest.raises(BadRequest, match="cannot be read"):
        await serve(ServeConfig(store="memory:", auth=str(tmp_path / "none.toml")))
    with pytest.raises(BadRequest, match="--insecure"):
        await serve(ServeConfig(store="memory:", host="0.0.0.0"))


# -- connections ------------------------------------------------------------------------------------------------------


@pytest.mark.server
async def test_accepted_connections_notice_dead_peers_and_buffer_little(start):
    status, body = await start().ask("GET", "/options")
    options = json.loads(body)
    assert status == 200
    assert options["SO_SNDBUF"] == 2 * SEND_BUFFER_BYTES, "the kernel doubles it"
    assert options["SO_KEEPALIVE"]
    assert options["TCP_NODELAY"]
    if sys.platform == "linux":
        assert (options["TCP_USER_TIMEOUT"], options["TCP_KEEPIDLE"]) == (USER_TIMEOUT_MS, 10)


@pytest.mark.server
async def test_one_connection_takes_many_requests_pipelined_or_not(start):
    server = start()
    reader, writer = await server.connect()
    text = {"content_type": "text/plain"}
    for n in range(3):
        writer.write(request("PUT", f"/v1/stream/s{n}", b"%d" % n, **text))
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 201 ")
    writer.write(b"".join(request("GET", f"/v1/stream/s{n}") for n in range(3)))
    for n in range(3):
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")
        assert await reader.readexactly(1) == b"%d" % n
    writer.write(
        request("POST", "/v1/stream/s0", **text, stream_closed="true") + request("GET", "/v1/stream/s0?format=sse")
    )
    answers = await reader.readuntil(b"0\r\n\r\n")
    assert answers.startswith(b"HTTP/1.1 204 ")
    assert b"event: end" in answers
    writer.write(request("GET", "/healthz"))
    assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")


@pytest.mark.server
@pytest.mark.parametrize("behind", [b"", request("GET", "/healthz"), request("GET", "/v1/stream/s?format=sse") * 3])
async def test_a_reader_that_leaves_is_forgotten_also_with_requests_pipelined_behind_it(start, behind):
    server = start(heartbeat=1)
    await server.ask("PUT", "/v1/stream/s")
    reader, writer = await server.connect()
    writer.write(request("GET", "/v1/stream/s?format=sse"))
    await reader.readuntil(b": open\n")
    writer.write(behind)
    await writer.drain()
    await asyncio.sleep(0.1)  # so that the server has read what came behind
    assert await server.readers() == 1
    writer.transport.abort()
    await server.until_readers(0, 5)
    assert server.log.read_text() == ""


@pytest.mark.server
async def test_a_failed_stream_in_a_format_that_cannot_tell_is_cut_not_ended(start):
    server = start()
    text = {"content_type": "text/plain"}
    await server.ask("PUT", "/v1/stream/s", b"half an answer", **text)
    reader, writer = await server.connect()
    writer.write(request("GET", "/v1/stream/s?format=text"))
    await reader.readuntil(b"half an answer")
    await server.ask("DELETE", "/v1/stream/s")
    assert await reader.read() == b"\r\n", "the chunk's own end, and no last chunk"
    assert server.log.read_text() == ""


# -- going away -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tidy() -> Iterator[contextlib.ExitStack]:
    with contextlib.ExitStack() as stack:
        yield stack


async def all_of(reader: asyncio.StreamReader) -> bytes:
    with contextlib.suppress(ConnectionResetError):
        return await reader.read()
    return b""


@pytest.mark.server
async def test_sigterm_with_200_readers_and_a_stalled_one_ends_within_the_grace_period(start, tidy):
    grace = 4.0
    server = start(grace=grace)
    text = {"content_type": "text/plain"}
    await server.ask("PUT", "/v1/stream/s", b"first", **text)
    await server.ask("PUT", "/v1/stream/big", **text)
    for _ in range(8):
        await server.ask("POST", "/v1/stream/big", b"x" * 1024 * 1024, **text)
    connections = [await server.connect() for _ in range(200)]
    forms = ["format=sse", "offset=-1&live=sse", "format=text", "offset=now&live=long-poll"]
    for n, (_, writer) in enumerate(connections):
        writer.write(request("GET", f"/v1/stream/s?{forms[n % 4]}"))
    stalled = tidy.enter_context(socket.socket())
    stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    stalled.connect((server.host, server.port))
    stalled.sendall(request("GET", "/v1/stream/big?format=sse"))
    idle = await server.connect()
    for n, (reader, _) in enumerate(connections):
        if n % 4 < 3:
            await reader.readuntil(b"first")
    await server.until_readers(151, 10)  # a long-poll is none
    ended = server.signalled(signal.SIGTERM)
    answers = await asyncio.wait_for(asyncio.gather(*[all_of(reader) for reader, _ in connections]), grace)
    for n, answer in enumerate(answers):
        if n % 4 == 0:
            assert b'event: interrupted\nretry: 500\ndata:{"code":"draining"' in answer
        if n % 4 == 3:
            assert answer.startswith(b"HTTP/1.1 204 ")
        else:
            assert answer.endswith(b"0\r\n\r\n") == (n % 4 < 2), "plain text is cut"
    assert await all_of(idle[0]) == b""
    status, seconds = await asyncio.to_thread(ended)
    assert status == 0
    assert seconds < grace + 0.5
    assert server.log.read_text() == ""


@pytest.mark.server
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_once_is_enough_and_it_is_quick_where_nobody_stalls(start, number):
    server = start()
    await server.ask("PUT", "/v1/stream/s")
    reader, writer = await server.connect()
    writer.write(request("GET", "/v1/stream/s?format=sse"))
    await reader.readuntil(b": open\n")
    status, seconds = await asyncio.to_thread(server.signalled(number))
    assert (status, seconds < 2) == (0, True)
    assert b"event: interrupted" in await reader.read()
    assert server.log.read_text() == ""


@pytest.mark.server
@pytest.mark.parametrize(("work", "most"), [("in a thread", 3), ("in a task", 8)])
async def test_work_that_does_not_stop_holds_up_the_end_no_longer_than_the_grace_period(start, work, most):
    server = start()
    status, run = await server.ask("POST", "/v1/runs", json.dumps({"agent": "stubborn", "input": work}).encode())
    assert status == 201
    reader, writer = await server.connect()
    writer.write(request("GET", f"/v1/runs/{json.loads(run)['id']}/events"))
    await reader.readuntil(b"run.input")
    status, seconds = await asyncio.to_thread(server.signalled(signal.SIGTERM))
    assert (status, seconds < most) == (0, True)
    assert (b'"interrupted"' in await reader.read()) == (work == "in a thread")


@pytest.mark.server
async def test_a_second_ctrl_c_does_not_wait_for_anybody(start):
    server = start(grace=30)
    text = {"content_type": "text/plain"}
    await server.ask("PUT", "/v1/stream/big", **text)
    for _ in range(8):
        await server.ask("POST", "/v1/stream/big", b"x" * 1024 * 1024, **text)
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.connect((server.host, server.port))
        stalled.sendall(request("GET", "/v1/stream/big?format=sse"))
        await server.until_readers(1, 5)
        server.signalled(signal.SIGINT)
        await asyncio.sleep(0.5)
        assert server.process.poll() is None
        status, seconds = await asyncio.to_thread(server.signalled(signal.SIGINT))
        assert (status, seconds < 3) == (0, True)


# -- a peer that dies without a word ----------------------------------------------------------------------------------


@pytest.fixture
def far_away(program: Callable[[str, str], str]) -> Iterator[tuple[str, str, Callable[[], None]]]:
    """A network of its own: the address that reaches us from there, its name, and what pulls its cable."""
    ip = program("ip", "apt-get install iproute2")
    if os.geteuid() != 0:
        pytest.skip("making a network needs root")
    name, ours, theirs = f"hw{os.getpid()}", f"hwa{os.getpid()}", f"hwb{os.getpid()}"

    def run(*command: str) -> None:
        subprocess.run([ip, *command], check=True, capture_output=True)

    try:
        run("netns", "add", name)
    except subprocess.CalledProcessError:
        pytest.skip("this machine lets nobody make a network")
    try:
        run("link", "add", ours, "type", "veth", "peer", "name", theirs, "netns", name)
        run("addr", "add", "198.51.100.1/30", "dev", ours)
        run("link", "set", ours, "up")
        run("-n", name, "addr", "add", "198.51.100.2/30", "dev", theirs)
        run("-n", name, "link", "set", theirs, "up")
        yield "198.51.100.1", name, lambda: run("-n", name, "link", "set", theirs, "down")
    finally:
        run("netns", "del", name)
        subprocess.run([ip, "link", "del", ours], capture_output=True)  # the kernel would, but only in a moment


FAR_READER = """
import socket, sys, time
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as far:
    far.sendall(b"GET /v1/stream/s?format=sse HTTP/1.1\\r\\nhost: x\\r\\n\\r\\n")
    while b": open" not in far.recv(4096):
        pass
    print("reading", flush=True)
    time.sleep(60)
"""


@pytest.mark.server
async def test_a_peer_that_dies_without_a_word_is_found(start, far_away):
    address, name, pull_the_cable = far_away
    server = start(host=address, insecure=True, heartbeat=1)
    await server.ask("PUT", "/v1/stream/s")
    command = ["ip", "netns", "exec", name, sys.executable, "-c", FAR_READER, address, str(server.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as far:
        assert far.stdout is not None
        assert await asyncio.to_thread(far.stdout.readline) == b"reading\n"
        assert await server.readers() == 1
        pull_the_cable()
        await server.until_readers(0, 1 + 1 + USER_TIMEOUT_MS / 1000 + 5)
        far.kill()
