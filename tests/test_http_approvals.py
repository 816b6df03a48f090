"""Approvals by the doors of chat clients: what ends an answer, what answers it, and that a tool runs once."""

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from asgi_client import Call, Client
from headwater import leases
from headwater.http import App
from headwater.http.auth import Keys, Principal
from headwater.wire.sse import Decoder
from run_processes import Process, Processes, processes
from scripted_model import Call as ToolCall
from scripted_model import calls

CHAT, AGUI = "/agents/bot/chat-v7", "/agents/bot/ag-ui"
ASK = calls("danger", {"n": 1}, "d1")
ASK_TWICE = [
    ToolCall(index=at, id=f"d{at}", type="function", function={"name": "danger", "arguments": f'{{"n": {at}}}'})
    for at in (0, 1)
]


@pytest.fixture(autouse=True)
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "RENEW_SECONDS", 3600.0)


@pytest.fixture
def process(tmp_path: Path) -> Processes:
    return processes(f"sqlite:///{tmp_path}/runs.db")


def client_of(process: Process, auth: Keys | None = None) -> Client:
    return Client(App(process.streams, process.runs, auth=auth))


def told(call: Call) -> list[Any]:
    return [json.loads(event.data) for event in Decoder().feed(call.body) if event.data != "[DONE]"]


def kinds(call: Call) -> list[str]:
    return [event["type"] for event in told(call)]


def posted(*parts: dict[str, Any]) -> str:
    messages = [{"id": "m1", "role": "user", "parts": [{"type": "text", "text": "hi"}]}]
    if parts:
        messages.append({"id": "m2", "role": "assistant", "parts": list(parts)})
    return json.dumps({"id": "c1", "messages": messages, "trigger": "submit-message"})


def part(run_id: str, approved: bool = True, call: str = "d1", **more: str) -> dict[str, Any]:
    approval = {"id": f"{run_id}~{call}", "approved": approved, **more}
    return {"type": "tool-danger", "toolCallId": call, "state": "approval-responded", "input": {}, "approval": approval}


def resumed(run_id: str, payload: Any, client_run: str = "r2", status: str = "resolved", **more: Any) -> str:
    entry = {"interruptId": f"{run_id}~d1", "status": status, "payload": payload}
    return asked(client_run, resume=[entry], **more)


def asked(client_run: str = "r1", **more: Any) -> str:
    messages = [{"id": "q", "role": "user", "content": "hi"}]
    return json.dumps({"threadId": "t1", "runId": client_run, "messages": messages} | more)


async def test_a_chat_answers_and_gets_the_rest_of_its_message(process: Processes) -> None:
    async with process(ASK, ["done"]) as one:
        client = client_of(one)
        first = await client.ask("POST", CHAT, posted())
        run = first.headers["x-run-id"]
        assert kinds(first)[-4:] == ["tool-input-available", "tool-approval-request", "finish-step", "finish"]
        last_id = str(Decoder().feed(first.body)[-1].id)
        assert (await client.ask("GET", first.headers["location"], last_event_id=last_id)).status == 204
        assert told(await client.ask("GET", f"{CHAT}/c1/stream")) == told(first)
        rest = await client.ask("POST", CHAT, posted(part(run)))
        assert told(rest)[0] == told(first)[0]
        expected = ["start", "tool-approval-response", "data-tool-started", "tool-output-available"]
        assert kinds(rest)[:4] == expected
        assert kinds(rest)[-1] == "finish"
        assert one.tools.done == [("danger", "d1")]
        for again in (
            await client.ask("POST", CHAT, posted(part(run))),
            await client.ask("GET", rest.headers["location"]),
        ):
            assert again.body == rest.body
        on = await client.ask("GET", rest.headers["location"], last_event_id=last_id)
        assert told(on) == told(rest)[1:]
        other = await client.ask("POST", CHAT, posted(part(run, approved=False)))
        assert (other.status, other.json()["error"]["code"]) == (409, "conflict")
        assert "approved" in other.json()["error"]["message"]
        assert len((await client.ask("GET", "/v1/runs")).json()["runs"]) == 1


