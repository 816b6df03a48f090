"""Stores by URL. A new store is one row in this table and one module that passes `headwater.testing.check_store`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from headwater.errors import BadRequest
from headwater.store import Store
from headwater.stores.memory import MemoryStore
from headwater.stores.sqlite import SqliteStore


def _memory(url: SplitResult) -> Store:
    _options(url)
    return MemoryStore()


def _sqlite(url: SplitResult) -> Store:
    # sqlite:///app.db is relative, sqlite:////var/lib/app.db absolute: the form SQLAlchemy made familiar.
    path = unquote(url.path[1:])
    synchronous = _options(url, "sync").get("sync", "full")
    if url.netloc or not path or path == ":memory:":
        raise BadRequest(
            "an SQLite store is named sqlite:///file.db (relative) or sqlite:////folder/file.db; in memory: `memory:`"
        )
    if synchronous == "full":
        return SqliteStore(path)
    if synchronous == "normal":
        return SqliteStore(path, synchronous="normal")
    raise BadRequest("sqlite: `sync` is full (survives loss of power) or normal (faster)")


def _options(url: SplitResult, *known: str) -> dict[str, str]:
    """What stands in the query. Raises BadRequest for what the store does not know, or is said twice."""
    pairs = parse_qsl(url.query, keep_blank_values=True)
    unknown = [name for name, _ in pairs if name not in known]
    if unknown:
        takes = f"takes only {', '.join(known)}" if known else "takes none"
        raise BadRequest(f"{url.scheme}: the option {unknown[0]!r} is not known; this store {takes}")
    if len(pairs) > len(dict(pairs)):
        raise BadRequest(f"{url.scheme}: an option is given twice")
    return dict(pairs)


STORES: Final[dict[str, Callable[[SplitResult], Store]]] = {"memory": _memory, "sqlite": _sqlite}


def store_from_url(url: str) -> Store:
    """The store that `url` names, not opened yet. Raises BadRequest, saying what can be named."""
    parts = urlsplit(url)
    make = STORES.get(parts.scheme)
    if make is None:
        known = ", ".join(f"{scheme}:" for scheme in sorted(STORES))
        raise BadRequest(f"no store is known for {url!r}; a store URL starts with one of {known}")
    return make(parts)
