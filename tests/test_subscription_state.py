"""subscriptions/state.py, decisions.py, globs.py and tokens.py: what a subscription is and what is to happen to it."""

import copy
import re
from itertools import product

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.model import Config, Fork, Head, Segment
from headwater.subscriptions import decisions, globs, tokens
from headwater.subscriptions.decisions import Proof, Sight
from headwater.subscriptions.refusals import (
    AlreadyClaimed,
    Fenced,
    InvalidOffset,
    InvalidRequest,
    NoPendingWork,
    TokenExpired,
    TokenInvalid,
)
from headwater.subscriptions.state import (
    Acked,
    Claimed,
    Delivered,
    Ended,
    Failed,
    Link,
    Linked,
    Sent,
    Snapshot,
    State,
    Terms,
    Unlinked,
    Woken,
    apply,
    decode,
    encode,
    reserved,
)

NOW = 1_700_000_000_000
PULL = Terms("pull-wake", pattern="mail/*", wake_stream="wake")
HOOK = Terms("webhook", pattern="mail/*", url="https://hooks.example/x")


def head(tail, generation=1, **more):
    return Head(Config(), generation, tail=tail, **more)


def at(position, generation=1):
    return f"{generation:016d}_{position:016d}"


class Case:
    """A state, and the streams and the time it is in."""

    def __init__(self, terms=PULL, links=None, **heads):
        self.state = State("s", terms, NOW, "http://here/v1/stream", "00" * 32, links or {})
        self.heads = {f"mail/{name}": head(tail) for name, tail in heads.items()}
        self.now, self.wakes = NOW, 0

    def sight(self):
        self.wakes += 1
        return Sight(self.heads, self.now, f"w{self.wakes}")

    def do(self, decision, *args, **more):
        """Decide and apply; the names of the events."""
        events = decision(self.state, *args, sight=self.sight(), **more)
        return self.take(events)

    def take(self, events):
        for event in events:
            assert decode(encode(event)) == event
            self.state = apply(self.state, copy.deepcopy(event))
        return [type(event).__name__.lower() for event in events]

    def look(self, *names):
        return self.do(decisions.looked, names=[f"mail/{name}" for name in names])

    @property
    def proof(self):
        return Proof(self.state.wake.id, self.state.generation, self.state.generation)


def awake(terms=PULL):
    case = Case(terms, a=1)
    assert case.look("a") == ["linked", "woken"]
    return case


# -- membership -------------------------------------------------------------------------------------------------------


def test_streams_that_are_there_already_start_at_their_tail():
    case = Case(msgspec.structs.replace(PULL, streams=("mail/b", "other", "later")), a=3, b=2)
    case.heads |= {"other": head(5), "unrelated": head(1), "mail/x/y": head(1)}
    case.state = decisions.begun(case.state, case.heads)
    assert case.state.links == {
        "mail/a": Link(at(3)),
        "mail/b": Link(at(2), explicit=True),
        "other": Link(at(5), explicit=True),
        "later": Link(at(0, 0), explicit=True),
    }
    assert case.look() == [], "what was before is nobody's work"


def test_a_stream_found_by_the_pattern_is_pending_from_its_beginning():
    case = Case(a=2)
    assert case.look("a") == ["linked", "woken"]
    assert case.state.links == {"mail/a": Link("-1")}
    assert case.state.wake.tails == {"mail/a": at(2)}
    assert decisions.infos(case.state, case.state.wake.tails) == [
        {"path": "mail/a", "link_type": "glob", "acked_offset": "-1", "tail_offset": at(2), "has_pending": True}
    ]


def test_what_the_pattern_does_not_mean_is_not_linked():
    case = Case(msgspec.structs.replace(PULL, pattern="**"))
    names = ["headwater/x", "__ds/x", "__ds", "wake"]
    case.heads = {name: head(1) for name in names}
    assert case.take(decisions.looked(case.state, names, case.sight())) == []
    assert [reserved(name) for name in names] == [True, True, True, False]


