"""Headwater over HTTP: an ASGI application, and responses for the endpoints of other applications."""

from headwater.http.app import App
from headwater.http.lifespan import lifespan, opened
from headwater.http.response import StreamResponse, error_response, follow

__all__ = ["App", "StreamResponse", "error_response", "follow", "lifespan", "opened"]
