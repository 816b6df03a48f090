"""The tasks of runs: one each, owned by the process and not by any request, and how each of them ends.

Knows sources, writers and the order rules of events. Invariants: every run's stream ends with exactly one terminal
event, closed in the same commit (G2, G8), however long the store was away; parts that are open when a run is stopped
are closed before it; nothing of an exception but what its source declared safe reaches the stream.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal

from headwater.agui import BaseEvent, OpenParts, TokenUsage, encode, run_cancelled, run_error, run_finished, stamped
from headwater.errors import HeadwaterError, Interrupted, StreamClosed
from headwater.sources import RunFailed, Source
from headwater.writer import Writer

_log = logging.getLogger("headwater.runs")

STOP_SECONDS: Final = 5.0
"""How long interrupted runs get to wind up when the server goes away."""

Outcome = Literal["completed", "failed", "cancelled"]
Reason = Literal["cancelled", "interrupted"]


class Supervised:
    """One run that is being made: its task, and the sink its source writes to."""

    def __init__(
        self, run_id: str, thread_id: str, writer: Writer, started: Sequence[BaseEvent], clock: Callable[[], int]
    ) -> None:
        self.run_id, self.thread_id = run_id, thread_id
        self._writer, self._clock = writer, clock
        self._parts = OpenParts()
        for event in started:
            self._parts.feed(event)
        self._usage: list[TokenUsage] = []
        self._task: asyncio.Task[None] | None = None
        self._stopped: Reason | None = None
        self._ending = False
        """Its last events are on their way: too late to stop it."""

    def __repr__(self) -> str:
        return f"<Supervised {self.run_id} {self._parts!r}>"

    # -- what a source may do (Sink) ----------------------------------------------------------------------------------

    async def emit(self, event: BaseEvent) -> None:
        data = encode(stamped(event, self._clock()))  # before it is noted: what is not JSON does not go out
        self._parts.feed(event)
        await self._writer.send(data)

    def usage(self, entries: Sequence[TokenUsage]) -> None:
        self._usage = list(entries)

    # -- what the supervisor does -------------------------------------------------------------------------------------

    def start(self, source: Source, given: Any) -> asyncio.Task[None]:
        self._task = asyncio.create_task(self._run(source, given), name=f"headwater-run {self.run_id}")
        return self._task

    def stop(self, why: Reason) -> None:
        """Stop the run; the first reason counts. Twice is fine, and so is one that is just ending."""
        if self._stopped != why:
            self._stopped = self._stopped or why
            # Behind the task's first step: a task that is cancelled before it would never come to end its stream.
            asyncio.get_running_loop().call_soon(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None and not self._ending:
            self._task.cancel()

    async def _run(self, source: Source, given: Any) -> None:
        try:
            outcome, terminal = await self._outcome(source, given)
            await self._end(outcome, terminal)
        except StreamClosed:
            _log.warning("run %s was ended by another process while it was being made here", self.run_id)
        except HeadwaterError as error:
            _log.error("run %s could not be written to its stream: %s", self.run_id, error)

    async def _outcome(self, source: Source, given: Any) -> tuple[Outcome, BaseEvent]:
        try:
            result = await source.run(given, self)
        except asyncio.CancelledError:
            if self._stopped == "cancelled":
                return "cancelled", run_cancelled(self.thread_id, self.run_id, usage=self._usage)
            why = Interrupted()
            return "failed", run_error(why.code, why.said, usage=self._usage)
        except RunFailed as error:
            return "failed", run_error(error.code, error.message, usage=self._usage)
        except HeadwaterError as error:  # of the sink: what it says is meant to be shown
            return "failed", run_error(error.code, error.said, usage=self._usage)
        except Exception:  # noqa: BLE001 -- a source's bug must end its run, and its text must not reach readers
            _log.exception("run %s failed", self.run_id)
            return "failed", run_error("internal", "the run failed; the server's log says why", usage=self._usage)
        return "completed", run_finished(self.thread_id, self.run_id, result=result, usage=self._usage)

    async def _end(self, outcome: Outcome, terminal: BaseEvent) -> None:
        self._ending = True
        closing = [encode(event) for event in self._parts.closing_events()]
        try:
            last = encode(stamped(terminal, self._clock()))
        except ValueError:
            _log.error("run %s gave a result that is not JSON; it is left out", self.run_id)
            last = encode(run_finished(self.thread_id, self.run_id, usage=self._usage))
        # Shielded: a second cancel, at the end of the process say, must not leave the stream open.
        await asyncio.shield(asyncio.ensure_future(self._writer.aclose(outcome, *closing, last)))


class Supervisor:
    """The runs that this process is making."""

    def __init__(self) -> None:
        self._runs: dict[str, Supervised] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._given_up: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Supervisor [{len(self._runs)} runs]>"

    def __len__(self) -> int:
        return len(self._runs)

    def start(self, run: Supervised, source: Source, given: Any) -> None:
        task = run.start(source, given)
        self._runs[run.run_id] = run
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(run, done))

    def _done(self, run: Supervised, task: asyncio.Task[None]) -> None:
        del self._runs[run.run_id]
        self._tasks.discard(task)
        self._given_up.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("run %s ended without its terminal event", run.run_id, exc_info=task.exception())

    def stop(self, run_id: str) -> bool:
        """Cancel a run if it is made here; whether it is."""
        run = self._runs.get(run_id)
        if run is not None:
            run.stop("cancelled")
        return run is not None

    async def interrupt(self) -> None:
        """End every run as interrupted, and wait until their streams say so; for one that does not stop only once."""
        for run in list(self._runs.values()):
            run.stop("interrupted")
        stopping = self._tasks - self._given_up
        if stopping:
            _, stuck = await asyncio.wait(stopping, timeout=STOP_SECONDS)
            for task in stuck - self._given_up:
                _log.warning("%s does not stop; the next process on this store ends its stream", task.get_name())
            self._given_up |= stuck