def test_an_empty_stream_is_no_work():
    case = Case(a=0)
    assert case.look("a") == ["linked"]
    assert case.state.wake is None
    case.heads["mail/a"] = head(1)
    assert case.look() == ["woken"]


def test_explicit_streams_come_and_go_and_leave_the_patterns_link():
    case = Case(a=1)
    case.look("a")
    assert case.do(decisions.added, names=["mail/a", "x"]) == ["linked"]
    assert case.state.links == {"mail/a": Link("-1", explicit=True), "x": Link(at(0, 0), explicit=True)}
    assert case.do(decisions.added, names=["mail/a"]) == []
    assert case.take(decisions.removed(case.state, "mail/a")) == ["linked"]
    assert case.take(decisions.removed(case.state, "x")) == ["unlinked"]
    assert case.take(decisions.removed(case.state, "x")) == []
    assert case.take(decisions.removed(case.state, "mail/a")) == []
    assert case.state.links == {"mail/a": Link("-1")}


def test_a_deleted_stream_leaves_and_one_that_is_awaited_stays():
    links = {"mail/a": Link(at(1)), "mail/b": Link("-1"), "x": Link(at(0, 0), True), "y": Link(at(2), True)}
    case = Case(links=links, c=1)
    assert case.look("c") == ["linked", "unlinked", "woken"]
    assert set(case.state.links) == {"x", "mail/c"}


def test_a_stream_made_anew_under_its_name_is_pending_again():
    case = Case(links={"mail/a": Link(at(9))}, a=9)
    assert case.look() == []
    case.heads["mail/a"] = head(1, generation=2)
    assert case.look() == ["woken"]


def test_links_are_bounded(monkeypatch):
    monkeypatch.setattr(decisions, "MOST_LINKS", 2)
    case = Case(a=1, b=1, c=1)
    case.look("a", "b", "c")
    assert set(case.state.links) == {"mail/a", "mail/b"}
    with pytest.raises(InvalidRequest, match="at most 2 streams"):
        case.do(decisions.added, names=["x"])
    with pytest.raises(InvalidRequest, match="narrower pattern"):
        decisions.begun(Case().state, case.heads)


# -- wakes ------------------------------------------------------------------------------------------------------------


def test_there_is_one_wake_at_a_time():
    case = awake()
    case.heads["mail/b"] = head(1)
    assert case.look("b") == ["linked"]
    assert (case.state.generation, case.state.wake.id) == (1, "w1")


def test_a_claim_ends_by_done_and_the_next_wake_follows_if_there_is_more():
    case = awake()
    case.take([Delivered(None)])
    assert case.do(decisions.claimed, "me") == ["claimed"]
    assert (case.state.wake.holder, case.state.due()) == ("me", NOW + 30_000)
    case.heads["mail/a"] = head(2)
    assert case.do(decisions.acked, case.proof, {"mail/a": at(1)}, done=True) == ["acked", "ended", "woken"]
    assert (case.state.generation, case.state.wake.holder) == (2, None)
    case.do(decisions.claimed, "me")
    assert case.do(decisions.acked, case.proof, {"mail/a": at(2)}, done=True) == ["acked", "ended"]
    assert case.state.wake is None
    assert case.state.links["mail/a"].acked == at(2)


def test_who_holds_a_claim_is_told_to_others():
    case = awake()
    case.do(decisions.claimed, "me")
    with pytest.raises(AlreadyClaimed) as refused:
        case.do(decisions.claimed, "you")
    assert refused.value.detail == {"current_holder": "me", "generation": 1}


def test_a_lapsed_claim_can_be_taken_over_with_a_new_generation():
    case = awake()
    case.do(decisions.claimed, "me")
    old = case.proof
    case.now += 30_000
    assert case.do(decisions.claimed, "you") == ["woken", "claimed"]
    assert case.state.generation == 2
    with pytest.raises(Fenced):
        case.do(decisions.acked, old, {}, done=True)


