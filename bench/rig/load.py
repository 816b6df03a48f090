"""The load generator, and what it cost the server meanwhile: processor time and memory out of /proc."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from rig.servers import Served, compiled, pinned

TICKS = os.sysconf("SC_CLK_TCK")


class Measured(NamedTuple):
    """Of one server under one load."""

    readers: int
    delivered: int
    """Events that readers got."""
    seconds: float
    cpu_seconds: float
    """Of the server, user and system."""
    resident_bytes: int
    """Of the server while all readers were there."""
    p50_ms: float
    """From the moment of publishing to the moment a reader had it."""
    p99_ms: float
    max_ms: float
    lost: int

    @property
    def us_per_event(self) -> float:
        return self.cpu_seconds / self.delivered * 1e6 if self.delivered else float("nan")

    @property
    def events_per_second(self) -> float:
        return self.delivered / self.seconds


def cpu_seconds(pids: Iterable[int]) -> float:
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(one[11]) + int(one[12]) for one in fields) / TICKS


def resident_bytes(pids: Iterable[int]) -> int:
    lines = (Path(f"/proc/{pid}/statm").read_text().split() for pid in pids)
    return sum(int(line[1]) for line in lines) * os.sysconf("SC_PAGE_SIZE")


class Appended(NamedTuple):
    """Of one server with writers that append as fast as they are answered."""

    writers: int
    streams: int
    answered: int
    """Appends of one message each."""
    seconds: float
    cpu_seconds: float
    """Of the server, user and system."""
    p50_ms: float
    """From the request to its answer."""
    p99_ms: float

    @property
    def us_per_append(self) -> float:
        return self.cpu_seconds / self.answered * 1e6 if self.answered else float("nan")

    @property
    def appends_per_second(self) -> float:
        return self.answered / self.seconds


def load(served: Served, readers: int, rate: float, seconds: float, *options: object, streams: int = 1) -> Measured:
    """`readers` follow; messages are published `rate` times a second (0: as fast as each is answered)."""
    command: list[object] = [compiled("load"), "--port", served.port, "--readers", readers, "--streams", streams]
    command += ["--get", served.get, "--rate", rate, "--seconds", seconds]
    if served.post:
        command += ["--post", served.post]
    said, cpu, resident = _watched([*command, *served.options, *options], served)
    kept = {name: said[name] for name in ("readers", "delivered", "seconds", "p50_ms", "p99_ms", "max_ms", "lost")}
    return Measured(cpu_seconds=cpu, resident_bytes=resident, **kept)


def appending(served: Served, writers: int, streams: int, seconds: float, size: int = 64) -> Appended:
    """`writers` append messages of `size` bytes to `streams`."""
    command: list[object] = [compiled("append"), "--port", served.port, "--post", served.post, "--writers", writers]
    command += ["--streams", streams, "--bytes", size, "--seconds", seconds]
    said, cpu, _ = _watched(command, served)
    return Appended(cpu_seconds=cpu, **said)


def _watched(command: Iterable[object], served: Served) -> tuple[dict[str, Any], float, int]:
    """What a load generator said, and the server's processor time and memory between its `begin` and `end`."""
    said: dict[str, Any] = {}
    cpu, resident = 0.0, 0
    words = [str(word) for word in command]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, preexec_fn=pinned(1)) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("begin"):
                cpu = -cpu_seconds(served.pids)
                resident = resident_bytes(served.pids)
            elif line.startswith("end"):
                cpu += cpu_seconds(served.pids)
            else:
                said = json.loads(line)
    if not said:
        raise RuntimeError("the load generator failed: see above")
    return said, cpu, resident
