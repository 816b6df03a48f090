"""What may be told about a call whose connection to its model could not be made, or broke.

Knows what the SDK's transport raises, and says it in the codes of `headwater.sources.openai_failures`. An OSError says
something of the model only while the call is being connected: later it may be a tool's.
"""

from __future__ import annotations

from agents.exceptions import ModelTimeoutError
from websockets.exceptions import ConnectionClosed, InvalidStatus, WebSocketException

from headwater.sources import RunFailed
from headwater.sources.openai_failures import of_status

__all__ = ["connection_failure"]


def connection_failure(error: Exception, *, connected: bool) -> RunFailed | None:
    """What readers may know of `error`; None where it is none of the connection. `connected`: the call had begun."""
    if isinstance(error, ConnectionClosed) and connected:
        return RunFailed("upstream_cut", "The connection to the model was cut off in the middle of the call.")
    if isinstance(error, InvalidStatus):
        return of_status(error.response.status_code)
    if isinstance(error, ModelTimeoutError) or (isinstance(error, TimeoutError) and not connected):
        return RunFailed("model_timeout", "The model took too long to answer.")
    if isinstance(error, WebSocketException) or (isinstance(error, OSError) and not connected):
        return RunFailed("model_unreachable", "The model cannot be reached.")
    return None
