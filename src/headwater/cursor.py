"""One reader of one stream: an offset, and the way to the next page.

Knows the tail it hangs on and the store contract. Holds nothing that grows (G9): a slow reader is an old offset.
Invariant: pages are contiguous from the offset it began with; what cannot be served is raised, never skipped (G5).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from typing import Final

from headwater.errors import OffsetGone, StreamDeleted, StreamNotFound
from headwater.formats.characters import whole
from headwater.hub import Hub, Tail, page_of
from headwater.lineage import read_messages
from headwater.model import Absent, Head, Offset, Page
from headwater.store import Store

HELD_BYTES: Final = 1024 * 1024
"""Held back of text, behind a first message, for the rest of a character; what is more is given as it is."""


class Cursor:
    """Pulls pages. Look with `take`; where it gives None, wait with `tail.waiter()` and look again."""

    def __init__(
        self,
        store: Store,
        hub: Hub,
        clock: Callable[[], int],
        tail: Tail,
        start: Offset,
        max_bytes: int,
        *,
        resumes: bool = False,
        traceparent: str | None = None,
    ) -> None:
        """`resumes`: whoever reads has said where it was; `traceparent`: the stream's (`headwater.traced`)."""
        self._store, self._hub, self._clock = store, hub, clock
        self.tail = tail
        self.offset = start
        self.max_bytes = max_bytes
        self.resumes, self.traceparent = resumes, traceparent
        self._closed = False

    def __repr__(self) -> str:
        return f"<Cursor {self.tail.name!r} at {self.offset}>"

    def close(self) -> None:
        """Let go of the tail. Closing twice is fine."""
        if not self._closed:
            self._closed = True
            self._hub.leave(self.tail)

    async def take(self, *, whole_characters: bool = False) -> Page | None:
        """The next page, moving behind it; None where the reader is at the tail of an open stream.

        `whole_characters`: messages at its end wait for the rest of a character; what never gets one is given when the
        stream is closed, or when it is too much to wait for.

        At the end of a closed stream: an empty page that says `closed`. Cancelled: the offset has not moved. Raises
        StreamNotFound, OffsetGone, StoreUnavailable.
        """
        page = await self._moved()
        return await self._whole(page) if whole_characters and page is not None else page

    async def _moved(self) -> Page | None:
        page = self.ready() or await self._fetched()
        if page is not None:
            self.offset = page.next
        return page

    async def _whole(self, page: Page) -> Page | None:
        start = page.start
        while not page.closed:
            shown = whole(page.messages)
            if shown == len(page.messages) > 0:
                return page
            if shown:
                self.offset = page.messages[shown - 1].offset
                return page._replace(messages=page.messages[:shown], next=self.offset)
            if sum(len(message.data) for message in page.messages[1:]) > HELD_BYTES:
                return page
            more = None if page.up_to_date else await self._moved()
            if more is None:  # looked at again at the next wake
                self.offset = start
                return None
            page = more._replace(messages=[*page.messages, *more.messages], start=start)
        return page

    def ready(self) -> Page | None:
        """The next page, if it needs no store: the usual case, so it comes first and without a task switch.

        The cursor does not move.
        """
        head = self.tail.head
        if not isinstance(head, Head) or self.offset.position >= head.tail:
            return None
        end = head.expiry()
        if end is not None and self._clock() >= end:
            return None
        if head.deleted is not None or head.generation != self.offset.generation:
            return None
        messages = self.tail.messages(self.offset, self.max_bytes)
        return page_of(head, self.offset, messages) if messages else None

    @property
    def at_tail(self) -> bool:
        """There is nothing more of an open stream, as far as is known without the store."""
        head = self.tail.head
        if not isinstance(head, Head) or head.closed or head.deleted is not None or head.expired(self._clock()):
            return False
        return self.offset == head.offset

    def behind(self, now: int) -> tuple[int, float]:
        """Messages that are still to be taken, and for how many seconds the first of them has been there; as far as is
        known without the store. `now` in ms."""
        head = self.tail.seen  # the store is asked by who wants more, and one that takes nothing does not
        if not isinstance(head, Head) or head.generation != self.offset.generation or self.offset >= head.offset:
            return 0, 0.0
        return head.tail - self.offset.position, max(0, now - self.tail.time_after(self.offset, head.appended)) / 1000

    async def _fetched(self) -> Page | None:
        head, name = self.tail.head, self.tail.name
        if head is None or self._over(head):
            wakes = self.tail.wakes
            head = self.tail.touched_head(await self.tail.once("head", lambda: self._store.load(name)))
            self.tail.learn(head, wakes)
        if isinstance(head, Absent) or head.expired(self._clock()):
            raise StreamNotFound("this stream is gone")
        if head.deleted is not None:
            raise StreamDeleted("this stream was deleted")
        if head.generation != self.offset.generation:
            raise OffsetGone("another stream has taken this name; read again from the start")
        if self.offset.position < head.tail:
            start, size, known = self.offset, self.max_bytes, head
            messages = await self.tail.once(
                (start, size), lambda: read_messages(self._store, name, known, start, max_bytes=size)
            )
            self.tail.extend(messages)
            return page_of(head, self.offset, messages)
        return page_of(head, self.offset, []) if head.closed else None

    def _over(self, head: Head | Absent) -> bool:
        # A head held here may not know of later reads that moved a sliding expiry: the store does.
        return isinstance(head, Absent) or head.expired(self._clock())

    async def pages(self) -> AsyncGenerator[Page]:
        """Page after page, waiting at the tail; the last one says `closed`."""
        while True:
            wakes = self.tail.wakes
            page = await self.take()
            if page is not None:
                yield page
                if page.closed:
                    return
            elif self.tail.wakes == wakes:
                await self._wait()

    async def _wait(self) -> None:
        waiter = self.tail.waiter()
        try:
            async with asyncio.timeout(self._seconds_to_live()):
                await waiter
        except TimeoutError:
            pass  # look again: the stream may be over
        finally:
            self.tail.discard(waiter)

    def _seconds_to_live(self) -> float | None:
        head = self.tail.head
        end = head.expiry() if isinstance(head, Head) else None
        return None if end is None else max(0.0, (end - self._clock()) / 1000) + 0.001
