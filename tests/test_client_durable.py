"""Following by Durable Streams' own rules: answers written by hand, then a real server, cut after every byte."""

import asyncio
from dataclasses import replace
from itertools import chain, count, repeat

import httpx as http_library
import pytest

from headwater.client import Client, Event, OffsetExpired, Page, Retry, Unreachable
from headwater.client.client import By
from headwater.client.durable import DurablePages
from headwater.errors import HeadwaterError, NotAcceptable, OffsetGone, StreamNotFound, TooLarge
from headwater.streams import Streams
from headwater.testing import virtual_time
from test_client import AT_ONCE, HOLD, Scripted, events, http, serving, through

JSON = "content-type: application/json"
TAIL = "stream-up-to-date: true"
CLOSED = "stream-closed: true"


def page(body: bytes, offset: str, *headers: str) -> bytes:
    return http(200, body, f"stream-next-offset: {offset}", *headers)


def data(text: bytes) -> bytes:
    return b"event: data\ndata:%s\n\n" % text


def control(said: bytes) -> bytes:
    return b"event: control\ndata:{%s}\n\n" % said


ENDED = control(b'"streamNextOffset":"09","streamClosed":true')


def at(number: int) -> bytes:
    return control(b'"streamNextOffset":"%02d","streamCursor":"c%d"' % (number, number))


async def test_pages_first_then_server_sent_events() -> None:
    answers = [
        page(b"[1,[2]]", "02", JSON),
        page(b"[3]", "03", JSON, TAIL),
        events(at(3) + data(b"[4,5]") + at(5) + data(b"[6]") + ENDED),
    ]
    async with Scripted(*answers) as server, Client(server.url) as client:
        reader = client.follow("s", by="durable")
        assert [event async for event in reader] == [
            Event(b"1", "-1"),  # the page has one offset, and it is after the last
            Event(b"[2]", "02"),
            Event(b"3", "03"),
            Event(b"4", "03"),
            Event(b"5", "05"),
            Event(b"6", "09"),
        ]
        assert (reader.over, reader.outcome, reader.offset, reader.connections) == (True, None, "09", 1)
        asked = [(await server.asked.get()).split()[1] for _ in answers]
        assert asked == [f"/v1/stream/s?{query}" for query in ("offset=-1", "offset=02", "live=sse&offset=03")]


async def test_what_has_no_control_yet_has_not_come() -> None:
    cut = events(data(b"[1]") + at(1) + data(b"[2]") + data(b"[3]") + at(3)[:-1])
    answers = [page(b"[]", "00", JSON, TAIL), cut, events(data(b"[2,3]") + ENDED)]
    async with Scripted(*answers) as server, Client(server.url, retry=AT_ONCE) as client:
        reader = client.follow("s", by="durable")
        assert [event.json() async for event in reader] == [1, 2, 3]
        assert reader.connections == 2
        asked = [(await server.asked.get()).split()[1] for _ in answers]
        assert asked[2] == "/v1/stream/s?cursor=c1&live=sse&offset=01"


def test_a_way_is_the_same_however_its_bytes_are_cut() -> None:
    body = at(3) + data(b'["\xc3\xa4",2]') + at(4) + b"event: more\ndata:{}\n\n" + data(b"[3]") + data(b"[4]") + ENDED

    def taken(size: int) -> list[Event]:
        way = DurablePages(http_library.URL("http://h/s"), None, {}, "sse")
        head = {"content-type": "application/json", "stream-next-offset": "03", "stream-up-to-date": "true"}
        way.begin(200, head | {"content-length": "2"})
        way.feed(b"[]")
        assert way.ended(0.0, 0.0, cut=False) is None
        got = []
        assert way.request().url.params["live"] == "sse"
        way.begin(200, {"content-type": "text/event-stream"})
        for start in range(0, len(body), size):
            way.feed(body[start : start + size])
            while (event := way.take()) is not None:
                got.append(event)
        assert (way.over, way.offset) == (True, "09")
        return got

    assert taken(1) == taken(7) == taken(10_000)
    assert taken(1)[0] == Event('"\u00e4"'.encode(), "03")


async def test_short_lived_connections_give_way_to_long_poll() -> None:
    answers = [
        page(b"[]", "00", JSON, TAIL),
        *[events(at(n)) for n in (1, 2, 3)],
        page(b"[1]", "04", JSON, TAIL, "stream-cursor: c7"),
        page(b"[2]", "05", JSON, TAIL, CLOSED, "stream-outcome: completed"),
    ]
    lost: list[str] = []
    async with Scripted(*answers) as server, Client(server.url, retry=AT_ONCE) as client:
        reader = client.follow("s", by="sse", on_lost=lambda error, _: lost.append(str(error)))
        assert [event.json() async for event in reader] == [1, 2]
        assert reader.outcome == "completed"
        assert lost == ["the server ended the connection, but the stream goes on"] * 3
        asked = [(await server.asked.get()).split("?")[1].split()[0] for _ in answers]
        assert asked[-3:] == [
            "cursor=c2&live=sse&offset=02",
            "cursor=c3&live=long-poll&offset=03",
            "cursor=c7&live=long-poll&offset=04",
        ]


