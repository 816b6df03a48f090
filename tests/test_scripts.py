"""scripts/: what sets everything else up, on machines that are not like ours."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FIND_PYTHON = Path(__file__).parents[1] / "scripts" / "find-python"


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
