"""formats/: the bytes of each format, and what a real reader of them makes of it."""

import json
from base64 import b64encode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headwater.errors import Draining, NotAcceptable, StreamNotFound
from headwater.formats import accepted, by_name
from headwater.formats.characters import MOST_CUT, is_cut, joined, whole
from headwater.formats.durable import DurableEvents, body
from headwater.formats.format import Format
from headwater.formats.lines import Lines, Raw
from headwater.formats.run_text import RunText
from headwater.formats.sse import RECONNECT_MS, ServerSentEvents, stored_event
from headwater.model import Message, Offset, Page
from headwater.wire.durable import CURSOR_EPOCH_MS, CURSOR_INTERVAL_MS, cursor
from headwater.wire.sse import Decoder, Event

JSON, TEXT, BINARY, EVENTS = "application/json", "text/plain", "application/octet-stream", "text/event-stream"
AWKWARD = "a\u2028b\u2029c\u0085d é 語 😀"


def page_of(
    *data: bytes, start: int = 0, closed: bool = False, outcome: str | None = None, behind: bool = False
) -> Page:
    messages = [Message(one, Offset(3, start + count), 0) for count, one in enumerate(data, start=1)]
    end = Offset(3, start + len(data))
    return Page(messages, Offset(3, start), end, not behind, closed, outcome)


def id_of(position: int) -> str:
    return f"{3:016d}_{position:016d}"


def decoded(data: bytes) -> list[Event]:
    """As a browser reads it; byte by byte, it must be the same."""
    whole, slow = Decoder().feed(data), Decoder()
    assert [event for byte in data for event in slow.feed(bytes([byte]))] == whole
    return whole


# -- server-sent events -----------------------------------------------------------------------------------------------

SSE_BYTES = {
    "json": (JSON, b'{"a": 1}', b'data:{"a": 1}\n\n'),
    "json over lines": (JSON, b'{\n"a":\r\n1}', b'data:{ "a":  1}\n\n'),
    "json with line ends inside": (
        JSON,
        f'"{AWKWARD}"'.encode(),
        b'data:"a\\u2028b\\u2029c\\u0085d ' + "é 語 😀".encode() + b'"\n\n',
    ),
    "text": (TEXT, b"one", b"data:one\n\n"),
    "text over lines": (TEXT, b"one\ntwo\r\nthree\r", b"data:one\ndata:two\ndata:three\ndata:\n\n"),
    "text that begins with a space": (TEXT, b" one", b"data:  one\n\n"),
    "text that looks like a field": (TEXT, b"\nid: 666\n\nevent: x", b"data:\ndata:id: 666\ndata:\ndata:event: x\n\n"),
    "empty text": (TEXT, b"", b"data:\n\n"),
    "binary": (BINARY, b"\x00\xff\n", b"data:" + b64encode(b"\x00\xff\n") + b"\n\n"),
    "a stored event": (EVENTS, stored_event(b"x\ny", "tick"), b"event: tick\ndata:x\ndata:y\n\n"),
    "a stored event without a name": (EVENTS, stored_event(b"x", None), b"data:x\n\n"),
}


@pytest.mark.parametrize(("stream_type", "data", "expected"), SSE_BYTES.values(), ids=SSE_BYTES)
def test_an_sse_event_is_its_id_and_its_data(stream_type, data, expected):
    rendered = ServerSentEvents(stream_type).render(page_of(data, start=41))
    assert rendered == f"id: {id_of(42)}\n".encode() + expected
    assert [event.id for event in decoded(rendered)] == [id_of(42)]


@pytest.mark.parametrize("awkward", [b'"plain"', '"語"'.encode(), b'{\n"a":\r\n1}', f'"{AWKWARD}"'.encode()])
def test_a_page_of_json_is_rendered_as_its_messages_one_by_one(awkward):
    """However many there are, and whichever of them is not on one line."""
    data = [b'{"a":1}', awkward, b"2", b'"%s"']
    pages = [page_of(one, start=count) for count, one in enumerate(data)]
    for format_ in (ServerSentEvents(JSON), ServerSentEvents(JSON, prefix="a%b~"), Lines(JSON)):
        assert format_.render(page_of(*data)) == b"".join(map(format_.render, pages))
        assert format_.render(page_of()) == b""


@pytest.mark.parametrize(
    "foreign", [b"id: 666\ndata: x\n", b"data: a\n\ndata: b\n\n", b"data: half", b"\n", b": c\n", b"data:a\rid:6\n"]
)
def test_what_others_append_to_a_stream_of_events_forges_no_event_and_no_id(foreign):
    events = decoded(ServerSentEvents(EVENTS).render(page_of(foreign, stored_event(b"next", "n"))))
    assert [(event.event, event.id) for event in events] == [("message", id_of(1)), ("n", id_of(2))]
    assert events[0].data.splitlines() == foreign.decode().splitlines()


