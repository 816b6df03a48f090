"""subscriptions/: woken by appends, told, leased, and all of that again after a crash and in several processes."""

import asyncio
import contextlib
import itertools
import json
import signal
import subprocess
import sys

import pytest

from headwater import Streams
from headwater.errors import StoreUnavailable, StreamNotFound
from headwater.stores.memory import MemoryStore
from headwater.subscriptions import Subscriptions, Terms, kept, waking
from headwater.subscriptions.kept import PLACE
from headwater.subscriptions.refusals import (
    AlreadyClaimed,
    Fenced,
    InvalidRequest,
    NoPendingWork,
    SubscriptionExists,
    SubscriptionNotFound,
    TokenInvalid,
    WebhookUrlRejected,
)
from headwater.subscriptions.waking import BELL
from headwater.testing import virtual_time
from webhook_receiver import DONE, TAKEN, Receiver

HERE = "http://here/v1/stream"
PULL = Terms("pull-wake", pattern="mail/*", wake_stream="wakes")
START_MS = 1_893_456_000_000


def clock():
    """Streams' time is the loop's, virtual or not."""
    return START_MS + round(asyncio.get_running_loop().time() * 1000)


@contextlib.asynccontextmanager
async def opened(store="memory:", **options):
    async with Streams(store, clock=clock) as streams, Subscriptions(streams, **options) as subscriptions:
        yield streams, subscriptions


def hook(receiver, **more):
    return Terms("webhook", pattern="mail/*", url=receiver.url, **more)


async def wakes(streams, name="wakes", offset=None):
    """Events of the wake stream, as they come."""
    async for page in streams.follow(name, offset):
        for message in page.messages:
            yield json.loads(message.data)


async def until(said):
    """Once `said()` is true of what other tasks do. Waits for their turns, not for a time."""
    async with asyncio.timeout(10):
        while not (await said() if asyncio.iscoroutinefunction(said) else said()):
            await asyncio.sleep(0.001)


async def acked(subscriptions, id_):
    return {one["path"]: one["acked_offset"] for one in (await subscriptions.get(id_))["streams"]}


# -- making ------------------------------------------------------------------------------------------------------------


async def test_a_subscription_is_made_once_and_agreed_to_as_often_as_one_likes():
    async with opened() as (streams, subscriptions):
        await streams.create("mail/old", {"n": 1})
        view, made = await subscriptions.make("s", PULL, HERE)
        assert made
        assert view == {
            "id": "s",
            "subscription_id": "s",
            "type": "pull-wake",
            "pattern": "mail/*",
            "streams": [
                {"path": "mail/old", "link_type": "glob", "acked_offset": str((await streams.head("mail/old")).offset)}
            ],
            "wake_stream": "wakes",
            "lease_ttl_ms": 30_000,
            "created_at": view["created_at"],
            "status": "active",
        }
        assert await subscriptions.make("s", PULL, "http://elsewhere") == (view, False)
        assert await subscriptions.get("s") == view
        with pytest.raises(SubscriptionExists):
            await subscriptions.make("s", Terms("pull-wake", pattern="mail/**", wake_stream="wakes"), HERE)
        await subscriptions.delete("s")
        await subscriptions.delete("s")
        with pytest.raises(SubscriptionNotFound):
            await subscriptions.get("s")
        assert (await subscriptions.make("s", PULL, HERE))[1]


