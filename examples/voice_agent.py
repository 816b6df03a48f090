"""A voice agent whose calls survive cut connections: transcripts as a run, sound as streams in both directions.

export OPENAI_API_KEY=…
uvicorn examples.voice_agent:app
curl -X POST localhost:8000/calls                                      # {"run": …, "hear": …, "speak": …}
curl -N localhost:8000$RUN -H "Accept: text/event-stream"              # both sides' words, tools, interruptions
curl -N "localhost:8000$HEAR?offset=-1&live=sse"                       # its voice: 16 bit PCM, 24 kHz, base64 here
curl -X POST localhost:8000$SPEAK -H 'Content-Type: audio/pcm;rate=24000' --data-binary @question.pcm
curl -X POST localhost:8000$SPEAK -H 'Stream-Closed: true'             # hang up
"""

from agents.realtime import RealtimeAgent
from fastapi import FastAPI

from headwater import Streams
from headwater.http import App, lifespan
from headwater.runs import Runs
from headwater.sources.realtime import RealtimeVoice

agent = RealtimeAgent(name="Voice", instructions="You are on the phone. Be brief.")
streams = Streams("sqlite:///calls.db")
voice = RealtimeVoice(agent, streams)
runs = Runs(streams, voice)
app = FastAPI(lifespan=lifespan(streams, runs))


@app.post("/calls", status_code=201)
async def call():
    run = await runs.start("voice", "")  # or what is to be said first
    return {
        "run": f"/v1/runs/{run.id}/events",
        "hear": f"/v1/stream/audio/{run.id}",
        "speak": f"/v1/stream/audio/{run.id}/in",
    }


app.mount("/", App(streams, runs))
