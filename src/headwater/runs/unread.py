"""Notices that nobody reads a run any more, for those that are to be cancelled then.

Knows the hub: a reader is whoever follows the stream in this process. Readers at other processes are not seen from
here; where several serve one store, whoever starts such a run has to have it read where it was started.
"""

from __future__ import annotations

import asyncio

from headwater.hub import Hub


async def left_alone(hub: Hub, stream: str, seconds: float) -> None:
    """Returns when nobody has been reading for so long, counted from now."""
    loop = asyncio.get_running_loop()
    last = loop.time()
    while (quiet := loop.time() - last) < seconds:
        await asyncio.sleep(min(1.0, seconds - quiet))
        tail = hub.known(stream)
        if tail is not None and tail.readers:
            last = loop.time()
