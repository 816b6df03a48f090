"""The client: streams of a Headwater server over HTTP. Follows them through cuts, restarts and bad networks.

    async with Client("http://127.0.0.1:4437") as client:
        async for event in client.follow("chat/42"):
            print(event.offset, event.data)

Knows the wire, the errors and httpx; nothing of the server side.
"""

from headwater.client.answers import Unreachable
from headwater.client.client import Client, StreamInfo
from headwater.client.reader import Event, Reader, Retry

__all__ = ["Client", "Event", "Reader", "Retry", "StreamInfo", "Unreachable"]
