"""What readers report of the service they got, and how it is counted."""

import hashlib
import itertools
import json
from typing import Any

import pytest

from cutting_proxy import CuttingProxy
from headwater.client import Client, Report
from headwater.errors import StreamNotFound
from headwater.http.auth import Keys, Principal
from headwater.http.quality import Seen
from headwater.streams import Streams
from http_site import Site, open_site
from test_client import AT_ONCE, serving
from test_http_runs import post
from test_http_runs import serving as serving_runs


async def told(site: Any, **report: object) -> int:
    call = await site.ask("POST", "/v1/quality", json.dumps({"ended": "ended", **report}))
    assert call.status is not None
    return call.status


def rows(site: Site) -> dict[tuple[str, str], Seen]:
    return site.app.quality.seen


async def test_reports_are_counted_per_client():
    async with open_site() as site:
        await site.put("s", "a")
        for client in ("javascript", "python", "python", "curl"):
            url = "http://elsewhere/proxied/v1/stream/s"
            assert await told(site, url=url, client=client, events=3, first_event=0.03, longest_gap=2, lost=1) == 204
        assert sorted(rows(site)) == [("", "javascript"), ("", "other"), ("", "python")]
        seen = rows(site)["", "python"].statistics()
        assert (seen["ended"], seen["events"], seen["reconnects"]) == (2, 6, 0)
        assert seen["first_event"] == {"p50": 0.04, "p99": 0.04}
        assert seen["lost"] == {"p50": 0.0, "p99": 0.0}  # nobody had to reconnect


async def test_runs_are_counted_by_agent_whatever_the_door():
    async with serving_runs(["Hi"]) as client:
        run = (await post(client)).headers["location"]
        doors = [run, "/agents/bot/chat/c1/stream", "/v1/runs/none/events", "/agents/none/ag-ui", "/v1/responses/r"]
        for url in doors:
            assert await told(client, url=url) == 204
        seen = {key: row.ended["ended"] for key, row in client._app.quality.seen.items()}
        assert seen == {("bot", "other"): 2, ("", "other"): 3}


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"url": "/v1/stream/s", "ended": "exploded"},
        {"url": "/v1/stream/s", "lost": -1},
        {"url": "/v1/stream/s", "lost": 1e300},
        {"url": "/v1/stream/s", "events": 1.5},
        {"url": "x" * 3000},
    ],
)
async def test_what_is_no_report_is_refused(wrong):
    async with open_site() as site:
        assert await told(site, **wrong) == 400
        assert not rows(site)
        assert (await site.ask("POST", "/v1/quality", b"x" * 5000)).status == 413
        assert (await site.ask("POST", "/v1/quality", b"\xff")).status == 400
        assert (await site.ask("GET", "/v1/quality")).status == 405


async def test_nobody_reports_on_what_they_may_not_read():
    keys = Keys({hashlib.sha256(b"k").hexdigest(): Principal("p", streams=("mine/*",))})
    async with open_site(auth=keys) as site:
        report = json.dumps({"url": "/v1/stream/mine/s", "ended": "left"})
        assert (await site.ask("POST", "/v1/quality", report)).status == 401
        assert (await site.ask("POST", "/v1/quality", report, authorization="Bearer k")).status == 204
        yours = report.replace("mine", "yours")
        assert (await site.ask("POST", "/v1/quality", yours, authorization="Bearer k")).status == 403
        assert len(rows(site)) == 1


async def test_our_client_tells_of_its_cuts():
    reports: list[Report] = []
    async with Streams("memory:") as streams:
        await streams.create("s", content_type="text/plain")
        for n in range(20):
            await streams.append("s", [b"%d" % n])
        await streams.close("s")
        async with (
            serving(streams) as port,
            CuttingProxy(port, itertools.repeat(700)) as proxy,
            Client(proxy.url, retry=AT_ONCE) as client,
        ):
            reader = client.follow("s", report=reports.append)
            events = [event async for event in reader]
    [report] = reports
    assert (report.ended, report.events, report.reconnects) == ("ended", len(events), reader.connections - 1)
    assert report.reconnects > 0
    assert report.url.endswith("/v1/stream/s")
    assert 0 < report.lost < report.longest_gap + report.lost


async def test_our_client_tells_the_server():
    async with Streams("memory:") as streams:
        await streams.create("s", content_type="text/plain")
        await streams.append("s", [b"a"])
        heard: list[bytes] = []
        async with serving(streams) as port, Client(f"http://127.0.0.1:{port}") as client:
            client._http.event_hooks["request"].append(lambda request: _heard(heard, request))
            async with client.follow("s", report=True) as reader:
                await anext(reader)
            with pytest.raises(StreamNotFound):
                await anext(client.follow("none", report=True))
        assert [json.loads(body)["ended"] for body in heard] == ["left", "failed"]


async def _heard(heard: list[bytes], request: Any) -> None:
    if request.url.path == "/v1/quality":
        heard.append(request.content)
