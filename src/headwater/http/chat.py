"""`/agents/{name}/chat`: what the AI SDK's `useChat` asks for.

    POST   /agents/{name}/chat                 starts a run with the chat's messages, and answers with its stream
    GET    /agents/{name}/chat/{chat}/stream   the chat's active run from its beginning; 204 where there is none
    POST   /agents/{name}/chat                 with approvals of tools: answers the run that waits for them, and goes on
    POST   /agents/{name}/chat/{chat}/stop     stops it (DELETE, too); the body may say which run is meant

Set `api` to `/agents/{name}/chat`. `chat-v5` speaks to the first releases of version 5, and to all of it where tools
need approvals; `chat-v7` uses what only the newest 7 knows, and `chat-text` is for `TextStreamChatTransport`.

A run belongs to its stream: a client that closes the connection stops nothing. `Location` of an answer is where a cut
one goes on with its `Last-Event-ID`, also after the run's end; a POST with a Last-Event-ID goes on, too, and starts
nothing. `?rollup=0` is for every delta as it was made (`headwater.formats.rollup`). Knows Runs, threads and the
projections.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any, Final
from urllib.parse import quote

import msgspec
from starlette.responses import Response

from headwater.errors import BadOffset, BadRequest, NotFound, RunNotFound
from headwater.following import Following
from headwater.formats.ai_sdk import SdkVersion, UiMessageChunks, started
from headwater.formats.format import Format
from headwater.formats.pauses import PAUSED
from headwater.formats.projection import Place, ProjectedEvents, parse_id
from headwater.formats.rollup import RolledUp, is_wanted
from headwater.formats.run_text import RunText
from headwater.http.approvals import Answers, decided_by, of_ui
from headwater.http.conversation import from_ui
from headwater.http.exchange import Exchange
from headwater.model import BEGINNING, Head, Offset
from headwater.runs import Runs
from headwater.runs.record import read_head, stream_of
from headwater.runs.threads import Entry

DOORS: Final[dict[str, SdkVersion | None]] = {"chat": 6, "chat-v5": 5, "chat-v6": 6, "chat-v7": 7, "chat-text": None}
"""The last part of `api` -> the version that is spoken; None is the text stream."""

ID_CHARACTERS: Final = 255


class ChatResource:
    """The chats of one Runs."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._threads = runs, runs.threads

    async def answer(self, exchange: Exchange, agent: str, door: str, rest: str) -> Response:
        """`rest`: what follows the door's path; a chat's id may have slashes."""
        chat, _, what = rest.rpartition("/")
        if rest == "":
            return await self._post(exchange, agent, door) if exchange.method == "POST" else _not_allowed("POST")
        if chat and what == "stream":
            reading = exchange.method in ("GET", "HEAD")
            return await self._stream(exchange, agent, door, chat) if reading else _not_allowed("GET")
        if chat and what == "stop":
            stopping = exchange.method in ("POST", "DELETE")
            return await self._stop(exchange, agent, chat) if stopping else _not_allowed("POST, DELETE")
        raise NotFound("there is nothing at this path")

    async def _post(self, exchange: Exchange, agent: str, door: str) -> Response:
        principal = exchange.principal.name  # before a body is taken in
        is_wanted(exchange.query("rollup"))  # refused before anything is started
        body = await exchange.json(self._runs.streams.limits.message_bytes)
        chat, trigger = body.get("id"), body.get("trigger", "submit-message")
        if not is_id(chat):
            raise BadRequest(f"id is the chat's id, a text of 1 to {ID_CHARACTERS} characters")
        if last_id := exchange.headers.get("last-event-id"):
            return await self._resumed(exchange, agent, door, str(chat), last_id)
        if (answers := of_ui(body.get("messages"))) is not None:
            return await self._answered(exchange, agent, door, str(chat), answers)
        if trigger not in ("submit-message", "regenerate-message"):
            raise BadRequest("trigger is submit-message or regenerate-message")
        exchange.authorize("start", f"runs/{agent}")
        key = exchange.headers.get("idempotency-key")
        if key is not None and not is_id(key):
            raise BadRequest(f"Idempotency-Key has 1 to {ID_CHARACTERS} characters")
        given = from_ui(body.get("messages"))
        run = await self._runs.start(
            agent,
            given,
            thread_id=str(chat),
            idempotency_key=key,
            principal=principal,
            entry=Entry(history=True),
        )
        return self._following(exchange, agent, door, str(chat), run.id, late=not run.started)

    async def _stream(self, exchange: Exchange, agent: str, door: str, chat: str) -> Response:
        principal = exchange.principal.name
        if last_id := exchange.headers.get("last-event-id"):
            return await self._resumed(exchange, agent, door, chat, last_id)
        if run_id := exchange.query("run"):
            await self._check(exchange, agent, chat, run_id)
            behind = _offset(exchange.query("offset"))
            return self._following(exchange, agent, door, chat, run_id, behind=behind)
        newest = await self._threads.newest(principal, agent, chat)
        if newest is not None:
            exchange.authorize("read", stream_of(newest.run))
            if not newest.stopped and await self._goes_on(newest.run):
                return self._following(exchange, agent, door, chat, newest.run)
        return Response(status_code=204, headers={"cache-control": "no-store"})

    async def _resumed(self, exchange: Exchange, agent: str, door: str, chat: str, last_id: str) -> Response:
        run_id, place = parse_id(last_id)
        head = await self._check(exchange, agent, chat, run_id)
        if last_id.endswith(PAUSED) and head.offset == place.offset:  # it still waits
            return Response(status_code=204, headers={"cache-control": "no-store"})
        return self._following(exchange, agent, door, chat, run_id, place)

    async def _answered(self, exchange: Exchange, agent: str, door: str, chat: str, answers: Answers) -> Response:
        """Approvals, and what comes of them: the rest of the message that asked."""
        await self._check(exchange, agent, chat, answers.run_id)
        exchange.authorize("approve", stream_of(answers.run_id))
        behind = await self._runs.settle(answers.run_id, answers.by_call, by=decided_by(exchange))
        return self._following(exchange, agent, door, chat, answers.run_id, behind=behind)

    async def _check(self, exchange: Exchange, agent: str, chat: str, run_id: str) -> Head:
        """May be read, and is one of this agent and chat."""
        exchange.authorize("read", stream_of(run_id))
        head = await read_head(self._runs.streams, run_id)
        if (head.labels.get("agent"), head.labels.get("thread")) != (agent, chat):
            raise RunNotFound("no such run of this chat")
        return head

    def _following(
        self,
        exchange: Exchange,
        agent: str,
        door: str,
        chat: str,
        run_id: str,
        place: Place | None = None,
        behind: Offset | None = None,
        *,
        late: bool = True,
    ) -> Response:
        """`place`: what this response's reader has; `behind`: where it begins, being the rest of an earlier one;
        `late`: it may be that much is past already, which comes rolled up."""
        version, rolled_up = DOORS[door], is_wanted(exchange.query("rollup"))
        first = None
        at = f"{exchange.prefix}/agents/{quote(agent, safe='')}/{door}/{quote(chat, safe='')}/stream?run={run_id}"
        if behind is not None:
            place, first, at = Place(behind), started(run_id, chat), f"{at}&offset={behind}"
        headers = {"x-run-id": run_id, "location": at if rolled_up else f"{at}&rollup=0"}
        if version is not None:
            headers["x-vercel-ai-ui-message-stream"] = "v1"
        resumed = str(place.offset) if place is not None else ""

        async def choose(*_: object) -> Format:
            if version is None:
                return RunText(await self._runs.retractions.of(run_id) if late else frozenset())
            format_ = ProjectedEvents(UiMessageChunks(version), run_id, place, first=first)
            after = place.offset if place is not None else BEGINNING
            return RolledUp(format_, after) if rolled_up and late else format_

        return Following(self._runs.delivery, stream_of(run_id), choose, headers=headers, offset_of=lambda _: resumed)

    async def _stop(self, exchange: Exchange, agent: str, chat: str) -> Response:
        principal = exchange.principal.name
        meant = _meant(await exchange.body(self._runs.streams.limits.message_bytes))
        newest = await self._threads.newest(principal, agent, chat)
        if newest is None or (meant is not None and meant != newest.run):
            return _stopped(False, None)  # never a newer one than was meant
        exchange.authorize("cancel", stream_of(newest.run))
        if newest.stopped:
            return _stopped(True, newest.run)
        if not await self._goes_on(newest.run):
            return _stopped(False, newest.run)
        if (await self._runs.cancel(newest.run)).status == "running":
            await self._threads.note(principal, agent, chat, Entry(newest.run, stopped=True))
        return _stopped(True, newest.run)

    async def _goes_on(self, run_id: str) -> bool:
        """False also where it was deleted."""
        with suppress(RunNotFound):
            return not (await read_head(self._runs.streams, run_id)).closed
        return False


