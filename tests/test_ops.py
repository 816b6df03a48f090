"""What operators take from `ops/`: alerts, a dashboard, a scrape; by themselves, by promtool, and in a real stall.

No Grafana is asked; its dashboard is held to the numbers that there are, and each of its queries to Prometheus.
"""

import asyncio
import json
import re
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from headwater.http.families import FAMILIES
from headwater.runs.figures import SILENT_SECONDS
from real_server import Server, process

ROOT = Path(__file__).parent.parent
OPS = ROOT / "ops"
DASHBOARD = json.loads((OPS / "grafana.json").read_text("utf-8"))
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
ALERTS = yaml.safe_load((OPS / "alerts.yml").read_text("utf-8"))["groups"][0]["rules"]

INSTALL = "sudo apt-get install prometheus"
GIVEN = {"job", "instance", "le"}
"""Labels that Prometheus adds, and that of buckets."""
OTHERS = {"up", "process_resident_memory_bytes"}
"""Numbers that are not of Headwater's own table: Prometheus' own, and every Python program's."""
FILLED_IN = {"$__rate_interval": "5m", "$job": ".*", "$instance": ".*"}
"""For Grafana's variables."""


def sampled() -> dict[str, set[str]]:
    """Every name that a scrape has, and its labels."""
    names: dict[str, set[str]] = {name: set() for name in OTHERS}
    for family in FAMILIES:
        ends = {"gauge": [""], "counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}[family.sort]
        names |= {family.name + end: set(family.labels) for end in ends}
    return names


def unknown(query: str) -> list[str]:
    """Names of numbers and of labels in `query` that no scrape has."""
    known = sampled()
    found = re.findall(r"\b(headwater_\w+|process_\w+|up)\b(?:\{([^}]*)\})?", query)
    wrong = [name for name, _ in found if name not in known]
    for name, matchers in found:
        for label in re.findall(r"(\w+)\s*=?[=!~]", re.sub(r'"[^"]*"', '""', matchers)):
            wrong += [f"{name}{{{label}}}"] * (label not in known.get(name, set()) | GIVEN)
    labels = set().union(*(known.get(name, set()) for name, _ in found)) | GIVEN | {"version"}
    for grouped in re.findall(r"\bby \(([^)]*)\)", query):
        wrong += [f"by ({label})" for label in re.split(r",\s*", grouped) if label not in labels]
    return wrong


# -- by themselves ----------------------------------------------------------------------------------------------------


def test_a_query_that_asks_for_what_there_is_not_is_found_out() -> None:
    assert unknown('rate(headwater_readers{transport="sse",job="x"}[5m])') == []
    assert unknown("headwater_made_up") == ["headwater_made_up"]
    assert unknown("headwater_append_seconds + headwater_subscribes") == [
        "headwater_append_seconds",
        "headwater_subscribes",
    ]
    assert unknown('headwater_readers{agent!="a=b"}') == ["headwater_readers{agent}"]
    assert unknown("sum by (agent, le) (headwater_readers)") == ["by (agent)"]


@pytest.mark.parametrize("query", [*QUERIES, *(alert["expr"] for alert in ALERTS)])
def test_every_query_asks_for_numbers_that_there_are(query: str) -> None:
    assert unknown(query) == []
    assert re.search(r"\b(headwater_\w+|up|process_\w+)", query)


def test_runs_are_asked_for_by_a_silence_that_is_counted() -> None:
    asked = re.findall(r'seconds="(\d+)"', "".join([*QUERIES, *(alert["expr"] for alert in ALERTS)]))
    assert asked
    assert {int(seconds) for seconds in asked} <= set(SILENT_SECONDS)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert["alert"])
def test_every_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"\d+m", alert["for"])
    assert alert["labels"]["severity"] in ("warning", "critical")
    told = alert["annotations"]
    assert set(told) == {"summary", "description", "runbook"}
    document, _, section = told["runbook"].partition("#")
    headings = re.findall(r"^### (.+)$", (ROOT / document).read_text("utf-8"), re.M)
    assert alert["alert"] in headings
    assert section == alert["alert"].lower()


def test_every_alert_is_tested_with_what_sets_it_off_and_what_does_not() -> None:
    tests = yaml.safe_load((OPS / "alerts.test.yml").read_text("utf-8"))["tests"]
    cases = [(case["alertname"], bool(case["exp_alerts"])) for test in tests for case in test["alert_rule_test"]]
    assert sorted(cases) == sorted((alert["alert"], fires) for alert in ALERTS for fires in (False, True))


def test_the_dashboard_can_be_imported_into_any_grafana() -> None:
    variables = {variable["name"]: variable["type"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query", "instance": "query"}
    assert DASHBOARD["schemaVersion"] == 42  # the last one of this kind of dashboards
    assert "id" not in DASHBOARD, "Grafana gives it one"
    for panel in PANELS:
        asked = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
        assert all(one == {"type": "prometheus", "uid": "${datasource}"} for one in asked), panel["title"]
        assert panel["description"]
    assert all('{job=~"$job",instance=~"$instance"' in query for query in QUERIES)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])


