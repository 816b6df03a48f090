"""`/v1/proxy` on real sockets: the official client through it, cuts on either side, and what never gets through."""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

import real_server
from fake_upstream import DONE, KEY, Upstream, chunk, event, upstream
from headwater import Streams
from headwater.errors import MissingExtra
from headwater.http import App
from headwater.http import proxy as proxy_module
from headwater.http.auth import Keys
from headwater.http.proxy import Proxy
from headwater.sources import openai_compatible
from headwater.wire.sse import Decoder, Event
from headwater.writer import Writer
from live_server import live

CHAT = "/v1/proxy/tiny/chat/completions"


class Site:
    """Headwater in front of an upstream that answers as `api` is told."""

    def __init__(self, api: Upstream, http: httpx.AsyncClient, proxy: Proxy) -> None:
        self.api, self.http, self.proxy, self.streams = api, http, proxy, proxy.streams

    @property
    def openai(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            api_key="the client's own", base_url=f"{self.http.base_url}/v1/proxy/tiny", max_retries=0
        )

    async def post(self, body: Any = None, url: str = CHAT, **headers: str) -> httpx.Response:
        given = {"model": "tiny", "messages": [], "stream": True} if body is None else body
        return await self.http.post(url, json=given, headers={n.replace("_", "-"): v for n, v in headers.items()})

    async def get(self, url: str, **headers: str) -> httpx.Response:
        return await self.http.get(url, headers={n.replace("_", "-"): v for n, v in headers.items()})

    async def everything_stored(self) -> bytes:
        page = await self.streams.list("proxied/")
        heads = [repr(head) for _, head in page]
        bodies = [m.data for name, _ in page for m in (await self.streams.read(name)).messages]
        return b"".join(bodies) + "".join(heads).encode()


@asynccontextmanager
async def serving(*, auth: Keys | None = None, **limits: float) -> AsyncIterator[Site]:
    async with upstream() as (api, base_url), Streams("memory:") as streams:
        one = openai_compatible.Upstream(base_url, key=KEY, **limits)
        proxy = Proxy(streams, {"tiny": one})
        async with live(App(streams, auth=auth, pages={"/v1/proxy/": proxy})) as http:
            yield Site(api, http, proxy)


def events(response: httpx.Response) -> list[Event]:
    return Decoder().feed(response.content)


def data(response: httpx.Response) -> list[str]:
    return [event.data for event in events(response)]


def error(response: httpx.Response) -> str:
    return str(json.loads(events(response)[-1].data)["error"]["code"])


async def asked_of(site: Site, **options: Any) -> str:
    """The answer as the official client reads it."""
    text = ""
    async with site.openai as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "hi"}], stream=True, **options
        )
        async for part in stream:
            text += part.choices[0].delta.content or ""
    return text


# --- what gets through -----------------------------------------------------------------------------------------------


async def test_the_official_client_reads_chat_completions() -> None:
    async with serving() as site:
        site.api.script = [b": comment\n\nretry: 9\n\n", chunk("Hel"), chunk("lo"), chunk(None, "stop"), DONE]
        assert await asked_of(site, temperature=0.5) == "Hello"
        ((path, headers, _),) = site.api.asked
        assert path == "/v1/chat/completions"
        assert headers["authorization"] == f"Bearer {KEY}"
        assert site.api.bodies[0]["temperature"] == 0.5
        assert "the client's own" not in str(site.api.asked)


async def test_the_official_client_reads_responses() -> None:
    async with serving() as site:
        answer = {"id": "resp_1", "object": "response", "output": []}
        site.api.script = [
            event("response.created", type="response.created", response=answer, sequence_number=0),
            event(
                "response.output_text.delta",
                type="response.output_text.delta",
                delta="Hi",
                item_id="i",
                output_index=0,
                content_index=0,
                sequence_number=1,
            ),
            event("response.completed", type="response.completed", response=answer, sequence_number=2),
        ]
        async with site.openai as client:
            stream = await client.responses.create(model="tiny", input="hi", stream=True)
            said = [part.type async for part in stream]
        assert said == ["response.created", "response.output_text.delta", "response.completed"]
        assert site.api.asked[0][0] == "/v1/responses"


