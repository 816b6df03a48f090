"""The matrix of clients: which there are (rows), what befalls them (columns), and what is to be said of a cell.

A test of a cell is marked `@cell("client", "column")`; a cell may have several tests. A new client is a line in CLIENTS
and tests that are marked so; what it cannot do, or how it is done, is a line in NOTES. Pure: it knows nothing of
pytest's running; `clients_table` gathers the results and writes docs/clients.md.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "clients.md"

Cell = tuple[str, str]
Went = Literal["passed", "lacking", "failed", "not run"]

COLUMNS: dict[str, tuple[str, str]] = {
    "whole": ("whole run", "Every event or word of an answer arrives, once and in order."),
    "tool call": ("tool calls", "A tool's name, arguments and result arrive as that client has them."),
    "approval": ("approval", "A run that waits for a person says so, is answered, and goes on."),
    "error in mid-stream": (
        "error",
        "A run that fails after it has begun to speak is told as failed, without secrets.",
    ),
    "cancel": ("cancel", "Stopped while it speaks; what was said stays."),
    "cut after each event": ("cut, abruptly", "The connection breaks behind each event in turn, or behind every k-th."),
    "ended after each event": ("cut, cleanly", "The same, but the answer ends there as if it were whole."),
    "one event per connection": ("1 event per connection", "Every connection brings one event and no more."),
    "late join": ("late join", "Comes when half is said, and has the whole in the end."),
    "two readers": ("two readers", "Two at once get the same."),
    "local model": ("local model", "A real answer of a language model on this machine."),
}
"""Name -> title, and what it means."""


@dataclass(frozen=True)
class Client:
    """A row: what people call it, its package, and where its version is pinned."""

    title: str
    package: str
    pinned: str
    """The package.json of a folder of tests (`folder` or `folder:alias`), or `pyproject`; "" is this repository."""

    @property
    def version(self) -> str:
        if not self.pinned:
            return ""
        folder, _, alias = self.pinned.partition(":")
        if folder == "pyproject":
            development = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"][
                "optional-dependencies"
            ]
            pins = dict(line.split("==") for line in development["dev"] if "==" in line)
            return pins[self.package]
        asked: str = json.loads((HERE / folder / "package.json").read_text())["dependencies"][alias or self.package]
        return asked.rpartition("@")[2]


CLIENTS: dict[str, Client] = {
    "ai 7": Client("AI SDK 7 (`Chat`, node)", "ai", "js-agents:ai7"),
    "ai 6": Client("AI SDK 6 (`Chat`, node)", "ai", "js-agents:ai6"),
    "ai 5": Client("AI SDK 5 (`Chat`, node)", "ai", "js-agents:ai5"),
    "useChat": Client("`useChat` in Chromium", "@ai-sdk/react", "js-browser"),
    "ag-ui": Client("AG-UI `HttpAgent`", "@ag-ui/client", "js-agents"),
    "tanstack": Client("TanStack AI", "@tanstack/ai-client", "js-agents"),
    "openai-python responses": Client("OpenAI for Python: Responses", "openai", "pyproject"),
    "openai-python chat": Client("OpenAI for Python: Chat Completions", "openai", "pyproject"),
    "openai-js responses": Client("OpenAI for JavaScript: Responses", "openai", "js-openai"),
    "openai-js chat": Client("OpenAI for JavaScript: Chat Completions", "openai", "js-openai"),
    "langgraph-python": Client("LangGraph SDK for Python", "langgraph-sdk", "pyproject"),
    "langgraph-js": Client("LangGraph SDK for JavaScript", "@langchain/langgraph-sdk", "js-langgraph:sdk1"),
    "langgraph-js 2": Client("LangGraph SDK for JavaScript", "@langchain/langgraph-sdk", "js-langgraph:sdk2"),
    "chatkit": Client("ChatKit (the types of its client)", "openai-chatkit", "pyproject"),
    "EventSource": Client("`EventSource` in Chromium", "", ""),
    "eventsource": Client("eventsource (node)", "eventsource", "js-browser"),
    "fetch-event-source": Client("fetch-event-source in Chromium", "@microsoft/fetch-event-source", "js-browser"),
    "httpx-sse": Client("httpx-sse", "httpx-sse", "pyproject"),
    "headwater.client": Client("`headwater.client`", "", ""),
}

CUTS = ("cut after each event", "ended after each event", "one event per connection")


@dataclass(frozen=True)
class Note:
    """What is to be said of some cells: how it is done, or why not."""

    clients: tuple[str, ...]
    columns: tuple[str, ...]
    text: str
    threads: tuple[str, ...] = ()
    """Where others tell of it, as owner/name#number."""
    upstream: bool = False
    """The client cannot: a test of these cells has to fail."""
    untried: bool = False
    """It does not work, and no test is asked for; one that there is has to fail."""

    @property
    def lacking(self) -> bool:
        return self.upstream or self.untried


