"""What lets a model of 135 million parameters call tools: an SDK model that asks it three small questions.

Knows the SDK's interface of a model and the local model. Knows no particular tool, nothing of streams, runs or HTTP
servers.

The small model can neither see tools (its template has none) nor judge well. So `ToolCallingModel` asks it three small
questions instead of one big one, each with examples, at temperature 0, constrained to a JSON schema:
 1. which tool? Only where a word of the message stands in a tool's name or description, and only among those tools
    and "none": alone the model takes "Hello" for a question about the weather. English only, for that reason.
 2. its arguments? A text argument must be a phrase of the message, so the model points instead of inventing.
 3. the answer to the message, given the tool's result.
Everything else is ordinary conversation. What the model says and does is its own; nothing is scripted.

Invariant: a prompt and its answer fit the model's context whatever users send.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Any, Final, cast
from uuid import uuid4

from agents import (
    AgentOutputSchemaBase,
    FunctionTool,
    Handoff,
    Model,
    ModelResponse,
    ModelSettings,
    ModelTracing,
    OpenAIChatCompletionsModel,
    Tool,
    TResponseInputItem,
    Usage,
    UserError,
)
from agents.items import TResponseStreamEvent
from openai import AsyncOpenAI
from openai.types import CompletionUsage
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseCreatedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseUsage,
)
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from headwater.demo.local_model import (
    ANSWER_TOKENS,
    MODEL_NAME,
    Message,
    constrained,
    cut,
    fitting,
    message,
    shot,
)

INSTRUCTIONS = "You are a helpful assistant."
"""Where an agent has none of its own: SmolLM2 was trained with this one."""

LOCAL_SETTINGS = ModelSettings(
    max_tokens=ANSWER_TOKENS, temperature=0.3, frequency_penalty=0.3, include_usage=True, parallel_tool_calls=None
)
_QUESTION_BYTES = 400
_RESULT_BYTES = 700
_PHRASE_WORDS = 6  # longest argument, and
_PHRASES_OF = 40  # longest message whose phrases are listed: the grammar of a longer one takes too long to build
_NONE = "none"


@dataclass(frozen=True)
class Example:
    """What the model is shown before it is asked: a message, the tool it calls for, and what comes of it."""

    message: str
    tool: str = _NONE
    arguments: Mapping[str, str] = field(default_factory=dict)
    result: str = ""
    answer: str = ""


EXAMPLES: Final = (
    Example(
        "Is it sunny in Prague?", "weather", {"city": "Prague"},
        "Prague: clear sky, 24 °C, wind 9 km/h. (Invented for this demo.)",
        "In Prague the sky is clear, with 24 °C and a wind of 9 km/h. (These figures are invented for this demo.)",
    ),
    Example("Good morning"),
    Example(
        "Could you do some research about whales?", "research", {"topic": "whales"},
        "Notes on whales. 1: they were seen early on. 2: few records remain. (Invented for this demo.)",
        "Here is what I found about whales. They were seen early on, and few records remain. "
        "(These notes are invented for this demo.)",
    ),
    Example("Tell me a joke"),
    Example("How cold is it in Oslo?", "weather", {"city": "Oslo"}),
    Example("Write a poem about the snow"),
    Example("Investigate solar power", "research", {"topic": "solar power"}),
    Example("Tell me a story about the wind"),
    Example("Weather in Santiago de Chile?", "weather", {"city": "Santiago de Chile"}),
    Example("Can you research old ships for me?", "research", {"topic": "old ships"}),
    Example("Do I take an umbrella in Lyon?", "weather", {"city": "Lyon"}),
    Example("I like the sun"),
    Example("I need a report on the history of Rome", "research", {"topic": "the history of Rome"}),
)  # fmt: skip


class ToolCallingModel(Model):
    """The local model as an SDK model that calls function tools: see the module's docstring.

    At most one tool per message of the user, and no tool after a result. Handoffs, output types and a `tool_choice`
    are refused. Closing or cancelling a stream ends the generation in the engine.
    """

    def __init__(self, client: AsyncOpenAI, examples: Sequence[Example] = EXAMPLES) -> None:
        self._client = client
        self._chat = OpenAIChatCompletionsModel(MODEL_NAME, client)
        self._examples = examples

    async def stream_response(  # noqa: PLR0913 - the SDK's signature
        self,
        system_instructions: str | None,
        input: str | list[TResponseInputItem],  # noqa: A002 - the SDK's name
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: Any,
    ) -> AsyncGenerator[TResponseStreamEvent, None]:
        if handoffs or output_schema is not None or model_settings.tool_choice is not None:
            raise UserError("the local model takes function tools only: no handoffs, output types or tool_choice")
        conversation, results = _conversation(input), _results(input)
        question = cut(conversation[-1]["content"], _QUESTION_BYTES) if conversation else ""
        tool, spent = (None, Usage()) if results else await self._choose(tools, question)
        if tool is not None:
            events = self._call(tool, question, spent)
        elif results:
            events = self._talk(self._grounded(question, results), replace(model_settings, temperature=0.0), tracing)
        else:
            events = self._talk(fitting(system_instructions or INSTRUCTIONS, conversation), model_settings, tracing)
        async with aclosing(events):
            async for event in events:
                yield event

    async def warm_up(self, tools: Sequence[Tool]) -> None:
        """Has the engine read the examples, which it then remembers: else the first question waits seconds for it."""
        for tool in tools:
            if isinstance(tool, FunctionTool):
                await self._choose(tools, tool.name)
                async with aclosing(self._call(tool, tool.name, Usage())) as events:
                    async for _ in events:
                        pass
        await self._client.chat.completions.create(
            model=MODEL_NAME, messages=cast("Any", self._grounded("", "")), max_tokens=1
        )

    async def get_response(self, *args: Any, **named: Any) -> ModelResponse:
        """The end of the same stream."""
        async with aclosing(self.stream_response(*args, **named)) as events:
            async for event in events:
                if isinstance(event, ResponseCompletedEvent):
                    response = event.response
        return ModelResponse(output=response.output, usage=_usage(response.usage), response_id=None)

    async def _choose(self, tools: Sequence[Tool], question: str) -> tuple[FunctionTool | None, Usage]:
        """Question 1. Without a candidate the model is not asked."""
        candidates = {tool.name: tool for tool in tools if isinstance(tool, FunctionTool) and _mentions(question, tool)}
        if not candidates:
            return None, Usage()
        shown = "; ".join(f"{tool.name}: {tool.description}" for tool in tools if isinstance(tool, FunctionTool))
        messages = [
            message(
                "system", f"Name the tool for each message. {shown}; {_NONE}: talk, greetings, poems, stories, songs."
            )
        ]
        for example in self._examples:
            messages += shot(example.message, json.dumps(example.tool))
        messages.append(message("user", question))
        answer = await self._client.chat.completions.create(**constrained(messages, {"enum": [*candidates, _NONE]}))
        return candidates.get(json.loads(answer.choices[0].message.content or "null")), _usage(answer.usage)

    async def _call(
        self, tool: FunctionTool, question: str, spent: Usage
    ) -> AsyncGenerator[TResponseStreamEvent, None]:
        """Question 2, its tokens as the events of a function call. `spent` is what question 1 cost."""
        messages = [message("system", f"Copy the {' and '.join(_properties(tool))} from the message.")]
        for example in self._examples:
            if example.tool == tool.name:
                messages += shot(example.message, json.dumps(example.arguments))
        messages.append(message("user", question))
        request = constrained(messages, _pointing(tool, question))
        call = ResponseFunctionToolCall(
            id=f"fc_{uuid4().hex}", call_id=f"call_{uuid4().hex}", name=tool.name, arguments="", type="function_call"
        )
        response = _response()
        at: dict[str, Any] = {"item_id": call.id, "output_index": 0}
        numbers = count()
        yield ResponseCreatedEvent(response=response, type="response.created", sequence_number=next(numbers))
        yield ResponseOutputItemAddedEvent(
            item=call.model_copy(), output_index=0, type="response.output_item.added", sequence_number=next(numbers)
        )
        async with await self._client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}
        ) as chunks:
            async for chunk in chunks:
                if chunk.usage:
                    spent.add(_usage(chunk.usage))
                if chunk.choices and (text := chunk.choices[0].delta.content):
                    call.arguments += text
                    yield ResponseFunctionCallArgumentsDeltaEvent(
                        delta=text, type="response.function_call_arguments.delta", sequence_number=next(numbers), **at
                    )
        call.status = "completed"
        yield ResponseFunctionCallArgumentsDoneEvent(
            arguments=call.arguments,
            type="response.function_call_arguments.done",
            sequence_number=next(numbers),
            **at,
        )
        yield ResponseOutputItemDoneEvent(
            item=call, output_index=0, type="response.output_item.done", sequence_number=next(numbers)
        )
        done = response.model_copy(update={"output": [call], "status": "completed", "usage": _response_usage(spent)})
        yield ResponseCompletedEvent(response=done, type="response.completed", sequence_number=next(numbers))

    def _talk(
        self, messages: list[Message], settings: ModelSettings, tracing: ModelTracing
    ) -> AsyncGenerator[TResponseStreamEvent, None]:
        """Plain text, by the SDK's own chat model."""
        limit = min(settings.max_tokens or ANSWER_TOKENS, ANSWER_TOKENS)
        settings = replace(settings, max_tokens=limit, parallel_tool_calls=None)
        items = cast("list[TResponseInputItem]", messages)
        answer = self._chat.stream_response(None, items, settings, [], None, [], tracing)
        return cast("AsyncGenerator[TResponseStreamEvent, None]", answer)

    def _grounded(self, question: str, results: str) -> list[Message]:
        """Question 3."""
        messages = [message("system", "You answer questions with the given facts only, in one or two sentences.")]
        for example in self._examples:
            if example.answer:
                messages += shot(_facts(example.message, example.result), example.answer)
        return [*messages, message("user", _facts(question, results))]


