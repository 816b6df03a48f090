"""Each example as it stands, served by a real uvicorn: only the agent's model is put in by the test."""

import asyncio
import importlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import httpx
import pytest

from headwater.wire.sse import Decoder, Event
from live_server import live
from scripted_model import calls, scripted

ROOT = Path(__file__).parent.parent
Load = Callable[[str], ModuleType]

LONGER = {"chatkit_agent": 92}  # ChatKit asks for a store of thirteen methods


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Load:
    """Imports an example anew; its files go to a folder of the test's own."""

    def fresh(name: str) -> ModuleType:
        sys.modules.pop(f"examples.{name}", None)
        return importlib.import_module(f"examples.{name}")

    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    return fresh


def events(response: httpx.Response) -> list[Event]:
    return Decoder().feed(response.content)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda path: path.stem)
def test_an_example_says_how_to_start_it_and_is_short(path: Path) -> None:
    text = path.read_text()
    assert f"uvicorn examples.{path.stem}:app" in text.split('"""')[1]
    assert len(text.splitlines()) <= LONGER.get(path.stem, 50)


async def test_the_agent_answers_and_the_answer_can_be_resumed(load: Load) -> None:
    example = load("fastapi_agent")
    example.agent.model = scripted(calls("multiply", {"a": 7, "b": 6}), ["It ", "is ", "42."])
    async with live(example.app) as client:
        answer = await client.post("/ask", params={"question": "What is 7 times 6?"})
        assert answer.status_code == 200
        said = [json.loads(event.data) for event in events(answer)]
        assert [one["content"] for one in said if one["type"] == "TOOL_CALL_RESULT"] == ["42.0"]
        assert "".join(one["delta"] for one in said if one["type"] == "TEXT_MESSAGE_CONTENT") == "It is 42."
        assert said[-1]["type"] == "RUN_FINISHED"
        run = f"/runs/{answer.headers['x-run-id']}"
        for number, event in enumerate(events(answer)[:-1], start=1):
            rest = await client.get(run, params={"rollup": "0"}, headers={"last-event-id": event.id})
            assert events(rest) == events(answer)[number:]
        assert (await client.get(run, params={"format": "text"})).text == "It is 42."
        unknown = await client.get("/runs/nobody")
        assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "run_not_found")


async def test_the_agent_is_cancelled(load: Load) -> None:
    example = load("fastapi_agent")
    example.agent.model = scripted(["Once", asyncio.Event()])
    async with live(example.app) as client, client.stream("POST", "/ask", params={"question": "?"}) as answer:
        assert (await client.post(f"/runs/{answer.headers['x-run-id']}/cancel")).status_code == 202
        decoder = Decoder()
        said = [json.loads(event.data) async for chunk in answer.aiter_bytes() for event in decoder.feed(chunk)]
        assert said[-1]["outcome"] == {"type": "cancelled"}


async def test_the_agents_answer_is_there_after_a_restart(load: Load) -> None:
    example = load("fastapi_agent")
    example.agent.model = scripted(["Hello."])
    async with live(example.app) as client:
        answer = await client.post("/ask", params={"question": "Hello?"})
    async with live(load("fastapi_agent").app) as client:
        again = await client.get(f"/runs/{answer.headers['x-run-id']}")
        assert events(again) == events(answer)


async def test_the_drop_in_streams_and_resumes(load: Load) -> None:
    async with live(load("fastapi_dropin").app) as client:
        answer = await client.get("/answer", params={"question": "Why?"})
        tokens = [json.loads(event.data)["token"] for event in events(answer)]
        assert "".join(tokens) == "You ask: Why? I wish I knew, and say so one word at a time. "
        half = events(answer)[len(tokens) // 2]
        rest = await client.get("/answer", params={"question": "Why?"}, headers={"last-event-id": half.id})
        assert events(rest) == events(answer)[len(tokens) // 2 + 1 :]


async def test_the_long_job_is_followed_by_two_and_ends(load: Load) -> None:
    async with live(load("long_job").app) as client:
        started = await client.post("/jobs", params={"items": 5})
        assert started.status_code == 202
        at = started.json()["follow"]
        one, other = await asyncio.gather(client.get(at), client.get(at))
        assert one.content == other.content
        *steps, end = events(one)
        assert [json.loads(step.data) for step in steps] == [{"done": n, "of": 5} for n in range(1, 6)]
        assert (end.event, json.loads(end.data)) == ("end", {"outcome": "completed"})
        assert (await client.get("/jobs/nobody")).status_code == 404
