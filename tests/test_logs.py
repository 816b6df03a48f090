"""server/logs.py, journal.py, visits.py: what is in the log, for people and for programs; and what never is."""

import asyncio
import hashlib
import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from asgi_client import both_ways  # noqa: F401 -- readers here go every way to the client
from headwater.errors import BadRequest
from headwater.http.auth import Keys, Principal
from headwater.journal import LONGEST_TEXT, note
from headwater.server.logs import JsonLines, Lines, redacted
from headwater.sources import Sink
from headwater.testing import virtual_time
from http_site import open_site

SECRET = "xyzzy-plugh"
_log = logging.getLogger("headwater.test")


class Log:
    """What a process would have logged, both ways."""

    def __init__(self, *, whole_errors: bool = False) -> None:
        self.streams = [io.StringIO(), io.StringIO()]
        self.handlers = [logging.StreamHandler(stream) for stream in self.streams]
        for handler, kind in zip(self.handlers, (Lines, JsonLines), strict=True):
            handler.setFormatter(kind(whole_errors=whole_errors))

    @property
    def human(self) -> list[str]:
        return self.streams[0].getvalue().splitlines()

    @property
    def json(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.streams[1].getvalue().splitlines()]

    def events(self, event: str) -> list[dict[str, Any]]:
        return [line for line in self.json if line.get("event") == event]

    @property
    def text(self) -> str:
        return "".join(stream.getvalue() for stream in self.streams)


@pytest.fixture
def log() -> Iterator[Log]:
    """Of everything, at level debug."""
    kept = Log()
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.DEBUG)
    for handler in kept.handlers:
        root.addHandler(handler)
    yield kept
    root.setLevel(level)
    for handler in kept.handlers:
        root.removeHandler(handler)


def test_a_note_is_a_line_for_people_and_an_object_for_programs(log: Log) -> None:
    note(_log, logging.INFO, "thing ended", stream="a b", count=3, seconds=1.23456, nothing=None, good=True)
    assert log.human[0].endswith('INFO    headwater.test: thing ended: stream="a b" count=3 seconds=1.235 good=true')
    (said,) = log.json
    assert said.pop("time").endswith("Z")
    assert said == {
        "level": "info", "logger": "headwater.test", "event": "thing ended",
        "stream": "a b", "count": 3, "seconds": 1.235, "good": True,
    }  # fmt: skip


def test_no_name_makes_a_line_of_its_own(log: Log) -> None:
    note(_log, logging.INFO, "thing ended", stream="a\nERROR forged\x1b[31m" + "x" * 1000)
    assert len(log.human) == 1
    assert "\x1b" not in log.text
    assert len(log.json[0]["stream"]) == LONGEST_TEXT


@pytest.mark.parametrize(
    "text",
    [
        f"Authorization: Bearer {SECRET}",
        f"headers={{'authorization': 'Bearer {SECRET}', 'a': 'b'}}",
        f"authorization: Basic {SECRET}",
        f"Cookie: session={SECRET}; other={SECRET}",
        f"GET /v1/stream/a?offset=-1&ticket={SECRET} HTTP/1.1",
        f"see https://example.com/x?{SECRET}=1#top",
        f"redis://user:{SECRET}@host:6379/0",
        f"api_key={SECRET}, x-api-key: '{SECRET}'",
        f'{{"access_token": "{SECRET}", "password": "{SECRET}"}}',
        "key sk-proj-abcdefghijkl0123456789" + SECRET,
        f"eyJhbGciOiJIUzI1NiJ9.{SECRET}.{SECRET}",
    ],
)
def test_secrets_are_taken_out_of_any_line(text: str) -> None:
    assert SECRET not in redacted(text)


@pytest.mark.parametrize(
    "text",
    [
        "run ended: input_tokens=12 output_tokens=3 first_token_seconds=0.4",
        "what is this? nobody knows",
        "http://127.0.0.1:4437/v1/stream/a",
        "closed runs/01a: the server went away",
    ],
)
def test_the_rest_stays_as_it_is(text: str) -> None:
    assert redacted(text) == text


def test_an_exception_is_shown_without_its_words(log: Log) -> None:
    try:
        try:
            raise ValueError(SECRET)
        except ValueError as error:
            raise KeyError(SECRET) from error
    except KeyError:
        _log.exception("it failed")
    assert SECRET not in log.text
    assert log.json[0]["error"] == "builtins.KeyError"
    assert "test_logs.py" in log.json[0]["traceback"]
    assert "builtins.ValueError" in log.streams[0].getvalue()


