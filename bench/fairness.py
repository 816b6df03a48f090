"""What do a busy producer and a reader that catches up with 64 MB cost everybody else, in waiting?

    .venv/bin/python bench/fairness.py [--rounds 3] [--seconds 5]

One server on one processor, the rest on the other. A third party publishes 50 messages a second to 20 readers of a
stream of its own: first alone; then while somebody reads a stream of 64 MB from its beginning, again and again, and
somebody else appends 100 messages at a time to another as fast as he is answered. From publishing to having it, in ms.
The processor is used up then, and each has his turn; what must not be is that one has it for long.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import catch_up
from rig.load import Measured, load
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


def one_round(store: str, seconds: float) -> dict[str, Measured]:
    with served_headwater(store, streams=1) as served:
        catch_up.fill(served, 100)
        for name in ("third", "busy"):
            request(served.port, "PUT", f"/v1/stream/{name}")
        third = served._replace(get="/v1/stream/third?format=sse", post="/v1/stream/third")
        alone = load(third, 20, 50, seconds)
        with busy(served):
            beside = load(third, 20, 50, seconds)
        return {"alone": alone, "beside both": beside}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--rounds", type=int, default=3)
    arguments.add_argument("--seconds", type=float, default=5, help="each measurement lasts")
    given = arguments.parse_args()
    print(machine(), flush=True)
    figures = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in ("memory", "sqlite"):
            stores = [
                f"sqlite:///{Path(folder)}/{n}.db" if name == "sqlite" else "memory:" for n in range(given.rounds)
            ]
            rounds = [one_round(store, given.seconds) for store in stores]
            print(f"\n| {name} | p50 ms | p99 ms | longest ms |\n|---|---|---|---|")
            for which in rounds[0]:
                row = [[getattr(one[which], f"{key}_ms") for one in rounds] for key in ("p50", "p99", "max")]
                print(f"| {which} | " + " | ".join(f"{statistics.median(each):.1f}" for each in row) + " |", flush=True)
            figures[name] = [{which: measured._asdict() for which, measured in one.items()} for one in rounds]
    keep("fairness", (__doc__ or "").split("\n", 1)[0], {"stores": figures})


if __name__ == "__main__":
    main()
