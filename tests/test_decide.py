"""decide.py: every rule of a stream, as a table. Section numbers are Durable Streams'."""

import itertools

import msgspec
import pytest

from headwater.decide import (
    MANY_PRODUCERS,
    MOST_PRODUCERS,
    PRODUCER_MEMORY_MS,
    Append,
    Create,
    ForkOf,
    Hold,
    Item,
    Stamp,
    Trim,
    Withdraw,
    decide,
    media_type,
)
from headwater.errors import (
    BadRequest,
    Conflict,
    ContentTypeMismatch,
    OffsetMismatch,
    ProducerFenced,
    ProducerGap,
    SequenceRegression,
    StreamClosed,
    StreamDeleted,
    StreamExists,
    StreamNotFound,
)
from headwater.model import BEGINNING, Absent, Config, Fork, Head, Offset, Producer, Retention, Segment

NOW = 1_700_000_000_000
TEXT = Config("text/plain")
ONE = (Item(b"1"),)


def made(*requests, config=TEXT, now=NOW):
    """The head after a creation and some more requests."""
    head = decide(Absent(7), Create(config), now).head
    for request in requests:
        head = decide(head, request, now).head
    return head


def stamped(epoch, number, /, *, close=False, items=ONE, producer="p", **more):
    return Append(items, stamp=Stamp(producer, epoch, number), close=close, **more)


# -- creating ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["text/plain\r\nx: y", "text/€", "a\x00b"])
def test_a_content_type_that_cannot_stand_in_a_header_is_refused(kind):
    with pytest.raises(BadRequest, match="plain ASCII"):
        decide(Absent(0), Create(Config(kind)), NOW)


def test_a_head_holds_so_many_producers_and_one_that_was_forgotten_is_told():
    head = made()
    known = {f"p{number}": Producer(0, 7, NOW + number) for number in range(MOST_PRODUCERS)}
    head = msgspec.structs.replace(head, producers=known)
    head = decide(head, stamped(0, 8, producer="p0"), NOW + 9_000).head
    assert len(head.producers) == MOST_PRODUCERS  # one that is known takes no more room
    head = decide(head, stamped(0, 0, producer="new"), NOW + 9_001).head
    assert len(head.producers) == MOST_PRODUCERS - MOST_PRODUCERS // 8 + 1
    assert {"p0", "new"} <= head.producers.keys()
    with pytest.raises(ProducerGap):
        decide(head, stamped(0, 8, producer="p1"), NOW + 9_002)


def test_a_stream_begins_in_the_generation_that_the_store_names():
    decision = decide(Absent(7), Create(TEXT, [Item(b"ab"), Item(b"", "k")], owner="i", labels={"l": "1"}), NOW)
    assert decision.what == "created"
    assert decision.changes
    assert [(m.data, m.offset, m.time, m.key) for m in decision.messages] == [
        (b"ab", Offset(7, 1), NOW, None),
        (b"", Offset(7, 2), NOW, "k"),
    ]
    head = decision.head
    assert (head.generation, head.version, head.start, head.tail, head.size) == (7, 1, 0, 2, 2)
    assert (head.created, head.touched, head.owner, head.labels) == (NOW, NOW, "i", {"l": "1"})
    assert head.offset == Offset(7, 2)
    assert not head.closed


def test_a_stream_may_be_born_closed_and_then_nobody_makes_it():
    head = decide(Absent(0), Create(TEXT, ONE, closed=True, outcome="completed", owner="i"), NOW).head
    assert (head.closed, head.outcome, head.owner, head.tail) == (True, "completed", None, 1)


def test_an_open_stream_has_no_outcome():
    assert decide(Absent(0), Create(TEXT, outcome="completed"), NOW).head.outcome is None


