"""http/console: what the console asks of the server; the page itself is in test_console_page.py."""

import asyncio
import base64
import json

import msgspec
import pytest
from ag_ui.core import TextMessageContentEvent, TextMessageEndEvent, TextMessageStartEvent
from starlette.applications import Starlette
from starlette.routing import Mount

from asgi_client import Call, Client
from headwater import Retention, Streams
from headwater.cli.serving import _ready
from headwater.formats.entries import entry_of
from headwater.http import App
from headwater.http.auth import Keys
from headwater.http.console.figures import FIGURES, quantile
from headwater.http.console.history import STEPS, Figure, History
from headwater.model import Message, Offset
from headwater.server import ServeConfig
from headwater.server.serve import offers_console
from headwater.testing import virtual_time
from http_site import START_MS, Site, open_site, refused

JSON = "application/json"


def console(**app: object):
    return open_site(console=True, **app)


async def figures(site: Site) -> Call:
    """The feed, open, its history read."""
    call = await site.call("GET", "/console/api/figures").started()
    await call.until(b"\n\n")
    return call


def told(text: bytes) -> dict[str, float]:
    """The last second that the feed has said."""
    row = json.loads(text.decode().strip().rpartition("data:")[2])
    return dict(zip(["at", *(figure.name for figure in FIGURES)], row, strict=True))


# --- the page ---------------------------------------------------------------------------------------------------------


