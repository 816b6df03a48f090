"""http/socket.py, asked.py, channels.py: many streams on one socket, by the ASGI interface and on the virtual clock."""

import asyncio
import json
from collections.abc import AsyncIterator, MutableMapping
from contextlib import asynccontextmanager
from typing import Any

import pytest

import http_site
from headwater import Limits, Streams
from headwater.cursor import Cursor
from headwater.delivery import CONNECTION, Cut, Delivery, Policy
from headwater.errors import StoreUnavailable
from headwater.http import App
from headwater.http.admission import Admission, Bounds
from headwater.http.asked import SocketLimits
from headwater.http.auth import Keys
from headwater.http.origins import Origins
from headwater.stores.memory import MemoryStore
from headwater.testing import virtual_time
from headwater.wire import multiplex

START_MS = 1_893_456_000_000
PLENTY = 1 << 40
KEY, READER, APPENDER = "k" * 32, "r" * 32, "a" * 32


class Client:
    """A socket from its client's side, over an application's ASGI interface."""

    def __init__(self, app: Any, headers: dict[str, str], subprotocols: list[str], extensions: dict[str, Any]) -> None:
        self.said: list[MutableMapping[str, Any]] = []
        """Every event that the application sent."""
        self._read = 0
        self._changed = asyncio.Event()
        self._taking = asyncio.Event()
        self._taking.set()
        self._gone = False
        self._inbox: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self._inbox.put_nowait({"type": "websocket.connect"})
        self.received = 0
        """Frames that the application has taken in."""
        scope = {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "path": "/v1/ws",
            "root_path": "",
            "query_string": b"",
            "headers": [(name.encode(), value.encode()) for name, value in {"host": "here", **headers}.items()],
            "subprotocols": subprotocols,
            "client": ("127.0.0.1", 50000),
            "extensions": extensions,
        }
        self.task = asyncio.create_task(app(scope, self._receive, self._send), name="socket")
        self.task.add_done_callback(lambda _: self._changed.set())

    async def _receive(self) -> dict[str, Any]:
        event = await self._inbox.get()
        self.received += 1
        return event

    async def _send(self, event: MutableMapping[str, Any]) -> None:
        await self._taking.wait()
        if self._gone:
            raise OSError("the client has left")
        self.said.append(event)
        self._changed.set()

    def say(self, op: str, **said: Any) -> None:
        self._inbox.put_nowait({"type": "websocket.receive", "text": json.dumps({"op": op, **said})})

    def send(self, frame: str | bytes) -> None:
        kind = "text" if isinstance(frame, str) else "bytes"
        self._inbox.put_nowait({"type": "websocket.receive", kind: frame})

    def say_bytes(self, op: str, *data: bytes, **said: Any) -> None:
        self.send(multiplex.joined(json.dumps({"op": op, **said}).encode(), data))

    async def next(self) -> dict[str, Any]:
        """The next frame; of a binary one the messages as a list of bytes. A close is `{"op": "(close)", …}`."""
        async with asyncio.timeout(3600):
            while len(self.said) <= self._read:
                assert not self.task.done() or self.task.result(), "the application is done"
                self._changed.clear()
                await self._changed.wait()
        event = self.said[self._read]
        self._read += 1
        if event["type"] == "websocket.close":
            return {"op": "(close)", "code": event["code"], "reason": event["reason"]}
        assert event["type"] == "websocket.send", event
        if event.get("text") is not None:
            said: dict[str, Any] = json.loads(event["text"])
            return said
        head, data = multiplex.split(event["bytes"])
        return {**json.loads(head), "messages": data}

    async def ask(self, op: str, **said: Any) -> dict[str, Any]:
        self.say(op, **said)
        return await self.next()

    def unread(self) -> int:
        return len(self.said) - self._read

    async def quiet(self) -> None:
        """Nothing more comes by itself."""
        known = len(self.said)
        for _ in range(50):
            await asyncio.sleep(0)
        assert self.said[known:] == []

    def stall(self) -> None:
        self._taking.clear()

    def take(self) -> None:
        self._taking.set()

    def leave(self) -> None:
        self._gone = True
        self._taking.set()
        self._inbox.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def done(self) -> None:
        async with asyncio.timeout(10):
            await asyncio.shield(self.task)


class Site:
    def __init__(self, streams: Streams, app: App) -> None:
        self.streams, self.app = streams, app
        self.clients: list[Client] = []

    def connect(self, *subprotocols: str, extensions: dict[str, Any] | None = None, **headers: str) -> Client:
        client = Client(self.app, headers, [*subprotocols] or ["headwater.v1"], extensions or {})
        self.clients.append(client)
        return client

    async def opened(self, **headers: str) -> Client:
        client = self.connect(**headers)
        while not client.said:
            await asyncio.sleep(0)
        assert client.said.pop() == {"type": "websocket.accept", "subprotocol": "headwater.v1"}
        return client

    @property
    def resource(self) -> Any:
        return self.app._sockets


@asynccontextmanager
async def open_site(
    store: Any = "memory:", limits: Limits | None = None, socket: SocketLimits | None = None, **options: Any
) -> AsyncIterator[Site]:
    loop = asyncio.get_running_loop()
    clock = lambda: START_MS + round(loop.time() * 1000)  # noqa: E731
    policy = options.pop("policy", Policy())
    async with Streams(store, limits=limits or Limits(), clock=clock) as streams:
        app = App(streams, delivery=Delivery(streams, policy), **options)
        if socket is not None:
            app._sockets.door = app._sockets.door._replace(limits=socket)
        site = Site(streams, app)
        try:
            yield site
        finally:
            for client in site.clients:
                client.leave()
                await asyncio.wait([client.task])
            assert [tail for tail in streams.hub if tail.readers] == [], "somebody still reads"
            assert site.resource.statistics() == {"sockets": 0, "channels": 0}
            assert streams.on_drain == []
            assert app.delivery.rounds._bucket_of == {}