async def test_the_same_bytes_come_live_and_again_and_from_anywhere() -> None:
    async with serving() as site:
        sent = [chunk("a"), chunk("ö\u2028"), event("named", n=1), chunk(None, "stop"), DONE]
        site.api.script = sent
        first = await site.post()
        assert first.status_code == 200
        assert first.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert [(one.event, one.data) for one in events(first)] == [
            (one.event, one.data) for one in Decoder().feed(b"".join(sent))
        ]
        assert b": hb\n\n" not in first.content
        at = first.headers["location"]
        assert (await site.get(at)).content == first.content
        for number, one in enumerate(events(first)[:-1], start=1):
            rest = await site.get(at, last_event_id=one.id)
            assert events(rest) == events(first)[number:]
            again = await site.post(last_event_id=one.id)
            assert events(again) == events(first)[number:]
        ended = await site.get(at, last_event_id=events(first)[-1].id)
        assert (ended.status_code, ended.content) == (204, b"")
        assert len(site.api.asked) == 1


async def test_it_goes_on_when_its_reader_is_cut_off_and_is_resumed_by_its_last_event_id() -> None:
    async with serving() as site:
        gate = asyncio.Event()
        site.api.script = [chunk("Hel"), gate, chunk("lo"), chunk(None, "stop"), DONE]
        decoder, seen = Decoder(), []
        body = {"model": "tiny", "messages": [], "stream": True}
        async with site.http.stream("POST", CHAT, json=body) as answer:
            async for part in answer.aiter_raw():
                seen += decoder.feed(part)
                if seen:
                    break
            at = answer.headers["location"]
        gate.set()
        rest = await site.get(at, last_event_id=decoder.last_event_id)
        whole = await site.get(at)
        assert seen + events(rest) == events(whole)
        assert data(whole)[-1] == "[DONE]"
        assert not site.api.left.is_set()


async def test_two_readers_see_the_same() -> None:
    async with serving() as site:
        gate = asyncio.Event()
        site.api.script = [chunk("Hel"), gate, chunk("lo"), DONE]
        first = asyncio.create_task(site.post(idempotency_key="k"))
        while not site.proxy.statistics()["passing"]:
            await asyncio.sleep(0)
        second = asyncio.create_task(site.post(idempotency_key="k"))
        gate.set()
        one, other = await asyncio.gather(first, second)
        assert one.content == other.content
        third = await site.post(idempotency_key="k")
        assert third.content == one.content
        assert len(site.api.asked) == 1
        changed = await site.post({"stream": True, "model": "other"}, idempotency_key="k")
        assert (changed.status_code, changed.json()["error"]["code"]) == (409, "idempotency_key_reused")


async def test_what_is_no_stream_is_passed_on_as_it_is() -> None:
    async with serving() as site:
        fields = b"content-type: application/json\r\nset-cookie: a=b\r\ncontent-length: 2"
        site.api.head = b"HTTP/1.1 200 OK\r\n%s\r\n\r\n" % fields
        site.api.script = [b"{}", "end"]
        answer = await site.post({"model": "tiny"})
        assert (answer.status_code, answer.content) == (200, b"{}")
        assert "set-cookie" not in answer.headers
        assert await site.everything_stored() == b""


async def test_the_official_client_asks_for_what_is_not_streamed() -> None:
    async with serving() as site, site.openai as client:
        model = {"id": "org/tiny:1", "object": "model", "created": 1, "owned_by": "us"}
        site.api.answer({"object": "list", "data": [model]})
        assert [one.id async for one in client.models.list()] == ["org/tiny:1"]
        site.api.answer(model)
        assert (await client.models.retrieve("org/tiny:1")).owned_by == "us"
        vector = {"object": "embedding", "index": 0, "embedding": [1.5]}
        site.api.answer({"object": "list", "model": "tiny", "data": [vector]})
        vectors = await client.embeddings.create(model="tiny", input="hi", encoding_format="float")
        assert vectors.data[0].embedding == [1.5]
        site.api.answer({"text": "hello"})
        heard = await client.audio.transcriptions.create(model="tiny", file=("a.wav", b"RIFF"))
        assert heard.text == "hello"
        asked = [(path, headers["authorization"]) for path, headers, _ in site.api.asked]
        paths = ["/v1/models", "/v1/models/org/tiny%3A1", "/v1/embeddings", "/v1/audio/transcriptions"]
        assert asked == [(path, f"Bearer {KEY}") for path in paths]
        assert site.api.asked[-1][1]["content-type"].startswith("multipart/form-data; boundary=")
        assert b"RIFF" in site.api.asked[-1][2]
        assert "the client's own" not in str(site.api.asked)
        assert await site.everything_stored() == b""


