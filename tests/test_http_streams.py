"""`/v1/stream/{path}`: creating, appending, closing, deleting, expiring, catching up, listing.

Sections are those of the Durable Streams protocol.
"""

import asyncio
import json

import pytest

from headwater import Limits
from headwater.http.auth import OpenDoor
from headwater.model import Retention
from headwater.testing import virtual_time
from http_site import START_MS, at, facts, open_site, refused, safe

JSON = "application/json"
ZERO, BEYOND = f"{0:016d}_{0:016d}", f"{10**16 - 1}_{10**16 - 1}"


# -- create (5.1) -----------------------------------------------------------------------------------------------------


@virtual_time
async def test_put_creates_once_and_agrees_from_then_on():
    async with open_site() as site:
        made = await site.put("a/b", "hi", "text/plain; charset=UTF-8")
        assert (made.status, made.body) == (201, b"")
        assert facts(made) == {"stream-next-offset": at(1), "location": "http://testserver/v1/stream/a/b"}
        assert made.headers["content-type"] == "text/plain; charset=UTF-8"
        safe(made)
        for same in ("text/plain; charset=UTF-8", "TEXT/PLAIN", "text/plain;charset=x"):
            again = await site.put("a/b", "ignored", same)
            assert (again.status, facts(again)) == (200, {"stream-next-offset": at(1)})
        assert (await site.ask("GET", "a/b")).body == b"hi"


@virtual_time
async def test_put_with_another_configuration_is_a_conflict():
    async with open_site() as site:
        until = {"stream_expires_at": "2030-01-01T01:00:00Z"}
        await site.put("plain")
        await site.put("lasting", stream_ttl="60")
        await site.put("dated", **until)
        await site.put("ended", stream_closed="true")
        for name, headers in [
            ("plain", {"content_type": JSON}),
            ("plain", {"stream_ttl": "60"}),
            ("plain", until),
            ("plain", {"stream_closed": "true"}),
            ("lasting", {}),
            ("lasting", {"stream_ttl": "61"}),
            ("dated", {"stream_expires_at": "2030-01-01T01:00:01Z"}),
            ("ended", {}),
        ]:
            refused(await site.put(name, **headers), 409, "stream_exists")
        for name, headers in [
            ("lasting", {"stream_ttl": "60"}),
            ("dated", {"stream_expires_at": "2030-01-01T02:00:00+01:00"}),
            ("ended", {"stream_closed": "TRUE"}),
        ]:
            assert (await site.put(name, **headers)).status == 200


@virtual_time
async def test_put_without_a_content_type_is_bytes_and_a_closed_one_with_a_body_is_single_shot():
    async with open_site() as site:
        await site.ask("PUT", "bytes")
        assert (await site.ask("HEAD", "bytes")).headers["content-type"] == "application/octet-stream"
        made = await site.put("once", "[1,2]", JSON, stream_closed="true")
        assert (made.status, facts(made)["stream-closed"]) == (201, "true")
        assert (await site.ask("GET", "once")).json() == [1, 2]


@virtual_time
async def test_put_refuses_what_can_never_be():
    async with open_site() as site:
        for headers in [
            {"stream_ttl": "-1"},
            {"stream_ttl": "1.5"},
            {"stream_ttl": "1" * 5000},
            {"stream_expires_at": "tomorrow"},
            {"stream_ttl": "1", "stream_expires_at": "2031-01-01T00:00:00Z"},
        ]:
            refused(await site.put("s", **headers), 400, "bad_request")
        refused(await site.put("s", "[1,", JSON), 400, "bad_request")
        refused(await site.put("n" * 1025), 400, "bad_request")
        refused(await site.put("a%0Ab"), 400, "bad_request")
        refused(await site.ask("GET", "s"), 404, "stream_not_found")
        assert (await site.put("empty", "[]", JSON)).status == 201
        assert (await site.ask("GET", "empty")).json() == []


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        ("a%2Fb", "a/b"),
        ("a%3Fb", "a?b"),
        ("%C3%A9%20x", "é x"),
        ("a/.../b", "a/.../b"),
        ("a//b", "a//b"),
        ("50%25", "50%"),
    ],
)
def test_a_path_names_a_stream(asked, name):
    @virtual_time
    async def run() -> None:
        async with open_site() as site:
            made = await site.put(asked, "x")
            assert [found for found, _ in await site.streams.list()] == [name]
            location = made.headers["location"].removeprefix("http://testserver")
            assert (await site.ask("GET", location)).body == b"x"

    run()


