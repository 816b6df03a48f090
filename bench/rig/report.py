"""What a benchmark says: the machine, a table of medians as ratios with their spread; and the same as JSON."""

from __future__ import annotations

import json
import math
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NamedTuple

REPOSITORY = Path(__file__).parents[2]
RESULTS = Path(os.environ.get("RESULTS") or REPOSITORY / "bench" / "results")
JS = {"tests/js": "@durable-streams/server", "bench/rig/apps": "better-sse"}
PROGRAMS = {
    "Node": ("node", "--version"),
    "nginx": ("/usr/sbin/nginx", "-v"),
    "nchan": ("dpkg-query", "-Wf${Version}", "libnginx-mod-nchan"),
    "Pushpin": ("pushpin", "--version"),
}


def machine() -> str:
    """Processor, cores, kernel, Python."""
    told = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in told if "model name" in line]
    processor = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    return f"{processor}, Linux {platform.release()}, Python {platform.python_version()}"


def versions() -> dict[str, str]:
    """Of what is measured, as far as it is here."""
    told = {}
    for package in ("headwater", "uvicorn", "starlette", "sse-starlette", "fastapi"):
        with suppress(PackageNotFoundError):
            told[package] = version(package)
    for where, package in JS.items():
        if (at := REPOSITORY / where / "node_modules" / package / "package.json").exists():
            told[package] = json.loads(at.read_text())["version"]
    for name, command in PROGRAMS.items():
        with suppress(OSError):
            said = subprocess.run(command, capture_output=True, text=True, check=False)
            if found := re.search(r"\d+[\d.]*\d", said.stdout + said.stderr):
                told[name] = found[0]
    return told


class Summary(NamedTuple):
    """Of one server's rounds."""

    median: float
    least: float
    most: float
    ratio: float
    """The median's, to the median of the server they are compared with."""


def summary(rows: Mapping[str, Sequence[float]], against: str) -> dict[str, Summary]:
    """Of each server's rounds; a ratio to a server that is not there is nan."""
    base = statistics.median(rows[against]) if against in rows else math.nan
    middles = {name: statistics.median(rounds) for name, rounds in rows.items()}
    return {name: Summary(middles[name], min(one), max(one), middles[name] / base) for name, one in rows.items()}


def table(rows: Mapping[str, Sequence[float]], unit: str, against: str) -> str:
    """Of each server: the median of its rounds, its ratio to `against`'s median, and the rounds."""
    lines = [f"| server | {unit} | of {against}'s | rounds |", "|---|---|---|---|"]
    for name, told in summary(rows, against).items():
        each = ", ".join(f"{value:,.1f}" for value in rows[name])
        lines.append(f"| {name} | {told.median:,.1f} | {told.ratio:.2f} | {each} |")
    return "\n".join(lines)


def keep(name: str, question: str, figures: Mapping[str, Any]) -> None:
    """Write `results/{name}.json`, from which `performance.py` writes the page. All benchmarks keep the same shape.

    `figures["measured"]` is {case: {server: [round, ...]}}. A round is what was measured, by its name: times, bytes and
    counts, not yet divided by each other. Where a cost is measured over a number (of readers, say), that number is in
    each round too, and a case has the rounds of all numbers.
    """
    RESULTS.mkdir(exist_ok=True, parents=True)
    here = {"machine": machine(), "versions": versions(), "on": time.strftime("%Y-%m-%d")}
    said = {"question": question, **here, **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")
