"""delivery.py: one loop that follows, formats and sends; how it keeps alive, gives up and tells the end."""

import asyncio
import gc
import tracemalloc
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import asgi_client
from asgi_client import (
    Call,
    Client,
    every_way,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater.delivery import CONNECTION, Cut, Delivery, Policy
from headwater.errors import StoreUnavailable
from headwater.formats.durable import DurableEvents
from headwater.formats.format import Format
from headwater.formats.lines import Lines, Raw
from headwater.formats.sse import ServerSentEvents
from headwater.model import Page
from headwater.streams import Streams
from headwater.testing import run_virtual, virtual_time

OPENING = b": open\nretry: 500\n"
JSON = "application/json"
NAMED, DATA_ONLY = ServerSentEvents(JSON), ServerSentEvents(JSON, named=False)
START_MS = 1_700_000_000_000


class Connection:
    """The extension of headwater.server, as an application sees it."""

    def __init__(self) -> None:
        self.cuts: list[bool] = []

    def cut(self, *, at_once: bool = False) -> None:
        self.cuts.append(at_once)


class Bench:
    """Streams on the loop's own clock, with one stream `s`, and readers of it."""

    def __init__(self, policy: Policy | None = None) -> None:
        loop = asyncio.get_running_loop()
        self.streams = Streams("memory:", clock=lambda: START_MS + round(loop.time() * 1000))
        self.streams._commits._drawn = lambda: 0  # type: ignore[method-assign]  # offsets as `id_of` gives them
        self.delivery = Delivery(self.streams, policy or Policy())
        self.connection = Connection()

    async def __aenter__(self) -> "Bench":
        await self.streams.open()
        await self.streams.create("s")
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.streams.aclose()

    def read(
        self, format_: Format = NAMED, offset: str | None = None, *, extension: bool = False, name: str = "s"
    ) -> Call:
        async def app(scope: Any, receive: Any, send: Any) -> None:
            cursor = await self.streams.cursor(name, offset)
            await self.delivery.respond(scope, receive, send, cursor, format_, [("x-own", "1")])

        extensions = {CONNECTION: self.connection} if extension else None
        return Client(app, extensions=extensions).call("GET", "/")

    async def appended(self, *values: object) -> None:
        await self.streams.append("s", *values)


def id_of(position: int) -> bytes:
    return b"%016d_%016d" % (0, position)


def event(position: int, data: bytes) -> bytes:
    return b"id: %s\ndata:%s\n\n" % (id_of(position), data)


def nobody_is_left(bench: Bench) -> None:
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith(("call", "headwater-reader"))]
    assert bench.delivery.readers == 0
    assert repr(bench.delivery.rounds) == "<Rounds [0 looked after]>"
    assert bench.streams.statistics()["readers"] == 0
    assert bench.streams.on_drain == []
    tail = bench.streams.hub.known("s")
    assert tail is None or (not tail._waiters and not tail.readers)


# -- the first byte, the last byte ------------------------------------------------------------------------------------


@virtual_time
async def test_the_head_and_a_first_byte_come_at_once_though_nothing_has_happened():
    async with Bench() as bench:
        call = await bench.read().started()
        assert await call.until(OPENING) == OPENING
        assert (call.status, asyncio.get_running_loop().time()) == (200, 0)
        assert call.headers == {
            "content-type": "text/event-stream; charset=utf-8",
            "cache-control": "no-cache, no-transform",
            "x-accel-buffering": "no",
            "x-content-type-options": "nosniff",
            "x-own": "1",
        }
        await call.leave()
        nobody_is_left(bench)


@virtual_time
async def test_a_reader_gets_what_is_there_then_what_comes_then_the_end():
    async with Bench() as bench:
        await bench.appended({"n": 1}, {"n": 2})
        call = bench.read()
        await call.until(event(2, b'{"n":2}'))
        await bench.appended(3)
        assert await call.until(b"\n\n") == event(3, b"3")
        await bench.streams.append("s", 4, close=True, outcome="completed")
        await call.done()
        assert call.unread() == event(4, b"4") + b'id: %s\nevent: end\ndata:{"outcome":"completed"}\n\n' % id_of(4)
        assert call.ended
        nobody_is_left(bench)