def _facts(question: str, results: str) -> str:
    return f"Question: {question}\nFacts: {results}\nAnswer the question with these facts."


# --- what a message mentions -----------------------------------------------------------------------------------------

_STOP_WORDS = frozenset(  # that tell nothing, or stand in descriptions without being what a tool is about
    re.findall(
        r"\w+",
        """a an and are at be by can could did do does for from have how i in into is it its like me my of on or out
        that the this to was what when where which will with would you your about tell give take
        takes city three seconds""",
    )
)


def _words(text: str) -> set[str]:
    """The telling words, without the endings that English hangs on to them: "looking" and "looks" are "look"."""
    found = re.findall(r"[a-z]+", text.casefold())
    return {re.sub(r"(?<=..)(?:ing|s|y)$", "", word) for word in found if word not in _STOP_WORDS}


def _mentions(question: str, tool: FunctionTool) -> bool:
    return not _words(question).isdisjoint(_words(f"{tool.name.replace('_', ' ')} {tool.description}"))


def _properties(tool: FunctionTool) -> dict[str, Any]:
    return cast("dict[str, Any]", tool.params_json_schema.get("properties", {}))


def _pointing(tool: FunctionTool, question: str) -> dict[str, Any]:
    """The tool's schema, in which every free text is one of the message's phrases."""
    free: dict[str, Any] = {"maxLength": 60}
    if phrases := _phrases(question):
        free = {"enum": phrases}
    properties = {
        name: {**kind, **free} if kind.get("type") == "string" and "enum" not in kind else kind
        for name, kind in _properties(tool).items()
    }
    return {**tool.params_json_schema, "properties": properties}


