"""`/agents/{name}/ag-ui` over ASGI: a RunAgentInput, the same one again, joining, hydration, stopping, and who may."""

import asyncio
import json
from typing import Any

import pytest
from ag_ui.core import TextMessageChunkEvent
from agents import Agent, function_tool

from asgi_client import Call as Asked
from asgi_client import (
    Client,
    both_ways,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater import Streams
from headwater.http import App
from headwater.http.auth import Keys
from headwater.runs import Runs
from headwater.sources import Request, Sink, request
from scripted_model import Call, calls, scripted
from test_http_chat import KEYS, events, serving

AGUI = "/agents/bot/ag-ui"


def asked(text: str = "hi", run: str = "r1", thread: str = "t1", **more: Any) -> str:
    messages = [{"id": f"q-{run}", "role": "user", "content": text}]
    empty: dict[str, Any] = {"tools": [], "context": [], "state": {}, "forwardedProps": {}}
    return json.dumps({"threadId": thread, "runId": run, "messages": messages} | empty | more)


def kinds(call: Asked) -> list[str]:
    return [json.loads(event.data)["type"] for event in events(call)]


async def test_a_post_starts_a_run_and_is_answered_with_its_events() -> None:
    async with serving(["Hel", "lo"]) as client:
        call = await client.ask("POST", AGUI, asked())
        run = call.headers["x-run-id"]
        assert (call.status, call.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
        assert call.headers["location"] == f"{AGUI}?format=sse&runId={run}"
        assert (kinds(call)[0], kinds(call)[-1]) == ("RUN_STARTED", "RUN_FINISHED")
        assert b"run.input" not in call.body
        assert json.loads(events(call)[0].data)["threadId"] == "t1"
        log = events(await client.ask("GET", f"/v1/runs/{run}/events?rollup=0"))
        assert [event for event in log if "run.input" not in event.data] == events(call)


async def test_the_same_run_again_attaches() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo"]) as client:
        first = client.call("POST", AGUI, asked())
        await first.until(b'"Hel"')
        second = client.call("POST", AGUI, asked())
        await second.until(b'"Hel"')
        gate.set()
        assert (await first.done()).body == (await second.done()).body
        whole = events(first)
        for number, event in enumerate(whole[:-1], start=1):
            again = await client.ask("POST", f"{AGUI}?rollup=0", asked(), last_event_id=event.id)
            assert events(again) == whole[number:]
        assert (await client.ask("POST", AGUI, asked(), last_event_id=whole[-1].id)).status == 204
        other = await client.ask("POST", AGUI, asked("something else"))
        assert (other.status, "runId" in other.json()["error"]["message"]) == (409, True)
        assert len((await client.ask("GET", "/v1/runs")).json()["runs"]) == 1


async def test_a_post_that_resumes_never_starts_a_run() -> None:
    async with serving(["ok"]) as client:
        lost = await client.ask("POST", AGUI, asked(run="forgotten"), last_event_id=f"{0:016d}_{5:016d}")
        assert (lost.status, lost.json()["error"]["code"]) == (404, "run_not_found")
        assert (await client.ask("GET", "/v1/runs")).json()["runs"] == []


async def test_join_by_the_clients_id_or_by_ours() -> None:
    async with serving(["ok"]) as client:
        call = await client.ask("POST", AGUI, asked())
        for run in ("r1", call.headers["x-run-id"]):
            joined = await client.ask("GET", f"{AGUI}?offset=-1&runId={run}")
            assert (joined.status, joined.body) == (200, call.body)
        assert (await client.ask("GET", f"{AGUI}?runId=nobody")).status == 404
        assert (await client.ask("GET", f"/agents/other/ag-ui?runId={call.headers['x-run-id']}")).status == 404
        assert (await client.ask("GET", AGUI)).status == 400


async def test_as_lines_of_ids_and_chunks() -> None:
    async with serving(["Grüezi\u2028", "wohl"]) as client:
        call = await client.ask("POST", f"{AGUI}?format=ndjson&rollup=0", asked())
        assert call.headers["content-type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in call.text.split("\n") if line]
        whole = events(await client.ask("POST", f"{AGUI}?rollup=0", asked()))
        assert lines == [{"id": event.id, "chunk": json.loads(event.data)} for event in whole]
        assert "\u2028" not in call.text
        rest = await client.ask("GET", call.headers["location"], last_event_id=lines[3]["id"])
        assert call.text.endswith(rest.text)
        assert len([line for line in rest.text.split("\n") if line]) == len(lines) - 4
        refused = await client.ask("POST", f"{AGUI}?format=xml", asked())
        assert (refused.status, "sse, ndjson" in refused.json()["error"]["message"]) == (406, True)


async def hydrated(client: Client, thread: str = "t1") -> Any:
    call = await client.ask("GET", f"{AGUI}?threadId={thread}")
    assert (call.status, call.headers["cache-control"]) == (200, "no-store")
    return call.json()


async def test_hydration_gives_the_transcript_and_the_active_run() -> None:
    gate = asyncio.Event()
    async with serving(["one"], [gate, "two"], ["three"]) as client:
        assert await hydrated(client) == {
            "messages": [], "activeRun": None, "interrupts": None, "page": {"truncated": False}
        }  # fmt: skip
        first = await client.ask("POST", AGUI, asked("a"))
        one = (await hydrated(client))["messages"]
        said = [(message["role"], message["parts"][0]["content"]) for message in one]
        assert said == [("user", "a"), ("assistant", "one")]
        history = [{"id": message["id"], "role": message["role"], "content": "…"} for message in one]
        next_ = [*history, {"id": "q2", "role": "user", "content": "b"}]
        second = client.call("POST", AGUI, asked(run="r2", messages=next_))
        await second.until(b"RUN_STARTED")
        meanwhile = await hydrated(client)
        assert meanwhile["activeRun"] == {"runId": second.headers["x-run-id"]}
        assert [message["id"] for message in meanwhile["messages"]] == [one[0]["id"], one[1]["id"], "q2"]
        gate.set()
        await second.done()
        assert (await hydrated(client))["messages"][-1]["parts"] == [{"type": "text", "content": "two"}]
        # The second question is asked otherwise: what it replaces is gone.
        edited = [*history, {"id": "q3", "role": "user", "content": "c"}]
        await client.ask("POST", AGUI, asked(run="r3", messages=edited))
        now = await hydrated(client)
        assert [message["parts"][0]["content"] for message in now["messages"]] == ["a", "one", "c", "three"]
        assert now["activeRun"] is None
        assert first.headers["x-run-id"] != second.headers["x-run-id"]
        assert (await hydrated(client, "another"))["messages"] == []


def texts(hydration: Any) -> list[str]:
    """u: the user's, a: the agent's."""
    return [f"{message['role'][0]}:{message['parts'][0]['content']}" for message in hydration["messages"]]


async def ended(client: Client, method: str, path: str, body: str, **headers: str) -> str:
    """The id of the run that this starts, once it is over."""
    call = await client.ask(method, path, body, **headers)
    assert call.status in (200, 201), call.text
    return call.headers["x-run-id"]


def ui(*said: str, chat: str = "t1") -> str:
    """What useChat posts: the whole conversation, by turns."""
    messages = [
        {"id": f"m{n}", "role": ("user", "assistant")[n % 2], "parts": [{"type": "text", "text": text}]}
        for n, text in enumerate(said)
    ]
    return json.dumps({"id": chat, "messages": messages, "trigger": "submit-message"})


async def test_a_thread_that_was_used_through_every_door_is_hydrated() -> None:
    async with serving(*[[word] for word in ("one", "two", "three", "four", "five")]) as client:
        await ended(client, "POST", "/agents/bot/chat", ui("a"))
        assert texts(await hydrated(client)) == ["u:a", "a:one"]
        before = (await hydrated(client))["messages"]
        history = [{"id": m["id"], "role": m["role"], "content": m["parts"][0]["content"]} for m in before]
        await ended(client, "POST", AGUI, asked(messages=[*history, {"id": "q2", "role": "user", "content": "b"}]))
        assert (await hydrated(client))["messages"][:2] == before, "ids that a client may have stay"
        body = json.dumps({"agent": "bot", "input": "c", "thread_id": "t1"})
        last = await ended(client, "POST", "/v1/runs", body, accept="text/event-stream")
        body = json.dumps({"model": "bot", "input": "d", "previous_response_id": f"resp_{last}"})
        await ended(client, "POST", "/v1/responses", body)
        said = ["u:a", "a:one", "u:b", "a:two", "u:c", "a:three", "u:d", "a:four"]
        assert texts(await hydrated(client)) == said
        await ended(client, "POST", "/agents/bot/chat", ui("a", "one", "e"))
        assert texts(await hydrated(client)) == ["u:a", "a:one", "u:e", "a:five"]


async def test_hydration_knows_a_message_of_useChat_that_was_edited_and_an_answer_made_anew() -> None:
    async with serving(*[[word] for word in ("one", "two", "three", "four")]) as client:
        await ended(client, "POST", "/agents/bot/chat", ui("a"))
        await ended(client, "POST", "/agents/bot/chat", ui("a", "one", "b"))
        assert texts(await hydrated(client)) == ["u:a", "a:one", "u:b", "a:two"]
        await ended(client, "POST", "/agents/bot/chat", ui("a", "one", "B"))
        assert texts(await hydrated(client)) == ["u:a", "a:one", "u:B", "a:three"]
        await ended(client, "POST", "/agents/bot/chat", ui("a"))
        assert texts(await hydrated(client)) == ["u:a", "a:four"]


async def test_a_conversation_of_responses_is_hydrated_and_those_that_were_deleted_are_left_out() -> None:
    async with serving(["one"], ["two"], ["three"]) as client:
        runs: list[str] = []
        for text in "ab":
            more = {"previous_response_id": f"resp_{runs[-1]}"} if runs else {}
            runs.append(
                await ended(client, "POST", "/v1/responses", json.dumps({"model": "bot", "input": text} | more))
            )
        thread = f"th_{runs[0]}"
        assert texts(await hydrated(client, thread)) == ["u:a", "a:one", "u:b", "a:two"]
        assert (await client.ask("GET", f"/agents/other/ag-ui?threadId={thread}")).json()["messages"] == []
        assert (await client.ask("DELETE", f"/v1/responses/resp_{runs[0]}")).status == 200
        assert texts(await hydrated(client, thread)) == ["u:b", "a:two"]


async def test_what_else_a_client_sends_is_for_the_agents_code_and_for_nobody_else() -> None:
    @function_tool
    def look() -> str:
        """In a thread."""
        return f"{request().state} {list(request().context)}"

    @function_tool
    async def look_too() -> str:
        """On the loop."""
        return f"{request().forwarded_props}"

    prompts: list[Any] = []
    second = Call(index=1, id="c2", type="function", function={"name": "look_too", "arguments": "{}"})
    model = scripted([*calls("look", {}, "c1"), second], ["ok"], ["ok"], asked=prompts.append)
    agent = Agent(
        name="Bot",
        model=model,
        tools=[look, look_too],
        instructions=lambda _context, _agent: f"The page is {list(request().context)}.",
    )
    sent: dict[str, Any] = {
        "state": {"cart": ["tea"]},
        "context": [{"description": "page", "value": "the shop"}],
        "forwardedProps": {"token": "of-the-user"},
    }
    async with Streams("memory:") as streams, Runs(streams, agent) as runs:
        client = Client(App(streams, runs))
        call = await client.ask("POST", AGUI, asked(**sent))
        told = [json.loads(event.data) for event in events(call)]
        results = {event["toolCallId"]: event["content"] for event in told if event["type"] == "TOOL_CALL_RESULT"}
        assert results == {"c1": f"{sent['state']} {sent['context']}", "c2": f"{sent['forwardedProps']}"}
        assert prompts[0]["messages"][0] == {"role": "system", "content": f"The page is {sent['context']}."}
        log = await client.ask("GET", f"/v1/runs/{call.headers['x-run-id']}/events?format=ndjson")
        assert b"the shop" not in b"".join(line for line in log.body.splitlines() if b"TOOL_CALL_RESULT" not in line)
        changed = await client.ask("POST", AGUI, asked(**sent | {"state": {"cart": []}}))
        assert changed.status == 409
        await client.ask("POST", AGUI, asked(run="r2"))
        assert prompts[-1]["messages"][0]["content"] == "The page is []."
        assert request() == Request()


async def test_what_came_before_goes_to_the_model() -> None:
    async with serving(calls("search", {"q": 1}), ["ok"]) as client:
        messages = [
            {"id": "1", "role": "system", "content": "Be brief."},
            {"id": "2", "role": "user", "content": [{"type": "text", "text": "a"}]},
            {"id": "3", "role": "assistant", "content": "b"},
            {"id": "4", "role": "user", "content": "c"},
        ]
        call = await client.ask("POST", AGUI, asked(messages=messages))
        record = (await client.ask("GET", f"/v1/runs/{call.headers['x-run-id']}")).json()
        assert record["input"] == [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]


async def test_stop() -> None:
    async with serving(["Hel", asyncio.Event()]) as client:
        call = client.call("POST", AGUI, asked())
        await call.until(b'"Hel"')
        stopped = await client.ask("POST", f"{AGUI}/r1/stop")
        assert (stopped.status, stopped.json()) == (202, {"stopped": True, "runId": call.headers["x-run-id"]})
        assert json.loads(events(await call.done())[-1].data)["outcome"] == {"type": "cancelled"}
        assert (await client.ask("POST", f"{AGUI}/r1/stop")).status == 200
        assert (await client.ask("POST", f"{AGUI}/nobody/stop")).status == 404
        assert (await client.ask("GET", f"{AGUI}/r1/stop")).headers["allow"] == "POST"
        assert (await client.ask("DELETE", AGUI)).headers["allow"] == "GET, POST"
        assert (await client.ask("GET", f"{AGUI}/r1/what")).status == 404


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "JSON"),
        (asked(run=""), "runId"),
        (asked(thread="x" * 256), "threadId"),
        (asked(messages=None), "list of messages"),
        (asked(messages=[]), "the user's"),
        (asked(messages=[]), "messages is empty"),
        (asked(messages=[{"role": "tool", "toolCallId": "c", "content": "x"}]), "the user's"),
        (asked(messages=[{"role": "user", "content": [{"type": "audio"}]}]), "'audio'"),
        (asked(messages=[{"role": "user", "content": 5}]), "form"),
        (asked(messages=[{"role": "king", "content": "x"}, {"role": "user", "content": "x"}]), "role"),
        (asked(resume=[{"interruptId": "i"}]), "interruptId"),
        (asked(context={"description": "d", "value": "v"}), "context is a list of objects"),
        (asked(context=["text"]), "context is a list of objects"),
        (asked(tools=[{"name": "open_tab", "description": "", "parameters": {}}]), "send tools: []"),
    ],
)
async def test_a_bad_post_is_refused_and_says_why(body: str, said: str) -> None:
    async with serving() as client:
        call = await client.ask("POST", AGUI, body)
        assert call.status == 400
        assert said in call.json()["error"]["message"]
        assert (await client.ask("GET", "/v1/runs")).json()["runs"] == []