@pytest.mark.parametrize(
    ("has", "asked", "agree"),
    [
        (Create(TEXT), Create(TEXT), True),
        (Create(TEXT), Create(Config("TEXT/Plain; charset=utf-8")), True),
        (Create(TEXT), Create(Config("text/html")), False),
        (Create(Config("a/b", 5)), Create(Config("a/b", 5)), True),
        (Create(Config("a/b", 5)), Create(Config("a/b", 6)), False),
        (Create(Config("a/b", 5)), Create(Config("a/b")), False),
        (Create(Config("a/b", None, NOW + 9)), Create(Config("a/b", None, NOW + 9)), True),
        (Create(Config("a/b", None, NOW + 9)), Create(Config("a/b", None, NOW + 8)), False),
        (Create(TEXT, closed=True), Create(TEXT, closed=True), True),
        (Create(TEXT, closed=True), Create(TEXT), False),
        (Create(TEXT), Create(TEXT, closed=True), False),
        (Create(TEXT), Create(TEXT, ONE, owner="other", labels={"a": "b"}), True),
    ],
)
def test_creating_again_agrees_on_type_lifetime_and_closing_or_conflicts(has, asked, agree):
    """5.1"""
    head = decide(Absent(0), has, NOW).head
    if not agree:
        with pytest.raises(StreamExists):
            decide(head, asked, NOW)
        return
    decision = decide(head, asked, NOW)
    assert (decision.what, decision.changes, decision.messages) == ("exists", False, [])
    assert decision.head is head


# -- lifetime ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [Config("a/b", 5), Config("a/b", None, NOW + 5000)])
def test_a_stream_is_gone_to_the_millisecond(config):
    head = made(config=config)
    assert decide(head, Append(ONE), NOW + 4999).what == "appended"
    with pytest.raises(StreamNotFound):
        decide(head, Append(ONE), NOW + 5000)
    with pytest.raises(StreamNotFound):
        decide(head, Append(close=True), NOW + 5000)


def test_a_write_moves_a_sliding_end_and_no_absolute_one():
    sliding = decide(made(config=Config("a/b", 5)), Append(ONE), NOW + 3000).head
    assert sliding.expiry() == NOW + 8000
    fixed = decide(made(config=Config("a/b", None, NOW + 5000)), Append(ONE), NOW + 3000).head
    assert fixed.expiry() == NOW + 5000
    assert made().expiry() is None
    assert not made().expired(1 << 60)


def test_what_takes_the_place_of_an_expired_stream_is_another_generation():
    """G1"""
    head = made(Append(ONE), config=Config("a/b", 5))
    decision = decide(head, Create(TEXT, ONE), NOW + 5000)
    assert decision.what == "created"
    assert (decision.head.generation, decision.head.version, decision.head.offset) == (8, 1, Offset(8, 1))
    assert decision.head.config == TEXT
    assert decision.replaced is head
    assert decide(Absent(0), Create(TEXT), NOW).replaced is None


def test_there_is_no_appending_to_what_is_not_there():
    with pytest.raises(StreamNotFound):
        decide(Absent(0), Append(ONE), NOW)


# -- appending ---------------------------------------------------------------------------------------------------------


def test_an_append_makes_the_next_head_and_its_messages():
    head = made(Append([Item(b"12"), Item(b"3", "k")]))
    decision = decide(head, Append([Item(b"456")]), NOW + 1)
    assert (decision.what, decision.changes) == ("appended", True)
    assert [(m.data, m.offset, m.time) for m in decision.messages] == [(b"456", Offset(7, 3), NOW + 1)]
    after = decision.head
    assert (after.version, after.tail, after.size, after.touched, after.closed) == (3, 3, 6, NOW + 1, False)
    assert (after.created, after.config, after.generation) == (NOW, TEXT, 7)


def test_a_decision_leaves_the_head_it_was_made_on_alone():
    head = made(stamped(0, 0))
    before = msgspec.msgpack.encode(head)
    decide(head, stamped(0, 1, close=True, seq="x"), NOW + 9)
    assert msgspec.msgpack.encode(head) == before


@pytest.mark.parametrize("request_", [Append(), Append(content_type="text/plain"), stamped(0, 0, items=())])
def test_an_empty_append_is_a_mistake(request_):
    with pytest.raises(BadRequest):
        decide(made(), request_, NOW)


@pytest.mark.parametrize(
    ("given", "fits"),
    [
        (None, True),
        ("text/plain", True),
        ("TEXT/plain;charset=utf-8", True),
        (" text/plain ; x=y", True),
        ("text/html", False),
        ("", False),
    ],
)
def test_messages_are_of_the_stream_s_content_type(given, fits):
    request = Append(ONE, content_type=given)
    if fits:
        assert decide(made(), request, NOW).what == "appended"
    else:
        with pytest.raises(ContentTypeMismatch):
            decide(made(), request, NOW)