def at(stream_head: Any) -> str:
    return str(stream_head.offset)


# -- who may come in --------------------------------------------------------------------------------------------------

HTTP = {"websocket.http.response": {}}


async def refused(client: Client) -> tuple[int, dict[str, Any]]:
    """Status and body of the HTTP answer."""
    await client.done()
    start, *bodies = client.said
    assert start["type"] == "websocket.http.response.start"
    said: dict[str, Any] = json.loads(b"".join(event["body"] for event in bodies))
    return start["status"], said["error"]


@virtual_time
async def test_the_subprotocol_must_be_offered():
    async with open_site() as site:
        status, error = await refused(site.connect("graphql-ws", extensions=HTTP))
        assert (status, error["message"]) == (400, "offer the WebSocket subprotocol headwater.v1")
        client = site.connect("graphql-ws")
        await client.done()
        assert client.said == [
            {"type": "websocket.close", "code": 4400, "reason": "offer the WebSocket subprotocol headwater.v1"}
        ]
        await site.opened()


@virtual_time
async def test_pages_of_other_origins_are_refused_although_no_browser_asks_before():
    async with open_site(origins=Origins(["https://app.example.com"])) as site:
        for origin in ("https://evil.example", "null"):
            status, error = await refused(site.connect(extensions=HTTP, origin=origin))
            assert (status, error["code"]) == (403, "forbidden")
        for origin in ("https://app.example.com", "http://here"):
            await site.opened(origin=origin)
    async with open_site(origins=Origins(hosts=["127.0.0.1"])) as site:  # DNS rebinding
        status, _ = await refused(site.connect(extensions=HTTP, host="evil.example", origin="http://evil.example"))
        assert status == 403


@virtual_time
async def test_other_paths_are_no_sockets():
    async with open_site() as site:
        for scope in ({"path": "/v1/other"}, {"path": "/v1/ws/x"}, {"path": "/v1/ws", "root_path": "/v1"}):
            said: list[Any] = []

            async def send(event: Any, said: list[Any] = said) -> None:
                said.append(event)

            await site.app({"type": "websocket", **scope}, None, send)  # type: ignore[arg-type]
            assert said == [{"type": "websocket.close", "code": 4404, "reason": "no WebSocket here"}]


@virtual_time
async def test_a_server_that_goes_away_takes_nobody():
    async with open_site() as site:
        site.streams.drain()
        status, error = await refused(site.connect(extensions=HTTP))
        assert (status, error["code"]) == (503, "draining")


@pytest.fixture
def keys(tmp_path) -> Keys:
    path = tmp_path / "keys.toml"
    path.write_text(
        f'[[key]]\nname = "all"\nsecret = "{KEY}"\n'
        f'[[key]]\nname = "appender"\nsecret = "{APPENDER}"\nactions = ["append"]\n'
        f'[[key]]\nname = "reader"\nsecret = "{READER}"\nactions = ["read"]\nstreams = ["public/*"]\n'
    )
    return Keys.from_file(str(path))


@virtual_time
async def test_a_key_in_the_request_is_enough_and_a_wrong_one_too_little(keys: Keys):
    async with open_site(auth=keys) as site:
        client = await site.opened(authorization=f"Bearer {KEY}")
        assert (await client.ask("open", ref=1, stream="s"))["op"] == "ok"
        status, error = await refused(site.connect(extensions=HTTP, authorization="Bearer wrong"))
        assert (status, error["code"]) == (401, "unauthorized")


@virtual_time
async def test_a_browser_says_its_key_first(keys: Keys):
    async with open_site(auth=keys) as site:
        client = await site.opened()
        assert await client.ask("auth", token=KEY, ref="a") == {"op": "ok", "ref": "a"}
        assert (await client.ask("open", ref=1, stream="s"))["op"] == "ok"
        assert await client.ask("auth", token=READER) == {"op": "ok"}  # renewed, and may do less
        assert (await client.ask("append", ref=2, stream="s", messages=[1]))["status"] == 403
        assert (await client.ask("auth", token="wrong"))["code"] == 4401


@pytest.mark.parametrize(
    "first", ['{"op":"auth","token":"wrong"}', '{"op":"ping"}', '{"op":"nonsense"}', '{"op":"follow","id":1}']
)
@virtual_time
async def test_whoever_says_something_else_first_is_let_go(first: str, keys: Keys):
    async with open_site(auth=keys) as site:
        client = await site.opened()
        client.send(first)
        assert (await client.next())["code"] == 4401
        await client.done()


@virtual_time
async def test_whoever_says_nothing_is_let_go_after_a_while(keys: Keys):
    async with open_site(auth=keys) as site:
        client = await site.opened()
        assert (await client.next())["code"] == 4401
        assert asyncio.get_running_loop().time() == pytest.approx(10, abs=0.1)
        known = await site.opened()
        await known.ask("auth", token=KEY)
        await asyncio.sleep(12)  # who has said it may be silent
        assert (await known.ask("ping")) == {"op": "pong"}


@virtual_time
async def test_each_request_takes_the_right_to_it(keys: Keys):
    async with open_site(auth=keys) as site:
        await site.streams.create("public/a", "x", content_type="text/plain")
        await site.streams.create("private", "x", content_type="text/plain")
        client = await site.opened(authorization=f"Bearer {READER}")
        assert (await client.ask("follow", id=1, stream="public/a"))["op"] == "following"
        asked = [
            ("follow", {"id": 2, "stream": "private"}),
            ("open", {"ref": 1, "stream": "public/b"}),
            ("append", {"ref": 1, "stream": "public/a", "messages": ["x"]}),
            ("append", {"ref": 1, "stream": "public/a", "close": True}),
            ("close", {"ref": 1, "stream": "public/a"}),
        ]
        for op, said in asked:
            answer = await client.ask(op, **said)
            assert (answer["op"], answer["code"]) == ("error", "forbidden"), op
            assert {key: answer[key] for key in ("ref", "id") if key in answer}.items() <= said.items()


