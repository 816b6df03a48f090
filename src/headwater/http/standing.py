"""Where a stream or a page stands, in headers. Section numbers are Durable Streams'.

Knows heads and pages; nothing of requests.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final

from headwater.model import Head, Offset, Page
from headwater.wire.durable import retention_text

SANDBOX: Final = ("content-security-policy", "sandbox")
"""A writer chooses the content type: what it stored, opened as a page, must not act as one of this server's own."""


def state(head: Head) -> dict[str, str]:
    """Of a stream (5)."""
    headers = {"stream-next-offset": str(head.offset)}
    if head.closed:
        headers["stream-closed"] = "true"
        if head.outcome is not None:
            headers["stream-outcome"] = head.outcome
    if head.config.ttl is not None:
        headers["stream-ttl"] = str(head.config.ttl)
    if head.config.expires_at is not None:
        at = datetime.fromtimestamp(head.config.expires_at / 1000, UTC)
        headers["stream-expires-at"] = at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if head.config.retention is not None:
        headers["stream-retention"] = retention_text(head.config.retention)
    return headers


def earliest(head: Head) -> Offset:
    """Before the first message that is still kept."""
    return Offset(head.generation, head.start)


def position(page: Page) -> dict[str, str]:
    """Of a page (5.6): where it ends, whether that is the tail, and whether it is the end for ever."""
    headers = dict([("stream-next-offset", str(page.next)), SANDBOX])
    if page.up_to_date:
        headers["stream-up-to-date"] = "true"
    if page.closed:
        headers["stream-closed"] = "true"
        if page.outcome is not None:
            headers["stream-outcome"] = page.outcome
    return headers
