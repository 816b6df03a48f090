"""What does rolling up the past save a reader that joins a run of 10,000 tokens late?

    .venv/bin/python bench/rollup.py [--tokens 10000] [--rounds 15]

A run of that many text deltas, of a handful of bytes each, is made in memory. Then, in turn, each protocol's endpoint
is asked for it from the beginning, with `?rollup=0` and without, in this process and over no network: the bytes of the
answer, the processor time that the server takes for it, and the time that a client takes which decodes the events and
adds the deltas up (in Python). Medians over the rounds; the ratio is rolled up to not rolled up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import MutableMapping
from typing import Any, NamedTuple

from ag_ui.core import TextMessageContentEvent, TextMessageEndEvent, TextMessageStartEvent
from rig.report import keep, machine

from headwater import Streams
from headwater.http import App
from headwater.runs import Runs
from headwater.wire.sse import Decoder

WORDS = ("the ", "quick ", "brown ", "fox ", "jumps ", "over ", "a ", "lazy ", "dog", ". ")
"""Tokens; 4.3 characters each."""
WAYS = {True: "headwater, rolled up", False: "whole"}


class Costs(NamedTuple):
    """Of one reader."""

    bytes: int
    server: float
    """Seconds of the processor, until the answer was whole."""
    client: float
    """Seconds, to decode it and add up what it says."""


class Talker:
    """Says `tokens` words."""

    name = "bot"

    def __init__(self, tokens: int) -> None:
        self._tokens = tokens

    async def run(self, input: Any, sink: Any) -> None:  # noqa: A002 - AG-UI's word
        await sink.emit(TextMessageStartEvent(message_id="m"))
        for number in range(self._tokens):
            await sink.emit(TextMessageContentEvent(message_id="m", delta=WORDS[number % len(WORDS)]))
        await sink.emit(TextMessageEndEvent(message_id="m"))


async def answer(app: App, path: str, query: str) -> bytes:
    """The body of a GET."""
    chunks: list[bytes] = []
    never = asyncio.Event()

    async def receive() -> MutableMapping[str, Any]:
        await never.wait()
        raise AssertionError

    async def send(event: MutableMapping[str, Any]) -> None:
        assert event.get("status", 200) == 200, event
        chunks.append(event.get("body", b""))

    scope = {
        "type": "http", "method": "GET", "path": path, "raw_path": path.encode(), "query_string": query.encode(),
        "headers": [(b"host", b"bench")], "root_path": "", "http_version": "1.1", "scheme": "http", "state": {},
        "client": ("127.0.0.1", 1), "server": ("127.0.0.1", 2), "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip
    await app(scope, receive, send)
    return b"".join(chunks)


def added_up(body: bytes) -> str:
    """What a client makes of it."""
    events = [json.loads(event.data) for event in Decoder().feed(body) if event.data != "[DONE]"]
    return "".join([event["delta"] for event in events if isinstance(event.get("delta"), str)])


async def measured(app: App, path: str, query: str) -> tuple[Costs, str]:
    begun = time.process_time()
    body = await answer(app, path, query)
    served = time.process_time()
    text = added_up(body)
    return Costs(len(body), served - begun, time.process_time() - served), text


async def measure(tokens: int, rounds: int) -> dict[str, dict[bool, list[Costs]]]:
    async with Streams("memory:") as streams, Runs(streams, Talker(tokens)) as runs:
        run = await runs.start("bot", "hi", thread_id="c")
        await run.wait()
        app = App(streams, runs)
        doors = {
            "AG-UI": ("/agents/bot/ag-ui", f"runId={run.id}"),
            "AI SDK": ("/agents/bot/chat/c/stream", f"run={run.id}"),
            "OpenAI Responses": (f"/v1/responses/resp_{run.id}", "stream=true"),
        }
        costs: dict[str, dict[bool, list[Costs]]] = {name: {True: [], False: []} for name in doors}
        for _ in range(rounds):
            for name, (path, query) in doors.items():
                texts = set()
                for rolled_up in (True, False):
                    cost, text = await measured(app, path, query if rolled_up else f"{query}&rollup=0")
                    costs[name][rolled_up].append(cost)
                    texts.add(text)
                assert len(texts) == 1, "not the same text"
        return costs


def show(costs: dict[str, dict[bool, list[Costs]]]) -> None:
    print("| protocol | KB, not rolled up | KB, rolled up | ratio | server ms | ms | ratio | client ms | ms | ratio |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for name, both in costs.items():
        cells = []
        for field, unit, digits in ((0, 1e3, 0), (1, 1e-3, 1), (2, 1e-3, 1)):
            plain, rolled = (statistics.median(cost[field] for cost in both[which]) for which in (False, True))
            cells += [f"{plain / unit:.{digits}f}", f"{rolled / unit:.{digits}f}", f"{rolled / plain:.3f}"]
        print(f"| {name} | {' | '.join(cells)} |")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--tokens", type=int, default=10_000)
    arguments.add_argument("--rounds", type=int, default=15)
    given = arguments.parse_args()
    print(f"One reader of a finished run of {given.tokens:,} tokens")
    print(machine(), end="\n\n", flush=True)
    costs = asyncio.run(measure(given.tokens, given.rounds))
    show(costs)
    measured = {
        name: {WAYS[which]: [one._asdict() for one in rounds] for which, rounds in both.items()}
        for name, both in costs.items()
    }
    keep("rollup", (__doc__ or "").partition("\n")[0], {"tokens": given.tokens, "measured": measured})


if __name__ == "__main__":
    main()
