"""`/agents/{name}/ag-ui`: what AG-UI's HttpAgent and TanStack AI ask for.

    POST /agents/{name}/ag-ui                    a RunAgentInput starts a run, and is answered with its events
    POST /agents/{name}/ag-ui                    one with `resume` answers a run that waits, and gets the rest of it
    GET  /agents/{name}/ag-ui?runId=…            the events of a run from its first (TanStack's join)
    GET  /agents/{name}/ag-ui?threadId=…         a thread's messages and its active run (TanStack's hydration)
    POST /agents/{name}/ag-ui/{runId}/stop       stops a run

`runId` is the client's: the same POST again, or one with a Last-Event-ID, attaches to its run and starts nothing. In
the events, and in `X-Run-Id`, a run has the id that it has everywhere in Headwater; both ids are good in a request.
Each event's id is an offset (at the end of an answer that waits for people with `.0000`), so any of these goes on by
`Last-Event-ID`. `?format=ndjson` is for `fetchHttpStream`; `?rollup=0` is for every delta as it was made
(`headwater.formats.rollup`).

Of a RunAgentInput the messages are the run's input, but for texts that were taken back: a client may still have those.
Its `state`, `context` and `forwardedProps` reach the agent's code, which asks `headwater.sources.request()` for them;
no model is shown them by itself, and readers of the run are not, either. `tools`, which would be the client's to carry
out, are refused: agents call tools of the server.

Knows Runs, threads and the projections.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from contextlib import suppress
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from headwater.agui import RunStartedEvent, decode, encode, run_started
from headwater.errors import BadRequest, KeyReused, NotAcceptable, NotFound, RunNotFound, StreamNotFound
from headwater.following import Following
from headwater.formats.agui_events import AguiEvents, AguiLines, interrupts
from headwater.formats.format import Format
from headwater.formats.pauses import PAUSED, Pause, pause_of
from headwater.formats.rollup import RolledUp, is_wanted
from headwater.formats.transcript import Transcript, asked_by, continued, said_in, taken_up
from headwater.http.approvals import Answers, decided_by, of_resume
from headwater.http.chat import ID_CHARACTERS, is_id
from headwater.http.conversation import from_agui
from headwater.http.exchange import Exchange
from headwater.model import Offset
from headwater.runs import Run, Runs
from headwater.runs.history import BEGUN, so_far
from headwater.runs.record import OWN_THREAD, read_head, stream_of
from headwater.runs.threads import Entry
from headwater.sources import Request
from headwater.traced import TRACEPARENT


class AguiResource:
    """The agents of one Runs, for AG-UI clients."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._threads = runs, runs.threads

    async def answer(self, exchange: Exchange, agent: str, rest: str) -> Response:
        """`rest`: what follows `ag-ui/`."""
        if rest == "" and exchange.method == "POST":
            return await self._post(exchange, agent)
        if rest == "" and exchange.method in ("GET", "HEAD"):
            return await self._get(exchange, agent)
        run_id, _, what = rest.rpartition("/")
        if run_id and what == "stop" and exchange.method == "POST":
            return await self._stop(exchange, agent, run_id)
        if rest == "" or what == "stop":
            return Response(status_code=405, headers={"allow": "POST" if rest else "GET, POST"})
        raise NotFound("there is nothing at this path")

    async def _post(self, exchange: Exchange, agent: str) -> Response:
        principal = exchange.principal.name  # before a body is taken in
        _format(exchange)  # refused before anything is started
        body = await exchange.json(self._runs.streams.limits.message_bytes)
        thread, run_id = (_id(body, name) for name in ("threadId", "runId"))
        answers = of_resume(body.get("resume"))
        if exchange.headers.get("last-event-id"):
            known = run_id if answers is None else answers.run_id
            return await self._followed(exchange, agent, await self._known(exchange, agent, known))
        if answers is not None:
            return await self._answered(exchange, agent, thread, run_id, answers)
        exchange.authorize("start", f"runs/{agent}")
        messages: Any = body.get("messages")
        given = from_agui(messages, await self._retracted(exchange, agent, thread, messages))
        key = _key(agent, run_id)
        ids = [message["id"] for message in messages if isinstance(message.get("id"), str)]
        sent = _request(body)
        entry = Entry(asked=asked_by(messages), ids=ids)
        try:
            run = await self._runs.start(
                agent,
                given,
                thread_id=thread,
                idempotency_key=key,
                principal=principal,
                entry=entry,
                request=sent,
            )
        except KeyReused:
            raise KeyReused("this runId was used for another request; give each run its own") from None
        return self._following(exchange, agent, run)

    async def _retracted(self, exchange: Exchange, agent: str, thread: str, messages: Any) -> Set[str]:
        """Ids of the agent's texts that are no part of the conversation, although its client may still send them."""
        sent = [message for message in messages if isinstance(message, dict)] if isinstance(messages, list) else []
        ids = [str(message.get("id")) for message in sent if message.get("role") == "assistant"]
        runs = {run_id for id_ in ids if (run_id := id_.rpartition(".")[0])}  # where we made the id
        readable = [run_id for run_id in runs if exchange.allows("read", stream_of(run_id))]
        return await self._runs.retractions.of_thread(agent, thread, readable)

    async def _answered(self, exchange: Exchange, agent: str, thread: str, run_id: str, answers: Answers) -> Response:
        """What a run waits for, and what comes of it. `run_id`: by what the client knows the rest."""
        run = await self._known(exchange, agent, answers.run_id)
        labels = (await read_head(self._runs.streams, run.id)).labels
        if labels.get("thread") != thread:
            raise RunNotFound("no such run of this thread")
        exchange.authorize("approve", run.stream)
        behind = await self._runs.settle(run.id, answers.by_call, by=decided_by(exchange))
        await self._runs.alias(run.id, _key(agent, run_id), principal=exchange.principal.name)
        begin = run_started(thread, run.id, traceparent=labels.get(TRACEPARENT))
        return self._following(exchange, agent, run, begin=begin, behind=behind)

    async def _followed(self, exchange: Exchange, agent: str, run: Run) -> Response:
        """From where the client was. Each response begins with RUN_STARTED, but for the rest of one."""
        last_id = exchange.headers.get("last-event-id")
        behind = Offset.parse(last_id.removesuffix(PAUSED) if last_id else exchange.query("offset") or "")
        if behind is None or (last_id and not last_id.endswith(PAUSED)):
            return self._following(exchange, agent, run)
        head = await read_head(self._runs.streams, run.id)
        if last_id and head.offset == behind:  # it still waits
            return Response(status_code=204, headers={"cache-control": "no-store"})
        begin = run_started(head.labels.get("thread", ""), run.id, traceparent=head.labels.get(TRACEPARENT))
        return self._following(exchange, agent, run, begin=begin, behind=behind)

    async def _known(self, exchange: Exchange, agent: str, run_id: str) -> Run:
        """The run of this agent that has `run_id`, the client's id or ours. Raises RunNotFound."""
        run = await self._runs.claimed(_key(agent, run_id), principal=exchange.principal.name)
        stream = run.stream if run is not None else stream_of(run_id)
        exchange.authorize("read", stream)
        run = run or await self._runs.get(run_id)
        if (await read_head(self._runs.streams, run.id)).labels.get("agent") != agent:
            raise RunNotFound("no such run")
        return run

    def _following(
        self,
        exchange: Exchange,
        agent: str,
        run: Run,
        begin: RunStartedEvent | None = None,
        behind: Offset | None = None,
    ) -> Response:
        """`begin`: said first, where the response is the rest of a run from `behind` a pause."""
        make, query, rolled_up = _format(exchange)
        at = f"{exchange.prefix}/agents/{quote(agent, safe='')}/ag-ui?{query}&runId={run.id}"
        events = make()
        if begin is not None and behind is not None:
            events.begin(encode(begin), behind)
            at = f"{at}&offset={behind}"
        format_: Format = RolledUp(events) if rolled_up and not run.started else events
        headers = {"x-run-id": run.id, "location": at}
        return Following(
            self._runs.delivery,
            run.stream,
            lambda *_: format_,
            headers=headers,
            offset_of=lambda id_: id_.removesuffix(PAUSED),
            start=None if behind is None else str(behind),
        )

    async def _get(self, exchange: Exchange, agent: str) -> Response:
        run_id, thread = exchange.query("runId"), exchange.query("threadId")
        if run_id:
            return await self._followed(exchange, agent, await self._known(exchange, agent, run_id))
        if thread:
            return await self._hydration(exchange, agent, thread)
        raise BadRequest("say which: ?runId= for a run's events, ?threadId= for a thread's messages")

    async def _hydration(self, exchange: Exchange, agent: str, thread: str) -> Response:
        messages: list[Any] = []
        active, pause = None, None
        for entry in await self._entries(exchange.principal.name, agent, thread):
            exchange.authorize("read", stream_of(entry.run))
            try:
                told = await self._told(entry.run)
            except StreamNotFound:
                continue  # deleted
            messages = told.asked_after(messages, entry) + told.messages
            pause = told.pause
            active = None if told.over or pause is not None else {"runId": entry.run}
        waits = None if pause is None else {"runId": pause.run_id, "pending": interrupts(pause)}
        body = {
            "messages": messages,
            "activeRun": active,
            "interrupts": waits,
            "page": {"truncated": False},
        }
        return Response(msgspec.json.encode(body), 200, {"cache-control": "no-store"}, "application/json")

    async def _entries(self, principal: str, agent: str, thread: str) -> Sequence[Entry]:
        """The thread's runs; one that was made for its first run alone did not note that."""
        entries = await self._threads.entries(principal, agent, thread)
        first = thread.removeprefix(OWN_THREAD)
        if first == thread:
            return entries
        with suppress(RunNotFound):
            labels = (await read_head(self._runs.streams, first)).labels
            if (labels.get("agent"), labels.get("thread")) == (agent, thread):
                return [Entry(first), *entries]
        return entries

    async def _told(self, run_id: str) -> _Told:
        """Raises StreamNotFound."""
        transcript, given = Transcript(), None
        async for page in so_far(self._runs.streams, stream_of(run_id)):
            for message in page.messages:
                transcript.feed(message.data)
                if message.offset.position == BEGUN:
                    given = decode(message.data).get("value")
            over, pause = page.closed, pause_of(page)
        return _Told(run_id, given, transcript.messages if over or pause is not None else [], over, pause)

    async def _stop(self, exchange: Exchange, agent: str, run_id: str) -> Response:
        run = await self._known(exchange, agent, run_id)
        exchange.authorize("cancel", run.stream)
        stopped = not (await read_head(self._runs.streams, run.id)).closed
        await self._runs.cancel(run.id)
        body = msgspec.json.encode({"stopped": stopped, "runId": run.id})
        return Response(body, 202 if stopped else 200, {"cache-control": "no-store"}, "application/json")


