"""server/arrival.py and connection.py: heads that are too large or too slow, bodies that stop, on real sockets.

Time is virtual: half a minute takes none.
"""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import uvicorn
from starlette.responses import Response
from uvicorn.server import ServerState

from headwater.http.exchange import Exchange
from headwater.server.arrival import BODY_SECONDS, HEAD_SECONDS, MOST_HEAD_BYTES, Arrival
from headwater.server.connection import LINGER_SECONDS, Protocol
from headwater.server.upgraded import MOST_FRAGMENTS, SocketProtocol
from headwater.testing import run_virtual, virtual_time
from http_site import open_site

Ends = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Door:
    """The application behind headwater.server's protocol."""

    def __init__(self, port: int, state: ServerState) -> None:
        self.port, self.state = port, state
        self.writers: list[asyncio.StreamWriter] = []

    async def connect(self, data: bytes = b"") -> Ends:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        self.writers.append(writer)
        writer.write(data)
        await writer.drain()
        return reader, writer


@asynccontextmanager
async def open_door() -> AsyncIterator[Door]:
    async def slow(exchange: Exchange) -> Response:
        await asyncio.sleep(100)
        return Response(str(len(await exchange.body(1 << 30))))

    async with open_site(pages={"/slow": slow}) as site:
        config = uvicorn.Config(
            site.app,
            http=Protocol,
            ws=SocketProtocol,
            ws_ping_interval=None,
            lifespan="off",
            log_config=None,
            access_log=False,
        )
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0)
        door = Door(server.sockets[0].getsockname()[1], state)
        try:
            yield door
            for writer in door.writers:
                writer.close()
            while state.connections or state.tasks:
                await asyncio.sleep(0.01)
        finally:
            server.close()
            await server.wait_closed()


def now() -> float:
    return asyncio.get_running_loop().time()


async def refusal(reader: asyncio.StreamReader) -> tuple[int, str]:
    """Status and code of the answer that ends the connection."""
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    assert b"connection: close" in head
    assert b"x-content-type-options: nosniff" in head
    assert int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) == len(body)
    return int(head.split()[1]), json.loads(body)["error"]["code"]


async def nothing(reader: asyncio.StreamReader) -> None:
    """The end of the connection, without a word."""
    with suppress(ConnectionResetError):
        assert await reader.read() == b""


def head_of(size: int, method: str = "GET", path: str = "/healthz") -> bytes:
    line = f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n".encode()
    return line + b"x-long: " + b"x" * (size - len(line) - 12) + b"\r\n\r\n"


GET = head_of(100)
TOO_LARGE, TIMED_OUT = (431, "headers_too_large"), (408, "request_timed_out")


# -- too large --------------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_head_up_to_64_kb_is_taken_and_no_larger_one():
    async with open_door() as door:
        reader, writer = await door.connect(head_of(MOST_HEAD_BYTES - 100))
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")
        writer.write(head_of(MOST_HEAD_BYTES + 100))
        assert await refusal(reader) == TOO_LARGE
        long_path = f"GET /{'p' * MOST_HEAD_BYTES} HTTP/1.1\r\n\r\n".encode()
        many = b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * (MOST_HEAD_BYTES // 5) + b"\r\n"
        for head in (long_path, many):
            reader, _ = await door.connect(head)
            assert await refusal(reader) == TOO_LARGE


@pytest.mark.parametrize("begin", [b"GET /", b"GET / HTTP/1.1\r\nx: ", b"GET / HTTP/1.1\r\n"])
def test_a_head_without_an_end_is_refused_before_it_fills_the_memory(begin):
    @virtual_time
    async def run() -> None:
        async with open_door() as door:
            reader, writer = await door.connect(begin)
            line = b"a: b\r\n" * 700 if begin.endswith(b"\n") else b"x" * 4096
            sent = 0
            while not reader.at_eof() and sent < 100 * MOST_HEAD_BYTES and not reader._buffer:  # type: ignore[attr-defined]
                writer.write(line)
                await writer.drain()
                sent += len(line)
                await asyncio.sleep(0)
            assert sent < 20 * MOST_HEAD_BYTES
            assert await refusal(reader) == TOO_LARGE

    run()


@virtual_time
async def test_a_refused_client_is_listened_to_for_a_moment_so_that_it_hears_the_refusal():
    async with open_door() as door:
        reader, writer = await door.connect(b"GET / HTTP/1.1\r\nx: ")
        for _ in range(100):
            writer.write(b"x" * 4096)
            await asyncio.sleep(0)
        assert await refusal(reader) == TOO_LARGE
        begun = now()
        while door.state.connections:
            await asyncio.sleep(0.1)
        assert now() - begun <= LINGER_SECONDS + 0.2


@virtual_time
async def test_large_bodies_and_what_is_pipelined_behind_them_are_no_heads():
    async with open_door() as door:
        body = b"x" * 300_000
        post = f"PUT /v1/stream/s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        reader, writer = await door.connect(post + body + GET[:20])
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
        writer.write(GET[20:])
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")


@virtual_time
async def test_fields_behind_a_body_are_no_headers_and_have_an_end():
    head = b"PUT /v1/stream/%b HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n"
    async with open_door() as door:
        reader, writer = await door.connect(head % b"s" + b"stream-ttl: 7\r\nx: y\r\n\r\n" + GET)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 201 ")
        assert b"stream-ttl" not in answer
        assert (await reader.readuntil(b"ok\n")).startswith(b"HTTP/1.1 200 ")
        for endless in (b"a: b\r\n" * 700, b"x" * 4096):
            reader, writer = await door.connect(head % b"t" + b"x: ")
            sent = 0
            while not writer.transport.is_closing() and sent < 100 * MOST_HEAD_BYTES:
                writer.write(endless)
                sent += len(endless)
                await asyncio.sleep(0)
            assert sent < 20 * MOST_HEAD_BYTES
        reader, _ = await door.connect(b"GET /v1/stream/t HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")


@virtual_time
async def test_a_body_in_tiny_chunks_is_a_body():
    async with open_door() as door:
        head = b"PUT /v1/stream/s HTTP/1.1\r\nhost: 127.0.0.1\r\ntransfer-encoding: chunked\r\n\r\n"
        reader, writer = await door.connect(head)
        for _ in range(100):
            writer.write(b"1\r\nx\r\n" * 1000)
            await asyncio.sleep(0.1)
        writer.write(b"0\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")


# -- too slow ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("begin", "drip", "told"),
    [
        (b"", b"", b""),
        (b"\r\n", b"\r\n", b""),
        (b"GET / HT", b"", TIMED_OUT),
        (b"GET / HTTP/1.1\r\nx: ", b"x", TIMED_OUT),
    ],
)
def test_a_head_has_to_be_there_in_time(begin, drip, told):
    @virtual_time
    async def run() -> None:
        async with open_door() as door:
            reader, writer = await door.connect(begin)
            answer = asyncio.ensure_future(refusal(reader) if told else nothing(reader))
            while not answer.done():
                writer.write(drip)
                await asyncio.wait([answer], timeout=1)
            assert answer.result() == (told or None)
            assert HEAD_SECONDS - 1 <= now() <= HEAD_SECONDS + 2

    run()