async def test_connections_that_say_nothing_at_all_count_as_short_lived() -> None:
    retry = replace(AT_ONCE, silence=0.02)
    # HOLD alone: a proxy that holds everything back
    answers = [page(b"[1]", "01", JSON, TAIL), HOLD, HOLD, HOLD, page(b"[2]", "02", JSON, CLOSED)]
    async with Scripted(*answers) as server, Client(server.url, retry=retry) as client:
        assert [event.json() async for event in client.follow("s", by="durable")] == [1, 2]


async def test_a_connection_that_lived_and_was_ended_was_no_loss() -> None:
    ticks = count(step=1.5)
    retry = replace(AT_ONCE, clock=lambda: next(ticks))
    lost: list[HeadwaterError] = []
    answers = [page(b"[]", "00", JSON, TAIL), *[events(data(b"[%d]" % n) + at(n)) for n in range(1, 6)], events(ENDED)]
    async with Scripted(*answers) as server, Client(server.url, retry=retry) as client:
        reader = client.follow("s", by="durable", on_lost=lambda error, _: lost.append(error))
        assert [event.json() async for event in reader] == [1, 2, 3, 4, 5]
        assert (lost, reader.connections) == ([], 1)


async def test_long_poll_waits_again_after_204_and_ends_with_it() -> None:
    nothing = ["stream-next-offset: 01", TAIL]
    ticks = count()
    answers = [
        page(b"one", "01", "content-type: text/plain", TAIL),
        http(204, b"", *nothing, "stream-cursor: c1"),
        page(b"two", "02", "content-type: text/plain", TAIL, "stream-cursor: c2"),
        http(204, b"", "stream-next-offset: 02", CLOSED),
    ]
    retry = replace(AT_ONCE, clock=lambda: next(ticks))
    async with Scripted(*answers) as server, Client(server.url, retry=retry) as client:
        reader = client.follow("s", by="durable")  # text, so by long-poll
        assert [event.data async for event in reader] == [b"one", b"two"]
        asked = [(await server.asked.get()).split("?")[1].split()[0] for _ in answers]
        assert asked[2:] == ["cursor=c1&live=long-poll&offset=01", "cursor=c2&live=long-poll&offset=02"]


async def test_a_long_poll_that_does_not_wait_is_not_asked_again_at_once() -> None:
    at_once = http(204, b"", "stream-next-offset: 01", TAIL)
    pauses: list[float] = []
    answers = [page(b"", "01", "content-type: text/plain", TAIL), at_once, at_once, page(b"x", "02", CLOSED)]
    async with Scripted(*answers) as server, Client(server.url, retry=replace(AT_ONCE, clock=lambda: 0.0)) as client:
        reader = client.follow("s", by="long-poll", on_lost=lambda _, seconds: pauses.append(seconds))
        assert [event.data async for event in reader] == [b"x"]
    assert pauses == [0.4, 0.8]


async def test_a_server_that_is_not_headwater_is_noticed() -> None:
    answers = [
        page(b"[1]", "01", JSON, TAIL, 'etag: "a"'),  # it knows no `format=sse`
        page(b"[1]", "01", JSON, TAIL, 'etag: "a"'),
        events(data(b"[2]") + ENDED),
    ]
    async with Scripted(*answers) as server, Client(server.url) as client:
        reader = client.follow("s")
        assert [event.json() async for event in reader] == [1, 2]
        asked = [(await server.asked.get()).split("?")[1].split()[0] for _ in answers]
        assert asked == ["format=sse", "offset=-1", "live=sse&offset=01"]
    events_of_another = page(b"data: x\n\n", "01", "content-type: text/event-stream", 'etag: "a"', CLOSED)
    async with Scripted(events_of_another, events_of_another) as server, Client(server.url) as client:
        assert [event.data async for event in client.follow("s", "00")] == [b"data: x\n\n"]


async def test_now_is_where_the_first_answer_was() -> None:
    answers = [page(b"[]", "07", JSON, TAIL), events(b""), events(data(b"[8]") + ENDED)]
    async with Scripted(*answers) as server, Client(server.url, retry=AT_ONCE) as client:
        assert [event.json() async for event in client.follow("s", "now", by="durable")] == [8]
        asked = [(await server.asked.get()).split("?")[1].split()[0] for _ in answers]
        assert asked == ["offset=now", "live=sse&offset=07", "live=sse&offset=07"]


