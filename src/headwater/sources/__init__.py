"""What a source is, what it may do, and how a tool inside one tells its progress.

A source turns something live (an agent framework, an LLM API) into the events of a run. It knows nothing of streams,
stores or readers: it is given a `Sink`, and whoever runs it (the run supervisor) owns RUN_STARTED, the terminal event
and the closing of what is still open. Adapters live beside this file, one module each.

A source that can go on with a run whose process is gone has a `resume` besides `run`, and keeps checkpoints on the way.
One that can wait for people raises `Paused`, and is resumed when they have answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, runtime_checkable

import msgspec

from headwater.traced import TracedRun

if TYPE_CHECKING:
    from headwater.agui import BaseEvent, TokenUsage

__all__ = [
    "JSON",
    "Answer",
    "Paused",
    "Question",
    "Remembering",
    "Request",
    "Resumable",
    "Resumption",
    "RunFailed",
    "Sink",
    "Source",
    "Stopped",
    "progress",
    "request",
    "tool_call_id",
]

JSON: TypeAlias = "bool | int | float | str | list[JSON] | dict[str, JSON] | None"


class Sink(Protocol):
    """Where a source puts what it makes."""

    run_id: str
    thread_id: str
    conversation: str
    """The thread's id among those of all who start runs: by this one an agent may remember what was said (G10)."""

    @property
    def keeps(self) -> bool:
        """Whether checkpoints are kept: else there is no use in making them."""

    async def emit(self, event: BaseEvent) -> None:
        """Puts `event` into the run's stream, in order; AG-UI's *_CHUNK events as the whole ones they stand for. May
        wait for the store (back-pressure), never for readers."""

    def usage(self, entries: Sequence[TokenUsage]) -> None:
        """What is known so far; replaces earlier entries. Goes onto the terminal event, also of a cancelled run."""

    async def checkpoint(self, state: bytes, events: Sequence[BaseEvent] = ()) -> None:
        """Keeps `state`, then puts `events` into the run's stream: after a crash either both are there or neither.

        When this returns, `state` is durable, and the events are on their way. What is done from here on, and what
        `resume` is to know, is for the next checkpoint.
        """

    async def flush(self) -> None:
        """Returns when all that was put into the stream is durable: before something that cannot be taken back."""

    def on_stop(self, stop: Callable[[], None]) -> None:
        """`stop` is called when the run is to end after its current turn, by raising Stopped. A source that never says
        how it does this is cancelled instead."""


