"""Headwater over HTTP: an ASGI application, and responses for the endpoints of other applications."""

from headwater.http.app import App
from headwater.http.lifespan import lifespan, opened
from headwater.http.response import StreamResponse, follow

__all__ = ["App", "StreamResponse", "follow", "lifespan", "opened"]
