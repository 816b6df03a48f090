"""`/v1/runs`: start, list, look up, follow, cancel.

Knows Runs and the wire form of its records. A retried POST attaches by Idempotency-Key; POST answers JSON, or the run's
events at once where the client accepts those.
"""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from headwater.errors import BadRequest
from headwater.formats import accepted
from headwater.http.exchange import Exchange
from headwater.problems import not_allowed
from headwater.runs import Record, Run, Runs
from headwater.runs.record import stream_of

MOST_LISTED = 200
KEY_CHARACTERS = 255


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
        record = await self._runs.cancel(run_id)
        return _json(record, 202 if record.status == "running" else 200)

    async def _start(self, exchange: Exchange) -> Response:
        principal = exchange.principal.name  # before a body is taken in
        asked = await exchange.json(self._runs.streams.limits.message_bytes)
        unknown = asked.keys() - {"agent", "input", "thread_id"}
        if unknown:
            raise BadRequest(f"{min(unknown)[:100]!r} is not known; a run takes agent, input and thread_id")
        agent, thread = asked.get("agent"), asked.get("thread_id")
        if not isinstance(agent, str):
            raise BadRequest('name the agent: {"agent": "…", "input": "…"}')
        if not _is_input(asked.get("input")):
            raise BadRequest("input is a text or a list of messages (objects), and not empty")
        if thread is not None and (not isinstance(thread, str) or not 1 <= len(thread) <= KEY_CHARACTERS):
            raise BadRequest(f"thread_id is a text of 1 to {KEY_CHARACTERS} characters")
        key = exchange.headers.get("idempotency-key")
        if key is not None and not 1 <= len(key) <= KEY_CHARACTERS:
            raise BadRequest(f"Idempotency-Key has 1 to {KEY_CHARACTERS} characters")
        exchange.authorize("start", f"runs/{agent}")
        run = await self._runs.start(agent, asked["input"], thread_id=thread, idempotency_key=key, principal=principal)
        status = 201 if run.started else 200
        headers = {"location": _address(exchange, run), "x-run-id": run.id}
        if accepted(exchange.headers.get("accept", "")) is not None:
            return run.response(status_code=status, headers=headers)
        return _json(await run.record(), status, headers)

    async def _list(self, exchange: Exchange) -> Response:
        exchange.authorize("list", "runs/")
        limit = exchange.whole_number("limit", 50, MOST_LISTED)
        records, next_ = await self._runs.list(before=exchange.query("before"), limit=limit)
        visible = [record for record in records if exchange.allows("read", stream_of(record.id))]
        body = {"runs": [msgspec.to_builtins(record) for record in visible], "next": next_}
        return Response(msgspec.json.encode(body), 200, {"cache-control": "no-store"}, "application/json")


def _is_input(given: object) -> bool:
    if isinstance(given, list):
        return given != [] and all(isinstance(message, dict) for message in given)
    return isinstance(given, str) and given != ""


def _address(exchange: Exchange, run: Run) -> str:
    return f"{exchange.prefix}/v1/runs/{run.id}/events"


def _json(record: Record, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    fields = {"cache-control": "no-store", "x-run-id": record.id, **(headers or {})}
    return Response(msgspec.json.encode(record), status, fields, "application/json")
