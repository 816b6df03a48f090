"""http/metrics.py, families.py, traffic.py, counts.py: each number moves when its thing happens, and says no names."""

import asyncio
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from ag_ui.core import (
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    TokenUsage,
    ToolCallEndEvent,
    ToolCallStartEvent,
)

import test_http_socket as socket_site
from asgi_client import both_ways  # noqa: F401 -- every test here goes every way to the client
from headwater import Stamp, Streams
from headwater.counts import MOST_WORDS, SHORT_SECONDS, Words
from headwater.delivery import Delivery, Policy
from headwater.errors import StoreUnavailable
from headwater.histogram import Histogram
from headwater.http import App
from headwater.http.auth import Keys, Principal
from headwater.http.families import FAMILIES, MOST_SAMPLED, Lags
from headwater.http.traffic import route_of
from headwater.model import Retention
from headwater.runs.figures import SILENT_SECONDS
from headwater.sources import Sink
from headwater.testing import virtual_time
from http_site import Site, at, open_site, refused
from scraped import Scraped, scrape

DOCUMENT = Path(__file__).parent.parent / "docs" / "monitoring.md"
LIVE = "offset=-1&live=sse"


def moved(before: Scraped, after: Scraped, *wanted: str) -> float:
    return after[wanted] - before[wanted]


# -- what is written --------------------------------------------------------------------------------------------------


@virtual_time
async def test_streams_appends_and_ends_are_counted_by_kind_and_outcome() -> None:
    async with open_site(metrics=True) as site:
        await site.put("a", content_type="application/json")
        await asyncio.sleep(0.5)
        await site.post("a", "[1,22]", content_type="application/json")
        await asyncio.sleep(3)
        await site.post("a", "[333]", content_type="application/json", stream_closed="true", stream_outcome="failed")
        await site.streams.create("b", labels={"kind": "report"})
        told = await scrape(site)
        assert told["headwater_streams_created_total", "kind=stream"] == 1
        assert told["headwater_streams_created_total", "kind=report"] == 1
        assert told["headwater_events_appended_total", "kind=stream"] == 3
        assert told["headwater_bytes_appended_total", "kind=stream"] == 6
        assert told["headwater_streams", "kind=stream", "state=closed"] == 1
        assert told["headwater_streams", "kind=report", "state=open"] == 1
        assert told["headwater_stream_outcomes_total", "kind=stream", "outcome=failed"] == 1
        assert told["headwater_stream_seconds_sum", "kind=stream", "outcome=failed"] == 3.5
        assert told["headwater_time_to_first_event_seconds_sum", "kind=stream"] == 0.5
        assert told["headwater_time_to_first_event_seconds_count"] == 1
        assert told["headwater_event_gap_seconds_sum", "kind=stream"] == 3
        assert told["headwater_event_gap_seconds_bucket", "kind=stream", "le=5.12"] == 1
        assert told["headwater_event_gap_seconds_bucket", "kind=stream", "le=2.56"] == 0
        assert told["headwater_append_seconds_count", "stage=visible"] == 2
        assert told["headwater_append_seconds_count", "stage=durable"] == 4  # the making of streams, too


async def test_what_changes_nothing_is_counted_by_why() -> None:
    async with open_site(metrics=True) as site:
        await site.streams.create("a")
        await site.streams.create("a")
        for _ in range(3):
            await site.streams.append("a", 1, stamp=Stamp("me", 0, 0))
        await site.streams.close("a")
        await site.streams.close("a")
        told = await scrape(site)
        assert told["headwater_append_dedup_total", "reason=exists"] == 1
        assert told["headwater_append_dedup_total", "reason=producer"] == 2
        assert told["headwater_append_dedup_total", "reason=closed"] == 1
        assert told["headwater_events_appended_total", "kind=stream"] == 1


