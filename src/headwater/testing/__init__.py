"""What tests of Headwater, and of what is built on it, need: a virtual clock for asyncio.

Nothing outside this package imports it.
"""

from headwater.testing.clock import VirtualTimeLoop, left_behind, run_virtual, virtual_time
from headwater.testing.store import check_store

__all__ = ["VirtualTimeLoop", "check_store", "left_behind", "run_virtual", "virtual_time"]
