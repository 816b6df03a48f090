"""writer.py: sends that are joined, endings of every kind, and a store that fails for a while."""

import asyncio

import pytest

from headwater import writer as writer_module
from headwater.decide import Create
from headwater.errors import Interrupted, ProducerFenced, StoreUnavailable, StreamClosed, StreamExists, TooLarge
from headwater.model import Config
from headwater.stores.memory import MemoryStore
from headwater.stores.sqlite import SqliteStore
from headwater.streams import Limits, Streams


class Slow(MemoryStore):
    """Commits wait at a gate; some fail, before or after they are carried out."""

    def __init__(self):
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()
        self.commits = 0
        self.failures = []
        """What becomes of the next commits: "before", "after", or None for success."""

    def commit(self, name, expected, head, messages):
        return asyncio.ensure_future(self._late(name, expected, head, messages))

    async def _late(self, *commit):
        await self.gate.wait()
        failure = self.failures.pop(0) if self.failures else None
        if failure != "before":
            await super().commit(*commit)
            self.commits += 1
        if failure:
            raise StoreUnavailable("the answer was lost")


@pytest.fixture
def slow():
    return Slow()


@pytest.fixture
async def streams(slow):
    async with Streams(slow) as streams:
        yield streams


async def ending_of(streams, name="a"):
    """All data of a closed stream, and its outcome."""
    found = []
    async with asyncio.timeout(5):
        async for page in streams.follow(name):
            found += [message.data for message in page.messages]
    return found, page.outcome


async def until(condition):
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0)


# -- sending -----------------------------------------------------------------------------------------------------------


async def test_what_is_sent_in_a_block_is_a_stream_that_completes(streams):
    async with streams.writer("a", labels={"l": "1"}) as writer:
        await writer.send({"done": 1})
        await writer.send("text", key="k")
        await writer.send(b"raw")
        offset = await writer.flush()
        assert offset == writer.offset == (await streams.head("a")).offset
        assert (await streams.head("a")).owner == streams.leases.owner
    assert await ending_of(streams) == ([b'{"done":1}', b'"text"', b"raw"], "completed")
    head = await streams.head("a")
    assert (head.owner, head.labels) == (None, {"l": "1"})
    assert [message.key for message in (await streams.read("a")).messages] == [None, "k", None]


async def test_where_the_stream_is_not_json_text_stays_as_it_is(streams):
    async with streams.writer("a", content_type="text/plain") as writer:
        await writer.send("text")
        await writer.send({"a": 1})
    assert await ending_of(streams) == ([b"text", b'{"a":1}'], "completed")


async def test_sends_are_joined_while_a_commit_is_on_its_way(streams, slow):
    async with streams.writer("a") as writer:
        before = slow.commits
        slow.gate.clear()
        for number in range(500):
            await writer.send(number)
        assert "waiting" in repr(writer)
        slow.gate.set()
        await writer.flush()
        assert slow.commits - before <= 2
    assert await ending_of(streams) == ([b"%d" % number for number in range(500)], "completed")


async def test_sends_of_many_tasks_are_all_there_each_in_its_order(streams):
    async with streams.writer("a") as writer:

        async def send(mark):
            for number in range(50):
                await writer.send([mark, number])
                if number % 7 == mark % 7:
                    await asyncio.sleep(0)

        await asyncio.gather(*(send(mark) for mark in range(8)))
    found, _ = await ending_of(streams)
    for mark in range(8):
        start = b"[%d," % mark
        assert [one for one in found if one.startswith(start)] == [b"[%d,%d]" % (mark, number) for number in range(50)]
    assert len(found) == 400


async def test_what_waits_is_bounded(streams, slow, monkeypatch):
    """G9: beyond that, `send` waits for the store."""
    monkeypatch.setattr(writer_module, "MOST_WAITING", 1000)
    async with streams.writer("a") as writer:
        slow.gate.clear()
        sent = 0

        async def send():
            nonlocal sent
            for _ in range(10):
                await writer.send(b"x" * 100)
                sent += 1

        tasks = [asyncio.create_task(send()) for _ in range(10)]
        for _ in range(100):
            await asyncio.sleep(0)
        assert sent < 30
        assert sum(len(item.data) for item in writer._waiting) <= 1200
        slow.gate.set()
        await asyncio.gather(*tasks)
    assert await ending_of(streams) == ([b"x" * 100] * 100, "completed")