async def test_the_store_is_timed_and_its_failures_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    async with open_site(metrics=True) as site:
        await site.streams.create("a", 1)
        before = await scrape(site)
        assert before["headwater_store_op_seconds_count", "op=commit"] == 1
        await site.ask("GET", "a")
        told = await scrape(site)
        assert moved(before, told, "headwater_store_op_seconds_count", "op=load") > 0

        async def away(_: str) -> Any:
            raise StoreUnavailable("the disk is full")

        monkeypatch.setattr(site.streams.store, "load", away)
        refused(await site.ask("GET", "a"), 503, "store_unavailable")
        told = await scrape(site)
        assert told["headwater_store_errors_total", "op=load"] == 1
        assert told["headwater_refused_total", "reason=store_unavailable"] == 1


async def test_a_commit_that_comes_second_is_a_conflict_and_no_error() -> None:
    async with open_site(metrics=True) as site:
        await site.streams.create("a")
        async with Streams(site.streams.store) as other:
            await site.streams.append("a", 1)
            await other.append("a", 2)
            await site.streams.append("a", 3)  # on a head that is old by now
            site.streams.store._open = True  # type: ignore[attr-defined]
            told = await scrape(site)
            assert told["headwater_store_conflicts_total"] == 1
            assert told["headwater_store_errors_total"] == 0


# -- what is read -----------------------------------------------------------------------------------------------------


@virtual_time
async def test_readers_what_they_get_and_how_they_go() -> None:
    async with open_site(metrics=True) as site:
        await site.put("a", "old")
        readers = [site.call("GET", f"a?{LIVE}") for _ in range(3)]
        for reader in readers:
            await reader.until(b"upToDate")
        told = await scrape(site)
        assert told["headwater_readers", "transport=durable-sse"] == 3
        assert told["headwater_subscribes_total", "transport=durable-sse"] == 3
        assert (told["headwater_replayed_events_count"], told["headwater_replayed_events_sum"]) == (3, 3)
        assert told["headwater_events_delivered_total"] == 3
        assert told["headwater_delivery_seconds_count"] == 0, "what was there before they came was not delivered late"
        for text in ("one", "two"):
            await site.post("a", text)
            for reader in readers:
                await reader.until(text.encode())
        told = await scrape(site)
        assert told["headwater_events_delivered_total", "transport=durable-sse"] == 9
        assert told["headwater_delivery_seconds_count", "transport=durable-sse"] == 6
        assert told["headwater_delivery_seconds_sum"] == 0, "no time has passed"
        assert told["headwater_bytes_delivered_total"] >= sum(len(reader.body) for reader in readers)
        await asyncio.sleep(5)
        await readers[0].leave()
        await site.post("a", stream_closed="true")
        await readers[1].done()
        await readers[2].done()
        told = await scrape(site)
        assert told["headwater_readers"] == 0
        assert told["headwater_disconnects_total", "transport=durable-sse", "reason=left"] == 1
        assert told["headwater_disconnects_total", "transport=durable-sse", "reason=ended"] == 2
        assert (told["headwater_connection_seconds_count"], told["headwater_connection_seconds_sum"]) == (3, 15)


@virtual_time
async def test_delivery_is_timed_from_the_append() -> None:
    async with open_site(metrics=True) as site:
        await site.put("a")
        reader = site.call("GET", f"a?{LIVE}")
        await reader.until(b"upToDate")
        reader.stall()
        await site.post("a", "one")
        await asyncio.sleep(1)
        await site.post("a", "two")
        await asyncio.sleep(1)
        reader.take()
        await reader.until(b"two")
        told = await scrape(site)
        assert told["headwater_events_delivered_total"] == 2
        # The second one for sure: where there is a buffer, the first went into it at once.
        assert told["headwater_delivery_seconds_sum"] in (1, 3)
        await reader.leave()


@pytest.mark.parametrize(
    ("query", "accept", "transport"),
    [
        ("?format=sse", "", "sse"),
        ("?format=ndjson", "", "ndjson"),
        ("", "text/event-stream", "sse"),
        ("?format=text", "", "text"),
    ],
)
async def test_each_way_of_reading_has_its_word(query: str, accept: str, transport: str) -> None:
    async with open_site(metrics=True) as site:
        await site.put("a", "x", stream_closed="true")
        await (site.call("GET", f"a{query}", accept=accept)).done()
        told = await scrape(site)
        assert told["headwater_subscribes_total", f"transport={transport}"] == 1
        assert told["headwater_disconnects_total", f"transport={transport}", "reason=ended"] == 1


