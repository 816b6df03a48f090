"""How fast does a reader catch up with a stream of 64 MB, and what does the server spend on it?

    .venv/bin/python bench/catch_up.py [--rounds 2] [--times 2] [--only NAME]...

Each round starts every server afresh, fills a stream and has one reader read all of it, `times` times: by pages (a GET
from where the last one ended), and live (one response of server-sent events from the beginning). Messages are JSON
strings of 100 bytes, then of 64 KiB. Server on one processor, reader on the other. MB of messages per second of the
server's processor time; and the server's memory while it is read, beside that before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from rig import servers
from rig.load import cpu_seconds, resident_bytes
from rig.report import keep, machine, table
from rig.servers import Served, compiled, pinned, request

STREAM_BYTES = 64_000_000
ARRAY_BYTES = 400_000
MESSAGE_BYTES = (100, 65_536)
WAYS = {"pages": "/v1/stream/b0", "live=sse": "/v1/stream/b0?live=sse", "format=sse": "/v1/stream/b0?format=sse"}


class Caught(NamedTuple):
    """Of one server, one way of reading."""

    mb_per_cpu_second: float
    mb_per_second: float
    grown_mb: float
    """Resident memory after the first reading, less that before it."""


@contextmanager
def on_disk() -> Iterator[Served]:
    with tempfile.TemporaryDirectory() as folder, servers.headwater(f"sqlite:///{folder}/a.db") as served:
        yield served


SERVERS: dict[str, servers.Server] = {
    "reference (Node), memory": servers.node_reference,
    "headwater, memory": servers.headwater,
    "headwater, SQLite": on_disk,
}


def fill(served: Served, message_bytes: int) -> int:
    """Bytes of the messages that the stream holds then."""
    message = b'"' + b"x" * (message_bytes - 2) + b'"'
    many = max(1, ARRAY_BYTES // message_bytes)
    body = b"[" + b",".join([message] * many) + b"]"
    appends = STREAM_BYTES // (many * message_bytes)
    for _ in range(appends):
        if b" 20" not in request(served.port, "POST", "/v1/stream/b0", body)[:14]:
            raise RuntimeError("an append was refused")
    return appends * many * message_bytes


def read(served: Served, path: str, size: int, times: int) -> Caught:
    command = [str(compiled("swallow")), "--port", str(served.port), "--path", path]
    if "?" in path:
        command += ["--live", str(size)]
    before, grown, seconds, cpu = resident_bytes(served.pids), 0, 0.0, -cpu_seconds(served.pids)
    for _ in range(times):
        said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, preexec_fn=pinned(1)).stdout
        seconds += json.loads(said)["seconds"]
        grown = grown or resident_bytes(served.pids) - before
    cpu += cpu_seconds(served.pids)
    megabytes = size * times / 1e6
    return Caught(megabytes / cpu, megabytes / seconds, grown / 1e6)


def one_round(server: servers.Server, message_bytes: int, times: int, *, ours: bool) -> dict[str, Caught]:
    with server() as served:
        size = fill(served, message_bytes)
        return {way: read(served, path, size, times) for way, path in WAYS.items() if ours or way != "format=sse"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=2)
    arguments.add_argument("--times", type=int, default=2, help="the stream is read in each round, each way")
    arguments.add_argument("--only", action="append", choices=SERVERS, help="these alone")
    given = arguments.parse_args()
    print(machine(), flush=True)
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for message_bytes in MESSAGE_BYTES:
        rounds: dict[str, list[dict[str, Caught]]] = {}
        for _ in range(given.rounds):
            for name in given.only or SERVERS:
                ours = name.startswith("headwater")
                rounds.setdefault(name, []).append(one_round(SERVERS[name], message_bytes, given.times, ours=ours))
        for way in WAYS:
            rows = {name: [one[way] for one in all_] for name, all_ in rounds.items() if way in all_[0]}
            if not rows:
                continue
            cpu = {name: [one.mb_per_cpu_second for one in each] for name, each in rows.items()}
            print(f"\nmessages of {message_bytes:,} bytes, {way}:\n")
            print(table(cpu, "MB per second of processor", next(iter(cpu))))
            for name, each in rows.items():
                grown = statistics.median(one.grown_mb for one in each)
                wall = statistics.median(one.mb_per_second for one in each)
                print(f"{name}: {wall:,.0f} MB/s; {grown:.1f} MB more memory after the first reading", flush=True)
                case = f"messages of {message_bytes:,} bytes, {way}"
                figures.setdefault(case, {})[name] = [one._asdict() for one in each]
    keep("catch_up", (__doc__ or "").split("\n", 1)[0], {"stream_bytes": STREAM_BYTES, "measured": figures})


if __name__ == "__main__":
    main()
