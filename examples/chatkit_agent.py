"""A ChatKit backend whose answers survive reloads, cut connections and restarts.

pip install 'headwater[chatkit,server]'
export OPENAI_API_KEY=…
uvicorn examples.chatkit_agent:app --http headwater.server:Protocol     # `api.url` of ChatKit's client: /chatkit
curl -N "localhost:8000/chatkit?thread=$THREAD"              # after a reload: the answer that is being made
curl -X DELETE "localhost:8000/chatkit?thread=$THREAD"       # the user's Stop
"""

from collections import defaultdict

from agents import Agent, Runner
from chatkit.agents import AgentContext, simple_to_agent_input, stream_agent_response
from chatkit.server import ChatKitServer
from chatkit.store import NotFoundError, Store
from chatkit.types import Page
from fastapi import FastAPI, Request

from headwater import Streams
from headwater.http import lifespan
from headwater.http.chatkit import ChatKit

agent = Agent(name="Assistant", instructions="Answer in one short paragraph.")


def page(found, after, limit, order):
    found = sorted(found, key=lambda one: one.created_at, reverse=order == "desc")
    start = next((n for n, one in enumerate(found, 1) if one.id == after), 0)
    part = found[start : start + limit]
    return Page(data=part, has_more=start + limit < len(found), after=part[-1].id if part else None)


class MemoryStore(Store):  # a real one is a database, and looks at `context` for whose thread it is
    def __init__(self):
        self.threads, self.items, self.attachments = {}, defaultdict(dict), {}

    async def load_thread(self, thread_id, context):
        if thread_id not in self.threads:
            raise NotFoundError
        return self.threads[thread_id].model_copy()

    async def save_thread(self, thread, context):
        self.threads[thread.id] = thread.model_copy()

    async def load_threads(self, limit, after, order, context):
        return page(self.threads.values(), after, limit, order)

    async def delete_thread(self, thread_id, context):
        del self.threads[thread_id], self.items[thread_id]

    async def load_thread_items(self, thread_id, after, limit, order, context):
        return page(self.items[thread_id].values(), after, limit, order)

    async def load_item(self, thread_id, item_id, context):
        return self.items[thread_id][item_id]

    async def save_item(self, thread_id, item, context):
        self.items[thread_id][item.id] = item

    add_thread_item = save_item

    async def delete_thread_item(self, thread_id, item_id, context):
        self.items[thread_id].pop(item_id, None)

    async def save_attachment(self, attachment, context):
        self.attachments[attachment.id] = attachment

    async def load_attachment(self, attachment_id, context):
        return self.attachments[attachment_id]

    async def delete_attachment(self, attachment_id, context):
        del self.attachments[attachment_id]


class Assistant(ChatKitServer):
    async def respond(self, thread, input_user_message, context):
        items = await self.store.load_thread_items(thread.id, None, 20, "desc", context)
        about = AgentContext(thread=thread, store=self.store, request_context=context)
        run = Runner.run_streamed(agent, await simple_to_agent_input(items.data[::-1]), context=about)
        async for event in stream_agent_response(about, run):
            yield event


streams = Streams("sqlite:///chatkit.db")
chatkit = ChatKit(Assistant(MemoryStore()), streams)
app = FastAPI(lifespan=lifespan(streams, closing=[chatkit]))


@app.api_route("/chatkit", methods=["GET", "POST", "DELETE"])
async def endpoint(request: Request):
    return await chatkit.answer(request, context={"user": "me"}, owner="me")  # of your own authentication
