"""Hundreds of readers that come, cut, pipeline and leave as a seed has it, while messages flow: each one's bytes are
those of the log, and nothing of them stays."""

import asyncio
import gc
import os
import random
import re

import pytest
import uvloop

from headwater.reader import Reader
from headwater.server.connection import Protocol
from headwater.server.line import OpenLine
from test_server_wire import Wire, get, open_wire

READERS = 500
PER_SECOND = 200
MESSAGE = re.compile(rb"<(\d{6})x*>")


class Checked:
    """What came over all connections, as it has to be."""

    def __init__(self) -> None:
        self.messages = self.connections = self.ends = 0

    def text(self, body: bytes, first: int | None) -> int | None:
        """The messages of a body stand one behind the other, from the very first; gives the number after the last."""
        numbers = [int(found) for found in MESSAGE.findall(body)]
        self.messages += len(numbers)
        if numbers:
            assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            assert first is None or numbers[0] == first
        return numbers[-1] + 1 if numbers else first


def message(number: int, chance: random.Random) -> bytes:
    return b"<%06d%s>" % (number, b"x" * chance.choice([0, 0, 0, 10, 300, 5000]))


async def read_some(wire: Wire, chance: random.Random, checked: Checked, over: asyncio.Event) -> None:
    """One who comes again and again."""
    while not over.is_set():
        path, first = chance.choice(
            [("format=text", 0), ("format=sse", 0), ("offset=-1&live=sse", 0), ("format=sse&offset=now", None)]
        )
        behind = chance.choice([0, 0, 0, 1, 3])
        fields = ["connection: close"] if not behind and chance.random() < 0.2 else []
        target = f"/v1/stream/s?{path}"
        end = await wire.connect(get(target, *fields) + get("/healthz") * behind)
        checked.connections += 1
        body, until = bytearray(), chance.choice([0, 1, 2, 5, 20, 60])
        ended = " 204 " in await end.head()  # there is no more from now on
        while until and not ended:
            part = await end.part()
            body += part
            ended = not part
            until -= 1
        checked.text(bytes(body), first)
        if ended:
            checked.ends += 1
            for _ in range(behind):
                assert await end.of_length(await end.head()) == b"ok\n"
            return
        if chance.random() < 0.1:
            await asyncio.sleep(chance.random())  # takes nothing for a while
        end.reset() if chance.random() < 0.5 else end.writer.close()
        wire._ends.remove(end)
        await asyncio.sleep(chance.random() / 2)


async def stay(wire: Wire, chance: random.Random, checked: Checked) -> None:
    """One who reads to the end."""
    end = await wire.connect(get("/v1/stream/s?format=text") + get("/healthz"))
    await end.head()
    body = await end.rest()
    assert checked.text(body, 0) == wire.written
    assert await end.of_length(await end.head()) == b"ok\n"
    checked.ends += 1


async def soak(seconds: float, readers: int, seed: int) -> Checked:
    chance, checked, over = random.Random(seed), Checked(), asyncio.Event()
    async with open_wire(False, heartbeat=1) as wire:
        staying = [stay(wire, chance, checked) for _ in range(readers // 10)]
        coming = [read_some(wire, random.Random(seed + n), checked, over) for n in range(readers - len(staying))]
        reading = asyncio.gather(*staying, *coming)
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        number = 0
        while loop.time() < until and not reading.done():
            several = [message(number + n, chance) for n in range(chance.choice([1, 1, 1, 5]))]
            number += len(several)
            await wire.streams.append("s", *several)
            await asyncio.sleep(len(several) / PER_SECOND)
        wire.written = number
        over.set()
        await wire.streams.append("s", close=True)
        async with asyncio.timeout(30):
            await reading
        await wire.until_readers(0)
    assert (wire.delivery.readers, wire.delivery.dropped) == (0, 0)
    assert not wire.state.connections
    assert not wire.state.tasks
    assert repr(wire.delivery.rounds) == "<Rounds [0 looked after]>"
    assert repr(wire.delivery._fans) == "<Fans [0]>"
    assert not asyncio.all_tasks() - {asyncio.current_task()}
    return checked


@pytest.mark.server
@pytest.mark.parametrize("loop", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_readers_that_come_and_go_get_the_log_and_leave_nothing(loop):
    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asyncio.sleep(0))  # what a loop opens once and keeps
    gc.collect()
    known = {id(one) for one in gc.get_objects() if isinstance(one, (OpenLine, Protocol, Reader))}
    files = len(os.listdir("/dev/fd"))
    with asyncio.Runner(loop_factory=loop) as runner:
        checked = runner.run(soak(float(os.environ.get("SOAK_SECONDS", "3")), READERS, seed=4437))
    gc.collect()
    left = [one for one in gc.get_objects() if isinstance(one, (OpenLine, Protocol, Reader)) and id(one) not in known]
    assert left == []
    assert len(os.listdir("/dev/fd")) <= files
    assert checked.connections > READERS
    assert checked.ends >= READERS // 10
    assert checked.messages > 10_000
