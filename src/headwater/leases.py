"""Who is making which stream, and what becomes of streams whose maker died (G8).

A process that makes streams holds a lease: a small stream of its own with a TTL, touched every few seconds. Every
process looks after the open streams of owners whose lease is gone, and ends them as failed. No coordinator: closing is
a compare-and-append, so of several that try one succeeds, and a maker that was only asleep finds its stream closed.

Knows commits. A layer above whose streams need more than a bare close at their end labels them with a `kind` and
registers a finisher for it; a process without that layer leaves them to one that has it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from headwater.commits import Commits
from headwater.decide import KIND, Append, Create, Item
from headwater.errors import HeadwaterError, Interrupted, OffsetGone, StreamClosed, StreamNotFound
from headwater.model import BEGINNING, Absent, Config, Head, Offset

_log = logging.getLogger("headwater.leases")

PREFIX: Final = "headwater/instances/"
TTL_SECONDS: Final = 15
"""Without a sign of life: three renewals missed. A process that sleeps for longer loses its streams."""

RENEW_SECONDS: Final = 5.0

Finisher = Callable[[str, Head, HeadwaterError], Awaitable[bool | None]]
"""Given a stream's name, its head and why it is an orphan; False: it was not ended, but left alone or gone on with."""


class Place(msgspec.Struct, frozen=True):
    """Where a process lives: enough to know at once, on the same machine, that it does no more."""

    host: str
    pid: int
    started: str
    """Kernel's start time of the process: a pid alone is used again."""

    @classmethod
    def here(cls) -> Place:
        return cls(_host(), os.getpid(), _start_of(os.getpid()) or "")

    def surely_dead(self) -> bool:
        """True only if this process can tell, which takes the same machine and pid namespace."""
        return self.host == _host() and self.started != "" and _start_of(self.pid) != self.started


