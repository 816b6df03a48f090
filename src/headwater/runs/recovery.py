"""Runs that have no maker: their process is gone, or they wait for people. Who goes on with them, and from where.

A run whose process is gone is *taken over* by one that has its agent: on the same stream, from the newest checkpoint
that counts. The taking is a compare-and-append under the next producer epoch, so of several that try one succeeds, and
a maker that was only asleep can say nothing more. Where nobody can go on, the run ends as failed.

A run that waits is nobody's. Answers go into its stream by compare-and-append, each question being answered once; who
gives the last one takes the run over.

Knows a run's stream and checkpoints, and the sources that can resume. Makes nothing itself: it starts the source under
the supervisor, like any other run.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from headwater.agui import APPROVAL_DECIDED, BaseEvent, custom, encode, run_cancelled, run_error, stamped, waiting
from headwater.decide import Append, Item
from headwater.errors import (
    BadRequest,
    Conflict,
    HeadwaterError,
    Interrupted,
    OffsetMismatch,
    ProducerFenced,
    StoreUnavailable,
    StreamClosed,
    StreamNotFound,
)
from headwater.model import Head, Offset
from headwater.runs.asking import was_asked
from headwater.runs.checkpoints import Keeper, drop, kept_request, newest
from headwater.runs.conversations import Conversations
from headwater.runs.figures import UNREGISTERED
from headwater.runs.history import BEGUN, History
from headwater.runs.record import CONVERSATION, PREFIX, RESUMES, UNREAD, stream_of
from headwater.runs.supervisor import Place, Supervised, Supervisor
from headwater.runs.unread import left_alone
from headwater.sources import Answer, Busy, Remembering, Request, Resumable, Resumption, Source
from headwater.streams import Streams
from headwater.writer import MOST_TRIES, Writer

_log = logging.getLogger("headwater.runs")

MAKER: Final = "run"
"""As whom every run's writer appends, so that the next one's epoch fences it off."""

MOST_RESUMPTIONS: Final = 5
"""From one checkpoint: a run that kills its server each time must not do so for ever."""

ELSEWHERE_SECONDS: Final = 60.0
"""How long a process without the agent leaves an orphaned run to one that has it, which may be starting."""

ANYBODY: Final = "i_anybody"
"""Owner of a run that whoever has its agent is to take over. No process has this name, so the run is an orphan."""


_QUICKER: Final = (ProducerFenced, StreamClosed, StreamNotFound)
"""Somebody else took the run over, and may have ended it and dropped its checkpoints already."""


class _Seen(NamedTuple):
    """An orphan that is left to others: where its stream ended, and since when."""

    offset: Offset
    since: float


class Recovery:
    """Goes on with runs of one Streams."""

    def __init__(
        self, streams: Streams, agents: Mapping[str, Source], supervisor: Supervisor, most_resumptions: int
    ) -> None:
        self._streams, self._agents, self._supervisor = streams, agents, supervisor
        self._most = most_resumptions
        self._seen: dict[str, _Seen] = {}
        self.conversations = Conversations(streams)
        self.leaving = False
        """This process ends: it takes nothing on."""

    def writer(self, run_id: str, labels: dict[str, str] | None = None) -> Writer:
        return self._streams.writer(stream_of(run_id), labels=labels, producer=MAKER)

    def place(
        self,
        run_id: str,
        thread_id: str,
        writer: Writer,
        keeper: Keeper | None,
        labels: Mapping[str, str],
        request: Request,
    ) -> Place:
        alone = partial(left_alone, self._streams.hub, writer.name, float(labels[UNREAD])) if UNREAD in labels else None
        conversation = labels.get(CONVERSATION, thread_id)
        agent = labels.get("agent", "")
        agent = agent if agent in self._agents else UNREGISTERED
        return Place(run_id, thread_id, conversation, writer, keeper, alone, request, agent)

    @staticmethod
    def busy(source: Source) -> Busy | None:
        """What becomes of a second run of a conversation; None: this source has no conversations."""
        return source.busy if isinstance(source, Remembering) else None

    def in_turn(
        self, run: Supervised, source: Source, made: Coroutine[Any, Any, object]
    ) -> Coroutine[Any, Any, object]:
        """`made`, when the run's turn in its conversation has come."""
        return made if self.busy(source) != "queue" else self._after_others(run, made)

    async def _after_others(self, run: Supervised, made: Coroutine[Any, Any, object]) -> object:
        try:
            await self.conversations.turn(run.conversation, run.run_id)
        except BaseException:
            made.close()
            raise
        return await made

    # -- orphans ------------------------------------------------------------------------------------------------------

    async def finish(self, name: str, head: Head, why: HeadwaterError) -> bool:
        """See to a run that nobody makes any more; False: it goes on, or is left to another process."""
        run_id = name.removeprefix(PREFIX)
        if run_id in self._supervisor:
            return False  # its task is just ending
        if isinstance(why, Interrupted) and await was_asked(self._streams, head.owner, run_id):
            await self._end(name, None)
            return True
        if isinstance(why, Interrupted) and RESUMES in head.labels:
            source = self._source(head)
            if source is None or self.leaving:
                if self._left_to_others(name, head):
                    return False
            elif (hopeless := await self._taken_over(run_id, head.owner, source)) is None:
                return False
            else:
                why = hopeless
        self._seen.pop(name, None)
        await self._end(name, why)
        return True

    def _source(self, head: Head) -> Resumable | None:
        source = self._agents.get(head.labels.get("agent", ""))
        return source if isinstance(source, Resumable) else None

    def _left_to_others(self, name: str, head: Head) -> bool:
        now = asyncio.get_running_loop().time()
        self._seen = {known: seen for known, seen in self._seen.items() if now - seen.since < 2 * ELSEWHERE_SECONDS}
        seen = self._seen.get(name)
        if seen is None or seen.offset != head.offset:  # it was another's meanwhile
            seen = self._seen[name] = _Seen(head.offset, now)
        return self.leaving or now - seen.since < ELSEWHERE_SECONDS

    async def _taken_over(self, run_id: str, owner: str | None, source: Resumable) -> HeadwaterError | None:
        """Take the run over from `owner`, unless somebody else does; why it cannot be, where it cannot."""
        for _ in range(MOST_TRIES):
            history = await History.read(self._streams, stream_of(run_id))
            if history.head.closed or history.head.owner != owner:
                return None
            kept = await newest(self._streams, run_id, history.head.tail)
            since, state = (kept.position, kept.state) if kept else (BEGUN, None)
            if (hopeless := self._hopeless(history, since, state)) is not None:
                return hopeless
            try:
                if await self._gone_on(history, source, since, state, None):
                    _log.warning("run %s is gone on with here: nobody makes it any more", run_id)
                    return None
            except _QUICKER:
                return None
        raise StoreUnavailable("this run is written by too many at a time; try again")

    def _hopeless(self, history: History, since: int, state: bytes | None) -> HeadwaterError | None:
        if not history.whole or (state is None and history.in_doubt(since)):
            return Interrupted()
        if history.resumptions_since(since) >= self._most:
            return Interrupted("the server went away too often before this got any further")
        return None

    async def _gone_on(
        self, history: History, source: Resumable, since: int, state: bytes | None, first: Sequence[BaseEvent] | None
    ) -> bool:
        """Take the stream, beginning with `first` (None: with what an interruption calls for), and start the source."""
        run_id = history.run_id
        writer, request = self.writer(run_id), await kept_request(self._streams, run_id)
        epoch = writer.next_epoch(history.head)
        keeper = Keeper(self._streams, run_id, epoch)
        await keeper.keep(since, state)
        if first is None:
            first = history.resumed(since, epoch, anew=state is None)
        else:
            history.say(first)
        if not await writer.take_over(history.head, *self._encoded(first)):
            return False
        place = self.place(run_id, history.thread_id, writer, keeper, history.head.labels, request)
        calls = {id_: call.answered > 0 for id_, call in history.calls.items()}
        at = Resumption(epoch, state, calls, history.shown, history.answers)
        run = Supervised(place, history.parts, self._streams.clock)
        self._supervisor.start(run, self.in_turn(run, source, source.resume(history.input, at, run)))
        return True

    async def _end(self, name: str, why: HeadwaterError | None) -> None:
        """By what the stream holds and nothing else; None: it was to be cancelled."""
        history = await History.read(self._streams, name)
        terminal = run_error(why.code, why.said) if why else run_cancelled(history.thread_id, history.run_id)
        items = [Item(data) for data in self._encoded([*history.parts.closing_events(), terminal])]
        await self._streams.carry_out(name, Append(items, close=True, outcome="failed" if why else "cancelled"))
        await drop(self._streams, history.run_id)

    def _encoded(self, events: Sequence[BaseEvent]) -> list[bytes]:
        return [encode(stamped(event, self._streams.clock())) for event in events]

    # -- runs that wait -----------------------------------------------------------------------------------------------

    async def answer(self, run_id: str, answers: Mapping[str, Answer], by: str) -> None:
        """Answer some of the questions that the run waits for. All are taken, or none. Raises Conflict, BadRequest."""
        for _ in range(MOST_TRIES):
            history = await History.read(self._streams, stream_of(run_id))
            if history.head.closed:  # whoever was not quick enough may have made them once more
                await drop(self._streams, run_id)
            _check(history, answers)
            events: list[BaseEvent] = [_decided(id_, answer, by) for id_, answer in answers.items()]
            left = [history.asked[id_] for id_ in history.open_questions if id_ not in answers]
            if left:
                events.append(waiting(history.thread_id, run_id, left))
            if await self._told(history, events, last=not left):
                return
        raise StoreUnavailable("this run is written by too many at a time; try again")

    async def settle(self, run_id: str, answers: Mapping[str, Answer], by: str) -> Offset:
        """As `answer`, but what was decided alike before is no conflict. Gives the place behind the questions."""
        left: Mapping[str, Answer] = answers
        refused: Conflict | None = None
        while True:
            history = await History.read(self._streams, stream_of(run_id))
            undecided = {id_: answer for id_, answer in left.items() if not history.decided_alike(id_, answer)}
            if refused is not None and undecided.keys() == left.keys():
                raise refused
            if not undecided:
                return history.behind(answers)
            left, refused = undecided, None
            try:
                await self.answer(run_id, left, by)
            except Conflict as error:  # of somebody who was quicker: maybe with the same answer
                refused = error

    async def _told(self, history: History, events: list[BaseEvent], *, last: bool) -> bool:
        """Put the answers into the stream; after the last one the run goes on. False: the stream has changed since."""
        source = None if self.leaving else self._source(history.head)
        if last and source is not None:
            kept = await newest(self._streams, history.run_id, history.head.tail)
            if (await self._streams.head(stream_of(history.run_id))).offset != history.head.offset:
                return False  # somebody was quicker, and the run may even be over
            if kept is None or kept.state is None:
                raise Conflict("this run waited for too long: what is needed to go on with it is gone; cancel it")
            try:
                return await self._gone_on(history, source, kept.position, kept.state, events)
            except _QUICKER:
                return False
        items = [Item(data) for data in self._encoded(events)]
        owner = ANYBODY if last else None
        try:
            append = Append(items, expected=history.head.offset, owner=owner)
            await self._streams.carry_out(stream_of(history.run_id), append)
        except (OffsetMismatch, StreamClosed):
            return False
        return True

    async def cancel_waiting(self, run_id: str) -> bool:
        """End a run that waits; False: it does not."""
        for _ in range(MOST_TRIES):
            history = await History.read(self._streams, stream_of(run_id))
            if history.head.closed or history.head.owner is not None:
                return False
            last = [*history.parts.closing_events(), run_cancelled(history.thread_id, run_id)]
            items = [Item(data) for data in self._encoded(last)]
            append = Append(items, close=True, outcome="cancelled", expected=history.head.offset)
            try:
                await self._streams.carry_out(stream_of(run_id), append)
            except (OffsetMismatch, StreamClosed):
                continue
            await drop(self._streams, run_id)
            return True
        raise StoreUnavailable("this run is written by too many at a time; try again")


def _check(history: History, answers: Mapping[str, Answer]) -> None:
    if not answers:
        raise BadRequest("say which tool calls are approved, and which are not")
    for id_ in answers:
        if (made := history.decided.get(id_)) is not None:
            said = "approved" if made["approved"] else "not approved"
            by = {"by": str(made["by"])} if "by" in made else {}
            raise Conflict(f"tool call {id_} was decided on already: {said}", approved=int(made["approved"]), **by)
    if history.head.closed:
        raise Conflict("this run has ended")
    if unknown := sorted(answers.keys() - set(history.open_questions)):
        asked = ", ".join(history.open_questions)
        said = f"it asks about {asked}" if asked else "it asks nothing at the moment"
        raise BadRequest(f"this run does not ask about tool call {unknown[0][:100]!r}; {said}")


def _decided(id_: str, answer: Answer, by: str) -> BaseEvent:
    value: dict[str, Any] = {"toolCallId": id_, "approved": answer.approved}
    if answer.message is not None:
        value["message"] = answer.message
    if by:
        value["by"] = by
    return custom(APPROVAL_DECIDED, **value)
