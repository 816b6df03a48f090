"""Durable Streams' published conformance suite: all of it, on each store, and on two processes that share one."""

import asyncio
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from real_server import ENVIRONMENT, serving
from round_robin_proxy import RoundRobinProxy

JS = Path(__file__).parent / "js"
NODE = "sudo apt-get install nodejs npm"
TESTS = 338
"""In the pinned version, subscriptions included. Another number means that another suite ran."""

SHORT = ("--long-poll-timeout", "0.5")  # the suite gives each of its tests 5 s

PATIENCE_SECONDS = 240
"""For one run of the suite, which takes half a minute."""

pytestmark = pytest.mark.server

Program = Callable[[str, str], str]


@pytest.mark.parametrize("store", ["memory", "sqlite"])
async def test_one_process(store: str, tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]) -> None:
    node = program("node", NODE)
    url = "memory:" if store == "memory" else f"sqlite:///{tmp_path}/streams.db"
    with serving("serve", tmp_path, "--store", url, *SHORT) as server:
        report = await run_suite(node, server.url, tmp_path)
    check(store, report, capsys)


async def test_two_processes_behind_a_round_robin_proxy(
    tmp_path: Path, program: Program, capsys: pytest.CaptureFixture[str]
) -> None:
    node = program("node", NODE)
    with serving("serve", tmp_path, *SHORT) as one, serving("serve", tmp_path, *SHORT) as other:
        async with RoundRobinProxy([one.port, other.port]) as proxy:
            report = await run_suite(node, proxy.url, tmp_path)
            assert min(proxy.requests.values()) > TESTS, f"both servers are to be asked: {proxy.requests}"
    check("sqlite, two processes", report, capsys)


async def run_suite(node: str, url: str, folder: Path) -> dict[str, Any]:
    """What vitest reports of the suite against the server at `url`."""
    vitest, written = JS / "node_modules/vitest/vitest.mjs", folder / "report.json"
    if not vitest.exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(f"the conformance suite is not installed. To run this test: cd {JS} && npm ci")
    running = await asyncio.create_subprocess_exec(
        *(node, vitest, "run", "conformance.test.mjs", "--reporter=json", f"--outputFile={written}"),
        cwd=JS,
        env=ENVIRONMENT | {"CONFORMANCE_URL": url},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            said, _ = await running.communicate()
    finally:
        if running.returncode is None:
            running.kill()
            await running.wait()
    assert written.exists(), f"the suite did not run:\n{said.decode()}"
    report: dict[str, Any] = json.loads(written.read_text())
    return report


def check(store: str, report: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    """Say the totals, whatever they are; fail unless every test ran and passed."""
    tests = [test for file in report["testResults"] for test in file["assertionResults"]]
    passed, failed = (sum(test["status"] == status for test in tests) for status in ("passed", "failed"))
    skipped = len(tests) - passed - failed
    said = f"conformance {store}: {passed} passed, {failed} failed, {skipped} skipped of {len(tests)}"
    with capsys.disabled():
        print(f"\n{said}")
    not_passed = [line for test in tests if test["status"] != "passed" for line in told(test)]
    assert (passed, len(tests)) == (TESTS, TESTS), "\n".join([said, *not_passed])


def told(test: dict[str, Any]) -> list[str]:
    """Which test it is, how it ended, and the beginning of why."""
    why = [message.partition("\n")[0][:200] for message in test["failureMessages"][:1]]
    return [f"{test['status']}: {test['fullName']}", *(f"    {line}" for line in why)]