@pytest.mark.parametrize(
    ("terms", "said"),
    [
        (Terms("pull-wake", wake_stream="w"), "pattern and streams"),
        (Terms("pull-wake", pattern="a"), "needs a wake_stream"),
        (Terms("webhook", pattern="a"), "where to send to"),
        (Terms("pull-wake", pattern="a", wake_stream="w", lease_ms=999), "lease_ttl_ms"),
        (Terms("pull-wake", pattern="a", wake_stream="w", lease_ms=600_001), "lease_ttl_ms"),
        (Terms("pull-wake", pattern="a*", wake_stream="w"), "whole segment"),
        (Terms("pull-wake", pattern="/".join(["**", "a"] * 7), wake_stream="w"), r"at most 6 of \*\*"),
        (Terms("pull-wake", pattern="headwater/*", wake_stream="w"), "the server's own"),
        (Terms("pull-wake", pattern="a", wake_stream="headwater/x"), "the server's own"),
        (Terms("pull-wake", streams=("__ds/x",), wake_stream="w"), "the protocol's own"),
        (Terms("pull-wake", streams=("a/../b",), wake_stream="w"), "no part of a stream's name"),
        (Terms("pull-wake", streams=("w",), wake_stream="w"), "cannot be one of its streams"),
        (Terms("pull-wake", pattern="a", wake_stream="w", description="x" * 1025), "a description"),
    ],
)
async def test_terms_that_nothing_can_be_done_with_are_refused(terms, said):
    async with opened() as (_, subscriptions):
        with pytest.raises(InvalidRequest, match=said):
            await subscriptions.make("s", terms, HERE)


async def test_ids_addresses_and_numbers_are_bounded(monkeypatch):
    monkeypatch.setattr("headwater.subscriptions.subscriptions.MOST", 2)
    async with opened() as (_, subscriptions):
        for id_ in ("", "x" * 257, "a/b", "..", "a\n"):
            with pytest.raises(InvalidRequest, match="id is 1 to 256"):
                await subscriptions.make(id_, PULL, HERE)
        with pytest.raises(WebhookUrlRejected):
            await subscriptions.make("s", Terms("webhook", pattern="a", url="http://127.0.0.1/"), HERE)
        for id_ in ("a", "b"):
            await subscriptions.make(id_, PULL, HERE)
        with pytest.raises(InvalidRequest, match="takes no more"):
            await subscriptions.make("c", PULL, HERE)
        assert subscriptions.statistics()["subscriptions"] == 2
        assert repr(subscriptions) == "<Subscriptions [open] <Waking of 2 subscriptions [0 being told]>>"


async def test_without_subscriptions_appends_tell_nobody():
    async with Streams("memory:") as streams:
        before = list(streams.on_commit)
        async with Subscriptions(streams) as subscriptions:
            assert streams.on_commit == before
            await subscriptions.make("s", PULL, HERE)
            assert len(streams.on_commit) == len(before) + 1
            await subscriptions.delete("s")
            assert streams.on_commit == before
            await subscriptions.make("s", PULL, HERE)
        assert streams.on_commit == before


# -- webhooks ----------------------------------------------------------------------------------------------------------


@virtual_time
async def test_an_append_wakes_and_done_is_done():
    async with Receiver(usual=DONE) as receiver, opened(webhooks_to_loopback=True) as (streams, subscriptions):
        await subscriptions.make("s", hook(receiver), HERE)
        await streams.create("mail/a", {"n": 1})
        told = (await receiver.next()).json()
        tail = str((await streams.head("mail/a")).offset)
        assert told == {
            "subscription_id": "s",
            "wake_id": told["wake_id"],
            "generation": 1,
            "streams": [
                {
                    "path": "mail/a",
                    "link_type": "glob",
                    "acked_offset": "-1",
                    "tail_offset": tail,
                    "has_pending": True,
                }
            ],
            "callback_url": f"{HERE}/__ds/subscriptions/s/callback",
            "callback_token": told["callback_token"],
        }

        async def done():
            return await acked(subscriptions, "s") == {"mail/a": tail}

        await until(done)
        await streams.append("other/a" if await streams.create("other/a") else "", {"n": 1})
        await streams.append("mail/a", {"n": 2})
        assert (await receiver.next()).json()["generation"] == 2
        assert len(receiver.received) == 2


@virtual_time
async def test_what_comes_while_a_worker_is_busy_makes_the_next_wake():
    async with Receiver() as receiver, opened(webhooks_to_loopback=True) as (streams, subscriptions):
        await subscriptions.make("s", hook(receiver), HERE)
        await streams.create("mail/a", {"n": 1})
        first = (await receiver.next()).json()
        await streams.append("mail/a", {"n": 2})
        await streams.create("mail/b", {"n": 1})
        wake = first["wake_id"], first["generation"]
        offsets = {one["path"]: one["tail_offset"] for one in first["streams"]}
        assert await subscriptions.ack("s", first["callback_token"], wake, offsets, done=True, pulled=False) is True
        second = (await receiver.next()).json()
        assert [(one["path"], one["has_pending"]) for one in second["streams"]] == [("mail/a", True), ("mail/b", True)]
        with pytest.raises(Fenced):
            await subscriptions.ack("s", first["callback_token"], wake, offsets, done=True, pulled=False)


