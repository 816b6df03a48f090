"""OpenAI's APIs over runs, for the official clients: `/v1/responses`, `/v1/chat/completions`, `/v1/models`.

`model` names a registered agent; a Response is a run, seen through `headwater.formats.openai_responses`, so that what
was started here can be followed at `/v1/runs/{id}/events` too, and the other way round. A run belongs to its stream: a
client that leaves, background or not, ends nothing; `POST …/cancel` does. As the official clients send a request again
by themselves when the connection is lost, an Idempotency-Key makes that attach instead of starting a second run.

Knows Runs, the two formats and the shapes of requests. Every error here is in the API's shape.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from contextlib import aclosing, suppress
from functools import partial
from typing import Any, Final

import msgspec
from starlette.responses import Response

from headwater.agui import CustomEvent, decode
from headwater.delivery import Receive, Scope, Send
from headwater.errors import (
    AgentNotFound,
    BadRequest,
    Conflict,
    HeadwaterError,
    NotFound,
    OffsetGone,
    RunNotFound,
)
from headwater.following import Following, bodiless
from headwater.formats.format import Format
from headwater.formats.openai_chat import ChatChunks, ChatFold
from headwater.formats.openai_input import as_items, history, listed, with_instructions
from headwater.formats.openai_responses import ID_PREFIX, REQUEST, ResponseEvents, ResponseFold, WholeResponse
from headwater.formats.rollup import is_wanted
from headwater.http.exchange import Exchange
from headwater.http.openai_problems import NO_RETRY, BadParameter, error_body, openai_answer
from headwater.http.openai_requests import ResponseRequest, chat_request, response_request, run_id_of
from headwater.http.waiting import ClientLeft, while_there
from headwater.model import Head
from headwater.positions import START
from headwater.runs import Run, Runs
from headwater.runs.history import so_far
from headwater.runs.record import read_head, stream_of
from headwater.runs.threads import Entry

KEY_CHARACTERS: Final = 255

CANCEL_SECONDS: Final = 5.0
"""How long `cancel` waits for the run's end, so that the Response it gives says `cancelled`."""

_PATHS: Final = frozenset({"/v1/responses", "/v1/chat/completions", "/v1/models"})
_NUMBER: Final = re.compile(r"[0-9]{1,9}", re.ASCII)
_STATUS: Final = {"rate_limited": 429}
"""Of a chat completion whose run failed with this code; the others are 500."""


