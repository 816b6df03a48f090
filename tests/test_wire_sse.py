"""wire/sse.py: the outside suites' cases, the encoder's rules one by one, and both together under Hypothesis."""

import base64
import json
import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headwater.wire import sse
from headwater.wire.sse import Decoder, Event, comment, encode, one_line

SHARED = Path(os.environ.get("HEADWATER_SHARED") or Path(__file__).parents[2] / "shared")
CASES_FILE = SHARED / "data" / "sse_cases.json"
CASES: list[dict[str, Any]] = json.loads(CASES_FILE.read_text())["cases"] if CASES_FILE.exists() else []
LINE_ENDS = ["\n", "\r", "\x00", "\r\n", "\x0b", "\x0c", "\x1c", "\x1d", "\x1e", "\x85", "\u2028", "\u2029"]

steady = settings(derandomize=True, deadline=None, max_examples=300)


def feed_all(decoder: Decoder, chunks: Iterable[bytes]) -> list[Event]:
    return [event for chunk in chunks for event in decoder.feed(chunk)]


def decode(chunks: Iterable[bytes]) -> list[Event]:
    return feed_all(Decoder(), chunks)


def single_bytes(whole: bytes) -> list[bytes]:
    return [whole[i : i + 1] for i in range(len(whole))]


def cut(whole: bytes, places: list[int]) -> list[bytes]:
    """`whole` in pieces, empty ones included."""
    edges = [0, *sorted(place % (len(whole) + 1) for place in places), len(whole)]
    return [whole[a:b] for a, b in pairwise(edges)]


