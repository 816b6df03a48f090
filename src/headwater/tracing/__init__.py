"""OpenTelemetry spans and metrics of runs, appends and readers, for whoever switches them on.

    streams = Streams("sqlite:///app.db", tracing=Tracing())

Needs `opentelemetry-api` and nothing more: where spans go is for the application to set up, or for
`opentelemetry-instrument`. Where nobody has, nothing is made. Names and attributes are OpenTelemetry's for GenAI where
it has some (docs/tracing.md). No attribute holds a prompt, an argument, a result, a token or the text of an error.

Knows `headwater.traced` and the events of a run. Nobody below imports this.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

from headwater import __version__
from headwater.errors import HeadwaterError, MissingExtra
from headwater.traced import TRACEPARENT, Reading

try:
    from opentelemetry import context, metrics, propagate, trace
    from opentelemetry.trace import Link, SpanKind, StatusCode
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
except ImportError as error:
    raise MissingExtra("tracing", "opentelemetry-api") from error

from headwater.tracing.instruments import Instruments
from headwater.tracing.operations import Operation
from headwater.tracing.runs import RunSpans

__all__ = ["Tracing", "is_set_up"]

_W3C: Final = TraceContextTextMapPropagator()

_ENDS_WELL: Final = frozenset(
    {"answered", "draining", "ended", "left", "nothing_new", "paused", "rotated", "unfollowed"}
)
"""How readers leave that nothing has gone wrong for; the others are errors."""


def is_set_up() -> bool:
    """Whether spans go anywhere."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


class Tracing:
    """Makes spans and metrics of what it is told (`headwater.traced.Tracing`)."""

    def __init__(
        self,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
        *,
        children: bool = True,
    ) -> None:
        """By default with the providers that the application has set, also later.

        `children`: model calls, tools and agents inside tools are spans of their own. Turn it off where something else
        makes those already: an instrumentation of the agent's framework, say.
        """
        self._tracer = trace.get_tracer("headwater", __version__, tracer_provider)
        self._instruments = Instruments(metrics.get_meter("headwater", __version__, meter_provider))
        self._children = children

    def __repr__(self) -> str:
        return f"<Tracing{'' if self._children else ' without children'}>"

    @contextmanager
    def request(self, headers: Mapping[str, str]) -> Iterator[None]:
        """See `headwater.traced.Tracing.request`."""
        token = context.attach(_around(headers))
        try:
            yield
        finally:
            context.detach(token)

    def run(
        self, run_id: str, agent: str, thread_id: str, *, attempt: int = 0, traceparent: str | None = None
    ) -> RunSpans | None:
        """See `headwater.traced.Tracing.run`."""
        # What takes a run over may be a task that some request has begun long ago: its context tells nothing.
        around = context.Context() if attempt else context.get_current()
        if traceparent is not None:
            around = _W3C.extract({TRACEPARENT: traceparent}, around)
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": "invoke_agent",
            "gen_ai.agent.name": agent,
            "gen_ai.conversation.id": thread_id,
            "headwater.run.id": run_id,
        }
        if attempt:
            attributes["headwater.run.attempt"] = attempt
        span = self._tracer.start_span("headwater.run", around, attributes=attributes)
        if not span.get_span_context().is_valid:
            return None
        labels = {"gen_ai.agent.name": agent}
        operation = Operation(span, around, self._instruments.invoke_agent, labels)
        return RunSpans(self._tracer, self._instruments, operation, children=self._children)

    @contextmanager
    def append(self, stream: str, messages: int, size: int) -> Iterator[Callable[[str, str | None], None]]:
        """See `headwater.traced.Tracing.append`."""
        attributes = {
            **_messaging(stream, "append", "send"),
            "messaging.batch.message_count": messages,
            "messaging.message.body.size": size,
        }
        with self._tracer.start_as_current_span(
            "headwater.append",
            kind=SpanKind.PRODUCER,
            attributes=attributes,
            record_exception=False,  # its text may hold what a client has sent
            set_status_on_exception=False,
        ) as span:

            def over(what: str, traceparent: str | None) -> None:
                span.set_attribute("headwater.append.result", what)
                for link in _links(traceparent):
                    span.add_link(link.context)

            try:
                yield over
            except HeadwaterError as error:
                _failed(span, error.code)
                raise
            except BaseException as error:
                _failed(span, type(error).__name__)
                raise

    def reader(self, reading: Reading, headers: Mapping[str, str] | None) -> ReaderSpan | None:
        """See `headwater.traced.Tracing.reader`."""
        attributes = {
            **_messaging(reading.stream, "subscribe", "receive"),
            "headwater.transport": reading.transport,
            "headwater.resume": reading.resume,
            "headwater.replayed": reading.replayed,
        }
        span = self._tracer.start_span(
            "headwater.subscribe",
            _around(headers or {}),
            kind=SpanKind.CONSUMER,
            attributes=attributes,
            links=_links(reading.traceparent),
        )
        return ReaderSpan(span) if span.get_span_context().is_valid else None


class ReaderSpan:
    """One reader's stay, as a span. Unlike the others it is not the current one for anybody: it may have no task."""

    __slots__ = ("_span",)

    def __init__(self, span: trace.Span) -> None:
        self._span = span

    def over(self, reason: str, events: int | None, size: int) -> None:
        span = self._span
        span.set_attribute("headwater.reason", reason)
        span.set_attribute("headwater.bytes", size)
        if events is not None:
            span.set_attribute("headwater.events", events)
        if reason not in _ENDS_WELL:
            _failed(span, reason)
        span.end()


def _around(headers: Mapping[str, str]) -> context.Context:
    """Where a request belongs: in the span that somebody has put around it, else where its client says."""
    here = context.get_current()
    return here if trace.get_current_span(here).get_span_context().is_valid else propagate.extract(headers, here)


def _links(traceparent: str | None) -> list[Link]:
    """To the run that a stream is of."""
    if traceparent is None:
        return []
    found = _W3C.extract({TRACEPARENT: traceparent}, context.Context())
    of = trace.get_current_span(found).get_span_context()
    return [Link(of)] if of.is_valid else []


def _messaging(stream: str, name: str, kind: str) -> dict[str, str | int]:
    return {
        "messaging.system": "headwater",
        "messaging.operation.name": name,
        "messaging.operation.type": kind,
        "messaging.destination.name": stream,
    }


def _failed(span: trace.Span, code: str) -> None:
    span.set_attribute("error.type", code)
    span.set_status(StatusCode.ERROR)