def test_only_closing_has_no_content_type():
    """5.3"""
    assert decide(made(), Append(content_type="x/y", close=True), NOW).head.closed


def test_media_types_are_compared_without_case_and_parameters():
    assert media_type("Text/HTML; Charset=x") == "text/html"
    assert media_type("") == ""


# -- idempotent producers (5.2.1) --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "seq", "result"),
    [
        (2, 4, "appended"),
        (2, 3, "duplicate"),
        (2, 0, "duplicate"),
        (2, 5, ProducerGap),
        (2, 2**53 - 1, ProducerGap),
        (1, 3, ProducerFenced),
        (1, 4, ProducerFenced),
        (0, 0, ProducerFenced),
        (3, 0, "appended"),
        (2**53 - 1, 0, "appended"),
        (3, 1, BadRequest),
        (3, 4, BadRequest),
    ],
)
def test_a_known_producer_counts_once_goes_on_or_is_fenced(epoch, seq, result):
    head = msgspec.structs.replace(made(), producers={"p": Producer(2, 3, NOW)})
    if not isinstance(result, str):
        with pytest.raises(result) as raised:
            decide(head, stamped(epoch, seq), NOW)
        assert type(raised.value) is result
        return
    decision = decide(head, stamped(epoch, seq), NOW + 5)
    assert decision.what == result
    if result == "appended":
        assert decision.head.producers["p"] == Producer(epoch, seq, NOW + 5)
    else:
        assert decision.head is head
        assert decision.messages == []


@pytest.mark.parametrize(("epoch", "seq", "fits"), [(0, 0, True), (9, 0, True), (0, 1, False), (9, 5, False)])
def test_an_unknown_producer_begins_at_nought(epoch, seq, fits):
    head = made(stamped(0, 0, producer="other"))
    if fits:
        assert decide(head, stamped(epoch, seq), NOW).head.producers["p"] == Producer(epoch, seq, NOW)
    else:
        with pytest.raises(ProducerGap) as raised:
            decide(head, stamped(epoch, seq), NOW)
        assert raised.value.detail == {"expected": 0, "received": seq}


def test_the_answers_hold_what_the_client_needs():
    head = msgspec.structs.replace(made(), producers={"p": Producer(2, 3, NOW)})
    with pytest.raises(ProducerFenced) as fenced:
        decide(head, stamped(1, 4), NOW)
    assert fenced.value.detail == {"epoch": 2}
    with pytest.raises(ProducerGap) as gap:
        decide(head, stamped(2, 9), NOW)
    assert gap.value.detail == {"expected": 4, "received": 9}


def test_producers_do_not_mind_each_other():
    head = made(stamped(0, 0), stamped(4, 0, producer="q"), stamped(0, 1), Append(ONE), stamped(4, 1, producer="q"))
    assert {name: (p.epoch, p.seq) for name, p in head.producers.items()} == {"p": (0, 1), "q": (4, 1)}
    assert head.tail == 5


def test_a_duplicate_is_one_whatever_else_it_says():
    """The body is not compared; a Stream-Seq that a retry repeats is no regression (checked after the producer)."""
    head = made(stamped(0, 0, seq="5"))
    assert decide(head, stamped(0, 0, items=(Item(b"other"), Item(b"more"))), NOW).what == "duplicate"
    assert decide(head, stamped(0, 0, seq="5"), NOW).what == "duplicate"
    assert decide(head, stamped(0, 0, seq="1"), NOW).what == "duplicate"


def test_a_refused_append_does_not_move_its_producer():
    head = made(stamped(0, 0, seq="5"))
    for refused in (stamped(0, 1, seq="5"), stamped(0, 1, content_type="x/y"), stamped(0, 1, items=())):
        with pytest.raises((SequenceRegression, ContentTypeMismatch, BadRequest)):
            decide(head, refused, NOW)
    assert decide(head, stamped(0, 1, seq="6"), NOW).what == "appended"


def test_silent_producers_are_forgotten_once_there_are_many():
    few = {f"p{number}": Producer(0, 0, NOW) for number in range(MANY_PRODUCERS - 1)}
    later = NOW + PRODUCER_MEMORY_MS
    head = decide(msgspec.structs.replace(made(), producers=few), stamped(0, 0), later).head
    assert len(head.producers) == MANY_PRODUCERS
    assert decide(head, stamped(0, 0, producer="q"), later - 1).head.producers.keys() == {*head.producers, "q"}
    assert decide(head, stamped(0, 0, producer="q"), later).head.producers.keys() == {"p", "q"}