def normal(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n")


# --- decoder ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not CASES, reason=f"{CASES_FILE.name} of the shared data is not here (set HEADWATER_SHARED)")
def test_the_case_file_is_whole():
    assert len(CASES) == 161


@pytest.mark.skipif(not CASES, reason=f"{CASES_FILE.name} of the shared data is not here (set HEADWATER_SHARED)")
@pytest.mark.parametrize("feeding", ["as given", "joined", "byte by byte"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['source']}: {case['name']}")
def test_outside_case(case: dict[str, Any], feeding: str):
    chunks = [base64.b64decode(chunk) for chunk in case["chunks_b64"]]
    if feeding != "as given":
        whole = b"".join(chunks)
        chunks = [whole] if feeding == "joined" else single_bytes(whole)
    comments: list[str] = []
    decoder = Decoder(on_comment=comments.append)
    assert feed_all(decoder, chunks) == [Event(e["data"], e["type"], e["last_event_id"]) for e in case["events"]]
    assert decoder.last_event_id == case["final_last_event_id"]
    assert decoder.retry == case["retry"]
    assert comments == case["comments"]


def test_an_id_counts_only_from_its_blank_line():
    decoder = Decoder()
    assert decoder.feed(b"id: 7\ndata: x\n") == []
    assert decoder.last_event_id == ""
    assert decoder.feed(b"\n") == [Event("x", id="7")]
    assert decoder.last_event_id == "7"


def test_an_id_stays_for_later_events_and_an_empty_one_resets_it():
    assert decode([b"id:1\ndata:a\n\ndata:b\n\nid\ndata:c\n\n"]) == [Event("a", id="1"), Event("b", id="1"), Event("c")]


def test_an_id_with_nul_is_ignored():
    assert decode([b"id:1\ndata:a\n\nid:2\x00\ndata:b\n\n"])[1] == Event("b", id="1")


def test_a_lone_cr_dispatches_at_once_and_swallows_the_lf_after_it():
    decoder = Decoder()
    assert decoder.feed(b"data:a\r\r") == [Event("a")]
    assert decoder.feed(b"") == []
    assert decoder.feed(b"\ndata:b\r") == []
    assert decoder.feed(b"\n") == []
    assert decoder.feed(b"\r") == [Event("b")]


def test_an_event_without_its_blank_line_never_comes():
    assert decode([b"data:a\n\ndata:b\n"]) == [Event("a")]


def test_invalid_utf8_is_replaced_and_ends_with_its_line():
    assert decode([b"data:a\xe2\x80\ndata:\xff\n\n"]) == [Event("a\ufffd\n\ufffd")]


def test_a_byte_order_mark_counts_only_at_the_very_start():
    assert decode([b"\xef", b"\xbb", b"\xbfdata:a\n\n\xef\xbb\xbfdata:b\n\n"]) == [Event("a")]
    assert decode([b"\n\xef\xbb\xbfdata:b\n\n"]) == []


@pytest.mark.parametrize("value", [b"", b"x", b"1.5", b"-1", "\u0663".encode(), b"9" * 5000])
def test_a_senseless_retry_is_ignored(value: bytes):
    decoder = Decoder()
    decoder.feed(b"retry:5\nretry:" + value + b"\n")
    assert decoder.retry == 5


@pytest.mark.parametrize("pieces", [1, 2, 5_000])
def test_a_line_of_megabytes_arrives_whole(pieces: int):
    payload = base64.b64encode(bytes(range(256)) * 16_384).decode()
    whole = b"data:" + payload.encode() + b"\n\n"
    step = -(-len(whole) // pieces)
    assert decode(whole[i : i + step] for i in range(0, len(whole), step)) == [Event(payload)]


@pytest.mark.parametrize(
    "line",
    [
        b"data:0123456789\n",
        b"data:0123\ndata:4567\n",
        b"data:0123\ndata:4567",
        b":" + b"x" * 20,
        b"nonsense" * 3 + b"\n",
    ],
)
@pytest.mark.parametrize("feeding", ["whole", "byte by byte"])
def test_an_event_beyond_the_limit_is_an_error(line: bytes, feeding: str):
    decoder = Decoder(max_event_bytes=12)
    with pytest.raises(ValueError, match="longer than 12 bytes"):
        feed_all(decoder, [line] if feeding == "whole" else single_bytes(line))
    assert "failed" in repr(decoder)
    with pytest.raises(ValueError, match="failed before"):
        decoder.feed(b"\n\ndata:a\n\n")


def test_the_limit_is_per_event_not_per_stream():
    decoder = Decoder(max_event_bytes=12)
    assert [decoder.feed(b"data:0123456\n\n") for _ in range(10)] == [[Event("0123456")]] * 10


def test_an_error_leaves_the_id_at_the_last_event_that_was_returned():
    decoder = Decoder(max_event_bytes=12)
    assert decoder.feed(b"id:1\ndata:a\n\n") == [Event("a", id="1")]
    with pytest.raises(ValueError):
        decoder.feed(b"id:2\ndata:b\n\ndata:0123456789\n\n")
    assert decoder.last_event_id == "1"


FRAGMENTS = st.sampled_from(
    b"\n|\r|\r\n|\n\n|data|data:|id:|event:|retry:|:| |12|x|\0|data: a\n|id: 1\n|: hb\n".split(b"|")
    + b"\xef\xbb\xbf \xc2\x85 \xe2\x80\xa8 \xe2\x80 \xff".split(b" ")
)


@steady
@given(st.lists(FRAGMENTS, max_size=40).map(b"".join), st.lists(st.integers(0, 1000), max_size=8))
def test_cuts_change_nothing(whole: bytes, places: list[int]):
    def run(chunks: list[bytes]) -> tuple[list[Event], list[str], str, int | None]:
        comments: list[str] = []
        decoder = Decoder(on_comment=comments.append)
        return feed_all(decoder, chunks), comments, decoder.last_event_id, decoder.retry

    assert run([whole]) == run(cut(whole, places)) == run(single_bytes(whole))


@steady
@given(st.lists(FRAGMENTS, max_size=40).map(b"".join), st.lists(st.integers(0, 1000), max_size=8), st.integers(3, 20))
def test_cuts_do_not_change_what_is_too_long(whole: bytes, places: list[int], limit: int):
    def fails(chunks: list[bytes]) -> bool:
        decoder = Decoder(max_event_bytes=limit)
        try:
            feed_all(decoder, chunks)
        except ValueError:
            return True
        return False

    assert fails([whole]) == fails(cut(whole, places)) == fails(single_bytes(whole))


# --- encoder ----------------------------------------------------------------------------------------------------------


def test_data_has_no_space_after_the_colon():
    assert encode(b'{"a":1}') == b'data:{"a":1}\n\n'


def test_a_line_that_starts_with_a_space_keeps_it():
    assert encode(b" a\n  b\nc") == b"data:  a\ndata:   b\ndata:c\n\n"
    assert decode([encode(b" a\n  b\nc")]) == [Event(" a\n  b\nc")]


def test_id_event_retry_data_in_this_order():
    assert encode(b"x", retry=1000, event="control", id="7") == b"id: 7\nevent: control\nretry: 1000\ndata:x\n\n"


def test_empty_data_is_still_an_event():
    assert encode(b"", id="7") == b"id: 7\ndata:\n\n"
    assert decode([encode(b"", id="7")]) == [Event("", id="7")]


@pytest.mark.parametrize("end", [b"\r\n", b"\r", b"\n"])
def test_every_line_end_starts_a_data_line(end: bytes):
    assert encode(b"a" + end + b"b" + end) == b"data:a\ndata:b\ndata:\n\n"


@pytest.mark.parametrize("field", ["id", "event"])
@pytest.mark.parametrize("end", LINE_ENDS)
def test_id_and_event_refuse_line_ends(field: str, end: str):
    with pytest.raises(ValueError, match=f"SSE {field} must not"):
        encode(b"x", **{field: f"a{end}data: evil"})  # type: ignore[arg-type]


def test_an_id_that_is_no_text_is_refused():
    with pytest.raises(ValueError):
        encode(b"x", id="\ud800")


@pytest.mark.parametrize("retry", [0, 3_600_000])
def test_retry_within_its_bounds(retry: int):
    decoder = Decoder()
    decoder.feed(encode(b"x", retry=retry))
    assert decoder.retry == retry


@pytest.mark.parametrize("retry", [-1, 3_600_001, True, 1.5, "5", "5\ndata: evil"])
def test_any_other_retry_is_refused(retry: Any):
    with pytest.raises(ValueError, match="retry"):
        encode(b"x", retry=retry)


def test_a_comment_is_one_line_and_never_dispatches():
    assert comment("hb") == sse.HEARTBEAT == b": hb\n"
    assert decode([b"id:1\n", sse.HEARTBEAT, b"data:a\n", sse.HEARTBEAT, b"\n", sse.HEARTBEAT]) == [Event("a", id="1")]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_a_comment_cannot_carry_a_line_end(end: str):
    written = comment(f"a{end}{end}data: evil{end}{end}").decode()
    assert len(written.splitlines()) == 1
    assert written.endswith("evil" + " " * 2 * len(end) + "\n")


def test_a_comment_that_is_no_text_is_written_anyway():
    assert comment("\ud800") == b": ?\n"


def test_one_line_returns_plain_json_untouched():
    for text in (b'{"a":"b"}', '{"a":"\u00e9\u2026\u20ac"}'.encode()):
        assert one_line(text) is text


def test_one_line_escapes_what_line_iterators_split_at():
    assert one_line('["\x85","a\u2028b","\\\\\u2029"]'.encode()) == rb'["\u0085","a\u2028b","\\\u2029"]'


def test_one_line_takes_line_ends_between_tokens():
    assert one_line(b'{\r\n"a":\n1}') == b'{  "a": 1}'


# --- both -------------------------------------------------------------------------------------------------------------

ANY_TEXT = st.text(st.one_of(st.characters(codec="utf-8"), st.sampled_from("\r\n :\0\ufeff")))
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"]))
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.sampled_from('a\\"\r\n\x85\u2028\u2029\x0b\xe9'))),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(ANY_TEXT, inner, max_size=4),
)


