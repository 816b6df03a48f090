"""Batches: what an idempotent producer has been given and what the server has confirmed. Pure: no I/O, time is given.

Sections are those of Durable Streams (5.2.1). Messages gather in the open batch; `next` says which batch is to be sent
now, `answered` takes what came back. Whoever drives it sends, waits and wakes: `headwater.client.producer` on asyncio,
`headwater.client.sync` in a thread.

Invariants:
- A message is counted once, in the order in which it was added, or the producer has failed and still names it
  (`unsent`): a batch keeps its sequence number over all its attempts, and is let go only when it is confirmed.
- The first batch goes alone: only its answer tells that the id and the epoch are this producer's.
- A batch that was lost, or that arrived before its predecessor, is sent again only as the oldest one: so in order.
- A batch that the server knows already, though it was never sent before, was written by someone else under the same
  id and epoch. That is never taken for a confirmation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from headwater.client.answers import may_pass, retry_after, stream_error
from headwater.client.asking import JSON, Ask, is_json, message, outcome_header, visible
from headwater.errors import BadRequest, HeadwaterError, ProducerFenced, StreamClosed

OVERHEAD: Final = 64
"""Bytes that a message counts beside its own, so that the buffer is bounded for empty ones, too."""

_HOW_TO_BEGIN: Final = "claim=True takes the id over from its former self; another id, or none, makes another producer"


@dataclass(frozen=True, slots=True)
class Batching:
    """How messages gather. Bytes and seconds."""

    linger: float = 0.005
    """A message waits at most so long for others; nobody sees 5 ms, and a fast writer saves most of its requests."""
    max_bytes: int = 1024 * 1024
    """Of one batch; a larger message goes alone. What servers and proxies take without being asked to."""
    max_messages: int = 1000
    """Of one batch."""
    in_flight: int = 5
    """Batches on their way at once: enough to hide a round trip, few enough for a browser's worth of connections."""
    buffer: int = 8 * 1024 * 1024
    """Unconfirmed bytes; beyond, `send` waits."""
    patience: float = 300.0
    """Seconds without a single confirmation, after which the producer fails: a server that is started anew is back
    by then. What was not confirmed is named."""

    def __post_init__(self) -> None:
        if min(self.max_bytes, self.max_messages, self.in_flight, self.buffer) < 1 or self.linger < 0:
            raise BadRequest("max_bytes, max_messages, in_flight and buffer are at least 1, linger at least 0")


