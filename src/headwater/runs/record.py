"""What is known of a run, read from its stream: so any process can tell, at any time, also after the run's own is gone.

Knows the names and labels of run streams and the events in them; starts and stops nothing.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec

from headwater.agui import decode
from headwater.decide import KIND as LABEL
from headwater.errors import OffsetGone, RunNotFound, StreamNotFound
from headwater.model import Head, Offset
from headwater.runs.history import History
from headwater.streams import Streams

PREFIX: Final = "runs/"
KIND: Final = "run"
"""The label that tells leases how such a stream is to be ended."""

INPUT: Final = "run.input"
"""Name of the CUSTOM event, second in every run, whose value is the input as it was given."""

RESUMES: Final = "resumes"
"""The label of runs that another process can go on with, if it has the agent."""

UNREAD: Final = "unread"
"""The label of runs that are cancelled when nobody reads them; its value is for how many seconds."""

TITLE_CHARACTERS: Final = 80

LOOKED_AT: Final = 200
MOST_LOOKED_AT: Final = 5000
"""Heads in one step of a search, and in one search: some 20 ms."""

CONVERSATION: Final = "conversation"
"""The label of a thread that is a principal's: by what agents that remember know it (`conversation_of`)."""

OWN_THREAD: Final = "th_"
"""What the id of a thread begins with that was made for a single run; then comes the run's."""

_ID: Final = re.compile(r"[0-9a-f]{12}[A-Za-z0-9_-]{22}")

Status = Literal["running", "waiting", "completed", "failed", "cancelled"]
_STATUS: Final[dict[str, Status]] = {"completed": "completed", "cancelled": "cancelled"}


class Record(msgspec.Struct, frozen=True, omit_defaults=True):
    """One run as `GET /v1/runs/{id}` tells it. Times are ms since 1970."""

    id: str
    agent: str
    thread_id: str
    status: Status
    created: int
    title: str = ""
    ended: int | None = None
    input: Any = None
    """As it was posted; None where only the head was read."""
    usage: list[dict[str, Any]] | None = None
    error: dict[str, str] | None = None
    result: Any = None
    approvals: list[dict[str, Any]] | None = None
    """While it waits: what it asks, as its events say it (toolCallId, toolName, arguments)."""


class Wanted(msgspec.Struct, frozen=True):
    """Which runs are asked for; None: any."""

    agent: str | None = None
    thread: str | None = None
    status: Status | None = None

    def takes(self, record: Record) -> bool:
        return (
            self.agent in (None, record.agent)
            and self.thread in (None, record.thread_id)
            and self.status in (None, record.status)
        )


def new_id(now: int) -> str:
    """A run's id: unguessable, and sortable by the time of its making."""
    return f"{now:012x}{secrets.token_urlsafe(16)}"


def conversation_of(principal: str, thread_id: str) -> str:
    """The id of a thread among all principals' (G10): where there are none, its own."""
    return f"{quote(principal, safe='')}/{thread_id}" if principal else thread_id


def is_run_id(text: str) -> bool:
    """Whether a run could have this id."""
    return _ID.fullmatch(text) is not None


def stream_of(run_id: str) -> str:
    return PREFIX + run_id


def title_of(given: Any) -> str:
    """What a list of runs shows: the beginning of the last thing that a person said."""
    text = given
    if isinstance(given, list):
        said = [item for item in given if isinstance(item, dict) and item.get("role") == "user"]
        text = said[-1].get("content") if said else ""
    if isinstance(text, list):  # of parts
        text = " ".join(str(part.get("text") or "") for part in text if isinstance(part, dict))
    text = text if isinstance(text, str) else ""
    return " ".join(text.split())[:TITLE_CHARACTERS]


def record_of(run_id: str, head: Head) -> Record:
    """What the head alone tells."""
    labels = head.labels
    return Record(
        id=run_id,
        agent=labels.get("agent", ""),
        thread_id=labels.get("thread", ""),
        status=_status(head),
        created=head.created,
        title=labels.get("title", ""),
        ended=head.appended if head.closed else None,
    )


def _status(head: Head) -> Status:
    if head.closed:
        return _STATUS.get(head.outcome or "", "failed")
    return "waiting" if head.owner is None else "running"


async def read_head(streams: Streams, run_id: str) -> Head:
    """The head of a run's stream. Raises RunNotFound."""
    with suppress(StreamNotFound):
        head = await streams.head(stream_of(run_id))
        if _is_run(head):
            return head
    raise RunNotFound("no such run")


async def read_record(streams: Streams, run_id: str) -> Record:
    """What is known of a run: its input from its first events, its end from its last, as far as those are kept.

    Raises RunNotFound.
    """
    head = await read_head(streams, run_id)
    changes: dict[str, Any] = {}
    if given := await _event(streams, run_id, head, 1):
        changes["input"] = given.get("value")
    if head.closed and (last := await _event(streams, run_id, head, head.tail - 1)):
        changes |= _ending(last)
    if not head.closed and head.owner is None:
        history = await History.read(streams, stream_of(run_id))
        changes["approvals"] = [history.asked[id_] for id_ in history.open_questions]
    return msgspec.structs.replace(record_of(run_id, head), **changes)


async def _event(streams: Streams, run_id: str, head: Head, position: int) -> dict[str, Any] | None:
    """The event behind a position; None where there is none, or it is no longer kept."""
    try:
        page = await streams.read(stream_of(run_id), Offset(head.generation, position), max_bytes=1)
    except OffsetGone:
        return None
    return decode(page.messages[0].data) if page.messages else None


def _ending(terminal: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"usage": terminal.get("usage")}
    if terminal["type"] == "RUN_ERROR":
        found["error"] = {"code": terminal.get("code", ""), "message": terminal.get("message", "")}
    else:
        found["result"] = terminal.get("result")
    return found


async def list_records(
    streams: Streams, *, before: str | None, limit: int, wanted: Wanted | None = None
) -> tuple[list[Record], str | None]:
    """Runs, newest first, and the id to give as `before` for the next ones (None: these were all).

    Where few of many are wanted, there may be fewer than `limit` although there are next ones.
    """
    wanted, records, looked = wanted or Wanted(), list[Record](), 0
    most = limit if wanted == Wanted() else max(limit, LOOKED_AT)
    while True:
        after = None if before is None else stream_of(before)
        found = await streams.list(PREFIX, after=after, limit=most, newest=True)
        for name, head in found:
            before = name.removeprefix(PREFIX)
            if _is_run(head) and wanted.takes(record := record_of(before, head)):
                records.append(record)
                if len(records) == limit:
                    return records, before
        looked += len(found)
        if len(found) < most:
            return records, None
        if looked >= MOST_LOOKED_AT:
            return records, before


async def records_among(
    streams: Streams, ids: Iterable[str], *, before: str | None, limit: int, wanted: Wanted
) -> tuple[list[Record], str | None]:
    """The same of runs that are known by their ids; those that are gone are left out."""
    records: list[Record] = []
    for run_id in sorted(ids, reverse=True):
        if before is not None and run_id >= before:
            continue
        if len(records) == limit:
            return records, records[-1].id
        with suppress(RunNotFound):
            if wanted.takes(record := record_of(run_id, await read_head(streams, run_id))):
                records.append(record)
    return records, None


def _is_run(head: Head) -> bool:
    """Other makers of streams may use the same prefix (TanStack AI does)."""
    return head.labels.get(LABEL) == KIND
