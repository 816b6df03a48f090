"""clients/js: the package for JavaScript, its own tests against a real server, and what npm makes of it."""

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import repeat
from pathlib import Path
from urllib.parse import urlsplit

import pytest

import headwater
from cutting_proxy import CuttingProxy
from real_server import ENVIRONMENT, HEADWATER, chromium, serving
from test_wire_sse import CASES_FILE

ROOT = Path(__file__).parent.parent
JS = ROOT / "clients" / "js"
AGENT = "tests.agents_to_read:bot"
PATIENCE_SECONDS = 400
SKIPPED_WITHOUT_CASES = 1

USED = """
import { follow, HeadwaterError, resumableFetch, type ResumableFetchOptions, unretracted } from "headwater"
const options: ResumableFetchOptions = { maxAttempts: 3, onReconnect: ({ attempt }) => attempt.toFixed() }
const fetching: typeof fetch = resumableFetch(options)
for await (const { id, event, data } of follow<{ type: string }>("/x", { json: true, fetch: fetching })) {
  const said: [string, string, string] = [id, event, data.type]
  // @ts-expect-error -- so there are types, and not any
  const wrong: number = said
}
const message = unretracted({ role: "user", parts: [{ type: "text" }] })
export const shown: { role: string; parts: { type: string }[] } = message
export const code: string = new HeadwaterError("m", 410, "offset_gone").code
"""

IN_A_PAGE = """async ([site, cut, whole]) => {
  const { follow, resumableFetch } = await import(`${site}/index.js`)
  const init = { method: "POST", headers: { "content-type": "application/json", accept: "text/event-stream" } }
  init.body = JSON.stringify({ agent: "bot", input: "words" })
  let connections = 1
  const resumeAt = (at) => (at.searchParams.set("rollup", "0"), at)
  const fetching = resumableFetch({ delay: 1, resumeAt, onReconnect: () => connections++ })
  const answer = await fetching(`${cut}/v1/runs?rollup=0`, init)
  const text = await answer.text()
  const said = [...text.matchAll(/^data:(.*)$/gm)].map(([, data]) => JSON.parse(data))
  const events = follow(`${whole}/v1/runs/${answer.headers.get("x-run-id")}/events?rollup=0`, { json: true })
  const log = []
  for await (const { data } of events) log.push(data)
  return { connections, said, log, outcome: events.outcome }
}"""
BYTES_PER_CONNECTION = 4_000  # more than a preflight's answer, the head of another, and an event


def ran(folder: Path, *command: str, environment: Mapping[str, str] = ENVIRONMENT) -> str:
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=dict(environment)
    )
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stdout[-20_000:]}\n{done.stderr[-5_000:]}"
    return done.stdout


@pytest.fixture
def npm(program: Callable[[str, str], str]) -> str:
    program("node", "sudo apt-get install nodejs npm")
    found = program("npm", "sudo apt-get install nodejs npm")
    if not (JS / "node_modules").exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("its packages are not installed. To run this test: scripts/setup-js clients/js")
    return found


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving("serve", tmp_path_factory.mktemp("clients-js"), AGENT) as server:
        yield server.url


@pytest.mark.server
def test_its_own_tests_pass_against_a_real_server(npm: str, url: str, tmp_path: Path) -> None:
    report = tmp_path / "report.json"
    environment = ENVIRONMENT | {
        "HEADWATER_URL": url,
        "HEADWATER_COMMAND": json.dumps([HEADWATER, "serve", AGENT]),
        "HEADWATER_SSE_CASES": str(CASES_FILE),
    }
    reporters = ("--reporter=default", "--reporter=json", f"--outputFile={report}")
    ran(JS, npm, "exec", "--", "vitest", "run", *reporters, environment=environment)
    said = json.loads(report.read_text())
    assert said["numPendingTests"] == (0 if CASES_FILE.exists() else SKIPPED_WITHOUT_CASES)
    assert said["numPassedTests"] > 100


@pytest.mark.server
def test_its_types_are_right(npm: str) -> None:
    ran(JS, npm, "run", "check")


@pytest.mark.server
def test_what_is_packed_can_be_installed_imported_and_type_checked(npm: str, tmp_path: Path) -> None:
    packed = ran(ROOT, str(ROOT / "scripts" / "js")).split()[-1]
    (tmp_path / "package.json").write_text('{"private": true, "type": "module"}')
    ran(tmp_path, npm, "install", "--offline", "--no-audit", "--no-fund", str(ROOT / "dist" / packed))
    installed = tmp_path / "node_modules" / "headwater"
    assert {path.name for path in installed.iterdir()} == {"LICENSE", "README.md", "dist", "package.json"}
    assert [path.name for path in (tmp_path / "node_modules").iterdir() if path.name[0] != "."] == ["headwater"]
    shown = 'console.log(Object.keys(await import("headwater")).sort().join())'
    assert ran(tmp_path, "node", "-e", shown) == "HeadwaterError,follow,resumableFetch,unretracted\n"
    (tmp_path / "used.ts").write_text(USED)
    compiler = JS / "node_modules" / "typescript" / "bin" / "tsc"
    strictly = ("--noEmit", "--strict", "--target", "es2022", "--module", "nodenext", "used.ts")
    ran(tmp_path, "node", str(compiler), *strictly)


@pytest.mark.server
async def test_it_goes_on_in_a_page_of_another_origin(
    npm: str, program: Callable[[str, str], str], url: str, tmp_path: Path
) -> None:
    browser_path = program("chromium", "sudo apt-get install chromium")
    ran(JS, npm, "exec", "--", "tsc", "-p", "tsconfig.build.json", "--outDir", str(tmp_path))
    pages = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=pages.serve_forever, daemon=True).start()
    site = f"http://127.0.0.1:{pages.server_port}"
    try:
        async with (
            CuttingProxy(urlsplit(url).port or 0, repeat(BYTES_PER_CONNECTION), abrupt=True) as proxy,
            chromium(browser_path) as browser,
        ):
            page = await browser.new_page()
            await page.goto(f"{site}/index.js")
            seen = await page.evaluate(IN_A_PAGE, [site, proxy.url, url])
    finally:
        pages.shutdown()
        pages.server_close()
    assert seen["connections"] > 1
    assert seen["said"] == seen["log"]
    assert (len(seen["log"]) > 20, seen["outcome"]) == (True, "completed")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass


def test_it_has_our_version_and_needs_nobody() -> None:
    package = json.loads((JS / "package.json").read_text())
    assert package["version"] == headwater.__version__
    assert "dependencies" not in package
    assert "peerDependencies" not in package


def test_without_node_the_line_that_installs_it_is_said(tmp_path: Path) -> None:
    (tmp_path / "dirname").symlink_to(shutil.which("dirname") or "")
    command = [ROOT / "scripts" / "js"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)}, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "apt-get install nodejs npm" in done.stderr
