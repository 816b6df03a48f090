"""The file format of the SQLite store: schema, versions, and how a connection is opened.

Knows sqlite3 and the errors; no threads, no asyncio. Blocking: called from the store's own threads only.

Format 2 (1 had no `look` and no `below`; it is brought up to date when it is opened):
    stream   one row a stream. `id` is never reused. `head` is msgpack (model.Head); the other columns repeat what SQL
             has to compare or search by. `changed` numbers the commits of the whole file, so that another process
             finds what is new since it last looked.
    message  one row a message. `id` is message_id(stream, position), so that a stream's messages stand together in the
             file's order; as a table of rowids it takes less than half the space of one keyed by two columns.
    gone     names deleted lately, numbered like `changed`.
    garbage  messages that are still to be removed, in slices, by the writer: of the stream with this id all, for it
             is gone, or those up to position `below`, for they were trimmed.
    fact     `generation`: above that of every stream ever deleted (G1).
"""

from __future__ import annotations

import sqlite3
import time
from pathlib import Path
from typing import Final

from headwater.errors import StoreFileUnusable, StoreUnavailable

APPLICATION_ID: Final = 0x48445752  # "HDWR"
FORMAT: Final = 2
BUSY_SECONDS: Final = 10.0
"""How long a statement waits for another process's transaction; those last milliseconds, so more means trouble."""

POSITION_BITS: Final = 32
"""Of a message's id: 4 billion messages in a stream, 2 billion streams in a file."""


def message_id(stream: int, position: int) -> int:
    """The id of the message at `position`; those of one stream lie between its positions 0 and 2**POSITION_BITS."""
    return stream << POSITION_BITS | position


_SCHEMA: Final = (
    """CREATE TABLE stream (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        generation INTEGER NOT NULL,
        version INTEGER NOT NULL,
        changed INTEGER NOT NULL,
        touched INTEGER NOT NULL,
        ttl INTEGER,
        expires INTEGER,
        look INTEGER,
        owner TEXT,
        head BLOB NOT NULL
    ) STRICT""",
    "CREATE INDEX stream_changed ON stream (changed)",
    "CREATE INDEX stream_expires ON stream (expires) WHERE expires IS NOT NULL",
    "CREATE INDEX stream_look ON stream (look) WHERE look IS NOT NULL",
    "CREATE INDEX stream_owner ON stream (owner) WHERE owner IS NOT NULL",
    """CREATE TABLE message (
        id INTEGER PRIMARY KEY,
        time INTEGER NOT NULL,
        key TEXT,
        data BLOB NOT NULL
    ) STRICT""",
    "CREATE TABLE gone (changed INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT",
    "CREATE TABLE garbage (stream INTEGER PRIMARY KEY, below INTEGER) STRICT",
    "CREATE TABLE fact (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    "INSERT INTO fact VALUES ('generation', 0)",
)

_FROM_1: Final = (
    "ALTER TABLE stream ADD COLUMN look INTEGER",
    "CREATE INDEX stream_look ON stream (look) WHERE look IS NOT NULL",
    "ALTER TABLE garbage ADD COLUMN below INTEGER",
)


def connect(path: str, *, synchronous: str = "FULL") -> sqlite3.Connection:
    """A connection to a file that is surely ours; the file is made where there is none.

    Raises StoreFileUnusable (not ours, or newer than we know) or StoreUnavailable (locked, no such folder, read-only).
    """
    if not Path(path).parent.is_dir():
        raise StoreUnavailable(f"the folder of {path} does not exist; create it first")
    try:
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
    except sqlite3.Error as error:
        raise translated(error, path) from error
    try:
        _prepare(connection, path)
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        # On macOS a plain fsync does not reach the disk; elsewhere these two change nothing.
        connection.execute("PRAGMA fullfsync = 1")
        connection.execute("PRAGMA checkpoint_fullfsync = 1")
    except sqlite3.Error as error:
        connection.close()
        raise translated(error, path) from error
    except StoreFileUnusable:
        connection.close()
        raise
    return connection


def _prepare(connection: sqlite3.Connection, path: str) -> None:
    found = _format(connection, path)
    if found == FORMAT:
        return
    if found == 0:
        # Only a file without tables takes this on: space that is freed can be given back without rewriting the whole.
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        _use_wal(connection)
    connection.execute("BEGIN IMMEDIATE")  # two processes may meet here; the second finds the work done
    try:
        found = _format(connection, path)
        if found < FORMAT:
            for statement in _SCHEMA if found == 0 else _FROM_1:
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {FORMAT}")
        connection.execute("COMMIT")
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _use_wal(connection: sqlite3.Connection) -> None:
    """Change the journal, for which SQLite does not itself wait: processes that start together meet here."""
    give_up = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > give_up:
                raise
        time.sleep(0.005)


def _format(connection: sqlite3.Connection, path: str) -> int:
    """The format of a file of ours; 0: an empty file. Anything else raises."""
    # The tables first: whoever sees those of a file that another process is just making, sees its id as well.
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    (application,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if application == APPLICATION_ID and 1 <= version <= FORMAT:
        return int(version)
    if application == APPLICATION_ID:
        raise StoreFileUnusable(
            f"{path} was written in format {version}; this Headwater knows format {FORMAT}. Use a newer Headwater."
        )
    if application or tables:
        raise StoreFileUnusable(f"{path} is an SQLite file of another program; name another file for the store")
    return 0


def translated(error: sqlite3.Error, path: str) -> StoreFileUnusable | StoreUnavailable:
    """What an error of sqlite3 means to our callers, with what to do about it and no internals."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_NOTADB:
        return StoreFileUnusable(f"{path} is not an SQLite file; name another file for the store")
    if code == sqlite3.SQLITE_CORRUPT:
        return StoreFileUnusable(f"{path} is damaged; restore it from a backup (sqlite3's .recover may help)")
    reasons = {
        sqlite3.SQLITE_BUSY: "is locked by another process; stop it, or wait until its backup or migration is done",
        sqlite3.SQLITE_LOCKED: "is locked by another process; stop it, or wait until its backup or migration is done",
        sqlite3.SQLITE_FULL: "cannot grow: the disk is full",
        sqlite3.SQLITE_READONLY: "is read-only for this user",
        sqlite3.SQLITE_CANTOPEN: "cannot be opened; check the path and its permissions",
        sqlite3.SQLITE_IOERR: "cannot be read or written: the disk reports an error",
    }
    return StoreUnavailable(f"{path} {reasons.get(code, 'cannot be used right now')}")