# -- Stream-Seq (5.2) --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("last", "given", "fits"),
    [
        (None, "", True),
        (None, "0", True),
        ("1", "2", True),
        ("2", "2", False),
        ("2", "10", False),
        ("02", "10", True),
        ("a", "aa", True),
        ("aa", "a", False),
        ("Z", "a", True),
        ("z", "é", True),
        ("\uffff", "\U00010000", True),  # in UTF-16 it would be the other way round
        ("\U00010000", "\uffff", False),
    ],
)
def test_stream_seq_increases_byte_by_byte(last, given, fits):
    head = msgspec.structs.replace(made(), seq=last)
    if fits:
        assert decide(head, Append(ONE, seq=given), NOW).head.seq == given
    else:
        with pytest.raises(SequenceRegression):
            decide(head, Append(ONE, seq=given), NOW)


def test_an_append_without_stream_seq_leaves_it():
    assert made(Append(ONE, seq="5"), Append(ONE)).seq == "5"


# -- closing (5.3) -----------------------------------------------------------------------------------------------------


def test_an_append_that_closes_does_both_at_once():
    head = msgspec.structs.replace(made(), owner="i")
    decision = decide(head, Append(ONE, close=True, outcome="failed"), NOW)
    after = decision.head
    assert (decision.what, len(decision.messages)) == ("appended", 1)
    assert (after.closed, after.outcome, after.tail, after.owner, after.closed_by) == (True, "failed", 1, None, None)


def test_an_outcome_is_only_of_a_closing():
    assert made(Append(ONE, outcome="failed")).outcome is None


CLOSED = made(stamped(0, 0), stamped(0, 1, close=True, outcome="completed"))


@pytest.mark.parametrize(
    ("request_", "accepted"),
    [
        (Append(close=True), True),
        (Append(close=True, content_type="x/y"), True),
        (Append(close=True, outcome="failed"), True),
        (stamped(0, 1, close=True), True),
        (stamped(0, 1, close=True, items=()), True),
        (stamped(0, 1), True),
        (Append(ONE), False),
        (Append(ONE, close=True), False),
        (Append(), False),
        (stamped(0, 0), False),
        (stamped(0, 2), False),
        (stamped(0, 2, close=True), False),
        (stamped(1, 1, close=True), False),
        (stamped(0, 1, close=True, producer="q"), False),
        (stamped(0, 0, close=True, items=(), producer="q"), False),
        (Append(ONE, content_type="x/y"), False),
        (Append(ONE, seq="0"), False),
    ],
)
def test_a_closed_stream_takes_closing_again_and_the_retry_of_its_closing_and_nothing_else(request_, accepted):
    if accepted:
        decision = decide(CLOSED, request_, NOW)
        assert (decision.what, decision.head, decision.messages) == ("duplicate", CLOSED, [])
        assert decision.head.outcome == "completed"
    else:
        with pytest.raises(StreamClosed) as raised:
            decide(CLOSED, request_, NOW)
        assert raised.value.detail == {"offset": str(CLOSED.offset)}


def test_without_a_producer_a_closing_append_is_not_repeatable():
    head = made(Append(ONE, close=True))
    with pytest.raises(StreamClosed):
        decide(head, Append(ONE, close=True), NOW)


# -- precedence --------------------------------------------------------------------------------------------------------

WRONG = {
    "closed": StreamClosed,
    "type": ContentTypeMismatch,
    "producer": ProducerFenced,
    "seq": SequenceRegression,
}


@pytest.mark.parametrize(
    "wrong", [some for count in range(1, 5) for some in itertools.combinations(WRONG, count)], ids="+".join
)
def test_of_several_mistakes_the_first_in_order_is_answered(wrong):
    """Closed, then content type, then producer, then Stream-Seq (5.2, 5.3)."""
    head = msgspec.structs.replace(
        made(), seq="5", producers={"p": Producer(1, 0, NOW)}, closed="closed" in wrong, version=9
    )
    request = Append(
        ONE,
        content_type="x/y" if "type" in wrong else None,
        stamp=Stamp("p", 0 if "producer" in wrong else 1, 1),
        seq="4" if "seq" in wrong else "6",
    )
    with pytest.raises(next(error for name, error in WRONG.items() if name in wrong)):
        decide(head, request, NOW)


