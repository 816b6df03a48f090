"""`headwater serve`: options that bound what is kept and admitted, and what is said of values that can never be."""

import asyncio
import importlib
import inspect
import json
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from headwater.cli.app import app
from headwater.cli.serving import _rule
from headwater.delivery import Delivery
from headwater.errors import BadRequest
from headwater.model import Retention
from headwater.runs import Runs
from headwater.server import ServeConfig
from headwater.server.serve import _proxy, _runs, check
from headwater.streams import Streams
from real_server import serving

server = importlib.import_module("headwater.server.serve")  # its package has a function of that name

TEXT = {"content-type": "text/plain"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("chat/*:seconds=3600", ("chat/*", Retention(seconds=3600))),
        ("*:bytes=1,messages=2, seconds=3", ("*", Retention(3, 1, 2))),
        ("a:b:messages=5", ("a:b", Retention(messages=5))),
    ],
)
def test_a_rule_of_retention_is_a_pattern_and_bounds(text, rule):
    assert _rule(text) == rule


WRONG = {
    "--retain x": "--retain 'x': write PATTERN:BOUNDS",
    "--retain :seconds=1": "write PATTERN:BOUNDS",
    "--retain a:": "--retain 'a:': a retention is some of seconds=N",
    "--retain a:seconds=0": "a retention is some of",
    "--retain a:hours=1": "a retention is some of",
    "--sse-max-seconds 0": "--sse-max-seconds is from 1 to 86400",
    "--sse-max-seconds 86401": "leave it out",
    "--sse-max-seconds nan": "--sse-max-seconds is",
    "--max-appends-per-second 0": "--max-appends-per-second is a number above 0",
    "--max-appends-per-second -1": "leave it out for no limit",
    "--max-appends-per-second inf": "--max-appends-per-second is",
    "--max-readers 0": "--max-readers is a whole number from 1 on",
    "--max-readers-per-client -5": "--max-readers-per-client is a whole number",
    "--cors-origin app.example.com": "--cors-origin: 'app.example.com' is no origin: write scheme://host",
    "--cors-origin https://a.example/x": "or * for all",
    "--public-url streams.example": "--public-url: 'streams.example' is no address of a server",
    "--public-url ftp://streams.example": "write https://host",
    "--public-url https://streams.example/x?y=1": "--public-url: ",
    "--public-url https://u:p@streams.example": "--public-url: ",
    "--public-url https://streams.example:99999": "--public-url: ",
    "--proxy openai": "--proxy 'openai': write NAME=URL, like openai=https://api.openai.com/v1",
    "--proxy =https://a.example/v1": "write NAME=URL",
    "--proxy a=https://a.example --proxy a=https://b.example": "--proxy: 'a' is given twice",
    "--proxy My_LLM=https://a.example/v1": "--proxy: 'My_LLM' cannot name an upstream: use small letters",
    "--proxy a=a.example/v1": "--proxy: an upstream is http(s)://host/path",
    "--proxy a=https://key@a.example/v1": "--proxy: an upstream is http(s)://host/path, without a user name",
    "--proxy a=https://a.example:99999/v1": "--proxy: an upstream is http(s)://host/path",
    "--most-resumptions -1": "--most-resumptions is a whole number from 0",
    "--most-resumptions 1001": "--most-resumptions is a whole number from 0",
    "--heartbeat 0": "--heartbeat, --grace and --long-poll-timeout are seconds",
}


@pytest.mark.parametrize(("options", "said"), WRONG.items(), ids=WRONG)
def test_a_value_that_can_never_be_is_one_clear_line_and_status_2(options, said):
    done = CliRunner().invoke(app, ["serve", "--store", "memory:", *options.split()])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert said in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_limits_are_off_unless_asked_for():
    config = ServeConfig()
    check(config)
    off = (config.max_appends_per_second, config.max_readers, config.max_readers_per_client, config.sse_max_seconds)
    assert off == (None, None, None, None)
    assert config.retention == ()
    check(ServeConfig(public_url="https://streams.example:8443/prefix/", cors_origins=["https://a.example", "*"]))
    with pytest.raises(BadRequest, match="--max-readers "):
        check(ServeConfig(max_readers=0))
    with pytest.raises(BadRequest, match="--on-shutdown is resume or interrupt"):
        check(ServeConfig(on_shutdown="sleep"))  # type: ignore[arg-type]


async def test_runs_are_kept_as_it_was_asked_for():
    streams = Streams("memory:")
    runs = _runs(streams, Delivery(streams), ServeConfig(on_shutdown="interrupt", most_resumptions=2))
    assert runs is not None
    assert (runs._resume_later, runs._recovery._most) == (False, 2)
    given = inspect.signature(Runs).parameters
    config = ServeConfig()
    assert (given["on_shutdown"].default, given["most_resumptions"].default) == (
        config.on_shutdown,
        config.most_resumptions,
    )


