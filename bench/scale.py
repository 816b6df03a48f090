"""Does what one event costs depend on how many readers, streams or messages there are?

    .venv/bin/python bench/scale.py [--rounds 3] [--seconds 4] [--only CURVE]...

Ours only; the server on one processor, the load on the other. Five curves, of which each should be flat:

readers   processor time per delivered event, less what the append itself takes; and memory per reader
streams   the same for 1,000 readers, spread over up to 100 of the streams that are open; and memory per stream
history   the same for 1,000 readers that came at the tail; and of one append, one page from the middle and one of
          the end, in memory and in an SQLite file; and how long opening that file takes
idle      processor time per minute of a process that owns open streams and has nothing to do
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rig.load import cpu_seconds, load, resident_bytes
from rig.report import keep, machine
from rig.servers import PROGRAMS, RIG, Served, free_port, headwater, pinned, request, running

READERS = (10, 100, 1000, 10_000)
STREAMS = (1, 100, 10_000, 50_000)
HISTORY = (0, 10_000, 1_000_000)
DELIVERIES = 10_000
"""A second: messages are published as often as makes so many."""
AT_ONCE = 200
MANY_ENOUGH = 1000
"""Readers or streams, to tell what each of them takes in memory."""
IDLE_SECONDS = 20.0
NOW = "/v1/stream/b%d?format=sse&offset=now"

Figures = dict[str, float]


def said(port: int, requests: list[bytes]) -> None:
    """Have requests answered over one connection, many at a time. Raises RuntimeError where one is refused."""
    with socket.create_connection(("127.0.0.1", port)) as to:
        for first in range(0, len(requests), AT_ONCE):
            some = requests[first : first + AT_ONCE]
            to.sendall(b"".join(some))
            answered, edge = 0, b""
            while answered < len(some):
                part = to.recv(1 << 20)
                if not part or b"HTTP/1.1 4" in part:
                    raise RuntimeError(f"a request was refused: {part[:200]!r}")
                answered += (edge + part).count(b"HTTP/1.1 2")
                edge = part[-9:]  # shorter than what is counted


def ask(method: str, path: str, body: bytes = b"") -> bytes:
    fields = f"host: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return f"{method} {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode() + body


def per_event(served: Served, readers: int, seconds: float, *, active: int = 1) -> Figures:
    """Processor time in us per delivered event, less the appends', which are measured on a stream that nobody reads."""
    rate = min(200.0, DELIVERIES / readers * active)
    # At the same rate: a server that is woken rarely takes longer for each request.
    alone = load(served._replace(post="/v1/stream/unread"), 1, rate, seconds)
    append_us = alone.cpu_seconds / (rate * seconds) * 1e6
    served = served._replace(get=NOW)
    measured = load(served, readers, rate, seconds, streams=active)
    posts = measured.delivered / (readers / active)
    net = (measured.cpu_seconds * 1e6 - posts * append_us) / measured.delivered
    return {
        "us_per_event": net,
        "us_per_event_with_appends": measured.cpu_seconds / measured.delivered * 1e6,
        "us_per_append": append_us,
        "resident_mb": measured.resident_bytes / 1e6,
        "p99_ms": measured.p99_ms,
    }


def of_readers(count: int, seconds: float) -> Figures:
    with headwater(streams=1) as served:
        request(served.port, "PUT", "/v1/stream/unread")
        before = resident_bytes(served.pids)
        figures = per_event(served, count, seconds)
        if count >= MANY_ENOUGH:
            figures["kb_per_reader"] = (figures["resident_mb"] * 1e6 - before) / count / 1e3
        return figures


def of_streams(count: int, seconds: float) -> Figures:
    with headwater(streams=1) as served:
        request(served.port, "PUT", "/v1/stream/unread")
        before = resident_bytes(served.pids)
        said(served.port, [ask("PUT", f"/v1/stream/b{number}") for number in range(1, count)])
        kb = (resident_bytes(served.pids) - before) / count / 1e3
        figures = per_event(served, 1000, seconds, active=min(count, 100))
        return {**figures, "kb_per_stream": kb} if count >= MANY_ENOUGH else figures


