"""What do a busy producer and a reader that catches up with 64 MB cost everybody else, in waiting?

    .venv/bin/python bench/fairness.py [--rounds 2] [--seconds 5]

One server on one processor, the rest on the other. A third party publishes 50 messages a second to 20 readers of a
stream of its own: first alone; then while somebody reads a stream of 64 MB from its beginning, again and again, and
somebody else appends 100 messages at a time to another as fast as he is answered. From publishing to having it, in ms.
The processor is used up then, and each has his turn; what must not be is that one has it for long: ten times a second
the server looks how late its loop is, and tells it as `headwater_loop_lag_seconds` in its metrics.
"""

from __future__ import annotations

import argparse
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import catch_up
from rig.load import load
from rig.report import keep, machine
from rig.servers import Served, compiled, pinned, request
from rig.servers import headwater as served_headwater

PRODUCER = """
import socket, sys
body = b"[" + b",".join([b'"' + b"x" * 98 + b'"'] * 100) + b"]"
head = b"POST /v1/stream/busy HTTP/1.1\\r\\nhost: 127.0.0.1\\r\\ncontent-type: application/json\\r\\n"
asked = head + b"content-length: %d\\r\\n\\r\\n" % len(body) + body
with socket.create_connection(("127.0.0.1", int(sys.argv[1]))) as to:
    while True:
        to.sendall(asked)
        while b"\\r\\n\\r\\n" not in to.recv(65536):
            pass
"""


@contextmanager
def busy(served: Served) -> Iterator[None]:
    """Somebody catches up without an end, and somebody appends without a pause."""
    reader = [str(compiled("swallow")), "--port", str(served.port), "--path", "/v1/stream/b0"]
    again = f"while {' '.join(reader)}; do :; done"
    commands = [["sh", "-c", again], [sys.executable, "-c", PRODUCER, str(served.port)]]
    begun = [
        subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=pinned(1))
        for command in commands
    ]
    try:
        yield
    finally:
        for process in begun:
            process.terminate()
            process.wait()


Looks = dict[float, float]
"""How often the loop was found to be at most so late, by ms. The last, infinite, is all looks."""


def looks(port: int) -> Looks:
    """Since the server began."""
    told = request(port, "GET", "/metrics").decode()
    found = re.findall(r'^headwater_loop_lag_seconds_bucket{le="(.+)"} (.+)$', told, re.MULTILINE)
    return {float(seconds.replace("+Inf", "inf")) * 1000: float(count) for seconds, count in found}


def lateness(before: Looks, after: Looks) -> dict[str, float]:
    """Of the looks between two: what none was later than (the bound of a bucket), and how many were over 5 ms."""
    counts = {ms: after[ms] - before[ms] for ms in after}
    total = max(counts.values())
    most = min(ms for ms, count in counts.items() if count == total)
    return {"looks": total, "looks_over_5_ms": total - counts[5.0], "loop_late_ms": min(most, 10_000)}


def one_round(store: str, seconds: float) -> dict[str, dict[str, Any]]:
    with served_headwater(store, streams=1) as served:
        looks(served.port)  # the first time the server imports what answers it
        catch_up.fill(served, 100)
        for name in ("third", "busy"):
            request(served.port, "PUT", f"/v1/stream/{name}")
        third = served._replace(get="/v1/stream/third?format=sse", post="/v1/stream/third")
        began = looks(served.port)
        alone = load(third, 20, 50, seconds)
        then = looks(served.port)
        with busy(served):
            beside = load(third, 20, 50, seconds)
        return {
            "headwater, alone": {**alone._asdict(), **lateness(began, then)},
            "headwater, beside both": {**beside._asdict(), **lateness(then, looks(served.port))},
        }


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--seconds", type=float, default=5, help="each measurement lasts")
    given = arguments.parse_args()
    print(machine(), flush=True)
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for case in ("in memory", "on SQLite"):
            by_name = figures.setdefault(case, {})
            for number in range(given.rounds):
                store = "memory:" if case == "in memory" else f"sqlite:///{folder}/{number}.db"
                for name, one in one_round(store, given.seconds).items():
                    by_name.setdefault(name, []).append(one)
            show(case, by_name)
    keep("fairness", (__doc__ or "").split("\n", 1)[0], {"measured": figures})


def show(case: str, by_name: dict[str, list[dict[str, Any]]]) -> None:
    print(f"\n| {case} | p50 ms | p99 ms | longest ms | loop at most so late, ms |\n|---|---|---|---|---|")
    for name, rounds in by_name.items():
        row = [statistics.median(one[key] for one in rounds) for key in ("p50_ms", "p99_ms", "max_ms", "loop_late_ms")]
        print(f"| {name} | " + " | ".join(f"{value:.1f}" for value in row) + " |", flush=True)


if __name__ == "__main__":
    main()
