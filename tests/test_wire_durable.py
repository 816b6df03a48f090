"""wire/durable.py: what clients say in headers, queries and bodies, and what is minted for them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.decide import ForkOf, Stamp
from headwater.errors import BadOffset, BadRequest, TooLarge
from headwater.model import Offset, Retention
from headwater.wire import durable
from headwater.wire.durable import (
    CURSOR_EPOCH_MS,
    CURSOR_INTERVAL_MS,
    MOST_MESSAGES,
    cursor,
    etag,
    parse_closed,
    parse_expires_at,
    parse_fork,
    parse_if_match,
    parse_outcome,
    parse_retention,
    parse_seq,
    parse_stamp,
    parse_ttl,
    parse_type,
    retention_text,
    split_json,
    stream_name,
    tail_tag,
)

ENDLESS = "1" * 5000
"""More digits than int() takes."""


@pytest.mark.parametrize(("text", "seconds"), [("0", 0), ("1", 1), ("3600", 3600), (str(2**53 - 1), 2**53 - 1)])
def test_a_ttl_is_whole_seconds(text, seconds):
    assert parse_ttl(text) == seconds


@pytest.mark.parametrize(
    "text", ["", "-1", "+1", "01", "1.0", "1e3", " 1", "1 ", "0x10", "١", "abc", str(2**53), ENDLESS]
)
def test_what_is_no_ttl(text):
    with pytest.raises(BadRequest, match="whole number of seconds"):
        parse_ttl(text)


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("2030-01-01T00:00:00Z", 1_893_456_000_000),
        ("2030-01-01t01:00:00+01:00", 1_893_456_000_000),
        ("2029-12-31T23:30:00-00:30", 1_893_456_000_000),
        ("2030-01-01T00:00:00.001Z", 1_893_456_000_001),
        ("2030-01-01T00:00:00.123456789Z", 1_893_456_000_123),
        ("9999-12-31T23:59:59Z", 253_402_300_799_000),
    ],
)
def test_an_expiry_is_a_time_with_a_zone(text, ms):
    assert parse_expires_at(text) == ms


@given(st.integers(0, 253_402_300_799_999))
def test_an_expiry_keeps_its_milliseconds(ms):
    from datetime import UTC, datetime, timedelta

    text = (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")
    assert parse_expires_at(text) == ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2030-01-01",
        "2030-01-01T00:00:00",
        "2030-01-01 00:00:00Z",
        "2030-02-30T00:00:00Z",
        "2030-01-01T00:00:60Z",
        "2030-01-01T24:00:01Z",
        "20300101T000000Z",
        "1893456000",
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "soon",
    ],
)
def test_what_is_no_expiry(text):
    with pytest.raises(BadRequest, match="Stream-Expires-At"):
        parse_expires_at(text)


@pytest.mark.parametrize(
    ("text", "closed"),
    [
        ("true", True),
        ("TRUE", True),
        ("True", True),
        (None, False),
        ("", False),
        ("1", False),
        ("yes", False),
        ("false", False),
        (" true", False),
    ],
)
def test_only_true_closes(text, closed):
    assert parse_closed(text) is closed


def stamp(id_: str | None = None, epoch: str | None = None, seq: str | None = None) -> dict[str, str]:
    given = {"producer-id": id_, "producer-epoch": epoch, "producer-seq": seq}
    return {name: value for name, value in given.items() if value is not None}


def test_a_stamp_is_all_three_or_none():
    assert parse_stamp({}) is None
    assert parse_stamp(stamp("p", "0", "9007199254740991")) == Stamp("p", 0, 2**53 - 1)


@pytest.mark.parametrize(
    "headers",
    [
        *(
            stamp(*case)
            for case in [("p",), (None, "0"), (None, None, "0"), ("p", "0"), ("p", None, "0"), (None, "0", "0")]
        ),
        stamp("", "0", "0"),
        *(stamp("p", bad, "0") for bad in ["", "-1", "+1", "1.0", "1e1", "x", " 1", "٣", str(2**53), ENDLESS]),
        *(stamp("p", "0", bad) for bad in ["", "-1", "0x1", str(2**53), ENDLESS]),
    ],
)
def test_what_is_no_stamp(headers):
    with pytest.raises(BadRequest, match="Producer-"):
        parse_stamp(headers)


@pytest.mark.parametrize(
    ("body", "messages"),
    [
        (b"1", [b"1"]),
        (b' {"a": [1, 2]} ', [b' {"a": [1, 2]} ']),
        (b"[1, 2]", [b"1", b"2"]),
        (b" \r\n\t[[1,2],[3]]\n", [b"[1,2]", b"[3]"]),
        (b"[]", []),
        (b"[[]]", [b"[]"]),
        (b'["a,b]", {"c": "[1,2]"}, null, true, 1e3]', [b'"a,b]"', b'{"c": "[1,2]"}', b"null", b"true", b"1e3"]),
        ('"é"'.encode(), ['"é"'.encode()]),
    ],
)
def test_a_json_array_is_flattened_by_one_level(body, messages):
    assert split_json(body) == messages


@pytest.mark.parametrize(
    "body",
    [b"", b" ", b"{", b"[1,", b"[1,]", b"1 2", b"[1] 2", b"{'a': 1}", b"NaN", b"[NaN]", b"[01]", b'"a\nb"', b'["a\nb"]',
     b'"\xff"', b'["\xff"]', b'[{"a": "\xc3"}]', b'["\\ud800"]', b"\xef\xbb\xbf[1]", b"undefined",
     b"[" * 50_000 + b"]" * 50_000],
)  # fmt: skip
def test_what_is_no_json(body):
    with pytest.raises(BadRequest, match="not valid JSON"):
        split_json(body)


texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(values, max_size=5), st.sampled_from([None, 1]), st.booleans())
def test_the_parts_of_an_array_are_its_values(items, indent, ascii_only):
    body = json.dumps(items, indent=indent, ensure_ascii=ascii_only).encode()
    assert [json.loads(part) for part in split_json(body)] == items


@given(st.lists(values, max_size=20), st.sampled_from([None, 1]), st.integers(1, 20))
def test_an_array_of_many_parts_is_the_same_as_one_of_one(items, indent, part_bytes):
    body = json.dumps(items, indent=indent).encode()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(durable, "PART_BYTES", part_bytes)
        parts = split_json(body)
    assert parts == split_json(body)
    assert [json.loads(part) for part in parts] == items


@pytest.mark.parametrize(
    "body", [b"[1,2,3,4,]", b"[1,2,,3]", b'[1,"a,2,3]', b"[1,[2,3,4,5]", b"[1,2,3,4}", b"[1,2] 3,4"]
)
def test_what_is_no_json_is_none_in_parts(body, monkeypatch):
    monkeypatch.setattr(durable, "PART_BYTES", 1)
    with pytest.raises(BadRequest, match="not valid JSON"):
        split_json(body)


def test_too_many_messages_are_refused_before_all_of_them_are_looked_at(monkeypatch):
    """A body of 16 MB may have eight million."""
    looked_at = []
    decode = durable._decode_array
    monkeypatch.setattr(durable, "_decode_array", lambda text: looked_at.append(len(text)) or decode(text))
    with pytest.raises(TooLarge, match="at most 100,000 messages"):
        split_json(b"[" + b"1," * 8_000_000 + b"1]")
    assert sum(looked_at) < 1_000_000


def test_a_request_brings_so_many_messages_and_no_more():
    assert len(split_json(json.dumps([1] * MOST_MESSAGES).encode())) == MOST_MESSAGES
    with pytest.raises(TooLarge, match="at most 100,000 messages"):
        split_json(json.dumps([1] * (MOST_MESSAGES + 1)).encode())


def test_what_a_head_keeps_is_short():
    assert parse_seq("x" * 1024) == "x" * 1024
    assert parse_seq(None) is None
    with pytest.raises(BadRequest, match="a Stream-Seq has"):
        parse_seq("x" * 1025)
    numbers = {"producer-epoch": "0", "producer-seq": "0"}
    assert parse_stamp({"producer-id": "p" * 1024, **numbers}) == Stamp("p" * 1024, 0, 0)
    with pytest.raises(BadRequest, match="a Producer-Id has"):
        parse_stamp({"producer-id": "p" * 1025, **numbers})


@pytest.mark.parametrize("text", ["text/plain\r\nset-cookie: a=b", "text/\x00", "x/€", " text/plain", "a\tb"])
def test_what_is_no_content_type(text):
    with pytest.raises(BadRequest, match="one line of plain characters"):
        parse_type(text)
    assert parse_type("text/plain; charset=utf-8") == "text/plain; charset=utf-8"


def test_an_etag_changes_with_place_end_and_closing():
    start, end = Offset(0, 0), Offset(0, 5)
    tags = [
        etag("name", start, end, closed=False),
        etag("name", start, end, closed=True),
        etag("name", start, Offset(0, 6), closed=False),
        etag("name", Offset(0, 1), end, closed=False),
        etag("other", start, end, closed=False),
        etag("name", Offset(1, 0), Offset(1, 5), closed=False),
    ]
    assert len(set(tags)) == len(tags)
    assert tags[0] == f'"name:{start}:{end}"'
    assert tags[1] == f'"name:{start}:{end}:c"'


NOW = CURSOR_EPOCH_MS + 1000 * CURSOR_INTERVAL_MS + 1


@pytest.mark.parametrize(
    ("clients", "jitter", "minted"),
    [
        (None, 0.5, 1000),
        ("999", 0.5, 1000),
        ("1000", 0.0, 1001),
        ("1000", 0.9999, 1180),
        ("5000", 0.0, 5001),
        ("abc", 0.5, 1000),
        ("-1", 0.5, 1000),
        (ENDLESS, 0.5, 1000),
    ],
)
def test_a_cursor_always_moves_on(clients, jitter, minted):
    assert cursor(NOW, clients, jitter) == str(minted)


# -- forks, conditions, retention -------------------------------------------------------------------------------------

AT = f"{7:016d}_{5:016d}"


@pytest.mark.parametrize(
    ("path", "prefix", "name"),
    [
        ("/v1/stream/a/b", "", "a/b"),
        ("/streams/a/b", "", "a/b"),
        ("/v1/stream//", "", "/"),
        ("/live/v1/stream/a", "/live", "a"),
        ("/v1/stream/a", "/live", None),
        ("/live/v1/stream/a", "", None),
        ("/v1/stream/", "", None),
        ("/v1/stream", "", None),
        ("/v1/streams/a", "", None),
        ("", "", None),
    ],
)
def test_a_path_names_a_stream_under_either_base(path, prefix, name):
    assert stream_name(path, prefix) == name


@pytest.mark.parametrize(
    ("headers", "fork"),
    [
        ({}, None),
        ({"stream-forked-from": "/v1/stream/s"}, ForkOf("s")),
        ({"stream-forked-from": "/streams/a%2Fb%20c"}, ForkOf("a/b c")),
        ({"stream-forked-from": "/v1/stream/50%25"}, ForkOf("50%")),
        ({"stream-forked-from": "/v1/stream/s", "stream-fork-offset": AT}, ForkOf("s", Offset(7, 5))),
        (
            {"stream-forked-from": "/v1/stream/s", "stream-fork-offset": AT, "stream-fork-sub-offset": "12"},
            ForkOf("s", Offset(7, 5), 12),
        ),
        ({"stream-forked-from": "/v1/stream/s", "stream-fork-sub-offset": "0"}, ForkOf("s")),
    ],
)
def test_a_fork_is_three_headers(headers, fork):
    assert parse_fork(headers) == fork


@pytest.mark.parametrize("offset", ["", "-1", "now", "5", AT[:-1], f" {AT}"])
def test_a_fork_begins_at_a_real_offset(offset):
    with pytest.raises(BadOffset, match="leave it out to fork at the tail"):
        parse_fork({"stream-forked-from": "/v1/stream/s", "stream-fork-offset": offset})


@pytest.mark.parametrize("count", ["", "-1", "+1", "05", "1.5", "x", "١", str(2**53), ENDLESS])
def test_what_is_no_sub_offset(count):
    given = {"stream-forked-from": "/v1/stream/s", "stream-fork-offset": AT, "stream-fork-sub-offset": count}
    with pytest.raises(BadRequest, match="whole number"):
        parse_fork(given)


@pytest.mark.parametrize("text", [AT, f'"{AT}"', f'  "{AT}" '])
def test_a_condition_is_an_offset(text):
    assert parse_if_match([text]) == Offset(7, 5)
    assert parse_if_match([]) is None
    assert parse_if_match([tail_tag(Offset(7, 5))]) == Offset(7, 5)


@pytest.mark.parametrize("values", [[""], ["*"], [f'W/"{AT}"'], [AT, AT], [f"{AT}, {AT}"], [f'""{AT}""'], ["now"]])
def test_what_is_no_condition(values):
    with pytest.raises(BadRequest, match='If-Match: "<offset>"'):
        parse_if_match(values)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("seconds=3600", Retention(seconds=3600)),
        ("bytes=1000000,messages=1", Retention(bytes=1000000, messages=1)),
        (" messages=2 ,\tseconds=1", Retention(seconds=1, messages=2)),
        (f"bytes={2**53 - 1}", Retention(bytes=2**53 - 1)),
    ],
)
def test_a_retention_is_some_bounds(text, kept):
    assert parse_retention(text) == kept
    assert parse_retention(retention_text(kept)) == kept


@pytest.mark.parametrize(
    "text",
    ["", ",", "seconds", "seconds=", "seconds=0", "seconds=-1", "seconds=1.5", "seconds=01", "Seconds=1", "age=1",
     "seconds=1,", "seconds=1 bytes=1", "seconds=1, seconds=2", "seconds = 1", f"bytes={2**53}", f"bytes={ENDLESS}"],
)  # fmt: skip
def test_what_is_no_retention(text):
    with pytest.raises(BadRequest, match="seconds=N, bytes=N, messages=N"):
        parse_retention(text)


def test_an_outcome_goes_with_the_end():
    assert parse_outcome(None, closes=False) is None
    assert parse_outcome("failed", closes=True) == "failed"
    for text, closes in (("failed", False), ("", True), ("Failed", True)):
        with pytest.raises(BadRequest, match="Stream-Outcome"):
            parse_outcome(text, closes=closes)