# -- append and close (5.2, 5.3) --------------------------------------------------------------------------------------


@virtual_time
async def test_post_appends_and_what_was_appended_is_read():
    async with open_site() as site:
        await site.put("t")
        for n, part in enumerate(["one ", "two"], start=1):
            done = await site.post("t", part)
            told = {"stream-next-offset": at(n), "etag": f'"{at(n)}"'}
            assert (done.status, done.body, facts(done)) == (204, b"", told)
            safe(done)
        assert (await site.ask("GET", "t")).body == b"one two"
        await site.put("j", content_type=JSON)
        for body in ('{"a": 1}', "[1, [2]]", "[[3]]", "null"):
            assert (await site.post("j", body, JSON)).status == 204
        assert (await site.ask("GET", "j")).json() == [{"a": 1}, 1, [2], [3], None]


@virtual_time
async def test_post_refuses():
    async with open_site(Limits(message_bytes=100)) as site:
        await site.put("t")
        await site.put("j", content_type=JSON)
        await site.put("c", "x", stream_closed="true")
        refused(await site.post("t"), 400, "bad_request")
        refused(await site.ask("POST", "t", "x"), 400, "bad_request")
        refused(await site.post("j", "{", JSON), 400, "bad_request")
        refused(await site.post("j", "[]", JSON), 400, "bad_request")
        refused(await site.post("j", b'["\xff"]', JSON), 400, "bad_request")
        refused(await site.post("t", "x", JSON), 409, "content_type_mismatch")
        refused(await site.post("none", "x"), 404, "stream_not_found")
        refused(await site.post("none", "{", JSON), 404, "stream_not_found")
        refused(await site.post("t", "x" * 101), 413, "too_large")
        refused(await site.ask("POST", "t", "x", content_type="text/plain", content_length="101"), 413, "too_large")
        for body, kind in [("x", "text/plain"), ("x", JSON), ("{", JSON), ("[]", JSON)]:  # closed comes first
            late = await site.post("c", body, kind)
            refused(late, 409, "stream_closed")
            assert facts(late) == {"stream-closed": "true", "stream-next-offset": at(1)}
        assert (await site.ask("GET", "t")).body == b""


@virtual_time
async def test_closing():
    async with open_site() as site:
        await site.put("c")
        for kind in ("text/plain", JSON):  # closing alone ignores the content type, and may be said twice
            done = await site.post("c", content_type=kind, stream_closed="true")
            told = {"stream-closed": "true", "stream-next-offset": at(0), "etag": f'"{at(0)}"'}
            assert (done.status, facts(done)) == (204, told)
        await site.put("d")
        last = await site.post("d", "end", stream_closed="True")
        told = {"stream-closed": "true", "stream-next-offset": at(1), "etag": f'"{at(1)}"'}
        assert (last.status, facts(last)) == (204, told)
        refused(await site.post("d", "end", stream_closed="true"), 409, "stream_closed")
        await site.put("o")
        for word in ("false", "yes", "1"):
            assert (await site.post("o", "x", stream_closed=word)).status == 204
        assert "stream-closed" not in (await site.ask("HEAD", "o")).headers


@virtual_time
async def test_an_append_may_ask_for_the_offset_at_which_the_stream_ends():
    async with open_site() as site:
        await site.put("t")
        for n, value in enumerate([f'"{at(0)}"', at(1), f' "{at(2)}" ']):
            done = await site.post("t", f"{n}", if_match=value)
            assert (done.status, done.headers["etag"]) == (204, f'"{at(n + 1)}"'), "which the next one may use"
        late = await site.post("t", "x", if_match=f'"{at(2)}"')
        refused(late, 412, "offset_mismatch")
        assert facts(late) == {"etag": f'"{at(3)}"', "stream-next-offset": at(3)}
        assert late.json()["error"]["offset"] == at(3)
        for ahead in (at(4), BEYOND):
            refused(await site.post("t", "x", if_match=ahead), 412, "offset_mismatch")
        assert (await site.ask("GET", "t")).body == b"012"
        refused(await site.post("t", stream_closed="true", if_match=at(2)), 412, "offset_mismatch")
        assert (await site.post("t", stream_closed="true", if_match=at(3))).status == 204


@virtual_time
async def test_the_zero_offset_is_the_end_of_any_empty_stream():
    async with open_site(known_offsets=False) as site:
        made = await site.put("t")
        assert made.headers["stream-next-offset"] != ZERO
        assert (await site.post("t", "a", if_match=ZERO)).status == 204
        refused(await site.post("t", "b", if_match=ZERO), 412, "offset_mismatch")


