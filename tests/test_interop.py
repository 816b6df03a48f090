"""Clients of others against `headwater serve`: the official TypeScript client, and TanStack AI on top of it."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from real_server import process, serving

JS = Path(__file__).parent / "js"
STREAMS = ("json", "text", "binary", "escaped", "second base")
READINGS = (
    ("sse", "while it is written"),
    ("long-poll", "while it is written"),
    ("catch-up", "afterwards"),
    ("sse", "afterwards"),
    ("long-poll", "afterwards"),
)

pytestmark = pytest.mark.server

Program = Callable[[str, str], str]


async def reported(program: Program, script: str, url: str) -> list[dict[str, Any]]:
    """What the script says of the server at `url`, a line of JSON each; it must end well."""
    node = program("node", "sudo apt-get install nodejs npm")
    if not (JS / "node_modules/@durable-streams/client").exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"the clients are not installed. To run this test: cd {JS} && npm ci")
    async with asyncio.timeout(60), process(node, str(JS / script), url) as running:
        said, complained = await running.communicate()
    assert running.returncode == 0, f"after {said.decode()}:\n{complained.decode()}"
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.parametrize("store", ["memory:", "sqlite:"])
async def test_the_typescript_client_writes_500_messages_and_reads_them_in_every_mode(
    store: str, tmp_path: Path, program: Program
) -> None:
    url = "memory:" if store == "memory:" else f"sqlite:///{tmp_path}/streams.db"
    with serving("serve", tmp_path, "--store", url) as server:
        readers = await reported(program, "interop.mjs", server.url)
    read = [(one["stream"], one["mode"], one["when"]) for one in readers]
    assert sorted(read) == sorted((stream, *reading) for stream in STREAMS for reading in READINGS)


async def test_a_chat_session_of_tanstack_ai_is_followed_by_two_tabs(tmp_path: Path, program: Program) -> None:
    with serving("serve", tmp_path) as server:
        said = await reported(program, "tanstack.mjs", server.url)
    assert [one.get("tab") or one["page"] for one in said] == ["complete"] * 3


@pytest.mark.parametrize("prefix", ["runs", "chats"])
async def test_the_requests_of_tanstack_ais_own_adapter(prefix: str, tmp_path: Path) -> None:
    """What `durableStream()` of @tanstack/ai-durable-stream sends, and what it throws for; its default prefix is runs.

    The package is not on npm (404 in November 2026), so its code itself cannot be pinned here.
    """
    body = {"content-type": "application/json"}
    path = f"/streams/{prefix}%2F0f6b9c1e"
    with serving("serve", tmp_path) as server:
        async with httpx.AsyncClient(base_url=server.url) as http_client:
            written = [await http_client.put(path, headers=body)]
            for seq, records in enumerate(([record(1)], [record(2), record(3)])):
                producer = {"producer-id": "a", "producer-epoch": "0", "producer-seq": str(seq)}
                written.append(await http_client.post(path, headers=body | producer, json=records))
            async with http_client.stream("GET", path, params={"offset": "-1", "live": "sse"}) as reading:
                written.append(await http_client.post(path, headers={"stream-closed": "true"}))
                window = (await reading.aread()).decode()
    for answer in written:
        assert answer.is_success, answer.text
        assert answer.headers["stream-next-offset"]
    assert written[-1].headers["stream-closed"] == "true"
    events = [event(block) for block in window.split("\n\n") if block]
    data = [value for name, value in events if name == "data"]
    controls = [value for name, value in events if name == "control"]
    assert len(data) + len(controls) == len(events), "it throws for an event of another name"
    assert [one["seq"] for value in data for one in value] == [1, 2, 3]
    assert events[-1] == ("control", controls[-1])
    assert controls[-1]["streamClosed"] is True
    assert all(value["streamNextOffset"] for value in controls)
    assert all(value["streamCursor"] for value in controls if not value.get("streamClosed"))


def record(seq: int) -> dict[str, Any]:
    return {"v": 1, "seq": seq, "chunk": {"type": "TEXT_MESSAGE_CONTENT", "delta": "a"}}


def event(block: str) -> tuple[str, Any]:
    """The name and the value of one SSE event."""
    fields = [line.partition(":") for line in block.split("\n") if not line.startswith(":")]
    (name,) = (value for field, _, value in fields if field == "event")
    return name.strip(), json.loads("\n".join(value for field, _, value in fields if field == "data"))