def test_ids_carry_the_prefix_and_messages_keep_their_order():
    events = decoded(ServerSentEvents(JSON, prefix="r~").render(page_of(b"1", b"2", b"3")))
    assert events == [Event(str(n), "message", f"r~{id_of(n)}") for n in (1, 2, 3)]


@pytest.mark.parametrize(
    ("outcome", "told"),
    [("completed", "completed"), ("failed", "failed"), ("cancelled", "cancelled"), (None, "completed")],
)
def test_named_sse_tells_how_the_stream_ended(outcome, told):
    named = ServerSentEvents(JSON)
    (end,) = decoded(named.ending(page_of(b"1", closed=True, outcome=outcome)))
    assert (end.event, end.id, json.loads(end.data)) == ("end", id_of(1), {"outcome": told})


def test_named_sse_tells_that_it_was_interrupted_and_whether_to_come_again():
    named, reader = ServerSentEvents(JSON), Decoder()
    (event,) = reader.feed(named.interruption(Draining("the server is going away")))
    said = {"code": "draining", "message": "the server is going away", "retry": True}
    assert (event.event, json.loads(event.data), reader.retry) == ("interrupted", said, RECONNECT_MS)
    assert event.id == "", "an interruption is no place to resume from"
    gone = Decoder()
    (event,) = gone.feed(named.interruption(StreamNotFound("this stream is gone")))
    assert (json.loads(event.data)["retry"], gone.retry) == (False, None)


def test_data_only_sse_adds_no_event_of_its_own():
    plain = ServerSentEvents(JSON, named=False)
    assert plain.ending(page_of(b"1", closed=True)) == b""
    assert plain.interruption(Draining("x")) == b": interrupted: draining\n"
    assert not plain.ends_openly
    assert ServerSentEvents(JSON).ends_openly


def test_opening_and_heartbeat_are_comments_of_one_line():
    for form in (ServerSentEvents(JSON), ServerSentEvents(JSON, named=False)):
        assert (form.opening, form.heartbeat) == (b": open\nretry: 500\n", b": hb\n")
        assert decoded(form.opening + form.heartbeat + form.render(page_of(b"1"))) == [Event("1", "message", id_of(1))]


def test_a_stored_event_refuses_a_name_that_would_forge_a_field():
    with pytest.raises(ValueError):
        stored_event(b"x", "a\ndata: y")


# -- Durable Streams --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream_type", "messages", "data"),
    [
        (JSON, [b"1", b'{"a":\n2}', b'"\xc2\x85"'], b'data:[1,{"a": 2},"\\u0085"]\n\n'),
        ("APPLICATION/JSON; charset=utf-8", [b"1"], b"data:[1]\n\n"),
        (TEXT, [b"a\n", b"b"], b"data:a\ndata:b\n\n"),
        ("Text/Csv", [b"a\r\rb"], b"data:a\ndata:\ndata:b\n\n"),
        (BINARY, [b"\x00", b"\xff"], b"data:AP8=\n\n"),
        ("application/jsonl", [b"1\n"], b"data:MQo=\n\n"),
    ],
)
def test_durable_events_are_one_data_event_and_one_control_event(stream_type, messages, data):
    form = DurableEvents(stream_type, "77")
    rendered = form.render(page_of(*messages, behind=True))
    control = f'event: control\ndata:{{"streamNextOffset":"{id_of(len(messages))}","streamCursor":"77"}}\n\n'.encode()
    assert rendered == b"event: data\n" + data + control
    assert form.base64 == (stream_type in (BINARY, "application/jsonl"))
    assert decoded(rendered)[0].id == ""


@pytest.mark.parametrize(
    ("page", "said"),
    [
        (page_of(behind=True), {"streamCursor": "77"}),
        (page_of(), {"streamCursor": "77", "upToDate": True}),
        (page_of(closed=True), {"streamClosed": True, "upToDate": True}),
    ],
)
def test_control_says_where_the_reader_stands(page, said):
    (control,) = decoded(DurableEvents(JSON, "77").render(page))
    assert (control.event, json.loads(control.data)) == ("control", {"streamNextOffset": id_of(0), **said})


def test_durable_events_end_and_begin_without_a_word_of_ours():
    form = DurableEvents(JSON, "77")
    assert (form.opening, form.heartbeat, form.ends_openly) == (b"", b": hb\n", True)
    assert form.ending(page_of(closed=True)) == form.interruption(Draining("x")) == b""
    assert form.content_type == EVENTS


