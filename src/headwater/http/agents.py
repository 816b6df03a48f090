"""`/agents/{name}/…`: the endpoints that chat clients of the field expect, each over the same runs.

| path | client |
|---|---|
| `/agents/{name}/chat`, `chat-v5`, `chat-v7`, `chat-text` | the AI SDK's `useChat` (`headwater.http.chat`) |
| `/agents/{name}/ag-ui` | AG-UI's HttpAgent, TanStack AI (`headwater.http.agui`) |

Knows which resource a path belongs to.
"""

from __future__ import annotations

from starlette.responses import Response

from headwater.errors import NotFound
from headwater.http.agui import AguiResource
from headwater.http.chat import DOORS, ChatResource
from headwater.http.exchange import Exchange
from headwater.runs import Runs


class AgentResource:
    """The agents of one Runs, for their clients."""

    def __init__(self, runs: Runs) -> None:
        self._chat, self._agui = ChatResource(runs), AguiResource(runs)

    async def answer(self, exchange: Exchange, path: str) -> Response:
        """`path` is what follows `/agents/`."""
        agent, _, path = path.partition("/")
        door, _, rest = path.partition("/")
        if agent and door in DOORS:
            return await self._chat.answer(exchange, agent, door, rest)
        if agent and door == "ag-ui":
            return await self._agui.answer(exchange, agent, rest)
        raise NotFound("there is nothing at this path")