@virtual_time
async def test_who_was_cut_anywhere_goes_on_where_it_was():
    async with Bench() as bench:
        await bench.appended(*range(1, 21))
        for position in range(21):
            call = bench.read(offset=id_of(position).decode())
            await call.until(event(20, b"20") if position < 20 else OPENING)
            await call.leave()
            assert call.body == OPENING + b"".join(event(n, b"%d" % n) for n in range(position + 1, 21))


@virtual_time
async def test_who_begins_at_the_tail_of_durable_events_is_told_where_that_is():
    async with Bench() as bench:
        call = bench.read(DurableEvents(JSON, "7"), "now")
        said = b'event: control\ndata:{"streamNextOffset":"%s","streamCursor":"7","upToDate":true}\n\n'
        assert await call.until(b"\n\n") == said % id_of(0)
        await bench.appended(1)
        assert await call.until(b"\n\n") == b"event: data\ndata:[1]\n\n"
        assert await call.until(b"\n\n") == said % id_of(1)
        assert len(call.chunks) == 2, "data and its control in one piece"
        await call.leave()


@virtual_time
async def test_what_happened_at_once_is_written_at_once_but_in_bounded_chunks():
    async with Bench(Policy(chunk_bytes=1000)) as bench:
        await bench.appended(*([b"x" * 90] * 100))
        call = bench.read(Raw(JSON))
        await call.until(b"x")
        await bench.streams.close("s")
        await call.done()
        assert call.body == (b"x" * 90 + b"\n") * 100
        assert max(map(len, call.chunks)) <= 1000
        assert len(call.chunks) < 40


# -- keeping alive ----------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_heartbeat_comes_after_exactly_15_s_of_silence_and_every_15_s():
    async with Bench() as bench:
        call = bench.read()
        await call.until(OPENING)
        beats = []
        for _ in range(4):
            assert await call.more() == b": hb\n"
            beats.append(asyncio.get_running_loop().time())
        assert beats == [15, 30, 45, 60]
        await call.leave()


@virtual_time
async def test_silence_counts_from_a_write_that_was_taken_late():
    async with Bench() as bench:
        call = bench.read()
        await asyncio.sleep(14.5)
        call.stall()
        await bench.appended(1)
        await asyncio.sleep(1)  # a round finds it writing
        call.take()
        await call.until(event(1, b"1"))
        assert await call.more() == b": hb\n"
        assert asyncio.get_running_loop().time() == 31
        await call.leave()


@virtual_time
async def test_no_heartbeat_while_data_flows():
    async with Bench() as bench:
        call = bench.read()
        for n in range(60):
            await asyncio.sleep(14)
            await bench.appended(n)
            await call.until(b"\n\n")
        assert b"hb" not in call.body
        await call.leave()


@virtual_time
async def test_messages_that_a_format_leaves_out_are_silence():
    class Nothing(Raw):
        heartbeat = b"."

        def render(self, page: Page) -> bytes:
            return b""

    async with Bench() as bench:
        call = bench.read(Nothing(JSON))
        for n in range(31):
            await asyncio.sleep(1)
            await bench.appended(n)
        assert call.body == b".."
        await call.leave()


@virtual_time
async def test_a_format_without_a_heartbeat_stays_silent():
    async with Bench() as bench:
        call = await bench.read(Raw(JSON)).started()
        await asyncio.sleep(3600)
        assert call.chunks == []
        await call.leave()
        nobody_is_left(bench)


# -- many, slow and stalled readers -----------------------------------------------------------------------------------