class Reply(NamedTuple):
    """An answer, of whatever status."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Lost(NamedTuple):
    """No answer."""

    error: HeadwaterError
    sent: bool
    """The request may have been carried out."""


@dataclass(eq=False, slots=True)
class Batch:
    """Messages that count together, once."""

    messages: list[bytes] = field(default_factory=list)
    size: int = 0
    since: float = 0.0
    """When its first message came."""
    seq: int = -1
    closes: bool = False
    on_the_way: bool = False
    attempts: int = 0
    failures: int = 0
    """In a row, but for arriving too early."""
    doubtful: bool = False
    """An attempt may have been carried out without our knowing."""
    not_before: float = 0.0
    behind: int = -1
    """The oldest that was unconfirmed when it was sent last."""


class Batches:
    """The state of one producer of one stream."""

    def __init__(
        self,
        stream: str,
        producer: str,
        epoch: int,
        *,
        claim: bool,
        content_type: str = JSON,
        batching: Batching,
        pause: Callable[[int, float], float],
    ) -> None:
        """`pause(failures, asked)`: seconds before the next attempt, as `Retry.pause` gives them."""
        self.stream, self.id, self.epoch = stream, visible("a producer's id", producer), epoch
        self.content_type, self._json, self._batching = content_type, is_json(content_type), batching
        self.failed: HeadwaterError | None = None
        """For good; everything in `unsent` stays so."""
        self.offset = ""
        """Where the stream ended when a batch was last confirmed."""
        self.added = self.confirmed = 0
        """Messages."""
        self.closed = False
        """The closing is confirmed."""
        self._claim, self._pause = claim, pause
        self._settled = False  # a batch was accepted in this epoch
        self._open = Batch()
        self._queue: deque[Batch] = deque()  # sealed, oldest first; the open one comes after
        self._next_seq = 0
        self._last_sent = -1
        self._held = 0  # bytes, with overhead
        self._hurried = 0  # messages that are not to wait for others
        self.closing = False
        """`close` was called: nothing more is taken."""
        self._outcome: str | None = None
        self._failing_since: float | None = None

    def __repr__(self) -> str:
        state = "failed" if self.failed else "closed" if self.closed else "open"
        return f"<Batches of {self.id!r} epoch {self.epoch}: {self.confirmed}/{self.added} confirmed, {state}>"

    # -- what it is given ---------------------------------------------------------------------------------------------

    def encode(self, value: object) -> bytes:
        """The message that a value makes, as `Client.append` takes it. Raises BadRequest, TypeError."""
        data = message(value, self.content_type)
        if not data:
            raise BadRequest("an empty message appends nothing; leave it out")
        return data

    def has_room(self, data: bytes) -> bool:
        """Whether `add` may be called now. The largest message has room once nothing else is held."""
        return not self._held or self._held + len(data) + OVERHEAD <= self._batching.buffer

    def add(self, data: bytes, now: float) -> None:
        """Take a message. Raises what the producer has failed with, and BadRequest once it is closing."""
        self.check()
        if self.closing:
            raise BadRequest("this producer is closed")
        if self._open.messages and self._open.size + len(data) > self._batching.max_bytes:
            self._seal()
        if not self._open.messages:
            self._open.since = now
        self._open.messages.append(data)
        self._open.size += len(data)
        self._held += len(data) + OVERHEAD
        self.added += 1
        if len(self._open.messages) >= self._batching.max_messages:
            self._seal()

    def hurry(self) -> int:
        """Let nothing that was added wait for more; the count of `confirmed` at which all of it is there."""
        self._hurried = self.added
        return self.added

    def close(self, outcome: str | None) -> None:
        """End the stream with the last batch, in one step; without one, after it. To say it again changes nothing."""
        if not self.closing:
            outcome_header(outcome)
            self.closing, self._outcome = True, outcome
            self._open.closes = True
            self.hurry()

    def _seal(self) -> Batch:
        sealed, self._open = self._open, Batch()
        sealed.seq, self._next_seq = self._next_seq, self._next_seq + 1
        self._queue.append(sealed)
        return sealed

    # -- what is to be sent -------------------------------------------------------------------------------------------

    def next(self, now: float) -> Batch | None:
        """The batch to send now; it counts as on its way until it is `answered`."""
        if self.failed is not None or self._on_the_way() >= self._batching.in_flight:
            return None
        batch = next((batch for batch in self._queue if not batch.on_the_way), None)
        if batch is None:
            if not self._open_is_due(now) or not self._may_go_with_others(self._open):
                return None
            batch = self._seal()
        elif not self._may_go_with_others(batch) or now < batch.not_before:
            return None
        batch.on_the_way, batch.behind = True, self._queue[0].seq
        batch.attempts += 1
        self._last_sent = max(self._last_sent, batch.seq)
        return batch

    def wakes(self) -> float | None:
        """When to ask `next` again; None: not before something is added or answered."""
        if self.failed is not None or self._on_the_way() >= self._batching.in_flight:
            return None
        batch = next((batch for batch in self._queue if not batch.on_the_way), self._open)
        if not self._may_go_with_others(batch) or (batch is self._open and not batch.messages):
            return None
        return batch.since + self._batching.linger if batch is self._open else batch.not_before

    def _may_go_with_others(self, batch: Batch) -> bool:
        """The oldest may always go; others only for the first time, and once it is known who we are."""
        if not self._queue or self._queue[0] is batch:
            return True
        return self._settled and not batch.attempts and not batch.closes

    def _open_is_due(self, now: float) -> bool:
        if self._open.closes:
            return True
        if not self._open.messages:
            return False
        first = self.added - len(self._open.messages)
        return first < self._hurried or now >= self._open.since + self._batching.linger

    def _on_the_way(self) -> int:
        return sum(batch.on_the_way for batch in self._queue)

    def ask(self, batch: Batch) -> Ask:
        """The request that a batch is."""
        headers = {"producer-id": self.id, "producer-epoch": str(self.epoch), "producer-seq": str(batch.seq)}
        if batch.messages:
            headers["content-type"] = self.content_type
        if batch.closes:
            headers |= {"stream-closed": "true"} | outcome_header(self._outcome)
        body = b"[%s]" % b",".join(batch.messages) if self._json else b"".join(batch.messages)
        return Ask("POST", self.stream, headers, body if batch.messages else b"")

    # -- what came back -----------------------------------------------------------------------------------------------

    def answered(self, batch: Batch, reply: Reply | Lost, now: float) -> None:
        """Take what a batch's request came to. After a failure for good, `failed` is set."""
        batch.on_the_way = False
        if self.failed is not None or batch not in self._queue:  # a later one's confirmation has confirmed it
            return
        if isinstance(reply, Lost):
            batch.doubtful |= reply.sent
            self._again(batch, reply.error, 0.0, now)
        elif reply.status in (200, 201, 204):
            self._accepted(batch, reply, now)
        else:
            self._refused(batch, reply, now)

    def _accepted(self, batch: Batch, reply: Reply, now: float) -> None:
        closed = reply.headers.get("stream-closed", "").lower() == "true"
        known = reply.status == 204 and (bool(batch.messages) or not closed)
        last = reply.headers.get("producer-seq", "")
        if known and (not batch.doubtful or (last.isdecimal() and int(last[:16]) > self._last_sent)):
            error = ProducerFenced(f"producer {self.id!r} has written in epoch {self.epoch} before", epoch=self.epoch)
            self._fenced(batch, error, now)
        else:
            self._confirm(batch, reply)

    def _confirm(self, batch: Batch, reply: Reply) -> None:
        """This batch, and all before it: the server takes them in order only."""
        while self._queue and self._queue[0].seq <= batch.seq:
            done = self._queue.popleft()
            self.confirmed += len(done.messages)
            self._held -= done.size + OVERHEAD * len(done.messages)
            self.closed |= done.closes
        self.offset = max(self.offset, reply.headers.get("stream-next-offset", ""))
        self._settled, self._failing_since = True, None

    def _refused(self, batch: Batch, reply: Reply, now: float) -> None:
        error = stream_error(reply.status, reply.headers, reply.body)
        expected = error.detail.get("expected")
        if may_pass(reply.status):
            batch.doubtful |= reply.status != 429  # a gateway that gave up does not know either
            self._again(batch, error, retry_after(reply.headers), now)
        elif isinstance(error, ProducerFenced):
            self._fenced(batch, error, now)
        elif isinstance(error, StreamClosed) and batch.closes and not batch.messages:
            self._confirm(batch, reply)  # somebody closed it before: closed is what was wanted
        elif reply.status == 409 and isinstance(expected, int) and batch.behind <= expected < batch.seq:
            pass  # it overtook its predecessor: as one that was sent before, it now waits for its turn
        else:
            self.fail(error)

    def _fenced(self, batch: Batch, error: ProducerFenced, now: float) -> None:
        """Take the next epoch, where that may be done: before anything was written in this one, and with nothing in
        doubt, as it would count twice. A producer that has written is the one that is to give way."""
        current = error.detail.get("epoch")
        if self._claim and not self._settled and not batch.doubtful and isinstance(current, int):
            self.epoch = current + 1
            self._again(batch, error, 0.0, now, at_once=batch.failures == 0)
            return
        if not self._claim and not self._settled:  # its first word, under an id that has a past
            detail, error = error.detail, ProducerFenced(f"{error} ({_HOW_TO_BEGIN})")
            error.detail = detail
        self.fail(error)

    def _again(self, batch: Batch, error: HeadwaterError, asked: float, now: float, *, at_once: bool = False) -> None:
        if self._failing_since is None:
            self._failing_since = now
        end = self._failing_since + self._batching.patience
        if now >= end:
            self.fail(error)
            return
        # A server that asks for more than our patience is asked once more at its end.
        batch.not_before = now if at_once else min(end, now + self._pause(batch.failures, asked))
        batch.failures += 1

    def fail(self, error: Exception) -> None:
        """Nothing more is sent. The error says how much is not confirmed."""
        if self.failed is not None:
            return
        if not isinstance(error, HeadwaterError):
            error = HeadwaterError(f"a batch could not be sent: {error!r}")
        lost = sum(len(batch.messages) for batch in self._queue) + len(self._open.messages)
        doubtful = sum(len(batch.messages) for batch in self._queue if batch.doubtful or batch.on_the_way)
        told = f"{error}; {lost} messages of producer {self.id!r} are not confirmed"
        if doubtful:
            told += f", {doubtful} of them may have arrived"
        self.failed = type(error)(told)
        self.failed.detail = {**error.detail, "unsent": lost}

    def check(self) -> None:
        """Raise what the producer has failed with."""
        if self.failed is not None:
            again = type(self.failed)(str(self.failed))
            again.detail = self.failed.detail
            raise again from self.failed

    @property
    def unsent(self) -> list[bytes]:
        """Every message that was added and is not confirmed, in order."""
        return [data for batch in (*self._queue, self._open) for data in batch.messages]

    @property
    def idle(self) -> bool:
        """Nothing is left to do."""
        return not self._queue and not self._open.messages and not self._open.closes
