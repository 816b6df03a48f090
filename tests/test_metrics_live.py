"""`headwater serve` under load, scraped over a port of its own: real readers, and what promtool has to say."""

import asyncio
import json
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from real_server import Server
from scraped import Scraped

READERS, APPENDS = 50, 100


@pytest.mark.server
async def test_a_scrape_under_load_is_sound_and_the_log_says_who_came(
    tmp_path: Path, program: Callable[[str, str], str]
) -> None:
    promtool = program("promtool", "sudo apt-get install prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = Server("serve", tmp_path, "--metrics-port", str(port), "--log-format", "json")
    await server.restart()
    try:
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            await client.put("/v1/stream/load", headers={"content-type": "text/plain"})
            readers = [asyncio.create_task(_read(client)) for _ in range(READERS)]
            numbers = f"http://127.0.0.1:{port}/metrics"
            while Scraped((await client.get(numbers)).text)["headwater_readers"] < READERS:
                await asyncio.sleep(0.05)
            for number in range(APPENDS):
                body = f"message {number}\n"
                await client.post("/v1/stream/load", headers={"content-type": "text/plain"}, content=body)
            under_load = await client.get(numbers)
            await client.post("/v1/stream/load", headers={"stream-closed": "true"})
            assert await asyncio.gather(*readers) == [APPENDS] * READERS
            after = Scraped((await client.get(numbers)).text)
            openmetrics = await client.get(numbers, headers={"accept": "application/openmetrics-text; version=1.0.0"})
            assert (await client.get("/metrics")).status_code == 404
    finally:
        await asyncio.to_thread(server.stop)
    done = subprocess.run([promtool, "check", "metrics"], input=under_load.content, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert Scraped(openmetrics.text, as_openmetrics=True)["headwater_disconnects_total"] == READERS
    assert after["headwater_events_delivered_total", "transport=sse"] == APPENDS * READERS
    assert after["headwater_delivery_seconds_count", "transport=sse"] > APPENDS * READERS / 2, "some share a write"
    assert after["headwater_disconnects_total", "transport=sse", "reason=ended"] == READERS
    assert after["headwater_readers"] == 0
    lines = [json.loads(line) for line in server.log.read_text().splitlines() if line.startswith("{")]
    ended = [line for line in lines if line.get("event") == "reader ended"]
    assert len(ended) == READERS
    assert {(line["reason"], line["events"]) for line in ended} == {("ended", APPENDS)}
    assert len({line["bytes"] for line in ended}) >= 1
    assert "key=hidden" not in server.log.read_text()


async def _read(client: httpx.AsyncClient) -> int:
    """How many messages came."""
    async with client.stream("GET", "/v1/stream/load?format=sse&key=hidden") as response:
        return sum([line.startswith(("data: message", "data:message")) async for line in response.aiter_lines()])
