"""The README's example, as printed: a FastAPI application, the real SDK, a real model, a real server."""

import ast
import asyncio
import inspect
import os
import re
import socket
import sys
from pathlib import Path

import httpx
import pytest

from headwater.errors import MissingExtra
from headwater.streams import Streams
from headwater.wire.sse import Decoder
from test_client import serving

README = Path(__file__).parent.parent / "README.md"


def example(name: str = "example") -> str:
    found = re.search(rf"<!-- {name}: [^\n]*-->\n```python\n(.*?)```", README.read_text(), re.DOTALL)
    assert found, f"the README's {name} is gone"
    return found[1]


def test_the_example_is_short():
    lines = [line for line in example().splitlines() if line.strip()]
    assert len(lines) <= 20


def test_files_named_in_the_tour_exist():
    tour = README.read_text().split("## Reading the code")[1].split("## Status")[0]
    for name in re.findall(r"`([a-z_/*.]+(?:\.py|/))`", tour):
        root = README.parent if name.startswith(("tests/", "src/")) else README.parent / "src" / "headwater"
        assert list(root.glob(name.rstrip("/"))), f"{name} is named in the README and does not exist"


async def test_the_client_runs_as_printed_and_again() -> None:
    """What was written before is there the second time: nothing is refused, nothing doubled."""
    async with Streams("memory:") as streams, serving(streams) as port:
        followed = example("followed").replace("4437", str(port))
        synchronous = example("synchronous").replace("4437", str(port))
        for times in (1, 2):
            assert await printed(followed, 2 * times) == [{"n": 1}, {"n": 2}] * times
            await asyncio.to_thread(exec, synchronous, {})
            assert [message.data for message in (await streams.read("jobs/7")).messages] == [b'{"done":3}'] * times


async def printed(source: str, count: int) -> list[object]:
    """The last thing of each line that it prints, until there are so many; then it is stopped, as by Ctrl-C."""
    said: asyncio.Queue[object] = asyncio.Queue()
    code = compile(source, "README.md", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert code.co_flags & inspect.CO_COROUTINE
    running = asyncio.ensure_future(eval(code, {"print": lambda *words: said.put_nowait(words[-1])}))
    lines = asyncio.ensure_future(take(said, count))
    await asyncio.wait([running, lines], return_when=asyncio.FIRST_COMPLETED)
    if not lines.done():
        lines.cancel()
        await running  # raises what went wrong
        pytest.fail("it ended although the stream goes on")
    running.cancel()
    await asyncio.wait([running])
    return lines.result()


async def take(queue: "asyncio.Queue[object]", count: int) -> list[object]:
    return [await queue.get() for _ in range(count)]


@pytest.fixture
async def model():
    """A real model behind the official client's own environment variables."""
    from headwater.demo.local_model import LocalModel

    try:
        async with LocalModel() as url:
            yield url
    except MissingExtra as missing:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(missing))


@pytest.mark.server
async def test_the_example_runs_as_printed(tmp_path, model):
    (tmp_path / "app.py").write_text(example())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "OPENAI_API_KEY": "local", "OPENAI_BASE_URL": model}
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"),
        cwd=tmp_path,
        env={**environment, "OPENAI_AGENTS_DISABLE_TRACING": "1"},
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            await reachable(client)
            asked = await client.post("/ask", params={"question": "Why is the sky blue?"})
            assert asked.status_code == 200, asked.text
            events = Decoder().feed(asked.content)
            assert '"RUN_FINISHED"' in events[-1].data
            assert sum('"TEXT_MESSAGE_CONTENT"' in event.data for event in events) > 5
            middle = events[len(events) // 2]
            url = f"/runs/{asked.headers['x-run-id']}?rollup=0"
            rest = await client.get(url, headers={"Last-Event-ID": middle.id})
            assert Decoder().feed(rest.content) == events[len(events) // 2 + 1 :]
            done = await client.get(url, headers={"Last-Event-ID": events[-1].id})
            assert done.status_code == 204
    finally:
        server.terminate()
        assert await server.wait() in (0, -15), "uvicorn did not end cleanly"


async def reachable(client: httpx.AsyncClient) -> None:
    async with asyncio.timeout(30):
        while True:
            try:
                await client.get("/openapi.json")
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
            else:
                return
