"""What may be told about a failed run of the OpenAI Agents SDK: a stable code and a sentence.

Knows the exceptions of `agents`, `openai` and their HTTP layer. No text of an exception ever leaves this module:
it may hold prompts, keys, URLs or a traceback.

| code | what happened |
|---|---|
| max_turns | the agent took more turns than it may |
| input_guardrail, output_guardrail, tool_guardrail | a guardrail's tripwire |
| tool_failed | a tool raised, or ran out of time, and was set not to tell the model |
| model_refused | the model declined, where only a parsed output would do |
| model_behavior | the model sent what the SDK cannot use (an unknown tool, output that does not parse, "incomplete") |
| model_timeout, model_unreachable, rate_limited | of the model's provider; a later run may succeed |
| model_refused_request | the provider answers 4xx: a wrong key, model name or input |
| upstream_cut | the provider's stream ended in the middle of an answer |
| internal | anything else |
"""

from __future__ import annotations

import agents
import openai
from agents.exceptions import ModelRefusalError, ModelTimeoutError, ToolTimeoutError

from headwater.sources import RunFailed
from headwater.sources.openai_cut import UpstreamCut

__all__ = ["failure", "of_status"]


_BY_TYPE: tuple[tuple[type[Exception], str, str], ...] = (
    (agents.MaxTurnsExceeded, "max_turns", "The agent took more turns than it may."),
    (agents.InputGuardrailTripwireTriggered, "input_guardrail", "The input was stopped by a guardrail."),
    (agents.OutputGuardrailTripwireTriggered, "output_guardrail", "The answer was withdrawn by a guardrail."),
    (agents.ToolInputGuardrailTripwireTriggered, "tool_guardrail", "A tool call was stopped by a guardrail."),
    (agents.ToolOutputGuardrailTripwireTriggered, "tool_guardrail", "A tool's output was stopped by a guardrail."),
    (ModelTimeoutError, "model_timeout", "The model took too long to answer."),
    (ModelRefusalError, "model_refused", "The model declined to answer."),
    (ToolTimeoutError, "tool_failed", "A tool took too long."),
    (UpstreamCut, "upstream_cut", "The model's stream was cut off in the middle of its answer."),
)


def failure(error: BaseException, *, answering: bool, tool_running: bool) -> RunFailed:
    """What readers may know of `error`. `answering`: a model response had begun and not ended;
    `tool_running`: a tool had started and not ended."""
    for kind, code, message in _BY_TYPE:
        if isinstance(error, kind):
            return RunFailed(code, message)
    if isinstance(error, openai.APIError):
        return _provider_failure(error, answering)
    if isinstance(error, agents.ModelBehaviorError):
        if answering:
            return RunFailed("upstream_cut", "The model's stream was cut off in the middle of its answer.")
        return RunFailed("model_behavior", "The model answered with something that cannot be used.")
    if tool_running:
        return RunFailed("tool_failed", "A tool failed.")
    return RunFailed("internal", "The run failed inside the server.")


def _provider_failure(error: openai.APIError, answering: bool) -> RunFailed:
    if isinstance(error, openai.APIStatusError):
        return of_status(error.status_code)
    if isinstance(error, openai.APITimeoutError):
        return RunFailed("model_timeout", "The model took too long to answer.")
    if answering:
        return RunFailed("upstream_cut", "The model's stream was cut off in the middle of its answer.")
    return RunFailed("model_unreachable", "The model cannot be reached.")


def of_status(status: int) -> RunFailed:
    """What an HTTP status of the model's provider means."""
    if status == 429:
        return RunFailed("rate_limited", "The model's provider allows no more requests at the moment (HTTP 429).")
    if status < 500:
        return RunFailed("model_refused_request", f"The model's provider refused the request (HTTP {status}).")
    return RunFailed("model_unreachable", f"The model's provider failed (HTTP {status}).")
