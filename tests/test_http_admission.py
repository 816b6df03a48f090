"""http/admission.py: how fast one client may write and how many may follow, and what those over it are told."""

import asyncio
from contextlib import suppress

import pytest

from asgi_client import every_way  # noqa: F401 -- a fixture: all tests here go every way
from headwater.errors import TooManyRequests
from headwater.http.admission import MOST_CLIENTS, READERS_RETRY_SECONDS, Admission, Bounds, place
from headwater.http.auth import Keys, Principal
from headwater.testing import virtual_time
from http_site import Site, open_site, refused

KEY_HASHES = {
    "one": "7692c3ad3540bb803c020b3aee66cd8887123234ea0c6e7143c0add73ff431ed",
    "two": "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3",
}
KEYS = Keys({digest: Principal(name) for name, digest in KEY_HASHES.items()})


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def written(admission: Admission, times: int, client: str = "c") -> int:
    """How many of so many attempts were let in."""
    before = admission.refused
    for _ in range(times):
        with suppress(TooManyRequests):
            admission.write(client)
    return times - (admission.refused - before)


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.5, 1, 3, 20, 1000])
def test_a_client_writes_at_its_rate_and_twice_as_much_after_a_pause(rate):
    clock = Clock()
    admission = Admission(Bounds(appends_per_second=rate), clock)
    burst = max(1, round(2 * rate))
    for pause in (0, 100, 100_000):
        clock.now += pause
        assert written(admission, 3 * burst) == burst
        let_in = 0
        for _ in range(100):
            clock.now += 1 / rate
            let_in += written(admission, 3)
        assert let_in == 100


def test_the_pause_that_is_told_is_the_right_one():
    clock = Clock()
    admission = Admission(Bounds(appends_per_second=0.3), clock)
    for _ in range(10):
        written(admission, 1)
        with pytest.raises(TooManyRequests) as refusal:
            admission.write("c")
        seconds = refusal.value.detail["retry_after"]
        assert isinstance(seconds, int)
        clock.now += seconds - 1
        assert written(admission, 1) == 0, "and no longer than that"
        clock.now += 1
        assert written(admission, 1) == 1


def test_clients_do_not_use_up_each_others_rate():
    admission = Admission(Bounds(appends_per_second=1), Clock())
    assert [written(admission, 5, client) for client in ("a", "b", "a", "c")] == [2, 2, 0, 2]


def test_without_a_bound_everything_is_let_in_and_nothing_is_remembered():
    admission = Admission()
    assert written(admission, 10_000) == 10_000
    assert not admission._paid_until


def test_memory_is_bounded_however_many_clients_there_are():
    clock = Clock()
    admission = Admission(Bounds(appends_per_second=1), clock)
    for n in range(3 * MOST_CLIENTS):
        admission.write(f"client {n}")
        assert len(admission._paid_until) <= MOST_CLIENTS
    clock.now += 3
    for n in range(MOST_CLIENTS):
        admission.write("the only one" if n % 2 else f"some {n % 100}")
        clock.now += 1
    assert len(admission._paid_until) <= 3, "those who have been silent are forgotten"


# -- reading ----------------------------------------------------------------------------------------------------------


def test_readers_are_counted_while_they_read():
    admission = Admission(Bounds(readers=3, readers_per_client=2))
    with admission.reader("a"), admission.reader("a"):
        with pytest.raises(TooManyRequests, match="2 streams at once"), admission.reader("a"):
            pass
        with admission.reader("b"):
            with pytest.raises(TooManyRequests, match="as many readers as it takes") as refusal, admission.reader("c"):
                pass
            assert refusal.value.detail == {"retry_after": READERS_RETRY_SECONDS}
        with pytest.raises(ZeroDivisionError), admission.reader("b"):
            _ = 1 / 0
        assert admission.statistics() == {"readers": 2, "refused": 2}
    assert (admission.readers, admission._following) == (0, {})


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (("203.0.113.7", 5), "203.0.113.7"),
        (("2001:db8:1:2:3:4:5:6", 5), "2001:db8:1:2::/64"),
        (("2001:db8:1:2::9", 5), "2001:db8:1:2::/64"),
        (("fe80::1%eth0", 5), "fe80::/64"),
        (("::ffff:203.0.113.7", 5), "203.0.113.7"),
        (("testclient", 5), "testclient"),
        (("no:address", 5), "no:address"),
        (None, ""),
    ],
)
def test_an_address_is_one_customers(client, said):
    assert place(client) == said


@virtual_time
async def test_who_leaves_a_long_poll_leaves_its_place_at_once():
    admission = Admission(Bounds(readers=1))
    async with open_site(admission=admission) as site:
        await site.put("t")
        call = site.call("GET", "t?offset=now&live=long-poll")
        while not admission.readers:
            await asyncio.sleep(0)
        await call.leave()
        assert (admission.readers, call.status) == (0, None)
        assert asyncio.get_running_loop().time() < 1