async def test_an_agui_client_answers_and_gets_the_rest_of_its_run(process: Processes) -> None:
    async with process(ASK, ["done"]) as one:
        client = client_of(one)
        first = await client.ask("POST", AGUI, asked())
        run = first.headers["x-run-id"]
        assert told(first)[-1]["outcome"]["interrupts"][0]["id"] == f"{run}~d1"
        last_id = str(Decoder().feed(first.body)[-1].id)
        assert (await client.ask("GET", first.headers["location"], last_event_id=last_id)).status == 204
        hydrated = (await client.ask("GET", f"{AGUI}?threadId=t1")).json()
        assert hydrated["activeRun"] is None
        assert hydrated["interrupts"] == {"runId": run, "pending": told(first)[-1]["outcome"]["interrupts"]}
        assert hydrated["messages"][-1]["parts"][-1]["state"] == "approval-requested"
        rest = await client.ask("POST", AGUI, resumed(run, {"approved": False, "message": "no"}))
        assert kinds(rest)[0] == "RUN_STARTED"
        assert "TOOL_CALL_START" not in kinds(rest)
        assert told(rest)[-1]["outcome"]["type"] == "success"
        (result,) = [event for event in told(rest) if event["type"] == "TOOL_CALL_RESULT"]
        assert (result["content"], one.tools.done) == ("no", [])
        for at, event in enumerate(Decoder().feed(rest.body)[:-1], start=1):
            for body in (asked("r2"), resumed(run, {"approved": False})):
                on = await client.ask("POST", AGUI, body, last_event_id=str(event.id))
                assert told(on) == told(rest)[at:]
        for same in (
            await client.ask("POST", AGUI, resumed(run, False)),
            await client.ask("POST", AGUI, resumed(run, None, status="cancelled")),
            await client.ask("GET", rest.headers["location"]),
            await client.ask("GET", first.headers["location"], last_event_id=last_id),
        ):
            assert same.body == rest.body
        assert (await client.ask("POST", AGUI, resumed(run, True))).status == 409


async def test_everybody_else_reads_on_through_the_pause(process: Processes) -> None:
    async with process(ASK, ["done"]) as one:
        client = client_of(one)
        run = (await client.ask("POST", CHAT, posted())).headers["x-run-id"]
        assert (await client.ask("GET", f"/v1/responses/resp_{run}")).json()["status"] == "in_progress"
        readers = [
            client.call("GET", path)
            for path in (
                f"/v1/runs/{run}/events",
                f"/v1/stream/runs/{run}?offset=-1&live=sse",
                f"/v1/responses/resp_{run}?stream=true",
                "/agents/bot/chat-v5/c1/stream",
            )
        ]
        for reader in readers:
            await reader.until(b"d1")
            assert not reader.ended
        await client.ask("POST", f"/v1/runs/{run}/approvals", json.dumps({"tool_call_id": "d1", "approve": True}))
        for reader in readers:
            assert b"done" in (await reader.done()).body


@pytest.mark.parametrize("number", range(12))
async def test_two_tabs_answer_together(process: Processes, number: int) -> None:
    async with process(ASK, ["done"]) as one, process(["done"]) as two:
        clients = client_of(one), client_of(two)
        run = (await clients[0].ask("POST", CHAT, posted())).headers["x-run-id"]
        decisions = bool(number & 1), bool(number & 2)
        asks = [c.ask("POST", CHAT, posted(part(run, d))) for c, d in zip(clients, decisions, strict=True)]
        answers = await asyncio.gather(*asks[:: 1 if number & 4 else -1])
        same = decisions[0] == decisions[1]
        assert sorted(call.status for call in answers) == ([200, 200] if same else [200, 409])
        if same:
            assert answers[0].body == answers[1].body
        ran = next("tool-output-available" in kinds(call) for call in answers if call.status == 200)
        assert [*one.tools.done, *two.tools.done] == [("danger", "d1")] * ran


async def test_what_others_decided_in_the_meantime_counts(process: Processes) -> None:
    async with process(ASK_TWICE, ["done"]) as one:
        client = client_of(one)
        first = await client.ask("POST", CHAT, posted())
        run = first.headers["x-run-id"]
        await client.ask("POST", f"/v1/runs/{run}/approvals", json.dumps({"tool_call_id": "d0", "approve": False}))
        again = told(await client.ask("GET", f"{CHAT}/c1/stream"))
        assert again[-1]["finishReason"] == "tool-calls"
        assert again[-3]["type"] == "tool-approval-response"
        wrong = await client.ask("POST", CHAT, posted(part(run, True, "d0"), part(run, True, "d1")))
        assert wrong.status == 409
        assert one.tools.done == []
        rest = await client.ask("POST", CHAT, posted(part(run, False, "d0"), part(run, True, "d1")))
        assert kinds(rest).count("tool-approval-response") == 2
        assert one.tools.done == [("danger", "d1")]


