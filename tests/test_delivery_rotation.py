"""Rotation: live responses that end to be followed by the next, and lose nothing by it."""

import asyncio
import json

import pytest

from asgi_client import (
    Call,
    every_way,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater.delivery import ROTATION_JITTER, Policy
from headwater.formats.format import Format
from headwater.formats.lines import Lines, Raw
from headwater.formats.sse import ServerSentEvents
from headwater.testing import virtual_time
from headwater.wire.sse import Decoder
from http_site import Site, at, open_site

JSON = "application/json"
SECONDS = 60.0
EARLIEST, LATEST = SECONDS * (1 - ROTATION_JITTER), SECONDS * (1 + ROTATION_JITTER) + 1


def rotating(site: Site) -> None:
    site.app.delivery.policy = Policy(rotate_seconds=SECONDS)


def now() -> float:
    return asyncio.get_running_loop().time()


async def over(call: Call) -> float:
    """When the response ended, cleanly."""
    await call.over()
    assert call.ended
    return now()


@virtual_time
async def test_a_durable_response_ends_with_a_control_that_has_moved_on():
    async with open_site() as site:
        rotating(site)
        await site.put("t", "[1]", JSON)
        for query in ("offset=-1", "offset=now", f"offset={at(1)}"):
            begun = now()
            call = site.call("GET", f"t?{query}&live=sse")
            assert EARLIEST <= await over(call) - begun <= LATEST
            first, *_, last = [json.loads(e.data) for e in Decoder().feed(call.body) if e.event == "control"]
            assert int(last["streamCursor"]) > int(first["streamCursor"])
            assert last == {"streamNextOffset": at(1), "streamCursor": last["streamCursor"], "upToDate": True}
            assert call.body.endswith(b"\n\n")


@virtual_time
async def test_the_cursor_moves_on_even_within_one_interval():
    async with open_site() as site:
        site.app.delivery.policy = Policy(rotate_seconds=1)
        await site.put("t")
        cursor, seen = "", []
        for _ in range(5):
            call = site.call("GET", f"t?offset=-1&live=sse{cursor}")
            await over(call)
            seen += [int(json.loads(event.data)["streamCursor"]) for event in Decoder().feed(call.body)]
            cursor = f"&cursor={seen[-1]}"
        assert len(seen) == 10
        assert sorted(set(seen)) == seen


@virtual_time
async def test_an_event_source_sees_nothing_but_a_connection_that_ends():
    async with open_site() as site:
        rotating(site)
        await site.put("t", "[1]", JSON)
        call = site.call("GET", "t?format=sse")
        assert EARLIEST <= await over(call) <= LATEST
        assert [event.event for event in Decoder().feed(call.body)] == ["message"]
        begun = now()
        again = site.call("GET", "t?format=sse", last_event_id=at(1))
        assert EARLIEST <= await over(again) - begun <= LATEST
        assert Decoder().feed(again.body) == []


@virtual_time
async def test_who_reads_from_now_on_is_not_sent_away_before_it_knows_where_that_is():
    async with open_site() as site:
        rotating(site)
        await site.put("t", "[1]", JSON)
        call = site.call("GET", "t?format=sse&offset=now")
        await asyncio.sleep(10 * SECONDS)
        assert not call.is_over
        await site.post("t", "2", JSON)
        await over(call)
        assert [event.id for event in Decoder().feed(call.body)] == [at(2)]


@pytest.mark.parametrize("form", [Lines(JSON), Raw(JSON), ServerSentEvents(JSON, named=False)])
def test_who_could_not_tell_it_from_the_end_is_left_alone(form: Format):
    @virtual_time
    async def run() -> None:
        async with open_site() as site:
            rotating(site)
            await site.streams.create("t", 1)

            async def app(scope, receive, send):
                await site.app.delivery.respond(scope, receive, send, await site.streams.cursor("t"), form)

            call = Site(site.streams, app).call("GET", "/")  # type: ignore[arg-type]
            await asyncio.sleep(20 * SECONDS)
            assert not call.is_over
            await call.leave()

    run()


@virtual_time
async def test_without_being_asked_nothing_rotates():
    async with open_site() as site:
        await site.put("t")
        call = site.call("GET", "t?offset=-1&live=sse")
        await asyncio.sleep(3600)
        assert not call.is_over
        await call.leave()


@virtual_time
async def test_those_who_came_together_do_not_all_come_back_together():
    async with open_site() as site:
        rotating(site)
        await site.put("t")
        calls = [site.call("GET", "t?offset=-1&live=sse") for _ in range(200)]
        ends = sorted(await asyncio.gather(*map(over, calls)))
        assert len({round(end) for end in ends}) >= 8
        assert EARLIEST <= ends[0] < ends[-1] <= LATEST
        assert repr(site.app.delivery.rounds) == "<Rounds [0 looked after]>"


@virtual_time
async def test_a_stream_that_ends_first_tells_its_own_end():
    async with open_site() as site:
        rotating(site)
        await site.put("t", "[1]", JSON)
        call = site.call("GET", "t?offset=-1&live=sse")
        await asyncio.sleep(30)
        await site.post("t", stream_closed="true")
        assert await over(call) == 30
        assert b'"streamClosed":true' in call.body


@pytest.mark.parametrize("form", ["live=sse", "format=sse"])
def test_ten_rotations_lose_nothing_and_repeat_nothing(form):
    @virtual_time
    async def run() -> None:
        async with open_site() as site:
            rotating(site)
            await site.put("t", content_type=JSON)
            writing = asyncio.create_task(write(site))
            got: list[int] = []
            offset, cursor, rotations, ended = "-1", "", 0, False
            while not ended:
                call = site.call("GET", f"t?{form}&offset={offset}{cursor}")
                await over(call)
                ended = call.status == 204  # closed in the pause between two connections
                rotations += 1
                await asyncio.sleep(0.5)  # as the client is asked to wait
                for event in Decoder().feed(call.body):
                    if event.event == "control":
                        said = json.loads(event.data)
                        offset, cursor = said["streamNextOffset"], f"&cursor={said.get('streamCursor')}"
                        ended = said.get("streamClosed", False)
                    elif event.event == "end":
                        ended = True
                    else:
                        value = json.loads(event.data)
                        got += value if isinstance(value, list) else [value]
                        offset = event.id or offset
            await writing
            assert rotations > 10
            assert got == await log(site)

    run()


async def write(site: Site) -> None:
    """For eleven minutes, in bursts and with pauses."""
    n = 0
    while now() < 11 * SECONDS:
        for _ in range(n % 7):
            await site.post("t", json.dumps(n), JSON)
        n += 1
        await asyncio.sleep(n % 5 * 0.25)
    await site.post("t", stream_closed="true")


async def log(site: Site) -> list[int]:
    values, offset = [], "-1"
    while True:
        page = await site.ask("GET", f"t?offset={offset}")
        values += page.json()
        offset = page.headers["stream-next-offset"]
        if "stream-up-to-date" in page.headers:
            return values