class Leases:
    """One process's own lease, and its care for streams that others left behind."""

    def __init__(self, commits: Commits) -> None:
        self.owner = f"i_{secrets.token_hex(8)}"
        self._commits = commits
        self._finishers: dict[str, Finisher] = {"": self._close}
        self.on_lapse: list[Callable[[], None]] = []
        """Called when our lease had lapsed: others may have taken our streams by now. Must not raise."""
        self._abandoned: dict[str, HeadwaterError] = {}
        self._left: dict[str, set[str]] = {}  # by owner that is gone: streams of kinds that nobody here can end
        self._look = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._holding = False

    def __repr__(self) -> str:
        return f"<Leases of {self.owner} [{'holding' if self._holding else 'idle'}]>"

    def finisher(self, kind: str, finish: Finisher) -> None:
        """See to orphaned streams labelled with this `kind` by `finish(name, head, why)`."""
        self._finishers[kind] = finish
        self._left.clear()

    def abandon(self, name: str, why: HeadwaterError) -> None:
        """A stream of ours that can no longer be gone on with: end it as an orphan, as soon as the store takes it."""
        self._abandoned[name] = why
        self._look.set()

    async def open(self) -> None:
        """Begin to look after orphans."""
        self._look = asyncio.Event()  # of this loop, which may be another than the last time
        # Two tasks: however many streams have to be ended, our own lease must not lapse meanwhile.
        self._tasks = [
            asyncio.create_task(self._keep_renewing(), name="headwater-lease"),
            asyncio.create_task(self._keep_finishing(), name="headwater-orphans"),
        ]

    async def aclose(self) -> None:
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []
        if self._holding:
            self._holding = False
            with suppress(HeadwaterError):
                await self._commits.delete(PREFIX + self.owner)

    async def hold(self) -> str:
        """The name to put on streams this process makes; its lease is taken before the first one."""
        if not self._holding:
            await self._take()
            self._holding = True
        return self.owner

    async def finish_orphans(self) -> int:
        """End the streams of owners that are gone; how many there were. Reads nothing of the others' streams."""
        finished = 0
        for name, why in list(self._abandoned.items()):
            finished += await self._finished(name, self.owner, why)
        owners = await self._commits.store.owners()
        dead = [owner for owner in owners if await self._is_dead(owner)]
        self._left = {owner: self._left.get(owner, set()) for owner in dead}
        for owner in dead:
            for name in await self._commits.store.owned(owner):
                if name not in self._left[owner]:
                    finished += await self._finished(name, owner, Interrupted())
                    await asyncio.sleep(0)  # a store in memory never waits: the others have their turn
        return finished

    async def _finished(self, name: str, owner: str, why: HeadwaterError) -> bool:
        """End this stream, if it is still `owner`'s and somebody here can."""
        try:
            head = await self._commits.look(name)
            if isinstance(head, Absent) or head.owner != owner:
                if owner == self.owner:
                    self._abandoned.pop(name, None)
                return False  # it has ended meanwhile, or somebody else goes on with it
            finish = self._finishers.get(head.labels.get(KIND, ""))
            if finish is None:
                self._left.get(owner, set()).add(name)  # so that it is not read again and again
                return False
            if await finish(name, head, why) is False:
                return False
        except (StreamClosed, StreamNotFound):
            return False  # somebody else was quicker
        except HeadwaterError as error:
            _log.warning("could not close %s, which nobody makes any more: %s", name, error)
            return False
        except Exception:  # noqa: BLE001 -- a finisher that fails on one stream must not leave the others open
            _log.exception("could not close %s, which nobody makes any more", name)
            return False
        _log.warning("closed %s, which nobody makes any more: %s", name, why)
        return True

    async def _close(self, name: str, _: Head, __: HeadwaterError) -> None:
        await self._commits.carry_out(name, Append(close=True, outcome="failed"))

    async def _is_dead(self, owner: str) -> bool:
        if owner == self.owner:
            return False
        try:
            lease = await self._commits.head(PREFIX + owner)
            start = Offset(lease.generation, BEGINNING.position)
            place = await self._commits.store.read(PREFIX + owner, start, max_bytes=1)
            return await asyncio.to_thread(msgspec.json.decode(place[0].data, type=Place).surely_dead)
        except (StreamNotFound, OffsetGone):
            return True
        except (IndexError, msgspec.DecodeError):
            return False  # not written by us: its TTL decides

    async def _keep_renewing(self) -> None:
        while True:
            if self._holding:
                await _tried(self._renew())
            await asyncio.sleep(RENEW_SECONDS)

    async def _keep_finishing(self) -> None:
        while True:
            self._look.clear()  # before the look: what is abandoned during it is looked at once more
            await _tried(self.finish_orphans())
            with suppress(TimeoutError):
                async with asyncio.timeout(RENEW_SECONDS):
                    await self._look.wait()

    async def _renew(self) -> None:
        try:
            self._commits.touch(PREFIX + self.owner, await self._commits.head(PREFIX + self.owner))
        except StreamNotFound:
            # We were asleep for longer than the lease; what we made may be another's by now. Go on with a new one.
            await self._take()
            for tell in self.on_lapse:
                tell()

    async def _take(self) -> None:
        place = Item(msgspec.json.encode(await asyncio.to_thread(Place.here)))
        config = Config("application/json", TTL_SECONDS)
        await self._commits.carry_out(PREFIX + self.owner, Create(config, [place]))


async def _tried(looking: Awaitable[object]) -> None:
    """Whatever goes wrong, there is a next time: a lease that is no longer renewed would end all our streams."""
    try:
        await looking
    except HeadwaterError as error:
        _log.warning("could not look after leases: %s", error)
    except Exception:  # noqa: BLE001 -- see above
        _log.exception("could not look after leases")


def _host() -> str:
    """This machine, this boot, this pid namespace."""
    boot = namespace = ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()} {boot} {namespace}"


def _start_of(pid: int) -> str | None:
    """When the process began, in the kernel's ticks; None where there is none or the system does not say."""
    try:
        # The second field, the command, may hold spaces and ends with the last parenthesis; then state is first.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]  # a zombie is dead, only not buried