@virtual_time
async def test_silence_is_woken_again_when_the_lease_has_run_out():
    async with Receiver() as receiver, opened(webhooks_to_loopback=True) as (streams, subscriptions):
        await subscriptions.make("s", hook(receiver, lease_ms=600_000), HERE)
        await streams.create("mail/a", {"n": 1})
        first = (await receiver.next()).json()
        began = asyncio.get_running_loop().time()
        second = (await receiver.next()).json()
        assert asyncio.get_running_loop().time() - began == pytest.approx(600, abs=1)
        assert (second["generation"], second["wake_id"] != first["wake_id"]) == (2, True)
        wake = first["wake_id"], first["generation"]
        with pytest.raises(Fenced):
            await subscriptions.ack("s", second["callback_token"], wake, {}, done=True, pulled=False)


@virtual_time
async def test_an_ack_without_done_keeps_the_lease():
    async with Receiver() as receiver, opened(webhooks_to_loopback=True) as (streams, subscriptions):
        await subscriptions.make("s", hook(receiver), HERE)
        await streams.create("mail/a", {"n": 1})
        told = (await receiver.next()).json()
        wake = told["wake_id"], told["generation"]
        for _ in range(5):
            await asyncio.sleep(25)
            assert await subscriptions.ack("s", told["callback_token"], wake, {}, done=False, pulled=False) is False
        assert len(receiver.received) == 1


@virtual_time
async def test_failures_are_tried_again_as_the_same_wake_until_one_succeeds():
    failing = [(500, b""), (302, b""), (404, b"")]
    async with Receiver(*failing) as receiver, opened(webhooks_to_loopback=True) as (streams, subscriptions):
        await subscriptions.make("s", hook(receiver), HERE)
        await streams.create("mail/a", {"n": 1})
        times, ids = [], set()
        for number in range(4):
            told = (await receiver.next()).json()
            times.append(asyncio.get_running_loop().time())
            ids.add((told["wake_id"], told["generation"]))
            status = "active" if number == 3 else "failed"

            async def noted(status=status):
                return (await subscriptions.get("s"))["status"] == status

            await until(noted)
        waits = [later - earlier for earlier, later in itertools.pairwise(times)]
        assert waits == [pytest.approx(1, rel=0.25), pytest.approx(2, rel=0.25), pytest.approx(4, rel=0.25)]
        assert len(ids) == 1
        assert subscriptions.statistics()["failed"] == 3
        wake = told["wake_id"], told["generation"]
        tail = str((await streams.head("mail/a")).offset)
        offsets = {"mail/a": tail}
        assert await subscriptions.ack("s", told["callback_token"], wake, offsets, done=True, pulled=False) is False


@virtual_time
async def test_wakes_do_not_pile_up_before_a_receiver_that_takes_its_time():
    async def never(_):
        await asyncio.Event().wait()

    async with Receiver(usual=never) as receiver, opened(webhooks_to_loopback=True) as (streams, subscriptions):
        await subscriptions.make("s", hook(receiver, lease_ms=1000), HERE)
        await streams.create("mail/a", {"n": 1})
        for _ in range(6):
            await receiver.next()
        assert len(subscriptions._waking._deliveries) <= 2, "the newest, and one that is just being given up"
        await subscriptions.delete("s")
        await until(lambda: not subscriptions._waking._deliveries)


async def test_a_deleted_subscription_is_over_for_its_workers():
    async with Receiver() as receiver, opened(webhooks_to_loopback=True) as (streams, subscriptions):
        await subscriptions.make("s", hook(receiver), HERE)
        await streams.create("mail/a", {"n": 1})
        told = (await receiver.next()).json()
        wake = told["wake_id"], told["generation"]
        await subscriptions.delete("s")
        with pytest.raises(SubscriptionNotFound):
            await subscriptions.ack("s", told["callback_token"], wake, {}, done=True, pulled=False)
        await subscriptions.make("s", hook(receiver), HERE)
        with pytest.raises(TokenInvalid):
            await subscriptions.ack("s", told["callback_token"], wake, {}, done=True, pulled=False)


