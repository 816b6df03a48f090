"""`/v1/runs`: start, list, look up, follow, answer, cancel.

    GET /v1/runs?limit=&before=&agent=&status=&thread=

A thread is its maker's: an id that another key uses, too, is another thread, whose runs are not found by it.

Knows Runs and the wire form of its records. A retried POST attaches by Idempotency-Key; POST answers JSON, or the run's
events at once where the client accepts those.
"""

from __future__ import annotations

from typing import cast, get_args

import msgspec
from starlette.responses import Response

from headwater.errors import BadRequest, StreamNotFound
from headwater.formats import accepted
from headwater.formats.rollup import is_wanted
from headwater.http.approvals import decided_by
from headwater.http.exchange import Exchange
from headwater.problems import not_allowed
from headwater.runs import Record, Run, Runs
from headwater.runs.asking import When
from headwater.runs.record import Status, is_run_id, stream_of
from headwater.sources import Answer

MOST_LISTED = 200
KEY_CHARACTERS = 255
BODY_BYTES = 64 * 1024
"""Of an answer, or a cancellation."""


APPROVAL = (
    'answer {"tool_call_id": "…", "approve": true}, or false with a "message" for the model; '
    'several at once as {"approvals": […]}'
)


class _Cancel(msgspec.Struct, forbid_unknown_fields=True):
    when: When = "now"


