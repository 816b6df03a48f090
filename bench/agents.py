"""What does a token cost the server that makes 200 answers at once, 50 tokens a second each, with one reader for each?

    .venv/bin/python bench/agents.py [--answers 200] [--rounds 2] [--seconds 4] [--only NAME]...

Each round starts every server afresh, one after the other. All have the same producer (`rig/apps/tokens.py`); one makes
the tokens and writes them nowhere, and its cost per token is subtracted from the others'. So what is compared is what
it costs to bring a token to its client: for the peers straight from the generator to the response; for headwater by a
stream in memory that outlives both, is resumable and may have more readers. Server on one processor, load generator on
the other. A reader that joins has the tokens within so long of a write in the next one (`?join_ms=`, PROTOCOL.md,
section 3); a writer that does (`streams.writer(..., join_ms=50)`) makes one commit of them, for all readers.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

from rig import servers
from rig.load import Measured, load
from rig.report import keep, machine, table

PER_SECOND = 50  # as rig/apps/tokens.py has it
NOBODY = "the producers alone"
PLAIN = "StreamingResponse"


def ours(path: str, http: str = "headwater.server:Protocol") -> servers.Server:
    return partial(servers.python_app, "answers_app:app", path, "", http)


def theirs(app: str) -> servers.Server:
    return partial(servers.python_app, app, "/answer", "")


SERVERS: dict[str, servers.Server] = {
    NOBODY: ours("/nobody", "httptools"),
    PLAIN: theirs("starlette_app:app"),
    "sse-starlette": theirs("sse_starlette_app:app"),
    "FastAPI SSE": theirs("fastapi_sse_app:app"),
    "headwater": ours("/answer"),
    "headwater, reader joins 20 ms": ours("/answer?join_ms=20"),
    "headwater, reader joins 50 ms": ours("/answer?join_ms=50"),
    "headwater, writer joins 20 ms": ours("/answer?writer=20"),
    "headwater, writer joins 50 ms": ours("/answer?writer=50"),
    "headwater, StreamResponse": ours("/response"),
    "headwater, portable": ours("/answer", "httptools"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=4)
    parser.add_argument("--only", action="append", choices=[name for name in SERVERS if name not in (NOBODY, PLAIN)])
    asked = parser.parse_args()
    wanted = [name for name in SERVERS if not asked.only or name in (NOBODY, PLAIN, *asked.only)]
    taken: dict[str, list[Measured]] = {name: [] for name in wanted}
    for _ in range(asked.rounds):
        for name in wanted:
            with SERVERS[name]() as served:
                measured = load(served, asked.answers, 0, asked.seconds)
            if name == NOBODY:  # nobody saw them, but they were made
                measured = measured._replace(delivered=round(asked.answers * PER_SECOND * measured.seconds))
            taken[name].append(measured)
            told = f"{name}: {measured.us_per_event:.1f} us, {measured.events_per_second:,.0f}/s"
            print(f"{told}, p50 {measured.p50_ms} ms, p99 {measured.p99_ms} ms", flush=True)
    made = statistics.median(one.us_per_event for one in taken[NOBODY])
    net = {name: [one.us_per_event - made for one in rounds] for name, rounds in taken.items() if name != NOBODY}
    print(f"\n{machine()}")
    print(f"\n{asked.answers} answers at once; making a token cost {made:.1f} us, which is taken off\n")
    print(table(net, "us/token", PLAIN))
    figures = {name: [{**one._asdict(), "making_us": made} for one in taken[name]] for name in net}
    case = f"{asked.answers} answers"
    keep("agents", (__doc__ or "").partition("\n")[0], {"measured": {case: figures}})


if __name__ == "__main__":
    main()
