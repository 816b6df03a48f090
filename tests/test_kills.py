"""Runs on a server that is killed again and again: one contiguous answer, and every tool's effect exactly once outside
the window of doubt that the stream names."""

import asyncio
import json
import os
import random
import signal
import socket
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from ag_ui_validate.pytest_plugin import assert_valid_agui

from headwater.agui import OpenParts
from headwater.client import Client, Retry
from real_server import ENVIRONMENT

pytestmark = pytest.mark.server

TESTS = Path(__file__).parent
KILLS = 50
AT_ONCE = 4
LIFE_SECONDS = (0.15, 0.8)

Event = dict[str, Any]


class Lives:
    """A server with many of them."""

    def __init__(self, port: int, process: asyncio.subprocess.Process, marks: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.marks = marks
        self._process = process
        self._pid: int | None = None

    async def begin(self) -> None:
        """Returns when the next life accepts connections."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        line = await asyncio.wait_for(self._process.stdout.readline(), 60)
        self._pid = int(line)

    def kill(self) -> None:
        if self._pid is not None:
            os.kill(self._pid, signal.SIGKILL)

    def done(self) -> list[Event]:
        """What the tools did outside."""
        return [json.loads(line) for line in self.marks.read_text().splitlines()] if self.marks.exists() else []


@asynccontextmanager
async def lives(folder: Path) -> AsyncIterator[Lives]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    marks, log = folder / "marks.ndjson", folder / "server.log"
    environment = ENVIRONMENT | {"SHOP_MARKS": str(marks)}
    command = [str(TESTS / "forking_server.py"), f"sqlite:///{folder}/runs.db", str(port), "shop_agent:shop"]
    with log.open("ab") as said:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=said,
            env=environment, cwd=TESTS,
        )  # fmt: skip
    server = Lives(port, process, marks)
    try:
        await server.begin()
        yield server
    finally:
        with suppress(ProcessLookupError):
            server.kill()
        process.kill()
        await process.wait()


async def start(server: Lives, given: str) -> str:
    """The same key each time: a start whose answer was lost in a kill starts nothing twice."""
    body, headers = {"agent": "shop", "input": given}, {"idempotency-key": f"{given} {random.random()}"}
    async with httpx.AsyncClient(timeout=10) as http:
        while True:
            with suppress(httpx.TransportError):
                answer = await http.post(f"{server.url}/v1/runs", json=body, headers=headers)
                assert answer.status_code in (200, 201), answer.text
                return str(answer.json()["id"])
            await asyncio.sleep(0.02)


async def follow(server: Lives, run_id: str) -> list[bytes]:
    async with Client(server.url, retry=Retry(shortest=0.02, longest=0.1)) as client:
        return [event.data async for event in client.follow(f"{server.url}/v1/runs/{run_id}/events?rollup=0")]


async def whole_run(server: Lives, given: str) -> tuple[str, list[bytes]]:
    run_id = await start(server, given)
    return run_id, await follow(server, run_id)


async def log_of(server: Lives, run_id: str) -> list[bytes]:
    async with httpx.AsyncClient() as http:
        answer = await http.get(f"{server.url}/v1/runs/{run_id}/events", params={"format": "ndjson", "rollup": "0"})
        return answer.content.splitlines()


def judged(lines: list[bytes]) -> list[Event]:
    """The events, if they are a valid run that came to one good end."""
    events = [json.loads(line) for line in lines]
    parts = OpenParts()
    for event in events:
        parts.feed(event)
    assert_valid_agui(events, severity_overrides={"AGUI204": "off"})
    terminal = [event for event in events if event["type"] in ("RUN_FINISHED", "RUN_ERROR")]
    assert terminal == [events[-1]]
    assert terminal[0].get("outcome") == {"type": "success"}, terminal
    retracted = {value["messageId"] for value in custom(events, "message.retracted")}
    said = [e["delta"] for e in events if e["type"] == "TEXT_MESSAGE_CONTENT" and e["messageId"] not in retracted]
    assert "".join(said) == "".join(f"word{number} " for number in range(20))
    return events


def custom(events: list[Event], name: str) -> list[Any]:
    return [event["value"] for event in events if event["type"] == "CUSTOM" and event["name"] == name]


def called_in(events: list[Event]) -> set[str]:
    return {event["toolCallId"] for event in events if event["type"] == "TOOL_CALL_START"}


def check_effects(events: list[Event], rounds: int, done: list[Event]) -> int:
    """Each effect of this run exactly once, but for those the stream names; how many of those there were twice."""
    called = called_in(events)
    doubt = Counter(id_ for value in custom(events, "run.resumed") for id_ in value["inDoubt"])
    mine = [mark for mark in done if mark["call"] in called]
    times = Counter(mark["call"] for mark in mine)
    for call, count in times.items():
        assert count <= 1 + doubt[call], f"{call} had its effect {count} times, and was named {doubt[call]} times"
    wanted = {(tool, f"order-{number}") for tool in ("charge", "ship") for number in range(rounds)}
    assert {(mark["tool"], mark["order"]) for mark in mine} == wanted
    calls = {(mark["tool"], mark["order"], mark["call"]) for mark in mine}
    assert len(calls) == len(wanted), "what runs again does so under the same id"
    return sum(count > 1 for count in times.values())


async def test_fifty_kills(tmp_path: Path) -> None:
    chance, rounds = random.Random(50), 6
    kills, finished, repeated = 0, 0, 0
    async with asyncio.timeout(240), lives(tmp_path) as server, asyncio.TaskGroup() as readers:
        running = {readers.create_task(whole_run(server, f"shop {rounds}")) for _ in range(AT_ONCE)}
        over: list[asyncio.Task[tuple[str, list[bytes]]]] = []
        while running:
            ended, running = await asyncio.wait(running, timeout=chance.uniform(*LIFE_SECONDS))
            over += ended
            if kills < KILLS:
                server.kill()
                kills += 1
                await server.begin()
                running |= {readers.create_task(whole_run(server, f"shop {rounds}")) for _ in ended}
        done, resumed, called = server.done(), 0, set[str]()
        for task in over:
            run_id, lines = task.result()
            assert lines == await log_of(server, run_id), "what was read through all the kills is the log"
            events = judged(lines)
            repeated += check_effects(events, rounds, done)
            resumed += len(custom(events, "run.resumed"))
            called |= called_in(events)
            finished += 1
    assert {mark["call"] for mark in done} <= called, "an effect of a call that no stream tells of"
    assert kills == KILLS
    assert resumed >= KILLS
    print(f"\n{kills} kills, {finished} runs, gone on with {resumed} times; {len(done)} effects, {repeated} twice")


async def test_a_question_outlives_its_server_and_the_answer_too(tmp_path: Path) -> None:
    async with asyncio.timeout(120), lives(tmp_path) as server, asyncio.TaskGroup() as readers:
        run_id = await start(server, "refund order-7")
        reading = readers.create_task(follow(server, run_id))
        url = f"{server.url}/v1/runs/{run_id}"
        async with httpx.AsyncClient() as http:
            while (record := (await http.get(url)).json())["status"] != "waiting":
                await asyncio.sleep(0.02)
            server.kill()
            await server.begin()
            assert (await http.get(url)).json() == record
            (asked,) = record["approvals"]
            assert (asked["toolName"], json.loads(asked["arguments"])) == ("refund", {"order": "order-7"})
            answer = {"tool_call_id": asked["toolCallId"], "approve": True}
            assert (await http.post(f"{url}/approvals", json=answer)).status_code == 202
            server.kill()
            await server.begin()
            assert (await http.post(f"{url}/approvals", json=answer)).status_code == 409
        events = judged(await reading)
        assert [value["approved"] for value in custom(events, "approval.decided")] == [True]
        effects = [mark for mark in server.done() if mark["tool"] == "refund"]
        doubt = sum(value["inDoubt"] == [asked["toolCallId"]] for value in custom(events, "run.resumed"))
        assert 1 <= len(effects) <= 1 + doubt
        assert {mark["call"] for mark in effects} == {asked["toolCallId"]}