@virtual_time
async def test_a_second_request_gets_its_own_time():
    async with open_door() as door:
        reader, writer = await door.connect()
        await asyncio.sleep(20)
        writer.write(GET)
        await reader.readuntil(b"ok\n")
        await asyncio.sleep(4)  # uvicorn keeps an idle connection for 5 s
        writer.write(GET[:30])
        await asyncio.sleep(HEAD_SECONDS - 1)
        writer.write(GET[30:])
        await reader.readuntil(b"ok\n")
        writer.write(GET[:30])
        begun = now()
        assert await refusal(reader) == TIMED_OUT
        assert abs(now() - begun - HEAD_SECONDS) < 1


@virtual_time
async def test_a_body_may_be_slow_but_not_stop():
    async with open_door() as door:
        head = b"PUT /v1/stream/s HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 20\r\n\r\n"
        reader, writer = await door.connect(head)
        for _ in range(20):
            await asyncio.sleep(BODY_SECONDS - 2)
            writer.write(b"x")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 201 ")
        reader, writer = await door.connect(head.replace(b"/s ", b"/t "))
        await asyncio.sleep(1)
        writer.write(b"x" * 19)
        begun = now()
        assert await reader.read() == b"", "there is nobody to talk to"
        assert abs(now() - begun - BODY_SECONDS) < 2
        reader, _ = await door.connect(b"GET /v1/stream/t HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 404 ")


@virtual_time
async def test_time_in_which_the_server_does_not_read_is_not_the_clients():
    async with open_door() as door:
        body = b"x" * 5_000_000
        head = f"POST /slow HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: {len(body)}\r\n\r\n".encode()
        reader, writer = await asyncio.open_connection("127.0.0.1", door.port)
        door.writers.append(writer)
        writer.write(head + body)
        answer = await reader.readuntil(b"5000000")
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert now() > 3 * BODY_SECONDS


@virtual_time
async def test_a_response_that_goes_on_is_left_alone():
    async with open_door() as door:
        await door.connect(b"PUT /v1/stream/s HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        reader, writer = await door.connect(b"GET /v1/stream/s?format=sse HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
        await reader.readuntil(b": open\n")
        writer.write(b"GET /")  # the beginning of what it would ask next
        for _ in range(10):
            await reader.readuntil(b": hb\n")
        assert now() > 4 * HEAD_SECONDS


@virtual_time
async def test_what_has_become_a_websocket_is_left_alone():
    async with open_door() as door:
        key = b"sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
        upgrade = b"GET /v1/ws HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n" + key
        offer = b"sec-websocket-protocol: headwater.v1\r\n"
        reader, _ = await door.connect(upgrade + offer + b"\r\n")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
        while now() < 3 * HEAD_SECONDS:
            assert await reader.read(1000) != b""
        reader, _ = await door.connect(upgrade + offer + b"x: " + b"x" * MOST_HEAD_BYTES + b"\r\n\r\n")
        assert await refusal(reader) == TOO_LARGE


async def upgraded(door: Door) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, SocketProtocol]:
    fields = "host: 127.0.0.1|connection: upgrade|upgrade: websocket|sec-websocket-version: 13"
    fields += "|sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==|sec-websocket-protocol: headwater.v1"
    reader, writer = await door.connect(f"GET /v1/ws HTTP/1.1|{fields}||".replace("|", "\r\n").encode())
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
    (protocol,) = (one for one in door.state.connections if isinstance(one, SocketProtocol))
    return reader, writer, protocol