@virtual_time
async def test_of_many_appends_on_one_condition_one_is_made():
    async with open_site() as site:
        await site.put("t")
        calls = await asyncio.gather(*[site.post("t", f"{n}", if_match=at(0)) for n in range(20)])
        assert sorted(call.status for call in calls) == [204] + [412] * 19
        assert len((await site.ask("GET", "t")).body) <= 2
        assert (await site.ask("HEAD", "t")).headers["stream-next-offset"] == at(1)


@virtual_time
async def test_what_comes_before_and_after_the_condition():
    async with open_site() as site:
        await site.put("t", "a")
        await site.post("t", "b", stream_seq="5")
        refused(await site.post("t", "x", JSON, if_match=at(0)), 409, "content_type_mismatch")
        refused(await site.post("t", "x", if_match=at(0), stream_seq="1"), 412, "offset_mismatch")
        refused(await site.post("t", "x", if_match=at(2), stream_seq="1"), 409, "sequence_regression")
        await site.post("t", stream_closed="true")
        refused(await site.post("t", "x", if_match=at(0)), 409, "stream_closed")
        refused(await site.post("none", "x", if_match=at(0)), 404, "stream_not_found")


@pytest.mark.parametrize(
    "value", ["", "*", '"*"', "x", "-1", "now", f'W/"{at(1)}"', f'"{at(1)}", "{at(2)}"', f'"{at(1)}', '"', f"{at(1)},"]
)
def test_what_is_no_condition(value):
    @virtual_time
    async def run() -> None:
        async with open_site() as site:
            await site.put("t", "a")
            refused(await site.post("t", "x", if_match=value), 400, "bad_request")
            assert (await site.ask("GET", "t")).body == b"a"

    run()


@virtual_time
async def test_a_condition_is_for_appends_without_a_producer_and_for_nothing_else():
    async with open_site() as site:
        await site.put("t", "a")
        refused(await site.post("t", "x", if_match=at(1), **stamp(0, 0)), 400, "bad_request")
        refused(await site.put("t", "a", if_match=at(0)), 400, "bad_request")
        refused(await site.ask("DELETE", "t", if_match=at(0)), 400, "bad_request")
        assert (await site.ask("GET", "t", if_match=at(0))).status == 200


@virtual_time
async def test_stream_seq_only_goes_up_byte_by_byte():
    async with open_site() as site:
        await site.put("t")
        for seq, status in [("1", 204), ("2", 204), ("10", 409), ("2", 409), ("3", 204), ("a", 204), ("B", 409)]:
            done = await site.post("t", seq, stream_seq=seq)
            assert done.status == status, seq
            if status == 409:
                refused(done, 409, "sequence_regression")
        assert (await site.ask("GET", "t")).body == b"123a"


def stamp(epoch: int, seq: int, producer: str = "p") -> dict[str, str]:
    return {"producer_id": producer, "producer_epoch": str(epoch), "producer_seq": str(seq)}


PRODUCED = [
    # epoch, seq -> status, Producer- headers, error code
    (0, 1, 409, {"producer-expected-seq": "0", "producer-received-seq": "1"}, "producer_gap"),
    (0, 0, 200, {"producer-epoch": "0", "producer-seq": "0"}, None),
    (0, 0, 204, {"producer-epoch": "0", "producer-seq": "0"}, None),
    (0, 1, 200, {"producer-epoch": "0", "producer-seq": "1"}, None),
    (0, 0, 204, {"producer-epoch": "0", "producer-seq": "1"}, None),
    (0, 3, 409, {"producer-expected-seq": "2", "producer-received-seq": "3"}, "producer_gap"),
    (1, 1, 400, {}, "bad_request"),
    (1, 0, 200, {"producer-epoch": "1", "producer-seq": "0"}, None),
    (0, 2, 403, {"producer-epoch": "1"}, "producer_fenced"),
]


@virtual_time
async def test_a_producer_is_counted_once_and_fenced_off():
    async with open_site() as site:
        await site.put("t")
        for epoch, seq, status, told, code in PRODUCED:
            done = await site.post("t", f"{epoch}.{seq} ", **stamp(epoch, seq))
            assert done.status == status, (epoch, seq)
            assert {name: value for name, value in facts(done).items() if name.startswith("producer-")} == told
            if code:
                refused(done, status, code)
        assert (await site.ask("GET", "t")).body == b"0.0 0.1 1.0 "
        refused(await site.ask("POST", "t", "x", content_type="text/plain", producer_id="p"), 400, "bad_request")


