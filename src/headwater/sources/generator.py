"""Runs an async generator function as a source: the shortest way from a loop of one's own to a run.

    async def answer(question):
        yield "Let me "                              # text: one message
        yield {"found": 3}                           # CUSTOM event "data", of which every client has a word
        yield ToolCallStartEvent(…)                  # AG-UI, for the rest

    runs = Runs(streams, answer)

What frameworks make that have an AG-UI adapter of their own goes in as it is, too: their RUN_STARTED and RUN_FINISHED
are taken for what they are (`headwater.sources.adoption`). Knows generators and AG-UI. Invariants: nothing that the
generator raises reaches a reader but a RunFailed, which is meant to; however the run ends, the generator is closed.
"""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any, Final

from ag_ui.core import Event, EventType, TextMessageContentEvent, TextMessageEndEvent, TextMessageStartEvent
from pydantic import TypeAdapter

from headwater.agui import BaseEvent, CustomEvent, valid_text
from headwater.errors import HeadwaterError
from headwater.sources import RunFailed, Sink
from headwater.sources.adoption import Adoption
from headwater.sources.redacted import redacted

__all__ = ["DATA", "Generator"]

DATA: Final = "data"
"""Name of the CUSTOM event that a dict becomes; its value is the dict."""

_log: Final = logging.getLogger(__name__)
_EVENT: Final[TypeAdapter[BaseEvent]] = TypeAdapter(Event)
_END: Final = object()


class Generator:
    """An async generator function as a source.

    `function` is called with the input of each run, and gives

    - str: pieces of the text of one message, which the next AG-UI event ends;
    - AG-UI events, and dicts that say they are some (`{"type": "TOOL_CALL_START", …}`): as they are. Out of order, they
      end the run as failed (log level debug says what was wrong);
    - other dicts: CUSTOM events named "data".

    To fail with a reason for readers, raise `RunFailed(code, message)`; any other exception is told as "internal". The
    run's result is what a RUN_FINISHED event says, else the text of the last message that was made of pieces.
    """

    def __init__(self, function: Callable[[Any], AsyncGenerator[Any, None]], *, name: str | None = None) -> None:
        """`name`: what it is registered under; by default the slug of the function's own."""
        self.name = name or _slug(function)
        self._function = function

    def __repr__(self) -> str:
        return f"<Generator {self.name}>"

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """See `Source.run`."""
        said = _Said(sink.run_id)
        try:
            async with aclosing(self._function(input)) as items:
                while (item := await anext(items, _END)) is not _END:
                    for event in said.events(item):
                        await sink.emit(event)
            for event in said.end():
                await sink.emit(event)
        except (RunFailed, HeadwaterError):
            raise
        except Exception as error:
            raise redacted(error, sink.run_id, _log) from error
        finally:
            sink.usage(said.adoption.usage)
        return said.result


class _Said:
    """What one generator has given so far, as events."""

    def __init__(self, run_id: str) -> None:
        self.adoption = Adoption(run_id)
        self._run_id = run_id
        self._messages = 0
        self._message: str | None = None  # of text pieces, and open
        self._pieces: list[str] = []

    @property
    def result(self) -> object:
        return self.adoption.result if self.adoption.result is not None else "".join(self._pieces) or None

    def events(self, item: Any) -> Iterator[BaseEvent]:
        """What `item` becomes, in order. Raises TypeError for what cannot be said."""
        if isinstance(item, str):
            yield from self._text(item)
        elif isinstance(item, BaseEvent):
            yield from self._event(item)
        elif isinstance(item, Mapping):
            if item.get("type") in EventType.__members__:
                yield from self._event(_EVENT.validate_python(item))
            else:
                yield CustomEvent(name=DATA, value=dict(item))
        else:
            raise TypeError(f"a generator gives str, dict or AG-UI events, and not {type(item).__name__}")

    def end(self) -> Iterator[BaseEvent]:
        yield from self._end_text()
        yield from self.adoption.end()

    def _text(self, piece: str) -> Iterator[BaseEvent]:
        if not piece:
            return
        if self._message is None:
            yield from self.adoption.end()
            self._messages += 1
            self._message, self._pieces = f"{self._run_id}.{self._messages}", []
            yield TextMessageStartEvent(message_id=self._message, role="assistant")
        self._pieces.append(piece := valid_text(piece))
        yield TextMessageContentEvent(message_id=self._message, delta=piece)

    def _event(self, event: BaseEvent) -> Iterator[BaseEvent]:
        yield from self._end_text()
        yield from self.adoption.events(event)

    def _end_text(self) -> Iterator[BaseEvent]:
        if self._message is not None:
            yield TextMessageEndEvent(message_id=self._message)
            self._message = None


def _slug(function: object) -> str:
    while (inner := getattr(function, "func", None)) is not None:  # functools.partial
        function = inner
    name = getattr(function, "__name__", type(function).__name__)
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "generator"


def is_generator_function(agent: object) -> bool:
    """Whether calling `agent` gives an async generator: a function, a method, a partial, an object with `__call__`."""
    called = vars(type(agent)).get("__call__")
    return inspect.isasyncgenfunction(agent) or inspect.isasyncgenfunction(called)
