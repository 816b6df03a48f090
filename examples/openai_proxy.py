"""A proxy that makes the streamed answers of any OpenAI-compatible API resumable. Nothing changes in the client.

export OPENAI_API_KEY=…
uvicorn examples.openai_proxy:app
client = openai.OpenAI(base_url="http://localhost:8000/v1/proxy/openai", api_key="not needed here")
curl -N localhost:8000/v1/proxy/openai/$ID -H "Last-Event-ID: $LAST_ID"   # after a cut; $ID is in the Location header
"""

import os

from headwater import Streams
from headwater.http import App
from headwater.http.proxy import Proxy
from headwater.sources.openai_compatible import Upstream

streams = Streams("sqlite:///proxied.db")
base_url = os.environ.get("OPENAI_BASE_URL", "https://api.openai.com/v1")
proxy = Proxy(streams, {"openai": Upstream.named("openai", base_url)})  # with OPENAI_API_KEY from the environment
app = App(streams, pages={"/v1/proxy/": proxy})  # give it `auth=Keys.from_file(…)` before others can reach it
