"""slow.py: who falls behind lags, is moved on and told so, or is let go with a reason; who reads the past does not."""

import asyncio
import json
from typing import Any

import pytest

import asgi_client
from asgi_client import Call, Cut, both_ways  # noqa: F401 -- every test goes all ways
from headwater.delivery import Policy, Slow
from headwater.errors import BadRequest
from headwater.formats.rollup import RolledUp
from headwater.formats.sse import ServerSentEvents
from headwater.model import Head, Offset
from headwater.slow import standing_at
from headwater.testing import virtual_time
from headwater.wire.sse import Decoder, Event
from http_site import Site, at, open_site

JSON = "application/json"
BYTES = 100_000
"""Slow from here on, where a test does not say otherwise."""


def slow(site: Site, what: Any, after_bytes: int = BYTES, seconds: float = 1000.0) -> None:
    site.app.delivery.policy = Policy(slow=Slow(what, after_bytes, seconds))


def counted(site: Site) -> tuple[int, int, int]:
    said = site.app.delivery.statistics()
    return said["lagged"], said["skipped"], said["closed_slow"]


async def keeps_up(site: Site, query: str, first: object = "first") -> Call:
    """A reader of `t` that has been at the tail."""
    call = site.call("GET", f"t?{query}")
    await call.started()
    await site.streams.append("t", first)
    await call.until(b"first")
    await asyncio.sleep(1)
    return call


async def grow(site: Site, count: int, size: int = 10_000) -> None:
    for n in range(count):
        await site.streams.append("t", f"{n:03}:" + "x" * size)
        await asyncio.sleep(0.001)  # one by one, and not a single burst


def events_of(call: Call) -> list[Event]:
    return list(Decoder().feed(call.body))


@virtual_time
@pytest.mark.parametrize("query", ["format=sse", "format=ndjson", "offset=-1&live=sse"])
@pytest.mark.parametrize("count", [40, 100])  # within the ring, and far beyond it
async def test_by_default_it_lags_and_has_everything_in_the_end(query, count):
    async with open_site() as site:
        slow(site, "lag")
        await site.put("t", "", JSON)
        call = await keeps_up(site, query)
        for _ in range(2):
            call.stall()
            await grow(site, count)
            call.take()
            await site.streams.append("t", "through")
            await call.until(b"through")
        assert counted(site) == (2, 0, 0)
        assert [call.text.count(f'"{n:03}:x') for n in range(count)] == [2] * count
        await call.leave()


@virtual_time
@pytest.mark.parametrize("count", [40, 100])
async def test_one_that_is_moved_on_is_told_from_where_to_where_and_has_the_newest(count):
    async with open_site() as site:
        slow(site, "skip")
        await site.put("t", "", JSON)
        call = await keeps_up(site, "format=sse")
        call.stall()
        await grow(site, count)
        call.take()
        await call.until(b'"%03d:x' % (count - 1))
        await site.streams.append("t", "live")
        await call.until(b'"live"\n\n')
        assert counted(site) == (0, 1, 0)
        events = events_of(call)
        told = [number for number, event in enumerate(events) if event.event == "skipped"]
        assert len(told) == 1
        skipped, newest, live = events[told[0] :]
        said = json.loads(skipped.data)
        assert said == {"from": events[told[0] - 1].id, "to": skipped.id, "messages": said["messages"]}
        assert skipped.id == at(count)
        assert (newest.id, live.id) == (at(count + 1), at(count + 2))
        assert said["messages"] == count - told[0]
        await call.leave()


@virtual_time
@pytest.mark.parametrize(
    ("query", "type_"),
    [("offset=-1&live=sse", JSON), ("format=ndjson", JSON), ("format=text", JSON), ("format=sse", "text/plain")],
)
async def test_a_format_without_a_word_for_a_gap_has_none(query, type_):
    async with open_site() as site:
        slow(site, "skip")
        await site.put("t", "", type_)
        call = await keeps_up(site, query)
        call.stall()
        await grow(site, 40)
        call.take()
        await call.until(b"039:x")
        assert [call.text.count(f"{n:03}:x") for n in range(40)] == [1] * 40
        assert counted(site) == (1, 0, 0)
        await call.leave()