def test_an_expired_stream_is_not_there_before_it_is_anything_else():
    head = made(Append(close=True), config=Config("a/b", 1))
    with pytest.raises(StreamNotFound):
        decide(head, Append(ONE, content_type="x/y"), NOW + 1000)


def test_a_head_is_small_when_little_was_said():
    assert isinstance(made(), Head)
    assert len(msgspec.msgpack.encode(made())) < 120


def test_a_clock_that_is_set_back_does_not_end_a_stream_early():
    head = decide(Absent(0), Create(Config(ttl=10)), 100_000).head
    head = decide(head, Append([Item(b"x")]), 95_000).head
    assert head.expiry() == 110_000


# -- generations -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("before", "drawn", "made_in"),
    [
        (Absent(7), 0, 7),
        (Absent(7), 7, 7),
        (Absent(7), 9, 9),
        (Head(Config("a/b", 1), generation=7), 0, 8),
        (Head(Config("a/b", 1), generation=7), 7, 8),
        (Head(Config("a/b", 1), generation=7), 99, 99),
    ],
)
def test_a_drawn_generation_is_taken_unless_the_name_has_had_it(before, drawn, made_in):
    """G1"""
    assert decide(before, Create(TEXT), NOW, drawn).head.generation == made_in


@pytest.mark.parametrize(("drawn", "made_in"), [(0, 51), (50, 51), (51, 51), (99, 99)])
def test_a_fork_is_of_a_later_generation_than_its_family(drawn, made_in):
    fork = Fork("s", 3, 0, 3, (Segment("r", 40, 1), Segment("s", 50, 3)), "claim")
    decision = decide(Absent(7), Create(TEXT, ONE, fork_of=ForkOf("s"), fork=fork, start=1), NOW, drawn)
    assert [message.offset for message in decision.messages] == [Offset(made_in, 4)]
    head = decision.head
    assert (head.generation, head.start, head.first, head.tail, head.size, head.fork) == (made_in, 1, 3, 4, 1, fork)


# -- expected offsets --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expected", "carried_out"),
    [
        (Offset(7, 1), True),
        (Offset(7, 0), False),
        (Offset(7, 2), False),
        (Offset(6, 1), False),
        (Offset(8, 1), False),
        (BEGINNING, False),
    ],
)
def test_an_append_may_say_where_the_stream_has_to_end(expected, carried_out):
    head = made(Append(ONE))
    for request in (Append(ONE, expected=expected), Append(close=True, expected=expected)):
        if carried_out:
            assert decide(head, request, NOW).what == "appended"
        else:
            with pytest.raises(OffsetMismatch) as raised:
                decide(head, request, NOW)
            assert raised.value.detail == {"offset": str(Offset(7, 1))}


def test_the_beginning_is_where_an_empty_stream_ends():
    assert decide(made(), Append(ONE, expected=BEGINNING), NOW).what == "appended"
    assert decide(made(), Append(ONE, expected=Offset(7, 0)), NOW).what == "appended"
    with pytest.raises(OffsetMismatch):
        decide(msgspec.structs.replace(made(Append(ONE)), start=1), Append(ONE, expected=BEGINNING), NOW)


def test_a_repeated_append_is_one_although_the_stream_has_gone_on_by_it():
    first = Append(ONE, stamp=Stamp("p", 0, 0), expected=Offset(7, 0))
    head = made(first)
    assert decide(head, first, NOW).what == "duplicate"
    closing = Append(ONE, stamp=Stamp("p", 0, 1), close=True, expected=Offset(7, 1))
    closed = decide(head, closing, NOW).head
    assert decide(closed, closing, NOW).what == "duplicate"


def test_a_mismatch_does_not_move_its_producer():
    head = made(stamped(0, 0))
    with pytest.raises(OffsetMismatch):
        decide(head, stamped(0, 1, expected=Offset(7, 0)), NOW)
    assert decide(head, stamped(0, 1, expected=Offset(7, 1)), NOW).what == "appended"


# -- forks (4.2) -------------------------------------------------------------------------------------------------------

