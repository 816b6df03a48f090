"""`/v1/stream/{path}` live: long-poll and `live=sse` of Durable Streams, and EventSource, ndjson and text.

Sections are those of the Durable Streams protocol.
"""

import asyncio
import json

import pytest

from asgi_client import (
    Call,
    every_way,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater.testing import virtual_time
from headwater.wire.durable import CURSOR_EPOCH_MS, CURSOR_INTERVAL_MS
from headwater.wire.sse import Decoder
from http_site import START_MS, Site, at, facts, open_site, refused

JSON = "application/json"
BEYOND = f"{10**16 - 1}_{10**16 - 1}"
ZERO = at(0)
CURSOR = (START_MS - CURSOR_EPOCH_MS) // CURSOR_INTERVAL_MS


# -- long-poll (5.7) --------------------------------------------------------------------------------------------------


@virtual_time
async def test_long_poll_gives_what_is_there_at_once():
    async with open_site() as site:
        await site.put("t", "a")
        call = await site.ask("GET", "t?offset=-1&live=long-poll")
        assert (call.status, call.body, asyncio.get_running_loop().time()) == (200, b"a", 0)
        assert facts(call) == {"stream-next-offset": at(1), "stream-up-to-date": "true", "stream-cursor": str(CURSOR)}
        assert (call.headers["cache-control"], call.headers["content-type"]) == ("no-store", "text/plain")


@pytest.mark.parametrize("offset", ["now", at(1)])
def test_long_poll_waits_for_data_and_gives_up_in_time(offset):
    @virtual_time
    async def run() -> None:
        async with open_site() as site:
            await site.put("t", "a")
            call = site.call("GET", f"t?offset={offset}&live=long-poll&cursor={CURSOR}")
            await asyncio.sleep(29.9)
            assert call.status is None
            await asyncio.sleep(0.2)
            assert (call.status, call.body, call.ended) == (204, b"", True)
            assert facts(call) | {"stream-cursor": ""} == {
                "stream-next-offset": at(1),
                "stream-up-to-date": "true",
                "stream-cursor": "",
            }
            assert int(call.headers["stream-cursor"]) > CURSOR, "the client had the current one"
            call = site.call("GET", f"t?offset={offset}&live=long-poll")
            await asyncio.sleep(1)
            await site.post("t", "b")
            await call.done()
            assert (call.status, call.body, call.headers["stream-next-offset"]) == (200, b"b", at(2))

    run()


@virtual_time
async def test_long_poll_tells_the_end_at_once_and_wakes_for_it():
    async with open_site() as site:
        await site.put("t")
        waiting = [site.call("GET", f"t?offset={offset}&live=long-poll") for offset in ("-1", "now")]
        await asyncio.sleep(1)
        await site.post("t", stream_closed="true")
        late = [site.call("GET", f"t?offset={offset}&live=long-poll") for offset in ("-1", "now", ZERO)]
        for call in waiting + late:
            await call.done()
            assert (call.status, call.headers["stream-closed"]) == (204, "true")
            assert "stream-cursor" not in call.headers
        assert asyncio.get_running_loop().time() == 1


@virtual_time
async def test_a_stream_that_goes_while_long_polled_is_gone():
    async with open_site() as site:
        await site.put("t")
        call = site.call("GET", "t?offset=-1&live=long-poll")
        await asyncio.sleep(1)
        await site.ask("DELETE", "t")
        refused(await call.done(), 404, "stream_not_found")
        await site.put("u", stream_ttl="5")
        call = site.call("GET", "u?offset=-1&live=long-poll")
        await call.over()
        refused(call, 404, "stream_not_found")


@virtual_time
async def test_a_drain_lets_long_polls_go_with_what_is_there():
    async with open_site() as site:
        await site.put("t", "a")
        call = site.call("GET", "t?offset=now&live=long-poll")
        await asyncio.sleep(1)
        site.streams.drain()
        await call.done()
        assert (call.status, call.headers["stream-next-offset"]) == (204, at(1))
        behind = await site.ask("GET", "t?offset=-1&live=long-poll")
        assert (behind.status, behind.body) == (200, b"a"), "not: up to date where it is not"
        refused(await site.ask("GET", "t?offset=-1&live=sse"), 503, "draining")
        again = await site.ask("GET", "t?format=sse")
        refused(again, 503, "draining")
        assert again.headers["retry-after"] == "1"


# -- live=sse (5.8) ---------------------------------------------------------------------------------------------------


def control(position: int, **more: object) -> bytes:
    said = {"streamNextOffset": at(position), **more}
    return b"event: control\ndata:" + json.dumps(said, separators=(",", ":")).encode() + b"\n\n"


OPEN = {"streamCursor": str(CURSOR), "upToDate": True}
END = {"streamClosed": True, "upToDate": True}


@virtual_time
async def test_live_sse_pairs_data_with_control_and_ends_with_the_stream():
    async with open_site() as site:
        await site.put("j", "[1,2]", JSON)
        call = site.call("GET", "j?offset=-1&live=sse")
        assert await call.until(control(2, **OPEN)) == b"event: data\ndata:[1,2]\n\n" + control(2, **OPEN)
        assert (call.status, call.headers["content-type"]) == (200, "text/event-stream")
        assert call.headers["cache-control"] == "no-cache, no-transform"
        assert "content-length" not in call.headers
        assert "stream-sse-data-encoding" not in call.headers
        await site.post("j", "3", JSON)
        assert await call.until(control(3, **OPEN)) == b"event: data\ndata:[3]\n\n" + control(3, **OPEN)
        await site.post("j", "4", JSON, stream_closed="true")
        await call.done()
        assert (call.unread(), call.ended) == (b"event: data\ndata:[4]\n\n" + control(4, **END), True)
        again = await site.ask("GET", f"j?offset={at(4)}&live=sse")
        assert again.body == control(4, **END)


@virtual_time
async def test_live_sse_says_at_once_where_the_reader_stands():
    async with open_site() as site:
        await site.put("t", "old")
        for offset in ("now", at(1)):
            call = site.call("GET", f"t?offset={offset}&live=sse")
            await call.until(control(1, **OPEN))
            await call.leave()
            assert call.body == control(1, **OPEN)
        assert asyncio.get_running_loop().time() == 0


@virtual_time
async def test_live_sse_of_bytes_is_base64_and_says_so():
    async with open_site() as site:
        await site.put("b", b"\x00\xff", "application/octet-stream", stream_closed="true")
        call = await site.ask("GET", "b?offset=-1&live=sse")
        assert call.headers["stream-sse-data-encoding"] == "base64"
        assert call.body == b"event: data\ndata:AP8=\n\n" + control(1, **END)


@pytest.mark.parametrize(
    "query",
    ["live=sse", "live=long-poll", "live=", "live=sse&offset=", "live=x&offset=-1", "live=sse&live=sse&offset=-1"],
)
def test_live_needs_an_offset_and_a_known_mode(query):
    @virtual_time
    async def run() -> None:
        async with open_site() as site:
            await site.put("t")
            assert (await site.ask("GET", f"t?{query}")).status == 400
            assert (await site.ask("GET", f"none?{query}")).status == 400

    run()


@pytest.mark.parametrize("live", ["sse", "long-poll"])
def test_live_errors_come_before_the_first_byte(live):
    @virtual_time
    async def run() -> None:
        async with open_site() as site:
            await site.put("t")
            refused(await site.ask("GET", f"none?offset=-1&live={live}"), 404, "stream_not_found")
            refused(await site.ask("GET", f"t?offset={BEYOND}&live={live}"), 400, "bad_offset")
            await site.ask("DELETE", "t")
            await site.put("t")
            refused(await site.ask("GET", f"t?offset={at(0)[:-1]}1&live={live}"), 410, "offset_gone")

    run()


# -- plain readers: EventSource, ndjson, text -------------------------------------------------------------------------


class EventSource:
    """What a browser does: reads, and asks again with the last id that it has seen."""

    def __init__(self, site: Site, url: str) -> None:
        self.site, self.url, self.data, self.last_id, self.ended = site, url, [], "", False

    async def connect(self, events: int) -> Call:
        """Read so many events, then lose the connection."""
        headers = {"last_event_id": self.last_id} if self.last_id else {}
        call = self.site.call("GET", self.url, accept="text/event-stream", **headers)
        decoder = Decoder()
        await call.started()
        while call.status == 200 and events > 0 and not self.ended:
            for event in decoder.feed(await call.until(b"\n\n")):
                events -= 1
                self.ended = event.event == "end"
                if not self.ended:
                    self.data.append(event.data)
            self.last_id = decoder.last_event_id
        await call.leave()
        return call


@virtual_time
async def test_an_event_source_resumes_without_loss_and_stops_at_the_end():
    async with open_site() as site:
        await site.put("j", json.dumps(list(range(20))), JSON, stream_closed="true")
        browser = EventSource(site, "j?format=sse&offset=-1")
        while not browser.ended:
            await browser.connect(3)
        assert browser.data == [str(n) for n in range(20)]
        call = await browser.connect(1)
        assert (call.status, call.headers["stream-closed"]) == (204, "true")
        fresh = EventSource(site, "j")  # Accept alone will do
        await fresh.connect(100)
        assert len(fresh.data) == 20


@virtual_time
async def test_plain_sse_refuses_an_id_that_is_none():
    async with open_site() as site:
        await site.put("t", "a")
        refused(await site.ask("GET", "t?format=sse", last_event_id="nonsense"), 400, "bad_offset")
        refused(await site.ask("GET", "t?format=sse", last_event_id=at(9)), 400, "bad_offset")
        refused(await site.ask("GET", "t?format=xml"), 406, "not_acceptable")
        assert site.streams.statistics()["readers"] == 0
        call = site.call("GET", "t?format=sse&offset=-1", last_event_id="")
        await call.until(b"data:a\n\n")
        await call.leave()


@virtual_time
async def test_ndjson_and_text_follow_to_the_end():
    async with open_site() as site:
        await site.put("j", "[1]", JSON)
        calls = [site.call("GET", f"j?format={name}") for name in ("ndjson", "text")]
        calls.append(site.call("GET", "j", accept="application/x-ndjson"))
        for call in calls:
            await call.until(b"1\n")
            assert call.headers["stream-next-offset"] == at(0)
        await site.post("j", '{"a": 2}', JSON, stream_closed="true")
        for call in calls:
            await call.done()
            assert (call.body, call.ended) == (b'1\n{"a": 2}\n', True)
        kinds = [call.headers["content-type"] for call in calls]
        assert kinds == ["application/x-ndjson", "text/plain; charset=utf-8", "application/x-ndjson"]
        assert (await site.ask("GET", "j", accept="application/json, text/event-stream")).json() == [1, {"a": 2}]
