"""What the LangGraph SDKs ask for when they start or resume a run -> what that means here. Pure.

What cannot be carried out is refused and named. Taken and without effect: `config`, `context` and `metadata`, which do
not reach the agent; `stream_resumable`, `durability`, `checkpoint_during`, `on_completion` and `if_not_exists`, since
every run is kept and can be resumed; `stream_subgraphs`, since there are none to show.
"""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from headwater.errors import BadRequest
from headwater.formats.langchain import Message, coerced
from headwater.formats.langgraph import MODES
from headwater.sources import Answer

UNREAD_SECONDS: Final = 30.0
"""`on_disconnect: "cancel"`: so long nobody may be reading before the run is cancelled. Long enough to reconnect."""

IN_BACKGROUND: Final = ("values", "updates", "messages-tuple", "custom")
"""The modes of a run that was started to be joined later, and said none."""

_REFUSED: Final = ("webhook", "interrupt_before", "interrupt_after", "after_seconds", "feedback_keys")

_RESUME: Final = (
    'resume with {"decisions": [{"type": "approve"}]} in the order of the interrupts, or by their ids: '
    '{"<interrupt id>": {"type": "reject", "message": "…"}}'
)


@dataclass(frozen=True, slots=True)
class Asked:
    """A request for a run."""

    agent: str
    messages: list[Message]
    """The new ones."""
    modes: Sequence[str]
    checkpoint: str | None
    """The run goes on from there instead of from the thread's newest."""
    command: Mapping[str, Any] | None
    interrupts: bool
    """The active run of the thread is cancelled for this one."""
    unread_seconds: float | None
    digest: str
    """The same for the same request."""


def asked_for(body: dict[str, Any], thread: str | None, key: str | None, *, default: Sequence[str]) -> Asked:
    """The body of a POST. `key`: the same where it is repeated; `default`: the modes where it says none.

    Raises BadRequest.
    """
    agent = body.get("assistant_id")
    if not isinstance(agent, str):
        raise BadRequest("assistant_id is the name of a registered agent")
    if refused := [name for name in _REFUSED if body.get(name)]:
        raise BadRequest(f"{refused[0]} is not served here; leave it out")
    if body.get("on_disconnect") not in (None, "cancel", "continue"):
        raise BadRequest("on_disconnect is continue or cancel")
    digest = hashlib.sha256(msgspec.json.encode([thread, body], order="sorted")).hexdigest()
    # Two that say the same have said it twice; one that was repeated has not.
    said = secrets.token_urlsafe(12) if key is None else hashlib.sha256(f"{digest} {key}".encode()).hexdigest()[:16]
    return Asked(
        agent=agent,
        messages=_messages(body.get("input"), said),
        modes=modes_of(body.get("stream_mode")) or default,
        checkpoint=_checkpoint(body),
        command=_command(body.get("command")),
        interrupts=_strategy(body.get("multitask_strategy")) == "interrupt",
        unread_seconds=UNREAD_SECONDS if body.get("on_disconnect") == "cancel" else None,
        digest=digest,
    )


def modes_of(given: Any) -> list[str]:
    """`stream_mode`: a text or a list; empty where there is none. Raises BadRequest."""
    several = given if isinstance(given, list) else [] if given is None else [given]
    for mode in several:
        if mode not in MODES:
            raise BadRequest(f"there is no stream_mode {str(mode)[:40]!r} here; choose {', '.join(MODES)}")
    return list(dict.fromkeys(several))


def _messages(given: Any, id_: str) -> list[Message]:
    if given is None:
        return []
    if not isinstance(given, dict) or given.get("messages") is None:
        raise BadRequest('input is {"messages": […]}, in a form that LangChain takes')
    try:
        return coerced(given["messages"], id_)
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise BadRequest("a message of the input has none of the forms that LangChain takes") from error


def _checkpoint(body: Mapping[str, Any]) -> str | None:
    checkpoint = body.get("checkpoint")
    named = checkpoint.get("checkpoint_id") if isinstance(checkpoint, dict) else None
    named = named or body.get("checkpoint_id")
    if named is not None and not isinstance(named, str):
        raise BadRequest("checkpoint_id is a text")
    return named


def _command(given: Any) -> Mapping[str, Any] | None:
    if given is None:
        return None
    if not isinstance(given, dict) or given.get("resume") is None or given.get("goto") or given.get("update"):
        raise BadRequest('of commands there is {"resume": …} only: it answers what a waiting run asks')
    return given


def _strategy(given: Any) -> str:
    if given not in (None, "reject", "interrupt"):
        raise BadRequest("multitask_strategy is reject or interrupt; runs of a thread neither queue nor roll back here")
    return given or "reject"


def answers_of(resume: Any, asked: Mapping[str, str]) -> dict[str, Answer]:
    """What `command.resume` says to the questions that are open, by tool call id. `asked`: the ids of their interrupts,
    and of the calls. Raises BadRequest."""
    if isinstance(resume, dict) and resume.keys() and resume.keys() <= asked.keys():
        return {asked[id_]: _answer(_only(decision)) for id_, decision in resume.items()}
    decisions = resume.get("decisions") if isinstance(resume, dict) else None
    if decisions is None:
        decisions = [resume]
    if not isinstance(decisions, list) or len(decisions) != len(asked):
        raise BadRequest(f"{len(asked)} interrupts wait for a decision; {_RESUME}")
    return {id_: _answer(decision) for id_, decision in zip(asked.values(), decisions, strict=True)}


def _only(decision: Any) -> Any:
    decisions = decision.get("decisions") if isinstance(decision, dict) else None
    return decisions[0] if isinstance(decisions, list) and len(decisions) == 1 else decision


def _answer(decision: Any) -> Answer:
    if isinstance(decision, bool):
        return Answer(decision)
    kind, message = (decision.get("type"), decision.get("message")) if isinstance(decision, dict) else (None, None)
    if kind not in ("approve", "reject") or not isinstance(message, str | None):
        raise BadRequest(_RESUME)
    return Answer(kind == "approve", message)