@virtual_time
async def test_a_failed_append_does_not_count_and_the_retry_of_the_closing_one_does():
    async with open_site() as site:
        await site.put("j", content_type=JSON)
        refused(await site.post("j", "{", JSON, **stamp(0, 0)), 400, "bad_request")
        assert (await site.post("j", "1", JSON, **stamp(0, 0))).status == 200
        closing = await site.post("j", "2", JSON, stream_closed="true", **stamp(0, 1))
        assert (closing.status, closing.headers["stream-closed"]) == (200, "true")
        for _ in range(2):
            again = await site.post("j", "2", JSON, stream_closed="true", **stamp(0, 1))
            assert (again.status, again.headers["stream-closed"], again.headers["producer-seq"]) == (204, "true", "1")
        refused(await site.post("j", "3", JSON, **stamp(0, 2)), 409, "stream_closed")
        await site.put("only", content_type=JSON)
        assert (await site.post("only", stream_closed="true", **stamp(0, 0))).status == 204


# -- delete, TTL and expiry (5.4, 5.1) --------------------------------------------------------------------------------


@virtual_time
async def test_delete_and_a_new_stream_under_the_name():
    async with open_site() as site:
        await site.put("t", "old")
        gone = await site.ask("DELETE", "t")
        assert (gone.status, gone.body) == (204, b"")
        for method in ("GET", "HEAD", "DELETE", "POST"):
            call = await site.ask(method, "t", "x" if method == "POST" else b"", content_type="text/plain")
            assert call.status == 404
        assert (await site.put("t", "new")).status == 201
        page = await site.ask("GET", "t")
        assert (page.body, page.headers["stream-next-offset"]) == (b"new", at(1, 1))
        refused(await site.ask("GET", f"t?offset={at(1)}"), 410, "offset_gone")


SLIDING = {
    "read": ("GET", "s", b"", {}, True),
    "read at now": ("GET", "s?offset=now", b"", {}, True),
    "append": ("POST", "s", b"x", {"content_type": "text/plain"}, True),
    "close": ("POST", "s", b"", {"stream_closed": "true"}, True),
    "head": ("HEAD", "s", b"", {}, False),
    "options": ("OPTIONS", "s", b"", {}, False),
    "refused append": ("POST", "s", b"x", {"content_type": JSON}, False),
    "list": ("GET", "/v1/streams", b"", {}, False),
}


@pytest.mark.parametrize(("method", "url", "body", "headers", "moves"), SLIDING.values(), ids=SLIDING)
def test_a_ttl_slides_with_reads_and_writes_and_is_exact(method, url, body, headers, moves):
    @virtual_time
    async def run() -> None:
        async with open_site() as site:
            await site.put("s", stream_ttl="10")
            await asyncio.sleep(9.998)
            await site.ask(method, url, body, **headers)
            await asyncio.sleep(0.002)
            assert (await site.ask("HEAD", "s")).status == (200 if moves else 404)
            await asyncio.sleep(9.997)
            assert (await site.ask("HEAD", "s")).status == (200 if moves else 404)
            await asyncio.sleep(0.001)
            assert (await site.ask("HEAD", "s")).status == 404

    run()


@virtual_time
async def test_an_absolute_expiry_never_moves_and_the_name_is_free_again():
    async with open_site() as site:
        made = await site.put("s", stream_expires_at="2030-01-01T00:00:10.5Z")
        assert facts(made)["stream-expires-at"] == "2030-01-01T00:00:10.500Z"
        await asyncio.sleep(10.499)
        assert (await site.post("s", "x")).status == 204
        assert (await site.ask("GET", "s")).status == 200
        await asyncio.sleep(0.001)
        for method in ("GET", "HEAD", "POST", "DELETE"):
            assert (
                await site.ask(method, "s", "x" if method == "POST" else "", content_type="text/plain")
            ).status == 404
        assert (await site.put("s", "y", stream_ttl="5")).status == 201
        assert facts(await site.ask("HEAD", "s")) == {"stream-next-offset": at(1, 1), "stream-ttl": "5"}


