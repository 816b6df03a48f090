"""What generators give, as stored events: every kind, whole and in pieces."""

import dataclasses
import datetime
from typing import Any

import fastapi.sse
import pytest
import sse_starlette
from pydantic import BaseModel
from sse_starlette.event import JSONServerSentEvent

from headwater.http.items import Events, error_event
from headwater.wire.sse import Decoder, Event


def read(*items: Any, framed: bool | None = None) -> list[Event]:
    """The events that a client gets of these items."""
    events = Events(framed)
    return Decoder().feed(b"".join(b"id: 1\n%s\n" % message for item in items for message in events.messages(item)))


def data(*items: Any, framed: bool | None = None) -> list[str]:
    return [event.data for event in read(*items, framed=framed)]


class Point(BaseModel):
    x: int
    when: datetime.date


@dataclasses.dataclass
class Pair:
    left: str
    right: int


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        ("token", "token"),
        (" token", " token"),
        ("", ""),
        ("two\nlines", "two\nlines"),
        ("Grüezi \u2028", "Grüezi \u2028"),
        (b"bytes", "bytes"),
        (bytearray(b"bytes"), "bytes"),
        (memoryview(b"bytes"), "bytes"),
        ({"a": 1, "b": [None]}, '{"a":1,"b":[null]}'),
        ({"data": 1, "more": 2}, '{"data":1,"more":2}'),
        ([1, "x"], '[1,"x"]'),
        (7, "7"),
        (None, "null"),
        (Point(x=1, when=datetime.date(2026, 1, 2)), '{"x":1,"when":"2026-01-02"}'),
        (Pair("l", 1), '{"left":"l","right":1}'),
        ({"point": Point(x=1, when=datetime.date(2026, 1, 2))}, '{"point":{"x":1,"when":"2026-01-02"}}'),
    ],
)
def test_one_item_is_one_event(item: Any, wanted: str) -> None:
    assert read(item) == [Event(wanted, "message", "1")]


@pytest.mark.parametrize(
    ("item", "wanted"),
    [
        ({"data": "x"}, ("x", "message")),
        ({"data": "x", "event": "tick", "id": "9", "retry": 100, "comment": "c"}, ("x", "tick")),
        ({"data": {"n": 1}, "event": "tick"}, ('{"n":1}', "tick")),
        ({"data": None, "event": "done"}, ("", "done")),
        (sse_starlette.ServerSentEvent("x", event="tick", id="9", comment="c"), ("x", "tick")),
        (sse_starlette.ServerSentEvent("a\r\nb"), ("a\nb", "message")),
        (JSONServerSentEvent({"n": 1}), ('{"n":1}', "message")),
        (fastapi.sse.ServerSentEvent(data="x", event="tick"), ('"x"', "tick")),
        (fastapi.sse.ServerSentEvent(data={"n": 1}, id="9", retry=5), ('{"n":1}', "message")),
        (fastapi.sse.ServerSentEvent(data=Point(x=1, when=datetime.date(2026, 1, 2))), (
            '{"x":1,"when":"2026-01-02"}', "message",
        )),
        (fastapi.sse.ServerSentEvent(raw_data="<b>x</b>", event="html"), ("<b>x</b>", "html")),
    ],
)  # fmt: skip
def test_events_keep_their_names_and_lose_their_ids(item: Any, wanted: tuple[str, str]) -> None:
    assert read(item) == [Event(*wanted, "1")]


@pytest.mark.parametrize(
    "item", [fastapi.sse.ServerSentEvent(comment="ping"), sse_starlette.ServerSentEvent(comment="ping"), ": ping\n\n"]
)
def test_comments_are_left_to_delivery(item: Any) -> None:
    assert read(item) == []


FRAMED = ': hello\n\nevent: tick\nid: 5\ndata: {"n": 1}\n\ndata: a\ndata: b\r\n\r\nretry: 5\n\ndata: zwölf\n\n'
UNFRAMED = [Event('{"n": 1}', "tick", "1"), Event("a\nb", "message", "1"), Event("zwölf", "message", "1")]


def test_finished_sse_text_is_read_for_its_events() -> None:
    assert read(FRAMED) == UNFRAMED
    assert read(*FRAMED.splitlines(keepends=True)) == UNFRAMED
    assert read(*(part.encode() for part in FRAMED.splitlines(keepends=True))) == UNFRAMED


def test_finished_sse_text_may_be_cut_anywhere() -> None:
    whole = FRAMED.encode()
    assert read(*(whole[at : at + 1] for at in range(len(whole))), framed=True) == UNFRAMED
    for cut in range(len(": hello\n"), len(whole)):  # the first chunk tells, by its first line
        assert read(whole[:cut], whole[cut:]) == UNFRAMED


def test_the_first_text_tells_whether_all_is_framed_and_framed_says_otherwise() -> None:
    assert data("the answer is", "data: x\n\n") == ["the answer is", "data: x\n\n"]
    assert data("data: not a line") == ["data: not a line"]
    assert data("data: x\n\n", framed=False) == ["data: x\n\n"]
    assert data("data: x\n\n", "tail") == ["x"]  # what has no end is no event, as for every SSE client


def test_nothing_given_can_start_another_event_or_field() -> None:
    for hostile in ("a\n\ndata: b", "a\r\rid: 7", "\n\n", "a\nevent: b"):
        (event,) = read(hostile, framed=False)
        assert event == Event(hostile.replace("\r", "\n"), "message", "1")


@pytest.mark.parametrize("item", [object(), {1, 2j}, {"x": object()}, {"data": "x", "event": "a\nb"}])
def test_what_cannot_be_sent_raises(item: Any) -> None:
    with pytest.raises((TypeError, ValueError)):
        read(item)


def test_the_error_event_is_typed_and_json() -> None:
    (event,) = Decoder().feed(error_event("failed", "it\nfailed") + b"\n")
    assert event == Event('{"code":"failed","message":"it\\nfailed"}', "error", "")
