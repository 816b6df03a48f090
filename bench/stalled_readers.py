"""What do 10 readers, and 100, that never read cost the server, on a 20 MB stream?

    .venv/bin/python bench/stalled_readers.py [--message-bytes 65536] [--rounds 3] [--only NAME]...

Each round starts the reference server of Durable Streams (Node, in memory) and `headwater serve` (in memory, and on
SQLite) afresh, one after the other; appends the stream; measures the resident memory; opens the readers
(`offset=-1&live=sse` on sockets with a small buffer, never read); measures again after 5 s. Then one catch-up GET from
the start says how much a server puts into one answer. The tables show medians over the rounds. What the kernel buffers
for a connection is not the process's and not in them; `headwater serve` bounds that as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import httpx
from rig.report import keep

REPOSITORY = Path(__file__).parents[1]
JS = REPOSITORY / "tests" / "js"
STREAM_BYTES = 20_000_000
READERS = (10, 100)
MOST_EACH = 64 * 1024
"""Bytes of the process for each, which a reader of headwater is meant to stay below, by messages of up to as much."""
STALLED_SECONDS = 5.0
SMALL_BUFFER = 4096
TEXT = {"content-type": "text/plain"}
REFERENCE = "reference server (Node), in memory"


class Costs(NamedTuple):
    """Of one server in one round, all in bytes."""

    before: int
    after: int
    answer: int


@contextlib.contextmanager
def reference() -> Iterator[tuple[int, str]]:
    """The process id and the URL of the reference server."""
    node = shutil.which("node") or sys.exit("node is missing. To run this: sudo apt-get install nodejs npm")
    if not (JS / "node_modules").exists():
        sys.exit(f"the reference server is not installed. To run this: cd {JS} && npm ci")
    command = [node, str(JS / "reference-server.mjs")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            yield running.pid, running.stdout.readline().strip()
        finally:
            running.kill()


@contextlib.contextmanager
def headwater(store: str) -> Iterator[tuple[int, str]]:
    """The process id and the URL of `headwater serve`."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    program = str(Path(sys.executable).with_name("headwater"))
    command = [program, "serve", "--store", store, "--port", str(port), "--log-level", "warning"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as running:
        assert running.stdout is not None
        try:
            ready = running.stdout.readline()
            assert ready, "the server did not start: see above"
            yield running.pid, f"http://127.0.0.1:{port}"
        finally:
            running.kill()


def resident(pid: int) -> int:
    """Bytes of memory that the process holds now."""
    said = subprocess.run(["ps", "-o", "rss=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(said.stdout) * 1024


def append_all(client: httpx.Client, path: str, message_bytes: int) -> None:
    client.put(path, headers=TEXT).raise_for_status()
    left = STREAM_BYTES
    while left:
        size = min(left, message_bytes)
        client.post(path, content=b"x" * size, headers=TEXT).raise_for_status()
        left -= size


def stalled_reader(port: int, path: str) -> socket.socket:
    """A connection that asks for all of the stream, live, and reads nothing."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER)
    reader.connect(("127.0.0.1", port))
    reader.sendall(f"GET {path}?offset=-1&live=sse HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n\r\n".encode())
    return reader


def measure(pid: int, url: str, message_bytes: int, count: int) -> Costs:
    path = "/v1/stream/bench"
    with httpx.Client(base_url=url, timeout=60) as client, contextlib.ExitStack() as readers:
        append_all(client, path, message_bytes)
        time.sleep(1.0)  # what the appends left behind may go first
        before = resident(pid)
        for _ in range(count):
            readers.enter_context(stalled_reader(httpx.URL(url).port or 80, path))
        time.sleep(STALLED_SECONDS)
        after = resident(pid)
        readers.close()
        return Costs(before, after, len(client.get(path, params={"offset": "-1"}).raise_for_status().content))


def one_round(message_bytes: int, count: int, only: Sequence[str] | None) -> dict[str, Costs]:
    with tempfile.TemporaryDirectory() as folder:
        servers = {
            REFERENCE: reference,
            "headwater, memory:": partial(headwater, "memory:"),
            "headwater, sqlite:": partial(headwater, f"sqlite:///{folder}/streams.db"),
        }
        costs = {}
        for name in only or servers:
            with servers[name]() as (pid, url):
                costs[name] = measure(pid, url, message_bytes, count)
        return costs


def machine() -> str:
    """What the figures were taken on."""
    model = platform.machine()
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True).stdout.strip()
    programs = f"Python {platform.python_version()}, Node {node}, headwater {version('headwater')}"
    return f"{model}, {os.cpu_count()} cores, {platform.system()} {platform.release()}, {programs}"


def show(rounds: Sequence[dict[str, Costs]], count: int) -> None:
    growth = {name: [one[name].after - one[name].before for one in rounds] for name in rounds[0]}
    theirs = statistics.median(growth[REFERENCE]) if REFERENCE in growth else None
    print(
        "| server | MB before | MB after | growth MB (each round) | KB a reader | of reference's | MB in one answer |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, grown in growth.items():
        before, after, answer = (statistics.median(one[name][field] for one in rounds) / 1e6 for field in range(3))
        each = ", ".join(f"{one / 1e6:.1f}" for one in grown)
        middle = statistics.median(grown)
        ratio = "" if theirs is None else f"{middle / theirs:.3f}"
        kept = f"{middle / count / 1024:.0f}{' (more than meant)' if _is_too_much(name, middle / count) else ''}"
        print(f"| {name} | {before:.0f} | {after:.0f} | {each} | {kept} | {ratio} | {answer:.2f} |")


def _is_too_much(name: str, bytes_each: float) -> bool:
    return name != REFERENCE and bytes_each > MOST_EACH


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--message-bytes", type=int, default=64 * 1024, help="of each append")
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--only", action="append", metavar="NAME", help="of the servers in the table")
    given = arguments.parse_args()
    print(machine())
    figures = {}
    for count in READERS:
        print(
            f"\n{count} readers that never read, {STREAM_BYTES / 1e6:.0f} MB stream by {given.message_bytes:,} bytes\n"
        )
        rounds = [one_round(given.message_bytes, count, given.only) for _ in range(given.rounds)]
        show(rounds, count)
        figures[count] = [{name: costs._asdict() for name, costs in one.items()} for one in rounds]
    question = (__doc__ or "").partition("\n")[0]
    keep("stalled_readers", question, {"message_bytes": given.message_bytes, "readers": figures})


if __name__ == "__main__":
    main()
