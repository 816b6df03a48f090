"""The idempotent producers, on asyncio and in a thread, against real servers that refuse, fence and are killed."""

import asyncio
import json
import os
import random
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from headwater.client import Batching, Client, Producer, Retention, Retry, SyncClient, Unreachable
from headwater.client.batches import Batches
from headwater.errors import (
    BadRequest,
    HeadwaterError,
    ProducerFenced,
    StreamClosed,
    StreamNotFound,
)
from headwater.streams import Streams
from headwater.testing import virtual_time
from real_server import Server, read_log, serving
from test_client import serving as serving_here

# -- on asyncio -------------------------------------------------------------------------------------------------------

Answers = Callable[[httpx.Request], httpx.Response]


@asynccontextmanager
async def answering(answer: Answers, *, clock: bool = False, **given) -> AsyncIterator[Producer]:
    """A producer whose requests are answered by a function; `clock`: it goes by the loop's."""
    retry = Retry(jitter=lambda: 0.0)
    if clock:
        retry = replace(retry, clock=asyncio.get_running_loop().time)
    async with Client("http://headwater.test", transport=httpx.MockTransport(answer), retry=retry) as client:
        yield client.producer("s", **given)


def ok(_: httpx.Request) -> httpx.Response:
    return httpx.Response(200, headers={"stream-next-offset": "1"})


