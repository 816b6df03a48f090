"""`headwater top` and `headwater inspect`: what they make of a server's answers, against servers on this loop."""

import asyncio
import hashlib
import json
import re

import pytest
from rich.console import Console

import headwater.runs  # noqa: F401 -- a first import reads files, which blocks
from headwater.cli.figures import Watch, scrape
from headwater.cli.inspecting import _place
from headwater.cli.panels import Busiest, screen
from headwater.cli.sheet import Known, sheet
from headwater.cli.shown import ago, lasted, number, plain, size
from headwater.cli.story import Telling
from headwater.errors import BadRequest, HeadwaterError
from headwater.http.auth import Keys, Principal
from headwater.model import Retention
from headwater.streams import Streams
from test_cli import run
from test_client import serving

EVIL = "\x1b]0;owned\x07\x1b[2J\u202egpj.exe\x9b31m\ud800 [red]x[/]"
SENT = EVIL.replace("\ud800", "")  # which no UTF-8 has


def printed(renderable, width: int = 130) -> str:
    console = Console(width=width, color_system="truecolor", force_terminal=True, highlight=False)
    with console.capture() as capture:
        console.print(renderable)
    return re.sub(r"\x1b\[[0-9;]*m", "", capture.get())  # our own colours


# -- words -----------------------------------------------------------------------------------------------------------


def test_what_acts_on_a_terminal_is_spelt_out() -> None:
    assert plain(EVIL) == r"\x1b]0;owned\x07\x1b[2J\u202egpj.exe\x9b31m\ud800 [red]x[/]"
    assert plain("grüße 🌧\nB") == "grüße 🌧\\nB"
    assert plain("abcdef", 4) == "abc…"
    assert plain("abcd", 4) == "abcd"
    assert len(plain("\x1b" * 100, 10)) == 10


def test_units() -> None:
    assert [size(n) for n in (0, 999, 1000, 2_500_000, 3e9)] == ["0 B", "999 B", "1.0 kB", "2.5 MB", "3.0 GB"]
    assert [number(n) for n in (0, 3.0, 0.25, 1234.5)] == ["0", "3", "0.2", "1,234"]
    assert [lasted(s) for s in (0, 0.0004, 0.04, 1.26, 75, 7300)] == [
        "0 ms", "0.4 ms", "40 ms", "1.3 s", "1 min 15 s", "2 h 1 min",
    ]  # fmt: skip
    assert [ago(ms) for ms in (-5, 59_000, 60_000, 3.6e6, 9e7)] == [
        "0 s ago",
        "59 s ago",
        "1 min ago",
        "1 h ago",
        "1 d ago",
    ]


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("chat/42", ("http://s:1", "chat/42")),
        ("/v1/stream/chat/42", ("http://s:1", "chat/42")),
        ("https://h/x/v1/stream/a%20b?offset=-1", ("https://h/x", "a b")),
        ("https://h/v1/runs/r1/events", ("https://h", "runs/r1")),
        ("/v1/runs/r1/", ("http://s:1", "runs/r1")),
    ],
)
def test_places(name: str, place: tuple[str, str]) -> None:
    assert _place(name, "http://s:1") == place


def test_a_url_of_neither_is_refused() -> None:
    with pytest.raises(BadRequest, match="of no stream and no run"):
        _place("https://h/console", "http://s:1")


# -- the numbers -----------------------------------------------------------------------------------------------------


def told(started: float, delivered: float, tokens: tuple[int, int, int] = (0, 0, 0)) -> str:
    within = [sum(tokens[: n + 1]) for n in range(3)]
    first = "headwater_time_to_first_token_seconds"
    return f"""\
# TYPE headwater_build_info gauge
headwater_build_info{{store="MemoryStore",version="1.0"}} 1
# TYPE headwater_events_delivered_total counter
headwater_events_delivered_total{{transport="sse"}} {delivered}
# TYPE headwater_disconnects_total counter
headwater_disconnects_total{{transport="sse",reason="\x1b[2J"}} {delivered}
# TYPE headwater_readers gauge
headwater_readers{{transport="sse"}} 1000
# TYPE headwater_unheard gauge
headwater_unheard 1
# TYPE {first} histogram
{first}_bucket{{agent="a",le="0.01"}} {within[0]}
{first}_bucket{{agent="a",le="0.1"}} {within[1]}
{first}_bucket{{agent="a",le="+Inf"}} {within[2]}
{first}_bucket{{agent="b",le="0.01"}} 0
{first}_bucket{{agent="b",le="0.1"}} 0
{first}_bucket{{agent="b",le="+Inf"}} 0
# TYPE process_start_time_seconds gauge
process_start_time_seconds {started}
"""