def test_no_panel_lies_on_another() -> None:
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in DASHBOARD["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24


# -- by promtool ------------------------------------------------------------------------------------------------------


def filled_in(query: str) -> str:
    for variable, value in FILLED_IN.items():
        query = query.replace(variable, value)
    return query


@pytest.mark.server
def test_promtool_takes_all_of_it(tmp_path: Path, program: Callable[[str, str], str]) -> None:
    promtool = program("promtool", INSTALL)
    asked = [{"record": f"panel:{number}", "expr": filled_in(query)} for number, query in enumerate(QUERIES)]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": asked}]}))
    for what in (
        ["check", "config", str(OPS / "prometheus.yml")],
        ["check", "rules", str(OPS / "alerts.yml"), str(tmp_path / "panels.yml")],
        ["test", "rules", str(OPS / "alerts.test.yml")],
    ):
        done = subprocess.run([promtool, *what], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr


# -- in a real stall --------------------------------------------------------------------------------------------------

FIRES_SECONDS = 40
MEGABYTE = bytes(1024 * 1024)
SILENT = [
    "Share of failed runs",
    "First event, as readers saw it",
    "Longest gap, as readers saw it",
    "Reconnects, as readers saw them",
    "Resumes",
    "Disconnects",
    "How long readers stayed",
    "Store errors and conflicts",
    "Refused",
]
"""Panels with nothing to show while nothing of the kind has happened."""


def hasty(folder: Path, server: Server) -> Path:
    """Our own configuration, in a hurry: each second, and alerts as soon as their number says so."""
    rules = (OPS / "alerts.yml").read_text("utf-8")
    rules = re.sub(r"for: \d+m", "for: 1s", rules).replace('seconds="300"', 'seconds="10"')
    (folder / "alerts.yml").write_text(rules)
    configured = yaml.safe_load((OPS / "prometheus.yml").read_text("utf-8"))
    configured["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    configured["scrape_configs"][0]["static_configs"] = [{"targets": [f"127.0.0.1:{server.port}"]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(configured))
    return folder / "prometheus.yml"


@asynccontextmanager
async def prometheus(program: str, folder: Path, server: Server) -> AsyncIterator[httpx.AsyncClient]:
    """A real one that scrapes `server`, and its API."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    data = folder / "data"
    options = {
        "config.file": hasty(folder, server),
        "storage.tsdb.path": data,
        "web.listen-address": address,
    }
    given = [f"--{name}={value}" for name, value in options.items()]
    async with (
        process(program, *given, "--log.level=error") as running,
        httpx.AsyncClient(base_url=f"http://{address}/api/v1", timeout=10) as api,
    ):
        assert running.returncode is None
        yield api


async def firing(api: httpx.AsyncClient) -> dict[str, dict[str, str]]:
    """Alerts, and the labels of each."""
    try:
        alerts = (await api.get("/alerts")).json()["data"]["alerts"]
    except httpx.TransportError:  # it is just starting
        return {}
    return {one["labels"]["alertname"]: one["labels"] for one in alerts if one["state"] == "firing"}


async def shown(api: httpx.AsyncClient, query: str) -> list[Any]:
    answer = (await api.get("/query", params={"query": filled_in(query)})).json()
    assert answer["status"] == "success", (query, answer)
    found: list[Any] = answer["data"]["result"]
    return found


async def until(what: Callable[[dict[str, dict[str, str]]], bool], api: httpx.AsyncClient) -> dict[str, dict[str, str]]:
    give_up = time.monotonic() + FIRES_SECONDS
    while not what(found := await firing(api)):
        assert time.monotonic() < give_up, f"only these fire: {found}"
        await asyncio.sleep(0.2)
    return found


@asynccontextmanager
async def reader_that_reads_nothing(server: Server, stream: str) -> AsyncIterator[None]:
    with socket.socket() as stalled:
        stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stalled.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(stalled, ("127.0.0.1", server.port))
        asked = f"GET /v1/stream/{stream}?offset=-1&live=sse HTTP/1.1\r\nhost: localhost\r\n\r\n"
        await loop.sock_sendall(stalled, asked.encode())
        await loop.sock_recv(stalled, 16)  # it is served
        yield


async def started(client: httpx.AsyncClient, asked: str) -> str:
    """The id of a run."""
    return str((await client.post("/v1/runs", json={"agent": "bot", "input": asked})).json()["id"])


@pytest.mark.server
async def test_a_run_that_hangs_and_a_reader_that_reads_nothing_set_off_their_alerts(
    tmp_path: Path, program: Callable[[str, str], str]
) -> None:
    server = Server("serve", tmp_path, "tests.agents_to_read:bot")
    await server.restart()
    try:
        async with (
            httpx.AsyncClient(base_url=server.url, timeout=30) as client,
            prometheus(program("prometheus", INSTALL), tmp_path, server) as api,
        ):
            text = {"content-type": "text/plain"}
            await client.put("/v1/stream/big", headers=text)
            done, run = [await started(client, asked) for asked in ("words", "hold")]
            await client.get(f"/v1/runs/{done}/events")  # to its end
            async with reader_that_reads_nothing(server, "big"):
                for _ in range(12):
                    appended = await client.post("/v1/stream/big", content=MEGABYTE, headers=text)
                    assert appended.status_code == 204
                stalls = {"HeadwaterRunsStalled", "HeadwaterReadersLag"}
                alerts = await until(lambda found: stalls <= found.keys(), api)
            assert alerts["HeadwaterRunsStalled"]["agent"] == "bot"
            assert alerts["HeadwaterReadersLag"]["instance"] == f"127.0.0.1:{server.port}"
            assert not {"HeadwaterDown", "HeadwaterRunsFail", "HeadwaterReconnectStorm"} & alerts.keys()
            nothing = {panel["title"] for panel in PANELS if not await _shows(api, panel)}
            assert nothing <= set(SILENT), nothing
            await client.post(f"/v1/runs/{run}/cancel")
            await until(lambda found: "HeadwaterRunsStalled" not in found, api)
            server.kill()
            await until(lambda found: "HeadwaterDown" in found, api)
    finally:
        if server.running:
            server.kill()


async def _shows(api: httpx.AsyncClient, panel: dict[str, Any]) -> bool:
    """Any of its queries has an answer; all of them are understood."""
    return any([await shown(api, target["expr"]) for target in panel["targets"]])
