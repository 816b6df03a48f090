"""The rules of an idempotent producer, alone: no I/O, the time is given. The last test is a network at its worst."""

import json
import random

import pytest

from headwater.client import Batching, Unreachable
from headwater.client.batches import Batch, Batches, Lost, Reply
from headwater.errors import BadRequest, ProducerFenced, ProducerGap, StreamClosed

SOON = Batching(linger=0)


def batches(batching: Batching = SOON, *, claim: bool = False, epoch: int = 0, **given) -> Batches:
    return Batches("s", "p", epoch, claim=claim, batching=batching, pause=lambda n, asked: max(asked, 1.0 + n), **given)


def added(machine: Batches, *messages: bytes, now: float = 0.0) -> Batches:
    for data in messages:
        machine.add(data, now)
    return machine


def sent(machine: Batches, now: float = 0.0) -> Batch:
    batch = machine.next(now)
    assert batch is not None
    return batch


def stamp(machine: Batches, batch: Batch) -> tuple[str, str, bytes]:
    ask = machine.ask(batch)
    return ask.headers["producer-epoch"], ask.headers["producer-seq"], ask.content


def new(offset: str = "1", **headers: str) -> Reply:
    return Reply(200, {"stream-next-offset": offset} | said(headers), b"")


def known(**headers: str) -> Reply:
    return Reply(204, {"stream-next-offset": "1"} | said(headers), b"")


def refused(status: int, **headers: str) -> Reply:
    return Reply(status, said(headers), b"")