@virtual_time
async def test_a_runs_reader_gets_what_it_lacks_rolled_up():
    def delta(n: int) -> dict[str, str]:
        return {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": f"{n} "}

    async with open_site() as site:
        await site.put("t", "", JSON)

        async def app(scope, receive, send):
            cursor = await site.streams.cursor("t")
            format_ = RolledUp(ServerSentEvents(JSON, named=False))
            await site.app.delivery.respond(scope, receive, send, cursor, format_)

        slow(site, "skip")
        call = asgi_client.Client(app).call("GET", "/")
        await call.started()
        await site.streams.append("t", delta(0))
        await call.until(b'"0 "')
        await site.streams.append("t", delta(1))
        await call.until(b'"1 "')
        call.stall()
        for n in range(2, 3000):
            await site.streams.append("t", delta(n))
        call.take()
        await call.until(b"2999 ")
        await site.streams.append("t", delta(3000))
        await call.until(b'"3000 "')
        events = events_of(call)
        assert "".join(json.loads(event.data)["delta"] for event in events) == "".join(f"{n} " for n in range(3001))
        assert events[-1].id == at(3001)
        assert len(events) < 1000
        assert counted(site) == (0, 1, 0)
        await call.leave()


@virtual_time
@pytest.mark.parametrize("query", ["format=sse", "offset=-1&live=sse", "format=ndjson"])
async def test_one_that_is_let_go_sees_why_and_resumes_where_it_was(query):
    async with open_site() as site:
        slow(site, "close")
        await site.put("t", "", JSON)
        call = await keeps_up(site, query)
        call.stall()
        await grow(site, 100)
        call.take()
        if query == "format=ndjson":
            with pytest.raises(Cut):
                await call.done()
        else:
            await call.done()
        assert call.ended == (query != "format=ndjson")
        assert counted(site) == (0, 0, 1)
        assert b'"099:x' not in call.body
        if query == "format=sse":
            *_, last, told = events_of(call)
            assert (told.event, json.loads(told.data)["code"], json.loads(told.data)["retry"]) == (
                "interrupted",
                "too_slow",
                True,
            )
            again = site.call("GET", "t?format=sse", last_event_id=last.id)
            await again.until(b'"099:x')  # far behind, and at leisure
            assert (call.text + again.text).count(":x") == 100
            assert counted(site) == (0, 0, 1)
            await again.leave()


@virtual_time
async def test_age_counts_as_well_as_bytes():
    async with open_site() as site:
        slow(site, "close", 10_000_000, seconds=5.0)
        await site.put("t", "", JSON)
        call = await keeps_up(site, "format=sse")
        call.stall()
        await grow(site, 20)
        await asyncio.sleep(4)
        call.take()
        await call.until(b'"019:x')
        assert counted(site) == (0, 0, 0)
        call.stall()
        await grow(site, 20)
        await asyncio.sleep(6)
        call.take()
        await call.until(b"too_slow")
        assert counted(site) == (0, 0, 1)
        await call.over()


@virtual_time
async def test_a_burst_is_nobodys_fault_and_the_past_is_read_at_leisure():
    async with open_site() as site:
        slow(site, "close", 10_000_000, seconds=5.0)
        await site.put("t", "", JSON)
        await grow(site, 100)
        late = site.call("GET", "t?format=sse")
        await late.until(b'"000:x')
        late.stall()
        await asyncio.sleep(20)
        late.take()
        await late.until(b'"099:x')
        await asyncio.sleep(60)  # silent for longer than a reader may be behind
        await site.streams.append("t", *["y" * 10_000 for _ in range(30)])
        await site.streams.append("t", "after")
        await late.until(b'"after"')
        assert counted(site) == (0, 0, 0)
        await late.leave()


@virtual_time
async def test_where_a_reader_stood_is_known_as_long_as_the_ring_reaches():
    async with open_site() as site:
        await site.put("t", "", JSON)
        cursor = await site.streams.cursor("t")
        tail = cursor.tail
        await grow(site, 3, 100)
        head = tail.head
        assert isinstance(head, Head)
        start = Offset(head.generation, 1)
        assert standing_at(tail, start) == (start, head.size // 3)
        assert standing_at(tail, head.offset) == (head.offset, head.size)
        await grow(site, 60)
        assert standing_at(tail, start) is None
        tail.forget()
        assert standing_at(tail, head.offset) is None
        cursor.close()


@pytest.mark.parametrize("given", [("drop",), ("skip", 1000), ("close", 1_000_000, -1.0)])
def test_bounds_that_cannot_be_are_refused(given):
    with pytest.raises(BadRequest):
        Slow(*given)
