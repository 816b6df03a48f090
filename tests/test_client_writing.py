"""What a client asks once: creating in every form, forks, deletion, conditional appends; and what the answers mean."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, timezone

import httpx
import pytest

from headwater.client import Client, ConditionIgnored, Event, Retention, StreamInfo, SyncClient
from headwater.client.answers import may_pass, stream_error
from headwater.errors import (
    BadRequest,
    HeadwaterError,
    NotFound,
    OffsetMismatch,
    ProducerFenced,
    ProducerGap,
    StreamClosed,
    StreamDeleted,
    StreamExists,
    StreamNotFound,
)
from headwater.streams import Streams
from test_client import serving

LATE = datetime(2199, 12, 31, 23, 30, tzinfo=timezone(timedelta(hours=-1)))


@asynccontextmanager
async def on_a_server() -> AsyncIterator[tuple[Streams, Client]]:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        yield streams, client


async def test_a_stream_is_made_with_all_that_it_will_ever_hold() -> None:
    async with on_a_server() as (_, client):
        assert await client.create("one", {"n": 1}, [2], closed=True)
        assert not await client.create("one", closed=True)
        page = await client.read("one")
        assert (page.messages, page.closed) == ([b'{"n":1}', b"[2]"], True)
        with pytest.raises(StreamExists):
            await client.create("one")


async def test_when_a_stream_ends_is_said_in_any_zone() -> None:
    async with on_a_server() as (_, client):
        await client.create("dated", expires_at=LATE)
        at = round(LATE.timestamp() * 1000)
        assert (await client.head("dated")).expires_at == at
        assert not await client.create("dated", expires_at=at)
        with pytest.raises(BadRequest, match="time zone"):
            await client.create("dated", expires_at=LATE.replace(tzinfo=None))
        with pytest.raises(BadRequest, match="not both"):
            await client.create("dated", ttl=1, expires_at=datetime.now(UTC))


async def test_an_append_on_condition() -> None:
    async with on_a_server() as (_, client):
        await client.create("doc")
        first = await client.append("doc", 1)
        second = await client.append("doc", 2, if_match=first)
        with pytest.raises(OffsetMismatch) as mismatch:
            await client.append("doc", 3, if_match=first)
        assert mismatch.value.detail["offset"] == second
        assert (await client.read("doc")).messages == [b"1", b"2"]


async def test_a_server_that_ignores_the_condition_is_found_out() -> None:
    ignoring = httpx.MockTransport(lambda _: httpx.Response(204, headers={"stream-next-offset": "7"}))
    async with Client("http://headwater.test", transport=ignoring) as client:
        assert await client.append("doc", 1) == "7"
        with pytest.raises(ConditionIgnored, match="carried out unconditionally") as ignored:
            await client.append("doc", 1, if_match="3")
    assert ignored.value.detail["offset"] == "7"
    with SyncClient("http://headwater.test", transport=ignoring) as sync:
        assert sync.append("doc", 1) == "7"
        with pytest.raises(ConditionIgnored):
            sync.append("doc", 1, if_match="3")


async def test_what_is_known_of_a_stream() -> None:
    kept = Retention(seconds=3600, messages=5)
    async with on_a_server() as (_, client):
        await client.create("a b?", 1, 2, retention=kept)
        assert not await client.create("a b?", retention=kept)
        with pytest.raises(StreamExists):
            await client.create("a b?", retention=Retention(messages=5))
        async with client.follow("a b?") as reader:
            await anext(reader)
            info = await client.info("a b?")
            assert (info.name, info.state, info.readers, info.producers, info.messages, info.bytes) == (
                "a b?", "open", 1, 0, 2, 2,
            )  # fmt: skip
            assert (await client.list())[0] == [StreamInfo(**facts(info) | {"retention": None, "producers": None})]
        assert info.retention == (await client.head("a b?")).retention == kept
        for bad in (Retention(), Retention(bytes=0), Retention(seconds=-1)):
            with pytest.raises(BadRequest, match="seconds=N"):
                await client.create("bad", retention=bad)
        with pytest.raises(StreamNotFound):
            await client.info("bad")
        with pytest.raises(BadRequest, match="not its URL"):
            await client.info("http://headwater.test/v1/stream/a")


def facts(info: StreamInfo) -> dict:
    return {name: getattr(info, name) for name in StreamInfo.__struct_fields__}


# -- names ------------------------------------------------------------------------------------------------------------

LEADING_ELSEWHERE = (
    "..", ".", "chat/../secret/admin", "a/../b", "q/./dot", "a/..", "a/%2e%2e/b", "%2E", "a%2f..%2fb", ".%2e/b",
    "http://headwater.test/v1/stream/a/../b", "http://headwater.test/v1/stream/%2e%2e/b?offset=-1",
)  # fmt: skip


def never(_: httpx.Request) -> httpx.Response:
    pytest.fail("this must not be asked")


@pytest.mark.parametrize("name", LEADING_ELSEWHERE)
async def test_a_name_that_leads_to_another_stream_is_never_asked_for(name: str) -> None:
    async with Client("http://headwater.test", transport=httpx.MockTransport(never)) as client:
        for ask in (
            lambda: client.create(name),
            lambda: client.append(name, 1),
            lambda: client.close(name),
            lambda: client.delete(name),
            lambda: client.read(name),
            lambda: client.head(name),
            lambda: client.fork(name, "b"),
            lambda: client.fork("a", name),
        ):
            with pytest.raises(BadRequest, match=r"no segments \. or \.\."):
                await ask()
        with pytest.raises(BadRequest, match=r"not its URL|no segments"):
            await client.info(name)
        for begin in (client.follow, client.producer):
            with pytest.raises(BadRequest, match="no segments"):
                begin(name)
    with SyncClient("http://headwater.test", transport=httpx.MockTransport(never)) as sync:
        for ask in (
            lambda: sync.create(name),
            lambda: sync.append(name, 1),
            lambda: sync.close(name),
            lambda: sync.delete(name),
            lambda: sync.read(name),
            lambda: sync.producer(name),
        ):
            with pytest.raises(BadRequest, match="no segments"):
                ask()


@pytest.mark.parametrize("name", ["what?", "no#1", "100%", "a%2fb", "a%20b", "...", "a/..b/.c", "a+b&c=d", "a:b@c;d,e"])
async def test_a_name_is_the_name_whatever_it_would_mean_in_a_url(name: str) -> None:
    async with on_a_server() as (streams, client):
        await client.create(name, 1, closed=True)
        assert [found for found, _ in await streams.list()] == [name]
        assert (await client.read(name)).messages == [b"1"]
        assert (await client.info(name)).name == name
        for by in ("auto", "durable", "sse", "long-poll"):
            assert [event.json() async for event in client.follow(name, by=by)] == [1]
        assert await client.fork(name, "fork")
        assert (await client.read("fork")).messages == [b"1"]


async def test_what_is_no_name_and_no_key_is_said() -> None:
    async with Client("http://headwater.test", transport=httpx.MockTransport(never)) as client:
        with pytest.raises(BadRequest, match="is text"):
            await client.create("a\udcff")
    with pytest.raises(BadRequest, match="key is made of visible ASCII") as refused:
        Client("http://headwater.test", key="s\u00e9cret")
    assert "cret" not in str(refused.value)


async def test_forks_share_their_beginning_only() -> None:
    async with on_a_server() as (_, client):
        await client.create("chats/a b", 1, 2)
        middle = (await client.read("chats/a b")).offset
        await client.append("chats/a b", 3, 4)
        assert await client.fork("chats/a b", "all")
        assert await client.fork("chats/a b", "half", middle)
        assert not await client.fork("chats/a b", "half", middle)
        assert await client.fork("chats/a b", "more", middle, 1, ttl=60)
        await client.append("half", 30, close=True)
        assert [(await client.read(name)).messages for name in ("all", "half", "more")] == [
            [b"1", b"2", b"3", b"4"],
            [b"1", b"2", b"30"],
            [b"1", b"2", b"3"],
        ]
        assert [event.json() async for event in client.follow("half", by="durable")] == [1, 2, 30]
        assert (await client.head("more")).ttl == 60
        with pytest.raises(StreamNotFound):
            await client.fork("nothing", "x")
        await client.delete("chats/a b")
        with pytest.raises(StreamDeleted):
            await client.read("chats/a b")
        assert len((await client.read("all")).messages) == 4


async def test_a_deleted_stream_is_gone() -> None:
    async with on_a_server() as (_, client):
        await client.create("s", 1)
        await client.delete("s")
        for asking in (client.delete("s"), client.read("s"), client.head("s"), client.append("s", 1)):
            with pytest.raises(StreamNotFound):
                await asking


async def test_an_outcome_goes_with_the_closing() -> None:
    asked: list[httpx.Headers] = []

    def keep(request: httpx.Request) -> httpx.Response:
        asked.append(request.headers)
        return httpx.Response(204, headers={"stream-next-offset": "7"})

    async with Client("http://headwater.test", transport=httpx.MockTransport(keep)) as client:
        assert await client.close("s", "failed") == "7"
        with pytest.raises(BadRequest, match="visible ASCII"):
            await client.close("s", "not\nso")
    assert [headers["stream-outcome"] for headers in asked] == ["failed"]


@pytest.mark.parametrize(
    ("status", "headers", "kind", "detail"),
    [
        (404, {}, StreamNotFound, {}),
        (403, {"producer-epoch": "7"}, ProducerFenced, {"epoch": 7}),
        (
            409,
            {"producer-expected-seq": "3", "producer-received-seq": "5"},
            ProducerGap,
            {"expected": 3, "received": 5},
        ),
        (409, {"stream-closed": "true", "stream-next-offset": "12"}, StreamClosed, {"offset": "12"}),
        (412, {"stream-next-offset": "12"}, OffsetMismatch, {"offset": "12"}),
    ],
)
def test_what_any_server_says_in_headers(status: int, headers: dict[str, str], kind: type, detail: dict) -> None:
    error = stream_error(status, headers, b"whatever")
    assert (type(error), error.detail) == (kind, detail)
    own = b'{"error":{"code":"agent_not_found","message":"m"}}'
    assert type(stream_error(404, {}, own)).__mro__[1] is NotFound
    odd = b'{"error":{"code":"not_found","self":"a"}}'  # words of Python's own, too
    assert stream_error(404, {}, odd).detail == {"self": "a"}


def test_what_may_pass() -> None:
    passing = [status for status in range(300, 600) if may_pass(status)]
    assert {408, 429, 500, 502, 503, 504} <= set(passing)
    assert not {400, 401, 403, 404, 409, 410, 412, 413, 501, 505} & set(passing)


async def test_a_page_of_nothing_readable_is_an_error() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, text="hello"))
    async with Client("http://headwater.test", transport=transport) as client:
        with pytest.raises(HeadwaterError, match="no Durable Streams server"):
            await client.read("s")


async def test_a_page_that_does_not_say_where_it_ends_is_not_read() -> None:
    """Cut in the middle, it would look whole, and reading on from its offset would leave out the rest."""
    body = httpx.Response(200, headers={"stream-next-offset": "1"}, stream=httpx.ByteStream(b"hel"))
    async with Client("http://headwater.test", transport=httpx.MockTransport(lambda _: body)) as client:
        with pytest.raises(HeadwaterError, match="where it ends"):
            await client.read("s")


async def test_a_server_may_be_mounted_under_any_path() -> None:
    asked: list[bytes] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(request.url.raw_path)
        return httpx.Response(201)

    for base in ("http://headwater.test/ü%2Fb/", "http://headwater.test/"):
        async with Client(base, transport=httpx.MockTransport(answer)) as client:
            await client.create("é")
    assert asked == [b"/%C3%BC%2Fb/v1/stream/%C3%A9", b"/v1/stream/%C3%A9"]


def test_an_event_is_what_was_sent() -> None:
    assert Event(b'{"a":1}', "01").json() == {"a": 1}