# -- retention (ours) -------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_retention_is_agreed_on_and_shown():
    async with open_site() as site:
        asked = "messages=1000,bytes=5000000, seconds=60"
        made = await site.put("t", stream_retention=asked)
        shown = "seconds=60, bytes=5000000, messages=1000"
        assert (made.status, made.headers["stream-retention"]) == (201, shown)
        assert (await site.put("t", stream_retention=shown)).status == 200
        assert (await site.put("t")).headers["stream-retention"] == shown, "who says nothing agrees"
        refused(await site.put("t", stream_retention="seconds=61"), 409, "stream_exists")
        assert (await site.ask("HEAD", "t")).headers["stream-retention"] == shown
        for bad in ("", "60", "seconds=0", "seconds=1, seconds=1", "hours=1", "bytes=1;messages=1"):
            refused(await site.put("u", stream_retention=bad), 400, "bad_request")


@virtual_time
async def test_an_offset_before_what_is_kept_is_gone_and_the_beginning_is_told():
    async with open_site(retention=[("kept/*", Retention(messages=10))]) as site:
        for name, asked in {"kept/by-rule": {}, "by-itself": {"stream_retention": "messages=10"}}.items():
            await site.put(name, json.dumps(list(range(100))), JSON, **asked)
            await asyncio.sleep(120)
            assert (await site.ask("HEAD", name)).headers["stream-earliest-offset"] == at(90)
            for query in (f"?offset={at(89)}", f"?offset={ZERO}&live=long-poll", f"?offset={at(1)}&live=sse"):
                gone = await site.ask("GET", name + query)
                refused(gone, 410, "offset_gone")
                assert gone.headers["stream-earliest-offset"] == at(90) == gone.json()["error"]["earliest"]
            gone = await site.ask("GET", f"{name}?format=sse", last_event_id=at(5))
            assert (gone.status, gone.headers["stream-earliest-offset"]) == (410, at(90))
            for query in ("", "?offset=-1", f"?offset={at(90)}"):
                assert (await site.ask("GET", name + query)).json() == list(range(90, 100))
            facts_ = (await site.ask("GET", f"/v1/streams/{name}")).json()
            assert (facts_["start"], facts_["messages"], facts_["bytes"]) == (at(90), 10, 20)


# -- catch-up (5.6, 8, 10) --------------------------------------------------------------------------------------------


@virtual_time
async def test_offsets():
    async with open_site() as site:
        await site.put("t", "a")
        await site.post("t", "b")
        for query, body in [
            ("", b"ab"),
            ("?offset=-1", b"ab"),
            (f"?offset={ZERO}", b"ab"),
            (f"?offset={at(1)}", b"b"),
            (f"?offset={at(2)}", b""),
            ("?offset=now", b""),
            ("?unknown=1&offset=-1&unknown=2", b"ab"),
        ]:
            page = await site.ask("GET", f"t{query}")
            assert (page.status, page.body, page.headers["content-type"]) == (200, body, "text/plain")
            assert (page.headers["stream-next-offset"], page.headers["stream-up-to-date"]) == (at(2), "true")
            assert "stream-closed" not in page.headers
        bad = ["", "0", "x", "1e3", at(3), BEYOND, at(1) + "%20", "..", "%00", "a%2Cb", "-2", "NOW", at(1, 1)]
        for offset in bad:
            refused(await site.ask("GET", f"t?offset={offset}"), 400, "bad_offset")
        refused(await site.ask("GET", f"t?offset=-1&offset={at(1)}"), 400, "bad_request")
        refused(await site.ask("GET", "none?offset=-1"), 404, "stream_not_found")


@virtual_time
async def test_catching_up_is_page_by_page_and_each_page_is_bounded():
    async with open_site(Limits(page_bytes=1000)) as site:
        await site.put("j", json.dumps(["x" * 90] * 50), JSON)
        offset, values, pages = "-1", [], 0
        while True:
            page = await site.ask("GET", f"j?offset={offset}")
            values += page.json()
            pages += 1
            offset = page.headers["stream-next-offset"]
            assert len(page.body) <= 1100
            if "stream-up-to-date" in page.headers:
                break
        assert values == ["x" * 90] * 50
        assert pages >= 5


@virtual_time
async def test_20_mb_come_in_pages_of_at_most_1_mb():
    async with open_site() as site:
        await site.put("big")
        data = bytes(range(256)) * 4
        for _ in range(20):
            await site.post("big", data * 1024)
        for size in (1, 3 * 1024 * 1024, 2):  # a message larger than a page is a page
            await site.post("big", b"x" * size)
        offset, seen, sizes, up_to_date = "-1", 0, [], []
        while not (up_to_date and up_to_date[-1]):
            page = await site.ask("GET", f"big?offset={offset}")
            sizes.append(len(page.body))
            up_to_date.append("stream-up-to-date" in page.headers)
            seen, offset = seen + len(page.body), page.headers["stream-next-offset"]
        assert seen == 23 * 1024 * 1024 + 3
        assert [size for size in sizes if size > 1024 * 1024] == [3 * 1024 * 1024]
        assert up_to_date == [False] * (len(sizes) - 1) + [True]