FORK = Fork("s", 2, 1, 3, (Segment("s", 5, 3),), "claim")
FORKED = decide(Absent(7), Create(Config("a/b", 60), fork_of=ForkOf("s", Offset(5, 2), 1), fork=FORK), NOW).head
SAME = Config("")


@pytest.mark.parametrize(
    ("asked", "agree"),
    [
        (Create(SAME, fork_of=ForkOf("s", Offset(5, 2), 1)), True),
        (Create(SAME, fork_of=ForkOf("s", None, 1)), True),
        (Create(Config("a/b", 60), fork_of=ForkOf("s", Offset(5, 2), 1)), True),
        (Create(SAME, fork_of=ForkOf("s", Offset(5, 2))), False),
        (Create(SAME, fork_of=ForkOf("s", Offset(5, 3))), False),
        (Create(SAME, fork_of=ForkOf("s", Offset(5, 1), 1)), False),
        (Create(SAME, fork_of=ForkOf("other", Offset(5, 2), 1)), False),
        (Create(Config("x/y"), fork_of=ForkOf("s", Offset(5, 2), 1)), False),
        (Create(Config("", 61), fork_of=ForkOf("s", Offset(5, 2), 1)), False),
        (Create(Config("", None, NOW + 1), fork_of=ForkOf("s", Offset(5, 2), 1)), False),
        (Create(Config("", retention=Retention(messages=1)), fork_of=ForkOf("s", Offset(5, 2), 1)), False),
        (Create(SAME, closed=True, fork_of=ForkOf("s", Offset(5, 2), 1)), False),
        (Create(Config("a/b", 60)), False),
    ],
)
def test_forking_again_agrees_on_where_and_what_or_conflicts(asked, agree):
    if agree:
        assert decide(FORKED, asked, NOW).what == "exists"
    else:
        with pytest.raises(StreamExists):
            decide(FORKED, asked, NOW)


def test_a_stream_that_is_no_fork_agrees_with_no_forking():
    with pytest.raises(StreamExists):
        decide(made(), Create(SAME, fork_of=ForkOf("s")), NOW)


def test_a_fork_that_nobody_found_possible_is_not_made():
    with pytest.raises(StreamNotFound):
        decide(Absent(7), Create(SAME, fork_of=ForkOf("s")), NOW)


def test_a_stream_that_is_to_be_forked_is_held():
    head = made(Append(ONE, close=True))
    decision = decide(head, Hold(), NOW)
    assert (decision.what, decision.messages) == ("held", [])
    assert decision.head == msgspec.structs.replace(head, version=head.version + 1, forked=1)
    assert decide(decision.head, Hold(), NOW).head.forked == 2


def test_retention_is_agreed_on_only_where_it_is_said():
    head = decide(Absent(0), Create(Config("a/b", retention=Retention(messages=5))), NOW).head
    assert decide(head, Create(Config("a/b")), NOW).what == "exists"
    assert decide(head, Create(Config("a/b", retention=Retention(messages=5))), NOW).what == "exists"
    for other in (Retention(messages=6), Retention(bytes=5)):
        with pytest.raises(StreamExists):
            decide(head, Create(Config("a/b", retention=other)), NOW)


# -- soft deletion (4.2) -----------------------------------------------------------------------------------------------

KEPT = msgspec.structs.replace(made(stamped(0, 0), config=Config("a/b", 5)), forked=1, owner="i")
WITHDRAWN = decide(KEPT, Withdraw(7, NOW + 9), NOW + 1).head


def test_what_is_withdrawn_keeps_its_messages_and_its_name_and_nothing_else():
    assert (WITHDRAWN.deleted, WITHDRAWN.look, WITHDRAWN.owner, WITHDRAWN.producers) == (NOW + 1, NOW + 9, None, {})
    assert (WITHDRAWN.tail, WITHDRAWN.offset, WITHDRAWN.version) == (KEPT.tail, KEPT.offset, KEPT.version + 1)
    assert WITHDRAWN.expiry() is None
    again = decide(WITHDRAWN, Withdraw(7, NOW + 99), NOW + 50).head
    assert (again.deleted, again.look) == (NOW + 1, NOW + 99)


def test_one_that_has_expired_is_withdrawn_too_and_no_other_of_its_name():
    assert decide(KEPT, Withdraw(7, NOW), NOW + 5_000).what == "withdrawn"
    for before in (Absent(9), msgspec.structs.replace(KEPT, generation=8), msgspec.structs.replace(KEPT, generation=6)):
        with pytest.raises(StreamNotFound):
            decide(before, Withdraw(7, NOW), NOW)


