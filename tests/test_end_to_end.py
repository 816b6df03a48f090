"""Nothing is lost: a real model's answer, read by curl, a browser's EventSource and `headwater tail`, all at once.

Connections are cut at seeded random bytes while the answer is being made and afterwards, and the server is killed with
SIGKILL and started again. What each reader put together must be the log, byte for byte.
"""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cutting_proxy import CuttingProxy
from headwater.wire.sse import Decoder
from real_server import HEADWATER, Server, chromium, ended_run, process, read_log, serving, start_run

pytestmark = pytest.mark.server

CUTS = 20
SHORTEST_BYTES = 50_000
"""Of 300 tokens as server-sent events; the cuts are before that."""
STORY = "Tell me a long story about a river"
TERMINAL = (b'{"type":"RUN_FINISHED"', b'{"type":"RUN_ERROR"')
Program = Callable[[str, str], str]


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("demo", tmp_path_factory.mktemp("demo")) as server:
        yield server


# --- three readers, each resuming in its own way. All give the messages that they got, in order. ----------------------


async def curl(program: str, url: str, counted: "Count | None" = None) -> list[bytes]:
    """curl knows nothing of resuming: it is started again with the last complete event's id, as a script would."""
    got: list[bytes] = []
    last_id: str | None = None
    while not (got and got[-1].startswith(TERMINAL)):
        resume = [] if last_id is None else ["-H", f"Last-Event-ID: {last_id}"]
        decoder, body = Decoder(), 0
        async with process(program, "-sN", "--noproxy", "*", *resume, url) as running:
            assert running.stdout is not None
            while data := await running.stdout.read(65536):
                body += len(data)
                for event in decoder.feed(data):
                    got.append(event.data.encode())
                    last_id = event.id
                if counted is not None:
                    counted.reached(len(got))
            status = await running.wait()
        ended = bool(got) and got[-1].startswith(TERMINAL)
        assert status or ended or not body, "curl took half an answer for a whole one"
        if status == 7:  # nobody listens: the server is just starting again
            await asyncio.sleep(0.05)
    return got


async def tail(url: str, counted: "Count | None" = None) -> list[bytes]:
    """`headwater tail` resumes by itself. Its standard output is the messages, one a line."""
    got: list[bytes] = []
    async with process(HEADWATER, "tail", url) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        async for line in running.stdout:
            got.append(line.removesuffix(b"\n"))
            if counted is not None:
                counted.reached(len(got))
        said = (await running.stderr.read()).decode()
        failed = bool(got) and got[-1].startswith(TERMINAL[1])
        assert await running.wait() == (3 if failed else 0), said
    return got


FOLLOW = """async (url) => {
  const got = [];
  await new Promise((resolve, reject) => {
    const source = new EventSource(url);
    source.onmessage = ({data}) => {
      got.push(data);
      if (/^{"type":"RUN_(FINISHED|ERROR)"/.test(data)) { source.close(); resolve(); }
    };
    source.onerror = () => { if (source.readyState === EventSource.CLOSED) reject(new Error("gave up")); };
  });
  return got;
}"""


async def event_source(page: Any, path: str) -> list[bytes]:
    """The browser's own EventSource and its own resuming, in a page of the server under test."""
    return [data.encode() for data in await page.evaluate(FOLLOW, path)]


class Count:
    """Lets a test wait until a reader has so many messages."""

    def __init__(self) -> None:
        self._count, self._least = 0, 0
        self._there = asyncio.Event()

    def reached(self, count: int) -> None:
        self._count = count
        if count >= self._least:
            self._there.set()

    async def at_least(self, count: int) -> None:
        self._least = count
        self._there.clear()
        self.reached(self._count)
        await self._there.wait()


# --- cut connections --------------------------------------------------------------------------------------------------