# -- pull-wake ---------------------------------------------------------------------------------------------------------


async def test_a_wake_is_announced_claimed_acked_and_released():
    async with opened() as (streams, subscriptions):
        await streams.create("wakes")
        await subscriptions.make("s", PULL, HERE)
        announced = wakes(streams)
        await streams.create("mail/a", {"n": 1})
        event = await anext(announced)
        assert event == {
            "type": "wake",
            "subscription_id": "s",
            "stream": "mail/a",
            "generation": 1,
            "ts": event["ts"],
        }
        claim = await subscriptions.claim("s", "me")
        assert (claim["generation"], claim["lease_ttl_ms"], claim["streams"][0]["has_pending"]) == (1, 30_000, True)
        with pytest.raises(AlreadyClaimed):
            await subscriptions.claim("s", "you")
        wake = claim["wake_id"], claim["generation"]
        await subscriptions.release("s", claim["token"], wake)
        assert (await anext(announced))["generation"] == 2
        claim = await subscriptions.claim("s", "you")
        wake, tail = (claim["wake_id"], claim["generation"]), claim["streams"][0]["tail_offset"]
        assert await subscriptions.ack("s", claim["token"], wake, {"mail/a": tail}, done=True, pulled=True) is False
        with pytest.raises(NoPendingWork):
            await subscriptions.claim("s", "me")
        with pytest.raises(InvalidRequest, match="worker"):
            await subscriptions.claim("s", "")
        await announced.aclose()


@virtual_time
async def test_a_claim_whose_worker_died_is_announced_again():
    async with opened() as (streams, subscriptions):
        await streams.create("wakes")
        await subscriptions.make("s", PULL, HERE)
        announced = wakes(streams)
        await streams.create("mail/a", {"n": 1})
        await anext(announced)
        await subscriptions.claim("s", "me")
        began = asyncio.get_running_loop().time()
        assert (await anext(announced))["generation"] == 2
        assert asyncio.get_running_loop().time() - began == pytest.approx(30, abs=0.1)
        assert (await subscriptions.claim("s", "you"))["generation"] == 2
        await announced.aclose()


@virtual_time
async def test_a_wake_stream_that_is_not_there_yet_is_tried_until_it_is():
    async with opened() as (streams, subscriptions):
        await subscriptions.make("s", PULL, HERE)
        await streams.create("mail/a", {"n": 1})
        await asyncio.sleep(20)
        assert (await subscriptions.get("s"))["status"] == "failed"
        await streams.create("wakes")
        event = await anext(announced := wakes(streams))
        assert event["generation"] == 1
        await announced.aclose()

        async def active():
            return (await subscriptions.get("s"))["status"] == "active"

        await until(active)


async def test_streams_are_added_removed_and_gone_when_deleted():
    async with opened() as (streams, subscriptions):
        await streams.create("wakes")
        await streams.create("x", {"n": 1})
        await subscriptions.make("s", Terms("pull-wake", streams=("x",), wake_stream="wakes"), HERE)
        await subscriptions.add("s", ["y"])
        await subscriptions.add("s", ["y"])
        assert sorted(await acked(subscriptions, "s")) == ["x", "y"]
        with pytest.raises(InvalidRequest):
            await subscriptions.add("s", ["wakes"])
        await streams.create("y", {"n": 1})
        announced = wakes(streams)
        assert (await anext(announced))["stream"] == "y"
        await announced.aclose()
        await streams.delete("x")
        assert sorted(await acked(subscriptions, "s")) == ["y"]
        await subscriptions.remove("s", "y")
        assert await acked(subscriptions, "s") == {}


# -- keeping -----------------------------------------------------------------------------------------------------------