@virtual_time
async def test_long_polls() -> None:
    async with open_site(metrics=True, long_poll_seconds=2) as site:
        await site.put("a", "x")
        assert (await site.ask("GET", "a?offset=-1&live=long-poll")).status == 200
        assert (await site.ask("GET", "a?offset=now&live=long-poll")).status == 204
        waiting = site.call("GET", "a?offset=now&live=long-poll")
        await asyncio.sleep(1)
        assert (await scrape(site))["headwater_readers", "transport=long-poll"] == 1
        await waiting.leave()
        told = await scrape(site)
        for reason in ("answered", "nothing_new", "left"):
            assert told["headwater_disconnects_total", "transport=long-poll", f"reason={reason}"] == 1
        assert told["headwater_connection_seconds_sum", "transport=long-poll"] == 3


@virtual_time
async def test_resumes_by_what_became_of_them() -> None:
    async with open_site(metrics=True, retention=[("a", Retention(messages=1))]) as site:
        await site.put("a", "[1,2,3]", content_type="application/json")
        await asyncio.sleep(60)  # the sweeper trims
        assert (await site.streams.head("a")).start == 2
        for offset in (at(2), at(3), at(1), "-1", "now", "nonsense", at(99)):
            call = site.call("GET", f"a?offset={offset}&live=sse")
            await call.started()
            await call.leave()
        await site.streams.delete("a")
        await site.put("a", "[1]", content_type="application/json")
        refused(await site.ask("GET", f"a?offset={at(3)}&live=sse"), 410, "offset_gone")
        told = await scrape(site)
        found = {result: told["headwater_resumes_total", f"result={result}"] for result in ("ok", "nothing_new", "gap")}
        assert found == {"ok": 1, "nothing_new": 1, "gap": 1}
        assert told["headwater_resumes_total", "result=bad_offset"] == 2
        assert told["headwater_resumes_total", "result=other_stream"] == 1


@virtual_time
async def test_who_takes_nothing_is_dropped_and_counted() -> None:
    async with open_site() as plain:
        app = App(plain.streams, delivery=Delivery(plain.streams, Policy(write_seconds=20)), metrics=True)
        site = Site(plain.streams, app)
        await site.put("a")
        reader = site.call("GET", f"a?{LIVE}")
        await reader.until(b"upToDate")
        reader.stall()
        await site.post("a", "x")
        await asyncio.sleep(1)
        await site.post("a", "y")
        await asyncio.sleep(60)
        told = await scrape(site)
        assert told["headwater_slow_reader_total", "action=drop"] == 1
        assert told["headwater_disconnects_total", "reason=slow"] == 1
        await reader.over()


@virtual_time
async def test_heartbeats_and_the_drain() -> None:
    async with open_site(metrics=True) as site:
        await site.put("a")
        reader = site.call("GET", f"a?{LIVE}")
        await reader.until(b"upToDate")
        await asyncio.sleep(50)
        told = await scrape(site)
        assert (told["headwater_heartbeats_total"], told["headwater_draining"]) == (3, 0)
        site.streams.drain()
        await reader.over()
        told = await scrape(site)
        assert told["headwater_draining"] == 1
        assert told["headwater_disconnects_total", "reason=draining"] == 1


