"""server/line.py and connection.py on real sockets, as bytes: keep-alive, pipelining, old clients, ends in every state;
plain and over TLS, on asyncio's loop and on uvloop."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trustme
import uvicorn
import uvloop
from uvicorn.server import ServerState

from headwater import Streams
from headwater.delivery import Delivery, Policy
from headwater.http import App
from headwater.server import Protocol
from headwater.server.line import OpenLine

PATIENCE_SECONDS = 10
LIVE = "/v1/stream/s?format=text"
EVENTS = "/v1/stream/s?format=sse"


class Wire:
    """A server whose responses all go the direct way, and what connects to it."""

    def __init__(self, streams: Streams, delivery: Delivery, state: ServerState, port: int, tls: Any) -> None:
        self.streams, self.delivery, self.state, self._port, self._tls = streams, delivery, state, port, tls
        self._ends: list[End] = []
        self.written = 0  # by a test that counts

    async def connect(self, data: bytes = b"", **options: Any) -> "End":
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port, ssl=self._tls, **options)
        self._ends.append(End(reader, writer))
        writer.write(data)
        return self._ends[-1]

    async def close(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            for end in self._ends:
                end.writer.transport.abort()
                with suppress(OSError):  # a loop that is closed before its TLS is hangs (uvloop)
                    await end.writer.wait_closed()
            while self.state.connections or self.state.tasks:
                await asyncio.sleep(0.01)

    async def say(self, *words: str, end: bool = False, stream: str = "s") -> None:
        await self.streams.append(stream, *[word.encode() for word in words], close=end)

    async def until_readers(self, number: int) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.delivery.readers != number:
                await asyncio.sleep(0.005)

    @property
    def is_tls(self) -> bool:
        return self._tls is not None

    @property
    def protocols(self) -> list[Protocol]:
        return [one for one in self.state.connections if isinstance(one, Protocol)]

    async def until_parked(self, number: int = 1) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while sum(one.follower is not None for one in self.protocols) != number or self.state.tasks:
                await asyncio.sleep(0.005)


class End:
    """The client's, of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def head(self) -> str:
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def part(self) -> bytes:
        """The next chunk; nothing: the last one."""
        size = int(await self.reader.readline(), 16)
        return (await self.reader.readexactly(size + 2))[:-2]

    async def rest(self) -> bytes:
        """All chunks to the last one."""
        parts = []
        while part := await self.part():
            parts.append(part)
        return b"".join(parts)

    async def of_length(self, head: str) -> bytes:
        (length,) = (line.partition(":")[2] for line in head.lower().splitlines() if line.startswith("content-length"))
        return await self.reader.readexactly(int(length))

    def reset(self) -> None:
        """Leave by RST."""
        with suppress(OSError):
            option = struct.pack("ii", 1, 0)
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, option)
        self.writer.transport.abort()


def get(path: str, *fields: str, method: str = "GET", version: str = "1.1") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/{version}", "host: localhost", *fields, "", ""]).encode()


CA = trustme.CA()


def contexts() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's and the client's."""
    ours, theirs = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.create_default_context()
    CA.issue_cert("localhost", "127.0.0.1").configure_cert(ours)
    CA.configure_trust(theirs)
    return ours, theirs


@asynccontextmanager
async def open_wire(tls: bool, heartbeat: float = 15.0) -> AsyncIterator[Wire]:
    ours, theirs = contexts() if tls else (None, None)
    async with Streams("memory:") as streams:
        delivery = Delivery(streams, Policy(heartbeat))
        app = App(streams, delivery=delivery)
        config = uvicorn.Config(app, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False)
        config.load()
        state = ServerState()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Protocol(config, state, {}), "127.0.0.1", 0, ssl=ours, backlog=2048)
        await streams.create("s", content_type="text/plain")
        wire = Wire(streams, delivery, state, server.sockets[0].getsockname()[1], theirs)
        try:
            yield wire
            await wire.close()
            assert delivery.readers == 0
            assert streams.statistics()["readers"] == 0
        finally:
            for protocol in wire.protocols:  # of a test that failed
                protocol.transport.abort()
            server.close()
            await asyncio.sleep(0)


def on_every_loop(test: Callable[[Wire], Awaitable[None]]) -> Callable[..., None]:
    """`test` gets a Wire, plain and over TLS, on asyncio's loop and on uvloop."""

    @pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
    @pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
    def run(make_loop: Any, tls: bool) -> None:
        async def main() -> None:
            async with asyncio.timeout(30), open_wire(tls) as wire:
                await test(wire)
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left

        with asyncio.Runner(loop_factory=make_loop) as runner:
            runner.run(main())

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


# -- one connection, many responses -----------------------------------------------------------------------------------


