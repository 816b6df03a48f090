"""Clients under node: one script runs all cells of a client in one process, and says of each how it went."""

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path

from real_server import ENVIRONMENT

PATIENCE_SECONDS = 170  # more than all cells of a client may take


def ran(command: Sequence[str | Path]) -> dict[str, str]:
    """Cell -> "well", or what went wrong."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, env=ENVIRONMENT)
    lines = [json.loads(line) for line in done.stdout.split("\n") if line.startswith('{"cell":')]
    assert lines, f"{command[1]} said nothing:\n{done.stderr}"
    return {line["cell"]: line["went"] for line in lines}