class Source(Protocol):
    """Something that can be run."""

    name: str

    async def run(self, input: Any, sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """Emits everything between RUN_STARTED and the terminal event; returns the run's result, which is JSON.

        Raises RunFailed with what readers may know. A cancelled run gives up its usage, stops what it started and
        raises CancelledError. Parts may be left open at an exception; the caller closes them.
        """


class Answer(msgspec.Struct, frozen=True):
    """What somebody said to a Question."""

    approved: bool
    message: str | None = None
    """For the model, where it was not approved."""


class Resumption(msgspec.Struct, frozen=True):
    """Where a run is to go on."""

    attempt: int
    """1 for the first time: another one each time, to make new ids with."""
    state: bytes | None
    """The newest checkpoint that counts; None: there is none, and no tool has begun, so begin anew."""
    calls: Mapping[str, bool] = {}
    """The tool calls that the stream holds so far, by id: whether its result is there."""
    messages: Sequence[str] = ()
    """Ids of the messages that it holds and that were not retracted."""
    answers: Mapping[str, Answer] = {}
    """What people have decided, by tool call id."""


Busy: TypeAlias = Literal["refuse", "queue"]


@runtime_checkable
class Remembering(Source, Protocol):
    """A source that keeps what was said in a conversation: it has one run of each at a time."""

    busy: Busy | None
    """What becomes of a second one: it is refused, or waits for its turn. None: it does not remember, after all."""


@runtime_checkable
class Resumable(Source, Protocol):
    """A source that can go on with a run, in another process too."""

    async def resume(self, input: Any, at: Resumption, sink: Sink) -> object:  # noqa: A002 - AG-UI's word
        """As `run`; parts that were open have been closed, and what was said since the checkpoint was retracted."""


class Question(msgspec.Struct, frozen=True):
    """May this tool run?"""

    tool_call_id: str
    tool: str
    arguments: str
    """As the model gave them: JSON, usually."""


class Paused(Exception):
    """The run waits for people, and needs no process meanwhile."""

    def __init__(self, questions: Sequence[Question], state: bytes) -> None:
        super().__init__(f"{len(questions)} questions")
        self.questions = questions
        self.state = state
        """The checkpoint to go on from when all of them are answered."""


class Stopped(Exception):
    """The run has stopped after its turn, as it was asked to."""

    def __init__(self) -> None:
        super().__init__("stopped after its turn")


class RunFailed(Exception):
    """The run failed. `code` is stable, for programs; `message` is for people and safe to show to any reader."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


ProgressValue: TypeAlias = dict[str, Any]
"""The value of a TOOL_PROGRESS event without its toolCallId."""

report_progress: Final[ContextVar[Callable[[ProgressValue], None] | None]] = ContextVar(
    "headwater_report_progress", default=None
)
"""Set by an adapter in the context of each tool call; the function in it may be called from any thread."""


current_call: Final[ContextVar[Callable[[], str] | None]] = ContextVar("headwater_tool_call", default=None)
"""Set by an adapter in the context of each tool call: gives its id, as readers of the run see it."""


def tool_call_id() -> str | None:
    """The id of the tool call that is being carried out; None outside of one.

    If the server dies while a tool runs, the tool runs again, with the same id: give it to what the tool calls as
    idempotency key (together with your own name for the tool, since not every model's ids are unique by themselves).
    Not so inside an agent that is a tool itself: that agent begins anew, and its model makes its calls under new ids.
    """
    current = current_call.get()
    return None if current is None else current()


class Request(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a client sent along with a run's input, in AG-UI's words. It comes from outside: nothing in it is checked,
    but that it is JSON. It is not in the run's stream, and no model is shown it unless you do so."""

    state: Any = None
    """The state of the client's application; None where it sent none, or an empty one."""
    context: tuple[Mapping[str, Any], ...] = ()
    """What the client's page tells of itself, usually as `description` and `value`."""
    forwarded_props: Any = None
    """What the client's application forwards to the agent."""


NO_REQUEST: Final = Request()

current_request: Final[ContextVar[Request]] = ContextVar("headwater_request", default=NO_REQUEST)
"""Set by the supervisor in the context of each run."""


current_trace: Final[ContextVar[TracedRun | None]] = ContextVar("headwater_trace", default=None)
"""Set by the supervisor in the context of each run that is traced: sources tell it what no event says."""


def request() -> Request:
    """What came along with the input of the current run, for its tools, instructions and hooks. It is empty where
    nothing did, and outside of a run. A run that another process goes on with has it there, too."""
    return current_request.get()


def progress(message: str | None = None, *, fraction: float | None = None, data: JSON = None) -> None:
    """Tells the readers of the current run how far the current tool is; outside a run it does nothing.

    May be called from inside any tool, async or sync, in any thread that carries the tool's context. Never waits; a
    tool that tells more than its run's stream can take has some of it dropped. `fraction` runs from 0 to 1 (what lies
    outside is moved to the nearer end); `data` is copied now, and raises TypeError where it is not JSON.
    """
    report = report_progress.get()
    if report is None:
        return
    value: ProgressValue = {}
    if message is not None:
        value["message"] = message.encode(errors="replace").decode()  # lone surrogates are no JSON
    if fraction is not None:
        value["fraction"] = min(1.0, max(0.0, fraction))
    if data is not None:
        value["data"] = msgspec.json.decode(msgspec.json.encode(data))
    report(value)