@virtual_time
async def test_the_page_is_served_and_may_load_nothing_from_elsewhere():
    async with console() as site:
        call = await site.ask("GET", "/console/")
        assert (call.status, call.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert call.headers["content-security-policy"].startswith("default-src 'self';")
        assert "trusted-types 'none'" in call.headers["content-security-policy"]
        assert "<script>" not in call.text
        assert "://" not in call.text
        for name, kind in (
            ("main.js", "javascript"),
            ("console.css", "css"),
            ("vendor/uPlot.iife.min.js", "javascript"),
        ):
            assert kind in (await site.ask("GET", f"/console/{name}")).headers["content-type"]
        for name in ("nothing.js", "../app.py", "vendor/uPlot.LICENSE", "page/main.js", "api/what", "api/what/s"):
            refused(await site.ask("GET", f"/console/{name}"), 404, "not_found")
        assert (await site.ask("POST", "/console/")).status == 405
        assert (await site.ask("HEAD", "/console/api/figures")).headers["allow"] == "GET"
        assert (await site.ask("HEAD", "/console/")).status == 200
        await site.app.console.aclose()


@virtual_time
async def test_under_a_prefix_the_page_is_found():
    async with Streams("memory:") as streams:
        app = App(streams, console=True)
        client = Client(Starlette(routes=[Mount("/live", app)]))
        call = await client.ask("GET", "/live/console")
        assert (call.status, call.headers["location"]) == (307, "/live/console/")
        assert (await client.ask("GET", "/live/console/")).status == 200
        assert (await client.ask("GET", "/live/console/api/about")).json()["runs"] is False
        await app.console.aclose()


@virtual_time
async def test_without_being_asked_for_there_is_none():
    async with open_site() as site:
        refused(await site.ask("GET", "/console/"), 404, "not_found")
        assert site.app.console is None


@virtual_time
async def test_pages_of_the_caller_leave_the_console_alone():
    async def everything(exchange):
        raise AssertionError(exchange.path)

    async with console(pages={"/": everything}) as site:
        assert (await site.ask("GET", "/console/main.js")).status == 200
        await site.app.console.aclose()


@pytest.mark.parametrize(
    ("config", "offered", "said"),
    [
        (ServeConfig(), True, "The console is at http://x/console"),
        (ServeConfig(console=False), False, None),
        (ServeConfig(host="0.0.0.0", auth="keys.toml"), True, "The console is at"),
        (ServeConfig(host="0.0.0.0", insecure=True), False, "no keys. It comes with --auth keys.toml"),
    ],
)
def test_other_machines_get_it_with_keys_only(config, offered, said, capsys):
    assert offers_console(config) is offered
    _ready(config, "http://x")
    out = capsys.readouterr().out
    assert said in out if said else "console" not in out


# --- figures ----------------------------------------------------------------------------------------------------------


@virtual_time
async def test_figures_come_each_second_after_their_past():
    async with console() as site:
        await site.put("a", "x", "text/plain")  # the first request begins it
        first = site.call("GET", "/console/api/figures")
        history = await first.until(b"\n\n")
        assert b"event: history" in history
        assert json.loads(history.decode().partition("data:")[2])["rings"][0]["rows"] == []
        reader = await site.call("GET", "a?format=sse").started()
        await site.post("a", "yz")
        row = told(await first.until(b"\n\n"))
        assert (row["readers"], row["appended"], row["bytes"], row["came"]) == (1, 2, 3, 1)
        assert row["at"] == START_MS / 1000 + 1
        assert told(await first.until(b"\n\n"))["appended"] == 0

        late = site.call("GET", "/console/api/figures")  # is told the past, then goes on with the others
        past = json.loads((await late.until(b"\n\n")).decode().partition("data:")[2])
        assert past["figures"] == [figure.name for figure in FIGURES]
        assert [row[0] - START_MS / 1000 for row in past["rings"][0]["rows"]] == [1, 2]
        assert told(await late.until(b"\n\n")) == told(await first.until(b"\n\n"))
        for call in (first, late, reader):
            await call.leave()
        await site.app.console.aclose()


@virtual_time
async def test_figures_are_not_among_the_streams_of_the_user():
    async with console() as site:
        call = await figures(site)
        await asyncio.sleep(100)
        assert (await site.ask("GET", "/v1/streams")).json()["streams"] == []
        assert site.streams.statistics()["streams"] <= 1  # a lease, at most
        assert len(await site.app.console._feed._own.list()) == 1
        assert site.app.console._feed._own.statistics()["messages"] < 110
        await call.leave()
        await site.app.console.aclose()


@virtual_time
async def test_who_watches_is_told_that_the_server_goes_away():
    async with console() as site:
        call = await figures(site)
        site.streams.drain()
        await call.until(b"event: interrupted")
        await call.done()
        assert (await site.ask("GET", "/console/api/figures")).status == 503
        await site.app.console.aclose()


@virtual_time
async def test_a_run_that_ends_is_counted_for_a_minute():
    class Fails:
        name = "fails"

        async def run(self, input, sink):  # noqa: A002
            raise RuntimeError("hunter2")

    async with console(sources=[Fails()]) as site:
        call = await figures(site)
        await site.ask("POST", "/v1/runs", '{"agent": "fails", "input": "hi"}', content_type=JSON)
        seen = [told(await call.until(b"\n\n"))["failed"] for _ in range(64)]
        assert (seen[1], sum(seen)) == (1, 60)
        await call.leave()
        await site.app.console.aclose()


@virtual_time
async def test_a_run_s_pace_and_the_lag_of_readers_are_told():
    class Says:
        name = "says"

        async def run(self, input, sink):  # noqa: A002
            await asyncio.sleep(0.5)
            await sink.emit(TextMessageStartEvent(message_id="m", role="assistant"))
            for _ in range(5):
                await sink.emit(TextMessageContentEvent(message_id="m", delta="x"))
                await asyncio.sleep(0.1)
            await sink.emit(TextMessageEndEvent(message_id="m"))

    async with console(sources=[Says()]) as site:
        call = await figures(site)
        await site.put("a", "x", "text/plain")
        slow = await site.call("GET", "a?format=sse").started()
        slow.stall()
        await site.ask("POST", "/v1/runs", '{"agent": "says", "input": "hi"}', content_type=JSON)
        for _ in range(4):
            await site.post("a", "x", "text/plain")
        row = [told(await call.until(b"\n\n")) for _ in range(3)][-1]
        assert 320 <= row["first_token_p50"] <= row["first_token_p99"] <= 640  # the bucket that half a second is in
        assert 80 <= row["gap_p50"] <= 160
        assert (row["behind"], row["lagging"]) in ((3, 1), (4, 1))  # one may have been given to the connection
        assert (row["completed"], row["running"]) == (1, 0)
        await slow.leave()
        row = [told(await call.until(b"\n\n")) for _ in range(2)][-1]
        assert (row["behind"], row["lagging"], row["readers"]) == (0, 0, 0)
        await call.leave()
        await site.app.console.aclose()


@pytest.mark.parametrize(
    ("counts", "share", "wanted"),
    [([4, 0, 0], 0.5, 5), ([0, 4, 0], 0.5, 15), ([2, 2, 0], 0.5, 10), ([1, 1, 2], 0.99, 20), ([0, 0, 1], 0.5, 20)],
)
def test_a_quantile_is_within_its_bucket_and_never_beyond_the_last(counts, share, wanted):
    assert quantile((10, 20), counts, share) == wanted


def test_the_past_is_bounded_and_folded():
    history = History([Figure("mean"), Figure("most", "most"), Figure("missing")])
    for second in range(100_000):
        history.add(1_000_000.0 + second, {"mean": second % 10, "most": second % 10})
    rings = history.told()["rings"]
    assert [(ring["step"], len(ring["rows"])) for ring in rings] == [(step, most + 1) for step, most in STEPS]
    assert rings[1]["rows"][-2] == [1_099_980, 4.5, 9, None]
    assert rings[2]["rows"][0][0] % 300 == 0
    assert rings[0]["rows"][-1] == [1_099_999.0, 9, 9, None]


# --- one stream -------------------------------------------------------------------------------------------------------


@virtual_time
async def test_entries_say_where_and_when():
    async with console() as site:
        await site.put("a/b c", "", JSON)
        for number in range(5):
            await asyncio.sleep(1)
            await site.post("a/b c", json.dumps({"n": number}), JSON)
        call = (await site.ask("GET", "/console/api/entries/a/b%20c?from=1&limit=2")).json()
        assert (call["from"], call["tail"], call["closed"], call["content_type"]) == (1, 5, False, JSON)
        assert [(one["position"], one["time"] - START_MS, one["text"]) for one in call["entries"]] == [
            (1, 2000, '{"n": 1}'),
            (2, 3000, '{"n": 2}'),
        ]
        newest = (await site.ask("GET", "/console/api/entries/a/b%20c?limit=2")).json()
        assert [one["position"] for one in newest["entries"]] == [3, 4]
        assert (await site.ask("GET", "/console/api/entries/a/b%20c?from=99")).json()["entries"] == []
        for wrong in ("from=-1", "from=x", "limit=0", "limit=2000", "most=0"):
            refused(await site.ask("GET", f"/console/api/entries/a/b%20c?{wrong}"), 400, "bad_request")
        refused(await site.ask("GET", "/console/api/entries/none"), 404, "stream_not_found")
        refused(await site.ask("GET", "/console/api/entries/headwater/x"), 403, "forbidden")
        await site.app.console.aclose()


@virtual_time
async def test_what_was_trimmed_is_left_out_of_entries():
    async with console(retention=[("*", Retention(messages=2))]) as site:
        await site.put("a", "", JSON)
        await site.post("a", "[1, 2, 3, 4, 5]", JSON)
        await asyncio.sleep(120)
        call = (await site.ask("GET", "/console/api/entries/a?from=0")).json()
        assert (call["start"], call["from"], [one["text"] for one in call["entries"]]) == (3, 3, ["4", "5"])
        await site.app.console.aclose()


@pytest.mark.parametrize(
    ("data", "most", "said"),
    [
        (b"plain", 10, {"text": "plain", "size": 5}),
        ("äöü".encode(), 3, {"text": "ä", "size": 6, "cut": True}),  # within the second character
        (b"ab\xff\xfe", 10, {"base64": base64.b64encode(b"ab\xff\xfe").decode(), "size": 4}),
        (b"\xff" + b"a" * 20, 4, {"base64": base64.b64encode(b"\xffaaa").decode(), "size": 21, "cut": True}),
        (b"", 4, {"text": "", "size": 0}),
    ],
)
def test_an_entry_is_text_or_bytes_and_says_where_it_was_cut(data, most, said):
    entry = json.loads(msgspec.json.encode(entry_of(Message(data, Offset(1, 5), 17), most)))
    assert entry == {"position": 4, "offset": str(Offset(1, 5)), "time": 17} | said


@virtual_time
async def test_entries_follow_live_to_the_end():
    async with console() as site:
        await site.put("a", "one", "text/plain")
        offset = (await site.ask("HEAD", "a")).headers["stream-next-offset"]
        call = await site.call("GET", f"/console/api/live/a?offset={offset}").started()
        await site.post("a", "two\nlines")
        event = await call.until(b"\n\n")
        assert json.loads(event.decode().partition("data:")[2])["text"] == "two\nlines"
        await site.ask("POST", "a", stream_closed="true", stream_outcome="failed")
        assert b'event: end\ndata:{"outcome":"failed"}' in await call.until(b"\n\n")
        await call.done()
        await site.app.console.aclose()


@virtual_time
async def test_readers_are_told_with_what_they_lack_and_without_who_they_are():
    async with console() as site:
        await site.put("a", "x", "text/plain")
        await site.put("b", "x", "text/plain")
        slow = await site.call("GET", "a?format=ndjson").started()
        await slow.until(b"x")
        slow.stall()
        fast = await site.call("GET", "a?format=sse").started()
        other = await site.call("GET", "b?format=sse").started()
        for _ in range(3):
            await site.post("a", "y")
        await asyncio.sleep(2)
        answer = await site.ask("GET", "/console/api/readers/a")
        readers = answer.json()["readers"]
        assert [(one["transport"], one["behind"], one["stalled"]) for one in readers][1] == ("sse", 0, False)
        assert (readers[0]["transport"], readers[0]["stalled"], answer.json()["count"]) == ("ndjson", True, 2)
        assert all(one["silent"] >= 2 for one in readers)
        slow.take()
        assert set(readers[0]) == {"transport", "offset", "behind", "silent", "stalled"}
        for call in (slow, fast, other):
            await call.leave()
        await site.app.console.aclose()


@virtual_time
async def test_a_download_is_what_the_stream_holds():
    async with console() as site:
        await site.put("a", "", JSON)
        await site.post("a", '[{"n": 1}, {"n":  2}]', JSON)
        lines = await site.ask("GET", "/console/api/download/a?format=ndjson")
        assert (lines.status, lines.text) == (200, '{"n": 1}\n{"n":  2}\n')
        assert lines.headers["content-disposition"] == 'attachment; filename="a.ndjson"'
        await site.put("pic/1", b"\x00\xff", "image/png")
        raw = await site.ask("GET", "/console/api/download/pic/1?format=text")
        assert (raw.body, raw.headers["content-type"]) == (b"\x00\xff", "application/octet-stream")
        refused(await site.ask("GET", "/console/api/download/a?format=sse"), 406, "not_acceptable")
        await site.app.console.aclose()


@virtual_time
async def test_a_preview_is_what_a_client_of_the_format_gets():
    class Says:
        name = "says"

        async def run(self, input, sink):  # noqa: A002
            from headwater.agui import custom

            await sink.emit(custom("mine", x=1))

    async with console(sources=[Says()]) as site:
        run = (await site.ask("POST", "/v1/runs", '{"agent": "says", "input": "hi"}', content_type=JSON)).json()["id"]
        await (await site.call("GET", f"/v1/runs/{run}/events").started()).done()
        formats = (await site.ask("GET", f"/console/api/formats/runs/{run}")).json()["formats"]
        assert {"sse", "ndjson", "text", "durable", "ag-ui", "ai-sdk", "openai-responses", "langgraph"} <= set(formats)
        for name in formats:
            call = await site.ask("GET", f"/console/api/preview/runs/{run}?format={name.replace(' ', '%20')}")
            assert (call.status, call.headers["x-whole"]) == (200, "true"), name
            assert call.headers["content-type"] == "application/octet-stream"
        live = await (await site.call("GET", f"runs/{run}?format=sse").started()).done()
        assert (await site.ask("GET", f"/console/api/preview/runs/{run}?format=sse")).body == live.body
        await site.put("a", "x", "text/plain")
        assert (await site.ask("GET", "/console/api/formats/a")).json()["formats"] == [
            "sse",
            "ndjson",
            "text",
            "durable",
        ]
        refused(await site.ask("GET", "/console/api/preview/a?format=ag-ui"), 406, "not_acceptable")
        await site.app.console.aclose()


# --- who may ----------------------------------------------------------------------------------------------------------

KEYS = """
[[key]]
name = "all"
secret = "all-secret-0123456789"

[[key]]
name = "chats"
secret = "chats-secret-01234567"
actions = ["read", "list"]
streams = ["chat/*"]
"""


@virtual_time
async def test_with_keys_the_page_loads_and_shows_nothing_without_one(tmp_path):
    file = tmp_path / "keys.toml"
    await asyncio.to_thread(file.write_text, KEYS)
    auth = await asyncio.to_thread(Keys.from_file, str(file))
    async with console(auth=auth) as site:
        everything = {"authorization": "Bearer all-secret-0123456789"}
        chats = {"authorization": "Bearer chats-secret-01234567"}
        for name in ("chat/1", "other"):
            await site.put(name, "x", "text/plain", **everything)
        assert (await site.ask("GET", "/console/")).status == 200
        asked = ("about", "figures", *(f"{what}/chat/1" for what in (
            "entries", "live", "readers", "formats", "preview", "download",
        )))  # fmt: skip
        for what in asked:
            refused(await site.ask("GET", f"/console/api/{what}"), 401, "unauthorized")
        for what in ("entries", "live", "readers", "formats", "preview", "download"):
            refused(await site.ask("GET", f"/console/api/{what}/other", **chats), 403, "forbidden")
        refused(await site.ask("GET", "/console/api/figures", **chats), 403, "forbidden")
        about = (await site.ask("GET", "/console/api/about", **chats)).json()
        assert (about["name"], about["figures"]) == ("chats", False)
        assert (await site.ask("GET", "/console/api/entries/chat/1", **chats)).json()["tail"] == 1
        await site.app.console.aclose()


# --- the list of streams ----------------------------------------------------------------------------------------------


@virtual_time
async def test_streams_are_searched_by_state_and_by_a_part_of_their_name(monkeypatch):
    async with open_site() as site:
        for number in range(30):
            closed = {"stream_closed": "true", "stream_outcome": "failed" if number % 2 else "completed"}
            await site.put(f"chat/{number:02}", "x", "text/plain", **(closed if number % 3 == 0 else {}))

        async def names(query: str) -> list[str]:
            found, after = [], ""
            while True:
                page = (await site.ask("GET", f"/v1/streams?limit=4&{query}{after}")).json()
                found += [one["name"].removeprefix("chat/") for one in page["streams"]]
                if page["next"] is None:
                    return found
                after = f"&after={page['next']}"

        for looked_at in (5000, 1):  # all at once, or a look at the next page's worth for each request
            monkeypatch.setattr("headwater.http.listing.MOST_LOOKED_AT", looked_at)
            monkeypatch.setattr("headwater.http.listing.MOST_LISTED", 1000 if looked_at > 1 else 4)
            assert await names("contains=T/1") == [str(number) for number in range(10, 20)]
            assert await names("state=failed") == ["03", "09", "15", "21", "27"]
            assert await names("state=closed&contains=2") == ["12", "21", "24", "27"]
            assert len(await names("state=open&prefix=chat/")) == 20
            assert await names("contains=nothing") == []
        refused(await site.ask("GET", "/v1/streams?state=gone"), 400, "bad_request")


@virtual_time
async def test_the_figures_end_with_the_streams_and_begin_again_with_them():
    streams = Streams("memory:")
    app = App(streams, console=True)
    client = Client(app)
    for _ in range(2):
        async with streams:
            call = await client.call("GET", "/console/api/figures").started()
            await call.until(b"data:[")
            await call.leave()
        await asyncio.sleep(2)
        assert streams.on_drain == []
    await app.console.aclose()
    async with streams:
        await client.ask("GET", "/healthz")
        await app.console.aclose()
        assert app.console._feed._task is None
