"""The text of a run's answer, and nothing else: for `curl`, scripts and readers that want words. Pure.

Knows the one AG-UI event that carries answer text. Cannot tell how the run ended, so a failed one is cut off. Cannot
take words back: who comes late is not told those that were taken back before; what is taken back later, stays.
"""

from __future__ import annotations

from collections.abc import Hashable, Set

import msgspec

from headwater.formats.format import Format
from headwater.model import Page


class _Delta(msgspec.Struct, rename="camel"):
    type: str
    message_id: str = ""
    delta: str = ""
    subagent_run_id: str | None = None


_decode = msgspec.json.Decoder(_Delta).decode


class RunText(Format):
    """`format=text` of a run."""

    content_type = "text/plain; charset=utf-8"
    transport = "text"
    tells_failure = False

    def __init__(self, retracted: Set[str] = frozenset()) -> None:
        """`retracted`: ids of messages that are left out."""
        self._retracted = frozenset(retracted)

    @property
    def key(self) -> Hashable:
        return "run-text", self._retracted

    def render(self, page: Page) -> bytes:
        said = [_decode(message.data) for message in page.messages if b'"TEXT_MESSAGE_CONTENT"' in message.data[:40]]
        told = [one for one in said if one.subagent_run_id is None and one.message_id not in self._retracted]
        return "".join(one.delta for one in told).encode()