async def test_a_server_without_server_sent_events_is_asked_by_long_poll() -> None:
    answers = [
        page(b"[1]", "01", JSON, TAIL),
        page(b"[]", "01", JSON, TAIL),
        page(b"[2]", "02", JSON, TAIL, CLOSED),
    ]
    async with Scripted(*answers) as server, Client(server.url) as client:
        assert [event.json() async for event in client.follow("s", by="sse")] == [1, 2]
        asked = [(await server.asked.get()).split("?")[1].split()[0] for _ in answers]
        assert asked[1:] == ["live=sse&offset=01", "live=long-poll&offset=01"]


async def test_what_time_will_not_change_is_raised_and_what_it_will_is_waited_for() -> None:
    assert OffsetExpired is OffsetGone
    pauses: list[float] = []
    answers = [
        http(503, b"", "retry-after: 7"),
        http(429, b"", "retry-after: 3"),
        page(b"[1]", "01", JSON),
        http(410),
        http(404),
    ]
    retry = replace(AT_ONCE, jitter=lambda: 0.0)
    async with Scripted(*answers) as server, Client(server.url, retry=retry) as client:
        reader = client.follow("s", "00", by="durable", on_lost=lambda _, seconds: pauses.append(seconds))
        assert (await anext(reader)).json() == 1
        with pytest.raises(OffsetExpired):
            await anext(reader)
        assert [event async for event in reader] == []
        with pytest.raises(StreamNotFound):
            await anext(client.follow("s", by="durable"))
    assert pauses == [7, 3]


async def test_half_a_page_is_none() -> None:
    whole = page(b"[1,2]", "02", JSON, CLOSED)
    async with Scripted(whole[:-1], whole) as server, Client(server.url, retry=AT_ONCE) as client:
        assert [event.json() async for event in client.follow("s", by="durable")] == [1, 2]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http(200, b"[1]", JSON), "no Durable Streams server"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nstream-next-offset: 01\r\n\r\n[1]", "where it ends"),
        (page(b'{"a":1}', "01", JSON), "not an array"),
    ],
)
async def test_an_answer_that_cannot_be_trusted_is_an_error(answer: bytes, said: str) -> None:
    async with Scripted(answer) as server, Client(server.url) as client:
        with pytest.raises(HeadwaterError, match=said):
            await anext(client.follow("s", by="durable"))


@pytest.mark.parametrize(
    ("body", "said"), [(b"event: control\ndata:no\n\n", "control event"), (data(b"!"), "not base64")]
)
async def test_events_that_cannot_be_trusted_are_an_error(body: bytes, said: str) -> None:
    answers = [page(b"", "00", TAIL), events(body, "stream-sse-data-encoding: base64")]
    async with Scripted(*answers) as server, Client(server.url) as client:
        with pytest.raises(HeadwaterError, match=said):
            await anext(client.follow("s", by="durable"))


async def test_base64_may_be_broken_into_lines() -> None:
    body = b"event: data\ndata:AAE\ndata:C\n\n" + ENDED
    answers = [page(b"", "00", TAIL), events(body, "stream-sse-data-encoding: base64")]
    async with Scripted(*answers) as server, Client(server.url) as client:
        assert [event.data async for event in client.follow("s", by="durable")] == [b"\0\1\2"]


async def test_a_page_without_an_end_is_not_held_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("headwater.client.durable.LARGEST_PAGE", 100)
    answers = [page(b"[%s]" % (b"1" * 100), "01", JSON)]
    async with Scripted(*answers) as server, Client(server.url) as client:
        with pytest.raises(TooLarge):
            await anext(client.follow("s", by="durable"))


async def test_a_page_at_another_address_than_a_streams_is_read_as_well() -> None:
    answers = [page(b"[1]", "01", JSON, CLOSED, 'etag: "a"')] * 2
    async with Scripted(*answers) as server, Client(server.url) as client:
        assert [event.json() async for event in client.follow(f"{server.url}/streams/a%2Fb?x=1")] == [1]
        asked = [(await server.asked.get()).split()[1] for _ in answers]
        assert asked == ["/streams/a%2fb?x=1", "/streams/a%2fb?offset=-1&x=1"]
    async with Scripted(http(200, b"<html>")) as server, Client(server.url) as client:
        with pytest.raises(NotAcceptable):
            await anext(client.follow(f"{server.url}/page"))


