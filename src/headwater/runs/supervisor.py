"""The tasks of runs: one each, owned by the process and not by any request, and how each of them ends.

Knows sources, writers, checkpoints and the order rules of events. Invariants: every run's stream ends with exactly one
terminal event, closed in the same commit (G2, G8), however long the store was away; parts that are open when a run is
stopped are closed before it; nothing of an exception but what its source declared safe reaches the stream.

Two ways to leave a run without ending it: it waits for people, and is nobody's; or this process ends, and another goes
on with it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeAlias

from headwater.agui import (
    APPROVAL_REQUESTED,
    BaseEvent,
    OpenParts,
    TokenUsage,
    custom,
    encode,
    run_cancelled,
    run_error,
    run_finished,
    stamped,
    waiting,
)
from headwater.errors import HeadwaterError, Interrupted, ProducerFenced, StreamClosed, TooLarge
from headwater.runs.checkpoints import Keeper
from headwater.runs.figures import Figures, Pace
from headwater.sources import NO_REQUEST, Paused, Request, RunFailed, Stopped, current_request, current_trace
from headwater.sources.chunks import Chunks
from headwater.traced import TracedRun
from headwater.writer import Writer

_log = logging.getLogger("headwater.runs")

STOP_SECONDS: Final = 5.0
"""How long interrupted runs get to wind up when the server goes away."""

Outcome = Literal["completed", "failed", "cancelled"]
Reason = Literal["cancelled", "interrupted", "left", "lost"]
"""`left`: the next process is to go on with it; `lost`: another has done so already."""


_End: TypeAlias = tuple[Outcome, BaseEvent]


class _Left(Exception):
    """The run was stopped, and its stream is not to be ended here."""


@dataclass(frozen=True, slots=True)
class Place:
    """Which run it is, and where it is written to."""

    run_id: str
    thread_id: str
    conversation: str
    writer: Writer
    keeper: Keeper | None
    """None: no checkpoints are kept, and nobody can go on with it."""
    alone: Callable[[], Coroutine[Any, Any, None]] | None = None
    """Returns when it is to be cancelled because nobody reads it."""
    request: Request = NO_REQUEST
    """What came along with its input."""
    agent: str = ""
    trace: TracedRun | None = None
    """None: nobody traces."""


class Supervised:
    """One run that is being made: its task, and the sink its source writes to."""

    def __init__(self, place: Place, parts: OpenParts, clock: Callable[[], int]) -> None:
        """`parts`: fed with what the stream holds already."""
        self.run_id, self.thread_id, self.keeper = place.run_id, place.thread_id, place.keeper
        self.conversation, self.agent, self.trace = place.conversation, place.agent, place.trace
        self._writer, self._clock, self._parts = place.writer, clock, parts
        self._chunks = Chunks(self._new_id)
        self._made = 0
        self._usage: list[TokenUsage] = []
        self._task: asyncio.Task[None] | None = None
        self._alone, self._request = place.alone, place.request
        self._stopped: Reason | None = None
        self._stop_softly: Callable[[], None] | None = None
        self._ending = False
        """Its last events are on their way: too late to stop it."""
        self.lost = False
        """Its stream took no more. Usually it is another's by now; but whoever began to take it over may have died
        first, or the store went away just as it was left: then it is still ours."""

        self.pace = Pace(asyncio.get_running_loop().time())
        self.outcome: str = "unwritten"
        """How it ended here (`headwater.runs.figures`)."""

    def __repr__(self) -> str:
        return f"<Supervised {self.run_id} {self._parts!r}>"

    @property
    def stream(self) -> str:
        return self._writer.name

    # -- what a source may do (Sink) ----------------------------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        return self.keeper is not None

    async def emit(self, event: BaseEvent) -> None:
        if self._chunks.concern(event):
            for whole in self._chunks.events(event):
                await self._put(whole)
        else:
            await self._put(event)

    def _new_id(self) -> str:
        self._made += 1
        return f"{self.run_id}.c{0 if self.keeper is None else self.keeper.epoch}.{self._made}"

    async def _put(self, event: BaseEvent) -> None:
        data = encode(stamped(event, self._clock()))  # before it is noted: what is not JSON does not go out
        self._parts.feed(event)
        self.pace.saw(event, asyncio.get_running_loop().time())
        if self.trace is not None:
            self.trace.saw(event)
        await self._writer.send(data)

    def usage(self, entries: Sequence[TokenUsage]) -> None:
        self._usage = list(entries)

    async def checkpoint(self, state: bytes, events: Sequence[BaseEvent] = ()) -> None:
        whole = [event for given in events for event in self._chunks.events(given)]
        await self._keep(state, len(whole))
        for event in whole:
            await self._put(event)

    async def _keep(self, state: bytes, ahead: int) -> None:
        """`ahead`: events that belong to it, and are still to be sent."""
        if self.keeper is not None:
            try:
                await self.keeper.keep(self._writer.position + ahead, state)
            except TooLarge as error:
                _log.warning("run %s has no new checkpoint: %s", self.run_id, error)

    async def flush(self) -> None:
        await self._writer.flush()

    def on_stop(self, stop: Callable[[], None]) -> None:
        self._stop_softly = stop

    @property
    def used(self) -> Sequence[TokenUsage]:
        """Tokens, as far as its source has told."""
        return self._usage

    # -- what the supervisor does -------------------------------------------------------------------------------------

    def start(self, made: Coroutine[Any, Any, object]) -> asyncio.Task[None]:
        """`made`: what the source does."""
        own = copy_context()  # whoever starts it keeps theirs
        own.run(current_request.set, self._request)
        if self.trace is not None:
            own.run(self.trace.enter)
            own.run(current_trace.set, self.trace)
        self._task = asyncio.create_task(self._run(made), name=f"headwater-run {self.run_id}", context=own)
        return self._task

    def stop(self, why: Reason) -> None:
        """Stop the run; the first reason counts. Twice is fine, and so is one that is just ending."""
        if self._stopped != why:
            self._stopped = self._stopped or why
            # Behind the task's first step: a task that is cancelled before it would never come to end its stream.
            asyncio.get_running_loop().call_soon(self._cancel)

    def stop_after_turn(self) -> None:
        """Cancel the run when its current turn is over, where its source can do that; else now."""
        if self._stop_softly is None:
            self.stop("cancelled")
        else:
            self._stop_softly()

    def _cancel(self) -> None:
        if self._task is not None and not self._ending:
            self._task.cancel()

    async def _run(self, made: Coroutine[Any, Any, object]) -> None:
        watch = asyncio.create_task(self._watch(self._alone())) if self._alone is not None else None
        try:
            await self._to_its_end(made)
        finally:
            if watch is not None:
                watch.cancel()

    async def _watch(self, alone: Coroutine[Any, Any, None]) -> None:
        await alone
        self.stop("cancelled")

    async def _to_its_end(self, made: Coroutine[Any, Any, object]) -> None:
        try:
            try:
                outcome, terminal = await self._outcome(made)
            except Paused as pause:
                if (failed := await self._pause(pause)) is None:
                    self.outcome = "waiting"
                    return
                outcome, terminal = failed
            except _Left:
                self._ending = True
                if self._stopped == "left":
                    await self._writer.leave()
                self.outcome = self._stopped or self.outcome
                return
            await self._end(outcome, terminal)
            self.outcome = outcome
        except (StreamClosed, ProducerFenced):
            _log.warning("run %s was ended or taken over by another process while it was being made here", self.run_id)
            self.lost, self.outcome = True, "lost"
        except HeadwaterError as error:
            _log.error("run %s could not be written to its stream: %s", self.run_id, error)

    async def _outcome(self, made: Coroutine[Any, Any, object]) -> _End:
        try:
            result = await made
        except asyncio.CancelledError:
            if self._stopped in ("left", "lost"):
                raise _Left from None
            if self._stopped == "cancelled":
                return self._cancelled()
            return self._failed(Interrupted.code, Interrupted().said)
        except Stopped:
            return self._cancelled()
        except Paused:
            if self.keeper is not None:
                raise
            return self._failed("approval_not_supported", "A tool asks for an approval: only a registered agent can.")
        except RunFailed as error:
            return self._failed(error.code, error.message)
        except (StreamClosed, ProducerFenced):
            raise
        except HeadwaterError as error:  # of the sink: what it says is meant to be shown
            return self._failed(error.code, error.said)
        except Exception:  # noqa: BLE001 -- a source's bug must end its run, and its text must not reach readers
            _log.exception("run %s failed", self.run_id)
            return self._failed("internal", "the run failed; the server's log says why")
        return "completed", run_finished(self.thread_id, self.run_id, result=result, usage=self._usage)

    def _cancelled(self) -> _End:
        return "cancelled", run_cancelled(self.thread_id, self.run_id, usage=self._usage)

    def _failed(self, code: str, said: str) -> _End:
        return "failed", run_error(code, said, usage=self._usage)

    async def _pause(self, pause: Paused) -> _End | None:
        """Ask, keep, and let go of the stream: until it is answered, the run is nobody's. How it ends if that fails."""
        assert self.keeper is not None
        self._ending = True
        events = self._parts.closing_events()
        questions = [
            {"toolCallId": question.tool_call_id, "toolName": question.tool, "arguments": question.arguments}
            for question in pause.questions
        ]
        events += [custom(APPROVAL_REQUESTED, **question) for question in questions]
        events.append(waiting(self.thread_id, self.run_id, questions))
        asked = [encode(stamped(event, self._clock())) for event in events]
        try:
            await self.keeper.keep(self._writer.position + len(asked), pause.state)
            await asyncio.shield(self._writer.leave(*asked))
        except (StreamClosed, ProducerFenced):
            raise
        except HeadwaterError as error:
            return self._failed(error.code, error.said)
        return None

    @property
    def cancel_came_late(self) -> bool:
        """It was to be cancelled when it was already being left to wait for people."""
        return self._stopped == "cancelled" and self._ending

    async def _end(self, outcome: Outcome, terminal: BaseEvent) -> None:
        self._ending = True
        if self.trace is not None:
            self.trace.saw(terminal)
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

    def __init__(self, on_done: Callable[[Supervised], None] = lambda _: None) -> None:
        """`on_done` is told of each run whose task is over here."""
        self._on_done = on_done
        self.figures = Figures()
        self._runs: dict[str, Supervised] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._given_up: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        return f"<Supervisor [{len(self._runs)} runs]>"

    def __len__(self) -> int:
        return len(self._runs)

    def __iter__(self) -> Iterator[Supervised]:
        return iter(list(self._runs.values()))

    def __contains__(self, run_id: str) -> bool:
        return run_id in self._runs

    def start(self, run: Supervised, made: Coroutine[Any, Any, object]) -> None:
        """Have the run made by `made`, a call of its source."""
        task = run.start(made)
        self._runs[run.run_id] = run
        self.figures.began(run.agent, run.pace)
        self._tasks.add(task)
        task.add_done_callback(lambda done: self._done(run, done))

    def _done(self, run: Supervised, task: asyncio.Task[None]) -> None:
        del self._runs[run.run_id]
        self._tasks.discard(task)
        self._given_up.discard(task)
        if not task.cancelled() and task.exception() is not None:
            _log.error("run %s ended without its terminal event", run.run_id, exc_info=task.exception())
        now = asyncio.get_running_loop().time()
        self.figures.over(run.run_id, run.agent, run.outcome, run.pace, run.used, now)
        if run.trace is not None:
            run.trace.over(run.outcome)
        self._on_done(run)

    def stop(self, run_id: str, *, after_turn: bool = False) -> bool:
        """Cancel a run if it is made here; whether it is."""
        run = self._runs.get(run_id)
        if run is not None:
            run.stop_after_turn() if after_turn else run.stop("cancelled")
        return run is not None

    async def interrupt(self, *, leave: bool = False) -> None:
        """End every run as interrupted, and wait until their streams say so; for one that does not stop only once.

        `leave`: those with checkpoints are left to the next process instead, their streams open.
        """
        for run in self:
            run.stop("left" if leave and run.keeper is not None else "interrupted")
        stopping = self._tasks - self._given_up
        if stopping:
            _, stuck = await asyncio.wait(stopping, timeout=STOP_SECONDS)
            for task in stuck - self._given_up:
                _log.warning("%s does not stop; the next process on this store ends its stream", task.get_name())
            self._given_up |= stuck
