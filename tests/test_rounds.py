"""rounds.py: one timer looks after many, and only while there are any."""

import asyncio

from headwater.rounds import Rounds
from headwater.testing import run_virtual, virtual_time


class Patient:
    """Is due `after` seconds after it was last busy, and notes when it was looked after."""

    def __init__(self, after: float) -> None:
        self.after, self.busy_at = after, asyncio.get_running_loop().time()
        self.looked: list[float] = []

    def due(self) -> float:
        return self.busy_at + self.after

    def look_after(self) -> None:
        self.looked.append(asyncio.get_running_loop().time())


@virtual_time
async def test_who_is_due_is_looked_after_on_the_second_and_again_each_second():
    rounds, one = Rounds(), Patient(15)
    rounds.add(one)
    await asyncio.sleep(14.99)
    assert one.looked == []
    await asyncio.sleep(3)
    assert one.looked == [15.0, 16.0, 17.0]
    rounds.discard(one)


@virtual_time
async def test_nobody_is_looked_after_early_nor_more_than_a_second_late():
    await asyncio.sleep(0.3)  # the rounds keep to whole seconds, whenever somebody came
    rounds, patients = Rounds(), [Patient(0.1 * n) for n in range(1, 60)]
    for one in patients:
        rounds.add(one)
    await asyncio.sleep(10)
    for one in patients:
        assert 0 <= one.looked[0] - one.due() <= 1
        rounds.discard(one)


@virtual_time
async def test_who_was_busy_meanwhile_is_put_off():
    rounds, one = Rounds(), Patient(5)
    rounds.add(one)
    for _ in range(100):
        await asyncio.sleep(1.5)
        one.busy_at = asyncio.get_running_loop().time()
    assert one.looked == []
    await asyncio.sleep(6)
    assert one.looked[0] == 155.0
    rounds.discard(one)


@virtual_time
async def test_the_timer_stops_with_the_last_one_and_starts_with_the_next():
    loop, rounds, one = asyncio.get_running_loop(), Rounds(), Patient(2)
    for _ in range(3):
        rounds.add(one)
        rounds.discard(one)
        rounds.discard(one)
        assert repr(rounds) == "<Rounds [0 looked after]>"
        assert all(timer.cancelled() for timer in loop._scheduled), "a timer runs for nobody"
        await asyncio.sleep(5)
    one.busy_at = loop.time()
    rounds.add(one)
    await asyncio.sleep(2.5)
    assert one.looked == [17.0]
    rounds.discard(one)


def test_the_next_one_may_come_on_another_loop():
    rounds, looked = Rounds(), []

    async def one_comes_and_goes():
        one = Patient(1)
        rounds.add(one)
        rounds.discard(one)

    async def another_stays():
        one = Patient(1)
        rounds.add(one)
        await asyncio.sleep(2.5)
        looked.extend(one.looked)
        rounds.discard(one)

    run_virtual(one_comes_and_goes())
    run_virtual(another_stays())
    assert looked


@virtual_time
async def test_a_thousand_cost_one_timer():
    loop, rounds, patients = asyncio.get_running_loop(), Rounds(), [Patient(15) for _ in range(1000)]
    for one in patients:
        rounds.add(one)
    assert len(loop._scheduled) == 1
    await asyncio.sleep(15.5)
    assert all(one.looked == [15.0] for one in patients)
    for one in patients:
        rounds.discard(one)