@virtual_time
async def test_the_end_is_told_only_where_it_is():
    async with open_site(Limits(page_bytes=1)) as site:
        await site.put("t", "[1,2]", JSON, stream_closed="true")
        first = await site.ask("GET", "t")
        assert (first.json(), "stream-closed" in first.headers, "stream-up-to-date" in first.headers) == (
            [1],
            False,
            False,
        )
        last = await site.ask("GET", f"t?offset={at(1)}")
        assert (last.json(), last.headers["stream-closed"], last.headers["stream-up-to-date"]) == ([2], "true", "true")
        for offset in (at(2), "now"):
            end = await site.ask("GET", f"t?offset={offset}")
            assert (end.json(), end.headers["stream-closed"]) == ([], "true")


@virtual_time
async def test_pages_are_cached_by_etag_until_they_change():
    async with open_site() as site:
        await site.put("t", "a")
        page = await site.ask("GET", "t")
        tag = page.headers["etag"]
        assert page.headers["cache-control"] == "public, max-age=60, stale-while-revalidate=300"
        for ask in (tag, f"W/{tag}", f'"other", {tag}', "*"):
            same = await site.ask("GET", "t?offset=-1", if_none_match=ask)
            assert (same.status, same.body, same.headers["etag"]) == (304, b"", tag)
            assert same.headers["stream-next-offset"] == at(1)
        assert (await site.ask("GET", "t", if_none_match='"other"')).status == 200
        await site.post("t", stream_closed="true")
        closed = await site.ask("GET", "t", if_none_match=tag)
        assert (closed.status, closed.headers["stream-closed"], closed.headers["etag"] != tag) == (200, "true", True)
        now = await site.ask("GET", "t?offset=now")
        assert ("etag" in now.headers, now.headers["cache-control"]) == (False, "no-store")
        mine = await site.ask("GET", "t", authorization="Bearer x")
        assert mine.headers["cache-control"].startswith("private,")


@virtual_time
async def test_a_page_at_the_end_says_how_the_stream_ended():
    async with open_site() as site:
        await site.streams.create("s", 1)
        await site.streams.append("s", close=True, outcome="failed")
        for live in ("", "&live=long-poll"):
            for offset in ("-1", at(1)):
                page = await site.ask("GET", f"s?offset={offset}{live}")
                assert (page.headers["stream-closed"], page.headers["stream-outcome"]) == ("true", "failed")


@virtual_time
async def test_caches_share_no_page_that_takes_a_key_and_no_page_for_a_live_answer():
    class Cookies(OpenDoor):
        open_to_all = False

    async with open_site(auth=Cookies()) as site:
        await site.put("t", "a")
        page = await site.ask("GET", "t")
        assert page.headers["cache-control"].startswith("private,")
        assert page.headers["vary"] == "origin, accept"


@virtual_time
async def test_head_tells_everything_and_touches_nothing():
    async with open_site() as site:
        await site.put("t", "a", stream_ttl="10", stream_closed="true")
        for url in ("t", "t?offset=-1", "t?offset=-1&live=sse", "t?live=long-poll", "t?format=sse"):
            head = await site.ask("HEAD", url, accept="text/event-stream")
            assert (head.status, head.body, head.headers["cache-control"]) == (200, b"", "no-store")
            assert head.headers["content-type"] == "text/plain"
            assert facts(head) == {"stream-next-offset": at(1), "stream-closed": "true", "stream-ttl": "10"}
            safe(head)


@virtual_time
async def test_what_a_writer_stored_is_no_page_of_this_server():
    async with open_site() as site:
        await site.put("page", "<script>1</script>", "text/html")
        stored = await site.ask("GET", "page")
        assert (stored.headers["content-type"], stored.headers["content-security-policy"]) == ("text/html", "sandbox")
        await site.post("page", content_type="text/html", stream_closed="true")
        text = await site.ask("GET", "page?format=text")
        assert text.headers["content-type"] == "text/plain; charset=utf-8"
        assert text.headers["content-security-policy"] == "sandbox"


# -- reserved names, methods, listing ---------------------------------------------------------------------------------


