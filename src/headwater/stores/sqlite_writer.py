"""The one thread that writes: takes what is waiting, of however many streams, and commits it together.

Knows the file format and the model. The loop hands in jobs; the thread hands results back in the order of the jobs.
Invariants: a job's future is done only after the transaction that holds it is durable (G3, G4), and a job that was
handed in is carried out whether or not anybody still waits (G6); what is known of the file without asking it is what
this connection wrote, and counts only so long as no other has written since.
"""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import threading
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, NamedTuple

import msgspec

from headwater.errors import HeadwaterError, StoreError, VersionConflict
from headwater.model import Absent, Head, Message
from headwater.stores.sqlite_file import message_id, translated

_log = logging.getLogger("headwater.store")

MOST_JOBS: Final = 1000
"""In one transaction: bounds how long the first one waits for the last."""

GARBAGE_SLICE: Final = 250
"""Messages of deleted streams removed between two transactions: a few milliseconds, so no append waits long."""

GARBAGE_BYTES: Final = 2 * 1024 * 1024
"""The same bound for large messages."""

VACUUM_PAGES: Final = 150
"""Given back to the system with each slice, which frees no more than that: some milliseconds at most."""

MOST_KNOWN: Final = 10_000
"""Streams whose rows are known without asking; some 200 bytes each."""

GONE_KEPT: Final = 100_000
"""Commits for which a deletion is remembered; a process that has not looked for so long wakes all it watches."""

_INSERT: Final = (
    "INSERT INTO stream (version, changed, owner, head, look, ttl, touched, expires, name, generation) VALUES"
    " (:version, :changed, :owner, :head, :look, :ttl, :touched, :expires, :name, :generation) RETURNING id"
)
_UPDATE: Final = (
    "UPDATE stream SET version = :version, changed = :changed, owner = :owner, head = :head, look = :look, ttl = :ttl,"
    " touched = max(touched, :touched), expires = CASE WHEN :ttl IS NULL THEN :expires"
    " ELSE max(touched, :touched) + :ttl * 1000 END WHERE id = :id"
)

_MESSAGE: Final = "INSERT INTO message (id, time, key, data) VALUES (?, ?, ?, ?)"

_SLICE: Final = (  # so that of large messages no more than the sizes is read
    "SELECT id, sum(size) OVER (ORDER BY id) FROM"
    " (SELECT id, length(data) AS size FROM message WHERE id >= ? AND id < ? ORDER BY id LIMIT ?)"
)

encode_head: Final = msgspec.msgpack.Encoder().encode
Future = asyncio.Future[None]


class Commit(NamedTuple):
    name: str
    expected: Head | Absent
    head: Head
    messages: Sequence[Message]


class Delete(NamedTuple):
    name: str
    expected: Head


class Touch(NamedTuple):
    touches: dict[tuple[str, int], int]
    """(name, generation) -> ms of the last read."""


Job = Commit | Delete | Touch


class Row(NamedTuple):
    """Of a stream."""

    id: int
    generation: int
    version: int


