"""Something that takes time: a span, and the histogram that its duration goes into.

Knows OpenTelemetry's API. Invariant: it ends once, the first time that it is told to.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.metrics import Histogram
from opentelemetry.trace import Span, StatusCode


class Operation:
    """One span and its duration."""

    __slots__ = ("_began", "_histogram", "_is_over", "around", "labels", "span")

    def __init__(
        self, span: Span, around: Context, histogram: Histogram, labels: Mapping[str, str], *, began: int | None = None
    ) -> None:
        """`around`: what its span was made in; `labels`: attributes of its duration, few values each; `began`: in ns
        since 1970, where its span did not begin just now."""
        self.span, self.labels = span, dict(labels)
        self.around = trace.set_span_in_context(span, around)
        """What its children are made in."""
        self._histogram = histogram
        self._began = time.monotonic() - (0.0 if began is None else max(0, time.time_ns() - began) / 1e9)
        self._is_over = False

    def __repr__(self) -> str:
        return f"<Operation {self.labels}{' [over]' if self._is_over else ''}>"

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._began

    def over(self, error: str | None = None, *, counts: bool = True) -> None:
        """`error`: the code of what it failed with; `counts`: this was all of it, and its duration means something."""
        if self._is_over:
            return
        self._is_over = True
        if error is not None:
            self.labels["error.type"] = error
            self.span.set_attribute("error.type", error)
            self.span.set_status(StatusCode.ERROR)
        if counts:
            self._histogram.record(self.seconds, self.labels, self.around)
        self.span.end()
