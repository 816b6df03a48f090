"""The output items of a Response: what each opens, grows and closes with, in the words of OpenAI's Responses API. Pure.

An item lives at one `output_index` for ever. Its JSON (`body`) is made anew each time it is asked for, so that what was
given out before never changes. Items know nothing of AG-UI, of other items, or of `sequence_number`.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any, ClassVar, TypeAlias

Event: TypeAlias = dict[str, Any]
"""One event of a Response's stream, without its `sequence_number`."""


class Item(abc.ABC):
    """What all of them say: when they come and when they are whole."""

    def __init__(self, id_: str, index: int) -> None:
        self.id, self.index = id_, index
        self.open = True

    @property
    def status(self) -> str:
        return "in_progress" if self.open else "completed"

    @abc.abstractmethod
    def body(self) -> dict[str, Any]:
        """The item as it stands."""

    def opened(self) -> Iterator[Event]:
        yield {"type": "response.output_item.added", "output_index": self.index, "item": self.body()}

    def closed(self) -> Iterator[Event]:
        """Closing twice says nothing the second time."""
        if self.open:
            yield from self._finished()
            self.open = False
            yield {"type": "response.output_item.done", "output_index": self.index, "item": self.body()}

    def _finished(self) -> Iterator[Event]:
        return iter(())

    def _event(self, type_: str, **fields: Any) -> Event:
        return {"type": type_, "item_id": self.id, "output_index": self.index, **fields}


class Text:
    """A part of a message: what the model says, or how it refuses."""

    def __init__(self, *, refusal: bool) -> None:
        self.refusal = refusal
        self._deltas: list[str] = []

    @property
    def text(self) -> str:
        return "".join(self._deltas)

    def add(self, delta: str) -> None:
        self._deltas.append(delta)

    def body(self) -> dict[str, Any]:
        if self.refusal:
            return {"type": "refusal", "refusal": self.text}
        return {"type": "output_text", "text": self.text, "annotations": [], "logprobs": []}


class MessageItem(Item):
    """A text message. Its parts come with their first text, so that a refusal is one from its beginning."""

    def __init__(self, id_: str, index: int) -> None:
        super().__init__(id_, index)
        self.refused = self.retracted = False
        self._parts: list[Text] = []

    def body(self) -> dict[str, Any]:
        status = "incomplete" if self.retracted else self.status
        content = [] if self.retracted else [part.body() for part in self._parts]
        return {"id": self.id, "type": "message", "status": status, "role": "assistant", "content": content}

    def add(self, delta: str) -> Iterator[Event]:
        if not self._parts or self._parts[-1].refusal != self.refused:
            yield from self._end_part()
            part = Text(refusal=self.refused)
            self._parts.append(part)
            yield self._part("response.content_part.added", part=part.body())
        part = self._parts[-1]
        part.add(delta)
        if part.refusal:
            yield self._part("response.refusal.delta", delta=delta)
        else:
            yield self._part("response.output_text.delta", delta=delta, logprobs=[])

    def _finished(self) -> Iterator[Event]:
        return self._end_part()

    def _end_part(self) -> Iterator[Event]:
        if not self._parts:
            return
        part = self._parts[-1]
        if part.refusal:
            yield self._part("response.refusal.done", refusal=part.text)
        else:
            yield self._part("response.output_text.done", text=part.text, logprobs=[])
        yield self._part("response.content_part.done", part=part.body())

    def _part(self, type_: str, **fields: Any) -> Event:
        return self._event(type_, content_index=len(self._parts) - 1, **fields)


