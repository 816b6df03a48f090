"""The store contract as a test suite: a new store is done when it passes `check_store`.

Needs no test framework. Knows nothing of any one store: it sees only what the contract (`headwater.store`) promises.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable

from headwater.store import Store
from headwater.testing.store_any import CHECKS
from headwater.testing.store_durable import DURABLE_CHECKS

__all__ = ["check_store"]


async def check_store(make_store: Callable[[], Store], *, reopen: Callable[[], Store] | None = None) -> None:
    """Hold a store to the contract, check by check. Raises AssertionError that names the check and the guarantee.

    `make_store` gives a new store, not opened, that holds nothing; it is called once a check. `reopen`, for a durable
    store, gives another object, not opened, on what the store last made holds: as another process, or the same one
    after a restart, would.
    """
    for check in CHECKS:
        await _run(check.__name__, check.__doc__, check, make_store())
    if reopen is not None:
        for durable in DURABLE_CHECKS:
            await _run(durable.__name__, durable.__doc__, functools.partial(durable, reopen=reopen), make_store())


async def _run(name: str, guarantee: str | None, check: Callable[[Store], Awaitable[None]], store: Store) -> None:
    await store.open()
    try:
        await check(store)
    except Exception as error:
        raise AssertionError(f"{name} -- {guarantee}: {error or type(error).__name__}") from error
    finally:
        await store.aclose()
