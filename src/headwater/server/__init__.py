"""Serving: one process that answers HTTP for one store, and goes away without losing or hanging anything.

    run(ServeConfig(store="sqlite:///app.db", agents=[(None, my_agent)]))

On SIGTERM or Ctrl-C: runs end as interrupted, readers are told, connections end within the grace period, the store is
closed. Once is enough. Knows uvicorn and the application below it.
"""

from headwater.server.connection import PortTaken, Protocol, listen
from headwater.server.serve import ServeConfig, run, serve

__all__ = ["PortTaken", "Protocol", "ServeConfig", "listen", "run", "serve"]
