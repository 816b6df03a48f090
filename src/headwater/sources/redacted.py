"""What readers are told of an error that nobody expected: that it happened, and nothing of it.

Its text may hold prompts, keys or a traceback. The log gets its kind and where it was raised; its text is logged at
level debug only.
"""

from __future__ import annotations

import logging

from headwater.sources import RunFailed

__all__ = ["redacted"]


def redacted(error: BaseException, run_id: str, log: logging.Logger) -> RunFailed:
    """RunFailed("internal") for `error`, which is noted in `log`."""
    kind = f"{type(error).__module__}.{type(error).__qualname__} at {_place_of(error)}"
    log.error("run %s failed: %s; log level debug for %s shows the whole error", run_id, kind, log.name)
    log.debug("run %s", run_id, exc_info=error)
    return RunFailed("internal", "The run failed inside the server.")


def _place_of(error: BaseException) -> str:
    """File and line that raised it."""
    at = error.__traceback__
    while at is not None and at.tb_next is not None:
        at = at.tb_next
    return "?" if at is None else f"{at.tb_frame.f_code.co_filename}:{at.tb_lineno}"
