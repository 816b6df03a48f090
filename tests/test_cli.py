"""The command line: what it says when something is wrong, and the real thing in processes of its own."""

import asyncio
import hashlib
import inspect
import json
import os
import pty
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

import headwater.runs  # noqa: F401 -- serving imports it, and a first import reads files, which blocks
from headwater import __version__
from headwater.cli.agents import load
from headwater.cli.app import app
from headwater.cli.places import address
from headwater.cli.serving import serve
from headwater.errors import BadRequest
from headwater.http.auth import Keys, Principal
from headwater.model import Retention
from headwater.server import ServeConfig
from headwater.streams import Streams
from test_client import serving

TIMEOUT = 30


def run(*arguments: str, given: str = "") -> tuple[int, str, str]:
    """Status, stdout and stderr of a command in this process."""
    result = CliRunner().invoke(app, arguments, input=given, env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder as the current one, forgotten by Python afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", "") or ""):
            del sys.modules[name]


# -- saying what is wrong --------------------------------------------------------------------------------------------


def test_version() -> None:
    assert run("--version") == (0, f"headwater {__version__}\n", "")


@pytest.mark.parametrize("command", ["serve", "demo", "tail", "append", "ls", "inspect", "top"])
def test_every_command_shows_examples(command: str) -> None:
    status, out, _ = run(command, "--help")
    assert status == 0
    assert f"$ headwater {command}" in out


def test_the_defaults_of_serve_are_those_of_the_server() -> None:
    ours = {name: given.default for name, given in inspect.signature(serve).parameters.items()}
    ours["long_poll"] = ours.pop("long_poll_timeout")
    assert [ours.pop(name) for name in ("agents", "cors_origin", "retain", "proxy")] == [None] * 4
    config = ServeConfig()
    slow = [ours.pop(name) for name in ("slow_readers", "slow_after_bytes", "slow_after_seconds")]
    assert slow == [config.slow.what, config.slow.bytes, config.slow.seconds]
    assert ours == {name: getattr(config, name) for name in ours}


def test_missing_packages_are_named_with_the_line_that_installs_them() -> None:
    code = "import sys; sys.modules['typer'] = None; from headwater.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=TIMEOUT)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "headwater: typer or rich is not installed; run: pip install 'headwater[server]'\n"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("app", "'app' names no agent; write MODULE:ATTRIBUTE"),
        (":agent", "names no agent"),
        ("ap:agent", "there is no module 'ap'; did you mean app?"),
        ("zyx.at_all:agent", "there is no module 'zyx'; is its folder the current one"),
        ("app.py:agent", "'app.py' is a file; name the module: app:"),
        ("app:asistant", "app:asistant: module 'app' has no 'asistant'; did you mean assistant?"),
        ("app:zzz", "module 'app' has no 'zzz'; it has: assistant, nested"),
        ("app:nested.nmae", "nested has no 'nmae'; did you mean name?"),
        ("needs:agent", "'needs' cannot be imported: ModuleNotFoundError: No module named 'not_there' ("),
        ("broken:agent", "'broken' cannot be imported: SyntaxError: "),
        ("failing:agent", "'failing' cannot be imported: ValueError: no key set ("),
        ("leaving:agent", "'leaving' cannot be imported: SystemExit: 3 ("),
    ],
)
def test_an_agent_that_cannot_be_found(here: Path, spec: str, said: str) -> None:
    here.joinpath("app.py").write_text("assistant = 1\nclass nested:\n    name = 'x'\n")
    here.joinpath("needs.py").write_text("import not_there")
    here.joinpath("broken.py").write_text("def f(:\n")
    here.joinpath("failing.py").write_text("raise ValueError('no key set')")
    here.joinpath("leaving.py").write_text("raise SystemExit(3)")
    with pytest.raises(BadRequest, match=re.escape(said)):
        load(spec)


