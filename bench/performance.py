"""Writes docs/performance.md and its charts from the results of the benchmarks, bench/results/*.json.

    .venv/bin/python bench/performance.py [--into docs]

Here stand the questions, in the order of the page, and what ours is held to. One without results is left out.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

from rig.page import Bar, Question, Result, View, drawings, page, per, ratio
from rig.report import REPOSITORY, RESULTS

DOCS = REPOSITORY / "docs"

HEAD = """\
# Performance

<!-- Written by bench/performance.py from bench/results. Run `make bench`, or edit what stands there. -->

What delivery costs, beside others who do the same. Every figure is the median of its rounds, where "least to most" is
one value: of a single round; the servers of a table
ran in turn within the same minutes, each on one processor and under the same load, which comes from the other. Ratios
mean more than figures: those are of one machine, which is named at the end. In charts the thin line goes from the least
round to the most, and the dashed one is what ours is held to. `make bench` measures all of it again.

*headwater* is `headwater serve`, which writes to sockets itself; *headwater, portable* the same application on any ASGI
server. The *C floor* is a hundred lines of epoll that write each event to each reader and can do nothing else.
"""

US_PER_EVENT = ratio("cpu_seconds", "delivered", 1e6)
LATENCY = {"p50 ms": per("p50_ms"), "p99 ms": per("p99_ms")}


def us_per_token(one: Mapping[str, float]) -> float:
    return one["cpu_seconds"] / one["delivered"] * 1e6 - one["making_us"]


def kb_per_reader(one: Mapping[str, float]) -> float:
    return (one["anonymous_after"] - one["anonymous_before"]) / one["readers"] / 1024


IDLE_BARS = (Bar("At most 8 KB", most=8),)
BEFORE = {"MB before": per("anonymous_before", 1e-6), "MB after": per("anonymous_after", 1e-6)}
STALLED_BARS = (
    Bar("At most 64 KB, in memory", most=64, ours="headwater, memory"),
    Bar("At most 64 KB, on SQLite", most=64, ours="headwater, SQLite"),
)
STORES = (("In memory", "headwater, memory"), ("On SQLite", "headwater, SQLite"))
DISK, MEMORY = "reference (Node), disk", "reference (Node), memory"


def catching_up(message_bytes: int, way: str) -> View:
    case = f"messages of {message_bytes:,} bytes, {way}"
    value = per("mb_per_cpu_second")
    more = {"MB a second": per("mb_per_second"), "MB grown": per("grown_mb")}
    bars = [Bar(f"{store}, at least half of the reference's", MEMORY, least=0.5, ours=ours) for store, ours in STORES]
    if way == "format=sse":
        return View(case, case, "MB per second of processor", value, less=False, columns=more)
    return View(case, case, "MB per second of processor", value, MEMORY, less=False, columns=more, bars=bars)


def appends(case: str, *bars: Bar) -> View:
    title = f"{case}, appends a second"
    value = ratio("answered", "seconds")
    more = {"us of processor": ratio("cpu_seconds", "answered", 1e6), **LATENCY}
    return View(case, title, "appends a second", value, MEMORY, less=False, columns=more, bars=bars)


BEFORE_IT = "messages before"
FLAT = Bar("The dearest at most 1.5 times the cheapest", most=1.5)


def over(case: str, unit: str, field: str, of: str, *bars: Bar) -> View:
    title = f"over {case}" if bars else case
    return View(case, title, unit, per(field), over=per("number"), of=of, bars=bars)


def fairness(case: str) -> View:
    waited = {**LATENCY, "longest ms": per("max_ms"), "% of looks over 5 ms": ratio("looks_over_5_ms", "looks", 100)}
    bars = (Bar("No turn of the loop over 5 ms", most=5, ours="headwater, beside both"),)
    return View(case, case, "ms that the loop was late at most", per("loop_late_ms"), columns=waited, bars=bars)


APPEND_BARS = (
    Bar("On disk, at least 10 times the reference's", DISK, least=10, ours="headwater, SQLite"),
    Bar("In memory, at least the reference's", MEMORY, least=1, ours="headwater, memory"),
)

QUESTIONS = [
    Question(
        "fan_out",
        "Fan-out",
        "What does one event cost the server for each of 1,000 readers of one stream, and how fast can it go? A "
        "message of 64 bytes, 20 times a second; then the next as soon as the POST of the last is answered. The "
        "processor time of the server by events that readers got.",
        [
            View(
                "20 a second",
                "20 events a second",
                "us of processor per delivered event",
                US_PER_EVENT,
                "C floor",
                columns=LATENCY,
                bars=(
                    Bar("At most 1.5 times the floor", "C floor", most=1.5),
                    Bar("Below nchan", "nchan", most=1),
                    Bar("At least 3 times cheaper than sse-starlette", "sse-starlette", most=1 / 3),
                    Bar("At least 3 times cheaper than the Node reference", "reference (Node)", most=1 / 3),
                    Bar("At least 12 times cheaper than FastAPI SSE", "FastAPI SSE", most=1 / 12),
                ),
            ),
            View(
                "as fast as it goes",
                "as fast as it goes",
                "events delivered a second",
                ratio("delivered", "seconds"),
                "C floor",
                less=False,
                columns={"us of processor": US_PER_EVENT, **LATENCY},
                bars=(Bar("More than any peer, the floor included", "*", least=1),),
            ),
        ],
    ),
    Question(
        "agents",
        "One reader for each answer",
        "What does a token cost the server that makes 200 answers at once, 50 tokens a second each, with one reader "
        "for each? What it costs to make them is taken off. For the peers a generator is the response; for headwater "
        "a stream in memory outlives both, can be resumed and may have more readers.",
        [
            View(
                "200 answers",
                "200 answers at once",
                "us of processor per token",
                us_per_token,
                "StreamingResponse",
                columns=LATENCY,
                bars=(
                    Bar("Cheaper than StreamingResponse", "StreamingResponse", most=1),
                    Bar("At least 3 times cheaper than FastAPI SSE", "FastAPI SSE", most=1 / 3),
                ),
            )
        ],
    ),
    Question(
        "idle_memory",
        "Readers that wait",
        "What does a reader that only waits cost in memory? The readers come, all get one message, and nothing more "
        "happens; the memory that is the processes' own (anonymous), less what it was before they came.",
        [
            View(case, case, "KB per reader", kb_per_reader, "nchan", columns=BEFORE, bars=IDLE_BARS)
            for case in ("1,000 readers", "10,000 readers")
        ],
    ),
    Question(
        "stalled_readers",
        "Readers that never read",
        "What does a reader that stopped reading cost? They ask for all of a stream of 20 MB, live, and read nothing; "
        "after five seconds, what the process has grown by.",
        [
            View(
                case,
                case,
                "KB per reader",
                ratio("grown", "readers", 1 / 1024),
                MEMORY if case.startswith("10 ") else "",
                columns={"MB in one answer to a GET": per("answer", 1e-6)},
                bars=STALLED_BARS if case == "100 readers" else (),
            )
            for case in ("10 readers", "100 readers")
        ],
    ),
    Question(
        "appends",
        "Appends",
        "How many appends does one core take? Each writer POSTs a message of 64 bytes as soon as its last one was "
        "answered. On disk an answer says that the message survives loss of power.",
        [
            appends("1 writer"),
            appends("64 writers, one stream", *APPEND_BARS),
            appends("64 writers, a stream each", *APPEND_BARS),
            View(
                "without HTTP",
                "in the process itself",
                "messages a second",
                per("messages_per_second"),
                less=False,
            ),
        ],
    ),
    Question(
        "catch_up",
        "Catching up",
        "How fast does a reader catch up with a stream of 64 MB, and what does the server spend on it? By pages, a GET "
        "from where the last one ended, and by one response of server-sent events from the beginning.",
        [catching_up(size, way) for size in (100, 65_536) for way in ("pages", "live=sse", "format=sse")],
    ),
    Question(
        "fairness",
        "Beside a busy neighbour",
        "What do others wait for, while one reader catches up with 64 MB again and again and one producer appends 100 "
        "messages at a time as fast as it is answered? 50 messages a second to 20 readers of another stream, from "
        "publishing to having it. The processor is used up then, and each has a turn; none should have a long one. Ten "
        "times a second the server looks how late its loop is.",
        [fairness("in memory"), fairness("on SQLite")],
    ),
    Question(
        "scale",
        "Scale",
        "Does the cost of a delivered event depend on how many readers and streams there are, and on how long their "
        "history is? What the appends take is not in it. And what depends on nothing else: the memory of a reader and "
        "of a stream, an append, a page from the middle of a history and one of its end, opening a file, and a process "
        "that owns streams and has nothing to do.",
        [
            over("readers", "us of processor per delivered event", "us_per_event", "readers", FLAT),
            over("streams", "us of processor per delivered event", "us_per_event", "streams", FLAT),
            over("history", "us of processor per delivered event", "us_per_event", BEFORE_IT, FLAT),
            over("memory of a reader", "KB per reader", "kb_per_reader", "readers"),
            over("memory of a stream", "KB per stream", "kb_per_stream", "streams"),
            over("appends", "us of processor per append", "us", BEFORE_IT),
            over("pages of the middle", "us of processor per page", "us", BEFORE_IT),
            over("pages of the end", "us of processor per page", "us", BEFORE_IT),
            over("opening a file", "ms of processor", "cpu_ms", BEFORE_IT),
            over("idle", "seconds of processor per minute", "cpu_s", "streams"),
        ],
    ),
    Question(
        "reconnect_storm",
        "A storm of readers who come back",
        "5,000 readers are cut at once, miss 10 messages, and come back in the same moment, each saying how far it had "
        "come. What keeps nothing to resume is only awaited until it answers.",
        [
            View(
                "5,000 readers",
                "until the last one has all it missed",
                "ms",
                per("complete_max_ms"),
                "nchan",
                columns={"p50 ms": per("complete_p50_ms"), "p99 ms": per("complete_p99_ms"), "failed": per("failed")},
            ),
            View(
                "5,000 readers",
                "what it costs",
                "us of processor per reader",
                ratio("cpu_seconds", "readers", 1e6),
                "nchan",
                columns={"messages never got, of 50,000": per("never")},
            ),
        ],
    ),
    Question(
        "rollup",
        "Joining late",
        "What does rolling up the past save a reader that joins a run of 10,000 tokens when it is over? In memory, "
        "over no network; a client in Python decodes the events and adds the deltas up.",
        [
            View(
                protocol,
                protocol,
                "KB of the answer",
                per("bytes", 1e-3),
                "whole",
                columns={"server ms": per("server", 1e3), "client ms": per("client", 1e3)},
            )
            for protocol in ("AG-UI", "AI SDK", "OpenAI Responses")
        ],
    ),
]


def results() -> dict[str, Result]:
    return {at.stem: json.loads(at.read_text()) for at in sorted(RESULTS.glob("*.json"))}


def text() -> str:
    """The page for the results that there are."""
    return page(HEAD, QUESTIONS, results())


def main() -> None:
    from rig.charts import draw

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, default=DOCS, help="the folder of the page; its charts go to charts/")
    into: Path = parser.parse_args().into
    charts = into / "charts"
    for old in charts.glob("*.svg"):
        old.unlink()
    wanted = list(drawings(QUESTIONS, results()))
    for drawing in wanted:
        draw(charts, drawing)
    (into / "performance.md").write_text(text())
    print(f"{into / 'performance.md'}, {len(wanted)} charts")


if __name__ == "__main__":
    main()