@virtual_time
async def test_many_readers_of_one_page_render_it_once():
    class Counted(ServerSentEvents):
        renders = 0

        def render(self, page: Page) -> bytes:
            Counted.renders += 1
            return super().render(page)

    async with Bench() as bench:
        calls = [bench.read(Counted(JSON)) for _ in range(200)]
        for call in calls:
            await call.until(OPENING)
        Counted.renders = 0
        for n in range(1, 11):
            await bench.appended(n)
            for call in calls:
                assert await call.until(b"\n\n") == event(n, b"%d" % n)
        assert Counted.renders == 10
        assert bench.delivery.statistics() == {
            "readers": 200, "served": 200, "dropped": 0, "lagged": 0, "skipped": 0, "closed_slow": 0,
        }  # fmt: skip
        for call in calls:
            await call.leave()
        nobody_is_left(bench)


async def grown_beside(stalled: int) -> int:
    """Bytes allocated while 6 MB go through one stream that one reader reads and `stalled` others do not."""
    async with Bench(Policy(write_seconds=3600)) as bench:
        quick, *slow = [bench.read(Raw(JSON)) for _ in range(1 + stalled)]
        await bench.appended(b"first")
        for call in slow:
            await call.until(b"first\n")
            call.stall()
        data, sent = b"x" * 20_000, ["first"]
        tracemalloc.start()
        for n in range(300):
            await bench.appended(n, data)
            await quick.until(b"x\n")
            quick.forget()
            sent += [str(n), data.decode()]
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        await bench.streams.close("s")
        for call in slow:  # nothing was dropped for it
            call.take()
            await call.done()
            assert call.text == "".join(f"{one}\n" for one in sent)
        await quick.done()
        return grown


def test_a_reader_that_does_not_read_is_only_behind_and_holds_no_memory():
    alone, beside = run_virtual(grown_beside(0)), run_virtual(grown_beside(20))
    assert beside - alone < 20 * 64 * 1024, "one chunk each at most, however much goes by"


@pytest.mark.parametrize("extension", [False, True])
@pytest.mark.parametrize(
    "format_", [NAMED, DATA_ONLY, Raw(JSON), DurableEvents(JSON, "7")], ids=["sse", "data only", "raw", "durable"]
)
def test_a_write_that_is_not_taken_for_30_s_is_given_up(extension, format_):
    @virtual_time
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Bench() as bench:
            call = await bench.read(format_, extension=extension).started()
            await bench.appended(1)
            await call.until(b"1")
            call.stall()
            await asyncio.sleep(3)
            await bench.appended(2)
            await asyncio.sleep(29.9)
            assert not call.is_over
            begun = loop.time()
            await call.over()
            assert loop.time() - begun < 1.2
            if extension:
                await call.done()
                assert bench.connection.cuts == [True]
            else:
                with pytest.raises(Cut):
                    await call.done()
            assert not call.ended
            assert bench.delivery.dropped == 1
            nobody_is_left(bench)

    run()


@virtual_time
async def test_a_client_that_takes_nothing_at_all_is_given_up_too():
    async with Bench() as bench:
        call = bench.read()
        call.stall()
        await asyncio.sleep(31)
        with pytest.raises(Cut):
            await call.done()
        nobody_is_left(bench)


@virtual_time
async def test_a_write_that_is_taken_in_time_is_not_given_up():
    async with Bench() as bench:
        call = bench.read()
        await call.until(OPENING)
        for n in range(1, 5):
            call.stall()
            await bench.appended(n)
            await asyncio.sleep(29)
            call.take()
            await call.until(event(n, b"%d" % n))
        assert bench.delivery.dropped == 0
        await call.leave()


@virtual_time
async def test_who_ends_the_server_at_the_moment_of_giving_up_is_heeded():
    if asgi_client.way == "direct":
        pytest.skip("its task is over by then")
    async with Bench() as bench:
        call = bench.read()
        await call.until(OPENING)
        call.stall()
        await bench.appended(1)
        asyncio.get_running_loop().call_at(30.0, call.task.cancel)  # the very round in which the write is given up
        await asyncio.wait([call.task])
        assert call.task.cancelled()
        nobody_is_left(bench)


