"""The examples of sources other than the Agents SDK, each as it stands, served by a real uvicorn."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest

from fake_upstream import DONE, KEY, chunk, upstream
from live_server import live
from scripted_model import scripted
from test_examples import events, load  # noqa: F401 - the fixture


def said(answer: httpx.Response) -> list[dict[str, Any]]:
    assert answer.status_code == 200
    return [json.loads(event.data) for event in events(answer)]


def text(answer: httpx.Response) -> str:
    return "".join(one["delta"] for one in said(answer) if one["type"] == "TEXT_MESSAGE_CONTENT")


async def resumes(client: httpx.AsyncClient, answer: httpx.Response) -> None:
    middle = len(events(answer)) // 2
    at = f"/runs/{answer.headers['x-run-id']}?rollup=0"
    rest = await client.get(at, headers={"last-event-id": events(answer)[middle - 1].id})
    assert events(rest) == events(answer)[middle:]


async def test_the_generator_answers_resumes_and_says_why_not(load: Any) -> None:  # noqa: F811
    async with live(load("generator_agent").app) as client:
        answer = await client.post("/ask", params={"question": "Why"})
        assert text(answer) == "You ask: Why. I wish I knew, and say so one word at a time. "
        assert [one["value"] for one in said(answer) if one.get("name") == "data"] == [{"searching": "Why"}]
        await resumes(client, answer)
        refused = await client.post("/ask", params={"question": "Why?"})
        assert (said(refused)[-1]["code"], said(refused)[-1]["message"]) == (
            "no_questions", "Ask without a question mark.",
        )  # fmt: skip


async def test_the_agent_of_pydantic_ai_answers_and_resumes(load: Any) -> None:  # noqa: F811
    pytest.importorskip("pydantic_ai", reason="run: pip install 'headwater[pydantic-ai]'")
    from pydantic_ai.models.test import TestModel

    example = load("pydantic_ai_agent")
    example.agent.model = TestModel()  # calls every tool once, then tells what they gave
    async with live(example.app) as client:
        answer = await client.post("/ask", params={"question": "What is 7 times 6"})
        assert text(answer) == '{"multiply":0.0}'
        (told,) = [one["value"] for one in said(answer) if one.get("name") == "tool.progress"]
        assert told["message"] == "multiplying"
        assert said(answer)[-1]["type"] == "RUN_FINISHED"
        await resumes(client, answer)


async def test_the_graph_asks_and_goes_on_when_it_was_answered(load: Any) -> None:  # noqa: F811
    pytest.importorskip("langgraph", reason="run: pip install 'headwater[langgraph]'")
    async with live(load("langgraph_agent").app) as client:
        asked = await client.post("/ask", params={"thread": "t1", "text": "Tea for two"})
        (question,) = [one["value"] for one in said(asked) if one.get("name") == "interrupt"]
        assert question["value"] == {"question": "Really: Tea for two?"}
        answered = await client.post("/reply", params={"thread": "t1", "text": "yes"})
        assert text(answered) == "It is on its way."


async def test_the_proxy_answers_the_official_client_and_resumes(
    load: Any,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with upstream() as (api, base_url):
        api.script = [chunk("Hel"), chunk("lo"), chunk(None, "stop"), DONE]
        monkeypatch.setenv("OPENAI_BASE_URL", base_url)
        monkeypatch.setenv("OPENAI_API_KEY", KEY)
        async with live(load("openai_proxy").app) as http:
            at = f"{http.base_url}/v1/proxy/openai"
            async with openai.AsyncOpenAI(api_key="not needed here", base_url=at) as client:
                raw = await client.chat.completions.with_raw_response.create(model="tiny", messages=[], stream=True)
                parts = [part.choices[0].delta.content or "" async for part in raw.parse()]
            assert "".join(parts) == "Hello"
            whole = await http.get(raw.headers["location"])
            rest = await http.get(raw.headers["location"], headers={"last-event-id": events(whole)[0].id})
            assert events(rest) == events(whole)[1:]
            assert api.asked[0][1]["authorization"] == f"Bearer {KEY}"


async def test_chatkit_is_answered_resumed_and_stopped(load: Any) -> None:  # noqa: F811
    pytest.importorskip("chatkit", reason="run: pip install 'headwater[chatkit]'")
    from chatkit_site import asked, read, text, thread_of
    from chatkit_site import text_of as content

    example = load("chatkit_agent")
    example.agent.model = scripted(["Hel", "lo."], ["Once", asyncio.Event()])
    async with live(example.app) as client:
        answer = await client.post("/chatkit", json=asked())
        assert text(answer.content) == "Hello."
        middle = len(read(answer.content)) // 2
        last = {"last-event-id": read(answer.content)[middle - 1].id}
        rest = await client.get(answer.headers["location"], headers=last)
        assert read(rest.content) == read(answer.content)[middle:]
        got = b""
        async with client.stream("POST", "/chatkit", json=asked()) as cut:
            async for chunk in cut.aiter_raw():
                got += chunk
                if b'"Once"' in got:
                    break
        thread = thread_of(got)
        assert (await client.delete("/chatkit", params={"thread": thread})).json() == {"stopped": True}
        await client.get(cut.headers["location"])  # to its end: then all is saved
    assert [content(item) for item in example.chatkit.server.store.items[thread].values()][1] == "Once"


async def test_the_voice_agent_hears_and_speaks(load: Any) -> None:  # noqa: F811
    from agents.realtime import model_events as on
    from agents.realtime.testing import ScriptedRealtimeModel

    example = load("voice_agent")
    model = ScriptedRealtimeModel(strict=False)
    example.voice._model_factory = lambda: model
    async with live(example.app) as client:
        call = (await client.post("/calls")).json()
        async with client.stream("GET", call["run"], headers={"accept": "text/event-stream"}) as run:
            lines = run.aiter_lines()
            while "audio.streams" not in await anext(lines):
                pass
            sound = {"content-type": "audio/pcm;rate=24000"}
            assert (await client.post(call["speak"], content=b"\x01\x00", headers=sound)).status_code == 204
            while not model.sent_events:
                await asyncio.sleep(0.01)
            await model.emit(
                on.RealtimeModelTurnStartedEvent(response_id="r"),
                on.RealtimeModelAudioEvent(data=b"\x0a\x00", response_id="r", item_id="i", content_index=0),
                on.RealtimeModelTranscriptDeltaEvent(item_id="i", delta="Hello.", response_id="r"),
                on.RealtimeModelTurnEndedEvent(response_id="r"),
            )
            await client.post(call["speak"], headers={"stream-closed": "true"})
            rest = "".join([line async for line in lines])
        assert '"delta":"Hello."' in rest
        assert "RUN_FINISHED" in rest
        heard = await client.get(call["hear"])
        assert (heard.content, heard.headers["content-type"]) == (b"\x0a\x00", "audio/pcm;rate=24000")