async def test_the_log_of_a_subscription_is_kept_short_and_still_says_all(monkeypatch):
    monkeypatch.setattr(kept, "SNAPSHOT_EVERY", 10)
    store = MemoryStore()
    async with opened(store) as (streams, subscriptions):
        await streams.create("wakes")
        await subscriptions.make("s", PULL, HERE)
        await streams.create("mail/a")
        for number in range(30):
            await streams.append("mail/a", {"n": number})
            claim = await subscriptions.claim("s", "me") if number else await claimed(subscriptions, "s")
            wake, tail = (claim["wake_id"], claim["generation"]), claim["streams"][0]["tail_offset"]
            await subscriptions.ack("s", claim["token"], wake, {"mail/a": tail}, done=True, pulled=True)
        head = await streams.head(PLACE + "s")
        assert head.tail > 60
        assert head.tail - head.start < 20
        left = (await streams.read(PLACE + "s")).messages
        assert sum(len(message.data) for message in left) == head.size - head.trimmed
        before = await subscriptions.get("s")
    async with opened(store) as (_, subscriptions):
        assert await subscriptions.get("s") == before


async def claimed(subscriptions, id_):
    """A claim, once there is something to claim."""
    while True:
        with contextlib.suppress(NoPendingWork):
            return await subscriptions.claim(id_, "me")
        await asyncio.sleep(0.001)


async def test_what_a_crash_between_append_and_wake_left_is_found_at_the_next_start():
    store = MemoryStore()
    async with opened(store) as (streams, subscriptions):
        await streams.create("wakes")
        await streams.create("mail/a")
        await subscriptions.make("s", PULL, HERE)
    async with Streams(store, clock=clock) as streams:  # a process that knows of no subscriptions
        await streams.append("mail/a", {"n": 1})
        await streams.create("mail/b", {"n": 1})
        await streams.create("mail/empty")
    async with opened(store) as (streams, subscriptions):
        announced = wakes(streams)
        assert (await anext(announced))["generation"] == 1
        await announced.aclose()
        claim = await subscriptions.claim("s", "me")
        assert {one["path"] for one in claim["streams"] if one["has_pending"]} == {"mail/a", "mail/b"}


@virtual_time
async def test_what_nobody_noticed_is_found_within_a_minute():
    async with opened() as (streams, subscriptions):
        await streams.create("wakes")
        await subscriptions.make("s", PULL, HERE)
        await asyncio.sleep(1)
        unheard = [tell for tell in streams.on_commit if getattr(tell, "__self__", None) is subscriptions._waking]
        streams.on_commit.remove(unheard[0])
        await streams.create("mail/a", {"n": 1})
        await asyncio.sleep(waking.LOOK_SECONDS + 1)
        streams.on_commit.append(unheard[0])
        event = await anext(announced := wakes(streams))
        assert event["stream"] == "mail/a"
        await announced.aclose()


async def test_who_appends_and_then_asks_is_told_of_it():
    async with opened() as (streams, subscriptions):
        await streams.create("wakes")
        await subscriptions.make("s", PULL, HERE)
        for number in range(20):
            await streams.create(f"mail/{number}", {"n": 1})
            claim = await subscriptions.claim("s", "me")
            await streams.create(f"mail/{number}/not")
            await streams.create(f"mail/{number}b", {"n": 1})
            wake = claim["wake_id"], claim["generation"]
            offsets = {one["path"]: one["tail_offset"] for one in claim["streams"]}
            assert await subscriptions.ack("s", claim["token"], wake, offsets, done=True, pulled=True) is True
            claim = await subscriptions.claim("s", "me")
            wake = claim["wake_id"], claim["generation"]
            offsets = {one["path"]: one["tail_offset"] for one in claim["streams"]}
            assert await subscriptions.ack("s", claim["token"], wake, offsets, done=True, pulled=True) is False


@virtual_time
async def test_a_store_that_fails_for_a_while_delays_a_wake_and_loses_none(monkeypatch):
    async with opened() as (streams, subscriptions):
        await streams.create("wakes")
        await subscriptions.make("s", PULL, HERE)
        await asyncio.sleep(1)
        change = kept.Kept.change
        failures = []

        async def fail(self, *args):
            failures.append(asyncio.get_running_loop().time())
            raise StoreUnavailable("busy")

        monkeypatch.setattr(kept.Kept, "change", fail)
        await streams.create("mail/a", {"n": 1})
        await asyncio.sleep(5)
        monkeypatch.setattr(kept.Kept, "change", change)
        assert 3 <= len(failures) <= 6, "it does not try in a frenzy"
        event = await anext(announced := wakes(streams))
        assert event["stream"] == "mail/a"
        await announced.aclose()


