"""`/langgraph/…`: what the LangGraph SDKs (npm @langchain/langgraph-sdk, PyPI langgraph-sdk, `useStream`) ask for.

Give them `http://host:4437/langgraph` as `apiUrl` or `url`, and the name of a registered agent as assistant.

    POST /threads                               gives a thread an id; any id is one without it, too
    POST /threads/{t}/runs/stream | wait | ""   starts a run; its events, its last values, or the run itself
    GET  /threads/{t}/runs/{r}/stream           joins it, from its beginning or from Last-Event-ID (`-1`: all)
    GET  /threads/{t}/runs/{r} | …/join         the run; its values, once it has ended or waits for people
    POST /threads/{t}/runs/{r}/cancel           ?wait=1 answers when it has ended
    GET  /threads/{t} | …/state, POST …/history, GET …/runs
    POST /runs/stream | wait | ""               the same without a thread
    POST /assistants/search, GET /assistants/{name}, /info, /ok

The client says only what is new: what the thread said before is put before it, unless the agent remembers that itself.
`command: {"resume": …}` answers what a waiting run asks, and is answered with the rest of that run. A run belongs to
its stream: a client that leaves stops nothing, unless `on_disconnect` is `cancel` and nobody reads it any more.

Knows Runs, threads, and the shapes of requests.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from typing import Any, Final
from urllib.parse import parse_qsl, quote, urlencode
from weakref import WeakValueDictionary

import msgspec
from starlette.responses import Response, StreamingResponse

from headwater import __version__
from headwater.agui import CustomEvent
from headwater.delivery import Cut
from headwater.errors import (
    AgentNotFound,
    BadOffset,
    BadRequest,
    Conflict,
    HeadwaterError,
    KeyReused,
    NotFound,
    RunNotFound,
)
from headwater.following import Following
from headwater.formats.langchain import NOTED, added
from headwater.formats.langgraph import LangGraphEvents, state_values
from headwater.formats.pauses import approval_id
from headwater.formats.projection import Place, parse_id
from headwater.http.approvals import decided_by
from headwater.http.chat import ID_CHARACTERS, is_id
from headwater.http.conversation import from_langchain
from headwater.http.exchange import Exchange
from headwater.http.langgraph_requests import IN_BACKGROUND, Asked, answers_of, asked_for, modes_of
from headwater.http.langgraph_threads import (
    LangGraphThreads,
    RunSoFar,
    assistant_of,
    no_state,
    run_of,
    thread_of,
)
from headwater.http.waiting import while_there
from headwater.model import Head
from headwater.runs import Runs
from headwater.runs.record import read_head, record_of, stream_of
from headwater.sources import Remembering

PATH: Final = "/langgraph"

BEGINNING: Final = "-1"
"""The Last-Event-ID of a client that wants a run from its first event."""

MOST_STATES: Final = 1000
_STREAMED: Final = ("values",)
"""The modes of a run that is streamed, and whose request says none."""
_DIGITS: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_NO: Final = frozenset({"", "0", "false", "False"})


class LangGraphDoor:
    """The agents of one Runs, for the LangGraph SDKs."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._streams, self._threads = runs, runs.streams, LangGraphThreads(runs.streams)
        self._turns: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def answer(self, exchange: Exchange, path: str) -> Response:
        """`path`: what follows `/langgraph`."""
        # The SDKs put `apiUrl` before the Location that they come back to, although it has that path already.
        parts = path.removeprefix(exchange.prefix + PATH).strip("/").split("/")
        match exchange.method, parts:
            case "GET", ["ok"]:
                return _json({"ok": True})
            case "GET", ["info"]:
                return _json({"version": __version__, "flags": {"assistants": True, "crons": False}})
            case "POST" | "GET", ["assistants", name]:
                return self._assistants(exchange, name)
            case "POST", ["threads"]:
                return await self._new_thread(exchange)
            case _, ["threads", thread, *rest] if is_id(thread):
                return await self._thread(exchange, thread, rest)
            case "POST", ["runs", *rest]:
                return await self._post(exchange, None, rest)
            case "GET", ["runs", run_id, "stream"]:
                return await self._join(exchange, None, run_id)
        raise _not_served(exchange)

    async def _thread(self, exchange: Exchange, thread: str, rest: Sequence[str]) -> Response:
        match exchange.method, rest:
            case "GET", []:
                return await self._get_thread(exchange, thread)
            case "GET", ["state", *checkpoint] if len(checkpoint) < 2:
                return await self._state(exchange, thread, checkpoint[0] if checkpoint else None)
            case "POST", ["history"]:
                return await self._history(exchange, thread)
            case "GET", ["runs"]:
                return await self._list(exchange, thread)
            case "POST", ["runs", run_id, "cancel"]:
                return await self._cancel(exchange, thread, run_id)
            case "POST", ["runs", *what]:
                return await self._post(exchange, thread, what)
            case "GET", ["runs", run_id]:
                return _json(run_of(record_of(run_id, await self._check(exchange, thread, run_id))))
            case "GET", ["runs", run_id, "stream"]:
                return await self._join(exchange, thread, run_id)
            case "GET", ["runs", run_id, "join"]:
                await self._check(exchange, thread, run_id)
                return self._values(run_id, {})
        raise _not_served(exchange)

    async def _check(self, exchange: Exchange, thread: str | None, run_id: str) -> Head:
        """May be read, and is one of this thread. Raises RunNotFound."""
        exchange.authorize("read", stream_of(run_id))
        head = await read_head(self._streams, run_id)
        if thread not in (None, head.labels.get("thread")):
            raise RunNotFound("no such run of this thread")
        return head

    async def _kept(self, exchange: Exchange, thread: str, run_id: str) -> Head | None:
        """The same of a run that the thread remembers, which may have been deleted."""
        with suppress(RunNotFound):
            return await self._check(exchange, thread, run_id)
        return None

    # -- starting ---------------------------------------------------------------------------------------------------

    async def _post(self, exchange: Exchange, thread: str | None, what: Sequence[str]) -> Response:
        if what not in ([], ["stream"], ["wait"]):
            raise _not_served(exchange)
        _ = exchange.principal  # before a body is taken in
        last_id = exchange.headers.get("last-event-id")
        if last_id and what == ["stream"]:
            return await self._join(exchange, thread, parse_id(last_id)[0])
        body = await exchange.json(self._streams.limits.message_bytes)
        asked = asked_for(body, thread, _key(exchange), default=IN_BACKGROUND if what == [] else _STREAMED)
        place = None
        if asked.command is not None:
            run_id, place = await self._resume(exchange, thread, asked)
        else:
            run_id = await self._start(exchange, thread, asked)
        head = await read_head(self._streams, run_id)
        if what == ["stream"]:
            return self._following(exchange, run_id, head, asked.modes, place)
        headers = _headers(exchange, run_id, head.labels["thread"])
        if what == ["wait"]:
            return self._values(run_id, headers)
        return _json(run_of(record_of(run_id, head)), headers)

    async def _start(self, exchange: Exchange, thread: str | None, asked: Asked) -> str:
        exchange.authorize("start", f"runs/{asked.agent}")
        principal, key = exchange.principal.name, _key(exchange)
        # One at a time: else two would both find the thread free, or both begin the same run.
        async with self._turn(principal, thread, key):
            if key is not None and (known := await self._claimed(key, principal, asked)):
                return known
            return await self._begin(exchange, thread, asked, key)

    def _turn(self, principal: str, thread: str | None, key: str | None) -> asyncio.Lock:
        """Of those who ask for the same thread, or the same run, in this process."""
        wanted = thread if thread is not None else key
        return asyncio.Lock() if wanted is None else self._turns.setdefault((principal, wanted), asyncio.Lock())

    async def _begin(self, exchange: Exchange, thread: str | None, asked: Asked, key: str | None) -> str:
        principal = exchange.principal.name
        source = self._runs.agents.get(asked.agent)
        if source is None:
            names = ", ".join(sorted(self._startable(exchange))) or "none"
            raise AgentNotFound(f"no agent is registered as {asked.agent[:ID_CHARACTERS]!r}; there are: {names}")
        before, after, newest = await self._before(exchange, thread, asked)
        remembers = isinstance(source, Remembering) and source.busy is not None
        if remembers and not newest:
            raise BadRequest("this agent remembers its conversations itself: they go on from their end only")
        said = added(before, asked.messages)
        noted = {"messages": said, "modes": list(asked.modes), "after": after, "digest": asked.digest}
        run = await self._runs.start(
            asked.agent,
            from_langchain(asked.messages if remembers else said),
            thread_id=thread,
            idempotency_key=key,
            principal=principal,
            note=CustomEvent(name=NOTED, value=noted),
            cancel_when_unread=asked.unread_seconds,
        )
        if run.started and thread is not None:
            await self._threads.add(principal, thread, run.id)
        return run.id

    async def _claimed(self, key: str, principal: str, asked: Asked) -> str | None:
        """The run that this request has started before: its thread has gone on since, so only the request counts."""
        run = await self._runs.claimed(key, principal=principal)
        if run is None:
            return None
        note = await self._threads.note(run.id, await read_head(self._streams, run.id))
        if note.get("digest") != asked.digest:
            raise KeyReused("this Idempotency-Key was used for another request")
        return run.id

    async def _before(self, exchange: Exchange, thread: str | None, asked: Asked) -> tuple[list[Any], str | None, bool]:
        """What the run goes on from: messages, their checkpoint, and whether that is the newest. The thread is free
        then, or Conflict is raised."""
        principal = exchange.principal.name
        newest = None if thread is None else await self._threads.newest(principal, thread)
        if thread is None or newest is None:
            return [], None, True
        head = await self._check(exchange, thread, newest)
        if not head.closed:
            if not asked.interrupts:
                raise Conflict("this thread has an active run: wait for it, or interrupt it", run=newest)
            exchange.authorize("cancel", stream_of(newest))
            await self._runs.cancel(newest)
            await while_there(self._streams, (await self._runs.get(newest)).wait())
        at = asked.checkpoint or newest
        run_id = await self._threads.run_at(principal, thread, at) if asked.checkpoint else newest
        await self._check(exchange, thread, run_id)
        return (await self._threads.read(run_id)).messages_at(at), at, at == newest

    async def _resume(self, exchange: Exchange, thread: str | None, asked: Asked) -> tuple[str, Place]:
        """Answers what the thread's newest run asks; that run, and where it stood."""
        newest = None if thread is None else await self._threads.newest(exchange.principal.name, thread)
        if newest is None:
            raise BadRequest("there is no run in this thread that could be resumed")
        exchange.authorize("approve", stream_of(newest))
        await self._check(exchange, thread, newest)
        questions = {approval_id(newest, id_): id_ for id_ in (await self._threads.read(newest)).fold.asked}
        if not questions:
            raise Conflict("no run of this thread waits for an answer", run=newest)
        answers = answers_of((asked.command or {})["resume"], questions)
        return newest, Place(await self._runs.settle(newest, answers, by=decided_by(exchange)))

    # -- reading ------------------------------------------------------------------------------------------------------

    async def _join(self, exchange: Exchange, thread: str | None, run_id: str) -> Response:
        if (exchange.query("cancel_on_disconnect") or "") not in _NO:
            raise BadRequest("a reader that leaves cancels nothing: start the run with on_disconnect=cancel")
        head = await self._check(exchange, thread, run_id)
        last_id = exchange.headers.get("last-event-id") or exchange.query("after")
        place = None
        if last_id and last_id != BEGINNING:
            named, place = parse_id(last_id)
            if named != run_id or place.offset.generation != head.generation or place.offset > head.offset:
                raise BadOffset("this Last-Event-ID is of another run")
        note = await self._threads.note(run_id, head)
        modes = _modes(exchange) or note.get("modes") or IN_BACKGROUND
        return self._following(exchange, run_id, head, modes, place)

    def _following(
        self, exchange: Exchange, run_id: str, head: Head, modes: Sequence[str], place: Place | None
    ) -> Response:
        headers = _headers(exchange, run_id, head.labels["thread"], modes, place)
        format_ = LangGraphEvents(modes, run_id, place)
        if head.closed and place is not None and place.offset == head.offset:
            # The SDKs take a 204 for a failure; and who lost the connection behind the end comes to ask.
            return Response(b"", 200, headers | {"stream-closed": "true"}, format_.content_type)
        return Following(
            self._runs.delivery, stream_of(run_id), lambda *_: format_, headers=headers, offset_of=lambda _: BEGINNING
        )

    def _values(self, run_id: str, headers: dict[str, str]) -> Response:
        """The run's last values, once they are there; spaces meanwhile, which JSON does not mind."""
        body = self._when_settled(run_id)
        return StreamingResponse(body, 200, headers | {"cache-control": "no-store"}, "application/json")

    async def _when_settled(self, run_id: str) -> AsyncIterator[bytes]:
        waiting = asyncio.ensure_future(while_there(self._streams, self._threads.settled(run_id)))
        try:
            while not (await asyncio.wait([waiting], timeout=self._runs.delivery.policy.heartbeat_seconds))[0]:
                yield b" "
        finally:
            waiting.cancel()
            await asyncio.wait([waiting])
        try:
            run = waiting.result()
        except HeadwaterError:
            raise Cut from None  # the answer has begun: only so it does not look like a whole one
        yield msgspec.json.encode(state_values(run.fold) if run.error is None else {"__error__": run.error})

    async def _cancel(self, exchange: Exchange, thread: str, run_id: str) -> Response:
        if exchange.query("action") not in (None, "interrupt"):
            raise BadRequest("action is interrupt: what a run has said stays")
        await self._check(exchange, thread, run_id)
        exchange.authorize("cancel", stream_of(run_id))
        await self._runs.cancel(run_id)
        if (exchange.query("wait") or "") in _NO:
            return Response(status_code=202)
        await while_there(self._streams, (await self._runs.get(run_id)).wait())
        return Response(status_code=204)

    # -- threads ------------------------------------------------------------------------------------------------------

    async def _new_thread(self, exchange: Exchange) -> Response:
        _ = exchange.principal  # before a body is taken in
        body = await exchange.json(self._streams.limits.message_bytes)
        thread = body.get("thread_id") or str(uuid.uuid4())
        if not is_id(thread) or "/" in str(thread):
            raise BadRequest(f"thread_id is a text of 1 to {ID_CHARACTERS} characters without a slash")
        if body.get("supersteps"):
            raise BadRequest("a thread begins empty: supersteps are not served here")
        newest = await self._newest(exchange, str(thread))
        if newest is not None and body.get("if_exists") != "do_nothing":
            raise Conflict("there is such a thread already", thread=str(thread))
        return _json(thread_of(str(thread), newest, self._streams.clock()))

    async def _newest(self, exchange: Exchange, thread: str) -> RunSoFar | None:
        newest = await self._threads.newest(exchange.principal.name, thread)
        if newest is None:
            return None
        await self._check(exchange, thread, newest)
        return await self._threads.read(newest)

    async def _get_thread(self, exchange: Exchange, thread: str) -> Response:
        return _json(thread_of(thread, await self._newest(exchange, thread), self._streams.clock()))

    async def _state(self, exchange: Exchange, thread: str, checkpoint: str | None) -> Response:
        if checkpoint is None:
            newest = await self._newest(exchange, thread)
            return _json(no_state(thread) if newest is None else newest.states()[0])
        run_id = await self._threads.run_at(exchange.principal.name, thread, checkpoint)
        await self._check(exchange, thread, run_id)
        states = (await self._threads.read(run_id)).states()
        return _json(next(state for state in states if state["checkpoint"]["checkpoint_id"] == checkpoint))

    async def _history(self, exchange: Exchange, thread: str) -> Response:
        principal = exchange.principal.name
        asked = await exchange.json(self._streams.limits.message_bytes)
        limit, before = asked.get("limit", 10), asked.get("before")
        if not isinstance(limit, int) or not 1 <= limit <= MOST_STATES:
            raise BadRequest(f"limit is a whole number from 1 to {MOST_STATES}")
        if isinstance(before, dict) and isinstance(configured := before.get("configurable", before), dict):
            before = configured.get("checkpoint_id")  # of a checkpoint, or of a config with one
        states: list[dict[str, Any]] = []
        for run_id in await self._threads.runs(principal, thread):
            if before is not None and not str(before).startswith(run_id):
                continue
            if await self._kept(exchange, thread, run_id) is None:
                continue
            for state in (await self._threads.read(run_id)).states():
                if before is None:
                    states.append(state)
                elif state["checkpoint"]["checkpoint_id"] == before:
                    before = None
            if len(states) >= limit:
                break
        return _json(states[:limit])

    async def _list(self, exchange: Exchange, thread: str) -> Response:
        limit = exchange.whole_number("limit", 10, MOST_STATES)
        offset, status = exchange.query("offset") or "0", exchange.query("status")
        if not _DIGITS.fullmatch(offset):
            raise BadRequest("offset is a whole number")
        found = []
        for run_id in await self._threads.runs(exchange.principal.name, thread):
            if (head := await self._kept(exchange, thread, run_id)) is None:
                continue
            run = run_of(record_of(run_id, head))
            if status in (None, run["status"]):
                found.append(run)
        return _json(found[int(offset) : int(offset) + limit])

    def _assistants(self, exchange: Exchange, name: str) -> Response:
        names = self._startable(exchange)
        if (exchange.method, name) == ("POST", "search"):
            return _json([assistant_of(name) for name in names])
        if exchange.method != "GET" or name not in names:
            known = ", ".join(sorted(names)) or "none"
            raise NotFound(f"there is no assistant {name[:ID_CHARACTERS]!r}; there are: {known}")
        return _json(assistant_of(name))

    def _startable(self, exchange: Exchange) -> list[str]:
        """The agents that this client may start."""
        return [name for name in self._runs.agents if exchange.allows("start", f"runs/{name}")]


