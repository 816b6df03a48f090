"""Forks over HTTP (Durable Streams 4.2): what the headers may say, who may fork what, and what deleting leaves."""

import asyncio
import hashlib

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_client import Client
from headwater import Limits, Streams
from headwater.http import App
from headwater.http.auth import Keys, Principal
from headwater.model import Retention
from headwater.testing import virtual_time
from http_site import Site, facts, open_site, refused

JSON = "application/json"
ZERO, BEYOND = f"{0:016d}_{0:016d}", f"{10**16 - 1}_{10**16 - 1}"
SOURCE = {"stream_forked_from": "/v1/stream/src"}


async def offsets(site: Site, name: str, *bodies: str) -> list[str]:
    """Make a text stream of these messages; the offset after each."""
    made = [await site.put(name, content_type="text/plain")]
    made += [await site.post(name, body) for body in bodies]
    return [call.headers["stream-next-offset"] for call in made]


@virtual_time
async def test_a_fork_has_what_its_source_had_and_goes_its_own_way():
    async with open_site(known_offsets=False) as site:
        at = await offsets(site, "src", "one ", "two ", "three ")
        for n, (offset, text) in enumerate(
            [(None, "one two three "), (at[1], "one "), (ZERO, ""), (at[3], "one two three ")]
        ):
            asked = SOURCE if offset is None else {**SOURCE, "stream_fork_offset": offset}
            made = await site.put(f"fork/{n}", **asked)
            assert (made.status, made.headers["location"]) == (201, f"http://testserver/v1/stream/fork/{n}")
            assert (await site.put(f"fork/{n}", **asked)).status == 200
            assert (await site.post(f"fork/{n}", "mine")).status == 204
            for method in ("GET", "HEAD", "PUT"):
                told = await site.ask(method, f"fork/{n}", **(asked | {"content_type": "text/plain"}))
                assert not [name for name in told.headers if "fork" in name and not name.startswith("access-control")]
            assert (await site.ask("GET", f"fork/{n}")).body == text.encode() + b"mine"
        await site.post("src", "four")
        assert (await site.ask("GET", "fork/0")).body == b"one two three mine"
        assert (await site.ask("GET", "src")).body == b"one two three four"


@virtual_time
async def test_a_sub_offset_counts_bytes_or_json_messages():
    async with open_site(known_offsets=False) as site:
        await offsets(site, "src", "hello")
        await site.put("j", "[1,2,3]", JSON)
        bytes_ = await site.put("b", "!", **SOURCE, stream_fork_offset=ZERO, stream_fork_sub_offset="3")
        assert bytes_.status == 201
        assert (await site.ask("GET", "b")).body == b"hel!"
        asked = {"stream_forked_from": "/v1/stream/j", "stream_fork_offset": ZERO, "stream_fork_sub_offset": "2"}
        assert (await site.put("k", content_type=JSON, **asked)).status == 201
        assert (await site.ask("GET", "k")).json() == [1, 2]
        refused(
            await site.put("k", content_type=JSON, **(asked | {"stream_fork_sub_offset": "1"})), 409, "stream_exists"
        )
        refused(await site.put("l", content_type=JSON, **(asked | {"stream_fork_sub_offset": "4"})), 400, "bad_request")


WRONG = [
    {"stream_forked_from": ""},
    {"stream_forked_from": "src"},
    {"stream_forked_from": "/v1/stream/"},
    {"stream_forked_from": "/v1/streams/src"},
    {"stream_forked_from": "/elsewhere/v1/stream/src"},
    {"stream_forked_from": "http://testserver/v1/stream/src"},
    {"stream_forked_from": "/v1/stream/src?offset=-1"},
    {"stream_forked_from": "/v1/stream/src#top"},
    {"stream_forked_from": "/v1/stream/sr\xe9"},
    {"stream_forked_from": "/v1/stream/a/../src"},
    *({**SOURCE, "stream_fork_offset": bad} for bad in ("", "-1", "now", "1", "x", BEYOND)),
    *(
        {**SOURCE, "stream_fork_offset": ZERO, "stream_fork_sub_offset": bad}
        for bad in ("-1", "abc", "1.5", "05", "+1", "", " 1", "9" * 5000, "6")
    ),
    {**SOURCE, "stream_fork_sub_offset": "1"},
    {"stream_fork_sub_offset": "0"},
    {"stream_fork_offset": ZERO},
]