def said(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


LOST = Lost(Unreachable("the connection was lost"), sent=True)
NOBODY = Lost(Unreachable("nothing answers"), sent=False)


def settled(batching: Batching = SOON, **given) -> Batches:
    """A producer whose first batch is confirmed."""
    machine = added(batches(batching, **given), b"0")
    machine.hurry()
    machine.answered(sent(machine), new("0"), 0.0)
    return machine


# -- gathering --------------------------------------------------------------------------------------------------------


def test_messages_gather_until_the_oldest_has_lingered() -> None:
    machine = added(batches(Batching(linger=5)), b"1", now=10)
    added(machine, b"[2]", now=12)
    assert machine.next(14.9) is None
    assert machine.wakes() == 15
    assert stamp(machine, sent(machine, 15)) == ("0", "0", b"[1,[2]]")
    assert machine.next(99) is None


def test_a_full_batch_does_not_wait_and_is_never_larger_than_said() -> None:
    machine = added(settled(Batching(linger=0, max_bytes=10)), b"1" * 6, b"2" * 4, b"3", b"4" * 30, b"5")
    bodies = [machine.ask(sent(machine)).content for _ in range(4)]
    assert bodies == [b"[111111,2222]", b"[3]", b"[%s]" % (b"4" * 30), b"[5]"]
    machine = added(settled(Batching(linger=9, max_messages=2)), b"1", b"2", b"3", now=20)
    assert machine.ask(sent(machine, 20)).content == b"[1,2]"
    assert machine.next(20) is None


def test_bytes_are_joined() -> None:
    machine = added(batches(content_type="text/plain"), b"one ", b"two")
    ask = machine.ask(sent(machine))
    assert (ask.content, ask.headers["content-type"]) == (b"one two", "text/plain")


def test_while_all_slots_are_taken_the_next_batch_gathers() -> None:
    machine = settled(Batching(linger=0, in_flight=2))
    first, second = [sent(added(machine, b"%d" % n)) for n in (1, 2)]
    added(machine, b"3", b"4")
    assert machine.next(1) is None
    assert machine.wakes() is None
    machine.answered(second, new(), 1)
    assert machine.ask(sent(machine, 1)).content == b"[3,4]"
    assert first.seq == 1


def test_the_buffer_has_an_end_but_takes_the_largest_message() -> None:
    machine = batches(Batching(buffer=100))
    assert machine.has_room(b"x" * 1000)
    added(machine, b"x" * 30)
    assert not machine.has_room(b"")  # a message costs memory beside its bytes
    machine.hurry()
    machine.answered(sent(machine), new(), 0)
    assert machine.has_room(b"x")


def test_what_cannot_be_a_message_is_refused_at_once_and_changes_nothing() -> None:
    machine = batches()
    for value, error in ((b"{", BadRequest), ("", BadRequest), (object(), TypeError)):
        with pytest.raises(error):
            machine.encode(value)
    assert (machine.added, machine.failed) == (0, None)
    with pytest.raises(BadRequest, match="visible ASCII"):
        Batches("s", "ü", 0, claim=False, batching=SOON, pause=lambda *_: 0)
    with pytest.raises(BadRequest, match="at least 1"):
        Batching(in_flight=0)


# -- in order, once ---------------------------------------------------------------------------------------------------


def test_the_first_batch_goes_alone() -> None:
    machine = batches(Batching(linger=0, max_messages=1))
    added(machine, b"1", b"2")
    first = sent(machine)
    assert machine.next(0) is None
    machine.answered(first, new(), 0)
    assert stamp(machine, sent(machine)) == ("0", "1", b"[2]")


def test_a_batch_that_overtook_its_predecessor_is_sent_again_after_it() -> None:
    machine = settled()
    first, second, third = [sent(added(machine, b"%d" % n)) for n in (1, 2, 3)]
    gap = refused(409, producer_expected_seq="1", producer_received_seq="2")
    machine.answered(second, gap, 0)
    assert machine.next(0) is None
    assert machine.wakes() is None
    machine.answered(first, new(), 0)
    assert sent(machine) is second
    machine.answered(third, refused(409, producer_expected_seq="1", producer_received_seq="3"), 0)  # old news by now
    assert machine.next(0) is None
    machine.answered(second, new(), 0)
    assert sent(machine) is third
    machine.answered(third, new("9"), 0)
    assert (machine.confirmed, machine.idle, machine.offset) == (4, True, "9")


def test_a_server_that_forgot_what_it_confirmed_is_found_out() -> None:
    machine = settled()
    batch = sent(added(machine, b"1"))
    machine.answered(batch, refused(409, producer_expected_seq="0", producer_received_seq="1"), 0)
    assert isinstance(machine.failed, ProducerGap)
    assert machine.failed.detail == {"expected": 0, "received": 1, "unsent": 1}


def test_after_a_loss_everything_is_sent_again_in_order_and_nothing_new_before_it() -> None:
    machine = settled()
    lost = [sent(added(machine, b"%d" % n)) for n in (1, 2)]
    for batch in lost:
        machine.answered(batch, LOST, 10)
    added(machine, b"3", now=10)
    assert machine.next(10) is None
    assert machine.wakes() == 11
    assert sent(machine, 11) is lost[0]
    machine.answered(lost[0], known(producer_seq="2"), 11)
    assert sent(machine, 11) is lost[1]
    machine.answered(lost[1], known(producer_seq="2"), 11)
    assert stamp(machine, sent(machine, 11)) == ("0", "3", b"[3]")


def test_a_later_batch_confirms_the_earlier_ones() -> None:
    machine = settled()
    first, second = [sent(added(machine, b"%d" % n)) for n in (1, 2)]
    machine.answered(second, new("2"), 0)
    assert (machine.confirmed, machine.idle) == (3, True)
    machine.answered(first, refused(400), 0)  # whatever became of its answer
    assert machine.failed is None


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_what_may_pass_is_sent_again_after_the_pause_that_was_asked_for(status: int) -> None:
    machine = added(batches(), b"1")
    batch = sent(machine)
    machine.answered(batch, refused(status, retry_after="7"), 100)
    assert machine.next(106) is None
    assert machine.wakes() == 107
    machine.answered(sent(machine, 107), refused(status), 107)
    assert machine.wakes() == 109  # longer with each failure
    assert stamp(machine, sent(machine, 109)) == ("0", "0", b"[1]")


@pytest.mark.parametrize("status", [400, 401, 403, 404, 409, 410, 413])
def test_what_will_not_pass_is_for_good(status: int) -> None:
    machine = added(batches(Batching(linger=0, max_messages=1)), b"1", b"2")
    machine.answered(sent(machine), refused(status), 0)
    assert machine.failed is not None
    assert machine.failed.status == status
    assert machine.unsent == [b"1", b"2"]
    assert "2 messages of producer 'p' are not confirmed" in str(machine.failed)
    assert (machine.next(9), machine.wakes()) == (None, None)
    for _ in range(2):  # it is told every time
        with pytest.raises(type(machine.failed)):
            machine.add(b"3", 0)


def test_patience_has_an_end_and_a_confirmation_renews_it() -> None:
    machine = settled(Batching(linger=0, patience=10))
    batch = sent(added(machine, b"1"))
    machine.answered(batch, NOBODY, 100)
    machine.answered(sent(machine, 105), NOBODY, 109)
    machine.answered(sent(machine, 120), new(), 120)
    batch = sent(added(machine, b"2"))
    machine.answered(batch, NOBODY, 130)
    machine.answered(sent(machine, 139), NOBODY, 139.9)
    machine.answered(sent(machine, 150), LOST, 150)
    assert isinstance(machine.failed, Unreachable)
    assert str(machine.failed).endswith("1 messages of producer 'p' are not confirmed, 1 of them may have arrived")


def test_a_pause_that_is_asked_for_ends_with_our_patience() -> None:
    machine = added(batches(Batching(linger=0, patience=10)), b"1")
    machine.answered(sent(machine), refused(503, retry_after="3600"), 100)
    assert machine.wakes() == 110
    machine.answered(sent(machine, 110), refused(503, retry_after="3600"), 110)
    assert machine.failed is not None


# -- fencing ----------------------------------------------------------------------------------------------------------


def test_without_a_claim_an_older_epoch_is_fenced() -> None:
    machine = added(batches(), b"1")
    machine.answered(sent(machine), refused(403, producer_epoch="4"), 0)
    assert isinstance(machine.failed, ProducerFenced)
    assert machine.failed.detail == {"epoch": 4, "unsent": 1}
    assert "claim=True takes the id over" in str(machine.failed)


def test_a_claim_takes_the_next_epoch() -> None:
    machine = added(batches(claim=True), b"1")
    machine.answered(sent(machine), refused(403, producer_epoch="4"), 0)
    assert stamp(machine, sent(machine)) == ("5", "0", b"[1]")  # at once


def test_a_producer_that_has_written_gives_way_though_it_may_claim() -> None:
    machine = settled(claim=True)
    machine.answered(sent(added(machine, b"1")), refused(403, producer_epoch="1"), 0)
    assert isinstance(machine.failed, ProducerFenced)
    assert machine.unsent == [b"1"]
    assert "claim" not in str(machine.failed)  # who was superseded is not to fight for it


def test_no_claim_while_a_batch_may_have_arrived() -> None:
    machine = added(batches(claim=True), b"1")
    machine.answered(sent(machine), LOST, 0)
    machine.answered(sent(machine, 9), refused(403, producer_epoch="1"), 9)
    assert isinstance(machine.failed, ProducerFenced)
    assert "1 of them may have arrived" in str(machine.failed)


def test_a_batch_known_before_it_was_sent_is_somebody_elses() -> None:
    machine = added(batches(), b"1")
    machine.answered(sent(machine), known(), 0)
    assert isinstance(machine.failed, ProducerFenced)
    assert machine.unsent == [b"1"]
    claiming = added(batches(claim=True), b"1")
    claiming.answered(sent(claiming), known(), 0)
    assert stamp(claiming, sent(claiming)) == ("1", "0", b"[1]")
    doubtful = added(batches(), b"1")
    doubtful.answered(sent(doubtful), LOST, 0)
    doubtful.answered(sent(doubtful, 9), known(producer_seq="6"), 9)  # we never got that far
    assert isinstance(doubtful.failed, ProducerFenced)


def test_batches_that_only_wait_have_not_been_sent() -> None:
    """A former self wrote 0 to 6 in this epoch; here batch 0 is lost, and six more are full by then."""
    machine = added(batches(Batching(linger=0, max_messages=1)), b"1")
    first = sent(machine)
    added(machine, *[b"2"] * 6)
    machine.answered(first, LOST, 0)
    machine.answered(sent(machine, 9), known(producer_seq="6"), 9)
    assert isinstance(machine.failed, ProducerFenced)
    assert machine.confirmed == 0


def test_a_batch_known_after_a_lost_answer_is_ours() -> None:
    machine = added(batches(), b"1")
    machine.answered(sent(machine), LOST, 0)
    machine.answered(sent(machine, 9), known(producer_seq="0"), 9)
    assert (machine.confirmed, machine.failed) == (1, None)


# -- closing ----------------------------------------------------------------------------------------------------------


def test_closing_goes_with_the_last_batch_and_after_all_others() -> None:
    machine = settled(Batching(linger=9))
    added(machine, b"1")
    machine.hurry()
    first = sent(machine)
    added(machine, b"2")
    machine.close("completed")
    machine.close("failed")  # said once
    assert machine.next(0) is None
    machine.answered(first, new(), 0)
    last = sent(machine)
    ask = machine.ask(last)
    assert (ask.content, ask.headers["stream-closed"], ask.headers["stream-outcome"]) == (b"[2]", "true", "completed")
    with pytest.raises(BadRequest, match="closed"):
        machine.add(b"3", 0)
    machine.answered(last, LOST, 0)
    assert not machine.closed
    machine.answered(sent(machine, 9), known(stream_closed="true"), 9)
    assert (machine.closed, machine.idle, machine.confirmed) == (True, True, 3)


def test_closing_with_nothing_to_say() -> None:
    machine = batches()
    machine.close(None)
    batch = sent(machine)
    ask = machine.ask(batch)
    assert ask.content == b""
    assert "content-type" not in ask.headers
    machine.answered(batch, known(stream_closed="true"), 0)
    assert machine.closed
    other = batches()
    other.close(None)
    other.answered(sent(other), refused(409, stream_closed="true"), 0)  # somebody was faster
    assert other.closed
    third = batches()
    third.close(None)
    third.answered(sent(third), known(), 0)  # a duplicate of a batch that did not close
    assert isinstance(third.failed, ProducerFenced)


def test_messages_for_a_stream_that_another_closed_are_named() -> None:
    machine = added(batches(), b"1")
    machine.close(None)
    machine.answered(sent(machine), refused(409, stream_closed="true", stream_next_offset="7"), 0)
    assert isinstance(machine.failed, StreamClosed)
    assert (machine.failed.detail, machine.unsent) == ({"offset": "7", "unsent": 1}, [b"1"])


@pytest.mark.parametrize("seed", range(30))
def test_whatever_fails_each_message_counts_once_and_in_order(seed: int) -> None:
    """A server as the protocol has it, behind a network that loses requests, loses answers and changes their order."""
    chance = random.Random(seed)
    machine = batches(Batching(linger=0.5, max_messages=3, patience=1e9))
    log: list[int] = []
    last, closed = -1, False
    way: list[tuple[float, Batch]] = []
    now, number = 0.0, 0

    def serve(batch: Batch) -> Reply:
        nonlocal last, closed
        ask = machine.ask(batch)
        seq = int(ask.headers["producer-seq"])
        if seq <= last:
            return known(producer_seq=str(last), **({"stream_closed": "true"} if closed else {}))
        if seq != last + 1:
            return refused(409, producer_expected_seq=str(last + 1), producer_received_seq=str(seq))
        last, closed = seq, "stream-closed" in ask.headers
        log.extend(json.loads(ask.content or b"[]"))
        return new(str(len(log)), **({"stream_closed": "true"} if closed else {}))

    while not machine.closed:
        assert machine.failed is None, machine.failed
        assert now < 10_000
        if number < 200 and chance.random() < 0.7:
            machine.add(b"%d" % number, now)
            number += 1
        elif number == 200:
            machine.close(None)
        while (batch := machine.next(now)) is not None:
            way.append((now + chance.random(), batch))
        now += 0.1
        for arrival, batch in sorted(way, key=lambda one: one[0]):
            if arrival > now:
                continue
            way.remove((arrival, batch))
            fate = chance.random()
            if fate < 0.1:
                machine.answered(batch, NOBODY, now)
            elif fate < 0.15:
                machine.answered(batch, refused(503), now)
            else:
                reply = serve(batch)
                machine.answered(batch, LOST if fate < 0.3 else reply, now)
    assert log == list(range(200))
    assert machine.idle
