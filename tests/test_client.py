"""The client against a real server, through a proxy that cuts, and against answers written by hand."""

import asyncio
import hashlib
import itertools
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace

import httpx
import pytest
import uvicorn
from ag_ui.core import TextMessageContentEvent, TextMessageEndEvent, TextMessageStartEvent

from cutting_proxy import CuttingProxy
from headwater import errors
from headwater.client import Client, Event, Retry, Unreachable
from headwater.client.answers import error_of, retry_after
from headwater.errors import (
    BadRequest,
    HeadwaterError,
    NotAcceptable,
    OffsetGone,
    StoreError,
    StreamClosed,
    StreamNotFound,
    Unauthorized,
)
from headwater.http.app import App
from headwater.http.auth import Keys, Principal
from headwater.problems import answer
from headwater.runs import Runs
from headwater.streams import Streams
from headwater.wire import sse


async def no_pause(_: float) -> None:
    await asyncio.sleep(0)


AT_ONCE = Retry(sleep=no_pause, jitter=lambda: 1.0)


@asynccontextmanager
async def serving(streams: Streams, runs: Runs | None = None, port: int = 0, **options) -> AsyncIterator[int]:
    """A real server on a real socket, on this loop; gives its port."""
    listening = socket.create_server(("127.0.0.1", port))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # as a real server has it: no 40 ms for an ACK
    app = App(streams, runs, **options)
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, timeout_graceful_shutdown=1))
    task = asyncio.create_task(server.serve(sockets=[listening]))
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = True
        await task
        listening.close()


class Scripted:
    """A server whose answers are written down: one per connection, byte for byte."""

    def __init__(self, *answers: bytes) -> None:
        self._answers = iter(answers)
        self.asked: asyncio.Queue[str] = asyncio.Queue()

    async def __aenter__(self) -> "Scripted":
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            self.asked.put_nowait((await reader.readuntil(b"\r\n\r\n")).decode().lower())
            said = next(self._answers)
            writer.write(said.removesuffix(HOLD))
            if said.endswith(HOLD):
                await reader.read()  # until the client leaves
        writer.close()
        with suppress(OSError):
            await writer.wait_closed()


HOLD = b"<hold>"


