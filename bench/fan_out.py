"""What does one event cost the server for each of 1,000 readers of one stream, and how fast can it go?

    .venv/bin/python bench/fan_out.py [--readers 1000] [--rounds 2] [--seconds 3] [--only NAME]...

Each round starts every server afresh, one after the other: a message of 64 bytes 20 times a second, then (a second
measurement) as fast as each POST is answered. Server on one processor, load generator on the other. Processor time of
the server per event that a reader got, in us; the rate at which readers get events when it goes as fast as it can.
"""

from __future__ import annotations

import argparse

from rig import servers
from rig.load import Measured, load
from rig.report import keep, machine, table

RATES = {"20 a second": 20.0, "as fast as it goes": 0.0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--readers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--only", action="append", choices=servers.FANS)
    asked = parser.parse_args()
    taken: dict[str, dict[str, list[Measured]]] = {pace: {} for pace in RATES}
    for _ in range(asked.rounds):
        for name in asked.only or servers.FANS:
            for pace, rate in RATES.items():
                try:
                    with servers.FANS[name]() as served:
                        measured = load(served, asked.readers, rate, asked.seconds)
                except servers.Missing as missing:
                    print(f"{name} is left out: {missing}")
                    continue
                taken[pace].setdefault(name, []).append(measured)
                print(
                    f"{name}, {pace}: {measured.us_per_event:.1f} us, {measured.events_per_second:,.0f}/s, "
                    f"p50 {measured.p50_ms} ms, p99 {measured.p99_ms} ms",
                    flush=True,
                )
    print(f"\n{machine()}")
    for pace, by_name in taken.items():
        against = "C floor" if "C floor" in by_name else next(iter(by_name))
        print(f"\n{asked.readers} readers, {pace}\n")
        costs = {name: [one.us_per_event for one in rounds] for name, rounds in by_name.items()}
        print(table(costs, "us/event", against))
        print()
        rates = {name: [one.events_per_second for one in rounds] for name, rounds in by_name.items()}
        print(table(rates, "events/s", against))
    figures = {
        pace: {name: [one._asdict() for one in rounds] for name, rounds in by_name.items()}
        for pace, by_name in taken.items()
    }
    keep("fan_out", (__doc__ or "").partition("\n")[0], {"readers": asked.readers, "measured": figures})


if __name__ == "__main__":
    main()