class ServerCallItem(Item):
    """A tool that the agent runs, from the call to what it gave: `mcp_call`."""

    def __init__(self, id_: str, index: int, label: str, name: str) -> None:
        """`label`: who runs the tool."""
        super().__init__(id_, index)
        self._label, self._name = label, name
        self._deltas: list[str] = []
        self._asked = False
        self._output: str | None = None

    @property
    def status(self) -> str:
        if self.open:
            return "in_progress"
        return "completed" if self._output is not None else "incomplete"

    def body(self) -> dict[str, Any]:
        said = {"type": "mcp_call", "server_label": self._label, "name": self._name}
        came_out = {"output": self._output, "error": None, "approval_request_id": None}
        return {"id": self.id, "status": self.status, **said, "arguments": "".join(self._deltas), **came_out}

    def opened(self) -> Iterator[Event]:
        yield from super().opened()
        yield self._event("response.mcp_call.in_progress")

    def add(self, delta: str) -> Iterator[Event]:
        self._deltas.append(delta)
        yield self._event("response.mcp_call_arguments.delta", delta=delta)

    def asked(self) -> Iterator[Event]:
        """The arguments are whole; the tool may run."""
        if not self._asked:
            self._asked = True
            yield self._event("response.mcp_call_arguments.done", arguments="".join(self._deltas))

    def answered(self, output: str) -> Iterator[Event]:
        self._output = output
        return self.closed()

    def _finished(self) -> Iterator[Event]:
        yield from self.asked()
        yield self._event("response.mcp_call.failed" if self._output is None else "response.mcp_call.completed")


class CallItem(Item):
    """The same as `function_call`, which ends with its arguments; a `CallOutputItem` of its `call_id` follows."""

    def __init__(self, id_: str, index: int, call_id: str, name: str) -> None:
        super().__init__(id_, index)
        self.call_id, self._name = call_id, name
        self._deltas: list[str] = []

    def body(self) -> dict[str, Any]:
        arguments = "".join(self._deltas)
        said = {"type": "function_call", "call_id": self.call_id, "name": self._name, "arguments": arguments}
        return {"id": self.id, "status": self.status, **said}

    def add(self, delta: str) -> Iterator[Event]:
        self._deltas.append(delta)
        yield self._event("response.function_call_arguments.delta", delta=delta)

    def asked(self) -> Iterator[Event]:
        """The arguments are whole; the tool may run."""
        return self.closed()

    def _finished(self) -> Iterator[Event]:
        yield self._event("response.function_call_arguments.done", name=self._name, arguments="".join(self._deltas))


class CallOutputItem(Item):
    """What a tool gave."""

    def __init__(self, id_: str, index: int, call_id: str, output: str) -> None:
        super().__init__(id_, index)
        self.call_id, self._output = call_id, output

    def body(self) -> dict[str, Any]:
        said = {"type": "function_call_output", "call_id": self.call_id, "output": self._output}
        return {"id": self.id, "status": self.status, **said}


class ReasoningItem(Item):
    """A span of thought, told in sections, one after the other."""

    _SUMMARY: ClassVar[str] = "response.reasoning_summary"

    def __init__(self, id_: str, index: int) -> None:
        super().__init__(id_, index)
        self._sections: list[list[str]] = []
        self._in_section = False

    def body(self) -> dict[str, Any]:
        summary = [_section("".join(deltas)) for deltas in self._sections]
        return {"id": self.id, "type": "reasoning", "status": self.status, "summary": summary}

    def add(self, delta: str) -> Iterator[Event]:
        if not self._in_section:
            self._in_section = True
            self._sections.append([])
            yield self._of(f"{self._SUMMARY}_part.added", part=_section(""))
        self._sections[-1].append(delta)
        yield self._of(f"{self._SUMMARY}_text.delta", delta=delta)

    def end_section(self) -> Iterator[Event]:
        if self._in_section:
            self._in_section = False
            text = "".join(self._sections[-1])
            yield self._of(f"{self._SUMMARY}_text.done", text=text)
            yield self._of(f"{self._SUMMARY}_part.done", part=_section(text))

    def _finished(self) -> Iterator[Event]:
        return self.end_section()

    def _of(self, type_: str, **fields: Any) -> Event:
        return self._event(type_, summary_index=len(self._sections) - 1, **fields)


def _section(text: str) -> dict[str, Any]:
    return {"type": "summary_text", "text": text}