def http(status: int, body: bytes = b"", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Said", f"content-length: {len(body)}", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def events(body: bytes, *headers: str) -> bytes:
    """A body without a length: it ends when the connection does, so every cut looks clean."""
    lines = ["HTTP/1.1 200 OK", "content-type: text/event-stream", "connection: close", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


ONE, TWO = b"id: 01\ndata:1\n\n", b"id: 02\ndata:2\n\n"
END = b'id: 02\nevent: end\ndata:{"outcome":"completed"}\n\n'


# -- against a real server --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("abrupt", [False, True], ids=["closed", "reset"])
async def test_a_cut_after_every_byte_loses_and_doubles_nothing(abrupt: bool) -> None:
    async with Streams("memory:") as streams:
        await streams.create("log", {"n": 1, "text": "a\u2028b"}, {"n": 2}, {"n": 3})
        await streams.close("log", "failed")
        log = [(sse.one_line(m.data), str(m.offset)) for m in (await streams.read("log")).messages]
        async with serving(streams) as port, through(port) as (proxy, client):
            assert await followed(client, "log") == (log, "failed")
            head, length = proxy.head, proxy.passed
            assert 0 < head < length
            proxy.abrupt = abrupt
            for cut in (
                *range(1, head, 16),
                *range(head, length),
            ):  # a head that is not whole is none, wherever it ends
                proxy.cuts = iter([cut, None])
                assert (cut, await followed(client, "log")) == (cut, (log, "failed"))


@asynccontextmanager
async def through(port: int) -> AsyncIterator[tuple[CuttingProxy, Client]]:
    async with CuttingProxy(port, itertools.repeat(None)) as proxy, Client(proxy.url, retry=AT_ONCE) as client:
        yield proxy, client


async def followed(client: Client, target: str) -> tuple[list[tuple[bytes, str]], str | None]:
    async with client.follow(target) as reader:
        return [(event.data, event.offset) async for event in reader], reader.outcome


class Poet:
    """Says ten words; then, if it was asked to, fails."""

    name = "poet"

    async def run(self, input, sink) -> None:  # noqa: A002
        await sink.emit(TextMessageStartEvent(message_id="m", role="assistant"))
        for n in range(10):
            await sink.emit(TextMessageContentEvent(message_id="m", delta=f"word {n} "))
        await sink.emit(TextMessageEndEvent(message_id="m"))
        if input == "fail":
            raise ValueError("a secret")


@pytest.mark.parametrize(("asked", "outcome"), [("rhyme", "completed"), ("fail", "failed")])
async def test_a_run_is_whole_through_cuts_of_every_connection(asked: str, outcome: str) -> None:
    async with Streams("memory:") as streams, Runs(streams, Poet()) as runs:
        run = await runs.start("poet", asked)
        await run.wait()
        log = [(m.data, str(m.offset)) for m in (await streams.read(run.stream)).messages]
        async with serving(streams, runs) as port, through(port) as (proxy, client):
            events = f"{proxy.url}/v1/runs/{run.id}/events?rollup=0"
            assert await followed(client, events) == (log, outcome)
            for length in range(1200, 1600, 13):
                proxy.cuts = itertools.repeat(length)
                assert await followed(client, events) == (log, outcome)


async def test_a_server_that_goes_away_and_comes_back_is_followed_on() -> None:
    lost: list[HeadwaterError] = []
    async with Streams("memory:") as streams:
        await streams.create("log", 1)
        async with serving(streams) as port:
            client = Client(f"http://127.0.0.1:{port}", retry=replace(AT_ONCE, sleep=lambda _: asyncio.sleep(0.001)))
            reader = client.follow("log", on_lost=lambda error, _: lost.append(error))
            assert (await anext(reader)).json() == 1
            gone = asyncio.create_task(anext(reader))
            streams.drain()
        while not any("nothing answers" in str(error) for error in lost):
            await asyncio.sleep(0.001)
        streams.draining = False
        async with serving(streams, port=port):
            await streams.append("log", 2, close=True)
            assert (await gone).json() == 2
            assert [event async for event in reader] == []
            assert (reader.over, reader.outcome) == (True, "completed")
            assert str(lost[0]) == "the server is going away; connect again"
            await client.aclose()


async def test_a_reader_that_is_closed_while_it_connects_keeps_no_connection() -> None:
    asked, going, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    class Body(httpx.AsyncByteStream):
        async def __aiter__(self) -> AsyncIterator[bytes]:
            yield b": hello\n\n"

        async def aclose(self) -> None:
            closed.set()

    async def answer(_: httpx.Request) -> httpx.Response:
        asked.set()
        await going.wait()
        return httpx.Response(200, headers={"content-type": "text/event-stream"}, stream=Body())

    async with Client("http://headwater.test", transport=httpx.MockTransport(answer)) as client:
        reader = client.follow("log")
        reading = asyncio.create_task(anext(reader, None))
        await asked.wait()
        await reader.aclose()
        going.set()
        assert await reading is None
        assert closed.is_set()


async def test_a_reader_that_is_closed_in_a_pause_ends_at_once() -> None:
    pausing = asyncio.Event()

    def lost(error: HeadwaterError, seconds: float) -> None:
        assert seconds >= 3600
        pausing.set()

    busy = httpx.MockTransport(lambda _: httpx.Response(503, headers={"retry-after": "3600"}))
    async with Client("http://headwater.test", transport=busy) as client:
        reader = client.follow("log", on_lost=lost)
        reading = asyncio.create_task(anext(reader, None))
        await pausing.wait()
        await asyncio.sleep(0)
        await reader.aclose()
        async with asyncio.timeout(10):
            assert await reading is None


async def test_following_ends_with_204_and_with_the_outcome() -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await streams.create("log", 1)
        offset = await streams.close("log", "cancelled")
        async with client.follow("log", str(offset)) as reader:
            assert [event async for event in reader] == []
            assert (reader.over, reader.outcome, reader.connections) == (True, "cancelled", 0)


async def test_everything_else_a_client_can_do() -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        assert await client.create("a b/ü?", ttl=60)
        assert not await client.create("a b/ü?", ttl=60)
        offset = await client.append("a b/ü?", {"x": 1}, [1, 2], b"3", '"four"')
        info = await client.head("a b/ü?")
        assert (info.content_type, info.offset, info.closed, info.ttl) == ("application/json", offset, False, 60)
        assert await client.close("a b/ü?") == offset
        assert [event.json() async for event in client.follow("a b/ü?")] == [{"x": 1}, [1, 2], 3, "four"]
        with pytest.raises(StreamClosed) as closed:
            await client.append("a b/ü?", 5)
        assert closed.value.detail["offset"] == offset
        await client.create("z", content_type="text/plain")
        await client.append("z", "tick\n", content_type="text/plain", close=True)
        listed, after = await client.list(limit=1)
        assert ([stream.name for stream in listed], after) == (["a b/ü?"], "a b/ü?")
        listed, after = await client.list(after=after)
        assert ([(stream.name, stream.closed, stream.bytes) for stream in listed], after) == ([("z", True, 5)], None)
        with pytest.raises(StreamNotFound):
            await client.head("nothing")
        with pytest.raises(BadRequest, match="one message"):
            await client.append("z", "1", "2", content_type="text/plain")
        with pytest.raises(BadRequest, match="not valid JSON"):
            await client.append("a b/ü?", "1,2")


async def test_bytes_are_bytes() -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await client.create("bin", content_type="application/octet-stream")
        await client.append("bin", bytes(range(256)), content_type="application/octet-stream", close=True)
        assert [event.data async for event in client.follow("bin")] == [bytes(range(256))]


async def test_a_message_larger_than_any_buffer_arrives() -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await streams.create("large", b'"%s"' % (b"x" * 3_000_000), closed=True)
        assert [len(event.json()) async for event in client.follow("large")] == [3_000_000]


async def test_what_time_will_not_change_is_raised() -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await streams.create("log", 1)
        old = await streams.append("log", 2)
        await streams.delete("log")
        await streams.create("log")
        with pytest.raises(OffsetGone, match="an earlier stream of this name"):
            await anext(client.follow("log", str(old)))
        with pytest.raises(StreamNotFound):
            await anext(client.follow("nothing"))
        reader = client.follow(f"http://127.0.0.1:{port}/healthz")
        with pytest.raises(NotAcceptable):
            await anext(reader)
        assert [event async for event in reader] == []


async def test_a_key_goes_to_its_own_server_only() -> None:
    auth = Keys({hashlib.sha256(b"password").hexdigest(): Principal("p")})
    async with Streams("memory:") as streams, serving(streams, auth=auth) as port, Scripted(http(204)) as other:
        await streams.create("log", 1, closed=True)
        async with Client(f"http://127.0.0.1:{port}", key="password") as client:
            assert [event.json() async for event in client.follow("log")] == [1]
            assert [event async for event in client.follow(f"{other.url}/v1/stream/log")] == []
            assert "authorization" not in await other.asked.get()
        async with Client(f"http://127.0.0.1:{port}") as client:
            with pytest.raises(Unauthorized):
                await anext(client.follow("log"))


# -- against answers written by hand ----------------------------------------------------------------------------------


async def test_now_stays_where_it_was_when_the_connection_is_lost_before_the_first_message() -> None:
    first = events(b": open\n", "stream-next-offset: 01")
    async with Scripted(first, events(TWO + END)) as server, Client(server.url, retry=AT_ONCE) as client:
        assert [event.offset async for event in client.follow("s", "now")] == ["02"]
        assert "offset=now" in await server.asked.get()
        again = await server.asked.get()
        assert "last-event-id: 01" in again
        assert "offset=" not in again


async def test_a_clean_end_of_the_body_is_not_the_end_of_the_stream() -> None:
    async with Scripted(events(ONE + TWO[:-1]), events(TWO), http(204)) as server:
        async with Client(server.url, retry=AT_ONCE) as client, client.follow("s") as reader:
            assert [event async for event in reader] == [Event(b"1", "01"), Event(b"2", "02")]
            assert reader.outcome is None
        assert "last-event-id" not in await server.asked.get()
        assert "last-event-id: 01" in await server.asked.get()
        assert "last-event-id: 02" in await server.asked.get()


async def test_a_silent_connection_counts_as_lost() -> None:
    retry = replace(AT_ONCE, silence=0.02)
    lost: list[str] = []
    silent = Scripted(events(ONE) + HOLD, events(TWO + END) + HOLD)
    async with silent as server, Client(server.url, retry=retry) as client:
        reader = client.follow("s", on_lost=lambda error, _: lost.append(str(error)))
        assert [event.offset async for event in reader] == ["01", "02"]
        assert lost == [f"{server.url} has been silent for too long"]


async def test_a_cancelled_wait_loses_nothing() -> None:
    async with Scripted(events(ONE) + HOLD, events(TWO + END)) as server, Client(server.url) as client:
        reader = client.follow("s")
        assert (await anext(reader)).offset == "01"
        waiting = asyncio.create_task(anext(reader))
        await server.asked.get()
        for _ in range(10):  # turns of the loop, until it waits for the socket
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert "not connected" in repr(reader)
        assert [event.offset async for event in reader] == ["02"]
        assert "last-event-id: 01" in await server.asked.get()


async def test_a_long_silence_with_heartbeats_was_a_good_connection() -> None:
    assert await pauses_of_connections_that_last(6) == [0.4, 0.8, 1.6]
    assert await pauses_of_connections_that_last(10) == [0.4, 0.4, 0.4]


async def pauses_of_connections_that_last(seconds: float) -> list[float]:
    ticks = itertools.count(step=seconds)  # read when a connection is made and when it is lost
    pauses: list[float] = []
    retry = replace(AT_ONCE, clock=lambda: next(ticks))
    idle = Scripted(*[events(b": hb\n")] * 3, events(TWO + END))
    async with idle as server, Client(server.url, retry=retry) as client:
        reader = client.follow("s", on_lost=lambda _, pause: pauses.append(pause))
        assert [event.offset async for event in reader] == ["02"]
    return pauses


async def test_pauses_grow_to_a_limit_and_begin_anew_after_a_message() -> None:
    busy = http(503, b'{"error":{"code":"store_unavailable","message":"busy","retry":true}}')
    answers = [busy] * 8 + [events(ONE), busy, events(TWO + END)]
    pauses: list[float] = []
    async with Scripted(*answers) as server, Client(server.url, retry=AT_ONCE) as client:
        reader = client.follow("s", on_lost=lambda _, seconds: pauses.append(seconds))
        assert [event.offset async for event in reader] == ["01", "02"]
    assert pauses == [0.4, 0.8, 1.6, 3.2, 6.4, 10, 10, 10, 0.4, 0.8]


def test_pauses_are_spread_and_never_shorter_than_asked() -> None:
    least, most = Retry(jitter=lambda: 0.0), Retry(jitter=lambda: 1.0)
    assert [least.pause(n) for n in (0, 5, 10_000)] == [0.2] * 3
    assert most.pause(10_000) == 10
    assert (least.pause(0, 0.5), most.pause(0, 0.5)) == (0.5, 1.0)
    assert (least.pause(9, 60), most.pause(9, 60)) == (60, 60)


async def test_the_server_says_how_long_to_wait() -> None:
    answers = [
        http(429, b"", "retry-after: 7"),
        http(503, b"", "date: Sun, 22 Nov 2026 10:00:00 GMT", "retry-after: Sun, 22 Nov 2026 10:00:09 GMT"),
        events(b"retry: 3000\n" + ONE + b'event: interrupted\ndata:{"code":"draining","message":"m","retry":true}\n\n'),
        events(TWO + END),
    ]
    pauses: list[float] = []
    retry = replace(AT_ONCE, jitter=lambda: 0.0)
    async with Scripted(*answers) as server, Client(server.url, retry=retry) as client:
        reader = client.follow("s", on_lost=lambda _, seconds: pauses.append(seconds))
        assert [event.offset async for event in reader] == ["01", "02"]
    assert pauses == [7, 9, 3]


@pytest.mark.parametrize(("said", "seconds"), [("", 0), ("soon", 0), ("-3", 0), ("5", 5), ("99999", 3600)])
def test_retry_after(said: str, seconds: float) -> None:
    assert retry_after({"retry-after": said}) == seconds


async def test_an_interruption_for_good_is_raised() -> None:
    said = b'event: interrupted\ndata:{"code":"store_error","message":"the disk is gone","retry":false}\n\n'
    async with Scripted(events(ONE + said)) as server, Client(server.url) as client:
        reader = client.follow("s")
        assert (await anext(reader)).offset == "01"
        with pytest.raises(StoreError, match="the disk is gone"):
            await anext(reader)
        assert not reader.over


async def test_messages_may_be_called_like_the_servers_own_events() -> None:
    body = b"id: 01\nevent: end\ndata: chapter\n\nid: 02\nevent: interrupted\ndata: by a knock\n\n" + END
    async with Scripted(events(body)) as server, Client(server.url) as client:
        said = [event async for event in client.follow("s", "00")]
    assert said == [Event(b"chapter", "01", "end"), Event(b"by a knock", "02", "interrupted")]


async def test_a_run_that_ends_its_last_connection_early_is_asked_for_again() -> None:
    terminal = b'id: 02\ndata:{"type":"RUN_FINISHED","outcome":{"type":"cancelled"}}\n\n'
    cut = Scripted(events(ONE, "x-run-id: r"), events(terminal, "x-run-id: r"))
    async with cut as server, Client(server.url, retry=AT_ONCE) as client:
        reader = client.follow(f"{server.url}/chat")
        assert [event.offset async for event in reader] == ["01", "02"]
        assert (reader.over, reader.outcome) == (True, "cancelled")


async def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    async with Client(url) as client:
        with pytest.raises(Unreachable, match=f"nothing answers at {url}"):
            await client.append("s", 1)


async def test_an_error_of_the_listener_ends_the_reading() -> None:
    def give_up(error: HeadwaterError, _: float) -> None:
        raise error

    transport = httpx.MockTransport(lambda _: httpx.Response(502, text="<html>bad gateway</html>"))
    async with Client("http://headwater.test", transport=transport) as client:
        with pytest.raises(HeadwaterError, match="the server answered 502"):
            await anext(client.follow("s", on_lost=give_up))


@pytest.mark.parametrize("url", ["127.0.0.1:4437", "ftp://host", "http://", "http://h:port"])
async def test_what_is_no_server_is_said(url: str) -> None:
    with pytest.raises(BadRequest, match="URL"):
        Client(url)


def kinds(kind: type[HeadwaterError]) -> Iterator[type[HeadwaterError]]:
    yield kind
    for narrower in kind.__subclasses__():
        if narrower.__module__ == "headwater.errors":
            yield from kinds(narrower)


@pytest.mark.parametrize("kind", [kind for kind in kinds(HeadwaterError) if kind is not errors.MissingExtra])
def test_every_error_of_a_server_is_itself_again(kind: type[HeadwaterError]) -> None:
    response = answer(kind("what it says", expected=3, offset="7"))
    again = error_of(response.status_code, bytes(response.body))
    assert type(again) is kind
    told = kind("what it says").said
    assert told == "what it says" or issubclass(kind, errors.StoreError)
    assert (str(again), again.detail) == (told, {"expected": 3, "offset": "7"})


@pytest.mark.parametrize(
    ("status", "kind"), [(401, "Unauthorized"), (404, "NotFound"), (418, "BadRequest"), (502, "HeadwaterError")]
)
@pytest.mark.parametrize("body", [b"", b"<html>", b"[1]", b'{"error":3}', b'{"error":{"code":[],"message":7}}'])
def test_answers_of_others_are_classed_by_status(status: int, kind: str, body: bytes) -> None:
    error = error_of(status, body)
    assert (type(error).__name__, str(error)) == (kind, f"the server answered {status}")