@steady
@given(
    st.lists(st.tuples(ANY_TEXT, st.none() | NAMES, st.none() | NAMES, st.booleans()), max_size=6),
    st.lists(st.integers(0, 5000), max_size=8),
)
def test_what_is_encoded_is_decoded(sent: list[tuple[str, str | None, str | None, bool]], places: list[int]):
    whole, expected, last_id = b"", [], ""
    for data, event, id_, beat in sent:
        whole += encode(data.encode(), id=id_, event=event) + sse.HEARTBEAT * beat
        last_id = last_id if id_ is None else id_
        expected.append(Event(normal(data), event or "message", last_id))
    assert decode([whole]) == decode(cut(whole, places)) == decode(single_bytes(whole)) == expected


@steady
@given(
    data=st.lists(st.sampled_from(["\r", "\n", "\0", "\r\n", "data: evil", "id: 9", "event: e", "retry: 1", ":", "x"])),
    name=st.lists(st.sampled_from(["\r", "\n", "\0", "\u2028", "\x85", "id: 9", "retry: 1", "x", ":", " "])),
    field=st.sampled_from(["id", "event"]),
)
def test_nothing_injected_makes_a_second_event_id_or_retry(data: list[str], name: list[str], field: str):
    payload, value = "".join(data), "".join(name)
    try:
        whole = encode(payload.encode(), **{field: value})  # type: ignore[arg-type]
    except ValueError:
        assert set(value) & set("\r\n\0\u2028\x85")
        whole, value = encode(payload.encode()), ""
    decoder = Decoder()
    expected = Event(normal(payload), id=value) if field == "id" else Event(normal(payload), value or "message")
    assert decoder.feed(whole) == [expected]
    assert decoder.retry is None


@steady
@given(JSON)
def test_json_is_the_same_on_one_line_for_readers_that_split_at_any_line_end(value: Any):
    line = one_line(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode())
    assert json.loads(line) == value
    assert encode(line, id="1").decode().splitlines() == ["id: 1", "data:" + line.decode(), ""]
