"""wire/values.py: what becomes which bytes, and what becomes none."""

import dataclasses
import datetime
import enum
import uuid

import msgspec
import pydantic
import pytest

from headwater.wire.values import to_bytes, to_json


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Shape(msgspec.Struct):
    name: str
    at: Point


class Colour(enum.Enum):
    RED = "red"


class Inner(pydantic.BaseModel):
    when: datetime.date


class Model(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True)
    inner: Inner
    renamed: int = pydantic.Field(serialization_alias="Renamed")

    @pydantic.field_serializer("renamed")
    def doubled(self, value: int) -> int:
        return 2 * value


class Secret:
    def __repr__(self) -> str:
        return "password"


@pytest.mark.parametrize(
    ("value", "data"),
    [
        (b"\x00\xff", b"\x00\xff"),
        (bytearray(b"ab"), b"ab"),
        (memoryview(b"abcd")[::2], b"ac"),
        ("ü\u2028", "ü\u2028".encode()),
        ("", b""),
        (None, b"null"),
        (True, b"true"),
        (1.5, b"1.5"),
        (2**70, b"1180591620717411303424"),
        ({"a": [1, "ü", None]}, '{"a":[1,"ü",null]}'.encode()),
        ((1, 2), b"[1,2]"),
        ([], b"[]"),
        (Point(1, 2.0), b'{"x":1,"y":2.0}'),
        (Shape("s", Point(1, 2.0)), b'{"name":"s","at":{"x":1,"y":2.0}}'),
        (Colour.RED, b'"red"'),
        (uuid.UUID(int=0), b'"00000000-0000-0000-0000-000000000000"'),
        (datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC), b'"2024-01-02T03:00:00Z"'),
        (Inner(when=datetime.date(2024, 1, 2)), b'{"when":"2024-01-02"}'),
    ],
)
def test_bytes_stay_text_is_utf8_and_the_rest_is_compact_json(value, data):
    assert to_bytes(value) == data


def test_a_string_is_json_where_json_is_asked_for():
    assert to_json('say "ü"') == '"say \\"ü\\""'.encode()


def test_a_pydantic_model_is_encoded_as_it_says_itself_wherever_it_stands():
    model = Model(inner=Inner(when=datetime.date(2024, 1, 2)), renamed=2)
    encoded = b'{"inner":{"when":"2024-01-02"},"Renamed":4}'
    assert to_bytes(model) == encoded
    assert to_bytes([model, {"in": model}]) == b"[" + encoded + b',{"in":' + encoded + b"}]"


@pytest.mark.parametrize("value", [Secret(), [Secret()], {"a": {"b": Secret()}}, object, lambda: 1, {1j}, Model])
def test_what_has_no_json_form_is_refused_and_never_shown(value):
    with pytest.raises(TypeError) as raised:
        to_bytes(value)
    assert "password" not in str(raised.value)
