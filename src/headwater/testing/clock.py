"""A virtual clock: an asyncio loop on which an hour of waiting takes no time.

Knows: asyncio's loop and selectors. Must not know: anything else of Headwater.

When does time move? Only when the loop would otherwise wait for a timer, and then straight to that timer:

1. While a callback is ready, or a socket has something to say, time stands still.
2. A job given to `run_in_executor` or `asyncio.to_thread` holds time still until its result is in. (So a job that never
   ends stops the clock: give such work a thread of its own.)
3. While a socket is registered or another thread lives, a jump first waits `grace` real seconds for them to speak. A
   thread that answers later than that by `call_soon_threadsafe` finds that time has passed, as it would in real life.
4. Otherwise the jump is immediate, so that a test without I/O takes no real time and has one outcome only.

Only `loop.time()` is virtual: `time.time()` and `time.monotonic()` stay real. What this clock can move is code that
waits by asyncio (`sleep`, `timeout`, `call_later`) or is told the time as an argument.

Invariants: time never goes back; a timer never fires before its time; a loop on which nothing can happen any more fails
after `STUCK_AFTER` real seconds instead of hanging.
"""

from __future__ import annotations

import asyncio
import functools
import selectors
import threading
from collections.abc import Callable, Coroutine, Set
from typing import Any, ParamSpec, TypeVar

__all__ = ["GRACE", "STUCK_AFTER", "VirtualTimeLoop", "left_behind", "run_virtual", "virtual_time"]

P = ParamSpec("P")
T = TypeVar("T")
Events = list[tuple[selectors.SelectorKey, int]]

GRACE = 0.01  # real seconds: a loopback answer takes well under 1 ms, a commit to disk a few
STUCK_AFTER = 30.0  # real seconds: far longer than any step of a test, far shorter than a person's patience
SELF_PIPE_ONLY = 1  # asyncio itself registers one descriptor, by which other threads wake the loop
SETTLING_TURNS = 10  # turns of the loop that a cancelled task may need to unwind before it counts as left behind


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """A selector loop whose `time()` starts at 0.0 and moves only as the head of this module says.

    `grace` and `stuck_after` are real seconds. Sockets, threads and subprocess pipes work as on any other loop.
    """

    def __init__(self, *, grace: float = GRACE, stuck_after: float = STUCK_AFTER) -> None:
        self._now = 0.0
        self._grace = grace
        self._stuck_after = stuck_after
        self._jobs: set[asyncio.Future[Any]] = set()
        super().__init__(_PatientSelector(self._wait))

    def time(self) -> float:
        """Virtual seconds since the loop was made."""
        return self._now

    def run_in_executor(self, executor: Any, func: Callable[..., T], *args: Any) -> asyncio.Future[T]:  # type: ignore[override]
        """As on any loop; the clock stands still until the job is done or nobody waits for it any more."""
        job: asyncio.Future[T] = super().run_in_executor(executor, func, *args)
        self._jobs.add(job)
        job.add_done_callback(self._jobs.discard)
        return job

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """Wait for the executor's threads, however long: a deadline would be jumped to while they end."""
        await super().shutdown_default_executor()

    def _wait(self, look: Callable[[float], Events], registered: int, timeout: float | None) -> Events:
        """Stand in for `select(timeout)`: return what happened, or move the clock by `timeout` and return nothing."""
        events = look(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        if timeout is None or self._jobs:
            return self._wait_for_real(look)
        if registered > SELF_PIPE_ONLY or threading.active_count() > 1:
            events = look(self._grace)
        if not events:
            self._now += timeout
        return events

    def _wait_for_real(self, look: Callable[[float], Events]) -> Events:
        events = look(self._stuck_after)
        if not events:
            held = f"{len(self._jobs)} executor job(s) not done" if self._jobs else "no timer is set"
            raise RuntimeError(f"virtual clock stuck at {self._now:g} s: nothing happened for real, and {held}")
        return events


class _PatientSelector(selectors.DefaultSelector):
    """The platform's selector, which asks `wait` how to spend a timeout. `None` means until something happens."""

    def __init__(self, wait: Callable[[Callable[[float], Events], int, float | None], Events]) -> None:
        super().__init__()
        self._wait = wait

    def select(self, timeout: float | None = None) -> Events:
        return self._wait(super().select, len(self.get_map()), timeout)


def run_virtual(main: Coroutine[Any, Any, T], *, grace: float = GRACE) -> T:
    """Run `main` on a fresh `VirtualTimeLoop` and return its result, like `asyncio.run`.

    Unlike there, tasks that `main` leaves behind are an error: they are cancelled and a RuntimeError names them.
    """
    with asyncio.Runner(loop_factory=lambda: VirtualTimeLoop(grace=grace)) as runner:
        result = runner.run(main)
        if left := runner.run(left_behind()):
            raise RuntimeError(f"tasks left behind: {', '.join(sorted(map(repr, left)))}")
    return result


def virtual_time(test: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, T]:
    """Make of `async def test(...)` a plain function that runs on virtual time; pytest's fixtures reach it as usual.

    Fixtures must be plain ones: an asynchronous fixture would live on another loop.
    """

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        return run_virtual(test(*args, **kwargs))

    return run


async def left_behind(known: Set[asyncio.Task[Any]] = frozenset()) -> set[asyncio.Task[Any]]:
    """Tasks of this loop that are still pending, but for the caller's and the `known` ones.

    Tasks already on their way out get a few turns of the loop to finish.
    """
    for _ in range(SETTLING_TURNS):
        await asyncio.sleep(0)
    current = asyncio.current_task()
    return {task for task in asyncio.all_tasks() if task is not current and task not in known}