@virtual_time
async def test_lag_is_looked_at_when_it_is_asked_for() -> None:
    async with open_site(metrics=True) as site:
        await site.put("a", "x")
        reader = site.call("GET", f"a?{LIVE}")
        await reader.until(b"upToDate")
        reader.stall()
        await site.post("a", "x")
        await asyncio.sleep(1)
        for _ in range(4):
            await site.post("a", "y")
        await asyncio.sleep(2)
        told = await scrape(site)
        assert told["headwater_reader_lag_events_count"] == 1
        assert told["headwater_reader_lag_events_sum"] == 4, "the first one is written, though it is not taken"
        assert told["headwater_reader_lag_seconds_sum"] == 2
        site.streams.hub.tail("a").forget()  # as where another process has written to it
        told = await scrape(site)
        assert told["headwater_reader_lag_events_count"] == 2
        assert told["headwater_reader_lag_events_sum"] == 8
        await reader.leave()


async def test_of_many_readers_some_are_looked_at() -> None:
    async with Streams("memory:") as streams:
        await streams.create("a")
        cursors = [await streams.cursor("a") for _ in range(MOST_SAMPLED + 5)]
        for cursor in cursors:
            streams.reads.came(cursor, "sse", 0)
        lags = Lags()
        lags.sample(streams)
        assert lags.events.count == MOST_SAMPLED
        for cursor in cursors:
            cursor.close()


@virtual_time
async def test_sockets_and_what_is_followed_on_them() -> None:
    async with socket_site.open_site(metrics=True) as site:
        await site.streams.create("a", 1)
        client = await site.opened()
        client.say("follow", id=1, ref=1, stream="a", offset="-1", credit=socket_site.PLENTY)
        assert [(await client.next())["op"] for _ in range(2)] == ["following", "messages"]
        numbers = Scraped((await site.app.metrics.answer("")).body.decode())
        assert numbers["headwater_sockets"] == 1
        assert numbers["headwater_readers", "transport=websocket"] == 1
        assert numbers["headwater_events_delivered_total", "transport=websocket"] == 1
        await site.streams.close("a")
        assert (await client.next())["op"] == "end"
        client.leave()
        await client.done()
        numbers = Scraped((await site.app.metrics.answer("")).body.decode())
        assert numbers["headwater_sockets"] == numbers["headwater_readers"] == 0
        assert numbers["headwater_disconnects_total", "transport=websocket", "reason=ended"] == 1
        turned_away = site.connect("something.else")
        await turned_away.done()
        numbers = Scraped((await site.app.metrics.answer("")).body.decode())
        assert numbers["headwater_refused_total", "reason=bad_request"] == 1


# -- runs -------------------------------------------------------------------------------------------------------------


class Talker:
    """A source that says something after a while, uses a tool, and ends as it is told to."""

    def __init__(self, name: str, *, fails: bool = False) -> None:
        self.name, self.fails = name, fails

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 -- AG-UI's word
        await asyncio.sleep(2)
        await sink.emit(TextMessageStartEvent(message_id="m", role="assistant"))
        await asyncio.sleep(1)
        for delta in ("He", "llo"):
            await sink.emit(TextMessageContentEvent(message_id="m", delta=delta))
        await sink.emit(TextMessageEndEvent(message_id="m"))
        await sink.emit(ToolCallStartEvent(tool_call_id="t", tool_call_name="look"))
        await sink.emit(ToolCallEndEvent(tool_call_id="t"))
        sink.usage([TokenUsage(model="m", input_tokens=7, output_tokens=3)])
        if self.fails:
            raise RuntimeError("broken")
        await asyncio.sleep(4)
        return None


@virtual_time
async def test_runs_by_agent_and_outcome() -> None:
    async with open_site(sources=[Talker("good"), Talker("bad", fails=True)], metrics=True) as site:
        assert site.app.runs is not None
        runs = [await site.app.runs.start(agent, "hi") for agent in ("good", "bad", Talker("mallory"))]
        told = await scrape(site)
        assert told["headwater_runs", "agent=good"] == 1
        for run in runs:
            await run.wait()
        await asyncio.sleep(1)
        told = await scrape(site)
        assert told["headwater_runs"] == 0
        assert told["headwater_runs_started_total"] == 3
        assert told["headwater_run_outcomes_total", "agent=good", "outcome=completed"] == 1
        assert told["headwater_run_outcomes_total", "agent=bad", "outcome=failed"] == 1
        assert told["headwater_run_outcomes_total", "agent=unregistered"] == 1
        assert told["headwater_run_seconds_sum", "agent=good"] == pytest.approx(7, abs=0.1)
        assert told["headwater_time_to_first_token_seconds_sum", "agent=good"] == pytest.approx(3, abs=0.1)
        assert told["headwater_run_tokens_total", "agent=good", "direction=input"] == 7
        assert told["headwater_run_tokens_total", "agent=bad", "direction=output"] == 3
        assert told["headwater_run_tools_total", "agent=good"] == 1
        assert told["headwater_stream_outcomes_total", "kind=run", "outcome=failed"] == 1
        assert "mallory" not in told.text