def test_nothing_can_be_claimed_where_there_is_nothing_to_do():
    case = Case(links={"mail/a": Link(at(1))}, a=1)
    with pytest.raises(NoPendingWork):
        case.do(decisions.claimed, "me")
    case.heads["mail/a"] = head(2)
    assert case.do(decisions.claimed, "me") == ["woken", "claimed"], "work that nobody was woken for yet"
    with pytest.raises(InvalidRequest, match="webhook subscription"):
        awake(HOOK).do(decisions.claimed, "me")


def test_a_wake_whose_streams_were_deleted_keeps_nobody_waiting():
    case = awake()
    case.heads.clear()
    assert case.do(decisions.claimed, "me") == ["ended"]
    case.heads["mail/b"] = head(1)
    assert case.look("b") == ["linked", "unlinked", "woken"]


def test_release_wakes_again():
    case = awake()
    case.do(decisions.claimed, "me")
    proof = case.proof
    assert case.do(decisions.released, proof) == ["ended", "woken"]
    with pytest.raises(Fenced):
        case.do(decisions.released, proof)


@pytest.mark.parametrize("change", [{"wake_id": "other"}, {"generation": 2}, {"token_generation": 2}])
def test_a_worker_acts_on_the_wake_that_there_is(change):
    case = awake()
    case.do(decisions.claimed, "me")
    with pytest.raises(Fenced):
        case.do(decisions.acked, case.proof._replace(**change), {}, done=False)
    with pytest.raises(Fenced):
        case.do(decisions.released, case.proof._replace(**change))


def test_an_ack_without_done_extends_the_lease():
    case = awake()
    case.do(decisions.claimed, "me")
    case.now += 29_000
    assert case.do(decisions.acked, case.proof, {}, done=False) == ["acked"]
    assert case.state.due() == case.now + 30_000


@pytest.mark.parametrize(
    ("offsets", "said"),
    [
        ({"mail/x": at(1)}, "no such stream"),
        ({"mail/gone": at(1)}, "no such stream"),
        ({"mail/a": "-1"}, "that the server gave"),
        ({"mail/a": "nonsense"}, "that the server gave"),
        ({"mail/a": at(4)}, "beyond the end"),
        ({"mail/a": at(1)}, "does not go back"),
        ({"mail/a": at(2, generation=9)}, "beyond the end"),
        ({"mail/a": at(3), "mail/b": at(9)}, "beyond the end"),
    ],
)
def test_acks_that_cannot_be_right_change_nothing(offsets, said):
    case = Case(links={"mail/a": Link(at(2)), "mail/b": Link("-1"), "mail/gone": Link(at(1))}, a=3, b=1)
    case.do(decisions.claimed, "me")
    with pytest.raises(InvalidOffset, match=said):
        case.do(decisions.acked, case.proof, offsets, done=True)
    assert case.state.links["mail/a"] == Link(at(2))


def test_an_offset_that_a_fork_shares_with_its_source_is_acked_as_its_own():
    fork = Fork("source", 3, 0, 3, (Segment("source", 1, 3),), "claim")
    case = Case(links={"mail/a": Link("-1")})
    case.heads["mail/a"] = head(5, generation=7, fork=fork)
    case.do(decisions.claimed, "me")
    case.do(decisions.acked, case.proof, {"mail/a": at(2, generation=1)}, done=False)
    assert case.state.links["mail/a"].acked == at(2, generation=7)


# -- telling of wakes -------------------------------------------------------------------------------------------------


def test_done_at_once_acks_what_the_wake_told_of():
    case = awake(HOOK)
    case.heads["mail/a"] = head(5)
    assert case.do(decisions.delivered, wake_id="w1", done=True) == ["acked", "ended", "woken"]
    assert case.state.links["mail/a"].acked == at(1)
    assert case.state.wake.tails == {"mail/a": at(5)}
    assert case.do(decisions.delivered, wake_id="w1", done=True) == [], "that wake is over"


