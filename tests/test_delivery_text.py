"""Text streams, read live: whatever messages and pages it is cut into, the decoded text is the text."""

import asyncio
import json
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_client import every_way  # noqa: F401 -- a fixture: all tests here go every way
from headwater import Limits
from headwater.delivery import HELD_BYTES, Policy
from headwater.testing import run_virtual, virtual_time
from headwater.wire.sse import Decoder, Event
from http_site import Site, at, open_site

TEXT = st.text(st.sampled_from("aé語😀\n z"), min_size=1, max_size=60)
SMILE = "😀".encode()


class Follower:
    """A client that decodes event by event and remembers the offset that each one gave."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.text = ""
        self.known: list[tuple[str, str]] = []
        """(offset, the text up to there)"""
        self.ended = False

    def take(self, data: bytes) -> None:
        for event in Decoder().feed(data):
            self._event(event)

    def _event(self, event: Event) -> None:
        if event.event == "control":
            said = json.loads(event.data)
            self.known.append((said["streamNextOffset"], self.text))
            self.ended = said.get("streamClosed", False)
        elif event.event == "end":
            self.ended = True
        else:
            self.text += event.data
            if event.id:
                self.known.append((event.id, self.text))


LIVE, NAMED, NDJSON = "offset={}&live=sse", "format=sse&offset={}", "format=ndjson&offset={}"


async def read(site: Site, url: str) -> Follower:
    follower = Follower(url)
    call = site.call("GET", f"t?{url}")
    await call.done()
    assert "\ufffd" not in call.text, "cut within a character"
    if "ndjson" in url:
        follower.text = "".join(json.loads(line) for line in call.text.splitlines())
        follower.ended = call.ended
    else:
        follower.take(call.body)
    return follower


def cut(data: bytes, places: set[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[begin:end] for begin, end in pairwise(borders)]


def small(site: Site, chunk_bytes: int) -> None:
    site.app.delivery.policy = Policy(chunk_bytes=chunk_bytes)


@settings(max_examples=150)
@given(text=TEXT, places=st.sets(st.integers(0, 400), max_size=30), chunk=st.integers(1, 40), data=st.data())
def test_a_text_is_the_same_however_it_is_cut_and_wherever_one_resumes(text, places, chunk, data):
    async def run() -> None:
        async with open_site() as site:
            small(site, chunk)
            await site.streams.create("t", *cut(text.encode(), places), content_type="text/plain", closed=True)
            for url in (LIVE, NAMED, NDJSON):
                whole = await read(site, url.format("-1"))
                assert (whole.text, whole.ended) == (text, True)
                for offset, before in whole.known[:-1]:
                    after = await read(site, url.format(offset))
                    assert before + after.text == text

    run_virtual(run())


@settings(max_examples=100)
@given(text=TEXT, places=st.sets(st.integers(0, 400), max_size=30), batches=st.lists(st.integers(1, 5), min_size=1))
def test_a_text_is_the_same_where_it_is_appended_while_it_is_read(text, places, batches):
    async def run() -> None:
        async with open_site() as site:
            small(site, 16)
            await site.streams.create("t", content_type="text/plain")
            calls = [site.call("GET", f"t?{url.format('-1')}") for url in (LIVE, NAMED)]
            parts = cut(text.encode(), places)
            for turn in range(len(parts)):
                size = batches[turn % len(batches)]
                some, parts = parts[:size], parts[size:]
                if some:
                    await site.streams.append("t", *some)
                if turn % 2:
                    await asyncio.sleep(1)
            await site.streams.close("t")
            for call in calls:
                await call.done()
                follower = Follower("")
                follower.take(call.body)
                assert (follower.text, follower.ended) == (text, True)
                offset, before = follower.known[len(follower.known) // 2]
                assert before + (await read(site, LIVE.format(offset))).text == text

    run_virtual(run())


@virtual_time
async def test_the_first_half_of_a_character_waits_for_the_second_without_turning():
    async with open_site() as site:
        await site.streams.create("t", b"a", content_type="text/plain")
        calls = [site.call("GET", f"t?{url.format('-1')}") for url in (LIVE, NAMED)]
        for call in calls:
            await call.until(b"data:a\n")
        takes = count_takes(site)
        await site.streams.append("t", SMILE[:2])
        await asyncio.sleep(10)
        assert takes() <= 2 * len(calls), "one look for each wake"
        for call in calls:
            assert call.body.count(at(2).encode()) == 0, "no offset within a character is told"
        await site.streams.append("t", SMILE[2:] + b"b")
        for call in calls:
            await call.until("data:😀b\n".encode())
        assert at(3) in calls[0].text
        assert f"id: {at(3)}\ndata:😀b" in calls[1].text
        assert asyncio.get_running_loop().time() == 10
        for call in calls:
            await call.leave()


def count_takes(site: Site) -> Callable[[], int]:
    """How often readers have looked since."""
    tail = site.streams.hub.known("t")
    assert tail is not None
    count, messages = 0, tail.messages

    def counted(*given):
        nonlocal count
        count += 1
        return messages(*given)

    tail.messages = counted  # type: ignore[method-assign]
    return lambda: count


@virtual_time
async def test_a_reader_that_begins_before_half_a_character_is_told_where_it_stands():
    async with open_site() as site:
        await site.streams.create("t", SMILE[:1], content_type="text/plain")
        call = site.call("GET", "t?offset=-1&live=sse")
        said = json.loads((await call.until(b"\n\n")).decode().partition("data:")[2])
        assert (said["streamNextOffset"], said["upToDate"]) == (at(0), True)
        for _ in range(3):
            assert await call.more() == b": hb\n"
        await site.streams.append("t", SMILE[1:], close=True)
        await call.done()
        assert "data:😀\n" in call.text


@virtual_time
async def test_what_never_becomes_a_character_is_sent_when_the_stream_is_closed():
    async with open_site() as site:
        await site.streams.create("t", b"a" + SMILE[:3], content_type="text/plain")
        calls = [site.call("GET", f"t?{url.format('-1')}") for url in (LIVE, NAMED)]
        await asyncio.sleep(1)
        assert not any(b"data:a" in call.body for call in calls)
        await site.streams.close("t")
        for call in calls:
            await call.done()
            assert b"data:a" + SMILE[:3] + b"\n" in call.body
            assert call.body.count(b"data:a") == 1


@pytest.mark.parametrize("size", [10, 3 * 1024 * 1024])
def test_a_message_that_fills_a_page_gets_the_one_that_completes_it(size):
    @virtual_time
    async def run() -> None:
        async with open_site(Limits(message_bytes=4 * 1024 * 1024)) as site:
            small(site, 5)
            text = b"x" * size + SMILE[:3]
            await site.streams.create("t", text, SMILE[3:] + b"tail", b"more", content_type="text/plain")
            call = site.call("GET", "t?offset=-1&live=sse")
            await call.until(b"tail\n")
            first = Follower("")
            first.take(call.body)
            assert first.known[0] == (at(2), "x" * size + "😀tail")
            await call.leave()

    run()


@virtual_time
async def test_what_is_too_much_to_wait_for_goes_as_it_is():
    async with open_site() as site:
        half = b"\xa9" + b"x" * 200_000 + b"\xc3"
        await site.streams.create("t", b"\xc3", *[half] * 3, content_type="text/plain")
        call = await site.call("GET", "t?offset=-1&live=sse").started()
        await asyncio.sleep(1)
        assert b"event: data" not in call.body
        await site.streams.append("t", *[half] * (HELD_BYTES // 200_000))
        await call.until(b"event: data")
        assert len(call.body) > HELD_BYTES
        await call.leave()