class Cuts:
    """For a proxy: how much each connection lets through, so that all cuts are at seeded places of all that passed."""

    def __init__(self, chance: random.Random) -> None:
        places = sorted(chance.sample(range(1000, SHORTEST_BYTES), CUTS))
        self._gaps = [place - before for before, place in zip([0, *places], places, strict=False)]
        self._connected: list[float] = []

    def __iter__(self) -> Iterator[int | None]:
        return self

    def __next__(self) -> int | None:
        self._connected.append(time.time())
        nth = len(self._connected) - 1
        return self._gaps[nth] if nth < CUTS else None

    def before(self, moment: float) -> int:
        """How many connections had been cut, and been made anew, at `moment` (seconds since 1970)."""
        return sum(connected < moment for connected in self._connected[1:])


class Round:
    """One reading of a run by all three, each through a proxy of its own."""

    def __init__(self, curl_path: str, port: int, chance: random.Random, abrupt: tuple[bool, ...]) -> None:
        self._curl = curl_path
        self.cuts = [Cuts(chance) for _ in abrupt]
        self._proxies = [CuttingProxy(port, cuts, abrupt=rst) for cuts, rst in zip(self.cuts, abrupt, strict=True)]

    async def read(self, page: Any, run_id: str) -> dict[str, bytes]:
        path = f"/v1/runs/{run_id}/events?rollup=0"
        async with contextlib.AsyncExitStack() as stack:
            through = [(await stack.enter_async_context(proxy)).url for proxy in self._proxies]
            await page.goto(f"{through[1]}/healthz")
            async with asyncio.timeout(120), asyncio.TaskGroup() as readers:
                tasks = {
                    "curl": readers.create_task(curl(self._curl, through[0] + path)),
                    "EventSource": readers.create_task(event_source(page, path)),
                    "tail": readers.create_task(tail(f"{through[2]}/v1/stream/runs/{run_id}")),
                }
        return {name: b",".join(task.result()) for name, task in tasks.items()}

    def cuts_before(self, moment: float) -> list[int]:
        return [cuts.before(moment) for cuts in self.cuts]


async def test_three_readers_cut_at_twenty_places_get_the_log(demo: Server, program: Program) -> None:
    curl_path = program("curl", "apt-get install curl")
    chance = random.Random(20)
    during = Round(curl_path, demo.port, chance, (False, True, False))
    after = Round(curl_path, demo.port, chance, (True, False, True))
    async with chromium(program("chromium", "apt-get install chromium")) as browser:
        page, other_page = await browser.new_page(), await browser.new_page()
        for _ in range(3):  # a story may turn out short
            run_id = await start_run(demo, STORY)
            async with asyncio.TaskGroup() as rounds:
                live = rounds.create_task(during.read(page, run_id))
                ended = (await ended_run(demo, run_id))["ended"] / 1000
                log = await read_log(demo, f"runs/{run_id}")
                tokens = log.count(b'"TEXT_MESSAGE_CONTENT"')
                if tokens >= 300:
                    # A browser waits for seconds after each cut, and may still be reading: the others need not wait.
                    again = rounds.create_task(after.read(other_page, run_id))
            if tokens >= 300:
                break
            during = Round(curl_path, demo.port, chance, (False, True, False))
        else:
            pytest.fail("three stories, and none of 300 tokens")

    assert live.result() == dict.fromkeys(live.result(), log)
    assert again.result() == dict.fromkeys(again.result(), log)
    assert during.cuts_before(time.time()) == after.cuts_before(time.time()) == [CUTS] * 3
    while_made = during.cuts_before(ended)
    assert min(while_made) >= 1  # a browser may wait for seconds after each cut, and the answer is made in ten
    print(
        f"\n{tokens} tokens, {len(log)} bytes, {CUTS} cuts for each reader. While it was made:"
        f" curl {while_made[0]}, EventSource {while_made[1]}, tail {while_made[2]}; then {CUTS} more each."
    )