class Writer:
    """Owns the writing connection. `submit` is called on the loop, everything else happens in the thread."""

    def __init__(self, connection: sqlite3.Connection, path: str, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._path = path
        self._loop = loop
        self._jobs: SimpleQueue[tuple[Job, Future] | None] = SimpleQueue()
        self._garbage = True  # perhaps: an earlier process may have left some
        self._thread = threading.Thread(target=self._run, name="headwater-sqlite-writer", daemon=True)
        self._known: dict[str, Row] = {}
        self._number = 0
        self._data_version = -1
        """As SQLite numbers what other connections did: `_known` and `_number` are from then."""
        self._heads: dict[int, tuple[Head, int]] = {}
        self._messages: list[tuple[int, int, str | None, bytes]] = []
        """What this transaction still has to write: of each stream the last head, and all messages."""
        self.transactions = 0
        self.jobs = 0

    def start(self) -> None:
        self._thread.start()

    def submit(self, job: Job) -> Future:
        future: Future = self._loop.create_future()
        self._jobs.put((job, future))
        return future

    def stop(self) -> None:
        """Carry out what was submitted, then end. Blocks: call it from a thread."""
        self._jobs.put(None)
        self._thread.join()
        self._connection.close()

    # -- in the thread --------------------------------------------------------------------------------------------

    def _run(self) -> None:
        going = True
        while going:
            batch, going = self._take()
            if batch:
                self._hand_back(batch, self._transact([job for job, _ in batch]))
            if self._garbage:
                self._remove_garbage()

    def _take(self) -> tuple[list[tuple[Job, Future]], bool]:
        """All that is waiting; waits itself only if there is nothing at all to do. False: the last batch."""
        batch: list[tuple[Job, Future]] = []
        while len(batch) < MOST_JOBS:
            try:
                taken = self._jobs.get(block=not batch and not self._garbage)
            except Empty:
                break
            if taken is None:
                return batch, False
            batch.append(taken)
        return batch, True

    def _hand_back(self, batch: list[tuple[Job, Future]], results: list[HeadwaterError | None]) -> None:
        futures = [future for _, future in batch]
        try:
            self._loop.call_soon_threadsafe(_resolve, futures, results)
        except RuntimeError:
            return  # the loop is closed: nobody waits any more, and the data is safe

    def _transact(self, jobs: list[Job]) -> list[HeadwaterError | None]:
        try:
            results = self._in_transaction(lambda: self._apply_all(jobs))
        except sqlite3.Error as error:
            return [translated(error, self._path)] * len(jobs)
        except Exception:  # noqa: BLE001 -- a bug of ours must not end the thread: every later append would wait for ever
            if len(jobs) > 1:  # what SQLite cannot take of one stream must not fail the others'
                return [self._transact([job])[0] for job in jobs]
            _log.exception("the SQLite writer could not carry out a transaction")
            return [StoreError("the store could not carry this out")] * len(jobs)
        self.transactions += 1
        self.jobs += len(jobs)
        return results

    def _in_transaction(self, work: Callable[[], list[HeadwaterError | None]]) -> list[HeadwaterError | None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            results = work()
            self._connection.execute("COMMIT")
        except BaseException:
            self._data_version = -1  # nothing is known any more
            self._heads.clear()
            self._messages.clear()
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise
        return results

    def _apply_all(self, jobs: list[Job]) -> list[HeadwaterError | None]:
        (data_version,) = self._connection.execute("PRAGMA data_version").fetchone()
        if data_version != self._data_version or len(self._known) > MOST_KNOWN:
            self._known.clear()
            self._number, self._data_version = last_number(self._connection), data_version
        results = [self._apply(job) for job in jobs]
        self._write()
        return results

    def _apply(self, job: Job) -> HeadwaterError | None:
        if isinstance(job, Touch):
            self._touch(job)
            return None
        row = self._row(job.name)
        if not self._matches(job, row):
            return VersionConflict("the stream has changed")
        self._number += 1
        if isinstance(job, Commit):
            self._commit(job, row)
        elif row is not None:
            self._delete(job, row)
        return None

    def _row(self, name: str) -> Row | None:
        row = self._known.get(name)
        if row is None:
            query = "SELECT id, generation, version FROM stream WHERE name = ?"
            found = self._connection.execute(query, (name,)).fetchone()
            row = None if found is None else Row(*found)
        return row

    def _matches(self, job: Commit | Delete, row: Row | None) -> bool:
        if row is not None:
            return row.generation == job.expected.generation and row.version == job.expected.version
        if isinstance(job, Delete) or not isinstance(job.expected, Absent):
            return False
        return job.head.generation >= self._generation()

    def _commit(self, job: Commit, row: Row | None) -> None:
        head = job.head
        if row is not None and row.generation != head.generation:  # an expired stream is replaced
            self._bury(row)
            row = None
        if row is None:
            made = {**_columns(head, self._number), "name": job.name, "generation": head.generation}
            (stream,) = self._connection.execute(_INSERT, made).fetchone()
        else:
            stream = row.id
            self._heads[stream] = head, self._number
            if head.start > 0 and not isinstance(job.expected, Absent) and head.start > job.expected.start:
                self._trim(stream, head.start)
        self._known[job.name] = Row(stream, head.generation, head.version)
        self._messages += [(message_id(stream, m.offset.position), m.time, m.key, m.data) for m in job.messages]

    def _write(self) -> None:
        """What was put off, so that many commits of one stream write its row once."""
        if self._heads:
            rows = [{**_columns(head, number), "id": stream} for stream, (head, number) in self._heads.items()]
            self._connection.executemany(_UPDATE, rows)
            self._heads.clear()
        if self._messages:
            self._connection.executemany(_MESSAGE, self._messages)
            self._messages.clear()

    def _delete(self, job: Delete, row: Row) -> None:
        self._bury(row)
        self._known.pop(job.name, None)
        execute = self._connection.execute
        execute("UPDATE fact SET value = max(value, ?) WHERE name = 'generation'", (job.expected.generation + 1,))
        execute("INSERT INTO gone (changed, name) VALUES (?, ?)", (self._number, job.name))
        execute("DELETE FROM gone WHERE changed < ?", (self._number - GONE_KEPT,))

    def _bury(self, row: Row) -> None:
        self._write()
        self._connection.execute("DELETE FROM stream WHERE id = ?", (row.id,))
        self._connection.execute("INSERT OR REPLACE INTO garbage (stream, below) VALUES (?, NULL)", (row.id,))
        self._garbage = True

    def _trim(self, stream: int, below: int) -> None:
        self._connection.execute("INSERT OR REPLACE INTO garbage (stream, below) VALUES (?, ?)", (stream, below))
        self._garbage = True

    def _touch(self, job: Touch) -> None:
        self._connection.executemany(
            "UPDATE stream SET touched = max(touched, :now),"
            " expires = CASE WHEN ttl IS NULL THEN expires ELSE max(touched, :now) + ttl * 1000 END"
            " WHERE name = :name AND generation = :generation",
            [{"now": now, "name": name, "generation": generation} for (name, generation), now in job.touches.items()],
        )

    def _generation(self) -> int:
        (value,) = self._connection.execute("SELECT value FROM fact WHERE name = 'generation'").fetchone()
        return int(value)

    def _remove_garbage(self) -> None:
        try:
            self._in_transaction(self._remove_slice)
        except sqlite3.Error:
            self._garbage = False  # tried again after the next deletion or start; it only holds space

    def _remove_slice(self) -> list[HeadwaterError | None]:
        row = self._connection.execute("SELECT stream, below FROM garbage LIMIT 1").fetchone()
        if row is None:
            self._garbage = False
            return []
        stream, below = row
        first = message_id(stream, 0)
        beyond = message_id(stream + 1, 0) if below is None else message_id(stream, below + 1)
        found = self._connection.execute(_SLICE, (first, beyond, GARBAGE_SLICE)).fetchall()
        if not found:
            self._connection.execute("DELETE FROM garbage WHERE stream = ?", (stream,))
        else:
            last = next((id_ for id_, size in found if size > GARBAGE_BYTES), found[-1][0])
            self._connection.execute("DELETE FROM message WHERE id >= ? AND id <= ?", (first, last))
            self._give_back()
        return []

    def _give_back(self) -> None:
        (free,) = self._connection.execute("PRAGMA freelist_count").fetchone()
        for _ in range(min(free, VACUUM_PAGES)):
            # One at a time: Python steps a statement without columns once only, which gives back one page.
            self._connection.execute("PRAGMA incremental_vacuum(1)")


def _columns(head: Head, number: int) -> dict[str, object]:
    """What a stream's row says of a head that was the commit of this number."""
    return {
        "version": head.version,
        "changed": number,
        "owner": head.owner,
        "head": encode_head(head),
        "look": head.look,
        "ttl": head.config.ttl if head.deleted is None else None,  # a deleted one does not expire
        "touched": head.touched,
        "expires": head.expiry(),
    }


def last_number(connection: sqlite3.Connection) -> int:
    """Of the commits and deletions of the whole file; 0 before the first."""
    streams, gone = connection.execute(
        "SELECT (SELECT max(changed) FROM stream), (SELECT max(changed) FROM gone)"
    ).fetchone()
    return max(streams or 0, gone or 0)


def _resolve(futures: list[Future], results: list[HeadwaterError | None]) -> None:
    for future, error in zip(futures, results, strict=True):
        if future.done():
            continue
        if error is None:
            future.set_result(None)
        else:
            future.set_exception(error)