# --- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", ["cut", "end", None], ids=["reset", "closed", "clean end without an end"])
async def test_an_upstream_that_breaks_off_is_a_failure(cut: str | None) -> None:
    async with serving() as site:
        site.api.script = [chunk("Hel"), *([cut] if cut else [])]
        with pytest.raises(openai.APIError, match="cut off"):
            await asked_of(site)
        ((name, head),) = await site.streams.list("proxied/")
        assert (head.closed, head.outcome) == (True, "failed")
        again = await site.get(f"/v1/proxy/tiny/{name.rpartition('/')[2]}")
        assert (len(events(again)), error(again)) == (2, "upstream_cut")


async def test_an_upstream_that_falls_silent_is_a_failure() -> None:
    async with serving(idle_timeout=0.1) as site:
        site.api.script = [chunk("Hel"), asyncio.Event()]
        answer = await site.post()
        assert error(answer) == "upstream_cut"
        async with asyncio.timeout(5):
            await site.api.left.wait()


async def test_an_upstream_that_never_comes_to_an_end_is_a_failure() -> None:
    async with serving(total_timeout=0.1) as site:
        site.api.script = [chunk("Hel"), asyncio.Event()]
        answer = await site.post()
        assert error(answer) == "upstream_cut"
        assert "took too long" in events(answer)[-1].data
        async with asyncio.timeout(5):
            await site.api.left.wait()
        site.api.script = [asyncio.Event()]
        site.api.head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n"
        whole = await site.post({"model": "tiny"})
        assert (whole.status_code, whole.json()["error"]["code"]) == (502, "upstream_cut")


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ([chunk("x"), chunk(None, "stop")], "completed"),  # some services never say [DONE]
        ([chunk("x"), chunk(None, "length"), "cut"], "completed"),
        ([event("response.incomplete", type="response.incomplete"), "cut"], "completed"),
        ([event("response.failed", type="response.failed")], "failed"),
        ([event("error", type="error", message="no")], "failed"),
        ([chunk("x"), event(error={"message": "overloaded"})], "failed"),
    ],
)
async def test_how_an_answer_ends_is_what_it_says(script: list[Any], outcome: str) -> None:
    async with serving() as site:
        site.api.script = script
        answer = await site.post()
        assert len(events(answer)) == len([part for part in script if part != "cut"])
        ((_, head),) = await site.streams.list("proxied/")
        assert (head.closed, head.outcome) == (True, outcome)


async def test_a_cancelled_answer_lets_go_of_its_upstream() -> None:
    async with serving() as site:
        site.api.script = [chunk("Hel"), asyncio.Event()]
        body = {"model": "tiny", "messages": [], "stream": True}
        async with site.http.stream("POST", CHAT, json=body) as answer:
            at = answer.headers["location"]
            assert (await site.http.post(f"{at}/cancel")).status_code == 202
            await answer.aread()
        assert error(answer) == "cancelled"
        async with asyncio.timeout(5):
            await site.api.left.wait()
        assert (await site.http.post(f"{at}/cancel")).status_code == 200
        assert (await site.http.post("/v1/proxy/tiny/AAAAAAAAAAAAAAAAAAAAAA/cancel")).status_code == 404