def test_agents_are_found_in_the_current_folder(here: Path) -> None:
    here.joinpath("two.py").write_text("class box:\n    agent = 'the agent'\n")
    assert load("two:box.agent") == (None, "the agent")
    assert load("helper=two:box") == ("helper", sys.modules["two"].box)


def test_other_machines_need_keys_and_it_is_said_before_anything_is_opened(here: Path) -> None:
    status, _, err = run("serve", "--host", "0.0.0.0", "app:agent")
    assert status == 1
    assert "give --auth keys.toml, or say --insecure" in err
    assert list(here.iterdir()) == []


def test_what_serve_refuses(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        status, _, err = run("serve", "--store", "memory:", "--port", port)
        assert (status, port in err, "--port" in err) == (1, True, True)
    sqlite3.connect("other.db").executescript("CREATE TABLE t (a); PRAGMA user_version = 3").connection.close()
    for arguments, said in {
        ("--store", "redis://x"): "no store is known for 'redis://x'",
        ("--store", "sqlite:///other.db"): "other.db is an SQLite file of another program",
        ("--store", "sqlite:///no/folder.db"): "the folder of no/folder.db does not exist",
        ("--auth", "keys.toml"): "the key file keys.toml cannot be read",
    }.items():
        status, out, err = run("serve", "--port", "0", *arguments)
        assert (status, out) == (1, "")
        assert err.startswith("error: ")
        assert said in err


@pytest.mark.parametrize(
    ("specs", "said"),
    [
        ("app:agent", "there is no module 'app'"),
        ("sys:path", "list is no agent; give an agents.Agent, an async generator, or a headwater.sources.Source"),
        ("bots:provider", "OpenAIProvider is no agent; give an agents.Agent"),
        ("bots:test_model", "TestModel is no agent; give a pydantic_ai.Agent"),
        ("bots:graph", "StateGraph is no agent; give a compiled graph (graph.compile())"),
        ("bots:support bots:support", "two agents would be registered as 'support'; give one a name: other=MODULE:"),
        ("bots:support support=bots:second", "two agents would be registered as 'support'"),
        ("x=bots:provider", "OpenAIProvider is no agent"),
    ],
)
def test_what_is_no_agent_is_one_clear_line_and_status_2(here: Path, specs: str, said: str) -> None:
    here.joinpath("bots.py").write_text(
        "from agents import Agent, OpenAIProvider\n"
        "from langgraph.graph import StateGraph\n"
        "from pydantic_ai.models.test import TestModel\n"
        "support, second, provider = Agent('support'), Agent('second'), OpenAIProvider(api_key='x')\n"
        "graph, test_model = StateGraph(dict), TestModel()\n"
    )
    status, out, err = run("serve", "--port", "0", "--store", "memory:", *specs.split())
    assert (status, out) == (2, "")
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


def test_the_demo_has_no_keys_and_stays_on_this_machine() -> None:
    status, _, err = run("demo", "--store", "memory:", "--host", "0.0.0.0")
    assert (status, "--insecure lets them in" in err) == (1, True)


@pytest.mark.server
def test_a_port_that_is_taken_is_said_with_what_make_can_be_told(here: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        environment = os.environ | {"OPENAI_API_KEY": "sk-none", "PORT": port}
        command = [sys.executable, "-c", "from headwater.cli import main; main()", "demo", "--store", "memory:"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT, env=environment)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"port {port} is taken" in done.stderr
    assert "PORT=4600 make demo" in done.stderr
    assert "Traceback" not in done.stderr


def test_nobody_there() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    status, out, err = run("tail", "chat/42", "--server", url)
    assert (status, out) == (1, "")
    assert err.startswith(f"error: nothing answers at {url}; start a server with `headwater serve`, or name another")
    assert run("ls", "--server", url) == (1, "", f"error: nothing answers at {url}\n")
    assert run("append", "s", "1", "--server", url) == (1, "", f"error: nothing answers at {url}\n")
    assert "nothing to append" in run("append", "s", "--server", url)[2]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("chat/42", ("http://s:1", "chat/42")),
        ("/v1/stream/chat", ("http://s:1", "http://s:1/v1/stream/chat")),
        ("/v1/runs/r1", ("http://s:1", "http://s:1/v1/runs/r1/events")),
        ("https://h/x/v1/runs/r1/", ("https://h", "https://h/x/v1/runs/r1/events")),
        ("https://h/v1/runs/r1/events?a=1", ("https://h", "https://h/v1/runs/r1/events?a=1")),
        ("http://h:2/v1/stream/v1/runs/r", ("http://h:2", "http://h:2/v1/stream/v1/runs/r")),
    ],
)
def test_targets(target: str, expected: tuple[str, str]) -> None:
    assert address(target, "http://s:1") == expected