@pytest.mark.parametrize("headers", WRONG, ids=lambda given: " ".join(map(str, given.values()))[:60])
def test_what_is_no_fork(headers):
    @virtual_time
    async def run() -> None:
        async with open_site(known_offsets=False) as site:
            await offsets(site, "src", "hello")
            call = await site.put("f", **headers)
            assert (call.status, call.json()["error"]["code"].startswith("bad_")) == (400, True), call.body
            assert (await site.ask("HEAD", "f")).status == 404
            await site.ask("DELETE", "src")
            assert (await site.ask("HEAD", "src")).status == 404, "no reference was left behind"

    run()


@virtual_time
async def test_a_source_is_named_by_either_base_and_with_escapes():
    async with open_site(known_offsets=False) as site:
        await offsets(site, "a b/c", "x")
        for n, path in enumerate(["/v1/stream/a%20b/c", "/streams/a%20b%2Fc", "/v1/stream/a b/c", "/streams/a b/c"]):
            assert (await site.put(f"f{n}", stream_forked_from=path)).status == 201
            assert (await site.ask("GET", f"f{n}")).body == b"x"
        refused(await site.put("f", stream_forked_from="/v1/stream/none"), 404, "stream_not_found")


async def test_a_source_is_named_as_the_client_sees_it_where_the_application_is_mounted():
    async with Streams("memory:") as streams:
        site = Client(Starlette(routes=[Mount("/deep/headwater", App(streams))]))
        await site.ask("PUT", "/deep/headwater/v1/stream/src", "x", content_type="text/plain")
        there = {"stream_forked_from": "/deep/headwater/v1/stream/src"}
        assert (await site.ask("PUT", "/deep/headwater/v1/stream/f", **there)).status == 201
        assert (await site.ask("PUT", "/deep/headwater/v1/stream/g", **SOURCE)).status == 400


@virtual_time
async def test_what_is_not_said_is_as_the_source_has_it():
    async with open_site(known_offsets=False) as site:
        await site.put("src", "[1]", JSON, stream_ttl="100", stream_retention="messages=1000")
        made = await site.ask("PUT", "f", **SOURCE)
        assert (made.status, made.headers["content-type"], made.headers["stream-ttl"]) == (201, JSON, "100")
        own = await site.ask("PUT", "g", stream_ttl="5", **SOURCE)
        assert own.headers["stream-ttl"] == "5"
        refused(await site.put("h", content_type="text/plain", **SOURCE), 409, "content_type_mismatch")
        assert (await site.ask("HEAD", "h")).status == 404
        await site.ask("PUT", "plain")
        assert (await site.ask("HEAD", "plain")).headers["content-type"] == "application/octet-stream"


@virtual_time
async def test_a_body_without_a_type_is_taken_for_what_the_source_holds():
    async with open_site(known_offsets=False) as site:
        await site.put("src", "[1]", JSON)
        assert (await site.ask("PUT", "f", "[2,3]", **SOURCE)).status == 201
        assert (await site.ask("GET", "f")).json() == [1, 2, 3]
        refused(await site.ask("PUT", "g", "[2,", **SOURCE), 400, "bad_request")
        refused(await site.ask("PUT", "g", "[2]", stream_forked_from="/v1/stream/none"), 404, "stream_not_found")
        await site.ask("DELETE", "src")
        assert (await site.ask("PUT", "f", "[2,3]", **SOURCE)).status == 200, "the retry of what was made"
        refused(await site.ask("PUT", "g", "[2]", **SOURCE), 409, "conflict")
        await offsets(site, "text", "é")
        await site.ask("PUT", "h", b"\xff[", stream_forked_from="/v1/stream/text")
        assert (await site.ask("GET", "h")).body == "é".encode() + b"\xff["


@virtual_time
async def test_a_deleted_source_is_gone_for_everybody_but_its_forks():
    async with open_site(known_offsets=False) as site:
        at = await offsets(site, "src", "one")
        await site.put("f", **SOURCE)
        assert (await site.ask("DELETE", "src")).status == 204
        for method, url, body, headers in [
            ("GET", "src", b"", {}),
            ("GET", f"src?offset={at[1]}", b"", {}),
            ("GET", "src?offset=-1&live=long-poll", b"", {}),
            ("GET", "src?offset=-1&live=sse", b"", {}),
            ("GET", "src?format=sse", b"", {}),
            ("POST", "src", b"x", {"content_type": "text/plain"}),
            ("POST", "src", b"[", {"content_type": JSON}),
            ("POST", "src", b"", {"stream_closed": "true"}),
            ("DELETE", "src", b"", {}),
            ("GET", "/v1/streams/src", b"", {}),
        ]:
            refused(await site.ask(method, url, body, **headers), 410, "stream_deleted")
        head = await site.ask("HEAD", "src")
        assert (head.status, head.headers["cache-control"]) == (410, "no-store")
        refused(await site.put("src"), 409, "stream_exists")
        refused(await site.put("g", **SOURCE), 409, "conflict")
        listed = (await site.ask("GET", "/v1/streams")).json()["streams"]
        assert [(one["name"], one["messages"], one["bytes"]) for one in listed] == [("f", 1, 0)]
        assert (await site.ask("GET", "f")).body == b"one"
        assert (await site.ask("DELETE", "f")).status == 204
        async with asyncio.timeout(60):
            while (await site.ask("HEAD", "src")).status == 410:
                await asyncio.sleep(0.1)
        assert (await site.put("src")).status == 201


