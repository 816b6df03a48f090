"""A process that owns many open streams and has nothing to do: `idle.py STORE_URL STREAMS SECONDS`.

Prints what that costs: seconds of processor time per minute, and for how long the loop was held at most.
"""

import asyncio
import gc
import json
import sys
import time

from headwater.decide import Create
from headwater.model import Config
from headwater.streams import Streams


async def main(url: str, count: int, seconds: float) -> None:
    async with Streams(url) as streams:
        owner = await streams.leases.hold()
        made = Create(Config("application/json", ttl=3600), owner=owner)
        for first in range(0, count, 1000):
            await asyncio.gather(
                *(streams.carry_out(f"s/{number}", made) for number in range(first, min(first + 1000, count)))
            )
        gc.collect()
        await asyncio.sleep(1)
        with streams.lag.watched() as lag:
            cpu, began = time.process_time(), time.monotonic()
            await asyncio.sleep(seconds)
            minutes = (time.monotonic() - began) / 60
            print(json.dumps({"cpu_s": (time.process_time() - cpu) / minutes, "longest_ms": lag.longest * 1000}))


asyncio.run(main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3])))
