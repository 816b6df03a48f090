"""A server that dies often and is back at once: a process that has imported everything forks one for each life.

    python forking_server.py STORE PORT MODULE:ATTRIBUTE   # a line on stdin: one life, its pid on stdout

Each life is a process of its own, with its own pid, connections and store, and ends by SIGKILL.
"""

import os
import sys


def live(store: str, port: int, spec: str) -> None:
    from headwater.cli.agents import load
    from headwater.server import ServeConfig, run

    ready = lambda _: os.write(1, f"{os.getpid()}\n".encode())  # noqa: E731
    run(ServeConfig(store=store, port=port, agents=[load(spec)], log_level="warning"), ready)


def main() -> None:
    store, port, spec = sys.argv[1:]
    import headwater.server.serve
    from headwater.cli.agents import load
    from headwater.runs import Runs

    assert headwater.server.serve is not None
    load(spec)
    # It is killed all the time; that it is not gone on with for ever is another test's.
    Runs.__init__.__kwdefaults__["most_resumptions"] = 50
    alive = 0
    for _ in sys.stdin:
        if alive:
            os.waitpid(alive, 0)  # a killed process still holds its port for a moment
        alive = os.fork()
        if alive == 0:
            live(store, int(port), spec)
            os._exit(0)


if __name__ == "__main__":
    main()
