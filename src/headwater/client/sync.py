"""SyncClient and SyncProducer: streams for code without an event loop: a script, a Celery task. Writing above all.

    with SyncClient("http://127.0.0.1:4437") as client:
        client.create("jobs/7")                       # or it is there already
        with client.producer("jobs/7") as producer:
            for step in work():
                producer.send(step)                   # returns at once while there is room
            producer.close("completed")

The guarantees are those of `Client` and `Producer`; the rules are the same code (`batches`). One background thread
sends: while a batch is on its way, the next one gathers.

Fork: a client may be used in a forked child. A producer lives in the process that made it, as its thread does: make one
per task, not one per module; used in a forked child, it raises. Threads: any of them may send.
"""

from __future__ import annotations

import atexit
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from types import TracebackType
from typing import Any, Self

import httpx

from headwater.client import asking
from headwater.client.answers import stream_error
from headwater.client.asking import JSON, Address, Ask
from headwater.client.batches import Batch, Batches, Batching, Lost, Reply
from headwater.client.pages import Page, page_after, page_of
from headwater.client.producer import begun, no_answer
from headwater.client.reader import Retry, unreachable
from headwater.errors import BadRequest, HeadwaterError
from headwater.model import Retention


class SyncClient:
    """One server, without an event loop; to follow a stream live takes `Client`. Use it with `with`, or call
    `disconnect`."""

    def __init__(
        self,
        base_url: str,
        *,
        key: str | None = None,
        retry: Retry | None = None,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        """`base_url`: the server, with the path it is mounted at, if any; `key`: an API key, sent to it alone."""
        self._address, self._retry = Address(base_url, key), retry or Retry()
        self._transport, self._process = transport, os.getpid()
        self._connections = self._connected()

    def __repr__(self) -> str:
        return f"<SyncClient of {self._address.base}>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, _: object, __: TracebackType | None) -> None:
        self.disconnect()

    def disconnect(self) -> None:
        self._http.close()

    @property
    def _http(self) -> httpx.Client:
        """This process's own: a forked child on its parent's connections could be given the parent's answers."""
        if os.getpid() != self._process:
            self._process, self._connections = os.getpid(), self._connected()
        return self._connections

    def _connected(self) -> httpx.Client:
        return httpx.Client(
            transport=self._transport,
            timeout=httpx.Timeout(asking.ANSWER_SECONDS, connect=self._retry.connect),
            mounts=asking.AT_HOME,
        )

    def read(self, path: str, offset: str | None = None) -> Page:
        """As `Client.read`."""
        return page_of(self._ask(page_after(self._address.stream(path), offset)))

    def create(
        self,
        path: str,
        *values: Any,
        content_type: str = JSON,
        ttl: int | None = None,
        expires_at: datetime | int | None = None,
        retention: Retention | None = None,
        closed: bool = False,
    ) -> bool:
        """As `Client.create`."""
        made = asking.create(
            path, values, content_type=content_type,
            ttl=ttl, expires_at=expires_at, retention=retention, closed=closed,
        )  # fmt: skip
        return self._ask(made).status_code == 201

    def append(
        self, path: str, *values: Any, content_type: str = JSON, close: bool = False, if_match: str | None = None
    ) -> str:
        """As `Client.append`: once, and not again where no answer comes. To be sure, use a producer."""
        ask = asking.append(path, values, content_type=content_type, close=close, if_match=if_match)
        return asking.offset_after(self._ask(ask), if_match)

    def close(self, path: str, outcome: str | None = None) -> str:
        """As `Client.close`."""
        return asking.offset_after(self._ask(asking.close(path, outcome)))

    def delete(self, path: str) -> None:
        """As `Client.delete`."""
        self._ask(Ask("DELETE", path, {}))

    def producer(
        self,
        stream: str,
        *,
        id: str | None = None,  # noqa: A002 - the protocol's own name
        epoch: int | None = None,
        claim: bool = False,
        content_type: str = JSON,
        boundaries: bool = False,
        batching: Batching | None = None,
    ) -> SyncProducer:
        """As `Client.producer`. One batch is on its way at a time, whatever `batching.in_flight` says."""
        self._address.stream(stream)
        batches = begun(
            stream, id, epoch, claim=claim, content_type=content_type, boundaries=boundaries,
            batching=batching, retry=self._retry, most_in_flight=1,
        )  # fmt: skip
        return SyncProducer(batches, self._post, self._retry)

    def _ask(self, ask: Ask) -> httpx.Response:
        url = self._address.stream(ask.path)
        headers = {**ask.headers, **self._address.credentials(url)}
        try:
            response = self._http.request(ask.method, url, headers=headers, content=ask.content)
        except (httpx.UnsupportedProtocol, httpx.LocalProtocolError, httpx.InvalidURL) as error:
            raise BadRequest(f"this request cannot be sent: {error}") from error
        except httpx.RequestError as error:
            raise unreachable(url, error) from error
        if response.status_code >= 300:
            creating = ask.method == "PUT"
            raise stream_error(response.status_code, response.headers, response.content, creating=creating)
        return response

    def _post(self, ask: Ask) -> Reply | Lost:
        url = self._address.stream(ask.path)
        headers = {**ask.headers, **self._address.credentials(url)}
        try:
            response = self._http.post(url, headers=headers, content=ask.content)
        except httpx.RequestError as error:
            return no_answer(url, error)
        return Reply(response.status_code, response.headers, response.content)


class SyncProducer:
    """The appends of one writer to one stream. Made by `SyncClient.producer`; use it with `with`.

    An error is for good and comes with the next call; `unsent` then holds every message that is not known to have
    arrived. A program that ends without leaving the `with` still waits for what was sent.
    """

    def __init__(self, batches: Batches, post: Callable[[Ask], Reply | Lost], retry: Retry) -> None:
        self._batches, self._post, self._retry = batches, post, retry
        self._changed = threading.Condition()
        self._process = os.getpid()
        self._thread: threading.Thread | None = None
        self._left = False

    def __repr__(self) -> str:
        return repr(self._batches).replace("Batches", "SyncProducer", 1)

    @property
    def id(self) -> str:
        return self._batches.id

    @property
    def epoch(self) -> int:
        return self._batches.epoch

    @property
    def offset(self) -> str:
        """Where the stream ended when a batch was last confirmed; empty before the first."""
        return self._batches.offset

    @property
    def unsent(self) -> list[bytes]:
        """Every message that was given and is not confirmed, in order."""
        with self._held():
            return self._batches.unsent

    def send(self, *values: Any) -> None:
        """Take messages, and wait only while the buffer is full. bytes and str as they are, all else becomes JSON."""
        encoded = [self._batches.encode(value) for value in values]
        with self._held():
            for data in encoded:
                self._wait(lambda data=data: self._batches.has_room(data))  # type: ignore[misc]
                self._batches.add(data, self._retry.clock())
                if self._thread is None:
                    self._start()
                self._changed.notify_all()

    def flush(self) -> str:
        """Once everything that was sent until now is in the stream. Says where the stream then ended."""
        with self._held():
            self._batches.check()
            wanted = self._batches.hurry()
            self._changed.notify_all()
            self._wait(lambda: self._batches.confirmed >= wanted)
            return self._batches.offset

    def close(self, outcome: str | None = None) -> str:
        """End the stream for ever, in one step with the last batch. Says where it ends. May be called again."""
        with self._held():
            self._batches.check()
            self._batches.close(outcome)
            self._changed.notify_all()
            self._wait(lambda: self._batches.closed)
            return self._batches.offset

    def leave(self) -> None:
        """Send what is left, and let go; the stream stays open unless `close` was called."""
        if self._left or os.getpid() != self._process:
            return
        try:
            if not self._batches.idle:
                _ = self.close() if self._batches.closing else self.flush()
            self._batches.check()
        finally:
            self._stop()
        if self._thread is not None:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, _: TracebackType | None) -> None:
        """After an error of the block, too, what was sent before it is delivered; an interrupted block ends at once."""
        if os.getpid() != self._process:
            return  # the messages, and the lock, are the parent's
        if raised is None:
            self.leave()
            return
        if isinstance(raised, Exception):
            with suppress(HeadwaterError):  # it is in the note: what the block raised is the news
                self.leave()
        self._stop()
        if unsent := self.unsent:
            told = self._batches.failed or f"{len(unsent)} messages of producer {self.id!r} are not confirmed"
            raised.add_note(str(told))

    # -- the work -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _held(self) -> Iterator[None]:
        if os.getpid() != self._process:
            raise BadRequest("a producer does not survive a fork: make one in the process that uses it")
        with self._changed:
            yield

    def _wait(self, there: Callable[[], bool]) -> None:
        """With the lock held, until it is so. Raises what the producer has failed with."""
        while not there():
            self._batches.check()
            if self._left:
                raise BadRequest("this producer was closed before all of it was confirmed")
            if self._thread is None:
                self._start()
            self._changed.wait()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._run, name=f"producer {self.id}", daemon=True)
        self._thread.start()
        atexit.register(self.leave)

    def _stop(self) -> None:
        with self._changed:
            self._left = self._batches.closing = True
            self._changed.notify_all()
        atexit.unregister(self.leave)

    def _run(self) -> None:
        while (batch := self._next()) is not None:
            try:
                reply = self._post(self._batches.ask(batch))
                with self._changed:
                    self._batches.answered(batch, reply, self._retry.clock())
                    self._changed.notify_all()
            except Exception as error:  # noqa: BLE001 - whatever it is, who waits must hear of it, and not wait for ever
                with self._changed:
                    self._batches.fail(error)
                    self._changed.notify_all()

    def _next(self) -> Batch | None:
        """The next batch, once there is one; None: there will be none."""
        with self._changed:
            while not self._left:
                now = self._retry.clock()
                batch = self._batches.next(now)
                if batch is not None:
                    return batch
                at = self._batches.wakes()
                self._changed.wait(None if at is None else max(0.0, at - now))
        return None
