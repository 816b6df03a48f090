"""The store in one SQLite file: `sqlite:///headwater.db`. Several processes may use one file.

Three kinds of thread, each with its own connection: one writer (group commit over many streams), two readers, and a
watcher that tells within milliseconds what other processes committed. The loop never waits for the disk.

What survives: with `synchronous=FULL`, the default, every append that returned survives the death of the process and
loss of power. With `?sync=normal` it survives the death of the process; loss of power may take back the last moments,
which readers may have seen, and their offsets are then given out again (docs/guarantees.md). Several times faster per
append.

Knows the contract, the file format, its pages and the writer.
"""

from __future__ import annotations

import asyncio
import functools
import sqlite3
import threading
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Literal, TypeVar

import msgspec

from headwater.errors import StoreFileUnusable, StoreUnavailable
from headwater.model import Absent, Head, Message, Offset
from headwater.store import Store
from headwater.stores.sqlite_file import connect, translated
from headwater.stores.sqlite_page import page
from headwater.stores.sqlite_writer import GONE_KEPT, Commit, Delete, Touch, Writer, last_number

WATCH_SECONDS: Final = 0.005
"""Between two looks for commits of other processes. 20 ms is what we promise."""

QUIET_SECONDS: Final = 0.015
"""The same while nothing changes: waking a thread 200 times a second takes 2 % of a core."""

QUIET_LOOKS: Final = 200
"""Looks in vain after which a file counts as quiet."""

READERS: Final = 2
"""A long page for one reader must not hold up the next one's; more threads than cores do not help."""

T = TypeVar("T")
Synchronous = Literal["full", "normal"]
_decode_head = msgspec.msgpack.Decoder(Head).decode