AI = ("ai 7", "ai 6", "ai 5")
RESPONSES = ("openai-python responses", "openai-js responses")
CHATS = ("openai-python chat", "openai-js chat")
OURS = "With [`resumableFetch`](../clients/js/README.md)"
ASKED_AGAIN = "Who asks again with the same Idempotency-Key gets the answer of the same run, from its beginning."

NOTES: list[Note] = [
    Note(
        ("ai 5",),
        ("approval",),
        "It has no words for it: its app decides at `/v1/runs/{id}/approvals`, and the answer stays open meanwhile.",
    ),
    Note(("ai 7", "ai 6"), CUTS, f"{OURS}."),
    Note(
        ("ai 5",),
        CUTS,
        f"{OURS}. Its own `resumeStream()` adds what is played again to what it has:",
        ("vercel/ai#18457", "vercel/ai#18107", "vercel/ai#14688"),
    ),
    Note(
        ("useChat",),
        CUTS,
        f"{OURS}. Without it, `resumeStream()` plays the answer again while it is being made.",
    ),
    Note(
        ("ag-ui",),
        CUTS,
        f"{OURS}: `HttpAgent` does not go on by itself.",
        ("ag-ui-protocol/ag-ui#1852", "ag-ui-protocol/ag-ui#2105"),
    ),
    Note(("ag-ui",), ("late join", "two readers"), "By a POST with the `runId` of the run."),
    Note(
        ("tanstack",),
        ("cut after each event",),
        "By itself. Cut behind the last event of all, it forgets that it has seen the end, and tells of an error:",
        ("TanStack/ai#955",),
    ),
    Note(RESPONSES, CUTS, "With `background`, and `starting_after` what came last."),
    Note((*RESPONSES, *CHATS), ("approval",), "Decided at `/v1/runs/{id}/approvals`; the answer stays open meanwhile."),
    Note(CHATS, ("cut after each event", "ended after each event", "late join", "two readers"), ASKED_AGAIN),
    Note(
        CHATS,
        ("one event per connection",),
        "Chat Completions can only begin anew, and never gets further than its first event.",
        ("strands-agents/harness-sdk#2771",),
        upstream=True,
    ),
    Note(CHATS, ("cancel",), "At `/v1/runs/{id}/cancel`, or as a response."),
    Note(
        ("langgraph-python",),
        ("ended after each event",),
        "While the run goes on, it does. Afterwards it takes a clean end for the last, and loses what it had not read.",
        ("langchain-ai/langgraphjs#2701",),
        upstream=True,
    ),
    Note(
        ("langgraph-js",),
        ("ended after each event",),
        f"By itself while the run goes on; afterwards it takes a clean end for the last. {OURS} always.",
        ("langchain-ai/langgraphjs#2701",),
        upstream=True,
    ),
    Note(
        ("langgraph-js 2",),
        ("ended after each event",),
        f"By itself it takes a clean end for the last. {OURS} it does not.",
        ("langchain-ai/langgraphjs#2701",),
        upstream=True,
    ),
    Note(
        ("langgraph-js 2",),
        ("one event per connection",),
        f"By itself it comes back five times in all, whatever it has read meanwhile. {OURS} as often as it takes.",
        ("langchain-ai/langgraphjs#1817",),
        upstream=True,
    ),
    Note(
        ("chatkit",),
        CUTS,
        "Its page, which is not run here, does not go on with an answer that was cut; the answer's `Location` does.",
        ("openai/chatkit-js#140",),
        untried=True,
    ),
    Note(("chatkit",), ("tool call", "approval"), "ChatKit has no events for the tools of an agent.", untried=True),
    Note(("chatkit",), ("late join", "two readers"), "By `?thread=`, which is not the page's own doing."),
    Note(
        ("fetch-event-source",),
        CUTS,
        "A POST with an Idempotency-Key; its `onclose` throws, since it takes every clean end for the last.",
    ),
    Note(("httpx-sse",), CUTS, "With the loop around it that asks again with the last event's id."),
]


