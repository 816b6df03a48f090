"""Does what one event costs depend on how many readers, streams or messages there are?

    .venv/bin/python bench/scale.py [--rounds 2] [--seconds 3] [--only CURVE]... [--at-most N]

Ours only; the server on one processor, the load on the other. What is measured over each of these should be flat:

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
IDLE_SECONDS = 10.0
NOW = "/v1/stream/b%d?format=sse&offset=now"

Figures = dict[str, float]
Found = dict[tuple[str, str], Figures]
"""Of one number: by case and server."""
OURS, MEMORY, SQLITE = "headwater", "headwater, memory", "headwater, SQLite"


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
    served = served._replace(get=NOW)
    alone = load(served._replace(post="/v1/stream/unread"), 1, rate, seconds)
    append_us = alone.cpu_seconds / (rate * seconds) * 1e6
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


def of_readers(count: int, seconds: float) -> Found:
    with headwater(streams=1) as served:
        request(served.port, "PUT", "/v1/stream/unread")
        before = resident_bytes(served.pids)
        figures = per_event(served, count, seconds)
        found = {("readers", OURS): figures}
        if count >= MANY_ENOUGH:
            kb = (figures["resident_mb"] * 1e6 - before) / count / 1e3
            found["memory of a reader", OURS] = {"kb_per_reader": kb}
        return found


def of_streams(count: int, seconds: float) -> Found:
    with headwater(streams=1) as served:
        request(served.port, "PUT", "/v1/stream/unread")
        before = resident_bytes(served.pids)
        said(served.port, [ask("PUT", f"/v1/stream/b{number}") for number in range(1, count)])
        kb = (resident_bytes(served.pids) - before) / count / 1e3
        found = {("streams", OURS): per_event(served, 1000, seconds, active=min(count, 100))}
        if count >= MANY_ENOUGH:
            found["memory of a stream", OURS] = {"kb_per_stream": kb}
        return found


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


def of_history(count: int, seconds: float) -> Found:
    found: Found = {}
    with with_history("memory:", count) as (served, tail):
        found["history", OURS] = per_event(served, 1000, seconds)
        found |= _requests(served, tail, count, MEMORY)
    with tempfile.TemporaryDirectory() as folder:
        store = f"sqlite:///{folder}/a.db?sync=normal"
        with with_history(store, count) as (served, tail):
            found |= _requests(served, tail, count, SQLITE)
        found["opening a file", SQLITE] = {"cpu_ms": opening(store)}
    return found


def _requests(served: Served, tail: str, count: int, name: str) -> Found:
    generation, position = tail.split("_")[0], int(tail.split("_")[1])
    found: Found = {("appends", name): {"us": cost(served, ask("POST", "/v1/stream/b0", b"1"), 2000)}}
    # That of the middle has 4,096 messages, that of the end what was just appended besides.
    places = {"pages of the middle": count // 2, "pages of the end": position - 64} if count else {}
    for case, where in places.items():
        page = ask("GET", f"/v1/stream/b0?offset={generation}_{where:016d}")
        found[case, name] = {"us": cost(served, page, 100)}
    return found


def opening(store: str) -> float:
    """From starting a server on this file to its first answer, in ms of its processor time."""
    port = free_port()
    with running([PROGRAMS / "headwater", "serve", "--store", store, "--port", port], port) as pid:
        request(port, "HEAD", "/v1/stream/b0")
        return cpu_seconds([pid]) * 1e3


def of_idle(count: int, seconds: float) -> Found:
    found: Found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, store in ((MEMORY, "memory:"), (SQLITE, f"sqlite:///{folder}/a.db?sync=normal")):
            command = [sys.executable, str(RIG / "apps" / "idle.py"), store, str(count), str(IDLE_SECONDS)]
            told = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=pinned(0)).stdout
            found["idle", name] = json.loads(told)
    return found


CURVES: dict[str, tuple[tuple[int, ...], Callable[[int, float], Found]]] = {
    "readers": (READERS, of_readers),
    "streams": (STREAMS, of_streams),
    "history": (HISTORY, of_history),
    "idle": ((0, *STREAMS[2:]), of_idle),
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--seconds", type=float, default=3, help="each measurement lasts")
    arguments.add_argument("--only", action="append", choices=CURVES, help="these alone")
    arguments.add_argument("--at-most", type=int, default=max(HISTORY), help="of anything")
    given = arguments.parse_args()
    print(machine(), flush=True)
    taken: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for curve in given.only or CURVES:
        counts, measure = CURVES[curve]
        for _ in range(given.rounds):
            for count in (one for one in counts if one <= given.at_most):
                for (case, name), figures in measure(count, given.seconds).items():
                    taken.setdefault(case, {}).setdefault(name, []).append({"number": count, **figures})
                    told = ", ".join(f"{figure} {value:,.2f}" for figure, value in figures.items())
                    print(f"{case}, {name}, {count:,}: {told}", flush=True)
    keep("scale", (__doc__ or "").split("\n", 1)[0], {"measured": taken})


if __name__ == "__main__":
    main()
