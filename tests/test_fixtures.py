"""The guards of conftest.py bite: shown by a run of pytest on tests that deserve to fail."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

GUILTY = """
import asyncio, time
import headwater, pytest

# Stands for a module of the library: what blocks is looked for by file name.
LIBRARY = compile("def block(): time.sleep(0.001)", headwater.__path__[0] + "/blocking.py", "exec")
exec(LIBRARY)

@pytest.fixture
async def worker():
    task = asyncio.create_task(asyncio.sleep(60))
    yield task
    task.cancel()

async def test_blocked():
    block()

def test_blocked_off_the_loop():
    block()

async def test_blocked_in_a_thread():
    await asyncio.to_thread(block)

async def test_left_behind():
    asyncio.create_task(asyncio.sleep(60), name="forgotten-one")

async def test_ended_by_its_fixture(worker):
    assert not worker.done()

async def test_ended():
    asyncio.create_task(asyncio.sleep(60)).cancel()
"""


def test_guards_bite_whom_they_should(tmp_path: Path) -> None:
    shutil.copy(Path(__file__).with_name("conftest.py"), tmp_path)
    (tmp_path / "test_guilty.py").write_text(GUILTY)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_mode = auto\naddopts = -rA -p no:cacheprovider\n")
    command = [sys.executable, "-m", "pytest", "-p", "pytest_asyncio.plugin"]
    environment = os.environ | {"CI": "", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # others take a second to import
    path = [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]  # conftest's own plugin is here
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, env=environment)
    results = {line.split(" - ")[0].replace("test_guilty.py::test_", "") for line in run.stdout.splitlines()}
    wanted = {"FAILED blocked", "PASSED blocked_off_the_loop", "PASSED blocked_in_a_thread", "PASSED left_behind"}
    wanted |= {"ERROR left_behind", "PASSED ended_by_its_fixture", "PASSED ended"}
    assert wanted <= results, run.stdout
    assert "1 failed, 5 passed, 1 error" in run.stdout
    assert "Blocking call to time.sleep" in run.stdout
    assert "tasks left behind" in run.stdout
    assert "forgotten-one" in run.stdout


def test_a_program_is_found(program: Callable[[str, str], str]) -> None:
    assert Path(program("sh", "")).is_file()


@pytest.mark.parametrize(("ci", "outcome"), [("", pytest.skip.Exception), ("true", pytest.fail.Exception)])
def test_a_missing_program_skips_or_fails_in_ci(
    program: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="apt-get install nothing"):
        program("no-such-program-anywhere", "apt-get install nothing")