@virtual_time
async def test_streams_of_the_server_itself_are_written_by_nobody_else():
    async with open_site() as site:
        for name in ("responses/x", "headwater/x"):
            await site.streams.create(name, "1")
            for method in ("PUT", "POST", "DELETE"):
                refused(await site.ask(method, name, "1", content_type=JSON), 403, "forbidden")
            call = await site.ask("GET", name)
            assert call.status == (403 if name.startswith("headwater/") else 200)
        refused(await site.ask("PUT", "responses%2Fy", content_type=JSON), 403, "forbidden")
        listed = (await site.ask("GET", "/v1/streams")).json()["streams"]
        assert [one["name"] for one in listed] == ["responses/x"]


@virtual_time
async def test_a_stream_of_a_kind_is_written_by_those_who_made_it():
    async with open_site() as site:
        await site.streams.create("runs/x", 1, labels={"kind": "run"})
        body = {"content_type": JSON}
        refused(await site.ask("POST", "runs/x", "1", **body), 403, "forbidden")
        refused(await site.ask("POST", "runs/x", stream_closed="true"), 403, "forbidden")
        refused(await site.ask("DELETE", "runs/x"), 403, "forbidden")
        assert (await site.ask("GET", "runs/x")).body == b"[1]"
        await site.streams.append("runs/x", 2)
        await site.streams.close("runs/x")
        refused(await site.ask("POST", "runs/x", "1", **body), 403, "forbidden")


@virtual_time
async def test_methods():
    async with open_site() as site:
        await site.put("t")
        for method in ("PATCH", "TRACE", "QUERY"):
            call = await site.ask(method, "t")
            assert (call.status, call.headers["allow"]) == (405, "PUT, POST, GET, HEAD, DELETE, OPTIONS")
            refused(call, 405, "method_not_allowed")
        assert (await site.ask("OPTIONS", "t")).status == 204
        assert (await site.ask("OPTIONS", "none")).status == 204


@virtual_time
async def test_listing_is_by_name_and_page_by_page():
    async with open_site() as site:
        for n in range(5):
            await site.put(f"a/{n}", "xy", stream_ttl="100")
        await site.put("b", stream_closed="true")
        seen, after = [], ""
        while after is not None:
            page = (await site.ask("GET", f"/v1/streams?prefix=a/&limit=2&after={after}")).json()
            seen += [one["name"] for one in page["streams"]]
            after = page["next"]
        assert seen == [f"a/{n}" for n in range(5)]
        (b,) = (await site.ask("GET", "/v1/streams?prefix=b")).json()["streams"]
        assert b == {
            "name": "b", "content_type": "text/plain", "offset": at(0), "messages": 0, "bytes": 0, "closed": True,
            "state": "closed", "readers": 0, "created": START_MS, "appended": START_MS,
        }  # fmt: skip
        for bad in ("0", "1001", "x", "-1", "1" * 5000, "%D9%A1"):
            refused(await site.ask("GET", f"/v1/streams?limit={bad}"), 400, "bad_request")
        assert (await site.ask("DELETE", "/v1/streams")).status == 405


@virtual_time
async def test_what_is_listed_of_a_stream_is_what_is_there_now():
    async with open_site() as site:
        await site.put("a/1", "one", stream_ttl="100")
        await site.put("a/2", stream_closed="true")
        reader = site.call("GET", "a/1?offset=-1&live=sse")
        await reader.started()
        await asyncio.sleep(5)
        await site.post("a/1", "three", producer_id="p", producer_epoch="0", producer_seq="0")
        first, second = (await site.ask("GET", "/v1/streams?prefix=a/")).json()["streams"]
        assert first == {
            "name": "a/1", "content_type": "text/plain", "offset": at(2), "messages": 2, "bytes": 8, "closed": False,
            "state": "open", "readers": 1, "created": START_MS, "appended": START_MS + 5000, "ttl": 100,
        }  # fmt: skip
        assert (second["state"], second["readers"]) == ("closed", 0)
        await reader.leave()
        assert (await site.ask("GET", "/v1/streams/")).json()["streams"][0] == {**first, "readers": 0}