# --- a killed server --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [1, 2])
async def test_a_server_killed_in_mid_answer_takes_it_back_and_gives_another(
    demo: Server, program: Program, seed: int
) -> None:
    curl_path = program("curl", "apt-get install curl")
    async with chromium(program("chromium", "apt-get install chromium")) as browser:
        page = await browser.new_page()
        await page.goto(f"{demo.url}/healthz")
        run_id = await start_run(demo, STORY)
        path, by_curl, by_tail = f"/v1/runs/{run_id}/events?rollup=0", Count(), Count()
        async with asyncio.timeout(60), asyncio.TaskGroup() as readers:
            tasks = [
                readers.create_task(curl(curl_path, demo.url + path, by_curl)),
                readers.create_task(event_source(page, path)),
                readers.create_task(tail(demo.url + path, by_tail)),
            ]
            await by_tail.at_least(1)  # it gives up where it never had an answer
            await by_curl.at_least(random.Random(seed).randrange(20, 120))
            demo.kill()
            await demo.restart()
        log = await read_log(demo, f"runs/{run_id}")
        assert [b",".join(task.result()) for task in tasks] == [log] * 3

    events = json.loads(b"[%s]" % log)
    kinds = [event["type"] for event in events]
    assert [kind for kind in kinds if kind in ("RUN_FINISHED", "RUN_ERROR")] == ["RUN_FINISHED"]
    resumed, retracted = (
        [event["value"] for event in events if event.get("name") == name]
        for name in ("run.resumed", "message.retracted")
    )
    assert len(resumed) == len(retracted) == 1
    half, whole = [event["messageId"] for event in events if event["type"] == "TEXT_MESSAGE_START"][-2:]
    assert retracted[0] == {"messageId": half, "reason": "interrupted"}
    record = await ended_run(demo, run_id)
    assert record["status"] == "completed"
    said = [e["delta"] for e in events if e["type"] == "TEXT_MESSAGE_CONTENT" and e["messageId"] == whole]
    assert "".join(said) == record["result"]


KILLS = 5
BETWEEN_KILLS = (60, 160)


async def produce(url: str, acknowledged: list[int], enough: asyncio.Event) -> int:
    """Appends 0, 1, 2 … each until it is acknowledged; how many acknowledgements were for a repetition."""
    repeated = 0
    headers = {"content-type": "application/json", "producer-id": "meter", "producer-epoch": "0"}
    async with httpx.AsyncClient() as http_client:
        while not enough.is_set():
            number = len(acknowledged)
            try:
                answer = await http_client.post(
                    url, content=json.dumps({"n": number}), headers={**headers, "producer-seq": str(number)}
                )
            except httpx.TransportError:
                await asyncio.sleep(0.01)  # nobody listens yet
                continue
            assert answer.status_code in (200, 204), answer.text
            repeated += answer.status_code == 204
            acknowledged.append(number)
    return repeated


async def test_a_retrying_producer_counts_once_over_five_kills(tmp_path: Path) -> None:
    chance = random.Random(5)
    with serving("serve", tmp_path) as server:
        url = f"{server.url}/v1/stream/meter/1"
        httpx.put(url, headers={"content-type": "application/json"}).raise_for_status()
        acknowledged: list[int] = []
        counted, enough = Count(), asyncio.Event()
        async with asyncio.timeout(90), asyncio.TaskGroup() as work:
            producer = work.create_task(produce(url, acknowledged, enough))
            following = work.create_task(tail(url, counted))
            await counted.at_least(1)
            for _ in range(KILLS):
                await counted.at_least(len(acknowledged) + chance.randrange(*BETWEEN_KILLS))
                await asyncio.sleep(chance.uniform(0, 0.002))  # into one of the next appends, of a millisecond each
                server.kill()
                await server.restart()
            await counted.at_least(len(acknowledged) + 1)
            enough.set()
            await producer
            httpx.post(url, headers={"stream-closed": "true"}).raise_for_status()
        log = await read_log(server, "meter/1")
    assert [entry["n"] for entry in json.loads(b"[%s]" % log)] == acknowledged == list(range(len(acknowledged)))
    assert b",".join(following.result()) == log
    print(f"\n{len(acknowledged)} messages, {KILLS} kills; {producer.result()} were acknowledged only when sent again")
