"""`/v1/responses`, `/v1/chat/completions` and `/v1/models` over ASGI: shapes, statuses, parameters, and who may."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from agents import Agent, function_tool
from fastapi import FastAPI
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from asgi_client import (
    Call,
    Client,
    both_ways,  # noqa: F401 -- a fixture: all tests here go every way
)
from headwater import Streams
from headwater.delivery import Cut
from headwater.http import App
from headwater.http.admission import Admission, Bounds
from headwater.http.auth import Keys
from headwater.http.openai_requests import _ADVICE, _REFUSED
from headwater.runs import Runs
from headwater.testing import virtual_time
from headwater.wire.sse import Decoder, Event
from scripted_model import calls, scripted


@function_tool
def search(q: str) -> str:
    return f"found {q}"


class Site(Client):
    runs: Runs

    async def post(self, path: str, body: object, **headers: str) -> Call:
        return await self.ask("POST", f"/v1/{path}", json.dumps(body), **headers)


@asynccontextmanager
async def serving(*answers: list[Any], auth: Keys | None = None, asked: Any = lambda _: None) -> AsyncIterator[Site]:
    async with Streams("memory:") as streams:
        agent = Agent(name="Bot", model=scripted(*answers, asked=asked), tools=[search])
        async with Runs(streams, agent, Agent(name="Other", model=scripted())) as runs:
            site = Site(App(streams, runs, auth=auth))
            site.runs = runs
            yield site


def events(call: Call) -> list[Event]:
    return Decoder().feed(call.body)


def said(call: Call) -> list[dict[str, Any]]:
    return [json.loads(event.data) for event in events(call) if event.data != "[DONE]"]


def refused(call: Call, status: int, code: str, param: str | None) -> None:
    error = call.json()["error"]
    assert (call.status, error["code"], error["param"]) == (status, code, param), call.body
    assert error.keys() == {"message", "type", "param", "code"}
    assert call.headers["content-type"] == "application/json"
    assert call.headers["x-content-type-options"] == "nosniff"


async def made(site: Site, **more: Any) -> str:
    """The id of a new response, in the background."""
    call = await site.post("responses", {"model": "bot", "input": "hi", "background": True, **more})
    assert call.status == 200, call.body
    return str(call.json()["id"])


async def whole(site: Site, id_: str) -> list[dict[str, Any]]:
    return said(await site.ask("GET", f"/v1/responses/{id_}?stream=true"))


# --- create ----------------------------------------------------------------------------------------------------------


async def test_a_response_is_waited_for() -> None:
    async with serving(["Hel", "lo"]) as site:
        call = await site.post("responses", {"model": "bot", "input": "hi", "metadata": {"a": "b"}})
        response = Response.model_validate(call.json())
        assert (call.status, response.output_text, response.status) == (200, "Hello", "completed")
        assert (response.id, response.metadata) == (f"resp_{call.headers['x-run-id']}", {"a": "b"})
        assert call.headers["location"] == f"/v1/responses/{response.id}"
        assert call.headers["content-type"] == "application/json"
        retrieved = await site.ask("GET", f"/v1/responses/{response.id}")
        assert retrieved.json() == call.json()
        assert retrieved.headers["cache-control"] == "no-store"


@virtual_time
async def test_a_long_silence_is_kept_alive_before_the_json() -> None:
    gate = asyncio.Event()
    async with serving([gate, "Hello"]) as site:
        waiting = site.call("POST", "/v1/responses", '{"model": "bot", "input": "hi"}')
        await asyncio.sleep(40)
        gate.set()
        call = await waiting.done()
        assert call.body.startswith(b"\n\n{")
        assert call.json()["status"] == "completed"


async def test_a_stream_begins_before_the_agent_says_anything() -> None:
    gate = asyncio.Event()
    async with serving([gate, "Hello"]) as site:
        call = site.call("POST", "/v1/responses", '{"model": "bot", "input": "hi", "stream": true}')
        await call.until(b"event: response.in_progress")
        assert call.status == 200
        assert call.headers["content-type"] == "text/event-stream; charset=utf-8"
        gate.set()
        done = said(await call.done())
        assert [event["sequence_number"] for event in done] == list(range(len(done)))
        assert done == await whole(site, done[0]["response"]["id"])


async def test_a_background_response_is_queued_then_in_progress_then_completed() -> None:
    gates = asyncio.Event(), asyncio.Event()
    async with serving(["Hel", gates[0], "lo"]) as site:
        call = await site.post("responses", {"model": "bot", "input": "hi", "background": True})
        assert (call.json()["status"], call.json()["background"], call.json()["output"]) == ("queued", True, [])
        at = f"/v1/responses/{call.json()['id']}"
        following = site.call("GET", f"{at}?stream=true")
        await following.until(b'"delta":"Hel"')
        half = (await site.ask("GET", at)).json()
        assert (half["status"], half["output"][0]["content"][0]["text"]) == ("in_progress", "Hel")
        gates[0].set()
        last = said(await following.done())[-1]
        assert (await site.ask("GET", at)).json() == last["response"]
        assert last["response"]["status"] == "completed"


async def test_the_run_goes_on_without_its_client() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo"], ["Hel", gate, "lo"]) as site:
        for body in ({"stream": True}, {}):
            call = site.call("POST", "/v1/responses", json.dumps({"model": "bot", "input": "hi", **body}))
            await call.started()
            await call.leave()
        gate.set()
        runs = (await site.ask("GET", "/v1/runs")).json()["runs"]
        ends = [(await whole(site, f"resp_{run['id']}"))[-1]["type"] for run in runs]
        assert ends == ["response.completed"] * 2


async def test_a_repeated_key_attaches_and_resumes() -> None:
    async with serving(["Hel", "lo"], ["Hel", "lo"]) as site:
        body = {"model": "bot", "input": "hi", "stream": True}
        first = await site.post("responses?rollup=0", body, idempotency_key="k")
        again = await site.post("responses?rollup=0", body, idempotency_key="k", last_event_id="3")
        assert events(again) == events(first)[4:]
        beyond = await site.post("responses", body, idempotency_key="k", last_event_id=str(len(events(first))))
        refused(beyond, 400, "invalid_value", "Last-Event-ID")
        anew = await site.post("responses", {**body, "input": "?"}, idempotency_key="l", last_event_id="3")
        assert events(anew)[0].id == "0"  # another run: nothing of it has been seen
        waited = await site.post("responses", {**body, "stream": False}, idempotency_key="k")
        assert waited.json() == said(first)[-1]["response"]
        refused(
            await site.post("responses", {**body, "metadata": {"a": "b"}}, idempotency_key="k"),
            409, "idempotency_key_reused", None,
        )  # fmt: skip
        assert len((await site.ask("GET", "/v1/runs")).json()["runs"]) == 2


async def test_a_failed_run_is_a_failed_response_and_its_post_is_not_repeated() -> None:
    async with serving(["Hel", RuntimeError("cut")], ["Hel", RuntimeError("cut")]) as site:
        call = await site.post("responses", {"model": "bot", "input": "hi"})
        assert (call.status, call.json()["status"]) == (200, "failed")
        assert call.json()["error"]["code"] == "server_error"
        streamed = said(await site.post("responses", {"model": "bot", "input": "hi", "stream": True}))
        assert (streamed[-1]["type"], streamed[-1]["response"]["status"]) == ("response.failed", "failed")


async def test_a_run_that_its_server_leaves_is_told_as_failed() -> None:
    async with serving(["Hel", asyncio.Event()]) as site:
        call = site.call("POST", "/v1/responses", '{"model": "bot", "input": "hi", "stream": true}')
        await call.until(b'"delta":"Hel"')
        await site.runs.interrupt()
        last = said(await call.done())[-1]["response"]
        assert (last["status"], last["error"]["code"]) == ("failed", "server_error")
        assert call.ended
        body = {"model": "bot", "input": "hi"}
        refused(await site.post("responses", body), 503, "draining", None)
        refused(await site.post("chat/completions", ASK), 503, "draining", None)


async def test_a_reader_whose_server_leaves_is_cut_and_comes_back() -> None:
    async with serving(["Hel", asyncio.Event()]) as site:
        id_ = await made(site)
        call = site.call("GET", f"/v1/responses/{id_}?stream=true")
        await call.until(b'"delta":"Hel"')
        site.runs.streams.drain()
        with pytest.raises(Cut):
            await call.done()
        assert (call.ended, call.body.endswith(b"\n\n: interrupted: draining\n")) == (False, True)
        later = await site.ask("GET", f"/v1/responses/{id_}?stream=true&starting_after=3")
        refused(later, 503, "draining", None)
        assert "x-should-retry" not in later.headers


# --- what the model is asked -----------------------------------------------------------------------------------------


async def test_a_conversation_goes_on_from_a_response() -> None:
    asked: list[dict[str, Any]] = []
    answers = [calls("search", {"q": "x"}), ["One."], ["Two."], ["Three."]]
    async with serving(*answers, asked=asked.append) as site:
        first = await made(site, instructions="Be brief.")
        await whole(site, first)
        second = await made(site, previous_response_id=first, input=[{"role": "user", "content": "and?"}])
        await whole(site, second)
        third = await made(site, previous_response_id=first, instructions="Be loud.", input="or?")
        end = (await whole(site, third))[-1]["response"]
        assert end["previous_response_id"] == first
        assert end["instructions"] == "Be loud."
        spoken = [
            [(one["role"], one.get("content")) for one in body["messages"] if not one.get("tool_calls")]
            for body in asked
        ]
        before = [("user", "hi"), ("tool", "found x"), ("assistant", "One.")]
        assert spoken[0] == [("system", "Be brief."), ("user", "hi")]
        assert spoken[2] == [*before, ("user", "and?")]
        assert spoken[3] == [("system", "Be loud."), *before, ("user", "or?")]  # a fork of the conversation
        threads = {(await site.ask("GET", f"/v1/runs/{id_[5:]}")).json()["thread_id"] for id_ in (first, second, third)}
        assert len(threads) == 1


async def test_a_response_cannot_go_on_from_one_that_has_not_ended() -> None:
    async with serving(["Hel", asyncio.Event()]) as site:
        first = await made(site)
        body = {"model": "bot", "input": "x", "previous_response_id": first}
        refused(await site.post("responses", body), 400, "invalid_value", "previous_response_id")
        body["previous_response_id"] = "resp_nobody"
        refused(await site.post("responses", body), 404, "response_not_found", "previous_response_id")
        body["previous_response_id"] = "nobody"
        refused(await site.post("responses", body), 400, "invalid_value", "previous_response_id")


async def test_input_items_in_pages() -> None:
    async with serving(["One."], ["Two."]) as site:
        first = await made(site, instructions="Be brief.")
        await whole(site, first)
        second = await made(site, previous_response_id=first, input="and?")
        at = f"/v1/responses/{second}/input_items"
        listed = (await site.ask("GET", at)).json()
        texts = [item["content"][0]["text"] for item in listed["data"]]
        assert (texts, listed["has_more"], listed["object"]) == (["and?", "One.", "hi"], False, "list")
        assert (listed["first_id"], listed["last_id"]) == (listed["data"][0]["id"], listed["data"][-1]["id"])
        page = (await site.ask("GET", f"{at}?order=asc&limit=2")).json()
        assert ([item["content"][0]["text"] for item in page["data"]], page["has_more"]) == (["hi", "One."], True)
        rest = (await site.ask("GET", f"{at}?order=asc&limit=2&after={page['last_id']}")).json()
        assert ([item["content"][0]["text"] for item in rest["data"]], rest["has_more"]) == (["and?"], False)
        empty = (await site.ask("GET", f"{at}?after={listed['last_id']}")).json()
        assert empty == {"object": "list", "data": [], "first_id": "", "last_id": "", "has_more": False}
        for query in ("limit=0", "limit=101", "order=up", "after=x"):
            assert (await site.ask("GET", f"{at}?{query}")).status == 400


# --- parameters ------------------------------------------------------------------------------------------------------

ADVICE = {
    "temperature": 0.2, "top_p": 1, "truncation": "auto", "reasoning": {"effort": "low"}, "user": "u",
    "service_tier": "auto", "include": ["reasoning.encrypted_content"], "parallel_tool_calls": False, "store": True,
    "prompt_cache_key": "k", "safety_identifier": "s", "stream_options": {"include_obfuscation": False},
    "tools": [], "tool_choice": "auto", "text": {"format": {"type": "text"}, "verbosity": "low"}, "top_logprobs": 0,
    "max_output_tokens": None, "conversation": None, "previous_response_id": None, "instructions": None,
}  # fmt: skip


async def test_advice_and_what_asks_for_nothing_is_ignored() -> None:
    async with serving(["Hello"]) as site:
        call = await site.post("responses", {"model": "bot", "input": "hi", **ADVICE})
        assert (call.status, call.json()["temperature"]) == (200, None)


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools"),
        ({"tool_choice": "required"}, "unsupported_parameter", "tool_choice"),
        ({"max_output_tokens": 5}, "unsupported_parameter", "max_output_tokens"),
        ({"text": {"format": {"type": "json_object"}}}, "unsupported_parameter", "text"),
        ({"text": 5}, "unsupported_parameter", "text"),
        ({"top_logprobs": 3}, "unsupported_parameter", "top_logprobs"),
        ({"prompt": {"id": "p"}}, "unsupported_parameter", "prompt"),
        ({"conversation": "conv_1"}, "unsupported_parameter", "conversation"),
        ({"store": False}, "unsupported_value", "store"),
        ({"teapot": 1}, "unknown_parameter", "teapot"),
        ({"tools_as": "tool_calls"}, "invalid_value", "tools_as"),
        ({"messages": []}, "unknown_parameter", "messages"),
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": 5}, "missing_required_parameter", "model"),
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": ""}, "missing_required_parameter", "input"),
        ({"input": []}, "missing_required_parameter", "input"),
        ({"input": ["hi"]}, "invalid_type", "input[0]"),
        ({"input": [{"role": "user", "content": "a"}, {"content": "hi"}]}, "invalid_type", "input[1]"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "unsupported_value", "input[0]"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"background": 1}, "invalid_type", "background"),
        ({"instructions": ["x"]}, "invalid_type", "instructions"),
        ({"previous_response_id": 5}, "invalid_type", "previous_response_id"),
        ({"metadata": {"a": 1}}, "invalid_type", "metadata"),
        ({"metadata": {str(n): "" for n in range(17)}}, "invalid_value", "metadata"),
        ({"metadata": {"a": "x" * 513}}, "invalid_value", "metadata"),
    ],
)
async def test_what_would_change_the_meaning_is_refused_and_named(more: dict[str, Any], code: str, param: str) -> None:
    async with serving() as site:
        body = {"model": "bot", "input": "hi", **more}
        refused(await site.post("responses", body), 400, code, param)
        assert (await site.ask("GET", "/v1/runs")).json()["runs"] == []


@pytest.mark.parametrize(
    ("more", "code", "param"),
    [
        ({"n": 2}, "unsupported_value", "n"),
        ({"messages": []}, "invalid_type", "messages"),
        ({"messages": "hi"}, "invalid_type", "messages"),
        ({"messages": [{"role": "assistant", "content": ""}]}, "invalid_value", "messages"),
        ({"messages": [{"role": "wizard"}]}, "bad_request", "messages[0].role"),
        ({"stream_options": 5}, "invalid_type", "stream_options"),
        ({"stream_options": {"include_usage": 1}}, "invalid_type", "include_usage"),
        ({"max_tokens": 5}, "unsupported_parameter", "max_tokens"),
        ({"stop": "x"}, "unsupported_parameter", "stop"),
        ({"logprobs": True}, "unsupported_parameter", "logprobs"),
        ({"response_format": {"type": "json_object"}}, "unsupported_parameter", "response_format"),
        ({"input": "hi"}, "unknown_parameter", "input"),
        ({"tools_as": "function_call"}, "invalid_value", "tools_as"),
    ],
)
async def test_chat_parameters_are_refused_and_named(more: dict[str, Any], code: str, param: str) -> None:
    async with serving() as site:
        body = {"model": "bot", "messages": [{"role": "user", "content": "hi"}], **more}
        refused(await site.post("chat/completions", body), 400, code, param)


def test_every_parameter_of_the_official_clients_is_decided_upon() -> None:
    from openai.types.chat.completion_create_params import CompletionCreateParamsStreaming as Chat
    from openai.types.responses.response_create_params import ResponseCreateParamsStreaming as Responses

    from headwater.http.openai_requests import _CHAT_TAKES, _RESPONSES_TAKES

    known = _ADVICE | _REFUSED
    assert set(Responses.__annotations__) - known - _RESPONSES_TAKES == set()
    assert set(Chat.__annotations__) - known - _CHAT_TAKES == set()


async def test_what_is_no_json_is_refused() -> None:
    async with serving() as site:
        for body in ("{", "[]", '"hi"', "[" * 50_000):
            refused(await site.ask("POST", "/v1/responses", body), 400, "bad_request", None)
            refused(await site.ask("POST", "/v1/chat/completions", body), 400, "bad_request", None)
        refused(
            await site.post("responses", {"model": "bot", "input": "x"}, idempotency_key="k" * 256),
            400, "invalid_value", "Idempotency-Key",
        )  # fmt: skip


# --- retrieve, cancel, delete ----------------------------------------------------------------------------------------


async def test_a_cut_answer_goes_on_behind_the_last_event_wherever_it_began() -> None:
    async with serving(["Hel", "lo"]) as site:
        made = await site.post("responses", {"model": "bot", "input": "hi", "background": True})
        await (await site.runs.get(made.json()["id"].removeprefix("resp_"))).wait()
        at = f"/v1/responses/{made.json()['id']}?stream=true&rollup=0&starting_after=2"
        rest = events(await site.ask("GET", at))
        assert rest[0].id == "3"
        assert events(await site.ask("GET", at, last_event_id="4")) == rest[2:]


async def test_readers_of_responses_are_counted_like_others() -> None:
    gate = asyncio.Event()
    async with Streams("memory:") as streams, Runs(streams, Agent(name="Bot", model=scripted(["Hel", gate]))) as runs:
        site = Site(App(streams, runs, admission=Admission(Bounds(readers=1))))
        made = await site.post("responses", {"model": "bot", "input": "hi", "background": True})
        at = f"/v1/responses/{made.json()['id']}?stream=true"
        first = await site.call("GET", at).started()
        assert (await site.ask("GET", at)).status == 429
        gate.set()
        await first.done()
        assert (await site.ask("GET", at)).status == 200


async def test_starting_after_each_number_gives_the_rest_to_everyone() -> None:
    async with serving(calls("search", {"q": "x"}), ["Hel", "lo"]) as site:
        id_ = await made(site)
        at = f"/v1/responses/{id_}?stream=true&rollup=0"
        all_of_it = await site.ask("GET", at)
        count = len(events(all_of_it))
        assert count > 10
        for number in range(count):
            by_query = await site.ask("GET", f"{at}&starting_after={number}")
            by_header = await site.ask("GET", at, last_event_id=str(number))
            assert events(by_query) == events(by_header) == events(all_of_it)[number + 1 :]
            assert by_query.status == 200
            last = number == count - 1
            assert by_header.status == (204 if last else 200)  # else EventSource would come back for ever
        again = await site.ask("GET", at)
        assert again.body == all_of_it.body
        for number in (str(count), "-1", "x", "1.5", "9" * 30):
            call = await site.ask("GET", f"/v1/responses/{id_}?stream=true&starting_after={number}")
            refused(call, 400, "invalid_value", "starting_after")


async def test_two_readers_of_a_run_that_goes_on_get_the_same_bytes() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo", "!"]) as site:
        id_ = await made(site)
        readers = [site.call("GET", f"/v1/responses/{id_}?stream=true") for _ in range(2)]
        for reader in readers:
            await reader.until(b'"delta":"Hel"')
        late = site.call("GET", f"/v1/responses/{id_}?stream=true")
        at_the_tail = site.call("GET", f"/v1/responses/{id_}?stream=true", last_event_id=events(readers[0])[-1].id)
        await at_the_tail.until(b": open")
        gate.set()
        bodies = {(await reader.done()).body for reader in [*readers, late]}
        assert len(bodies) == 1
        rest = events(await at_the_tail.done())
        assert rest[0].id == "6"
        assert events(late)[6:] == rest


async def test_cancel_gives_the_cancelled_response() -> None:
    async with serving(["Hel", asyncio.Event()]) as site:
        id_ = await made(site)
        reading = site.call("GET", f"/v1/responses/{id_}?stream=true")
        await reading.until(b'"delta":"Hel"')
        cancelled = await site.ask("POST", f"/v1/responses/{id_}/cancel")
        assert (cancelled.status, cancelled.json()["status"]) == (200, "cancelled")
        assert cancelled.json()["output"][0]["content"][0]["text"] == "Hel"
        last = said(await reading.done())[-1]
        assert (last["type"], last["response"]) == ("response.cancelled", cancelled.json())
        again = await site.ask("POST", f"/v1/responses/{id_}/cancel")
        assert again.json() == cancelled.json()


async def test_a_response_is_deleted_once_it_has_ended() -> None:
    async with serving(["Hel", asyncio.Event()]) as site:
        id_ = await made(site)
        too_early = await site.ask("DELETE", f"/v1/responses/{id_}")
        refused(too_early, 409, "conflict", None)
        assert too_early.headers["x-should-retry"] == "false"
        await site.ask("POST", f"/v1/responses/{id_}/cancel")
        deleted = await site.ask("DELETE", f"/v1/responses/{id_}")
        assert deleted.json() == {"id": id_, "object": "response.deleted", "deleted": True}
        for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
            refused(await site.ask(method, f"/v1/responses/{id_}{path}"), 404, "response_not_found", "response_id")


async def test_a_run_that_was_started_elsewhere_is_a_response_too() -> None:
    async with serving(["Hello"]) as site:
        run = (await site.post("runs", {"agent": "bot", "input": "hi"})).json()["id"]
        done = await whole(site, f"resp_{run}")
        assert [event["type"] for event in done][:2] == ["response.created", "response.in_progress"]
        assert done[-1]["response"]["output"][0]["content"][0]["text"] == "Hello"
        followed = await site.ask("GET", f"/v1/runs/{run}/events")
        assert json.loads(events(followed)[-1].data)["type"] == "RUN_FINISHED"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/responses/resp_nobody"),
        ("GET", "/v1/responses/resp_nobody?stream=true"),
        ("GET", "/v1/responses/nobody"),
        ("POST", "/v1/responses/resp_nobody/cancel"),
    ],
)
async def test_a_response_that_is_not_there(method: str, path: str) -> None:
    async with serving() as site:
        refused(await site.ask(method, path), 404, "response_not_found", "response_id")


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/v1/responses"), ("PUT", "/v1/responses/resp_x"), ("GET", "/v1/chat/completions"),
     ("POST", "/v1/models"), ("POST", "/v1/responses/compact"), ("GET", "/v1/responses/resp_x/what")],
)  # fmt: skip
async def test_what_the_api_has_not_is_404_in_its_shape(method: str, path: str) -> None:
    async with serving() as site:
        refused(await site.ask(method, path), 404, "not_found", None)


# --- chat completions ------------------------------------------------------------------------------------------------

ASK = {"model": "bot", "messages": [{"role": "user", "content": "hi"}]}


async def test_a_chat_completion_is_waited_for() -> None:
    asked: list[dict[str, Any]] = []
    async with serving(calls("search", {"q": "x"}), ["Hel", "lo"], asked=asked.append) as site:
        talk = [
            {"role": "system", "content": "Be brief."},
            {"role": "assistant", "content": "Yes?"},
            {"role": "user", "content": [{"type": "text", "text": "hi"}]},
        ]
        call = await site.post("chat/completions", {**ASK, "messages": talk, "temperature": 0, "n": 1})
        completion = ChatCompletion.model_validate(call.json())
        assert (completion.choices[0].message.content, completion.choices[0].finish_reason) == ("Hello", "stop")
        assert completion.id == f"chatcmpl-{call.headers['x-run-id']}"
        assert completion.usage is not None
        assert completion.usage.total_tokens == 17  # of both answers of the model
        assert [message["role"] for message in asked[0]["messages"]] == ["system", "assistant", "user"]


async def test_a_chat_streams_and_resumes_by_its_key() -> None:
    async with serving(["Hel", "lo"]) as site:
        body = {**ASK, "stream": True, "stream_options": {"include_usage": True}}
        first = await site.post("chat/completions", body, idempotency_key="k")
        assert first.body.endswith(b"data: [DONE]\n\n")
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in said(first)[:-1]) == "Hello"
        assert said(first)[-1]["choices"] == []
        again = await site.post("chat/completions", body, idempotency_key="k", last_event_id="1")
        assert events(again) == events(first)[2:]
        beyond = await site.post("chat/completions", body, idempotency_key="k", last_event_id=str(len(said(first))))
        refused(beyond, 400, "invalid_value", "Last-Event-ID")


async def test_a_chat_whose_run_fails_is_an_error_that_is_not_repeated() -> None:
    async with serving(["Hel", RuntimeError("cut")], ["Hel", RuntimeError("cut")]) as site:
        call = await site.post("chat/completions", ASK)
        refused(call, 500, "upstream_cut", None)
        assert call.headers["x-should-retry"] == "false"
        streamed = await site.post("chat/completions", {**ASK, "stream": True})
        assert said(streamed)[-1]["error"]["code"] == "upstream_cut"
        assert b"[DONE]" not in streamed.body


async def test_a_waiting_chat_ends_with_the_server_or_its_client() -> None:
    gate = asyncio.Event()
    async with serving(["Hel", gate, "lo"], ["Hel", gate, "lo"]) as site:
        left = site.call("POST", "/v1/chat/completions", json.dumps(ASK))
        waiting = site.call("POST", "/v1/chat/completions", json.dumps(ASK))
        while len((await site.ask("GET", "/v1/runs")).json()["runs"]) < 2:
            await asyncio.sleep(0)
        assert (await left.leave()).status is None
        site.runs.streams.drain()
        call = await waiting.done()
        refused(call, 503, "draining", None)
        assert call.headers["x-should-retry"] == "false"


# --- models and who may ----------------------------------------------------------------------------------------------


async def test_agents_are_models() -> None:
    async with serving() as site:
        listed = (await site.ask("GET", "/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["bot", "other"]
        assert (await site.ask("GET", "/v1/models/bot")).json() == listed["data"][0]
        refused(await site.ask("GET", "/v1/models/nobody"), 404, "model_not_found", "model")
        refused(await site.post("responses", {"model": "nobody", "input": "x"}), 404, "model_not_found", "model")
        refused(await site.post("chat/completions", {**ASK, "model": "nobody"}), 404, "model_not_found", "model")


KEYS = """
[[key]]
name = "starter"
secret = "starter-secret-0123"
actions = ["start", "read"]
streams = ["runs/bot", "runs/0*"]

