"""Real processes for tests: `headwater` servers that can be killed and come back, `headwater tail`, and Chromium."""

import asyncio
import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import httpx
from playwright.async_api import Browser, async_playwright

HEADWATER = str(Path(sys.executable).with_name("headwater"))
START_SECONDS = 60
QUIET: tuple[str, ...] = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
)
QUIET += ("--disable-component-update", "--disable-sync")

# Nothing of the developer's own may change what is tested: no remote model, no other store or server.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "HEADWATER_"))} | {
    "PYTHONUNBUFFERED": "1"
}


class Server:
    """`headwater serve` or `headwater demo` on a file and a port of its own, which stay the same over restarts."""

    def __init__(self, command: str, folder: Path, *options: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self._command = [HEADWATER, command, "--store", f"sqlite:///{folder}/streams.db", "--port", str(self.port)]
        self._command += options
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when the server says that it is ready."""
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log, env=ENVIRONMENT)
        give_up = time.monotonic() + START_SECONDS
        while not self._ready():
            assert self.running, f"the server did not start:\n{self.log.read_text()}"
            assert time.monotonic() < give_up, f"the server is not ready:\n{self.log.read_text()}"
            time.sleep(0.02)

    def _ready(self) -> bool:
        asking = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            asking.request("GET", "/readyz")
            return asking.getresponse().status == 200
        except OSError:
            return False
        finally:
            asking.close()

    def kill(self) -> None:
        """As a crash would: the process has no say in it."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    async def restart(self) -> None:
        await asyncio.to_thread(self.start)

    def stop(self) -> tuple[int, float]:
        """SIGTERM; the exit status, and the seconds until the process was gone."""
        assert self._process is not None
        asked = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(START_SECONDS), time.monotonic() - asked

    def rss(self) -> int:
        """Bytes of memory that the process holds now."""
        fields = Path(f"/proc/{self.pid}/status").read_text().split()
        return int(fields[fields.index("VmRSS:") + 1]) * 1024


@contextmanager
def serving(command: str, folder: Path, *options: str) -> Iterator[Server]:
    """A started server, killed in the end."""
    server = Server(command, folder, *options)
    try:
        server.start()
        yield server
    finally:
        if server.running:
            server.kill()


@asynccontextmanager
async def process(*command: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A program that writes to us and that does not outlive the block."""
    pipe = asyncio.subprocess.PIPE
    running = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe, env=ENVIRONMENT)
    try:
        yield running
    finally:
        with contextlib.suppress(ProcessLookupError):
            running.kill()
        await running.communicate()


async def start_run(server: Server, text: str) -> str:
    """The id of a new run of the demo's agent."""
    async with httpx.AsyncClient() as http_client:
        answer = await http_client.post(f"{server.url}/v1/runs", json={"agent": "assistant", "input": text})
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])


async def read_log(server: Server, stream: str) -> bytes:
    """What the stream holds: its JSON messages as they are, with commas between, read page by page (catch-up)."""
    pages, offset = [], "-1"
    async with httpx.AsyncClient() as http_client:
        while True:
            answer = await http_client.get(f"{server.url}/v1/stream/{stream}", params={"offset": offset})
            assert answer.status_code == 200, answer.text
            pages.append(answer.content[1:-1])
            offset = answer.headers["stream-next-offset"]
            if "stream-up-to-date" in answer.headers:
                return b",".join(filter(None, pages))


async def ended_run(server: Server, run_id: str) -> dict[str, Any]:
    """The record of the run, once it has ended."""
    async with httpx.AsyncClient(timeout=120) as http_client:
        await http_client.get(f"{server.url}/v1/runs/{run_id}/events")
        record: dict[str, Any] = (await http_client.get(f"{server.url}/v1/runs/{run_id}")).json()
        return record


@asynccontextmanager
async def chromium(path: str) -> AsyncIterator[Browser]:
    """The real browser, headless, talking to nobody but whom a page names."""
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=path, args=list(QUIET))
        try:
            yield browser
        finally:
            await browser.close()