# -- a store file without a server -----------------------------------------------------------------------------------


@pytest.fixture
def store(here: Path) -> str:
    async def fill() -> None:
        async with Streams("sqlite:///file.db") as streams:
            await streams.create("chat/1", {"n": 1}, {"n": 2})
            await streams.close("chat/1")
            await streams.create("build", "made\n", "it", content_type="text/plain")
            await streams.close("build", "failed")
            await streams.create("bin", b"\xff", content_type="application/octet-stream", closed=True)

    asyncio.run(fill())
    return "sqlite:///file.db"


@pytest.mark.parametrize(
    ("name", "format_", "expected"),
    [
        ("chat/1", "data", '{"n":1}\n{"n":2}\n'),
        ("chat/1", "raw", '{"n":1}{"n":2}'),
        ("chat/1", "json", '{"offset":"0_1","data":{"n":1}}\n{"offset":"0_2","data":{"n":2}}\n'),
        ("chat/1", "offsets", '0_1 {"n":1}\n0_2 {"n":2}\n'),
        ("build", "text", "made\nit\n"),
        ("build", "raw", "made\nit"),
        ("build", "data", "made\nit\n"),
        ("bin", "json", '{"offset":"0_1","data":"/w=="}\n'),
    ],
)
def test_formats(store: str, name: str, format_: str, expected: str) -> None:
    status, out, err = run("tail", name, "--store", store, "--format", format_)
    assert re.sub(r"\d{16}_0{15}(\d)", r"0_\1", out) == expected
    assert (status, err) == ((3, "headwater: the stream ended as failed\n") if name == "build" else (0, ""))


def test_tail_goes_on_behind_an_offset(store: str) -> None:
    _, out, _ = run("tail", "chat/1", "--store", store, "-v")
    first = out.split()[0]
    assert run("tail", "chat/1", "--store", store, "--from", first)[1] == '{"n":2}\n'
    assert run("tail", "chat/1", "--store", store, "--from", "7")[2].startswith("error: this is not an offset")
    assert run("tail", "chat/2", "--store", store)[0] == 1


def test_ls_of_a_store_file(store: str) -> None:
    lines = run("ls", "--store", store)[1].splitlines()
    assert [line.split()[:3] for line in lines[1:]] == [
        ["bin", "application/octet-stream", "closed"],
        ["build", "text/plain", "failed"],
        ["chat/1", "application/json", "completed"],
    ]
    listed = [json.loads(line) for line in run("ls", "b", "--json", "--store", store)[1].splitlines()]
    assert [(stream["name"], stream["messages"], stream["bytes"]) for stream in listed] == [
        ("bin", 1, 1),
        ("build", 2, 7),
    ]
    assert run("ls", "nothing", "--store", store) == (0, "", "no streams\n")