async def test_after_a_restart_another_server_takes_the_answer(process: Processes) -> None:
    async with process(ASK, ASK) as one:
        chat = (await client_of(one).ask("POST", CHAT, posted())).headers["x-run-id"]
        agui = (await client_of(one).ask("POST", AGUI, asked())).headers["x-run-id"]
    async with process(["done"], ["done"]) as two:
        client = client_of(two)
        assert kinds(await client.ask("GET", f"{CHAT}/c1/stream"))[-1] == "finish"
        assert kinds(await client.ask("POST", CHAT, posted(part(chat))))[-1] == "finish"
        assert told(await client.ask("POST", AGUI, resumed(agui, True)))[-1]["outcome"]["type"] == "success"
        assert two.tools.done == [("danger", "d1")] * 2


async def test_a_run_that_waits_is_stopped_by_either_door(process: Processes) -> None:
    async with process(ASK, ASK) as one:
        client = client_of(one)
        await client.ask("POST", CHAT, posted())
        agui = (await client.ask("POST", AGUI, asked())).headers["x-run-id"]
        for path in f"{CHAT}/c1/stop", f"{AGUI}/r1/stop":
            call = await client.ask("POST", path)
            assert (call.status, call.json()["stopped"]) == (202, True)
            call = await client.ask("POST", path)
            assert (call.status, call.json()["stopped"]) == (200, False)
        assert (await client.ask("GET", f"{CHAT}/c1/stream")).status == 204
        late = await client.ask("POST", AGUI, resumed(agui, True))
        assert (late.status, late.json()["error"]["message"]) == (409, "this run has ended")
        assert one.tools.done == []


async def test_answers_that_are_none(process: Processes) -> None:
    async with process(ASK, ASK) as one:
        client = client_of(one)
        run = (await client.ask("POST", CHAT, posted())).headers["x-run-id"]
        agui = (await client.ask("POST", AGUI, asked())).headers["x-run-id"]
        other = {"type": "text", "text": "hm"}
        for body, status in (
            (posted(part(run, call="other")), 400), (posted(part("")), 400), (posted(part("nobody")), 404),
            (posted(part(run), part(agui)), 400), (posted(part(agui)), 404), (posted(other), 400),
            (posted({**part(run), "approval": {"id": f"{run}~d1"}}), 400),
            (posted(part(run), part(run, approved=False)), 400),
        ):  # fmt: skip
            assert (await client.ask("POST", CHAT, body)).status == status, body
        for body, status in (
            (resumed(agui, {"approve": True}), 400), (resumed(agui, None), 400), (resumed("nobody", True), 404),
            (resumed(agui, {"approved": True, "editedArgs": {}}), 400), (asked(resume="x"), 400),
            (resumed(agui, True, threadId="another"), 404), (resumed(agui, True, status="maybe"), 400),
            (resumed(agui, {"approved": False, "message": 5}), 400),
        ):  # fmt: skip
            assert (await client.ask("POST", AGUI, body)).status == status, body
        assert one.tools.done == []
        assert (await client.ask("GET", f"{CHAT}/c1/stream?run={run}&offset=x")).status == 400


async def test_to_answer_takes_a_key_that_allows_it(process: Processes) -> None:
    def key(name: str, *actions: str) -> tuple[str, Principal]:
        return hashlib.sha256(name.encode()).hexdigest(), Principal(name, frozenset(actions), ("*",))

    keys = Keys(dict([key("asker", "start", "read"), key("boss", "approve", "read"), key("clerk", "approve")]))
    async with process(ASK, ASK, ["done"], ["done"]) as one:
        client = client_of(one, keys)
        chat = (await client.ask("POST", CHAT, posted(), authorization="Bearer asker")).headers["x-run-id"]
        agui = (await client.ask("POST", AGUI, asked(), authorization="Bearer asker")).headers["x-run-id"]
        for path, body in (CHAT, posted(part(chat))), (AGUI, resumed(agui, True)):
            for who in "asker", "clerk":
                assert (await client.ask("POST", path, body, authorization=f"Bearer {who}")).status == 403
            assert one.tools.done.count(("danger", "d1")) == (path == AGUI)
            assert (await client.ask("POST", path, body, authorization="Bearer boss")).status == 200
        record = (await client.ask("GET", f"/v1/runs/{chat}/events", authorization="Bearer boss")).body
        assert b'"by":"boss"' in record
