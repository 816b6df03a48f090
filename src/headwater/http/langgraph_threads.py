"""LangGraph's threads, runs and states, out of the runs of a conversation.

A thread is there as soon as somebody names it. Its state is what its newest run has made of it; each run has two
checkpoints: `{run}.input`, the state that it began with, and `{run}`, the state that it has come to. So a run may go on
from an earlier checkpoint, and the runs of a thread are a tree. What a run began with is noted in its own stream.

Knows streams, threads and the fold into messages.
"""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.agui import decode
from headwater.errors import NotFound, OffsetGone, RunNotFound
from headwater.formats.langchain import NOTED, LangChainMessages, Message
from headwater.formats.langgraph import AGENT, TOOLS, interrupts, state_values
from headwater.formats.pauses import pause_of
from headwater.model import Head, Offset
from headwater.runs.history import BEGUN, so_far
from headwater.runs.record import Record, read_head, record_of, stream_of
from headwater.runs.threads import Entry, Threads
from headwater.streams import Streams

ANY_AGENT: Final = ""
"""These threads are no agent's: each run says whose it is."""

INPUT_OF: Final = ".input"

_STATUS: Final = {
    "running": "running", "waiting": "interrupted", "completed": "success", "cancelled": "interrupted",
    "failed": "error",
}  # fmt: skip
_THREAD_STATUS: Final = {"running": "busy", "waiting": "interrupted", "failed": "error"}

JSON = dict[str, Any]


@dataclass(frozen=True, slots=True)
class RunSoFar:
    """A run as far as it has come."""

    record: Record
    fold: LangChainMessages
    last: Mapping[str, Any]
    """Its last event."""

    @property
    def status(self) -> str:
        return _STATUS[self.record.status]

    @property
    def error(self) -> JSON | None:
        if self.last.get("type") != "RUN_ERROR":
            return None
        return {"error": self.last.get("code") or "error", "message": self.last.get("message", "")}

    def messages_at(self, checkpoint: str) -> list[Message]:
        """The state at one of the run's own checkpoints."""
        return self.before if checkpoint.endswith(INPUT_OF) else self.fold.messages

    @property
    def before(self) -> list[Message]:
        messages: list[Message] = self.fold.note.get("messages", [])
        return messages

    def states(self) -> list[JSON]:
        """Its two, the newer one first."""
        return [self._now(), self._began()]

    def _now(self) -> JSON:
        values = state_values(self.fold)
        asked = values.pop("__interrupt__", [])
        error = None if self.error is None else msgspec.json.encode(self.error).decode()
        node = TOOLS if asked else AGENT
        task = {"id": self.record.id, "name": node, "error": error, "interrupts": asked, "checkpoint": None}
        tasks = [{**task, "state": None, "result": None}] if asked or error else []
        unfinished = self.record.status in ("running", "waiting") or error is not None
        at, parent = self.record.id, self.record.id + INPUT_OF
        state = self._state(values, at, parent, self.record.ended or self.record.created)
        return state | {"next": [node] if unfinished else [], "tasks": tasks, "interrupts": asked}

    def _began(self) -> JSON:
        at, parent = self.record.id + INPUT_OF, self.fold.note.get("after")
        state = self._state({"messages": self.before}, at, parent, self.record.created)
        return state | {"next": [AGENT], "tasks": [], "interrupts": []}

    def _state(self, values: JSON, at: str, parent: str | None, when: int) -> JSON:
        source = {"source": "input" if at.endswith(INPUT_OF) else "loop", "run_id": self.record.id}
        return {
            "values": values,
            "checkpoint": self._checkpoint(at),
            "parent_checkpoint": None if parent is None else self._checkpoint(parent),
            "metadata": source | {"assistant_id": self.record.agent, "thread_id": self.record.thread_id},
            "created_at": iso(when),
        }

    def _checkpoint(self, id_: str) -> JSON:
        return {"thread_id": self.record.thread_id, "checkpoint_ns": "", "checkpoint_id": id_, "checkpoint_map": None}


