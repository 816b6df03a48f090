"""joining.py: small messages share a write; what should not wait does not."""

import asyncio

import pytest

from asgi_client import Call, Client, both_ways  # noqa: F401 -- every test goes all ways
from headwater.agui import WAITING
from headwater.delivery import Policy
from headwater.errors import BadRequest
from headwater.joining import MOST_MS, joined_ms
from headwater.testing import virtual_time
from http_site import Site, open_site, refused

JSON = "application/json"


def now() -> float:
    return asyncio.get_running_loop().time()


async def arrivals(call: Call, said: bytes, count: int) -> list[tuple[float, int]]:
    """When chunks came, and how many of `said` were in each, until `count` have come."""
    seen: list[tuple[float, int]] = []
    while sum(number for _, number in seen) < count:
        known = len(call.chunks)
        await call.more()
        seen += [(round(now(), 4), chunk.count(said)) for chunk in call.chunks[known:] if said in chunk]
    return seen


def data_of(call: Call) -> list[bytes]:
    """What JSON pages of `live=sse` hold, without their brackets."""
    return [line[6:-1] + b"," for line in call.body.split(b"\n") if line.startswith(b"data:[")]


async def paced(site: Site, name: str, count: int, seconds: float) -> None:
    for n in range(count):
        await site.streams.append(name, n)
        await asyncio.sleep(seconds)


@virtual_time
async def test_the_first_goes_out_at_once_and_what_comes_within_the_time_goes_out_together():
    async with open_site() as site:
        await site.put("t", "", JSON)
        call = site.call("GET", "t?format=sse&join_ms=50")
        await call.until(b"open")
        await asyncio.sleep(2.0)
        writing = asyncio.create_task(paced(site, "t", 9, 0.012))
        assert await arrivals(call, b"data:", 9) == [(2.0, 1), (2.05, 4), (2.1, 4)]
        await writing
        await asyncio.sleep(1)
        begun = now()
        await site.streams.append("t", "after a silence")
        await call.until(b"after a silence")
        assert now() == begun
        await call.leave()


@virtual_time
async def test_an_opening_and_a_heartbeat_hold_back_nothing():
    async with open_site() as site:
        await site.put("t", "", JSON)
        call = site.call("GET", "t?format=sse&join_ms=1000")
        await call.until(b"open")
        await site.streams.append("t", 1)
        await call.until(b"data:1\n\n")
        assert now() == 0
        await call.more()
        begun = now()
        assert begun >= 15
        await site.streams.append("t", 2)
        await call.until(b"data:2")
        assert now() == begun
        await call.leave()


@virtual_time
async def test_the_past_comes_without_a_pause():
    async with open_site() as site:
        await site.put("t", "", "text/plain")
        for _ in range(8):
            await site.streams.append("t", "x" * 60_000)
        call = site.call("GET", "t?format=text&join_ms=1000")
        while len(call.body) < 480_000:
            await call.more()
        assert now() == 0
        await call.leave()


@virtual_time
async def test_more_than_a_write_may_hold_does_not_wait():
    async with open_site() as site:
        await site.put("t", "", "text/plain")
        call = site.call("GET", "t?format=sse&join_ms=1000")
        await call.until(b"open")
        await site.streams.append("t", "first")
        await call.until(b"first")

        async def write() -> None:
            for letter in "abcde":
                await asyncio.sleep(0.1)
                await site.streams.append("t", letter * 20_000)

        writing = asyncio.create_task(write())
        await call.until(b"c" * 20_000)
        assert round(now(), 4) == 0.4  # with the fourth of them there were 64 KiB
        await writing
        await call.leave()


@virtual_time
@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("close", b'"outcome":"completed"'),
        ("delete", b'"code":"stream_not_found"'),
        ("drain", b'"code":"draining"'),
        ("pause", b"run.waiting"),
    ],
)
async def test_what_a_reader_should_know_does_not_wait(what, said):
    async with open_site() as site:
        await site.put("t", "", JSON)
        call = site.call("GET", "t?format=sse&join_ms=1000")
        await call.until(b"open")
        await asyncio.sleep(1)
        await site.streams.append("t", "first")
        await call.until(b"first")
        await asyncio.sleep(0.1)
        await site.streams.append("t", "held")
        await asyncio.sleep(0.1)
        assert b"held" not in call.body
        match what:
            case "close":
                await site.streams.close("t")
            case "delete":
                await site.streams.delete("t")
            case "drain":
                site.streams.drain()
            case "pause":
                await site.streams.append("t", {"type": "CUSTOM", "name": WAITING, "value": {}})
        told = await call.until(said)
        assert (b"held" in told, round(now(), 4)) == (what != "delete", 1.2)
        await (call.leave() if what == "pause" else call.over())