class _Told(NamedTuple):
    """A run for a transcript."""

    run_id: str
    input: Any
    messages: list[Any]
    """What the agent said, if the run is over or waits for people: another one the client joins."""
    over: bool
    pause: Pause | None

    def asked_after(self, messages: list[Any], entry: Entry) -> list[Any]:
        """The conversation so far, of which `messages` were there before, once the user has said what it answers to."""
        if entry.asked:
            return continued(messages, entry.ids, entry.asked)
        before, asked = said_in(self.input, self.run_id)
        if before is None and asked and entry.history:
            before = []
        return [*(messages if before is None else taken_up(messages, before)), *asked]


_FORMATS: Final[dict[str, Callable[[], AguiEvents | AguiLines]]] = {"sse": AguiEvents, "ndjson": AguiLines}


def _format(exchange: Exchange) -> tuple[Callable[[], AguiEvents | AguiLines], str, bool]:
    """The format that is asked for, the query that asks for it again, and whether what is past may come rolled up.

    Raises NotAcceptable, BadRequest.
    """
    name, rolled_up = exchange.query("format") or "sse", is_wanted(exchange.query("rollup"))
    make = _FORMATS.get(name)
    if make is None:
        raise NotAcceptable(f"there is no format {name!r}; choose {', '.join(_FORMATS)}")
    return make, f"format={name}" if rolled_up else f"format={name}&rollup=0", rolled_up


def _id(body: dict[str, object], name: str) -> str:
    given = body.get(name)
    if not is_id(given):
        raise BadRequest(f"{name} is a text of 1 to {ID_CHARACTERS} characters")
    return str(given)


def _request(body: dict[str, Any]) -> Request:
    """Raises BadRequest."""
    context = body.get("context") or []
    if not isinstance(context, list) or not all(isinstance(item, dict) for item in context):
        raise BadRequest("context is a list of objects")
    if body.get("tools"):
        raise BadRequest(
            "the tools of a client cannot be called by the agents of this server: send tools: [], and give the agent "
            "tools of its own"
        )
    return Request(body.get("state") or None, tuple(context), body.get("forwardedProps") or None)


def _key(agent: str, run_id: str) -> str:
    """What makes a POST with the same `runId` the same request."""
    return f"ag-ui {agent} {run_id}"
