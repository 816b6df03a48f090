"""docs/performance.md out of results: what was asked, the tables, the charts, and what ours is held to.

Pure: results in, text and what is to be drawn out. Which questions there are stands in `performance.py`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

from rig.report import Summary, summary

Round = Mapping[str, Any]
Value = Callable[[Round], float]
Result = Mapping[str, Any]
"""Of a benchmark, as `report.keep` wrote it."""

OURS = "headwater"


class Row(NamedTuple):
    """A server's bar in a chart."""

    name: str
    value: float
    label: str
    least: float
    most: float


class Limit(NamedTuple):
    """A line in a chart: what ours is held to."""

    value: float
    label: str


class Bars(NamedTuple):
    """A chart of servers side by side."""

    file: str
    unit: str
    rows: Sequence[Row]
    limit: Limit | None


class Lines(NamedTuple):
    """A chart of a cost over a number."""

    file: str
    unit: str
    of: str
    curves: Mapping[str, Sequence[tuple[float, float]]]


@dataclass(frozen=True)
class Bar:
    """What a figure of ours must be: at most, or at least, so many times a peer's, or just that."""

    text: str
    peer: str = ""
    """`*` is the best of all others; none: the figure itself is held."""
    most: float | None = None
    least: float | None = None
    ours: str = OURS
    holds: str = ""
    """What holds it, for as long as it is missed."""

    def value(self, told: Mapping[str, Summary], *, less: bool) -> float | None:
        """The ratio, or figure, that is held to the bar; None if one of the two was not measured."""
        others = [one.median for name, one in told.items() if not name.startswith(OURS)]
        if self.ours not in told or (self.peer and self.peer != "*" and self.peer not in told):
            return None
        if self.peer == "*" and not others:
            return None
        mine = told[self.ours].median
        if not self.peer:
            return mine
        return mine / ((min if less else max)(others) if self.peer == "*" else told[self.peer].median)

    def met(self, value: float) -> bool:
        return (self.most is None or value <= self.most) and (self.least is None or value >= self.least)

    def said(self, told: Mapping[str, Summary], *, less: bool) -> tuple[str, str]:
        """The figure, and whether that is enough."""
        value = self.value(told, less=less)
        if value is None:
            return "", "not measured"
        if not self.peer:
            figure = number(value)
        else:
            figure = f"{value:.2f} times" if value >= 1 or not less else f"{1 / value:.1f} times less"
        return figure, "met" if self.met(value) else "**missed**"


@dataclass(frozen=True)
class View:
    """One figure of the servers of one case: a table and a chart."""

    case: str
    title: str
    unit: str
    value: Value
    against: str = ""
    """Whose figure the ratios are to."""
    less: bool = True
    """Less is better."""
    columns: Mapping[str, Value] | None = None
    """More figures, for the table alone."""
    bars: Sequence[Bar] = ()
    over: Value | None = None
    """What the figure depends on: the chart is of lines, the table has a column for each."""
    of: str = ""
    """What `over` is called."""


@dataclass(frozen=True)
class Question:
    """A benchmark: `name` is that of its program and of its results."""

    name: str
    title: str
    text: str
    views: Sequence[View]


def number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 or value == 0 else f"{value:.1f}" if abs(value) >= 1 else f"{value:.2f}"


def figures(view: View, result: Result) -> dict[str, list[float]]:
    """Of each server, a figure for each round."""
    return {name: [view.value(one) for one in rounds] for name, rounds in result["measured"][view.case].items()}


def told(view: View, result: Result) -> dict[str, Summary]:
    """The same summed up, the best first."""
    against = view.against or next(iter(result["measured"][view.case]))
    summed = summary(figures(view, result), against)
    return dict(sorted(summed.items(), key=lambda one: one[1].median, reverse=not view.less))


def curves(view: View, result: Result) -> dict[str, list[tuple[float, float]]]:
    """Of each server, the median at each number that the figure depends on."""
    assert view.over is not None
    drawn = {}
    for name, rounds in result["measured"][view.case].items():
        at: dict[float, list[float]] = {}
        for one in rounds:
            at.setdefault(view.over(one), []).append(view.value(one))
        drawn[name] = [(x, statistics.median(at[x])) for x in sorted(at)]
    return drawn


def steepness(view: View, result: Result) -> dict[str, Summary]:
    """Of each server: how many times the least figure the greatest is. A scale law's bar is held to this.

    A least figure that is nothing, or less (a short measurement of a difference), says nothing of that: infinite.
    """
    heights = {name: [y for _, y in points] for name, points in curves(view, result).items()}
    ratios = {name: max(ys) / min(ys) if min(ys) > 0 else math.inf for name, ys in heights.items()}
    return {name: Summary(ratio, ratio, ratio, 1.0) for name, ratio in ratios.items()}


# -- drawing -----------------------------------------------------------------------------------------------------------


def drawings(questions: Sequence[Question], results: Mapping[str, Result]) -> Iterator[Bars | Lines]:
    for question, result in _answered(questions, results):
        for index, view in _shown(question, result):
            file = _file(question, index)
            if view.over is not None:
                yield Lines(file, view.unit, view.of, curves(view, result))
                continue
            summed = told(view, result)
            rows = [Row(name, one.median, number(one.median), one.least, one.most) for name, one in summed.items()]
            yield Bars(file, view.unit, rows, _limit(view, summed))


