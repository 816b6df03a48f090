"""`/v1/runs` over ASGI: statuses, headers, attaching instead of starting twice, and who may do what."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agents import Agent
from fastapi import FastAPI

from asgi_client import (
    Call,
    Client,
    every_way,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater import Streams
from headwater.http import App
from headwater.http.auth import Keys
from headwater.runs import Runs, record
from headwater.wire.sse import Decoder, Event
from scripted_model import scripted

SSE = "text/event-stream"


@asynccontextmanager
async def serving(*answers: list[Any], auth: Keys | None = None) -> AsyncIterator[Client]:
    async with Streams("memory:") as streams:
        agent = Agent(name="Bot", model=scripted(*answers))
        async with Runs(streams, agent, Agent(name="Other", model=scripted())) as runs:
            yield Client(App(streams, runs, auth=auth))


async def post(client: Client, body: object = None, **headers: str) -> Call:
    given = {"agent": "bot", "input": "hi"} if body is None else body
    return await client.ask("POST", "/v1/runs", json.dumps(given), **headers)


def events(call: Call) -> list[Event]:
    return Decoder().feed(call.body)


def kinds(call: Call) -> list[str]:
    return [json.loads(event.data)["type"] for event in events(call)]


# --- start -----------------------------------------------------------------------------------------------------------


async def test_post_starts_a_run_and_says_where_it_is() -> None:
    async with serving(["Hel", "lo"]) as client:
        call = await post(client, {"agent": "bot", "input": "hi", "thread_id": "t1"})
        assert call.status == 201
        record = call.json()
        assert record["status"] == "running"
        assert (record["agent"], record["thread_id"], record["input"]) == ("bot", "t1", "hi")
        assert call.headers["x-run-id"] == record["id"]
        assert call.headers["location"] == f"/v1/runs/{record['id']}/events"
        followed = await client.ask("GET", call.headers["location"])
        assert kinds(followed)[0] == "RUN_STARTED"
        assert kinds(followed)[-1] == "RUN_FINISHED"
        looked_up = await client.ask("GET", f"/v1/runs/{record['id']}")
        assert looked_up.json()["status"] == "completed"
        assert looked_up.json()["result"] == "Hello"
        assert looked_up.headers["cache-control"] == "no-store"


async def test_a_retried_post_attaches() -> None:
    async with serving(["ok"]) as client:
        first = await post(client, idempotency_key="k1")
        again = await post(client, idempotency_key="k1")
        assert (first.status, again.status) == (201, 200)
        assert first.headers["x-run-id"] == again.headers["x-run-id"]
        assert first.headers["location"] == again.headers["location"]
        other = await post(client, {"agent": "bot", "input": "something else"}, idempotency_key="k1")
        assert other.status == 409
        assert other.json()["error"]["code"] == "idempotency_key_reused"
        assert len((await client.ask("GET", "/v1/runs")).json()["runs"]) == 1


async def test_a_post_that_accepts_events_gets_them_at_once_and_resumes_by_its_key() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo"]) as client:
        streaming = client.call(
            "POST", "/v1/runs", '{"agent": "bot", "input": "hi"}', accept=SSE, idempotency_key="k"
        )  # fmt: skip
        await streaming.until(b'"delta":"Hel"')
        assert streaming.status == 201
        assert streaming.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert streaming.headers["location"] == f"/v1/runs/{streaming.headers['x-run-id']}/events"
        await streaming.leave()
        before = events(streaming)
        gate.set()
        again = await post(client, accept=SSE, idempotency_key="k", last_event_id=before[-1].id)
        assert again.status == 200
        whole = await client.ask("GET", f"{streaming.headers['location']}?rollup=0")
        assert before + events(again) == events(whole)
        assert kinds(whole)[-1] == "RUN_FINISHED"
        last = await post(client, accept=SSE, idempotency_key="k", last_event_id=events(whole)[-1].id)
        assert (last.status, last.body) == (204, b"")


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"agent": "bot"}, "input is a text"),
        ({"agent": "bot", "input": ""}, "input is a text"),
        ({"agent": "bot", "input": []}, "input is a text"),
        ({"agent": "bot", "input": [1]}, "input is a text"),
        ({"agent": "bot", "input": {"role": "user"}}, "input is a text"),
        ({"input": "hi"}, "name the agent"),
        ({"agent": 5, "input": "hi"}, "name the agent"),
        ({"agent": "bot", "input": "hi", "thread_id": ""}, "thread_id"),
        ({"agent": "bot", "input": "hi", "thread_id": "x" * 256}, "thread_id"),
        ({"agent": "bot", "input": "hi", "thread": "x"}, "'thread' is not known"),
        (["agent"], "JSON object"),
    ],
)
async def test_a_bad_body_is_refused_and_says_why(body: object, said: str) -> None:
    async with serving() as client:
        call = await post(client, body)
        assert call.status == 400
        assert said in call.json()["error"]["message"]
        assert (await client.ask("GET", "/v1/runs")).json() == {"runs": [], "next": None}


async def test_other_errors_of_a_post() -> None:
    async with serving() as client:
        no_agent = await post(client, {"agent": "nobody", "input": "hi"})
        assert no_agent.status == 404
        assert no_agent.json()["error"]["code"] == "agent_not_found"
        assert "bot, other" in no_agent.json()["error"]["message"]
        no_json = await client.ask("POST", "/v1/runs", "{", idempotency_key="k")
        assert no_json.status == 400
        long_key = await post(client, idempotency_key="k" * 256)
        assert long_key.status == 400
        assert (await client.ask("PUT", "/v1/runs")).status == 405


# --- events ----------------------------------------------------------------------------------------------------------


async def test_events_in_every_format() -> None:
    async with serving(["Grüezi ", "wohl"]) as client:
        at = (await post(client)).headers["location"]
        sse = await client.ask("GET", f"{at}?rollup=0")
        assert sse.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert b"event:" not in sse.body
        assert len({event.id for event in events(sse)}) == len(events(sse))
        lines = await client.ask("GET", f"{at}?format=ndjson&rollup=0")
        assert lines.headers["content-type"] == "application/x-ndjson"
        assert [line for line in lines.text.split("\n") if line] == [event.data for event in events(sse)]
        by_accept = await client.ask("GET", f"{at}?rollup=0", accept="application/x-ndjson")
        assert by_accept.body == lines.body
        text = await client.ask("GET", f"{at}?format=text")
        assert (text.headers["content-type"], text.text) == ("text/plain; charset=utf-8", "Grüezi wohl")
        assert (await client.ask("GET", f"{at}?format=xml")).status == 406


async def test_events_resume_at_every_boundary_and_end_with_204() -> None:
    async with serving(["a", "b", "c"]) as client:
        at = f"{(await post(client)).headers['location']}?rollup=0"
        whole = events(await client.ask("GET", at))
        for number, event in enumerate(whole[:-1], start=1):
            by_header = await client.ask("GET", at, last_event_id=event.id)
            by_query = await client.ask("GET", f"{at}&offset={event.id}")
            assert events(by_header) == events(by_query) == whole[number:]
        end = await client.ask("GET", at, last_event_id=whole[-1].id)
        assert (end.status, end.body) == (204, b"")
        assert (await client.ask("GET", at, last_event_id="garbage")).status == 400
        beyond = f"{whole[-1].id[:-1]}{int(whole[-1].id[-1]) + 1}"
        assert (await client.ask("GET", at, last_event_id=beyond)).status == 400


async def test_head_answers_at_once() -> None:
    async with serving([asyncio.Event()]) as client:
        at = (await post(client)).headers["location"]
        head = await client.ask("HEAD", at)
        assert (head.status, head.body) == (200, b"")
        assert head.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (await client.ask("HEAD", "/v1/runs/nobody/events")).status == 404


# --- list, look up, cancel -------------------------------------------------------------------------------------------


async def test_cancel_is_idempotent() -> None:
    async with serving(["Hel", asyncio.Event()]) as client:
        call = await post(client)
        run, at = call.headers["x-run-id"], call.headers["location"]
        reading = client.call("GET", at)
        await reading.until(b'"delta":"Hel"')
        asked = await client.ask("POST", f"/v1/runs/{run}/cancel")
        assert (asked.status, asked.json()["status"]) == (202, "running")
        assert kinds(await reading.done())[-2:] == ["STEP_FINISHED", "RUN_FINISHED"]
        again = await client.ask("POST", f"/v1/runs/{run}/cancel")
        assert (again.status, again.json()["status"]) == (200, "cancelled")
        assert (await client.ask("GET", f"/v1/runs/{run}")).json()["status"] == "cancelled"
        assert (await client.ask("GET", f"/v1/runs/{run}/cancel")).status == 405


async def test_runs_are_listed_in_pages() -> None:
    async with serving(*[["ok"]] * 3) as client:
        made = []
        for _ in range(3):
            made.append((await post(client)).headers["x-run-id"])
            await asyncio.sleep(0.002)
        first = (await client.ask("GET", "/v1/runs?limit=2")).json()
        assert [run["id"] for run in first["runs"]] == made[:0:-1]
        rest = (await client.ask("GET", f"/v1/runs?limit=2&before={first['next']}")).json()
        assert ([run["id"] for run in rest["runs"]], rest["next"]) == ([made[0]], None)
        assert (await client.ask("GET", "/v1/runs?limit=0")).status == 400
        for wrong in ("zzz", "", made[0][:-1], "..", "a%00b"):
            call = await client.ask("GET", f"/v1/runs?before={wrong}")
            assert (call.status, "before is the id of a run" in call.text) == (400, True), wrong
        gone = made[0][:-4] + "gone"
        assert (await client.ask("GET", f"/v1/runs?before={gone}")).status == 200
        await client._app.streams.create("runs/of another's")
        assert (await client.ask("GET", "/v1/runs?before=of%20another's")).status == 200


async def listed(client: Client, query: str, **headers: str) -> list[str]:
    """Ids, page by page, of two at a time."""
    ids, before = [], ""
    while True:
        page = (await client.ask("GET", f"/v1/runs?limit=2&{query}{before}", **headers)).json()
        ids += [run["id"] for run in page["runs"]]
        if page["next"] is None:
            return ids
        assert len(page["runs"]) == 2
        before = f"&before={page['next']}"


async def test_runs_are_listed_by_agent_status_and_thread() -> None:
    async with serving(*[["ok"]] * 5) as client:
        made = []
        for thread in ("a", "b", "a", "a", "b"):
            call = await post(client, {"agent": "bot", "input": "hi", "thread_id": thread}, accept=SSE)
            made.append(call.headers["x-run-id"])
            await asyncio.sleep(0.002)
        body = {"agent": "other", "input": "hi", "thread_id": "a"}
        failed = (await post(client, body, accept=SSE)).headers["x-run-id"]
        await asyncio.sleep(0.002)
        alone = (await post(client, {"agent": "other", "input": "hi"}, accept=SSE)).headers["x-run-id"]
        newest_first = [alone, failed, *reversed(made)]
        assert await listed(client, "") == newest_first
        assert await listed(client, "thread=a") == [failed, made[3], made[2], made[0]]
        assert await listed(client, "thread=b") == [made[4], made[1]]
        assert await listed(client, "thread=a&agent=bot") == [made[3], made[2], made[0]]
        assert await listed(client, "thread=a&status=failed") == [failed]
        assert await listed(client, f"thread=th_{alone}") == [alone]
        assert await listed(client, "thread=nobody's") == []
        assert await listed(client, "agent=bot") == made[::-1]
        assert await listed(client, "agent=nobody") == []
        assert await listed(client, "status=completed") == made[::-1]
        assert await listed(client, "status=failed&agent=other") == [alone, failed]
        wrong = await client.ask("GET", "/v1/runs?status=done")
        assert (wrong.status, "running, waiting" in wrong.json()["error"]["message"]) == (400, True)


async def test_a_search_looks_at_so_many_runs_at_a_time_and_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "LOOKED_AT", 2)
    monkeypatch.setattr(record, "MOST_LOOKED_AT", 3)
    async with serving(*[["ok"]] * 5) as client:
        made = [(await post(client, accept=SSE)).headers["x-run-id"]]
        for _ in range(5):
            await asyncio.sleep(0.002)
            await post(client, {"agent": "other", "input": "hi"}, accept=SSE)
        pages, before = [], ""
        while before is not None:
            page = (await client.ask("GET", f"/v1/runs?limit=1&agent=bot{before}")).json()
            pages.append([run["id"] for run in page["runs"]])
            before = page["next"] and f"&before={page['next']}"
        assert pages == [[], made, []]


async def test_a_thread_is_found_by_its_maker_alone(tmp_path: Any) -> None:
    await asyncio.to_thread((tmp_path / "keys.toml").write_text, KEYS)
    auth = await asyncio.to_thread(Keys.from_file, str(tmp_path / "keys.toml"))
    starter, lister = "Bearer starter-secret-0123", "Bearer reader-secret-01234"
    async with serving(["ok"], auth=auth) as client:
        body = {"agent": "bot", "input": "hi", "thread_id": "a"}
        await post(client, body, accept=SSE, authorization=starter)
        assert len(await listed(client, "", authorization=lister)) == 1
        assert await listed(client, "thread=a", authorization=lister) == []


@pytest.mark.parametrize("depth", [900, 50_000])  # too deep for the event that holds it, and to be read at all
async def test_an_input_nested_too_deeply_is_the_clients_fault(depth: int) -> None:
    body = '{"agent": "bot", "input": [{"content": ' + "[" * depth + "]" * depth + "}]}"
    async with serving() as client:
        call = await client.ask("POST", "/v1/runs", body, idempotency_key="k")
        assert (call.status, "nested too deeply" in call.json()["error"]["message"]) == (400, True)


@pytest.mark.parametrize("path", ["/v1/runs/nobody", "/v1/runs/nobody/events", "/v1/runs/nobody/what", "/v1/runsx"])
async def test_what_is_not_there_is_404(path: str) -> None:
    async with serving() as client:
        assert (await client.ask("GET", path)).status == 404


async def test_a_run_is_a_stream_that_nobody_else_writes() -> None:
    async with serving(["ok"]) as client:
        run = (await post(client)).headers["x-run-id"]
        await client.ask("GET", f"/v1/runs/{run}/events")
        read = await client.ask("GET", f"/v1/stream/runs/{run}?format=ndjson")
        assert json.loads(read.text.splitlines()[0])["type"] == "RUN_STARTED"
        posted = await client.ask("POST", f"/v1/stream/runs/{run}", "{}", content_type="application/json")
        closed = await client.ask("POST", f"/v1/stream/runs/{run}", stream_closed="true")
        deleted = await client.ask("DELETE", f"/v1/stream/runs/{run}")
        assert (posted.status, closed.status, deleted.status) == (403, 403, 403)


async def test_a_stream_of_somebody_else_s_among_the_runs_is_no_run() -> None:
    """TanStack AI keeps its own under the same prefix."""
    async with serving(["ok"]) as client:
        run = (await post(client)).headers["x-run-id"]
        assert (await client.ask("PUT", "/v1/stream/runs/mine", content_type="application/json")).status == 201
        assert (await client.ask("PUT", "/v1/stream/runs/zz", content_type="application/json")).status == 201
        mine = await client.ask("POST", "/v1/stream/runs/mine", "{}", content_type="application/json")
        assert mine.status == 204
        assert (await client.ask("GET", "/v1/runs/mine")).status == 404
        listed = json.loads((await client.ask("GET", "/v1/runs")).text)
        assert [one["id"] for one in listed["runs"]] == [run]
        page = json.loads((await client.ask("GET", "/v1/runs?limit=1")).text)
        assert ([one["id"] for one in page["runs"]], page["next"]) == ([run], run)
        assert (await client.ask("GET", f"/v1/runs?limit=1&before={run}")).json() == {"runs": [], "next": None}
        assert (await client.ask("DELETE", "/v1/stream/runs/mine")).status == 204


# --- who may --------------------------------------------------------------------------------------------------------

KEYS = """
[[key]]
name = "starter"
secret = "starter-secret-0123"
actions = ["start", "read"]
streams = ["runs/bot", "runs/0*"]

