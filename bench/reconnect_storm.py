"""5,000 readers are cut at once and come back at once: how long until each has what it missed, and what does it cost?

    .venv/bin/python bench/reconnect_storm.py [--readers 5000] [--missed 10] [--rounds 2] [--only NAME]...

Each round starts every server afresh. All follow one stream and get one message; then all connections are reset, 10
messages of 64 bytes are published, and all connect again in the same moment, each saying how far it had come
(Last-Event-ID; the reference's offset in the URL). Time from that moment until a reader has all that it missed, and
the server's processor time from the cut to the end. sse-starlette keeps nothing that could be resumed: of it, and of
the floor in C, only the answer is awaited, and what was missed stays so. The queue of connections that are not accepted
yet is each server's own: who is not accepted in time tries again after a second, as TCP does.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import NamedTuple

from rig import servers
from rig.load import watched
from rig.report import keep, machine, table


class Peer(NamedTuple):
    """A server, and how its readers go on."""

    server: servers.Server
    mark: str = ""
    """What stands before a reader's position in what it reads; none: it cannot go on."""
    back: str = ""
    """The path to come back to, where the position goes into the URL."""


class Stormed(NamedTuple):
    """Of one server and storm."""

    cpu_seconds: float
    """Of the server, from the cut until all was well."""
    readers: int
    missed: int
    answered_p50_ms: float
    answered_p99_ms: float
    answered_max_ms: float
    complete_p50_ms: float
    """Until it had all that it missed; where nothing can be resumed, until it was answered."""
    complete_p99_ms: float
    complete_max_ms: float
    failed: int
    """Readers whose connection was refused or broken."""
    unfinished: int
    """Readers that had not got it all after a minute."""
    twice: int
    """Messages that a reader got again."""
    never: int
    """Messages that a reader did not get."""

    @property
    def us_per_reader(self) -> float:
        return self.cpu_seconds / self.readers * 1e6


PEERS = {
    "headwater": Peer(servers.headwater, mark="\nid:"),
    "headwater, portable": Peer(servers.headwater_portable, mark="\nid:"),
    "nchan": Peer(servers.nchan, mark="\nid:"),
    "reference (Node)": Peer(servers.node_reference, '"streamNextOffset":"', "/v1/stream/b0?offset=%s&live=sse"),
    "sse-starlette, no resume": Peer(partial(servers.python_app, "sse_starlette_app:app")),
    "C floor, no resume": Peer(servers.floor),
}


def storm(peer: Peer, readers: int, missed: int) -> Stormed:
    with peer.server() as served:
        command: list[object] = [servers.compiled("storm"), "--port", served.port, "--readers", readers]
        command += ["--get", served.get.replace("%d", "0"), "--post", served.post.replace("%d", "0")]
        command += ["--missed", missed]
        command += ["--mark", peer.mark] if peer.mark else []
        command += ["--back", peer.back] if peer.back else []
        said, cpu, _ = watched(command, served)
    return Stormed(cpu_seconds=cpu, **said)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=5000)
    parser.add_argument("--missed", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--only", action="append", choices=PEERS)
    asked = parser.parse_args()
    taken: dict[str, list[Stormed]] = {}
    for _ in range(asked.rounds):
        for name in asked.only or PEERS:
            try:
                one = storm(PEERS[name], asked.readers, asked.missed)
            except servers.Missing as missing:
                print(f"{name} is left out: {missing}")
                continue
            taken.setdefault(name, []).append(one)
            print(
                f"{name}: half complete after {one.complete_p50_ms:,.0f} ms, all after {one.complete_max_ms:,.0f} ms, "
                f"{one.us_per_reader:.0f} us each; "
                f"failed {one.failed}, unfinished {one.unfinished}, twice {one.twice}, never {one.never}",
                flush=True,
            )
    against = "nchan" if "nchan" in taken else next(iter(taken))
    print(f"\n{machine()}\n")
    print(table({name: [one.complete_max_ms for one in rounds] for name, rounds in taken.items()}, "ms", against))
    print()
    print(table({name: [one.us_per_reader for one in rounds] for name, rounds in taken.items()}, "us/reader", against))
    case = f"{asked.readers:,} readers"
    figures = {name: [one._asdict() for one in rounds] for name, rounds in taken.items()}
    keep("reconnect_storm", (__doc__ or "").partition("\n")[0], {"measured": {case: figures}})


if __name__ == "__main__":
    main()
