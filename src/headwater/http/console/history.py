"""Figures of the past, as much as fits: each second of five minutes, each ten of an hour, each five minutes of a day.

Pure. Invariant: memory is bounded, however long the server runs (G9): some 950 rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

Fold = Literal["mean", "most"]

Row = list[float | None]
"""A time in seconds since 1970, and a figure each."""


class Figure(NamedTuple):
    """Something that is measured."""

    name: str
    fold: Fold = "mean"
    """What stands for several of them in a row of the past: `most` for what must not drown in a mean."""


STEPS: Final = ((1, 300), (10, 360), (300, 288))
"""(seconds of a row, rows): 5 minutes, 1 hour, 24 hours."""


class Ring:
    """The newest rows of one step."""

    def __init__(self, figures: Sequence[Figure], step: int, most: int) -> None:
        self.step, self.rows = step, deque[Row](maxlen=most)
        self._folds = [figure.fold for figure in figures]
        self._open: list[Row] = []

    def __repr__(self) -> str:
        return f"<Ring of {self.step} s [{len(self.rows)} rows]>"

    def add(self, row: Row) -> None:
        """One more second. Its row is there once a second of the next one comes: a row is never changed."""
        if self._open and _slot(self._open[0], self.step) != _slot(row, self.step):
            self.rows.append(self._folded())
            self._open.clear()
        self._open.append(row)

    def _folded(self) -> Row:
        at = _slot(self._open[0], self.step) * self.step
        columns = zip(*(row[1:] for row in self._open), strict=True)
        return [at, *(_fold(fold, column) for fold, column in zip(self._folds, columns, strict=True))]

    def all(self) -> list[Row]:
        """The rows, and what there is of the newest."""
        return [*self.rows, self._folded()] if self._open else list(self.rows)


def _slot(row: Row, step: int) -> int:
    assert row[0] is not None
    return int(row[0] // step)


def _fold(fold: Fold, column: Iterable[float | None]) -> float | None:
    known = [value for value in column if value is not None]
    if not known:
        return None
    return max(known) if fold == "most" else round(sum(known) / len(known), 3)


class History:
    """All rings of one server."""

    def __init__(self, figures: Sequence[Figure]) -> None:
        self._figures = tuple(figures)
        self._rings = [Ring(self._figures, step, most) for step, most in STEPS]

    def __repr__(self) -> str:
        return f"<History {self._rings!r}>"

    def add(self, at: float, sample: Mapping[str, float]) -> Row:
        """Keep what was measured at `at`, seconds since 1970; the row that it is. A figure may be missing."""
        row: Row = [round(at, 1), *(sample.get(figure.name) for figure in self._figures)]
        for ring in self._rings:
            ring.add(row)
        return row

    def told(self) -> dict[str, Any]:
        """The whole of it, as the first event of the feed says it."""
        rings = [{"step": ring.step, "rows": ring.all()} for ring in self._rings]
        return {"figures": [figure.name for figure in self._figures], "rings": rings}