def test_rates_are_of_the_last_look_and_sums_of_the_last_minute() -> None:
    watch = Watch()
    for at, delivered in ((0, 5), (1, 10), (30, 100), (59, 110), (61, 130)):
        watch.add(scrape(told(1, delivered), at))
    assert watch.per_second("headwater_events_delivered_total", "transport") == {"sse": 10.0}
    assert watch.lately("headwater_events_delivered_total", "transport") == {"sse": 120.0}
    assert watch.seconds == 60
    for at in range(62, 1000):
        watch.add(scrape(told(1, 130), at))
    assert repr(watch) == "<Watch [61 scrapes]>"
    assert "headwater_unheard" not in watch.now.values


def test_counters_of_another_process_begin_anew() -> None:
    watch = Watch()
    watch.add(scrape(told(1, 500), 0))
    watch.add(scrape(told(2, 3), 1))
    assert watch.lately("headwater_events_delivered_total", "transport") == {"sse": 0.0}
    assert watch.per_second("headwater_events_delivered_total", "transport") == {"sse": 0.0}


def test_how_values_are_spread_lately_and_ever() -> None:
    name, watch = "headwater_time_to_first_token_seconds", Watch()
    watch.add(scrape(told(1, 0, (100, 0, 0)), 0))
    assert watch.spread_lately(name)[:2] == (None, None)
    watch.add(scrape(told(1, 0, (100, 100, 0)), 1))
    assert watch.spread_lately(name)[:2] == pytest.approx((0.055, 0.0991))
    assert watch.spread_ever(name) == pytest.approx((0.01, 0.0982, 0.01))
    assert watch.spread_ever(name, agent="b")[:2] == (None, None)
    watch.add(scrape(told(1, 0, (100, 100, 9)), 2))
    assert watch.spread_ever(name).p99 == 0.1  # above the last bound: at least that


@pytest.mark.parametrize("text", ["<html>", "up 1\n", "headwater_build_info{ 1"])
def test_what_is_not_of_a_headwater_server_is_said(text: str) -> None:
    with pytest.raises(HeadwaterError, match="what is at /metrics"):
        scrape(text, 0)


@pytest.mark.parametrize("width", [60, 80, 130])
def test_the_screen_fits_and_shows_nothing_that_acts_on_it(width: int) -> None:
    watch = Watch()
    watch.add(scrape(told(1, 0), 0))
    watch.add(scrape(told(1, 5000, (9, 1, 0)), 1))
    busy = Busiest([{"name": f"chat/{EVIL}", "readers": 1000, "messages": 5, "bytes": 12345}, {"name": 3}])
    shown = printed(screen(watch, busy, "top", width), width)
    assert max(map(len, shown.splitlines())) <= width
    assert re.search(r"^sse +1,000 +0 +5,000 ", shown, re.MULTILINE)
    assert re.search(r"first token +<10 ms +91 ms", shown)
    assert r"\x1b[2J" in shown
    assert all(line.isprintable() for line in shown.splitlines())


# -- the story of a run ----------------------------------------------------------------------------------------------


def test_turns_and_tools_with_how_long_they_took() -> None:
    telling = Telling()
    for event in (
        {"type": "RUN_STARTED", "timestamp": 0},
        {"type": "STEP_STARTED", "timestamp": 10, "stepName": "one"},
        {"type": "TOOL_CALL_START", "timestamp": 20, "toolCallId": "c", "toolCallName": "search"},
        {"type": "CUSTOM", "timestamp": 500, "name": "tool.started", "value": {"toolCallId": "c"}},
        {"type": "TOOL_CALL_RESULT", "timestamp": 1500, "toolCallId": "c", "content": "x"},
        {"type": "STEP_FINISHED", "timestamp": 1510, "stepName": "one"},
        {"type": "CUSTOM", "timestamp": 1600, "name": "run.resumed", "value": {}},
        {"type": "STEP_STARTED", "timestamp": 1700, "stepName": "one"},
    ):
        telling.feed(json.dumps(event).encode())
    story = telling.story
    assert [(tool.name, tool.seconds) for tool in story.tools] == [("search", 1.0)]
    assert [(turn.name, turn.seconds) for turn in story.turns] == [("one", 1.5), ("one", None)]
    assert (story.events, story.first_said, story.attempts) == (8, 20, 2)


def test_events_of_any_shape_are_passed_over() -> None:
    telling = Telling()
    odd: list[object] = [1, [], {"type": []}, {"type": "CUSTOM", "name": [], "value": 3}, {"type": "STEP_FINISHED"}]
    odd += [{"type": kind, "timestamp": "x", "stepName": 1, "toolCallId": {}, "toolCallName": None} for kind in
            ("STEP_STARTED", "TOOL_CALL_START", "TOOL_CALL_RESULT")]  # fmt: skip
    for message in (b"\xff", b"{", *(json.dumps(one).encode() for one in odd)):
        telling.feed(message)
    assert telling.story.events == len(odd) + 2
    assert [tool.seconds for tool in telling.story.tools] == [None]


