"""The demo's agent: its two tools, and the model it runs on.

Knows the OpenAI Agents SDK and the local model. Knows nothing of streams, runs' events or HTTP servers.
"""

from __future__ import annotations

import asyncio
import os
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Final
from urllib.parse import urlsplit

from headwater.errors import MissingExtra

try:
    from agents import (
        Agent,
        Model,
        ModelSettings,
        OpenAIChatCompletionsModel,
        OpenAIResponsesModel,
        function_tool,
        set_tracing_disabled,
    )
    from openai import AsyncOpenAI, DefaultAsyncHttpxClient
except ImportError as error:
    raise MissingExtra("demo", "openai-agents") from error

from headwater.demo.local_model import LocalModel
from headwater.demo.tool_calling import INSTRUCTIONS, LOCAL_SETTINGS, ToolCallingModel
from headwater.sources import progress

REMOTE_MODEL = "gpt-4.1-mini"
WARMING = "warming the local model"  # the name of the task that does it

_SKIES = ("clear sky", "sunny", "a few clouds", "overcast", "light rain", "heavy rain")


@function_tool
async def weather(city: str) -> str:
    """The weather in a city: temperature, forecast, rain, snow, wind, sunny, warm, cold, umbrella.

    Note:
        The demo has no internet: the figures are worked out from the city's name, always the same for the same city.

    Args:
        city: The name of the city.
    """
    place = city.strip().title()
    number = zlib.crc32(place.casefold().encode())
    temperature = number % 38 - 4
    sky = "snow" if temperature < 1 else _SKIES[number // 38 % len(_SKIES)]
    return f"{place}: {sky}, {temperature} °C, wind {number // 999 % 40} km/h. (Invented for this demo.)"


RESEARCH_STEPS: Final = (
    ("Planning the search", "begin with the oldest sources"),
    ("Collecting sources", "it was known in many countries early on"),
    ("Reading", "trade carried it further"),
    ("Comparing what they say", "the sources agree on the outline and differ on the dates"),
    ("Checking doubtful points", "few of the early records remain"),
    ("Writing it up", "it is still being studied today"),
)
RESEARCH_STEP_SECONDS = 0.5


@function_tool
async def research(topic: str) -> str:
    """Research a topic and report on it: investigate, study, look into it, find out. Takes three seconds.

    Note:
        The demo has no internet: the notes are the same for every topic. What is real is the time and the progress.

    Args:
        topic: What to research.
    """
    for number, (doing, _) in enumerate(RESEARCH_STEPS):
        progress(doing, fraction=number / len(RESEARCH_STEPS))
        await asyncio.sleep(RESEARCH_STEP_SECONDS)
    progress("Done", fraction=1.0)
    notes = " ".join(f"{number}: {RESEARCH_STEPS[step][1]}." for number, step in enumerate((1, 2, 4), start=1))
    return f"Notes on {topic}. {notes} (Invented for this demo.)"


def make_agent(model: Model, settings: ModelSettings) -> Agent[Any]:
    """The demo's agent on `model`."""
    return Agent(
        name="Assistant", instructions=INSTRUCTIONS, model=model, model_settings=settings, tools=[weather, research]
    )


@asynccontextmanager
async def demo_agent() -> AsyncIterator[Agent[Any]]:
    """The agent, on the model that describe() names; a local model lives as long as the block.

    Raises MissingExtra with the line that installs what the local model lacks, LocalModelFailed if it does not start.
    Switches the SDK's tracing off, which would send every run to a server.
    """
    await asyncio.to_thread(set_tracing_disabled, True)  # it reads files: the SDK sets its tracing up to switch it off
    if _remote():
        async with AsyncOpenAI() as client:
            yield make_agent(_remote_model(client), ModelSettings(include_usage=True))
        return
    async with LocalModel() as base_url, _local_client(base_url) as client:
        model = ToolCallingModel(client)
        agent = make_agent(model, LOCAL_SETTINGS)
        warming = asyncio.create_task(model.warm_up(agent.tools), name=WARMING)
        try:
            yield agent
        finally:
            warming.cancel()
            await asyncio.gather(warming, return_exceptions=True)


def describe() -> str:
    """Which model the agent uses, for people."""
    if not _remote():
        return "SmolLM2 135M on this machine"
    # The host alone: an address may hold a password.
    return f"{_remote_name()} at {urlsplit(os.environ.get('OPENAI_BASE_URL', '')).hostname or 'api.openai.com'}"


def _remote() -> bool:
    return bool(os.environ.get("OPENAI_API_KEY"))


def _remote_name() -> str:
    return os.environ.get("HEADWATER_MODEL") or REMOTE_MODEL


def _remote_model(client: AsyncOpenAI) -> Model:
    if os.environ.get("OPENAI_BASE_URL"):  # what others speak is Chat Completions; few have Responses
        return OpenAIChatCompletionsModel(_remote_name(), client)
    return OpenAIResponsesModel(_remote_name(), client)


def _local_client(base_url: str) -> AsyncOpenAI:
    # trust_env=False: a proxy of the environment has no business with our loopback.
    http = DefaultAsyncHttpxClient(trust_env=False)
    # The engine closes a connection after 5 s of silence or 100 requests, at times just as the next request leaves.
    fresh = {"Connection": "close"}
    return AsyncOpenAI(base_url=base_url, api_key="local", max_retries=0, http_client=http, default_headers=fresh)
