"""The same application on every ASGI server that people run: what each of them gives (docs/servers.md says it)."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest

from headwater.client import Client
from headwater.wire.sse import Decoder

PROGRAM = """
import asyncio
from fastapi import FastAPI, Request
from headwater import Streams
from headwater.delivery import Delivery, Policy
from headwater.http import App, StreamResponse, lifespan

streams = Streams("memory:")
delivery = Delivery(streams, Policy(heartbeat_seconds=1))
app = FastAPI(lifespan=lifespan(streams))
app.mount("/live", App(streams, delivery=delivery))

async def words(number, fail):
    for n in range(number):
        yield f"word {n};"
        await asyncio.sleep(0.02)
    if fail:
        raise ValueError

@app.get("/events/{number}")
async def events(number: int, request: Request):
    return StreamResponse(words(number, False), request)

@app.get("/text/{number}")
async def text(number: int, request: Request, fail: bool = False):
    return StreamResponse(words(number, fail), request, media_type="text/plain")

@app.get("/state")
async def state(request: Request):
    return {"readers": delivery.readers, "direct": "headwater.line" in request.scope.get("extensions", {})}
"""
WORKER = """
from uvicorn_worker import UvicornWorker

class HeadwaterWorker(UvicornWorker):
    CONFIG_KWARGS = {"http": "headwater.server:Protocol"}