def test_done_at_once_takes_no_ack_back():
    case = awake(HOOK)
    case.heads["mail/a"] = head(5)
    case.do(decisions.acked, case.proof, {"mail/a": at(4)}, done=False)
    case.do(decisions.delivered, wake_id="w1", done=True)
    assert case.state.links["mail/a"].acked == at(4)


def test_a_webhooks_lease_runs_from_its_wake_and_lapses_into_the_next():
    case = awake(HOOK)
    assert case.do(decisions.delivered, wake_id="w1", done=False) == []
    assert case.do(decisions.overdue) == []
    assert case.state.due() == NOW + 30_000
    case.now += 30_000
    assert case.do(decisions.overdue) == ["ended", "woken"]
    assert case.state.generation == 2


def test_a_lease_that_lapses_without_work_ends():
    case = awake(HOOK)
    case.do(decisions.acked, case.proof, {"mail/a": at(1)}, done=False)
    case.now += 30_000
    assert case.do(decisions.overdue) == ["ended"]


def test_failed_attempts_are_repeated_later_and_later_as_the_same_wake():
    case = awake(HOOK)
    waits = []
    for _ in range(9):
        assert case.do(decisions.failed, wake_id="w1", chance=0.5) == ["failed"]
        waits.append(case.state.due() - case.now)
        case.now = case.state.due()
        assert case.do(decisions.overdue) == ["sent"]
        assert case.state.due() == case.now + 30_000
    assert waits == [1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000, 60000]
    assert (case.state.generation, case.state.wake.id, case.state.failures) == (1, "w1", 9)
    assert case.do(decisions.delivered, wake_id="w1", done=False) == ["delivered"]
    assert (case.state.failures, case.state.retry_at) == (0, None)


def test_attempts_are_spread_by_a_fifth():
    case = awake(HOOK)
    events = [decisions.failed(case.state, case.sight(), wake_id="w1", chance=chance) for chance in (0, 1)]
    assert [event.retry_at - NOW for (event,) in events] == [800, 1200]


def test_a_callback_in_time_makes_another_attempt_needless():
    case = awake(HOOK)
    case.do(decisions.failed, wake_id="w1", chance=0.5)
    case.do(decisions.acked, case.proof, {"mail/a": at(1)}, done=False)
    assert (case.state.failures, case.state.due()) == (0, NOW + 30_000)


def test_a_pull_wake_that_nobody_announced_is_announced_by_another():
    case = awake()
    assert case.state.due() == NOW + 10_000
    case.now += 10_000
    assert case.do(decisions.overdue) == ["sent"]
    assert case.do(decisions.delivered, wake_id="w1", done=False) == ["delivered"]
    assert case.state.due() is None, "a wake waits for its worker"
    assert case.state.generation == 1


def test_what_became_of_an_attempt_is_of_no_interest_once_it_was_claimed():
    case = awake()
    case.do(decisions.claimed, "me")
    assert case.do(decisions.delivered, wake_id="w1", done=False) == []
    assert case.do(decisions.failed, wake_id="w1", chance=0.5) == []


# -- keeping ----------------------------------------------------------------------------------------------------------


def test_every_event_survives_its_encoding():
    case = awake()
    for event in (
        Snapshot(case.state),
        Linked({"a": Link("-1", True)}),
        Unlinked(["a"]),
        Woken(3, case.state.wake),
        Sent(1),
        Delivered(None),
        Failed(2),
        Claimed("me", 3),
        Acked({"a": at(1)}, 4),
        Ended(),
    ):
        assert decode(encode(event)) == event


names = st.sampled_from(["mail/a", "mail/b"])
steps = st.one_of(
    st.tuples(st.just("append"), names),
    st.tuples(st.just("delete"), names),
    st.tuples(st.sampled_from(["look", "claim", "done", "beat", "release", "told", "untold", "stale"]), st.none()),
    st.tuples(st.just("wait"), st.sampled_from([500, 1000, 10_000, 31_000])),
)