class Hanger:
    """A source that says something, and then nothing any more."""

    name = "hanger"

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 -- AG-UI's word
        await asyncio.sleep(70)
        await sink.emit(TextMessageStartEvent(message_id="m", role="assistant"))
        await asyncio.Event().wait()
        return None


@virtual_time
async def test_runs_without_events_are_counted_by_how_long() -> None:
    async with open_site(sources=[Hanger()], metrics=True) as site:
        assert site.app.runs is not None

        async def silent() -> list[float]:
            told = await scrape(site)
            return [told["headwater_runs_silent", "agent=hanger", f"seconds={bound}"] for bound in SILENT_SECONDS]

        assert await silent() == [0, 0, 0, 0]
        run = await site.app.runs.start("hanger", "hi")
        await asyncio.sleep(9)
        assert await silent() == [0, 0, 0, 0]
        await asyncio.sleep(60)
        assert await silent() == [1, 1, 0, 0]
        await asyncio.sleep(10)
        assert await silent() == [0, 0, 0, 0], "it has said something, 9 s ago"
        await asyncio.sleep(1800)
        assert await silent() == [1, 1, 1, 1]
        await run.cancel()
        await run.wait()
        await asyncio.sleep(1)
        assert await silent() == [0, 0, 0, 0]


# -- the endpoint -----------------------------------------------------------------------------------------------------


async def test_requests_and_refusals() -> None:
    async with open_site(metrics=True) as site:
        await site.put("a")
        await site.ask("GET", "nobody")
        await site.ask("GET", "/v1/nothing/at/all")
        await site.ask("BREW", "a")
        told = await scrape(site)
        assert told["headwater_requests_total", "route=/v1/stream/{name}", "method=PUT", "status=201"] == 1
        assert told["headwater_requests_total", "route=other", "status=404"] == 1
        assert told["headwater_requests_total", "method=other", "status=405"] == 1
        assert told["headwater_refused_total", "reason=stream_not_found"] == 1
        assert told["headwater_refused_total", "reason=http_405"] == 1


async def test_it_is_off_unless_asked_for() -> None:
    async with open_site() as site:
        refused(await site.ask("GET", "/metrics"), 404, "not_found")


async def test_both_formats() -> None:
    async with open_site(metrics=True) as site:
        await site.put("a", "x")
        plain = await scrape(site)
        told = await scrape(site, "application/openmetrics-text; version=1.0.0, text/plain;q=0.5")
        assert told.text.endswith("# EOF\n")
        assert told["headwater_events_appended_total"] == plain["headwater_events_appended_total"] == 1
        assert plain["process_resident_memory_bytes"] > 0
        assert (await site.ask("POST", "/metrics")).status == 405


async def test_with_keys_it_takes_one_that_may_observe() -> None:
    sha = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("all", "reader", "observer", "some")}
    keys = Keys(
        {
            sha["all"]: Principal("all"),
            sha["reader"]: Principal("reader", frozenset({"read"})),
            sha["observer"]: Principal("observer", frozenset({"observe"})),
            sha["some"]: Principal("some", streams=("chat/*",)),
        }
    )
    async with open_site(auth=keys, metrics=True) as site:
        statuses = {name: (await site.ask("GET", "/metrics", authorization=f"Bearer {name}")).status for name in sha}
        assert statuses == {"all": 200, "reader": 403, "observer": 200, "some": 403}
        refused(await site.ask("GET", "/metrics"), 401, "unauthorized")