@virtual_time
async def test_who_takes_nothing_does_not_hold_up_the_end_of_the_server():
    async with Bench() as bench:
        call = bench.read()
        await call.until(OPENING)
        call.stall()
        await bench.appended(1)
        await asyncio.sleep(5)
        bench.streams.drain()
        await asyncio.sleep(2)
        with pytest.raises(Cut):
            await call.done()
        nobody_is_left(bench)


# -- the end of a connection ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("when", ["waiting", "stalled"])
def test_a_client_that_leaves_ends_its_reader(when):
    @virtual_time
    async def run() -> None:
        async with Bench() as bench:
            call = bench.read()
            await call.until(OPENING)
            if when == "stalled":
                call.stall()
                await bench.appended(1)
                await asyncio.sleep(1)
            await call.leave()
            assert asyncio.get_running_loop().time() <= 1
            assert bench.delivery.dropped == 0
            nobody_is_left(bench)

    run()


@virtual_time
async def test_a_cancelled_response_leaves_nothing_behind():
    if asgi_client.way == "direct":
        pytest.skip("its task is over by then")
    async with Bench() as bench:
        call = bench.read()
        await call.until(OPENING)
        call.task.cancel()
        await asyncio.wait([call.task])
        assert call.task.cancelled()
        nobody_is_left(bench)


async def drain(bench: Bench) -> None:
    bench.streams.drain()


async def delete(bench: Bench) -> None:
    await bench.streams.delete("s")


async def close_as_failed(bench: Bench) -> None:
    await bench.streams.close("s", "failed")


async def close_as_cancelled(bench: Bench) -> None:
    await bench.streams.close("s", "cancelled")


async def lose_the_store(bench: Bench) -> None:
    async def load(name: str) -> Any:
        raise StoreUnavailable("/var/lib/app.db: disk full")  # for the log, not for readers

    bench.streams.store.load = load  # type: ignore[method-assign]
    bench.streams.hub.known("s").forget()  # type: ignore[union-attr]


CLEAN, CUT = True, False
SAID = b'event: interrupted\n%sdata:{"code":"%s","message":"%s","retry":%s}\n\n'
GOING = (b"retry: 500\n", b"draining", b"the server is going away; connect again", b"true")
GONE = (b"", b"stream_not_found", b"this stream is gone", b"false")
AWAY = (b"retry: 500\n", b"store_unavailable", b"the store cannot be used right now", b"true")
FAILED = b'id: %s\nevent: end\ndata:{"outcome":"failed"}\n\n' % id_of(1)
CONTROL_END = b'event: control\ndata:{"streamNextOffset":"%s","streamClosed":true,"upToDate":true}\n\n' % id_of(1)

ENDS: dict[str, tuple[Callable[[Bench], Awaitable[None]], Format, bytes, bool]] = {
    "drain, named": (drain, NAMED, SAID % GOING, CLEAN),
    "drain, data only": (drain, DATA_ONLY, b": interrupted: draining\n", CUT),
    "drain, durable": (drain, DurableEvents(JSON, "7"), b"", CLEAN),
    "drain, ndjson": (drain, Lines(JSON), b"", CUT),
    "drain, text": (drain, Raw(JSON), b"", CUT),
    "deleted, named": (delete, NAMED, SAID % GONE, CLEAN),
    "deleted, data only": (delete, DATA_ONLY, b": interrupted: stream_not_found\n", CUT),
    "deleted, text": (delete, Raw(JSON), b"", CUT),
    "store away, named": (lose_the_store, NAMED, SAID % AWAY, CLEAN),
    "store away, ndjson": (lose_the_store, Lines(JSON), b"", CUT),
    "failed, named": (close_as_failed, NAMED, FAILED, CLEAN),
    "failed, data only (its last message tells)": (close_as_failed, DATA_ONLY, b"", CLEAN),
    "failed, durable": (close_as_failed, DurableEvents(JSON, "7"), CONTROL_END, CLEAN),
    "failed, ndjson": (close_as_failed, Lines(JSON), b"", CUT),
    "failed, ndjson that tells": (close_as_failed, Lines(JSON, tells_failure=True), b"", CLEAN),
    "failed, text": (close_as_failed, Raw(JSON), b"", CUT),
    "cancelled, text": (close_as_cancelled, Raw(JSON), b"", CUT),
}


