"""The store in a SQLite file: the contract, other processes, sudden death, and files that cannot be used."""

import asyncio
import itertools
import os
import pathlib
import signal
import sqlite3
import statistics
import subprocess
import sys
import threading
import time

import msgspec
import pytest

from headwater.decide import Append, Create, Item, Trim, decide
from headwater.errors import StoreError, StoreFileUnusable, StoreUnavailable, VersionConflict
from headwater.model import Absent, Config, Head, Offset
from headwater.stores import sqlite_file, sqlite_writer
from headwater.stores.sqlite import SqliteStore, _due, _list, _owned, _owners, _Watcher
from headwater.testing import check_store

NOTHING = Absent(0)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "a.db")


@pytest.fixture
async def store(path):
    store = SqliteStore(path)
    await store.open()
    yield store
    await store.aclose()


class Stream:
    """One stream, each commit made on the head that the one before will leave."""

    def __init__(self, store, name, before=NOTHING):
        self.store, self.name, self.head = store, name, before

    def commit(self, request):
        decision = decide(self.head, request, 1)
        before, self.head = self.head, decision.head
        return self.store.commit(self.name, before, decision.head, decision.messages)

    def create(self, *data, **config):
        return self.commit(Create(Config(**config), [Item(one) for one in data]))

    def append(self, *data, close=False):
        return self.commit(Append([Item(one) for one in data], close=close))


async def data_of(store, name):
    head = await store.load(name)
    found, offset = [], Offset(head.generation, head.first)
    while page := await store.read(name, offset, max_bytes=1 << 20):
        offset = page[-1].offset
        found += [message.data for message in page]
    return found


def run_python(script, *arguments):
    """Another process, its output read line by line."""
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def ended(process):
    process.kill()
    process.communicate()


# -- the contract ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_it_keeps_the_contract(tmp_path, synchronous):
    numbers, last = itertools.count(), []

    def make():
        last[:] = [str(tmp_path / f"{next(numbers)}.db")]
        return SqliteStore(last[0], synchronous=synchronous)

    await check_store(make, reopen=lambda: SqliteStore(last[0], synchronous=synchronous))


