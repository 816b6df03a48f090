"""docs/clients.md is what the tests of clients show: every cell of it has a test, and says what that test has to show.

Each of those tests holds its own cell to it: one that passes fails when it does not work, one that does not work fails
when it does.
"""

import pytest

import matrix
from clients_table import COLLECTED, note


def test_the_committed_page_says_what_the_tests_hold() -> None:
    assert matrix.PAGE.read_text() == matrix.page(matrix.expected()), "write it anew: scripts/docs"


def test_every_cell_has_a_test(request: pytest.FixtureRequest) -> None:
    if request.config.args_source != pytest.Config.ArgsSource.TESTPATHS:
        pytest.skip("only a run of all files collects the tests of all cells")
    missing = set(matrix.cells()) - request.config.stash[COLLECTED]
    assert {cell for cell in missing if not ((told := matrix.note_of(*cell)) and told.untried)} == set()


def test_notes_are_of_cells_and_reasons_have_threads() -> None:
    for one in matrix.NOTES:
        assert set(one.clients) <= matrix.CLIENTS.keys()
        assert set(one.columns) <= matrix.COLUMNS.keys()
        assert all(matrix.THREAD.fullmatch(thread) for thread in one.threads)
        assert one.threads or not one.upstream
        assert one.text[-1] in ".:"
    told = [(client, column) for one in matrix.NOTES for client in one.clients for column in one.columns]
    assert len(told) == len(set(told)), "two notes of one cell"


def test_versions_are_pinned() -> None:
    for row in matrix.CLIENTS.values():
        assert not row.pinned or row.version.replace(".", "").isdigit(), row


def test_a_cell_is_as_its_worst_test() -> None:
    def report(outcome: str, when: str = "call", **more: object) -> pytest.TestReport:
        made = pytest.TestReport("t", ("t", 1, "t"), {}, outcome, None, when)  # type: ignore[arg-type]
        vars(made).update(more)
        return made

    went: dict[matrix.Cell, matrix.Went] = {}
    for told, then in [
        (report("passed", "setup"), None),
        (report("passed"), "passed"),
        (report("skipped", wasxfail="why"), "lacking"),
        (report("passed"), "lacking"),
        (report("skipped", "setup"), "not run"),
        (report("failed", "teardown"), "failed"),
        (report("passed"), "failed"),
    ]:
        note(went, ("useChat", "whole"), told)
        assert went.get(("useChat", "whole")) == then
    page = matrix.page(went)
    assert page.count("**failed**") == 1
    told = [matrix.note_of(*cell) for cell in matrix.cells()]
    untried = sum(note is not None and note.untried for note in told)
    assert page.count("**not run**") == len(told) - untried - 1


def test_what_is_no_cell_cannot_be_marked() -> None:
    with pytest.raises(KeyError, match="no cell"):
        matrix.cell("useChat", "flying")(object())
    with pytest.raises(KeyError, match="no cell"):
        matrix.marks("netscape", "whole")