def test_what_ours_say_is_shown(log: Log) -> None:
    try:
        raise BadRequest("say which")
    except BadRequest:
        _log.exception("it failed")
    assert "say which" in log.streams[0].getvalue()


def test_at_level_debug_the_words_are_shown_but_no_keys() -> None:
    kept = Log(whole_errors=True)
    try:
        raise ValueError(f"the prompt was hello, password={SECRET}")
    except ValueError as error:
        record = _log.makeRecord("n", logging.ERROR, "f", 1, "it failed", (), (ValueError, error, error.__traceback__))
    for handler in kept.handlers:
        handler.handle(record)
    assert "the prompt was hello" in kept.text
    assert SECRET not in kept.text


@virtual_time
async def test_the_end_of_each_reader_is_a_line(log: Log) -> None:
    async with open_site() as site:
        await site.put("chat/7", "abc")
        reader = site.call("GET", "chat/7?offset=-1&live=sse")
        await reader.until(b"upToDate")
        await asyncio.sleep(12.5)
        await reader.leave()
        (said,) = log.events("reader ended")
        facts = {name: said[name] for name in said if name not in ("time", "logger", "level")}
        assert facts == {
            "event": "reader ended", "transport": "durable-sse", "stream": "chat/7", "method": "GET",
            "route": "/v1/stream/{name}", "status": 200, "events": 1, "bytes": 3, "resumed": False,
            "reason": "left", "seconds": 12.5,
        }  # fmt: skip


@virtual_time
async def test_what_came_while_a_reader_waited_is_in_its_line(log: Log) -> None:
    async with open_site() as site:
        await site.put("a", "abc")
        reader, stalled = (site.call("GET", "a?offset=-1&live=sse") for _ in range(2))
        for one in (reader, stalled):
            await one.until(b"upToDate")
        for text in ("one", "seven77"):
            await site.post("a", text)
            await reader.until(text.encode())
        await stalled.until(b"seven77")
        stalled.stall()
        await site.post("a", "goes into a buffer")
        await asyncio.sleep(1)
        await site.post("a", "x" * 18)
        await stalled.leave()
        await reader.until(b"x" * 18)
        await reader.leave()
        ended = log.events("reader ended")
        assert (ended[1]["events"], ended[1]["bytes"]) == (5, 49)
        # Where there is a buffer, that took one: three of the four that came, whose 46 bytes are taken as even.
        assert ended[0]["bytes"] in (13, 3 + 46 * 3 // 4)


class Careless:
    """A source whose error holds what it was told."""

    name = "careless"

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 -- AG-UI's word
        raise RuntimeError(f"cannot do {input}")


async def test_nothing_that_anybody_said_is_in_the_log(log: Log) -> None:
    """Secrets everywhere that a client can put one: the log, at its most talkative, has none of them."""
    keys = Keys({hashlib.sha256(SECRET.encode()).hexdigest(): Principal("front end")})
    auth = {"authorization": f"Bearer {SECRET}"}
    async with open_site(sources=[Careless()], auth=keys, metrics=True) as site:
        await site.put("a", SECRET, **auth)
        await site.post("a", SECRET, **auth)
        await site.post("a", SECRET, content_type=f"text/{SECRET}", **auth)
        await site.post("a", SECRET, content_type="application/json", cookie=f"id={SECRET}", **auth)
        await site.ask("GET", f"a?token={SECRET}", **auth)
        await site.ask("GET", f"a?offset={SECRET}&live=sse", **auth)
        await site.ask("GET", "a", authorization=f"Bearer {SECRET}2")
        await site.ask("GET", f"/nowhere/{SECRET}?{SECRET}={SECRET}", **auth)
        reader = site.call("GET", f"a?offset=-1&live=sse&key={SECRET}", **auth)
        await reader.until(b"upToDate")
        await reader.leave()
        body = json.dumps({"agent": "careless", "input": SECRET})
        started = await site.ask("POST", "/v1/runs", body, content_type="application/json", **auth)
        assert started.status in (200, 201, 202), started.body
        assert site.app.runs is not None
        await (await site.app.runs.get(started.json()["id"])).wait()
        body = json.dumps({"model": "careless", "input": SECRET, "stream": True})
        await site.ask("POST", "/v1/responses", body, content_type="application/json", **auth)
        await site.ask("POST", "/v1/runs", "{" + SECRET, content_type="application/json", **auth)
    assert log.events("refused")
    assert log.events("run ended")
    assert log.events("reader ended")
    assert SECRET not in log.text
