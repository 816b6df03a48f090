"""Runs: start (once, whatever is retried), look up, follow, answer, cancel from anywhere, go on with what others left.

Knows streams, sources and the supervisor; no HTTP but the response that an endpoint returns. A run's stream is
`runs/{id}`: RUN_STARTED, its input, its events, one terminal event, closed.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Coroutine, Mapping
from contextlib import suppress
from itertools import product
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple, Self, TypeVar

from msgspec.structs import replace
from starlette.datastructures import Headers, QueryParams

from headwater.agui import CustomEvent, OpenParts, encode, run_started, stamped
from headwater.delivery import Delivery
from headwater.errors import (
    AgentNotFound,
    BadRequest,
    Conflict,
    Draining,
    HeadwaterError,
    Interrupted,
    KeyReused,
    StoreUnavailable,
    StreamExists,
    StreamNotFound,
    TooLarge,
)
from headwater.following import Following
from headwater.formats.format import Format
from headwater.model import Head, Offset
from headwater.runs import asking, keys
from headwater.runs.asking import When
from headwater.runs.checkpoints import Keeper, drop, keep_request
from headwater.runs.figures import Figures
from headwater.runs.record import (
    CONVERSATION,
    INPUT,
    KIND,
    OWN_THREAD,
    RESUMES,
    UNREAD,
    Record,
    Status,
    Wanted,
    conversation_of,
    list_records,
    new_id,
    read_head,
    read_record,
    record_of,
    records_among,
    stream_of,
    title_of,
)
from headwater.runs.recovery import MOST_RESUMPTIONS, Recovery
from headwater.runs.retractions import Retractions
from headwater.runs.shown import choose_format
from headwater.runs.supervisor import STOP_SECONDS, Supervised, Supervisor
from headwater.runs.threads import Entry, Threads
from headwater.sources import NO_REQUEST, Answer, Request, Resumable, Source
from headwater.sources.recognised import source_of
from headwater.streams import Streams
from headwater.traced import TRACEPARENT, TracedRun, beginning
from headwater.writer import MOST_TRIES, patiently

_JSON: Final = "application/json"

_T = TypeVar("_T")


class _Asked(NamedTuple):
    """What a run is started with."""

    input: Any
    note: CustomEvent | None
    principal: str
    entry: Entry | None
    """None: the run is on a thread of its own, which needs no list of its runs."""
    request: Request
    trace: TracedRun | None


class Run:
    """A run somewhere: made by this process, by another, or finished long ago."""

    def __init__(self, runs: Runs, run_id: str, *, started: bool) -> None:
        self.id = run_id
        self.started = started
        """It was started by the call that gave this object; False: it was there already."""
        self._runs = runs

    def __repr__(self) -> str:
        return f"<Run {self.id}>"

    @property
    def stream(self) -> str:
        """Name of its stream."""
        return stream_of(self.id)

    async def record(self) -> Record:
        """What is known of it now."""
        return await self._runs.record(self.id)

    async def cancel(self, *, when: When = "now") -> None:
        """Stop it, wherever it is made; its stream then ends as cancelled. Finished runs stay as they are."""
        await self._runs.cancel(self.id, when=when)

    async def approve(self, tool_call_id: str, *, by: str = "") -> None:
        """Let a tool run that the run waits for. See `Runs.answer`."""
        await self._runs.answer(self.id, {tool_call_id: Answer(approved=True)}, by=by)

    async def reject(self, tool_call_id: str, message: str | None = None, *, by: str = "") -> None:
        """Do not let it run; `message` is for the model. See `Runs.answer`."""
        await self._runs.answer(self.id, {tool_call_id: Answer(approved=False, message=message)}, by=by)

    async def wait(self) -> Record:
        """Until it has ended, however it ends."""
        async for page in self._runs.streams.follow(self.stream, "now"):
            if page.closed:
                break
        return await self.record()

    def response(
        self, request: object = None, *, status_code: int = 200, headers: dict[str, str] | None = None
    ) -> Following:
        """Its events for the client that asks, from where that client was: return this from an endpoint.

        `request` is accepted so that the call reads like other responses; all that counts is read when it is sent.
        """
        own = {"x-run-id": self.id, **(headers or {})}
        return Following(self._runs.delivery, self.stream, self._format, status_code=status_code, headers=own)

    async def _format(self, _: Head, headers: Headers, query: QueryParams) -> Format:
        return await choose_format(headers, query, self.id, self._runs.retractions, late=not self.started)


class Runs:
    """The runs of one Streams, and the agents that can be run."""

    def __init__(
        self,
        streams: Streams,
        *agents: Any,
        delivery: Delivery | None = None,
        on_shutdown: Literal["resume", "interrupt"] = "resume",
        most_resumptions: int = MOST_RESUMPTIONS,
    ) -> None:
        """`agents`: Agents of the OpenAI Agents SDK, or Sources.

        `on_shutdown`: what becomes of runs when this process ends in good order. "resume": the next process on the
        store goes on with them, where it has the agent and that can be (most processes end because a new version
        starts, and nobody should lose an answer to that); "interrupt": they end as failed. Without a durable store
        there is no next process, and they always do. `most_resumptions`: how often a run is gone on with from one
        checkpoint after its process died, so that one which kills its server does not do so for ever.
        """
        self.streams = streams
        self.delivery = delivery or Delivery(streams)
        self.agents: dict[str, Source] = {}
        self._given: dict[str, Any] = {}
        """The same, as they were given."""
        self.threads = Threads(streams)
        self.retractions = Retractions(streams)
        self._supervisor = Supervisor(self._over)
        self._recovery = Recovery(streams, self.agents, self._supervisor, most_resumptions)
        self._control: asyncio.Task[None] | None = None
        self._beginnings: set[asyncio.Future[Any]] = set()
        self._errands: set[asyncio.Task[object]] = set()
        self._resume_later = on_shutdown == "resume"
        self._leaving = False
        for agent in agents:
            self.register(agent)

    def __repr__(self) -> str:
        return f"<Runs of {', '.join(self.agents) or 'no agents'} {self._supervisor!r}>"

    def register(self, agent: Any, name: str | None = None) -> Source:
        """Make an agent startable under `name`, by default the slug of its own."""
        source = as_source(agent)
        name = name or source.name
        self.agents[name], self._given[name] = source, agent
        return source

    # -- life ---------------------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Begin to look after runs: end those whose process is gone, hear of cancellations. Streams must be open."""
        if self._control is not None:
            return
        self._leaving = self._recovery.leaving = False
        self.streams.leases.finisher(KIND, self._recovery.finish)
        self.streams.leases.on_lapse.append(self._lapsed)
        with suppress(HeadwaterError):  # tried again every few seconds by the leases
            await self.streams.leases.finish_orphans()
        self._control = asyncio.create_task(self._hear(), name="headwater-runs-control")

    async def interrupt(self) -> None:
        """Let go of the runs made here, because the process ends: `on_shutdown` says what becomes of them.

        Their streams say so when this returns. None starts now.
        """
        self._leaving = self._recovery.leaving = True
        if self._beginnings:
            await asyncio.wait(self._beginnings, timeout=STOP_SECONDS)
        await self._supervisor.interrupt(leave=self._resume_later and self.streams.store.durable)

    async def aclose(self) -> None:
        """The same, once it is all over."""
        await self.interrupt()
        if self._errands:
            await asyncio.wait(self._errands)
        with suppress(ValueError):
            self.streams.leases.on_lapse.remove(self._lapsed)
        if self._control is not None:
            self._control.cancel()
            with suppress(asyncio.CancelledError):
                await self._control
            self._control = None

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        await self.aclose()

    # -- starting -----------------------------------------------------------------------------------------------------

    async def start(
        self,
        agent: Any,
        input: Any,  # noqa: A002 -- AG-UI's word
        *,
        thread_id: str | None = None,
        idempotency_key: str | None = None,
        principal: str = "",
        note: CustomEvent | None = None,
        entry: Entry | None = None,
        request: Request | None = None,
        cancel_when_unread: float | None = None,
    ) -> Run:
        """Start a run of `agent` (a registered name, or an agent) and return at once, its stream being there.

        `input` is what the agent takes: a text, or a list of messages. With an `idempotency_key` the same call again
        gives the same run and starts nothing; another call with that key raises KeyReused. A `note` goes into the
        stream right behind the input: what the protocol, by which the run was asked for, has to remember of it; an
        `entry`, what it has the thread of `thread_id` remember; a `request` is for the agent, by `sources.request()`.
        `cancel_when_unread`: end it when nobody has been reading it in this process for so many seconds. Raises
        AgentNotFound, BadRequest, Draining.
        """
        name, source = self._named(agent)
        if self.streams.draining or self._leaving:
            raise Draining("the server is going away; connect again")
        unread = {} if cancel_when_unread is None else {UNREAD: f"{cancel_when_unread:g}"}
        noted = {} if note is None else {"note": note.value}
        noted |= {} if request in (None, NO_REQUEST) else {"request": request}
        body = keys.as_json({"agent": name, "input": input, "thread_id": thread_id, **unread, **noted})
        run_id = new_id(self.streams.clock())
        if idempotency_key is not None:
            run_id, fresh = await keys.claim(self.streams, principal, idempotency_key, body, run_id)
            if not fresh and await self._exists(run_id):
                return Run(self, run_id, started=False)
        remembered = (entry or Entry()) if thread_id else None
        thread, tracing = thread_id or OWN_THREAD + run_id, self.streams.tracing
        trace = None if tracing is None else tracing.run(run_id, name, thread)
        asked = _Asked(input, note, principal, remembered, request or NO_REQUEST, trace)
        begun = self._begin(run_id, thread, name, source, asked, unread)
        started = await self._to_its_end(begun if trace is None else beginning(trace, begun))
        return Run(self, run_id, started=started)

    async def _to_its_end(self, beginning: Coroutine[Any, Any, _T]) -> _T:
        """Shielded: a stream that is made, or taken over, and a task that is not would be a run without an end."""
        task = asyncio.ensure_future(beginning)
        self._beginnings.add(task)
        task.add_done_callback(self._beginnings.discard)
        return await asyncio.shield(task)

    def _named(self, agent: Any) -> tuple[str, Source]:
        if not isinstance(agent, str):
            for name, given in self._given.items():
                if given is agent and name in self.agents:  # so that its runs can wait, and outlive this process
                    return name, self.agents[name]
            source = as_source(agent)
            return source.name, source
        known = self.agents.get(agent)
        if known is None:
            names = ", ".join(sorted(self.agents)) or "none"
            raise AgentNotFound(f"no agent is registered as {agent!r}; there are: {names}")
        return agent, known

    async def claimed(self, idempotency_key: str, *, principal: str = "") -> Run | None:
        """The run that was started with this key, if it is still remembered."""
        run_id = await keys.claimed(self.streams, principal, idempotency_key)
        return Run(self, run_id, started=False) if run_id is not None and await self._exists(run_id) else None

    async def alias(self, run_id: str, idempotency_key: str, *, principal: str = "") -> None:
        """Have `claimed` find the run by this key, too, unless the key stands for another one already."""
        with suppress(KeyReused):
            await keys.claim(self.streams, principal, idempotency_key, keys.as_json({"run": run_id}), run_id)

    async def _exists(self, run_id: str) -> bool:
        try:
            await self.streams.head(stream_of(run_id))
        except StreamNotFound:
            return False  # whoever claimed the key died before it started the run: start it now
        return True

    async def _begin(
        self, run_id: str, thread_id: str, name: str, source: Source, asked: _Asked, more: dict[str, str]
    ) -> bool:
        now = self.streams.clock()
        traceparent = None if asked.trace is None else asked.trace.traceparent
        begin = stamped(run_started(thread_id, run_id, traceparent=traceparent), now)
        started = [begin, CustomEvent(name=INPUT, value=asked.input)]
        started += [asked.note] if asked.note is not None else []
        labels = {"kind": KIND, "agent": name, "thread": thread_id, "title": title_of(asked.input), **more}
        labels |= {TRACEPARENT: traceparent} if traceparent else {}
        if (conversation := conversation_of(asked.principal, thread_id)) != thread_id:
            labels[CONVERSATION] = conversation
        if resumable := isinstance(source, Resumable) and self.agents.get(name) is source:
            labels[RESUMES] = "yes"
        writer = self._recovery.writer(run_id, labels)
        try:
            first = [encode(event) for event in started]
        except ValueError as error:
            raise BadRequest("the input is nested too deeply") from error
        if len(first[1]) > self.streams.limits.message_bytes:
            raise TooLarge("the input is larger than a message may be")
        if resumable and asked.request != NO_REQUEST:
            await keep_request(self.streams, run_id, asked.request)
        if (busy := self._recovery.busy(source)) is not None:  # last: a place is held also by a run that does not begin
            try:
                await self._recovery.conversations.enter(conversation, run_id, wait=busy == "queue")
            except Conflict:
                await drop(self.streams, run_id)
                raise
        try:
            if not await writer.open(*first):
                return False
        except StreamExists:
            return False  # the same request, retried at the same time, was quicker, and its run has ended already
        parts = OpenParts()
        for event in started:
            parts.feed(event)
        keeper = Keeper(self.streams, run_id) if resumable else None
        place = self._recovery.place(run_id, thread_id, writer, keeper, labels, asked.request, asked.trace)
        run = Supervised(place, parts, self.streams.clock)
        self._supervisor.start(run, self._recovery.in_turn(run, source, source.run(asked.input, run)))
        if asked.entry is not None:
            entry = replace(asked.entry, run=run_id)  # a start that is repeated would not come here again
            await patiently(lambda: self.threads.note(asked.principal, name, thread_id, entry))
        return True

    # -- everything else ----------------------------------------------------------------------------------------------

    async def get(self, run_id: str) -> Run:
        """A run by its id. Raises RunNotFound."""
        await read_head(self.streams, run_id)
        return Run(self, run_id, started=False)

    async def record(self, run_id: str) -> Record:
        """What is known of a run. Raises RunNotFound."""
        return await read_record(self.streams, run_id)

    async def list(
        self,
        *,
        before: str | None = None,
        limit: int = 50,
        agent: str | None = None,
        status: Status | None = None,
        thread: str | None = None,
        principal: str = "",
    ) -> tuple[list[Record], str | None]:
        """Runs, newest first, and what to give as `before` for the next ones; there may be some although few are given.

        Those of an `agent`, in a `status`; of a `thread` those that `principal`, or nobody in particular, started.
        """
        wanted = Wanted(agent, thread, status)
        if thread is None:
            return await list_records(self.streams, before=before, limit=limit, wanted=wanted)
        ids = {thread.removeprefix(OWN_THREAD)}
        for owner, name in product({principal, ""}, self.agents if agent is None else [agent]):
            ids |= {entry.run for entry in await self.threads.entries(owner, name, thread)}
        return await records_among(self.streams, ids, before=before, limit=limit, wanted=wanted)

    async def cancel(self, run_id: str, *, when: When = "now") -> Record:
        """Ask for a run's end, `now` or when its current turn is over: then the model's answer is whole, and its tools
        have ended. It comes through the run's stream; a run that has ended stays as it is."""
        for _ in range(MOST_TRIES):
            head = await read_head(self.streams, run_id)
            if head.closed or self._supervisor.stop(run_id, after_turn=when == "after_turn"):
                return record_of(run_id, head)
            if head.owner is not None:
                await asking.ask(self.streams, head.owner, run_id, when)
                return record_of(run_id, head)
            if await self._recovery.cancel_waiting(run_id):
                return record_of(run_id, await read_head(self.streams, run_id))
        raise StoreUnavailable("this run is written by too many at a time; try again")

    async def answer(self, run_id: str, answers: Mapping[str, Answer], *, by: str = "") -> Record:
        """Decide, by tool call id, on what a waiting run asks. When all is decided, it goes on.

        Each question is answered once, whoever is quicker: Conflict says what was decided. Of several answers given
        together, all are taken or none. Raises RunNotFound, BadRequest, Conflict.
        """
        await read_head(self.streams, run_id)
        await self._to_its_end(self._recovery.answer(run_id, answers, by))
        return await self.record(run_id)

    async def settle(self, run_id: str, answers: Mapping[str, Answer], *, by: str = "") -> Offset:
        """As `answer`, but what was decided alike before is no conflict, for clients that repeat themselves. Gives the
        place behind the questions in the run's stream."""
        await read_head(self.streams, run_id)
        return await self._to_its_end(self._recovery.settle(run_id, answers, by))

    def statistics(self) -> dict[str, int]:
        """Runs that are being made here, and what was so far."""
        figures = self._supervisor.figures
        return {"running": len(self._supervisor), "started": figures.started.total(), "ended": figures.ended.total()}

    @property
    def figures(self) -> Figures:
        """What the runs that were made here came to."""
        return self._supervisor.figures

    def running(self) -> Counter[str]:
        """Runs that are being made here now, by agent."""
        return Counter(run.agent for run in self._supervisor)

    async def _hear(self) -> None:
        """Carry out what other processes ask of the runs made here."""
        while True:
            try:
                async for asked in asking.heard(self.streams):
                    if not self._supervisor.stop(asked.run_id, after_turn=asked.when == "after_turn"):
                        self._errand(self._pass_on(asked))
            except HeadwaterError:
                await asyncio.sleep(1)  # expired in silence, or the store is away: begin anew

    async def _pass_on(self, asked: asking.Asked) -> None:
        """The run was left to wait for people meanwhile, or is another's."""
        with suppress(HeadwaterError):
            head = await read_head(self.streams, asked.run_id)
            if head.owner != self.streams.leases.owner:  # else it is an orphan of ours, or was just taken
                await self.cancel(asked.run_id, when=asked.when)

    # -- what comes by itself -----------------------------------------------------------------------------------------

    def _over(self, run: Supervised) -> None:
        """A run's task is over here."""
        if run.lost:
            self.streams.leases.abandon(run.stream, Interrupted())  # counts only where it is open, and ours
        if run.keeper is not None:
            self._errand(self._after(run))

    async def _after(self, run: Supervised) -> None:
        with suppress(HeadwaterError):
            if run.cancel_came_late:
                await self._recovery.cancel_waiting(run.run_id)
            if (await self.streams.head(run.stream)).closed:
                await drop(self.streams, run.run_id)

    def _lapsed(self) -> None:
        """This process slept for longer than its lease: what it makes may be another's by now."""
        self._errand(self._look_for_lost())

    async def _look_for_lost(self) -> None:
        owner = self.streams.leases.owner
        for run in self._supervisor:
            with suppress(HeadwaterError):
                head = await self.streams.head(run.stream)
                if not head.closed and head.owner != owner:
                    run.stop("lost")

    def _errand(self, work: Coroutine[Any, Any, object]) -> None:
        task = asyncio.create_task(work)
        self._errands.add(task)
        task.add_done_callback(self._errands.discard)


def as_source(agent: Any) -> Source:
    """What can be run, as a Source. Raises BadRequest for what cannot."""
    if (known := source_of(agent)) is not None:
        return known
    if callable(getattr(agent, "run", None)) and isinstance(getattr(agent, "name", None), str):
        source: Source = agent
        return source
    named = getattr(agent, "__name__", type(agent).__name__)
    raise BadRequest(f"{named} is no agent; give an agents.Agent, an async generator, or a headwater.sources.Source")
