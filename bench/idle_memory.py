"""What does a reader that only waits cost the server in memory, at 1,000 and at 10,000 readers?

    .venv/bin/python bench/idle_memory.py [--readers 1000 --readers 10000] [--rounds 2] [--only NAME]...

Each round starts every server afresh. One reader comes, gets a message, and goes; the memory of the server's processes
is taken (`before`). Then the readers come, one after the other; all get one message, and nothing more happens for two
seconds; the memory is taken again (`after`). What stands in the table is the difference by reader, of memory that is
the process's own (`Anonymous` of /proc/PID/smaps_rollup); resident and proportional size are in the results beside it.
What the kernel keeps for a connection is not in it, and is the same for all.
"""

from __future__ import annotations

import argparse
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from rig import servers
from rig.load import memory
from rig.report import keep, machine, table

QUIET_SECONDS = 2
AT_MOST = {"Pushpin": 1000}
"""Where a message to more readers takes longer than the rest of the benchmark."""


class Idle(NamedTuple):
    """Of one server with that many readers, in bytes of all its processes."""

    readers: int
    anonymous_before: int
    anonymous_after: int
    resident_before: int
    resident_after: int
    proportional_before: int
    proportional_after: int

    @property
    def kb_per_reader(self) -> float:
        return (self.anonymous_after - self.anonymous_before) / self.readers / 1024


def reader(served: servers.Served) -> socket.socket:
    """A connection that follows, answered already."""
    opened = socket.create_connection(("127.0.0.1", served.port), timeout=servers.PATIENCE_SECONDS)
    path = served.get.replace("%d", "0")
    opened.sendall(f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\naccept: text/event-stream\r\n\r\n".encode())
    head = b""
    while b"\r\n\r\n" not in head:
        part = opened.recv(4096)
        if not part or not b"HTTP/1.1 200".startswith((head + part)[:12]):
            raise RuntimeError(f"a reader was refused: {head + part!r}")
        head += part
    return opened


def publish(served: servers.Served, word: str) -> None:
    """One message to all, in the words that the load generator has for this server."""
    options = dict(zip(served.options[::2], served.options[1::2], strict=True))
    body = options.get("--prefix", '"') + word + options.get("--suffix", '"')
    port, path = int(options.get("--post-port", served.port)), served.post.replace("%d", "0")
    fields = f"host: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    with socket.create_connection(("127.0.0.1", port), timeout=servers.PATIENCE_SECONDS) as to:
        to.sendall(f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n{body}".encode())
        if not (answer := to.recv(4096)).startswith(b"HTTP/1.1 2"):
            raise RuntimeError(f"a message was refused: {answer!r}")


def all_get(served: servers.Served, readers: Sequence[socket.socket], word: str) -> None:
    publish(served, word)
    for one in readers:
        got = b""
        while word.encode() not in got:
            got += one.recv(4096)


def measure(served: servers.Served, readers: int) -> Idle:
    with reader(served) as first:
        all_get(served, [first], "~first~")
    time.sleep(0.5)  # that reader is gone, and what it left behind is again to be had
    before = memory(served.pids)
    with ExitStack() as opened:
        connections = [opened.enter_context(reader(served)) for _ in range(readers)]
        all_get(served, connections, "~second~")
        time.sleep(QUIET_SECONDS)
        after = memory(served.pids)
    return Idle(readers, *(size for pair in zip(before, after, strict=True) for size in pair))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, action="append", help="as often as you like: 1000 and 10000")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", action="append", choices=servers.FANS)
    asked = parser.parse_args()
    taken: dict[int, dict[str, list[Idle]]] = {readers: {} for readers in asked.readers or (1000, 10_000)}
    servers.many_files()
    for _ in range(asked.rounds):
        for readers, by_name in taken.items():
            for name in asked.only or servers.FANS:
                if readers > AT_MOST.get(name, readers):
                    continue
                try:
                    with servers.FANS[name]() as served:
                        one = measure(served, readers)
                except servers.Missing as missing:
                    print(f"{name} is left out: {missing}")
                    continue
                by_name.setdefault(name, []).append(one)
                print(
                    f"{name}, {readers:,} readers: {one.kb_per_reader:.1f} KB each, "
                    f"{one.anonymous_before / 1e6:.0f} MB before",
                    flush=True,
                )
    print(f"\n{machine()}")
    for readers, by_name in taken.items():
        against = "nchan" if "nchan" in by_name else next(iter(by_name))
        sizes = {name: [one.kb_per_reader for one in rounds] for name, rounds in by_name.items()}
        print(f"\n{readers:,} readers\n\n{table(sizes, 'KB/reader', against)}")
    figures = {
        f"{readers:,} readers": {name: [one._asdict() for one in rounds] for name, rounds in by_name.items()}
        for readers, by_name in taken.items()
    }
    keep("idle_memory", (__doc__ or "").partition("\n")[0], {"measured": figures})


if __name__ == "__main__":
    main()
