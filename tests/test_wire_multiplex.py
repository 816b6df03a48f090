"""wire/multiplex.py: what a frame of headwater.v1 says, what is refused and how, and messages that keep their bytes."""

import json
import re
import struct
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import BadRequest, OffsetGone, ProducerFenced, TooLarge
from headwater.model import Message, Offset, Page
from headwater.wire import multiplex as mx

OFFSET = "0000000000000001_0000000000000003"


def page(*data: bytes, up_to_date: bool = False) -> Page:
    made = [Message(one, Offset(1, 3 - len(data) + at), 0) for at, one in enumerate(data, start=1)]
    return Page(made, Offset(1, 0), Offset(1, 3), up_to_date, closed=False)


def binary(head: object, *data: bytes) -> bytes:
    return mx.joined(json.dumps(head).encode(), data)


# -- what a client says -----------------------------------------------------------------------------------------------

SAID = [
    ({"op": "auth", "token": "t"}, mx.Auth(token="t")),
    (
        {"op": "open", "ref": 1, "stream": "a/b", "content_type": "text/plain", "ttl": 5, "closed": True},
        mx.Open(ref=1, stream="a/b", content_type="text/plain", ttl=5, closed=True),
    ),
    (
        {"op": "append", "ref": "x", "stream": "s", "producer": {"id": "p", "epoch": 0, "seq": 2}, "close": True},
        mx.Append(ref="x", stream="s", producer=mx.Producer("p", 0, 2), close=True),
    ),
    ({"op": "close", "ref": 1, "stream": "s", "outcome": "failed"}, mx.Close(ref=1, stream="s", outcome="failed")),
    (
        {"op": "follow", "id": 7, "stream": "s", "offset": "now", "credit": 10},
        mx.Follow(id=7, stream="s", offset="now", credit=10),
    ),
    ({"op": "credit", "id": 7, "bytes": 5}, mx.Credit(id=7, bytes=5)),
    ({"op": "unfollow", "id": 7}, mx.Unfollow(id=7)),
    ({"op": "ping"}, mx.Ping()),
]


@pytest.mark.parametrize(("said", "op"), SAID, ids=lambda value: type(value).__name__)
def test_what_a_client_says(said: dict, op: mx.Op) -> None:
    assert mx.parse(json.dumps(said)) == (op, None)


def test_every_op_is_named_to_those_who_name_a_wrong_one() -> None:
    assert set(mx.OPS.split(", ")) == {said["op"] for said, _ in SAID}


WRONG = [
    ({"op": "shout"}, "unknown op; it is one of auth, open", None, None),
    ({"follow": 1, "ref": "r"}, "unknown op", "r", None),
    ({"op": ["follow"], "id": 3}, "unknown op", None, 3),
    ({"op": "follow", "id": 3}, "follow: Object missing required field `stream`", None, 3),
    ({"op": "follow", "id": -3, "ref": 9, "stream": "s"}, "follow: Expected `int` >= 0", 9, None),
    ({"op": "append", "ref": 1, "stream": "s", "mesages": []}, "unknown field `mesages`", 1, None),
    ({"op": "append", "ref": {}, "stream": "s"}, "append: Expected", None, None),
    ({"op": "append", "ref": "r" * 65, "stream": "s"}, "append: Expected `str` of length <= 64", None, None),
    ({"op": "open", "ref": 1, "stream": "s" * 1025}, "open: Expected `str` of length <= 1024", 1, None),
    ({"op": "open", "ref": 1, "stream": ""}, "open: Expected `str` of length >= 1", 1, None),
    ({"op": "credit", "id": 1, "bytes": 1.5}, "credit: Expected `int`, got `float`", None, 1),
    ({"op": "credit", "id": 1, "bytes": 2**53}, "credit: Expected `int` <= 9007199254740991", None, 1),
    ({"op": "close", "ref": 1, "stream": "s", "outcome": "fine"}, "close: Invalid enum value 'fine'", 1, None),
]


@pytest.mark.parametrize(("said", "why", "ref", "channel"), WRONG, ids=lambda value: str(value)[:40])
def test_a_wrong_request_is_named_with_what_it_carried(said: object, why: str, ref: object, channel: object) -> None:
    with pytest.raises(mx.Misspoken) as refused:
        mx.parse(json.dumps(said))
    assert why in str(refused.value)
    assert (refused.value.ref, refused.value.channel, refused.value.status) == (ref, channel, 400)


def test_what_is_said_of_a_wrong_request_is_short() -> None:
    with pytest.raises(mx.Misspoken) as refusal:
        mx.parse(json.dumps({"op": "ping", "x" * 100_000: 1}))
    assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("in_bytes", [False, True])
