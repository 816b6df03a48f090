"""scripts/: what sets everything else up, on machines that are not like ours."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FIND_PYTHON = ROOT / "scripts" / "find-python"


def found(*names: str, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYENV_ROOT": "/nowhere"} | ({} if path is None else {"PATH": path})
    return subprocess.run([FIND_PYTHON, *names], capture_output=True, text=True, env=environment, check=False)


def test_a_python_in_a_folder_with_a_space_is_found(tmp_path: Path) -> None:
    python = tmp_path / "my programs" / "python3"
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    assert found(str(python)).stdout == f"{python}\n"


@pytest.mark.parametrize(
    ("named", "said"), [(("python9",), "python9 does not run, or is older"), ((), "apt-get install python3")]
)
def test_where_there_is_none_it_is_said(named: tuple[str, ...], said: str, tmp_path: Path) -> None:
    missing = found(*named, path=str(tmp_path))
    assert (missing.returncode, missing.stdout) == (1, "")
    assert said in missing.stderr


@pytest.mark.parametrize(
    ("told", "passed_on"),
    [
        ((), "demo PORT="),
        (("PORT=4600",), "demo PORT=4600"),
        (("PORT=4600", "HOST=::1"), "demo --host ::1 PORT=4600"),
    ],
)
@pytest.mark.parametrize("by", ["make", "environment"])
def test_make_demo_takes_a_port_and_a_host(told: tuple[str, ...], by: str, passed_on: str, tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    for name in ("Makefile", "scripts/demo"):
        shutil.copy(ROOT / name, tmp_path / name)
    for name, line in (("scripts/setup", 'echo "$PWD"'), ("headwater", 'echo "$*" "PORT=${PORT-}"')):
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if name not in ("PORT", "HOST")}
    environment = clean | (dict(pair.split("=", 1) for pair in told) if by == "environment" else {})
    command = ["make", "-s", "demo", *(told if by == "make" else ())]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == f"{passed_on}\n"


def test_every_target_of_make_is_one_whatever_lies_beside_it(tmp_path: Path) -> None:
    listed = subprocess.run(["make", "-s", "-C", ROOT, "help"], capture_output=True, text=True, check=True).stdout
    targets = [line.split()[1] for line in listed.splitlines()]
    assert {"demo", "docs", "test"} <= set(targets)
    for target in targets:
        planned = subprocess.run(["make", "-n", "-C", ROOT, target], capture_output=True, text=True, check=True).stdout
        assert f"scripts/{target}\n" in planned
        assert f"`make {target}`" in (ROOT / "CONTRIBUTING.md").read_text()