@pytest.mark.parametrize("extension", [False, True])
@pytest.mark.parametrize(("what", "format_", "said", "clean"), ENDS.values(), ids=ENDS)
def test_only_an_end_that_is_told_is_a_clean_one(what, format_, said, clean, extension):
    @virtual_time
    async def run() -> None:
        async with Bench() as bench:
            await bench.appended(1)
            call = bench.read(format_, extension=extension)
            await call.until(b"1")
            await asyncio.sleep(1)
            call.skip()
            await what(bench)
            if clean or extension:
                await call.done()
            else:
                with pytest.raises(Cut):
                    await call.done()
            assert (call.unread(), call.ended) == (said, clean)
            assert bench.connection.cuts == ([False] if extension and not clean else [])
            nobody_is_left(bench)

    run()


@virtual_time
async def test_a_stream_that_was_closed_before_the_drain_tells_its_own_end():
    async with Bench() as bench:
        call = bench.read()
        await call.until(OPENING)
        await bench.streams.append("s", "last", close=True, outcome="failed")
        bench.streams.drain()
        await call.done()
        assert call.ended
        assert call.body.endswith(b'event: end\ndata:{"outcome":"failed"}\n\n')


@pytest.mark.parametrize("ttl", [2, 7, 100])
def test_a_stream_that_expires_under_a_reader_is_gone_within_a_second(ttl):
    @virtual_time
    async def run() -> None:
        loop = asyncio.get_running_loop()
        async with Bench() as bench:
            await bench.streams.create("short", ttl=ttl)
            await asyncio.sleep(0.4)
            call = bench.read(name="short")
            await call.until(OPENING)
            await asyncio.sleep(1.5)
            await bench.streams.append("short", 1)
            await call.until(b"\n\n")
            end = loop.time() + ttl
            await call.over()
            assert end <= loop.time() <= end + 1
            assert call.body.endswith(SAID % GONE)

    run()


@virtual_time
async def test_an_error_that_is_not_ours_leaves_the_application():
    class Broken(Raw):
        def render(self, page: Page) -> bytes:
            raise ZeroDivisionError

    async with Bench() as bench:
        await bench.appended(1)
        call = bench.read(Broken(JSON))
        with pytest.raises(ZeroDivisionError):
            await call.done()
        assert not call.ended
        nobody_is_left(bench)


class BrokenEvent(Raw):
    def render(self, page: Page) -> bytes:
        if any(message.data == b"2" for message in page.messages):
            raise ZeroDivisionError
        return super().render(page)


class BrokenPause(Raw):
    def pauses(self, page: Page) -> bool:
        if any(message.data == b"2" for message in page.messages):
            raise ZeroDivisionError
        return False


@pytest.mark.parametrize(("broken_format", "got"), [(BrokenEvent, b"1\n"), (BrokenPause, b"1\n2\n")])
def test_a_format_that_fails_later_ends_its_own_response_only(broken_format: type[Raw], got: bytes) -> None:
    run_virtual(_fails_later(broken_format, got))


async def _fails_later(broken_format: type[Raw], got: bytes) -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    async with Bench() as bench:
        broken, whole = bench.read(broken_format(JSON)), bench.read(Lines(JSON))
        await broken.started()
        await whole.started()
        for n in (1, 2, 3):
            await bench.appended(n)
            await whole.until(b"%d\n" % n)
        if asgi_client.way == "portable":
            with pytest.raises(ZeroDivisionError):
                await broken.done()
        else:
            with pytest.raises(Cut):
                await broken.done()
            gc.collect()
            assert [type(context["exception"]) for context in told] == [ZeroDivisionError], "it is logged"
        assert not broken.ended
        assert got.startswith(broken.body), "what it failed on may have gone out before"
        await whole.leave()
        nobody_is_left(bench)