@contextmanager
def with_history(store: str, count: int) -> Iterator[tuple[Served, str]]:
    """A server whose stream has a past, and the offset of its first page."""
    with headwater(store, streams=1) as served:
        request(served.port, "PUT", "/v1/stream/unread")
        message = b'"' + b"x" * 98 + b'"'
        body = b"[" + b",".join([message] * min(count, 2000)) + b"]"
        said(served.port, [ask("POST", "/v1/stream/b0", body)] * (count // 2000))
        head = request(served.port, "HEAD", "/v1/stream/b0").lower()
        yield served, head.partition(b"stream-next-offset: ")[2].split(b"\r")[0].decode()


def cost(served: Served, one: bytes, times: int) -> float:
    """Processor time of one request, in us."""
    before = cpu_seconds(served.pids)
    said(served.port, [one] * times)
    return (cpu_seconds(served.pids) - before) / times * 1e6


def of_history(count: int, seconds: float) -> Figures:
    figures: Figures = {}
    with with_history("memory:", count) as (served, tail):
        figures |= per_event(served, 1000, seconds)
        figures |= _requests(served, tail, count, "memory")
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/a.db?sync=normal"
        with with_history(store, count) as (served, tail):
            figures |= _requests(served, tail, count, "sqlite")
        figures["sqlite_ms_to_open"] = opening(store)
    return figures


def _requests(served: Served, tail: str, count: int, store: str) -> Figures:
    generation, position = tail.split("_")[0], int(tail.split("_")[1])
    figures = {f"{store}_us_per_append": cost(served, ask("POST", "/v1/stream/b0", b"1"), 2000)}
    if count:
        for name, where in (("middle", count // 2), ("end", position - 64)):
            # That of the middle has 4,096 messages, that of the end what was just appended besides.
            page = ask("GET", f"/v1/stream/b0?offset={generation}_{where:016d}")
            figures[f"{store}_us_per_page_at_the_{name}"] = cost(served, page, 100)
    return figures


def opening(store: str) -> float:
    """From starting a server on this file to its first answer, in ms of its processor time."""
    port = free_port()
    with running([PROGRAMS / "headwater", "serve", "--store", store, "--port", port], port) as pid:
        request(port, "HEAD", "/v1/stream/b0")
        return cpu_seconds([pid]) * 1e3


def of_idle(count: int, seconds: float) -> Figures:
    with tempfile.TemporaryDirectory() as folder:
        figures: Figures = {}
        for name, store in (("memory", "memory:"), ("sqlite", f"sqlite:///{folder}/a.db?sync=normal")):
            command = [sys.executable, str(RIG / "apps" / "idle.py"), store, str(count), str(IDLE_SECONDS)]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=pinned(0)).stdout
            figures |= {f"{name}_{figure}": value for figure, value in json.loads(told).items()}
        return figures


CURVES: dict[str, tuple[tuple[int, ...], Callable[[int, float], Figures]]] = {
    "readers": (READERS, of_readers),
    "streams": (STREAMS, of_streams),
    "history": (HISTORY, of_history),
    "idle": ((0, *STREAMS[2:]), of_idle),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=4, help="each measurement lasts")
    arguments.add_argument("--only", action="append", choices=CURVES, help="these alone")
    given = arguments.parse_args()
    print(machine(), flush=True)
    curves: dict[str, list[dict[str, Any]]] = {}
    for name in given.only or CURVES:
        counts, measure = CURVES[name]
        rounds: dict[int, list[Figures]] = {count: [] for count in counts}
        for _ in range(given.rounds):
            for count in counts:
                rounds[count].append(measure(count, given.seconds))
        curves[name] = [{name: count, "rounds": each} for count, each in rounds.items()]
        show(name, rounds)
    keep("scale", (__doc__ or "").split("\n", 1)[0], {"curves": curves})


def show(name: str, rounds: dict[int, list[Figures]]) -> None:
    """Medians, a row a figure and a column a count."""
    print(f"\n| {name} | " + " | ".join(f"{count:,}" for count in rounds) + " |\n" + "|---" * (len(rounds) + 1) + "|")
    for figure in dict.fromkeys(figure for each in rounds.values() for one in each for figure in one):
        row = [[one[figure] for one in each if figure in one] for each in rounds.values()]
        print(f"| {figure} | " + " | ".join(f"{statistics.median(cell):,.2f}" if cell else "" for cell in row) + " |")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