def test_ls_counts_what_is_kept_and_cuts_nothing(here: Path) -> None:
    name = "a/long/" * 20 + "name"

    async def fill() -> None:
        async with Streams("sqlite:///file.db") as streams:
            await streams.create(name, *[b"12345"] * 10, retention=Retention(messages=2))
            await streams._sweeper.sweep()

    asyncio.run(fill())
    listed = json.loads(run("ls", "--json", "--store", "sqlite:///file.db")[1])
    assert (listed["messages"], listed["bytes"], listed["retention"]) == (2, 10, {"messages": 2})
    for columns in ("40", "80", "200"):
        narrow = CliRunner().invoke(app, ("ls", "--store", "sqlite:///file.db"), env={"COLUMNS": columns})
        assert [line.split()[:3] for line in narrow.stdout.splitlines()[1:]] == [[name, "application/json", "open"]]
        assert max(map(len, narrow.stdout.splitlines())) < 250


@pytest.mark.parametrize("target", ["chat/../secret", "/v1/stream/chat/../secret", "/v1/runs/../stream/x", "a/%2e%2e"])
def test_a_name_that_leads_to_another_stream_is_refused(target: str) -> None:
    for command in (("append", target, "1"), ("append", "--create", target, "1"), ("tail", target)):
        status, out, err = run(*command, "--server", "http://127.0.0.1:9")
        assert (status, out) == (1, "")
        assert "no segments . or .." in err


def test_a_server_that_wants_a_key_is_given_one_by_option() -> None:
    auth = Keys({hashlib.sha256(b"password").hexdigest(): Principal("p")})

    async def ask(*arguments: str) -> tuple[int, str, str]:
        async with Streams("memory:") as streams, serving(streams, auth=auth) as port:
            await streams.create("s", 1, closed=True)
            return await asyncio.to_thread(run, *arguments, "--server", f"http://127.0.0.1:{port}")

    for command in (("ls",), ("tail", "s"), ("append", "s", "2")):
        missing, wrong = asyncio.run(ask(*command)), asyncio.run(ask(*command, "--key", "guess"))
        assert missing == (1, "", "error: the server wants a key: give one with --key KEY, or in HEADWATER_KEY\n")
        assert wrong[2].startswith("error: the server does not know this key: give one with --key")
    assert asyncio.run(ask("tail", "s", "--key", "password")) == (0, "1\n", "")


def test_looking_makes_no_file(here: Path) -> None:
    assert run("ls", "--store", "sqlite:///none.db")[2] == "error: there is no file none.db\n"
    assert "ask the server" in run("tail", "x", "--store", "memory:")[2]
    assert list(here.iterdir()) == []


# -- processes -------------------------------------------------------------------------------------------------------

AGENT = """
from ag_ui.core import TextMessageContentEvent, TextMessageEndEvent, TextMessageStartEvent

class Poet:
    name = "poet"

    async def run(self, input, sink):
        await sink.emit(TextMessageStartEvent(message_id="m", role="assistant"))
        for word in input.split():
            await sink.emit(TextMessageContentEvent(message_id="m", delta=word + " "))
        await sink.emit(TextMessageEndEvent(message_id="m"))
        if "fail" in input:
            raise ValueError("a secret")

poet = Poet()
"""

HEADWATER = [sys.executable, "-c", "from headwater.cli import main; main()"]

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def start(here: Path) -> Iterator[Start]:
    """Starts a command in a process of its own, which does not outlive the test."""
    processes: list[subprocess.Popen[str]] = []

    def begin(*arguments: str, **options) -> "subprocess.Popen[str]":
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        processes.append(subprocess.Popen([*HEADWATER, *arguments], text=True, **pipes))
        return processes[-1]

    yield begin
    for process in processes:
        process.kill()
        process.communicate()