def _headers(
    exchange: Exchange, run_id: str, thread: str, modes: Sequence[str] = (), place: Place | None = None
) -> dict[str, str]:
    """Where the run is, and where its events go on: behind `place`, for who has read nothing yet."""
    at = f"{exchange.prefix}{PATH}/threads/{quote(thread, safe='')}/runs/{run_id}"
    headers = {"x-run-id": run_id, "content-location": at}
    if modes:
        asked = [("stream_mode", mode) for mode in modes] + ([] if place is None else [("after", f"{run_id}~{place}")])
        headers["location"] = f"{at}/stream?{urlencode(asked)}"
    return headers


def _key(exchange: Exchange) -> str | None:
    given = exchange.headers.get("idempotency-key")
    if given is not None and not is_id(given):
        raise BadRequest(f"Idempotency-Key has 1 to {ID_CHARACTERS} characters")
    return None if given is None else f"langgraph {given}"


def _modes(exchange: Exchange) -> list[str]:
    """`stream_mode`, which may stand there several times, or once as a JSON list."""
    pairs = parse_qsl(exchange.scope["query_string"].decode("latin-1"), errors="replace")
    modes: list[Any] = []
    for text in [value for name, value in pairs if name == "stream_mode"]:
        try:
            value = msgspec.json.decode(text)
        except (msgspec.DecodeError, RecursionError):
            value = text
        modes += value if isinstance(value, list) else [value]
    return modes_of(modes)


def _not_served(exchange: Exchange) -> NotFound:
    return NotFound(f"of LangGraph's API, {exchange.method} of this path is not served here")


def _json(body: Any, headers: dict[str, str] | None = None) -> Response:
    fields = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(body), 200, fields, "application/json")