"""
OURS = "--http headwater.server:Protocol"
SERVERS = {
    "uvicorn with our protocol": f"uvicorn --port PORT {OURS} program:app",
    "on asyncio": f"uvicorn --port PORT {OURS} --loop asyncio program:app",
    "on a unix socket": f"uvicorn --uds ./socket {OURS} program:app",
    "gunicorn": "gunicorn -b 127.0.0.1:PORT -k worker.HeadwaterWorker program:app",
    "uvicorn": "uvicorn --port PORT program:app",
    "h11": "uvicorn --port PORT --http h11 program:app",
    "granian": "granian --interface asgi --port PORT program:app",
    "hypercorn": "hypercorn -b 127.0.0.1:PORT program:app",
    "hypercorn in one process": "hypercorn -w 0 -b 127.0.0.1:PORT program:app",
}
DIRECT = ("uvicorn with our protocol", "on asyncio", "on a unix socket", "gunicorn")
SILENT_ENDS = ("hypercorn",)
"""Servers whose workers hear of their end in a way that an application cannot: readers are cut, and come back."""

pytestmark = pytest.mark.server


class Site:
    def __init__(self, kind: str, process: asyncio.subprocess.Process, client: httpx.AsyncClient, log: Path) -> None:
        self.kind, self.process, self.client, self._log = kind, process, client, log

    @property
    def log(self) -> str:
        return self._log.read_text()

    async def readers(self) -> int:
        return int((await self.client.get("/state")).json()["readers"])

    async def until_readers(self, number: int) -> None:
        async with asyncio.timeout(10):
            while await self.readers() != number:
                await asyncio.sleep(0.02)

    async def put(self, name: str) -> None:
        made = await self.client.put(f"/live/v1/stream/{name}", headers={"content-type": "text/plain"})
        assert made.status_code == 201


@asynccontextmanager
async def running(kind: str, folder: Path, http2: bool = False) -> AsyncIterator[Site]:
    (folder / "program.py").write_text(PROGRAM)
    (folder / "worker.py").write_text(WORKER)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    name, *arguments = SERVERS[kind].replace("PORT", str(port)).split()
    log = folder / "log"
    with log.open("wb") as out:
        process = await asyncio.create_subprocess_exec(
            str(Path(sys.executable).with_name(name)), *arguments, cwd=folder, stdout=out, stderr=out,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])},
        )  # fmt: skip
    uds = str(folder / "socket") if "uds" in SERVERS[kind] else None
    transport = httpx.AsyncHTTPTransport(uds=uds, http1=not http2, http2=http2)
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", transport=transport, timeout=10) as client:
            async with asyncio.timeout(30):
                while True:
                    with contextlib.suppress(httpx.TransportError):
                        if (await client.get("/state")).status_code == 200:
                            break
                    assert process.returncode is None, log.read_text()
                    await asyncio.sleep(0.05)
            yield Site(kind, process, client, log)
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(15):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
            raise


@pytest.mark.parametrize("kind", SERVERS)
async def test_every_server_delivers_resumes_beats_and_cuts(kind: str, tmp_path: Path) -> None:
    async with running(kind, tmp_path) as site:
        client = site.client
        assert (await client.get("/state")).json()["direct"] == (kind in DIRECT)
        whole = Decoder().feed((await client.get("/events/3")).content)
        assert [event.data for event in whole] == ["word 0;", "word 1;", "word 2;"]
        rest = await client.get("/events/3", headers={"last-event-id": whole[0].id})
        assert [event.data for event in Decoder().feed(rest.content)] == ["word 1;", "word 2;"]
        assert (await client.get("/text/3")).text == "word 0;word 1;word 2;"
        with pytest.raises(httpx.RemoteProtocolError):
            await client.get("/text/2?fail=1")
        await site.put("s")
        async with client.stream("GET", "/live/v1/stream/s?format=sse") as response:
            chunks = response.aiter_text()
            said = ""
            while ": hb\n" not in said:
                said += await anext(chunks)
            assert await site.readers() == 1
            await client.post("/live/v1/stream/s", content="x", headers={"content-type": "text/plain"})
            while "data:x" not in said:
                said += await anext(chunks)
        await site.until_readers(0)
        if kind != "granian":
            assert "outlet.Cut" not in site.log, "what was meant is no failure"


@pytest.mark.parametrize("kind", SERVERS)
async def test_every_server_ends_with_readers_open(kind: str, tmp_path: Path) -> None:
    async with running(kind, tmp_path) as site:
        await site.put("s")
        async with site.client.stream("GET", "/live/v1/stream/s?format=sse") as response:
            chunks = response.aiter_text()
            said = await anext(chunks)
            await site.until_readers(1)
            began = time.monotonic()
            site.process.send_signal(signal.SIGTERM)
            try:
                async for text in chunks:
                    said += text
                cut = False
            except httpx.RemoteProtocolError:
                cut = True
            async with asyncio.timeout(10):
                await site.process.wait()
        assert cut == (kind in SILENT_ENDS)
        if not cut:
            assert json.loads(said.rpartition("data:")[2].strip())["code"] == "draining"
        assert time.monotonic() - began < (8 if cut else 4)


@pytest.mark.parametrize(("kind", "cuts"), [("granian", True), ("hypercorn", False)])
async def test_over_http_2(kind: str, cuts: bool, tmp_path: Path) -> None:
    """hypercorn 0.18 does not reset a stream whose application has failed: the client is left waiting."""
    async with running(kind, tmp_path, http2=True) as site:
        answer = await site.client.get("/events/3")
        assert answer.http_version == "HTTP/2"
        assert [event.data for event in Decoder().feed(answer.content)] == ["word 0;", "word 1;", "word 2;"]
        with pytest.raises(httpx.RemoteProtocolError if cuts else httpx.ReadTimeout):
            await site.client.get("/text/2?fail=1", timeout=1.5)


@pytest.mark.parametrize("kind", ["granian", "hypercorn", "uvicorn with our protocol"])
async def test_our_client_follows(kind: str, tmp_path: Path, program: Callable[[str, str], str]) -> None:
    async with running(kind, tmp_path) as site:
        await site.put("s")
        curl = program("curl", "apt-get install curl")
        url = f"{site.client.base_url}/live/v1/stream/s"
        async with Client(str(site.client.base_url).rstrip("/") + "/live") as client:

            async def write() -> None:
                for n in range(50):
                    end = {"stream-closed": "true"} if n == 49 else {}
                    headers = {"content-type": "text/plain", **end}
                    await site.client.post("/live/v1/stream/s", content=f"{n};", headers=headers)

            writing = asyncio.create_task(write())
            curled = await asyncio.create_subprocess_exec(
                curl, "-sN", "-m", "20", f"{url}?format=text", stdout=asyncio.subprocess.PIPE
            )
            got = b"".join([message.data async for message in client.follow("s")])
            await writing
            out, _ = await curled.communicate()
        wanted = "".join(f"{n};" for n in range(50)).encode()
        assert (got, out, curled.returncode) == (wanted, wanted, 0)