@on_every_loop
async def test_a_connection_goes_on_behind_a_response_that_was_followed(wire: Wire) -> None:
    end = await wire.connect()
    for n in range(3):
        name = f"n{n}"
        await wire.streams.create(name, content_type="text/plain")
        end.writer.write(get(f"/v1/stream/{name}?format=sse"))
        assert "transfer-encoding: chunked" in await end.head()
        assert await end.part() == b": open\nretry: 500\n"
        await wire.until_parked()
        await wire.say("a", stream=name)
        assert b"data:a\n" in await end.part()
        await wire.say("b", "c", end=True, stream=name)
        assert (await end.rest()).count(b"data:") == 3, "and the end"
        end.writer.write(get(f"/v1/stream/{name}?offset=-1&live=long-poll"))
        head = await end.head()
        assert "stream-closed: true" in head
        assert await end.of_length(head) == b"abc"
        end.writer.write(get("/healthz"))
        assert await end.of_length(await end.head()) == b"ok\n"
    assert len(wire.protocols) == 1


@on_every_loop
async def test_what_is_pipelined_behind_a_live_response_is_answered_when_that_has_ended(wire: Wire) -> None:
    await wire.streams.create("t", b"other", content_type="text/plain")
    behind = [get("/v1/stream/t", method="HEAD"), get("/v1/stream/t"), get(LIVE), get("/healthz")]
    end = await wire.connect(get(LIVE) + b"".join(behind))
    await end.head()
    await wire.say("a")
    assert await end.part() == b"a"
    await wire.until_parked()
    await wire.say("b")
    assert await end.part() == b"b"
    await asyncio.sleep(0.02)
    assert not end.reader._buffer  # type: ignore[attr-defined]
    await wire.say("c", end=True)
    assert await end.rest() == b"c"
    assert "stream-next-offset" in await end.head()
    assert await end.of_length(await end.head()) == b"other"
    await end.head()
    assert await end.rest() == b"abc"
    assert await end.of_length(await end.head()) == b"ok\n"


@on_every_loop
async def test_a_client_that_leaves_takes_what_it_pipelined_with_it(wire: Wire) -> None:
    kinds: list[Callable[[End], None]] = [End.reset]
    if not wire.is_tls:  # of TLS, both loops keep an end to themselves while nothing is read, as behind a pipeline
        kinds.append(lambda end: end.writer.close())
    for leave in kinds:
        end = await wire.connect(get(EVENTS) + get(EVENTS) * 2 + get("/healthz"))
        await end.head()
        await wire.until_parked()
        leave(end)
        async with asyncio.timeout(PATIENCE_SECONDS):
            while wire.delivery.readers:  # nothing is read behind a pipeline: a write finds it out
                await wire.say("x")
                await asyncio.sleep(0.005)
        served = wire.delivery.served
        await asyncio.sleep(0.02)
        assert wire.delivery.served == served


@on_every_loop
async def test_who_begins_far_behind_gets_all_of_it_and_what_comes(wire: Wire) -> None:
    words = [f"{n:05d}" * 2000 for n in range(15)]
    other = await wire.connect(get(EVENTS), limit=1 << 20)  # for whom the stream keeps all of it at hand
    await other.head()
    await wire.until_parked()
    for word in words:
        await wire.say(word)
    for path in (LIVE, EVENTS):
        end = await wire.connect(get(path) + get("/healthz"))
        await end.head()
        got = b""
        while words[-1].encode() not in got:
            got += await end.part()
        assert all(word.encode() in got for word in words)
        await wire.say(f"live {path}")
        assert f"live {path}".encode() in await end.part()
        end.writer.close()
    end = await wire.connect(get(EVENTS) + get("/healthz"))
    await end.head()
    await wire.say("y", end=True)
    assert b"data:y" in await end.rest()
    assert await end.of_length(await end.head()) == b"ok\n"


# -- clients of every kind --------------------------------------------------------------------------------------------


@on_every_loop
async def test_who_wants_the_connection_closed_has_it_closed(wire: Wire) -> None:
    """To HTTP/1.0, too, uvicorn sends chunks."""
    await wire.streams.append("s", b"a")
    wants = [
        get(LIVE, "connection: close"),
        get(LIVE, version="1.0"),
        get(LIVE, "connection: keep-alive", version="1.0"),
    ]
    ends = [await wire.connect(want) for want in wants]
    for end in ends:
        assert "connection: close" in await end.head()
    await wire.until_parked(3)
    await wire.say("b")
    for end in ends:
        assert await end.part() == b"a"
        assert await end.part() == b"b"
    await wire.say("c", end=True)
    for end in ends:
        assert await end.reader.read() == b"1\r\nc\r\n0\r\n\r\n"


@on_every_loop
async def test_a_head_is_one_and_nothing_is_followed_for_it(wire: Wire) -> None:
    end = await wire.connect(get(EVENTS, method="HEAD") + get("/v1/stream/s?offset=-1&live=sse", method="HEAD"))
    for _ in range(2):
        assert (await end.head()).startswith("HTTP/1.1 200 ")
    assert wire.delivery.readers == 0
    end.writer.write(get("/healthz"))
    assert await end.of_length(await end.head()) == b"ok\n"


@on_every_loop
async def test_who_waits_for_100_continue_gets_it_before_the_answer_or_not_at_all(wire: Wire) -> None:
    end = await wire.connect(get(LIVE, "expect: 100-continue", "content-length: 3"))
    head = await end.head()
    if head.startswith("HTTP/1.1 100 "):
        head = await end.head()
    assert head.startswith("HTTP/1.1 200 ")
    await wire.say("a")
    assert await end.part() == b"a"
    await wire.until_parked()
    end.writer.write(b"abc")
    await wire.say("b", end=True)
    assert await end.rest() == b"b"
    end.writer.write(get("/healthz"))
    assert await end.of_length(await end.head()) == b"ok\n"