@virtual_time
async def test_one_stream_can_be_looked_at_without_reading_it():
    async with open_site() as site:
        await site.put("a b/1", "one", stream_ttl="10", stream_retention="bytes=5")
        await site.post("a b/1", "2", producer_id="p", producer_epoch="0", producer_seq="0")
        await asyncio.sleep(9)
        for path in ("/v1/streams/a b/1", "/v1/streams/a%20b%2F1"):
            shown = await site.ask("GET", path)
            assert shown.headers["cache-control"] == "no-store"
            assert shown.json() == {
                "name": "a b/1", "content_type": "text/plain", "offset": at(2), "messages": 2, "bytes": 4,
                "closed": False, "state": "open", "readers": 0, "created": START_MS, "appended": START_MS,
                "ttl": 10, "producers": 1, "retention": {"bytes": 5},
            }  # fmt: skip
        await asyncio.sleep(1)
        refused(await site.ask("GET", "/v1/streams/a b/1"), 404, "stream_not_found")
        refused(await site.ask("GET", "/v1/streams/headwater/x"), 403, "forbidden")
        assert (await site.ask("POST", "/v1/streams/x")).status == 405


# -- paths ------------------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_second_base_names_the_same_streams():
    async with open_site() as site:
        made = await site.ask("PUT", "/streams/chat%2Frun-1?x=1", "a", content_type="text/plain")
        assert (made.status, made.headers["location"]) == (201, "http://testserver/streams/chat/run-1")
        for path in ("/streams/chat%2Frun-1", "/streams/chat/run-1", "chat/run-1", "chat%2Frun-1"):
            assert (await site.ask("GET", f"{path}?offset=-1")).body == b"a"
            assert (await site.ask("PUT", path, content_type="text/plain")).status == 200
        for path in ("/streams", "/streams/", "/stream/x", "/v1/streams//", "/x/streams/chat"):
            assert (await site.ask("GET", path)).status == 404


@pytest.mark.parametrize("outcome", ["completed", "failed", "cancelled"])
@virtual_time
async def test_a_stream_that_is_made_closed_may_say_how_it_ended(outcome):
    async with open_site() as site:
        ended = {"stream_closed": "true", "stream_outcome": outcome}
        made = await site.put("t", "all", **ended)
        assert (made.status, made.headers["stream-outcome"]) == (201, outcome)
        again = await site.put("t", "all", stream_closed="true")
        assert (again.status, again.headers["stream-outcome"]) == (200, outcome)
        for late in (await site.post("t", "more"), await site.put("t"), await site.post("t", "more", **ended)):
            assert (late.status, late.headers["stream-closed"]) == (409, "true")
            assert late.headers["stream-next-offset"] == at(1)
            assert late.headers["stream-outcome"] == late.json()["error"]["outcome"] == outcome


@virtual_time
async def test_the_first_outcome_counts():
    async with open_site() as site:
        await site.put("t")
        ended = await site.ask("POST", "t", stream_closed="true", stream_outcome="failed")
        again = await site.ask("POST", "t", stream_closed="true", stream_outcome="completed")
        assert (ended.status, again.status) == (204, 204)
        assert ended.headers["stream-outcome"] == again.headers["stream-outcome"] == "failed"
        await site.put("u", stream_closed="true")
        silent = await site.post("u", "x")
        assert (silent.status, silent.headers["stream-closed"], "stream-outcome" in silent.headers) == (
            409,
            "true",
            False,
        )


@virtual_time
async def test_an_outcome_that_says_nothing_is_refused():
    async with open_site() as site:
        for closed in ("true", "false"):
            refused(await site.put("t", "x", stream_closed=closed, stream_outcome="great"), 400, "bad_request")
        for open_ in (await site.put("t", stream_outcome="failed"), await site.post("t", "x", stream_outcome="failed")):
            refused(open_, 400, "bad_request")
            assert "Stream-Closed" in open_.json()["error"]["message"]
        assert await site.streams.list() == []


@virtual_time
async def test_addresses_that_are_no_utf8_name_nothing():
    async with open_site() as site:
        for method in ("PUT", "GET", "DELETE"):
            for name in ("al%FE", "al%FF", "%C3", "a%2F%ED%A0%80"):
                refused(await site.ask(method, name), 400, "bad_request")
        refused(await site.put("f", stream_forked_from="/v1/stream/al%FF"), 400, "bad_request")
        refused(await site.ask("GET", "/v1/streams?prefix=al%FF"), 400, "bad_request")
        assert (await site.put("al%EF%BF%BD%C3%A4")).status == 201
        assert [name for name, _ in await site.streams.list()] == ["al\N{REPLACEMENT CHARACTER}ä"]


@virtual_time
async def test_what_live_may_be_is_said_before_what_it_needs():
    async with open_site() as site:
        await site.put("t")
        for query in ("live=bogus", "live=bogus&offset=-1", "live="):
            call = await site.ask("GET", f"t?{query}")
            refused(call, 400, "bad_request")
            assert "sse or long-poll" in call.json()["error"]["message"]