@virtual_time
async def test_who_may_append_may_not_close_by_it(keys: Keys):
    async with open_site(auth=keys) as site:
        await site.streams.create("s")
        client = await site.opened(authorization=f"Bearer {APPENDER}")
        assert (await client.ask("append", ref=1, stream="s", messages=[1]))["op"] == "ok"
        assert (await client.ask("append", ref=1, stream="s", messages=[1], close=True))["code"] == "forbidden"
        client.say_bytes("append", b"1", ref=1, stream="s", close=True)
        assert (await client.next())["code"] == "forbidden"
        assert not (await site.streams.head("s")).closed


@virtual_time
async def test_the_servers_own_streams():
    async with open_site() as site:
        await site.streams.create("runs/1", {"n": 1}, labels={"kind": "run"})
        await site.streams.create("headwater/leases", {"n": 1})
        client = await site.opened()
        assert (await client.ask("follow", id=1, stream="runs/1"))["op"] == "following"
        assert (await client.ask("follow", id=2, stream="headwater/leases"))["code"] == "forbidden"
        for op, said in (("append", {"messages": [1]}), ("close", {})):
            assert (await client.ask(op, ref=1, stream="runs/1", **said))["code"] == "forbidden"
        assert (await client.ask("open", ref=1, stream="responses/1"))["code"] == "forbidden"
        assert (await client.ask("open", ref=1, stream="a/../b"))["code"] == "bad_request"


@virtual_time
async def test_limits_count_what_comes_by_socket(keys: Keys):
    admission = Admission(Bounds(appends_per_second=1, readers_per_client=2), asyncio.get_running_loop().time)
    async with open_site(admission=admission) as site:
        await site.streams.create("s", content_type="text/plain")
        client = await site.opened()
        assert [(await client.ask("append", ref=n, stream="s", messages=["x"]))["op"] for n in range(3)] == [
            "ok",
            "ok",
            "error",
        ]
        told = await client.ask("append", ref=9, stream="s", messages=["x"])
        assert (told["status"], told["retry"], told["detail"]) == (429, True, {"retry_after": 1})
        assert [(await client.ask("follow", id=n, stream="s"))["op"] for n in range(3)] == [
            "following",
            "following",
            "error",
        ]
        assert (await client.ask("unfollow", id=0))["op"] == "ok"
        assert (await client.ask("follow", id=3, stream="s"))["op"] == "following"
        assert admission.readers == 2
        client.leave()
        await client.done()
        assert admission.readers == 0


# -- writing ----------------------------------------------------------------------------------------------------------


@virtual_time
async def test_open_append_close():
    async with open_site() as site:
        client = await site.opened()
        opened = await client.ask("open", ref="o", stream="s", messages=[{"a": 1}])
        assert opened == {
            "op": "ok",
            "ref": "o",
            "offset": at(await site.streams.head("s")),
            "content_type": "application/json",
            "created": True,
        }
        assert (await client.ask("open", ref="o", stream="s"))["created"] is False
        assert (await client.ask("open", ref="o", stream="s", content_type="text/plain"))["code"] == "stream_exists"
        appended = await client.ask("append", ref=7, stream="s", messages=["x", [1, 2]])
        assert appended == {"op": "ok", "ref": 7, "offset": at(await site.streams.head("s"))}
        closed = await client.ask("close", ref=8, stream="s", outcome="failed")
        assert closed == {"op": "ok", "ref": 8, "offset": appended["offset"], "closed": True, "outcome": "failed"}
        again = await client.ask("close", ref=9, stream="s")
        assert (again["duplicate"], again["outcome"]) == (True, "failed")
        late = await client.ask("append", ref=10, stream="s", messages=[1])
        assert (late["code"], late["status"], late["detail"]) == (
            "stream_closed",
            409,
            {"offset": appended["offset"], "outcome": "failed"},
        )
        page = await site.streams.read("s")
        assert [message.data for message in page.messages] == [b'{"a": 1}', b'"x"', b"[1, 2]"]


@virtual_time
async def test_what_a_stream_can_be_opened_with():
    async with open_site() as site:
        client = await site.opened()
        await client.ask("open", ref=1, stream="a", content_type="text/plain", ttl=60, closed=True, messages=["x"])
        config = (await site.streams.head("a")).config
        assert (config.content_type, config.ttl) == ("text/plain", 60)
        assert (await client.ask("close", ref=1, stream="a"))["closed"] is True
        await client.ask("open", ref=1, stream="b", expires_at="2031-01-01T00:00:00Z", retention="messages=2")
        config = (await site.streams.head("b")).config
        assert config.expires_at == 1_924_992_000_000
        assert config.retention is not None
        assert config.retention.messages == 2
        both = await client.ask("open", ref=1, stream="c", ttl=1, expires_at="2031-01-01T00:00:00Z")
        assert both["message"] == "give ttl or expires_at, not both"
        assert (await client.ask("open", ref=1, stream="c", expires_at="soon"))["code"] == "bad_request"