@pytest.mark.parametrize("listed", [7, 1000])
async def test_the_heads_of_many_streams_are_those_of_each(monkeypatch, listed):
    monkeypatch.setattr(kept, "LISTED", listed)
    async with Streams("memory:") as streams:
        names = [f"mail/{number:03}" for number in range(150)]
        for name in [*names[::2], *(f"mail/{number:03}x" for number in range(0, 150, 3)), "mail", "mailx"]:
            await streams.create(name, {"n": name})
        heads = await kept.Kept(streams, "s").heads([*names, "mail", "zz"])
        assert heads == {name: await streams.head(name) for name in [*names[::2], "mail"]}


# -- several processes -------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def two(tmp_path, **options):
    """Two Streams on one file, as two processes have them."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with opened(url, **options) as one, opened(url, **options) as other:
        yield *one, *other


async def test_each_process_knows_and_wakes_what_another_has_made(tmp_path):
    async with two(tmp_path) as (streams_1, one, streams_2, other):
        await streams_1.create("wakes")
        await one.make("s", PULL, HERE)
        await streams_2.create("mail/a", {"n": 1})  # maybe before the other process has heard of the subscription
        announced = wakes(streams_1)
        assert (await anext(announced))["stream"] == "mail/a"
        claim = await other.claim("s", "me")
        with pytest.raises(AlreadyClaimed):
            await one.claim("s", "you")
        await streams_1.create("mail/b", {"n": 1})
        wake = claim["wake_id"], claim["generation"]
        offsets = {one["path"]: one["tail_offset"] for one in claim["streams"]}
        await one.ack("s", claim["token"], wake, offsets, done=True, pulled=True)
        assert (await anext(announced))["stream"] == "mail/b"
        await announced.aclose()
        assert await one.get("s") == await other.get("s")
        await other.delete("s")
        with pytest.raises(SubscriptionNotFound):
            await one.get("s")


async def test_of_many_that_claim_one_wins(tmp_path):
    async with two(tmp_path) as (streams, one, _, other):
        await streams.create("wakes")
        await one.make("s", PULL, HERE)
        for round_ in range(10):
            await streams.create(f"mail/{round_}", {"n": 1})
            await claimed_by_somebody(one, other, f"mail/{round_}")


async def claimed_by_somebody(one, other, name):
    async def known():
        return name in await acked(one, "s")

    await until(known)
    asked = [(each, each.claim("s", f"w{number}")) for number in range(5) for each in (one, other)]
    results = await asyncio.gather(*(claim for _, claim in asked), return_exceptions=True)
    won = [result for result in results if isinstance(result, dict)]
    assert len(won) == 1
    assert all(isinstance(result, dict | AlreadyClaimed) for result in results)
    wake = won[0]["wake_id"], won[0]["generation"]
    offsets = {stream["path"]: stream["tail_offset"] for stream in won[0]["streams"]}
    assert await other.ack("s", won[0]["token"], wake, offsets, done=True, pulled=True) is False


async def test_of_two_that_make_one_makes(tmp_path):
    async with two(tmp_path) as (_, one, __, other):
        for number in range(5):
            made = await asyncio.gather(one.make(f"s{number}", PULL, HERE), other.make(f"s{number}", PULL, HERE))
            assert sorted(is_new for _, is_new in made) == [False, True]
        terms = [Terms("pull-wake", pattern=f"p{number}", wake_stream="w") for number in range(2)]
        made = await asyncio.gather(
            one.make("t", terms[0], HERE), other.make("t", terms[1], HERE), return_exceptions=True
        )
        assert {type(result) for result in made} == {tuple, SubscriptionExists}


async def test_appends_of_two_processes_are_each_told_of_once_and_none_is_forgotten(tmp_path):
    async with (
        Receiver(usual=DONE) as receiver,
        two(tmp_path, webhooks_to_loopback=True) as (streams_1, one, streams_2, other),
    ):
        await one.make("s", hook(receiver), HERE)

        async def write(streams, name):
            await streams.create(name)
            for number in range(50):
                await streams.append(name, {"n": number})

        await asyncio.gather(*(write(streams, f"mail/{i}") for i, streams in enumerate([streams_1, streams_2] * 2)))
        tails = {f"mail/{i}": str((await streams_1.head(f"mail/{i}")).offset) for i in range(4)}

        async def all_done():
            return await acked(other, "s") == tails

        await until(all_done)
        generations = [webhook.json()["generation"] for webhook in receiver.received]
        assert generations == list(range(1, len(generations) + 1)), "none twice, none left out"


OTHER = """
import asyncio, sys
from headwater import Streams
from headwater.subscriptions import Subscriptions, Terms