def _limit(view: View, summed: Mapping[str, Summary]) -> Limit | None:
    """The first bar, if it can be drawn."""
    for bar in view.bars[:1]:
        share = bar.most if bar.most is not None else bar.least
        if share is not None and (not bar.peer or bar.peer in summed):
            return Limit(share * summed[bar.peer].median if bar.peer else share, _lower(bar.text))
    return None


# -- writing -----------------------------------------------------------------------------------------------------------


def page(head: str, questions: Sequence[Question], results: Mapping[str, Result]) -> str:
    """The whole page; a question without results is left out."""
    answered = list(_answered(questions, results))
    parts = [head, *_summed_up(answered)]
    for question, result in answered:
        parts += [
            f"## {question.title}\n",
            f"{question.text} ([`bench/{question.name}.py`](../bench/{question.name}.py))\n",
        ]
        for index, view in _shown(question, result):
            parts += _view(question, index, view, result)
    return "\n".join([*parts, *_where(answered)])


def _answered(questions: Sequence[Question], results: Mapping[str, Result]) -> Iterator[tuple[Question, Result]]:
    """The questions of which something was measured."""
    for question in questions:
        if (result := results.get(question.name)) and any(_shown(question, result)):
            yield question, result


def _shown(question: Question, result: Result) -> Iterator[tuple[int, View]]:
    return ((index, view) for index, view in enumerate(question.views) if view.case in result["measured"])


def _file(question: Question, index: int) -> str:
    return f"{question.name}-{index + 1}.svg"


def _held(view: View, result: Result) -> Iterator[tuple[Bar, str, str]]:
    summed = told(view, result) if view.over is None else steepness(view, result)
    return ((bar, *bar.said(summed, less=view.less)) for bar in view.bars)


def _summed_up(answered: Sequence[tuple[Question, Result]]) -> Iterator[str]:
    yield "| what ours is held to | measured | |"
    yield "|---|---|---|"
    for question, result in answered:
        for _, view in _shown(question, result):
            for bar, figure, met in _held(view, result):
                link = f"[{question.title}](#{anchor(question.title)})"
                yield f"| {link}, {view.title}: {_lower(bar.text)} | {figure} | {met} |"
    yield ""


def _view(question: Question, index: int, view: View, result: Result) -> Iterator[str]:
    yield f"### {view.title[0].upper()}{view.title[1:]}\n"
    yield from _table(view, result) if view.over is None else _curve_table(view, result)
    yield f"\n![{view.unit} of each server](charts/{_file(question, index)})\n"
    for bar, figure, met in _held(view, result):
        holds = f" {bar.holds}" if bar.holds and met != "met" else ""
        yield f"- {bar.text}: {met}{f', {figure}' if figure else ''}.{holds}"
    if view.bars:
        yield ""


def _table(view: View, result: Result) -> Iterator[str]:
    summed, more = told(view, result), view.columns or {}
    against = view.against if view.against in summed else ""
    heads = ["server", view.unit, "least to most", *([f"of {against}'s"] if against else []), *more]
    yield "| " + " | ".join(heads) + " |"
    yield "|---|" + "--:|" * (len(heads) - 1)
    for name, one in summed.items():
        rounds = result["measured"][view.case][name]
        cells = [number(one.median), f"{number(one.least)} to {number(one.most)}"]
        cells += [f"{one.ratio:.2f}"] if against else []
        cells += [number(statistics.median(map(value, rounds))) for value in more.values()]
        yield f"| {_strong(name)} | " + " | ".join(cells) + " |"


def _curve_table(view: View, result: Result) -> Iterator[str]:
    drawn = curves(view, result)
    numbers = sorted({x for points in drawn.values() for x, _ in points})
    yield f"| {view.unit} | " + " | ".join(f"{x:,.0f} {view.of}" for x in numbers) + " |"
    yield "|---|" + "--:|" * len(numbers)
    for name, points in drawn.items():
        at = dict(points)
        yield f"| {_strong(name)} | " + " | ".join(number(at[x]) if x in at else "" for x in numbers) + " |"


def _where(answered: Sequence[tuple[Question, Result]]) -> Iterator[str]:
    """Machines, dates and versions: said once where they are the same."""
    titles: dict[str, list[str]] = {}
    for question, result in answered:
        versions = ", ".join(f"{name} {version}" for name, version in result.get("versions", {}).items())
        line = f"{result['on']}, {result['machine']}{f'; {versions}' if versions else ''}"
        titles.setdefault(line, []).append(question.title)
    yield "## Machine and versions\n"
    for line, named in titles.items():
        yield f"- {'; '.join(named)}: {line}."
    yield ""


def anchor(title: str) -> str:
    """Of a heading, as Markdown's readers make it."""
    return "".join(letter for letter in title.lower().replace(" ", "-") if letter.isalnum() or letter in "-_")


def _strong(name: str) -> str:
    return f"**{name}**" if name.startswith(OURS) else name


def _lower(text: str) -> str:
    return text[0].lower() + text[1:]


def per(field: str, scale: float = 1.0) -> Value:
    """A figure of a round as it stands there, in another unit."""
    return partial(_field, field, scale)


def _field(field: str, scale: float, one: Round) -> float:
    return float(one[field]) * scale


def ratio(over: str, under: str, scale: float = 1.0) -> Value:
    """One figure of a round by another."""
    return lambda one: float(one[over]) / float(one[under]) * scale if one[under] else float("nan")