class Life(Case):
    """What can happen to a subscription, and what of its streams was worked on."""

    def __init__(self, terms):
        super().__init__(terms)
        self.made, self.worked = 0, {}

    def step(self, step, about):
        """The events that it makes."""
        if step == "append":
            return self.append(about)
        if step == "delete":
            self.heads.pop(about, None)
            return []
        if step == "wait":
            self.now += about
            return decisions.overdue(self.state, self.sight())
        if step == "look":
            return decisions.looked(self.state, list(self.heads), self.sight())
        if step == "claim":
            return decisions.claimed(self.state, "me", self.sight())
        return [] if self.state.wake is None else self.work(step)

    def append(self, name):
        known = self.heads.get(name)
        self.made += known is None
        self.heads[name] = head(1, self.made) if known is None else head(known.tail + 1, known.generation)
        return decisions.looked(self.state, [name], self.sight())

    def work(self, step):
        wake = self.state.wake.id
        if step in ("done", "beat"):
            tails = {name: str(now.offset) for name, now in self.heads.items() if name in self.state.links}
            events = decisions.acked(self.state, self.proof, tails, self.sight(), done=step == "done")
            self.worked |= tails
            return events
        if step == "release":
            return decisions.released(self.state, self.proof, self.sight())
        if step == "told":
            return decisions.delivered(self.state, self.sight(), wake_id=wake, done=False)
        if step == "untold":
            return decisions.failed(self.state, self.sight(), wake_id=wake, chance=0.5)
        with pytest.raises(Fenced):
            decisions.acked(self.state, self.proof._replace(generation=0), {}, self.sight(), done=True)
        return []


@given(st.sampled_from([PULL, HOOK]), st.lists(steps, max_size=60))
def test_whatever_happens_no_work_is_lost_and_no_generation_comes_twice(terms, happening):
    life = Life(terms)
    for step, about in happening:
        before, events = copy.deepcopy(life.state), []
        try:
            events = life.step(step, about)
        except (AlreadyClaimed, NoPendingWork, InvalidRequest):
            assert life.state == before
        life.take(events)
        assert life.state.generation - before.generation == sum(isinstance(event, Woken) for event in events)
        for name, link in life.state.links.items():
            assert name not in before.links or link.acked >= before.links[name].acked
    # Let every lease run out: then there is a wake for whatever was not worked on.
    life.now += 100_000
    life.take(decisions.overdue(life.state, life.sight()))
    life.take(decisions.looked(life.state, list(life.heads), life.sight()))
    waiting = [name for name, now in life.heads.items() if life.worked.get(name, "-1") < str(now.offset)]
    assert bool(waiting) <= (life.state.wake is not None)
    for name in waiting:
        assert life.state.links[name].pending(life.heads[name])


# -- patterns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("events/*", ["events/a", "events/"], ["events", "events/a/b", "xevents/a"]),
        ("events/**", ["events", "events/a", "events/a/b/c"], ["event", "events2", "x/events/a"]),
        ("**", ["a", "a/b/c"], []),
        ("*/b", ["a/b"], ["b", "a/a/b"]),
        ("a/**/z", ["a/z", "a/b/z", "a/z/z", "a/b/z/c/z"], ["a", "z", "a/b", "a/z/b"]),
        ("**/x/**/y/**", ["x/y", "a/x/b/y/c", "x/x/y"], ["y/x", "x"]),
        ("a.b/[c]?", ["a.b/[c]?"], ["aXb/c1", "a.b/cd"]),
    ],
)
def test_a_pattern_means_whole_segments(pattern, yes, no):
    assert [name for name in yes if not globs.matches(pattern, name)] == []
    assert [name for name in no if globs.matches(pattern, name)] == []
    assert all(name.startswith(globs.prefix(pattern)) for name in yes)


