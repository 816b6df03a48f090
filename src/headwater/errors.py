"""Every error Headwater raises, in one tree.

    HeadwaterError
    ├── BadRequest                 400   the caller said something that can never be right
    │   └── BadOffset              400   not an offset, or one beyond the tail
    ├── Unauthorized               401   no valid credentials
    ├── Forbidden                  403   valid credentials, not for this
    │   └── ProducerFenced         403   a newer epoch of this producer exists
    ├── NotFound                   404
    │   ├── StreamNotFound         404
    │   │   └── StreamDeleted      410   but forks of it remain: its name is free again when the last one is gone
    │   ├── RunNotFound            404
    │   └── AgentNotFound          404
    ├── NotAcceptable              406   no such format for this stream
    ├── Conflict                   409   right in itself, wrong for the state the stream is in
    │   ├── StreamExists           409   created before, with another configuration
    │   ├── StreamClosed           409   closed is for ever (G8)
    │   ├── ContentTypeMismatch    409
    │   ├── SequenceRegression     409   Stream-Seq did not increase
    │   ├── ProducerGap            409   a batch of this producer is missing
    │   └── KeyReused              409   an Idempotency-Key with another body
    ├── OffsetMismatch             412   the stream does not end where the append expected it (If-Match)
    ├── OffsetGone                 410   trimmed away, or of an earlier stream of this name (G5)
    ├── TooLarge                   413
    ├── HeadersTooLarge            431
    ├── TooManyRequests            429   retry after a pause
    ├── StoreError                 500
    │   ├── StoreFileUnusable      500   not ours, or written by a newer version
    │   └── StoreUnavailable       503   retry: busy, locked, disk full, connection lost
    ├── Interrupted                500   whoever was making this went away
    ├── Draining                   503   retry: this server is going away
    ├── TooSlow                    503   retry: a reader that did not keep up, where the server lets those go
    ├── VersionConflict            503   internal to the store contract: reload, decide again
    └── MissingExtra               500   an optional package is not installed (also an ImportError)

Each class says its HTTP status, a stable code for programs, and whether the same request may succeed when it is
sent again. `detail` holds facts a client may need (offsets, epochs). It reaches readers, and so does `said`: never
internals in those.
Knows nobody.
"""

from __future__ import annotations

from typing import ClassVar


class HeadwaterError(Exception):
    """The root."""

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal"
    retry: ClassVar[bool] = False

    def __init__(self, message: str, **detail: str | int) -> None:
        super().__init__(message)
        self.detail: dict[str, str | int] = detail

    @property
    def said(self) -> str:
        """What a client is told; `str` is for whoever runs the server."""
        return str(self)


class BadRequest(HeadwaterError):
    status, code = 400, "bad_request"


class BadOffset(BadRequest):
    code = "bad_offset"


class Unauthorized(HeadwaterError):
    status, code = 401, "unauthorized"


class Forbidden(HeadwaterError):
    status, code = 403, "forbidden"


class ProducerFenced(Forbidden):
    """Detail: `epoch`, the producer's current one (Durable Streams 5.2.1)."""

    code = "producer_fenced"


class NotFound(HeadwaterError):
    status, code = 404, "not_found"


class StreamNotFound(NotFound):
    code = "stream_not_found"


class StreamDeleted(StreamNotFound):
    status, code = 410, "stream_deleted"


class RunNotFound(NotFound):
    code = "run_not_found"


class AgentNotFound(NotFound):
    code = "agent_not_found"


class NotAcceptable(HeadwaterError):
    status, code = 406, "not_acceptable"


class Conflict(HeadwaterError):
    status, code = 409, "conflict"


class StreamExists(Conflict):
    code = "stream_exists"


class StreamClosed(Conflict):
    """Detail: `offset`, the final one."""

    code = "stream_closed"


class ContentTypeMismatch(Conflict):
    code = "content_type_mismatch"


class SequenceRegression(Conflict):
    code = "sequence_regression"


class ProducerGap(Conflict):
    """Detail: `expected` and `received` producer sequence numbers."""

    code = "producer_gap"


class KeyReused(Conflict):
    code = "idempotency_key_reused"


class OffsetGone(HeadwaterError):
    status, code = 410, "offset_gone"


class OffsetMismatch(HeadwaterError):
    """Detail: `offset`, where the stream ends now."""

    status, code = 412, "offset_mismatch"


class HeadersTooLarge(HeadwaterError):
    status, code = 431, "headers_too_large"


class TooLarge(HeadwaterError):
    status, code = 413, "too_large"


class TooManyRequests(HeadwaterError):
    status, code, retry = 429, "too_many_requests", True


class StoreError(HeadwaterError):
    """Its text names files; a client learns only that it was the store."""

    code = "store_error"

    @property
    def said(self) -> str:
        return "the store cannot be used right now" if self.retry else "the store cannot be used"


class StoreFileUnusable(StoreError):
    code = "store_file_unusable"


class StoreUnavailable(StoreError):
    status, code, retry = 503, "store_unavailable", True


class Interrupted(HeadwaterError):
    code = "interrupted"

    def __init__(self, message: str = "the server went away before this was finished", **detail: str | int) -> None:
        super().__init__(message, **detail)


class Draining(HeadwaterError):
    status, code, retry = 503, "draining", True


class TooSlow(HeadwaterError):
    status, code, retry = 503, "too_slow", True


class VersionConflict(HeadwaterError):
    """The head in the store is not the one the decision was made on: nothing was written."""

    status, code, retry = 503, "version_conflict", True


class MissingExtra(HeadwaterError, ImportError):
    """An optional part is not installed; the message holds the line that installs it."""

    code = "missing_extra"

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(f"{package} is not installed; run: pip install 'headwater[{extra}]'")
