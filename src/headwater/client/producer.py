"""Producer: appends that count exactly once, over lost answers, retries and restarts of the server. On asyncio.

    async with client.producer("readings") as producer:
        await producer.send({"celsius": 21.5})        # returns at once while there is room
        await producer.close("completed")             # ends the stream together with the last message

What is sent and what an answer means is `batches`; here is who sends and who waits: one task that looks for the next
batch, and one for each batch on its way.

Cancellation: a cancelled `send` has given its messages up to some point, each wholly or not at all; a cancelled `flush`
or `close` can be called again. A cancelled `aclose` stops the sending: `unsent` names what is not confirmed.

Invariant: once `aclose` has returned, everything that was given is confirmed, or an error was raised.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

import httpx

from headwater.client.asking import Ask, is_json
from headwater.client.batches import Batch, Batches, Batching, Lost, Reply
from headwater.client.reader import Retry, unreachable
from headwater.errors import BadRequest, HeadwaterError


class Producer:
    """The appends of one writer to one stream. Made by `Client.producer`; use it with `async with`.

    An error is for good and comes with the next call, whichever it is; `unsent` then holds every message that is not
    known to have arrived.
    """

    def __init__(self, batches: Batches, post: Callable[[Ask], Awaitable[Reply | Lost]], retry: Retry) -> None:
        self._batches, self._post, self._retry = batches, post, retry
        self._changed = asyncio.Event()
        self._pump: asyncio.Task[None] | None = None
        self._posting: set[asyncio.Task[None]] = set()
        self._left = False

    def __repr__(self) -> str:
        return repr(self._batches).replace("Batches", "Producer", 1)

    @property
    def id(self) -> str:
        return self._batches.id

    @property
    def epoch(self) -> int:
        """Grows when an epoch is claimed."""
        return self._batches.epoch

    @property
    def offset(self) -> str:
        """Where the stream ended when a batch was last confirmed; empty before the first."""
        return self._batches.offset

    @property
    def unsent(self) -> list[bytes]:
        """Every message that was given and is not confirmed, in order."""
        return self._batches.unsent

    async def send(self, *values: Any) -> None:
        """Take messages, and wait only while the buffer is full. bytes and str as they are, all else becomes JSON.

        They are in the stream once `flush`, `close` or `aclose` has returned.
        """
        for data in [self._batches.encode(value) for value in values]:
            while not self._batches.has_room(data):
                self._batches.check()
                await self._change()
            self._batches.add(data, self._retry.clock())
            self._wake()

    async def flush(self) -> str:
        """Once everything that was sent until now is in the stream. Says where the stream then ended."""
        wanted = self._batches.hurry()
        self._wake()
        while self._batches.confirmed < wanted:
            self._batches.check()
            await self._change()
        self._batches.check()
        return self._batches.offset

    async def close(self, outcome: str | None = None) -> str:
        """End the stream for ever, in one step with the last batch. Says where it ends. May be called again.

        `outcome`: how it ended (`completed`, `failed`, `cancelled`), for readers of a Headwater server.
        """
        self._batches.check()
        self._batches.close(outcome)
        self._wake()
        while not self._batches.closed:
            self._batches.check()
            await self._change()
        return self._batches.offset

    async def aclose(self) -> None:
        """Send what is left, and let go; the stream stays open unless `close` was called."""
        if self._left:
            return
        try:
            if not self._batches.idle:
                await (self.close() if self._batches.closing else self.flush())
            self._batches.check()
        finally:
            await self._leave()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, raised: BaseException | None, _: TracebackType | None
    ) -> None:
        """After an error of the block, too, what was sent before it is delivered; a cancelled block ends at once."""
        if raised is None:
            await self.aclose()
            return
        if isinstance(raised, Exception):
            with suppress(HeadwaterError):  # it is in the note: what the block raised is the news
                await self.aclose()
        await self._leave()
        if self.unsent:
            told = self._batches.failed or f"{len(self.unsent)} messages of producer {self.id!r} are not confirmed"
            raised.add_note(str(told))

    # -- the work -----------------------------------------------------------------------------------------------------

    async def _change(self) -> None:
        if self._left:
            raise BadRequest("this producer was closed before all of it was confirmed")
        await self._changed.wait()

    def _wake(self) -> None:
        """Something has changed: who waits looks again."""
        self._changed.set()
        self._changed = asyncio.Event()
        if self._pump is None and not self._left and not self._batches.idle:
            self._pump = asyncio.create_task(self._run(), name=f"producer {self.id}")

    async def _run(self) -> None:
        while True:
            changed, now = self._changed, self._retry.clock()
            batch = self._batches.next(now)
            if batch is not None:
                task = asyncio.create_task(self._carry(batch), name=f"producer {self.id} batch {batch.seq}")
                self._posting.add(task)
                task.add_done_callback(self._posting.discard)
                continue
            at = self._batches.wakes()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if at is None else at - now):
                    await changed.wait()

    async def _carry(self, batch: Batch) -> None:
        try:
            reply = await self._post(self._batches.ask(batch))
            self._batches.answered(batch, reply, self._retry.clock())
        except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear of it, and not wait for ever
            self._batches.fail(error)
        self._wake()

    async def _leave(self) -> None:
        self._left = self._batches.closing = True
        tasks = [task for task in (self._pump, *self._posting) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._wake()


def begun(
    stream: str,
    producer: str | None,
    epoch: int | None,
    *,
    claim: bool,
    content_type: str,
    boundaries: bool,
    batching: Batching | None,
    retry: Retry,
    most_in_flight: int | None = None,
) -> Batches:
    """The state of a new producer; `Client.producer` says what is meant."""
    if claim and producer is None:
        raise BadRequest("claim is for a producer with an id of its own: an id that is made up has no other epochs")
    batching = batching or Batching()
    if boundaries and not is_json(content_type):
        batching = replace(batching, max_messages=1)
    if most_in_flight is not None:
        batching = replace(batching, in_flight=most_in_flight)
    if epoch is None:
        # Above every earlier life's, so that a lost first answer is never mistaken for one of theirs.
        epoch = time.time_ns() // 1_000_000 if claim else 0
    given = producer or f"headwater-{uuid.uuid4().hex}"
    return Batches(stream, given, epoch, claim=claim, content_type=content_type, batching=batching, pause=retry.pause)


def no_answer(url: httpx.URL, error: httpx.RequestError) -> Lost:
    """What a request without an answer is. Raises BadRequest where it could not even be sent."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        raise BadRequest(f"this request cannot be sent: {error}") from error
    unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
    return Lost(unreachable(url, error), sent=not unsent)