def note_of(client: str, column: str) -> Note | None:
    return next((note for note in NOTES if client in note.clients and column in note.columns), None)


def cell(client: str, *columns: str) -> Any:
    """Marks a test as showing these cells. Where one of them does not work it has to fail: it shows only that."""

    def mark(test: Any) -> Any:
        for one in marks(client, *columns):
            test = one(test)
        return test

    return mark


def marks(client: str, *columns: str) -> list[pytest.MarkDecorator]:
    """The same for `pytest.param(…, marks=…)`."""
    given = []
    for column in columns:
        if client not in CLIENTS or column not in COLUMNS:
            raise KeyError(f"tests/matrix.py has no cell {client!r}, {column!r}")
        given.append(pytest.mark.cell(client, column))
        note = note_of(client, column)
        if note is not None and note.lacking:
            given.append(pytest.mark.xfail(strict=True, reason=" ".join([note.text, *note.threads])))
    return given


def cells() -> Iterable[Cell]:
    return ((client, column) for client in CLIENTS for column in COLUMNS)


def expected() -> dict[Cell, Went]:
    """What docs/clients.md says: every cell passes, or its reason is named."""
    return {one: "lacking" if (note := note_of(*one)) and note.lacking else "passed" for one in cells()}


WORDS: dict[Went, str] = {"passed": "✓", "lacking": "–", "failed": "**failed**", "not run": "**not run**"}

HEAD = """\
# Clients

<!-- Written by scripts/docs from the results of the tests. Edit tests/matrix.py instead. -->

Which clients read runs, and what they get through. Every ✓ is a test that ran with the real package, in the version
shown, against a real server; in Chromium where it says so. A – has its reason below.
"""


def page(went: Mapping[Cell, Went]) -> str:
    """docs/clients.md for these results."""
    lines = [HEAD, "| client | version | " + " | ".join(title for title, _ in COLUMNS.values()) + " |"]
    lines.append("|---|---|" + ":-:|" * len(COLUMNS))
    numbers = {note: number for number, note in enumerate(NOTES, start=1)}
    for client, row in CLIENTS.items():
        shown = [_shown(went.get((client, column)), note_of(client, column), numbers) for column in COLUMNS]
        lines.append(f"| {row.title} | {row.version} | " + " | ".join(shown) + " |")
    lines += ["", "## Columns", "", *(f"- **{title}**: {meaning}" for title, meaning in COLUMNS.values())]
    lines += ["", "## Notes", "", *(f"{number}. {_told(note)}" for note, number in numbers.items())]
    return "\n".join(lines) + "\n"


def _shown(went: Went | None, note: Note | None, numbers: Mapping[Note, int]) -> str:
    word = WORDS[went or ("lacking" if note and note.untried else "not run")]
    return word if note is None else f"{word} [{numbers[note]}](#notes)"


def _told(note: Note) -> str:
    return " ".join([note.text, *filter(None, [", ".join(map(_link, note.threads))])])


def _link(thread: str) -> str:
    """`owner/name#1` as a link."""
    repository, _, number = thread.partition("#")
    return f"[{thread}](https://github.com/{repository}/issues/{number})"


THREAD = re.compile(r"[\w.-]+/[\w.-]+#\d+")