def test_a_sheet_shows_nothing_that_acts_on_the_terminal() -> None:
    telling = Telling()
    telling.feed(json.dumps({"type": "TOOL_CALL_START", "toolCallId": "c", "toolCallName": SENT}).encode())
    question = {"toolName": EVIL, "toolCallId": EVIL, "arguments": {"a": EVIL}}
    run_ = dict.fromkeys(("id", "agent", "thread_id", "status", "title"), EVIL)
    run_ |= {
        "approvals": [question],
        "error": {"code": EVIL, "message": EVIL},
        "usage": [{"model": EVIL, "inputTokens": 5}],
    }
    stream = dict.fromkeys(("name", "content_type", "offset", "start", "outcome"), EVIL) | {
        "closed": True,
        "messages": "x",
    }
    readers = [{"transport": EVIL, "behind": 4, "silent": 1.0, "offset": EVIL, "stalled": True}]
    known = Known(stream, run_, telling.story, readers, [{"text": EVIL, "time": 0, "size": 3}, {"base64": "AA=="}])
    shown = printed(sheet(known, 1e12, 130))
    assert all(line.isprintable() for line in shown.splitlines())
    assert "[red]x[/]" in shown
    for said in ("takes nothing", "waits for an answer", "5 input", "not ended", "base64 AA=="):
        assert said in shown


# -- against servers -------------------------------------------------------------------------------------------------


def asked(*arguments: str, names: tuple[str, ...] = ("chat/42",), **options) -> tuple[int, str, str]:
    """A command, against a server on this loop that has these streams."""

    async def ask() -> tuple[int, str, str]:
        options.setdefault("metrics", True)
        async with Streams("memory:") as streams, serving(streams, **options) as port:
            for name in names:
                await streams.create(name, {"n": 1}, {"say": SENT}, retention=Retention(messages=9))
            return await asyncio.to_thread(run, *arguments, "--server", f"http://127.0.0.1:{port}")

    return asyncio.run(ask())


TOP = ("top", "--once", "--interval", "0.2")


def test_a_stream_is_told() -> None:
    status, out, err = asked("inspect", "chat/42", "--tail", "1", console=True)
    assert (status, err) == (0, "")
    facts = {line[:12].strip(): line[12:].strip() for line in out.splitlines()}
    assert out.splitlines()[0].split() == ["chat/42", "open"]
    assert facts["type"] == "application/json"
    assert facts["keeps"] == "9 messages"
    assert facts["readers"] == "0 at this server"
    assert r"\u001b]0;owned" in out.splitlines()[-1]
    assert all(line.isprintable() for line in out.splitlines())
    known = json.loads(asked("inspect", "chat/42", "--tail", "5", "--json", console=True)[1])
    assert (known["stream"]["messages"], len(known["tail"]), known["readers"]) == (2, 2, [])


def test_without_a_console_the_rest_is_told() -> None:
    status, out, _ = asked("inspect", "chat/42")
    assert status == 0
    assert "told where the console is served" in out
    assert "--tail takes the server's console, which is off" in asked("inspect", "chat/42", "--tail", "1")[2]


def test_what_is_not_there_is_said_with_names_that_are_near() -> None:
    assert asked("inspect", "chat/43")[2] == "error: there is no stream and no run chat/43; did you mean chat/42?\n"
    assert asked("inspect", "42")[2] == "error: there is no stream and no run 42; did you mean chat/42?\n"
    assert asked("inspect", "x/y")[2] == "error: there is no stream and no run x/y; `headwater ls` lists them\n"
    assert r"no run chat/4\x1b[; did you mean chat/42?" in asked("inspect", "chat/4\x1b[")[2]


def test_top_once_tells_it_in_plain_text() -> None:
    status, out, err = asked(*TOP)
    assert (status, err, "\x1b" in out) == (0, "", False)
    assert re.search(r"^chat/42 +0 +2 ", out, re.MULTILINE)


def test_where_metrics_are_elsewhere_is_asked_for() -> None:
    status, _, err = asked(*TOP, metrics=False)
    assert (status, "--metrics http://127.0.0.1:PORT" in err) == (1, True)


def test_keys() -> None:
    blind = Principal("blind", actions=frozenset({"read", "list"}))
    auth = Keys({hashlib.sha256(word.encode()).hexdigest(): one for word, one in
                 (("password", Principal("p")), ("blind", blind))})  # fmt: skip
    for command in (TOP, ("inspect", "chat/42")):
        missing, wrong = asked(*command, auth=auth), asked(*command, "--key", "guess", auth=auth)
        assert missing == (1, "", "error: the server wants a key: give one with --key KEY, or in HEADWATER_KEY\n")
        assert wrong[2].startswith("error: the server does not know this key")
        assert asked(*command, "--key", "password", auth=auth)[0] == 0
    assert "give a key that may `observe` headwater/metrics" in asked(*TOP, "--key", "blind", auth=auth)[2]
    assert asked("inspect", "chat/42", "--key", "blind", auth=auth)[0] == 0


def test_nobody_there() -> None:
    for command in (TOP, ("inspect", "chat/42")):
        said = run(*command, "--server", "http://127.0.0.1:1")
        assert said[0] == 1
        assert said[2].startswith("error: nothing answers at http://127.0.0.1:1; start a server with `headwater serve`")
