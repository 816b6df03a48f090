"""docs/performance.md is what bench/results give: every benchmark is on it, with its charts and what it is held to."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"


@pytest.fixture(autouse=True)
def _bench(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    monkeypatch.delenv("RESULTS", raising=False)


@pytest.fixture
def performance() -> ModuleType:
    return importlib.import_module("performance")


@pytest.fixture
def page() -> ModuleType:
    return importlib.import_module("rig.page")


def test_the_committed_page_is_what_the_results_give(performance: ModuleType) -> None:
    assert (DOCS / "performance.md").read_text() == performance.text(), "write it anew: bench/performance.py"


def test_the_committed_charts_show_the_figures(performance: ModuleType, page: ModuleType) -> None:
    wanted = {one.file: one for one in page.drawings(performance.QUESTIONS, performance.results())}
    assert wanted.keys() == {at.name for at in (DOCS / "charts").iterdir()}, "draw them anew: bench/performance.py"
    for file, drawing in wanted.items():
        drawn = (DOCS / "charts" / file).read_text()
        rows = drawing.rows if isinstance(drawing, page.Bars) else [(name, 0, name) for name in drawing.curves]
        assert all(f">{row[0]}<" in drawn and f">{row[2]}<" in drawn for row in rows), f"{file} shows other figures"


def test_every_benchmark_is_on_the_page(performance: ModuleType) -> None:
    programs = {at.stem for at in (ROOT / "bench").glob("*.py")} - {"performance"}
    assert programs <= {question.name for question in performance.QUESTIONS}
    results = performance.results()
    assert results.keys() <= programs
    for question in performance.QUESTIONS:
        if question.name in results:
            assert {view.case for view in question.views} == results[question.name]["measured"].keys()


def results(**rounds: list[float]) -> dict[str, Any]:
    measured = {name: [{"us": one} for one in each] for name, each in rounds.items()}
    return {"q": {"measured": {"c": measured}, "on": "2026-01-02", "machine": "A, 2 cores", "versions": {"nchan": "1"}}}


def shown(page: ModuleType, given: dict[str, Any], *bars: Any, less: bool = True) -> str:
    view = page.View("c", "the case", "us", page.per("us"), "peer", less=less, bars=bars)
    return str(page.page("head", [page.Question("q", "Q: why?", "Text.", [view])], given))


def test_a_question_is_told_with_table_chart_bars_and_machine(page: ModuleType) -> None:
    said = shown(
        page, results(peer=[4.0, 2.0, 9.0], headwater=[5.0]), page.Bar("At most 1.5 times it", "peer", most=1.5)
    )
    for line in (
        "| [Q: why?](#q-why), the case: at most 1.5 times it | 1.25 times | met |",
        "## Q: why?",
        "Text. ([`bench/q.py`](../bench/q.py))",
        "### The case",
        "| server | us | least to most | of peer's |",
        "| peer | 4.0 | 2.0 to 9.0 | 1.00 |",
        "| **headwater** | 5.0 | 5.0 to 5.0 | 1.25 |",
        "![us of each server](charts/q-1.svg)",
        "- At most 1.5 times it: met, 1.25 times.",
        "- Q: why?: 2026-01-02, A, 2 cores; nchan 1.",
    ):
        assert line in said.splitlines()


@pytest.mark.parametrize(
    ("bar", "less", "told"),
    [
        ({"peer": "peer", "most": 1}, True, "**missed**, 1.25 times. That."),
        ({"peer": "dear", "most": 1 / 3}, True, "met, 4.0 times less."),
        ({"peer": "dear", "most": 1 / 5}, True, "**missed**, 4.0 times less. That."),
        ({"peer": "*", "most": 1}, True, "**missed**, 1.25 times. That."),
        ({"peer": "*", "least": 1}, False, "**missed**, 0.25 times. That."),
        ({"peer": "peer", "least": 1}, False, "met, 1.25 times."),
        ({"most": 8}, True, "met, 5.0."),
        ({"most": 4}, True, "**missed**, 5.0. That."),
        ({"peer": "absent", "most": 1}, True, "not measured. That."),
        ({"ours": "headwater, absent", "most": 1}, True, "not measured. That."),
    ],
)
def test_a_bar_is_met_or_missed(page: ModuleType, bar: dict[str, Any], less: bool, told: str) -> None:
    given = results(peer=[4.0], headwater=[5.0], dear=[20.0])
    assert f"- So much: {told}" in shown(page, given, page.Bar("So much", holds="That.", **bar), less=less).splitlines()


def test_a_cost_over_a_number_is_a_curve_and_held_to_be_flat(page: ModuleType) -> None:
    rounds = [{"us": us, "n": n} for n, us in ((10, 2.0), (10, 4.0), (1000, 6.0), (1000, 6.0))]
    given = {"q": {"measured": {"c": {"headwater": rounds}}, "on": "", "machine": ""}}
    bars = (page.Bar("Flat", most=1.5), page.Bar("Not steep", most=2))
    view = page.View("c", "over n", "us", page.per("us"), over=page.per("n"), of="readers", bars=bars)
    questions = [page.Question("q", "Q", "", [view])]
    said = page.page("", questions, given).splitlines()
    assert "| us | 10 readers | 1,000 readers |" in said
    assert "| **headwater** | 3.0 | 6.0 |" in said
    assert {"- Flat: **missed**, 2.0.", "- Not steep: met, 2.0."} <= set(said)
    assert [one.curves for one in page.drawings(questions, given)] == [{"headwater": [(10, 3.0), (1000, 6.0)]}]


def test_a_curve_that_begins_at_nothing_is_not_flat(page: ModuleType) -> None:
    rounds = [{"us": us, "n": n} for n, us in ((0, 0.0), (10, 2.0))]
    given = {"q": {"measured": {"c": {"headwater": rounds}}, "on": "", "machine": ""}}
    view = page.View("c", "c", "us", page.per("us"), over=page.per("n"), of="readers", bars=(page.Bar("Flat", most=2),))
    assert "- Flat: **missed**, inf." in page.page("", [page.Question("q", "Q", "", [view])], given).splitlines()


def test_what_has_no_results_is_left_out(page: ModuleType) -> None:
    view = page.View("c", "c", "us", page.per("us"), "peer")
    questions = [page.Question("q", "Q", "", [view]), page.Question("never run", "N", "", [view])]
    assert "## N" not in page.page("", questions, results(peer=[1.0]))
    assert (
        list(page.drawings([page.Question("q", "Q", "", [page.View("other", "", "", page.per("us"))])], results()))
        == []
    )