# -- the writer --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("synchronous", "pragma"), [("full", 2), ("normal", 1)])
async def test_the_writing_connection_is_as_durable_as_was_asked(path, synchronous, pragma):
    store = SqliteStore(path, synchronous=synchronous)
    await store.open()
    try:
        connection = store._writer._connection
        assert connection.execute("PRAGMA synchronous").fetchone() == (pragma,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert connection.execute("PRAGMA fullfsync").fetchone() == (1,)
    finally:
        await store.aclose()


async def test_appends_to_many_streams_share_transactions(store):
    streams = [Stream(store, f"s/{number}") for number in range(50)]
    await asyncio.gather(*(stream.create() for stream in streams))
    before = store.statistics()
    await asyncio.gather(*(stream.append(b"x") for _ in range(4) for stream in streams))
    after = store.statistics()
    assert after["jobs"] - before["jobs"] == 200
    assert after["transactions"] - before["transactions"] <= 20
    assert [await data_of(store, stream.name) for stream in streams] == [[b"x"] * 4] * 50


async def test_a_transaction_writes_the_row_of_a_stream_once(store, monkeypatch):
    """However many commits of it there are; one that does not match is left out, and changes nothing for the others."""
    written = []
    write = sqlite_writer.Writer._write

    def noted(writer):
        written.append((len(writer._heads), len(writer._messages)))
        write(writer)

    stream = Stream(store, "s")
    await stream.create(b"0")
    writer = store._writer
    monkeypatch.setattr(sqlite_writer.Writer, "_write", noted)
    stale = Stream(store, "s", stream.head)
    begun, gate = threading.Event(), threading.Event()
    in_transaction = writer._in_transaction

    def held(work):
        begun.set()
        gate.wait()
        return in_transaction(work)

    monkeypatch.setattr(writer, "_in_transaction", held)
    commits = [stream.append(b"1")]
    while not begun.is_set():  # the thread has it, and waits
        await asyncio.sleep(0)
    commits += [stream.append(b"2"), stale.append(b"no"), stream.append(b"3"), stale.append(b"nor this")]
    gate.set()
    results = await asyncio.gather(*commits, return_exceptions=True)
    assert [type(result) for result in results] == [type(None)] * 2 + [VersionConflict, type(None), VersionConflict]
    assert written == [(1, 1), (1, 2)]
    assert await data_of(store, "s") == [b"0", b"1", b"2", b"3"]
    assert (await store.load("s")).version == stream.head.version


async def test_a_transaction_that_failed_leaves_nothing_believed(store, monkeypatch):
    stream = Stream(store, "s")
    await stream.create(b"0")
    before = stream.head

    def fail(writer):
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(sqlite_writer.Writer, "_write", fail)
        with pytest.raises(StoreUnavailable):
            await stream.append(b"lost")
    again = Stream(store, "s", before)
    await again.append(b"1")
    assert await data_of(store, "s") == [b"0", b"1"]


async def test_what_another_connection_wrote_is_seen(store, path):
    """What the writer knows of rows counts only so long as nobody else has written."""
    stream = Stream(store, "s")
    await stream.create(b"0")
    other = SqliteStore(path)
    await other.open()
    theirs = Stream(other, "s", stream.head)
    await theirs.append(b"1")
    with pytest.raises(VersionConflict):
        await stream.append(b"2")
    assert (await other.load("s")).tail == 2
    ours = Stream(store, "s", theirs.head)
    await ours.append(b"3")
    await other.aclose()
    assert await data_of(store, "s") == [b"0", b"1", b"3"]


async def test_what_sqlite_cannot_take_of_one_stream_does_not_fail_the_others(store):
    good, bad = Stream(store, "good"), Stream(store, "bad")
    results = await asyncio.gather(
        good.create(b"1"),
        bad.commit(Create(items=[Item(b"1", "\ud800")])),
        Stream(store, "\ud800").create(),
        Stream(store, "long").create(ttl=2**63),
        good.append(b"2"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [type(None), StoreError, StoreError, StoreError, type(None)]
    assert str(results[1]) == "the store could not carry this out"
    assert await data_of(store, "good") == [b"1", b"2"]
    assert isinstance(await store.load("bad"), Absent)
    assert isinstance(await store.load("long"), Absent)


async def test_the_messages_of_deleted_streams_are_removed_in_slices(store, path, monkeypatch):
    monkeypatch.setattr(sqlite_writer, "GARBAGE_SLICE", 100)
    slices = []
    remove_slice = sqlite_writer.Writer._remove_slice

    def counted(writer):
        before = writer._connection.total_changes
        result = remove_slice(writer)
        slices.append(writer._connection.total_changes - before)
        return result

    monkeypatch.setattr(sqlite_writer.Writer, "_remove_slice", counted)
    gone, kept = Stream(store, "gone"), Stream(store, "kept")
    await gone.create(*[b"x"] * 950, ttl=1)
    await kept.create(*[b"y"] * 50)
    await store.delete("gone", gone.head)
    await store.aclose()  # in whatever state the removal is: the rest is done after the next start
    await store.open()
    while store._writer._garbage:
        await Stream(store, "other", await store.load("other")).create()
        await store.delete("other", await store.load("other"))
        await asyncio.sleep(0.001)
    assert max(slices) <= 101
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT count(*) FROM message").fetchone() == (50,)
        assert connection.execute("SELECT count(*) FROM garbage").fetchone() == (0,)
    connection.close()
    assert await data_of(store, "kept") == [b"y"] * 50


async def until_clean(store):
    async with asyncio.timeout(10):
        while store._writer._garbage:
            await asyncio.sleep(0.001)


def rows_of(path, statement):
    connection = sqlite3.connect(path)
    rows = connection.execute(statement).fetchall()
    connection.close()
    return rows


async def test_what_is_trimmed_is_given_back_to_the_system_in_slices(store, path, monkeypatch):
    monkeypatch.setattr(sqlite_writer, "GARBAGE_SLICE", 100)
    stream, other = Stream(store, "a"), Stream(store, "b")
    await stream.create(*[b"x" * 3000] * 1000)
    await other.create(*[b"y" * 3000] * 50)
    pages = rows_of(path, "PRAGMA page_count")[0][0]
    await stream.commit(Trim(stream.head, 990, 0, None))
    await until_clean(store)
    assert rows_of(path, "SELECT count(*) FROM message") == [(60,)]
    assert rows_of(path, "SELECT count(*) FROM garbage") == [(0,)]
    assert rows_of(path, "PRAGMA page_count")[0][0] < pages / 5
    assert rows_of(path, "PRAGMA freelist_count")[0][0] < 10
    assert rows_of(path, "PRAGMA integrity_check") == [("ok",)]
    assert await data_of(store, "b") == [b"y" * 3000] * 50
    assert len(await store.read("a", stream.head.offset._replace(position=990), max_bytes=1 << 20)) == 10


async def test_trims_and_a_deletion_before_the_space_of_the_first_is_freed(path, monkeypatch):
    """The rows of what is to be removed are replaced by later ones, which say more."""
    held = threading.Event()
    remove = sqlite_writer.Writer._remove_garbage

    def waiting(writer):
        if held.is_set():
            return remove(writer)
        writer._garbage = False
        return None

    monkeypatch.setattr(sqlite_writer.Writer, "_remove_garbage", waiting)
    store = SqliteStore(path, synchronous="normal")
    await store.open()
    try:
        trimmed, deleted, replaced = (Stream(store, name) for name in ("trimmed", "deleted", "replaced"))
        for stream in (trimmed, deleted, replaced):
            await stream.create(*[b"x"] * 20, ttl=1)
            await stream.commit(Trim(stream.head, 5, 5, None))
            await stream.commit(Trim(stream.head, 12, 7, None))
        assert rows_of(path, "SELECT stream, below FROM garbage") == [(1, 12), (2, 12), (3, 12)]
        await store.delete("deleted", deleted.head)
        replacing = decide(replaced.head, Create(items=[Item(b"new")]), 5_000)
        await store.commit("replaced", replaced.head, replacing.head, replacing.messages)
        assert rows_of(path, "SELECT stream, below FROM garbage") == [(1, 12), (2, None), (3, None)]
        held.set()
        await Stream(store, "other", await store.load("other")).create()
        await store.delete("other", await store.load("other"))
        await until_clean(store)
        assert rows_of(path, "SELECT id >> 32, count(*) FROM message GROUP BY 1") == [(1, 8), (4, 1)]
        assert rows_of(path, "SELECT count(*) FROM garbage") == [(0,)]
        assert await data_of(store, "replaced") == [b"new"]
    finally:
        await store.aclose()


async def test_a_trim_that_a_crash_cut_short_goes_on_after_the_next_start(path, monkeypatch):
    store = SqliteStore(path, synchronous="normal")
    with monkeypatch.context() as patch:
        patch.setattr(sqlite_writer.Writer, "_remove_garbage", lambda writer: setattr(writer, "_garbage", False))
        await store.open()
        stream = Stream(store, "a")
        await stream.create(*[b"x"] * 20)
        await stream.commit(Trim(stream.head, 12, 12, None))
        await store.aclose()
    assert rows_of(path, "SELECT count(*) FROM message") == [(20,)]
    await store.open()
    await until_clean(store)
    await store.aclose()
    assert rows_of(path, "SELECT count(*) FROM message") == [(8,)]


async def test_a_full_disk_writes_nothing_by_halves_and_is_got_over(store):
    stream = Stream(store, "a")
    await stream.create(b"1")
    connection = store._writer._connection
    ((pages,), (most,)) = (connection.execute(f"PRAGMA {name}").fetchone() for name in ("page_count", "max_page_count"))
    connection.execute(f"PRAGMA max_page_count = {pages + 4}")
    held = stream.head
    with pytest.raises(StoreUnavailable, match=r"a\.db cannot grow: the disk is full"):
        await stream.append(b"small", b"x" * 1_000_000, close=True)
    assert await store.load("a") == held
    assert await data_of(store, "a") == [b"1"]
    connection.execute(f"PRAGMA max_page_count = {most}")
    await Stream(store, "a", held).append(b"x" * 1_000_000)
    assert [len(data) for data in await data_of(store, "a")] == [1, 1_000_000]


async def test_the_last_to_close_leaves_one_whole_file(path):
    store, other = SqliteStore(path), SqliteStore(path)
    await store.open()
    await other.open()
    await Stream(store, "a").create(b"1")
    assert await data_of(other, "a") == [b"1"]
    await store.aclose()
    assert await data_of(other, "a") == [b"1"]
    await other.aclose()
    assert [name for name in os.listdir(os.path.dirname(path)) if not name.endswith(".db")] == []


async def test_it_says_what_it_is(store, path):
    assert repr(store) == f"<SqliteStore {path} [open, synchronous=full]>"
    await store.aclose()
    assert repr(store) == f"<SqliteStore {path} [closed, synchronous=full]>"
    assert store.statistics() == {}


# -- files that cannot be used -----------------------------------------------------------------------------------------


async def refused(path, kind, message):
    store = SqliteStore(str(path))
    with pytest.raises(kind, match=message):
        await store.open()
    assert "closed" in repr(store)


async def test_a_file_of_another_program_is_left_alone(path):
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE users (name)")
    connection.close()
    before = pathlib.Path(path).read_bytes()
    await refused(path, StoreFileUnusable, "another program; name another file")
    assert pathlib.Path(path).read_bytes() == before


async def test_a_file_that_is_no_database_is_left_alone(path):
    before = os.urandom(10_000)
    pathlib.Path(path).write_bytes(before)
    await refused(path, StoreFileUnusable, "not an SQLite file; name another file")
    assert pathlib.Path(path).read_bytes() == before


async def test_a_file_of_a_newer_headwater_is_left_alone(path, store):
    await store.aclose()
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 3")
    connection.close()
    await refused(path, StoreFileUnusable, "format 3; this Headwater knows format 2. Use a newer Headwater")


async def test_a_missing_folder_is_named(tmp_path):
    await refused(tmp_path / "no" / "a.db", StoreUnavailable, "folder of .* does not exist; create it first")


async def test_a_path_that_is_a_folder_cannot_be_opened(tmp_path):
    await refused(tmp_path, StoreUnavailable, "cannot be opened; check the path and its permissions")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
async def test_a_file_that_may_not_be_written_is_said_to_be_read_only(path, store):
    await store.aclose()
    os.chmod(path, 0o400)
    store = SqliteStore(path)
    await store.open()
    with pytest.raises(StoreUnavailable, match="read-only for this user"):
        await Stream(store, "a").create()
    await store.aclose()


def test_what_sqlite_says_of_a_read_only_file_is_passed_on(path):
    """As root no file is read-only; SQLite can be told that it is."""
    sqlite_file.connect(path).close()
    connection = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    with pytest.raises(sqlite3.Error) as raised:
        connection.execute("DELETE FROM stream")
    connection.close()
    error = sqlite_file.translated(raised.value, path)
    assert isinstance(error, StoreUnavailable)
    assert str(error) == f"{path} is read-only for this user"
    assert error.retry


async def test_a_locked_new_file_is_said_to_be_locked(path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    locking = sqlite3.connect(path, isolation_level=None)
    locking.execute("BEGIN EXCLUSIVE")
    await refused(path, StoreUnavailable, "locked by another process; stop it, or wait")
    locking.execute("ROLLBACK")
    locking.close()
    store = SqliteStore(path)
    await store.open()
    await store.aclose()


async def test_a_store_that_is_locked_for_a_while_can_be_read_and_is_written_again_later(path, monkeypatch):
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.05)
    store = SqliteStore(path)
    await store.open()
    stream = Stream(store, "a")
    await stream.create(b"1")
    held = stream.head
    locking = sqlite3.connect(path, isolation_level=None)
    locking.execute("BEGIN EXCLUSIVE")
    with pytest.raises(StoreUnavailable, match="locked by another process; stop it, or wait"):
        await stream.append(b"?")
    assert await data_of(store, "a") == [b"1"]
    locking.execute("ROLLBACK")
    locking.close()
    await Stream(store, "a", held).append(b"2")
    assert await data_of(store, "a") == [b"1", b"2"]
    await store.aclose()


# -- files of an older format ------------------------------------------------------------------------------------------

FORMAT_1 = """
CREATE TABLE stream (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    generation INTEGER NOT NULL,
    version INTEGER NOT NULL,
    changed INTEGER NOT NULL,
    touched INTEGER NOT NULL,
    ttl INTEGER,
    expires INTEGER,
    owner TEXT,
    head BLOB NOT NULL
) STRICT;
CREATE INDEX stream_changed ON stream (changed);
CREATE INDEX stream_expires ON stream (expires) WHERE expires IS NOT NULL;
CREATE INDEX stream_owner ON stream (owner) WHERE owner IS NOT NULL;
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    time INTEGER NOT NULL,
    key TEXT,
    data BLOB NOT NULL
) STRICT;
CREATE TABLE gone (changed INTEGER PRIMARY KEY, name TEXT NOT NULL) STRICT;
CREATE TABLE garbage (stream INTEGER PRIMARY KEY) STRICT;
CREATE TABLE fact (name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
INSERT INTO fact VALUES ('generation', 4);
"""


def write_format_1(path):
    """A file as Headwater wrote it before: an open stream, one that expires, and what is left of a deleted one."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(FORMAT_1)
    connection.execute(f"PRAGMA application_id = {sqlite_file.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    heads = {
        "a": {"config": {"content_type": "text/plain"}, "generation": 3, "version": 7, "tail": 2, "size": 2},
        "b": {"config": {"ttl": 60}, "generation": 4, "version": 9, "tail": 1, "size": 1, "touched": 1000},
    }
    for number, (name, head) in enumerate(heads.items(), start=1):
        ttl, expires = (60, 61_000) if name == "b" else (None, None)
        row = (number, name, head["generation"], head["version"], number, head.get("touched", 0), ttl, expires, None)
        connection.execute("INSERT INTO stream VALUES (?,?,?,?,?,?,?,?,?,?)", (*row, msgspec.msgpack.encode(head)))
        for position in range(1, head["tail"] + 1):
            data = b"%d" % position
            connection.execute("INSERT INTO message VALUES (?, 5, NULL, ?)", (number << 32 | position, data))
    connection.execute("INSERT INTO message VALUES (?, 5, NULL, x'00')", (9 << 32 | 1,))
    connection.execute("INSERT INTO garbage VALUES (9)")
    connection.close()


async def test_a_file_of_the_format_before_is_brought_up_to_date_and_keeps_its_streams(path):
    write_format_1(path)
    store = SqliteStore(path)
    await store.open()
    try:
        assert (await store.load("a")).offset == Offset(3, 2)
        assert await data_of(store, "a") == [b"1", b"2"]
        assert [name for name, _ in await store.due(61_000, limit=9)] == ["b"]
        stream = Stream(store, "a", await store.load("a"))
        await stream.append(b"3")
        await stream.commit(Trim(stream.head, 2, 2, 99))
        assert await data_of(store, "a") == [b"3"]
        assert [name for name, _ in await store.due(99, limit=9)] == ["a"]
        assert await store.load("new") == Absent(4)
        await until_clean(store)
    finally:
        await store.aclose()
    assert rows_of(path, "PRAGMA user_version") == [(2,)]
    rows = rows_of(path, "SELECT id, data FROM message ORDER BY id")
    assert rows == [(1 << 32 | 3, b"3"), (2 << 32 | 1, b"1")]


def test_a_file_that_was_brought_up_to_date_is_as_a_new_one(path):
    write_format_1(path)
    shapes = []
    for file in (path, path + ".new"):
        connection = sqlite_file.connect(file)
        shapes.append(shape(connection))
        connection.close()
    assert shapes[0] == shapes[1]


def shape(connection):
    """Of every table its columns, and of every index what it is on."""
    names = [
        name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    ]
    tables = {
        name: sorted(column[1:4] for column in connection.execute(f"PRAGMA table_info({name})")) for name in names
    }
    indexes = connection.execute("SELECT sql FROM sqlite_master WHERE type = 'index' ORDER BY sql").fetchall()
    return tables, indexes


UPGRADE_TOGETHER = """
import asyncio, sys
from headwater.stores.sqlite import SqliteStore

async def main():
    print("ready", flush=True)
    for path in sys.stdin.read().split():
        store = SqliteStore(path)
        await store.open()
        assert (await store.load("a")).tail == 2
        await store.aclose()
    print("done", flush=True)

asyncio.run(main())
"""


def test_processes_that_upgrade_together_do_it_once(tmp_path):
    paths = [str(tmp_path / f"{number}.db") for number in range(25)]
    for path in paths:
        write_format_1(path)
    processes = [run_python(UPGRADE_TOGETHER) for _ in range(3)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write("\n".join(paths))
            process.stdin.close()
        assert [process.stdout.read() for process in processes] == ["done\n"] * 3
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


# -- other processes ---------------------------------------------------------------------------------------------------

APPEND_LOOP = """
import asyncio, sys
from headwater import streams

async def main(path):
    async with streams.Streams(f"sqlite:///{path}") as log:
        await log.create("a")
        print("ready", flush=True)
        count = 0
        async def one():
            nonlocal count
            while True:
                count += 1
                offset = await log.append("a", b"%d" % count, b"pair")
                print(offset.position, flush=True)
        await asyncio.gather(*(one() for _ in range(3)))

asyncio.run(main(sys.argv[1]))
"""


async def test_every_acknowledged_append_survives_kill_9(path):
    for _ in range(2):
        process = run_python(APPEND_LOOP, path)
        try:
            assert process.stdout.readline() == "ready\n"
            acknowledged = [int(process.stdout.readline()) for _ in range(150)]
            process.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in process.stdout.read().split("\n")[:-1] if line]
        finally:
            ended(process)
        store = SqliteStore(path)
        await store.open()
        head = await store.load("a")
        assert head.tail >= max(acknowledged)
        assert head.tail % 2 == 0, "half of a batch"
        found, offset = [], Offset(head.generation, 0)
        while page := await store.read("a", offset, max_bytes=1 << 20):
            offset = page[-1].offset
            found += page
        assert [message.offset.position for message in found] == list(range(1, head.tail + 1))
        assert {message.data for message in found[1::2]} == {b"pair"}
        await store.aclose()


ECHO = """
import asyncio, sys, time
from headwater import streams

async def main(path):
    loop = asyncio.get_running_loop()
    async with streams.Streams(f"sqlite:///{path}") as log:
        print("ready", flush=True)
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            await log.append("a", line.strip())
            print(time.monotonic(), flush=True)

asyncio.run(main(sys.argv[1]))
"""


async def test_another_process_sees_an_append_within_milliseconds(path, store):
    await Stream(store, "a").create()
    woken = asyncio.Event()
    store.on_wake = lambda name: woken.set()
    store.watch("a", watched=True)
    process = run_python(ECHO, path)
    try:
        assert process.stdout.readline() == "ready\n"
        delays = []
        for number in range(20):
            await asyncio.sleep(0.003 * (number % 5))  # not in step with the watcher
            while woken.is_set():
                woken.clear()
                await asyncio.sleep(0.01)
            process.stdin.write(f"{number}\n")
            line = asyncio.get_running_loop().run_in_executor(None, process.stdout.readline)
            await asyncio.wait_for(woken.wait(), 5)
            seen = time.monotonic()
            delays.append(max(0.0, seen - float(await line)))
            assert (await store.load("a")).tail == number + 1
    finally:
        ended(process)
    print(f"seen after {statistics.median(delays) * 1000:.1f} ms (median), {max(delays) * 1000:.1f} ms at most")
    assert statistics.median(delays) < 0.25


OPEN_TOGETHER = """
import asyncio, sys
from headwater.stores.sqlite import SqliteStore, _list, _Watcher

async def main():
    print("ready", flush=True)
    for path in sys.stdin.read().split():
        store = SqliteStore(path)
        await store.open()
        assert (await store.load("a")).generation == 0
        await store.aclose()
    print("done", flush=True)

asyncio.run(main())
"""


def test_processes_that_start_together_make_one_file(tmp_path):
    paths = "\n".join(str(tmp_path / f"{number}.db") for number in range(40))
    processes = [run_python(OPEN_TOGETHER) for _ in range(3)]
    try:
        assert [process.stdout.readline() for process in processes] == ["ready\n"] * 3
        for process in processes:
            process.stdin.write(paths)
            process.stdin.close()
        assert [process.stdout.read() for process in processes] == ["done\n"] * 3
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()


async def test_a_watcher_that_slept_for_long_wakes_all_it_watches(path, store, monkeypatch):
    """Deletions are remembered for a while only: past that, everybody is asked to look."""
    from headwater.stores import sqlite as sqlite_module

    other = SqliteStore(path)
    await other.open()
    stream = Stream(other, "a")
    await stream.create()
    woken = asyncio.Queue()
    store.on_wake = woken.put_nowait
    store.watch("a", watched=True)
    assert await asyncio.wait_for(woken.get(), 5) == "a"
    store.watch("a", watched=False)
    monkeypatch.setattr(sqlite_module, "GONE_KEPT", 5)
    monkeypatch.setattr(sqlite_writer, "GONE_KEPT", 5)
    await asyncio.sleep(0.02)  # the watcher comes to rest
    while not woken.empty():
        woken.get_nowait()
    await other.delete("a", stream.head)
    for number in range(10):
        passing = Stream(other, f"s/{number}", await other.load(f"s/{number}"))
        await passing.create()
        await other.delete(passing.name, passing.head)
    store.watch("a", watched=True)
    assert await asyncio.wait_for(woken.get(), 5) == "a"
    await other.aclose()


async def test_two_objects_on_one_file_take_turns(path, store):
    """Whoever is late gets a conflict, so nothing is lost between two that write one stream."""
    other = SqliteStore(path)
    await other.open()
    await Stream(store, "a").create()

    async def write(to, mark):
        done = conflicts = 0
        while done < 30:
            head = await to.load("a")
            assert isinstance(head, Head)
            try:
                await Stream(to, "a", head).append(b"%s%d" % (mark, done))
                done += 1
            except VersionConflict:
                conflicts += 1
        return conflicts

    await asyncio.gather(write(store, b"x"), write(other, b"y"))
    found = await data_of(store, "a")
    for mark in (b"x", b"y"):
        assert [data for data in found if data.startswith(mark)] == [b"%s%d" % (mark, number) for number in range(30)]
    await other.aclose()


async def test_a_page_of_a_list_costs_its_own_rows_only(store):
    """However far down the list it stands, and from either end."""
    await asyncio.gather(*(Stream(store, f"s/{number:04}").create() for number in range(3000)))
    steps = 0

    def count():
        nonlocal steps
        steps += 1

    def counted(connection, *given):
        connection.set_progress_handler(count, 10)
        return _list(connection, *given)

    for newest, first in ((False, "s/2900"), (True, "s/0099")):
        found = await store._read(counted, "s/", "s/0100" if newest else "s/2899", 10, newest)
        assert found[0][0] == first
        assert len(found) == 10
    assert steps < 200


async def test_the_first_look_for_commits_of_others_does_not_read_the_whole_file(store, path):
    await asyncio.gather(*(Stream(store, f"s/{number:04}").create() for number in range(3000)))
    other = SqliteStore(path)
    steps, woken = 0, asyncio.Event()
    look = _Watcher._look

    def counted(watcher, connection, seen):
        def count():
            nonlocal steps
            steps += 1

        connection.set_progress_handler(count, 10)
        return look(watcher, connection, seen)

    await other.open()
    other._watcher._look = counted.__get__(other._watcher)
    other.on_wake = lambda name: woken.set()
    other.watch("s/0001", watched=True)
    async with asyncio.timeout(5):
        await woken.wait()
    await other.aclose()
    assert steps < 200


async def test_closing_that_is_cancelled_closes_none_the_less(path):
    store = SqliteStore(path)
    await store.open()
    await Stream(store, "a").create(b"1")
    await store.load("a")
    closing = asyncio.create_task(store.aclose())
    await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    async with asyncio.timeout(5):
        while pathlib.Path(path + "-wal").exists():  # until the last connection has written it back
            await asyncio.sleep(0.001)


async def test_a_reader_that_leaves_while_the_store_closes_does_not_stop_the_closing(path):
    """It was the last one: the watcher would wait for the next, and the closing for the watcher."""
    store = SqliteStore(path)
    await store.open()
    store.watch("a", watched=True)
    watcher = store._watcher
    watcher.stop()
    watcher.watch("a", watched=False)
    assert watcher._wanted.is_set()
    await store.aclose()


# -- what is asked for every few seconds -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "query",
    [_owners, lambda connection: _owned(connection, "i_1"), lambda connection: _due(connection, 1, 100)],
    ids=["owners", "owned", "due"],
)
def test_what_timers_ask_for_is_found_in_an_index(tmp_path, query):
    """It costs what is found, however many streams there are."""
    connection = sqlite_file.connect(str(tmp_path / "a.db"))
    asked = []
    connection.set_trace_callback(asked.append)
    query(connection)
    connection.set_trace_callback(None)
    plan = [row[-1] for row in connection.execute(f"EXPLAIN QUERY PLAN {asked[-1]}")]
    connection.close()
    assert any("INDEX stream_" in step for step in plan), plan
    assert not [step for step in plan if step.startswith("SCAN stream")], plan