def test_a_frame_brings_so_many_messages_and_no_more(in_bytes: bool) -> None:
    for many in (100_000, 100_001):
        said: dict[str, Any] = {"op": "append", "ref": 1, "stream": "s"}
        messages: list[Any] = [b"1"] * many if in_bytes else [1] * many
        frame = mx.parse(binary(said, *messages) if in_bytes else json.dumps({**said, "messages": messages}))
        if many == 100_000:
            assert len(mx.items("application/json", frame)) == many
        else:
            with pytest.raises(TooLarge):
                mx.items("application/json", frame)


def test_half_a_character_is_one_requests_fault() -> None:
    said = {"op": "append", "ref": 1, "stream": "s", "messages": ["\ud83d"]}  # as JavaScript writes it
    with pytest.raises(mx.Misspoken, match=r"append: .*half a character") as refused:
        mx.parse(json.dumps(said))
    assert refused.value.ref == 1


GARBAGE = [
    "",
    "hello",
    "[1]",
    "7",
    "null",
    '{"op":"ping"',
    '{"op":"ping"}}',
    "[" * 100_000,
    '{"op":7,"x":' + "[" * 99_999,
]
GARBAGE_BYTES = [b"", b"\0\0\0", b"\0\0\0\x05{}", b"\xff" * 8, binary([]), mx.joined(b"{\xff}", []), b"\0\0\0\x02{}\0"]


@pytest.mark.parametrize("frame", [*GARBAGE, *GARBAGE_BYTES], ids=lambda frame: repr(frame[:12]))
def test_what_is_no_frame_at_all(frame: str | bytes) -> None:
    with pytest.raises(mx.Garbage):
        mx.parse(frame)


@given(st.binary() | st.text())
def test_anything_is_a_frame_or_misspoken_or_garbage(frame: str | bytes) -> None:
    with pytest.raises((mx.Misspoken, mx.Garbage)):
        mx.parse(frame)


@pytest.mark.parametrize(
    "head",
    [
        {"op": "ping", "ref": 4},
        {"op": "credit", "id": 1, "bytes": 1},
        {"op": "append", "ref": 4, "stream": "s", "messages": [1]},
    ],
)
def test_only_writes_come_in_binary_frames_and_not_in_both_places(head: dict) -> None:
    with pytest.raises(mx.Misspoken, match="behind the JSON object") as refused:
        mx.parse(binary(head, b"x"))
    assert (refused.value.ref, refused.value.channel) == (head.get("ref"), head.get("id"))


# -- PROTOCOL.md ------------------------------------------------------------------------------------------------------

PROTOCOL = (Path(__file__).parent.parent / "PROTOCOL.md").read_text("utf-8")


def table(section: str) -> dict[str, str]:
    """By its op, each row of the table in a section of PROTOCOL.md."""
    rows = PROTOCOL.partition(f"### {section} ")[2].partition("\n### ")[0].splitlines()
    return {row.split("`")[1]: row for row in rows if row.startswith("| `")}


@pytest.mark.parametrize(("section", "kinds"), [("7.3", mx.Op), ("7.4", mx.Answer)])
def test_the_protocol_says_what_there_is(section: str, kinds: Any) -> None:
    rows = table(section)
    assert rows.keys() == {kind.__struct_config__.tag for kind in get_args(kinds)}
    for kind in set(get_args(kinds)) - {mx.Ok}:  # what that holds, the requests' table says
        said = set(re.findall(r"`(\w+)`", rows[kind.__struct_config__.tag].split(" | ")[1]))
        assert said == set(kind.__struct_fields__), kind
    shown = re.findall(r"^    00 00 00 ([0-9a-f]{2})  (.*)$", PROTOCOL, re.MULTILINE)
    assert int(shown[0][0], 16) == len(shown[0][1])


# -- the messages of a write ------------------------------------------------------------------------------------------


def written(content_type: str, *values: object) -> list[bytes]:
    frame = mx.parse(json.dumps({"op": "append", "ref": 1, "stream": "s", "messages": values}))
    return [item.data for item in mx.items(content_type, frame)]


def sent(content_type: str, *data: bytes) -> list[bytes]:
    frame = mx.parse(binary({"op": "append", "ref": 1, "stream": "s"}, *data))
    return [item.data for item in mx.items(content_type, frame)]


def test_each_value_is_one_message_of_a_json_stream() -> None:
    assert written("application/json", [1, 2], "x", None) == [b"[1, 2]", b'"x"', b"null"]


def test_each_string_is_one_message_of_a_text_stream() -> None:
    assert written("text/plain; charset=utf-8", "a\n", "ä", "") == [b"a\n", "ä".encode(), b""]


