"""Charts of results as SVG: bars for servers side by side, lines for a cost that depends on a number.

Readable on light and on dark: no background, text in a middle grey, ours in one colour and all others grey. Text stays
text, and the same figures give the same bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

from rig.page import OURS, Bars, Limit, Lines, Row

mpl.use("svg")
from matplotlib import pyplot as plt
from matplotlib.ticker import MaxNLocator

ACCENT = "#1f83d6"
PEER = "#9a9fa6"
TEXT = "#7b7f85"
WIDTH = 8.0
"""Inches, at 72 units each."""

STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "headwater",
    "font.family": "sans-serif",
    "font.sans-serif": [
        "system-ui",
        "Helvetica",
        "Arial",
        "DejaVu Sans",
    ],  # the last is matplotlib's own
    "font.size": 11,
    "text.color": TEXT,
    "axes.edgecolor": TEXT,
    "axes.labelcolor": TEXT,
    "xtick.color": TEXT,
    "ytick.color": TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
}


def colour(name: str) -> str:
    return ACCENT if name.startswith(OURS) else PEER


def draw(folder: Path, drawing: Bars | Lines) -> None:
    (bars if isinstance(drawing, Bars) else lines)(folder / drawing.file, *drawing[1:])


def bars(at: Path, unit: str, rows: Sequence[Row], limit: Limit | None = None) -> None:
    """One bar below the other, in the order given; a thin line from the least to the most of its rounds."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 0.75 + 0.36 * len(rows)))
        places = range(len(rows))
        axes.barh(places, [row.value for row in rows], height=0.62, color=[colour(row.name) for row in rows])
        for place, row in zip(places, rows, strict=True):
            axes.plot([row.least, row.most], [place, place], color=TEXT, linewidth=1.2, solid_capstyle="butt")
            axes.annotate(
                row.label, (max(row.value, row.most), place), xytext=(6, 0), textcoords="offset points", va="center"
            )
        axes.set_yticks(places, [row.name for row in rows])
        for tick, row in zip(axes.get_yticklabels(), rows, strict=True):
            ours = row.name.startswith(OURS)
            tick.set(color=ACCENT if ours else TEXT, fontweight="bold" if ours else "normal")
        axes.invert_yaxis()
        axes.set_xlim(0, 1.14 * max(max(row.value, row.most) for row in rows))
        axes.set_xlabel(unit, loc="left")
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.10g}")
        if limit is not None:
            axes.axvline(limit.value, color=TEXT, linestyle=(0, (4, 3)), linewidth=1)
            axes.annotate(
                limit.label, (limit.value, 1), xycoords=("data", "axes fraction"), xytext=(4, 2),
                textcoords="offset points", va="bottom", fontsize=9,
            )  # fmt: skip
        _save(figure, at)


def lines(at: Path, unit: str, of: str, curves: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """A curve for each server over `of`, on a logarithmic scale; its name stands at its end."""
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(figsize=(WIDTH, 3.6))
        for name, points in curves.items():
            xs, ys = zip(*sorted(points), strict=True)
            axes.plot(xs, ys, color=colour(name), marker="o", markersize=4, linewidth=2)
            axes.annotate(
                name, (xs[-1], ys[-1]), xytext=(8, 0), textcoords="offset points", va="center", color=colour(name)
            )
        numbers = sorted({x for points in curves.values() for x, _ in points})
        if numbers[0] > 0:
            axes.set_xscale("log")
        else:  # none at all is a number too: it stands a decade left of the least one
            axes.set_xscale("symlog", linthresh=next((x for x in numbers if x > 0), 1), linscale=1)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(of, loc="right")
        axes.set_ylabel(unit)
        axes.set_xticks(numbers)
        axes.minorticks_off()
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        _save(figure, at)


def _save(figure: Any, at: Path) -> None:
    at.parent.mkdir(exist_ok=True)
    figure.savefig(at, format="svg", transparent=True, bbox_inches="tight", pad_inches=0.05, metadata={"Date": None})
    plt.close(figure)
    at.write_text("\n".join(line.rstrip() for line in at.read_text().splitlines()) + "\n")
