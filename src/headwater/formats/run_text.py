"""The text of a run's answer, and nothing else: for `curl`, scripts and readers that want words. Pure.

Knows the one AG-UI event that carries answer text. Cannot tell how the run ended, so a failed one is cut off.
"""

from __future__ import annotations

from collections.abc import Hashable

import msgspec

from headwater.formats.format import Format
from headwater.model import Page


class _Delta(msgspec.Struct, rename="camel"):
    type: str
    delta: str = ""
    subagent_run_id: str | None = None


_decode = msgspec.json.Decoder(_Delta).decode


class RunText(Format):
    """`format=text` of a run."""

    content_type = "text/plain; charset=utf-8"
    tells_failure = False

    @property
    def key(self) -> Hashable:
        return "run-text"

    def render(self, page: Page) -> bytes:
        said = [_decode(message.data) for message in page.messages if b'"TEXT_MESSAGE_CONTENT"' in message.data[:40]]
        return "".join(one.delta for one in said if one.subagent_run_id is None).encode()