@virtual_time
async def test_what_opens_no_websocket_is_refused_and_not_left_open():
    fields = b"host: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\n"
    async with open_door() as door:
        for head in (
            b"POST /v1/ws HTTP/1.1\r\n" + fields + b"content-length: 3\r\n\r\nabc",
            b"GET /v1/ws HTTP/1.1\r\n" + fields + b"a: b\r\n" * 200 + b"\r\n",
            b"GET /v1/ws HTTP/1.1\r\n" + fields + b"a: " + b"b" * 10_000 + b"\r\n\r\n",
        ):
            reader, _ = await door.connect(head)
            assert await refusal(reader) == (400, "bad_request")
        reader, _ = await door.connect(b"PUT /v1/stream/s HTTP/1.1\r\n\r\nGET /v1/ws HTTP/1.1\r\n" + fields + b"\r\n")
        await nothing(reader)


@virtual_time
async def test_a_websocket_that_is_refused_is_no_failure_of_the_server(caplog):
    fields = b"host: 127.0.0.1\r\nconnection: upgrade\r\nupgrade: websocket\r\nsec-websocket-version: 13\r\n"
    fields += b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\norigin: https://evil.example\r\n\r\n"
    async with open_door() as door:
        reader, _ = await door.connect(b"GET /v1/ws HTTP/1.1\r\n" + fields)
        assert (await reader.read()).startswith(b"HTTP/1.1 403 ")
    assert not caplog.records


def frame(first: int, data: bytes) -> bytes:
    """One from a client, whose mask is zero."""
    return bytes([first, 0x80 | len(data)]) + bytes(4) + data


@virtual_time
async def test_a_client_that_pings_and_takes_nothing_is_not_kept_pongs_for():
    async with open_door() as door:
        reader, writer, protocol = await upgraded(door)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        pings = b"".join(frame(0x89, b"%06d" % n * 20) for n in range(500))
        sent = most = 0
        while protocol.writable.is_set() or sent < 3_000_000:
            writer.write(pings)
            sent += len(pings)
            await writer.drain()
            await asyncio.sleep(0)
            most = max(most, protocol.transport.get_write_buffer_size())
        assert most < 1_000_000
        writer.write(frame(0x89, b"the last"))
        await asyncio.sleep(1)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        heard = b""
        while not heard.endswith(b"the last"):  # that one is answered
            heard += await reader.read(65536)


@virtual_time
async def test_a_message_in_endless_pieces_does_not_fill_the_memory():
    async with open_door() as door:
        reader, writer, protocol = await upgraded(door)
        writer.write(frame(0x01, b'{"op":"pi') + frame(0, b"n"))
        for _ in range(50):
            writer.write(frame(0, b"") * 1000)
            await writer.drain()
            await asyncio.sleep(0)
            assert len(protocol.frames) <= MOST_FRAGMENTS + 1
        writer.write(frame(0x80, b'g"}'))
        assert await reader.readuntil(b'{"op":"pong"}')


@virtual_time
async def test_nothing_is_logged_and_nothing_stays(caplog):
    caplog.set_level(logging.INFO)
    async with open_door() as door:
        await door.connect(b"GET / HTTP/1.1\r\nx: " + b"x" * 200_000)
        await door.connect(b"GET")
        await door.connect()
        _, writer = await door.connect(head_of(MOST_HEAD_BYTES * 2))
        writer.transport.abort()
        await asyncio.sleep(HEAD_SECONDS + LINGER_SECONDS + 1)
        assert not door.state.connections
    assert not caplog.records


def test_an_arrival_says_what_it_expects():
    async def run() -> None:
        late: list[float] = []
        arrival = Arrival(lambda: late.append(now()), lambda: True)
        assert repr(arrival) == "<Arrival of nothing>"
        arrival.expect_head(begun=True)
        assert repr(arrival) == "<Arrival of head>"
        arrival.head_came()
        arrival.body_came()
        await asyncio.sleep(100)
        assert late == []
        arrival.expect_head()
        await asyncio.sleep(HEAD_SECONDS + 1)
        assert late == [100 + HEAD_SECONDS]
        arrival.expect_head()
        arrival.forget()
        await asyncio.sleep(100)
        assert len(late) == 1

    run_virtual(run())
