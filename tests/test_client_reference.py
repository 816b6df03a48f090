"""The same client against two servers of the protocol: the Node reference server, and ours."""

import asyncio
import json
import os
import shutil
import subprocess
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from headwater.client import Batching, Client, ConditionIgnored, OffsetExpired, Reader, SyncClient
from headwater.client.client import By
from headwater.errors import OffsetMismatch, ProducerFenced, StreamClosed, StreamDeleted, StreamExists, StreamNotFound
from real_server import ENVIRONMENT, serving

JS = Path(__file__).parent / "js"
MESSAGES = 500
BYS: tuple[By, ...] = ("auto", "durable", "sse", "long-poll")

pytestmark = pytest.mark.server


@contextmanager
def reference(node: str) -> Iterator[str]:
    """The address of a reference server; it ends with its standard input."""
    if not (JS / "node_modules/@durable-streams/server").exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"the reference server is not installed. To run this test: cd {JS} && npm ci")
    pipe, environment = subprocess.PIPE, ENVIRONMENT | {"LONG_POLL_MS": "500"}
    with subprocess.Popen([node, "reference-server.mjs"], cwd=JS, env=environment, stdin=pipe, stdout=pipe) as running:
        assert running.stdin is not None
        assert running.stdout is not None
        yield running.stdout.readline().decode().strip()
        running.stdin.close()


@pytest.fixture(scope="module", params=["reference", "headwater"])
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if request.param == "headwater":
        with serving("serve", tmp_path_factory.mktemp("streams"), "--long-poll-timeout", "0.5") as server:
            yield server.url
    else:
        with reference(shutil.which("node") or "") as address:
            yield address


@pytest.fixture(autouse=True)
def node(program: Callable[[str, str], str]) -> str:
    return program("node", "sudo apt-get install nodejs npm")


@pytest.fixture
async def client(url: str) -> AsyncIterator[Client]:
    async with Client(url) as made, asyncio.timeout(60):
        yield made


@pytest.fixture
def log() -> str:
    """The name of a stream of the test's own."""
    return f"log/{uuid.uuid4()}"


async def test_a_producer_writes_and_every_way_reads(client: Client, log: str) -> None:
    await client.create(log)
    live = {by: asyncio.create_task(followed(client, log, by)) for by in BYS}
    async with client.producer(log, batching=Batching(linger=0.001, max_messages=7)) as producer:
        for n in range(MESSAGES):
            await producer.send({"n": n, "text": "a\r\n\u2028\u00e4"})
        end = await producer.close()
    wanted = list(range(MESSAGES))
    assert {by: await task for by, task in live.items()} == dict.fromkeys(BYS, wanted)
    assert {by: await followed(client, log, by) for by in BYS} == dict.fromkeys(BYS, wanted)
    page = await client.read(log)
    assert ([json.loads(data)["n"] for data in page.messages], page.offset, page.closed) == (wanted, end, True)
    assert (await client.head(log)).closed


async def followed(client: Client, log: str, by: By) -> list[int]:
    async with client.follow(log, by=by) as reader:
        numbers = [event.json()["n"] async for event in reader]
        assert reader.over
        return numbers


@pytest.mark.parametrize("by", BYS)
async def test_reading_goes_on_in_the_middle_and_live(client: Client, log: str, by: By) -> None:
    await client.create(log)
    await client.append(log, *range(10))
    middle = (await client.read(log)).offset
    reader = client.follow(log, middle, by=by)
    for n in range(10, 30):
        await client.append(log, n)
        event = await anext(reader)
        assert event.json() == n
    resumed = client.follow(log, event.offset, by=by)
    await client.append(log, 30, close=True)
    for one in (reader, resumed):
        assert [event.json() async for event in one] == [30]


@pytest.mark.parametrize("by", BYS)
async def test_now_means_from_here_on(client: Client, log: str, by: By) -> None:
    await client.create(log, 1, 2)
    reader = client.follow(log, "now", by=by)
    waiting = asyncio.create_task(anext(reader))
    while reader.offset in (None, "now"):  # it has been told where now is
        await asyncio.sleep(0.001)
    await client.append(log, 3, close=True)
    assert (await waiting).json() == 3
    assert [event async for event in reader] == []


