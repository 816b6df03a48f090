"""How readers are served: times and sizes. Knows nobody but what becomes of slow ones."""

from __future__ import annotations

from dataclasses import dataclass

from headwater.slow import DEFAULT_SLOW, Slow


@dataclass(frozen=True, slots=True)
class Policy:
    """How readers are served."""

    heartbeat_seconds: float = 15.0
    """Of silence. Under every idle limit met in the field: 30 s (load balancers) to 100 s (Cloudflare)."""
    write_seconds: float = 30.0
    """A write that has not been taken for so long: the reader is dropped and may resume. (On Linux, `headwater.server`
    has the kernel give up on one that takes nothing at all before that.)"""
    chunk_bytes: int = 64 * 1024
    """In one write: what a reader that is behind gets at a time, before the others have their turn."""
    slow: Slow = DEFAULT_SLOW
    """What becomes of readers that do not keep up: see there."""
    join_ms: int = 0
    """Small messages that come within so long of a write go out together after it (`headwater.joining`), where a reader
    does not ask for its own time. 0: each as it comes, since nobody who did not ask should see text come in jumps."""
    rotate_seconds: float | None = None
    """After which a response ends, in formats whose clients come back by themselves, to be followed by the next. None:
    never; what it is good for are shared caches that collapse requests, which need them to end."""
