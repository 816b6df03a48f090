"""Gathers how the cells of the matrix went: `pytest -m cell --clients-table docs/clients.md` writes the page.

A pytest plugin, loaded by conftest. Knows the marks, not the clients.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path

import pytest

import matrix

COLLECTED = pytest.StashKey[set[matrix.Cell]]()
"""The cells that have a test in what was collected, also where the test is then not selected."""
WENT = pytest.StashKey[dict[matrix.Cell, matrix.Went]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--clients-table", metavar="FILE", help="write the table of clients from this run's results")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[WENT] = {}


def cells_of(item: pytest.Item) -> list[matrix.Cell]:
    return [mark.args for mark in item.iter_markers("cell")]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.stash[COLLECTED] = {cell for item in items for cell in cells_of(item)}


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    for cell in cells_of(item):
        note(item.config.stash[WENT], cell, report)
    return report


def note(went: dict[matrix.Cell, matrix.Went], cell: matrix.Cell, report: pytest.TestReport) -> None:
    """A cell is as its worst test: failed, not run, lacking, passed."""
    now: matrix.Went = "passed"
    if report.failed:
        now = "failed"
    elif hasattr(report, "wasxfail"):
        now = "lacking"
    elif report.skipped:
        now = "not run"
    elif report.when != "call":
        return
    worst: tuple[matrix.Went, ...] = ("failed", "not run", "lacking", "passed")
    went[cell] = min(went.get(cell, now), now, key=worst.index)


def pytest_sessionfinish(session: pytest.Session) -> None:
    path = session.config.getoption("--clients-table")
    if path:
        Path(path).write_text(matrix.page(session.config.stash[WENT]))
