"""What runs of one process came to: how long, how soon the first token, how many tokens and tools, how they ended.

Knows AG-UI's event types; no clock of its own. A run is counted where it is made: one that is left to another process
is counted there again, and its time there is the other's.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Final

from headwater.agui import BaseEvent, TokenUsage
from headwater.counts import LONG_SECONDS, SECONDS, Words
from headwater.histogram import Histogram
from headwater.journal import note

_log = logging.getLogger("headwater.runs")

_TOKENS: Final = frozenset({"TEXT_MESSAGE_CONTENT", "REASONING_MESSAGE_CONTENT", "TOOL_CALL_ARGS"})
"""What a model says, as it says it."""

UNREGISTERED: Final = "unregistered"
"""Stands for agents that were given to `Runs.start` themselves: their names are anybody's."""

SILENT_SECONDS: Final = (10, 60, 300, 1800)
"""Without an event: from when on a run that is being made counts as silent. A tool may well take minutes."""


class Pace:
    """Of one run, while it is made."""

    __slots__ = ("began", "first_token", "last", "tools")

    def __init__(self, began: float) -> None:
        self.began = self.last = began
        """`last`: when its latest event went out, or it began."""
        self.first_token: float | None = None
        """Seconds after that."""
        self.tools = 0

    def __repr__(self) -> str:
        return f"<Pace [first token {self.first_token}, {self.tools} tools]>"

    def saw(self, event: BaseEvent, now: float) -> None:
        """An event goes out."""
        name, self.last = event.type.value, now
        if name == "TOOL_CALL_START":
            self.tools += 1
        if self.first_token is None and name in _TOKENS:
            self.first_token = now - self.began


class Figures:
    """All runs so far. By agent."""

    def __init__(self) -> None:
        self.here: dict[Pace, str] = {}
        """Runs that are made here now, and their agents."""
        self.started: Counter[str] = Counter()
        self.ended: Counter[tuple[str, str]] = Counter()
        """(agent, outcome): a run's outcome, or why it is made here no more: `waiting` for people, `left` to the next
        process, `lost` to one that took it over, `unwritten` because the store took no more."""
        self.lasted: dict[tuple[str, str], Histogram] = {}
        """The same, in seconds."""
        self.first_token: dict[str, Histogram] = {}
        self.tokens: Counter[tuple[str, str]] = Counter()
        """(agent, `input` or `output`)."""
        self.tools: Counter[str] = Counter()
        self._agents = Words()

    def __repr__(self) -> str:
        return f"<Figures [{self.started.total()} started, {self.ended.total()} ended]>"

    def began(self, agent: str, pace: Pace) -> None:
        """A run of this agent is made here now."""
        self.here[pace] = self._agents.few(agent)
        self.started[self.here[pace]] += 1

    def silent(self, now: float) -> Counter[tuple[str, str]]:
        """Runs made here that have had no event for at least so many seconds: (agent, one of `SILENT_SECONDS`)."""
        found: Counter[tuple[str, str]] = Counter()
        for pace, agent in self.here.items():
            for seconds in SILENT_SECONDS:
                found[agent, str(seconds)] += now - pace.last >= seconds
        return found

    def over(self, run_id: str, agent: str, outcome: str, pace: Pace, usage: Sequence[TokenUsage], now: float) -> None:
        """It is made here no more."""
        label, seconds = self.here.pop(pace), now - pace.began
        self.ended[label, outcome] += 1
        self.lasted.setdefault((label, outcome), Histogram(LONG_SECONDS)).observe(seconds)
        if pace.first_token is not None:
            self.first_token.setdefault(label, Histogram(SECONDS)).observe(pace.first_token)
        given, made = sum(one.input_tokens or 0 for one in usage), sum(one.output_tokens or 0 for one in usage)
        self.tokens[label, "input"] += given
        self.tokens[label, "output"] += made
        self.tools[label] += pace.tools
        note(
            _log,
            logging.INFO,
            "run ended",
            run=run_id,
            agent=agent,
            outcome=outcome,
            seconds=seconds,
            first_token_seconds=pace.first_token,
            input_tokens=given if usage else None,
            output_tokens=made if usage else None,
            tools=pace.tools,
        )
