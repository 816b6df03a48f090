"""positions.py and Offset: where a reader that names an offset stands."""

import pytest

from headwater.errors import BadOffset, OffsetGone
from headwater.model import BEGINNING, Config, Fork, Head, Offset, Segment
from headwater.positions import resolve

HEAD = Head(Config(), generation=3, tail=10, start=4)


@pytest.mark.parametrize(
    ("asked", "position"),
    [
        (None, 4),
        ("-1", 4),
        ("now", 10),
        ("0000000000000003_0000000000000004", 4),
        ("0000000000000003_0000000000000010", 10),
        (Offset(3, 7), 7),
    ],
)
def test_a_place_that_can_be_served_is_that_place(asked, position):
    assert resolve(HEAD, asked) == Offset(3, position)


@pytest.mark.parametrize("asked", [Offset(2, 10), Offset(2, 99), Offset(0, 1), Offset(3, 3), Offset(3, 0), BEGINNING])
def test_what_is_no_longer_there_is_gone(asked):
    for form in (asked, str(asked)):
        with pytest.raises(OffsetGone):
            resolve(HEAD, form)


@pytest.mark.parametrize(
    "asked",
    [
        Offset(3, 11),
        Offset(4, 0),
        "0000000000000003_0000000000000011",
        "",
        "0",
        "-2",
        "NOW",
        " now",
        "3_4",
        "0000000000000003_000000000000000４",
        "0000000000000003_0000000000000004\n",
        "0000000000000003-0000000000000004",
    ],
)
def test_what_never_was_an_offset_of_this_stream_is_bad(asked):
    with pytest.raises(BadOffset):
        resolve(HEAD, asked)


def test_the_beginning_is_good_for_every_stream_that_was_not_trimmed():
    assert resolve(Head(Config(), generation=3, tail=10), BEGINNING) == Offset(3, 0)
    assert resolve(Head(Config(), generation=0, tail=0), str(BEGINNING)) == Offset(0, 0)


def test_offsets_sort_alike_as_tuples_and_as_text():
    offsets = [Offset(g, p) for g in (0, 1, 9, 10) for p in (0, 9, 10, 99, 10**15)]
    assert offsets == sorted(offsets)
    assert sorted(map(str, offsets)) == [str(offset) for offset in offsets]
    assert [Offset.parse(str(offset)) for offset in offsets] == offsets


# -- forks (4.2) -------------------------------------------------------------------------------------------------------

FAMILY = (Segment("oldest", 5, 3), Segment("older", 7, 6), Segment("source", 6, 6))
FORK = Head(Config(), generation=9, tail=10, fork=Fork("source", 6, 0, 6, FAMILY, "claim"))


@pytest.mark.parametrize(
    ("asked", "position"),
    [
        (None, 0),
        (BEGINNING, 0),
        ("now", 10),
        (Offset(9, 2), 2),
        (Offset(9, 8), 8),
        (Offset(5, 0), 0),
        (Offset(5, 3), 3),
        (Offset(7, 2), 2),
        (Offset(7, 6), 6),
        (Offset(6, 6), 6),
    ],
)
def test_offsets_of_its_ancestors_are_good_for_a_fork_as_far_as_it_shares_them(asked, position):
    for form in (asked, str(asked)) if isinstance(asked, Offset) else (asked,):
        assert resolve(FORK, form) == Offset(9, position)


@pytest.mark.parametrize("asked", [Offset(5, 4), Offset(7, 7), Offset(6, 7), Offset(8, 1), Offset(4, 0)])
def test_what_an_ancestor_got_after_it_was_forked_is_not_the_fork_s(asked):
    with pytest.raises(OffsetGone):
        resolve(FORK, asked)
    with pytest.raises(BadOffset):
        resolve(FORK, Offset(10, 0))


def test_a_fork_is_trimmed_for_offsets_of_its_ancestors_too():
    head = Head(Config(), generation=9, tail=10, start=4, fork=FORK.fork)
    assert resolve(head, None) == resolve(head, Offset(7, 4)) == Offset(9, 4)
    for gone in (Offset(5, 3), Offset(7, 3), Offset(9, 3), BEGINNING):
        with pytest.raises(OffsetGone):
            resolve(head, gone)
    assert (FORK.first, head.first, Head(Config(), generation=9, start=8, fork=FORK.fork).first) == (6, 6, 8)