@on_every_loop
async def test_a_body_that_nobody_asked_for_is_in_nobodys_way(wire: Wire) -> None:
    size = 300_000
    end = await wire.connect(get(LIVE, f"content-length: {size}"))
    await end.head()
    await wire.say("a")
    assert await end.part() == b"a"
    await wire.until_parked()
    end.writer.write(b"x" * size)
    await wire.say("b", end=True)
    assert await end.rest() == b"b"
    end.writer.write(get("/healthz"))
    assert await end.of_length(await end.head()) == b"ok\n"


# -- ends -------------------------------------------------------------------------------------------------------------


@on_every_loop
async def test_a_client_that_says_it_sends_no_more_is_gone(wire: Wire) -> None:
    """As for every server behind uvicorn: half a connection is none."""
    end = await wire.connect(get(EVENTS))
    await end.head()
    await wire.until_parked()
    if end.writer.can_write_eof():
        end.writer.write_eof()
    else:  # TLS has no halves
        end.writer.close()
    await wire.until_readers(0)


@on_every_loop
async def test_a_reset_at_any_moment_leaves_nothing(wire: Wire) -> None:
    request = get(EVENTS) + get(LIVE) + get(EVENTS)[:20]
    for sent in range(0, len(request), 9):
        end = await wire.connect(request[:sent])
        await end.writer.drain()
        if sent % 2:
            await asyncio.sleep(0)
        end.reset()
    for moment in range(12):
        end = await wire.connect(get(EVENTS))
        for _ in range(moment):
            await asyncio.sleep(0)
        await wire.say("x" * 1000)
        if moment % 3 == 0:
            await end.reader.read(100 * moment + 1)
        end.reset()
        await wire.say("y" * 1000)
    await wire.until_readers(0)
    async with asyncio.timeout(PATIENCE_SECONDS):
        while wire.protocols:
            await asyncio.sleep(0.005)


@on_every_loop
async def test_a_stream_that_fails_is_cut_off_in_a_format_that_cannot_tell(wire: Wire) -> None:
    end = await wire.connect(get(LIVE))
    await end.head()
    await wire.say("half")
    assert await end.part() == b"half"
    await wire.until_parked()
    await wire.streams.delete("s")
    with suppress(ConnectionResetError):
        assert await end.reader.read() == b"", "no last chunk"
    await wire.until_readers(0)


@on_every_loop
async def test_readers_are_told_of_a_drain_and_connections_go_with_the_server(wire: Wire) -> None:
    ends = [await wire.connect(get(path)) for path in (EVENTS, "/v1/stream/s?offset=-1&live=sse")]
    for end in ends:
        await end.head()
    await wire.until_parked(2)
    for protocol in wire.protocols:
        protocol.shutdown()
    wire.streams.drain()
    said = [await end.reader.read() for end in ends]
    assert all(rest.endswith(b"0\r\n\r\n") for rest in said)
    assert b"event: interrupted" in said[0]


def test_who_leaves_with_much_unread_is_not_written_to_any_more(caplog: pytest.LogCaptureFixture) -> None:
    """A transport that is closed waits for what is in its buffer: asyncio warns of each write to it."""

    async def main() -> None:
        async with asyncio.timeout(30), open_wire(False) as wire:
            end = await wire.connect(get(LIVE), limit=1000)
            await end.head()
            await wire.say("first")
            await wire.until_parked()
            for _ in range(400):
                await wire.say("x" * 5000)
                await asyncio.sleep(0)
            (protocol,) = wire.protocols
            while not protocol.transport.get_write_buffer_size():
                await wire.say("x" * 5000)
            end.writer.write_eof()
            await wire.until_readers(0)
            assert protocol.transport.get_write_buffer_size(), "it waits still"
            for _ in range(20):
                await wire.say("y")
                await asyncio.sleep(0)

    asyncio.run(main())
    assert not caplog.records


# -- who takes nothing ------------------------------------------------------------------------------------------------


@on_every_loop
async def test_a_reader_that_stalls_is_kept_little_for_and_misses_nothing(wire: Wire) -> None:
    slow = await wire.connect(get(LIVE), limit=1000)
    quick = await wire.connect(get(LIVE), limit=1 << 26)
    for end in (slow, quick):
        await end.head()
    written = b""
    for n in range(400):
        text = f"{n:06d}" * 3000
        written += text.encode()
        await wire.say(text)
        await asyncio.sleep(0)
        for protocol in wire.protocols:
            assert protocol.transport.get_write_buffer_size() < 64 * 1024 + 2 * 64 * 1024
    (stuck,) = [
        protocol for protocol in wire.protocols if isinstance(protocol.line, OpenLine) and protocol.line.is_full
    ]
    assert stuck.follower is not None
    await wire.say("the end", end=True)
    for end in (quick, slow):
        assert await end.rest() == written + b"the end"