class SqliteStore(Store):
    """Streams in the file at `path`."""

    durable = True

    def __init__(self, path: str, *, synchronous: Synchronous = "full") -> None:
        self.path = path
        self._synchronous = synchronous
        self._writer: Writer | None = None
        self._readers: ThreadPoolExecutor | None = None
        self._local = threading.local()
        self._connections: list[sqlite3.Connection] = []
        self._watcher: _Watcher | None = None
        self._touches: dict[tuple[str, int], int] = {}
        self._touching: asyncio.Future[None] | None = None

    def __repr__(self) -> str:
        state = "open" if self._writer else "closed"
        return f"<SqliteStore {self.path} [{state}, synchronous={self._synchronous}]>"

    async def open(self) -> None:
        loop = asyncio.get_running_loop()
        self._readers = ThreadPoolExecutor(READERS, thread_name_prefix="headwater-sqlite-reader")
        try:
            # The writing connection is opened now, so that a file we cannot use is an error here and not later.
            writing = await loop.run_in_executor(
                self._readers, functools.partial(connect, self.path, synchronous=self._synchronous.upper())
            )
        except BaseException:
            self._readers.shutdown(wait=False)
            self._readers = None
            raise
        self._writer = Writer(writing, self.path, loop)
        self._writer.start()
        self._watcher = _Watcher(self.path, loop, self._woken)
        self._watcher.start()

    async def aclose(self) -> None:
        if self._writer is None or self._readers is None or self._watcher is None:
            return
        if self._touches:
            self._flush_touches()
        writer, self._writer = self._writer, None
        watcher, readers = self._watcher, self._readers
        watcher.stop()
        # In a thread, like all that can touch the disk: the last connection to close writes the WAL back. In one piece:
        # where the wait is cancelled, all of it happens none the less.
        await asyncio.to_thread(self._stop, watcher, readers, writer)

    def _stop(self, watcher: _Watcher, readers: ThreadPoolExecutor, writer: Writer) -> None:
        watcher.join()
        readers.shutdown()
        while self._connections:
            self._connections.pop().close()
        writer.stop()

    # -- reading --------------------------------------------------------------------------------------------------

    async def load(self, name: str) -> Head | Absent:
        return await self._read(_load, name)

    async def read(self, name: str, start: Offset, *, max_bytes: int) -> list[Message]:
        return await self._read(page, name, start, max_bytes)

    async def list(self, prefix: str, *, after: str | None, limit: int, newest: bool) -> Sequence[tuple[str, Head]]:
        return await self._read(_list, prefix, after, limit, newest)

    async def due(self, now: int, *, limit: int) -> Sequence[tuple[str, Head]]:
        return await self._read(_due, now, limit)

    async def owners(self) -> Sequence[str]:
        return await self._read(_owners)

    async def owned(self, owner: str) -> Sequence[str]:
        return await self._read(_owned, owner)

    async def _read(self, query: Callable[..., T], *arguments: Any) -> T:
        if self._writer is None or self._readers is None:
            raise StoreUnavailable("the store is not open")
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._query, query, arguments)

    def _query(self, query: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        try:
            connection: sqlite3.Connection | None = getattr(self._local, "connection", None)
            if connection is None:
                connection = self._local.connection = connect(self.path)
                self._connections.append(connection)
            connection.execute("BEGIN")  # one snapshot for all that the query looks at
            try:
                return query(connection, *arguments)
            finally:
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise translated(error, self.path) from error

    # -- writing --------------------------------------------------------------------------------------------------

    def commit(self, name: str, expected: Head | Absent, head: Head, messages: Sequence[Message]) -> Awaitable[None]:
        future = self._submit(Commit(name, expected, head, messages))
        if self._watcher is not None and name in self._watcher.watched:
            future.add_done_callback(functools.partial(self._committed, name, head))
        return future

    def delete(self, name: str, expected: Head) -> Awaitable[None]:
        return self._submit(Delete(name, expected))

    def touch(self, name: str, generation: int, now: int) -> None:
        self._touches[name, generation] = max(now, self._touches.get((name, generation), now))
        if self._touching is None or self._touching.done():
            self._flush_touches()

    def _flush_touches(self) -> None:
        touches, self._touches = self._touches, {}
        self._touching = self._submit(Touch(touches))
        self._touching.add_done_callback(self._touched)

    def _touched(self, done: asyncio.Future[None]) -> None:
        done.exception()  # a lost touch shortens a sliding TTL by one read; there is nobody to tell
        if self._touches and self._writer is not None:
            self._flush_touches()

    def _submit(self, job: Commit | Delete | Touch) -> asyncio.Future[None]:
        if self._writer is not None:
            return self._writer.submit(job)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_exception(StoreUnavailable("the store is not open"))
        return future

    # -- other processes ------------------------------------------------------------------------------------------

    def watch(self, name: str, *, watched: bool) -> None:
        if self._watcher is not None:
            self._watcher.watch(name, watched=watched)

    def _committed(self, name: str, head: Head, done: asyncio.Future[None]) -> None:
        watcher = self._watcher
        if not done.cancelled() and done.exception() is None and watcher is not None and name in watcher.watched:
            watcher.watched[name] = (head.generation, head.version)

    def _woken(self, changes: Sequence[tuple[str, int, int]]) -> None:
        if self._watcher is None or self.on_wake is None:
            return
        for name, generation, version in changes:
            # What we committed ourselves is no news; whoever committed it has told the layer above.
            if self._watcher.watched.get(name, (generation, version)) < (generation, version) or version == 0:
                self.on_wake(name)

    def statistics(self) -> dict[str, int]:
        writer = self._writer
        return {"transactions": writer.transactions, "jobs": writer.jobs} if writer else {}


class _Watcher:
    """A thread that looks for commits of other processes while anybody wants to know."""

    def __init__(
        self, path: str, loop: asyncio.AbstractEventLoop, report: Callable[[Sequence[tuple[str, int, int]]], None]
    ) -> None:
        self._path, self._loop, self._report = path, loop, report
        self.watched: dict[str, tuple[int, int]] = {}
        """Stream name -> generation and version of what this process committed last; changed on the loop only."""
        self._wanted, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="headwater-sqlite-watcher", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        self._wanted.set()

    def join(self) -> None:
        self._thread.join()

    def watch(self, name: str, *, watched: bool) -> None:
        if watched:
            self.watched.setdefault(name, (-1, -1))
            self._wanted.set()
        else:
            self.watched.pop(name, None)
            if not self.watched and not self._stopped.is_set():  # both on the loop: the thread always sees a stop
                self._wanted.clear()

    def _run(self) -> None:
        connection = None
        version, seen, in_vain = -1, -GONE_KEPT, 0
        while not self._stopped.wait(WATCH_SECONDS if in_vain < QUIET_LOOKS else QUIET_SECONDS):
            self._wanted.wait()
            try:
                if connection is None:
                    connection = connect(self._path)
                (now,) = connection.execute("PRAGMA data_version").fetchone()
                in_vain += 1
                if now != version:
                    seen = self._look(connection, seen)
                    version, in_vain = now, 0
            except (sqlite3.Error, StoreUnavailable, StoreFileUnusable):
                continue  # looked for again in a moment; wakes are only hints (G7)
        if connection is not None:
            connection.close()

    def _look(self, connection: sqlite3.Connection, seen: int) -> int:
        """Report what was committed after the commit numbered `seen`; the number of the last one."""
        latest = last_number(connection)
        if latest - seen > GONE_KEPT:  # the first time, or deletions may have been forgotten: ask everybody to look
            changes = [(name, 0, 0) for name in list(self.watched)]
        else:
            rows = connection.execute(
                "SELECT name, generation, version FROM stream WHERE changed > ? AND changed <= ?"
                " UNION ALL SELECT name, 0, 0 FROM gone WHERE changed > ? AND changed <= ?",
                (seen, latest, seen, latest),
            )
            changes = [change for change in rows if change[0] in self.watched]
        if changes and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._report, changes)
        return latest