async def test_an_upstream_without_a_key_is_said_once_at_start(monkeypatch, caplog):
    monkeypatch.delenv("MY_LLM_API_KEY", raising=False)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-4711")
    proxy = _proxy(Streams("memory:"), ServeConfig(proxy=dict.fromkeys(("my-llm", "openai"), "https://a.example/v1")))
    assert proxy is not None
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said.startswith("proxy my-llm: MY_LLM_API_KEY is not set, so what is asked there goes out without a key")
    assert "sk-4711" not in caplog.text


@pytest.mark.server
async def test_a_server_keeps_to_what_it_was_told(tmp_path: Path) -> None:
    options = ["--retain", "short/*:messages=10", "--max-appends-per-second", "5", "--max-readers", "1"]
    options += ["--sse-max-seconds", "1"]
    with serving("serve", tmp_path, *options) as server:
        async with httpx.AsyncClient(base_url=server.url, timeout=10) as client:
            made = await client.put("/streams/short%2F1", json=list(range(100)))
            assert (made.status_code, made.headers["location"]) == (201, f"{server.url}/streams/short/1")
            statuses = [(await client.post("/v1/stream/short/1", json=n)).status_code for n in range(100, 112)]
            assert 204 in statuses
            assert 429 in statuses
            async with client.stream("GET", "/v1/stream/short/1?offset=now&live=sse") as live:
                refused = await client.get("/v1/stream/short/1?offset=now&live=sse")
                assert (refused.status_code, refused.headers["retry-after"]) == (429, "5")
                events = "".join([text async for text in live.aiter_text()])
            assert events.count("event: control") == 2, "it was rotated"
            async with asyncio.timeout(30):
                while "stream-earliest-offset" not in (await client.head("/v1/stream/short/1")).headers:
                    await asyncio.sleep(0.1)
            gone = await client.get(f"/v1/stream/short/1?offset={0:016d}_{0:016d}")
            head = await client.head("/v1/stream/short/1")
            assert (gone.status_code, gone.headers["stream-earliest-offset"]) == (
                410,
                head.headers["stream-earliest-offset"],
            )
            assert len((await client.get("/v1/stream/short/1")).json()) <= 12
            assert json.loads(gone.content)["error"]["code"] == "offset_gone"


@pytest.mark.server
async def test_a_head_without_an_end_is_refused_by_the_real_server(tmp_path: Path) -> None:
    with serving("serve", tmp_path) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(b"GET / HTTP/1.1\r\nx: ")
        before = server.rss()
        for _ in range(200):
            writer.write(b"x" * 65536)
            await asyncio.sleep(0)
        answer = await asyncio.wait_for(reader.read(), 10)
        assert answer.startswith(b"HTTP/1.1 431 ")
        assert server.rss() - before < 8_000_000
        writer.close()


@pytest.mark.server
async def test_with_keys_no_webhook_goes_to_this_machine(tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text('[[key]]\nsecret = "a-secret-of-some-length"\n')
    asked = {"type": "webhook", "pattern": "a", "webhook": {"url": "http://localhost:1/hook"}}
    bearer = {"authorization": "Bearer a-secret-of-some-length"}
    answers = []
    for options in ((), ("--auth", str(keys)), ("--insecure",)):
        with serving("serve", tmp_path, *options) as server:
            async with httpx.AsyncClient(base_url=server.url, timeout=10, headers=bearer) as client:
                answer = await client.put(f"/v1/stream/__ds/subscriptions/{len(answers)}", json=asked)
                answers.append((answer.status_code, answer.json().get("error", {}).get("code")))
    assert answers == [(201, None), (400, "WEBHOOK_URL_REJECTED"), (400, "WEBHOOK_URL_REJECTED")]


def test_help_says_what_each_option_is_for():
    done = CliRunner().invoke(app, ["serve", "--help"], env={"COLUMNS": "200"})
    for said in (
        "--retain",
        "--sse-max-seconds",
        "CDNs",
        "--max-appends-per-second",
        "429",
        "--max-readers-per-client",
        "--proxy",
        "OPENAI_API_KEY",
        "--on-shutdown",
        "--most-resumptions",
    ):
        assert said in done.stdout
    assert done.stdout.count("[default: (no limit)]") == 3


def test_what_a_server_is_made_of_is_no_work_for_the_collector(monkeypatch):
    """When it is ready, and before it says so: each full collection would hold the loop for all of it."""
    done = []

    async def serve(config, ready):
        done.append("made")
        ready("http://here")

    monkeypatch.setattr(server, "serve", serve)
    monkeypatch.setattr(server, "run_alone", asyncio.run)
    monkeypatch.setattr(server.gc, "freeze", lambda: done.append("settled"))
    assert server.run(ServeConfig(), done.append) == 0
    assert done == ["made", "settled", "http://here"]
