"""Agent runs: an agent's execution that belongs to its stream, not to a request.

    runs = Runs(streams, my_agent)
    run = await runs.start("my-agent", "What is the weather in Paris?")
    return run.response(request)

`supervisor` keeps the tasks, `start` is idempotent by key, `record` is what is known of a run from its stream alone.
"""

from headwater.runs.record import Record
from headwater.runs.runs import Run, Runs

__all__ = ["Record", "Run", "Runs"]