async def test_many_senders_of_one_producer_share_its_batches() -> None:
    async with (
        Streams("memory:") as streams,
        serving_here(streams) as port,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        await client.create("s")
        async with client.producer("s") as producer, asyncio.TaskGroup() as senders:
            for n in range(500):
                senders.create_task(producer.send({"n": n}))
        page = await client.read("s")
        assert [json.loads(data)["n"] for data in page.messages] == list(range(500))
        assert producer.offset == page.offset
        assert not page.closed
        producers = (await streams.head("s")).producers
        assert [stamp.epoch for stamp in producers.values()] == [0]
        assert max(stamp.seq for stamp in producers.values()) < 10


async def test_closing_with_the_last_batch_is_one_step_and_may_be_said_twice() -> None:
    async with (
        Streams("memory:") as streams,
        serving_here(streams) as port,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        await client.create("s")
        async with client.producer("s") as producer:
            await producer.send(1, [2], "3")
            end = await producer.close("completed")
            assert await producer.close() == end
            with pytest.raises(BadRequest, match="closed"):
                await producer.send(4)
        page = await client.read("s")
        assert (page.messages, page.offset, page.closed) == ([b"1", b"[2]", b"3"], end, True)
        assert [stamp.seq for stamp in (await streams.head("s")).producers.values()] == [0]


@pytest.mark.parametrize(("boundaries", "count"), [(False, 1), (True, 3)])
async def test_bytes_are_joined_unless_boundaries_are_wanted(boundaries: bool, count: int) -> None:
    async with (
        Streams("memory:") as streams,
        serving_here(streams) as port,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        await client.create("s", content_type="text/plain")
        producer = client.producer("s", content_type="text/plain", boundaries=boundaries)
        async with producer:
            await producer.send("a\r", b"\xc3", b"\xa4")
        messages = (await streams.read("s")).messages
        assert (b"".join(message.data for message in messages), len(messages)) == (b"a\r\xc3\xa4", count)


async def test_a_former_self_is_fenced_and_names_what_it_did_not_send() -> None:
    async with (
        Streams("memory:") as streams,
        serving_here(streams) as port,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        await client.create("s")
        former = client.producer("s", id="worker")
        await former.send("1")
        await former.flush()
        async with client.producer("s", id="worker", claim=True) as later:
            await later.send("2")
        assert later.epoch > former.epoch
        await former.send("3", "4")
        for _ in range(2):
            with pytest.raises(ProducerFenced, match="2 messages of producer 'worker' are not confirmed"):
                await former.flush()
        with pytest.raises(ProducerFenced):
            await former.aclose()
        assert former.unsent == [b"3", b"4"]
        async with client.producer("s", id="worker", epoch=0, claim=True) as third:
            await third.send("5")
        assert third.epoch == later.epoch + 1
        with pytest.raises(ProducerFenced, match="has written in epoch"):
            async with client.producer("s", id="worker", epoch=third.epoch) as thoughtless:
                await thoughtless.send("6")
        assert [message.data for message in (await streams.read("s")).messages] == [b"1", b"2", b"5"]


async def test_an_error_is_told_by_whatever_is_called_next() -> None:
    async with (
        Streams("memory:") as streams,
        serving_here(streams) as port,
        Client(f"http://127.0.0.1:{port}") as client,
    ):
        with pytest.raises(StreamNotFound, match="1 messages"):
            async with client.producer("nothing") as producer:
                await producer.send(1)
        await streams.create("s", closed=True)
        producer = client.producer("s")
        await producer.send(1)
        with pytest.raises(StreamClosed):
            await producer.close()
        with pytest.raises(StreamClosed):
            await producer.send(2)
        with pytest.raises(StreamClosed):
            await producer.aclose()


@virtual_time
async def test_a_full_buffer_holds_the_sender_back_until_a_batch_is_confirmed() -> None:
    gate = asyncio.Event()

    async def slow(_: httpx.Request) -> httpx.Response:
        await gate.wait()
        return ok(_)

    batching = Batching(linger=0, buffer=1000, max_bytes=100)
    async with answering(slow, clock=True, batching=batching) as producer, producer:  # type: ignore[arg-type]
        sending = asyncio.create_task(producer.send(*[10**30] * 100))
        done, _ = await asyncio.wait([sending], timeout=3600)
        assert not done
        assert 0 < len(producer.unsent) <= 10
        gate.set()
        await sending


@virtual_time
async def test_a_cancelled_sender_has_given_all_of_a_message_or_none() -> None:
    async def never(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    async with answering(never, clock=True, batching=Batching(buffer=1)) as producer:  # type: ignore[arg-type]
        await producer.send("1")
        sending = asyncio.create_task(producer.send("2"))
        await asyncio.sleep(1)
        sending.cancel()
        await asyncio.wait([sending])
        assert producer.unsent == [b"1"]
        leaving = asyncio.create_task(producer.aclose())
        await asyncio.sleep(1)
        leaving.cancel()
        await asyncio.wait([leaving])
        assert leaving.cancelled()
        with pytest.raises(BadRequest, match="closed"):
            await producer.send("3")
        with pytest.raises(BadRequest, match="before all of it was confirmed"):
            await producer.flush()


@virtual_time
async def test_it_waits_as_long_as_it_was_asked_to_and_gives_up_in_the_end() -> None:
    loop, asked = asyncio.get_running_loop(), list[float]()

    def busy(_: httpx.Request) -> httpx.Response:
        asked.append(loop.time())
        return httpx.Response(429, headers={"retry-after": "40"})

    async with answering(busy, clock=True, batching=Batching(linger=0, patience=100)) as producer:
        await producer.send(1)
        with pytest.raises(HeadwaterError, match="1 messages of producer"):
            await producer.flush()
        assert asked == [0, 40, 80, 100]
        with pytest.raises(HeadwaterError):
            await producer.aclose()


async def test_what_was_sent_before_a_block_failed_is_delivered() -> None:
    bodies: list[bytes] = []

    def keep(request: httpx.Request) -> httpx.Response:
        bodies.append(request.content)
        return ok(request)

    async def fail_after_sending(answer: Answers) -> None:
        async with answering(answer, id="p", batching=Batching(linger=60)) as producer, producer:
            await producer.send(1)
            raise KeyError

    with pytest.raises(KeyError):
        await fail_after_sending(keep)
    assert bodies == [b"[1]"]
    with pytest.raises(KeyError) as raised:
        await fail_after_sending(lambda _: httpx.Response(401))
    assert raised.value.__notes__ == ["the server answered 401; 1 messages of producer 'p' are not confirmed"]


async def test_a_request_that_cannot_be_sent_is_told_and_not_waited_for() -> None:
    async with Client("http://127.0.0.1:9") as client:
        producer = client.producer("s", content_type="text/\u00e4")
        await producer.send("x")
        with pytest.raises(HeadwaterError, match="could not be sent"):
            await producer.aclose()
    with pytest.raises(BadRequest, match="id of its own"):
        client.producer("s", claim=True)


# -- without a loop ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def in_a_thread(streams: Streams) -> AsyncIterator[SyncClient]:
    async with serving_here(streams) as port:
        with SyncClient(f"http://127.0.0.1:{port}") as client:
            yield client


async def test_the_synchronous_producer_keeps_the_same_promises() -> None:
    def work(client: SyncClient) -> str:
        assert client.create("s")
        with client.producer("s", id="task") as producer:
            for n in range(500):
                producer.send(n)
            producer.flush()
            producer.send("500")
        with client.producer("s", id="task", claim=True) as later:
            later.send("501")
        stale = client.producer("s", id="task")
        stale.send("502")
        with pytest.raises(ProducerFenced, match=r"claim=True takes the id over .* another id, or none"):
            stale.leave()
        assert stale.unsent == [b"502"]
        client.append("s", 502)
        with client.producer("s") as last:
            last.send("503")
            return last.close("completed")

    async with Streams("memory:") as streams, in_a_thread(streams) as client:
        end = await asyncio.to_thread(work, client)
        page = await streams.read("s")
        assert [int(message.data) for message in page.messages] == list(range(504))
        assert (str(page.next), page.closed) == (end, True)


async def test_synchronous_writing_without_a_producer() -> None:
    def work(client: SyncClient) -> None:
        assert client.create("s", "one", content_type="text/plain")
        offset = client.append("s", "two", content_type="text/plain")
        assert client.append("s", "three", content_type="text/plain", if_match=offset) > offset
        assert client.read("s", offset).messages == [b"three"]
        client.create("gone", ttl=60, retention=Retention(messages=1))
        client.delete("gone")
        with pytest.raises(StreamNotFound):
            client.read("gone")
        client.close("s")
        with pytest.raises(StreamClosed):
            client.append("s", "four", content_type="text/plain")
        with pytest.raises(StreamNotFound):
            client.append("nothing", 1)

    async with Streams("memory:") as streams, in_a_thread(streams) as client:
        await asyncio.to_thread(work, client)
        assert [message.data for message in (await streams.read("s")).messages] == [b"one", b"two", b"three"]
    with pytest.raises(Unreachable, match="nothing answers"):
        await asyncio.to_thread(client_of_nobody)


def client_of_nobody() -> None:
    with SyncClient("http://127.0.0.1:9") as client:
        client.append("s", 1)


def test_a_synchronous_sender_is_held_back_by_a_full_buffer() -> None:
    gate = threading.Event()

    def slow(request: httpx.Request) -> httpx.Response:
        assert gate.wait(10)
        return ok(request)

    with SyncClient("http://headwater.test", transport=httpx.MockTransport(slow)) as client:
        with client.producer("s", batching=Batching(linger=0, buffer=1)) as producer:
            producer.send(1)
            second = threading.Thread(target=producer.send, args=(2,))
            second.start()
            second.join(0.02)
            assert second.is_alive()
            assert producer.unsent == [b"1"]
            gate.set()
            second.join()
        with pytest.raises(BadRequest, match="closed"):
            producer.send(3)


def test_a_producer_is_of_no_use_in_a_forked_child() -> None:
    with SyncClient("http://headwater.test", transport=httpx.MockTransport(ok)) as client:
        producer = client.producer("s")
        producer._process = os.getpid() + 1  # as a child sees it
        with pytest.raises(BadRequest, match="does not survive a fork"):
            producer.send(1)
        producer.leave()  # at a child's exit: not its to send
        with pytest.raises(SystemExit), producer:  # nor is the lock, which a thread may have held at the fork
            raise SystemExit


async def test_a_forked_child_does_not_ask_on_its_parents_connections() -> None:
    """On one socket, each of two processes is given answers that are the other's."""

    def work(client: SyncClient) -> None:
        client.create("s")
        parents = client._http
        assert client._http is parents
        client._process = os.getpid() + 1  # as a child sees it
        assert client._http is not parents
        assert client.append("s", 1) > ""
        parents.close()

    async with Streams("memory:") as streams, in_a_thread(streams) as client:
        await asyncio.to_thread(work, client)


def test_an_answer_that_cannot_be_understood_is_told_and_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def stumble(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Batches, "answered", stumble)
    with SyncClient("http://headwater.test", transport=httpx.MockTransport(ok)) as client:
        producer = client.producer("s")
        producer.send(1)
        with pytest.raises(HeadwaterError, match="a bug"):
            producer.flush()
        with pytest.raises(HeadwaterError, match="a bug"):
            producer.leave()


def test_an_interrupted_block_names_what_is_not_confirmed() -> None:
    def interrupted(client: SyncClient) -> None:
        with client.producer("s", id="p") as producer:
            producer.send(1)
            raise KeyboardInterrupt

    with SyncClient("http://headwater.test", transport=httpx.MockTransport(lambda _: httpx.Response(503))) as client:
        with pytest.raises(KeyboardInterrupt) as raised:
            interrupted(client)
        assert raised.value.__notes__ == ["1 messages of producer 'p' are not confirmed"]


# -- a server that is killed ------------------------------------------------------------------------------------------

KILLS = 5
MESSAGES = 1500


async def killed(server: Server, count: Callable[[], int]) -> None:
    """Kill the server five times while the messages of a producer come in, and start it again."""
    chance = random.Random(9)
    for kill in range(1, KILLS + 1):
        while count() < kill * MESSAGES // (KILLS + 1):
            await asyncio.sleep(0.001)
        await asyncio.sleep(chance.uniform(0, 0.003))
        server.kill()
        await server.restart()


@pytest.mark.server
async def test_each_message_counts_once_over_five_kills(tmp_path: Path) -> None:
    with serving("serve", tmp_path) as server:
        pauses: list[float] = []
        retry = Retry(jitter=lambda: pauses.append(0.0) or 0.0)
        async with Client(server.url, retry=retry) as client, asyncio.timeout(90):
            await client.create("log")
            small = Batching(linger=0.001, max_messages=5, buffer=4000)
            producer, given = client.producer("log", batching=small), list[int]()
            killing = asyncio.create_task(killed(server, lambda: len(given)))
            async with producer:
                for n in range(MESSAGES):
                    await producer.send({"n": n})
                    given.append(n)
                    await asyncio.sleep(0)
                await killing
                await producer.close("completed")
            assert len(pauses) >= KILLS  # each was felt
        entries = json.loads(b"[%s]" % await read_log(server, "log"))
    assert [entry["n"] for entry in entries] == list(range(MESSAGES))


@pytest.mark.server
async def test_the_synchronous_producer_too(tmp_path: Path) -> None:
    given: list[int] = []

    def work(url: str) -> None:
        with SyncClient(url) as client:
            client.create("log")
            with client.producer("log", batching=Batching(linger=0.001, max_messages=5, buffer=2000)) as producer:
                for n in range(MESSAGES):
                    producer.send({"n": n})
                    given.append(n)

    with serving("serve", tmp_path) as server:
        async with asyncio.timeout(90):
            working = asyncio.create_task(asyncio.to_thread(work, server.url))
            await killed(server, lambda: len(given))
            await working
        entries = json.loads(b"[%s]" % await read_log(server, "log"))
    assert [entry["n"] for entry in entries] == list(range(MESSAGES))