async def test_an_answer_is_cancelled_through_another_process(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/streams.db"
    async with upstream() as (api, base_url), Streams(url) as here, Streams(url) as there:
        one, other = (Proxy(s, {"tiny": openai_compatible.Upstream(base_url, key=KEY)}) for s in (here, there))
        api.script = [chunk("Hel"), asyncio.Event()]
        mine, theirs = (App(p.streams, pages={"/v1/proxy/": p}) for p in (one, other))
        async with live(mine) as first, live(theirs) as second:
            async with first.stream("POST", CHAT, json={"stream": True}) as answer:
                parts, seen = answer.aiter_raw(), b""
                while b"Hel" not in seen:
                    seen += await anext(parts)
                at = answer.headers["location"]
                for _ in range(2):
                    assert (await second.post(f"{at}/cancel")).status_code == 200
                async with asyncio.timeout(5):
                    await api.left.wait()
                seen += b"".join([part async for part in parts])
            again = await second.get(at)
            assert (error(again), again.content) == ("cancelled", seen)
        head = await there.head(f"proxied/tiny/{at.rpartition('/')[2]}")
        assert (head.outcome, head.tail, one.statistics()) == ("cancelled", 2, {"passing": 0})


async def test_only_answers_are_cancelled() -> None:
    async with serving() as site:
        await site.streams.create("proxied/tiny/AAAAAAAAAAAAAAAAAAAAAA")
        assert (await site.http.post("/v1/proxy/tiny/AAAAAAAAAAAAAAAAAAAAAA/cancel")).status_code == 404
        assert not (await site.streams.head("proxied/tiny/AAAAAAAAAAAAAAAAAAAAAA")).closed


@pytest.mark.server
async def test_two_servers_pass_an_answer_on_and_either_cancels_it(tmp_path: Path) -> None:
    async with upstream() as (api, base_url):
        api.script = [chunk("Hel"), asyncio.Event()]
        option = ("--proxy", f"tiny={base_url}")
        first, second = (real_server.Server("serve", tmp_path, *option) for _ in range(2))
        try:
            for server in (first, second):
                await asyncio.to_thread(server.start)
            async with httpx.AsyncClient(timeout=20) as http:
                async with http.stream("POST", f"{first.url}{CHAT}", json={"stream": True}) as answer:
                    parts = answer.aiter_raw()
                    while b"Hel" not in await anext(parts):
                        pass
                    at = answer.headers["location"]
                    assert (await http.post(f"{second.url}{at}/cancel")).status_code == 200
                    assert b'"code":"cancelled"' in b"".join([part async for part in parts])
                async with asyncio.timeout(10):
                    await api.left.wait()
                assert error(await http.get(f"{second.url}{at}")) == "cancelled"
            assert [server.stop()[0] for server in (first, second)] == [0, 0]
            assert "Traceback" not in first.log.read_text()
        finally:
            for server in (first, second):
                if server.running:
                    server.kill()


async def test_a_server_that_goes_away_ends_its_answers() -> None:
    async with upstream() as (api, base_url), Streams("memory:") as streams:
        api.script = [chunk("Hel"), asyncio.Event()]
        proxy = Proxy(streams, {"tiny": openai_compatible.Upstream(base_url, key=KEY)})
        app = App(streams, pages={"/v1/proxy/": proxy})
        async with live(app) as http, http.stream("POST", CHAT, json={"stream": True}) as answer:
            await anext(answer.aiter_raw())
            at = answer.headers["location"]
        name = f"proxied/tiny/{at.rpartition('/')[2]}"
        head = await streams.head(name)
        assert (head.closed, head.outcome) == (True, "failed")
        assert b'"code":"interrupted"' in (await streams.read(name)).messages[-1].data
        assert proxy.statistics() == {"passing": 0}


async def test_an_answer_whose_process_died_is_ended_by_another() -> None:
    async with Streams("memory:") as streams:
        Proxy(streams, {})
        writer = streams.writer("proxied/tiny/x", content_type="text/event-stream", labels={"kind": "proxied"})
        await writer.open(b"data:1\n")
        streams.leases.abandon(writer.name, openai_compatible.UpstreamCut("gone"))
        async for page in streams.follow(writer.name):
            if page.closed:
                break
        assert page.outcome == "failed"
        assert b'"upstream_cut"' in page.messages[-1].data


# --- what does not get through ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("head", "body", "status", "said"),
    [
        (b"404 Not Found", b'{"error": {"message": "no such model"}}', 404, "no such model"),
        (b"429 Too Many Requests\r\nretry-after: 7", b"{}", 429, "{}"),
        (b"500 Oops", b"key %s is bad" % KEY.encode(), 500, "key *** is bad"),
        (b"401 Unauthorized", b"Incorrect API key: %s" % KEY.encode(), 502, "refuses this server"),
        (b"302 Found\r\nlocation: http://169.254.169.254/", b"", 502, "refuses this server"),
    ],
)
async def test_an_upstreams_refusal(
    head: bytes, body: bytes, status: int, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving() as site:
        site.api.head = b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n" % (head, len(body))
        site.api.script = [body, "end"]
        answer = await site.post(idempotency_key="k")
        assert answer.status_code == status
        assert said in answer.text
        assert KEY not in answer.text
        assert answer.headers.get("retry-after") == {429: "7"}.get(status)
        if status == 502:  # who runs this server has to mend it, and is told; the client's clients must not try again
            told = answer.json()["error"]
            assert (told["code"], told["retry"]) == ("upstream_refused", False)
            assert answer.headers["x-should-retry"] == "false"
            assert f"refuses this server: HTTP {head[:3].decode()} (" in caplog.text
            assert KEY not in caplog.text
        assert await site.everything_stored() == b""
        site.api.head = Upstream().head
        site.api.script = [chunk("Hi"), DONE]
        assert len(events(await site.post(idempotency_key="k"))) == 2  # the same key may try again


async def test_nothing_of_headers_and_keys_is_stored() -> None:
    async with serving() as site:
        site.api.head = Upstream().head.replace(b"200 OK\r\n", b"200 OK\r\nset-cookie: secret-cookie\r\nvia: proxy\r\n")
        site.api.script = [chunk("Hi"), DONE]
        answer = await site.post(authorization="Bearer the-clients-own", cookie="a=the-clients-cookie")
        assert "set-cookie" not in answer.headers
        stored = await site.everything_stored()
        assert b"Hi" in stored
        for secret in (KEY, "secret-cookie", "the-clients-own", "the-clients-cookie"):
            assert secret.encode() not in stored
        assert "the-clients" not in str(site.api.asked)
        assert KEY not in repr(site.proxy.upstreams) + repr(site.proxy)


@pytest.mark.parametrize(
    ("method", "url", "status"),
    [
        ("POST", "/v1/proxy/nobody/chat/completions", 404),
        ("POST", "/v1/proxy/http:%2F%2F169.254.169.254/latest", 404),
        ("POST", "/v1/proxy/tiny/models", 405),
        ("GET", "/v1/proxy/tiny/embeddings", 405),
        ("DELETE", "/v1/proxy/tiny/models/ft:mine", 405),
        ("GET", "/v1/proxy/tiny/models/../files", 404),
        ("GET", "/v1/proxy/tiny/models/..%2Ffiles", 404),
        ("GET", "/v1/proxy/tiny/models/a%3Fb=c", 404),
        ("GET", "/v1/proxy/tiny/files", 404),
        ("POST", "/v1/proxy/tiny/files", 404),
        ("GET", "/v1/proxy/tiny/responses/resp_1", 404),
        ("POST", "/v1/proxy/tiny/chat/../files", 404),
        ("POST", "/v1/proxy/tiny/chat%2F..%2Ffiles", 404),
        ("GET", "/v1/proxy/tiny/chat/completions", 405),
        ("POST", "/v1/proxy/tiny/AAAAAAAAAAAAAAAAAAAAAA", 405),
        ("GET", "/v1/proxy/tiny/AAAAAAAAAAAAAAAAAAAAAA/cancel", 405),
        ("GET", "/v1/proxy/tiny/AAAAAAAAAAAAAAAAAAAAAA", 404),
        ("GET", "/v1/proxy/", 404),
    ],
)
async def test_only_what_is_configured_is_reached(method: str, url: str, status: int) -> None:
    async with serving() as site:
        answer = await site.http.request(method, url, json={"stream": True} if method == "POST" else None)
        assert answer.status_code == status
        assert site.api.asked == []


async def test_what_there_is_instead_is_said() -> None:
    async with serving() as site:
        unknown = await site.get("/v1/proxy/opneai/models")
        assert unknown.json()["error"]["message"] == "there is no such upstream; there are: tiny"
        assert "passed on is audio/speech" in (await site.get("/v1/proxy/tiny/files")).text


async def test_what_no_api_would_take_is_not_passed_on() -> None:
    async with serving() as site:
        for body, kind in [(b"{", "application/json"), (b"[]", "application/json"), (b"{}", "text/plain"), (b"{}", "")]:
            answer = await site.http.post(CHAT, content=body, headers={"content-type": kind})
            assert answer.status_code == 400
        foreign = await site.post(last_event_id="AAAAAAAAAAAAAAAAAAAAAA~x")
        assert foreign.status_code == 404
        assert site.api.asked == []


async def test_an_upstream_that_is_not_there() -> None:
    async with Streams("memory:") as streams:
        proxy = Proxy(streams, {"gone": openai_compatible.Upstream("http://127.0.0.1:9/v1")})
        async with live(App(streams, pages={"/v1/proxy/": proxy})) as http:
            for streamed in (True, False):
                answer = await http.post("/v1/proxy/gone/responses", json={"stream": streamed})
                assert answer.status_code == 502
                assert answer.json()["error"]["code"] == "upstream_unreachable"
                assert "127.0.0.1" not in answer.text


async def test_keys_say_who_may_start_and_read() -> None:
    from hashlib import sha256

    from headwater.http.auth import Principal

    def keyed(key: str, principal: Principal) -> tuple[str, Principal]:
        return sha256(key.encode()).hexdigest(), principal

    auth = Keys(
        dict(
            [
                keyed("may", Principal("may", frozenset({"start", "read", "cancel"}), ("proxied/tiny/*",))),
                keyed("may-not", Principal("may not", frozenset({"start", "read"}), ("proxied/other/*",))),
            ]
        )
    )
    async with serving(auth=auth) as site:
        site.api.script = [chunk("Hi"), DONE]
        assert (await site.post()).status_code == 401
        assert (await site.post(authorization="Bearer may-not")).status_code == 403
        assert site.api.asked == []
        answer = await site.post(authorization="Bearer may")
        assert len(events(answer)) == 2
        assert (await site.get(answer.headers["location"])).status_code == 401
        assert (await site.get(answer.headers["location"], authorization="Bearer may-not")).status_code == 403
        assert (await site.get(answer.headers["location"], authorization="Bearer may")).content == answer.content
        site.api.answer({"data": []})
        for key, status in (("", 401), ("Bearer may-not", 403), ("Bearer may", 200)):
            headers = {"authorization": key} if key else {}
            assert (await site.get("/v1/proxy/tiny/models", **headers)).status_code == status
            assert (await site.post({}, "/v1/proxy/tiny/embeddings", **headers)).status_code == status
            unknown = await site.get("/v1/proxy/nobody/models", **headers)
            assert ("there are: tiny" in unknown.text) == bool(key)
        assert len(site.api.asked) == 3


async def test_an_answer_stopped_while_its_stream_is_made_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    making, may = asyncio.Event(), asyncio.Event()
    made = Writer.open

    async def slowly(writer: Writer, *first: Any) -> bool:
        fresh = await made(writer, *first)
        making.set()
        await may.wait()
        return fresh

    monkeypatch.setattr(Writer, "open", slowly)
    async with serving() as site:
        post = asyncio.create_task(site.post())
        await making.wait()
        site.proxy._begin_interrupt()
        may.set()
        assert (await post).status_code == 503
        assert (await site.streams.list("proxied/"), site.api.asked) == ([], [])


@pytest.mark.parametrize("begun", [False, True])
async def test_an_error_that_nobody_foresaw_ends_the_answer(monkeypatch: pytest.MonkeyPatch, begun: bool) -> None:
    def fails(*_: Any) -> Any:
        raise OSError("no such certificate")

    monkeypatch.setattr(*(proxy_module, "stored_event") if begun else (openai_compatible.Upstream, "_made"), fails)
    monkeypatch.setattr(proxy_module, "_error", lambda _: b'data: {"error":{"code":"interrupted"}}\n')
    async with serving() as site:
        site.api.script = [chunk("a"), chunk(None, "stop"), DONE]
        answer = await site.post(idempotency_key="k")
        assert "certificate" not in answer.text
        if begun:
            ((_, head),) = await site.streams.list("proxied/")
            assert (answer.status_code, error(answer), head.outcome) == (200, "interrupted", "failed")
        else:  # so that the next attempt asks anew
            assert (answer.status_code, await site.streams.list("proxied/")) == (500, [])


# --- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["ftp://host/v1", "host/v1", "https://", "https://u:p@host/v1", "https://host/v1?a=b"])
def test_an_upstream_is_a_plain_url(url: str) -> None:
    with pytest.raises(ValueError, match="an upstream is"):
        openai_compatible.Upstream(url)


def test_an_upstreams_key_comes_from_the_environment() -> None:
    named = openai_compatible.Upstream.named("my-llm", "https://host/v1", {"MY_LLM_API_KEY": KEY})
    assert named._headers == {"authorization": f"Bearer {KEY}"}
    assert repr(named) == "<Upstream https://host/v1>"
    assert openai_compatible.Upstream.named("local", "http://localhost:8080/v1", {})._headers == {}


async def test_an_upstreams_name_is_part_of_a_path() -> None:
    async with Streams("memory:") as streams:
        with pytest.raises(ValueError, match="small letters"):
            Proxy(streams, {"a/b": openai_compatible.Upstream("https://host/v1")})


def test_without_the_package_the_install_line_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "headwater.sources.openai_compatible")
    with pytest.raises(MissingExtra, match=r"pip install 'headwater\[proxy\]'"):
        importlib.import_module("headwater.sources.openai_compatible")
