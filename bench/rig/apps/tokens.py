"""What all answers are made of: the tokens of a model that says 50 a second, each with the time it was said."""

import asyncio
import time
from collections.abc import AsyncIterator

PER_SECOND = 50
BYTES = 64


async def tokens() -> AsyncIterator[str]:
    """JSON strings of BYTES bytes, as the load generator wants them (`c/load.c`), for ever."""
    loop = asyncio.get_running_loop()
    due = loop.time()
    while True:
        due += 1 / PER_SECOND
        await asyncio.sleep(due - loop.time())
        yield f'"~{time.monotonic_ns():019d}{"x" * (BYTES - 22)}"'