async def main(path, url):
    async with Streams(f"sqlite:///{path}") as streams, Subscriptions(streams, webhooks_to_loopback=True) as all:
        await all.make("s", Terms("webhook", pattern="mail/*", url=url, lease_ms=1000), "http://here/v1/stream")
        await streams.create("mail/a", {"n": 1})
        await asyncio.Event().wait()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.mark.parametrize("answer", [TAKEN, (500, b"")])
async def test_a_killed_process_is_taken_over_when_its_lease_or_retry_is_due(tmp_path, answer):
    """kill -9 of the only process that knew: the next one goes on from what is kept."""
    path = f"{tmp_path}/a.db"
    async with Receiver(answer, usual=DONE) as receiver:
        process = subprocess.Popen([sys.executable, "-c", OTHER, path, receiver.url])
        try:
            first = (await receiver.next()).json()
        finally:
            process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(process.wait)
        async with (
            Streams(f"sqlite:///{path}") as streams,
            Subscriptions(streams, webhooks_to_loopback=True) as subscriptions,
        ):
            again = (await receiver.next()).json()
            assert [one["path"] for one in again["streams"]] == ["mail/a"]
            assert again["generation"] in ((2,) if answer is TAKEN else (1, 2))
            if again["generation"] == 2:
                wake = first["wake_id"], first["generation"]
                with pytest.raises(Fenced):
                    await subscriptions.ack("s", first["callback_token"], wake, {}, done=True, pulled=False)
            tail = str((await streams.head("mail/a")).offset)

            async def done():
                return await acked(subscriptions, "s") == {"mail/a": tail}

            await until(done)


async def test_a_subscription_made_anew_by_another_process_is_the_one_that_is_known(tmp_path):
    async with two(tmp_path) as (_, one, __, other):
        await one.make("s", PULL, HERE)
        assert (await other.get("s"))["pattern"] == "mail/*"
        await one.delete("s")
        await one.make("s", Terms("pull-wake", pattern="x/*", wake_stream="w"), HERE)
        assert (await other.get("s"))["pattern"] == "x/*"
        assert (await one.get("s"))["pattern"] == "x/*"


async def test_the_bell_does_not_grow(tmp_path):
    async with opened(f"sqlite:///{tmp_path}/a.db") as (streams, subscriptions):
        for number in range(3):
            await subscriptions.make(f"s{number}", PULL, HERE)
        assert (await streams.head(BELL)).config.retention.messages == 1
        with pytest.raises(StreamNotFound):
            await streams.head(PLACE + "s3")


@virtual_time
async def test_a_wake_stream_that_is_not_there_is_named_in_the_log(caplog):
    async with opened() as (streams, subscriptions):
        await subscriptions.make("s", PULL, HERE)
        assert caplog.messages == ["subscription s: its wake_stream 'wakes' does not exist; create it"]
        await subscriptions.make("s", PULL, HERE)
        await subscriptions.make("t", PULL, HERE)
        assert len(caplog.messages) == 2, "once for each that is made"
        await subscriptions.delete("t")
        await streams.create("mail/a", 1)
        await until(lambda: len(caplog.messages) > 2)
        assert (
            caplog.messages[2] == "subscription s could not be woken: its wake_stream 'wakes' does not exist; create it"
        )
        await streams.create("wakes")
        assert (await anext(wakes(streams)))["stream"] == "mail/a"