# -- over HTTP --------------------------------------------------------------------------------------------------------


def admission_on_the_loop(bounds: Bounds) -> Admission:
    return Admission(bounds, asyncio.get_running_loop().time)


@virtual_time
async def test_every_request_that_writes_counts_and_none_that_reads():
    async with open_site(admission=admission_on_the_loop(Bounds(appends_per_second=2))) as site:
        for method, name in [("PUT", "t"), ("POST", "t"), ("PUT", "u"), ("DELETE", "u")]:
            assert (await site.ask(method, name, b"1", content_type="text/plain")).status in (201, 204)
        for method in ("PUT", "POST", "DELETE"):
            over = await site.ask(method, "t", b"2", content_type="text/plain")
            refused(over, 429, "too_many_requests")
            assert (over.headers["retry-after"], over.json()["error"]["retry"]) == ("1", True)
        for url in ("t", "t?offset=-1&live=long-poll", "/v1/streams", "/v1/streams/t"):
            assert (await site.ask("GET", url)).status == 200
        await asyncio.sleep(1)
        assert [(await site.post("t", "3")).status for _ in range(3)] == [204, 204, 429]
        assert (await site.ask("GET", "t")).body == b"1133"


@virtual_time
async def test_a_body_that_comes_too_fast_is_not_taken_in():
    async with open_site(admission=admission_on_the_loop(Bounds(appends_per_second=1))) as site:
        await site.put("t")
        await site.post("t", "x")

        async def never():
            raise AssertionError("the body was asked for")

        call = site.call("POST", "t", b"x", content_type="text/plain")
        call._receive = never  # type: ignore[method-assign]
        refused(await call.done(), 429, "too_many_requests")


@virtual_time
async def test_a_key_is_a_client_and_so_is_an_address_without_keys():
    bounds = Bounds(appends_per_second=1, readers_per_client=1)
    async with open_site(auth=KEYS, admission=admission_on_the_loop(bounds)) as site:

        async def post(key: str) -> int:
            call = await site.post("t", "x", authorization=f"Bearer {key}")
            return call.status or 0

        await site.streams.create("t", content_type="text/plain")
        assert [await post(key) for key in ("one", "one", "one", "two", "two", "two")] == [204, 204, 429, 204, 204, 429]
        assert await post("none") == 401
    async with open_site(admission=admission_on_the_loop(bounds)) as site:
        await site.put("t")
        assert [(await site.post("t", "x", authorization=f"Bearer {n}")).status for n in range(3)] == [204, 429, 429]


LIVE = ["offset=-1&live=sse", "format=sse", "format=ndjson", "offset=now&live=long-poll"]


@pytest.mark.parametrize("url", LIVE)
def test_a_live_reader_has_a_place_and_leaves_it(url):
    @virtual_time
    async def run() -> None:
        admission = admission_on_the_loop(Bounds(readers=2))
        async with open_site(admission=admission) as site:
            await site.put("t")
            calls = [site.call("GET", f"t?{url}") for _ in range(2)]
            await asyncio.sleep(0.1)
            for other in LIVE:
                over = await site.ask("GET", f"t?{other}")
                refused(over, 429, "too_many_requests")
                assert over.headers["retry-after"] == str(READERS_RETRY_SECONDS)
            assert (await site.ask("GET", "t")).status == 200, "catching up is no live reading"
            await site.post("t", stream_closed="true")
            for call in calls:
                await call.done()
            assert admission.readers == 0
            await nobody_reads(site)

    run()


async def nobody_reads(site: Site) -> None:
    await asyncio.sleep(0)
    assert site.streams.statistics()["readers"] == 0


class Silent:
    name = "silent"

    async def run(self, given, sink):
        await asyncio.sleep(1000)


@virtual_time
async def test_who_follows_a_run_is_a_reader_too():
    admission = admission_on_the_loop(Bounds(readers_per_client=1))
    async with open_site(sources=[Silent()], admission=admission) as site:
        started = await site.ask("POST", "/v1/runs", b'{"agent": "silent", "input": "x"}')
        url = f"/v1/runs/{started.json()['id']}/events"
        first = await site.call("GET", url).started()
        refused(await site.ask("GET", url), 429, "too_many_requests")
        await first.leave()
        second = await site.call("GET", url).started()
        assert second.status == 200
        await second.leave()
        assert admission.readers == 0


@virtual_time
async def test_what_may_pass_says_when():
    async with open_site() as site:
        await site.put("t")
        site.streams.drain()
        for url in ("t?format=sse", "t?offset=-1&live=sse", "/readyz"):
            away = await site.ask("GET", url)
            assert (away.status, away.headers["retry-after"]) == (503, "1")
