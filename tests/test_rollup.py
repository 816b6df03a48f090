"""formats/rollup.py: whatever is rolled up, wherever it begins and however it is paged, a client holds the same.

Clients are folds by the rules that the real ones have; the real ones are put through it in test_js_agents.py and
test_openai_clients.py.
"""

import asyncio
import itertools
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from ag_ui.core import (
    TextMessageContentEvent,
    TextMessageEndEvent,
    TextMessageStartEvent,
    ToolCallArgsEvent,
    ToolCallEndEvent,
    ToolCallResultEvent,
    ToolCallStartEvent,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from asgi_client import Client
from headwater import Streams
from headwater.delivery import Delivery, Policy
from headwater.errors import BadRequest, Draining
from headwater.formats.agui_events import AguiEvents, AguiLines
from headwater.formats.ai_sdk import UiMessageChunks
from headwater.formats.format import Format
from headwater.formats.lines import Lines
from headwater.formats.openai_chat import ChatChunks, ChatFold
from headwater.formats.openai_responses import ResponseEvents, ResponseFold
from headwater.formats.projection import ProjectedEvents, parse_id
from headwater.formats.rollup import HELD_CHARACTERS, RolledUp, is_wanted
from headwater.formats.sse import ServerSentEvents
from headwater.formats.transcript import Transcript
from headwater.http import App
from headwater.model import BEGINNING, Message, Offset, Page
from headwater.runs import Runs
from headwater.wire.sse import Decoder
from random_runs import RUN, messages, runs
from test_formats_openai import WHOLE

DELTAS = {"TEXT_MESSAGE_CONTENT", "REASONING_MESSAGE_CONTENT", "TOOL_CALL_ARGS"}

Told = list[tuple[str, str]]
"""What a client was sent: ids and data."""


class Kind(NamedTuple):
    """A kind of client: the format for one that has all up to an id, and what it holds after what it was told."""

    format: Callable[[str | None, bool], Format]
    held: Callable[[Told], Any]


# --- what clients hold -----------------------------------------------------------------------------------------------


class Sums:
    """Deltas added up by the part they are of, and all else in its order."""

    def __init__(self) -> None:
        self.texts: dict[Any, str] = {}
        self.others: list[Any] = []

    def add(self, part: Any, text: str) -> None:
        self.texts[part] = self.texts.get(part, "") + text


def agui(told: Told) -> Any:
    """AG-UI's, TanStack's, and that of whoever reads the run as it is."""
    sums, transcript = Sums(), Transcript()
    for id_, data in told:
        event = json.loads(data)
        transcript.feed(data.encode())
        if event["type"] in DELTAS:
            delta = event.pop("delta")
            sums.add(json.dumps(event, sort_keys=True), delta)
        else:
            sums.others.append((id_, event))
    return transcript.messages, sums.texts, sums.others


def ai_sdk(told: Told) -> Any:
    """The parts of `useChat`'s message, and what `onData` was given."""
    parts: dict[Any, Any] = {}
    sums = Sums()
    for id_, data in told:
        chunk = json.loads(data) if data != "[DONE]" else {"type": data}
        match chunk["type"]:
            case "text-delta" | "reasoning-delta":
                parts[chunk["id"]] += chunk["delta"]  # KeyError: it was not started, and the client fails
            case "text-start" | "reasoning-start":
                parts[chunk["id"]] = ""
            case "tool-input-start":
                parts[chunk["toolCallId"]] = ""
            case "tool-input-delta":
                parts[chunk["toolCallId"]] += chunk["inputTextDelta"]
            case "data-subagent-event" if "delta" in chunk["data"]:
                delta = chunk["data"].pop("delta")
                sums.add(json.dumps(chunk, sort_keys=True), delta)
                continue
            case _:
                sums.others.append((id_, chunk, list(parts.items())))
    return parts, sums.texts, sums.others


DONE_FIELDS = ("text", "refusal", "arguments")


def response(told: Told) -> Any:
    """Output items by their deltas, which must come to what is said when each is done."""
    sums = Sums()
    for id_, data in told:
        event = json.loads(data)
        assert id_ == str(event["sequence_number"])
        part = event.get("item_id"), event.get("content_index"), event.get("summary_index")
        if event["type"].endswith(".delta"):
            sums.add((*part, event["type"]), event["delta"])
            continue
        field = next((field for field in DONE_FIELDS if field in event), None)
        if event["type"].endswith(".done") and field:
            assert sums.texts.get((*part, event["type"].removesuffix("done") + "delta"), "") == event[field]
        sums.others.append(event)
    return sums.texts, sums.others


def completion(told: Told) -> Any:
    """The message that chunks add up to."""
    sums = Sums()
    for id_, data in told:
        chunk = json.loads(data) if data != "[DONE]" else {}
        choice = (chunk.get("choices") or [{}])[0]
        delta = choice.get("delta") or {}
        calls = delta.pop("tool_calls", None) or []
        for call in calls:
            arguments = call["function"].pop("arguments")
            sums.add(("tool_calls", call["index"]), arguments)
        for kind in ("content", "refusal", "reasoning_content"):
            sums.add(kind, delta.pop(kind, ""))
        if (calls and "id" in calls[0]) or delta or not choice or choice["finish_reason"]:
            sums.others.append((id_, chunk))
    return sums.texts, sums.others


def by_offset(make: Callable[[], Format]) -> Callable[[str | None, bool], Format]:
    return lambda _, rolled: RolledUp(make()) if rolled else make()


def projected(version: Any) -> Callable[[str | None, bool], Format]:
    def make(after: str | None, rolled: bool) -> Format:
        place = parse_id(after)[1] if after else None
        events = ProjectedEvents(UiMessageChunks(version), RUN, place)
        return RolledUp(events, place.offset if place else BEGINNING) if rolled else events

    return make


def chat_chunks(after: str | None, rolled: bool) -> Format:
    fold = ChatFold(RUN, "bot", include_usage=True, show_tools=True)
    return ChatChunks(fold, int(after) if after else -1, rolled_up=rolled)


KINDS = {
    "ag-ui": Kind(by_offset(AguiEvents), agui),
    "ag-ui lines": Kind(by_offset(AguiLines), agui),
    "sse": Kind(by_offset(lambda: ServerSentEvents("application/json", named=False)), agui),
    "ndjson": Kind(by_offset(lambda: Lines("application/json", tells_failure=True)), agui),
    "ai 5": Kind(projected(5), ai_sdk),
    "ai 6": Kind(projected(6), ai_sdk),
    "ai 7": Kind(projected(7), ai_sdk),
    "responses": Kind(
        lambda after, rolled: ResponseEvents(ResponseFold(RUN, "bot"), int(after) if after else -1, rolled_up=rolled),
        response,
    ),
    "chat completions": Kind(chat_chunks, completion),
}
of_every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


# --- what they are sent ----------------------------------------------------------------------------------------------


def pages(run: list[Message], begin: int, size: int, tail: int) -> list[Page]:
    """The run from `begin` on, by pages of `size`; at `tail` it stood when the client came.

    As from delivery: who begins at the tail gets an empty page first.
    """
    edges = sorted({begin, *range(begin, len(run), size), max(begin, tail), len(run)})
    return [
        Page(run[start:end], Offset(3, start), Offset(3, end), end >= tail, end == len(run), "completed")
        for start, end in [*([(begin, begin)] if begin >= tail else []), *itertools.pairwise(edges)]
    ]


def received(format_: Format, body: bytes) -> Told:
    if "ndjson" not in format_.content_type:
        return [(event.id if event.data != "[DONE]" else "", event.data) for event in Decoder().feed(body)]
    lines = [line for line in body.decode().split("\n") if line]
    if '"chunk":' not in body.decode():
        return [("", line) for line in lines]
    return [(one["id"], json.dumps(one["chunk"])) for one in map(json.loads, lines)]


def read(
    kind: Kind, run: list[Message], *, rolled: bool, after: str | None = None, size: int = 1000, tail: int = 10**9
) -> Told:
    """All that a client is sent that has everything up to the event `after`."""
    format_ = kind.format(after, rolled)
    begin = 0
    if after and not format_.folds:
        offset = Offset.parse(after)
        assert offset is not None
        begin = offset.position
    told = pages(run, begin, size, min(tail, len(run)))
    body = b"".join(map(format_.render, told))
    return received(format_, body + (format_.ending(told[-1]) if told else b""))


@st.composite
def long_runs(draw: st.DrawFn) -> list[Message]:
    """Any run, its deltas in more pieces."""
    times = draw(st.integers(1, 4))
    events = [json.loads(message.data) for message in draw(runs())[1:]]
    return messages(*(event for event in events for _ in range(times if event["type"] in DELTAS else 1)))


@pytest.mark.parametrize("name", ["ag-ui", "ai 7", "responses", "chat completions"])
@settings(max_examples=40)
@given(long_runs(), st.integers(1, 9), st.integers(0, 30), st.integers(0, 60))
def test_a_client_holds_the_same_wherever_it_begins(
    name: str, run: list[Message], size: int, tail: int, number: int
) -> None:
    kind = KINDS[name]
    plain = read(kind, run, rolled=False)
    assert kind.held(read(kind, run, rolled=True, size=size, tail=tail)) == kind.held(plain)
    had = plain[: 1 + number % len(plain)]
    if had[-1][0] and had[-1][1] != "[DONE]":
        rest = read(kind, run, rolled=True, after=had[-1][0], size=size, tail=tail)
        assert kind.held([*had, *rest]) == kind.held(plain)


def in_pieces(event: dict[str, Any]) -> list[dict[str, Any]]:
    if event["type"] not in DELTAS:
        return [event]
    return [{**event, "delta": piece} for piece in (event["delta"][:2], event["delta"][2:])]


STREAM = messages(*(piece for event in WHOLE[1:] for piece in in_pieces(event)))


@of_every_kind
@pytest.mark.parametrize("size", [1, 4, 1000])
def test_every_place_to_resume_at_and_every_tail(kind: Kind, size: int) -> None:
    plain = read(kind, STREAM, rolled=False)
    held, ids = kind.held(plain), [id_ for id_, _ in plain]
    for number, id_ in enumerate(ids[:-1], start=1):
        tail = 5 * number % len(STREAM)
        rest = read(kind, STREAM, rolled=True, after=id_ or None, size=size, tail=tail)
        assert kind.held([*plain[:number], *rest] if id_ else rest) == held
        left = iter(ids[number:] if id_ else ids)
        assert all(told in left for told, _ in rest), "an id that there is not, or in another order"


@of_every_kind
def test_what_is_past_is_short_and_what_comes_is_whole(kind: Kind) -> None:
    plain = read(kind, STREAM, rolled=False)
    rolled = read(kind, STREAM, rolled=True, size=3)
    assert len(rolled) < 0.8 * len(plain)
    assert read(kind, STREAM, rolled=True, tail=0) == plain
    live = len(STREAM) - 9
    there = read(kind, STREAM[live:], rolled=False) if kind.held is agui else plain[-3:]
    assert read(kind, STREAM, rolled=True, tail=live)[-len(there) :] == there


# --- how deltas are put together -------------------------------------------------------------------------------------


def content(delta: Any, id_: str = "m", **more: Any) -> dict[str, Any]:
    return {"type": "TEXT_MESSAGE_CONTENT", "messageId": id_, "delta": delta, **more}


def rolled(*events: dict[str, Any], size: int = 1000) -> list[tuple[int, Any]]:
    """Positions and events, without RUN_STARTED."""
    told = read(KINDS["sse"], messages(*events), rolled=True, size=size)
    return [(Offset.parse(id_).position, json.loads(data)) for id_, data in told[1:]]  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_one_delta_has_the_id_of_the_last_across_pages(size: int) -> None:
    end = {"type": "TEXT_MESSAGE_END", "messageId": "m"}
    assert rolled(content("a"), content("b"), content("c"), end, size=size) == [(4, content("abc")), (5, end)]


@pytest.mark.parametrize(
    "between",
    [
        content("x", "other"),
        content("x", subagentRunId="s"),
        {"type": "CUSTOM", "name": "tool.progress", "value": 1},
        {"type": "REASONING_MESSAGE_CONTENT", "messageId": "m", "delta": "x"},
        {"type": "TOOL_CALL_ARGS", "toolCallId": "m", "delta": "x"},
        content("x", rawEvent={"a": 1}),
        content("x", metadata={}),
        content(7),
    ],
)
def test_what_stands_between_stays_where_it_is(between: dict[str, Any]) -> None:
    told = rolled(content("a"), content("b"), between, content("c"), content("d"))
    assert told == [(3, content("ab")), (4, between), (6, content("cd"))]


def test_what_differs_from_event_to_event_is_kept_or_is_the_lasts() -> None:
    raw = [content("a", rawEvent=1), content("b", rawEvent=2)]
    assert [event for _, event in rolled(*raw)] == raw
    assert rolled(content("a", timestamp=1), content("b", timestamp=2)) == [(3, content("ab", timestamp=2))]
    of_one = [content(delta, subagentRunId="s") for delta in "ab"]
    assert rolled(*of_one) == [(3, content("ab", subagentRunId="s"))]
    assert rolled(content("a", timestamp=1, subagentRunId=None)) == [(2, content("a", timestamp=1, subagentRunId=None))]


def test_half_a_character_in_escapes_is_left_as_it_is() -> None:
    data = [rb'{"type":"TEXT_MESSAGE_CONTENT","messageId":"m","delta":"\ud83d"}'] * 2
    run = [Message(one, Offset(3, position), 0) for position, one in enumerate(data, start=1)]
    body = RolledUp(AguiEvents()).render(pages(run, 0, 10, 2)[0])
    assert body.count(rb'"\ud83d"') == 2


def test_what_is_held_back_is_bounded() -> None:
    deltas = [content("漢" * 1000) for _ in range(200)] + [content("") for _ in range(5000)]
    told = rolled(*deltas, size=50)
    lengths = [len(event["delta"]) for _, event in told]
    assert (sum(lengths), len(lengths)) == (200_000, 4)
    assert max(lengths) < HELD_CHARACTERS + 1000


# --- around it -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sse", "ag-ui", "ai 6", "responses", "chat completions"])
def test_what_is_held_is_said_before_the_connection_ends(name: str) -> None:
    text = [{"type": "TEXT_MESSAGE_START", "messageId": "m", "role": "assistant"}, content("Hel"), content("lo")]
    run = messages({"type": "CUSTOM", "name": "run.input", "value": ""}, *text)
    delta = re.compile(rb'"(?:delta|content)":"Hello"')
    page = pages(run, 0, 10, 5)[0]._replace(up_to_date=False, closed=False)
    for end in (
        lambda format_: format_.interruption(Draining("gone")),
        lambda format_: format_.ending(page),
        lambda format_: format_.rotation(page, 0, 0.5) if isinstance(format_, RolledUp) else format_.ending(page),
    ):
        format_ = KINDS[name].format(None, True)
        assert b"Hello" not in format_.render(page)
        assert len(delta.findall(end(format_))) == 1
        assert not delta.findall(end(format_))
        assert b'"lo"' in format_.render(page), "it is over"


def test_at_the_tail_readers_share_what_was_rendered_again() -> None:
    format_ = RolledUp(AguiEvents())
    run = messages(content("a"), content("b"))
    assert (format_.key, format_.folds, format_.ends_openly) == (None, False, False)
    past, *_ = pages(run, 0, 1, 3)
    format_.render(past)
    assert format_.key is None
    format_.render(pages(run, 1, 5, 3)[0])
    assert format_.key == AguiEvents().key
    assert "over" in repr(format_)
    named = RolledUp(ServerSentEvents("application/json"))
    assert named.ends_openly
    assert b'"outcome"' in named.ending(past._replace(closed=True))
    assert RolledUp(ProjectedEvents(UiMessageChunks(), RUN)).folds


def test_what_rollup_may_be() -> None:
    assert [is_wanted(given) for given in (None, "1", "0")] == [True, True, False]
    for given_ in ("", "no", "2"):
        with pytest.raises(BadRequest, match="1, or 0"):
            is_wanted(given_)


# --- over HTTP -------------------------------------------------------------------------------------------------------

TEXT = [f"word {number} " for number in range(900)]


class Talker:
    """Calls a tool and says a lot."""

    name = "bot"

    async def run(self, input: Any, sink: Any) -> None:  # noqa: A002
        await sink.emit(ToolCallStartEvent(tool_call_id="c", tool_call_name="look"))
        for piece in ('{"q"', ":1", "}"):
            await sink.emit(ToolCallArgsEvent(tool_call_id="c", delta=piece))
        await sink.emit(ToolCallEndEvent(tool_call_id="c"))
        await sink.emit(ToolCallResultEvent(message_id="r", tool_call_id="c", content="ok"))
        await sink.emit(TextMessageStartEvent(message_id="m"))
        for delta in TEXT:
            await sink.emit(TextMessageContentEvent(message_id="m", delta=delta))
        await sink.emit(TextMessageEndEvent(message_id="m"))


@asynccontextmanager
async def serving() -> AsyncIterator[Client]:
    async with Streams("memory:") as streams, Runs(streams, Talker()) as runs_:
        yield Client(App(streams, runs_))


def post(what: str, **more: Any) -> str:
    asked = {"id": "q", "role": "user", "parts": [{"type": "text", "text": "hi"}], "content": "hi"}
    bodies: dict[str, Any] = {
        "/v1/runs": {"agent": "bot", "input": "hi"},
        "/agents/bot/ag-ui": {"threadId": "t", "runId": "r", "messages": [asked]},
        "/agents/bot/chat": {"id": "c", "messages": [asked]},
        "/v1/responses": {"model": "bot", "input": "hi", "stream": True},
        "/v1/chat/completions": {"model": "bot", "messages": [{"role": "user", "content": "hi"}], "stream": True},
    }
    return json.dumps(bodies[what] | more)


DOORS = {
    "/v1/runs": ("sse", "/v1/runs/{run}/events?"),
    "/agents/bot/ag-ui": ("ag-ui", "/agents/bot/ag-ui?runId={run}"),
    "/agents/bot/chat": ("ai 6", "/agents/bot/chat/c/stream?run={run}"),
    "/v1/responses": ("responses", "/v1/responses/resp_{run}?stream=true"),
    "/v1/chat/completions": ("chat completions", None),
}


@pytest.mark.parametrize("path", DOORS)
async def test_who_starts_a_run_gets_all_and_who_comes_back_a_handful(path: str) -> None:
    name, late = DOORS[path]
    given_ = {"accept": "text/event-stream", "idempotency_key": "k"}
    async with serving() as client:
        first = await client.ask("POST", path, post(path), **given_)
        whole = received(AguiEvents(), first.body)
        assert len(whole) > len(TEXT)
        run = first.headers["x-run-id"]
        ways = [("POST", path, post(path), given_)]
        ways += [("GET", late.format(run=run), "", {})] if late else []
        for method, url, body, headers in ways:
            mark = "&" if "?" in url else "?"
            again = await client.ask(method, url, body, **headers)
            everything = await client.ask(method, f"{url}{mark}rollup=0", body, **headers)
            assert received(AguiEvents(), everything.body) == whole
            short = received(AguiEvents(), again.body)
            assert len(short) < 25
            assert KINDS[name].held(short) == KINDS[name].held(whole)
            resumed = await client.ask(method, url, body, **headers, last_event_id=whole[500][0])
            assert KINDS[name].held([*whole[:501], *received(AguiEvents(), resumed.body)]) == KINDS[name].held(whole)


async def test_lines_and_locations() -> None:
    async with serving() as client:
        for path, lines in (("/v1/runs", "ndjson"), ("/agents/bot/ag-ui", "ag-ui lines")):
            first = await client.ask("POST", path, post(path), accept="text/event-stream")
            at = first.headers["location"]
            mark = "&" if "?" in at else "?"
            at = at.replace("format=sse", "")
            short = await client.ask("GET", f"{at}{mark}format=ndjson")
            every = await client.ask("GET", f"{at}{mark}format=ndjson&rollup=0")
            both = [received(KINDS[lines].format(None, False), call.body) for call in (short, every)]
            assert (len(both[0]) < 25, len(both[1]) > len(TEXT)) == (True, True)
            assert agui(both[0]) == agui(both[1])
        for path in ("/agents/bot/ag-ui", "/agents/bot/chat"):
            asked = await client.ask("POST", f"{path}?rollup=0", post(path))
            assert "rollup=0" in asked.headers["location"]
            assert len((await client.ask("GET", asked.headers["location"])).body) > 100 * len(TEXT)


async def test_a_long_past_holds_up_nobody_though_nothing_is_sent_of_it() -> None:
    async with Streams("memory:") as streams:
        small = Delivery(streams, Policy(chunk_bytes=1024))
        async with Runs(streams, Talker(), delivery=small) as runs_:
            run = await runs_.start("bot", "hi")
            await run.wait()
            turns = itertools.count()
            done = asyncio.Event()

            async def others() -> int:
                while not done.is_set():
                    next(turns)
                    await asyncio.sleep(0)
                return next(turns)

            waiting = asyncio.create_task(others())
            call = await Client(App(streams, runs_)).ask("GET", f"/v1/runs/{run.id}/events")
            done.set()
            assert len(call.chunks) < 8
            assert await waiting > 50  # as many as there are pages


async def test_the_stream_itself_is_never_rolled_up() -> None:
    async with serving() as client:
        run = (await client.ask("POST", "/v1/runs", post("/v1/runs"), accept="text/event-stream")).headers["x-run-id"]
        for query in ("", "rollup=1", "offset=-1&live=sse", "format=sse"):
            call = await client.ask("GET", f"/v1/stream/runs/{run}?{query}")
            assert call.body.count(b'"delta":"word ') == len(TEXT), query


@pytest.mark.parametrize("path", DOORS)
async def test_what_is_neither_0_nor_1_is_refused_and_starts_nothing(path: str) -> None:
    async with serving() as client:
        refused = await client.ask("POST", f"{path}?rollup=no", post(path), accept="text/event-stream")
        assert (refused.status, "1, or 0" in refused.json()["error"]["message"]) == (400, True)
        assert (await client.ask("GET", "/v1/runs")).json()["runs"] == []
        first = await client.ask("POST", path, post(path), accept="text/event-stream")
        if at := DOORS[path][1]:
            call = await client.ask("GET", f"{at.format(run=first.headers['x-run-id'])}&rollup=2")
            assert (call.status, "1, or 0" in call.json()["error"]["message"]) == (400, True)