[[key]]
name = "second starter"
secret = "second-secret-01234"

[[key]]
name = "reader"
secret = "reader-secret-01234"
actions = ["read", "list"]
"""


async def test_every_action_asks_whether_it_may(tmp_path: Any) -> None:
    await asyncio.to_thread((tmp_path / "keys.toml").write_text, KEYS)
    auth = await asyncio.to_thread(Keys.from_file, str(tmp_path / "keys.toml"))
    starter, second, reader = (f"Bearer {name}" for name in (
        "starter-secret-0123", "second-secret-01234", "reader-secret-01234",
    ))  # fmt: skip
    async with serving(["ok", asyncio.Event()], ["ok"], auth=auth) as client:
        nobody = await post(client, ["not", "even", "right"])  # and is not told so: its body is not taken in
        assert (nobody.status, nobody.headers["www-authenticate"]) == (401, "Bearer")
        started = await post(client, authorization=starter, idempotency_key="k")
        run = started.headers["x-run-id"]
        assert started.status == 201
        other_agent = {"agent": "other", "input": "hi"}
        refused = {
            "start": await post(client, authorization=reader),
            "start another": await post(client, other_agent, authorization=starter),
            "list": await client.ask("GET", "/v1/runs", authorization=starter),
            "cancel": await client.ask("POST", f"/v1/runs/{run}/cancel", authorization=reader),
        }
        assert {what: call.status for what, call in refused.items()} == dict.fromkeys(refused, 403)
        for path in (f"/v1/runs/{run}", f"/v1/runs/{run}/events", f"/v1/runs/{run}/cancel", "/v1/runs"):
            method = "POST" if path.endswith("cancel") else "GET"
            assert (await client.ask(method, path)).status == 401
        assert (await client.ask("GET", f"/v1/runs/{run}", authorization=reader)).status == 200
        assert len((await client.ask("GET", "/v1/runs", authorization=reader)).json()["runs"]) == 1
        theirs = await post(client, authorization=second, idempotency_key="k")
        assert theirs.status == 201  # another principal's key is another key
        assert theirs.headers["x-run-id"] != run


# --- mounted --------------------------------------------------------------------------------------------------------


async def test_under_a_prefix_the_location_is_right() -> None:
    async with Streams("memory:") as streams, Runs(streams, Agent(name="bot", model=scripted(["ok"]))) as runs:
        application = FastAPI()
        application.mount("/live", App(streams, runs))
        client = Client(application)
        call = await client.ask("POST", "/live/v1/runs", '{"agent": "bot", "input": "hi"}')
        assert call.status == 201
        assert call.headers["location"] == f"/live/v1/runs/{call.headers['x-run-id']}/events"
        assert kinds(await client.ask("GET", call.headers["location"]))[-1] == "RUN_FINISHED"
