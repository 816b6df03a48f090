"""`/langgraph` over ASGI: threads, states, starting, joining, resuming, interrupts, cancelling, and who may."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, SQLiteSession, function_tool
from fastapi import FastAPI

from asgi_client import (
    Call,
    Client,
    both_ways,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater import Streams
from headwater.delivery import Cut
from headwater.errors import StoreUnavailable
from headwater.http import App
from headwater.http.auth import Keys
from headwater.runs import Runs
from headwater.sources.openai_agents import OpenAIAgent
from headwater.testing import virtual_time
from headwater.wire.sse import Decoder, Event
from scripted_model import Answer, calls, scripted
from test_http_chat import KEYS

L = "/langgraph"
MODES = ["values", "updates", "messages", "messages-tuple", "custom"]


@function_tool
def search(q: str) -> str:
    return f"found {q}"


@function_tool(needs_approval=True)
def danger(level: int) -> str:
    return f"dared {level}"


class Site(Client):
    runs: Runs

    async def get(self, path: str, **headers: str) -> Any:
        call = await self.ask("GET", L + path, **headers)
        assert call.status == 200, call.text
        return call.json()

    async def post(self, path: str, body: Any = None, **headers: str) -> Call:
        return await self.ask("POST", L + path, json.dumps({} if body is None else body), **headers)

    async def stream(self, said: str = "hi", thread: str = "t1", **more: Any) -> Call:
        call = await self.post(f"/threads/{thread}/runs/stream", asked(said, **more))
        assert call.status == 200, call.text
        return call


@asynccontextmanager
async def serving(*answers: Answer, auth: Keys | None = None, agent: Any = None) -> AsyncIterator[Site]:
    async with Streams("memory:") as streams:
        bot = agent or Agent(name="Bot", model=scripted(*answers), tools=[search, danger])
        async with Runs(streams, bot) as runs:
            site = Site(App(streams, runs, auth=auth))
            site.runs = runs
            yield site


def asked(said: str | None = "hi", **more: Any) -> dict[str, Any]:
    given = None if said is None else {"messages": [{"role": "user", "content": said}]}
    return {"assistant_id": "bot", "input": given, "stream_mode": MODES} | more


def events(call: Call) -> list[Event]:
    return Decoder().feed(call.body)


def parts(call: Call, *names: str) -> list[Any]:
    return [json.loads(event.data) for event in events(call) if event.event in names]


def texts(values: Any) -> list[tuple[str, str]]:
    return [(message["type"], message["content"]) for message in values["messages"]]


async def test_a_run_is_answered_with_its_parts() -> None:
    async with serving(["Hel", "lo"]) as site:
        call = await site.stream(thread="t 1".replace(" ", "%20"))
        run = call.headers["x-run-id"]
        at = f"/langgraph/threads/t%201/runs/{run}"
        query = "&".join(f"stream_mode={mode}" for mode in MODES)
        assert call.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (call.headers["content-location"], call.headers["location"]) == (at, f"{at}/stream?{query}")
        names = [event.event for event in events(call)]
        assert (names[0], names[-1]) == ("metadata", "end")
        assert parts(call, "metadata") == [{"run_id": run, "thread_id": "t 1", "attempt": 1}]
        assert [texts(values) for values in parts(call, "values")] == [
            [("human", "hi")],
            [("human", "hi"), ("ai", "Hello")],
        ]
        assert [chunk["content"] for chunk, _ in parts(call, "messages")] == ["Hel", "lo"]
        record = (await site.ask("GET", f"/v1/runs/{run}")).json()
        assert (record["agent"], record["thread_id"], record["input"]) == ("bot", "t 1", "hi")


async def test_it_goes_on_behind_each_of_its_events() -> None:
    async with serving(calls("search", {"q": "x"}), ["ok"]) as site:
        whole = await site.stream()
        all_events = events(whole)
        assert len({event.id for event in all_events}) == len(all_events)
        for number, event in enumerate(all_events, start=1):
            rest = await site.ask("GET", whole.headers["location"], last_event_id=event.id)
            assert rest.status == 200
            assert events(rest) == all_events[number:]
            posted = await site.post("/threads/t1/runs/stream", asked(), last_event_id=event.id)
            assert events(posted) == all_events[number:]
        end = await site.ask("GET", whole.headers["location"], last_event_id=all_events[-1].id)
        assert (end.body, end.headers["stream-closed"]) == (b"", "true")
        again = await site.ask("GET", whole.headers["location"], last_event_id="-1")
        assert events(again) == all_events
        assert len((await site.ask("GET", "/v1/runs")).json()["runs"]) == 1


async def test_an_id_is_the_same_place_whatever_was_asked_for() -> None:
    async with serving(calls("search", {"q": "x"}), ["o", "k"]) as site:
        whole = await site.stream()
        at = whole.headers["location"].partition("?")[0]
        for mode in MODES:
            some = await site.ask("GET", f"{at}?stream_mode={mode}")
            own = {"metadata", "end", "messages" if mode == "messages-tuple" else mode}
            own |= {f"messages/{what}" for what in ("metadata", "partial", "complete")} if mode == "messages" else set()
            own -= {"messages"} if mode == "messages" else set()
            assert events(some) == [event for event in events(whole) if event.event in own]
        listed = await site.ask("GET", f'{at}?stream_mode=["values","custom"]&stream_mode=values')
        assert {event.event for event in events(listed)} == {"metadata", "end", "values", "custom"}
        assert events(await site.ask("GET", at)) == events(whole), "the modes that it was started with"


async def test_the_location_behind_the_address_that_clients_put_before_it() -> None:
    async with serving(["ok"]) as site:
        whole = await site.stream()
        assert events(await site.ask("GET", L + whole.headers["location"])) == events(whole)
        run = await site.get(whole.headers["content-location"])
        assert (run["run_id"], run["status"]) == (whole.headers["x-run-id"], "success")


async def test_the_same_where_it_is_mounted() -> None:
    async with Streams("memory:") as streams, Runs(streams, Agent(name="Bot", model=scripted(["ok"]))) as runs:
        outside = FastAPI()
        outside.mount("/headwater", App(streams, runs))
        client = Client(outside)
        whole = await client.ask("POST", f"/headwater{L}/threads/t1/runs/stream", json.dumps(asked()))
        at = whole.headers["location"]
        assert at.startswith("/headwater/langgraph/threads/t1/runs/")
        assert whole.headers["content-location"] == at.partition("/stream?")[0]
        for path in (at, f"/headwater{L}{at}"):
            assert events(await client.ask("GET", path)) == events(whole)


async def test_a_run_that_was_asked_for_otherwise_is_joined() -> None:
    async with serving(["ok"]) as site:
        body = json.dumps({"agent": "bot", "input": "hi", "thread_id": "t9"})
        run = (await site.ask("POST", "/v1/runs", body)).json()["id"]
        joined = await site.ask("GET", f"{L}/threads/t9/runs/{run}/stream")
        assert texts(parts(joined, "values")[-1]) == [("human", "hi"), ("ai", "ok")]
        assert (await site.get(f"/threads/t9/runs/{run}"))["status"] == "success"


@virtual_time
async def test_who_waits_for_long_is_told_that_it_goes_on() -> None:
    gate = asyncio.Event()
    async with serving([gate, "ok"]) as site:
        call = site.call("POST", f"{L}/runs/wait", json.dumps(asked()))
        await asyncio.sleep(40)
        assert call.body == b"  "
        gate.set()
        assert texts((await call.done()).json())[-1] == ("ai", "ok")


async def test_a_thread_goes_on() -> None:
    async with serving(calls("search", {"q": "x"}), ["one"], ["two"], ["other two"], ["again"]) as site:
        thread = (await site.post("/threads")).json()
        t = thread["thread_id"]
        assert (thread["status"], thread["values"]) == ("idle", None)
        assert await site.get(f"/threads/{t}/state") | {"metadata": {}} == {
            "values": {}, "next": [], "tasks": [], "interrupts": [], "checkpoint": None, "parent_checkpoint": None,
            "metadata": {}, "created_at": None,
        }  # fmt: skip
        first = (await site.stream("a", t)).headers["x-run-id"]
        second = (await site.stream("b", t)).headers["x-run-id"]
        given = (await site.ask("GET", f"/v1/runs/{second}")).json()["input"]
        assert [item.get("role") or item["type"] for item in given] == [
            "user", "function_call", "function_call_output", "assistant", "user",
        ]  # fmt: skip
        state = await site.get(f"/threads/{t}/state")
        said = [("human", "a"), ("ai", ""), ("tool", "found x"), ("ai", "one"), ("human", "b"), ("ai", "two")]
        assert (texts(state["values"]), state["next"]) == (said, [])
        history = (await site.post(f"/threads/{t}/history", {"limit": 10})).json()
        assert [at["checkpoint"]["checkpoint_id"] for at in history] == [
            second, f"{second}.input", first, f"{first}.input",
        ]  # fmt: skip
        parents = [at["parent_checkpoint"] and at["parent_checkpoint"]["checkpoint_id"] for at in history]
        assert parents == [f"{second}.input", first, f"{first}.input", None]
        assert [len(at["values"]["messages"]) for at in history] == [6, 5, 4, 1]
        limited = await site.post(f"/threads/{t}/history", {"limit": 2, "before": history[0]["checkpoint"]})
        assert limited.json() == history[1:3]
        assert await site.get(f"/threads/{t}/state/{first}") == history[2]
        thread = await site.get(f"/threads/{t}")
        assert (thread["status"], texts(thread["values"])) == ("idle", said)
        runs = await site.get(f"/threads/{t}/runs?limit=1&offset=1&status=success")
        assert [run["run_id"] for run in runs] == [first]
        # Asked otherwise, and answered anew, from where it was.
        fork = await site.stream("c", t, checkpoint={"checkpoint_id": first})
        assert texts(parts(fork, "values")[-1]) == [*said[:4], ("human", "c"), ("ai", "other two")]
        again = await site.stream(None, t, checkpoint_id=f"{second}.input")
        assert texts(parts(again, "values")[-1]) == [*said[:5], ("ai", "again")]
        unknown = await site.post(f"/threads/{t}/runs/stream", asked(checkpoint_id="nowhere"))
        assert unknown.status == 404


async def test_messages_keep_their_ids() -> None:
    async with serving(["one"], ["two"]) as site:
        said = {"messages": [{"type": "human", "id": "q1", "content": [{"type": "text", "text": "a"}]}]}
        await site.stream(input=said)
        messages = (await site.get("/threads/t1/state"))["values"]["messages"]
        assert messages[0]["id"] == "q1"
        stateful = await site.stream("b")
        first, last = parts(stateful, "values")[0], parts(stateful, "values")[-1]
        assert first["messages"][:2] == messages
        assert first["messages"] == last["messages"][:3]
        assert (await site.get("/threads/t1/state"))["values"] == last


async def test_the_same_post_again_attaches() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo"], ["next"]) as site:
        post = f"{L}/threads/t1/runs/stream", json.dumps(asked())
        first = site.call("POST", *post, idempotency_key="k")
        await first.until(b'"Hel"')
        second = site.call("POST", *post, idempotency_key="k")
        await second.until(b'"Hel"')
        gate.set()
        assert (await first.done()).body == (await second.done()).body
        assert (await site.post("/threads/t1/runs/stream", asked(), idempotency_key="k")).body == first.body
        other = await site.post("/threads/t1/runs/stream", asked("else"), idempotency_key="k")
        assert (other.status, other.json()["error"]["code"]) == (409, "idempotency_key_reused")
        assert len(await site.get("/threads/t1/runs")) == 1


async def test_one_run_of_a_thread_at_a_time() -> None:
    async with serving(["Hel", asyncio.Event()], ["ok"]) as site:
        call = site.call("POST", f"{L}/threads/t1/runs/stream", json.dumps(asked()))
        await call.until(b'"Hel"')
        run = call.headers["x-run-id"]
        assert (await site.get("/threads/t1"))["status"] == "busy"
        assert (await site.get("/threads/t1/state"))["next"] == ["agent"]
        assert (await site.get(f"/threads/t1/runs/{run}"))["status"] == "running"
        refused = await site.post("/threads/t1/runs/stream", asked())
        assert (refused.status, refused.json()["error"]["run"]) == (409, run)
        taken = await site.stream("now this", multitask_strategy="interrupt")
        assert texts(parts(taken, "values")[-1]) == [
            ("human", "hi"), ("ai", "Hel"), ("human", "now this"), ("ai", "ok"),
        ]  # fmt: skip
        assert events(await call.done())[-1].event == "end"
        assert (await site.get(f"/threads/t1/runs/{run}"))["status"] == "interrupted"


async def test_in_the_background_waited_for_and_without_a_thread() -> None:
    async with serving(["one"], ["two"], ["three"], ["four"]) as site:
        made = await site.post("/threads/t1/runs", asked(stream_mode=None))
        run = made.json()
        assert made.headers["content-location"] == f"/langgraph/threads/t1/runs/{run['run_id']}"
        assert texts(await site.get(f"/threads/t1/runs/{run['run_id']}/join")) == [("human", "hi"), ("ai", "one")]
        joined = await site.ask("GET", f"{L}/threads/t1/runs/{run['run_id']}/stream?cancel_on_disconnect=0")
        assert {event.event for event in events(joined)} == {"metadata", "values", "updates", "messages", "end"}
        waited = await site.post("/threads/t1/runs/wait", asked("b"))
        assert texts(waited.json())[-1] == ("ai", "two")
        alone = await site.post("/runs/stream", asked("c"))
        assert texts(parts(alone, "values")[-1]) == [("human", "c"), ("ai", "three")]
        assert alone.headers["location"].startswith(f"/langgraph/threads/th_{alone.headers['x-run-id']}/runs/")
        assert events(await site.ask("GET", f"{L}/runs/{alone.headers['x-run-id']}/stream")) == events(alone)
        assert texts((await site.post("/runs/wait", asked("d"))).json()) == [("human", "d"), ("ai", "four")]


async def test_who_leaves_ends_a_run_only_where_it_was_asked_for() -> None:
    async with serving(["one"], ["two"]) as site:
        for leaving, seconds in (("continue", None), ("cancel", "30")):
            call = await site.stream(on_disconnect=leaving)
            head = await site.runs.streams.head(f"runs/{call.headers['x-run-id']}")
            assert head.labels.get("unread") == seconds


async def test_a_failed_run_says_so_everywhere() -> None:
    async with serving(["Hel", ConnectionError("cut")], [ConnectionError("cut")]) as site:
        call = await site.stream()
        (error,) = parts(call, "error")
        assert (events(call)[-1].event, error["error"]) == ("error", "upstream_cut")
        assert (await site.get("/threads/t1"))["status"] == "error"
        state = await site.get("/threads/t1/state")
        assert json.loads(state["tasks"][0]["error"]) == error
        assert texts(state["values"]) == [("human", "hi"), ("ai", "Hel")]
        waited = await site.post("/threads/t2/runs/wait", asked())
        assert waited.json()["__error__"].keys() == error.keys()


async def test_interrupts_and_what_answers_them() -> None:
    one = calls("danger", {"level": 1}, call_id="d1")
    async with serving(one, ["done"], calls("danger", {"level": 2}, call_id="d2"), ["as you wish"]) as site:
        first = await site.stream()
        run = first.headers["x-run-id"]
        assert events(first)[-1].event == "end"
        still = await site.ask("GET", first.headers["location"], last_event_id=events(first)[-1].id)
        assert (still.status, events(still)) == (200, [])
        values = await site.get(f"/threads/t1/runs/{run}/join")
        asks = {
            "id": f"{run}~d1",
            "value": {
                "action_requests": [{"name": "danger", "args": {"level": 1}}],
                "review_configs": [{"action_name": "danger", "allowed_decisions": ["approve", "reject"]}],
            },
        }
        assert values["__interrupt__"] == [asks]
        assert (await site.get(f"/threads/t1/runs/{run}"))["status"] == "interrupted"
        thread, state = await site.get("/threads/t1"), await site.get("/threads/t1/state")
        assert (thread["status"], thread["interrupts"]) == ("interrupted", {run: [asks]})
        assert (state["next"], state["tasks"][0]["interrupts"]) == (["tools"], [asks])
        assert "__interrupt__" not in state["values"]
        for wrong in ("yes", {"decisions": []}, {"decisions": [{"type": "edit"}]}, {"other": True}):
            refused = await site.post("/threads/t1/runs/stream", asked(None, command={"resume": wrong}))
            assert (refused.status, "approve" in refused.text) == (400, True), wrong
        resume = {"decisions": [{"type": "approve"}]}
        rest = await site.stream(None, command={"resume": resume})
        assert rest.headers["x-run-id"] == run
        whole = events(await site.ask("GET", first.headers["location"]))
        assert whole == [*events(first)[:-1], *events(rest)], "who reads it later sees no end in its middle"
        gone_on = await site.ask("GET", first.headers["location"], last_event_id=events(first)[-1].id)
        assert events(await site.ask("GET", rest.headers["location"])) == events(gone_on) == events(rest)
        assert "__interrupt__" not in parts(rest, "values")[0]
        assert texts(parts(rest, "values")[-1]) == [
            ("human", "hi"), ("ai", ""), ("tool", "dared 1"), ("ai", "done"),
        ]  # fmt: skip
        late = await site.post("/threads/t1/runs/stream", asked(None, command={"resume": resume}))
        assert late.status == 409
        waited = await site.post("/threads/t1/runs/wait", asked("b"))
        (ask,) = waited.json()["__interrupt__"]
        no = {ask["id"]: {"decisions": [{"type": "reject", "message": "not on a Friday"}]}}
        rest = await site.stream(None, command={"resume": no})
        assert texts(parts(rest, "values")[-1])[-2:] == [("tool", "not on a Friday"), ("ai", "as you wish")]
        nothing = await site.post("/threads/new/runs/stream", asked(None, command={"resume": True}))
        assert nothing.status == 400


async def test_cancelling() -> None:
    async with serving(["Hel", asyncio.Event()], ["Hel", asyncio.Event()]) as site:
        for thread, wait, status in (("t1", "0", 202), ("t2", "1", 204)):
            call = site.call("POST", f"{L}/threads/{thread}/runs/stream", json.dumps(asked()))
            await call.until(b'"Hel"')
            at = f"/threads/{thread}/runs/{call.headers['x-run-id']}"
            assert (await site.post(f"{at}/cancel?action=rollback")).status == 400
            stopped = await site.post(f"{at}/cancel?wait={wait}&action=interrupt")
            assert (stopped.status, stopped.body) == (status, b"")
            assert events(await call.done())[-1].event == "end"
            assert (await site.get(at))["status"] == "interrupted"
            assert (await site.get(f"/threads/{thread}"))["status"] == "idle"
            assert texts((await site.get(f"/threads/{thread}/state"))["values"])[-1] == ("ai", "Hel")


async def test_an_agent_that_remembers_is_told_only_what_is_new() -> None:
    model = scripted(["one"], ["two"], ["three"])
    sessions: list[SQLiteSession] = []

    def session_of(thread: str) -> SQLiteSession:
        sessions.append(SQLiteSession(thread))
        return sessions[-1]

    source = OpenAIAgent(Agent(name="Bot", model=model)).remembering(session_of, busy="refuse")
    async with serving(agent=source) as site:
        first = (await site.stream("a")).headers["x-run-id"]
        second = await site.stream("b")
        assert (await site.ask("GET", f"/v1/runs/{second.headers['x-run-id']}")).json()["input"] == "b"
        assert len(parts(second, "values")[-1]["messages"]) == 4
        fork = await site.post("/threads/t1/runs/stream", asked("c", checkpoint_id=first))
        assert (fork.status, "remembers" in fork.text) == (400, True)
        await site.stream("c", checkpoint_id=second.headers["x-run-id"])
    for session in sessions:
        session.close()


@pytest.mark.parametrize("messages", [
    "hi",
    ["hi"],
    [["user", "hi"]],
    {"role": "human", "content": "hi"},
    [{"type": "HumanMessageChunk", "content": "hi"}],
    [{"lc": 1, "type": "constructor", "id": ["messages", "HumanMessage"], "kwargs": {"content": "hi"}}],
    [{"type": "human", "content": [{"type": "text", "text": "hi"}]}],
])  # fmt: skip
async def test_forms_of_a_message(messages: Any) -> None:
    async with serving(["ok"]) as site:
        run = await site.stream(input={"messages": messages})
        assert (await site.ask("GET", f"/v1/runs/{run.headers['x-run-id']}")).json()["input"] == "hi"


async def test_images_and_earlier_calls_go_along() -> None:
    messages = [
        {"type": "system", "content": "Be brief."},
        {"type": "human", "content": "a"},
        {"type": "ai", "content": "", "tool_calls": [{"id": "c", "name": "search", "args": {"q": 1}}, {"id": "no"}]},
        {"type": "tool", "tool_call_id": "c", "content": "x"},
        {"type": "human", "content": [
            {"type": "text", "text": "what is it?"},
            {"type": "image_url", "image_url": {"url": "https://x/y.png"}},
            {"type": "image", "base64": "AAAA", "mime_type": "image/png"},
            {"type": "file", "url": "https://x/y.pdf", "filename": "y.pdf"},
        ]},
    ]  # fmt: skip
    async with serving(["ok"]) as site:
        run = await site.stream(input={"messages": messages})
        assert (await site.ask("GET", f"/v1/runs/{run.headers['x-run-id']}")).json()["input"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"type": "function_call", "call_id": "c", "name": "search", "arguments": '{"q":1}'},
            {"type": "function_call_output", "call_id": "c", "output": "x"},
            {"role": "user", "content": [
                {"type": "input_text", "text": "what is it?"},
                {"type": "input_image", "image_url": "https://x/y.png", "detail": "auto"},
                {"type": "input_image", "image_url": "data:image/png;base64,AAAA", "detail": "auto"},
                {"type": "input_file", "file_url": "https://x/y.pdf", "filename": "y.pdf"},
            ]},
        ]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"assistant_id": None}, "assistant_id"),
        ({"input": {"question": "?"}}, "messages"),
        ({"input": {"messages": [{"role": "king", "content": "x"}]}}, "forms"),
        ({"input": {"messages": [{"role": "ai", "content": "x"}]}}, "user's"),
        ({"input": {"messages": [{"role": "user", "content": [{"type": "audio"}]}]}}, "'audio'"),
        ({"input": None}, "messages is empty"),
        ({"input": {"messages": []}}, "messages is empty"),
        ({"stream_mode": ["values", "debug"]}, "choose values, updates, messages, messages-tuple, custom"),
        ({"multitask_strategy": "enqueue"}, "reject or interrupt"),
        ({"on_disconnect": "maybe"}, "continue or cancel"),
        ({"webhook": "https://x"}, "webhook"),
        ({"interrupt_before": ["tools"]}, "interrupt_before"),
        ({"command": {"goto": "x"}}, "resume"),
        ({"checkpoint_id": 5}, "checkpoint_id"),
    ],
)
async def test_a_bad_request_is_refused_and_says_why(body: dict[str, Any], said: str) -> None:
    async with serving() as site:
        call = await site.post("/threads/t1/runs/stream", asked() | body)
        assert call.status == 400
        assert said in call.json()["error"]["message"]
        assert (await site.ask("GET", "/v1/runs")).json()["runs"] == []


async def test_what_is_not_there() -> None:
    async with serving(["ok"], ["ok"]) as site:
        run = (await site.stream()).headers["x-run-id"]
        for method, path in (
            ("GET", "/threads/t1/runs/nobody/stream"),
            ("GET", f"/threads/other/runs/{run}/stream"),
            ("POST", f"/threads/other/runs/{run}/cancel"),
            ("GET", "/assistants/nobody"),
            ("POST", "/threads/search"),
            ("POST", "/store/items"),
            ("POST", "/threads/t1/runs/batch"),
            ("DELETE", "/threads/t1"),
        ):
            assert (await site.ask(method, L + path, "{}")).status == 404, path
        for call in (
            await site.post("/runs/wait", asked(assistant_id="bto")),
            await site.ask("GET", f"{L}/assistants/x"),
        ):
            assert call.status == 404
            assert "; there are: bot" in call.text
        other = (await site.stream()).headers["x-run-id"]
        theirs = f"{other}~{'0' * 16}_{'0' * 16}"
        wrong = await site.ask("GET", f"{L}/threads/t1/runs/{run}/stream", last_event_id=theirs)
        assert (wrong.status, wrong.json()["error"]["code"]) == (400, "bad_offset")
        leaving = await site.ask("GET", f"{L}/threads/t1/runs/{run}/stream?cancel_on_disconnect=1")
        assert (leaving.status, "on_disconnect" in leaving.text) == (400, True)
        assert (await site.post("/threads", {"thread_id": "t1"})).status == 409
        same = await site.post("/threads", {"thread_id": "t1", "if_exists": "do_nothing"})
        assert (same.json()["thread_id"], len(same.json()["values"]["messages"])) == ("t1", 4)
        assert (await site.post("/threads", {"thread_id": "a/b"})).status == 400
        assert [one["assistant_id"] for one in (await site.post("/assistants/search")).json()] == ["bot"]
        assert (await site.get("/assistants/bot"))["graph_id"] == "bot"
        assert await site.get("/ok") == {"ok": True}
        assert (await site.get("/info"))["flags"]["assistants"]


async def test_every_action_asks_whether_it_may(tmp_path: Any) -> None:
    await asyncio.to_thread((tmp_path / "keys.toml").write_text, KEYS)
    auth = await asyncio.to_thread(Keys.from_file, str(tmp_path / "keys.toml"))
    one, two, reader = (f"Bearer secret-of-{name}" for name in ("one-0123", "two-0123", "reader-0"))
    async with serving(["Hel", asyncio.Event()], ["ok"], auth=auth) as site:
        post, body = f"{L}/threads/t1/runs/stream", json.dumps(asked())
        for method, path in (
            ("POST", "/threads"), ("GET", "/threads/t1"), ("POST", "/threads/t1/runs"), ("GET", "/assistants/bot"),
            ("POST", "/threads/t1/history"), ("GET", "/threads/t1/runs"), ("GET", "/threads/t1/runs/r/stream"),
        ):  # fmt: skip
            assert (await site.ask(method, L + path, "{}")).status == 401, path
        assert (await site.ask("POST", post, body, authorization=reader)).status == 403
        call = site.call("POST", post, body, authorization=one)
        await call.until(b'"Hel"')
        theirs = await site.ask("POST", post, body, authorization=two)
        assert theirs.headers["x-run-id"] != call.headers["x-run-id"], "a thread of their own"
        assert (await site.get("/threads/t1/state", authorization=reader))["values"] == {}
        run = f"/threads/t1/runs/{call.headers['x-run-id']}"
        assert (await site.post(f"{run}/cancel", authorization=reader)).status == 403
        assert (await site.post(f"{run}/cancel", authorization=one)).status == 202
        await call.done()


async def test_a_thread_goes_on_from_what_is_left_of_its_runs() -> None:
    async with serving(["a"], ["b"], ["c"]) as site:
        await site.stream("one")
        run = (await site.stream("two")).headers["x-run-id"]
        assert (await site.ask("DELETE", f"/v1/responses/resp_{run}")).status == 200
        assert texts((await site.get("/threads/t1"))["values"]) == [("human", "one"), ("ai", "a")]
        assert texts((await site.get("/threads/t1/state"))["values"]) == [("human", "one"), ("ai", "a")]
        assert [len(await site.get("/threads/t1/runs")), len((await site.post("/threads/t1/history")).json())] == [1, 2]
        last = parts(await site.stream("three"), "values")[-1]
        assert texts(last) == [("human", "one"), ("ai", "a"), ("human", "three"), ("ai", "c")]


async def test_of_two_runs_that_are_asked_for_at_once_one_is_refused() -> None:
    gate = asyncio.Event()
    async with serving(["a", gate], ["b"]) as site:
        posts = [site.call("POST", f"{L}/threads/t1/runs", json.dumps(asked(said))) for said in ("one", "two")]
        assert [(await post.done()).status for post in posts] == [200, 409]
        gate.set()


@pytest.mark.parametrize("place", ["/threads/t1/runs", "/runs"])
async def test_a_request_that_is_repeated_at_once_begins_one_run(place: str) -> None:
    async with serving(["a"], ["b"]) as site:
        posts = [site.call("POST", L + place, json.dumps(asked()), idempotency_key="k") for _ in range(2)]
        first, second = [(await post.done()).json() for post in posts]
        assert first["run_id"] == second["run_id"]


async def test_a_request_whose_run_was_never_begun_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    async def dies(*_: Any) -> bool:
        raise StoreUnavailable("the store is away")

    async with serving(["a"]) as site:
        with monkeypatch.context() as patched:
            patched.setattr(site.runs, "_begin", dies)
            assert (await site.post("/threads/t1/runs/wait", asked(), idempotency_key="k")).status == 503
        again = await site.post("/threads/t1/runs/wait", asked(), idempotency_key="k")
        assert texts(again.json()) == [("human", "hi"), ("ai", "a")]


@pytest.mark.parametrize("wait", [False, True])
async def test_a_server_that_goes_away_lets_go_of_those_who_wait(tmp_path: Path, wait: bool) -> None:
    bot = Agent(name="Bot", model=scripted(["a", asyncio.Event()]))
    async with Streams(f"sqlite:///{tmp_path}/runs.db") as streams, Runs(streams, bot) as runs:
        site = Site(App(streams, runs))
        if wait:
            call = site.call("POST", f"{L}/threads/t1/runs/wait", json.dumps(asked()))
        else:
            run = (await site.post("/threads/t1/runs", asked())).headers["content-location"]
            call = site.call("GET", f"{run}/join")
        await call.started()
        streams.drain()
        await runs.interrupt()  # which leaves the run to the next process
        with pytest.raises(Cut):
            await call.done()
        assert not call.ended


async def test_odd_queries_and_bodies_are_the_clients_fault() -> None:
    async with serving(["a"]) as site:
        run = (await site.stream()).headers["content-location"]
        for place in (f"{L}/threads/t1/runs?offset={'9' * 5000}", f"{run}/stream?stream_mode={'[' * 5000}"):
            assert (await site.ask("GET", place)).status == 400
        assert (await site.post("/threads/t1/history", {"before": {"configurable": "x"}})).status == 200