@virtual_time
async def test_a_producers_retry_counts_once_and_its_zombie_is_fenced():
    async with open_site() as site:
        client = await site.opened()
        await client.ask("open", ref=0, stream="s")

        async def append(epoch: int, seq: int, **more: Any) -> dict[str, Any]:
            producer = {"id": "p", "epoch": epoch, "seq": seq}
            return await client.ask("append", ref=1, stream="s", messages=[seq], producer=producer, **more)

        first = await append(0, 0)
        assert await append(0, 0) == {**first, "duplicate": True}
        gap = await append(0, 2)
        assert (gap["code"], gap["detail"]) == ("producer_gap", {"expected": 1, "received": 2})
        await append(1, 0)
        fenced = await append(0, 1)
        assert (fenced["status"], fenced["detail"]) == (403, {"epoch": 1})
        closing = await append(1, 1, close=True, outcome="completed")
        assert await append(1, 1, close=True) == {**closing, "duplicate": True}
        assert len((await site.streams.read("s")).messages) == 3


@virtual_time
async def test_conditions_of_an_append():
    async with open_site() as site:
        client = await site.opened()
        opened = await client.ask("open", ref=0, stream="s", messages=[0])
        here = {"stream": "s", "messages": [1], "ref": 1}
        assert (await client.ask("append", **here, if_match=opened["offset"]))["op"] == "ok"
        stale = await client.ask("append", **here, if_match=opened["offset"])
        assert (stale["status"], stale["detail"]["offset"]) == (412, at(await site.streams.head("s")))
        assert (await client.ask("append", **here, if_match="x"))["code"] == "bad_offset"
        producer = {"id": "p", "epoch": 0, "seq": 0}
        assert (await client.ask("append", **here, if_match="x", producer=producer))["code"] == "bad_request"
        assert (await client.ask("append", **here, seq="b"))["op"] == "ok"
        assert (await client.ask("append", **here, seq="a"))["code"] == "sequence_regression"
        assert (await client.ask("append", **here, outcome="failed"))["status"] == 400
        assert (await client.ask("append", ref=1, stream="s"))["status"] == 400
        assert (await client.ask("append", ref=1, stream="none", messages=[1]))["code"] == "stream_not_found"


@virtual_time
async def test_what_was_read_as_messages_of_one_type_is_not_kept_as_another(monkeypatch):
    async with open_site() as site:
        await site.streams.create("s", content_type="text/plain")
        client = await site.opened()
        head = site.streams.head

        async def changed_meanwhile(name: str) -> Any:
            known = await head(name)
            monkeypatch.undo()
            await site.streams.delete(name)
            await site.streams.create(name, content_type="application/json")
            return known

        monkeypatch.setattr(site.streams, "head", changed_meanwhile)
        told = await client.ask("append", ref=1, stream="s", messages=["no JSON"])
        assert told["code"] == "content_type_mismatch"


@virtual_time
async def test_binary_messages_are_bytes_and_too_large_ones_are_refused():
    async with open_site(limits=Limits(message_bytes=10)) as site:
        client = await site.opened()
        client.say_bytes("open", b"\0\xff", ref=1, stream="b", content_type="image/png")
        assert (await client.next())["created"] is True
        client.say_bytes("append", b"", b"\x80" * 10, ref=2, stream="b", close=True)
        assert (await client.next())["closed"] is True
        assert [m.data for m in (await site.streams.read("b")).messages] == [b"\0\xff", b"", b"\x80" * 10]
        client.say_bytes("open", b"x" * 11, ref=3, stream="c", content_type="image/png")
        assert (await client.next())["status"] == 413
        wrong = await client.ask("open", ref=4, stream="c", content_type="image/png", messages=["x"])
        assert wrong["message"] == "this stream holds image/png: send its messages in a binary frame"


@virtual_time
async def test_requests_to_one_stream_keep_their_order_without_waiting_for_answers():
    async with open_site() as site:
        client = await site.opened()
        client.say("open", ref="open", stream="s")
        for number in range(50):
            client.say("append", ref=number, stream="s", messages=[number])
        client.say("close", ref="close", stream="s")
        client.say("follow", id=1, stream="s", credit=PLENTY)
        answers = [await client.next() for _ in range(53)]
        assert [answer.get("ref", answer["op"]) for answer in answers] == ["open", *range(50), "close", "following"]
        assert all(answer["op"] != "error" for answer in answers)
        messages = await client.next()
        assert messages["messages"] == list(range(50))
        assert (await client.next())["op"] == "end"


class SlowStore(MemoryStore):
    """Commits wait until they are let through."""

    def __init__(self) -> None:
        super().__init__()
        self.through = asyncio.Event()
        self.through.set()
        self.begun = 0
        self.reads = 0
        self.broken = False

    def commit(self, *args: Any) -> Any:
        self.begun += 1

        async def late() -> None:
            await self.through.wait()
            await MemoryStore.commit(self, *args)

        return asyncio.ensure_future(late())

    async def read(self, *args: Any, **options: Any) -> Any:
        self.reads += 1
        if self.broken:
            raise StoreUnavailable("disk on fire at /secret")
        return await super().read(*args, **options)


@virtual_time
async def test_one_slow_stream_holds_up_no_other():
    store = SlowStore()
    async with open_site(store) as site:
        await site.streams.create("slow")
        await site.streams.create("read", {"n": 1})
        client = await site.opened()
        store.through.clear()
        client.say("append", ref="slow", stream="slow", messages=[1])
        client.say("follow", id=1, stream="read", credit=PLENTY)
        assert (await client.next())["op"] == "following"
        assert (await client.next())["op"] == "messages"
        store.through.set()
        assert (await client.next())["ref"] == "slow"


