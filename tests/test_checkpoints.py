"""runs/checkpoints.py: which checkpoint counts, whoever wrote it and whatever became of the stream beside it."""

from collections.abc import AsyncIterator

import pytest

from headwater import Limits, Streams
from headwater.errors import ProducerFenced, TooLarge
from headwater.runs.checkpoints import PREFIX, Checkpoint, Keeper, drop, newest


@pytest.fixture
async def streams() -> AsyncIterator[Streams]:
    async with Streams("memory:", limits=Limits(message_bytes=1000)) as opened:
        yield opened


async def test_the_last_one_that_the_stream_has_reached_counts(streams: Streams) -> None:
    keeper = Keeper(streams, "r")
    assert await newest(streams, "r", 100) is None
    for position in (4, 7, 9):
        await keeper.keep(position, b"at %d" % position)
    found = [await newest(streams, "r", reached) for reached in (3, 4, 6, 7, 8, 9, 100)]
    assert [one and one.position for one in found] == [None, 4, 4, 7, 7, 9, 9]
    assert found[-1] == Checkpoint(0, 9, b"at 9")


async def test_what_the_one_before_kept_ahead_of_the_stream_never_counts(streams: Streams) -> None:
    before, after = Keeper(streams, "r"), Keeper(streams, "r", 1)
    await before.keep(4, b"counts")
    await before.keep(9, b"ahead: its events never came")
    await after.keep(4, b"counts")
    assert await newest(streams, "r", 20) == Checkpoint(1, 4, b"counts")
    with pytest.raises(ProducerFenced):
        await before.keep(12, b"from a process that slept")
    assert await newest(streams, "r", 20) == Checkpoint(1, 4, b"counts")


async def test_two_that_take_a_run_over_keep_the_same(streams: Streams) -> None:
    await Keeper(streams, "r").keep(4, b"counts")
    winner, loser = Keeper(streams, "r", 1), Keeper(streams, "r", 1)
    await winner.keep(4, b"counts")
    await loser.keep(4, b"counts")
    await winner.keep(6, b"more")
    assert await newest(streams, "r", 6) == Checkpoint(1, 6, b"more")


async def test_a_run_can_be_known_to_begin_anew(streams: Streams) -> None:
    await Keeper(streams, "r").keep(9, b"ahead")
    await Keeper(streams, "r", 1).keep(2, None)
    assert await newest(streams, "r", 20) == Checkpoint(1, 2, None)


async def test_few_are_kept_and_none_after_the_end(streams: Streams) -> None:
    keeper = Keeper(streams, "r")
    for position in range(50):
        await keeper.keep(position, b"x")
    await streams._sweeper.sweep()
    assert (await streams.head(PREFIX + "r")).first >= 46
    assert await newest(streams, "r", 100) == Checkpoint(0, 49, b"x")
    await drop(streams, "r")
    await drop(streams, "r")
    assert await newest(streams, "r", 100) is None


async def test_a_state_that_is_too_large_is_refused_and_the_one_before_stays(streams: Streams) -> None:
    keeper = Keeper(streams, "r")
    await keeper.keep(4, b"small")
    with pytest.raises(TooLarge):
        await keeper.keep(6, b"x" * 1000)
    await keeper.keep(8, b"small again")
    assert [(await newest(streams, "r", at)).position for at in (7, 8)] == [4, 8]  # type: ignore[union-attr]