class OpenAIResource:
    """The runs of one Runs, through OpenAI's APIs."""

    def __init__(self, runs: Runs) -> None:
        self._runs, self._streams, self._delivery = runs, runs.streams, runs.delivery

    def serves(self, path: str) -> bool:
        """Whether this is one of the API's paths."""
        return path in _PATHS or path.startswith(("/v1/responses/", "/v1/models/"))

    async def answer(self, exchange: Exchange, path: str) -> Response:
        try:
            return await self._routed(exchange, path.split("/")[2:])
        except Exception as error:  # noqa: BLE001 -- whatever it is, it is told in the API's shape
            return openai_answer(error)

    async def _routed(self, exchange: Exchange, parts: list[str]) -> Response:
        match exchange.method, parts:
            case "POST", ["responses"]:
                return await self._create(exchange)
            case "GET", ["responses", id_]:
                return await self._retrieve(exchange, _run_of(id_))
            case "DELETE", ["responses", id_]:
                return await self._delete(exchange, _run_of(id_))
            case "POST", ["responses", id_, "cancel"]:
                return await self._cancel(exchange, _run_of(id_))
            case "GET", ["responses", id_, "input_items"]:
                return await self._input_items(exchange, _run_of(id_))
            case "POST", ["chat", "completions"]:
                return await self._complete(exchange)
            case "GET", ["models"]:
                models = [_model(name) for name in self._runs.agents if exchange.allows("start", f"runs/{name}")]
                return _json({"object": "list", "data": models})
            case "GET", ["models", *rest]:
                return self._model(exchange, "/".join(rest))
        raise NotFound(f"there is nothing for {exchange.method} at this path")

    def _model(self, exchange: Exchange, name: str) -> Response:
        exchange.authorize("start", f"runs/{name}")
        if name not in self._runs.agents:
            raise AgentNotFound(f"no agent is registered as {name[:80]!r}")
        return _json(_model(name))

    # -- responses ----------------------------------------------------------------------------------------------------

    async def _create(self, exchange: Exchange) -> Response:
        principal = exchange.principal.name  # before a body is taken in
        _rolled_up(exchange)  # refused before anything is started
        asked = response_request(await exchange.json(self._streams.limits.message_bytes))
        exchange.authorize("start", f"runs/{asked.model}")
        given, thread = asked.input, None
        if asked.previous is not None:
            exchange.authorize("read", stream_of(asked.previous))
            before, thread = await self._before(asked.previous)
            given = before + as_items(given)
        if asked.instructions is not None:
            given = with_instructions(asked.instructions, as_items(given))
        run = await self._runs.start(
            asked.model,
            given,
            thread_id=thread,
            idempotency_key=_key(exchange),
            principal=principal,
            note=CustomEvent(name=REQUEST, value=asked.note),
            entry=Entry(history=True),
        )
        return await self._created(exchange, run, asked)

    async def _created(self, exchange: Exchange, run: Run, asked: ResponseRequest) -> Response:
        headers = {"location": f"{exchange.prefix}/v1/responses/{ID_PREFIX}{run.id}", **_named(run.id)}
        if asked.stream:
            after = await self._resumed(exchange, run, ResponseFold(run.id, asked.model))
            rolled_up = _rolled_up(exchange) and not run.started
            told = ResponseEvents(ResponseFold(run.id, asked.model), after, rolled_up=rolled_up)
            return self._following(exchange, run.id, told, headers)
        if asked.background:
            fold, _ = await self._folded(run.id)
            return _json(fold.response(), headers)
        return self._following(exchange, run.id, WholeResponse(ResponseFold(run.id, asked.model)), headers)

    async def _before(self, run_id: str) -> tuple[list[dict[str, Any]], str]:
        """The conversation up to the end of a run, and its thread."""
        fold, head = await self._folded(run_id, "previous_response_id")
        if not fold.ended:
            raise BadParameter("the previous response has not ended yet", "previous_response_id")
        return history(fold.input, fold.response()["output"]), head.labels.get("thread", "")

    async def _retrieve(self, exchange: Exchange, run_id: str) -> Response:
        exchange.authorize("read", stream_of(run_id))
        fold, head = await self._folded(run_id)
        if exchange.query("stream") != "true":
            return _json(fold.response())
        if fold.ended and exchange.headers.get("last-event-id") == str(fold.count - 1):
            return bodiless(204, _named(run_id).items())  # nothing to resume: EventSource stops for good
        fresh = ResponseFold(run_id, head.labels.get("agent", ""))
        told = ResponseEvents(fresh, _after(exchange, fold), rolled_up=_rolled_up(exchange))
        return self._following(exchange, run_id, told, _named(run_id))

    async def _cancel(self, exchange: Exchange, run_id: str) -> Response:
        exchange.authorize("cancel", stream_of(run_id))
        await self._found(run_id)
        await self._runs.cancel(run_id)
        with suppress(TimeoutError):
            async with asyncio.timeout(CANCEL_SECONDS):
                await (await self._runs.get(run_id)).wait()
        fold, _ = await self._folded(run_id)
        return _json(fold.response())

    async def _delete(self, exchange: Exchange, run_id: str) -> Response:
        exchange.authorize("delete", stream_of(run_id))
        if not (await self._found(run_id)).closed:
            raise Conflict("this response has not ended yet; cancel it first")
        await self._streams.delete(stream_of(run_id))
        return _json({"id": ID_PREFIX + run_id, "object": "response.deleted", "deleted": True})

    async def _input_items(self, exchange: Exchange, run_id: str) -> Response:
        exchange.authorize("read", stream_of(run_id))
        fold, _ = await self._folded(run_id)
        order, after = exchange.query("order") or "desc", exchange.query("after")
        if order not in ("asc", "desc"):
            raise BadParameter("order is asc or desc", "order")
        limit = exchange.whole_number("limit", 20, 100)
        items = listed(run_id, fold.input)
        if order == "desc":
            items.reverse()
        if after is not None:
            places = [place for place, item in enumerate(items, start=1) if item["id"] == after]
            if not places:
                raise BadParameter("after is the id of an input item of this response", "after")
            items = items[places[0] :]
        page = items[:limit]
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {"first_id": "", "last_id": ""}
        return _json({"object": "list", "data": page, **ends, "has_more": len(items) > limit})

    # -- chat completions ---------------------------------------------------------------------------------------------

    async def _complete(self, exchange: Exchange) -> Response:
        principal = exchange.principal.name
        _rolled_up(exchange)  # refused before anything is started
        asked = chat_request(await exchange.json(self._streams.limits.message_bytes))
        exchange.authorize("start", f"runs/{asked.model}")
        run = await self._runs.start(asked.model, asked.input, idempotency_key=_key(exchange), principal=principal)
        make = partial(ChatFold, run.id, asked.model, include_usage=asked.include_usage, show_tools=asked.show_tools)
        if not asked.stream:
            return await self._completed(exchange, run, make())
        after = await self._resumed(exchange, run, make())
        late = not run.started
        gone = await self._runs.retractions.of(run.id) if late else frozenset[str]()
        told = ChatChunks(make(), after, rolled_up=_rolled_up(exchange) and late, retracted=gone)
        return self._following(exchange, run.id, told, _named(run.id))

    async def _completed(self, exchange: Exchange, run: Run, fold: ChatFold) -> Response:
        """Waits for the run's end, since only then it is known which status is true."""
        try:
            await while_there(self._streams, self._fed(run, fold), exchange.receive)
        except ClientLeft:
            return NoAnswer()
        except HeadwaterError as error:
            return openai_answer(error, retry=False)
        if fold.error is None:
            return _json(fold.completion(), _named(run.id))
        code = fold.error["code"]
        status = _STATUS.get(code, 500)
        body = error_body(fold.error["message"], status=status, code=code)
        return Response(body, status, {**dict([NO_RETRY]), **_named(run.id)}, "application/json")

    async def _fed(self, run: Run, fold: ChatFold) -> None:
        async with aclosing(self._streams.follow(run.stream)) as pages:
            async for page in pages:
                for message in page.messages:
                    fold.feed(decode(message.data))
        fold.broken_off()

    # -- runs as streams ----------------------------------------------------------------------------------------------

    async def _found(self, run_id: str, param: str = "response_id") -> Head:
        try:
            head = await read_head(self._streams, run_id)
        except RunNotFound:
            raise RunNotFound(f"Response with id '{ID_PREFIX}{run_id}' not found.", param=param) from None
        if head.start:
            raise OffsetGone("the beginning of this response is no longer kept")
        return head

    async def _folded(self, run_id: str, param: str = "response_id") -> tuple[ResponseFold, Head]:
        """A run as far as it is now."""
        head = await self._found(run_id, param)
        fold = ResponseFold(run_id, head.labels.get("agent", ""))
        await self._feed(run_id, fold)
        return fold, head

    async def _resumed(self, exchange: Exchange, run: Run, fold: ResponseFold | ChatFold) -> int:
        """What the client of a POST has already: nothing of a run that it starts only now, whatever it says."""
        if run.started or "last-event-id" not in exchange.headers:
            return -1
        await self._feed(run.id, fold)
        return _after(exchange, fold)

    async def _feed(self, run_id: str, fold: ResponseFold | ChatFold) -> None:
        async for page in so_far(self._streams, stream_of(run_id)):
            for message in page.messages:
                fold.feed(decode(message.data))
            if page.closed:
                fold.broken_off()

    def _following(self, exchange: Exchange, run_id: str, format_: Format, headers: Mapping[str, str]) -> Response:
        """From the run's first event: its format remembers."""
        return Following(
            self._delivery,
            stream_of(run_id),
            lambda *_: format_,
            headers=headers,
            offset_of=lambda _: START,
            refused=partial(openai_answer, retry=exchange.method == "GET"),  # a POST has started its run
        )