# -- queries: each runs in a reader's thread, inside one read transaction ----------------------------------------------

_COLUMNS: Final = "name, head, touched"


def _load(connection: sqlite3.Connection, name: str) -> Head | Absent:
    row = connection.execute(f"SELECT {_COLUMNS} FROM stream WHERE name = ?", (name,)).fetchone()  # noqa: S608
    if row is not None:
        return _head(row)[1]
    (generation,) = connection.execute("SELECT value FROM fact WHERE name = 'generation'").fetchone()
    return Absent(generation)


def _list(
    connection: sqlite3.Connection, prefix: str, after: str | None, limit: int, newest: bool
) -> Sequence[tuple[str, Head]]:
    # Two plain bounds, so that each page costs its own rows only: what starts with `prefix` lies between it and itself
    # followed by the last code point, and what comes right after `after` is itself followed by the first.
    low, high = prefix, prefix + "\U0010ffff"
    if after is not None and newest:
        high = min(high, after)
    elif after is not None:
        low = max(low, after + "\0")
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM stream WHERE name >= ? AND name < ?"  # noqa: S608
        f" ORDER BY name {'DESC' if newest else 'ASC'} LIMIT ?",
        (low, high, limit),
    )
    return [_head(row) for row in rows]


def _due(connection: sqlite3.Connection, now: int, limit: int) -> Sequence[tuple[str, Head]]:
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM stream WHERE expires <= ? OR look <= ? LIMIT ?",  # noqa: S608
        (now, now, limit),
    )
    return [_head(row) for row in rows]


def _owners(connection: sqlite3.Connection) -> list[str]:
    # From one owner to the next in the index: DISTINCT would go through all that they own.
    rows = connection.execute(
        "WITH RECURSIVE one(owner) AS (SELECT min(owner) FROM stream WHERE owner IS NOT NULL UNION ALL"
        " SELECT (SELECT min(owner) FROM stream WHERE owner > one.owner) FROM one WHERE one.owner IS NOT NULL)"
        " SELECT owner FROM one WHERE owner IS NOT NULL"
    )
    return [owner for (owner,) in rows]


def _owned(connection: sqlite3.Connection, owner: str) -> list[str]:
    return [name for (name,) in connection.execute("SELECT name FROM stream WHERE owner = ?", (owner,))]


def _head(row: tuple[str, bytes, int]) -> tuple[str, Head]:
    name, encoded, touched = row
    head = _decode_head(encoded)
    return name, head if touched <= head.touched else msgspec.structs.replace(head, touched=touched)
