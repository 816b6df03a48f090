"""How many appends a second does one core of server take, from 1 writer and from 64, in memory and on disk?

    .venv/bin/python bench/appends.py [--rounds 2] [--seconds 2] [--only NAME]... [--not-inside]

Each writer POSTs a message of 64 bytes as soon as its last one was answered, to one stream, or to a stream each. Server
on one processor (all of its threads), load generator on the other. Two figures of each: appends answered a second, and
processor time of the server per append, in us. Durable means that an answer says the message survives loss of power
(SQLite with synchronous=FULL, the reference with its file store). Then the same without HTTP: `Streams.append` in one
process, one by one, by batches of 100, and from 64 tasks.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvloop
from rig import servers
from rig.load import Appended, appending
from rig.report import keep, machine, table

from headwater import Streams

STREAMS = 64
PATTERNS = {"1 writer": (1, 1), "64 writers, one stream": (64, 1), "64 writers, a stream each": (64, STREAMS)}
"""How many writers, to how many streams."""

MESSAGE = b'"' + b"x" * 62 + b'"'
KINDS = ("one by one", "batches of 100", "64 tasks")


@contextmanager
def on_files() -> Iterator[servers.Served]:
    with tempfile.TemporaryDirectory() as folder, servers.node_reference(STREAMS, folder) as served:
        yield served


SERVERS: dict[str, servers.Server] = {
    "headwater, memory": partial(servers.headwater, "memory:", STREAMS),
    "reference (Node), memory": partial(servers.node_reference, STREAMS),
    "bare ASGI": partial(servers.python_app, "bare_app:app"),
    "headwater, SQLite": partial(servers.headwater_on_disk, STREAMS),
    "reference (Node), disk": on_files,
}


async def inside(url: str, kind: str, seconds: float) -> float:
    """Messages a second."""
    async with Streams(url) as streams:
        await streams.create("s", content_type="application/json")
        until, count = time.perf_counter() + seconds, 0

        async def append(*messages: bytes) -> None:
            nonlocal count
            while time.perf_counter() < until:
                await streams.append("s", *messages)
                count += len(messages)

        begun = time.perf_counter()
        batch = [MESSAGE] * (100 if kind == "batches of 100" else 1)
        await asyncio.gather(*(append(*batch) for _ in range(64 if kind == "64 tasks" else 1)))
        return count / (time.perf_counter() - begun)


def all_inside(rounds: int, seconds: float) -> dict[str, list[float]]:
    servers.pinned(0)()
    taken: dict[str, list[float]] = {}
    for _ in range(rounds):
        for store in ("memory", "SQLite"):
            for kind in KINDS:
                with (
                    tempfile.TemporaryDirectory() as folder,
                    asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
                ):
                    url = "memory:" if store == "memory" else f"sqlite:///{Path(folder) / 'appends.db'}"
                    rate = runner.run(inside(url, kind, seconds))
                taken.setdefault(f"{store}, {kind}", []).append(rate)
    return taken


def over_http(rounds: int, seconds: float, names: list[str]) -> dict[str, dict[str, list[Appended]]]:
    taken: dict[str, dict[str, list[Appended]]] = {pattern: {} for pattern in PATTERNS}
    for _ in range(rounds):
        for name in names:
            for pattern, (writers, streams) in PATTERNS.items():
                try:
                    with SERVERS[name]() as served:
                        one = appending(served, writers, streams, seconds)
                except servers.Missing as missing:
                    print(f"{name} is left out: {missing}")
                    break
                taken[pattern].setdefault(name, []).append(one)
                print(
                    f"{name}, {pattern}: {one.appends_per_second:,.0f}/s, {one.us_per_append:.1f} us, "
                    f"p50 {one.p50_ms} ms, p99 {one.p99_ms} ms",
                    flush=True,
                )
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--only", action="append", choices=SERVERS)
    parser.add_argument("--not-inside", action="store_true", help="leave out what needs no HTTP")
    asked = parser.parse_args()
    taken = over_http(asked.rounds, asked.seconds, asked.only or list(SERVERS))
    alone = {} if asked.not_inside else all_inside(asked.rounds, asked.seconds / 2)
    print(f"\n{machine()}")
    for pattern, by_name in taken.items():
        against = next((name for name in by_name if name.startswith("reference")), next(iter(by_name)))
        print(f"\n{pattern}\n")
        rates = {name: [one.appends_per_second for one in rounds] for name, rounds in by_name.items()}
        print(table(rates, "appends/s", against))
        print()
        costs = {name: [one.us_per_append for one in rounds] for name, rounds in by_name.items()}
        print(table(costs, "us/append", against))
    if alone:
        print("\nwithout HTTP\n")
        print(table(alone, "messages/s", next(iter(alone))))
    figures: dict[str, dict[str, list[dict[str, Any]]]] = {
        pattern: {name: [one._asdict() for one in rounds] for name, rounds in by_name.items()}
        for pattern, by_name in taken.items()
    }
    if alone:
        each = {name: [{"messages_per_second": rate} for rate in rates] for name, rates in alone.items()}
        figures["without HTTP"] = each
    keep("appends", (__doc__ or "").partition("\n")[0], {"measured": figures})


if __name__ == "__main__":
    main()