@virtual_time
async def test_a_client_that_asks_too_much_at_once_is_not_read():
    store = SlowStore()
    async with open_site(store, socket=SocketLimits(unanswered=4, unanswered_bytes=1000)) as site:
        names = [f"s{number}" for number in range(20)]
        for name in names:
            await site.streams.create(name)
        client = await site.opened()
        store.through.clear()
        for name in names:
            client.say("append", ref=name, stream=name, messages=[1])
        await client.quiet()
        assert client.received == 1 + 4  # the connect, and as many requests as may be unanswered
        store.through.set()
        assert {(await client.next())["ref"] for _ in names} == set(names)

        store.through.clear()
        for name in names[:3]:
            client.say("append", ref=name, stream=name, messages=["x" * 600])
        await client.quiet()
        assert client.received == 1 + 20 + 2  # two of them are more than 1000 bytes
        store.through.set()
        assert [(await client.next())["op"] for _ in range(3)] == ["ok"] * 3


@virtual_time
async def test_what_was_asked_before_the_client_left_is_done():
    store = SlowStore()
    async with open_site(store) as site:
        await site.streams.create("s")
        client = await site.opened()
        store.through.clear()
        client.say("append", ref=1, stream="s", messages=[1])
        client.say("append", ref=2, stream="s", messages=[2])
        client.say("follow", id=1, stream="s")
        client.leave()
        await asyncio.sleep(1)
        assert not client.task.done()
        store.through.set()
        await client.done()
        assert len((await site.streams.read("s")).messages) == 2


# -- following --------------------------------------------------------------------------------------------------------


@virtual_time
async def test_follow_from_the_start_to_the_end():
    async with open_site() as site:
        start = await site.streams.append("s", {"n": 1}) if await site.streams.create("s") else None
        client = await site.opened()
        following = await client.ask("follow", id=0, ref="f", stream="s", credit=PLENTY)
        offset = following.pop("offset")
        assert following == {"op": "following", "id": 0, "ref": "f", "stream": "s", "content_type": "application/json"}
        assert offset < str(start)
        assert await client.next() == {
            "op": "messages",
            "id": 0,
            "offset": str(start),
            "bytes": 7,
            "up_to_date": True,
            "messages": [{"n": 1}],
        }
        await site.streams.append("s", {"n": 2}, {"n": 3})
        assert (await client.next())["messages"] == [{"n": 2}, {"n": 3}]
        final = await site.streams.append("s", {"n": 4}, close=True, outcome="cancelled")
        assert (await client.next())["messages"] == [{"n": 4}]
        assert await client.next() == {"op": "end", "id": 0, "offset": str(final), "outcome": "cancelled"}
        resumed = await client.ask("follow", id=0, stream="s", offset=str(start), credit=PLENTY)  # the id is free
        assert resumed["offset"] == str(start)
        assert (await client.next())["messages"] == [{"n": 2}, {"n": 3}, {"n": 4}]
        assert (await client.next())["op"] == "end"


@virtual_time
async def test_follow_from_now():
    async with open_site() as site:
        await site.streams.create("s", 1, 2)
        client = await site.opened()
        following = await client.ask("follow", id=1, stream="s", offset="now", credit=PLENTY)
        assert (following["offset"], following["up_to_date"]) == (at(await site.streams.head("s")), True)
        await site.streams.append("s", 3)
        assert (await client.next())["messages"] == [3]


@virtual_time
async def test_what_cannot_be_followed():
    async with open_site(socket=SocketLimits(channels=2)) as site:
        await site.streams.create("s", 1)
        client = await site.opened()
        told = await client.ask("follow", id=1, stream="none")
        assert (told["op"], told["id"], told["code"], told["status"]) == ("error", 1, "stream_not_found", 404)
        assert (await client.ask("follow", id=1, stream="s", offset="x"))["code"] == "bad_offset"
        beyond = "9999999999999999_9999999999999999"
        assert (await client.ask("follow", id=1, stream="s", offset=beyond))["code"] == "bad_offset"
        assert (await client.ask("follow", id=1, stream="s"))["op"] == "following"
        assert (await client.ask("follow", id=1, stream="s"))["code"] == "channel_in_use"
        assert (await client.ask("follow", id=2, stream="s"))["op"] == "following"
        told = await client.ask("follow", id=3, stream="s")
        assert (told["code"], told["status"], told["detail"]) == ("too_many_channels", 429, {"most": 2})
        assert await client.ask("unfollow", id=1) == {"op": "ok", "id": 1}
        assert (await client.ask("follow", id=3, stream="s"))["op"] == "following"


@virtual_time
async def test_unfollow_is_the_last_that_is_heard_of_a_channel():
    async with open_site() as site:
        await site.streams.create("s", 1)
        client = await site.opened()
        client.say("follow", id=1, stream="s", credit=PLENTY)
        client.say("unfollow", id=1, ref="u")
        said = [await client.next() for _ in range(2)]
        while said[-1]["op"] == "messages":
            said.append(await client.next())
        assert said[0]["op"] == "following"
        assert said[-1] == {"op": "ok", "id": 1, "ref": "u"}
        await site.streams.append("s", 2)
        await client.quiet()
        assert await client.ask("unfollow", id=1) == {"op": "ok", "id": 1}  # it may have crossed the end
        client.say("credit", id=1, bytes=5)
        await client.quiet()


@virtual_time
async def test_a_stream_that_goes_ends_its_own_channel_only():
    async with open_site() as site:
        for name in ("gone", "short", "stays"):
            await site.streams.create(name, ttl=5 if name == "short" else None)
        client = await site.opened()
        for number, name in enumerate(("gone", "short", "stays")):
            assert (await client.ask("follow", id=number, stream=name))["op"] == "following"  # without credit, too
        await site.streams.delete("gone")
        told = await client.next()
        assert (told["op"], told["id"], told["code"], told["status"]) == ("interrupted", 0, "stream_not_found", 404)
        told = await client.next()
        assert (told["op"], told["id"], told["code"]) == ("interrupted", 1, "stream_not_found")
        assert 5 <= asyncio.get_running_loop().time() <= 7
        client.say("credit", id=2, bytes=5)
        await site.streams.append("stays", 1)
        assert (await client.next())["messages"] == [1]