@pytest.fixture
def server(start: Start, here: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], "subprocess.Popen[str]"]:
    """Starts `headwater serve`, each time on the same port; HEADWATER_URL names it."""
    here.joinpath("poems.py").write_text(AGENT)
    port = "0"

    def begin() -> "subprocess.Popen[str]":
        nonlocal port
        process = start("serve", "poems:poet", "second=poems:poet", "--port", port, "--log-level", "error")
        watchdog = threading.Timer(TIMEOUT, process.kill)
        watchdog.start()
        ready = process.stdout.readline()
        watchdog.cancel()
        assert " at http://" in ready, process.stderr.read()
        assert process.stdout.readline().startswith("The console is at ")  # or a test would find it, or not
        url = ready.split(" at ")[1].split()[0]
        port = url.rpartition(":")[2]
        monkeypatch.setenv("HEADWATER_URL", url)
        return process

    return begin


def done(process: "subprocess.Popen[str]", given: str | None = None) -> tuple[int, str, str]:
    out, err = process.communicate(given, timeout=TIMEOUT)
    return process.returncode, out, err


@pytest.mark.server
def test_a_stream_from_one_terminal_to_another(server, start: Start) -> None:
    serving = server()
    assert done(start("append", "chat/1", "1")) == (1, "", "error: there is no stream chat/1; --create makes it\n")
    status, offset, _ = done(start("append", "--create", "chat/1", '{"n": 1}'))
    assert status == 0
    assert re.fullmatch(r"\d{16}_0{15}1\n", offset)
    assert done(start("append", "chat/1", "-", stdin=subprocess.PIPE), '2\n\n[3, 4]\n"five"')[0] == 0
    assert "not valid JSON" in done(start("append", "chat/1", "six"))[2]
    assert done(start("append", "chat/1", "--close"))[0] == 0
    assert "is closed" in done(start("append", "chat/1", "7"))[2]
    assert done(start("tail", "chat/1")) == (0, '{"n": 1}\n2\n[3, 4]\n"five"\n', "")
    text = ("--create", "--close", "--content-type", "text/plain", "build", "-")
    assert done(start("append", *text, stdin=subprocess.PIPE), "one\ntwo")[0] == 0
    assert done(start("tail", "build", "--format", "raw")) == (0, "one\ntwo", "")
    listed = [json.loads(line) for line in done(start("ls", "--json"))[1].splitlines()]
    assert [(stream["name"], stream["messages"], stream["closed"]) for stream in listed] == [
        ("build", 2, True),
        ("chat/1", 4, True),
    ]
    serving.send_signal(signal.SIGTERM)
    assert done(serving) == (0, "", "")


@pytest.mark.server
def test_a_run_from_the_terminal(server, start: Start) -> None:
    server()
    url = os.environ["HEADWATER_URL"]
    made = httpx.post(f"{url}/v1/runs", json={"agent": "second", "input": "roses are red"}).json()
    assert done(start("tail", f"/v1/runs/{made['id']}", "--format", "text")) == (0, "roses are red \n", "")
    status, out, _ = done(start("tail", f"{url}/v1/runs/{made['id']}/events"))
    types = [json.loads(line)["type"] for line in out.splitlines()]
    assert (status, types[0], types[-1]) == (0, "RUN_STARTED", "RUN_FINISHED")
    failed = httpx.post(f"{url}/v1/runs", json={"agent": "poet", "input": "to fail"}).json()
    for target in (f"/v1/runs/{failed['id']}", f"runs/{failed['id']}"):
        status, out, err = done(start("tail", target))
        assert (status, err) == (3, "headwater: the stream ended as failed\n")
        assert "a secret" not in out


@pytest.mark.server
def test_tail_survives_a_killed_server(server, start: Start) -> None:
    serving = server()
    done(start("append", "--create", "log", "1"))
    tail = start("tail", "log")
    assert tail.stdout.readline() == "1\n"
    serving.kill()
    serving.wait(TIMEOUT)
    assert tail.stderr.readline().startswith("headwater: the connection to http://127.0.0.1:")
    server()
    assert done(start("append", "log", "2", "--close"))[0] == 0
    status, out, err = done(tail)
    assert (status, out) == (0, "2\n")
    assert err.splitlines()[-1] == "headwater: connected again"