class NoAnswer(Response):
    """For a client that has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        pass


def _run_of(response_id: str) -> str:
    try:
        return run_id_of(response_id)
    except BadParameter:
        raise RunNotFound(f"Response with id '{response_id[:80]}' not found.", param="response_id") from None


def _key(exchange: Exchange) -> str | None:
    key = exchange.headers.get("idempotency-key")
    if key is not None and not 1 <= len(key) <= KEY_CHARACTERS:
        raise BadParameter(f"Idempotency-Key has 1 to {KEY_CHARACTERS} characters", "Idempotency-Key")
    return key


def _after(exchange: Exchange, fold: ResponseFold | ChatFold) -> int:
    """The number of the last event that the client has; -1: none. `fold`: the run as far as it is now."""
    for name, text in (
        ("Last-Event-ID", exchange.headers.get("last-event-id")),  # the later one: of who asks again after a cut
        ("starting_after", exchange.query("starting_after")),
    ):
        if text:
            if not _NUMBER.fullmatch(text) or int(text) >= fold.count:  # a gap must not be jumped over
                raise BadParameter(f"{name} is the number of an event that this stream has", name)
            return int(text)
    return -1


def _rolled_up(exchange: Exchange) -> bool:
    try:
        return is_wanted(exchange.query("rollup"))
    except BadRequest as error:
        raise BadParameter(error.said, "rollup") from None


def _named(run_id: str) -> dict[str, str]:
    # The clients show `x-request-id` as `_request_id`: what to look for in the log.
    return {"x-run-id": run_id, "x-request-id": run_id}


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "headwater"}


def _json(value: object, headers: Mapping[str, str] | None = None) -> Response:
    fields = {"cache-control": "no-store", **(headers or {})}
    return Response(msgspec.json.encode(value), 200, fields, "application/json")