@pytest.mark.parametrize("credit", [0, PLENTY])
@virtual_time
async def test_another_stream_under_the_name_is_not_taken_for_the_first(credit: int):
    async with open_site() as site:
        await site.streams.create("s", 1)
        client = await site.opened()
        await client.ask("follow", id=1, stream="s", offset="now", credit=credit)
        client.stall()
        client.say("ping")
        await asyncio.sleep(0.1)  # it does not see the deletion before there is the next one
        await site.streams.delete("s")
        await site.streams.create("s", 2)
        client.take()
        assert (await client.next())["op"] == "pong"
        assert (await client.next())["code"] == "offset_gone"


@virtual_time
async def test_what_comes_while_a_channel_looks_is_not_missed(monkeypatch):
    async with open_site() as site:
        await site.streams.create("s")
        client = await site.opened()
        take = Cursor.take

        async def overtaken(cursor: Cursor) -> Any:
            page = await take(cursor)
            monkeypatch.undo()
            await site.streams.append("s", 1)
            return page

        monkeypatch.setattr(Cursor, "take", overtaken)
        await client.ask("follow", id=1, stream="s", credit=PLENTY)
        assert (await client.next())["messages"] == [1]


@virtual_time
async def test_a_store_that_fails_interrupts_and_shows_nothing_of_itself():
    store = SlowStore()
    async with open_site(store) as site:
        await site.streams.create("s", 1)
        site.streams.hub.drop_idle()  # so that the store has to be asked
        client = await site.opened()
        store.broken = True
        told = await client.ask("follow", id=1, stream="s", credit=PLENTY)
        interrupted = await client.next()
        assert interrupted == {
            "op": "interrupted",
            "id": 1,
            "offset": told["offset"],
            "code": "store_unavailable",
            "message": "the store cannot be used right now",
            "status": 503,
            "retry": True,
        }
        store.broken = False
        assert (await client.ask("follow", id=1, stream="s", offset=told["offset"], credit=9))["op"] == "following"
        assert (await client.next())["messages"] == [1]


@virtual_time
async def test_a_failure_of_ours_is_logged_and_told_without_its_text(monkeypatch, caplog):
    async with open_site() as site:
        await site.streams.create("s", 1)
        client = await site.opened()

        async def fail(*_: Any) -> Any:
            raise RuntimeError("the secret")

        monkeypatch.setattr(Cursor, "take", fail)
        await client.ask("follow", id=1, stream="s", credit=1)
        told = await client.next()
        assert (told["op"], told["code"], told["status"]) == ("interrupted", "internal", 500)
        monkeypatch.setattr(Streams, "carry_out", fail)
        told = await client.ask("append", ref=1, stream="s", messages=[1])
        assert (told["op"], told["code"]) == ("error", "internal")
        assert "secret" not in str(client.said)
        assert caplog.text.count("RuntimeError: the secret") == 2


# -- credit -----------------------------------------------------------------------------------------------------------


@virtual_time
async def test_without_credit_nothing_is_read_from_the_store():
    store = SlowStore()
    async with open_site(store) as site:
        await site.streams.create("s", "x" * 8, "y" * 8, content_type="text/plain")
        site.streams.hub.drop_idle()
        client = await site.opened()
        assert (await client.ask("follow", id=1, stream="s"))["op"] == "following"
        await client.quiet()
        await site.streams.append("s", "z" * 8)
        await client.quiet()
        assert store.reads == 0
        client.say("credit", id=1, bytes=10)
        assert (await client.next())["messages"] == ["x" * 8]
        assert (await client.next())["messages"] == ["y" * 8]  # credit was 2: one message may exceed it
        await client.quiet()
        client.say("credit", id=1, bytes=6)  # what it was exceeded by
        await client.quiet()
        client.say("credit", id=1, bytes=1)
        assert (await client.next())["messages"] == ["z" * 8]
        await client.quiet()


@virtual_time
async def test_a_message_larger_than_any_credit_still_comes():
    async with open_site() as site:
        await site.streams.create("s", b"x" * 1_000_000, b"y", content_type="image/png")
        client = await site.opened()
        await client.ask("follow", id=1, stream="s", credit=1)
        assert [len(data) for data in (await client.next())["messages"]] == [1_000_000]
        client.say("credit", id=1, bytes=999_999)
        await client.quiet()
        client.say("credit", id=1, bytes=1)
        assert (await client.next())["messages"] == [b"y"]


@virtual_time
async def test_the_end_needs_no_credit():
    async with open_site() as site:
        await site.streams.create("s", "x", content_type="text/plain")
        await site.streams.create("empty", closed=True)
        client = await site.opened()
        await client.ask("follow", id=1, stream="s", credit=1)
        assert (await client.next())["messages"] == ["x"]
        await site.streams.close("s")
        assert (await client.next())["op"] == "end"
        await client.ask("follow", id=2, stream="empty")
        assert (await client.next())["op"] == "end"
        await site.streams.create("t", "x", content_type="text/plain", closed=True)
        await client.ask("follow", id=3, stream="t")
        await client.quiet()  # there is a message before its end