async def test_every_action_asks_whether_it_may(tmp_path: Any) -> None:
    await asyncio.to_thread((tmp_path / "keys.toml").write_text, KEYS)
    auth = await asyncio.to_thread(Keys.from_file, str(tmp_path / "keys.toml"))
    one, two, reader = (f"Bearer secret-of-{name}" for name in ("one-0123", "two-0123", "reader-0"))
    async with serving(["Hel", asyncio.Event()], ["ok"], auth=auth) as client:
        for method, path in (("POST", AGUI), ("GET", f"{AGUI}?runId=r1"), ("POST", f"{AGUI}/r1/stop")):
            assert (await client.ask(method, path, asked())).status == 401
        assert (await client.ask("POST", AGUI, asked(), authorization=reader)).status == 403
        call = client.call("POST", AGUI, asked(), authorization=one)
        await call.until(b'"Hel"')
        assert (await client.ask("GET", f"{AGUI}?runId=r1", authorization=two)).status == 404
        theirs = await client.ask("POST", AGUI, asked(), authorization=two)
        assert theirs.headers["x-run-id"] != call.headers["x-run-id"]
        assert (await client.ask("GET", f"{AGUI}?threadId=t1", authorization=reader)).json()["messages"] == []
        run = call.headers["x-run-id"]
        assert (await client.ask("POST", f"{AGUI}/{run}/stop", authorization=reader)).status == 403
        assert (await client.ask("POST", f"{AGUI}/r1/stop", authorization=one)).status == 202
        await call.done()


class Talker:
    """Says a lot."""

    name = "talker"

    async def run(self, _: Any, sink: Sink) -> None:
        for _ in range(5000):
            await sink.emit(TextMessageChunkEvent(message_id="m", delta="words and more words"))


async def test_who_asks_for_a_long_conversation_leaves_the_others_their_turn() -> None:
    async with Streams("memory:") as streams, Runs(streams, Talker()) as runs:
        client = Client(App(streams, runs))
        await client.ask("POST", "/agents/talker/ag-ui", asked())
        turns = 0
        hydration = client.call("GET", "/agents/talker/ag-ui?threadId=t1")
        while not hydration.task.done():
            await asyncio.sleep(0)
            turns += 1
        assert len((await hydration.done()).json()["messages"]) == 2
        assert turns > 5