# -- a real server ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["sse", "long-poll"])
async def test_a_cut_anywhere_loses_and_doubles_nothing(by: By) -> None:
    """A page that was there before, and what comes live: the cut goes through the answers to both."""
    async with Streams("memory:") as streams, serving(streams) as port, through(port) as (proxy, client):

        async def read(name: str) -> list[int]:
            await streams.create(name, 1, 2)
            reader = client.follow(name, by=by)
            got = [(await anext(reader)).json()]
            await streams.append(name, 3, 4)
            got += [(await anext(reader)).json() for _ in range(3)]
            await streams.append(name, 5, close=True)
            return got + [event.json() async for event in reader]

        assert await read("whole") == [1, 2, 3, 4, 5]
        length = proxy.passed
        for cut in range(1, length, 5):
            proxy.cuts = chain([cut], repeat(None))
            assert (cut, await read(f"cut/{cut}")) == (cut, [1, 2, 3, 4, 5])


@pytest.mark.parametrize("by", ["durable", "sse", "long-poll"])
async def test_live_messages_come_as_they_are_appended(by: By) -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await streams.create("log", 0)
        reader = client.follow("log", by=by)
        for n in range(20):
            assert (await anext(reader)).json() == n
            await streams.append("log", n + 1)
        assert (await anext(reader)).json() == 20
        middle = reader.offset
        await streams.append("log", 21)
        await streams.close("log", "completed")
        assert [event.json() async for event in reader] == [21]
        assert [event.json() async for event in client.follow("log", middle, by=by)] == [21]


async def test_text_comes_byte_for_byte() -> None:
    pieces = [b"a\r\nb\rc\n", "\u00e4".encode()[:1], "\u00e4".encode()[1:], b"\xff\x00 \n"]
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await client.create("log", pieces[0], content_type="text/plain")
        reader = client.follow("log", by="durable")
        got = [(await anext(reader)).data]
        for piece in pieces[1:]:
            await client.append("log", piece, content_type="text/plain")
            got.append((await anext(reader)).data)
        await client.close("log")
        got += [event.data async for event in reader]
        assert got == pieces


@pytest.mark.parametrize("by", ["auto", "durable", "sse", "long-poll"])
async def test_bytes_are_bytes(by: By) -> None:
    octets = "application/octet-stream"
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await client.create("log", bytes(range(256)), content_type=octets)
        reader = client.follow("log", by=by)
        assert (await anext(reader)).data == bytes(range(256))
        await client.append("log", b"\r\n\0", content_type=octets, close=True)
        assert [event.data async for event in reader] == [b"\r\n\0"]


async def test_a_trimmed_or_replaced_stream_is_an_expired_offset() -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await streams.create("log", 1)
        old = await streams.append("log", 2)
        await streams.delete("log")
        await streams.create("log")
        with pytest.raises(OffsetExpired):
            await anext(client.follow("log", str(old), by="durable"))
        with pytest.raises(OffsetExpired):
            await client.read("log", str(old))


async def test_reading_page_by_page() -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await client.create("log", 1, [2])
        first = await client.read("log")
        assert first == Page([b"1", b"[2]"], first.offset, up_to_date=True, closed=False)
        assert await client.read("log", first.offset) == Page([], first.offset, up_to_date=True, closed=False)
        await client.append("log", 3, close=True)
        last = await client.read("log", first.offset)
        assert (last.messages, last.closed) == ([b"3"], True)


async def test_a_cancelled_wait_loses_nothing() -> None:
    async with Streams("memory:") as streams, serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
        await streams.create("log", 1)
        reader = client.follow("log", by="durable")
        assert (await anext(reader)).json() == 1
        waiting = asyncio.create_task(anext(reader))
        while "[connected" not in repr(reader):  # in the midst of its first server-sent events
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await streams.append("log", 2, close=True)
        assert [event.json() async for event in reader] == [2]


@virtual_time
async def test_a_silent_server_is_found_out() -> None:
    async def silent(request: http_library.Request) -> http_library.Response:
        if "live" not in request.url.params:
            return http_library.Response(200, json=[], headers={"stream-next-offset": "0", "stream-up-to-date": "true"})
        seconds = request.extensions["timeout"]["read"]
        await asyncio.sleep(seconds)
        raise http_library.ReadTimeout("", request=request)

    lost: list[tuple[str, float]] = []
    loop = asyncio.get_running_loop()

    def on_lost(error: HeadwaterError, _: float) -> None:
        lost.append((str(error), loop.time()))
        if len(lost) == 2:
            raise error

    retry = Retry(clock=loop.time, jitter=lambda: 0.0, silence=45)
    transport = http_library.MockTransport(silent)
    async with Client("http://headwater.test", transport=transport, retry=retry) as client:
        with pytest.raises(Unreachable):
            await anext(client.follow("s", by="long-poll", on_lost=on_lost))
    assert lost == [("http://headwater.test has been silent for too long", at) for at in (90, 180.2)]