@virtual_time
async def test_a_page_never_takes_more_than_the_credit():
    async with open_site() as site:
        sizes = [1, 30, 7, 0, 100, 3, 3, 3, 50, 2] * 20
        await site.streams.create("s", *("x" * size for size in sizes), content_type="text/plain")
        client = await site.opened()
        await client.ask("follow", id=1, stream="s", credit=0)
        credit, got = 0, []
        while len(got) < len(sizes):
            while credit <= 0:
                await client.quiet()
                client.say("credit", id=1, bytes=41)
                credit += 41
            page = await client.next()
            assert page["op"] == "messages", (page, credit)
            assert page["bytes"] == sum(map(len, page["messages"]))
            assert page["bytes"] <= credit or len(page["messages"]) == 1
            assert credit > 0
            credit -= page["bytes"]
            got += map(len, page["messages"])
        assert got == sizes


# -- fairness and backpressure ----------------------------------------------------------------------------------------


@virtual_time
async def test_channels_take_turns_page_by_page():
    async with open_site(policy=Policy(chunk_bytes=1000)) as site:
        await site.streams.create("long", *("x" * 500 for _ in range(200)), content_type="text/plain")
        await site.streams.create("short", "y", content_type="text/plain")
        client = await site.opened()
        client.stall()
        client.say("follow", id=1, stream="long", credit=PLENTY)
        await asyncio.sleep(0.01)
        client.say("follow", id=2, stream="short", credit=PLENTY)
        client.say("ping", ref="p")
        await asyncio.sleep(0.01)
        client.take()
        said = []
        while not (said and said[-1].get("id") == 2 and said[-1]["op"] == "messages"):
            said.append(await client.next())
        assert len(said) <= 6  # not behind the 100 pages of the other
        assert {"op": "pong", "ref": "p"} in said


@virtual_time
async def test_long_backlogs_share_the_socket_evenly():
    async with open_site(policy=Policy(chunk_bytes=1000)) as site:
        client = await site.opened()
        for number in range(3):
            await site.streams.create(f"s{number}", *("x" * 900 for _ in range(50)), content_type="text/plain")
            await client.ask("follow", id=number, stream=f"s{number}")
        for number in range(3):
            client.say("credit", id=number, bytes=PLENTY)
        said = [(await client.next())["id"] for _ in range(90)]
        assert max(abs(said.count(number) - 30) for number in range(3)) <= 1


@virtual_time
async def test_a_client_that_takes_nothing_is_read_nothing_for():
    async with open_site(policy=Policy(chunk_bytes=1000)) as site:
        await site.streams.create("s", *("x" * 500 for _ in range(1000)), content_type="text/plain")
        client = await site.opened()
        client.stall()
        for number in range(5):
            client.say("follow", id=number, stream="s", credit=PLENTY)
        await asyncio.sleep(20)
        socket = next(iter(site.resource.sockets))
        read = [socket.channels.get(number).credit for number in range(5)]
        assert [PLENTY - credit for credit in read] == [0] * 5  # `following` of the first one waits to be taken
        client.take()
        await client.next()


@virtual_time
async def test_who_does_not_take_a_write_in_time_is_cut():
    async with open_site(policy=Policy(write_seconds=30)) as site:
        cuts: list[bool] = []

        class Connection:
            def cut(self, *, at_once: bool = False) -> None:
                cuts.append(at_once)

        await site.streams.create("s", 1)
        client = site.connect(extensions={CONNECTION: Connection()})
        while not client.said:
            await asyncio.sleep(0)
        client.stall()
        client.say("follow", id=1, stream="s", credit=PLENTY)
        began = asyncio.get_running_loop().time()
        await asyncio.wait([client.task])
        client.task.result()
        assert 30 <= asyncio.get_running_loop().time() - began <= 32
        assert cuts == [True]
        assert site.app.delivery.dropped == 1


@virtual_time
async def test_where_the_connection_cannot_be_cut_the_server_does_it():
    async with open_site() as site:
        client = await site.opened()
        client.stall()
        client.say("ping")
        with pytest.raises(Cut):
            await asyncio.wait_for(asyncio.shield(client.task), 60)
        client.task = asyncio.create_task(asyncio.sleep(0))


@virtual_time
async def test_a_heartbeat_after_silence_only():
    async with open_site(policy=Policy(heartbeat_seconds=15)) as site:
        await site.streams.create("s")
        client = await site.opened()
        await client.ask("follow", id=1, stream="s", credit=PLENTY)
        clock = asyncio.get_running_loop().time
        assert await client.next() == {"op": "heartbeat"}
        assert 15 <= clock() <= 17
        for number in range(10):
            await asyncio.sleep(10)
            await site.streams.append("s", number)
            assert (await client.next())["messages"] == [number]
        client.leave()
        await client.done()


# -- what is wrong ----------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_wrong_request_is_answered_and_the_socket_goes_on():
    async with open_site() as site:
        client = await site.opened()
        client.send('{"op":"dance","ref":1}')
        told = await client.next()
        assert (told["op"], told["ref"], told["status"], told["code"]) == ("error", 1, 400, "bad_request")
        assert told["message"].startswith("unknown op; it is one of auth, open")
        client.send('{"op":"follow","id":4}')
        assert (await client.next())["id"] == 4
        client.say_bytes("ping", b"x")
        assert "binary frame" in (await client.next())["message"]
        assert await client.ask("ping", ref="still here") == {"op": "pong", "ref": "still here"}


@pytest.mark.parametrize("frame", ["", "hello", "[]", b"\0", b"\0\0\0\x01x", "{" * 10])
@virtual_time
async def test_garbage_ends_the_socket(frame: str | bytes):
    async with open_site() as site:
        client = await site.opened()
        client.send(frame)
        assert (await client.next())["code"] == 4400
        await client.done()


@virtual_time
async def test_a_frame_that_is_too_large_ends_the_socket():
    async with open_site(socket=SocketLimits(frame_bytes=100)) as site:
        client = await site.opened()
        client.send('{"op":"ping"}' + " " * 100)
        assert await client.next() == {"op": "(close)", "code": 1009, "reason": "a frame may have 100 bytes"}
        await client.done()