async def test_no_label_says_a_name_that_somebody_gave() -> None:
    async with open_site(metrics=True) as site:
        for name in ("secret-one", "chat/secret-two", "secret%20three"):
            await site.put(name, "x")
            reader = site.call("GET", f"{name}?{LIVE}&token=secret-four")
            await reader.until(b"upToDate")
            await reader.leave()
            await site.ask("GET", f"/v1/{name}")
            await site.ask("GET", f"/agents/{name}/secret-five")
        assert "secret" not in (await scrape(site)).text


def test_words_are_few() -> None:
    words = Words()
    told = [words.few(f"kind {number}") for number in range(2 * MOST_WORDS)]
    assert told[:MOST_WORDS] == [f"kind {number}" for number in range(MOST_WORDS)]
    assert set(told[MOST_WORDS:]) == {"other"}
    assert words.few("kind 0") == "kind 0"


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/stream/a/b/c", "/v1/stream/{name}"),
        ("/v1/runs", "/v1/runs"),
        ("/v1/runs/x1", "/v1/runs/{id}"),
        ("/v1/runs/x1/events", "/v1/runs/{id}/events"),
        ("/v1/runs/x1/events/more", "/v1/runs/{id}"),
        ("/v1/responses/r/input_items", "/v1/responses/{id}/input_items"),
        ("/agents/bot/chat", "/agents/{name}/chat"),
        ("/agents/bot/chat/7/stream", "/agents/{name}/chat/{chat}"),
        ("/agents/bot/made-up", "other"),
        ("/page", "/page"),
        ("/below/this", "/below/"),
        ("/etc/passwd", "other"),
    ],
)
def test_routes(path: str, route: str) -> None:
    assert route_of(path, ["/page", "/below/"]) == route


# -- what is said about it --------------------------------------------------------------------------------------------


def test_the_document_has_a_line_for_each_number_and_no_others() -> None:
    rows = re.findall(r"^\| `(headwater_\w+)` \| (\w+) \| ([^|]*) \|", DOCUMENT.read_text("utf-8"), re.M)
    ours = []
    for family in FAMILIES:
        name = f"{family.name}_total" if family.sort == "counter" else family.name
        ours.append((name, family.sort, ", ".join(f"`{label}`" for label in family.labels)))
    assert [(name, sort, labels.strip()) for name, sort, labels in rows] == ours


def test_what_is_observed_many_times_costs_one_observation() -> None:
    histogram = Histogram(SHORT_SECONDS)
    histogram.observe(0.002, 1000)
    assert (histogram.count, histogram.sum) == (1000, pytest.approx(2))


async def test_the_loop_is_watched_while_it_serves() -> None:
    async with open_site(metrics=True) as site:
        assert (await scrape(site))["headwater_loop_lag_seconds_count"] == 0
        with site.streams.lag.watched():
            while not site.streams.lag.histogram.count:
                await asyncio.sleep(0.01)
            assert (await scrape(site))["headwater_loop_lag_seconds_count"] > 0


async def test_what_readers_report_is_shown_by_agent_and_client() -> None:
    async with open_site(metrics=True) as site:
        await site.put("a")
        report = {
            "url": "/v1/stream/a",
            "ended": "failed",
            "client": "python",
            "reconnects": 2,
            "lost": 3,
            "first_event": 1,
        }
        sent = await site.ask("POST", "/v1/quality", json.dumps(report), content_type="application/json")
        assert sent.status == 204
        told = await scrape(site)
        whose = "agent=none", "client=python"
        assert told["headwater_reported_readers_total", *whose, "ended=failed"] == 1
        assert told["headwater_reported_reconnects_total", *whose] == 2
        assert told["headwater_reported_first_event_seconds_sum", *whose] == 1
        assert told["headwater_reported_lost_seconds_sum", *whose] == 3
        assert told["headwater_reported_gap_seconds_count", *whose] == 1
