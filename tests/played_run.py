"""A source's run as readers see it: by the real supervisor, into a real stream, read back and checked as AG-UI."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

from ag_ui_validate.pytest_plugin import assert_valid_agui

from headwater import Streams
from headwater.runs import Runs
from headwater.runs.record import Record
from headwater.sources import Source

SECRET = "sk-secret-4711"
"""For instructions, keys and the texts of exceptions: no event may hold it."""

Event = dict[str, Any]


class Played:
    """A run that has ended."""

    def __init__(self, events: list[Event], record: Record) -> None:
        self.events, self.record = events, record

    @property
    def error(self) -> str | None:
        return self.events[-1].get("code")

    def of(self, *types: str) -> list[Event]:
        return [event for event in self.events if event["type"] in types]

    def custom(self, name: str) -> list[Any]:
        return [event["value"] for event in self.of("CUSTOM") if event["name"] == name]

    def order(self) -> list[str]:
        """One word per event, without those of every run; of several alike in a row, one."""
        words: list[str] = []
        for event in self.events[2:-1]:
            word = event["name"] if event["type"] == "CUSTOM" else event["type"]
            if not words or words[-1] != word:
                words.append(word)
        return words

    def text(self) -> str:
        return "".join(event["delta"] for event in self.of("TEXT_MESSAGE_CONTENT"))


async def play(
    source: Source,
    given: Any = "hi",
    *,
    thread: str | None = None,
    cancel_at: Callable[[Event], bool] = lambda _: False,
    when: Callable[[Event], None] = lambda _: None,
) -> Played:
    """Run `source` to its end. `when` gets each event as a reader does; the first that `cancel_at` picks cancels."""
    before = asyncio.all_tasks()
    async with Streams("memory:") as streams, Runs(streams, source) as runs:
        run = await runs.start(source, given, thread_id=thread)
        events = []
        async for page in streams.follow(run.stream):
            for message in page.messages:
                events.append(event := json.loads(message.data))
                when(event)
                if cancel_at(event):
                    await run.cancel()
        played = Played(events, await run.record())
    assert_valid_agui(played.events, severity_overrides={"AGUI204": "off"})
    assert SECRET not in json.dumps(played.events)
    assert asyncio.all_tasks() == before, "tasks were left behind"
    return played