def _phrases(text: str) -> list[str]:
    """Every run of up to _PHRASE_WORDS words, as written; none for a message that is too long for it."""
    words = list(re.finditer(r"\w(?:[\w'’.-]*\w)?", text))
    if len(words) > _PHRASES_OF:
        return []
    ends = ((i, j) for i in range(len(words)) for j in range(i, min(len(words), i + _PHRASE_WORDS)))
    return list(dict.fromkeys(text[words[i].start() : words[j].end()] for i, j in ends))


# --- the SDK's items, as a prompt that fits --------------------------------------------------------------------------


def _conversation(given: str | list[TResponseInputItem]) -> list[Message]:
    """What was said, without tool calls and their results: the answers that follow hold them."""
    if isinstance(given, str):
        return [message("user", given)]
    said = (item for item in cast("list[dict[str, Any]]", given) if "role" in item)
    return [message(item["role"], _text(item["content"])) for item in said]


def _results(given: str | list[TResponseInputItem]) -> str:
    """The tool results after the last message; empty where none is waiting for an answer."""
    results: list[str] = []
    for item in reversed([] if isinstance(given, str) else cast("list[dict[str, Any]]", given)):
        if "role" in item:
            break
        if item.get("type") == "function_call_output":
            results.insert(0, _text(item["output"]))
    return cut("\n".join(results), _RESULT_BYTES)


def _text(content: str | Iterable[Mapping[str, Any]]) -> str:
    return content if isinstance(content, str) else "\n".join(part["text"] for part in content if "text" in part)


# --- the SDK's responses ---------------------------------------------------------------------------------------------


def _response() -> Response:
    return Response(
        id=f"resp_{uuid4().hex}", created_at=time.time(), model=MODEL_NAME, object="response", output=[],
        status="in_progress", tool_choice="auto", tools=[], parallel_tool_calls=False,
    )  # fmt: skip


def _usage(spent: CompletionUsage | ResponseUsage | None) -> Usage:
    if spent is None:
        return Usage()
    if isinstance(spent, CompletionUsage):
        read, written = spent.prompt_tokens, spent.completion_tokens
    else:
        read, written = spent.input_tokens, spent.output_tokens
    return Usage(requests=1, input_tokens=read, output_tokens=written, total_tokens=read + written)


def _response_usage(spent: Usage) -> ResponseUsage:
    return ResponseUsage(
        input_tokens=spent.input_tokens, output_tokens=spent.output_tokens, total_tokens=spent.total_tokens,
        input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
        output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
    )  # fmt: skip