@pytest.mark.parametrize("later", [0, 10_000_000])
@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Append(ONE), StreamDeleted),
        (Append(close=True), StreamDeleted),
        (stamped(0, 0), StreamDeleted),
        (Append(), StreamDeleted),
        (Trim(KEPT, 1, 1, None), StreamDeleted),
        (Create(Config("a/b", 5)), StreamExists),
        (Create(SAME, fork_of=ForkOf("s")), StreamExists),
        (Hold(), Conflict),
    ],
)
def test_a_withdrawn_stream_takes_nothing_however_long_it_is_kept(request_, error, later):
    with pytest.raises(error) as raised:
        decide(WITHDRAWN, request_, NOW + later)
    assert type(raised.value) is error


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (Create(TEXT), StreamExists),
        (Append(ONE), StreamNotFound),
        (Hold(), StreamNotFound),
        (Trim(KEPT, 1, 1, None), StreamNotFound),
    ],
)
def test_a_stream_that_expired_while_forks_may_need_it_is_not_replaced(request_, error):
    with pytest.raises(error) as raised:
        decide(KEPT, request_, NOW + 5_000)
    assert type(raised.value) is error


@pytest.mark.parametrize("request_", [Append(ONE), Hold(), Withdraw(0, 0), Trim(KEPT, 1, 1, None)])
def test_what_is_not_there_is_neither_held_nor_trimmed_nor_withdrawn(request_):
    with pytest.raises(StreamNotFound):
        decide(Absent(0), request_, NOW)


# -- trimming ----------------------------------------------------------------------------------------------------------

LONG = made(Append((Item(b"12"), Item(b"345"), Item(b"6"), Item(b""))))


def test_a_trim_moves_the_start_and_counts_what_is_gone():
    head = msgspec.structs.replace(LONG, look=NOW)
    decision = decide(head, Trim(head, 2, 5, NOW + 9), NOW)
    assert (decision.what, decision.messages, decision.changes) == ("trimmed", [], True)
    wanted = msgspec.structs.replace(head, version=head.version + 1, start=2, trimmed=5, look=NOW + 9)
    assert decision.head == wanted
    last = decide(wanted, Trim(wanted, 4, 1, None), NOW).head
    assert (last.start, last.first, last.tail, last.size, last.trimmed, last.look) == (4, 4, 4, 6, 6, None)


def test_a_trim_of_nothing_says_when_to_look_next():
    decision = decide(LONG, Trim(LONG, 0, 0, NOW + 9), NOW)
    assert (decision.what, decision.changes, decision.head.look) == ("noted", True, NOW + 9)


@pytest.mark.parametrize(
    ("changed", "start", "has_effect"),
    [
        ({"tail": 9}, 2, True),
        ({"closed": True}, 2, True),
        ({"version": 99}, 2, True),
        ({"tail": 9}, 0, False),
        ({"start": 1}, 2, False),
        ({"forked": 1}, 2, False),
        ({"generation": 8}, 2, False),
    ],
)
def test_a_trim_is_of_the_stream_as_it_was_found(changed, start, has_effect):
    head = msgspec.structs.replace(LONG, **changed)
    decision = decide(head, Trim(LONG, start, 0, None), NOW)
    assert decision.changes == has_effect
    assert decision.head.start == (start if has_effect else head.start)


# --- whose it is -----------------------------------------------------------------------------------------------------


def test_an_append_may_say_who_makes_the_stream_from_there_on():
    head = decide(Absent(0), Create(owner="i_1"), NOW).head
    assert decide(head, Append(ONE), NOW).head.owner == "i_1"
    assert decide(head, Append(ONE, owner="i_2"), NOW).head.owner == "i_2"
    assert decide(head, Append(ONE, owner=""), NOW).head.owner is None
    nobodys = decide(head, Append(ONE, owner=""), NOW).head
    assert decide(nobodys, Append(ONE), NOW).head.owner is None
    assert decide(nobodys, Append(ONE, owner="i_3"), NOW).head.owner == "i_3"
    assert decide(head, Append(ONE, owner="i_2", close=True), NOW).head.owner is None
