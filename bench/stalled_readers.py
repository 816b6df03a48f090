"""What do readers that never read cost the server, on a 20 MB stream?

    .venv/bin/python bench/stalled_readers.py [--message-bytes 65536] [--rounds 2]

Each round starts the reference server of Durable Streams (Node, in memory) and `headwater serve` (in memory, and on
SQLite) afresh, one after the other; appends the stream; measures the resident memory; opens the readers
(`live=sse` on sockets with a small buffer, never read); measures again after 5 s. Then one catch-up GET from the start
says how much a server puts into one answer. 10 readers each; then 100 of ours alone, for the reference would need 4 GB.
"""

from __future__ import annotations

import argparse
import socket
import time
from contextlib import ExitStack
from typing import NamedTuple

import httpx
from rig import servers
from rig.load import resident_bytes
from rig.report import keep, machine, table

STREAM_BYTES = 20_000_000
STALLED_SECONDS = 5.0
SMALL_BUFFER = 4096
TEXT = {"content-type": "text/plain"}
REFERENCE = "reference (Node), memory"

OURS: dict[str, servers.Server] = {
    "headwater, memory": servers.headwater,
    "headwater, SQLite": servers.headwater_on_disk,
}
CASES: dict[int, dict[str, servers.Server]] = {10: {REFERENCE: servers.node_reference, **OURS}, 100: OURS}
"""How many readers, of which servers."""


class Stalled(NamedTuple):
    """Of one server in one round; sizes in bytes."""

    readers: int
    before: int
    grown: int
    """What it holds more, with the readers there."""
    answer: int
    """What is in one answer to a catch-up GET."""


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


def measure(served: servers.Served, readers: int, message_bytes: int) -> Stalled:
    path = "/v1/stream/bench"
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", timeout=60) as client, ExitStack() as opened:
        append_all(client, path, message_bytes)
        time.sleep(1.0)  # what the appends left behind may go first
        before = resident_bytes(served.pids)
        for _ in range(readers):
            opened.enter_context(stalled_reader(served.port, path))
        time.sleep(STALLED_SECONDS)
        grown = resident_bytes(served.pids) - before
        opened.close()
        answer = len(client.get(path, params={"offset": "-1"}).raise_for_status().content)
    return Stalled(readers, before, grown, answer)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--message-bytes", type=int, default=64 * 1024, help="of each append")
    arguments.add_argument("--rounds", type=int, default=2)
    given = arguments.parse_args()
    taken: dict[int, dict[str, list[Stalled]]] = {readers: {} for readers in CASES}
    for _ in range(given.rounds):
        for readers, named in CASES.items():
            for name, server in named.items():
                try:
                    with server() as served:
                        one = measure(served, readers, given.message_bytes)
                except servers.Missing as missing:
                    print(f"{name} is left out: {missing}")
                    continue
                taken[readers].setdefault(name, []).append(one)
                print(
                    f"{name}, {readers} readers: {one.before / 1e6:.0f} MB and {one.grown / 1e6:.1f} MB more; "
                    f"{one.answer / 1e6:.2f} MB in one answer",
                    flush=True,
                )
    print(f"\n{machine()}\nmessages of {given.message_bytes:,} bytes")
    for readers, by_name in taken.items():
        sizes = {name: [one.grown / one.readers / 1024 for one in rounds] for name, rounds in by_name.items()}
        print(f"\n{readers} readers\n\n{table(sizes, 'KB/reader', next(iter(sizes)))}")
    figures = {
        f"{readers} readers": {name: [one._asdict() for one in rounds] for name, rounds in by_name.items()}
        for readers, by_name in taken.items()
    }
    figures_of = {"message_bytes": given.message_bytes, "measured": figures}
    keep("stalled_readers", (__doc__ or "").partition("\n")[0], figures_of)


if __name__ == "__main__":
    main()