@pytest.mark.parametrize(
    ("content_type", "value", "why"),
    [
        ("text/plain", {"a": 1}, "each message is a JSON string"),
        ("image/png", "x", "in a binary frame"),
    ],
)
def test_values_that_do_not_fit_the_stream(content_type: str, value: object, why: str) -> None:
    with pytest.raises(BadRequest, match=why):
        written(content_type, value)


def test_bytes_are_messages_of_any_stream_but_json_is_looked_at() -> None:
    assert sent("image/png", b"\0\xff", b"") == [b"\0\xff", b""]
    assert sent("text/plain", "ä".encode()[:1]) == ["ä".encode()[:1]]
    assert sent("application/json", b"[1,[2]]") == [b"[1,[2]]"]
    for data in (b"", b"{", b"1 2", b'"\xff"', b"[" * 100_000):
        with pytest.raises(BadRequest, match="one valid JSON value"):
            sent("application/json", data)


# -- what a server says -----------------------------------------------------------------------------------------------


def test_json_goes_as_it_is() -> None:
    frame = mx.messages(7, "application/json", page(b'{"a": 1.50}', b"[2]", up_to_date=True))
    assert frame == (
        f'{{"op":"messages","id":7,"offset":"{OFFSET}","bytes":14,"up_to_date":true,"messages":[{{"a": 1.50}},[2]]}}'
    )


def test_text_goes_as_strings_and_counts_its_bytes() -> None:
    frame = mx.messages(0, "text/plain", page("ä\n".encode(), b""))
    assert json.loads(frame) == {"op": "messages", "id": 0, "offset": OFFSET, "bytes": 3, "messages": ["ä\n", ""]}


@pytest.mark.parametrize("content_type", ["image/png", "text/plain", "application/json"])
def test_what_is_no_utf8_goes_as_bytes_whatever_the_stream_says_it_holds(content_type: str) -> None:
    first, rest = "ä".encode()[:1], "ä".encode()[1:]
    frame = mx.messages(7, content_type, page(b"x" + first, rest))
    assert isinstance(frame, bytes)
    head, data = mx.split(frame)
    assert json.loads(head) == {"op": "messages", "id": 7, "offset": OFFSET, "bytes": 3}
    assert data == [b"x" + first, rest]


def test_the_bytes_of_a_binary_frame() -> None:
    assert mx.joined(b"{}", [b"abc", b""]) == struct.pack(">I2sI3sI", 2, b"{}", 3, b"abc", 0)


@given(st.binary(max_size=20), st.lists(st.binary(max_size=300)))
def test_a_binary_frame_keeps_its_parts(head: bytes, data: list[bytes]) -> None:
    assert mx.split(mx.joined(head, data)) == (head, data)


@given(st.binary(min_size=1, max_size=20), st.lists(st.binary(max_size=20), max_size=3), st.data())
def test_a_cut_binary_frame_is_never_taken_for_a_whole_one(head: bytes, data: list[bytes], draw: st.DataObject) -> None:
    whole = mx.joined(head, data)
    cut = whole[: draw.draw(st.integers(0, len(whole) - 1))]
    try:
        parts = mx.split(cut)
    except mx.Garbage:
        return
    assert len(parts[1]) < len(data)  # cut between two parts, which a WebSocket never does
    assert whole.startswith(mx.joined(*parts))


def test_answers_leave_out_what_they_do_not_say() -> None:
    assert mx.text(mx.Ok(ref="a", offset=OFFSET)) == f'{{"op":"ok","ref":"a","offset":"{OFFSET}"}}'
    assert mx.text(mx.Pong()) == '{"op":"pong"}'
    assert mx.text(mx.Heartbeat()) == '{"op":"heartbeat"}'
    assert mx.text(mx.Draining()) == '{"op":"draining"}'
    assert mx.text(mx.End(id=0, offset=OFFSET)) == f'{{"op":"end","id":0,"offset":"{OFFSET}"}}'


def test_errors_carry_their_facts() -> None:
    refused = mx.error(ProducerFenced("a newer epoch", epoch=3), "r", None)
    assert json.loads(mx.text(refused)) == {
        "op": "error",
        "ref": "r",
        "code": "producer_fenced",
        "message": "a newer epoch",
        "status": 403,
        "retry": False,
        "detail": {"epoch": 3},
    }
    cut = mx.interrupted(7, OFFSET, OffsetGone("trimmed"))
    assert json.loads(mx.text(cut)) == {
        "op": "interrupted",
        "id": 7,
        "offset": OFFSET,
        "code": "offset_gone",
        "message": "trimmed",
        "status": 410,
        "retry": False,
    }


def test_answers_can_be_read_back() -> None:
    said = mx.Following(id=1, stream="s", content_type="text/plain", offset=OFFSET, up_to_date=True)
    assert msgspec.json.decode(mx.text(said), type=mx.Answer) == said
