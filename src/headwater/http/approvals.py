"""Answers to what a run waits for, as the clients of chats send them: in place of a message of the user's.

Knows the parts of the AI SDK and AG-UI's `resume`. Each names its question by an id of ours, which says the run and the
tool call (`headwater.formats.pauses.approval_id`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from headwater.errors import BadRequest
from headwater.http.exchange import Exchange
from headwater.sources import Answer

RESUME = (
    'an entry of resume is {"interruptId": "…", "status": "resolved", "payload": {"approved": true}}, or false with a '
    '"message" for the model; "cancelled" is not approved'
)


class Answers(NamedTuple):
    """What was decided, of one run."""

    run_id: str
    by_call: dict[str, Answer]


def of_ui(messages: object) -> Answers | None:
    """The answers in the `messages` of `DefaultChatTransport`; None where they ask something. Raises BadRequest."""
    last: Any = messages[-1] if isinstance(messages, list) and messages else None
    if not isinstance(last, dict) or last.get("role") != "assistant" or not isinstance(last.get("parts"), list):
        return None
    return _of_one_run(_ui_answers(last["parts"]))


def _ui_answers(parts: list[Any]) -> Iterator[tuple[object, Answer]]:
    for part in parts:
        if not isinstance(part, dict) or part.get("state") != "approval-responded":
            continue
        approval = part.get("approval")
        if not isinstance(approval, dict) or not isinstance(approval.get("approved"), bool):
            raise BadRequest("a tool that was decided on says so: approval {id, approved, reason?}")
        yield approval.get("id"), _answer(approval["approved"], approval.get("reason"))


def of_resume(resume: object) -> Answers | None:
    """The answers in the `resume` of a RunAgentInput; None where there are none. Raises BadRequest."""
    if resume in (None, []):
        return None
    if not isinstance(resume, list) or not all(isinstance(entry, dict) for entry in resume):
        raise BadRequest(RESUME)
    return _of_one_run((entry.get("interruptId"), _resolved(entry)) for entry in resume)


def _resolved(entry: Mapping[str, Any]) -> Answer:
    if entry.get("status") == "cancelled":
        return Answer(approved=False)
    payload = entry.get("payload")
    told = {"approved": payload} if isinstance(payload, bool) else payload
    if entry.get("status") != "resolved" or not isinstance(told, dict) or not isinstance(told.get("approved"), bool):
        raise BadRequest(RESUME)
    if told.get("editedArgs") is not None:
        raise BadRequest("what a tool is called with cannot be changed here; do not approve it, and say why")
    return _answer(told["approved"], told.get("message"))


def _answer(approved: bool, message: object) -> Answer:
    if not isinstance(message, str | None):
        raise BadRequest("the reason of a decision is a text")
    return Answer(approved, None if approved else message or None)


def _of_one_run(given: Iterator[tuple[object, Answer]]) -> Answers | None:
    run_ids: set[str] = set()
    answers: dict[str, Answer] = {}
    for id_, answer in given:
        run_id, _, call_id = id_.partition("~") if isinstance(id_, str) else ("", "", "")
        if not run_id or not call_id:
            raise BadRequest("this is not the id of a question that a run here has asked")
        run_ids.add(run_id)
        if answers.setdefault(call_id, answer) != answer:
            raise BadRequest(f"tool call {call_id[:100]!r} is answered twice")
    if len(run_ids) > 1:
        raise BadRequest("these answers are to questions of several runs; send each run its own")
    return Answers(run_ids.pop(), answers) if run_ids else None


def decided_by(exchange: Exchange) -> str:
    """Whose name the decision gets; none where everybody is the same."""
    return "" if exchange.auth.open_to_all else exchange.principal.name
