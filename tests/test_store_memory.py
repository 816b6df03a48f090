"""The store in memory: the contract, and what it says of itself."""

import asyncio
from typing import Any

import pytest

from headwater import testing
from headwater.decide import Create, Item, Trim, decide
from headwater.errors import BadRequest
from headwater.model import Absent
from headwater.stores import store_from_url
from headwater.stores.memory import MemoryStore
from headwater.stores.sqlite import SqliteStore
from headwater.streams import Streams


async def test_it_keeps_the_contract():
    await testing.check_store(MemoryStore)


async def test_a_store_that_breaks_the_contract_is_told_which_part(monkeypatch):
    monkeypatch.setattr("headwater.testing.witness.MOMENT_SECONDS", 0.01)

    class Forgetful(MemoryStore):
        def touch(self, name, generation, now):
            """Reads do not count."""

        async def owned(self, owner):
            return []

    with pytest.raises(AssertionError, match=r"touches_only_move_forward.*a touch never became visible"):
        await testing.check_store(Forgetful)


async def test_a_store_that_loses_half_a_batch_is_found_out():
    class Half(MemoryStore):
        def commit(self, name, expected, head, messages):
            return super().commit(name, expected, head, messages[:2])

    with pytest.raises(AssertionError, match="G"):
        await testing.check_store(Half)


async def test_what_it_holds_outlives_a_closing_of_the_object():
    store = MemoryStore()
    await store.open()
    decision = decide(Absent(0), Create(), 1)
    await store.commit("a", Absent(0), decision.head, [])
    await store.aclose()
    await store.open()
    assert await store.load("a") == decision.head
    assert store.statistics() == {"streams": 1, "messages": 0}
    assert repr(store) == "<MemoryStore [1 streams]>"


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///app.db", "app.db"),
        ("sqlite:////var/lib/a%20b.db", "/var/lib/a b.db"),
        ("sqlite:///a/b.db", "a/b.db"),
    ],
)
def test_a_url_names_a_file_as_in_sqlalchemy(url, path):
    store = store_from_url(url)
    assert isinstance(store, SqliteStore)
    assert store.path == path
    assert "synchronous=full" in repr(store)


def test_a_url_names_the_faster_mode_and_the_memory():
    assert "synchronous=normal" in repr(store_from_url("sqlite:///app.db?sync=normal"))
    assert isinstance(store_from_url("memory:"), MemoryStore)


@pytest.mark.parametrize(
    ("url", "hint"),
    [
        ("postgres://db", "sqlite:"),
        ("", "memory:"),
        ("sqlite:", "sqlite:///file.db"),
        ("sqlite://app.db", "sqlite:///file.db"),
        ("sqlite:///:memory:", "in memory: `memory:`"),
        ("sqlite:///app.db?sync=off", "normal"),
        ("sqlite:///app.db?sync=", "normal"),
        ("sqlite:///app.db?foo=1", "'foo' is not known; this store takes only sync"),
        ("sqlite:///app.db?sync=normal&Sync", "'Sync' is not known"),
        ("sqlite:///app.db?sync=full&sync=normal", "twice"),
        ("memory:?sync=full", "takes none"),
    ],
)
def test_a_url_that_names_no_store_is_answered_with_one_that_does(url, hint):
    with pytest.raises(BadRequest, match=hint):
        store_from_url(url)


async def test_what_is_trimmed_or_deleted_takes_no_space():
    store = MemoryStore()
    await store.open()
    head = decide(Absent(0), Create(items=[Item(b"x")] * 20), 1)
    await store.commit("a", Absent(0), head.head, head.messages)
    trim = decide(head.head, Trim(head.head, 15, 15, None), 1)
    await store.commit("a", head.head, trim.head, [])
    assert store.statistics() == {"streams": 1, "messages": 5}
    await store.delete("a", trim.head)
    assert store.statistics() == {"streams": 0, "messages": 0}
    await store.aclose()


async def test_a_store_that_is_opened_again_has_nothing_more_to_let_go_of() -> None:
    told: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    streams = Streams(MemoryStore())
    async with streams:
        await streams.create("s")
        for _ in range(40):
            await streams.append("s", *[b"1"] * 1024)
        await streams.delete("s")
        await streams.store.aclose()
        await streams.store.open()
        for _ in range(5):
            await asyncio.sleep(0)
    assert told == []