async def test_a_message_that_is_too_large_or_no_value_is_refused_and_the_next_is_not(slow):
    async with Streams(slow, limits=Limits(message_bytes=10)) as streams:
        async with streams.writer("a") as writer:
            with pytest.raises(TooLarge):
                await writer.send("x" * 11)
            with pytest.raises(TypeError):
                await writer.send(object())
            await writer.send("fits")
        assert await ending_of(streams) == ([b'"fits"'], "completed")


# -- ending ------------------------------------------------------------------------------------------------------------


async def test_a_block_that_raises_fails_its_stream_and_raises_the_same(streams):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 -- the whole block is what is tested
        async with streams.writer("a") as writer:
            await writer.send(1)
            raise ZeroDivisionError
    assert await ending_of(streams) == ([b"1"], "failed")


@pytest.mark.parametrize("cancels", [1, 2, 3])
async def test_a_block_that_is_cancelled_ends_its_stream_even_if_cancelled_again(streams, slow, cancels):
    inside = asyncio.Event()

    async def work():
        async with streams.writer("a") as writer:
            slow.gate.clear()
            await writer.send(1)
            inside.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await inside.wait()
    for _ in range(cancels):
        task.cancel()
        for _ in range(5):
            await asyncio.sleep(0)
    slow.gate.set()
    await asyncio.wait([task])
    assert task.cancelled()
    assert await ending_of(streams) == ([b"1"], "cancelled")


async def test_a_writer_may_be_ended_by_hand_with_last_messages_in_the_same_commit(streams, slow):
    async with streams.writer("a") as writer:
        await writer.send(1)
        await writer.flush()
        before = slow.commits
        await writer.aclose("failed", "why", {"code": 7})
        assert slow.commits == before + 1
        await writer.aclose()
        with pytest.raises(StreamClosed):
            await writer.send(2)
        assert await writer.flush() == writer.offset
    assert await ending_of(streams) == ([b"1", b'"why"', b'{"code":7}'], "failed")


async def test_a_stream_that_somebody_else_closed_is_said_to_be(streams):
    with pytest.raises(StreamClosed):  # noqa: PT012 -- the whole block is what is tested
        async with streams.writer("a") as writer:
            await writer.send(1)
            await writer.flush()
            await streams.close("a", "failed")
            await writer.send(2)
            with pytest.raises(StreamClosed):
                await writer.flush()
            with pytest.raises(StreamClosed):
                await writer.send(3)
    assert await ending_of(streams) == ([b"1"], "failed")


async def test_the_block_s_own_error_is_not_hidden_by_that_of_the_ending(streams):
    with pytest.raises(ZeroDivisionError):  # noqa: PT012 -- the whole block is what is tested
        async with streams.writer("a") as writer:
            await streams.close("a", "cancelled")
            await writer.send(1)
            raise ZeroDivisionError
    assert await ending_of(streams) == ([], "cancelled")


async def test_a_name_that_is_taken_by_something_else_is_refused(streams):
    await streams.create("a", content_type="text/plain")
    with pytest.raises(StreamExists):
        await streams.writer("a").open()


async def test_last_messages_are_in_the_closing_commit_also_while_another_is_on_its_way(streams, slow):
    """Else a crash between the two would leave a stream that says it is over, and is open."""
    async with streams.writer("a") as writer:
        slow.gate.clear()
        await writer.send(1)
        await asyncio.sleep(0)
        ending = asyncio.create_task(writer.aclose("completed", "last"))
        for _ in range(5):
            await asyncio.sleep(0)
        closing = []
        commit = slow.commit
        slow.commit = lambda *given: closing.append((given[2].closed, len(given[3]))) or commit(*given)
        slow.gate.set()
        await ending
    assert closing == [(True, 1)]
    assert await ending_of(streams) == ([b"1", b'"last"'], "completed")


async def test_what_is_sent_while_the_stream_is_being_ended_is_refused_and_not_lost(streams, slow):
    async with streams.writer("a") as writer:
        slow.gate.clear()
        ending = asyncio.create_task(writer.aclose())
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(StreamClosed):
            await writer.send("late")
        slow.gate.set()
        await ending