segment = st.sampled_from(["a", "b", "*", "**"])


@given(st.lists(segment, min_size=1, max_size=5), st.lists(st.sampled_from(["a", "b"]), min_size=1, max_size=5))
def test_matching_is_what_a_regular_expression_says(pattern, name):
    parts = {"*": "/[^/]+", "**": "(/[^/]+)*"}
    expression = "".join(parts.get(one, f"/{one}") for one in pattern)
    expected = re.fullmatch(expression, "/" + "/".join(name)) is not None
    assert globs.matches("/".join(pattern), "/".join(name)) == expected
    assert not expected or "/".join(name).startswith(globs.prefix("/".join(pattern)))


def test_a_pattern_made_to_take_long_does_not():
    assert not globs.matches("/".join(["**", "a"] * 200), "/".join(["a"] * 500) + "/b")


@pytest.mark.parametrize(
    ("pattern", "shells", "covered"),
    [
        ("chat/*", ["*"], True),
        ("chat/*", ["chat/*"], True),
        ("chat/**", ["chat/*"], False),  # it means `chat`, too
        ("chat/**", ["chat/*", "chat"], True),
        ("chat/**", ["chat*"], True),
        ("chat/*/**", ["chat/*"], True),
        ("chat/*/log", ["chat/*/log"], True),
        ("chat/*/log", ["chat/?/log"], False),
        ("chat/*", ["chat/a*"], False),
        ("chat/*", ["chat/[a-z]*"], False),
        ("chat/*", ["chat/[!b]*", "chat/b*"], False),
        ("chat/a", ["chat/?"], True),
        ("chat/a", ["chat/[ab]"], True),
        ("chat/c", ["chat/[!ab]"], True),
        ("chat/a", ["chat/[!ab]"], False),
        ("chat/]", ["chat/[]]"], True),
        ("chat/[", ["chat/["], True),
        ("**", ["*"], True),
        ("**", ["?*"], False),
        ("a/**/b/**", ["a/*"], True),
        ("a/**", [], False),
    ],
)
def test_covering_is_sound(pattern, shells, covered):
    assert globs.covered(pattern, shells) is covered


SHELL = st.text("ab/*?", max_size=6)
NAMES = ["/".join(parts) for length in (1, 2, 3) for parts in product(["a", "b", "ab"], repeat=length)]


@given(st.lists(segment, min_size=1, max_size=4), st.lists(SHELL, max_size=3))
def test_what_is_said_to_be_covered_is(pattern, shells):
    from fnmatch import fnmatchcase

    pattern = "/".join(pattern)
    if globs.covered(pattern, shells):
        for name in NAMES:
            if globs.matches(pattern, name):
                assert any(fnmatchcase(name, shell) for shell in shells), (pattern, shells, name)


# -- tokens -----------------------------------------------------------------------------------------------------------

KEY, OTHER = "ab" * 32, "cd" * 32


def test_a_token_is_good_for_its_subscription_generation_and_an_hour():
    token = tokens.make(KEY, "s", 7, NOW)
    assert tokens.generation_of(token, KEY, "s", NOW + 3_600_000) == 7
    with pytest.raises(TokenExpired):
        tokens.generation_of(token, KEY, "s", NOW + 3_601_000)
    for key, id_ in ((OTHER, "s"), (KEY, "t")):
        with pytest.raises(TokenInvalid):
            tokens.generation_of(token, key, id_, NOW)


def test_a_token_that_was_changed_is_worth_nothing():
    generation, end, mac = tokens.make(KEY, "s", 7, NOW).split(".")
    changed = [f"8.{end}.{mac}", f"{generation}.{int(end) + 1}.{mac}", f"{generation}.{end}.{mac[:-1]}_"]
    for token in (*changed, "", "a.b.c"):
        with pytest.raises(TokenInvalid):
            tokens.generation_of(token, KEY, "s", NOW)