# -- going away -------------------------------------------------------------------------------------------------------


@virtual_time
async def test_a_client_that_leaves_leaves_nothing_behind():
    async with open_site() as site:
        for number in range(30):
            await site.streams.create(f"s{number}", number)
        client = await site.opened()
        for number in range(30):
            client.say("follow", id=number, stream=f"s{number}", credit=number % 2 * PLENTY)
        for _ in range(45):
            await client.next()
        assert site.resource.statistics() == {"sockets": 1, "channels": 30}
        assert site.streams.statistics()["readers"] == 30
        client.leave()
        await client.done()
        assert site.streams.statistics()["readers"] == 0


@virtual_time
async def test_draining_gives_everybody_a_last_turn_and_says_so():
    store = SlowStore()
    async with open_site(store, policy=Policy(chunk_bytes=1000)) as site:
        await site.streams.create("run")
        await site.streams.create("long", *("x" * 500 for _ in range(500)), content_type="text/plain")
        client = await site.opened()
        await client.ask("follow", id=1, stream="run", credit=PLENTY)
        client.say("follow", id=2, stream="long", credit=PLENTY)
        store.through.clear()
        client.say("append", ref="late", stream="long", messages=["x"])
        await asyncio.sleep(0)
        store.through.set()
        await site.streams.append("run", "over", close=True, outcome="failed")
        site.streams.drain()
        client.say("follow", id=3, stream="run")
        client.say("append", ref="too late", stream="run", messages=[1])
        said = []
        while not (said and said[-1]["op"] == "(close)"):
            said.append(await client.next())
        assert [one["op"] for one in said[-2:]] == ["draining", "(close)"]
        assert said[-1]["code"] == 1012
        assert [one["op"] for one in said if one.get("id") == 1] == ["messages", "end"]
        assert [one["op"] for one in said if one.get("ref") == "late"] == ["ok"]
        refused = [one["code"] for one in said if one.get("id") == 3 or one.get("ref") == "too late"]
        assert refused == ["draining", "draining"]
        assert sum(len(one["messages"]) for one in said if one.get("id") == 2 and "messages" in one) < 100
        await client.done()


@virtual_time
async def test_a_stalled_client_does_not_hold_up_the_end_of_the_server():
    async with open_site() as site:
        client = await site.opened()
        client.stall()
        client.say("ping")
        await asyncio.sleep(0.5)
        site.streams.drain()
        with pytest.raises(Cut):
            await client.done()
        assert asyncio.get_running_loop().time() < 4
        client.task = asyncio.create_task(asyncio.sleep(0))


@virtual_time
async def test_a_server_that_stops_at_once_cancels_and_leaves_nothing():
    store = SlowStore()
    async with open_site(store) as site:
        await site.streams.create("s", 1)
        client = await site.opened()
        await client.ask("follow", id=1, stream="s", credit=PLENTY)
        store.through.clear()
        client.say("append", ref=1, stream="s", messages=[2])
        await asyncio.sleep(1)
        client.task.cancel()
        await asyncio.wait([client.task])
        assert client.task.cancelled()
        assert site.streams.statistics()["readers"] == 0
        store.through.set()
        await asyncio.sleep(1)
        assert len((await site.streams.read("s")).messages) == 2  # it was on its way (G6)


# -- what a client may have kept --------------------------------------------------------------------------------------


@virtual_time
async def test_a_content_type_that_could_not_leave_in_a_header_does_not_come_in():
    async with open_site() as site:
        client = await site.opened()
        said = await client.ask("open", ref=1, stream="s", content_type="text/plain\r\nset-cookie: a=b")
        assert (said["op"], said["code"]) == ("error", "bad_request")
        said = await client.ask("append", ref=2, stream="s", messages=[1], seq="x" * 1025)
        assert (said["op"], said["code"]) == ("error", "bad_request")


@virtual_time
async def test_requests_that_are_refused_count_as_unanswered_with_all_their_bytes():
    async with open_site(socket=SocketLimits(unanswered_bytes=1000)) as site:
        client = await site.opened()
        client.stall()
        for _ in range(10):
            client.say("ping", **{"x" * 400: 1})
        for _ in range(100):
            await asyncio.sleep(0)
        assert client.received <= 1 + 4
        client.take()
        for _ in range(10):
            assert (await client.next())["code"] == "bad_request"


@virtual_time
async def test_a_position_that_is_gone_says_where_what_is_kept_begins():
    async with open_site() as site:
        old = await site.streams.append("s", 0) if await site.streams.create("s", content_type="text/plain") else None
        client = await site.opened()
        assert (await client.ask("follow", id=7, stream="s", offset=str(old), credit=0))["op"] == "following"
        await site.streams.delete("s")
        await site.streams.create("s", "new", content_type="text/plain")
        earliest = str((await site.streams.read("s")).start)
        interrupted = await client.next()
        if interrupted["code"] == "stream_not_found":  # it was seen before the next one was made
            interrupted = await client.ask("follow", id=7, stream="s", offset=str(old))
        refused = await client.ask("follow", id=8, stream="s", offset=str(old))
        for said in (interrupted, refused):
            assert (said["code"], said["status"], said["detail"]) == ("offset_gone", 410, {"earliest": earliest})


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@virtual_time
async def test_a_plain_request_is_told_what_to_ask_for(method: str):
    async with http_site.open_site() as site:
        call = await site.ask(method, "/v1/ws")
        http_site.refused(call, 426, "upgrade_required")
        assert (call.headers["upgrade"], call.headers["connection"]) == ("websocket", "upgrade")
        assert "headwater.v1" in call.json()["error"]["message"]