async def test_whoever_waits_for_room_when_the_stream_is_ended_is_refused(streams, slow, monkeypatch):
    monkeypatch.setattr(writer_module, "MOST_WAITING", 10)
    async with streams.writer("a") as writer:
        slow.gate.clear()
        await writer.send("on its way")
        await until(lambda: not writer._waiting)
        await writer.send("x" * 20)  # fills what may wait
        blocked = asyncio.create_task(writer.send("late"))
        await asyncio.sleep(0)
        ending = asyncio.create_task(writer.aclose())
        await asyncio.sleep(0)
        slow.gate.set()
        with pytest.raises(StreamClosed):
            await blocked
        await ending
    assert (await ending_of(streams))[1] == "completed"


async def test_an_ending_whose_caller_went_away_goes_on_and_ending_again_waits_for_it(streams, slow, quick):
    async with streams.writer("a") as writer:
        slow.failures = ["before", None]
        slow.gate.clear()
        ending = asyncio.create_task(writer.aclose("failed", "why"))
        for _ in range(5):
            await asyncio.sleep(0)
        ending.cancel()
        await asyncio.wait([ending])
        slow.gate.set()
        await writer.aclose()
    assert await ending_of(streams) == ([b'"why"'], "failed")


async def test_nothing_lands_behind_what_a_stopped_commit_left_out(streams, slow):
    """All tasks cancelled, as at the end of a loop: what was on its way may be in or out, so the stream has failed."""
    with pytest.raises(Interrupted):  # noqa: PT012 -- the whole block is what is tested
        async with streams.writer("a") as writer:
            slow.gate.clear()
            await writer.send(1)
            await asyncio.sleep(0)
            writer._flushing.cancel()
            await asyncio.sleep(0)
            slow.gate.set()
            with pytest.raises(Interrupted):
                await writer.send(2)
    assert (await ending_of(streams))[1] == "failed"


async def test_last_messages_that_cannot_be_written_fail_the_stream(streams):
    with pytest.raises(TypeError):  # noqa: PT012 -- the whole block is what is tested
        async with streams.writer("a") as writer:
            await writer.send(1)
            await writer.aclose("completed", object())
    assert await ending_of(streams) == ([b"1"], "failed")


# -- a store that fails for a while ------------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch):
    """Pauses between attempts pass at once."""
    sleep = asyncio.sleep
    monkeypatch.setattr(writer_module.asyncio, "sleep", lambda seconds: sleep(0))


@pytest.mark.parametrize("failure", ["before", "after"])
async def test_a_commit_that_is_said_again_counts_once(streams, slow, quick, failure):
    async with streams.writer("a") as writer:
        for number in range(10):
            slow.failures = [failure] * (number % 4)
            await writer.send(number)
            if number % 3:
                await writer.flush()
        slow.failures = [failure, failure]
    assert await ending_of(streams) == ([b"%d" % number for number in range(10)], "completed")


async def test_a_store_that_never_comes_back_is_given_up_and_nothing_lands_behind_the_hole(
    streams, slow, quick, monkeypatch
):
    monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", 0)
    monkeypatch.setattr(writer_module, "MOST_WAITING", 10)
    with pytest.raises(StoreUnavailable):  # noqa: PT012 -- the whole block is what is tested
        async with streams.writer("a") as writer:
            await writer.send("before")
            await writer.flush()
            slow.gate.clear()
            slow.failures = ["before"]
            await writer.send("lost")
            await until(lambda: not writer._waiting)
            await writer.send("x" * 20)  # fills what may wait
            blocked = asyncio.create_task(writer.send("blocked"))
            await asyncio.sleep(0)
            slow.gate.set()
            with pytest.raises(StoreUnavailable):
                await blocked
            with pytest.raises(StoreUnavailable):
                await writer.flush()
    head = await streams.head("a")
    assert (head.tail, head.outcome) in [(1, None), (1, "failed")]  # it is ended so soon as the store takes it


