"""Headwater streams what is still being made, and loses nothing when connections, readers or servers fail.

from headwater import Streams                              the deep module; a URL picks the store
from headwater.http import App, StreamResponse, lifespan   ASGI: mounted, alone, or one response
from headwater.runs import Runs                            agent runs on streams          ([agents])
from headwater.client import Client                        follow with automatic resume   ([server])
"""

from headwater.commits import Limits
from headwater.decide import Stamp
from headwater.errors import HeadwaterError
from headwater.model import Message, Offset, Page, Retention
from headwater.streams import Streams
from headwater.writer import Writer

__version__ = "0.1.0"

__all__ = [
    "HeadwaterError",
    "Limits",
    "Message",
    "Offset",
    "Page",
    "Retention",
    "Stamp",
    "Streams",
    "Writer",
    "__version__",
]