class LangGraphThreads:
    """The threads of one Streams."""

    def __init__(self, streams: Streams) -> None:
        self._streams, self._threads = streams, Threads(streams)

    def __repr__(self) -> str:
        return f"<LangGraphThreads of {self._streams!r}>"

    async def add(self, principal: str, thread: str, run_id: str) -> None:
        """A run of the thread has begun."""
        await self._threads.note(principal, ANY_AGENT, thread, Entry(run_id))

    async def runs(self, principal: str, thread: str) -> Sequence[str]:
        """Ids of its runs, newest first, also of those that were deleted."""
        entries = await self._threads.entries(principal, ANY_AGENT, thread)
        return [entry.run for entry in reversed(entries)]

    async def newest(self, principal: str, thread: str) -> str | None:
        """The newest of those that were not deleted."""
        newest = await self._threads.newest(principal, ANY_AGENT, thread)
        if newest is None or await self._is_there(newest.run):
            return None if newest is None else newest.run
        for run_id in await self.runs(principal, thread):
            if await self._is_there(run_id):
                return run_id
        return None

    async def _is_there(self, run_id: str) -> bool:
        with suppress(RunNotFound):
            await read_head(self._streams, run_id)
            return True
        return False

    async def run_at(self, principal: str, thread: str, checkpoint: str) -> str:
        """The run that a checkpoint of this thread is of. Raises NotFound."""
        run_id = checkpoint.removesuffix(INPUT_OF)
        if run_id not in await self.runs(principal, thread):
            raise NotFound("there is no such checkpoint in this thread")
        return run_id

    async def read(self, run_id: str) -> RunSoFar:
        """Raises RunNotFound."""
        await read_head(self._streams, run_id)
        fold, last = LangChainMessages(), dict[str, Any]()
        async for page in so_far(self._streams, stream_of(run_id)):
            for message in page.messages:
                last = decode(message.data)
                fold.feed(last)
        return RunSoFar(record_of(run_id, await read_head(self._streams, run_id)), fold, last)

    async def settled(self, run_id: str) -> RunSoFar:
        """Once it has ended, or waits for people."""
        async for page in self._streams.follow(stream_of(run_id)):
            if page.closed or pause_of(page) is not None:
                break
        return await self.read(run_id)

    async def note(self, run_id: str, head: Head) -> Mapping[str, Any]:
        """How the door was asked for this run; empty where it was not."""
        try:
            page = await self._streams.read(stream_of(run_id), Offset(head.generation, BEGUN), max_bytes=1)
        except OffsetGone:
            return {}
        event = decode(page.messages[0].data) if page.messages else {}
        noted: Mapping[str, Any] = event["value"] if event.get("name") == NOTED else {}
        return noted


# -- as LangGraph has it ------------------------------------------------------------------------------------------


def run_of(record: Record) -> JSON:
    """A Run."""
    return {
        "run_id": record.id,
        "thread_id": record.thread_id,
        "assistant_id": record.agent,
        "created_at": iso(record.created),
        "updated_at": iso(record.ended or record.created),
        "status": _STATUS[record.status],
        "metadata": {},
        "kwargs": {},
        "multitask_strategy": "reject",
    }


def thread_of(thread: str, newest: RunSoFar | None, now: int) -> JSON:
    """A Thread, by its newest run."""
    created, updated, status = now, now, "idle"
    values: JSON | None = None
    asked: list[Message] = []
    if newest is not None:
        created, updated = newest.record.created, newest.record.ended or newest.record.created
        asked, values = interrupts(newest.fold), {"messages": newest.fold.messages}
        status = _THREAD_STATUS.get(newest.record.status, "idle")
    return {
        "thread_id": thread,
        "created_at": iso(created),
        "updated_at": iso(updated),
        "metadata": {},
        "config": {},
        "status": status,
        "values": values,
        "interrupts": {newest.record.id: asked} if newest is not None and asked else {},
    }


def no_state(thread: str) -> JSON:
    """The ThreadState of a thread without runs."""
    return {
        "values": {},
        "next": [],
        "tasks": [],
        "interrupts": [],
        "checkpoint": None,
        "parent_checkpoint": None,
        "metadata": {"thread_id": thread},
        "created_at": None,
    }


def assistant_of(name: str) -> JSON:
    """An Assistant: a registered agent."""
    return {
        "assistant_id": name,
        "graph_id": name,
        "name": name,
        "description": None,
        "config": {},
        "context": {},
        "metadata": {},
        "version": 1,
        "created_at": iso(0),
        "updated_at": iso(0),
    }


def iso(ms: int) -> str:
    """ms since 1970, as the SDKs have times."""
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat()