GRANTS = {
    "writer": Principal("writer", streams=("forks/*",)),
    "reader": Principal("reader", frozenset({"read"}), ("src", "runs/*", "headwater/*")),
    "both": Principal("both", streams=("forks/*", "src", "runs/*", "headwater/*")),
}


@virtual_time
async def test_forking_takes_create_on_the_fork_and_read_on_the_source():
    keys = Keys({hashlib.sha256(name.encode()).hexdigest(): principal for name, principal in GRANTS.items()})
    async with open_site(auth=keys, known_offsets=False) as site:
        for name in ("src", "runs/1", "headwater/x"):
            await site.streams.create(name, b"1", content_type="text/plain")

        async def fork(who: str, name: str, source: str) -> int:
            headers = {"authorization": f"Bearer {who}", "stream_forked_from": f"/v1/stream/{source}"}
            return (await site.put(name, **headers)).status or 0

        assert await fork("writer", "forks/1", "src") == 403
        assert await fork("writer", "forks/1", "none") == 403, "nothing is told of what may not be read"
        assert await fork("reader", "forks/1", "src") == 403
        assert await fork("both", "forks/1", "src") == 201
        assert await fork("both", "forks/2", "runs/1") == 201, "what may be read may be forked"
        assert await fork("both", "headwater/y", "src") == 403
        assert await fork("both", "forks/3", "headwater/x") == 403
        assert (await site.put("forks/4", **SOURCE)).status == 401


@virtual_time
async def test_a_page_goes_across_where_a_fork_begins_as_far_as_it_may():
    async with open_site(Limits(page_bytes=10), known_offsets=False) as site:
        await offsets(site, "src", "abc")
        for n, source in enumerate(["src", "f0", "f1"]):
            await site.put(f"f{n}", stream_forked_from=f"/v1/stream/{source}")
            await site.post(f"f{n}", "de" if n < 2 else "12345")
        first = await site.ask("GET", "f2")
        assert (first.body, "stream-up-to-date" in first.headers) == (b"abcdede", False), "the rest would be too much"
        last = await site.ask("GET", f"f2?offset={first.headers['stream-next-offset']}")
        assert (last.body, "stream-up-to-date" in last.headers) == (b"12345", True)
        again = await site.ask("GET", "f2", if_none_match=first.headers["etag"])
        assert again.status == 304


@virtual_time
async def test_a_fork_is_followed_across_the_border_and_to_its_own_end():
    async with open_site(known_offsets=False) as site:
        await offsets(site, "src", "one", "two")
        await site.put("f", **SOURCE)
        calls = [site.call("GET", f"f?{query}") for query in ("format=text", "format=sse", "offset=-1&live=sse")]
        for call in calls:
            await call.until(b"two")
        await site.post("src", "not for forks")
        await site.post("f", "three", stream_closed="true")
        for call in calls:
            await call.done()
            assert (b"three" in call.body, b"not for forks" in call.body, call.ended) == (True, False, True)
        assert calls[0].body == b"onetwothree"
        assert facts(await site.ask("HEAD", "src")).get("stream-closed") is None


@virtual_time
async def test_a_fork_where_nothing_is_kept_says_where_it_could_be():
    async with open_site(
        Limits(sweep_seconds=1), known_offsets=False, retention=[("src", Retention(messages=2))]
    ) as site:
        at = await offsets(site, "src", *(["x"] * 10))
        while "stream-earliest-offset" not in (head := await site.ask("HEAD", "src")).headers:
            await asyncio.sleep(1)
        gone = await site.put("f", **SOURCE, stream_fork_offset=at[0])
        refused(gone, 410, "offset_gone")
        assert gone.headers["stream-earliest-offset"] == head.headers["stream-earliest-offset"]
        earliest = gone.json()["error"]["earliest"]
        assert (await site.put("f", **SOURCE, stream_fork_offset=earliest)).status == 201