@pytest.mark.parametrize("by", ["durable", "sse"])
async def test_bytes_come_as_they_were_sent(client: Client, log: str, by: By) -> None:
    octets = "application/octet-stream"
    await client.create(log, content_type=octets)
    reader = client.follow(log, by=by)
    reading = asyncio.create_task(joined(reader))
    async with client.producer(log, content_type=octets) as producer:
        for n in range(256):
            await producer.send(bytes(range(n, 256)))
            if n % 64 == 0:
                await producer.flush()
        await producer.close()
    assert await reading == b"".join(bytes(range(n, 256)) for n in range(256))


async def test_text_comes_byte_for_byte(client: Client, log: str) -> None:
    pieces = [b"a\r\nb\rc\n", "\u00e4".encode()[:1], "\u00e4".encode()[1:], b"\n"]
    await client.create(log, content_type="text/plain")
    reading = asyncio.create_task(joined(client.follow(log, by="durable")))
    async with client.producer(log, content_type="text/plain", boundaries=True) as producer:
        for piece in pieces:
            await producer.send(piece)
            await producer.flush()
        await producer.close()
    assert await reading == b"".join(pieces)


async def joined(reader: Reader) -> bytes:
    return b"".join([event.data async for event in reader])


async def test_epochs_fence(client: Client, log: str) -> None:
    await client.create(log)
    former = client.producer(log, id="worker")
    await former.send(1)
    await former.flush()
    async with client.producer(log, id="worker", epoch=0, claim=True) as later:
        await later.send(2)
    assert later.epoch == 1
    await former.send(3)
    with pytest.raises(ProducerFenced):
        await former.aclose()
    assert former.unsent == [b"3"]
    assert (await client.read(log)).messages == [b"1", b"2"]


async def test_forks(client: Client, log: str) -> None:
    await client.create(log)
    await client.append(log, 1, 2)
    middle = (await client.read(log)).offset
    await client.append(log, 3)
    assert await client.fork(log, f"{log}/other", middle)
    assert await client.fork(log, f"{log}/tail")
    await client.append(f"{log}/other", 4, close=True)
    assert [event.json() async for event in client.follow(f"{log}/other")] == [1, 2, 4]
    assert (await client.read(f"{log}/tail")).messages == [b"1", b"2", b"3"]
    with pytest.raises(StreamNotFound):
        await client.fork("nothing", "x")


async def test_a_condition_is_kept_or_it_is_said_that_it_was_not(client: Client, log: str) -> None:
    await client.create(log)
    first = await client.append(log, 1)
    end = await client.append(log, 2)
    with pytest.raises((OffsetMismatch, ConditionIgnored)) as told:
        await client.append(log, 3, if_match=first)
    ignored = isinstance(told.value, ConditionIgnored)
    assert (told.value.detail["offset"] > end) is ignored
    assert len((await client.read(log)).messages) == (3 if ignored else 2)


async def test_errors_mean_the_same_on_both(client: Client, log: str) -> None:
    await client.create(log, closed=True)
    with pytest.raises(StreamClosed):
        await client.append(log, 1)
    with pytest.raises(StreamExists):
        await client.create(log, content_type="text/plain", closed=True)
    with pytest.raises(StreamNotFound):
        await anext(client.follow("nothing"))
    async with client.producer(log) as producer:
        await producer.close()  # it is closed: as wanted
    gone = f"{log}/gone"
    await client.create(gone, 1)
    await client.fork(gone, f"{log}/kept")
    offset = (await client.head(gone)).offset
    await client.delete(gone)
    with pytest.raises((StreamDeleted, OffsetExpired)):
        await anext(client.follow(gone, offset, by="durable"))


async def test_the_synchronous_producer(url: str, client: Client, log: str) -> None:
    def work() -> None:
        with SyncClient(url) as sync, sync.producer(log) as producer:
            for n in range(MESSAGES):
                producer.send({"n": n})
            producer.close()

    await client.create(log)
    await asyncio.to_thread(work)
    assert await followed(client, log, "auto") == list(range(MESSAGES))