@pytest.mark.server
def test_ctrl_c_and_a_reader_that_leaves_end_tail_quietly(server, start: Start) -> None:
    server()
    done(start("append", "--create", "log", "1"))
    tail = start("tail", "log")
    assert tail.stdout.readline() == "1\n"
    tail.send_signal(signal.SIGINT)
    assert done(tail) == (130, "", "")
    tail = start("tail", "log")
    assert tail.stdout.readline() == "1\n"
    tail.stdout.close()
    done(start("append", "log", "2"))
    assert (tail.wait(TIMEOUT), tail.stderr.read()) == (141, "")
    tail.stdout = None  # closed already


@pytest.mark.server
def test_one_ctrl_c_ends_the_server_while_somebody_follows(server, start: Start) -> None:
    serving = server()
    done(start("append", "--create", "log", "1"))
    tail = start("tail", "log")
    assert tail.stdout.readline() == "1\n"
    serving.send_signal(signal.SIGINT)
    assert done(serving)[0] == 0
    assert tail.stderr.readline().startswith("headwater: the server is going away; connect again; trying again in")


class Screen:
    """A terminal of a process of ours: what it shows, waited for."""

    def __init__(self, *arguments: str) -> None:
        self._ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (40, 130))
        environment = os.environ | {"TERM": "xterm-256color", "COLUMNS": "130"}
        self.process = subprocess.Popen(
            [*HEADWATER, *arguments],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
            start_new_session=True,
        )
        os.close(theirs)
        self._seen = ""

    def until(self, text: str) -> None:
        """Read on until it has been shown; it is not looked for in what was read before."""
        watchdog = threading.Timer(TIMEOUT, self.process.kill)
        watchdog.start()
        while text not in self._seen:
            self._seen += os.read(self._ours, 65536).decode(errors="replace")  # fails where the process was killed
        watchdog.cancel()
        self._seen = self._seen.partition(text)[2]

    def close(self) -> None:
        self.process.kill()
        self.process.wait(TIMEOUT)
        os.close(self._ours)


@pytest.mark.server
def test_top_stays_through_a_restart_and_ends_with_ctrl_c(server, start: Start) -> None:
    serving = server()
    done(start("append", "--create", "chat/1", "1"))
    screen = Screen("top", "--interval", "0.2")
    try:
        screen.until("busiest streams")
        screen.until("chat/1")
        serving.kill()
        serving.wait(TIMEOUT)
        screen.until("trying again since")
        server()
        screen.until("connected again at")
        screen.process.send_signal(signal.SIGINT)
        screen.until("\x1b[?1049l")  # the screen that was there before is there again
        assert screen.process.wait(TIMEOUT) == 0
    finally:
        screen.close()


@pytest.mark.server
def test_a_server_and_its_run_are_looked_at(server, start: Start) -> None:
    server()
    url = os.environ["HEADWATER_URL"]
    made = httpx.post(f"{url}/v1/runs", json={"agent": "poet", "input": "to fail"}).json()
    assert done(start("tail", f"runs/{made['id']}"))[0] == 3
    status, out, err = done(start("top", "--once", "--interval", "0.2"))
    assert (status, err, "\x1b" in out) == (0, "", False)
    assert re.search(r"^since the start +0 +1 +0", out, re.MULTILINE)
    assert re.search(r"^all, out +0 ", out, re.MULTILINE)
    status, out, err = done(start("inspect", made["id"], "--tail", "1"))
    assert (status, err) == (0, "")
    assert out.splitlines()[0].split() == [f"runs/{made['id']}", "failed"]
    assert '{"type":"RUN_ERROR"' in out.splitlines()[-1]
    assert "a secret" not in out
    known = json.loads(done(start("inspect", f"{url}/v1/runs/{made['id']}", "--json"))[1])
    assert (known["run"]["agent"], known["story"]["whole"], known["readers"]) == ("poet", True, [])
