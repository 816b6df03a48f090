"""Python values -> the bytes of one message. Pure.

bytes stay as they are, str is UTF-8, everything else becomes compact JSON: dicts, lists, dataclasses, msgspec structs,
datetimes and pydantic models. What has no JSON form raises TypeError; nothing is ever turned into its repr.
"""

from __future__ import annotations

from typing import Any

import msgspec

_encode = msgspec.json.Encoder(enc_hook=lambda value: _dumped(value)).encode


def to_bytes(value: Any) -> bytes:
    """The bytes of the message that `value` makes. Raises TypeError for what has no JSON form."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    return to_json(value)


def to_json(value: Any) -> bytes:
    """`value` as compact JSON, strings too. Raises TypeError for what has no JSON form."""
    dump = getattr(value, "model_dump_json", None)  # pydantic's own: it knows the model's serializers
    return dump(by_alias=True).encode() if dump is not None else _encode(value)


def _dumped(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is None:
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return dump(mode="json", by_alias=True)
