"""Headwater's application for any ASGI server."""

from headwater import Streams
from headwater.http import App

app = App(Streams("memory:"))
