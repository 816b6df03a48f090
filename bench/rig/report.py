"""What a benchmark says: the machine, a table of medians as ratios with their spread; and the same as JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"


def machine() -> str:
    """Processor, cores, kernel, Python."""
    told = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in told if "model name" in line]
    processor = f"{names[0] if names else platform.machine()}, {os.cpu_count()} cores"
    return f"{processor}, Linux {platform.release()}, Python {platform.python_version()}"


def versions(*packages: str) -> dict[str, str]:
    return {package: version(package) for package in packages}


def table(rows: Mapping[str, Sequence[float]], unit: str, against: str) -> str:
    """Of each server: the median of its rounds, its ratio to `against`'s median, and the rounds."""
    base = statistics.median(rows[against])
    lines = [f"| server | {unit} | of {against}'s | rounds |", "|---|---|---|---|"]
    for name, rounds in rows.items():
        middle = statistics.median(rounds)
        each = ", ".join(f"{value:,.1f}" for value in rounds)
        lines.append(f"| {name} | {middle:,.1f} | {middle / base:.2f} | {each} |")
    return "\n".join(lines)


def keep(name: str, question: str, figures: Mapping[str, Any]) -> None:
    """Write `results/{name}.json`."""
    RESULTS.mkdir(exist_ok=True)
    said = {"question": question, "machine": machine(), "on": time.strftime("%Y-%m-%d"), **figures}
    (RESULTS / f"{name}.json").write_text(json.dumps(said, indent=1) + "\n")