def test_a_catch_up_body_is_a_json_array_or_the_bytes():
    messages = page_of(b"1", b'{"a":2}').messages
    assert body(JSON, messages) == b'[1,{"a":2}]'
    assert body(JSON, []) == b"[]"
    assert body(TEXT, messages) == b'1{"a":2}'
    assert body(BINARY, []) == b""


# -- plain bodies -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stream_type", "data", "line", "value"),
    [
        (JSON, b'{"a":\n1}', b'{"a": 1}\n', {"a": 1}),
        (JSON, f'"{AWKWARD}"'.encode(), None, AWKWARD),
        (TEXT, f"one\ntwo\r\n{AWKWARD}".encode(), None, f"one\ntwo\r\n{AWKWARD}"),
        (TEXT, b"\xff", None, "\ufffd"),
        (BINARY, b"\x00\xff", b'"AP8="\n', "AP8="),
    ],
)
def test_ndjson_is_one_json_value_a_line_for_every_line_reader(stream_type, data, line, value):
    rendered = Lines(stream_type).render(page_of(data))
    assert line is None or rendered == line
    assert len(rendered.decode().splitlines()) == 1, "also for those that split at U+2028"
    assert json.loads(rendered) == value


def test_raw_is_the_bytes_and_json_has_lines():
    assert Raw(BINARY).render(page_of(b"\x00", b"\xff")) == b"\x00\xff"
    assert Raw(JSON).render(page_of(b"1", b"2")) == b"1\n2\n"
    assert [Raw(kind).content_type for kind in ("text/html", JSON, "image/png")] == [
        "text/plain; charset=utf-8",
        "text/plain; charset=utf-8",
        "image/png",
    ]


def test_the_text_of_a_run_is_its_answer_and_nothing_else():
    events = [
        {"type": "RUN_STARTED", "delta": "no"},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": "Hé"},
        {"type": "TOOL_CALL_ARGS", "delta": '{"type":"TEXT_MESSAGE_CONTENT"}'},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "m", "delta": 'l"lo\n'},
        {"type": "TEXT_MESSAGE_CONTENT", "messageId": "s", "delta": "aside", "subagentRunId": "s"},
    ]
    data = [json.dumps(event, separators=(",", ":")).encode() for event in events]
    assert RunText().render(page_of(*data)) == 'Hél"lo\n'.encode()
    assert RunText().render(page_of(data[0])) == b""
    assert RunText({"m"}).render(page_of(*data)) == b""


@pytest.mark.parametrize("form", [Lines(JSON), Raw(JSON), RunText()])
def test_who_cannot_tell_an_interruption_says_nothing_and_is_to_be_cut(form: Format):
    assert not form.ends_openly
    assert not form.tells_failure
    assert form.ending(page_of(closed=True)) == form.interruption(Draining("x")) == b""
    assert form.heartbeat in (b"", b"\n")


def test_keys_tell_apart_what_renders_differently():
    forms = [
        *(ServerSentEvents(kind) for kind in (JSON, TEXT, BINARY, EVENTS)),
        ServerSentEvents(JSON, named=False),
        ServerSentEvents(JSON, prefix="a~"),
        *(DurableEvents(kind, cursor) for kind in (JSON, TEXT, BINARY) for cursor in ("1", "2")),
        *(Lines(kind) for kind in (JSON, TEXT, BINARY)),
        *(Raw(kind) for kind in (JSON, TEXT)),
        RunText(),
        RunText({"m"}),
    ]
    assert len({form.key for form in forms}) == len(forms)
    assert ServerSentEvents("application/json; charset=utf-8").key == ServerSentEvents(JSON).key


# -- text whose characters lie across the borders of messages ---------------------------------------------------------


@given(st.text())
def test_text_is_cut_only_within_a_character(text):
    data = text.encode()
    assert not is_cut(data)
    for end in range(len(data) + 1):
        try:
            data[:end].decode()
            inside = False
        except UnicodeDecodeError:
            inside = True
        assert is_cut(data[:end]) == inside


@pytest.mark.parametrize(
    "data",
    [b"\x80", b"\xa9", b"\xff", b"\xc0", b"\xc1", b"\xf5", b"\xe0\x80", b"\xed\xa0", b"\xf0\x80", b"\xf4\x90", b"\xc3(",
     b"\xe2\x28", b"\xf0\x9f\x28", b"\xf0\x9f\x98\xff"],
)  # fmt: skip
def test_bytes_that_nothing_can_complete_are_not_waited_for(data):
    assert not is_cut(data)
    assert whole(page_of(b"a", data).messages) == 2