async def test_on_a_file_a_writer_is_as_fast_as_commits_can_be_joined(tmp_path):
    async with Streams(SqliteStore(str(tmp_path / "a.db"))) as streams:
        async with streams.writer("a") as writer:
            before = streams.store.statistics()["transactions"]
            for number in range(2000):
                await writer.send(number)
            await writer.flush()
            assert streams.store.statistics()["transactions"] - before < 100
        assert await ending_of(streams) == ([b"%d" % number for number in range(2000)], "completed")


async def test_a_stream_whose_writer_gave_up_is_ended_when_the_store_is_back(monkeypatch, streams, slow):
    monkeypatch.setattr(writer_module, "PATIENCE_SECONDS", 0)
    with pytest.raises(StoreUnavailable):  # noqa: PT012 -- the whole block is what is tested
        async with streams.writer("a") as writer:
            await writer.send("before")
            await writer.flush()
            slow.failures = ["before"]
            await writer.send("lost")
    assert await ending_of(streams) == ([b'"before"'], "failed")


async def test_a_stream_that_another_process_writes_is_not_taken_over(streams):
    await streams.carry_out("a", Create(Config("application/json"), owner="i_another"))
    with pytest.raises(StreamExists, match="another process"):
        await streams.writer("a").open()
    await streams.create("b")
    assert await streams.writer("b").open() is False, "one that nobody writes is gone on with"


# --- another that goes on --------------------------------------------------------------------------------------------


async def test_whoever_takes_a_stream_over_fences_off_the_one_before(slow, streams):
    async with Streams(slow) as there:
        first, second = streams.writer("a", producer="maker"), there.writer("a", producer="maker")
        await first.open("begun")
        await first.send("said")
        await first.flush()
        assert await second.take_over(await there.head("a"), "gone on")
        assert (await there.head("a")).owner == there.leases.owner
        await second.send("and on")
        await second.flush()
        await first.send("late")
        with pytest.raises(ProducerFenced):
            await first.flush()
        with pytest.raises(ProducerFenced):
            await first.aclose()
        assert second.position == 4
        await second.aclose()
        assert await ending_of(there) == ([b'"begun"', b'"said"', b'"gone on"', b'"and on"'], "completed")


async def test_a_maker_that_has_said_nothing_yet_is_fenced_off_too(slow, streams):
    async with Streams(slow) as there:
        first, second = streams.writer("a", producer="maker"), there.writer("a", producer="maker")
        await first.open("begun")
        assert await second.take_over(await there.head("a"), "gone on")
        with pytest.raises(ProducerFenced):
            await first.aclose("completed", "late")
        assert streams.leases._abandoned == {}, "it is not this process's to end"
        await second.aclose()


async def test_of_several_that_take_a_stream_over_one_does(slow, streams):
    await streams.writer("a", producer="maker").open("begun")
    head = await streams.head("a")
    async with Streams(slow) as there:
        writers = [of.writer("a", producer="maker") for of in (streams, there, streams, there)]
        took = await asyncio.gather(*(writer.take_over(head, number) for number, writer in enumerate(writers)))
        assert sorted(took) == [False, False, False, True]
        await writers[took.index(True)].aclose()
        assert await ending_of(there) == ([b'"begun"', b"%d" % took.index(True)], "completed")
        with pytest.raises(StreamClosed):
            await writers[0].take_over(await there.head("a"), "too late")


async def test_a_stream_that_has_gone_on_since_is_not_taken_over(streams):
    writer = streams.writer("a", producer="maker")
    await writer.open("begun")
    head = await streams.head("a")
    await writer.send("more")
    await writer.flush()
    assert not await streams.writer("a", producer="maker").take_over(head, "over")
    await writer.aclose()


async def test_a_writer_that_leaves_ends_nothing(streams):
    mine, nobodys = streams.writer("mine"), streams.writer("nobody's")
    for writer in (mine, nobodys):
        await writer.open()
        await writer.send("said")
    await mine.leave()
    await nobodys.leave("last")
    heads = [await streams.head(name) for name in ("mine", "nobody's")]
    assert [(head.closed, head.owner, head.tail) for head in heads] == [
        (False, streams.leases.owner, 1), (False, None, 2)
    ]  # fmt: skip
    with pytest.raises(StreamClosed, match="left"):
        await mine.send("more")
