"""In what form a run's events are given to who asks for them: by `?format=`, else by Accept, else server-sent events.

Knows formats and what was taken back; nothing of how a run is made.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from starlette.datastructures import Headers, QueryParams

from headwater.errors import NotAcceptable
from headwater.formats import accepted
from headwater.formats.format import Format
from headwater.formats.lines import Lines
from headwater.formats.rollup import RolledUp, is_wanted
from headwater.formats.run_text import RunText
from headwater.formats.sse import ServerSentEvents
from headwater.runs.retractions import Retractions

_JSON: Final = "application/json"

_FORMATS: Final[dict[str, Callable[[], Format]]] = {
    # Data only: AG-UI clients take every event for data, whatever its name, and each run has a terminal event anyway.
    "sse": lambda: ServerSentEvents(_JSON, named=False),
    "ndjson": lambda: Lines(_JSON, tells_failure=True),
    "text": RunText,
}


async def choose_format(
    headers: Headers, query: QueryParams, run_id: str, retractions: Retractions, *, late: bool
) -> Format:
    """`late`: the run was there before. Then what is past comes rolled up, unless `?rollup=0`, and words that were
    taken back are left out where a format has no other way. Raises NotAcceptable, BadRequest."""
    name = query.get("format") or accepted(headers.get("accept", "")) or "sse"
    make = _FORMATS.get(name)
    if make is None:
        raise NotAcceptable(f"there is no format {name!r}; choose {', '.join(_FORMATS)}")
    rolled_up = is_wanted(query.get("rollup")) and late
    if make is RunText:
        return RunText(await retractions.of(run_id)) if late else RunText()
    return RolledUp(make()) if rolled_up else make()
