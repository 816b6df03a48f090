"""stores/agenda.py: whatever is due is found, nothing else is, and what moves on takes no more room."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from headwater.stores.agenda import SLACK, Agenda

CHANGES = st.lists(st.tuples(st.sampled_from("abcd"), st.none() | st.integers(0, 9)))


@given(st.lists(st.tuples(CHANGES, st.integers(0, 10))))
def test_whatever_is_due_is_found_and_nothing_else(steps):
    times: dict[str, int] = {}
    agenda = Agenda(times.get)
    for changes, now in steps:
        for name, at in changes:
            times.pop(name, None)
            if at is not None:
                times[name] = at
            agenda.note(name)
        for _ in range(2):  # and is found again, until it has been seen to
            assert sorted(agenda.due(now)) == sorted(name for name, at in times.items() if at <= now)


@given(CHANGES, st.integers(0, 10), st.integers(0, 4))
def test_a_look_may_end_before_all_was_found(changes, now, most):
    times: dict[str, int] = {}
    agenda = Agenda(times.get)
    for name, at in changes:
        times.pop(name, None)
        if at is not None:
            times[name] = at
        agenda.note(name)
    for _, _ in zip(range(most), agenda.due(now), strict=False):
        pass
    assert sorted(agenda.due(now)) == sorted(name for name, at in times.items() if at <= now)


def test_a_time_that_moves_later_without_being_noted_is_heard_of_when_the_old_one_comes():
    times = {"a": 10}
    agenda = Agenda(times.get)
    agenda.note("a")
    times["a"] = 20
    assert (list(agenda.due(10)), list(agenda.due(19)), list(agenda.due(20))) == ([], [], ["a"])


def test_memory_is_that_of_the_names_however_often_their_times_change():
    times: dict[str, int] = {}
    agenda = Agenda(times.get)
    for count in range(5 * SLACK):
        times["a"] = 10**9 - count
        times[f"s/{count}"] = 10**9
        agenda.note("a")
        agenda.note(f"s/{count}")
        del times[f"s/{count}"]
        agenda.note(f"s/{count}")
    assert len(agenda._queue) <= SLACK + 10
    assert list(agenda.due(10**9)) == ["a"]
    assert repr(agenda) == "<Agenda [0 to come, 1 have come]>"


def test_a_look_costs_what_is_due_and_not_what_there_is():
    asked = []

    def when(name):
        asked.append(name)
        return int(name)

    agenda = Agenda(when)
    for number in range(10_000):
        agenda.note(str(number))
    asked.clear()
    assert list(agenda.due(2)) == ["0", "1", "2"]
    assert len(asked) == 3