class RunResource:
    """The runs of one Runs, over HTTP."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs

    async def collection(self, exchange: Exchange) -> Response:
        """`/v1/runs`"""
        if exchange.method == "POST":
            return await self._start(exchange)
        if exchange.method in ("GET", "HEAD"):
            return await self._list(exchange)
        return not_allowed(["GET", "POST"])

    async def one(self, exchange: Exchange, run_id: str) -> Response:
        """`/v1/runs/{id}`"""
        if exchange.method not in ("GET", "HEAD"):
            return not_allowed(["GET"])
        exchange.authorize("read", stream_of(run_id))
        return _json(await self._runs.record(run_id))

    async def events(self, exchange: Exchange, run_id: str) -> Response:
        """`/v1/runs/{id}/events`"""
        if exchange.method not in ("GET", "HEAD"):
            return not_allowed(["GET"])
        exchange.authorize("read", stream_of(run_id))
        run = await self._runs.get(run_id)
        return run.response()

    async def cancel(self, exchange: Exchange, run_id: str) -> Response:
        """`/v1/runs/{id}/cancel`"""
        if exchange.method != "POST":
            return not_allowed(["POST"])
        exchange.authorize("cancel", stream_of(run_id))
        record = await self._runs.cancel(run_id, when=_when(await exchange.body(BODY_BYTES)))
        return _json(record, 202 if record.status == "running" else 200)

    async def approvals(self, exchange: Exchange, run_id: str) -> Response:
        """`/v1/runs/{id}/approvals`"""
        if exchange.method != "POST":
            return not_allowed(["POST"])
        exchange.authorize("approve", stream_of(run_id))
        answers = _answers(await exchange.json(BODY_BYTES))
        return _json(await self._runs.answer(run_id, answers, by=decided_by(exchange)), 202)

    async def _start(self, exchange: Exchange) -> Response:
        principal = exchange.principal.name  # before a body is taken in
        is_wanted(exchange.query("rollup"))  # refused before anything is started
        asked = await exchange.json(self._runs.streams.limits.message_bytes)
        unknown = asked.keys() - {"agent", "input", "thread_id", "cancel_when_unread"}
        if unknown:
            known = "agent, input, thread_id and cancel_when_unread"
            raise BadRequest(f"{min(unknown)[:100]!r} is not known; a run takes {known}")
        agent, thread = asked.get("agent"), asked.get("thread_id")
        if not isinstance(agent, str):
            raise BadRequest('name the agent: {"agent": "…", "input": "…"}')
        if not _is_input(asked.get("input")):
            raise BadRequest("input is a text or a list of messages (objects), and not empty")
        if thread is not None and (not isinstance(thread, str) or not 1 <= len(thread) <= KEY_CHARACTERS):
            raise BadRequest(f"thread_id is a text of 1 to {KEY_CHARACTERS} characters")
        unread = _seconds(asked.get("cancel_when_unread"))
        key = exchange.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= KEY_CHARACTERS:
            raise BadRequest(f"Idempotency-Key has 1 to {KEY_CHARACTERS} characters")
        exchange.authorize("start", f"runs/{agent}")
        run = await self._runs.start(
            agent,
            asked["input"],
            thread_id=thread,
            idempotency_key=key,
            principal=principal,
            cancel_when_unread=unread,
        )
        status = 201 if run.started else 200
        headers = {"location": _address(exchange, run), "x-run-id": run.id}
        if accepted(exchange.headers.get("accept", "")) is not None:
            return run.response(status_code=status, headers=headers)
        return _json(await run.record(), status, headers)

    async def _list(self, exchange: Exchange) -> Response:
        exchange.authorize("list", "runs/")
        status = exchange.query("status")
        if status is not None and status not in get_args(Status):
            raise BadRequest(f"status is one of {', '.join(get_args(Status))}")
        before = exchange.query("before")
        if before is not None:
            await self._check_place(before)
        records, next_ = await self._runs.list(
            before=before,
            limit=exchange.whole_number("limit", 50, MOST_LISTED),
            agent=exchange.query("agent"),
            status=cast("Status | None", status),
            thread=exchange.query("thread"),
            principal=exchange.principal.name,
        )
        visible = [record for record in records if exchange.allows("read", stream_of(record.id))]
        body = {"runs": [msgspec.to_builtins(record) for record in visible], "next": next_}
        return Response(msgspec.json.encode(body), 200, {"cache-control": "no-store"}, "application/json")

    async def _check_place(self, before: str) -> None:
        """Raises BadRequest for what no page has given as `next`: the id of a run, which may be gone by now, or of what
        else is kept beside runs."""
        try:
            if not is_run_id(before):
                await self._runs.streams.head(stream_of(before))
        except (StreamNotFound, BadRequest) as error:
            raise BadRequest("before is the id of a run: what the page before gave as next") from error


def _seconds(given: object) -> float | None:
    """Raises BadRequest."""
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int | float) or not 1 <= given <= 86_400:
        raise BadRequest("cancel_when_unread is a number of seconds, from 1 to 86400")
    return float(given)


def _when(body: bytes) -> When:
    """Raises BadRequest."""
    try:
        return msgspec.json.decode(body, type=_Cancel).when if body else "now"
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadRequest('say when: {"when": "now"} or {"when": "after_turn"}; without a body it is now') from error


def _answers(asked: dict[str, object]) -> dict[str, Answer]:
    """One answer, or several as {"approvals": […]}. Raises BadRequest."""
    several = asked.get("approvals", [asked])
    if not isinstance(several, list) or ("approvals" in asked and len(asked) > 1):
        raise BadRequest(APPROVAL)
    answers: dict[str, Answer] = {}
    for one in several:
        if not isinstance(one, dict) or one.keys() - {"tool_call_id", "approve", "message"}:
            raise BadRequest(APPROVAL)
        id_, approve, message = one.get("tool_call_id"), one.get("approve"), one.get("message")
        if not isinstance(id_, str) or not isinstance(approve, bool) or not isinstance(message, str | None):
            raise BadRequest(APPROVAL)
        if id_ in answers:
            raise BadRequest(f"tool call {id_!r} is answered twice")
        answers[id_] = Answer(approve, message)
    return answers


def _is_input(given: object) -> bool:
    if isinstance(given, list):
        return given != [] and all(isinstance(message, dict) for message in given)
    return isinstance(given, str) and given != ""


def _address(exchange: Exchange, run: Run) -> str:
    return f"{exchange.prefix}/v1/runs/{run.id}/events"


def _json(record: Record, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    fields = {"cache-control": "no-store", "x-run-id": record.id, **(headers or {})}
    return Response(msgspec.json.encode(record), status, fields, "application/json")