[[key]]
name = "reader"
secret = "reader-secret-01234"
actions = ["read"]

[[key]]
name = "one who starts and reads nothing"
secret = "blind-secret-012345"
actions = ["start"]
"""


async def test_every_action_asks_whether_it_may(tmp_path: Any) -> None:
    await asyncio.to_thread((tmp_path / "keys.toml").write_text, KEYS)
    auth = await asyncio.to_thread(Keys.from_file, str(tmp_path / "keys.toml"))
    starter, reader = "Bearer starter-secret-0123", "Bearer reader-secret-01234"
    blind = "Bearer blind-secret-012345"
    async with serving(["ok"], auth=auth) as site:
        for method, path in (
            ("POST", "/v1/responses"), ("POST", "/v1/chat/completions"), ("GET", "/v1/models"),
            ("GET", "/v1/models/bot"), ("GET", "/v1/responses/resp_x"), ("DELETE", "/v1/responses/resp_x"),
            ("POST", "/v1/responses/resp_x/cancel"), ("GET", "/v1/responses/resp_x/input_items"),
        ):  # fmt: skip
            refused(await site.ask(method, path, "not even json"), 401, "invalid_api_key", None)
        started = await site.post("responses", {"model": "bot", "input": "hi"}, authorization=starter)
        id_ = started.json()["id"]
        assert (await site.ask("GET", f"/v1/responses/{id_}", authorization=reader)).status == 200
        models = (await site.ask("GET", "/v1/models", authorization=starter)).json()["data"]
        assert [model["id"] for model in models] == ["bot"]
        assert (await site.ask("GET", "/v1/models", authorization=reader)).json()["data"] == []
        for call in (
            await site.post("responses", {"model": "other", "input": "hi"}, authorization=starter),
            await site.post("responses", {"model": "bot", "input": "hi"}, authorization=reader),
            await site.post("chat/completions", ASK, authorization=reader),
            await site.post(
                "responses", {"model": "bot", "input": "hi", "previous_response_id": id_}, authorization=blind
            ),
            await site.ask("GET", "/v1/models/other", authorization=starter),
            await site.ask("DELETE", f"/v1/responses/{id_}", authorization=starter),
            await site.ask("POST", f"/v1/responses/{id_}/cancel", authorization=reader),
        ):
            refused(call, 403, "forbidden", None)


async def test_under_a_prefix_the_location_is_right() -> None:
    async with Streams("memory:") as streams, Runs(streams, Agent(name="bot", model=scripted(["ok"]))) as runs:
        application = FastAPI()
        application.mount("/live", App(streams, runs))
        client = Client(application)
        call = await client.ask("POST", "/live/v1/responses", '{"model": "bot", "input": "hi"}')
        assert call.headers["location"] == f"/live/v1/responses/{call.json()['id']}"
        assert (await client.ask("GET", call.headers["location"])).json() == call.json()


@function_tool(needs_approval=True)
def danger(level: int) -> str:
    return f"dared {level}"


async def test_the_ids_of_a_response_say_what_an_approval_wants() -> None:
    agent = Agent(name="Bot", model=scripted(calls("danger", {"level": 3}, "c1"), ["done"]), tools=[danger])
    async with Streams("memory:") as streams, Runs(streams, agent) as runs:
        site = Client(App(streams, runs))
        asked = {"model": "bot", "input": "hi", "background": True}
        begun = (await site.ask("POST", "/v1/responses", json.dumps(asked))).json()
        run_id = begun["id"].removeprefix("resp_")
        async for page in streams.follow(f"runs/{run_id}"):
            if any(b'"run.waiting"' in message.data for message in page.messages):
                break
        waiting = Response.model_validate((await site.ask("GET", f"/v1/responses/{begun['id']}")).json())
        (item,) = waiting.output
        assert (waiting.status, item.type) == ("in_progress", "mcp_call")
        answer = {"tool_call_id": str(item.id).removeprefix("mcp_"), "approve": True}
        assert (await site.ask("POST", f"/v1/runs/{run_id}/approvals", json.dumps(answer))).status == 202
        await (await runs.get(run_id)).wait()
        ended = Response.model_validate((await site.ask("GET", f"/v1/responses/{begun['id']}")).json())
        assert (ended.status, ended.output_text) == ("completed", "done")
