"""One answer for several server processes on one machine, whichever of them is asked.

Each keeps a snapshot of its numbers in a directory that they share, replaced in one step every few seconds and when
it is asked itself; who is asked adds them up. Numbers that count go on counting when a process ends, by its last
snapshot; those that say how things stand are of the living only. Who lives is told by a lock that the system takes
back with the process, so that neither a kill nor a process id that is used again misleads anybody.

Knows files and the numbers; no loop: it blocks, so call it from a thread. Invariant: what was shown is in a snapshot,
so that no sum falls when a process dies.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from headwater.histogram import Histogram
from headwater.http.families import FAMILIES, Labels, Value, Values

Snapshot = Mapping[str, Values]

_ENDED: Final = "ended.json"
"""The sum of those that are gone."""

_DOOR: Final = ".lock"
"""Held while files of dead processes are added to that sum; shared while they are read."""


class Together:
    """The part of one process."""

    def __init__(self, directory: str) -> None:
        self.directory = Path(directory)
        self._name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._lock: int | None = None

    def __repr__(self) -> str:
        return f"<Together in {self.directory} as {self._name}>"

    def keep(self, mine: Snapshot) -> None:
        """Replace this process's snapshot. Raises OSError."""
        if self._lock is None:
            self._begin()
        written = self.directory / f".{self._name}.new"
        written.write_bytes(_encoded(mine))
        written.replace(self.directory / f"{self._name}.json")

    def sum(self, mine: Snapshot) -> dict[str, Values]:
        """All of them, this process's being `mine`. Raises OSError."""
        self.keep(mine)
        with self._door(fcntl.LOCK_SH):
            return added([(mine, True), *self._others()])

    def close(self) -> None:
        """Let go: what was kept last counts as that of a process that has ended."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _begin(self) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._lock_of(self._name), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._fold()

    def _others(self) -> Iterator[tuple[Snapshot, bool]]:
        for path in sorted(self.directory.glob("*.json")):
            if path.stem != self._name and (found := _decoded(path)) is not None:
                yield found, path.name != _ENDED and self._lives(path.stem)

    def _fold(self) -> None:
        """Add up those that are gone, so that a server that is often started again leaves one file."""
        with self._door(fcntl.LOCK_EX):
            gone = [
                path
                for path in self.directory.glob("*.json")
                if path.name != _ENDED and path.stem != self._name and not self._lives(path.stem)
            ]
            if not gone:
                return
            snapshots = [_decoded(path) for path in [self.directory / _ENDED, *gone]]
            written = self.directory / f".{_ENDED}.new"
            written.write_bytes(_encoded(added([(one, False) for one in snapshots if one is not None])))
            # A process that dies between these two steps makes the sum count something twice: it cannot be helped
            # without a journal, and is a step up in a curve, not one down.
            written.replace(self.directory / _ENDED)
            for path in gone:
                path.unlink(missing_ok=True)
                self._lock_of(path.stem).unlink(missing_ok=True)

    def _lives(self, name: str) -> bool:
        try:
            probe = os.open(self._lock_of(name), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(probe, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: two that look at once do not see each other
        except OSError:
            return True
        finally:
            os.close(probe)
        return False

    def _lock_of(self, name: str) -> Path:
        return self.directory / f"{name}.lock"

    @contextmanager
    def _door(self, way: int) -> Iterator[None]:
        door = os.open(self.directory / _DOOR, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(door, way)
            yield
        finally:
            os.close(door)


def added(snapshots: list[tuple[Snapshot, bool]]) -> dict[str, Values]:
    """The sum of snapshots; with each, whether its process lives."""
    total: dict[str, Values] = {}
    for family in FAMILIES:
        values: dict[Labels, Value] = {}
        for snapshot, lives in snapshots:
            if lives or family.sort != "gauge":
                _add(values, snapshot.get(family.name, {}))
        total[family.name] = values
    return total


def _add(values: dict[Labels, Value], more: Values) -> None:
    for labels, value in more.items():
        known = values.get(labels)
        if isinstance(value, Histogram):
            total = Histogram(known.bounds if isinstance(known, Histogram) else value.bounds)
            for one in (known, value):
                with suppress(ValueError):  # another version's bounds: its part is left out
                    if isinstance(one, Histogram):
                        total.merge(one)
            values[labels] = total
        elif not isinstance(known, Histogram):
            values[labels] = value + (known or 0)


def _encoded(snapshot: Snapshot) -> bytes:
    return msgspec.json.encode({name: [_row(*row) for row in values.items()] for name, values in snapshot.items()})


def _row(labels: Labels, value: Value) -> list[Any]:
    if isinstance(value, Histogram):
        return [labels, [value.bounds, value.counts, value.sum]]
    return [labels, value]


def _decoded(path: Path) -> Snapshot | None:
    """None where there is no file, or one of another make."""
    try:
        found = msgspec.json.decode(path.read_bytes())
        return {name: {tuple(labels): _value(value) for labels, value in rows} for name, rows in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return None


def _value(said: Any) -> Value:
    if not isinstance(said, list):
        return float(said)
    histogram = Histogram(said[0])
    if len(said[1]) != len(histogram.counts):
        raise ValueError("not a histogram")
    histogram.counts, histogram.sum = [int(count) for count in said[1]], float(said[2])
    return histogram
