"""What happens to subscriptions by itself: others' are learnt of, appends wake them, wakes are told of, leases run out.

Each process that has this open takes part, and none is special. A commit made here wakes the subscriptions it is for;
what another process commits, that one sees to. Leases and retries are in a subscription's own state, so whoever first
sees that one is due acts, and compare-and-append lets one win; that one tells of the wake. What a crash between a
commit and its wake leaves is found by a look at all streams of the pattern, at the start and every minute.

One task works through the subscriptions, with one timer; one more per subscription keeps it up to date. Without
subscriptions nothing is told of commits, so appends cost nothing more.

Knows kept subscriptions, the decisions and the sender of webhooks; nothing of requests.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import msgspec

from headwater.decide import Append, Create, Decision, Item
from headwater.errors import HeadwaterError, StreamNotFound
from headwater.model import Config, Head, Retention
from headwater.streams import Streams
from headwater.subscriptions import decisions, globs, tokens
from headwater.subscriptions.decisions import Sight
from headwater.subscriptions.kept import LISTED, PLACE, Change, Decide, Kept, Wanted, linked, nothing
from headwater.subscriptions.refusals import SubscriptionNotFound
from headwater.subscriptions.state import Event, Sent, State, Terms, Wake, Woken, reserved
from headwater.subscriptions.webhooks import Sender

_log = logging.getLogger("headwater.subscriptions")

BELL: Final = "headwater/subscriptions"
"""A message in this stream says: look again which subscriptions there are."""

MOST: Final = 1000
"""Subscriptions of one store: each process holds them all."""

LOOK_SECONDS: Final = 60.0
"""Between two looks at everything, for what crashes have left."""

AGAIN_MS: Final = 1000
"""Until a subscription is looked after again, where the store failed."""

MOST_SENDING: Final = 64
"""Webhooks on their way at a time."""

REMEMBERED: Final = 4096
"""Streams of which it is remembered who is woken by them."""


@dataclass(eq=False, slots=True)
class Watched:
    """A subscription, and what this process has noticed about it."""

    kept: Kept
    follower: asyncio.Task[None] | None = None
    touched: set[str] = field(default_factory=set)
    """Streams that have gone on here and are not linked yet."""
    behind: bool = False
    """Some stream has gone on here since all were looked at."""
    unlisted: bool = True
    """All streams of the pattern are to be looked at."""
    again_at: int = 0
    """Not to be looked after before, ms: the last time failed."""
    links_seen: int = -1
    telling: asyncio.Task[None] | None = None
    """Tells of the newest wake that was made here, or is about to."""

    @property
    def noticed(self) -> bool:
        return self.unlisted or bool(self.touched) or (self.behind and self.kept.state.wake is None)

    def due(self) -> int | None:
        """When to look after it, ms."""
        at = 0 if self.noticed else self.kept.state.due()
        return None if at is None else max(at, self.again_at)


class Waking:
    """The subscriptions of one store, in this process."""

    def __init__(self, streams: Streams, sender: Sender) -> None:
        self.sender = sender
        self._streams = streams
        self._watched: dict[str, Watched] = {}
        self._by_stream: dict[str, tuple[Watched, ...]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._deliveries: set[asyncio.Task[None]] = set()
        self._look = asyncio.Event()
        self._sending = asyncio.Semaphore(MOST_SENDING)
        self.figures = dict.fromkeys(("wakes", "delivered", "failed"), 0)
        """Counted since the start, in this process."""

    def __repr__(self) -> str:
        return f"<Waking of {len(self._watched)} subscriptions [{len(self._deliveries)} being told]>"

    def __iter__(self) -> Iterator[Kept]:
        return (watched.kept for watched in list(self._watched.values()))

    def __len__(self) -> int:
        return len(self._watched)

    async def open(self) -> None:
        """Begin. Raises StoreUnavailable."""
        self._look, self._sending = asyncio.Event(), asyncio.Semaphore(MOST_SENDING)  # of this loop
        await self._relist()
        self._tasks = [
            asyncio.create_task(self._listen(), name="headwater-subscriptions"),
            asyncio.create_task(self._work(), name="headwater-waking"),
        ]

    async def aclose(self) -> None:
        """What is on its way is cut off; another process, or the next start, sees to it when its lease has run out."""
        followers = [watched.follower for watched in self._watched.values() if watched.follower is not None]
        tasks = [*self._tasks, *followers, *self._deliveries]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._tasks = []
        for id_ in list(self._watched):
            self._forget(id_)
        await self.sender.aclose()

    # -- which there are ----------------------------------------------------------------------------------------------

    async def known(self, id_: str) -> Kept:
        """The subscription. Raises SubscriptionNotFound."""
        watched = self._watched.get(id_)
        if watched is not None and not watched.kept.gone:
            return watched.kept
        return self.adopt(await Kept.load(self._streams, id_))

    def adopt(self, kept: Kept) -> Kept:
        """Take part in a subscription; what is held of it already, if anything is, goes on being held."""
        watched = self._watched.get(kept.id)
        if watched is not None and not watched.kept.gone:
            return watched.kept
        if watched is not None:
            self._forget(kept.id)
        if not self._watched:
            self._streams.on_commit.append(self._committed)
        watched = self._watched[kept.id] = Watched(kept)
        kept.on_fold = lambda: self._folded(watched)
        watched.follower = asyncio.create_task(self._follow(watched), name=f"headwater-subscription {kept.id}")
        self._by_stream.clear()
        self._look.set()
        return kept

    def forget(self, kept: Kept) -> None:
        """It was deleted."""
        watched = self._watched.get(kept.id)
        if watched is not None and watched.kept is kept:
            self._forget(kept.id)

    def _forget(self, id_: str) -> None:
        watched = self._watched.pop(id_)
        watched.kept.gone = True
        _stop(watched.follower)
        _stop(watched.telling)
        self._by_stream.clear()
        if not self._watched:
            self._streams.on_commit.remove(self._committed)

    async def ring(self) -> None:
        """Have all processes look which subscriptions there are."""
        item = Item(b"{}")
        try:
            await self._streams.carry_out(BELL, Append([item]))
        except StreamNotFound:
            config = Config("application/json", retention=Retention(messages=1))  # only that it grows is of interest
            await self._streams.carry_out(BELL, Create(config, [item]))

    async def _listen(self) -> None:
        """Look which subscriptions there are, whenever the bell rings; and every minute at everything."""
        tail = self._streams.hub.join(BELL)
        try:
            while True:
                wakes = tail.wakes
                await _tried(self._relist())
                if tail.wakes != wakes:
                    continue
                waiter = tail.waiter()
                try:
                    async with asyncio.timeout(LOOK_SECONDS):
                        await waiter
                except TimeoutError:
                    for watched in self._watched.values():
                        watched.unlisted = True
                    self._look.set()
                finally:
                    tail.discard(waiter)
        finally:
            self._streams.hub.leave(tail)

    async def _relist(self) -> None:
        before = {id_: watched.kept for id_, watched in self._watched.items()}
        found = await self._streams.list(PLACE, limit=2 * MOST)
        ids = {name.removeprefix(PLACE) for name, _ in found}
        for id_ in before.keys() - ids:
            self.forget(before[id_])
        for id_ in ids - before.keys():
            with suppress(SubscriptionNotFound):
                await self.known(id_)

    async def _follow(self, watched: Watched) -> None:
        kept = watched.kept
        while not kept.gone:
            try:
                await kept.follow()
            except SubscriptionNotFound:
                break
            except HeadwaterError as error:
                _log.warning("subscription %s cannot be followed: %s", kept.id, error)
                await asyncio.sleep(AGAIN_MS / 1000)
        self.forget(kept)

    def _folded(self, watched: Watched) -> None:
        if watched.links_seen != watched.kept.links_changed:
            watched.links_seen = watched.kept.links_changed
            self._by_stream.clear()
        if watched.due() is not None:
            self._look.set()

    # -- what happens -------------------------------------------------------------------------------------------------

    def _committed(self, name: str, decision: Decision) -> None:
        """A stream has gone on, by this process."""
        if not (decision.messages or (decision.what == "created" and decision.head.tail)) or reserved(name):
            return
        for watched in self._woken_by(name):
            links = watched.kept.state.links
            if name not in links and len(links) < decisions.MOST_LINKS:
                watched.touched.add(name)
            watched.behind = True
            if watched.noticed:
                self._look.set()

    def _woken_by(self, name: str) -> tuple[Watched, ...]:
        found = self._by_stream.get(name)
        if found is None:
            if len(self._by_stream) >= REMEMBERED:
                self._by_stream.clear()
            found = self._by_stream[name] = tuple(
                watched
                for watched in self._watched.values()
                if name in watched.kept.state.links or watched.kept.state.terms.matches(name)
            )
        return found

    async def _work(self) -> None:
        """Look after each subscription when it is due."""
        while True:
            self._look.clear()
            for watched in list(self._watched.values()):
                due = watched.due()
                if due is not None and due <= self._streams.clock():
                    await self._look_after(watched)
            with suppress(TimeoutError):
                async with asyncio.timeout(self._seconds()):
                    await self._look.wait()

    def _seconds(self) -> float | None:
        """Until the next one is due."""
        dues = [due for watched in self._watched.values() if (due := watched.due()) is not None]
        return max(0.0, (min(dues) - self._streams.clock()) / 1000) + 0.001 if dues else None

    async def _look_after(self, watched: Watched) -> None:
        kept = watched.kept
        noticed = watched.touched, watched.behind, watched.unlisted
        watched.touched, watched.behind, watched.unlisted = set(), False, False
        try:
            names = noticed[0] | (await self._strangers(kept) if noticed[2] else set())
            await self.change(kept, partial(_next, names=names), partial(_of, names=names))
            if len(kept.state.links) >= decisions.MOST_LINKS and not names <= kept.state.links.keys():
                _log.warning("subscription %s has %d streams and takes no more", kept.id, decisions.MOST_LINKS)
        except SubscriptionNotFound:
            self.forget(kept)
        except Exception as error:  # noqa: BLE001 -- what fails for one must not stop the others
            watched.touched |= noticed[0]
            watched.behind, watched.unlisted = True, watched.unlisted or noticed[2]
            watched.again_at = self._streams.clock() + AGAIN_MS
            known = isinstance(error, HeadwaterError)
            _log.warning("subscription %s: %s", kept.id, error if known else "failed", exc_info=not known)

    async def _strangers(self, kept: Kept) -> set[str]:
        """Streams of the pattern that are not linked, and have gone on since it was made."""
        links, found = kept.state.links, set[str]()
        async for name, _ in streams_of(self._streams, kept.state.terms):
            if name not in links:
                found.add(name)
        return found

    async def settle(self, kept: Kept) -> None:
        """See to what was noticed here by now, so that who appends and then asks is told of it."""
        watched = self._watched.get(kept.id)
        if watched is not None and watched.kept is kept and watched.noticed:
            await self._look_after(watched)

    async def change(self, kept: Kept, decide: Decide, wanted: Wanted = linked) -> Change:
        """Change a subscription; whatever wake that makes is told of. Raises as `Kept.change`."""
        changed = await kept.change(decide, wanted)
        wake = kept.state.wake
        made = [event for event in changed.events if isinstance(event, Woken | Sent)]
        self.figures["wakes"] += sum(isinstance(event, Woken) for event in made)
        if made and wake is not None and wake.holder is None:
            self._begin_telling(kept, wake)
        return changed

    def _begin_telling(self, kept: Kept, wake: Wake) -> None:
        """In the place of what is still being told of it: that wake is over, and slow receivers must not pile up."""
        watched = self._watched.get(kept.id)
        if watched is None or watched.kept is not kept:
            return  # it was deleted, or is left to others
        _stop(watched.telling)
        telling = asyncio.create_task(self._tell(kept, wake, kept.state.generation), name=f"tell {kept.id}")
        watched.telling = telling
        self._deliveries.add(telling)
        telling.add_done_callback(self._deliveries.discard)

    # -- telling ------------------------------------------------------------------------------------------------------

    async def _tell(self, kept: Kept, wake: Wake, generation: int) -> None:
        """Tell of a wake, and note how that went. Where noting fails, time brings the next attempt."""
        decide: Decide
        try:
            async with self._sending:
                done = await self._told(kept, wake, generation)
            decide = partial(decisions.delivered, wake_id=wake.id, done=done)
            self.figures["delivered"] += 1
        except Exception as error:  # noqa: BLE001 -- whatever it was, there is another attempt
            known = isinstance(error, HeadwaterError)
            _log.warning("subscription %s could not be woken: %s", kept.id, error if known else "", exc_info=not known)
            decide = partial(decisions.failed, wake_id=wake.id, chance=random.random())  # noqa: S311 -- no secret
            done = False
            self.figures["failed"] += 1
        try:
            await self.change(kept, decide, linked if done else nothing)
        except SubscriptionNotFound:
            self.forget(kept)
        except HeadwaterError as error:
            _log.warning("subscription %s: %s", kept.id, error)

    async def _told(self, kept: Kept, wake: Wake, generation: int) -> bool:
        """Whether the answer was that all is done."""
        state, now = kept.state, self._streams.clock()
        event: dict[str, Any]
        if state.terms.url is None:
            event = {"type": "wake", "subscription_id": kept.id, "stream": wake.stream}
            event |= {"generation": generation, "ts": now}
            item = Item(msgspec.json.encode(event))
            name = state.terms.wake_stream or ""
            try:
                await self._streams.carry_out(name, Append([item], "application/json", foreign=True))
            except StreamNotFound:
                raise StreamNotFound(f"its wake_stream {name!r} does not exist; create it") from None
            return False
        event = {
            "subscription_id": kept.id,
            "wake_id": wake.id,
            "generation": generation,
            "streams": decisions.infos(state, wake.tails),
            "callback_url": f"{state.address}/__ds/subscriptions/{quote(kept.id, safe='')}/callback",
            "callback_token": tokens.make(state.key, kept.id, generation, now),
        }
        return await self.sender.post(state.terms.url, msgspec.json.encode(event))


async def streams_of(streams: Streams, terms: Terms) -> AsyncIterator[tuple[str, Head]]:
    """Streams that there are and that the pattern means, with their heads."""
    if terms.pattern is None:
        return
    prefix = globs.prefix(terms.pattern)
    after: str | None = None
    while True:
        page = await streams.list(prefix, after=after, limit=LISTED)
        for name, head in page:
            if terms.matches(name):
                yield name, head
        if len(page) < LISTED:
            return
        after = page[-1][0]


def _next(state: State, sight: Sight, names: Iterable[str]) -> list[Event]:
    return decisions.overdue(state, sight) or decisions.looked(state, names, sight)


def _of(state: State, now: int, names: Iterable[str]) -> Iterable[str]:
    """While a worker is busy, only new streams matter."""
    due = state.due()
    busy = state.wake is not None and (due is None or now < due)
    return names if busy else [*state.links, *names]


def _stop(task: asyncio.Task[None] | None) -> None:
    if task is not None and task is not asyncio.current_task():
        task.cancel()


async def _tried(looking: Awaitable[object]) -> None:
    """Whatever goes wrong, there is a next time."""
    try:
        await looking
    except HeadwaterError as error:
        _log.warning("could not look which subscriptions there are: %s", error)
    except Exception:  # noqa: BLE001 -- see above
        _log.exception("could not look which subscriptions there are")
