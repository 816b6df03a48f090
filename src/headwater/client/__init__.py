"""The client: streams of a Headwater server, or of any Durable Streams server, over HTTP.

    async with Client("http://127.0.0.1:4437") as client:
        async for event in client.follow("chat/42"):              # through cuts, restarts and bad networks
            print(event.offset, event.data)

        async with client.producer("chat/42") as producer:        # what is sent counts exactly once
            await producer.send({"text": "hello"})

`SyncClient` is for code without an event loop. Knows the wire, the errors and httpx; nothing of the server side.
"""

from headwater.client.answers import ConditionIgnored, Unreachable
from headwater.client.batches import Batching
from headwater.client.client import Client, StreamInfo
from headwater.client.pages import Page
from headwater.client.producer import Producer
from headwater.client.reader import Reader, Retry
from headwater.client.service import Report
from headwater.client.sync import SyncClient, SyncProducer
from headwater.client.way import Event
from headwater.errors import OffsetGone
from headwater.model import Retention

OffsetExpired = OffsetGone
"""What Durable Streams calls it (410): the offset was trimmed away, or belongs to an earlier stream of this name."""

__all__ = [
    "Batching",
    "Client",
    "ConditionIgnored",
    "Event",
    "OffsetExpired",
    "Page",
    "Producer",
    "Reader",
    "Report",
    "Retention",
    "Retry",
    "StreamInfo",
    "SyncClient",
    "SyncProducer",
    "Unreachable",
]
