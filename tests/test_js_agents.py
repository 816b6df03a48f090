"""The chat clients of the field, under node, read runs of a served agent: the matrix of clients and what befalls them.

Each client's script (tests/js-agents) runs all its cells in one process and says how each went.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import js_cells
import matrix
from real_server import Server, serving

pytestmark = pytest.mark.server

JS = Path(__file__).parent / "js-agents"
OURS = Path(__file__).parent.parent / "clients" / "js" / "dist" / "index.js"

SHARED = (
    "whole",
    "tool call",
    "history",
    "error in mid-stream",
    "cancel",
    "leaving stops nothing",
    "cut after each event",
    "ended after each event",
    "one event per connection",
    "late join",
    "two readers",
)
AI_SDK = (
    *SHARED,
    "nothing to resume",
    "resume in the same tab",
    "text stream",
    "bad request",
    "approval",
    "rolled up equals not rolled up",
)
CELLS = {
    "ai 7": ("ai-sdk.mjs", "7", AI_SDK),
    "ai 6": ("ai-sdk.mjs", "6", AI_SDK),
    "ai 5": ("ai-sdk.mjs", "5", AI_SDK),
    "ag-ui": (
        "ag-ui.mjs",
        "",
        (*SHARED, "the same run asked for otherwise", "approval", "rolled up equals not rolled up"),
    ),
    "tanstack": (
        "tanstack.mjs",
        "",
        (
            *SHARED,
            "broken behind its last event",
            "hydrated when all is over",
            "as lines, cut after each event",
            "nothing to hydrate",
            "approval",
            "rolled up equals not rolled up",
        ),
    ),
}
UPSTREAM = {
    ("ai 5", "resume in the same tab"): "it adds a replay to what it has already: vercel/ai#18457, #18107, #14688",
    ("tanstack", "broken behind its last event"): "it forgets that it has seen the end, and asks on: TanStack/ai#955",
}


def cells() -> Iterator[object]:
    for client, (_, _, names) in CELLS.items():
        for name in names:
            reason = UPSTREAM.get((client, name))
            marks = [pytest.mark.xfail(strict=True, reason=reason)] if reason else []
            marks += matrix.marks(client, name) if name in matrix.COLUMNS else []
            yield pytest.param(client, name, marks=marks, id=f"{client}: {name}")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving("serve", tmp_path_factory.mktemp("agents"), "tests.agents_to_read:bot") as started:
        yield started


@pytest.fixture(scope="module")
def went() -> dict[str, dict[str, str]]:
    """Client -> cell -> how it went; filled as clients are asked for."""
    return {}


def ran(node: str, server: Server, script: str, version: str, *only: str) -> dict[str, str]:
    return js_cells.ran([node, JS / script, server.url, version, *only])


@pytest.fixture
def node(program: Callable[[str, str], str]) -> str:
    """Where it is, and the clients are."""
    if not (JS / "node_modules").exists() or not OURS.exists():
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing("the clients are not installed, or ours is not built. To run this test: scripts/setup-servers")
    return program("node", "sudo apt-get install nodejs npm")


@pytest.mark.parametrize(("client", "cell"), list(cells()))
def test_client(client: str, cell: str, server: Server, went: dict[str, dict[str, str]], node: str) -> None:
    script, version, names = CELLS[client]
    if client not in went:
        went[client] = ran(node, server, script, version)
        assert tuple(went[client]) == names, "the script has other cells"
    assert went[client][cell] == "well", went[client][cell]


@pytest.mark.parametrize(
    "client", [pytest.param(client, marks=matrix.marks(client, "local model")) for client in CELLS]
)
def test_a_language_model_on_this_machine(client: str, local_model: Server, node: str) -> None:
    script, version, _ = CELLS[client]
    assert ran(node, local_model, script, version, "local model") == {"local model": "well"}