def test_what_can_be_shown_ends_where_a_character_does():
    smile = "😀".encode()
    parts = [smile[n : n + 1] for n in range(4)]
    for shown, data in [
        (0, []),
        (1, [b"a"]),
        (1, [b""]),
        (0, [smile[:2]]),
        (0, [b"abc" + smile[:3]]),
        (0, parts[:3]),
        (0, [*parts[:3], b""]),
        (4, parts),
        (2, [b"a", b"b", smile[:1]]),
        (2, [smile[:1], smile[1:], b"a" + smile[:1], smile[1:2], b""]),
        (1, [smile, smile[:1], smile[1:] + smile[:1]]),
    ]:
        assert whole(page_of(*data).messages) == shown, data


def test_what_is_cut_at_every_border_is_no_text_and_goes_as_it_is():
    cut = [b"\xc3", *[b"\xa9\xc3"] * MOST_CUT]
    assert whole(page_of(*cut[: MOST_CUT - 1]).messages) == 0
    assert whole(page_of(*cut).messages) == len(cut)


def test_messages_with_a_character_across_their_border_are_one_event_with_the_id_of_the_last():
    e, smile = "é".encode(), "😀".encode()
    data = [b"a", b"b" + e[:1], e[1:] + b"c", smile[:1], smile[1:3], smile[3:], b"", b"\xff", b"end" + e[:1]]
    page = page_of(*data)
    assert [(text.decode(errors="replace"), last.offset.position) for text, last in joined(page.messages)] == [
        ("a", 1), ("béc", 3), ("😀", 6), ("", 7), ("\ufffd", 8), ("end\ufffd", 9),
    ]  # fmt: skip
    events = decoded(ServerSentEvents(TEXT).render(page))
    assert [(event.data, event.id) for event in events[:3]] == [("a", id_of(1)), ("béc", id_of(3)), ("😀", id_of(6))]
    lines = Lines(TEXT).render(page).decode().splitlines()
    assert [json.loads(line) for line in lines] == ["a", "béc", "😀", "", "\ufffd", "end\ufffd"]


def test_only_formats_that_decode_page_by_page_care_where_one_ends():
    for kind in (TEXT, JSON, BINARY):
        forms = [DurableEvents(kind, "7"), ServerSentEvents(kind), Lines(kind), Raw(kind)]
        assert [form.in_characters for form in forms] == [kind == TEXT] * 3 + [False]


# -- rotation ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("jitter", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("later_ms", [0, 1_000, 60_000, 10**9])
def test_a_rotation_tells_a_cursor_beyond_the_one_before(later_ms, jitter):
    now = CURSOR_EPOCH_MS + 500 * CURSOR_INTERVAL_MS
    form = DurableEvents(TEXT, cursor(now, None, jitter))
    first, last = form.render(page_of()), form.rotation(page_of(), now + later_ms, jitter)
    (begun,), (ended,) = decoded(first), decoded(last)
    assert ended.event == "control"
    told = json.loads(ended.data)
    assert int(told.pop("streamCursor")) > int(json.loads(begun.data)["streamCursor"])
    assert told == {"streamNextOffset": id_of(0), "upToDate": True}


def test_a_rotation_is_nothing_that_an_event_source_would_see():
    assert ServerSentEvents(JSON).rotation(page_of(), 0, 0.5) == b""


# -- by name ----------------------------------------------------------------------------------------------------------


def test_formats_by_name():
    assert [type(by_name(name, JSON)) for name in ("sse", "ndjson", "text")] == [ServerSentEvents, Lines, Raw]
    with pytest.raises(NotAcceptable, match="sse, ndjson or text"):
        by_name("xml", JSON)


@pytest.mark.parametrize(
    ("accept", "name"),
    [
        ("text/event-stream", "sse"),
        ("Text/Event-Stream; charset=utf-8", "sse"),
        ("application/x-ndjson", "ndjson"),
        ("application/jsonl", "ndjson"),
        ("application/json, text/event-stream", None),  # both alike: the one named first
        ("application/json;q=0.5, text/event-stream", "sse"),
        ("text/event-stream;q=0.5, application/x-ndjson;q=0.9", "ndjson"),
        ("text/event-stream, */*;q=0.1", "sse"),
        ("text/event-stream;q=0", None),
        ("text/event-stream;q=x", None),
        ("*/*", None),
        ("text/html,application/xhtml+xml", None),
        ("", None),
        (",;q=,", None),
    ],
)
def test_accept_names_the_format_that_is_wanted_above_all(accept, name):
    assert accepted(accept) == name
