"""runs/threads.py: the runs of a conversation, found by any process, and by nobody else."""

from headwater import Streams
from headwater.runs.threads import LOOKED_AT, Entry, Threads

ME = ("me", "bot", "t")


async def test_the_newest_run_and_whether_it_was_stopped() -> None:
    async with Streams("memory:") as streams:
        threads = Threads(streams)
        assert await threads.newest(*ME) is None
        await threads.note(*ME, Entry("r1"))
        assert await threads.newest(*ME) == Entry("r1")
        await threads.note(*ME, Entry("r1", stopped=True))
        assert await threads.newest(*ME) == Entry("r1", stopped=True)
        await threads.note(*ME, Entry("r2"))
        await threads.note(*ME, Entry("r1", stopped=True))  # said when a newer one had begun
        assert await threads.newest(*ME) == Entry("r2")
        assert [entry.run for entry in await threads.entries(*ME)] == ["r1", "r2"]


async def test_a_run_behind_many_stops_is_found() -> None:
    async with Streams("memory:") as streams:
        threads = Threads(streams)
        await threads.note(*ME, Entry("r1"))
        for _ in range(LOOKED_AT + 1):
            await threads.note(*ME, Entry("r0", stopped=True))
        assert await threads.newest(*ME) == Entry("r1")


async def test_a_thread_is_of_one_principal_and_agent() -> None:
    async with Streams("memory:") as streams:
        threads = Threads(streams)
        await threads.note(*ME, Entry("r1", asked=[{"id": "q"}], ids=["q"]))
        for other in (("you", "bot", "t"), ("me", "another", "t"), ("me", "bot", "u"), ("me", "bo", "tt")):
            assert await threads.newest(*other) is None
            assert await threads.entries(*other) == []
        assert await threads.entries(*ME) == [Entry("r1", asked=[{"id": "q"}], ids=["q"])]
        assert "Streams" in repr(threads)
