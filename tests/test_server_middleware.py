"""server/line.py under people's middleware: what wraps `send` gets all of the body or none, and the client the same
bytes either way; a real uvicorn, real connections."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI, Request
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import Response

from headwater import Streams
from headwater.http import App, follow, lifespan
from headwater.server.line import OpenLine
from live_server import live

PROTOCOL = "headwater.server:Protocol"
Message = Any
Send = Callable[[Message], Awaitable[None]]


class Wrapping:
    """Middleware in plain ASGI: `wrapped` makes the `send` of a request."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        async with self.around(scope):
            await self.app(scope, receive, self.wrapped(scope, send))

    @asynccontextmanager
    async def around(self, scope: Any) -> AsyncIterator[None]:
        yield

    def wrapped(self, scope: Any, send: Send) -> Send:
        return send


class Measured(Wrapping):
    """Notes how long a request took, as metrics and access logs do."""

    @asynccontextmanager
    async def around(self, scope: Any) -> AsyncIterator[None]:
        began = asyncio.get_running_loop().time()
        try:
            yield
        finally:
            scope["app"].state.noted["took"] = asyncio.get_running_loop().time() - began


class Headed(Measured):
    """Looks at the head, and notes the status."""

    def wrapped(self, scope: Any, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.start":
                scope["app"].state.noted["status"] = message["status"]
                message = {**message, "headers": [*message["headers"], (b"x-headed", b"1")]}
            await send(message)

        return wrapped


class Traced(Wrapping):
    """As Sentry does it: one that catches what comes, and one closure more around send."""

    @asynccontextmanager
    async def around(self, scope: Any) -> AsyncIterator[None]:
        try:
            yield
        except Exception as error:
            scope["app"].state.noted["caught"] = error
            raise

    def wrapped(self, scope: Any, send: Send) -> Send:
        async def wrapped(message: Message) -> Any:
            if message.get("type") == "http.response.start" and "status" in message:
                scope["app"].state.noted["status"] = message["status"]
            return await send(message)

        return wrapped


class Counting(Wrapping):
    """Adds up bytes, changes nothing."""

    def wrapped(self, scope: Any, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.body":
                scope["app"].state.noted["bytes"] = scope["app"].state.noted.get("bytes", 0) + len(message["body"])
            await send(message)

        return wrapped


class Ending(Wrapping):
    """Waits for the last part, as OpenTelemetry does to end its span."""

    def wrapped(self, scope: Any, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                scope["app"].state.noted["ended"] = True

        return wrapped


class Matching(Wrapping):
    """The same with a pattern, which never calls __getitem__."""

    def wrapped(self, scope: Any, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            match message:
                case {"type": "http.response.body", "body": body}:
                    scope["app"].state.noted["bytes"] = scope["app"].state.noted.get("bytes", 0) + len(body)
            await send(message)

        return wrapped


class Copying(Wrapping):
    """Sends a copy of each message, with the same body in it."""

    def wrapped(self, scope: Any, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            await send(dict(message))

        return wrapped


class Shouting(Wrapping):
    """Rewrites the body; only parts that have letters."""

    def wrapped(self, scope: Any, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            if message["type"] == "http.response.body":
                message["body"] = message["body"].upper()
            await send(message)

        return wrapped


class Delaying(Wrapping):
    """Another task sends."""

    @asynccontextmanager
    async def around(self, scope: Any) -> AsyncIterator[None]:
        queue: asyncio.Queue[tuple[Send, Message]] = asyncio.Queue()

        async def work() -> None:
            while True:
                send, message = await queue.get()
                await send(message)
                queue.task_done()

        scope["queue"] = queue
        worker = asyncio.create_task(work())
        try:
            yield
            await queue.join()
        finally:
            worker.cancel()
            await asyncio.wait([worker])

    def wrapped(self, scope: Any, send: Send) -> Send:
        async def wrapped(message: Message) -> None:
            scope["queue"].put_nowait((send, message))

        return wrapped


class Joining(Wrapping):
    """Holds each part back until the next one has come."""

    def wrapped(self, scope: Any, send: Send) -> Send:
        held: list[Message] = []

        async def wrapped(message: Message) -> None:
            held.append(message)
            if len(held) == 2 or message["type"] == "http.response.start" or not message.get("more_body"):
                for one in held:
                    await send(one)
                held.clear()

        return wrapped


class Hearing(Wrapping):
    """Has receive for itself, and cancels the application when the client leaves."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        queue: asyncio.Queue[Message] = asyncio.Queue()

        async def hear() -> None:
            while (message := await receive())["type"] != "http.disconnect":
                queue.put_nowait(message)
            serving.cancel()

        serving = asyncio.create_task(self.app(scope, queue.get, send))
        hearing = asyncio.create_task(hear())
        await asyncio.wait([serving])
        hearing.cancel()
        await asyncio.wait([hearing])
        if not serving.cancelled():
            serving.result()


class Passing(BaseHTTPMiddleware):
    async def dispatch(self, request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-passed"] = "1"
        return response


CORS: Any = (CORSMiddleware, {"allow_origins": ["*"], "allow_credentials": True})
GZIP: Any = (GZipMiddleware, {"minimum_size": 1})
LOOK_AT_THE_HEAD: list[Any] = [(), (Headed,), (CORS,), (Traced,), (Measured,), (Hearing,), (CORS, Headed, Traced)]
LOOK_AT_THE_BODY: list[Any] = [
    (Counting,), (Matching,), (Ending,), (Copying,), (Shouting,), (Delaying,), (Joining,), (Passing,),
    (Headed, Counting, CORS), (Hearing, Passing),
]  # fmt: skip


class Case:
    def __init__(self, app: FastAPI, streams: Streams, port: int) -> None:
        self.streams, self._port = streams, port
        self.noted: dict[str, Any] = app.state.noted

    async def whole(self, path: str, messages: int, *, accept_encoding: str = "identity") -> tuple[bytes, bytes]:
        """Head and body of a response that is followed while messages come, one that ends by itself."""
        await self.streams.create("s", b"word one;", content_type="text/plain")
        async with asyncio.timeout(10):
            return await self._whole(path, messages, accept_encoding)

    async def _whole(self, path: str, messages: int, accept_encoding: str) -> tuple[bytes, bytes]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            head = f"GET {path} HTTP/1.1\r\nhost: localhost:{self._port}\r\norigin: https://page.example\r\n"
            writer.write(f"{head}accept-encoding: {accept_encoding}\r\n\r\n".encode())
            answer, body = (await reader.readuntil(b"\r\n\r\n")), b""
            for n in range(messages):
                await self.streams.append("s", f"word {n};".encode())
                if n % 3:  # else two go together
                    await asyncio.sleep(0)
            await self.streams.append("s", b"the end", close=True)
            while size := int(await reader.readline(), 16):
                body += (await reader.readexactly(size + 2))[:-2]
            assert await reader.readline() == b"\r\n"
            self.counted = self.noted.get("bytes", len(body))
            writer.write(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")  # the connection is as good as before
            assert (await reader.readline()).startswith(b"HTTP/1.1 200")
            return answer, body
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()


@asynccontextmanager
async def case(middleware: Any, **options: Any) -> AsyncIterator[Case]:
    streams = Streams("memory:")
    streams._commits._drawn = lambda: 0  # type: ignore[method-assign]
    app = FastAPI(lifespan=lifespan(streams))
    app.state.noted = {}

    @app.get("/follow")
    async def following(request: Request) -> Response:
        return follow(streams, "s", request)

    @app.get("/healthz")
    async def healthy() -> str:
        return "ok"

    app.mount("/live", App(streams))
    for kind in middleware:
        app.add_middleware(kind[0], **kind[1]) if isinstance(kind, tuple) else app.add_middleware(kind)
    async with live(app, **options) as client:
        yield Case(app, streams, client.base_url.port or 0)


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether lines were taken, when they were asked for."""
    asked: list[bool] = []
    take = OpenLine.take

    def spied(self: OpenLine, follower: Any) -> bool:
        asked.append(take(self, follower))
        return asked[-1]

    monkeypatch.setattr(OpenLine, "take", spied)
    return asked


PATHS = ["/follow", "/live/v1/stream/s?offset=-1&live=sse", "/live/v1/stream/s?format=text"]


def names(middleware: Any) -> str:
    return ", ".join(kind[0].__name__ if isinstance(kind, tuple) else kind.__name__ for kind in middleware) or "nothing"


def bytes_of(body: bytes, path: str) -> bytes:
    """What says the same however it was cut into events."""
    if "text" in path:
        return body
    lines = [line for line in body.splitlines() if line.startswith(b"data:") and not line.startswith(b"data:{")]
    return b"".join(line.removeprefix(b"data:") for line in lines)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("middleware", LOOK_AT_THE_HEAD, ids=names)
async def test_what_looks_at_the_head_only_does_not_switch_it_off(
    middleware: Any, path: str, taken: list[bool]
) -> None:
    async with case(middleware, http=PROTOCOL) as direct:
        head, body = await direct.whole(path, 20)
        noted = direct.noted
    assert any(taken)
    async with case(middleware) as portable:
        other_head, other = await portable.whole(path, 20)
    assert bytes_of(body, path) == bytes_of(other, path)
    assert fields(head) == fields(other_head)
    assert noted.keys() == portable.noted.keys()
    assert noted.get("status", 200) == 200


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("middleware", LOOK_AT_THE_BODY, ids=names)
async def test_what_looks_at_the_body_gets_all_of_it(middleware: Any, path: str, taken: list[bool]) -> None:
    async with case(middleware, http=PROTOCOL) as direct:
        head, body = await direct.whole(path, 20)
        noted = direct.noted
    assert not any(taken)
    async with case(middleware) as portable:
        other_head, other = await portable.whole(path, 20)
    assert bytes_of(body, path) == bytes_of(other, path)
    assert fields(head) == fields(other_head)
    assert noted.keys() == portable.noted.keys()
    assert direct.counted == len(body)


def fields(head: bytes) -> set[bytes]:
    return {line.partition(b":")[0] for line in head.splitlines()}


@pytest.mark.parametrize(("path", "wanted"), [("/follow", True), ("/live/v1/stream/s?format=text", False)])
async def test_compression_has_what_it_compresses(path: str, wanted: bool, taken: list[bool]) -> None:
    """Server-sent events it leaves alone."""
    async with case((GZIP,), http=PROTOCOL) as direct:
        head, body = await direct.whole(path, 20, accept_encoding="gzip")
    assert any(taken) == wanted
    assert (b"content-encoding: gzip" in head) == (body[:2] == b"\x1f\x8b") == (not wanted)


@pytest.mark.parametrize("http", [PROTOCOL, "httptools", "h11"])
async def test_what_measures_a_request_measures_all_of_it(http: str) -> None:
    """Nothing that wraps an application sees it return before the response has ended."""
    async with case((Headed,), http=http) as measured:
        await measured.streams.create("s", content_type="text/plain")
        reader, writer = await asyncio.open_connection("127.0.0.1", measured._port)
        writer.write(b"GET /follow HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        await reader.readuntil(b": open\n")
        await asyncio.sleep(0.2)
        assert "took" not in measured.noted
        await measured.streams.append("s", b"x", close=True)
        await reader.read()
        assert 0.2 < measured.noted["took"] < 3
        writer.close()


@pytest.mark.parametrize("leaves", [True, False])
async def test_what_hears_of_a_client_that_left_hears_it_once_it_has(leaves: bool, taken: list[bool]) -> None:
    """Also where the body of the request goes on while the response is on its way."""
    async with case((Hearing,), http=PROTOCOL) as hearing:
        await hearing.streams.create("s", content_type="text/plain")
        reader, writer = await asyncio.open_connection("127.0.0.1", hearing._port)
        writer.write(b"GET /follow HTTP/1.1\r\nhost: localhost\r\ncontent-length: 10\r\n\r\n12345")
        await reader.readuntil(b": open\n")
        async with asyncio.timeout(5):
            while not any(taken):
                await asyncio.sleep(0.005)
        writer.write(b"67890")
        await hearing.streams.append("s", b"x")
        await reader.readuntil(b"data:x")
        await asyncio.sleep(0.02)
        assert hearing.streams.statistics()["readers"] == 1
        if not leaves:
            await hearing.streams.append("s", b"y", close=True)
            assert b"data:y" in await reader.readuntil(b"0\r\n\r\n")
        writer.close()
        async with asyncio.timeout(5):
            while hearing.streams.statistics()["readers"]:
                await asyncio.sleep(0.005)


@pytest.mark.parametrize("middleware", [(), (Headed,)], ids=names)
async def test_a_client_that_leaves_is_no_failure_of_the_application(
    middleware: Any, caplog: pytest.LogCaptureFixture, taken: list[bool]
) -> None:
    async with case(middleware, http=PROTOCOL) as followed:
        await followed.streams.create("s", content_type="text/plain")
        reader, writer = await asyncio.open_connection("127.0.0.1", followed._port)
        writer.write(b"GET /follow HTTP/1.1\r\nhost: localhost\r\n\r\n")
        await reader.readuntil(b": open\n")
        async with asyncio.timeout(5):
            while not any(taken):
                await asyncio.sleep(0.005)
            writer.close()
            while followed.streams.statistics()["readers"]:
                await asyncio.sleep(0.005)
    assert [record.message for record in caplog.records if record.name == "uvicorn.error" and record.levelno > 20] == []
