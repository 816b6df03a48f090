"""positions.py and Offset: where a reader that names an offset stands."""

import pytest

from headwater.errors import BadOffset, OffsetGone
from headwater.model import BEGINNING, Config, Head, Offset
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