def is_id(given: object) -> bool:
    """Whether `given` can be the id of a chat, a thread or a run in the words of a client."""
    return isinstance(given, str) and 1 <= len(given) <= ID_CHARACTERS


def _offset(given: str | None) -> Offset | None:
    """Raises BadOffset."""
    if given is None:
        return None
    if (offset := Offset.parse(given)) is None:
        raise BadOffset("offset is not one of this endpoint's")
    return offset


def _meant(body: bytes) -> str | None:
    """The run that a stop names: as `runId`, `activeStreamId`, or the id of the message that it is."""
    if not body.strip():
        return None
    try:
        said: Any = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequest("the body is not valid JSON") from error
    if not isinstance(said, dict):
        raise BadRequest("the body is a JSON object, or empty")
    message = said.get("assistantMessage")
    named = said.get("runId") or said.get("activeStreamId")
    if named is None and isinstance(message, dict):
        named = message.get("id")
    return None if named is None else str(named)


def _stopped(stopped: bool, run_id: str | None) -> Response:
    body = msgspec.json.encode({"stopped": stopped, "runId": run_id})
    return Response(body, 202 if stopped else 200, {"cache-control": "no-store"}, "application/json")


def _not_allowed(allow: str) -> Response:
    return Response(status_code=405, headers={"allow": allow})