@virtual_time
async def test_readers_of_one_stream_may_ask_for_different_times_and_have_the_servers_else():
    async with open_site() as site:
        site.app.delivery.policy = Policy(join_ms=100)
        await site.put("t", "", JSON)
        calls = {query: site.call("GET", f"t?offset=-1&live=sse{query}") for query in ("", "&join_ms=0", "&join_ms=40")}
        for call in calls.values():
            await call.until(b"upToDate")
        await paced(site, "t", 9, 0.023)  # the last comes at 184 ms
        await asyncio.sleep(1)
        assert [call.text.count("event: data") for call in calls.values()] == [3, 9, 6]
        assert len({b"".join(data_of(call)) for call in calls.values()}) == 1
        for call in calls.values():
            await call.leave()


@virtual_time
async def test_who_takes_nothing_for_a_while_gets_all_of_it_and_holds_up_nobody():
    async with open_site() as site:
        await site.put("t", "", JSON)
        slow, quick = (site.call("GET", "t?format=ndjson&join_ms=40") for _ in range(2))
        for call in (slow, quick):
            await call.started()
        await site.streams.append("t", "begin")
        for call in (slow, quick):
            await call.until(b"begin")
        slow.stall()
        writing = asyncio.create_task(paced(site, "t", 100, 0.01))
        assert len(await arrivals(quick, b"\n", 60)) <= 16
        slow.take()
        await writing
        await asyncio.sleep(1)
        assert slow.body == quick.body
        for call in (slow, quick):
            await call.leave()


@virtual_time
async def test_nothing_is_left_of_a_reader_that_goes_while_it_holds_back():
    async with open_site() as site:
        await site.put("t", "", JSON)
        call = site.call("GET", "t?format=sse&join_ms=1000")
        await call.until(b"open")
        await site.streams.append("t", 1)
        await call.until(b"data:1")
        await asyncio.sleep(0.1)
        await site.streams.append("t", 2)
        await asyncio.sleep(0.1)
        await call.leave()
        tail = site.streams.hub.known("t")
        assert tail is not None
        assert (tail.on_wake, tail.readers, now()) == ({}, 0, 0.2)


@virtual_time
@pytest.mark.parametrize("given", ["", "-1", "1001", "2.5", "x", "٣", "20&join_ms=30", "00020"])
async def test_a_time_that_cannot_be_is_refused_before_anything_is_sent(given):
    async with open_site() as site:
        await site.put("t")
        call = await site.ask("GET", f"t?format=sse&join_ms={given}")
        refused(call, 400, "bad_request")
        assert "0 to 1000" in call.text


@virtual_time
async def test_a_response_of_an_endpoint_takes_it_too():
    from headwater.http.response import follow

    async with open_site() as site:
        await site.put("t", "", JSON)

        async def app(scope, receive, send):
            from starlette.requests import Request

            await follow(site.streams, "t", Request(scope))(scope, receive, send)

        said = await Client(app).ask("GET", "/?join_ms=2000")
        assert (said.status, said.json()["error"]["code"]) == (400, "bad_request")
        call = Client(app).call("GET", "/?join_ms=50")
        await call.until(b"open")
        writing = asyncio.create_task(paced(site, "t", 5, 0.012))
        assert await arrivals(call, b"data:", 5) == [(0.0, 1), (0.05, 4)]
        await writing
        await call.leave()


def test_only_the_query_asks():
    asked = {b"": None, b"join=3": None, b"xjoin_ms=3": None, b"join_ms=0": 0, b"a=1&join_ms=20": 20}
    assert {query: joined_ms({"query_string": query}) for query in asked} == asked
    assert joined_ms({}) is None
    assert joined_ms({"query_string": b"join_ms=%d" % MOST_MS}) == MOST_MS
    with pytest.raises(BadRequest):
        joined_ms({"query_string": b"join_ms=%d" % (MOST_MS + 1)})
